//! The vision tower: patch embedding, blocks of windowed or full attention, and the merger to the language model's width.

use super::config::{Blocks, EPS, VisionConfig};
use super::windows::Layout;
use crate::error::Result;
use crate::image::Patches;
use crate::vlm::text::Angles;
use crate::vlm::text::rope::frequencies;
use crate::vlm::vision::{Activation, Block, Engine, Find, Linear, Norm};

/// The tower over its weights.
#[derive(Debug, Clone)]
pub struct Tower<W> {
    config: VisionConfig,
    patch: Linear<W>,
    /// Each block, and whether it sees the whole picture.
    blocks: Vec<(Block<W>, bool)>,
    norm: Norm<W>,
    first: Linear<W>,
    second: Linear<W>,
}

impl<W> Tower<W> {
    /// The tower over a model's weights.
    ///
    /// # Errors
    /// When a weight is missing.
    pub fn new(config: &VisionConfig, get: &Find<'_, W>) -> Result<Tower<W>> {
        let style = config.style();
        let full = |index: usize| match &config.blocks {
            Blocks::Full => true,
            Blocks::Windowed { fullatt_block_indexes, .. } => fullatt_block_indexes.contains(&index),
        };
        let block = |index| Ok((Block::find(get, index, &style)?, full(index)));
        Ok(Tower {
            config: config.clone(),
            patch: Linear::with(get, "visual.patch_embed.proj", false)?,
            blocks: (0..config.depth).map(block).collect::<Result<_>>()?,
            norm: Norm::find(get, "visual.merger.ln_q", style.layer_norm, EPS)?,
            first: Linear::find(get, "visual.merger.mlp.0")?,
            second: Linear::find(get, "visual.merger.mlp.2")?,
        })
    }

    /// The merged tokens `[tokens, out_hidden_size]` of pictures, in order.
    ///
    /// # Errors
    /// When there is no picture or one does not fit the configuration.
    pub fn forward<E: Engine<Weight = W>>(&self, engine: &E, images: &[&Patches]) -> Result<E::Rows> {
        let grids: Vec<[usize; 3]> = images.iter().map(|image| image.grid).collect();
        let layout = Layout::new(&self.config, &grids)?;
        let unit = self.config.merge_unit();
        let pixels: Vec<_> = images.iter().map(|image| &image.pixels).collect();
        let order = (!layout.identity).then(|| layout.patch_rows(unit));
        let angles = Some(angles(&self.config, &layout.places));
        let angles = engine.angles(angles, layout.places.len(), self.config.head_shape())?;
        let mut x = engine.linear(&engine.pixels(&pixels, order)?, &self.patch)?;
        for (block, full) in &self.blocks {
            x = block.forward(engine, x, &angles, if *full { &layout.frames } else { &layout.windows })?;
        }
        let merged = engine.fold(engine.norm(&x, &self.norm)?, unit)?;
        let merged = engine.activate(engine.linear(&merged, &self.first)?, Activation::Gelu)?;
        let merged = engine.linear(&merged, &self.second)?;
        if layout.identity { Ok(merged) } else { engine.pick(&[&merged], layout.back) }
    }
}

/// Angles of patches at the given (row, column) places: the first half of the frequencies turns with the row, the second half with
/// the column; base 10000.
fn angles(config: &VisionConfig, places: &[(u32, u32)]) -> Angles {
    let head_dim = config.hidden_size / config.heads;
    let table = frequencies(10_000.0, head_dim / 2);
    let mut angles = Angles::with_capacity(places.len(), head_dim);
    for &(row, column) in places {
        let half = table.iter().map(move |f| row as f32 * f).chain(table.iter().map(move |f| column as f32 * f));
        angles.push_row(half);
    }
    angles
}
