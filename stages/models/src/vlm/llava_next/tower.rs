//! CLIP's vision tower up to the layer whose features count, the projector, and a picture's tiles put together.

use std::sync::Arc;

use super::config::Config;
use crate::error::{ModelError, Result};
use crate::image::{NEWLINE, Patches};
use crate::ops::Segments;
use crate::vlm::vision::{Activation, Block, Engine, Find, Linear, Norm, TileTower, embed_tiles, without_class};

/// The tower over its weights.
#[derive(Debug, Clone)]
pub struct Tower<W> {
    config: TileTower,
    text_width: usize,
    patch: Linear<W>,
    class: W,
    positions: W,
    pre_norm: Norm<W>,
    blocks: Vec<Block<W>>,
    projector: [Linear<W>; 2],
    activation: Activation,
    newline: W,
}

impl<W> Tower<W> {
    /// The tower over a model's weights.
    ///
    /// # Errors
    /// When a weight is missing.
    pub fn new(config: &Config, get: &Find<'_, W>) -> Result<Tower<W>> {
        let (vision, style) = (&config.vision, config.vision.style);
        let bias = config.projector_bias;
        Ok(Tower {
            config: vision.clone(),
            text_width: config.text.hidden_size,
            patch: Linear::with(get, "visual.patch_embed.proj", false)?,
            class: get("visual.class_embedding")?,
            positions: get("visual.position_embedding")?,
            pre_norm: Norm::find(get, "visual.pre_norm", true, style.eps)?,
            blocks: (0..config.depth()).map(|index| Block::find(get, index, &style)).collect::<Result<_>>()?,
            projector: [Linear::with(get, "visual.projector.0", bias)?, Linear::with(get, "visual.projector.1", bias)?],
            activation: config.projector_activation,
            newline: get("visual.newline")?,
        })
    }

    /// The tokens `[tokens, hidden]` of pictures, in order.
    ///
    /// # Errors
    /// When there is no picture or one does not fit the configuration.
    pub fn forward<E: Engine<Weight = W>>(&self, engine: &E, images: &[&Patches]) -> Result<E::Rows> {
        let (side, width) = (self.config.side(), self.config.hidden_size);
        let tiles = embed_tiles(engine, images, side, width, [&self.class, &self.positions], &self.patch)?;
        let mut x = engine.norm(&tiles.rows, &self.pre_norm)?;
        let segments = Arc::new(Segments::full(vec![self.config.positions(); tiles.count])?);
        let heads = self.config.style.heads;
        let angles = engine.angles(None, segments.rows(), heads)?;
        for block in &self.blocks {
            x = block.forward(engine, x, &angles, &segments)?;
        }
        let x = engine.pick(&[&x], without_class(tiles.count, side))?;
        let x = engine.activate(engine.linear(&x, &self.projector[0])?, self.activation)?;
        let x = engine.linear(&x, &self.projector[1])?;
        let picks = picks(images, tiles.count * side * side)?;
        engine.pick(&[&x, &engine.table(&self.newline, self.text_width)?], picks)
    }
}

/// The row of every token of all pictures; `newline` is the row behind those of the tiles.
fn picks(images: &[&Patches], newline: usize) -> Result<Vec<u32>> {
    let (mut all, mut start) = (Vec::new(), 0);
    for image in images {
        let picks =
            image.picks.as_ref().ok_or_else(|| ModelError::Prompt("a picture was not cut into tiles".into()))?;
        let row = |pick: &u32| if *pick == NEWLINE { newline as u32 } else { start + pick };
        all.extend(picks.iter().map(row));
        start += image.len() as u32;
    }
    Ok(all)
}
