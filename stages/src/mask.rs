//! Masks: hiding the object of an item.
//!
//! A model sees an item only as a [`MaskedImage`]; there is no other way to open one. The mask is a [`Coverage`] of 0 to
//! 255 a pixel, and the shown colour is `(picture * (255 - c) + fill * c) / 255`, rounded like Pillow's `paste`.
//!
//! | preset | box | soft edge | hides the whole box |
//! |---|---|---|---|
//! | `fixed` (default) | every pixel the box touches | fades linearly outside it, over 4 px in pictures up to 160 px, else 10 px | yes |
//! | `authors` | corners truncated to integers, both included | Gaussian blur of radius 5 as Pillow does it | no: full strength about 14 px inside, so boxes with a side under 29 px leak the object |
//!
//! `edge`, `feather`, `fill`, `shape` and `min_side` change one thing each. Limits: `shape: segment` with the authors' blur
//! leaks the more, the thinner the object; [`MaskedImage::leak`] counts what still shows.

pub mod blur;
pub mod coverage;

use image::RgbImage;
use mpcc_engine::cache::Digest;
use mpcc_engine::stage::{ParamError, StageError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::segment::{self, SegmentError};
use crate::dataset::{Dataset, DatasetError};
use crate::record::Region;
use coverage::Coverage;

/// Whose mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MaskPreset {
    /// As the authors' scripts draw it.
    Authors,
    /// The whole box hidden, the soft edge outside.
    #[default]
    Fixed,
}

/// The edge of a mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Edge {
    /// Feathered.
    #[default]
    Soft,
    /// Sharp.
    Hard,
}

/// What is hidden.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// The whole box.
    #[default]
    Box,
    /// The annotated outline.
    Segment,
}

/// How an object is hidden.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Mask {
    /// Whose mask: decides where the edge lies and what the other settings default to.
    pub preset: MaskPreset,
    /// Soft or hard edge.
    pub edge: Edge,
    /// The colour laid over the object.
    pub fill: [u8; 3],
    /// Width of the soft edge in pixels: the blur's radius (`authors`), or how far the edge reaches outward (`fixed`).
    /// Default 5 (`authors`); 4 in pictures up to 160 px, else 10 (`fixed`).
    pub feather: Option<f32>,
    /// The box or the annotated outline.
    pub shape: Shape,
    /// Boxes with a shorter side are widened to this many pixels about their centre before they are hidden.
    pub min_side: f64,
}

/// Why an item cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum MaskError {
    /// The picture cannot be opened.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The region was made from another picture.
    #[error(
        "{image}: region {region} was annotated on other bytes ({expected}, the picture is {found}); import and select again"
    )]
    OtherPicture {
        /// The picture.
        image: String,
        /// The region's id.
        region: String,
        /// Digest in the region.
        expected: String,
        /// Digest of the picture.
        found: String,
    },
    /// A segment is wanted and the dataset has none.
    #[error("{image}: annotation {annotation} has no outline, which `shape: segment` needs; use `shape: box`")]
    NoSegment {
        /// The picture.
        image: String,
        /// The annotation.
        annotation: u64,
    },
    /// The outline is broken.
    #[error("{image}: annotation {annotation}: {source}")]
    Segment {
        /// The picture.
        image: String,
        /// The annotation.
        annotation: u64,
        /// The cause.
        source: SegmentError,
    },
}

impl From<MaskError> for StageError {
    fn from(error: MaskError) -> Self {
        match error {
            MaskError::Dataset(error) => error.into(),
            other => Self::Invalid(other.to_string()),
        }
    }
}

impl Mask {
    /// The authors' mask.
    pub fn authors() -> Self {
        Self { preset: MaskPreset::Authors, ..Self::default() }
    }

    /// Checks the values, for [`mpcc_engine::stage::Stage::check`]; `param` is what the stage calls its mask.
    pub fn check(&self, param: &str) -> Result<(), ParamError> {
        let feather = self.feather.unwrap_or(0.0);
        if !feather.is_finite() || !(0.0..=256.0).contains(&feather) {
            return Err(ParamError::new(param, format!("`feather: {feather}` is not between 0 and 256 pixels")));
        }
        match self.min_side.is_finite() && self.min_side >= 0.0 {
            true => Ok(()),
            false => Err(ParamError::new(param, format!("`min_side: {}` is no number of pixels", self.min_side))),
        }
    }

    /// The box in pixels, first included, end not, not yet cut off at the picture's edge.
    fn bounds(&self, bbox: [f64; 4]) -> (std::ops::Range<i64>, std::ops::Range<i64>) {
        let [x, y, width, height] = bbox;
        let widen = |start: f64, side: f64| {
            let extra = (self.min_side - side).max(0.0) / 2.0;
            (start - extra, start + side + extra)
        };
        let ((left, right), (top, bottom)) = (widen(x, width), widen(y, height));
        let range = |start: f64, end: f64| match self.preset {
            MaskPreset::Authors => start.trunc() as i64..end.trunc() as i64 + 1,
            MaskPreset::Fixed => start.floor() as i64..end.ceil() as i64,
        };
        (range(left, right), range(top, bottom))
    }

    fn feather(&self, width: u32, height: u32) -> f32 {
        match (self.edge, self.preset) {
            (Edge::Hard, _) => 0.0,
            (Edge::Soft, MaskPreset::Authors) => self.feather.unwrap_or(5.0),
            (Edge::Soft, MaskPreset::Fixed) => {
                self.feather.unwrap_or(if width.max(height) <= 160 { 4.0 } else { 10.0 })
            }
        }
    }

    /// What is hidden at full strength before the edge is drawn, in a picture of `width` x `height`.
    pub fn solid(&self, width: u32, height: u32, bbox: [f64; 4], outline: Option<&[bool]>) -> Coverage {
        let mut coverage = Coverage::new(width, height);
        match outline {
            Some(outline) => coverage.cover_segment(outline),
            None => {
                let (x, y) = self.bounds(bbox);
                coverage.cover(x, y);
            }
        }
        coverage
    }

    /// The whole mask, edge included.
    pub fn coverage(&self, width: u32, height: u32, bbox: [f64; 4], outline: Option<&[bool]>) -> Coverage {
        let mut coverage = self.solid(width, height, bbox, outline);
        match self.preset {
            MaskPreset::Authors => coverage.blur(self.feather(width, height)),
            MaskPreset::Fixed => coverage.grow(self.feather(width, height)),
        }
        coverage
    }
}

/// What of a hidden object still shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leak {
    /// Pixels of the box (or outline).
    pub inside: usize,
    /// Those that are not fully covered.
    pub visible: usize,
    /// The weakest coverage inside, 255 when nothing shows.
    pub weakest: u8,
    /// The strongest coverage inside; below 255 no pixel is hidden.
    pub strongest: u8,
}

/// A picture with its object hidden.
#[derive(Clone, Debug)]
pub struct MaskedImage {
    pixels: RgbImage,
    leak: Leak,
}

impl MaskedImage {
    /// Opens the picture of `region` and hides the region. The picture's digest must be the region's.
    pub fn open(dataset: &Dataset, region: &Region, mask: &Mask) -> Result<Self, MaskError> {
        let found = dataset.digest(&region.image)?.hex();
        if found != region.image_digest {
            let (image, id) = (region.image.clone(), region.id.clone());
            return Err(MaskError::OtherPicture { image, region: id, expected: region.image_digest.clone(), found });
        }
        let pixels = dataset.open_rgb(&region.image)?;
        let outline = match mask.shape {
            Shape::Box => None,
            Shape::Segment => Some(outline(dataset, region, pixels.dimensions())?),
        };
        Ok(Self::hide(pixels, region.bbox, outline.as_deref(), mask))
    }

    /// Hides `bbox` (or `outline`, row-major) in `pixels`.
    pub fn hide(mut pixels: RgbImage, bbox: [f64; 4], outline: Option<&[bool]>, mask: &Mask) -> Self {
        let (width, height) = pixels.dimensions();
        let coverage = mask.coverage(width, height, bbox, outline);
        for (pixel, cover) in pixels.pixels_mut().zip(coverage.values()) {
            for (channel, fill) in pixel.0.iter_mut().zip(mask.fill) {
                *channel = blend(*channel, fill, *cover);
            }
        }
        let solid = mask.solid(width, height, bbox, outline);
        Self { pixels, leak: leak(&solid, &coverage) }
    }

    /// The masked pixels.
    pub fn pixels(&self) -> &RgbImage {
        &self.pixels
    }

    /// The masked pixels, taken.
    pub fn into_rgb(self) -> RgbImage {
        self.pixels
    }

    /// What of the object still shows.
    pub fn leak(&self) -> Leak {
        self.leak
    }

    /// The masked picture as PNG.
    pub fn png(&self) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        self.pixels.write_to(&mut bytes, image::ImageFormat::Png).expect("writing to memory does not fail");
        bytes.into_inner()
    }

    /// BLAKE3 of size and masked pixels.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher
            .update(&self.pixels.width().to_le_bytes())
            .update(&self.pixels.height().to_le_bytes())
            .update(self.pixels.as_raw());
        Digest::from_bytes(*hasher.finalize().as_bytes())
    }
}

fn outline(dataset: &Dataset, region: &Region, (width, height): (u32, u32)) -> Result<Vec<bool>, MaskError> {
    let (image, annotation) = (region.image.clone(), region.annotation);
    let found = dataset.annotation(annotation).and_then(|found| found.segmentation.as_ref());
    let segmentation = found.ok_or_else(|| MaskError::NoSegment { image: image.clone(), annotation })?;
    segment::pixels(segmentation, width, height).map_err(|source| MaskError::Segment { image, annotation, source })
}

/// `(below * (255 - cover) + fill * cover) / 255`, rounded with Pillow's integer division.
fn blend(below: u8, fill: u8, cover: u8) -> u8 {
    let cover = u32::from(cover);
    let sum = u32::from(below) * (255 - cover) + u32::from(fill) * cover + 128;
    (((sum >> 8) + sum) >> 8) as u8
}

fn leak(solid: &Coverage, coverage: &Coverage) -> Leak {
    let inside =
        solid.values().iter().zip(coverage.values()).filter(|(solid, _)| **solid == 255).map(|(_, cover)| *cover);
    let mut leak = Leak { inside: 0, visible: 0, weakest: 255, strongest: 0 };
    for cover in inside {
        leak.inside += 1;
        leak.visible += usize::from(cover < 255);
        leak.weakest = leak.weakest.min(cover);
        leak.strongest = leak.strongest.max(cover);
    }
    leak
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey() -> RgbImage {
        RgbImage::from_pixel(64, 48, image::Rgb([200, 150, 100]))
    }

    #[test]
    fn the_default_hides_every_pixel_that_the_box_touches() {
        let masked = MaskedImage::hide(grey(), [10.4, 12.6, 5.2, 4.0], None, &Mask::default());
        for (x, y) in [(10, 12), (15, 16), (12, 14)] {
            assert_eq!(masked.pixels().get_pixel(x, y).0, [0; 3], "{x} {y}");
        }
        assert!(masked.pixels().get_pixel(9, 14).0[0] < 60 && masked.pixels().get_pixel(20, 14).0 == [200, 150, 100]);
        assert_eq!(masked.leak(), Leak { inside: 30, visible: 0, weakest: 255, strongest: 255 });
    }

    #[test]
    fn the_authors_mask_leaks_small_boxes() {
        let small = MaskedImage::hide(grey(), [20.0, 15.0, 12.0, 12.0], None, &Mask::authors()).leak();
        assert!(small.visible == small.inside && small.strongest < 255, "{small:?}");
        let hard = Mask { edge: Edge::Hard, ..Mask::authors() };
        assert_eq!(MaskedImage::hide(grey(), [20.0, 15.0, 12.0, 12.0], None, &hard).leak().visible, 0);
    }

    #[test]
    fn fill_and_min_side_are_kept() {
        let mask = Mask { edge: Edge::Hard, fill: [9, 8, 7], min_side: 10.0, ..Mask::default() };
        let masked = MaskedImage::hide(grey(), [30.0, 20.0, 2.0, 4.0], None, &mask);
        assert_eq!(masked.leak().inside, 100);
        assert_eq!(masked.pixels().get_pixel(31, 22).0, [9, 8, 7]);
    }

    #[test]
    fn a_box_beyond_the_edge_is_cut_off() {
        let masked =
            MaskedImage::hide(grey(), [-5.0, -5.0, 10.0, 8.0], None, &Mask { edge: Edge::Hard, ..Mask::default() });
        assert_eq!(masked.leak().inside, 15);
    }
}
