//! What the bytes of a channel become: rescaled in f64 and rounded to f32, then less the mean, then over the deviation.
//!
//! The 256 values stand in a table. Looking a value up takes about as long as storing it, so where the processor has fused multiply-add, the values are
//! computed anew, without the f64 and without the division: both are replaced by a product and its correction,
//!
//! `scaled = fma(byte, high, byte * low)` with `high + low` the factor; `value = q + (d - q * std) / std` with `q` nearly `d / std`.
//!
//! Whether this gives the table's bits is not argued but tried, on all 256 bytes, whenever a curve is made; where it does not, the table
//! is used.

use std::mem::MaybeUninit;

use crate::kernel::lanes::{Level, wide};

/// Values that are computed at once.
const LANES: usize = 16;

/// What the bytes of a channel become.
pub(super) struct Curve {
    table: Box<[f32; 256]>,
    formula: Option<Formula>,
}

/// The values without a table.
#[derive(Debug, Clone, Copy)]
struct Formula {
    /// The factor's leading and trailing bits.
    factor: [f32; 2],
    mean: f32,
    std: f32,
    /// Nearly one over the deviation.
    inverse: f32,
}

impl Curve {
    /// `(byte * factor - mean) / std`.
    pub(super) fn new(factor: f64, mean: f64, std: f64) -> Curve {
        let (mean, std) = (mean as f32, std as f32);
        let table = Box::new(std::array::from_fn(|byte| ((byte as f64 * factor) as f32 - mean) / std));
        let high = factor as f32;
        let formula = Formula { factor: [high, (factor - f64::from(high)) as f32], mean, std, inverse: 1.0 / std };
        // Without fused multiply-add in the processor the table is faster.
        let formula = (Level::detect() != Level::Plain && formula.gives(&table)).then_some(formula);
        Curve { table, formula }
    }

    /// Whether values are computed.
    #[cfg(test)]
    pub(super) fn computes(&self) -> bool {
        self.formula.is_some()
    }

    /// Writes the values of a square of `side` bytes to the front of `out`, line after line, and perhaps some more behind the last; the
    /// square's lines are `stride` bytes apart.
    #[inline(always)]
    pub(super) fn draw(&self, bytes: &[u8], stride: usize, side: usize, out: &mut [MaybeUninit<f32>]) {
        let (last_line, last) = ((side - 1) * stride, (side - 1) * side);
        match &self.formula {
            Some(formula) if side <= LANES && bytes.len() >= last_line + LANES && out.len() >= last + LANES => {
                for y in 0..side {
                    let bytes: &[u8; LANES] = bytes[y * stride..].first_chunk().expect("a line and more");
                    let out: &mut [_; LANES] = out[y * side..].first_chunk_mut().expect("a line and more");
                    for lane in 0..LANES {
                        out[lane] = MaybeUninit::new(formula.value(bytes[lane]));
                    }
                }
            }
            _ => {
                for y in 0..side {
                    let (bytes, out) = (&bytes[y * stride..][..side], &mut out[y * side..][..side]);
                    for (out, byte) in out.iter_mut().zip(bytes) {
                        out.write(self.table[usize::from(*byte)]);
                    }
                }
            }
        }
    }
}

impl Formula {
    #[inline(always)]
    fn value(&self, byte: u8) -> f32 {
        let byte = f32::from(byte);
        let scaled = byte.mul_add(self.factor[0], byte * self.factor[1]);
        let difference = scaled - self.mean;
        let near = difference * self.inverse;
        (-near).mul_add(self.std, difference).mul_add(self.inverse, near)
    }

    /// Whether all bytes become what the table says, to the bit.
    fn gives(&self, table: &[f32; 256]) -> bool {
        let mut values = [0.0; 256];
        draw_all(self, &mut values);
        values.iter().zip(table).all(|(value, expected)| value.to_bits() == expected.to_bits())
    }
}

wide! {
    fn draw_all(formula: &Formula, values: &mut [f32; 256]) {
        for (byte, value) in (0..=255).zip(values) {
            *value = formula.value(byte);
        }
    }
}
