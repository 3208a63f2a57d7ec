//! The language model's part of `config.json`, in the forms that exist.
//!
//! | | published checkpoints | transformers 5 |
//! |---|---|---|
//! | rotary base | `rope_theta` | `rope_parameters.rope_theta` |
//! | scaling, M-RoPE sections | `rope_scaling.{type, factor, mrope_section}` | `rope_parameters.{rope_type, factor, mrope_section}` |
//! | sliding window | `use_sliding_window`, `sliding_window`, `max_window_layers` | `layer_types`, `sliding_window` |
//!
//! LLaVA's published files leave out what equals the defaults of the language model's own configuration, so those are here.

use serde_json::{Value, json};

use crate::ops::HeadShape;
use crate::vlm::section::{Said, Section};

/// Which decoder the language model is; they differ in biases and defaults alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoder {
    /// Biases on query, key and value.
    Qwen2,
    /// No bias.
    Llama,
    /// No bias, and a sliding window unless the configuration says null.
    Mistral,
}

impl Decoder {
    /// The decoder of a `model_type`.
    ///
    /// # Errors
    /// A message that lists those supported.
    pub(in crate::vlm) fn of(model_type: Option<&str>) -> Said<Decoder> {
        match model_type {
            Some("qwen2") => Ok(Decoder::Qwen2),
            Some("llama") => Ok(Decoder::Llama),
            Some("mistral") => Ok(Decoder::Mistral),
            other => Err(format!(
                "the language model is of type {}; supported are `qwen2`, `llama` and `mistral`",
                other.map_or("none".into(), |name| format!("`{name}`"))
            )),
        }
    }

    /// The name in `model_type`.
    pub fn name(self) -> &'static str {
        match self {
            Decoder::Qwen2 => "qwen2",
            Decoder::Llama => "llama",
            Decoder::Mistral => "mistral",
        }
    }

    /// Whether query, key and value have a bias.
    pub fn has_bias(self) -> bool {
        self == Decoder::Qwen2
    }
}

/// How rotary angles change for long texts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions are divided by this factor.
    Linear(f64),
    /// The base grows beyond `max_position_embeddings`, where prompts are refused here: below it, nothing changes.
    Dynamic(f64),
}

/// Layers that see only so many of the latest tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sliding {
    /// Tokens that a token sees, itself included.
    pub window: usize,
    /// For each layer whether it has the window.
    pub layers: Vec<bool>,
}

/// The language model.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    /// Which decoder it is.
    pub decoder: Decoder,
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
    /// Change of the angles for long texts.
    pub rope_scaling: RopeScaling,
    /// M-RoPE: how many frequencies turn with time, row and column, summing to half of the head width. `None`: all turn with the
    /// place in the text.
    pub mrope_section: Option<[usize; 3]>,
    /// The sliding window, if any layer has one.
    pub sliding: Option<Sliding>,
    /// Whether the embedding table is the output head too.
    pub tie_word_embeddings: bool,
}

impl TextConfig {
    /// The window of a layer.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.sliding.as_ref().filter(|sliding| sliding.layers[layer]).map(|sliding| sliding.window)
    }

    /// Reads a section; `mrope` says whether M-RoPE sections must be there, `tied` what the root says of the output head.
    pub(in crate::vlm) fn read(
        text: Section<'_>,
        decoder: Decoder,
        mrope: bool,
        tied: Option<bool>,
    ) -> Said<TextConfig> {
        text.only("hidden_act", "silu")?;
        if text.flag("attention_bias") && decoder != Decoder::Qwen2 {
            return Err(format!("`{}attention_bias` is on, which is not supported", text.name));
        }
        let hidden_size = text.number_or("hidden_size", 4096)?;
        let heads = text.number_or("num_attention_heads", 32)?;
        let kv_default = if decoder == Decoder::Mistral { 8 } else { heads };
        let kv_heads = text.number_or("num_key_value_heads", kv_default)?;
        let layers = text.number_or("num_hidden_layers", 32)?;
        let (intermediate, positions) = match decoder {
            Decoder::Qwen2 => (22_016, 32_768),
            Decoder::Llama => (11_008, 2048),
            Decoder::Mistral => (14_336, 131_072),
        };
        let rope = [&text.value["rope_parameters"], &text.value["rope_scaling"]];
        let rope = rope.into_iter().find(|value| value.is_object()).unwrap_or(&Value::Null);
        let theta = text.value["rope_theta"].as_f64().or_else(|| rope["rope_theta"].as_f64());
        let config = TextConfig {
            decoder,
            vocab_size: text.number_or("vocab_size", 32_000)?,
            hidden_size,
            intermediate_size: text.number_or("intermediate_size", intermediate)?,
            layers,
            heads: HeadShape { heads, kv_heads, head_dim: text.number_or("head_dim", hidden_size / heads.max(1))? },
            max_position_embeddings: text.number_or("max_position_embeddings", positions)?,
            rms_norm_eps: text.float_or("rms_norm_eps", 1e-6)?,
            rope_theta: theta.unwrap_or(10_000.0),
            rope_scaling: scaling(rope)?,
            mrope_section: if mrope { Some(sections(rope)?) } else { None },
            sliding: sliding(&text, decoder, layers)?,
            tie_word_embeddings: tied.or_else(|| text.value["tie_word_embeddings"].as_bool()).unwrap_or(false),
        };
        config.check()?;
        Ok(config)
    }

    /// Refuses shapes that a decoder cannot have.
    ///
    /// # Errors
    /// A message that names the numbers that do not fit.
    pub fn check(&self) -> std::result::Result<(), String> {
        let half = self.heads.head_dim / 2;
        if self.mrope_section.is_some_and(|sections| sections.iter().sum::<usize>() != half) {
            let sections = self.mrope_section.unwrap_or_default();
            return Err(format!("`mrope_section` {sections:?} must sum to half the head width, {half}"));
        }
        let HeadShape { heads, kv_heads, head_dim } = self.heads;
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) || !head_dim.is_multiple_of(2) {
            return Err(format!(
                "{:?} is no head shape: key heads must divide the heads and the width be even",
                self.heads
            ));
        }
        match &self.sliding {
            Some(sliding) if sliding.window == 0 || sliding.layers.len() != self.layers => Err(format!(
                "a sliding window of {} tokens in {} of {} layers makes no sense",
                sliding.window,
                sliding.layers.len(),
                self.layers
            )),
            _ => Ok(()),
        }
    }

    /// The `text_config` of a nested configuration.
    pub(in crate::vlm) fn to_json(&self) -> Value {
        let mut value = json!({
            "attention_dropout": 0.0,
            "head_dim": self.heads.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": self.decoder.name(),
            "num_attention_heads": self.heads.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.heads.kv_heads,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": "float32",
            "use_cache": true,
            "vocab_size": self.vocab_size,
        });
        match self.rope_scaling {
            RopeScaling::None => {}
            RopeScaling::Linear(factor) => value["rope_scaling"] = json!({ "rope_type": "linear", "factor": factor }),
            RopeScaling::Dynamic(factor) => value["rope_scaling"] = json!({ "rope_type": "dynamic", "factor": factor }),
        }
        self.write_sliding(&mut value);
        value
    }

    /// The keys that say which layers slide.
    pub(in crate::vlm) fn write_sliding(&self, value: &mut Value) {
        match (&self.sliding, self.decoder) {
            (None, Decoder::Mistral) => value["sliding_window"] = Value::Null,
            (Some(sliding), Decoder::Mistral) => value["sliding_window"] = sliding.window.into(),
            (None, Decoder::Qwen2) => value["use_sliding_window"] = false.into(),
            (Some(sliding), Decoder::Qwen2) => {
                value["use_sliding_window"] = true.into();
                value["sliding_window"] = sliding.window.into();
                let name = |slides: &bool| if *slides { "sliding_attention" } else { "full_attention" };
                value["layer_types"] = sliding.layers.iter().map(name).collect();
            }
            (_, Decoder::Llama) => {}
        }
    }
}

fn kind(rope: &Value) -> &str {
    rope.get("rope_type").or_else(|| rope.get("type")).and_then(Value::as_str).unwrap_or("default")
}

fn scaling(rope: &Value) -> Said<RopeScaling> {
    let factor = || rope["factor"].as_f64().filter(|factor| *factor >= 1.0).ok_or("rotary scaling needs a `factor`");
    match kind(rope) {
        "default" | "mrope" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear(factor()?)),
        "dynamic" => Ok(RopeScaling::Dynamic(factor()?)),
        other => {
            Err(format!("rotary scaling `{other}` is not supported, only `default`, `mrope`, `linear` and `dynamic`"))
        }
    }
}

fn sections(rope: &Value) -> Said<[usize; 3]> {
    let list = rope["mrope_section"].as_array().ok_or("`mrope_section` is missing")?;
    let numbers: Vec<usize> = list.iter().filter_map(Value::as_u64).map(|n| n as usize).collect();
    numbers.try_into().map_err(|_| format!("`mrope_section` must hold three numbers, not {}", rope["mrope_section"]))
}

fn sliding(text: &Section<'_>, decoder: Decoder, layers: usize) -> Said<Option<Sliding>> {
    let window = &text.value["sliding_window"];
    let all = |window: usize| Sliding { window, layers: vec![true; layers] };
    let named = || text.number("sliding_window");
    match decoder {
        Decoder::Llama => Ok(None),
        Decoder::Mistral if text.value.get("sliding_window").is_none() => Ok(Some(all(4096))),
        Decoder::Mistral if window.is_null() => Ok(None),
        Decoder::Mistral => Ok(Some(all(named()?))),
        Decoder::Qwen2 if !text.flag("use_sliding_window") => Ok(None),
        Decoder::Qwen2 => {
            let first = text.number_or("max_window_layers", layers)?;
            let slides = match text.value["layer_types"].as_array() {
                Some(kinds) => kinds.iter().map(|kind| kind == "sliding_attention").collect(),
                None => (0..layers).map(|layer| layer >= first).collect(),
            };
            Ok(Some(Sliding { window: named()?, layers: slides }).filter(|sliding| sliding.layers.contains(&true)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &Value, decoder: Decoder) -> Said<TextConfig> {
        TextConfig::read(Section { value, name: "text_config." }, decoder, false, None)
    }

    #[test]
    fn what_published_files_leave_out_is_the_default() {
        let vicuna = read(
            &json!({ "model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096 }),
            Decoder::Llama,
        )
        .unwrap();
        assert_eq!((vicuna.hidden_size, vicuna.intermediate_size, vicuna.layers), (4096, 11_008, 32));
        assert_eq!(vicuna.heads, HeadShape { heads: 32, kv_heads: 32, head_dim: 128 });
        let mistral =
            read(&json!({ "num_key_value_heads": 8, "rope_theta": 1e6, "sliding_window": null }), Decoder::Mistral)
                .unwrap();
        assert_eq!((mistral.intermediate_size, mistral.rope_theta, mistral.sliding), (14_336, 1e6, None));
    }

    #[test]
    fn windows_are_where_the_configuration_says() {
        let first = read(&json!({ "num_hidden_layers": 3 }), Decoder::Mistral).unwrap();
        assert_eq!((first.window(0), first.window(2)), (Some(4096), Some(4096)));
        let qwen =
            json!({ "num_hidden_layers": 3, "use_sliding_window": true, "sliding_window": 7, "max_window_layers": 2 });
        let qwen = read(&qwen, Decoder::Qwen2).unwrap();
        assert_eq!([0, 1, 2].map(|layer| qwen.window(layer)), [None, None, Some(7)]);
        assert_eq!(read(&qwen.to_json(), Decoder::Qwen2).unwrap(), qwen);
        let off = json!({ "num_hidden_layers": 3, "use_sliding_window": false, "sliding_window": 7 });
        assert_eq!(read(&off, Decoder::Qwen2).unwrap().sliding, None);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (value, part) in [
            (json!({ "rope_scaling": { "type": "yarn", "factor": 4 } }), "`yarn`"),
            (json!({ "hidden_act": "gelu" }), "`text_config.hidden_act` is `gelu`"),
            (json!({ "num_key_value_heads": 5 }), "no head shape"),
            (json!({ "vocab_size": "many" }), "`text_config.vocab_size` must be a whole number"),
        ] {
            let message = read(&value, Decoder::Llama).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
        assert!(Decoder::of(Some("internlm2")).unwrap_err().contains("`internlm2`"));
    }
}
