//! Inference kernels on plain f32 rows, whose result for a row depends on that row alone.
//!
//! A library's matrix product picks its blocking by the number of rows, so that an answer would change with its batch mates. Here every
//! sum has one fixed order:
//!
//! | kernel | order of summation | vector lanes run over |
//! |---|---|---|
//! | [`linear`] | bias, then the input width, one fused multiply-add a step, one accumulator an output | rows of the batch |
//! | [`scores`](attend) | head width, multiply then add | keys |
//! | [`values`](attend) | keys, multiply then add | head width |
//! | norms, sums of softmax | 16 interleaved partial sums, then a fixed tree | width |
//!
//! It follows that results do not depend on batch, threads or the processor's vector width: AVX-512, AVX2 and plain code give the
//! same bits. Weights are read where they lie, `[out, in]`, without repacking. Limit: x86-64 has vector code; other processors
//! run the plain form.

pub mod attend;
mod few;
pub mod lanes;
pub mod linear;
pub mod rows;

pub use linear::linear;
