//! LLaVA-NeXT, published as LLaVA-1.6 (Liu et al. 2024): CLIP's vision tower over tiles, a projector of two maps, and Vicuna or Mistral.
//!
//! | file | what |
//! |---|---|
//! | `config` | `config.json`, both forms |
//! | `tower` | CLIP up to the layer whose features count, the projector, newline tokens |

pub mod config;
pub mod tower;

use crate::vlm::specs::{Specs, scaled};
use crate::weights::{Init, WeightSpec};

pub use config::Config;
pub use tower::Tower;

/// All weights of a configuration. The layers of CLIP behind the one whose features count are kept, but of no use.
pub fn specs(config: &Config) -> Vec<WeightSpec> {
    let mut specs = Specs::new(&names);
    let (vision, d) = (&config.vision, config.vision.hidden_size);
    let (p, patch, text) = (vision.patch_size, vision.patch_width(), config.text.hidden_size);
    let style = vision.style;
    specs.plain("visual.class_embedding", vec![d], Init::Normal(0.02));
    specs.shaped("visual.patch_embed.proj.weight", vec![d, patch], vec![d, 3, p, p], scaled(patch, 1.0));
    specs.plain("visual.position_embedding", vec![vision.positions(), d], Init::Normal(0.02));
    specs.norm("visual.pre_norm", d, true);
    for block in 0..vision.layers {
        let first = specs.len();
        specs.block(block, &style, vision.intermediate_size, vision.layers, true);
        if block >= config.depth() {
            specs.keep_from(first);
        }
    }
    for kind in ["weight", "bias"] {
        specs.keep(&format!("visual.post_norm.{kind}"), vec![d]);
    }
    specs.map("visual.projector.0", [text, d], 1.0, config.projector_bias);
    specs.map("visual.projector.1", [text, text], 1.0, config.projector_bias);
    specs.plain("visual.newline", vec![text], scaled(text, 1.0));
    specs.text(&config.text);
    specs.finish()
}

/// Names under which one tensor is found. `language_model.model.`, `vision_tower.vision_model.` are those of published checkpoints and
/// what we write; transformers 5 puts `model.` in front of everything and leaves `vision_model.` out.
fn names(name: &str) -> Vec<String> {
    if let Some(rest) = name.strip_prefix("model.") {
        return vec![format!("language_model.model.{rest}"), format!("model.language_model.{rest}")];
    }
    let Some(rest) = name.strip_prefix("visual.") else {
        return vec![format!("language_model.{name}"), name.to_owned(), format!("model.{name}")];
    };
    if rest == "newline" {
        return vec!["image_newline".into(), "model.image_newline".into()];
    }
    if let Some(rest) = rest.strip_prefix("projector.") {
        let map = if rest.starts_with('0') { "linear_1" } else { "linear_2" };
        return ["", "model."].map(|front| format!("{front}multi_modal_projector.{map}{}", &rest[1..])).into();
    }
    let clip = clip_name(rest);
    let fronts =
        ["vision_tower.vision_model.", "vision_tower.", "model.vision_tower.vision_model.", "model.vision_tower."];
    fronts.map(|front| format!("{front}{clip}")).into()
}

/// CLIP's name of what we call `visual.{rest}`.
fn clip_name(rest: &str) -> String {
    match rest.split_once('.').map_or((rest, ""), |(head, tail)| (head, tail)) {
        ("class_embedding", _) => "embeddings.class_embedding".into(),
        ("position_embedding", _) => "embeddings.position_embedding.weight".into(),
        ("patch_embed", _) => "embeddings.patch_embedding.weight".into(),
        // The misspelling is the checkpoint's.
        ("pre_norm", tail) => format!("pre_layrnorm.{tail}"),
        ("post_norm", tail) => format!("post_layernorm.{tail}"),
        (_, block) => {
            let renamed = block
                .replace(".norm1.", ".layer_norm1.")
                .replace(".norm2.", ".layer_norm2.")
                .replace(".attn.proj.", ".self_attn.out_proj.")
                .replace(".attn.", ".self_attn.");
            format!("encoder.layers.{renamed}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_checkpoints() {
        for (ours, theirs) in [
            ("model.layers.3.mlp.up_proj.weight", "language_model.model.layers.3.mlp.up_proj.weight"),
            ("lm_head.weight", "language_model.lm_head.weight"),
            ("visual.newline", "image_newline"),
            ("visual.projector.0.weight", "multi_modal_projector.linear_1.weight"),
            ("visual.projector.1.bias", "multi_modal_projector.linear_2.bias"),
            ("visual.patch_embed.proj.weight", "vision_tower.vision_model.embeddings.patch_embedding.weight"),
            ("visual.pre_norm.bias", "vision_tower.vision_model.pre_layrnorm.bias"),
            ("visual.blocks.2.attn.q_proj.bias", "vision_tower.vision_model.encoder.layers.2.self_attn.q_proj.bias"),
            (
                "visual.blocks.2.attn.proj.weight",
                "vision_tower.vision_model.encoder.layers.2.self_attn.out_proj.weight",
            ),
            ("visual.blocks.0.norm1.weight", "vision_tower.vision_model.encoder.layers.0.layer_norm1.weight"),
        ] {
            assert_eq!(names(ours)[0], theirs);
        }
    }
}
