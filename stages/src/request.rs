//! What is asked of a model, and what it replies.

use mpcc_engine::cache::Digest;
use mpcc_engine::stage::StageError;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::dataset::Dataset;
use crate::mask::{Mask, MaskedImage, Shape};
use crate::record::{Region, Usage};

/// A picture as a model is shown it.
#[derive(Clone, Debug)]
pub enum Picture {
    /// An item with its object hidden.
    Masked {
        /// The hidden region.
        region: Region,
        /// How it is hidden.
        mask: Mask,
    },
    /// A picture as it is.
    Open {
        /// Path inside the dataset.
        image: String,
        /// BLAKE3 of the file.
        digest: String,
    },
}

impl Picture {
    pub(crate) fn key(&self, dataset: &Dataset) -> serde_json::Value {
        match self {
            Self::Masked { region, mask } => {
                // The outline lies in the dataset's annotations and may be mended there.
                let outline = (mask.shape == Shape::Segment).then(|| {
                    let annotation = dataset.annotation(region.annotation).map(|one| json!(one.segmentation));
                    Digest::of(json!(annotation).to_string().as_bytes())
                });
                json!({ "image": region.image_digest, "box": region.bbox, "mask": mask, "outline": outline })
            }
            Self::Open { digest, .. } => json!({ "image": digest }),
        }
    }

    /// The file that a server is sent: as it is, or with the object hidden.
    pub(crate) fn encoded(&self, dataset: &Dataset) -> Result<Vec<u8>, StageError> {
        let as_is = match self {
            Self::Open { image, .. } => Some(dataset.image_bytes(image)?),
            Self::Masked { .. } => None,
        };
        let sendable = |bytes: &Vec<u8>| bytes.starts_with(b"\x89PNG") || bytes.starts_with(&[0xff, 0xd8]);
        if let Some(bytes) = as_is.filter(sendable) {
            return Ok(bytes);
        }
        let mut png = std::io::Cursor::new(Vec::new());
        let written = self.render(dataset)?.write_to(&mut png, image::ImageFormat::Png);
        written.map_err(|error| StageError::invalid(format!("a picture cannot be written as PNG: {error}")))?;
        Ok(png.into_inner())
    }

    pub(crate) fn render(&self, dataset: &Dataset) -> Result<image::RgbImage, StageError> {
        match self {
            Self::Masked { region, mask } => Ok(MaskedImage::open(dataset, region, mask)?.into_rgb()),
            Self::Open { image, .. } => Ok(dataset.open_rgb(image)?),
        }
    }
}

/// One thing asked of a model.
#[derive(Clone, Debug)]
pub struct Request {
    /// The system prompt; `None` falls back to the model's own.
    pub system: Option<String>,
    /// The user turn's text, after the pictures.
    pub user: String,
    /// The pictures.
    pub pictures: Vec<Picture>,
    /// The record it is about: its id. For recorded answers and messages; not for the key.
    pub subject: String,
}

/// A generated reply.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The text, tags included, end tokens excluded.
    pub text: String,
    /// Whether the model ended by itself.
    pub finished: bool,
    /// Token counts.
    pub usage: Usage,
    /// The model that a server says it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served: Option<String>,
    /// What it cost in dollars, of a served model with a price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
}

/// Options whose log-probability is wanted at one place.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the model has generated so far, up to where the options go; empty for the start of its turn.
    pub prefix: String,
    /// The texts; each ends with its closing tag, or with the end of the turn when `closed` is set.
    pub continuations: Vec<String>,
    /// Whether the end-of-turn token is scored too.
    pub closed: bool,
}
