//! LLaVA-NeXT's pictures: the whole picture squeezed into one square tile, then the picture at the best of a list of resolutions,
//! padded with black and cut into tiles.
//!
//! The tower encodes all tiles; a prompt holds the tokens of the first tile, then those of the others laid out as one grid of lines
//! without the lines and columns that are padding, each line closed by a newline token ([`Patches::picks`]).

use std::sync::Arc;

use image::RgbImage;
use serde_json::{Value, json};

use super::canvas::Canvas;
use super::cut::{Cutter, Part, triple};
use super::resize::{Filter, Resized};
use super::{NEWLINE, Patches};
use crate::error::{ModelError, Result};

/// The settings of `preprocessor_config.json`, LLaVA-NeXT's kind.
#[derive(Debug, Clone, PartialEq)]
pub struct AnyRes {
    /// Side of a tile in pixels.
    pub tile: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Resolutions to choose from, (height, width), multiples of a tile.
    pub pinpoints: Vec<[usize; 2]>,
    /// Factor from bytes to unit range, if any.
    pub rescale: Option<f64>,
    /// Mean and standard deviation a channel, if pictures are normalised.
    pub normalise: Option<([f64; 3], [f64; 3])>,
}

impl AnyRes {
    /// Reads the JSON of `preprocessor_config.json`, or the `image_processor` part of `processor_config.json`; the patch size is the
    /// vision tower's.
    ///
    /// # Errors
    /// A message that names the key.
    pub fn from_json(value: &Value, patch_size: usize) -> std::result::Result<AnyRes, String> {
        let side = |value: &Value| value["shortest_edge"].as_u64().or_else(|| value["height"].as_u64());
        let size = side(&value["size"]).ok_or("`size.shortest_edge` is missing")? as usize;
        let tile = side(&value["crop_size"]).map_or(size, |side| side as usize);
        if size != tile {
            return Err(format!("`size` is {size}, but `crop_size` {tile}: tiles that are cropped are not supported"));
        }
        if value["resample"].as_u64().is_some_and(|filter| filter != 3) {
            return Err(format!("`resample` is {}; only 3, bicubic, is supported", value["resample"]));
        }
        for key in ["do_resize", "do_center_crop"] {
            if value[key] == false {
                return Err(format!("`{key}` is off, which is not supported"));
            }
        }
        let flag = |key: &str| value[key].as_bool().unwrap_or(true);
        let three = |key: &str| triple(&value[key]).ok_or_else(|| format!("`{key}` must be three numbers"));
        let normalise = if flag("do_normalize") { Some((three("image_mean")?, three("image_std")?)) } else { None };
        Ok(AnyRes {
            tile,
            patch_size,
            pinpoints: pinpoints(&value["image_grid_pinpoints"], tile)?,
            rescale: flag("do_rescale").then(|| value["rescale_factor"].as_f64().unwrap_or(1.0 / 255.0)),
            normalise,
        })
    }

    /// The published form of `preprocessor_config.json`.
    pub fn to_json(&self) -> Value {
        let (mean, std) = self.normalise.unwrap_or(([0.0; 3], [1.0; 3]));
        json!({
            "crop_size": { "height": self.tile, "width": self.tile },
            "do_center_crop": true,
            "do_convert_rgb": true,
            "do_normalize": self.normalise.is_some(),
            "do_pad": true,
            "do_rescale": self.rescale.is_some(),
            "do_resize": true,
            "image_grid_pinpoints": self.pinpoints,
            "image_mean": mean,
            "image_processor_type": "LlavaNextImageProcessor",
            "image_std": std,
            "processor_class": "LlavaNextProcessor",
            "resample": 3,
            "rescale_factor": self.rescale.unwrap_or(1.0 / 255.0),
            "size": { "shortest_edge": self.tile },
        })
    }

    /// Tiles of one picture.
    ///
    /// # Errors
    /// When a side is empty.
    pub fn process(&self, image: &RgbImage) -> Result<Patches> {
        self.process_with(image, Filter::default())
    }

    /// [`Self::process`] with either filter.
    ///
    /// # Errors
    /// As [`Self::process`].
    pub fn process_with(&self, image: &RgbImage, filter: Filter) -> Result<Patches> {
        let (width, height) = image.dimensions();
        if width == 0 || height == 0 {
            return Err(ModelError::Image { width, height, message: "a side is empty".into() });
        }
        let best = best_resolution([height as usize, width as usize], &self.pinpoints);
        let side = self.tile / self.patch_size;
        let [rows, columns] = best.map(|length| length / self.tile);
        let whole = Canvas::of(Resized::new(image, [self.tile; 2], filter));
        let parts = [whole, fit(image, best, filter)].map(|canvas| Part { canvas, block: side });
        let picks = picks([height as usize, width as usize], [rows, columns], side);
        Ok(Patches {
            pixels: Cutter::new(self.patch_size, 1, self.rescale, self.normalise).cut(&parts)?,
            grid: [1 + rows * columns, side, side],
            tokens: picks.len(),
            picks: Some(Arc::new(picks)),
        })
    }
}

/// The resolutions of a JSON list of (height, width).
///
/// # Errors
/// When it is no such list, or a side is no multiple of a tile.
pub fn pinpoints(value: &Value, tile: usize) -> std::result::Result<Vec<[usize; 2]>, String> {
    let pair = |entry: &Value| -> Option<[usize; 2]> {
        let sides: Vec<usize> = entry.as_array()?.iter().filter_map(Value::as_u64).map(|side| side as usize).collect();
        sides.try_into().ok()
    };
    let list: Option<Vec<[usize; 2]>> = value.as_array().and_then(|list| list.iter().map(pair).collect());
    let list = list.filter(|list| !list.is_empty()).ok_or("`image_grid_pinpoints` must list [height, width] pairs")?;
    let fits = |sides: &[usize; 2]| tile > 0 && sides.iter().all(|side| *side > 0 && side.is_multiple_of(tile));
    match list.iter().find(|sides| !fits(sides)) {
        Some(sides) => Err(format!("`image_grid_pinpoints` holds {sides:?}, no multiple of a tile of {tile} pixels")),
        None => Ok(list),
    }
}

/// The resolution, (height, width), that keeps most of a picture's pixels and, among equals, wastes fewest of its own.
pub fn best_resolution(size: [usize; 2], resolutions: &[[usize; 2]]) -> [usize; 2] {
    let [height, width] = size.map(|side| side as f64);
    let (mut best, mut most, mut least) = (resolutions[0], 0.0, f64::INFINITY);
    for &[rows, columns] in resolutions {
        let scale = (columns as f64 / width).min(rows as f64 / height);
        let effective = ((width * scale).trunc() * (height * scale).trunc()).min(width * height);
        let wasted = (rows * columns) as f64 - effective;
        if effective > most || (effective == most && wasted < least) {
            (best, most, least) = ([rows, columns], effective, wasted);
        }
    }
    best
}

/// The picture as large as a canvas (height, width) allows, in its middle, black around it.
fn fit(image: &RgbImage, [rows, columns]: [usize; 2], filter: Filter) -> Canvas<'_> {
    let (width, height) = (f64::from(image.width()), f64::from(image.height()));
    let (wide, high) = (columns as f64 / width, rows as f64 / height);
    let (new_width, new_height) = match wide < high {
        true => (columns, ((height * wide).ceil() as usize).min(rows)),
        false => (((width * high).ceil() as usize).min(columns), rows),
    };
    Canvas::around(Resized::new(image, [new_width, new_height], filter), [columns, rows])
}

/// The tower's row of every token: the first tile's rows, then the grid's lines without padding, a newline behind each.
fn picks(size: [usize; 2], [tile_rows, tile_columns]: [usize; 2], side: usize) -> Vec<u32> {
    let (rows, columns) = (tile_rows * side, tile_columns * side);
    let (top, left) = padding(size, [rows, columns]);
    let mut picks: Vec<u32> = (0..(side * side) as u32).collect();
    for row in top..rows - top {
        for column in left..columns - left {
            let tile = 1 + (row / side) * tile_columns + column / side;
            picks.push((tile * side * side + row % side * side + column % side) as u32);
        }
        picks.push(NEWLINE);
    }
    picks
}

/// Lines above (and below) and columns left (and right) of a grid that hold nothing but padding.
fn padding([height, width]: [usize; 2], [rows, columns]: [usize; 2]) -> (usize, usize) {
    let (high, wide) = (height as f64, width as f64);
    // The reference rounds to seven digits before it cuts, so that 23.999999999 counts as 24.
    let whole = |length: f64| ((length * 1e7).round_ties_even() / 1e7) as usize;
    if wide / high > columns as f64 / rows as f64 {
        ((rows - whole(high * (columns as f64 / wide))) / 2, 0)
    } else {
        (0, (columns - whole(wide * (rows as f64 / high))) / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processor() -> AnyRes {
        let pinpoints = vec![[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]];
        AnyRes { tile: 56, patch_size: 14, pinpoints, rescale: Some(1.0 / 255.0), normalise: None }
    }

    #[test]
    fn the_best_resolution_keeps_most_pixels() {
        let list = processor().pinpoints;
        assert_eq!(best_resolution([150, 210], &list), [112, 112]);
        assert_eq!(best_resolution([40, 100], &list), [56, 112]);
        assert_eq!(best_resolution([400, 60], &list), [168, 56]);
        assert_eq!(best_resolution([1, 1], &list), [56, 112]);
    }

    #[test]
    fn padding_is_left_out_and_lines_are_closed() {
        let patches = processor().process(&RgbImage::new(210, 150)).unwrap();
        assert_eq!(patches.grid, [5, 4, 4]);
        // 150 / 210 of 8 lines are 5.7, cut to 5: one line of padding goes above and one below.
        assert_eq!(patches.tokens, 16 + 6 * 9);
        let picks = patches.picks.unwrap();
        assert_eq!(picks[16..26], [20, 21, 22, 23, 36, 37, 38, 39, NEWLINE, 24]);
    }

    #[test]
    fn extreme_pictures_are_taken() {
        for (width, height) in [(1, 1), (10_000, 1), (1, 3000)] {
            let patches = processor().process(&RgbImage::new(width, height)).unwrap();
            assert_eq!(patches.pixels.dim(0).unwrap(), patches.len());
            assert!(patches.tokens >= 16 && patches.picks.unwrap().len() == patches.tokens);
        }
        assert!(processor().process(&RgbImage::new(0, 4)).is_err());
    }

    #[test]
    fn settings_survive_their_json_and_nonsense_is_named() {
        let normalise = Some(([0.5; 3], [0.25; 3]));
        let processor = AnyRes { normalise, ..processor() };
        assert_eq!(AnyRes::from_json(&processor.to_json(), 14).unwrap(), processor);
        let mut odd = processor.to_json();
        odd["image_grid_pinpoints"] = json!([[56, 57]]);
        assert!(AnyRes::from_json(&odd, 14).unwrap_err().contains("[56, 57]"));
    }
}
