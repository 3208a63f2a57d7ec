//! Log-probabilities of given tokens: the rows that predict them, the head and a log-softmax, a chunk of tokens at a time.
//!
//! Logits of all tokens would be the largest tensor of a training (tokens x vocabulary); here a chunk of them lives at a time,
//! in the forward pass and again in the backward pass.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::{LANES, Matrix, View, join, made, new_product, product, slice};
use crate::kernel::lanes::wide;
use crate::kernel::rows::exp;

/// Logits alive at a time.
const ALIVE: usize = 1 << 22;

/// The log-probability of `targets[i]` at hidden row `rows[i]`.
pub(crate) struct TokenLogProbs {
    pub(crate) rows: Vec<u32>,
    pub(crate) targets: Vec<u32>,
}

impl TokenLogProbs {
    /// Tokens of a chunk: fixed by the vocabulary alone.
    fn chunk(vocabulary: usize) -> usize {
        (ALIVE / vocabulary).clamp(16, 4096)
    }

    fn gather(&self, hidden: &[f32], width: usize, from: usize, count: usize) -> Vec<f32> {
        let mut picked = Vec::with_capacity(count * width);
        for &row in &self.rows[from..from + count] {
            picked.extend_from_slice(&hidden[row as usize * width..][..width]);
        }
        picked
    }

    fn check(&self, rows: usize, vocabulary: usize) -> Result<()> {
        if self.rows.len() != self.targets.len() {
            bail!("token-logprobs: {} rows but {} targets", self.rows.len(), self.targets.len());
        }
        if let Some(row) = self.rows.iter().find(|&&row| row as usize >= rows) {
            bail!("token-logprobs: row {row} of a batch of {rows}");
        }
        if let Some(target) = self.targets.iter().find(|&&target| target as usize >= vocabulary) {
            bail!("token-logprobs: token {target} of a vocabulary of {vocabulary}");
        }
        Ok(())
    }
}

impl CustomOp2 for TokenLogProbs {
    fn name(&self) -> &'static str {
        "token-logprobs"
    }

    fn cpu_fwd(&self, h: &CpuStorage, hl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((rows, width), (vocabulary, inner)) = (hl.shape().dims2()?, wl.shape().dims2()?);
        if width != inner {
            bail!("token-logprobs: rows of {width} values with a head of {vocabulary} x {inner}");
        }
        self.check(rows, vocabulary)?;
        let (hidden, head) = (slice(h, hl)?, slice(w, wl)?);
        let chunk = TokenLogProbs::chunk(vocabulary);
        let mut out = vec![0.0; self.rows.len()];
        for (index, out) in out.chunks_mut(chunk).enumerate() {
            let picked = self.gather(hidden, width, index * chunk, out.len());
            let logits = new_product(Matrix::new(&picked, width), Matrix::new(head, width).t());
            log_probabilities(&logits, &self.targets[index * chunk..], out);
        }
        let count = out.len();
        Ok(made(out, count))
    }

    fn bwd(&self, h: &Tensor, w: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let (hidden, head, gradient) = (View::of(h)?, View::of(w)?, View::of(&g)?);
        let (vocabulary, width) = w.dims2()?;
        let mut dh = h.track_op().then(|| vec![0.0; hidden.len()]);
        let mut dw = w.track_op().then(|| vec![0.0; head.len()]);
        let chunk = TokenLogProbs::chunk(vocabulary);
        for (index, gradient) in gradient.chunks(chunk).enumerate() {
            let from = index * chunk;
            let picked = self.gather(&hidden, width, from, gradient.len());
            let mut logits = new_product(Matrix::new(&picked, width), Matrix::new(&head, width).t());
            pull_back(&mut logits, &self.targets[from..], gradient);
            let pulled = Matrix::new(&logits, vocabulary);
            if let Some(dw) = &mut dw {
                product(dw, true, pulled.t(), Matrix::new(&picked, width));
            }
            if let Some(dh) = &mut dh {
                let rows = new_product(pulled, Matrix::new(&head, width));
                scatter(dh, &rows, &self.rows[from..], width);
            }
        }
        let back = |values: Option<Vec<f32>>, like: &Tensor| {
            values.map(|values| Tensor::from_vec(values, like.shape(), like.device())).transpose()
        };
        Ok((back(dh, h)?, back(dw, w)?))
    }
}

/// Adds row i of `rows` to row `places[i]`; several may meet in one place.
fn scatter(to: &mut [f32], rows: &[f32], places: &[u32], width: usize) {
    for (row, &place) in rows.chunks_exact(width).zip(places) {
        let to = &mut to[place as usize * width..][..width];
        to.iter_mut().zip(row).for_each(|(to, value)| *to += value);
    }
}

/// The largest of some values.
#[inline(always)]
pub(super) fn top(values: &[f32]) -> f32 {
    let mut parts = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (part, value) in parts.iter_mut().zip(chunk) {
            *part = if *value > *part { *value } else { *part };
        }
    }
    for (part, value) in parts.iter_mut().zip(rest) {
        *part = if *value > *part { *value } else { *part };
    }
    join(parts, f32::max)
}

/// Turns values into `exp(value - top)` and returns their sum.
#[inline(always)]
pub(super) fn exponentials(values: &mut [f32], top: f32) -> f32 {
    let mut parts = [0.0f32; LANES];
    let mut chunks = values.chunks_exact_mut(LANES);
    for chunk in chunks.by_ref() {
        for (part, value) in parts.iter_mut().zip(chunk) {
            *value = exp(*value - top);
            *part += *value;
        }
    }
    for (part, value) in parts.iter_mut().zip(chunks.into_remainder()) {
        *value = exp(*value - top);
        *part += *value;
    }
    join(parts, |a, b| a + b)
}

wide! {
    fn log_probabilities(logits: &[f32], targets: &[u32], out: &mut [f32]) {
        let vocabulary = logits.len() / out.len();
        for ((row, target), out) in logits.chunks_exact(vocabulary).zip(targets).zip(out.iter_mut()) {
            let top = top(row);
            let mut parts = [0.0f32; LANES];
            for chunk in row.chunks(LANES) {
                for (part, value) in parts.iter_mut().zip(chunk) {
                    *part += exp(*value - top);
                }
            }
            *out = row[*target as usize] - top - join(parts, |a, b| a + b).ln();
        }
    }
}

wide! {
    /// Turns logits into the gradient of the logits, `g (1[target] - p)`.
    fn pull_back(logits: &mut [f32], targets: &[u32], gradient: &[f32]) {
        let vocabulary = logits.len() / gradient.len();
        for ((row, target), g) in logits.chunks_exact_mut(vocabulary).zip(targets).zip(gradient) {
            let top = top(row);
            let scale = -g / exponentials(row, top);
            for value in row.iter_mut() {
                *value *= scale;
            }
            row[*target as usize] += g;
        }
    }
}
