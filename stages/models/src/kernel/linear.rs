//! `y = x W^T + b` with one fixed order of summation.
//!
//! Rows are taken in panels of two registers. A panel is turned so that its rows lie across the lanes; then each weight is one
//! broadcast that multiplies all rows of the panel, and each output has one accumulator that runs over the input width. The weights of
//! eight outputs pass a block of panels before the next, narrow ones widened once. A few rows alone go another way to the same bits
//! ([`super::few`]).

#![allow(
    unsafe_code,
    reason = "calls vector code behind a run-time check and walks slices by pointer in the inner loop"
)]

use rayon::prelude::*;

use super::few::{FEW, few_rows};
use super::lanes::{Lanes, Level, Plain};
use super::values::{GROUP, Values, group_bytes};

/// Outputs of one register tile.
const TILE: usize = 8;
/// Registers of rows in a block.
const DEEP: usize = 2;
/// Values of a cache line.
const LINE: usize = 16;
/// Bytes of the panels that a block's rows make at most, so that they stay in the second cache while all weights pass them.
const PANELS_BYTES: usize = 1 << 19;
/// Multiply-adds below which threads cost more than they give.
const WORTH_THREADS: usize = 1 << 20;

/// A weight matrix `[out, in]` where it lies, with its bias `[out]`.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// `out * in` values.
    pub weight: Values<'a>,
    /// Added to every output row.
    pub bias: Option<&'a [f32]>,
    /// Width of an input row.
    pub width: usize,
}

impl Matrix<'_> {
    /// Width of an output row.
    pub fn out(&self) -> usize {
        self.weight.len() / self.width
    }
}

/// `x` `[rows, in]` to `y` `[rows, out]`; `y` is resized and overwritten.
pub fn linear(x: &[f32], matrix: Matrix<'_>, y: &mut Vec<f32>, threads: usize) {
    linear_at(Level::detect(), x, matrix, y, threads);
}

/// [`linear`] at a given level, which the processor must have.
fn linear_at(level: Level, x: &[f32], matrix: Matrix<'_>, y: &mut Vec<f32>, threads: usize) {
    let (rows, out) = (x.len() / matrix.width, matrix.out());
    assert_eq!(rows * matrix.width, x.len(), "whole rows");
    assert_eq!(out * matrix.width, matrix.weight.len(), "whole weight rows");
    assert!(matrix.bias.is_none_or(|bias| bias.len() == out), "one bias an output");
    if let Values::Q8(packed) = matrix.weight {
        assert_eq!(packed.width, matrix.width, "packed for this width");
        assert_eq!(packed.bytes.len(), out.div_ceil(GROUP) * group_bytes(matrix.width), "whole groups");
    }
    y.clear();
    y.resize(rows * out, 0.0);
    let panel = DEEP * lanes_of(level);
    let threads = if rows * matrix.weight.len() < WORTH_THREADS { 1 } else { threads };
    let work = |(x, y): (&[f32], &mut [f32])| run_block(level, x, matrix, y);
    if threads > 1 && rows <= panel {
        return split_outputs(level, x, matrix, y, threads);
    }
    let most = PANELS_BYTES / (panel * matrix.width * size_of::<f32>());
    let block = panel * most.clamp(1, rows.div_ceil(threads).div_ceil(panel).max(1));
    if threads > 1 {
        x.par_chunks(block * matrix.width).zip(y.par_chunks_mut(block * out)).for_each(work);
    } else {
        x.chunks(block * matrix.width).zip(y.chunks_mut(block * out)).for_each(work);
    }
}

fn lanes_of(level: Level) -> usize {
    match level {
        Level::Avx512 => 16,
        Level::Avx2 => 8,
        Level::Plain => 1,
    }
}

/// A single block of rows: the threads share its outputs instead.
fn split_outputs(level: Level, x: &[f32], matrix: Matrix<'_>, y: &mut [f32], threads: usize) {
    let (rows, out) = (x.len() / matrix.width, matrix.out());
    let share = out.div_ceil(threads).next_multiple_of(GROUP);
    let parts: Vec<Vec<f32>> = (0..out.div_ceil(share))
        .into_par_iter()
        .map(|part| {
            let range = part * share..((part + 1) * share).min(out);
            let weight = matrix.weight.rows(range.start, range.end, matrix.width);
            let part = Matrix { weight, bias: matrix.bias.map(|bias| &bias[range.clone()]), ..matrix };
            let mut y = vec![0.0; rows * range.len()];
            run_block(level, x, part, &mut y);
            y
        })
        .collect();
    for (index, part) in parts.iter().enumerate() {
        let width = part.len() / rows;
        for (row, values) in part.chunks_exact(width).enumerate() {
            y[row * out + index * share..][..width].copy_from_slice(values);
        }
    }
}

fn run_block(level: Level, x: &[f32], matrix: Matrix<'_>, y: &mut [f32]) {
    match level {
        // SAFETY: the level says that the processor has the instructions.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { block_avx512(x, matrix, y) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { block_avx2(x, matrix, y) },
        // SAFETY: plain code runs everywhere.
        _ => unsafe { block::<Plain>(x, matrix, y) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,fma")]
fn block_avx512(x: &[f32], matrix: Matrix<'_>, y: &mut [f32]) {
    // SAFETY: compiled for, and called on, a processor with these instructions.
    unsafe { block::<super::x86::Avx512>(x, matrix, y) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn block_avx2(x: &[f32], matrix: Matrix<'_>, y: &mut [f32]) {
    // SAFETY: compiled for, and called on, a processor with these instructions.
    unsafe { block::<super::x86::Avx2>(x, matrix, y) }
}

/// A block of rows against all outputs.
#[inline(always)]
unsafe fn block<L: Lanes>(x: &[f32], matrix: Matrix<'_>, y: &mut [f32]) {
    let rows = x.len() / matrix.width;
    // SAFETY: `block` is called on a processor that has L; the slices are whole rows.
    unsafe {
        if rows <= FEW {
            few_rows::<L>(x, matrix, y);
        } else if rows <= L::N {
            rows_by_outputs::<L, 1>(x, matrix, y);
        } else {
            rows_by_outputs::<L, DEEP>(x, matrix, y);
        }
    }
}

#[inline(always)]
unsafe fn rows_by_outputs<L: Lanes, const R: usize>(x: &[f32], matrix: Matrix<'_>, y: &mut [f32]) {
    let (rows, out, width) = (x.len() / matrix.width, matrix.out(), matrix.width);
    let span = R * L::N;
    let panel = width * span;
    let mut panels = vec![0.0f32; rows.div_ceil(span) * panel];
    for (x, panel) in x.chunks(span * width).zip(panels.chunks_exact_mut(panel)) {
        // SAFETY: `x` has at most `span` rows of `width`, the panel `width` rows of `span`.
        unsafe { turn::<L>(x, x.len() / width, width, width, panel, span) };
    }
    let mut tile = [0.0f32; TILE * DEEP * 16];
    let mut widened = Vec::new();
    for first in (0..out).step_by(TILE) {
        let count = TILE.min(out - first);
        let weight = match matrix.weight {
            Values::F32(weight) => &weight[first * width..(first + count) * width],
            narrow => {
                widened.resize(count * width, 0.0);
                narrow.widen(first, width, &mut widened);
                &widened
            }
        };
        let mut start = [0.0; TILE];
        if let Some(bias) = matrix.bias {
            start[..count].copy_from_slice(&bias[first..first + count]);
        }
        for (panel, y) in panels.chunks_exact(panel).zip(y.chunks_mut(span * out)) {
            // SAFETY: the tile's weights, the panel and the buffers have the lengths that the counts say.
            unsafe {
                if count == TILE {
                    multiply::<L, R, TILE>(weight, panel, width, &start, &mut tile);
                } else {
                    for (j, row) in weight.chunks_exact(width).enumerate() {
                        multiply::<L, R, 1>(row, panel, width, &start[j..], &mut tile[j * span..]);
                    }
                }
                turn::<L>(&tile, count, span, y.len() / out, &mut y[first..], out);
            }
        }
    }
}

/// Writes `from`'s rows (`from_row` apart, the first `columns` values of each) as columns of `to`, whose rows are `to_row` apart.
#[inline(always)]
unsafe fn turn<L: Lanes>(from: &[f32], rows: usize, from_row: usize, columns: usize, to: &mut [f32], to_row: usize) {
    assert!(from.len() >= (rows - 1) * from_row + columns && to.len() >= (columns - 1) * to_row + rows, "bounds");
    let (whole_rows, whole_columns) = (rows / 8 * 8, columns / 8 * 8);
    for row in (0..whole_rows).step_by(8) {
        for column in (0..whole_columns).step_by(8) {
            let (read, write) = (row * from_row + column, column * to_row + row);
            // SAFETY: the assertion covers eight rows and columns from here, on both sides.
            unsafe { L::transpose(from.as_ptr().add(read), from_row, to.as_mut_ptr().add(write), to_row) };
        }
    }
    for row in 0..rows {
        let done = if row < whole_rows { whole_columns } else { 0 };
        for column in done..columns {
            to[column * to_row + row] = from[row * from_row + column];
        }
    }
}

/// `J` outputs times `R` registers of rows: `tile[j][row] = start[j] + sum over k of weight[j][k] * panel[k][row]`.
#[inline(always)]
unsafe fn multiply<L: Lanes, const R: usize, const J: usize>(
    weight: &[f32],
    panel: &[f32],
    width: usize,
    start: &[f32],
    tile: &mut [f32],
) {
    assert!(weight.len() >= J * width && panel.len() >= width * R * L::N && tile.len() >= J * R * L::N, "tile bounds");
    // SAFETY: the assertion covers every offset below.
    unsafe {
        let mut sums = [[L::splat(0.0); R]; J];
        for (sums, start) in sums.iter_mut().zip(start) {
            *sums = [L::splat(*start); R];
        }
        let mut next = weight.as_ptr().wrapping_add(J * width);
        for k in 0..width {
            if k % LINE == 0 {
                for _ in 0..J {
                    L::prefetch(next);
                    next = next.wrapping_add(LINE);
                }
            }
            let mut rows = [L::splat(0.0); R];
            for (r, row) in rows.iter_mut().enumerate() {
                *row = L::load(panel.as_ptr().add((k * R + r) * L::N));
            }
            for (j, sums) in sums.iter_mut().enumerate() {
                let factor = L::splat(*weight.as_ptr().add(j * width + k));
                for r in 0..R {
                    sums[r] = L::fma(factor, rows[r], sums[r]);
                }
            }
        }
        for (j, sums) in sums.iter().enumerate() {
            for (r, sum) in sums.iter().enumerate() {
                L::store(tile.as_mut_ptr().add((j * R + r) * L::N), *sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::values::{Q8, pack_q8};

    fn values(count: usize, salt: usize) -> Vec<f32> {
        (0..count).map(|i| (((i * 7919 + salt * 104_729) % 2003) as f32 / 1001.0 - 1.0) * 0.7).collect()
    }

    /// Holds the first rows of `x`, for each number of rows and of threads, to those of `whole` at every level.
    fn same_bits(x: &[f32], matrix: Matrix<'_>, whole: &[f32], sizes: impl Iterator<Item = (usize, usize)>) {
        for (rows, threads) in sizes {
            for level in Level::all() {
                let mut y = vec![];
                linear_at(level, &x[..rows * matrix.width], matrix, &mut y, threads);
                let same = y.iter().zip(whole).all(|(a, b)| a.to_bits() == b.to_bits());
                let (width, out) = (matrix.width, matrix.out());
                assert!(same && y.len() == rows * out, "{level:?} {width} x {out}, {rows} rows, {threads} threads");
            }
        }
    }

    #[test]
    fn agrees_with_the_definition() {
        let (rows, width, out) = (37, 29, 21);
        let (x, w, b) = (values(rows * width, 1), values(out * width, 2), values(out, 3));
        let mut y = vec![];
        linear(&x, Matrix { weight: Values::F32(&w), bias: Some(&b), width }, &mut y, 1);
        for row in 0..rows {
            for j in 0..out {
                let exact: f64 = (0..width).map(|k| f64::from(x[row * width + k]) * f64::from(w[j * width + k])).sum();
                assert!((exact + f64::from(b[j]) - f64::from(y[row * out + j])).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn a_row_never_depends_on_its_mates_the_threads_or_the_level() {
        for (width, out) in [(96, 133), (77, 50), (5, 3)] {
            let (x, w, b) = (values(130 * width, 4), values(out * width, 5), values(out, 6));
            let matrix = Matrix { weight: Values::F32(&w), bias: Some(&b), width };
            let mut whole = vec![];
            linear_at(Level::Plain, &x, matrix, &mut whole, 1);
            let rows = (1..=9).chain([16, 17, 31, 32, 33, 64, 130]);
            same_bits(&x, matrix, &whole, rows.flat_map(|rows| [(rows, 1), (rows, 3)]));
        }
    }

    #[test]
    fn narrow_weights_are_multiplied_as_the_f32_that_they_are() {
        for (width, out) in [(96, 133), (77, 50), (5, 3), (32, 16)] {
            let (x, w) = (values(40 * width, 4), values(out * width, 5));
            let halves: Vec<half::bf16> = w.iter().map(|value| half::bf16::from_f32(*value)).collect();
            let bytes = pack_q8(&w, width);
            for narrow in [Values::Bf16(&halves), Values::Q8(Q8 { bytes: &bytes, out, width })] {
                let mut wide = vec![0.0; out * width];
                narrow.widen(0, width, &mut wide);
                let mut whole = vec![];
                linear(&x, Matrix { weight: Values::F32(&wide), bias: None, width }, &mut whole, 1);
                let matrix = Matrix { weight: narrow, bias: None, width };
                same_bits(&x, matrix, &whole, [(1, 1), (3, 2), (8, 1), (9, 1), (17, 3), (40, 2)].into_iter());
            }
        }
    }

    /// The plain form takes few rows, too, so that it is held to the sum in its plain order here.
    #[test]
    fn sums_run_in_the_order_of_the_width() {
        let (width, out) = (77, 50);
        let (x, w) = (values(9 * width, 4), values(out * width, 5));
        let mut y = vec![];
        linear(&x, Matrix { weight: Values::F32(&w), bias: None, width }, &mut y, 1);
        for (row, y) in x.chunks_exact(width).zip(y.chunks_exact(out)) {
            for (w, y) in w.chunks_exact(width).zip(y) {
                let sum = w.iter().zip(row).fold(0.0f32, |sum, (w, x)| w.mul_add(*x, sum));
                assert_eq!(sum.to_bits(), y.to_bits());
            }
        }
    }
}
