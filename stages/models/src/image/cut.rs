//! From bytes to the values of flattened patches.

use image::RgbImage;
use serde_json::Value;

/// How a picture, or a part of one, becomes rows of values: channel after channel, each a patch of lines.
pub(super) struct Cutter {
    /// Side of a patch in pixels.
    pub(super) patch: usize,
    /// How often each channel is repeated (frames of a still picture).
    pub(super) repeat: usize,
    /// What each byte becomes in each channel.
    pub(super) tables: [Vec<f32>; 3],
}

impl Cutter {
    /// Values of a row.
    pub(super) fn width(&self) -> usize {
        3 * self.repeat * self.patch * self.patch
    }

    /// Appends the patches at `places`, (row, column) in patches, to `pixels`.
    pub(super) fn cut(&self, image: &RgbImage, places: impl Iterator<Item = (usize, usize)>, pixels: &mut Vec<f32>) {
        let p = self.patch;
        for (row, column) in places {
            for (channel, table) in self.tables.iter().enumerate() {
                let start = pixels.len();
                for y in row * p..(row + 1) * p {
                    let line = (column * p..(column + 1) * p).map(|x| image.get_pixel(x as u32, y as u32)[channel]);
                    pixels.extend(line.map(|byte| table[byte as usize]));
                }
                for _ in 1..self.repeat {
                    pixels.extend_from_within(start..start + p * p);
                }
            }
        }
    }
}

/// What each byte becomes in each channel.
pub(super) fn value_tables(rescale: Option<f64>, normalise: Option<([f64; 3], [f64; 3])>) -> [Vec<f32>; 3] {
    [0, 1, 2].map(|channel| {
        let value = |byte: u32| {
            let scaled = (f64::from(byte) * rescale.unwrap_or(1.0)) as f32;
            match normalise {
                Some((mean, std)) => (scaled - mean[channel] as f32) / std[channel] as f32,
                None => scaled,
            }
        };
        (0..256).map(value).collect()
    })
}

/// Three numbers of a JSON list.
pub(super) fn triple(value: &Value) -> Option<[f64; 3]> {
    let list: Vec<f64> = value.as_array()?.iter().filter_map(Value::as_f64).collect();
    list.try_into().ok()
}
