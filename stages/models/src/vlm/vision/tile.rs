//! The shape of towers that see square tiles: CLIP's and InternViT's.

use super::BlockStyle;
use crate::ops::HeadShape;

/// A tower over tiles of one size, whose rows are a class and the patches, in blocks of one style.
#[derive(Debug, Clone, PartialEq)]
pub struct TileTower {
    /// Number of blocks.
    pub layers: usize,
    /// Width of a patch row.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Side of a tile in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// What its blocks have in common.
    pub style: BlockStyle,
}

impl TileTower {
    /// So many heads of a row that wide; [`TileTower::check`] refuses what does not divide.
    pub fn heads(hidden_size: usize, heads: usize) -> HeadShape {
        HeadShape { heads, kv_heads: heads, head_dim: hidden_size.checked_div(heads).unwrap_or(0) }
    }

    /// Patches along a tile's side.
    pub fn side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Rows of a tile: the class and the patches.
    pub fn positions(&self) -> usize {
        1 + self.side() * self.side()
    }

    /// Values of one flattened patch.
    pub fn patch_width(&self) -> usize {
        3 * self.patch_size * self.patch_size
    }

    /// Blocks that are computed when the output of `layer` counts; negative from the end, -1 the last.
    pub fn depth(&self, layer: i64) -> usize {
        if layer < 0 { (self.layers as i64 + 1 + layer).max(0) as usize } else { layer as usize }
    }

    /// Refuses shapes that a tower cannot have, and a `layer` that it has not.
    ///
    /// # Errors
    /// A message that names the numbers that do not fit.
    pub fn check(&self, layer: i64) -> std::result::Result<(), String> {
        let heads = self.style.heads.heads;
        if heads == 0 || !self.hidden_size.is_multiple_of(2 * heads) {
            return Err(format!("vision width {} must be a multiple of 2 x {heads} heads", self.hidden_size));
        }
        if self.patch_size == 0 || self.image_size < self.patch_size {
            return Err(format!("tiles of {} pixels hold no patch of {}", self.image_size, self.patch_size));
        }
        if self.depth(layer) == 0 || self.depth(layer) > self.layers {
            return Err(format!("layer {layer}, whose features count, is no layer of {}", self.layers));
        }
        Ok(())
    }
}
