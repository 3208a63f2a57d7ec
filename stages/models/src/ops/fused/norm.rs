//! Root mean square normalisation (Zhang and Sennrich 2019, arXiv 1910.07467).

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{View, add_all, dot, made, slice};
use crate::kernel::lanes::wide;

/// Rows of one unit of work.
const BLOCK: usize = 64;

/// `y = x / sqrt(mean(x^2) + eps) * weight`.
pub(crate) struct RmsNorm {
    pub(crate) eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (values, weight, width) = (slice(x, xl)?, slice(w, wl)?, wl.shape().elem_count());
        if xl.dims().last() != Some(&width) {
            bail!("rms-norm: rows of shape {:?} with a weight of {width}", xl.dims());
        }
        let mut out = vec![0.0; values.len()];
        let blocks = out.par_chunks_mut(BLOCK * width).zip(values.par_chunks(BLOCK * width));
        blocks.for_each(|(out, x)| forward(x, weight, self.eps, out));
        Ok(made(out, xl.shape()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let (values, weight, gradient) = (View::of(x)?, View::of(w)?, View::of(&g)?);
        let (values, weight, gradient): (&[f32], &[f32], &[f32]) = (&values, &weight, &gradient);
        let width = weight.len();
        let mut dx = vec![0.0; values.len()];
        let blocks = dx.par_chunks_mut(BLOCK * width).zip(values.par_chunks(BLOCK * width));
        let blocks = blocks.zip(gradient.par_chunks(BLOCK * width)).map(|((dx, x), g)| {
            let mut dw = vec![0.0; width];
            backward(Rows { x, weight, gradient: g, eps: self.eps }, dx, &mut dw);
            dw
        });
        let dw = add_all(blocks.collect(), width);
        let dx = x.track_op().then(|| Tensor::from_vec(dx, x.shape(), x.device())).transpose()?;
        let dw = w.track_op().then(|| Tensor::from_vec(dw, width, x.device())).transpose()?;
        Ok((dx, dw))
    }
}

/// What the backward pass of some rows reads.
struct Rows<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    gradient: &'a [f32],
    eps: f32,
}

wide! {
    fn forward(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let width = weight.len();
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let scale = 1.0 / (dot(x, x) / width as f32 + eps).sqrt();
            for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
                *out = x * scale * w;
            }
        }
    }
}

wide! {
    fn backward(rows: Rows<'_>, dx: &mut [f32], dw: &mut [f32]) {
        let width = rows.weight.len();
        let lines = rows.x.chunks_exact(width).zip(rows.gradient.chunks_exact(width));
        for ((x, g), dx) in lines.zip(dx.chunks_exact_mut(width)) {
            let scale = 1.0 / (dot(x, x) / width as f32 + rows.eps).sqrt();
            for ((dx, g), w) in dx.iter_mut().zip(g).zip(rows.weight) {
                *dx = g * w;
            }
            let pull = dot(dx, x) * scale * scale * scale / width as f32;
            for (((dx, dw), x), g) in dx.iter_mut().zip(dw.iter_mut()).zip(x).zip(g) {
                *dx = *dx * scale - x * pull;
                *dw += g * x * scale;
            }
        }
    }
}
