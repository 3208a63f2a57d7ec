//! The list of this architecture's weights: names, shapes, how packed ones are stacked, and how a new model draws them.
//!
//! A linear map draws normal(0, fan_in^-0.5); the two maps of a block that write to the residual stream are scaled by
//! (2 x depth)^-0.5 more, so that the stream keeps its size at any depth. Embeddings draw normal(0, hidden^-0.5), which makes logits
//! of a tied head about one. Biases are zero and norms one.

use super::config::{Config, TextConfig, VisionConfig};
use crate::weights::{Init, WeightSpec};

/// All weights of a configuration.
pub fn specs(config: &Config) -> Vec<WeightSpec> {
    let mut list = vision(&config.vision);
    list.extend(text(&config.text));
    list
}

/// Names under which one tensor is found: the published one, then those of later and earlier layouts.
fn aliases(name: &str) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    if let Some(rest) = name.strip_prefix("model.") {
        names.push(format!("model.language_model.{rest}"));
        names.push(format!("language_model.model.{rest}"));
    } else if name.starts_with("visual.") {
        names.push(format!("model.{name}"));
    } else {
        names.push(format!("language_model.{name}"));
    }
    names
}

fn scaled(fan_in: usize, factor: f64) -> Init {
    Init::Normal(factor * (fan_in as f64).powf(-0.5))
}

fn residual(depth: usize) -> f64 {
    (2.0 * depth as f64).powf(-0.5)
}

fn norm(name: &str, width: usize) -> WeightSpec {
    WeightSpec::plain(aliases(name), vec![width], Init::Ones)
}

fn bias(name: &str, width: usize) -> WeightSpec {
    WeightSpec::plain(aliases(name), vec![width], Init::Zeros)
}

fn matrix(name: &str, rows: usize, columns: usize, factor: f64) -> WeightSpec {
    WeightSpec::plain(aliases(name), vec![rows, columns], scaled(columns, factor))
}

/// Matrices (or, with `columns` absent, biases) of the same input stacked along their rows.
fn packed(name: &str, parts: &[(String, usize)], columns: Option<usize>) -> WeightSpec {
    let shape = |rows: usize| std::iter::once(rows).chain(columns).collect::<Vec<_>>();
    WeightSpec {
        name: name.to_owned(),
        shape: shape(parts.iter().map(|(_, rows)| rows).sum()),
        parts: parts.iter().map(|(name, rows)| (aliases(name), shape(*rows))).collect(),
        init: columns.map_or(Init::Zeros, |columns| scaled(columns, 1.0)),
    }
}

fn gate_up(mlp: &str, kind: &str, rows: usize, columns: Option<usize>) -> WeightSpec {
    let parts = ["gate_proj", "up_proj"].map(|part| (format!("{mlp}.{part}.{kind}"), rows));
    packed(&format!("{mlp}.gate_up_proj.{kind}"), &parts, columns)
}

fn vision(config: &VisionConfig) -> Vec<WeightSpec> {
    let (d, h) = (config.hidden_size, config.intermediate_size);
    let (p, merged) = (config.patch_size, d * config.merge_unit());
    let patch_names = aliases("visual.patch_embed.proj.weight");
    let mut list = vec![WeightSpec {
        name: patch_names[0].clone(),
        shape: vec![d, config.patch_width()],
        parts: vec![(patch_names, vec![d, config.in_channels, config.temporal_patch_size, p, p])],
        init: scaled(config.patch_width(), 1.0),
    }];
    for block in 0..config.depth {
        let of = |name: &str| format!("visual.blocks.{block}.{name}");
        let out = residual(config.depth);
        list.extend([
            norm(&of("norm1.weight"), d),
            norm(&of("norm2.weight"), d),
            matrix(&of("attn.qkv.weight"), 3 * d, d, 1.0),
            bias(&of("attn.qkv.bias"), 3 * d),
            matrix(&of("attn.proj.weight"), d, d, out),
            bias(&of("attn.proj.bias"), d),
            gate_up(&of("mlp"), "weight", h, Some(d)),
            gate_up(&of("mlp"), "bias", h, None),
            matrix(&of("mlp.down_proj.weight"), d, h, out),
            bias(&of("mlp.down_proj.bias"), d),
        ]);
    }
    list.extend([
        norm("visual.merger.ln_q.weight", d),
        matrix("visual.merger.mlp.0.weight", merged, merged, 1.0),
        bias("visual.merger.mlp.0.bias", merged),
        matrix("visual.merger.mlp.2.weight", config.out_hidden_size, merged, 1.0),
        bias("visual.merger.mlp.2.bias", config.out_hidden_size),
    ]);
    list
}

fn text(config: &TextConfig) -> Vec<WeightSpec> {
    let (d, h) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.heads.out_width(), config.heads.kv_heads * config.heads.head_dim);
    let mut list = vec![matrix("model.embed_tokens.weight", config.vocab_size, d, 1.0), norm("model.norm.weight", d)];
    for layer in 0..config.layers {
        let of = |name: &str| format!("model.layers.{layer}.{name}");
        let out = residual(config.layers);
        let stacked = |kind: &str| {
            [("q", q), ("k", kv), ("v", kv)].map(|(part, rows)| (of(&format!("self_attn.{part}_proj.{kind}")), rows))
        };
        list.extend([
            norm(&of("input_layernorm.weight"), d),
            norm(&of("post_attention_layernorm.weight"), d),
            packed(&of("self_attn.qkv_proj.weight"), &stacked("weight"), Some(d)),
            packed(&of("self_attn.qkv_proj.bias"), &stacked("bias"), None),
            matrix(&of("self_attn.o_proj.weight"), d, q, out),
            gate_up(&of("mlp"), "weight", h, Some(d)),
            matrix(&of("mlp.down_proj.weight"), d, h, out),
        ]);
    }
    if !config.tie_word_embeddings {
        list.push(matrix("lm_head.weight", config.vocab_size, d, 1.0));
    }
    list
}
