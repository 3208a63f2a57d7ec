//! A linear map: product and bias in one pass, and only the gradients that somebody wants.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{Matrix, View, add_all, made, new_product, product, slice};

/// Rows of one unit of work of the bias's gradient.
const BLOCK: usize = 256;

/// `x W^T`.
pub(crate) struct Linear;

/// `x W^T + b`.
pub(crate) struct LinearBias;

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, out) = check(xl, wl)?;
        let width = wl.dims()[1];
        let y = new_product(Matrix::new(slice(x, xl)?, width), Matrix::new(slice(w, wl)?, width).t());
        Ok(made(y, (rows, out)))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        gradients(x, w, &g.contiguous()?)
    }
}

impl CustomOp3 for LinearBias {
    fn name(&self) -> &'static str {
        "linear-bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, out) = check(xl, wl)?;
        let bias = slice(b, bl)?;
        if bias.len() != out {
            bail!("linear: a bias of {} values for {out} outputs", bias.len());
        }
        let mut y = Vec::with_capacity(rows * out);
        (0..rows).for_each(|_| y.extend_from_slice(bias));
        let width = wl.dims()[1];
        product(&mut y, true, Matrix::new(slice(x, xl)?, width), Matrix::new(slice(w, wl)?, width).t());
        Ok(made(y, (rows, out)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let (dx, dw) = gradients(x, w, &g)?;
        Ok((dx, dw, b.track_op().then(|| column_sums(&g)).transpose()?))
    }
}

/// Rows and outputs of a product that fits.
fn check(x: &Layout, w: &Layout) -> Result<(usize, usize)> {
    let ((rows, width), (out, inner)) = (x.shape().dims2()?, w.shape().dims2()?);
    if width != inner || width == 0 || out == 0 {
        bail!("linear: rows of {width} values with a weight of {out} x {inner}");
    }
    Ok((rows, out))
}

fn gradients(x: &Tensor, w: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let (values, weight, gradient) = (View::of(x)?, View::of(w)?, View::of(g)?);
    let (out, width) = w.dims2()?;
    let gradient = Matrix::new(&gradient, out);
    let product_of = |wanted: bool, a: Matrix<'_>, b: Matrix<'_>, like: &Tensor| -> Result<Option<Tensor>> {
        let made = || Tensor::from_vec(new_product(a, b), like.shape(), like.device());
        wanted.then(made).transpose()
    };
    let dx = product_of(x.track_op(), gradient, Matrix::new(&weight, width), x)?;
    let dw = product_of(w.track_op(), gradient.t(), Matrix::new(&values, width), w)?;
    Ok((dx, dw))
}

fn column_sums(g: &Tensor) -> Result<Tensor> {
    let values = View::of(g)?;
    let width = g.dims2()?.1;
    let sum = |rows: &[f32]| {
        let mut sum = vec![0.0; width];
        for row in rows.chunks_exact(width) {
            sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        sum
    };
    let parts = values.par_chunks(BLOCK * width).map(sum).collect();
    Tensor::from_vec(add_all(parts, width), width, g.device())
}
