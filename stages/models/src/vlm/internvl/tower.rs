//! InternViT, pixel shuffle and the projector.

use std::sync::Arc;

use super::config::Config;
use crate::error::Result;
use crate::image::{Patches, merge_order};
use crate::ops::Segments;
use crate::vlm::vision::{Activation, Block, Engine, Find, Linear, Norm, TileTower, embed_tiles};

/// Added to the variance in the projector's norm.
const PROJECTOR_EPS: f64 = 1e-5;

/// The tower over its weights.
#[derive(Debug, Clone)]
pub struct Tower<W> {
    config: TileTower,
    merge: usize,
    patch: Linear<W>,
    class: W,
    positions: W,
    blocks: Vec<Block<W>>,
    post_norm: Option<Norm<W>>,
    norm: Norm<W>,
    projector: [Linear<W>; 2],
}

impl<W> Tower<W> {
    /// The tower over a model's weights.
    ///
    /// # Errors
    /// When a weight is missing.
    pub fn new(config: &Config, get: &Find<'_, W>) -> Result<Tower<W>> {
        let (vision, style) = (&config.vision, config.vision.style);
        // The last norm stands behind the last block alone: features of an earlier layer have not passed it.
        let post_norm = match !config.mean_pooling && config.feature_layer == -1 {
            true => Some(Norm::find(get, "visual.post_norm", true, style.eps)?),
            false => None,
        };
        Ok(Tower {
            config: vision.clone(),
            merge: config.merge,
            patch: Linear::find(get, "visual.patch_embed.proj")?,
            class: get("visual.class_embedding")?,
            positions: get("visual.position_embedding")?,
            blocks: (0..config.depth()).map(|index| Block::find(get, index, &style)).collect::<Result<_>>()?,
            post_norm,
            norm: Norm::find(get, "visual.projector.norm", true, PROJECTOR_EPS)?,
            projector: [Linear::find(get, "visual.projector.0")?, Linear::find(get, "visual.projector.1")?],
        })
    }

    /// The tokens `[tokens, hidden]` of pictures, in order.
    ///
    /// # Errors
    /// When there is no picture or one does not fit the configuration.
    pub fn forward<E: Engine<Weight = W>>(&self, engine: &E, images: &[&Patches]) -> Result<E::Rows> {
        let (side, width) = (self.config.side(), self.config.hidden_size);
        let tiles = embed_tiles(engine, images, side, width, [&self.class, &self.positions], &self.patch)?;
        let segments = Arc::new(Segments::full(vec![self.config.positions(); tiles.count])?);
        let angles = engine.angles(None, segments.rows(), self.config.style.heads)?;
        let mut x = tiles.rows;
        for block in &self.blocks {
            x = block.forward(engine, x, &angles, &segments)?;
        }
        if let Some(norm) = &self.post_norm {
            x = engine.norm(&x, norm)?;
        }
        let x = engine.pick(&[&x], shuffled(tiles.count, side, self.merge))?;
        let x = engine.norm(&engine.fold(x, self.merge * self.merge)?, &self.norm)?;
        let x = engine.activate(engine.linear(&x, &self.projector[0])?, Activation::Gelu)?;
        engine.linear(&x, &self.projector[1])
    }
}

/// The rows that are patches, those that become one token together (pixel shuffle).
fn shuffled(tiles: usize, side: usize, merge: usize) -> Vec<u32> {
    let own = 1 + side * side;
    let tile = |tile: usize| merge_order(side, side, merge).map(move |(y, x)| (tile * own + 1 + y * side + x) as u32);
    (0..tiles).flat_map(tile).collect()
}
