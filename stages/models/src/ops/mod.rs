//! Differentiable operations on packed rows, the only ones that an architecture here needs beside embedding look-ups.
//!
//! A batch is never padded: all sequences lie one after another on one row axis `[n, d]`, and [`Segments`] says which rows
//! see which.

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
    reference::rms_norm(x, weight, eps)
}

/// `x` `[n, in]` times the transpose of `weight` `[out, in]`, plus `bias` `[out]`.
///
/// A weight that is no variable (a frozen one, read as a plain tensor) gets no gradient and costs no memory for one.
///
/// # Errors
/// When the shapes do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    reference::linear(x, weight, bias)
}

/// `silu(gate) * up` of a packed `[n, 2h]`, gate in the first half, to `[n, h]`.
///
/// # Errors
/// When the width is odd.
pub fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
    reference::swiglu(gate_up)
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
    reference::attention(qkv, cos, sin, segments, shape)
}

/// Log-probability of `targets[i]` at hidden row `rows[i]`, without gradient: `hidden` `[n, d]`, `head` `[V, d]` to `[rows.len()]`.
///
/// # Errors
/// When the shapes do not fit or an index is out of range.
pub fn token_logprobs(hidden: &Tensor, head: &Tensor, rows: &[u32], targets: &[u32]) -> Result<Tensor> {
    reference::token_logprobs(&hidden.detach(), &head.detach(), rows, targets)
}
