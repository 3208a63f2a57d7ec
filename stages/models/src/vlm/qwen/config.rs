//! `config.json` of a Qwen2-VL or Qwen2.5-VL directory: the language model's keys stand at the top in published checkpoints, under
//! `text_config` in those of transformers 5. Both are read, the published form is written.

use serde_json::{Value, json};

use crate::ops::HeadShape;
use crate::vlm::section::{Said, Section};
use crate::vlm::text::{Decoder, RopeScaling, TextConfig};
use crate::vlm::vision::{Activation, BlockStyle};

/// Added to the variance or the mean square in the tower's norms.
pub(super) const EPS: f64 = 1e-6;

/// The whole architecture.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The language model.
    pub text: TextConfig,
    /// The vision tower.
    pub vision: VisionConfig,
    /// The token that stands for one merged image patch.
    pub image_token_id: u32,
    /// The token that stands for one merged video patch.
    pub video_token_id: u32,
    /// The token before an image.
    pub vision_start_token_id: u32,
    /// The token after an image.
    pub vision_end_token_id: u32,
    /// First token of a text, where a model has one.
    pub bos_token_id: Option<u32>,
    /// Last token of a text, as the configuration says; `generation_config.json` goes before it.
    pub eos_token_id: Option<u32>,
}

/// Which of the two generations of blocks a vision tower has.
#[derive(Debug, Clone, PartialEq)]
pub enum Blocks {
    /// Qwen2-VL: layer norms, two maps with quick GELU, every block sees the whole picture.
    Full,
    /// Qwen2.5-VL: root mean square norms, gated feed-forward, most blocks see windows.
    Windowed {
        /// Side of an attention window in pixels.
        window_size: usize,
        /// Blocks that see the whole picture.
        fullatt_block_indexes: Vec<usize>,
        /// Time steps a second of video; written back as read.
        tokens_per_second: usize,
    },
}

/// The vision tower.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Number of blocks.
    pub depth: usize,
    /// Width of a patch row.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of heads.
    pub heads: usize,
    /// Colour channels.
    pub in_channels: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Patches a side that merge into one token.
    pub spatial_merge_size: usize,
    /// Frames that one patch spans; a still picture is repeated.
    pub temporal_patch_size: usize,
    /// Width of a merged token: the language model's hidden size.
    pub out_hidden_size: usize,
    /// The kind of blocks.
    pub blocks: Blocks,
}

impl VisionConfig {
    /// Values of one flattened patch.
    pub fn patch_width(&self) -> usize {
        self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// Patches that merge into one token.
    pub fn merge_unit(&self) -> usize {
        self.spatial_merge_size * self.spatial_merge_size
    }

    /// Heads of the attention, in the form that the operations take.
    pub fn head_shape(&self) -> HeadShape {
        HeadShape { heads: self.heads, kv_heads: self.heads, head_dim: self.hidden_size / self.heads }
    }

    /// What the blocks have in common.
    pub fn style(&self) -> BlockStyle {
        let full = self.blocks == Blocks::Full;
        BlockStyle {
            heads: self.head_shape(),
            layer_norm: full,
            eps: EPS,
            activation: full.then_some(Activation::QuickGelu),
            qkv_bias: true,
            qk_norm: false,
            layer_scale: false,
        }
    }
}

impl Config {
    /// The configuration that a JSON value spells.
    ///
    /// # Errors
    /// A message that names the key.
    pub fn from_json(value: &Value) -> std::result::Result<Config, String> {
        let windowed = match value["model_type"].as_str() {
            Some("qwen2_5_vl") => true,
            Some("qwen2_vl") => false,
            Some(other) => {
                return Err(format!("`model_type` is `{other}`; this module reads `qwen2_vl` and `qwen2_5_vl`"));
            }
            None => return Err("`model_type` is missing".into()),
        };
        let root = Section { value, name: "" };
        let text = Section { value: value.get("text_config").unwrap_or(value), name: "text_config." };
        for key in ["hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size", "intermediate_size"] {
            text.number(key)?;
        }
        let theta = |section: &Value| section["rope_theta"].is_number();
        if !theta(text.value) && !theta(&text.value["rope_parameters"]) && !theta(&text.value["rope_scaling"]) {
            return Err("`rope_theta` is missing".into());
        }
        let tied = value["tie_word_embeddings"].as_bool();
        let vision = Section { value: &value["vision_config"], name: "vision_config." };
        let config = Config {
            text: TextConfig::read(text, Decoder::Qwen2, true, tied)?,
            vision: if windowed { windowed_vision(&vision)? } else { full_vision(&vision)? },
            image_token_id: root.number("image_token_id")? as u32,
            video_token_id: root.number("video_token_id")? as u32,
            vision_start_token_id: root.number("vision_start_token_id")? as u32,
            vision_end_token_id: root.number("vision_end_token_id")? as u32,
            bos_token_id: root.token("bos_token_id").or_else(|| text.token("bos_token_id")),
            eos_token_id: root.token("eos_token_id").or_else(|| text.token("eos_token_id")),
        };
        config.check()?;
        Ok(config)
    }

    /// Refuses shapes that the architecture cannot have.
    ///
    /// # Errors
    /// A message that names the numbers that do not fit.
    pub fn check(&self) -> std::result::Result<(), String> {
        let (text, vision) = (&self.text, &self.vision);
        text.check()?;
        if text.mrope_section.is_none() || text.rope_scaling != RopeScaling::None {
            return Err("the language model needs `mrope_section` and no other rotary scaling".into());
        }
        if vision.heads == 0 || vision.hidden_size % (4 * vision.heads) != 0 {
            return Err(format!(
                "vision width {} must be a multiple of 4 x {} heads for rows and columns to turn alike",
                vision.hidden_size, vision.heads
            ));
        }
        if vision.out_hidden_size != text.hidden_size {
            return Err(format!(
                "`vision_config.out_hidden_size` {} differs from `hidden_size` {}",
                vision.out_hidden_size, text.hidden_size
            ));
        }
        match vision.blocks {
            Blocks::Windowed { window_size, .. } if window_size < vision.patch_size * vision.spatial_merge_size => {
                Err(format!("`vision_config.window_size` {window_size} is smaller than one merged patch"))
            }
            _ => Ok(()),
        }
    }

    /// The published form.
    pub fn to_json(&self) -> Value {
        let text = &self.text;
        let (class, model_type) = match self.vision.blocks {
            Blocks::Full => ("Qwen2VLForConditionalGeneration", "qwen2_vl"),
            Blocks::Windowed { .. } => ("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl"),
        };
        let mut value = json!({
            "architectures": [class],
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "hidden_size": text.hidden_size,
            "image_token_id": self.image_token_id,
            "initializer_range": 0.02,
            "intermediate_size": text.intermediate_size,
            "max_position_embeddings": text.max_position_embeddings,
            "model_type": model_type,
            "num_attention_heads": text.heads.heads,
            "num_hidden_layers": text.layers,
            "num_key_value_heads": text.heads.kv_heads,
            "rms_norm_eps": text.rms_norm_eps,
            "rope_scaling": { "mrope_section": text.mrope_section, "rope_type": "default", "type": "default" },
            "rope_theta": text.rope_theta,
            "tie_word_embeddings": text.tie_word_embeddings,
            "torch_dtype": "float32",
            "use_cache": true,
            "use_sliding_window": false,
            "video_token_id": self.video_token_id,
            "vision_config": self.vision.to_json(),
            "vision_end_token_id": self.vision_end_token_id,
            "vision_start_token_id": self.vision_start_token_id,
            "vocab_size": text.vocab_size,
        });
        text.write_sliding(&mut value);
        for (key, id) in [("bos_token_id", self.bos_token_id), ("eos_token_id", self.eos_token_id)] {
            if let Some(id) = id {
                value[key] = id.into();
            }
        }
        value
    }
}

impl VisionConfig {
    fn to_json(&self) -> Value {
        match &self.blocks {
            Blocks::Full => json!({
                "depth": self.depth,
                "embed_dim": self.hidden_size,
                "hidden_act": "quick_gelu",
                "hidden_size": self.out_hidden_size,
                "in_channels": self.in_channels,
                "in_chans": self.in_channels,
                "mlp_ratio": self.intermediate_size / self.hidden_size,
                "model_type": "qwen2_vl",
                "num_heads": self.heads,
                "patch_size": self.patch_size,
                "spatial_merge_size": self.spatial_merge_size,
                "spatial_patch_size": self.patch_size,
                "temporal_patch_size": self.temporal_patch_size,
            }),
            Blocks::Windowed { window_size, fullatt_block_indexes, tokens_per_second } => json!({
                "depth": self.depth,
                "fullatt_block_indexes": fullatt_block_indexes,
                "hidden_act": "silu",
                "hidden_size": self.hidden_size,
                "in_channels": self.in_channels,
                "in_chans": self.in_channels,
                "intermediate_size": self.intermediate_size,
                "model_type": "qwen2_5_vl",
                "num_heads": self.heads,
                "out_hidden_size": self.out_hidden_size,
                "patch_size": self.patch_size,
                "spatial_merge_size": self.spatial_merge_size,
                "spatial_patch_size": self.patch_size,
                "temporal_patch_size": self.temporal_patch_size,
                "tokens_per_second": tokens_per_second,
                "window_size": window_size,
            }),
        }
    }
}

fn windowed_vision(vision: &Section<'_>) -> Said<VisionConfig> {
    let full =
        vision.value["fullatt_block_indexes"].as_array().ok_or("`vision_config.fullatt_block_indexes` is missing")?;
    vision.only("hidden_act", "silu")?;
    Ok(VisionConfig {
        hidden_size: vision.number("hidden_size")?,
        intermediate_size: vision.number("intermediate_size")?,
        out_hidden_size: vision.number("out_hidden_size")?,
        blocks: Blocks::Windowed {
            window_size: vision.number("window_size")?,
            fullatt_block_indexes: full.iter().filter_map(Value::as_u64).map(|n| n as usize).collect(),
            tokens_per_second: vision.number("tokens_per_second").unwrap_or(2),
        },
        ..common_vision(vision)?
    })
}

fn full_vision(vision: &Section<'_>) -> Said<VisionConfig> {
    let hidden_size = vision.number_or("embed_dim", 1280)?;
    let ratio = vision.float_or("mlp_ratio", 4.0)?;
    vision.only("hidden_act", "quick_gelu")?;
    if ratio.fract() != 0.0 || ratio < 1.0 {
        return Err(format!("`vision_config.mlp_ratio` must be a whole number, found {ratio}"));
    }
    Ok(VisionConfig {
        hidden_size,
        intermediate_size: hidden_size * ratio as usize,
        out_hidden_size: vision.number("hidden_size")?,
        ..common_vision(vision)?
    })
}

/// What both generations say alike.
fn common_vision(vision: &Section<'_>) -> Said<VisionConfig> {
    Ok(VisionConfig {
        depth: vision.number_or("depth", 32)?,
        hidden_size: 0,
        intermediate_size: 0,
        heads: vision.number_or("num_heads", 16)?,
        in_channels: vision.number("in_channels").or_else(|_| vision.number_or("in_chans", 3))?,
        patch_size: vision.number("patch_size").or_else(|_| vision.number_or("spatial_patch_size", 14))?,
        spatial_merge_size: vision.number_or("spatial_merge_size", 2)?,
        temporal_patch_size: vision.number_or("temporal_patch_size", 2)?,
        out_hidden_size: 0,
        blocks: Blocks::Full,
    })
}
