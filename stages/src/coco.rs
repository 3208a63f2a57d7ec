//! `coco.import`: an instances file and a folder of pictures become a `dataset`.
//!
//! Nothing of the pictures is copied: the dataset points to their folder and notes size and BLAKE3 of every picture, which
//! opening one checks. The annotations are validated and written anew with the part of them that the stages use.

mod raw;
mod validate;

use std::path::Path;

use mpcc_engine::port::{PortType, Signature};
use mpcc_engine::stage::{Context, Stage, StageError};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::format::{CocoFile, Picture};
use crate::dataset::{self, Pictures, Stamp};
use validate::Report;

/// How many problems a message lists.
const SHOWN: usize = 12;

/// What to do with an annotation whose box or outline is unusable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnInvalid {
    /// Stop and list them.
    #[default]
    Error,
    /// Leave them out and warn.
    Drop,
}

/// Parameters of `coco.import`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CocoImport {
    /// Annotations with an empty box, a box outside the picture or a broken outline: stop (`error`) or leave out (`drop`).
    /// Duplicate ids and unknown pictures or categories always stop.
    pub invalid: OnInvalid,
}

impl Stage for CocoImport {
    const KIND: &'static str = "coco.import";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Reads a COCO instances file and points to its pictures";

    fn signature() -> Signature {
        Signature::new()
            .takes("annotations", PortType::File)
            .takes("images", PortType::Dir)
            .gives("dataset", PortType::Dataset)
    }

    fn run(&self, ctx: &Context) -> Result<(), StageError> {
        let annotations = &ctx.input("annotations")?.path;
        let images = &ctx.input("images")?.path;
        let root = std::path::absolute(images).map_err(|error| StageError::io(images, error))?;
        let file = self.checked(ctx, annotations)?;
        let pictures = Pictures { files: stamps(ctx, &root, &file.images)?, root };
        let folder = ctx.output("dataset")?;
        dataset::write_annotations(folder, &file)?;
        dataset::write_pictures(folder, &pictures)?;
        ctx.info(format!(
            "{} pictures, {} annotations, {} categories",
            file.images.len(),
            file.annotations.len(),
            file.categories.len()
        ));
        Ok(())
    }
}

impl CocoImport {
    fn checked(&self, ctx: &Context, path: &Path) -> Result<CocoFile, StageError> {
        let text = std::fs::read(path).map_err(|error| StageError::io(path, error))?;
        let raw = serde_json::from_slice(&text)
            .map_err(|error| StageError::invalid(format!("{}: {error}", path.display())))?;
        let Report { file, fatal, invalid } = validate::check(raw);
        if !fatal.is_empty() {
            return Err(StageError::invalid(listed(path, "problems", &fatal, "")));
        }
        match (invalid.is_empty(), self.invalid) {
            (true, _) => {}
            (false, OnInvalid::Drop) => ctx.warn(listed(path, "annotations left out", &invalid, "")),
            (false, OnInvalid::Error) => {
                let help = "\ncorrect them, or write `with: { invalid: drop }` to leave them out";
                return Err(StageError::invalid(listed(path, "unusable annotations", &invalid, help)));
            }
        }
        Ok(file)
    }
}

fn listed(path: &Path, what: &str, problems: &[String], help: &str) -> String {
    let mut text = format!("{}: {} {what}:", path.display(), problems.len());
    problems.iter().take(SHOWN).for_each(|problem| text.push_str(&format!("\n  {problem}")));
    if problems.len() > SHOWN {
        text.push_str(&format!("\n  and {} more", problems.len() - SHOWN));
    }
    text + help
}

fn stamps(
    ctx: &Context,
    root: &Path,
    pictures: &[Picture],
) -> Result<std::collections::BTreeMap<String, Stamp>, StageError> {
    let stamped: Vec<Result<(String, Stamp), String>> = pictures
        .par_iter()
        .map(|picture| {
            ctx.check_cancelled().map_err(|error| error.to_string())?;
            let path = root.join(&picture.file_name);
            let bytes =
                std::fs::read(&path).map_err(|error| format!("image {}: {}: {error}", picture.id, path.display()))?;
            check_size(picture, &path, &bytes)?;
            Ok((picture.file_name.clone(), Stamp::of(&bytes)))
        })
        .collect();
    ctx.check_cancelled()?;
    let problems: Vec<String> = stamped.iter().filter_map(|result| result.clone().err()).collect();
    if !problems.is_empty() {
        return Err(StageError::invalid(listed(root, "pictures cannot be used", &problems, "")));
    }
    Ok(stamped.into_iter().flatten().collect())
}

/// Reads the header only.
fn check_size(picture: &Picture, path: &Path, bytes: &[u8]) -> Result<(), String> {
    let wrong = |cause: String| format!("image {}: {}: {cause}", picture.id, path.display());
    let reader = image::ImageReader::new(std::io::Cursor::new(bytes)).with_guessed_format();
    let size = reader
        .map_err(|error| wrong(error.to_string()))?
        .into_dimensions()
        .map_err(|error| wrong(error.to_string()))?;
    match size == (picture.width, picture.height) {
        true => Ok(()),
        false => Err(wrong(format!(
            "has {} x {} pixels, annotated as {} x {}",
            size.0, size.1, picture.width, picture.height
        ))),
    }
}
