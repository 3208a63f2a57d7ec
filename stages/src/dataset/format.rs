//! COCO instances as JSON: the part of the format that the stages use. Unknown keys are ignored when read.
//!
//! Source: the COCO data format page ("Object Detection"): `images`, `annotations`, `categories`; a segmentation is a list
//! of polygons (x1, y1, x2, y2, ...) or run lengths in column-major order, plain or compressed into ASCII text.

use serde::{Deserialize, Serialize};

/// An instances file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CocoFile {
    /// Pictures.
    pub images: Vec<Picture>,
    /// Objects.
    pub annotations: Vec<Annotation>,
    /// Categories.
    pub categories: Vec<Category>,
}

/// A picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Picture {
    /// Unique id.
    pub id: u64,
    /// Path below the pictures' folder.
    pub file_name: String,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

/// An object in a picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Annotation {
    /// Unique id.
    pub id: u64,
    /// The picture.
    pub image_id: u64,
    /// The category.
    pub category_id: u64,
    /// x, y, width, height in pixels.
    pub bbox: [f64; 4],
    /// Area in square pixels, of the segment where there is one.
    pub area: f64,
    /// 1 for a crowd, annotated as one region.
    #[serde(default)]
    pub iscrowd: u8,
    /// The outline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segmentation: Option<Segmentation>,
}

/// A category.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Category {
    /// Unique id.
    pub id: u64,
    /// Unique name.
    pub name: String,
    /// The group it belongs to.
    #[serde(default)]
    pub supercategory: String,
}

/// An outline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Segmentation {
    /// Polygons, each x1, y1, x2, y2, ...; the object is their union.
    Polygons(Vec<Vec<f64>>),
    /// Run lengths.
    Rle(Rle),
}

/// Run lengths over the picture in column-major order, starting with a run of background.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rle {
    /// Height and width.
    pub size: [u32; 2],
    /// The runs.
    pub counts: Counts,
}

/// Runs in either form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Counts {
    /// Plain numbers.
    Plain(Vec<u32>),
    /// COCO's ASCII compression.
    Compressed(String),
}
