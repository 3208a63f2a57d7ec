//! Differentiable operations on packed rows, the only ones that an architecture here needs beside embedding look-ups.
//!
//! A batch is never padded: all sequences lie one after another on one row axis `[n, d]`, and [`Segments`] says which rows
//! see which.
//!
//! On the CPU with f32 every op is one fused kernel with its own backward pass (`fused`); elsewhere it is put together from
//! candle's operations ([`reference`](mod@reference)), which the kernels are tested against.

mod fused;
pub mod reference;
pub mod segments;

use std::sync::Arc;

use candle_core::{Result, Tensor};

pub use segments::{HeadShape, Segment, Segments};

/// Root mean square normalisation over the last dimension: `x` `[n, d]`, `weight` `[d]`.
///
/// # Errors
/// When the shapes do not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    match fused::fits(&[x, weight]) {
        true => x.contiguous()?.apply_op2(&weight.contiguous()?, fused::norm::RmsNorm { eps: eps as f32 }),
        false => reference::rms_norm(x, weight, eps),
    }
}

/// Layer normalisation over the last dimension: `x` `[n, d]`, `weight` and `bias` `[d]`.
///
/// # Errors
/// When the shapes do not fit.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    reference::layer_norm(x, weight, bias, eps)
}

/// `x` `[n, in]` times the transpose of `weight` `[out, in]`, plus `bias` `[out]`.
///
/// A weight that is no variable (a frozen one, read as a plain tensor) gets no gradient and costs no memory for one.
///
/// # Errors
/// When the shapes do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if !fused::fits(&[x, weight]) {
        return reference::linear(x, weight, bias);
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    match bias {
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, fused::linear::LinearBias),
        None => x.apply_op2(&weight, fused::linear::Linear),
    }
}

/// `silu(gate) * up` of a packed `[n, 2h]`, gate in the first half, to `[n, h]`.
///
/// # Errors
/// When the width is odd.
pub fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
    match fused::fits(&[gate_up]) {
        true => gate_up.contiguous()?.apply_op1(fused::gate::SwiGlu),
        false => reference::swiglu(gate_up),
    }
}

/// Attention with rotary positions on the raw output of a packed projection.
///
/// `qkv` is `[n, (heads + 2 kv_heads) head_dim]` with queries, keys and values side by side, `cos` and `sin` are
/// `[n, head_dim]`; queries and keys are turned in the rotate-half form, scores scaled by `1 / sqrt(head_dim)`. The result
/// is `[n, heads * head_dim]`. Angles get no gradient.
///
/// # Errors
/// When the shapes do not fit the segments or each other.
pub fn attention(
    qkv: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    segments: &Arc<Segments>,
    shape: HeadShape,
) -> Result<Tensor> {
    windowed_attention(qkv, cos, sin, segments, shape, None)
}

/// [`attention`] under a sliding window: a row of a causal segment sees the last `window` rows of its sequence alone, itself included.
///
/// # Errors
/// When the shapes do not fit the segments or each other.
pub fn windowed_attention(
    qkv: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    segments: &Arc<Segments>,
    shape: HeadShape,
    window: Option<usize>,
) -> Result<Tensor> {
    if !fused::fits(&[qkv, cos, sin]) {
        return reference::attention(qkv, cos, sin, segments, shape, window);
    }
    let (cos, sin) = (cos.detach().contiguous()?, sin.detach().contiguous()?);
    qkv.contiguous()?.apply_op1(fused::attention::Attention { cos, sin, segments: segments.clone(), shape, window })
}

/// Log-probability of `targets[i]` at hidden row `rows[i]`: `hidden` `[n, d]`, `head` `[V, d]` to `[rows.len()]`.
///
/// Differentiable; any loss on single tokens is a function of the result. Logits live a chunk of tokens at a time.
///
/// # Errors
/// When the shapes do not fit, an index is out of range, or there is no token.
pub fn token_logprobs(hidden: &Tensor, head: &Tensor, rows: &[u32], targets: &[u32]) -> Result<Tensor> {
    if rows.is_empty() {
        candle_core::bail!("no token to take the log-probability of");
    }
    if !fused::fits(&[hidden, head]) {
        return reference::token_logprobs(hidden, head, rows, targets);
    }
    let op = fused::logprob::TokenLogProbs { rows: rows.to_vec(), targets: targets.to_vec() };
    hidden.contiguous()?.apply_op2(&head.contiguous()?, op)
}
