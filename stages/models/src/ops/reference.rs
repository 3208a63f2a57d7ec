//! Every op written with candle's own differentiable operations: the oracle that the fused kernels are tested against, and
//! the path for devices and data types that have no kernel of ours.
//!
//! Several of candle's fast functions cut the gradient without an error (`softmax_last_dim`, `rms_norm`, `rope`), so only
//! their slow forms appear here.

use std::collections::BTreeMap;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, D, DType, Layout, Result, Shape, Storage, Tensor, bail};
use candle_nn::ops::{silu, softmax};

use super::segments::{HeadShape, Segment, Segments};

/// Root mean square normalisation over the last dimension, computed in f32: `[n, d]`, weight `[d]`.
///
/// # Errors
/// When the shapes do not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let mean = wide.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = wide.broadcast_div(&(mean + eps)?.sqrt()?)?;
    normed.to_dtype(x.dtype())?.broadcast_mul(weight)
}

/// Layer normalisation over the last dimension, computed in f32: `[n, d]`, weight and bias `[d]`.
///
/// # Errors
/// When the shapes do not fit.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    normed.to_dtype(x.dtype())?.broadcast_mul(weight)?.broadcast_add(bias)
}

/// `x` `[n, in]` times the transpose of `weight` `[out, in]`, plus `bias` `[out]`.
///
/// # Errors
/// When the shapes do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let product = if weight.track_op() || !x.track_op() {
        x.matmul(&weight.t()?)?
    } else {
        x.contiguous()?.apply_op1(FrozenLinear { weight: weight.clone() })?
    };
    match bias {
        Some(bias) => product.broadcast_add(bias),
        None => Ok(product),
    }
}

/// `silu(gate) * up` of a packed `[n, 2h]`, gate in the first half.
///
/// # Errors
/// When the width is odd.
pub fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
    let half = gate_up.dim(D::Minus1)? / 2;
    silu(&gate_up.narrow(D::Minus1, 0, half)?)? * gate_up.narrow(D::Minus1, half, half)?
}

/// Attention over a packed `qkv` `[n, (heads + 2 kv_heads) head_dim]`; see [`super::attention`].
///
/// # Errors
/// When the shapes do not fit.
pub fn attention(
    qkv: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    segments: &Segments,
    shape: HeadShape,
    window: Option<usize>,
) -> Result<Tensor> {
    let HeadShape { heads, kv_heads, head_dim } = shape;
    let rows = qkv.dim(0)?;
    let part = |start: usize, count: usize| -> Result<Tensor> {
        qkv.narrow(1, start * head_dim, count * head_dim)?.reshape((rows, count, head_dim))
    };
    let query = rotate(&part(0, heads)?, cos, sin)?;
    let key = rotate(&part(heads, kv_heads)?, cos, sin)?;
    let value = part(heads + kv_heads, kv_heads)?;
    let seen = match segments.iter().all(|segment| segment.prefix.is_empty()) {
        true => attend_alike([&query, &key, &value], segments, shape, window)?,
        false => {
            let heads = [&query, &key, &value];
            let each = segments.iter().map(|segment| attend(heads, segment, shape, window));
            Tensor::cat(&each.collect::<Result<Vec<_>>>()?, 0)?
        }
    };
    seen.reshape((rows, shape.out_width()))
}

/// Segments that see themselves alone: those of one length together, because a tower has many small windows of few sizes, and each
/// would be a dozen launches in every layer.
fn attend_alike(heads: [&Tensor; 3], segments: &Segments, shape: HeadShape, window: Option<usize>) -> Result<Tensor> {
    let mut alike: BTreeMap<(usize, bool), Vec<&Segment>> = BTreeMap::new();
    for segment in segments {
        alike.entry((segment.own.len(), segment.causal)).or_default().push(segment);
    }
    let mut order = Vec::with_capacity(segments.rows());
    let mut outputs = Vec::with_capacity(alike.len());
    for same in alike.values() {
        let rows: Vec<u32> = same.iter().flat_map(|segment| segment.own.start as u32..segment.own.end as u32).collect();
        let heads = heads.map(|all| picked(all, &rows));
        let [query, key, value] = heads;
        outputs.push(attend_equal([&query?, &key?, &value?], same[0], same.len(), shape, window)?);
        order.extend(rows);
    }
    let mut back = vec![0u32; order.len()];
    order.iter().zip(0u32..).for_each(|(row, at)| back[*row as usize] = at);
    picked(&Tensor::cat(&outputs, 0)?, &back)
}

/// Some rows in an order; all of them as they are where they are asked for so.
fn picked(all: &Tensor, rows: &[u32]) -> Result<Tensor> {
    match rows.len() == all.dim(0)? && rows.iter().zip(0u32..).all(|(row, at)| *row == at) {
        true => Ok(all.clone()),
        false => all.contiguous()?.index_select(&Tensor::new(rows, all.device())?, 0),
    }
}

/// `count` segments as long as `like`, one after another: `[count * n, heads, d]`.
fn attend_equal(
    [query, key, value]: [&Tensor; 3],
    like: &Segment,
    count: usize,
    shape: HeadShape,
    window: Option<usize>,
) -> Result<Tensor> {
    let (n, HeadShape { heads, kv_heads, head_dim }) = (like.own.len(), shape);
    let apart = |x: &Tensor, heads: usize| x.reshape((count, n, heads, head_dim))?.transpose(1, 2)?.contiguous();
    let wide = |x: &Tensor| repeat_heads(&apart(x, kv_heads)?.reshape((count * kv_heads, n, head_dim))?, shape.group());
    let query = apart(query, heads)?.reshape((count * heads, n, head_dim))?;
    let seen = scores_and_values(&query, &wide(key)?, &wide(value)?, like, window)?;
    seen.reshape((count, heads, n, head_dim))?.transpose(1, 2)?.contiguous()?.reshape((count * n, heads, head_dim))
}

/// What queries gather, all `[batch, rows, d]`.
fn scores_and_values(
    query: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    segment: &Segment,
    window: Option<usize>,
) -> Result<Tensor> {
    let scale = 1.0 / (query.dim(2)? as f64).sqrt();
    let scores = (query.matmul(&keys.t()?)? * scale)?.to_dtype(DType::F32)?;
    let scores = match segment.causal {
        true => scores.broadcast_add(&mask(segment, window, query.device())?)?,
        false => scores,
    };
    softmax(&scores, D::Minus1)?.to_dtype(query.dtype())?.matmul(values)
}

/// Rotary position embedding in its rotate-half form: `x` `[n, heads, head_dim]`, angles `[n, head_dim]`.
fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = x.dim(2)? / 2;
    let turned = Tensor::cat(&[x.narrow(2, half, half)?.neg()?, x.narrow(2, 0, half)?], 2)?;
    x.broadcast_mul(&cos.unsqueeze(1)?)? + turned.broadcast_mul(&sin.unsqueeze(1)?)?
}

fn attend(
    [query, key, value]: [&Tensor; 3],
    segment: &Segment,
    shape: HeadShape,
    window: Option<usize>,
) -> Result<Tensor> {
    let own = segment.own.len();
    let query = query.narrow(0, segment.own.start, own)?.transpose(0, 1)?.contiguous()?;
    let seen = |all: &Tensor| -> Result<Tensor> {
        let own_rows = all.narrow(0, segment.own.start, own)?;
        let rows = match segment.prefix.is_empty() {
            true => own_rows,
            false => Tensor::cat(&[all.narrow(0, segment.prefix.start, segment.prefix.len())?, own_rows], 0)?,
        };
        repeat_heads(&rows.transpose(0, 1)?, shape.group())
    };
    scores_and_values(&query, &seen(key)?, &seen(value)?, segment, window)?.transpose(0, 1)?.contiguous()
}

/// `[kv_heads, rows, d]` to `[kv_heads * group, rows, d]`, each head repeated in place.
fn repeat_heads(x: &Tensor, group: usize) -> Result<Tensor> {
    let (heads, rows, width) = x.dims3()?;
    x.unsqueeze(1)?.broadcast_as((heads, group, rows, width))?.contiguous()?.reshape((heads * group, rows, width))
}

/// Zero where a row may look and minus infinity elsewhere: `[own, prefix + own]`.
fn mask(segment: &Segment, window: Option<usize>, device: &candle_core::Device) -> Result<Tensor> {
    let (own, prefix) = (segment.own.len(), segment.prefix.len());
    let values: Vec<f32> = (0..own)
        .flat_map(|row| {
            let seen = (prefix + row + 1).saturating_sub(window.unwrap_or(usize::MAX))..=prefix + row;
            (0..prefix + own).map(move |col| if seen.contains(&col) { 0. } else { f32::NEG_INFINITY })
        })
        .collect();
    Tensor::from_vec(values, (own, prefix + own), device)
}

/// Log-probability of `targets[i]` at hidden row `rows[i]`, differentiable: `hidden` `[n, d]`, `head` `[V, d]` to `[rows.len()]`.
///
/// # Errors
/// When the shapes do not fit or an index is out of range.
pub fn token_logprobs(hidden: &Tensor, head: &Tensor, rows: &[u32], targets: &[u32]) -> Result<Tensor> {
    if rows.len() != targets.len() {
        bail!("{} rows but {} targets", rows.len(), targets.len());
    }
    let device = hidden.device();
    let picked = hidden.index_select(&Tensor::new(rows, device)?, 0)?;
    let logits = linear(&picked, head, None)?.to_dtype(DType::F32)?;
    let logprobs = candle_nn::ops::log_softmax(&logits, D::Minus1)?;
    logprobs.gather(&Tensor::new(targets, device)?.unsqueeze(1)?, 1)?.squeeze(1)
}

/// A product with a weight that is no variable: the backward pass makes no gradient for it, where candle's own matmul would.
struct FrozenLinear {
    weight: Tensor,
}

impl FrozenLinear {
    fn product<S: BackendStorage>(
        &self,
        x: &S,
        layout: &Layout,
        weight: &S,
        weight_layout: &Layout,
    ) -> Result<(S, Shape)> {
        let (n, k) = layout.shape().dims2()?;
        let (m, _) = weight_layout.shape().dims2()?;
        let turned = weight_layout.transpose(0, 1)?;
        Ok((x.matmul(weight, (1, n, m, k), layout, &turned)?, Shape::from((n, m))))
    }
}

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (weight, weight_layout) = self.weight.storage_and_layout();
        match &*weight {
            Storage::Cpu(weight) => self.product(x, layout, weight, weight_layout),
            _ => bail!("frozen-linear: the weight is on another device than its input"),
        }
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (weight, weight_layout) = self.weight.storage_and_layout();
        match &*weight {
            Storage::Cuda(weight) => self.product(x, layout, weight, weight_layout),
            _ => bail!("frozen-linear: the weight is on another device than its input"),
        }
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(gradient.contiguous()?.matmul(&self.weight)?))
    }
}
