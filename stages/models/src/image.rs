//! From a picture to the rows that a vision tower reads: resize, rescale, normalise, cut into patches.
//!
//! Every step equals the reference processor's: the target size is a multiple of one merged patch within the pixel budget, the
//! bicubic filter is Pillow's (separable, antialiased, a = -0.5, weights in 22-bit fixed point, 8-bit between the passes), and
//! patches come in merge-window order, so that the rows of one merged token are neighbours.

use candle_core::{Device, Tensor};
use image::RgbImage;
use serde_json::{Value, json};

use crate::error::{ModelError, Result};

/// A processed picture: `pixels` is `[t * h * w, channels * temporal * patch * patch]` in merge-window order.
#[derive(Debug, Clone)]
pub struct Patches {
    /// One flattened patch a row, f32 on the CPU; cloning shares it.
    pub pixels: Tensor,
    /// Patches along time, height and width.
    pub grid: [usize; 3],
}

impl Patches {
    /// Number of patches.
    pub fn len(&self) -> usize {
        self.grid.iter().product()
    }

    /// Whether there is no patch.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens that the picture takes in a prompt when `merge` patches a side become one.
    pub fn tokens(&self, merge: usize) -> usize {
        self.len() / (merge * merge)
    }
}

/// The settings of `preprocessor_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageProcessor {
    /// Whether pictures are brought to a multiple of one merged patch at all.
    pub do_resize: bool,
    /// Fewest pixels after resizing.
    pub min_pixels: usize,
    /// Most pixels after resizing.
    pub max_pixels: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Frames that one patch spans.
    pub temporal_patch_size: usize,
    /// Patches a side that merge into one token.
    pub merge_size: usize,
    /// Factor from bytes to unit range, if any.
    pub rescale: Option<f64>,
    /// Mean and standard deviation a channel, if pictures are normalised.
    pub normalise: Option<([f64; 3], [f64; 3])>,
}

impl Default for ImageProcessor {
    fn default() -> ImageProcessor {
        ImageProcessor {
            do_resize: true,
            min_pixels: 56 * 56,
            max_pixels: 28 * 28 * 1280,
            patch_size: 14,
            temporal_patch_size: 2,
            merge_size: 2,
            rescale: Some(1.0 / 255.0),
            normalise: Some(([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_58, 0.275_777_11])),
        }
    }
}

impl ImageProcessor {
    /// Reads the JSON of `preprocessor_config.json`, or the `image_processor` part of `processor_config.json`.
    pub fn from_json(value: &Value) -> ImageProcessor {
        let basis = ImageProcessor::default();
        let size = &value["size"];
        let number = |key: &str, fallback: usize| value[key].as_u64().map_or(fallback, |n| n as usize);
        let flag = |key: &str| value[key].as_bool().unwrap_or(true);
        let edge = |key: &str, fallback: usize| size[key].as_u64().map_or(fallback, |n| n as usize);
        let triple = |key: &str, fallback: [f64; 3]| channels(&value[key]).unwrap_or(fallback);
        let (mean, std) = basis.normalise.unwrap_or_default();
        ImageProcessor {
            do_resize: flag("do_resize"),
            min_pixels: number("min_pixels", edge("min_pixels", edge("shortest_edge", basis.min_pixels))),
            max_pixels: number("max_pixels", edge("max_pixels", edge("longest_edge", basis.max_pixels))),
            patch_size: number("patch_size", basis.patch_size),
            temporal_patch_size: number("temporal_patch_size", basis.temporal_patch_size),
            merge_size: number("merge_size", basis.merge_size),
            rescale: flag("do_rescale").then(|| value["rescale_factor"].as_f64().unwrap_or(1.0 / 255.0)),
            normalise: flag("do_normalize").then(|| (triple("image_mean", mean), triple("image_std", std))),
        }
    }

    /// The published form of `preprocessor_config.json`.
    pub fn to_json(&self) -> Value {
        let (mean, std) = self.normalise.unwrap_or(([0.0; 3], [1.0; 3]));
        json!({
            "do_convert_rgb": true,
            "do_normalize": self.normalise.is_some(),
            "do_rescale": self.rescale.is_some(),
            "do_resize": self.do_resize,
            "image_mean": mean,
            "image_processor_type": "Qwen2VLImageProcessor",
            "image_std": std,
            "max_pixels": self.max_pixels,
            "merge_size": self.merge_size,
            "min_pixels": self.min_pixels,
            "patch_size": self.patch_size,
            "processor_class": "Qwen2_5_VLProcessor",
            "resample": 3,
            "rescale_factor": self.rescale.unwrap_or(1.0 / 255.0),
            "size": { "longest_edge": self.max_pixels, "shortest_edge": self.min_pixels },
            "temporal_patch_size": self.temporal_patch_size,
        })
    }

    /// Resizes, normalises and cuts one picture.
    ///
    /// # Errors
    /// When a side is zero, one side is over 200 times the other, or (without resizing) the size is no multiple of a merged patch.
    pub fn process(&self, image: &RgbImage) -> Result<Patches> {
        let (width, height) = image.dimensions();
        let refuse = |message: &str| Err(ModelError::Image { width, height, message: message.into() });
        if width == 0 || height == 0 {
            return refuse("a side is empty");
        }
        let factor = self.patch_size * self.merge_size;
        if !self.do_resize {
            if [width, height].iter().any(|side| !(*side as usize).is_multiple_of(factor)) {
                return refuse(&format!("resizing is off, so both sides must be multiples of {factor}"));
            }
            return self.cut(image);
        }
        if width.max(height) > 200 * width.min(height) {
            return refuse("one side is more than 200 times the other");
        }
        let (rows, columns) = smart_size(height as usize, width as usize, factor, self.min_pixels, self.max_pixels);
        self.cut(&resize_bicubic(image, columns as u32, rows as u32))
    }

    /// Patches of a picture whose sides already fit, in merge-window order.
    fn cut(&self, image: &RgbImage) -> Result<Patches> {
        let (p, m) = (self.patch_size, self.merge_size);
        let (rows, columns) = (image.height() as usize / p, image.width() as usize / p);
        let tables = self.value_tables();
        let mut pixels = Vec::with_capacity(rows * columns * 3 * self.temporal_patch_size * p * p);
        for (row, column) in merge_order(rows, columns, m) {
            for (channel, table) in tables.iter().enumerate() {
                let start = pixels.len();
                for y in row * p..(row + 1) * p {
                    let line = (column * p..(column + 1) * p).map(|x| image.get_pixel(x as u32, y as u32)[channel]);
                    pixels.extend(line.map(|byte| table[byte as usize]));
                }
                for _ in 1..self.temporal_patch_size {
                    pixels.extend_from_within(start..start + p * p);
                }
            }
        }
        let shape = (rows * columns, 3 * self.temporal_patch_size * p * p);
        Ok(Patches { pixels: Tensor::from_vec(pixels, shape, &Device::Cpu)?, grid: [1, rows, columns] })
    }

    /// What each byte becomes in each channel.
    fn value_tables(&self) -> [Vec<f32>; 3] {
        [0, 1, 2].map(|channel| {
            let value = |byte: u32| {
                let scaled = (f64::from(byte) * self.rescale.unwrap_or(1.0)) as f32;
                match self.normalise {
                    Some((mean, std)) => (scaled - mean[channel] as f32) / std[channel] as f32,
                    None => scaled,
                }
            };
            (0..256).map(value).collect()
        })
    }
}

fn channels(value: &Value) -> Option<[f64; 3]> {
    let list: Vec<f64> = value.as_array()?.iter().filter_map(Value::as_f64).collect();
    list.try_into().ok()
}

/// (row, column) of every patch of a picture in the order of the tower's rows: the `merge * merge` patches of a token together.
pub fn merge_order(rows: usize, columns: usize, merge: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows / merge).flat_map(move |block_row| {
        (0..columns / merge).flat_map(move |block_column| {
            (0..merge).flat_map(move |y| (0..merge).map(move |x| (block_row * merge + y, block_column * merge + x)))
        })
    })
}

/// Height and width that a picture is resized to: multiples of `factor`, within the pixel budget, the ratio kept where it can be.
pub fn smart_size(height: usize, width: usize, factor: usize, min_pixels: usize, max_pixels: usize) -> (usize, usize) {
    let unit = factor as f64;
    let (h, w) = (height as f64, width as f64);
    let nearest = |side: f64| (side / unit).round_ties_even() * unit;
    let (mut rows, mut columns) = (nearest(h).max(unit), nearest(w).max(unit));
    if nearest(h) * nearest(w) > max_pixels as f64 {
        let shrink = (h * w / max_pixels as f64).sqrt();
        let fit = |side: f64| ((side / shrink / unit).floor() * unit).max(unit);
        (rows, columns) = (fit(h), fit(w));
    } else if nearest(h) * nearest(w) < min_pixels as f64 {
        let grow = (min_pixels as f64 / (h * w)).sqrt();
        let fit = |side: f64| (side * grow / unit).ceil() * unit;
        (rows, columns) = (fit(h), fit(w));
    }
    (rows as usize, columns as usize)
}

/// Fixed-point fraction bits of a filter weight.
const PRECISION: u32 = 22;

/// Source pixels that one target pixel reads: where they start and what each counts.
struct Tap {
    start: usize,
    weights: Vec<i32>,
}

fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn taps(source: usize, target: usize) -> Vec<Tap> {
    let scale = source as f64 / target as f64;
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    (0..target)
        .map(|index| {
            let centre = (index as f64 + 0.5) * scale;
            let start = ((centre - support + 0.5) as i64).max(0) as usize;
            let end = ((centre + support + 0.5) as usize).min(source);
            let raw: Vec<f64> = (start..end).map(|x| cubic((x as f64 - centre + 0.5) * (1.0 / stretch))).collect();
            let total: f64 = raw.iter().sum();
            let fixed = |weight: f64| (weight / total * f64::from(1 << PRECISION)).round() as i32;
            Tap { start, weights: raw.into_iter().map(fixed).collect() }
        })
        .collect()
}

fn weigh(tap: &Tap, pixel: impl Fn(usize) -> u8) -> u8 {
    let half = 1i32 << (PRECISION - 1);
    let sum = tap.weights.iter().enumerate().fold(half, |sum, (i, w)| sum + i32::from(pixel(tap.start + i)) * w);
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Pillow's `Image.resize((width, height), BICUBIC)`.
pub fn resize_bicubic(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let mut wide = image.clone();
    if width != image.width() {
        let taps = taps(image.width() as usize, width as usize);
        wide = RgbImage::from_fn(width, image.height(), |x, y| {
            let tap = &taps[x as usize];
            image::Rgb([0, 1, 2].map(|c| weigh(tap, |at| image.get_pixel(at as u32, y)[c])))
        });
    }
    if height == image.height() {
        return wide;
    }
    let taps = taps(image.height() as usize, height as usize);
    RgbImage::from_fn(width, height, |x, y| {
        let tap = &taps[y as usize];
        image::Rgb([0, 1, 2].map(|c| weigh(tap, |at| wide.get_pixel(x, at as u32)[c])))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_pixel_budget() {
        for (height, width, min, max, expected) in [
            (150, 210, 28 * 28 * 4, 28 * 28 * 64, (140, 224)),
            (112, 112, 3136, 1 << 20, (112, 112)),
            (1000, 2000, 3136, 28 * 28 * 64, (140, 308)),
            (10, 10, 3136, 1 << 20, (56, 56)),
            (42, 70, 784, 1 << 20, (56, 56)),
        ] {
            assert_eq!(smart_size(height, width, 28, min, max), expected, "{height} x {width}");
        }
    }

    #[test]
    fn patches_of_one_token_are_neighbours() {
        let order: Vec<_> = merge_order(4, 4, 2).collect();
        assert_eq!(order[..4], [(0, 0), (0, 1), (1, 0), (1, 1)]);
        assert_eq!(order[4..8], [(0, 2), (0, 3), (1, 2), (1, 3)]);
        assert_eq!(order.len(), 16);
    }

    #[test]
    fn a_flat_picture_stays_flat_and_is_normalised() {
        let image = RgbImage::from_pixel(50, 40, image::Rgb([255, 128, 0]));
        let patches = ImageProcessor::default().process(&image).unwrap();
        assert_eq!(patches.grid, [1, 4, 4 + 2]);
        let row = patches.pixels.get(0).unwrap().to_vec1::<f32>().unwrap();
        assert!((row[0] - (1.0 - 0.481_454_66) / 0.268_629_54).abs() < 1e-6);
        assert_eq!(row.len(), 3 * 2 * 14 * 14);
        assert!(row[..392].iter().all(|v| *v == row[0]));
    }

    #[test]
    fn a_ribbon_is_refused() {
        let error = ImageProcessor::default().process(&RgbImage::new(2, 500)).unwrap_err();
        assert!(error.to_string().contains("200 times"), "{error}");
    }

    #[test]
    fn settings_survive_their_json() {
        let processor = ImageProcessor { max_pixels: 12_544, min_pixels: 12_544, ..ImageProcessor::default() };
        assert_eq!(ImageProcessor::from_json(&processor.to_json()), processor);
    }
}
