//! Log-probabilities of given tokens, through which gradients flow.

use candle_core::{DType, Tensor};

use crate::error::Result;
use crate::ops::token_logprobs;

/// Log-probability, in f32, of `targets[i]` predicted by hidden row `rows[i]`: `hidden` `[n, d]`, `head` `[V, d]` to `[rows.len()]`.
///
/// # Errors
/// When the shapes do not fit, an index is out of range, or there is no token.
pub fn logprobs(hidden: &Tensor, head: &Tensor, rows: &[u32], targets: &[u32]) -> Result<Tensor> {
    Ok(token_logprobs(hidden, head, rows, targets)?.to_dtype(DType::F32)?)
}

/// The sum of `coefficients[i]` times the log-probability of `targets[i]` at `rows[i]`, and nothing else: every loss that is
/// linear in log-probabilities.
///
/// # Errors
/// As [`logprobs`].
pub fn weighted(hidden: &Tensor, head: &Tensor, rows: &[u32], targets: &[u32], coefficients: &[f32]) -> Result<Tensor> {
    let coefficients = Tensor::new(coefficients, hidden.device())?;
    Ok((logprobs(hidden, head, rows, targets)? * coefficients)?.sum_all()?)
}
