//! Qwen2.5-VL (Bai et al. 2025, arXiv 2502.13923), differentiable, on packed rows.
//!
//! | file | what |
//! |---|---|
//! | `config` | `config.json`, both forms |
//! | `weights` | names, shapes and first draws of all weights |
//! | `windows` | order and visibility of the patches |
//! | `rope` | rotary angles of both towers |
//! | `vision`, `text` | the towers |
//! | `positions` | M-RoPE positions of a prompt |
//! | `infer`, `infer_vision`, `prefill` | the same towers on plain rows with cached keys and values, without gradients |

pub mod config;
pub mod infer;
pub mod infer_vision;
pub mod positions;
pub mod prefill;
pub mod rope;
pub mod text;
pub mod vision;
pub mod weights;
pub mod windows;

use std::sync::Arc;

use candle_core::Tensor;

use crate::error::{ModelError, Result};
use crate::image::Patches;
use crate::ops::Segments;
use crate::weights::Weights;

pub use config::{Config, TextConfig, VisionConfig};

/// A batch: all sequences one after another on one axis of `N` rows, nothing padded.
#[derive(Debug, Clone)]
pub struct Packed {
    /// The token of every row.
    pub ids: Vec<u32>,
    /// Time, row and column position of every row.
    pub positions: [Vec<u32>; 3],
    /// Which rows see which.
    pub segments: Arc<Segments>,
    /// The pictures whose merged tokens fill the image rows, in order.
    pub images: Vec<Patches>,
}

/// Which part of a model gets gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Trainable {
    /// All weights.
    #[default]
    All,
    /// All but the vision tower.
    Text,
    /// None: inference, or the reference policy of a training.
    Nothing,
}

/// The model over its weights. Cloning shares the weights.
#[derive(Debug, Clone)]
pub struct Qwen25Vl {
    config: Config,
    vision: vision::VisionTower,
    text: text::LanguageModel,
}

impl Qwen25Vl {
    /// A view of the weights through which gradients reach what is trainable.
    ///
    /// # Errors
    /// When a weight is missing.
    pub fn new(config: &Config, weights: &Weights, trainable: Trainable) -> Result<Qwen25Vl> {
        Ok(Qwen25Vl {
            config: config.clone(),
            vision: vision::VisionTower::new(&config.vision, weights, trainable != Trainable::All)?,
            text: text::LanguageModel::new(&config.text, weights, trainable == Trainable::Nothing)?,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Merged tokens `[tokens, hidden]` of pictures, one picture after another.
    ///
    /// # Errors
    /// When there is no picture or one does not fit.
    pub fn encode_images(&self, images: &[&Patches]) -> Result<Tensor> {
        self.vision.forward(images)
    }

    /// Hidden rows `[N, hidden]` after the final norm.
    ///
    /// `image_embeds` are the merged tokens of `packed.images` where the caller has them; otherwise the pictures are encoded here.
    ///
    /// # Errors
    /// When image rows and merged tokens differ in number, or shapes do not fit.
    pub fn forward(&self, packed: &Packed, image_embeds: Option<&Tensor>) -> Result<Tensor> {
        let encoded = match image_embeds {
            None if !packed.images.is_empty() => Some(self.encode_images(&packed.images.iter().collect::<Vec<_>>())?),
            given => given.cloned(),
        };
        let x = self.embed(&packed.ids, encoded.as_ref())?;
        Ok(self.text.forward(&x, &packed.positions, &packed.segments)?)
    }

    /// Embedded rows: the table's for text, the merged tokens in order for image rows.
    fn embed(&self, ids: &[u32], images: Option<&Tensor>) -> Result<Tensor> {
        let table = self.text.embed();
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.config.text.vocab_size) {
            return Err(ModelError::Prompt(format!("token {id} is outside the vocabulary of {}", table.dim(0)?)));
        }
        let wanted = ids.iter().filter(|&&id| id == self.config.image_token_id).count();
        let given = images.map_or(Ok(0), |images| images.dim(0))?;
        if wanted != given {
            return Err(ModelError::Prompt(format!("{wanted} image rows in the batch, but its pictures give {given}")));
        }
        let rows = Tensor::new(ids, table.device())?;
        let text = table.index_select(&rows, 0)?;
        let Some(images) = images else { return Ok(text) };
        let mut next = ids.len() as u32;
        let place = |(row, &id): (usize, &u32)| match id == self.config.image_token_id {
            true => {
                next += 1;
                next - 1
            }
            false => row as u32,
        };
        let places: Vec<u32> = ids.iter().enumerate().map(place).collect();
        let places = Tensor::from_vec(places, ids.len(), &candle_core::Device::Cpu)?.to_device(table.device())?;
        Ok(Tensor::cat(&[&text, images], 0)?.index_select(&places, 0)?)
    }

    /// The output head `[V, hidden]`.
    pub fn head(&self) -> &Tensor {
        self.text.head()
    }
}
