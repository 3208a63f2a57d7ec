//! `config.json` of an InternVL directory.
//!
//! | | transformers | published |
//! |---|---|---|
//! | `model_type` | `internvl` | `internvl_chat` |
//! | language model | `text_config` | `llm_config` |
//! | layer of the features | `vision_feature_layer` | `select_layer` |
//! | placeholder of a picture's token | `image_token_id` | the tokenizer's `<IMG_CONTEXT>` |
//! | tiling | the picture processor's file | `force_image_size`, `dynamic_image_size`, `max_dynamic_patch`, ... |
//!
//! We write the form of transformers.

use serde_json::{Value, json};

use crate::ops::HeadShape;
use crate::vlm::section::{Said, Section};
use crate::vlm::text::{Decoder, TextConfig};
use crate::vlm::vision::{Activation, BlockStyle};

/// The whole architecture.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The language model.
    pub text: TextConfig,
    /// The vision tower.
    pub vision: VisionConfig,
    /// The token that stands for one token of a picture. The published form leaves it to the tokenizer; it is looked up there.
    pub image_token_id: u32,
    /// Patches a side that become one token.
    pub merge: usize,
    /// The layer of the tower whose output counts; negative from the end, -1 the last.
    pub feature_layer: i64,
    /// First token of a text, where a model has one.
    pub bos_token_id: Option<u32>,
    /// Last token of a text.
    pub eos_token_id: Option<u32>,
}

/// InternViT.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Number of blocks.
    pub layers: usize,
    /// Width of a patch row.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of heads.
    pub heads: usize,
    /// Side of a tile in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Whether norms are layer norms.
    pub layer_norm: bool,
    /// Added to the variance or the mean square in norms.
    pub eps: f64,
    /// The activation of the feed-forward layer.
    pub activation: Activation,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether queries and keys are normed.
    pub qk_norm: bool,
    /// Whether the tower has no norm behind its last block.
    pub mean_pooling: bool,
}

impl VisionConfig {
    /// Patches along a tile's side.
    pub fn side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Rows of a tile: the class and the patches.
    pub fn positions(&self) -> usize {
        1 + self.side() * self.side()
    }

    /// Values of one flattened patch.
    pub fn patch_width(&self) -> usize {
        3 * self.patch_size * self.patch_size
    }

    /// What the blocks have in common.
    pub fn style(&self) -> BlockStyle {
        BlockStyle {
            heads: HeadShape { heads: self.heads, kv_heads: self.heads, head_dim: self.hidden_size / self.heads },
            layer_norm: self.layer_norm,
            eps: self.eps,
            activation: Some(self.activation),
            qkv_bias: self.qkv_bias,
            qk_norm: self.qk_norm,
            layer_scale: true,
        }
    }
}

/// The tokenizer's token for one token of a picture, where the configuration names none.
pub const PLACEHOLDER: &str = "<IMG_CONTEXT>";

impl Config {
    /// Blocks of the tower that are computed.
    pub fn depth(&self) -> usize {
        match self.feature_layer {
            layer if layer < 0 => (self.vision.layers as i64 + 1 + layer).max(0) as usize,
            layer => layer as usize,
        }
    }

    /// The configuration that a JSON value spells; `placeholder` is the tokenizer's id of [`PLACEHOLDER`].
    ///
    /// # Errors
    /// A message that names the key.
    pub fn from_json(value: &Value, placeholder: Option<u32>) -> std::result::Result<Config, String> {
        let published = value["model_type"] == "internvl_chat";
        let root = Section { value, name: "" };
        let (text_key, layer_key) =
            if published { ("llm_config", "select_layer") } else { ("text_config", "vision_feature_layer") };
        let text = Section { value: &value[text_key], name: if published { "llm_config." } else { "text_config." } };
        let decoder = Decoder::of(text.value["model_type"].as_str())?;
        root.only("vision_feature_select_strategy", "default")?;
        root.only("projector_hidden_act", "gelu")?;
        if published {
            root.only("ps_version", "v2")?;
        }
        let ratio = root.float_or("downsample_ratio", 0.5)?;
        let merge = (1.0 / ratio).round();
        if !(merge >= 1.0 && (merge * ratio - 1.0).abs() < 1e-9) {
            return Err(format!("`downsample_ratio` {ratio} is not one over a whole number"));
        }
        let vision = Section { value: &value["vision_config"], name: "vision_config." };
        let layer = &value[layer_key];
        let token = root.token("image_token_id").or(placeholder);
        let config = Config {
            text: TextConfig::read(
                text,
                decoder,
                false,
                value["tie_word_embeddings"].as_bool().filter(|_| !published),
            )?,
            vision: if published { published_vision(&vision)? } else { own_vision(&vision)? },
            image_token_id: token
                .ok_or_else(|| format!("`image_token_id` is missing, and the tokenizer has no `{PLACEHOLDER}`"))?,
            merge: merge as usize,
            feature_layer: match layer.is_null() {
                true => -1,
                false => layer.as_i64().ok_or_else(|| format!("`{layer_key}` must be one layer, found {layer}"))?,
            },
            bos_token_id: text.token("bos_token_id"),
            eos_token_id: text.token("eos_token_id"),
        };
        config.check()?;
        Ok(config)
    }

    /// Refuses shapes that the architecture cannot have.
    ///
    /// # Errors
    /// A message that names the numbers that do not fit.
    pub fn check(&self) -> std::result::Result<(), String> {
        self.text.check()?;
        let vision = &self.vision;
        if vision.heads == 0 || !vision.hidden_size.is_multiple_of(2 * vision.heads) {
            return Err(format!(
                "vision width {} must be a multiple of 2 x {} heads",
                vision.hidden_size, vision.heads
            ));
        }
        if vision.patch_size == 0 || self.merge == 0 || vision.side() == 0 || !vision.side().is_multiple_of(self.merge)
        {
            return Err(format!(
                "tiles of {} pixels, patches of {}: their number a side does not divide by {}",
                vision.image_size, vision.patch_size, self.merge
            ));
        }
        if self.depth() == 0 || self.depth() > vision.layers {
            return Err(format!("layer {} is none of {}", self.feature_layer, vision.layers));
        }
        Ok(())
    }

    /// Tokens of a tile.
    pub fn tile_tokens(&self) -> usize {
        (self.vision.side() / self.merge).pow(2)
    }

    /// The form of transformers.
    pub fn to_json(&self) -> Value {
        let vision = &self.vision;
        let mut text = self.text.to_json();
        for (key, id) in [("bos_token_id", self.bos_token_id), ("eos_token_id", self.eos_token_id)] {
            if let Some(id) = id {
                text[key] = id.into();
            }
        }
        json!({
            "architectures": ["InternVLForConditionalGeneration"],
            "downsample_ratio": 1.0 / self.merge as f64,
            "image_seq_length": self.tile_tokens(),
            "image_token_id": self.image_token_id,
            "model_type": "internvl",
            "projector_hidden_act": "gelu",
            "text_config": text,
            "tie_word_embeddings": self.text.tie_word_embeddings,
            "torch_dtype": "float32",
            "vision_config": {
                "attention_bias": vision.qkv_bias,
                "hidden_act": vision.activation.name(),
                "hidden_size": vision.hidden_size,
                "image_size": [vision.image_size, vision.image_size],
                "intermediate_size": vision.intermediate_size,
                "layer_norm_eps": vision.eps,
                "model_type": "internvl_vision",
                "norm_type": if vision.layer_norm { "layer_norm" } else { "rms_norm" },
                "num_attention_heads": vision.heads,
                "num_channels": 3,
                "num_hidden_layers": vision.layers,
                "patch_size": [vision.patch_size, vision.patch_size],
                "use_mask_token": false,
                "use_mean_pooling": vision.mean_pooling,
                "use_qk_norm": vision.qk_norm,
            },
            "vision_feature_layer": self.feature_layer,
            "vision_feature_select_strategy": "default",
        })
    }
}

/// A number, or a pair of equal ones.
fn square(vision: &Section<'_>, key: &str, fallback: usize) -> Said<usize> {
    match vision.value[key].as_array().map(Vec::as_slice) {
        None => vision.number_or(key, fallback),
        Some([a, b]) if a == b => {
            a.as_u64().map(|side| side as usize).ok_or(format!("`vision_config.{key}` is no number"))
        }
        Some(_) => Err(format!("`vision_config.{key}` {} is not square", vision.value[key])),
    }
}

fn own_vision(vision: &Section<'_>) -> Said<VisionConfig> {
    if vision.value["use_absolute_position_embeddings"] == false {
        return Err("`vision_config.use_absolute_position_embeddings` is off, which is not supported".into());
    }
    Ok(VisionConfig {
        layers: vision.number_or("num_hidden_layers", 24)?,
        hidden_size: vision.number_or("hidden_size", 1024)?,
        intermediate_size: vision.number_or("intermediate_size", 4096)?,
        heads: vision.number_or("num_attention_heads", 16)?,
        image_size: square(vision, "image_size", 448)?,
        patch_size: square(vision, "patch_size", 14)?,
        layer_norm: layer_norm(vision)?,
        eps: vision.float_or("layer_norm_eps", 1e-6)?,
        activation: Activation::of(vision.value["hidden_act"].as_str().or(Some("gelu")))?,
        qkv_bias: vision.flag("attention_bias"),
        qk_norm: vision.flag("use_qk_norm"),
        mean_pooling: vision.value["use_mean_pooling"].as_bool().unwrap_or(true),
    })
}

fn published_vision(vision: &Section<'_>) -> Said<VisionConfig> {
    Ok(VisionConfig {
        layers: vision.number("num_hidden_layers")?,
        hidden_size: vision.number("hidden_size")?,
        intermediate_size: vision.number("intermediate_size")?,
        heads: vision.number("num_attention_heads")?,
        image_size: square(vision, "image_size", 448)?,
        patch_size: square(vision, "patch_size", 14)?,
        layer_norm: layer_norm(vision)?,
        eps: vision.float_or("layer_norm_eps", 1e-6)?,
        activation: Activation::of(vision.value["hidden_act"].as_str().or(Some("gelu")))?,
        qkv_bias: vision.flag("qkv_bias"),
        qk_norm: vision.flag("qk_normalization"),
        mean_pooling: true,
    })
}

fn layer_norm(vision: &Section<'_>) -> Said<bool> {
    match vision.value["norm_type"].as_str() {
        None | Some("layer_norm") => Ok(true),
        Some("rms_norm") => Ok(false),
        Some(other) => {
            Err(format!("`vision_config.norm_type` is `{other}`; supported are `layer_norm` and `rms_norm`"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_configuration_is_read_and_survives_ours() {
        let published = json!({
            "model_type": "internvl_chat", "downsample_ratio": 0.5, "ps_version": "v2", "select_layer": -1, "force_image_size": 448,
            "llm_config": { "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151674, "max_position_embeddings": 32768,
                "rope_theta": 1e6, "rope_scaling": { "factor": 2.0, "rope_type": "dynamic", "type": "dynamic" },
                "tie_word_embeddings": false, "use_sliding_window": false, "sliding_window": null },
            "vision_config": { "hidden_size": 1024, "image_size": 448, "intermediate_size": 4096, "num_attention_heads": 16,
                "num_hidden_layers": 24, "patch_size": 14, "qkv_bias": true, "qk_normalization": false, "norm_type": "layer_norm",
                "hidden_act": "gelu", "layer_norm_eps": 1e-6 },
        });
        assert!(Config::from_json(&published, None).unwrap_err().contains("<IMG_CONTEXT>"));
        let config = Config::from_json(&published, Some(151_667)).unwrap();
        assert_eq!((config.tile_tokens(), config.depth(), config.image_token_id), (256, 24, 151_667));
        assert_eq!(Config::from_json(&config.to_json(), None).unwrap(), config);
        let mut odd = published;
        odd["ps_version"] = json!("v1");
        assert!(Config::from_json(&odd, Some(1)).unwrap_err().contains("`ps_version` is `v1`"));
    }
}
