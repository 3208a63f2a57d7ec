//! The seam between families: which architecture a directory holds, and its vision tower behind one face.
//!
//! All families are a tower that turns pictures into rows as wide as the language model's, and one language model ([`super::text`]).
//! What a family brings is an arm of [`Config`], an arm of [`Tower`], a list of weights and a picture processor; generation, scoring,
//! prefix sharing and training know none of them by name.

use std::path::Path;

use serde_json::Value;

use super::text::TextConfig;
use super::vision::{Engine, Find};
use super::{internvl, llava_next, qwen};
use crate::checkpoint::read_json_if_there;
use crate::error::{ModelError, Result};
use crate::image::{AnyRes, ImageProcessor, Patches, Processor, Tiles};
use crate::tokenizer::TextTokenizer;
use crate::weights::WeightSpec;

/// The configuration of a model of any family.
#[derive(Debug, Clone, PartialEq)]
pub enum Config {
    /// `qwen2_vl` and `qwen2_5_vl`.
    Qwen(qwen::Config),
    /// `llava_next`.
    LlavaNext(llava_next::Config),
    /// `internvl`, published as `internvl_chat`.
    InternVl(internvl::Config),
}

impl From<qwen::Config> for Config {
    fn from(config: qwen::Config) -> Config {
        Config::Qwen(config)
    }
}

impl From<llava_next::Config> for Config {
    fn from(config: llava_next::Config) -> Config {
        Config::LlavaNext(config)
    }
}

impl From<internvl::Config> for Config {
    fn from(config: internvl::Config) -> Config {
        Config::InternVl(config)
    }
}

impl Config {
    /// Reads `config.json` of a model directory; some forms leave a token to the tokenizer.
    ///
    /// # Errors
    /// When the file cannot be read, is no JSON, names an architecture that is not supported, or lacks a key.
    pub fn read(path: &Path, tokenizer: &TextTokenizer) -> Result<(Config, Value)> {
        let bytes = std::fs::read(path).map_err(|source| ModelError::Read { path: path.into(), source })?;
        let wrong = |message: String| ModelError::File { path: path.into(), message };
        let value: Value = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        let config = Config::from_json(&value, tokenizer.id(internvl::config::PLACEHOLDER)).map_err(wrong)?;
        Ok((config, value))
    }

    /// The configuration that a JSON value spells; `placeholder` is the tokenizer's id for a token of a picture, for the form that
    /// does not say it.
    ///
    /// # Errors
    /// A message that names the key.
    pub fn from_json(value: &Value, placeholder: Option<u32>) -> std::result::Result<Config, String> {
        match value["model_type"].as_str() {
            Some("qwen2_vl" | "qwen2_5_vl") => Ok(Config::Qwen(qwen::Config::from_json(value)?)),
            Some("llava_next") => Ok(Config::LlavaNext(llava_next::Config::from_json(value)?)),
            Some("internvl" | "internvl_chat") => {
                Ok(Config::InternVl(internvl::Config::from_json(value, placeholder)?))
            }
            Some(other) => Err(format!(
                "`model_type` is `{other}`; supported are `qwen2_vl`, `qwen2_5_vl`, `llava_next`, `internvl` and `internvl_chat`"
            )),
            None => Err("`model_type` is missing".into()),
        }
    }

    /// The form that we write.
    pub fn to_json(&self) -> Value {
        match self {
            Config::Qwen(config) => config.to_json(),
            Config::LlavaNext(config) => config.to_json(),
            Config::InternVl(config) => config.to_json(),
        }
    }

    /// Refuses shapes that the architecture cannot have.
    ///
    /// # Errors
    /// A message that names the numbers that do not fit.
    pub fn check(&self) -> std::result::Result<(), String> {
        match self {
            Config::Qwen(config) => config.check(),
            Config::LlavaNext(config) => config.check(),
            Config::InternVl(config) => config.check(),
        }
    }

    /// The language model.
    pub fn text(&self) -> &TextConfig {
        match self {
            Config::Qwen(config) => &config.text,
            Config::LlavaNext(config) => &config.text,
            Config::InternVl(config) => &config.text,
        }
    }

    /// The token that stands for one token of a picture.
    pub fn image_token_id(&self) -> u32 {
        match self {
            Config::Qwen(config) => config.image_token_id,
            Config::LlavaNext(config) => config.image_token_id,
            Config::InternVl(config) => config.image_token_id,
        }
    }

    /// Last token of a text, as the configuration says; `generation_config.json` goes before it.
    pub fn eos_token_id(&self) -> Option<u32> {
        match self {
            Config::Qwen(config) => config.eos_token_id,
            Config::LlavaNext(config) => config.eos_token_id,
            Config::InternVl(config) => config.eos_token_id,
        }
    }

    /// All weights.
    pub fn specs(&self) -> Vec<WeightSpec> {
        match self {
            Config::Qwen(config) => qwen::specs(config),
            Config::LlavaNext(config) => llava_next::specs(config),
            Config::InternVl(config) => internvl::specs(config),
        }
    }

    /// The three position lists of a sequence of ids with these pictures.
    ///
    /// # Errors
    /// When the runs of picture tokens do not match the pictures.
    pub fn positions(&self, ids: &[u32], images: &[Patches]) -> Result<[Vec<u32>; 3]> {
        match self {
            Config::Qwen(config) => {
                let merge = config.vision.spatial_merge_size;
                let merged: Vec<[usize; 3]> =
                    images.iter().map(|image| [image.grid[0], image.grid[1] / merge, image.grid[2] / merge]).collect();
                qwen::positions::positions(ids, config.image_token_id, &merged)
            }
            _ => {
                let line: Vec<u32> = (0..ids.len() as u32).collect();
                Ok([line.clone(), line.clone(), line])
            }
        }
    }

    /// The tokens before and behind those of a picture that the chat template leaves to us, as the tokenizer spells them.
    ///
    /// # Errors
    /// When the tokenizer has none.
    pub fn frame(&self, tokenizer: &TextTokenizer) -> Result<Option<[u32; 2]>> {
        let Config::InternVl(_) = self else { return Ok(None) };
        let id = |key: &str, fallback: &str| {
            let token = tokenizer.special(key).unwrap_or(fallback);
            tokenizer
                .id(token)
                .ok_or_else(|| ModelError::Tokenizer(format!("it has no `{token}`, which frames a picture")))
        };
        Ok(Some([id("start_image_token", "<img>")?, id("end_image_token", "</img>")?]))
    }

    /// Reads the picture processor of a directory whose `config.json` holds `value`.
    ///
    /// # Errors
    /// When there is none, or it was not made for this model.
    pub fn read_processor(&self, dir: &Path, value: &Value) -> Result<Processor> {
        if let (Config::InternVl(config), "internvl_chat") = (self, value["model_type"].as_str().unwrap_or_default()) {
            let tiles = Tiles::from_published(value, config.vision.patch_size, config.merge);
            let path = dir.join("config.json");
            return tiles.map(Processor::Tiles).map_err(|message| ModelError::File { path, message });
        }
        let (path, value) = processor_json(dir)?;
        let read = match self {
            Config::Qwen(_) => Ok(Processor::Qwen(ImageProcessor::from_json(&value))),
            Config::LlavaNext(config) => AnyRes::from_json(&value, config.vision.patch_size).map(Processor::AnyRes),
            Config::InternVl(config) => {
                Tiles::from_json(&value, config.vision.patch_size, config.merge).map(Processor::Tiles)
            }
        };
        read.map_err(|message| ModelError::File { path, message })
    }

    /// What `processor_config.json` must hold beside the picture processor for transformers to count tokens alike.
    pub(super) fn processor_extras(&self, image_token: Option<String>) -> Option<Value> {
        match self {
            Config::Qwen(_) => None,
            Config::LlavaNext(config) => Some(serde_json::json!({
                "image_token": image_token,
                "num_additional_image_tokens": 1,
                "patch_size": config.vision.patch_size,
                "processor_class": "LlavaNextProcessor",
                "vision_feature_select_strategy": "default",
            })),
            Config::InternVl(config) => Some(serde_json::json!({
                "image_seq_length": config.tile_tokens(),
                "processor_class": "InternVLProcessor",
            })),
        }
    }

    /// Refuses a picture processor that was made for another model.
    ///
    /// # Errors
    /// A message that names the settings that differ.
    pub(super) fn agrees(&self, processor: &Processor) -> std::result::Result<(), String> {
        let same = |what: &str, given: &[usize], wanted: &[usize]| match given == wanted {
            true => Ok(()),
            false => Err(format!("the picture processor's {what} {given:?} differ from the vision tower's {wanted:?}")),
        };
        match (self, processor) {
            (Config::Qwen(config), Processor::Qwen(p)) => {
                let vision = &config.vision;
                let wanted = [vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size];
                same("patch, merge and temporal sizes", &[p.patch_size, p.merge_size, p.temporal_patch_size], &wanted)
            }
            (Config::LlavaNext(config), Processor::AnyRes(p)) => {
                same(
                    "tile and patch sizes",
                    &[p.tile, p.patch_size],
                    &[config.vision.image_size, config.vision.patch_size],
                )?;
                same("resolutions", p.pinpoints.as_flattened(), config.pinpoints.as_flattened())
            }
            (Config::InternVl(config), Processor::Tiles(p)) => {
                let wanted = [config.vision.image_size, config.vision.patch_size, config.merge];
                same("tile, patch and merge sizes", &[p.tile, p.patch_size, p.merge], &wanted)
            }
            _ => Err("the picture processor is another family's".into()),
        }
    }
}

/// The JSON of `preprocessor_config.json`, else the picture processor of `processor_config.json`, and its file.
fn processor_json(dir: &Path) -> Result<(std::path::PathBuf, Value)> {
    let path = dir.join("preprocessor_config.json");
    if let Some(value) = read_json_if_there(&path)? {
        return Ok((path, value));
    }
    let path = dir.join("processor_config.json");
    match read_json_if_there(&path)? {
        Some(value) if value["image_processor"].is_object() => Ok((path, value["image_processor"].clone())),
        _ => {
            let message = "holds neither preprocessor_config.json nor an image_processor in processor_config.json";
            Err(ModelError::File { path: dir.into(), message: message.into() })
        }
    }
}

/// The vision tower of any family over weights of either kind.
#[derive(Debug, Clone)]
pub enum Tower<W> {
    /// Qwen's.
    Qwen(qwen::Tower<W>),
    /// CLIP and a projector.
    LlavaNext(llava_next::Tower<W>),
    /// InternViT and a projector.
    InternVl(internvl::Tower<W>),
}

impl<W> Tower<W> {
    /// The tower of a configuration over a model's weights.
    ///
    /// # Errors
    /// When a weight is missing.
    pub fn new(config: &Config, get: &Find<'_, W>) -> Result<Tower<W>> {
        Ok(match config {
            Config::Qwen(config) => Tower::Qwen(qwen::Tower::new(&config.vision, get)?),
            Config::LlavaNext(config) => Tower::LlavaNext(llava_next::Tower::new(config, get)?),
            Config::InternVl(config) => Tower::InternVl(internvl::Tower::new(config, get)?),
        })
    }

    /// The tokens `[tokens, hidden]` of pictures, one picture after another.
    ///
    /// # Errors
    /// When there is no picture or one does not fit the configuration.
    pub fn forward<E: Engine<Weight = W>>(&self, engine: &E, images: &[&Patches]) -> Result<E::Rows> {
        match self {
            Tower::Qwen(tower) => tower.forward(engine, images),
            Tower::LlavaNext(tower) => tower.forward(engine, images),
            Tower::InternVl(tower) => tower.forward(engine, images),
        }
    }
}
