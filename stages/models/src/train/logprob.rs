//! Log-probabilities of given tokens, through which gradients flow.

use candle_core::{D, Tensor};
use candle_nn::ops::log_softmax;

use crate::error::Result;
use crate::ops::linear;

/// Log-probability of `targets[i]` predicted by hidden row `rows[i]`: `hidden` `[n, d]`, `head` `[V, d]` to `[rows.len()]`.
///
/// # Errors
/// When the shapes do not fit or an index is out of range.
pub fn logprobs(hidden: &Tensor, head: &Tensor, rows: &[u32], targets: &[u32]) -> Result<Tensor> {
    let rows = Tensor::new(rows, hidden.device())?;
    let targets = Tensor::new(targets, hidden.device())?.unsqueeze(1)?;
    let logits = linear(&hidden.index_select(&rows, 0)?, head, None)?;
    Ok(log_softmax(&logits, D::Minus1)?.gather(&targets, 1)?.squeeze(1)?)
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
