//! Merged tokens of pictures under a frozen vision tower: each picture is encoded once for a whole training.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;

use crate::error::Result;
use crate::vlm::{Model, Prompt};

/// Encoded pictures of prompts, by the prompt's place in the data.
#[derive(Debug, Default)]
pub struct ImageCache {
    known: BTreeMap<usize, Tensor>,
}

impl ImageCache {
    /// Merged tokens of the pictures of `prompt`, which is number `index` of the data; `None` when it has no picture.
    ///
    /// # Errors
    /// When a picture cannot be encoded.
    pub fn embeds(&mut self, model: &Model, index: usize, prompt: &Arc<Prompt>) -> Result<Option<Tensor>> {
        if prompt.images.is_empty() {
            return Ok(None);
        }
        if let Some(known) = self.known.get(&index) {
            return Ok(Some(known.clone()));
        }
        let embeds = model.encode_images(&prompt.images.iter().collect::<Vec<_>>())?.detach();
        self.known.insert(index, embeds.clone());
        Ok(Some(embeds))
    }
}
