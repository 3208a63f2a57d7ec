//! Batches: sequences packed on one row axis, and for each token of a response the row that predicts it.
//!
//! A response of L tokens needs L - 1 rows of its own: its first token is predicted by the prompt's last row, its last token
//! predicts nothing. Responses of one prompt share the prompt's rows: they are segments behind it, each seeing the prompt and
//! itself, with positions as if it stood there alone. A group of G responses so costs one prompt instead of G.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::error::{ModelError, Result};
use crate::image::Patches;
use crate::ops::{Segment, Segments};
use crate::vlm::{Packed, Prompt};

/// The rows and targets of one response: hidden row `rows[i]` predicts token `targets[i]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Span {
    /// Rows of the batch.
    pub rows: Vec<u32>,
    /// The tokens.
    pub targets: Vec<u32>,
}

/// A batch under construction.
#[derive(Debug, Default)]
pub struct Batch {
    ids: Vec<u32>,
    positions: [Vec<u32>; 3],
    segments: Vec<Segment>,
    images: Vec<Patches>,
    embeds: Vec<Tensor>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Adds a prompt once and every response behind it; returns each response's span. `embeds`, the merged tokens of the
    /// prompt's pictures, spare encoding them again.
    ///
    /// # Errors
    /// When a response is empty.
    pub fn add(&mut self, prompt: &Prompt, embeds: Option<&Tensor>, responses: &[&[u32]]) -> Result<Vec<Span>> {
        let shared = self.prompt(prompt, embeds);
        let next = prompt.next_position();
        responses.iter().map(|response| self.response(&shared, next, response)).collect()
    }

    /// Adds one sequence whose tokens all stand in one causal segment; row i predicts token i + 1.
    pub fn add_sequence(&mut self, sequence: &Prompt) -> std::ops::Range<usize> {
        self.prompt(sequence, None)
    }

    fn prompt(&mut self, prompt: &Prompt, embeds: Option<&Tensor>) -> std::ops::Range<usize> {
        let start = self.ids.len();
        self.ids.extend(&prompt.ids);
        for (all, axis) in self.positions.iter_mut().zip(&prompt.positions) {
            all.extend(axis);
        }
        match embeds {
            Some(embeds) => self.embeds.push(embeds.clone()),
            None => self.images.extend(prompt.images.iter().cloned()),
        }
        let own = start..self.ids.len();
        self.segments.push(Segment { own: own.clone(), prefix: 0..0, causal: true });
        own
    }

    fn response(&mut self, shared: &std::ops::Range<usize>, next: u32, response: &[u32]) -> Result<Span> {
        let Some((_, fed)) = response.split_last() else {
            return Err(ModelError::Setting("a response to train on is empty".to_owned()));
        };
        let start = self.ids.len();
        self.ids.extend(fed);
        for axis in &mut self.positions {
            axis.extend((next..).take(fed.len()));
        }
        if !fed.is_empty() {
            self.segments.push(Segment { own: start..self.ids.len(), prefix: shared.clone(), causal: true });
        }
        let last = shared.end as u32 - 1;
        let rows = std::iter::once(last).chain(start as u32..self.ids.len() as u32).collect();
        Ok(Span { rows, targets: response.to_vec() })
    }

    /// The finished batch and, when its pictures came encoded, their merged tokens.
    ///
    /// # Errors
    /// When the batch is empty, or only some of its pictures came encoded.
    pub fn pack(self, device: &Device) -> Result<(Packed, Option<Tensor>)> {
        if !self.embeds.is_empty() && !self.images.is_empty() {
            return Err(ModelError::Setting("a batch mixes encoded and raw pictures".to_owned()));
        }
        let embeds = match self.embeds.is_empty() {
            true => None,
            false => Some(Tensor::cat(&self.embeds, 0)?.to_device(device)?),
        };
        let segments = Arc::new(Segments::new(self.segments)?);
        Ok((Packed { ids: self.ids, positions: self.positions, segments, images: self.images }, embeds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(ids: &[u32]) -> Prompt {
        let line: Vec<u32> = (0..ids.len() as u32).collect();
        Prompt {
            ids: ids.to_vec(),
            positions: [line.clone(), line.clone(), line],
            images: Vec::new(),
            text: String::new(),
        }
    }

    #[test]
    fn responses_share_their_prompt() {
        let mut batch = Batch::new();
        let spans = batch.add(&prompt(&[7, 8, 9]), None, &[&[1, 2, 3], &[4]]).unwrap();
        assert_eq!(spans[0], Span { rows: vec![2, 3, 4], targets: vec![1, 2, 3] });
        assert_eq!(spans[1], Span { rows: vec![2], targets: vec![4] });
        let (packed, embeds) = batch.pack(&Device::Cpu).unwrap();
        assert_eq!((packed.ids, packed.segments.len(), embeds.is_none()), (vec![7, 8, 9, 1, 2], 2, true));
        assert_eq!(packed.positions[1], [0, 1, 2, 3, 4]);
    }

    #[test]
    fn an_empty_response_is_refused() {
        assert!(Batch::new().add(&prompt(&[7]), None, &[&[]]).is_err());
    }
}
