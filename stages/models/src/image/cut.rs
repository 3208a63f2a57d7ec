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
    pub(super) tables: [Box<[f32; 256]>; 3],
}

impl Cutter {
    /// Values of a row.
    pub(super) fn width(&self) -> usize {
        3 * self.repeat * self.patch * self.patch
    }

    /// Appends the patches at `places`, (row, column) in patches, to `pixels`.
    pub(super) fn cut(&self, image: &RgbImage, places: impl Iterator<Item = (usize, usize)>, pixels: &mut Vec<f32>) {
        let p = self.patch;
        let (bytes, line) = (image.as_raw(), 3 * image.width() as usize);
        for (row, column) in places {
            for (channel, table) in self.tables.iter().enumerate() {
                let start = pixels.len();
                for y in row * p..(row + 1) * p {
                    let row = &bytes[y * line + 3 * column * p..][..3 * p];
                    pixels.extend(row.chunks_exact(3).map(|pixel| table[pixel[channel] as usize]));
                }
                for _ in 1..self.repeat {
                    pixels.extend_from_within(start..start + p * p);
                }
            }
        }
    }
}

/// What each byte becomes in each channel.
pub(super) fn value_tables(rescale: Option<f64>, normalise: Option<([f64; 3], [f64; 3])>) -> [Box<[f32; 256]>; 3] {
    [0, 1, 2].map(|channel| {
        let value = |byte: u32| {
            let scaled = (f64::from(byte) * rescale.unwrap_or(1.0)) as f32;
            match normalise {
                Some((mean, std)) => (scaled - mean[channel] as f32) / std[channel] as f32,
                None => scaled,
            }
        };
        Box::new(std::array::from_fn(|byte| value(byte as u32)))
    })
}

/// Three numbers of a JSON list.
pub(super) fn triple(value: &Value) -> Option<[f64; 3]> {
    let list: Vec<f64> = value.as_array()?.iter().filter_map(Value::as_f64).collect();
    list.try_into().ok()
}
