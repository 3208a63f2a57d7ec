//! Attention on the raw packed projection: rope, scores, softmax and values without a transpose, a repeated head or a mask tensor.
//!
//! Segments that share rows (a prompt and the completions behind it) form a family. A family and a key head are one unit of
//! work: it turns its keys once, then takes a segment's rows in blocks of [`BLOCK`], all query heads of the key head together:
//!
//! | | forward | backward |
//! |---|---|---|
//! | scores | `S = Q K^T`, `P = softmax(S)` | again |
//! | values | `O = P V` | `dV += P^T dO`, `dP = dO V^T` |
//! | softmax | | `dS = P (dP - rowsum(dO O))` |
//! | queries, keys | | `dQ = dS K`, `dK += dS^T Q`, then turned back |
//!
//! A causal block multiplies with no key behind its last row, so at most a triangle of `BLOCK` rows is computed in vain.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::logprob::{exponentials, top};
use super::{Matrix, View, dot, made, new_product, product, slice};
use crate::kernel::lanes::wide;
use crate::ops::{HeadShape, Segment, Segments};

/// Rows of a block.
const BLOCK: usize = 64;

/// Attention with its angles, which get no gradient.
pub(crate) struct Attention {
    pub(crate) cos: Tensor,
    pub(crate) sin: Tensor,
    pub(crate) segments: Arc<Segments>,
    pub(crate) shape: HeadShape,
    /// Latest rows that a row of a causal segment sees; all without one.
    pub(crate) window: Option<usize>,
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "packed-attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let rows = self.check(layout)?;
        let (cos, sin) = (View::of(&self.cos)?, View::of(&self.sin)?);
        let input = Input { qkv: slice(qkv, layout)?, cos: &cos, sin: &sin, shape: self.shape, window: self.window };
        let width = self.shape.out_width();
        let mut out = vec![0.0; rows * width];
        self.each_family(&mut out, width, |family, out| {
            let parts = (0..self.shape.kv_heads).into_par_iter().map(|head| Unit::new(input, family, head).forward());
            for (head, part) in parts.collect::<Vec<_>>().iter().enumerate() {
                interleave(out, part, width, head * self.shape.group(), self.shape);
            }
        });
        Ok(made(out, (rows, width)))
    }

    fn bwd(&self, qkv: &Tensor, out: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let g = g.contiguous()?;
        let (cos, sin) = (View::of(&self.cos)?, View::of(&self.sin)?);
        let (values, out, gradient) = (View::of(qkv)?, View::of(out)?, View::of(&g)?);
        let input = Input { qkv: &values, cos: &cos, sin: &sin, shape: self.shape, window: self.window };
        let (out, gradient): (&[f32], &[f32]) = (&out, &gradient);
        let mut dqkv = vec![0.0; values.len()];
        self.each_family(&mut dqkv, self.shape.qkv_width(), |family, dqkv| {
            let work = |head| Unit::new(input, family, head).backward(out, gradient);
            let parts: Vec<Gradients> = (0..self.shape.kv_heads).into_par_iter().map(work).collect();
            for (head, part) in parts.iter().enumerate() {
                part.write(dqkv, input, family.rows.start, head);
            }
        });
        Ok(Some(Tensor::from_vec(dqkv, qkv.shape(), qkv.device())?))
    }
}

impl Attention {
    fn check(&self, qkv: &Layout) -> Result<usize> {
        let (rows, width) = qkv.shape().dims2()?;
        let shape = self.shape;
        if shape.kv_heads == 0
            || !shape.heads.is_multiple_of(shape.kv_heads)
            || !shape.head_dim.is_multiple_of(2)
            || width != shape.qkv_width()
        {
            bail!("attention: rows of {width} values do not divide into {shape:?}");
        }
        if rows != self.segments.rows() {
            bail!("attention: {rows} rows, but the segments own {}", self.segments.rows());
        }
        for angles in [&self.cos, &self.sin] {
            if angles.dims() != [rows, shape.head_dim] {
                bail!("attention: angles of shape {:?} for {rows} rows of {}", angles.dims(), shape.head_dim);
            }
        }
        Ok(rows)
    }

    /// Calls `work` with every family and its rows of `out`.
    fn each_family(&self, out: &mut [f32], width: usize, work: impl Fn(&Family<'_>, &mut [f32]) + Sync) {
        let mut rest = out;
        let mut units = Vec::new();
        for family in families(&self.segments) {
            let (own, behind) = rest.split_at_mut(family.rows.len() * width);
            units.push((family, own));
            rest = behind;
        }
        units.into_par_iter().for_each(|(family, out)| work(&family, out));
    }
}

/// Consecutive segments that see no row of others.
struct Family<'a> {
    rows: Range<usize>,
    segments: Vec<&'a Segment>,
}

fn families(segments: &Segments) -> Vec<Family<'_>> {
    let mut families: Vec<Family<'_>> = Vec::new();
    let mut reach = usize::MAX;
    for segment in segments.iter().rev() {
        let first = if segment.prefix.is_empty() { segment.own.start } else { segment.prefix.start };
        match families.last_mut() {
            Some(family) if reach < family.rows.start => {
                family.rows.start = segment.own.start;
                family.segments.push(segment);
                reach = reach.min(first);
            }
            _ => {
                families.push(Family { rows: segment.own.clone(), segments: vec![segment] });
                reach = first;
            }
        }
    }
    families.iter_mut().for_each(|family| family.segments.reverse());
    families.reverse();
    families
}

/// What all units read.
#[derive(Clone, Copy)]
struct Input<'a> {
    qkv: &'a [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    shape: HeadShape,
    window: Option<usize>,
}

impl Input<'_> {
    /// Rows of one head (counted over queries, keys and values), turned and scaled.
    fn turned(&self, rows: Range<usize>, head: usize, scale: f32, out: &mut Vec<f32>) {
        let start = out.len();
        out.resize(start + rows.len() * self.shape.head_dim, 0.0);
        let width = self.shape.head_dim;
        let (cos, sin) = (&self.cos[rows.start * width..], &self.sin[rows.start * width..]);
        let stride = self.shape.qkv_width();
        turn(&self.qkv[rows.start * stride + head * width..], stride, cos, sin, scale, &mut out[start..], width);
    }

    fn plain(&self, rows: Range<usize>, head: usize) -> Vec<f32> {
        let (width, stride) = (self.shape.head_dim, self.shape.qkv_width());
        let mut values = Vec::with_capacity(rows.len() * width);
        for row in rows {
            values.extend_from_slice(&self.qkv[row * stride + head * width..][..width]);
        }
        values
    }

    fn scale(&self) -> f32 {
        1.0 / (self.shape.head_dim as f32).sqrt()
    }
}

/// One family and one key head.
struct Unit<'a> {
    input: Input<'a>,
    family: &'a Family<'a>,
    head: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Rows of a segment that are computed together, with the keys and values that the last of them sees.
struct Block<'a> {
    rows: Range<usize>,
    keys: &'a [f32],
    values: &'a [f32],
    /// Keys that the first row sees, and whether each further row sees one more.
    seen: usize,
    causal: bool,
}

/// Gradients of a unit: of the scaled, turned queries `[group, rows, d]`, of turned keys and of values `[rows, d]`.
struct Gradients {
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl<'a> Unit<'a> {
    fn new(input: Input<'a>, family: &'a Family<'a>, head: usize) -> Unit<'a> {
        let HeadShape { heads, kv_heads, .. } = input.shape;
        let mut keys = Vec::new();
        input.turned(family.rows.clone(), heads + head, 1.0, &mut keys);
        let values = input.plain(family.rows.clone(), heads + kv_heads + head);
        Unit { input, family, head, keys, values }
    }

    /// Output rows `[group, rows, d]`.
    fn forward(&self) -> Vec<f32> {
        let (group, width) = (self.input.shape.group(), self.input.shape.head_dim);
        let mut out = vec![0.0; group * self.family.rows.len() * width];
        let mut scratch = Scratch::default();
        for segment in &self.family.segments {
            let (keys, values) = (self.seen(&self.keys, segment), self.seen(&self.values, segment));
            for block in blocks(segment, &keys, &values, width) {
                let weights = scratch.weights(self, &block);
                let rows = new_product(weights, Matrix::new(block.values, width));
                self.place(&mut out, &rows, &block);
            }
        }
        out
    }

    /// Gradients, from the output and its gradient `[rows, heads * d]`.
    fn backward(&self, out: &[f32], gradient: &[f32]) -> Gradients {
        let (group, width) = (self.input.shape.group(), self.input.shape.head_dim);
        let mut total = Gradients {
            queries: vec![0.0; group * self.keys.len()],
            keys: vec![0.0; self.keys.len()],
            values: vec![0.0; self.values.len()],
        };
        let mut scratch = Scratch::default();
        for segment in &self.family.segments {
            let (keys, values) = (self.seen(&self.keys, segment), self.seen(&self.values, segment));
            let (mut dk, mut dv) = (vec![0.0; keys.len()], vec![0.0; values.len()]);
            for block in blocks(segment, &keys, &values, width) {
                let (out, gradient) = (self.columns(out, &block), self.columns(gradient, &block));
                let pulled = Matrix::new(&gradient, width);
                let seen = block.keys.len();
                let count = scratch.weights(self, &block).columns;
                product(&mut dv[..seen], true, Matrix::new(&scratch.scores, count).t(), pulled);
                scratch.pull_back(pulled, &block, &out);
                let scores = Matrix::new(&scratch.pulled, count);
                let dq = new_product(scores, Matrix::new(block.keys, width));
                product(&mut dk[..seen], true, scores.t(), Matrix::new(&scratch.queries, width));
                self.place(&mut total.queries, &dq, &block);
            }
            self.give(&mut total.keys, &dk, segment);
            self.give(&mut total.values, &dv, segment);
        }
        total
    }

    /// What a segment sees of the family's keys or values: its prefix's rows, then its own.
    fn seen<'s>(&self, all: &'s [f32], segment: &Segment) -> Cow<'s, [f32]> {
        let [prefix, own] = self.parts(segment);
        if prefix.is_empty() {
            Cow::Borrowed(&all[own])
        } else if prefix.end == own.start {
            Cow::Borrowed(&all[prefix.start..own.end])
        } else {
            Cow::Owned([&all[prefix], &all[own]].concat())
        }
    }

    /// Adds the gradients of what a segment sees to where it lies.
    fn give(&self, all: &mut [f32], values: &[f32], segment: &Segment) {
        let mut rest = values;
        for range in self.parts(segment) {
            let (now, later) = rest.split_at(range.len());
            all[range].iter_mut().zip(now).for_each(|(sum, value)| *sum += value);
            rest = later;
        }
    }

    fn parts(&self, segment: &Segment) -> [Range<usize>; 2] {
        let (start, width) = (self.family.rows.start, self.input.shape.head_dim);
        [&segment.prefix, &segment.own].map(|rows| match rows.is_empty() {
            true => 0..0,
            false => (rows.start - start) * width..(rows.end - start) * width,
        })
    }

    /// Writes rows `[group, block, d]` into `[group, family, d]`.
    fn place(&self, all: &mut [f32], rows: &[f32], block: &Block<'_>) {
        let (width, family) = (self.input.shape.head_dim, self.family.rows.len());
        let size = block.rows.len() * width;
        for (index, rows) in rows.chunks_exact(size).enumerate() {
            let start = (index * family + block.rows.start - self.family.rows.start) * width;
            all[start..start + size].copy_from_slice(rows);
        }
    }

    /// The unit's columns of output rows, `[group, block, d]`.
    fn columns(&self, out: &[f32], block: &Block<'_>) -> Vec<f32> {
        let HeadShape { head_dim, .. } = self.input.shape;
        let (group, stride) = (self.input.shape.group(), self.input.shape.out_width());
        let mut columns = Vec::with_capacity(group * block.rows.len() * head_dim);
        for head in self.head * group..(self.head + 1) * group {
            for row in block.rows.clone() {
                columns.extend_from_slice(&out[row * stride + head * head_dim..][..head_dim]);
            }
        }
        columns
    }
}

/// Blocks of a segment over what it sees.
fn blocks<'a>(
    segment: &'a Segment,
    keys: &'a [f32],
    values: &'a [f32],
    width: usize,
) -> impl Iterator<Item = Block<'a>> {
    let prefix = segment.prefix.len();
    segment.own.clone().step_by(BLOCK).map(move |first| {
        let rows = first..(first + BLOCK).min(segment.own.end);
        let before = prefix + rows.start - segment.own.start;
        let count = if segment.causal { before + rows.len() } else { keys.len() / width };
        let seen = if segment.causal { before + 1 } else { count };
        let reach = ..count * width;
        Block { rows, keys: &keys[reach], values: &values[reach], seen, causal: segment.causal }
    })
}

/// Buffers of a unit.
#[derive(Default)]
struct Scratch {
    queries: Vec<f32>,
    scores: Vec<f32>,
    pulled: Vec<f32>,
}

impl Scratch {
    /// The softmax weights of a block, `[group * rows, keys]`.
    fn weights(&mut self, unit: &Unit<'_>, block: &Block<'_>) -> Matrix<'_> {
        let (group, width) = (unit.input.shape.group(), unit.input.shape.head_dim);
        self.queries.clear();
        for head in unit.head * group..(unit.head + 1) * group {
            unit.input.turned(block.rows.clone(), head, unit.input.scale(), &mut self.queries);
        }
        let count = block.keys.len() / width;
        self.scores.resize(group * block.rows.len() * count, 0.0);
        let keys = Matrix::new(block.keys, width).t();
        product(&mut self.scores, false, Matrix::new(&self.queries, width), keys);
        softmax(&mut self.scores, count, block, unit.input.window);
        Matrix::new(&self.scores, count)
    }

    /// The gradient of the scores whose weights were computed last, into `pulled`.
    fn pull_back(&mut self, gradient: Matrix<'_>, block: &Block<'_>, out: &[f32]) {
        self.pulled.resize(self.scores.len(), 0.0);
        product(&mut self.pulled, false, gradient, Matrix::new(block.values, gradient.columns).t());
        pull_softmax(&mut self.pulled, &self.scores, out, gradient.data, gradient.columns);
    }
}

impl Gradients {
    /// Turns queries and keys back and writes everything to the family's rows of `dqkv`.
    fn write(&self, dqkv: &mut [f32], input: Input<'_>, start: usize, head: usize) {
        let HeadShape { heads, kv_heads, head_dim: width } = input.shape;
        let stride = input.shape.qkv_width();
        let (cos, sin) = (&input.cos[start * width..], &input.sin[start * width..]);
        for (index, queries) in self.queries.chunks_exact(self.keys.len()).enumerate() {
            let column = (head * input.shape.group() + index) * width;
            turn_back(queries, cos, sin, input.scale(), stride, &mut dqkv[column..], width);
        }
        turn_back(&self.keys, cos, sin, 1.0, stride, &mut dqkv[(heads + head) * width..], width);
        let column = (heads + kv_heads + head) * width;
        for (row, values) in self.values.chunks_exact(width).enumerate() {
            dqkv[row * stride + column..][..width].copy_from_slice(values);
        }
    }
}

/// Writes a unit's `[group, rows, d]` into its columns of `[rows, heads * d]`, from query head `first` on.
fn interleave(out: &mut [f32], part: &[f32], stride: usize, first: usize, shape: HeadShape) {
    let width = shape.head_dim;
    let rows = out.len() / stride;
    for (index, values) in part.chunks_exact(rows * width).enumerate() {
        for (row, values) in values.chunks_exact(width).enumerate() {
            out[row * stride + (first + index) * width..][..width].copy_from_slice(values);
        }
    }
}

wide! {
    /// Turns a head's rows, `stride` apart in `x`, in the rotate-half form.
    fn turn(x: &[f32], stride: usize, cos: &[f32], sin: &[f32], scale: f32, out: &mut [f32], width: usize) {
        let half = width / 2;
        let angles = cos.chunks_exact(width).zip(sin.chunks_exact(width));
        for ((x, out), (cos, sin)) in x.chunks(stride).zip(out.chunks_exact_mut(width)).zip(angles) {
            let ((a, b), (low, high)) = (x[..width].split_at(half), out.split_at_mut(half));
            let ((cos_a, cos_b), (sin_a, sin_b)) = (cos.split_at(half), sin.split_at(half));
            for i in 0..half {
                low[i] = (a[i] * cos_a[i] - b[i] * sin_a[i]) * scale;
                high[i] = (b[i] * cos_b[i] + a[i] * sin_b[i]) * scale;
            }
        }
    }
}

wide! {
    /// The transpose of [`turn`]: gradients of turned rows to gradients of the rows themselves, `stride` apart in `out`.
    fn turn_back(g: &[f32], cos: &[f32], sin: &[f32], scale: f32, stride: usize, out: &mut [f32], width: usize) {
        let half = width / 2;
        let angles = cos.chunks_exact(width).zip(sin.chunks_exact(width));
        for ((g, out), (cos, sin)) in g.chunks_exact(width).zip(out.chunks_mut(stride)).zip(angles) {
            let ((a, b), (low, high)) = (g.split_at(half), out[..width].split_at_mut(half));
            let ((cos_a, cos_b), (sin_a, sin_b)) = (cos.split_at(half), sin.split_at(half));
            for i in 0..half {
                low[i] = (a[i] * cos_a[i] + b[i] * sin_b[i]) * scale;
                high[i] = (b[i] * cos_b[i] - a[i] * sin_a[i]) * scale;
            }
        }
    }
}

wide! {
    /// Turns scores into weights; what a row does not see gets zero.
    fn softmax(scores: &mut [f32], count: usize, block: &Block<'_>, window: Option<usize>) {
        for (index, row) in scores.chunks_exact_mut(count).enumerate() {
            let more = if block.causal { index % block.rows.len() } else { 0 };
            let (seen, hidden) = row.split_at_mut(block.seen + more);
            let left = if block.causal { seen.len().saturating_sub(window.unwrap_or(usize::MAX)) } else { 0 };
            let (past, seen) = seen.split_at_mut(left);
            past.fill(0.0);
            let highest = top(seen);
            let scale = 1.0 / exponentials(seen, highest);
            for value in seen.iter_mut() {
                *value *= scale;
            }
            hidden.fill(0.0);
        }
    }
}

wide! {
    /// `dS = P (dP - rowsum(dO O))` in place of `dP`.
    fn pull_softmax(pulled: &mut [f32], weights: &[f32], out: &[f32], gradient: &[f32], width: usize) {
        let count = weights.len() / (out.len() / width);
        let rows = out.chunks_exact(width).zip(gradient.chunks_exact(width));
        let lines = pulled.chunks_exact_mut(count).zip(weights.chunks_exact(count));
        for ((pulled, weights), (out, gradient)) in lines.zip(rows) {
            let mean = dot(out, gradient);
            for (pulled, weight) in pulled.iter_mut().zip(weights) {
                *pulled = weight * (*pulled - mean);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_and_its_completions_are_one_family() {
        let segment = |own: Range<usize>, prefix: Range<usize>| Segment { own, prefix, causal: true };
        let list = vec![
            segment(0..4, 0..0),
            segment(4..6, 0..4),
            segment(6..9, 0..4),
            segment(9..10, 0..0),
            segment(10..14, 0..0),
            segment(14..15, 10..12),
        ];
        let segments = Segments::new(list).unwrap();
        let rows: Vec<_> = families(&segments).into_iter().map(|family| (family.rows, family.segments.len())).collect();
        assert_eq!(rows, [(0..9, 3), (9..10, 1), (10..15, 2)]);
    }
}
