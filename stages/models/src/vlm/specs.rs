//! How lists of weights are written: names, shapes, how packed ones are stacked, and how a new model draws them.
//!
//! A variable is named alike in all families (`model.layers.N...`, `lm_head.weight`, and `visual...` for everything that sees); its
//! tensors on disk have each family's names, the one to write first. A linear map draws normal(0, fan_in^-0.5); the two maps
//! of a block that write to the residual stream are scaled by (2 x depth)^-0.5 more, so that the stream keeps its size at any
//! depth. Embeddings draw normal(0, hidden^-0.5), which makes logits of a tied head about one. Biases are zero and norms one.

use super::text::TextConfig;
use super::vision::BlockStyle;
use crate::weights::{Init, WeightSpec};

/// The names on disk of a variable or of a part of a packed one, the one to write first.
pub(super) type Names = dyn Fn(&str) -> Vec<String>;

pub(super) fn scaled(fan_in: usize, factor: f64) -> Init {
    Init::Normal(factor * (fan_in as f64).powf(-0.5))
}

/// What the maps that write to a residual stream are scaled by.
pub(super) fn residual(depth: usize) -> f64 {
    (2.0 * depth as f64).powf(-0.5)
}

/// A list of weights under construction.
pub(super) struct Specs<'n> {
    names: &'n Names,
    list: Vec<WeightSpec>,
}

impl<'n> Specs<'n> {
    pub(super) fn new(names: &'n Names) -> Specs<'n> {
        Specs { names, list: vec![] }
    }

    pub(super) fn finish(self) -> Vec<WeightSpec> {
        self.list
    }

    /// A variable that lies on disk in another shape of equal size, rows first.
    pub(super) fn shaped(&mut self, name: &str, shape: Vec<usize>, disk: Vec<usize>, init: Init) {
        let parts = vec![((self.names)(name), disk)];
        self.list.push(WeightSpec { name: name.to_owned(), shape, parts, fused: None, init, kept: false });
    }

    pub(super) fn plain(&mut self, name: &str, shape: Vec<usize>, init: Init) {
        self.shaped(name, shape.clone(), shape, init);
    }

    pub(super) fn norm(&mut self, name: &str, width: usize, layer_norm: bool) {
        self.plain(&format!("{name}.weight"), vec![width], Init::Ones);
        if layer_norm {
            self.plain(&format!("{name}.bias"), vec![width], Init::Zeros);
        }
    }

    /// A matrix `[rows, columns]` and, where `bias` is set, its bias.
    pub(super) fn map(&mut self, name: &str, [rows, columns]: [usize; 2], factor: f64, bias: bool) {
        self.plain(&format!("{name}.weight"), vec![rows, columns], scaled(columns, factor));
        if bias {
            self.plain(&format!("{name}.bias"), vec![rows], Init::Zeros);
        }
    }

    /// Matrices of the same input, and their biases where `bias` is set, stacked along their rows.
    pub(super) fn packed(&mut self, name: &str, parts: &[(String, usize)], columns: usize, bias: bool) {
        self.stack(&format!("{name}.weight"), parts, "weight", Some(columns));
        if bias {
            self.stack(&format!("{name}.bias"), parts, "bias", None);
        }
    }

    fn stack(&mut self, name: &str, parts: &[(String, usize)], kind: &str, columns: Option<usize>) {
        let shape = |rows: usize| std::iter::once(rows).chain(columns).collect::<Vec<_>>();
        let all = shape(parts.iter().map(|(_, rows)| rows).sum());
        self.list.push(WeightSpec {
            name: name.to_owned(),
            parts: parts.iter().map(|(part, rows)| ((self.names)(&format!("{part}.{kind}")), shape(*rows))).collect(),
            fused: Some(((self.names)(name), all.clone())),
            shape: all,
            init: columns.map_or(Init::Zeros, |columns| scaled(columns, 1.0)),
            kept: false,
        });
    }

    /// A tensor that is read, kept and written back, but of no use to us.
    pub(super) fn keep(&mut self, name: &str, shape: Vec<usize>) {
        self.plain(name, shape, Init::Zeros);
        self.list.last_mut().expect("just pushed").kept = true;
    }

    /// Marks all weights from place `first` of the list on as kept.
    pub(super) fn keep_from(&mut self, first: usize) {
        self.list[first..].iter_mut().for_each(|spec| spec.kept = true);
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// A block of a vision tower. `split` says that query, key and value lie apart on disk.
    pub(super) fn block(&mut self, index: usize, style: &BlockStyle, inner: usize, depth: usize, split: bool) {
        let width = style.heads.out_width();
        let of = |name: &str| format!("visual.blocks.{index}.{name}");
        let out = residual(depth);
        self.norm(&of("norm1"), width, style.layer_norm);
        self.norm(&of("norm2"), width, style.layer_norm);
        match split {
            true => {
                let parts = ["q", "k", "v"].map(|part| (of(&format!("attn.{part}_proj")), width));
                self.packed(&of("attn.qkv"), &parts, width, style.qkv_bias);
            }
            false => self.map(&of("attn.qkv"), [3 * width, width], 1.0, style.qkv_bias),
        }
        if style.qk_norm {
            self.norm(&of("attn.q_norm"), width, false);
            self.norm(&of("attn.k_norm"), width, false);
        }
        self.map(&of("attn.proj"), [width, width], out, true);
        if style.layer_scale {
            self.plain(&of("ls1"), vec![width], Init::Ones);
            self.plain(&of("ls2"), vec![width], Init::Ones);
        }
        match style.activation {
            None => {
                let parts = ["gate_proj", "up_proj"].map(|part| (of(&format!("mlp.{part}")), inner));
                self.packed(&of("mlp.gate_up_proj"), &parts, width, true);
                self.map(&of("mlp.down_proj"), [width, inner], out, true);
            }
            Some(_) => {
                self.map(&of("mlp.fc1"), [inner, width], 1.0, true);
                self.map(&of("mlp.fc2"), [width, inner], out, true);
            }
        }
    }

    /// The language model.
    pub(super) fn text(&mut self, config: &TextConfig) {
        let (d, h) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.heads.out_width(), config.heads.kv_heads * config.heads.head_dim);
        self.map("model.embed_tokens", [config.vocab_size, d], 1.0, false);
        self.norm("model.norm", d, false);
        for layer in 0..config.layers {
            let of = |name: &str| format!("model.layers.{layer}.{name}");
            let out = residual(config.layers);
            self.norm(&of("input_layernorm"), d, false);
            self.norm(&of("post_attention_layernorm"), d, false);
            let parts =
                [("q", q), ("k", kv), ("v", kv)].map(|(part, rows)| (of(&format!("self_attn.{part}_proj")), rows));
            self.packed(&of("self_attn.qkv_proj"), &parts, d, config.decoder.has_bias());
            self.map(&of("self_attn.o_proj"), [d, q], out, false);
            let parts = ["gate_proj", "up_proj"].map(|part| (of(&format!("mlp.{part}")), h));
            self.packed(&of("mlp.gate_up_proj"), &parts, d, false);
            self.map(&of("mlp.down_proj"), [d, h], out, false);
        }
        if !config.tie_word_embeddings {
            self.map("lm_head", [config.vocab_size, d], 1.0, false);
        }
    }
}
