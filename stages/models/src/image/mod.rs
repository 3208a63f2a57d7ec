//! From a picture to the rows that a vision tower reads: decode, resize, rescale, normalise, cut into patches.
//!
//! | module | what |
//! |---|---|
//! | `decode` | bytes to pixels, or why not |
//! | `measure` | width and height without decoding |
//! | `resize` | Pillow's bicubic filter, and torchvision's |
//! | `qwen` | one picture of any size within a pixel budget |
//! | `anyres` | LLaVA-NeXT: the whole picture and tiles of the best of given resolutions |
//! | `tiles` | InternVL: up to so many tiles, and the whole picture behind them |
//!
//! Every step equals the reference processor's. What a family's pictures have in common is [`Patches`]: rows of flattened patches,
//! and how many tokens they make.

pub mod anyres;
mod canvas;
mod curve;
mod cut;
pub mod decode;
mod measure;
#[cfg(test)]
mod plainly;
mod qwen;
mod resize;
pub mod tiles;
mod turn;
mod weigh;

use std::sync::Arc;

use candle_core::Tensor;
use serde_json::Value;

use crate::error::Result;

pub use anyres::AnyRes;
pub use decode::decode;
pub use image::RgbImage;
pub use measure::measure;
pub use qwen::{ImageProcessor, smart_size};
pub use resize::Filter;
pub use tiles::Tiles;

/// In [`Patches::picks`]: the row that ends a line of a picture.
pub const NEWLINE: u32 = u32::MAX;

/// A processed picture: `pixels` is `[t * h * w, channels * temporal * patch * patch]`, in the order of the tower's rows.
#[derive(Debug, Clone)]
pub struct Patches {
    /// One flattened patch a row, f32 on the CPU; cloning shares it.
    pub pixels: Tensor,
    /// Patches along time (or tiles), height and width.
    pub grid: [usize; 3],
    /// Tokens that the picture takes in a prompt.
    pub tokens: usize,
    /// Where tokens are not the tower's rows in order: the row of each token, or [`NEWLINE`].
    pub picks: Option<Arc<Vec<u32>>>,
}

impl Patches {
    /// Number of patches.
    pub fn len(&self) -> usize {
        self.grid.iter().product()
    }

    /// Whether there is no patch.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The picture processor of a family.
#[derive(Debug, Clone, PartialEq)]
pub enum Processor {
    /// Qwen2-VL and Qwen2.5-VL.
    Qwen(ImageProcessor),
    /// LLaVA-NeXT.
    AnyRes(AnyRes),
    /// InternVL.
    Tiles(Tiles),
}

impl Processor {
    /// Resizes, normalises and cuts one picture.
    ///
    /// # Errors
    /// When the picture cannot be brought to a size that the model takes.
    pub fn process(&self, image: &RgbImage) -> Result<Patches> {
        self.process_with(image, Filter::default())
    }

    /// [`Self::process`] with either filter.
    ///
    /// # Errors
    /// As [`Self::process`].
    pub fn process_with(&self, image: &RgbImage, filter: Filter) -> Result<Patches> {
        match self {
            Processor::Qwen(processor) => processor.process_with(image, filter),
            Processor::AnyRes(processor) => processor.process_with(image, filter),
            Processor::Tiles(processor) => processor.process_with(image, filter),
        }
    }

    /// The published form of `preprocessor_config.json`.
    pub fn to_json(&self) -> Value {
        match self {
            Processor::Qwen(processor) => processor.to_json(),
            Processor::AnyRes(processor) => processor.to_json(),
            Processor::Tiles(processor) => processor.to_json(),
        }
    }
}

impl From<ImageProcessor> for Processor {
    fn from(processor: ImageProcessor) -> Processor {
        Processor::Qwen(processor)
    }
}

/// (row, column) of every patch of a picture in the order of the tower's rows: the `merge * merge` patches of a token together.
pub fn merge_order(rows: usize, columns: usize, merge: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows / merge).flat_map(move |block_row| {
        (0..columns / merge).flat_map(move |block_column| {
            (0..merge).flat_map(move |y| (0..merge).map(move |x| (block_row * merge + y, block_column * merge + x)))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_of_one_token_are_neighbours() {
        let order: Vec<_> = merge_order(4, 4, 2).collect();
        assert_eq!(order[..4], [(0, 0), (0, 1), (1, 0), (1, 1)]);
        assert_eq!(order[4..8], [(0, 2), (0, 3), (1, 2), (1, 3)]);
        assert_eq!(order.len(), 16);
    }
}
