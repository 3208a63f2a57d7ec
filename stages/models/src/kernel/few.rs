//! `y = x W^T + b` for one or a few rows: decoding.
//!
//! A panel of rows (see [`super::linear`]) would leave most lanes idle, one broadcast a weight. Here outputs lie across the lanes: a
//! square of weights is turned in registers, and each of its columns is multiplied with one broadcast value of a row. Each output
//! still has one accumulator that runs over the input width, so that the bits are those of a panel.

#![allow(unsafe_code, reason = "walks slices by pointer in the inner loop")]

use half::bf16;

use super::lanes::{Lanes, Value};
use super::linear::Matrix;
use super::values::{BLOCK, BLOCK_BYTES, GROUP, Q8, SCALES, Values, group_bytes};

/// Rows up to which this is faster than a panel.
pub(super) const FEW: usize = 8;
/// Bytes of a cache line.
const LINE: usize = 64;
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
        unsafe {
            let mut sums = [matrix.bias.map_or(L::splat(0.0), |bias| L::load(bias.as_ptr().add(first))); R];
            match matrix.weight {
                Values::F32(weight) => rows::<L, f32, R>(x, weight.as_ptr().add(first * width), width, &mut sums),
                Values::Bf16(weight) => rows::<L, bf16, R>(x, weight.as_ptr().add(first * width), width, &mut sums),
                Values::Q8(packed) => blocks::<L, R>(x, packed, first, &mut sums),
            }
            for (row, sum) in sums.iter().enumerate() {
                L::store(y.as_mut_ptr().add(row * out + first), *sum);
            }
        }
    }
    let mut weight = vec![0.0; if whole < out { width } else { 0 }];
    for output in whole..out {
        matrix.weight.widen(output, width, &mut weight);
        let start = matrix.bias.map_or(0.0, |bias| bias[output]);
        for (row, x) in x.chunks_exact(width).enumerate() {
            y[row * out + output] = weight.iter().zip(x).fold(start, |sum, (w, x)| w.mul_add(*x, sum));
        }
    }
}

/// Adds a register of outputs, whose weights lie row after row, for all rows of `x`.
#[inline(always)]
unsafe fn rows<L: Lanes, T: Value, const R: usize>(x: &[f32], weight: *const T, width: usize, sums: &mut [L::V; R]) {
    let whole = width / L::N * L::N;
    // SAFETY: from `weight` on there are `L::N` rows of `width` values; rows of `x` are `width` long.
    unsafe {
        // The next outputs in the order in which they lie: squares jump from row to row, which the processor does not foresee.
        let mut next = weight.wrapping_add(L::N * width);
        for k in (0..whole).step_by(L::N) {
            for _ in 0..(L::N * L::N * size_of::<T>()).div_ceil(LINE) {
                L::prefetch(next);
                next = next.wrapping_add(LINE / size_of::<T>());
            }
            let columns = L::columns(weight.add(k), width);
            for column in 0..L::N {
                multiply::<L, R>(columns[column], x.as_ptr().add(k + column), width, sums);
            }
        }
        if whole < width {
            let mut rest = [0.0; WIDEST * WIDEST];
            for (row, rest) in rest.chunks_exact_mut(L::N).take(L::N).enumerate() {
                for (k, rest) in rest[..width - whole].iter_mut().enumerate() {
                    *rest = (*weight.add(row * width + whole + k)).widen();
                }
            }
            let columns = L::columns(rest.as_ptr(), L::N);
            for k in whole..width {
                multiply::<L, R>(columns[k - whole], x.as_ptr().add(k), width, sums);
            }
        }
    }
}

/// The same of a packed matrix: its columns lie as a register reads them.
#[inline(always)]
unsafe fn blocks<L: Lanes, const R: usize>(x: &[f32], packed: Q8<'_>, first: usize, sums: &mut [L::V; R]) {
    let (group, lane) = (group_bytes(packed.width), first % GROUP);
    let blocks = &packed.bytes[first / GROUP * group..][..group];
    for (index, block) in blocks.chunks_exact(BLOCK_BYTES).enumerate() {
        let columns = BLOCK.min(packed.width - index * BLOCK);
        // SAFETY: the block holds its scales and `columns` columns of `GROUP` values, and `lane + L::N` is at most `GROUP`.
        unsafe {
            for line in (0..BLOCK_BYTES).step_by(LINE) {
                L::prefetch(block.as_ptr().wrapping_add(group + line));
            }
            let scales = L::load(block.as_ptr().cast::<f32>().add(lane));
            let values = block.as_ptr().add(SCALES + lane).cast::<i8>();
            for k in 0..columns {
                let column = L::mul(L::load_i8(values.add(k * GROUP)), scales);
                multiply::<L, R>(column, x.as_ptr().add(index * BLOCK + k), packed.width, sums);
            }
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
