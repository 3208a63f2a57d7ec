//! The values of a matrix as they lie in memory: f32, bf16, or eight bits with scales.
//!
//! | form | a value is | bytes | read as |
//! |---|---|---|---|
//! | f32 | itself | 4 | it lies |
//! | bf16 | itself | 2 | the f32 of the same value: nothing is lost where the checkpoint has bf16 |
//! | q8 | a whole number from -127 to 127 times the scale of its block | 1.125 | that product, rounded to f32 |
//!
//! What a kernel multiplies with is the f32 that is read, so that each form keeps the fixed order of sums.
//!
//! Eight-bit matrices are packed for decoding. Sixteen outputs make a group; a block is 32 columns of a group: sixteen scales (f32,
//! one an output), then for each column sixteen values, one an output. The last group and block are filled up with zeros.

use candle_core::{CpuStorage, Layout, Result};
use half::bf16;

use super::lanes::Value;

/// Outputs of a group of an eight-bit matrix.
pub(crate) const GROUP: usize = 16;
/// Columns of a block of an eight-bit matrix: values that share a scale.
pub(crate) const BLOCK: usize = 32;
/// Bytes of the scales of a block.
pub(crate) const SCALES: usize = GROUP * size_of::<f32>();
/// Bytes of a block.
pub(crate) const BLOCK_BYTES: usize = SCALES + GROUP * BLOCK;
/// The largest eight-bit value.
const LARGEST: f32 = 127.0;

/// Values of a matrix `[out, in]`.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// Row after row.
    F32(&'a [f32]),
    /// Row after row.
    Bf16(&'a [bf16]),
    /// Packed.
    Q8(Q8<'a>),
}

/// A packed eight-bit matrix.
#[derive(Debug, Clone, Copy)]
pub struct Q8<'a> {
    /// Group after group, block after block.
    pub(crate) bytes: &'a [u8],
    /// Rows.
    pub(crate) out: usize,
    /// Columns.
    pub(crate) width: usize,
}

impl<'a> Values<'a> {
    /// The values of a storage; bytes are a packed matrix of the shape.
    ///
    /// # Errors
    /// When its type is another one.
    pub(crate) fn of(storage: &'a CpuStorage, layout: &Layout, shape: &[usize]) -> Result<Values<'a>> {
        let range = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
        Ok(match storage {
            CpuStorage::BF16(values) => Values::Bf16(&values[range]),
            CpuStorage::U8(bytes) => Values::Q8(Q8 { bytes: &bytes[range], out: shape[0], width: shape[1] }),
            _ => Values::F32(&storage.as_slice::<f32>()?[range]),
        })
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Values::F32(values) => values.len(),
            Values::Bf16(values) => values.len(),
            Values::Q8(packed) => packed.out * packed.width,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows `from..to` of a matrix of this width; `from` begins a group.
    pub(crate) fn rows(self, from: usize, to: usize, width: usize) -> Values<'a> {
        match self {
            Values::F32(values) => Values::F32(&values[from * width..to * width]),
            Values::Bf16(values) => Values::Bf16(&values[from * width..to * width]),
            Values::Q8(Q8 { bytes, .. }) => {
                assert_eq!(from % GROUP, 0, "whole groups");
                let group = group_bytes(width);
                let bytes = &bytes[from / GROUP * group..to.div_ceil(GROUP) * group];
                Values::Q8(Q8 { bytes, out: to - from, width })
            }
        }
    }

    /// Writes rows from `first` on, as many as `to` has room for, as f32.
    pub(crate) fn widen(&self, first: usize, width: usize, to: &mut [f32]) {
        match self {
            Values::F32(values) => to.copy_from_slice(&values[first * width..][..to.len()]),
            Values::Bf16(values) => {
                to.iter_mut().zip(&values[first * width..]).for_each(|(to, value)| *to = value.widen());
            }
            Values::Q8(packed) => {
                for (row, to) in to.chunks_exact_mut(width).enumerate() {
                    packed.widen_row(first + row, to);
                }
            }
        }
    }

    /// The values where they are f32, as those of vectors always are.
    ///
    /// # Panics
    /// When they are not.
    pub fn vector(self) -> &'a [f32] {
        match self {
            Values::F32(values) => values,
            _ => unreachable!("vectors are never held in another form than f32"),
        }
    }
}

impl Q8<'_> {
    fn widen_row(&self, row: usize, to: &mut [f32]) {
        let group = group_bytes(self.width);
        let (blocks, lane) = (&self.bytes[row / GROUP * group..][..group], row % GROUP);
        for (block, to) in blocks.chunks_exact(BLOCK_BYTES).zip(to.chunks_mut(BLOCK)) {
            let scale = scale(block, lane);
            for (column, to) in to.iter_mut().enumerate() {
                *to = f32::from(block[SCALES + column * GROUP + lane] as i8) * scale;
            }
        }
    }
}

/// The scale of an output in a block.
pub(crate) fn scale(block: &[u8], lane: usize) -> f32 {
    let at = lane * size_of::<f32>();
    f32::from_le_bytes(block[at..at + size_of::<f32>()].try_into().expect("four bytes"))
}

/// Bytes of a group of a packed matrix.
pub(crate) fn group_bytes(width: usize) -> usize {
    width.div_ceil(BLOCK) * BLOCK_BYTES
}

/// Packs a matrix `[values.len() / width, width]`: each value becomes the nearest multiple of its block's scale, which is the block's
/// largest magnitude over 127.
pub(crate) fn pack_q8(values: &[f32], width: usize) -> Vec<u8> {
    let (out, group) = (values.len() / width, group_bytes(width));
    let mut bytes = vec![0; out.div_ceil(GROUP) * group];
    for (row, values) in values.chunks_exact(width).enumerate() {
        let (start, lane) = (row / GROUP * group, row % GROUP);
        for (block, values) in bytes[start..start + group].chunks_exact_mut(BLOCK_BYTES).zip(values.chunks(BLOCK)) {
            let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            let scale = largest / LARGEST;
            block[lane * size_of::<f32>()..][..size_of::<f32>()].copy_from_slice(&scale.to_le_bytes());
            let inverse = if largest > 0.0 { LARGEST / largest } else { 0.0 };
            for (column, value) in values.iter().enumerate() {
                block[SCALES + column * GROUP + lane] = (value * inverse).round().clamp(-LARGEST, LARGEST) as i8 as u8;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bits_are_within_half_a_step() {
        let (out, width) = (37, 77);
        let values: Vec<f32> = (0..out * width).map(|i| ((i * 7919) % 2003) as f32 / 1001.0 - 1.0).collect();
        let bytes = pack_q8(&values, width);
        assert_eq!(bytes.len(), 3 * 3 * BLOCK_BYTES);
        let packed = Values::Q8(Q8 { bytes: &bytes, out, width });
        let mut read = vec![0.0; values.len()];
        packed.widen(0, width, &mut read);
        for (value, read) in values.iter().zip(&read) {
            assert!((value - read).abs() <= 0.501 / 127.0, "{value} {read}");
        }
        let mut tail = vec![0.0; 5 * width];
        packed.rows(32, 37, width).widen(0, width, &mut tail);
        assert_eq!(tail, read[32 * width..]);
        assert_eq!(packed.len(), values.len());
    }

    #[test]
    fn a_block_of_zeros_stays_one() {
        let bytes = pack_q8(&[0.0; 64], 32);
        let mut read = vec![1.0; 64];
        Values::Q8(Q8 { bytes: &bytes, out: 2, width: 32 }).widen(0, 32, &mut read);
        assert_eq!(read, [0.0; 64]);
    }
}
