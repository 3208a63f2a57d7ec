//! `config.json` of a Qwen2.5-VL directory, read in both forms that exist and written in the published one.
//!
//! | | published checkpoints | transformers 5 |
//! |---|---|---|
//! | language model | keys at the top | under `text_config` |
//! | rotary base and sections | `rope_theta`, `rope_scaling.mrope_section` | `rope_parameters.{rope_theta, mrope_section}` |
//! | vision tower | `vision_config` | `vision_config` |

use std::path::Path;

use serde_json::{Value, json};

use crate::error::{ModelError, Result};
use crate::ops::HeadShape;

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

/// The language model.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of a hidden row.
    pub hidden_size: usize,
    /// Width of the gated feed-forward layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub layers: usize,
    /// Heads of the attention.
    pub heads: HeadShape,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// How many frequencies turn with time, row and column; sums to half of the head width.
    pub mrope_section: [usize; 3],
    /// Whether the embedding table is the output head too.
    pub tie_word_embeddings: bool,
}

/// The vision tower.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Number of blocks.
    pub depth: usize,
    /// Width of a patch row.
    pub hidden_size: usize,
    /// Width of the gated feed-forward layer.
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
    /// Side of an attention window in pixels.
    pub window_size: usize,
    /// Blocks that see the whole picture; the others see windows.
    pub fullatt_block_indexes: Vec<usize>,
    /// Width of a merged token: the language model's hidden size.
    pub out_hidden_size: usize,
    /// Time steps a second of video; written back as read.
    pub tokens_per_second: usize,
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
}

impl Config {
    /// Reads `config.json` of a model directory.
    ///
    /// # Errors
    /// When the file cannot be read, is no JSON, names another architecture, or lacks a key.
    pub fn read(path: &Path) -> Result<Config> {
        let bytes = std::fs::read(path).map_err(|source| ModelError::Read { path: path.into(), source })?;
        let value: Value = serde_json::from_slice(&bytes)
            .map_err(|error| ModelError::File { path: path.into(), message: error.to_string() })?;
        Config::from_json(&value).map_err(|message| ModelError::File { path: path.into(), message })
    }

    /// The configuration that a JSON value spells.
    ///
    /// # Errors
    /// A message that names the key.
    pub fn from_json(value: &Value) -> std::result::Result<Config, String> {
        match value["model_type"].as_str() {
            Some("qwen2_5_vl") => {}
            Some(other) => return Err(format!("`model_type` is `{other}`; this module reads `qwen2_5_vl`")),
            None => return Err("`model_type` is missing".into()),
        }
        let root = Section { value, name: "" };
        let text = Section { value: value.get("text_config").unwrap_or(value), name: "text_config." };
        let tied = value.get("tie_word_embeddings").or_else(|| text.value.get("tie_word_embeddings"));
        let config = Config {
            text: text_config(&text, tied.and_then(Value::as_bool).unwrap_or(false))?,
            vision: vision_config(&Section { value: &value["vision_config"], name: "vision_config." })?,
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
        let half = text.heads.head_dim / 2;
        if text.mrope_section.iter().sum::<usize>() != half {
            return Err(format!("`mrope_section` {:?} must sum to half the head width, {half}", text.mrope_section));
        }
        if text.heads.kv_heads == 0 || text.heads.heads % text.heads.kv_heads != 0 || text.heads.head_dim % 2 != 0 {
            return Err(format!(
                "{:?} is no head shape: key heads must divide the heads and the width be even",
                text.heads
            ));
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
        if vision.window_size < vision.patch_size * vision.spatial_merge_size {
            return Err(format!("`vision_config.window_size` {} is smaller than one merged patch", vision.window_size));
        }
        Ok(())
    }

    /// The published form.
    pub fn to_json(&self) -> Value {
        let (text, vision) = (&self.text, &self.vision);
        let mut value = json!({
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "hidden_size": text.hidden_size,
            "image_token_id": self.image_token_id,
            "initializer_range": 0.02,
            "intermediate_size": text.intermediate_size,
            "max_position_embeddings": text.max_position_embeddings,
            "model_type": "qwen2_5_vl",
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
            "vision_config": {
                "depth": vision.depth,
                "fullatt_block_indexes": vision.fullatt_block_indexes,
                "hidden_act": "silu",
                "hidden_size": vision.hidden_size,
                "in_channels": vision.in_channels,
                "in_chans": vision.in_channels,
                "intermediate_size": vision.intermediate_size,
                "model_type": "qwen2_5_vl",
                "num_heads": vision.heads,
                "out_hidden_size": vision.out_hidden_size,
                "patch_size": vision.patch_size,
                "spatial_merge_size": vision.spatial_merge_size,
                "spatial_patch_size": vision.patch_size,
                "temporal_patch_size": vision.temporal_patch_size,
                "tokens_per_second": vision.tokens_per_second,
                "window_size": vision.window_size,
            },
            "vision_end_token_id": self.vision_end_token_id,
            "vision_start_token_id": self.vision_start_token_id,
            "vocab_size": text.vocab_size,
        });
        for (key, id) in [("bos_token_id", self.bos_token_id), ("eos_token_id", self.eos_token_id)] {
            if let Some(id) = id {
                value[key] = id.into();
            }
        }
        value
    }
}

fn text_config(text: &Section<'_>, tied: bool) -> std::result::Result<TextConfig, String> {
    if text.value["use_sliding_window"].as_bool() == Some(true) {
        return Err("`use_sliding_window` is on; sliding windows in the language model are not supported".into());
    }
    let hidden_size = text.number("hidden_size")?;
    let heads = text.number("num_attention_heads")?;
    let rope = text.value.get("rope_parameters").or_else(|| text.value.get("rope_scaling")).unwrap_or(&Value::Null);
    let theta = text.value["rope_theta"].as_f64().or_else(|| rope["rope_theta"].as_f64());
    let head_dim = text.value["head_dim"].as_u64().map_or(hidden_size / heads.max(1), |width| width as usize);
    Ok(TextConfig {
        vocab_size: text.number("vocab_size")?,
        hidden_size,
        intermediate_size: text.number("intermediate_size")?,
        layers: text.number("num_hidden_layers")?,
        heads: HeadShape { heads, kv_heads: text.number("num_key_value_heads").unwrap_or(heads), head_dim },
        max_position_embeddings: text.number("max_position_embeddings")?,
        rms_norm_eps: text.value["rms_norm_eps"].as_f64().unwrap_or(1e-6),
        rope_theta: theta.ok_or("`rope_theta` is missing")?,
        mrope_section: sections(rope)?,
        tie_word_embeddings: tied,
    })
}

fn sections(rope: &Value) -> std::result::Result<[usize; 3], String> {
    let kind = rope.get("rope_type").or_else(|| rope.get("type")).and_then(Value::as_str).unwrap_or("default");
    if !matches!(kind, "default" | "mrope") {
        return Err(format!("rotary scaling `{kind}` is not supported, only `default` and `mrope`"));
    }
    let list = rope["mrope_section"].as_array().ok_or("`mrope_section` is missing")?;
    let numbers: Vec<usize> = list.iter().filter_map(Value::as_u64).map(|n| n as usize).collect();
    numbers.try_into().map_err(|_| format!("`mrope_section` must hold three numbers, not {}", rope["mrope_section"]))
}

fn vision_config(vision: &Section<'_>) -> std::result::Result<VisionConfig, String> {
    let channels = vision.number("in_channels").or_else(|_| vision.number("in_chans")).unwrap_or(3);
    let full =
        vision.value["fullatt_block_indexes"].as_array().ok_or("`vision_config.fullatt_block_indexes` is missing")?;
    Ok(VisionConfig {
        depth: vision.number("depth")?,
        hidden_size: vision.number("hidden_size")?,
        intermediate_size: vision.number("intermediate_size")?,
        heads: vision.number("num_heads")?,
        in_channels: channels,
        patch_size: vision.number("patch_size").or_else(|_| vision.number("spatial_patch_size"))?,
        spatial_merge_size: vision.number("spatial_merge_size")?,
        temporal_patch_size: vision.number("temporal_patch_size").unwrap_or(2),
        window_size: vision.number("window_size")?,
        fullatt_block_indexes: full.iter().filter_map(Value::as_u64).map(|n| n as usize).collect(),
        out_hidden_size: vision.number("out_hidden_size")?,
        tokens_per_second: vision.number("tokens_per_second").unwrap_or(2),
    })
}

/// A JSON object and the name under which messages show its keys.
struct Section<'a> {
    value: &'a Value,
    name: &'static str,
}

impl Section<'_> {
    fn number(&self, key: &str) -> std::result::Result<usize, String> {
        let found = &self.value[key];
        found
            .as_u64()
            .map(|n| n as usize)
            .ok_or_else(|| format!("`{}{key}` must be a whole number, found {found}", self.name))
    }

    fn token(&self, key: &str) -> Option<u32> {
        self.value[key].as_u64().map(|id| id as u32)
    }
}
