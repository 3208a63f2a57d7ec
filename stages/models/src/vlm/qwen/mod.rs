//! Qwen2-VL (Wang et al. 2024, arXiv 2409.12191) and Qwen2.5-VL (Bai et al. 2025, arXiv 2502.13923).
//!
//! They share the language model, M-RoPE, patches and merger; [`config::Blocks`] holds what differs in the vision tower.
//!
//! | file | what |
//! |---|---|
//! | `config` | `config.json`, both forms |
//! | `windows` | order and visibility of the patches |
//! | `tower` | the vision tower |
//! | `positions` | M-RoPE positions of a prompt |

pub mod config;
pub mod positions;
pub mod tower;
pub mod windows;

use crate::vlm::specs::{Specs, scaled};
use crate::weights::WeightSpec;

pub use config::{Blocks, Config, VisionConfig};
pub use tower::Tower;

/// All weights of a configuration.
pub fn specs(config: &Config) -> Vec<WeightSpec> {
    let mut specs = Specs::new(&names);
    let vision = &config.vision;
    let (d, merged, p) = (vision.hidden_size, vision.hidden_size * vision.merge_unit(), vision.patch_size);
    let disk = vec![d, vision.in_channels, vision.temporal_patch_size, p, p];
    let patch = vision.patch_width();
    specs.shaped("visual.patch_embed.proj.weight", vec![d, patch], disk, scaled(patch, 1.0));
    let style = vision.style();
    for block in 0..vision.depth {
        specs.block(block, &style, vision.intermediate_size, vision.depth, false);
    }
    specs.norm("visual.merger.ln_q", d, style.layer_norm);
    specs.map("visual.merger.mlp.0", [merged, merged], 1.0, true);
    specs.map("visual.merger.mlp.2", [vision.out_hidden_size, merged], 1.0, true);
    specs.text(&config.text);
    specs.finish()
}

/// Names under which one tensor is found: the published one, then those of later and earlier layouts.
fn names(name: &str) -> Vec<String> {
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
