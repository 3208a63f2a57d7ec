//! The text of an answer while its tokens come.
//!
//! A token may be a part of a character, and what cannot be read yet decodes to U+FFFD. Text is given out up to the last character
//! that further tokens can no longer change: all that was given out is the beginning of the final text.

use crate::error::Result;
use crate::vlm::Vlm;

/// Tokens of an answer so far, and how much of their text was given out.
#[derive(Debug, Clone, Default)]
pub struct Growing {
    ids: Vec<u32>,
    given: usize,
}

impl Growing {
    /// Takes a token; returns the text that it completes, often none.
    ///
    /// # Errors
    /// When the tokenizer's decoder refuses the tokens.
    pub fn push(&mut self, vlm: &Vlm, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = vlm.decode(&self.ids)?;
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
        match text.get(self.given..) {
            Some(new) if !new.is_empty() => {
                self.given = text.len();
                new.to_owned()
            }
            _ => String::new(),
        }
    }
}
