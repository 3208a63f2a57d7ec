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

    /// Writes the values of `bytes` to each of the frames that `out` consists of.
    #[inline(always)]
    pub(super) fn draw(&self, bytes: &[u8], out: &mut [MaybeUninit<f32>]) {
        match &self.formula {
            Some(formula) if bytes.len() >= LANES => formula.draw(bytes, out),
            _ => {
                for frame in out.chunks_exact_mut(bytes.len()) {
                    for (out, byte) in frame.iter_mut().zip(bytes) {
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

    #[inline(always)]
    fn draw(&self, bytes: &[u8], out: &mut [MaybeUninit<f32>]) {
        let size = bytes.len();
        for start in (0..size).step_by(LANES) {
            // The last stretch may lie over the one before.
            let start = start.min(size - LANES);
            let bytes: &[u8; LANES] = bytes[start..].first_chunk().expect("a stretch of the bytes");
            let mut values = [0.0; LANES];
            for lane in 0..LANES {
                values[lane] = self.value(bytes[lane]);
            }
            for frame in out.chunks_exact_mut(size) {
                *frame[start..].first_chunk_mut().expect("a stretch of the frame") = values.map(MaybeUninit::new);
            }
        }
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
