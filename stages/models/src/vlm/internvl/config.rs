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

use crate::vlm::section::{Said, Section};
use crate::vlm::text::{Decoder, TextConfig};
use crate::vlm::vision::{Activation, BlockStyle, TileTower};

/// The whole architecture.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The language model.
    pub text: TextConfig,
    /// The vision tower, InternViT.
    pub vision: TileTower,
    /// Whether the tower has no norm behind its last block.
    pub mean_pooling: bool,
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

/// The tokenizer's token for one token of a picture, where the configuration names none.
pub const PLACEHOLDER: &str = "<IMG_CONTEXT>";

impl Config {
    /// Blocks of the tower that are computed.
    pub fn depth(&self) -> usize {
        self.vision.depth(self.feature_layer)
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
            vision: tower(&vision, published)?,
            mean_pooling: published || vision.value["use_mean_pooling"].as_bool().unwrap_or(true),
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
        self.vision.check(self.feature_layer)?;
        let vision = &self.vision;
        if self.merge == 0 || !vision.side().is_multiple_of(self.merge) {
            return Err(format!(
                "tiles of {} pixels, patches of {}: their number a side does not divide by {}",
                vision.image_size, vision.patch_size, self.merge
            ));
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
                "attention_bias": vision.style.qkv_bias,
                "hidden_act": vision.style.activation.map(Activation::name),
                "hidden_size": vision.hidden_size,
                "image_size": [vision.image_size, vision.image_size],
                "intermediate_size": vision.intermediate_size,
                "layer_norm_eps": vision.style.eps,
                "model_type": "internvl_vision",
                "norm_type": if vision.style.layer_norm { "layer_norm" } else { "rms_norm" },
                "num_attention_heads": vision.style.heads.heads,
                "num_channels": 3,
                "num_hidden_layers": vision.layers,
                "patch_size": [vision.patch_size, vision.patch_size],
                "use_mask_token": false,
                "use_mean_pooling": self.mean_pooling,
                "use_qk_norm": vision.style.qk_norm,
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

/// The published form states every size.
fn tower(vision: &Section<'_>, published: bool) -> Said<TileTower> {
    let size = |key: &str, fallback: usize| match published {
        true => vision.number(key),
        false => vision.number_or(key, fallback),
    };
    let (bias, norm) = if published { ("qkv_bias", "qk_normalization") } else { ("attention_bias", "use_qk_norm") };
    let hidden_size = size("hidden_size", 1024)?;
    let style = BlockStyle {
        heads: TileTower::heads(hidden_size, size("num_attention_heads", 16)?),
        layer_norm: layer_norm(vision)?,
        eps: vision.float_or("layer_norm_eps", 1e-6)?,
        activation: Some(Activation::of(vision.value["hidden_act"].as_str().or(Some("gelu")))?),
        qkv_bias: vision.flag(bias),
        qk_norm: vision.flag(norm),
        layer_scale: true,
    };
    Ok(TileTower {
        layers: size("num_hidden_layers", 24)?,
        hidden_size,
        intermediate_size: size("intermediate_size", 4096)?,
        image_size: square(vision, "image_size", 448)?,
        patch_size: square(vision, "patch_size", 14)?,
        style,
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
