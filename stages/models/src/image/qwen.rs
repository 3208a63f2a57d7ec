//! Qwen's pictures: any size that is a multiple of one merged patch within a pixel budget, its ratio kept.

use image::RgbImage;
use serde_json::{Value, json};

use super::Patches;
use super::canvas::Canvas;
use super::cut::{Cutter, Part, triple};
use super::resize::{Filter, Resized};
use crate::error::{ModelError, Result};

const QWEN2_5: &str = "Qwen2_5_VLProcessor";
const QWEN2: &str = "Qwen2VLProcessor";

/// The settings of `preprocessor_config.json`, Qwen's kind.
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
    /// The class that transformers loads the directory with.
    pub processor_class: &'static str,
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
            processor_class: QWEN2_5,
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
        let three = |key: &str, fallback: [f64; 3]| triple(&value[key]).unwrap_or(fallback);
        let (mean, std) = basis.normalise.unwrap_or_default();
        ImageProcessor {
            do_resize: flag("do_resize"),
            min_pixels: number("min_pixels", edge("min_pixels", edge("shortest_edge", basis.min_pixels))),
            max_pixels: number("max_pixels", edge("max_pixels", edge("longest_edge", basis.max_pixels))),
            patch_size: number("patch_size", basis.patch_size),
            temporal_patch_size: number("temporal_patch_size", basis.temporal_patch_size),
            merge_size: number("merge_size", basis.merge_size),
            rescale: flag("do_rescale").then(|| value["rescale_factor"].as_f64().unwrap_or(1.0 / 255.0)),
            normalise: flag("do_normalize").then(|| (three("image_mean", mean), three("image_std", std))),
            processor_class: if value["processor_class"] == QWEN2 { QWEN2 } else { QWEN2_5 },
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
            "processor_class": self.processor_class,
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
        self.process_with(image, Filter::default())
    }

    /// [`Self::process`] with either filter.
    ///
    /// # Errors
    /// As [`Self::process`].
    pub fn process_with(&self, image: &RgbImage, filter: Filter) -> Result<Patches> {
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
            return self.cut(Resized::same(image));
        }
        if width.max(height) > 200 * width.min(height) {
            return refuse("one side is more than 200 times the other");
        }
        let (rows, columns) = smart_size(height as usize, width as usize, factor, self.min_pixels, self.max_pixels);
        self.cut(Resized::new(image, [columns, rows], filter))
    }

    /// Patches of a picture whose sides already fit, in merge-window order.
    fn cut(&self, picture: Resized) -> Result<Patches> {
        let [columns, rows] = picture.size.map(|side| side / self.patch_size);
        let cutter = Cutter::new(self.patch_size, self.temporal_patch_size, self.rescale, self.normalise);
        let pixels = cutter.cut(&[Part { canvas: Canvas::of(picture), block: self.merge_size }])?;
        let tokens = rows * columns / (self.merge_size * self.merge_size);
        Ok(Patches { pixels, grid: [1, rows, columns], tokens, picks: None })
    }
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
