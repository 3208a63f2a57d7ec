//! Where the patches of a batch of pictures lie and which see which.
//!
//! Most blocks attend within windows of `window_size` pixels. To make each window one run of rows, the tower sorts the merged
//! tokens window by window once, works in that order, and puts the merged tokens back at the end. A merged token's patches stay
//! neighbours throughout. Windows at the right and lower edge are smaller; nothing is padded.

use std::sync::Arc;

use super::config::{Blocks, VisionConfig};
use crate::error::{ModelError, Result};
use crate::image::merge_order;
use crate::ops::Segments;

/// The order and the visibility of the patches of a batch.
#[derive(Debug, Clone)]
pub struct Layout {
    /// For each merged token in window order, its place in the order of the processor.
    pub order: Vec<u32>,
    /// For each merged token in the order of the processor, its place in window order.
    pub back: Vec<u32>,
    /// Whether both orders are the same.
    pub identity: bool,
    /// (row, column) of every patch, in window order.
    pub places: Vec<(u32, u32)>,
    /// One segment a window.
    pub windows: Arc<Segments>,
    /// One segment a frame.
    pub frames: Arc<Segments>,
}

impl Layout {
    /// The layout of pictures with these grids (patches along time, height, width), one after another.
    ///
    /// # Errors
    /// When there is no picture or a side of a grid is no multiple of the merge size.
    pub fn new(config: &VisionConfig, grids: &[[usize; 3]]) -> Result<Layout> {
        let (merge, unit) = (config.spatial_merge_size, config.merge_unit());
        // Without windows, one larger than any picture leaves the order as it is.
        let side = match config.blocks {
            Blocks::Full => usize::MAX / 2,
            Blocks::Windowed { window_size, .. } => window_size / config.patch_size / merge,
        };
        let (mut order, mut windows, mut frames, mut places) = (vec![], vec![], vec![], vec![]);
        for grid in grids {
            let [time, rows, columns] = *grid;
            if rows % merge != 0 || columns % merge != 0 || time * rows * columns == 0 {
                return Err(ModelError::Prompt(format!(
                    "a grid of {grid:?} patches does not merge {merge} by {merge}"
                )));
            }
            for _ in 0..time {
                let start = order.len();
                let window_rows = sort_frame(rows / merge, columns / merge, side, start, &mut order);
                windows.extend(window_rows.into_iter().map(|tokens| tokens * unit));
                frames.push(rows * columns);
                let natural: Vec<(usize, usize)> = merge_order(rows, columns, merge).collect();
                for &token in &order[start..] {
                    let first = (token as usize - start) * unit;
                    places.extend(natural[first..first + unit].iter().map(|&(r, c)| (r as u32, c as u32)));
                }
            }
        }
        let mut back = vec![0; order.len()];
        for (place, &token) in order.iter().enumerate() {
            back[token as usize] = place as u32;
        }
        let identity = order.iter().enumerate().all(|(place, &token)| place == token as usize);
        let (windows, frames) = (Arc::new(Segments::full(windows)?), Arc::new(Segments::full(frames)?));
        Ok(Layout { order, back, identity, places, windows, frames })
    }

    /// For each patch in window order, its row in the order of the processor.
    pub fn patch_rows(&self, unit: usize) -> Vec<u32> {
        let unit = unit as u32;
        self.order.iter().flat_map(|&token| token * unit..(token + 1) * unit).collect()
    }
}

/// Appends the tokens of one frame window by window; returns the number of tokens of each window.
fn sort_frame(rows: usize, columns: usize, side: usize, start: usize, order: &mut Vec<u32>) -> Vec<usize> {
    let mut sizes = Vec::new();
    for top in (0..rows).step_by(side) {
        for left in (0..columns).step_by(side) {
            let before = order.len();
            for row in top..(top + side).min(rows) {
                order.extend((left..(left + side).min(columns)).map(|column| (start + row * columns + column) as u32));
            }
            sizes.push(order.len() - before);
        }
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> VisionConfig {
        VisionConfig {
            depth: 1,
            hidden_size: 16,
            intermediate_size: 16,
            heads: 2,
            in_channels: 3,
            patch_size: 14,
            spatial_merge_size: 2,
            temporal_patch_size: 2,
            out_hidden_size: 16,
            blocks: Blocks::Windowed { window_size: 56, fullatt_block_indexes: vec![], tokens_per_second: 2 },
        }
    }

    #[test]
    fn windows_come_one_after_another() {
        let layout = Layout::new(&config(), &[[1, 6, 6]]).unwrap();
        assert_eq!(layout.order, [0, 1, 3, 4, 2, 5, 6, 7, 8]);
        let sizes: Vec<usize> = layout.windows.iter().map(|segment| segment.own.len()).collect();
        assert_eq!(sizes, [16, 8, 8, 4]);
        assert_eq!(layout.frames.len(), 1);
        assert!(!layout.identity);
        assert_eq!(layout.places[8..12], [(2, 0), (2, 1), (3, 0), (3, 1)]);
        for (token, &place) in layout.back.iter().enumerate() {
            assert_eq!(layout.order[place as usize] as usize, token);
        }
    }

    #[test]
    fn without_windows_the_order_is_the_processors() {
        let layout = Layout::new(&VisionConfig { blocks: Blocks::Full, ..config() }, &[[1, 6, 6], [1, 2, 4]]).unwrap();
        assert!(layout.identity && layout.windows == layout.frames);
        assert_eq!(layout.places[4..8], [(0, 2), (0, 3), (1, 2), (1, 3)]);
    }

    #[test]
    fn pictures_follow_one_another() {
        let layout = Layout::new(&config(), &[[1, 4, 4], [1, 2, 4]]).unwrap();
        assert!(layout.identity);
        assert_eq!(layout.frames.iter().map(|segment| segment.own.clone()).collect::<Vec<_>>(), [0..16, 16..24]);
        assert_eq!(layout.patch_rows(4).len(), 24);
        assert!(Layout::new(&config(), &[[1, 3, 4]]).is_err());
    }
}
