//! `y = x W^T + b` for one or a few rows: decoding.
//!
//! A panel of rows (see [`super::linear`]) would leave most lanes idle, one broadcast a weight. Here outputs lie across the lanes: a
//! square of weights is turned in registers, and each of its columns is multiplied with one broadcast value of a row. Each output
//! still has one accumulator that runs over the input width, so that the bits are those of a panel.

#![allow(unsafe_code, reason = "walks slices by pointer in the inner loop")]

use super::lanes::Lanes;
use super::linear::Matrix;

/// Rows up to which this is faster than a panel.
pub(super) const FEW: usize = 8;
/// Lanes of the widest register.
const WIDEST: usize = 16;

/// `x` `[rows, in]`, at most [`FEW`] rows, to `y` `[rows, out]`.
///
/// # Safety
/// The processor must have `L`; both slices must be whole rows.
#[inline(always)]
pub(super) unsafe fn few_rows<L: Lanes>(x: &[f32], matrix: Matrix<'_>, y: &mut [f32]) {
    // SAFETY: as the caller says.
    unsafe {
        match x.len() / matrix.width {
            1 => all_outputs::<L, 1>(x, matrix, y),
            2 => all_outputs::<L, 2>(x, matrix, y),
            3 => all_outputs::<L, 3>(x, matrix, y),
            4 => all_outputs::<L, 4>(x, matrix, y),
            5 => all_outputs::<L, 5>(x, matrix, y),
            6 => all_outputs::<L, 6>(x, matrix, y),
            7 => all_outputs::<L, 7>(x, matrix, y),
            _ => all_outputs::<L, FEW>(x, matrix, y),
        }
    }
}

#[inline(always)]
unsafe fn all_outputs<L: Lanes, const R: usize>(x: &[f32], matrix: Matrix<'_>, y: &mut [f32]) {
    let (out, width) = (matrix.out(), matrix.width);
    assert!(x.len() == R * width && y.len() == R * out, "whole rows");
    let whole = out / L::N * L::N;
    for first in (0..whole).step_by(L::N) {
        // SAFETY: the outputs exist, and the slices have the lengths asserted above.
        unsafe { group::<L, R>(x, matrix, first, y) };
    }
    for output in whole..out {
        let weight = &matrix.weight[output * width..(output + 1) * width];
        let start = matrix.bias.map_or(0.0, |bias| bias[output]);
        for (row, x) in x.chunks_exact(width).enumerate() {
            y[row * out + output] = weight.iter().zip(x).fold(start, |sum, (w, x)| w.mul_add(*x, sum));
        }
    }
}

/// A register of outputs from `first` on, for all rows.
#[inline(always)]
unsafe fn group<L: Lanes, const R: usize>(x: &[f32], matrix: Matrix<'_>, first: usize, y: &mut [f32]) {
    let (out, width) = (matrix.out(), matrix.width);
    let whole = width / L::N * L::N;
    // SAFETY: outputs `first..first + L::N` exist, each with `width` weights; rows of `x` are `width`, of `y` `out` long.
    unsafe {
        let mut sums = [matrix.bias.map_or(L::splat(0.0), |bias| L::load(bias.as_ptr().add(first))); R];
        let weight = matrix.weight.as_ptr().add(first * width);
        // The next group in the order in which it lies: squares jump from row to row, which the processor does not foresee.
        let mut next = weight.wrapping_add(L::N * width);
        for k in (0..whole).step_by(L::N) {
            for _ in 0..L::N {
                L::prefetch(next);
                next = next.wrapping_add(L::N);
            }
            let columns = L::columns(weight.add(k), width);
            for column in 0..L::N {
                multiply::<L, R>(columns[column], x.as_ptr().add(k + column), width, &mut sums);
            }
        }
        if whole < width {
            let mut rest = [0.0; WIDEST * WIDEST];
            for (row, rest) in rest.chunks_exact_mut(L::N).take(L::N).enumerate() {
                let from = std::slice::from_raw_parts(weight.add(row * width + whole), width - whole);
                rest[..width - whole].copy_from_slice(from);
            }
            let columns = L::columns(rest.as_ptr(), L::N);
            for k in whole..width {
                multiply::<L, R>(columns[k - whole], x.as_ptr().add(k), width, &mut sums);
            }
        }
        for (row, sum) in sums.iter().enumerate() {
            L::store(y.as_mut_ptr().add(row * out + first), *sum);
        }
    }
}

/// Adds to the sum of each row a column of weights times the row's value, that at `x` and at every `width`-th place behind it.
#[inline(always)]
unsafe fn multiply<L: Lanes, const R: usize>(column: L::V, x: *const f32, width: usize, sums: &mut [L::V; R]) {
    for (row, sum) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's processor has L, and `x` reaches `R` rows.
        *sum = unsafe { L::fma(column, L::splat(*x.add(row * width)), *sum) };
    }
}
