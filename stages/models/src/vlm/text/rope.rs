//! Rotary angles, as cosine and sine tables `[n, head_dim]` in the rotate-half layout: the second half of a row repeats the first.
//!
//! A token has three positions (time, row, column). Under M-RoPE the first `mrope_section[0]` frequencies turn with time, the next with
//! the row, the last with the column; text tokens have three equal positions, so that it is plain RoPE there. Without
//! sections all frequencies turn with the first position.

use candle_core::{DType, Device, Result, Tensor};

use super::config::{RopeScaling, TextConfig};

/// Cosines and sines of a batch of rows, each row `head_dim` wide.
#[derive(Debug, Clone, Default)]
pub struct Angles {
    /// Cosines, row after row.
    pub cos: Vec<f32>,
    /// Sines, row after row.
    pub sin: Vec<f32>,
    /// Width of a row.
    pub head_dim: usize,
}

impl Angles {
    pub(in crate::vlm) fn with_capacity(rows: usize, head_dim: usize) -> Angles {
        let (cos, sin) = (Vec::with_capacity(rows * head_dim), Vec::with_capacity(rows * head_dim));
        Angles { cos, sin, head_dim }
    }

    pub(in crate::vlm) fn push_row(&mut self, half: impl Iterator<Item = f32> + Clone) {
        for angle in half.clone().chain(half) {
            self.cos.push(angle.cos());
            self.sin.push(angle.sin());
        }
    }

    /// The tables as tensors `[n, head_dim]`.
    ///
    /// # Errors
    /// When the device refuses them.
    pub fn tensors(self, dtype: DType, device: &Device) -> Result<(Tensor, Tensor)> {
        let shape = (self.cos.len() / self.head_dim, self.head_dim);
        let cos = Tensor::from_vec(self.cos, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?;
        let sin = Tensor::from_vec(self.sin, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?;
        Ok((cos, sin))
    }

    /// The first halves of the rows, which the second ones repeat, as tensors `[n, head_dim / 2]`.
    pub(in crate::vlm) fn halves(self, dtype: DType, device: &Device) -> Result<(Tensor, Tensor)> {
        let half = self.head_dim / 2;
        let rows = self.cos.len() / self.head_dim;
        let table = |all: Vec<f32>| {
            let firsts: Vec<f32> = all.chunks_exact(2 * half).flat_map(|row| &row[..half]).copied().collect();
            Tensor::from_vec(firsts, (rows, half), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
        };
        Ok((table(self.cos)?, table(self.sin)?))
    }
}

/// `1 / base^(2 i / dim)` for `i` in `0..dim / 2`.
pub(in crate::vlm) fn frequencies(base: f64, dim: usize) -> Vec<f32> {
    (0..dim / 2).map(|i| 1.0 / (base as f32).powf((2 * i) as f32 / dim as f32)).collect()
}

/// The text tower's frequencies, each with the axis (0 time, 1 row, 2 column) it turns with.
#[derive(Debug, Clone)]
pub struct TextRope {
    table: Vec<(f32, usize)>,
}

impl TextRope {
    /// The table of a configuration.
    pub fn new(config: &TextConfig) -> TextRope {
        let half = config.heads.head_dim / 2;
        let sections = config.mrope_section.unwrap_or([half, 0, 0]);
        let axes = sections.iter().enumerate().flat_map(|(axis, &count)| std::iter::repeat_n(axis, count));
        let mut frequencies = frequencies(config.rope_theta, config.heads.head_dim);
        if let RopeScaling::Linear(factor) = config.rope_scaling {
            frequencies.iter_mut().for_each(|frequency| *frequency /= factor as f32);
        }
        TextRope { table: frequencies.into_iter().zip(axes).collect() }
    }

    /// Angles of the rows whose three positions are given.
    pub fn angles(&self, positions: &[Vec<u32>; 3]) -> Angles {
        let rows = positions[0].len();
        let mut angles = Angles::with_capacity(rows, 2 * self.table.len());
        let [times, heights, widths] = positions;
        for ((time, height), width) in times.iter().zip(heights).zip(widths) {
            let place = [*time, *height, *width];
            angles.push_row(self.table.iter().map(|&(frequency, axis)| place[axis] as f32 * frequency));
        }
        angles
    }
}
