//! Prompts into cached keys and values, each distinct prompt and each distinct picture once.

use std::sync::Arc;

use super::infer::{Inference, Lane};
use crate::error::Result;
use crate::image::Patches;
use crate::kernel::attend::Stretch;
use crate::vlm::Prompt;

/// Rows that pass the matrices together; bounds the size of the buffers.
pub const ROWS_AT_ONCE: usize = 1024;
/// Patches that pass the vision tower together, unless one picture alone has more.
const PATCHES_AT_ONCE: usize = 4096;

/// A prompt that continuations can hang on.
#[derive(Debug, Clone)]
pub struct Prefilled {
    /// Its keys and values.
    pub stretch: Arc<Stretch>,
    /// The hidden row of its last token, from which the next token follows.
    pub last: Arc<Vec<f32>>,
}

impl Inference<'_> {
    /// Prefills prompts; the same `Arc` given twice is computed once.
    ///
    /// # Errors
    /// When a prompt does not fit the model.
    pub fn prefill(&self, prompts: &[&Arc<Prompt>]) -> Result<Vec<Prefilled>> {
        let mut distinct: Vec<&Arc<Prompt>> = Vec::new();
        let mut index = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let known = distinct.iter().position(|other| Arc::ptr_eq(other, prompt));
            index.push(known.unwrap_or(distinct.len()));
            if known.is_none() {
                distinct.push(prompt);
            }
        }
        let images = self.images(&distinct)?;
        let (mut done, mut start) = (Vec::with_capacity(distinct.len()), 0);
        while start < distinct.len() {
            let mut rows = 0;
            let fits = distinct[start..].iter().take_while(|prompt| {
                rows += prompt.ids.len();
                rows <= ROWS_AT_ONCE
            });
            let end = start + fits.count().max(1);
            done.extend(self.prefill_group(&distinct[start..end], &images[start..end])?);
            start = end;
        }
        Ok(index.into_iter().map(|at| done[at].clone()).collect())
    }

    /// The picture rows of every prompt.
    fn images(&self, prompts: &[&Arc<Prompt>]) -> Result<Vec<Vec<f32>>> {
        let mut distinct: Vec<&Patches> = Vec::new();
        let mut uses: Vec<Vec<usize>> = Vec::new();
        for prompt in prompts {
            let mut places = Vec::with_capacity(prompt.images.len());
            for image in &prompt.images {
                let known = distinct.iter().position(|other| other.pixels.id() == image.pixels.id());
                places.push(known.unwrap_or(distinct.len()));
                if known.is_none() {
                    distinct.push(image);
                }
            }
            uses.push(places);
        }
        let mut encoded: Vec<Vec<f32>> = Vec::with_capacity(distinct.len());
        let width = self.config.text().hidden_size;
        let mut next = 0;
        while next < distinct.len() {
            let mut patches = 0;
            let fits = distinct[next..].iter().take_while(|image| {
                patches += image.len();
                patches <= PATCHES_AT_ONCE
            });
            let group = &distinct[next..next + fits.count().max(1)];
            let rows = self.encode(group)?;
            let mut start = 0;
            for image in group {
                let size = image.tokens * width;
                encoded.push(rows[start..start + size].to_vec());
                start += size;
            }
            next += group.len();
        }
        Ok(uses.into_iter().map(|list| list.into_iter().flat_map(|at| encoded[at].iter().copied()).collect()).collect())
    }

    fn prefill_group(&self, prompts: &[&Arc<Prompt>], images: &[Vec<f32>]) -> Result<Vec<Prefilled>> {
        let width = self.config.text().hidden_size;
        let counts: Vec<usize> = prompts.iter().map(|prompt| prompt.ids.len()).collect();
        let mut lanes: Vec<Lane> = counts.iter().map(|&count| Lane::new(vec![], self.config, count)).collect();
        let mut positions: [Vec<u32>; 3] = Default::default();
        let mut rows = Vec::new();
        for (prompt, images) in prompts.iter().zip(images) {
            self.embed(&prompt.ids, images, &mut rows)?;
            for (all, own) in positions.iter_mut().zip(&prompt.positions) {
                all.extend(own);
            }
        }
        let hidden = self.extend(&mut lanes, &counts, rows, &positions);
        let mut end = 0;
        let prefilled = lanes.into_iter().zip(counts).map(|(lane, count)| {
            end += count;
            let last = Arc::new(hidden[(end - 1) * width..end * width].to_vec());
            Prefilled { stretch: Arc::new(lane.own), last }
        });
        Ok(prefilled.collect())
    }
}
