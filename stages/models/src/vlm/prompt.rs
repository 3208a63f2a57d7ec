//! A prompt: a conversation and its pictures, ready for the model.

use image::RgbImage;

use super::Vlm;
use crate::chat::Turn;
use crate::error::{ModelError, Result};
use crate::image::Patches;

/// A rendered, tokenised prompt with its pictures.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// The tokens, each picture's placeholder repeated once a token of it.
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
        let placeholder = tokenizer.token(self.config.image_token_id()).unwrap_or_default();
        let text = self.assets.chat.render(turns, open, &placeholder, bos, eos)?;
        let process = |image| self.prefixes.processed(image, || self.in_pool(|| self.assets.processor.process(image)));
        let processed: Result<Vec<Patches>> = images.iter().map(process).collect();
        self.prompt_of_text(text, processed?)
    }

    /// Tokenises a text that holds one placeholder a picture. What the tokenizer puts in front of every text (a first token, say) is
    /// added unless the text has it.
    ///
    /// # Errors
    /// When the text is empty, placeholders and pictures differ in number, or the prompt is longer than the model can see: nothing
    /// is ever cut.
    pub fn prompt_of_text(&self, text: String, images: Vec<Patches>) -> Result<Prompt> {
        let placeholder = self.config.image_token_id();
        let tokenizer = &self.assets.tokenizer;
        let begun = tokenizer.special("bos_token").is_some_and(|bos| !bos.is_empty() && text.starts_with(bos));
        let short = if begun { tokenizer.encode(&text)? } else { tokenizer.encode_whole(&text)? };
        let found = short.iter().filter(|&&id| id == placeholder).count();
        if found != images.len() {
            return Err(ModelError::Prompt(format!(
                "the text holds {found} picture placeholders for {} pictures; does a text part contain the placeholder?",
                images.len()
            )));
        }
        let ids = self.expand(short, &images);
        self.check_length(&ids)?;
        let positions = self.config.positions(&ids, &images)?;
        Ok(Prompt { ids, positions, images, text })
    }

    /// Puts every picture's tokens, framed where the family frames them, in place of its placeholder.
    fn expand(&self, short: Vec<u32>, images: &[Patches]) -> Vec<u32> {
        let placeholder = self.config.image_token_id();
        let mut tokens = images.iter().map(|image| image.tokens);
        let mut ids = Vec::with_capacity(short.len());
        for id in short {
            if id != placeholder {
                ids.push(id);
                continue;
            }
            ids.extend(self.frame.map(|[start, _]| start));
            ids.extend(std::iter::repeat_n(id, tokens.next().unwrap_or(0)));
            ids.extend(self.frame.map(|[_, end]| end));
        }
        ids
    }

    fn check_length(&self, ids: &[u32]) -> Result<()> {
        if ids.is_empty() {
            return Err(ModelError::Prompt("the text has no token".into()));
        }
        let longest = self.config.text().max_position_embeddings;
        if ids.len() <= longest {
            return Ok(());
        }
        let shown = ids.iter().filter(|&&id| id == self.config.image_token_id()).count();
        Err(ModelError::Prompt(format!(
            "{} tokens, {shown} of them of pictures, but the model sees {longest} at most: nothing is cut; \
             lower the picture processor's pixel budget or shorten the text",
            ids.len()
        )))
    }
}
