//! What the vision towers share: a tower is written once, over an [`Engine`], and runs on two of them.
//!
//! | engine | rows and weights | used for |
//! |---|---|---|
//! | [`Graph`] | tensors; gradients flow | training, and every device |
//! | [`Plain`] | f32 slices and the kernels of [`crate::kernel`] | generation and scoring: a row's bits do not depend on its company |
//!
//! A tower's blocks are pre-norm: attention, then a feed-forward, each added to the stream, in [`Block`]. What differs between
//! families (norm, feed-forward, layer scale, norms of queries and keys) is data of the block. Weights are found by the
//! names of [`crate::vlm::specs`], the same for all families.

mod graph;
mod plain;
mod tile;

use std::sync::Arc;

use candle_core::Tensor;

use crate::error::{ModelError, Result};
use crate::image::Patches;
use crate::ops::{HeadShape, Segments};
use crate::vlm::text::Angles;

pub use graph::Graph;
pub use plain::Plain;
pub use tile::TileTower;

/// Finds a weight by name.
pub type Find<'f, W> = dyn Fn(&str) -> Result<W> + 'f;

/// What a tower asks of whatever computes it. All rows are `[n, width]`.
pub trait Engine {
    /// Rows of one width.
    type Rows;
    /// A weight.
    type Weight;
    /// Rotary angles, or none.
    type Angles;

    /// Rows of pixels, one tensor after another, in `order` where one is given.
    fn pixels(&self, pixels: &[&Tensor], order: Option<Vec<u32>>) -> Result<Self::Rows>;
    /// Angles of `rows` rows; `None` turns nothing.
    fn angles(&self, angles: Option<Angles>, rows: usize, shape: HeadShape) -> Result<Self::Angles>;
    /// A linear map.
    fn linear(&self, x: &Self::Rows, map: &Linear<Self::Weight>) -> Result<Self::Rows>;
    /// A norm.
    fn norm(&self, x: &Self::Rows, norm: &Norm<Self::Weight>) -> Result<Self::Rows>;
    /// `silu(gate) * up` of packed rows.
    fn swiglu(&self, x: &Self::Rows) -> Result<Self::Rows>;
    /// An activation.
    fn activate(&self, x: Self::Rows, activation: Activation) -> Result<Self::Rows>;
    /// Norms the query and the key columns of packed projection rows, each over all heads.
    fn norm_queries_and_keys(
        &self,
        qkv: Self::Rows,
        norms: &(Norm<Self::Weight>, Norm<Self::Weight>),
        shape: HeadShape,
    ) -> Result<Self::Rows>;
    /// Attention on packed projection rows.
    fn attention(
        &self,
        qkv: Self::Rows,
        angles: &Self::Angles,
        segments: &Arc<Segments>,
        shape: HeadShape,
    ) -> Result<Self::Rows>;
    /// `x + y`.
    fn add(&self, x: Self::Rows, y: &Self::Rows) -> Result<Self::Rows>;
    /// Every row times a vector.
    fn scale(&self, x: Self::Rows, by: &Self::Weight) -> Result<Self::Rows>;
    /// `unit` neighbouring rows side by side in one.
    fn fold(&self, x: Self::Rows, unit: usize) -> Result<Self::Rows>;
    /// A weight as rows of a width.
    fn table(&self, weight: &Self::Weight, width: usize) -> Result<Self::Rows>;
    /// Rows of `parts`, counted through one part after another, in the order given.
    fn pick(&self, parts: &[&Self::Rows], rows: Vec<u32>) -> Result<Self::Rows>;
}

/// A linear map with its bias.
#[derive(Debug, Clone)]
pub struct Linear<W> {
    /// `[out, in]`.
    pub weight: W,
    /// `[out]`.
    pub bias: Option<W>,
}

impl<W> Linear<W> {
    /// The map `name.weight`, with `name.bias`.
    ///
    /// # Errors
    /// When a weight is missing.
    pub fn find(get: &Find<'_, W>, name: &str) -> Result<Linear<W>> {
        Linear::with(get, name, true)
    }

    /// The map `name.weight`, with `name.bias` where `bias` is set.
    ///
    /// # Errors
    /// When a weight is missing.
    pub fn with(get: &Find<'_, W>, name: &str, bias: bool) -> Result<Linear<W>> {
        let bias = bias.then(|| get(&format!("{name}.bias"))).transpose()?;
        Ok(Linear { weight: get(&format!("{name}.weight"))?, bias })
    }
}

/// A norm over the width of a row.
#[derive(Debug, Clone)]
pub struct Norm<W> {
    /// Factors.
    pub weight: W,
    /// Summands: a layer norm. Without, a root mean square norm.
    pub bias: Option<W>,
    /// Added to the variance or the mean square.
    pub eps: f64,
}

impl<W> Norm<W> {
    /// The norm `name.weight`, with `name.bias` where it is a layer norm.
    ///
    /// # Errors
    /// When a weight is missing.
    pub fn find(get: &Find<'_, W>, name: &str, layer_norm: bool, eps: f64) -> Result<Norm<W>> {
        let Linear { weight, bias } = Linear::with(get, name, layer_norm)?;
        Ok(Norm { weight, bias, eps })
    }
}

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// The Gaussian error linear unit, exact.
    Gelu,
    /// `x sigmoid(1.702 x)`.
    QuickGelu,
}

impl Activation {
    /// The function that a configuration names.
    ///
    /// # Errors
    /// A message that lists those supported.
    pub(super) fn of(name: Option<&str>) -> std::result::Result<Activation, String> {
        match name {
            Some("gelu") => Ok(Activation::Gelu),
            Some("quick_gelu") => Ok(Activation::QuickGelu),
            other => Err(format!("activation {other:?} is not supported, only `gelu` and `quick_gelu`")),
        }
    }

    /// The name in a configuration.
    pub(super) fn name(self) -> &'static str {
        match self {
            Activation::Gelu => "gelu",
            Activation::QuickGelu => "quick_gelu",
        }
    }
}

/// A feed-forward layer.
#[derive(Debug, Clone)]
pub enum Mlp<W> {
    /// `down(silu(gate x) * up x)`, gate and up packed.
    Gated(Linear<W>, Linear<W>),
    /// Two maps and what lies between.
    Plain(Linear<W>, Activation, Linear<W>),
}

/// What the blocks of a tower have in common.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockStyle {
    /// Heads of the attention.
    pub heads: HeadShape,
    /// Whether norms have a bias.
    pub layer_norm: bool,
    /// Added to the variance or the mean square in norms.
    pub eps: f64,
    /// The activation between two maps; `None` for a gated feed-forward.
    pub activation: Option<Activation>,
    /// Whether the packed projection has a bias.
    pub qkv_bias: bool,
    /// Whether queries and keys are normed.
    pub qk_norm: bool,
    /// Whether what a block adds is scaled, a factor a column.
    pub layer_scale: bool,
}

/// A block of a tower.
#[derive(Debug, Clone)]
pub struct Block<W> {
    norms: [Norm<W>; 2],
    qkv: Linear<W>,
    qk_norm: Option<(Norm<W>, Norm<W>)>,
    proj: Linear<W>,
    scales: Option<[W; 2]>,
    mlp: Mlp<W>,
    heads: HeadShape,
}

impl<W> Block<W> {
    /// The block of the tower with this number.
    ///
    /// # Errors
    /// When a weight is missing.
    pub fn find(get: &Find<'_, W>, index: usize, style: &BlockStyle) -> Result<Block<W>> {
        let get = |name: &str| get(&format!("visual.blocks.{index}.{name}"));
        let norm = |name: &str| Norm::find(&get, name, style.layer_norm, style.eps);
        let head_norm = |name: &str| Norm::find(&get, name, false, style.eps);
        let mlp = match style.activation {
            None => Mlp::Gated(Linear::find(&get, "mlp.gate_up_proj")?, Linear::find(&get, "mlp.down_proj")?),
            Some(activation) => Mlp::Plain(Linear::find(&get, "mlp.fc1")?, activation, Linear::find(&get, "mlp.fc2")?),
        };
        let qk_norm = match style.qk_norm {
            true => Some((head_norm("attn.q_norm")?, head_norm("attn.k_norm")?)),
            false => None,
        };
        Ok(Block {
            norms: [norm("norm1")?, norm("norm2")?],
            qkv: Linear::with(&get, "attn.qkv", style.qkv_bias)?,
            qk_norm,
            proj: Linear::find(&get, "attn.proj")?,
            scales: if style.layer_scale { Some([get("ls1")?, get("ls2")?]) } else { None },
            mlp,
            heads: style.heads,
        })
    }

    /// The stream behind the block.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward<E: Engine<Weight = W>>(
        &self,
        engine: &E,
        x: E::Rows,
        angles: &E::Angles,
        segments: &Arc<Segments>,
    ) -> Result<E::Rows> {
        let mut qkv = engine.linear(&engine.norm(&x, &self.norms[0])?, &self.qkv)?;
        if let Some(norms) = &self.qk_norm {
            qkv = engine.norm_queries_and_keys(qkv, norms, self.heads)?;
        }
        let seen = engine.attention(qkv, angles, segments, self.heads)?;
        let update = self.scaled(engine, engine.linear(&seen, &self.proj)?, 0)?;
        let x = engine.add(x, &update)?;
        let update = self.feed_forward(engine, &engine.norm(&x, &self.norms[1])?)?;
        engine.add(x, &self.scaled(engine, update, 1)?)
    }

    fn feed_forward<E: Engine<Weight = W>>(&self, engine: &E, x: &E::Rows) -> Result<E::Rows> {
        match &self.mlp {
            Mlp::Gated(gate_up, down) => engine.linear(&engine.swiglu(&engine.linear(x, gate_up)?)?, down),
            Mlp::Plain(first, activation, second) => {
                engine.linear(&engine.activate(engine.linear(x, first)?, *activation)?, second)
            }
        }
    }

    fn scaled<E: Engine<Weight = W>>(&self, engine: &E, update: E::Rows, which: usize) -> Result<E::Rows> {
        match &self.scales {
            Some(scales) => engine.scale(update, &scales[which]),
            None => Ok(update),
        }
    }
}

/// The rows of pictures' tiles in front of the first block.
pub(super) struct TileRows<R> {
    /// A class row and the patches' rows, tile after tile, positions added.
    pub(super) rows: R,
    /// Number of tiles.
    pub(super) count: usize,
}

/// Embeds the tiles of pictures: patches of `side` by `side`, a class row in front of each tile, a position added to each row.
///
/// # Errors
/// When there is no picture or its tiles have another size.
pub(super) fn embed_tiles<E: Engine>(
    engine: &E,
    images: &[&Patches],
    side: usize,
    width: usize,
    [class, positions]: [&E::Weight; 2],
    patch: &Linear<E::Weight>,
) -> Result<TileRows<E::Rows>> {
    if let Some(odd) = images.iter().find(|image| image.grid[1..] != [side, side]) {
        let message = format!("a picture has tiles of {:?} patches, the model takes {side} x {side}", &odd.grid[1..]);
        return Err(ModelError::Prompt(message));
    }
    let count: usize = images.iter().map(|image| image.grid[0]).sum();
    if count == 0 {
        return Err(ModelError::Prompt("there is no picture to encode".into()));
    }
    let pixels: Vec<&Tensor> = images.iter().map(|image| &image.pixels).collect();
    let patches = engine.linear(&engine.pixels(&pixels, None)?, patch)?;
    let (own, behind) = ((side * side) as u32, (count * side * side) as u32);
    let rows = (0..count as u32).flat_map(|tile| std::iter::once(behind).chain(tile * own..(tile + 1) * own));
    let rows = engine.pick(&[&patches, &engine.table(class, width)?], rows.collect())?;
    let places = (0..count).flat_map(|_| 0..=own).collect();
    let positions = engine.pick(&[&engine.table(positions, width)?], places)?;
    Ok(TileRows { rows: engine.add(rows, &positions)?, count })
}

/// The rows of so many tiles that are patches.
pub(super) fn without_class(tiles: usize, side: usize) -> Vec<u32> {
    let rows = (1 + side * side) as u32;
    (0..tiles as u32).flat_map(|tile| tile * rows + 1..(tile + 1) * rows).collect()
}
