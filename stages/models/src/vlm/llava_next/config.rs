//! `config.json` of a LLaVA-NeXT directory. Published files leave out what equals the defaults of the parts' own configurations.

use serde_json::{Value, json};

use crate::image::anyres::pinpoints;
use crate::vlm::section::{Said, Section};
use crate::vlm::text::{Decoder, TextConfig};
use crate::vlm::vision::{Activation, BlockStyle, TileTower};

/// The whole architecture.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The language model.
    pub text: TextConfig,
    /// The vision tower.
    pub vision: TileTower,
    /// The token that stands for one token of a picture.
    pub image_token_id: u32,
    /// Resolutions to choose from, (height, width).
    pub pinpoints: Vec<[usize; 2]>,
    /// The layer of the tower whose output counts; negative from the end, -1 the last.
    pub feature_layer: i64,
    /// The activation of the projector.
    pub projector_activation: Activation,
    /// Whether the projector's maps have biases.
    pub projector_bias: bool,
    /// First token of a text, where a model has one.
    pub bos_token_id: Option<u32>,
    /// Last token of a text.
    pub eos_token_id: Option<u32>,
}

impl Config {
    /// Blocks of the tower that are computed.
    pub fn depth(&self) -> usize {
        self.vision.depth(self.feature_layer)
    }

    /// The configuration that a JSON value spells.
    ///
    /// # Errors
    /// A message that names the key.
    pub fn from_json(value: &Value) -> std::result::Result<Config, String> {
        let root = Section { value, name: "" };
        let text = Section { value: &value["text_config"], name: "text_config." };
        let decoder = Decoder::of(text.value["model_type"].as_str())?;
        root.only("vision_feature_select_strategy", "default")?;
        let vision = vision(&Section { value: &value["vision_config"], name: "vision_config." })?;
        let layer = &value["vision_feature_layer"];
        let config = Config {
            text: TextConfig::read(text, decoder, false, value["tie_word_embeddings"].as_bool())?,
            image_token_id: root.number("image_token_index").or_else(|_| root.number("image_token_id"))? as u32,
            pinpoints: pinpoints(&value["image_grid_pinpoints"], vision.image_size)?,
            feature_layer: match layer.is_null() {
                true => -2,
                false => {
                    layer.as_i64().ok_or_else(|| format!("`vision_feature_layer` must be one layer, found {layer}"))?
                }
            },
            projector_activation: Activation::of(value["projector_hidden_act"].as_str().or(Some("gelu")))?,
            projector_bias: value["multimodal_projector_bias"].as_bool().unwrap_or(true),
            bos_token_id: text.token("bos_token_id").or(Some(1)),
            eos_token_id: text.token("eos_token_id").or(Some(2)),
            vision,
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
        self.vision.check(self.feature_layer)
    }

    /// The form that transformers reads, of either generation.
    pub fn to_json(&self) -> Value {
        let vision = &self.vision;
        let mut text = self.text.to_json();
        for (key, id) in [("bos_token_id", self.bos_token_id), ("eos_token_id", self.eos_token_id)] {
            if let Some(id) = id {
                text[key] = id.into();
            }
        }
        json!({
            "architectures": ["LlavaNextForConditionalGeneration"],
            "image_grid_pinpoints": self.pinpoints,
            "image_token_index": self.image_token_id,
            "model_type": "llava_next",
            "multimodal_projector_bias": self.projector_bias,
            "projector_hidden_act": self.projector_activation.name(),
            "text_config": text,
            "tie_word_embeddings": self.text.tie_word_embeddings,
            "torch_dtype": "float32",
            "vision_config": {
                "hidden_act": vision.style.activation.map(Activation::name),
                "hidden_size": vision.hidden_size,
                "image_size": vision.image_size,
                "intermediate_size": vision.intermediate_size,
                "layer_norm_eps": vision.style.eps,
                "model_type": "clip_vision_model",
                "num_attention_heads": vision.style.heads.heads,
                "num_channels": 3,
                "num_hidden_layers": vision.layers,
                "patch_size": vision.patch_size,
                "projection_dim": vision.hidden_size,
            },
            "vision_feature_layer": self.feature_layer,
            "vision_feature_select_strategy": "default",
        })
    }
}

fn vision(vision: &Section<'_>) -> Said<TileTower> {
    vision.only("model_type", "clip_vision_model")?;
    if vision.number_or("num_channels", 3)? != 3 {
        return Err("`vision_config.num_channels` must be 3".into());
    }
    let hidden_size = vision.number_or("hidden_size", 768)?;
    let style = BlockStyle {
        heads: TileTower::heads(hidden_size, vision.number_or("num_attention_heads", 12)?),
        layer_norm: true,
        eps: vision.float_or("layer_norm_eps", 1e-5)?,
        activation: Some(Activation::of(vision.value["hidden_act"].as_str().or(Some("quick_gelu")))?),
        qkv_bias: true,
        qk_norm: false,
        layer_scale: false,
    };
    Ok(TileTower {
        layers: vision.number_or("num_hidden_layers", 12)?,
        hidden_size,
        intermediate_size: vision.number_or("intermediate_size", 3072)?,
        image_size: vision.number_or("image_size", 224)?,
        patch_size: vision.number_or("patch_size", 32)?,
        style,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published() -> Value {
        json!({
            "model_type": "llava_next", "image_token_index": 32000, "vision_feature_layer": -2,
            "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
            "text_config": { "model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "vocab_size": 32064 },
            "vision_config": { "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
                "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768 },
        })
    }

    #[test]
    fn a_published_configuration_is_read_and_survives_ours() {
        let config = Config::from_json(&published()).unwrap();
        assert_eq!((config.text.layers, config.depth(), config.vision.positions()), (32, 23, 577));
        assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (key, value, part) in [
            ("vision_feature_select_strategy", json!("full"), "`vision_feature_select_strategy` is `full`"),
            ("vision_feature_layer", json!([-2, -3]), "must be one layer"),
            ("vision_feature_layer", json!(-26), "no layer of 24"),
            ("image_grid_pinpoints", json!([[336, 600]]), "[336, 600]"),
            ("image_token_index", Value::Null, "image_token_id"),
        ] {
            let mut odd = published();
            odd[key] = value;
            let message = Config::from_json(&odd).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
    }
}
