//! A prompt: a conversation and its pictures, ready for the model.

use image::RgbImage;

use super::Vlm;
use super::qwen2_5_vl::positions::positions;
use crate::chat::Turn;
use crate::error::{ModelError, Result};
use crate::image::Patches;

/// A rendered, tokenised prompt with its pictures.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// The tokens, each picture's placeholder repeated once a merged patch.
    pub ids: Vec<u32>,
    /// Time, row and column position of every token.
    pub positions: [Vec<u32>; 3],
    /// The processed pictures in order.
    pub images: Vec<Patches>,
    /// What the chat template gave, each picture still one placeholder.
    pub text: String,
}

impl Prompt {
    /// The position, equal on all axes, of the first token behind the prompt.
    pub fn next_position(&self) -> u32 {
        self.positions.iter().flat_map(|axis| axis.iter()).max().map_or(0, |last| last + 1)
    }
}

impl Vlm {
    /// Renders a conversation; `open` adds the opening of the model's next turn.
    ///
    /// # Errors
    /// When the turns show another number of pictures than given, a text contains the picture placeholder itself, the template
    /// raises an error, or a picture cannot be processed.
    pub fn prompt(&self, turns: &[Turn], images: &[RgbImage], open: bool) -> Result<Prompt> {
        let shown: usize = turns.iter().map(Turn::images).sum();
        if shown != images.len() {
            return Err(ModelError::Prompt(format!(
                "the turns show {shown} pictures, but {} were given",
                images.len()
            )));
        }
        let tokenizer = &self.assets.tokenizer;
        let (bos, eos) = (tokenizer.special("bos_token"), tokenizer.special("eos_token"));
        let text = self.assets.chat.render(turns, open, bos, eos)?;
        let processed: Result<Vec<Patches>> = images.iter().map(|image| self.assets.processor.process(image)).collect();
        self.prompt_of_text(text, processed?)
    }

    /// Tokenises a text that holds one placeholder a picture.
    ///
    /// # Errors
    /// When placeholders and pictures differ in number.
    pub fn prompt_of_text(&self, text: String, images: Vec<Patches>) -> Result<Prompt> {
        let placeholder = self.config.image_token_id;
        let short = self.encode(&text)?;
        let found = short.iter().filter(|&&id| id == placeholder).count();
        if found != images.len() {
            return Err(ModelError::Prompt(format!(
                "the text holds {found} picture placeholders for {} pictures; does a text part contain the placeholder?",
                images.len()
            )));
        }
        let merge = self.config.vision.spatial_merge_size;
        let mut grids = images.iter().map(|image| image.tokens(merge));
        let mut ids = Vec::with_capacity(short.len());
        for id in short {
            let repeat = if id == placeholder { grids.next().unwrap_or(0) } else { 1 };
            ids.extend(std::iter::repeat_n(id, repeat));
        }
        let merged: Vec<[usize; 3]> =
            images.iter().map(|image| [image.grid[0], image.grid[1] / merge, image.grid[2] / merge]).collect();
        let positions = positions(&ids, placeholder, &merged)?;
        Ok(Prompt { ids, positions, images, text })
    }
}
