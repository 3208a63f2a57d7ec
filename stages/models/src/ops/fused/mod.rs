//! Kernels for f32 on the CPU: fused forward passes with hand-written backward passes.
//!
//! | file | forward | kept for the backward pass |
//! |---|---|---|
//! | [`norm`] | root mean square norm | nothing: the scale of a row is computed again |
//! | [`gate`] | `silu(gate) * up` | nothing |
//! | [`linear`] | product plus bias in one pass | nothing |
//! | [`attention`] | rope, scores, softmax and values, a block of rows and a head at a time in small buffers | nothing: scores are computed again |
//! | [`logprob`] | gathered rows, head, log-softmax, one number a token | nothing: logits are computed again, a chunk of tokens at a time |
//!
//! Work is divided by constants (rows, segments, heads), never by the number of threads, and partial sums are added in order,
//! so results do not depend on the threads. Matrix products are the `gemm` crate's, whose bits depend on the processor's
//! vector level; so do the bits of a training.
//!
//! Gradients may arrive with any strides; arguments are made contiguous before an op sees them. What is no variable and
//! depends on none gets no gradient and costs no memory for one.

#![allow(unsafe_code, reason = "calls the gemm crate, whose interface is pointers and strides")]

pub(super) mod attention;
pub(super) mod gate;
pub(super) mod linear;
pub(super) mod logprob;
pub(super) mod norm;

use std::ops::{Deref, Range};

use candle_core::{CpuStorage, DType, Layout, Result, Shape, Storage, StorageRef, Tensor, bail};

/// Whether all of these can go through the kernels.
pub(super) fn fits(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|tensor| tensor.device().is_cpu() && tensor.dtype() == DType::F32)
}

/// The values of a contiguous argument.
fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => bail!("a kernel needs contiguous f32 values"),
    }
}

/// The values of a tensor while its lock is held.
struct View<'a> {
    guard: StorageRef<'a>,
    range: Range<usize>,
}

impl<'a> View<'a> {
    /// Views a contiguous f32 tensor on the CPU.
    fn of(tensor: &'a Tensor) -> Result<View<'a>> {
        let (guard, layout) = tensor.storage_and_layout();
        match (&*guard, layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::F32(_)), Some((start, end))) => Ok(View { guard, range: start..end }),
            _ => bail!("a kernel needs contiguous f32 values on the CPU"),
        }
    }
}

impl Deref for View<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.guard {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.clone()],
            _ => unreachable!("checked when the view was made"),
        }
    }
}

/// A result of an op.
fn made(values: Vec<f32>, shape: impl Into<Shape>) -> (CpuStorage, Shape) {
    (CpuStorage::F32(values), shape.into())
}

/// A matrix where it lies: value (i, j) is `data[i * row + j * column]`.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row: usize,
    column: usize,
}

impl<'a> Matrix<'a> {
    /// Row after row.
    fn new(data: &'a [f32], columns: usize) -> Matrix<'a> {
        let rows = data.len() / columns;
        assert_eq!(rows * columns, data.len(), "whole rows");
        Matrix { data, rows, columns, row: columns, column: 1 }
    }

    /// Its transpose.
    fn t(self) -> Matrix<'a> {
        Matrix { rows: self.columns, columns: self.rows, row: self.column, column: self.row, ..self }
    }
}

/// `out = a b`, or `out += a b`, row after row.
fn product(out: &mut [f32], add: bool, a: Matrix<'_>, b: Matrix<'_>) {
    assert_eq!(out.len(), a.rows * b.columns, "room for a product");
    if a.columns == 0 && !add {
        out.fill(0.0);
    }
    // SAFETY: `out` holds as many values as the product.
    unsafe { multiply(out.as_mut_ptr(), add, a, b) }
}

/// `a b` in a new vector, whose memory is written once.
fn new_product(a: Matrix<'_>, b: Matrix<'_>) -> Vec<f32> {
    let size = a.rows * b.columns;
    if a.columns == 0 {
        return vec![0.0; size];
    }
    let mut out = Vec::with_capacity(size);
    // SAFETY: the vector has room for the product, which is written whole before it counts as filled.
    unsafe {
        multiply(out.as_mut_ptr(), false, a, b);
        out.set_len(size);
    }
    out
}

/// Writes or adds `a b` to `a.rows * b.columns` values at `out`. With `add` they must be initialised.
unsafe fn multiply(out: *mut f32, add: bool, a: Matrix<'_>, b: Matrix<'_>) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert_eq!(k, b.rows, "inner widths of a product");
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let threads = match rayon::current_num_threads() {
        1 => gemm::Parallelism::None,
        threads => gemm::Parallelism::Rayon(threads),
    };
    // SAFETY: `Matrix` is made from whole rows, so all its strides stay inside its slice; the caller answers for `out`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            n as isize,
            add,
            a.data.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.column as isize,
            b.row as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            threads,
        );
    }
}

/// Adds vectors of equal length in their order.
fn add_all(parts: Vec<Vec<f32>>, width: usize) -> Vec<f32> {
    parts.into_iter().fold(vec![0.0; width], |mut sum, part| {
        sum.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
        sum
    })
}

/// Lanes of a vectorised sum.
const LANES: usize = 16;

/// The sum of products of two rows: interleaved parts that a fixed tree joins.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut parts = [0.0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_chunks.remainder().iter().zip(b_chunks.remainder());
    for (a, b) in a_chunks.zip(b_chunks) {
        for ((part, a), b) in parts.iter_mut().zip(a).zip(b) {
            *part += a * b;
        }
    }
    for (part, (a, b)) in parts.iter_mut().zip(rest) {
        *part += a * b;
    }
    join(parts, |a, b| a + b)
}

/// Joins interleaved parts by a fixed tree.
#[inline(always)]
fn join(mut parts: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            parts[i] = f(parts[i], parts[i + half]);
        }
    }
    parts[0]
}
