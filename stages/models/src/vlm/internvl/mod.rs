//! InternVL3 (Zhu et al. 2025, arXiv 2504.10479): InternViT over tiles, pixel shuffle, a projector of two maps, and Qwen2.
//!
//! | file | what |
//! |---|---|
//! | `config` | `config.json`: `internvl` (transformers) and `internvl_chat` (as published) |
//! | `tower` | InternViT, pixel shuffle, projector |

pub mod config;
pub mod tower;

use crate::vlm::specs::{Specs, scaled};
use crate::weights::{Init, WeightSpec};

pub use config::Config;
pub use tower::Tower;

/// All weights of a configuration.
pub fn specs(config: &Config) -> Vec<WeightSpec> {
    let mut specs = Specs::new(&names);
    let (vision, d) = (&config.vision, config.vision.hidden_size);
    let (p, patch, text) = (vision.patch_size, vision.patch_width(), config.text.hidden_size);
    let (style, merged) = (vision.style, d * config.merge * config.merge);
    specs.shaped("visual.class_embedding", vec![d], vec![1, 1, d], Init::Normal(0.02));
    specs.shaped("visual.patch_embed.proj.weight", vec![d, patch], vec![d, 3, p, p], scaled(patch, 1.0));
    specs.plain("visual.patch_embed.proj.bias", vec![d], Init::Zeros);
    let positions = vision.positions();
    specs.shaped("visual.position_embedding", vec![positions, d], vec![1, positions, d], Init::Normal(0.02));
    for block in 0..vision.layers {
        let first = specs.len();
        specs.block(block, &style, vision.intermediate_size, vision.layers, true);
        if block >= config.depth() {
            specs.keep_from(first);
        }
    }
    if !config.mean_pooling {
        specs.norm("visual.post_norm", d, true);
    }
    specs.norm("visual.projector.norm", merged, true);
    specs.map("visual.projector.0", [text, merged], 1.0, true);
    specs.map("visual.projector.1", [text, text], 1.0, true);
    specs.text(&config.text);
    specs.finish()
}

/// Names under which one tensor is found: that of transformers, which we write, with and without `model.` in front, and the published
/// one.
fn names(name: &str) -> Vec<String> {
    if let Some(rest) = name.strip_prefix("model.") {
        return vec![format!("language_model.model.{rest}"), format!("model.language_model.{rest}")];
    }
    let Some(rest) = name.strip_prefix("visual.") else {
        return vec![format!("language_model.{name}"), name.to_owned()];
    };
    let (theirs, published) = vision_names(rest);
    vec![theirs.clone(), format!("model.{theirs}"), published]
}

/// The names that transformers and the published checkpoint have for `visual.{rest}`.
fn vision_names(rest: &str) -> (String, String) {
    let (head, tail) = rest.split_once('.').unwrap_or((rest, ""));
    let embedding = |theirs: &str, published: &str| {
        (format!("vision_tower.embeddings.{theirs}"), format!("vision_model.embeddings.{published}"))
    };
    match (head, tail) {
        ("class_embedding", _) => embedding("cls_token", "class_embedding"),
        ("position_embedding", _) => embedding("position_embeddings", "position_embedding"),
        ("patch_embed", "proj.weight") => embedding("patch_embeddings.projection.weight", "patch_embedding.weight"),
        ("patch_embed", _) => embedding("patch_embeddings.projection.bias", "patch_embedding.bias"),
        ("post_norm", _) => (format!("vision_tower.layernorm.{tail}"), format!("vision_model.layernorm.{tail}")),
        ("projector", _) => {
            let (part, kind) = tail.split_once('.').unwrap_or((tail, ""));
            let (theirs, published) = match part {
                "norm" => ("layer_norm", 0),
                "0" => ("linear_1", 1),
                _ => ("linear_2", 3),
            };
            (format!("multi_modal_projector.{theirs}.{kind}"), format!("mlp1.{published}.{kind}"))
        }
        _ => {
            let theirs = tail
                .replace(".norm1.", ".layernorm_before.")
                .replace(".norm2.", ".layernorm_after.")
                .replace(".attn.proj.", ".attention.projection_layer.")
                .replace(".attn.", ".attention.")
                .replace(".ls1", ".lambda_1")
                .replace(".ls2", ".lambda_2");
            (format!("vision_tower.encoder.layer.{theirs}"), format!("vision_model.encoder.layers.{tail}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_checkpoints() {
        for (ours, theirs, published) in [
            ("visual.class_embedding", "vision_tower.embeddings.cls_token", "vision_model.embeddings.class_embedding"),
            ("visual.blocks.4.ls1", "vision_tower.encoder.layer.4.lambda_1", "vision_model.encoder.layers.4.ls1"),
            (
                "visual.blocks.4.attn.qkv.bias",
                "vision_tower.encoder.layer.4.attention.qkv.bias",
                "vision_model.encoder.layers.4.attn.qkv.bias",
            ),
            (
                "visual.blocks.4.attn.proj.weight",
                "vision_tower.encoder.layer.4.attention.projection_layer.weight",
                "vision_model.encoder.layers.4.attn.proj.weight",
            ),
            ("visual.projector.norm.bias", "multi_modal_projector.layer_norm.bias", "mlp1.0.bias"),
            ("visual.projector.1.weight", "multi_modal_projector.linear_2.weight", "mlp1.3.weight"),
        ] {
            assert_eq!(names(ours), [theirs.to_owned(), format!("model.{theirs}"), published.to_owned()]);
        }
    }
}
