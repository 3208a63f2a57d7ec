//! A vision-language model of any family over its weights, differentiable, on packed rows.

use std::sync::Arc;

use candle_core::Tensor;

use super::family::{Config, Tower};
use super::text::LanguageModel;
use super::vision::Graph;
use crate::error::{ModelError, Result};
use crate::image::Patches;
use crate::ops::Segments;
use crate::weights::Weights;

/// A batch: all sequences one after another on one axis of `N` rows, nothing padded.
#[derive(Debug, Clone)]
pub struct Packed {
    /// The token of every row.
    pub ids: Vec<u32>,
    /// Time, row and column position of every row.
    pub positions: [Vec<u32>; 3],
    /// Which rows see which.
    pub segments: Arc<Segments>,
    /// The pictures whose tokens fill the image rows, in order.
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
pub struct Model {
    config: Config,
    vision: Tower<Tensor>,
    pub(in crate::vlm) text: LanguageModel,
}

impl Model {
    /// A view of the weights through which gradients reach what is trainable.
    ///
    /// # Errors
    /// When a weight is missing.
    pub fn new(config: &Config, weights: &Weights, trainable: Trainable) -> Result<Model> {
        Ok(Model {
            config: config.clone(),
            vision: Tower::new(config, &|name| weights.get(name, trainable != Trainable::All))?,
            text: LanguageModel::new(config.text(), weights, trainable == Trainable::Nothing)?,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Tokens `[tokens, hidden]` of pictures, one picture after another.
    ///
    /// # Errors
    /// When there is no picture or one does not fit.
    pub fn encode_images(&self, images: &[&Patches]) -> Result<Tensor> {
        let (device, dtype) = (self.head().device().clone(), self.head().dtype());
        self.vision.forward(&Graph { device, dtype }, images)
    }

    /// Hidden rows `[N, hidden]` after the final norm.
    ///
    /// `image_embeds` are the tokens of `packed.images` where the caller has them; otherwise the pictures are encoded here.
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
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.config.text().vocab_size) {
            return Err(ModelError::Prompt(format!("token {id} is outside the vocabulary of {}", table.dim(0)?)));
        }
        let wanted = ids.iter().filter(|&&id| id == self.config.image_token_id()).count();
        let given = images.map_or(Ok(0), |images| images.dim(0))?;
        if wanted != given {
            return Err(ModelError::Prompt(format!("{wanted} image rows in the batch, but its pictures give {given}")));
        }
        let rows = Tensor::new(ids, table.device())?;
        let text = table.index_select(&rows, 0)?;
        let Some(images) = images else { return Ok(text) };
        let mut next = ids.len() as u32;
        let place = |(row, &id): (usize, &u32)| match id == self.config.image_token_id() {
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
