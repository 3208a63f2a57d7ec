//! The text of an answer while its tokens come.
//!
//! A token may be a part of a character, and what cannot be read yet decodes to U+FFFD. Tokenizers that spell rare characters as
//! tokens of one byte read a whole run of them at once, so that a later byte can change what earlier ones meant. Text is given out up to
//! the last character that further tokens can no longer change: what was given out is always the beginning of the final text.

use crate::error::Result;
use crate::vlm::Vlm;

/// Tokens of an answer so far, and the text that was given out.
#[derive(Debug, Clone, Default)]
pub struct Growing {
    ids: Vec<u32>,
    given: String,
}

impl Growing {
    /// Takes a token; returns the text that it completes, often none.
    ///
    /// # Errors
    /// When the tokenizer's decoder refuses the tokens.
    pub fn push(&mut self, vlm: &Vlm, id: u32) -> Result<String> {
        self.ids.push(id);
        let mut closed = self.ids.len();
        while closed > 0 && is_open(vlm, self.ids[closed - 1])? {
            closed -= 1;
        }
        let text = vlm.decode(&self.ids[..closed])?;
        Ok(self.give(text.trim_end_matches('\u{fffd}')))
    }

    /// The rest of an answer whose whole text is `text`.
    pub fn rest(&mut self, text: &str) -> String {
        self.give(text)
    }

    /// The tokens so far.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    fn give(&mut self, text: &str) -> String {
        let new = text.strip_prefix(self.given.as_str()).unwrap_or_default();
        self.given.push_str(new);
        new.to_owned()
    }
}

/// Whether a token at the end leaves open what the text there is: a single byte, or a token that has no text.
fn is_open(vlm: &Vlm, id: u32) -> Result<bool> {
    let token = vlm.assets().tokenizer.token(id).unwrap_or_default();
    let byte = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).is_some_and(|hex| hex.len() == 2);
    Ok(byte || vlm.decode(&[id])?.is_empty())
}
