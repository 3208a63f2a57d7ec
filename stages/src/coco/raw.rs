//! An instances file as it may come: every field may be missing or odd, so that messages can name the annotation.

use serde::Deserialize;
use serde_json::Value;

use crate::dataset::format::{Rle, Segmentation};

/// The file.
#[derive(Debug, Deserialize)]
pub(super) struct RawFile {
    pub(super) images: Vec<RawPicture>,
    pub(super) annotations: Vec<RawAnnotation>,
    pub(super) categories: Vec<RawCategory>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawPicture {
    pub(super) id: Option<u64>,
    pub(super) file_name: Option<String>,
    pub(super) width: Option<u32>,
    pub(super) height: Option<u32>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawAnnotation {
    pub(super) id: Option<u64>,
    pub(super) image_id: Option<u64>,
    pub(super) category_id: Option<u64>,
    pub(super) bbox: Option<Value>,
    pub(super) area: Option<f64>,
    pub(super) iscrowd: Option<u8>,
    pub(super) segmentation: Option<RawSegmentation>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawCategory {
    pub(super) id: Option<u64>,
    pub(super) name: Option<String>,
    pub(super) supercategory: Option<String>,
}

/// An outline in any of the known forms, or something else. Only this file is read with `untagged`: the last form takes
/// everything, so it spoils no message.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum RawSegmentation {
    Polygons(Vec<Vec<f64>>),
    Rle(Rle),
    Other(Value),
}

impl RawSegmentation {
    /// The outline; `Ok(None)` for an empty one, which means that there is only a box.
    pub(super) fn known(self) -> Result<Option<Segmentation>, String> {
        match self {
            Self::Polygons(polygons) if polygons.is_empty() => Ok(None),
            Self::Polygons(polygons) => Ok(Some(Segmentation::Polygons(polygons))),
            Self::Rle(rle) => Ok(Some(Segmentation::Rle(rle))),
            Self::Other(Value::Null) => Ok(None),
            Self::Other(value) => {
                let text: String = value.to_string().chars().take(40).collect();
                Err(format!(
                    "`segmentation` is neither a list of polygons nor run lengths with `size` and `counts`: {text}"
                ))
            }
        }
    }
}
