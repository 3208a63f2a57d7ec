//! The gate of a feed-forward layer (SwiGLU: Shazeer 2020, arXiv 2002.05202).

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{View, made, slice};
use crate::kernel::lanes::wide;
use crate::kernel::rows::exp;

/// Rows of one unit of work.
const BLOCK: usize = 64;

/// `silu(gate) * up` of packed rows, gate first.
pub(crate) struct SwiGlu;

impl CustomOp1 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, double) = layout.shape().dims2()?;
        if double == 0 || !double.is_multiple_of(2) {
            bail!("swiglu: rows of {double} values hold no gate and gated half");
        }
        let mut out = vec![0.0; rows * double / 2];
        let blocks = out.par_chunks_mut(BLOCK * double / 2).zip(slice(x, layout)?.par_chunks(BLOCK * double));
        blocks.for_each(|(out, x)| forward(x, double / 2, out));
        Ok(made(out, (rows, double / 2)))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let (_, double) = x.dims2()?;
        let g = g.contiguous()?;
        let (values, gradient) = (View::of(x)?, View::of(&g)?);
        let mut dx = vec![0.0; values.len()];
        let inputs = values.par_chunks(BLOCK * double).zip(gradient.par_chunks(BLOCK * double / 2));
        dx.par_chunks_mut(BLOCK * double).zip(inputs).for_each(|(dx, (x, g))| backward(x, g, double / 2, dx));
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

wide! {
    fn forward(x: &[f32], width: usize, out: &mut [f32]) {
        for (row, out) in x.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
            let (gate, up) = row.split_at(width);
            for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                *out = gate / (1.0 + exp(-gate)) * up;
            }
        }
    }
}

wide! {
    fn backward(x: &[f32], gradient: &[f32], width: usize, dx: &mut [f32]) {
        let rows = x.chunks_exact(2 * width).zip(gradient.chunks_exact(width));
        for ((row, g), dx) in rows.zip(dx.chunks_exact_mut(2 * width)) {
            let (gate, up) = row.split_at(width);
            let (dgate, dup) = dx.split_at_mut(width);
            for ((((dgate, dup), gate), up), g) in dgate.iter_mut().zip(dup).zip(gate).zip(up).zip(g) {
                let sigmoid = 1.0 / (1.0 + exp(-gate));
                *dup = g * gate * sigmoid;
                *dgate = g * up * sigmoid * (1.0 + gate * (1.0 - sigmoid));
            }
        }
    }
}
