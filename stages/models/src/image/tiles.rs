//! InternVL's pictures: a grid of square tiles whose ratio is nearest to the picture's, then the whole picture as one more tile.

use image::RgbImage;
use serde_json::{Value, json};

use super::Patches;
use super::canvas::Canvas;
use super::cut::{Cutter, Part, triple};
use super::resize::{Filter, Resized};
use crate::error::{ModelError, Result};

/// The settings of InternVL's picture processor.
#[derive(Debug, Clone, PartialEq)]
pub struct Tiles {
    /// Side of a tile in pixels.
    pub tile: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Patches a side that become one token.
    pub merge: usize,
    /// Whether a picture is cut into tiles at all.
    pub split: bool,
    /// Fewest tiles.
    pub min_tiles: usize,
    /// Most tiles, the whole picture not counted.
    pub max_tiles: usize,
    /// Factor from bytes to unit range, if any.
    pub rescale: Option<f64>,
    /// Mean and standard deviation a channel, if pictures are normalised.
    pub normalise: Option<([f64; 3], [f64; 3])>,
}

/// ImageNet's mean and standard deviation, with which InternViT was trained.
const IMAGENET: ([f64; 3], [f64; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

impl Tiles {
    /// Reads the JSON of `preprocessor_config.json`, or the `image_processor` part of `processor_config.json`, in the form of
    /// transformers.
    ///
    /// # Errors
    /// A message that names the key.
    pub fn from_json(value: &Value, patch_size: usize, merge: usize) -> std::result::Result<Tiles, String> {
        let side = |key: &str| value["size"][key].as_u64().map(|side| side as usize);
        let tile = side("height").ok_or("`size.height` is missing")?;
        if side("width") != Some(tile) {
            return Err(format!("`size` is {}; tiles must be square", value["size"]));
        }
        if value["resample"].as_u64().is_some_and(|filter| filter != 3) {
            return Err(format!("`resample` is {}; only 3, bicubic, is supported", value["resample"]));
        }
        let flag = |key: &str| value[key].as_bool().unwrap_or(true);
        let number = |key: &str, fallback: usize| value[key].as_u64().map_or(fallback, |number| number as usize);
        let three = |key: &str| triple(&value[key]).ok_or_else(|| format!("`{key}` must be three numbers"));
        let normalise = if flag("do_normalize") { Some((three("image_mean")?, three("image_std")?)) } else { None };
        let tiles = Tiles {
            tile,
            patch_size,
            merge,
            split: value["crop_to_patches"].as_bool().unwrap_or(false),
            min_tiles: number("min_patches", 1),
            max_tiles: number("max_patches", 12),
            rescale: flag("do_rescale").then(|| value["rescale_factor"].as_f64().unwrap_or(1.0 / 255.0)),
            normalise,
        };
        tiles.check()?;
        Ok(tiles)
    }

    /// Reads the tiling settings of `config.json` in the published form, which has no other place for them.
    ///
    /// # Errors
    /// A message that names the key.
    pub fn from_published(config: &Value, patch_size: usize, merge: usize) -> std::result::Result<Tiles, String> {
        let number = |key: &str| config[key].as_u64().map(|number| number as usize);
        let tile =
            number("force_image_size").or_else(|| config["vision_config"]["image_size"].as_u64().map(|n| n as usize));
        if config["use_thumbnail"] == false {
            return Err("`use_thumbnail` is off, which transformers cannot express either; it is not supported".into());
        }
        let tiles = Tiles {
            tile: tile.ok_or("`force_image_size` is missing")?,
            patch_size,
            merge,
            split: config["dynamic_image_size"].as_bool().unwrap_or(true),
            min_tiles: number("min_dynamic_patch").unwrap_or(1),
            max_tiles: number("max_dynamic_patch").unwrap_or(12),
            rescale: Some(1.0 / 255.0),
            normalise: Some(IMAGENET),
        };
        tiles.check()?;
        Ok(tiles)
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.min_tiles == 0 || self.min_tiles > self.max_tiles {
            return Err(format!("{} to {} tiles are no range", self.min_tiles, self.max_tiles));
        }
        let unit = self.patch_size * self.merge;
        if unit == 0 || self.tile == 0 || !self.tile.is_multiple_of(unit) {
            return Err(format!("a tile of {} pixels does not divide into tokens of {unit}", self.tile));
        }
        Ok(())
    }

    /// The form of `preprocessor_config.json` that transformers reads.
    pub fn to_json(&self) -> Value {
        let (mean, std) = self.normalise.unwrap_or(([0.0; 3], [1.0; 3]));
        json!({
            "crop_to_patches": self.split,
            "do_convert_rgb": true,
            "do_normalize": self.normalise.is_some(),
            "do_rescale": self.rescale.is_some(),
            "do_resize": true,
            "image_mean": mean,
            "image_processor_type": "GotOcr2ImageProcessor",
            "image_std": std,
            "max_patches": self.max_tiles,
            "min_patches": self.min_tiles,
            "processor_class": "InternVLProcessor",
            "resample": 3,
            "rescale_factor": self.rescale.unwrap_or(1.0 / 255.0),
            "size": { "height": self.tile, "width": self.tile },
        })
    }

    /// Tokens of one tile.
    pub fn tile_tokens(&self) -> usize {
        (self.tile / self.patch_size / self.merge).pow(2)
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
        let (columns, rows) = match self.split && self.max_tiles > 1 {
            true => self.canvas(width as usize, height as usize),
            false => (1, 1),
        };
        let block = self.tile / self.patch_size;
        let part = |columns: usize, rows: usize| {
            let size = [columns, rows].map(|tiles| tiles * self.tile);
            Part { canvas: Canvas::of(Resized::new(image, size, filter)), block }
        };
        let mut parts = vec![part(columns, rows)];
        if rows * columns > 1 {
            parts.push(part(1, 1));
        }
        let tiles = rows * columns + parts.len() - 1;
        Ok(Patches {
            pixels: Cutter::new(self.patch_size, 1, self.rescale, self.normalise).cut(&parts)?,
            grid: [tiles, block, block],
            tokens: tiles * self.tile_tokens(),
            picks: None,
        })
    }

    /// Columns and rows of the grid nearest in ratio; of equals the later, larger one while the picture fills half of it.
    fn canvas(&self, width: usize, height: usize) -> (usize, usize) {
        let ratio = width as f64 / height as f64;
        let area = (width * height) as f64;
        let mut grids: Vec<(usize, usize)> = (1..=self.max_tiles)
            .flat_map(|columns| (1..=self.max_tiles).map(move |rows| (columns, rows)))
            .filter(|(columns, rows)| (self.min_tiles..=self.max_tiles).contains(&(columns * rows)))
            .collect();
        grids.sort_by_key(|(columns, rows)| columns * rows);
        let (mut best, mut nearest) = ((1, 1), f64::INFINITY);
        for (columns, rows) in grids {
            let distance = (ratio - columns as f64 / rows as f64).abs();
            let fills = area > 0.5 * (self.tile * self.tile * columns * rows) as f64;
            if distance < nearest || (distance == nearest && fills) {
                (best, nearest) = ((columns, rows), distance);
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processor() -> Tiles {
        let (rescale, normalise) = (Some(1.0 / 255.0), Some(IMAGENET));
        Tiles { tile: 56, patch_size: 14, merge: 2, split: true, min_tiles: 1, max_tiles: 12, rescale, normalise }
    }

    #[test]
    fn the_grid_follows_ratio_and_size() {
        let tiles = processor();
        assert_eq!(tiles.canvas(56, 56), (1, 1));
        assert_eq!(tiles.canvas(500, 500), (3, 3));
        assert_eq!(tiles.canvas(210, 150), (4, 3));
        assert_eq!(Tiles { max_tiles: 6, ..tiles.clone() }.canvas(210, 150), (3, 2));
        assert_eq!(tiles.canvas(10_000, 1), (12, 1));
    }

    #[test]
    fn several_tiles_are_followed_by_the_whole() {
        let patches = Tiles { max_tiles: 6, ..processor() }.process(&RgbImage::new(210, 150)).unwrap();
        assert_eq!((patches.grid, patches.tokens), ([7, 4, 4], 28));
        let one = processor().process(&RgbImage::new(1, 1)).unwrap();
        assert_eq!((one.grid, one.tokens), ([1, 4, 4], 4));
        assert!(processor().process(&RgbImage::new(3, 0)).is_err());
    }

    #[test]
    fn settings_survive_their_json_and_nonsense_is_named() {
        let tiles = processor();
        assert_eq!(Tiles::from_json(&tiles.to_json(), 14, 2).unwrap(), tiles);
        let mut odd = tiles.to_json();
        odd["min_patches"] = 13.into();
        assert!(Tiles::from_json(&odd, 14, 2).unwrap_err().contains("13 to 12 tiles"));
        let published = json!({ "force_image_size": 56, "dynamic_image_size": true, "max_dynamic_patch": 12,
            "min_dynamic_patch": 1, "use_thumbnail": true });
        assert_eq!(Tiles::from_published(&published, 14, 2).unwrap(), tiles);
    }
}
