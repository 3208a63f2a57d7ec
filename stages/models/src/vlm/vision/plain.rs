//! Towers on plain f32 rows and borrowed weights, by the kernels whose result for a row does not depend on its company.

use std::marker::PhantomData;
use std::sync::Arc;

use candle_core::Tensor;
use candle_core::cpu::erf::erf_f32;
use rayon::prelude::*;

use super::{Activation, Engine, Linear, Norm};
use crate::error::Result;
use crate::kernel::attend::{Seen, Stretch, attend_rows};
use crate::kernel::linear::{Matrix, linear};
use crate::kernel::rows;
use crate::kernel::values::Values;
use crate::ops::{HeadShape, Segments};
use crate::vlm::infer::turn;
use crate::vlm::text::Angles;

/// Rows of a segment that a thread takes at once.
const ROWS: usize = 32;

/// Computes on the processor with so many threads.
#[derive(Debug, Clone, Copy)]
pub struct Plain<'a> {
    threads: usize,
    weights: PhantomData<&'a f32>,
}

impl Plain<'_> {
    /// An engine; `threads` is the size of the pool that calls run in.
    pub fn new(threads: usize) -> Self {
        Plain { threads, weights: PhantomData }
    }
}

/// Rows of one width, one after another.
#[derive(Debug, Clone)]
pub struct Rows {
    /// All values.
    pub values: Vec<f32>,
    /// Values of a row.
    pub width: usize,
}

impl<'a> Engine for Plain<'a> {
    type Rows = Rows;
    type Weight = Values<'a>;
    type Angles = Option<Angles>;

    fn pixels(&self, pixels: &[&Tensor], order: Option<Vec<u32>>) -> Result<Rows> {
        let mut values = Vec::new();
        for pixels in pixels {
            values.extend(pixels.flatten_all()?.to_vec1::<f32>()?);
        }
        let rows = Rows { values, width: pixels[0].dim(1)? };
        match order {
            Some(order) => self.pick(&[&rows], order),
            None => Ok(rows),
        }
    }

    fn angles(&self, angles: Option<Angles>, _rows: usize, _shape: HeadShape) -> Result<Option<Angles>> {
        Ok(angles)
    }

    fn linear(&self, x: &Rows, map: &Linear<Values<'a>>) -> Result<Rows> {
        let matrix = Matrix { weight: map.weight, bias: map.bias.map(Values::vector), width: x.width };
        let mut values = Vec::new();
        linear(&x.values, matrix, &mut values, self.threads);
        Ok(Rows { values, width: matrix.out() })
    }

    fn norm(&self, x: &Rows, norm: &Norm<Values<'a>>) -> Result<Rows> {
        let mut values = vec![0.0; x.values.len()];
        normalise(&x.values, norm, &mut values);
        Ok(Rows { values, width: x.width })
    }

    fn swiglu(&self, x: &Rows) -> Result<Rows> {
        let width = x.width / 2;
        let mut values = vec![0.0; x.values.len() / 2];
        rows::swiglu(&x.values, width, &mut values);
        Ok(Rows { values, width })
    }

    fn activate(&self, mut x: Rows, activation: Activation) -> Result<Rows> {
        match activation {
            Activation::Gelu => {
                for value in &mut x.values {
                    *value = *value * 0.5 * (1.0 + erf_f32(*value * std::f32::consts::FRAC_1_SQRT_2));
                }
            }
            Activation::QuickGelu => rows::quick_gelu(&mut x.values),
        }
        Ok(x)
    }

    fn norm_queries_and_keys(
        &self,
        mut qkv: Rows,
        norms: &(Norm<Values<'a>>, Norm<Values<'a>>),
        shape: HeadShape,
    ) -> Result<Rows> {
        let (q, kv) = (shape.out_width(), shape.kv_heads * shape.head_dim);
        let mut normed = vec![0.0; q];
        for row in qkv.values.chunks_exact_mut(qkv.width) {
            for (range, norm) in [(0..q, &norms.0), (q..q + kv, &norms.1)] {
                let normed = &mut normed[..range.len()];
                normalise(&row[range.clone()], norm, normed);
                row[range].copy_from_slice(normed);
            }
        }
        Ok(qkv)
    }

    fn attention(
        &self,
        mut qkv: Rows,
        angles: &Option<Angles>,
        segments: &Arc<Segments>,
        shape: HeadShape,
    ) -> Result<Rows> {
        if let Some(angles) = angles {
            turn(&mut qkv.values, angles, shape);
        }
        let (row_width, width) = (shape.qkv_width(), shape.out_width());
        let mut out = vec![0.0; qkv.values.len() / row_width * width];
        for segment in segments.iter() {
            let rows = &qkv.values[segment.own.start * row_width..segment.own.end * row_width];
            self.attend(rows, shape, &mut out[segment.own.start * width..segment.own.end * width]);
        }
        Ok(Rows { values: out, width })
    }

    fn add(&self, mut x: Rows, y: &Rows) -> Result<Rows> {
        rows::add(&mut x.values, &y.values);
        Ok(x)
    }

    fn scale(&self, mut x: Rows, by: &Values<'a>) -> Result<Rows> {
        for row in x.values.chunks_exact_mut(x.width) {
            row.iter_mut().zip(by.vector()).for_each(|(value, factor)| *value *= factor);
        }
        Ok(x)
    }

    fn fold(&self, x: Rows, unit: usize) -> Result<Rows> {
        Ok(Rows { width: x.width * unit, ..x })
    }

    fn table(&self, weight: &Values<'a>, width: usize) -> Result<Rows> {
        let mut values = vec![0.0; weight.len()];
        weight.widen(0, width, &mut values);
        Ok(Rows { values, width })
    }

    fn pick(&self, parts: &[&Rows], rows: Vec<u32>) -> Result<Rows> {
        let width = parts[0].width;
        let mut values = Vec::with_capacity(rows.len() * width);
        for row in rows {
            let mut start = row as usize * width;
            let part = parts.iter().find(|part| {
                let here = start < part.values.len();
                start -= if here { 0 } else { part.values.len() };
                here
            });
            values.extend_from_slice(&part.expect("a row of the parts").values[start..start + width]);
        }
        Ok(Rows { values, width })
    }
}

impl Plain<'_> {
    /// One segment's rows, each of which sees all of them.
    fn attend(&self, rows: &[f32], shape: HeadShape, out: &mut [f32]) {
        let (row_width, width) = (shape.qkv_width(), shape.out_width());
        let count = rows.len() / row_width;
        let mut stretch = Stretch::with_capacity(1, shape, count);
        for (offset, row) in rows.chunks_exact(row_width).enumerate() {
            stretch.put(0, offset, shape, &row[width..2 * width], &row[2 * width..]);
        }
        stretch.advance(count);
        let seen = [Seen { stretch: &stretch, from: 0, tokens: count }];
        let some = |scratch: &mut Vec<f32>, (rows, out): (&[f32], &mut [f32])| {
            attend_rows(rows, row_width, &seen, 0, shape, scratch, out);
        };
        if self.threads > 1 {
            let (from, to) = (rows.par_chunks(ROWS * row_width), out.par_chunks_mut(ROWS * width));
            from.zip(to).for_each_init(Vec::new, some);
        } else {
            some(&mut Vec::new(), (rows, out));
        }
    }
}

fn normalise(x: &[f32], norm: &Norm<Values<'_>>, y: &mut [f32]) {
    match norm.bias {
        Some(bias) => rows::layer_norm(x, norm.weight.vector(), bias.vector(), norm.eps as f32, y),
        None => rows::rms_norm(x, norm.weight.vector(), norm.eps as f32, y),
    }
}
