//! A `dataset` artifact: a folder with `annotations.json` in COCO's form, and pictures.
//!
//! | file | holds |
//! |---|---|
//! | `annotations.json` | images, annotations, categories ([`format::CocoFile`]); `file_name` is a path below the pictures' folder |
//! | `images.json` | only when the pictures lie elsewhere: their folder, and size and BLAKE3 of each ([`Pictures`]) |
//! | pictures | otherwise: inside, at `file_name` as it is or below `images/` |
//!
//! Pictures from outside are never copied. Opening one checks its size and digest, so a picture that changed since the
//! import is an error and not another answer.

pub mod cooccurrence;
pub mod format;
pub mod segment;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use image::RgbImage;
use mpcc_engine::cache::Digest;
use mpcc_engine::stage::StageError;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::record::Region;
use cooccurrence::Cooccurrence;
use format::{Annotation, Category, CocoFile, Picture};

/// Why a dataset or one of its pictures cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A JSON file that is not what it should be.
    #[error("{path}:{line}:{column}: {cause}", line = .source.line(), column = .source.column(), cause = .source)]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// A picture that is not in the dataset.
    #[error("{folder}: no picture `{name}`{hint}")]
    UnknownPicture {
        /// The dataset.
        folder: PathBuf,
        /// The path asked for.
        name: String,
        /// Where it was looked for.
        hint: String,
    },
    /// An annotation whose picture or category is missing.
    #[error("{folder}/annotations.json: annotation {annotation}: {what}")]
    Dangling {
        /// The dataset.
        folder: PathBuf,
        /// The annotation's id.
        annotation: u64,
        /// What it refers to.
        what: String,
    },
    /// A picture that changed since it was imported.
    #[error("{path}: the picture changed since it was imported ({change}); import the dataset again")]
    Changed {
        /// The picture.
        path: PathBuf,
        /// What is different.
        change: String,
    },
    /// Bytes that are no picture, or not the picture the annotations describe.
    #[error("{path}: {cause}")]
    Picture {
        /// The picture.
        path: PathBuf,
        /// The cause.
        cause: String,
    },
}

impl From<DatasetError> for StageError {
    fn from(error: DatasetError) -> Self {
        match error {
            DatasetError::Io { .. } => Self::Machine(error.to_string()),
            other => Self::Invalid(other.to_string()),
        }
    }
}

/// Where pictures from outside lie (`images.json`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pictures {
    /// The folder, absolute.
    pub root: PathBuf,
    /// Path below it -> what the file was at import.
    pub files: BTreeMap<String, Stamp>,
}

/// What a picture file was at import.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    /// Size in bytes.
    pub bytes: u64,
    /// BLAKE3 of the content.
    pub blake3: Digest,
}

impl Stamp {
    /// The stamp of `content`.
    pub fn of(content: &[u8]) -> Self {
        Self { bytes: content.len() as u64, blake3: Digest::of(content) }
    }
}

/// An open dataset.
#[derive(Debug)]
pub struct Dataset {
    folder: PathBuf,
    file: CocoFile,
    outside: Option<Pictures>,
    by_name: BTreeMap<String, usize>,
    by_annotation: BTreeMap<u64, usize>,
    by_picture: BTreeMap<u64, Vec<usize>>,
    pictures: BTreeMap<u64, usize>,
    categories: BTreeMap<u64, usize>,
    stamps: OnceLock<BTreeMap<String, Stamp>>,
}

impl Dataset {
    /// Opens the dataset in `folder`. Pictures are not looked at yet.
    pub fn open(folder: &Path) -> Result<Self, DatasetError> {
        let file: CocoFile = read_json(&folder.join("annotations.json"))?;
        let pointer = folder.join("images.json");
        let outside = if pointer.exists() { Some(read_json(&pointer)?) } else { None };
        let mut by_picture: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (index, annotation) in file.annotations.iter().enumerate() {
            by_picture.entry(annotation.image_id).or_default().push(index);
        }
        let dataset = Self {
            folder: folder.to_owned(),
            by_name: file.images.iter().map(|picture| picture.file_name.clone()).zip(0..).collect(),
            by_annotation: file.annotations.iter().map(|annotation| annotation.id).zip(0..).collect(),
            pictures: file.images.iter().map(|picture| picture.id).zip(0..).collect(),
            categories: file.categories.iter().map(|category| category.id).zip(0..).collect(),
            by_picture,
            outside,
            file,
            stamps: OnceLock::new(),
        };
        dataset.check_references()?;
        Ok(dataset)
    }

    fn check_references(&self) -> Result<(), DatasetError> {
        let dangling =
            |annotation: u64, what: String| DatasetError::Dangling { folder: self.folder.clone(), annotation, what };
        self.file.annotations.iter().try_for_each(|annotation| {
            if !self.pictures.contains_key(&annotation.image_id) {
                return Err(dangling(annotation.id, format!("no image has the id {}", annotation.image_id)));
            }
            match self.categories.contains_key(&annotation.category_id) {
                true => Ok(()),
                false => Err(dangling(annotation.id, format!("no category has the id {}", annotation.category_id))),
            }
        })
    }

    /// The folder it was opened from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Pictures in the order of the file.
    pub fn pictures(&self) -> &[Picture] {
        &self.file.images
    }

    /// Annotations in the order of the file.
    pub fn annotations(&self) -> &[Annotation] {
        &self.file.annotations
    }

    /// Categories in the order of the file.
    pub fn categories(&self) -> &[Category] {
        &self.file.categories
    }

    /// Category names in the order of the file.
    pub fn category_names(&self) -> impl Iterator<Item = &str> {
        self.file.categories.iter().map(|category| category.name.as_str())
    }

    /// The picture called `name`.
    pub fn picture(&self, name: &str) -> Option<&Picture> {
        self.by_name.get(name).map(|index| &self.file.images[*index])
    }

    /// The annotation with this id.
    pub fn annotation(&self, id: u64) -> Option<&Annotation> {
        self.by_annotation.get(&id).map(|index| &self.file.annotations[*index])
    }

    /// The annotations of a picture, in the order of the file.
    pub fn annotations_of(&self, picture: &Picture) -> impl Iterator<Item = &Annotation> {
        self.by_picture.get(&picture.id).into_iter().flatten().map(|index| &self.file.annotations[*index])
    }

    /// The picture of an annotation of this dataset.
    pub fn picture_of(&self, annotation: &Annotation) -> &Picture {
        &self.file.images[self.pictures[&annotation.image_id]]
    }

    /// The category of an annotation of this dataset.
    pub fn category_of(&self, annotation: &Annotation) -> &Category {
        &self.file.categories[self.categories[&annotation.category_id]]
    }

    /// Every annotation as a region, in the order of the file. Reads every picture once to hash it, unless it is outside.
    pub fn regions(&self) -> Result<Vec<Region>, DatasetError> {
        self.file.annotations.iter().map(|annotation| self.region(annotation)).collect()
    }

    /// One annotation as a region.
    pub fn region(&self, annotation: &Annotation) -> Result<Region, DatasetError> {
        let (picture, category) = (self.picture_of(annotation), self.category_of(annotation));
        let image_digest = self.digest(&picture.file_name)?.hex();
        Ok(Region {
            id: Region::identify(&image_digest, annotation.bbox, &category.name),
            image: picture.file_name.clone(),
            image_digest,
            annotation: annotation.id,
            size: [picture.width, picture.height],
            bbox: annotation.bbox,
            category: category.name.clone(),
            supercategory: category.supercategory.clone(),
            area: annotation.area,
            crowd: annotation.iscrowd != 0,
            scene: self.scene(picture),
        })
    }

    /// Every category of a picture with how many boxes it has, sorted by name.
    pub fn scene(&self, picture: &Picture) -> Vec<(String, u32)> {
        let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
        for annotation in self.annotations_of(picture) {
            *counts.entry(&self.category_of(annotation).name).or_default() += 1;
        }
        counts.into_iter().map(|(name, boxes)| (name.to_owned(), boxes)).collect()
    }

    /// Which categories appear together in its pictures.
    pub fn cooccurrence(&self) -> Cooccurrence {
        let present = |picture| {
            self.annotations_of(picture)
                .map(|annotation| self.category_of(annotation).name.as_str())
                .collect::<BTreeSet<_>>()
        };
        Cooccurrence::count(self.category_names(), self.file.images.iter().map(present))
    }

    /// BLAKE3 of a picture file.
    pub fn digest(&self, name: &str) -> Result<Digest, DatasetError> {
        match self.stamps()?.get(name) {
            Some(stamp) => Ok(stamp.blake3),
            None => Ok(Digest::of(&self.image_bytes(name)?)),
        }
    }

    fn stamps(&self) -> Result<&BTreeMap<String, Stamp>, DatasetError> {
        if let Some(outside) = &self.outside {
            return Ok(&outside.files);
        }
        if let Some(stamps) = self.stamps.get() {
            return Ok(stamps);
        }
        let stamp =
            |picture: &Picture| Ok((picture.file_name.clone(), Stamp::of(&self.image_bytes(&picture.file_name)?)));
        let stamps = self.file.images.par_iter().map(stamp).collect::<Result<_, DatasetError>>()?;
        Ok(self.stamps.get_or_init(|| stamps))
    }

    /// Where the picture `name` lies.
    pub fn path(&self, name: &str) -> Result<PathBuf, DatasetError> {
        let unknown =
            |hint: String| DatasetError::UnknownPicture { folder: self.folder.clone(), name: name.to_owned(), hint };
        if Path::new(name).is_absolute() || name.split('/').any(|part| part == "..") {
            return Err(unknown("; a path must stay inside the pictures' folder".to_owned()));
        }
        let places = match &self.outside {
            Some(outside) => vec![outside.root.join(name)],
            None => vec![self.folder.join(name), self.folder.join("images").join(name)],
        };
        let looked = places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(" and ");
        places.into_iter().find(|place| place.is_file()).ok_or_else(|| unknown(format!("; looked for {looked}")))
    }

    /// The bytes of the picture `name`, checked against what was imported. Not masked.
    pub fn image_bytes(&self, name: &str) -> Result<Vec<u8>, DatasetError> {
        let path = self.path(name)?;
        let bytes = std::fs::read(&path).map_err(|source| DatasetError::Io { path: path.clone(), source })?;
        match self.outside.as_ref().and_then(|outside| outside.files.get(name)) {
            Some(stamp) if stamp.bytes != bytes.len() as u64 => {
                Err(DatasetError::Changed { path, change: format!("{} bytes, {} at import", bytes.len(), stamp.bytes) })
            }
            Some(stamp) if stamp.blake3 != Digest::of(&bytes) => {
                Err(DatasetError::Changed { path, change: "other content of the same size".to_owned() })
            }
            _ => Ok(bytes),
        }
    }

    /// The picture `name` as RGB, as it is: what a filter may see. Items are opened as [`crate::mask::MaskedImage`].
    pub fn open_rgb(&self, name: &str) -> Result<RgbImage, DatasetError> {
        let wrong = |path: PathBuf, cause: String| DatasetError::Picture { path, cause };
        let pixels = mpcc_models::image::decode(&self.image_bytes(name)?);
        let pixels = pixels.map_err(|error| wrong(self.folder.join(name), error.to_string()))?;
        match self.picture(name) {
            Some(picture) if (picture.width, picture.height) != pixels.dimensions() => {
                let cause = format!(
                    "has {} x {} pixels, annotated as {} x {}",
                    pixels.width(),
                    pixels.height(),
                    picture.width,
                    picture.height
                );
                Err(wrong(self.path(name)?, cause))
            }
            _ => Ok(pixels),
        }
    }
}

/// Writes `annotations.json` into a dataset folder.
pub fn write_annotations(folder: &Path, file: &CocoFile) -> Result<(), DatasetError> {
    write_json(&folder.join("annotations.json"), file)
}

/// Writes `images.json` into a dataset folder whose pictures lie elsewhere.
pub fn write_pictures(folder: &Path, pictures: &Pictures) -> Result<(), DatasetError> {
    write_json(&folder.join("images.json"), pictures)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, DatasetError> {
    let text = std::fs::read(path).map_err(|source| DatasetError::Io { path: path.to_owned(), source })?;
    serde_json::from_slice(&text).map_err(|source| DatasetError::Json { path: path.to_owned(), source })
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), DatasetError> {
    let text = serde_json::to_vec(value).map_err(|source| DatasetError::Json { path: path.to_owned(), source })?;
    std::fs::write(path, text).map_err(|source| DatasetError::Io { path: path.to_owned(), source })
}
