//! A part of the world: its scenes, drawn and painted, as a dataset in COCO's form.
//!
//! | file | holds |
//! |---|---|
//! | `annotations.json` | images, annotations (outline = box) and categories with COCO's ids |
//! | `images/PART-000000.jpg` | 112 x 112 pictures |
//! | `posterior.jsonl` | per annotation the exact posterior over categories were it hidden: for ceilings, never for models |

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use mpcc_engine::stage::StageError;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::catalog::{CATEGORIES, by_name};
use super::lore::Placed;
use super::random::stream;
use super::render;
use super::scene::{Pool, SIDE, Scene, Thing};
use crate::dataset;
use crate::dataset::format::{Annotation, Category, CocoFile, Picture, Segmentation};

/// Which part of the world. Parts share a seed and no scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// For pretraining; the only part with lore.
    Pretrain,
    /// For training.
    Train,
    /// For choices made while developing: scenes as the grammar gives them.
    Dev,
    /// For the tables: scenes as the grammar gives them.
    Test,
    /// Only configurations that no training shows. A learner who knows the training scenes exactly does badly here: whatever
    /// is visible was always seen with another hidden object. So this part measures how a prior is overcome, and the tables
    /// are made on `test`, which holds such configurations at their natural share.
    Unseen,
}

impl Part {
    /// The name as written in a pipeline.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pretrain => "pretrain",
            Self::Train => "train",
            Self::Dev => "dev",
            Self::Test => "test",
            Self::Unseen => "unseen",
        }
    }

    /// Scenes when the pipeline does not say how many.
    pub fn default_scenes(self) -> usize {
        match self {
            Self::Pretrain => 6000,
            Self::Train => 800,
            Self::Dev => 300,
            Self::Test | Self::Unseen => 500,
        }
    }

    fn pool(self) -> Pool {
        match self {
            Self::Pretrain | Self::Train => Pool::Shown,
            Self::Dev | Self::Test => Pool::Any,
            Self::Unseen => Pool::KeptOut,
        }
    }
}

/// The scenes of a part with the names of their pictures.
#[derive(Debug)]
pub struct Scenes {
    part: Part,
    seed: u64,
    scenes: Vec<Scene>,
    names: Vec<String>,
    first: Vec<u64>,
}

/// A line of `posterior.jsonl`.
#[derive(Serialize)]
struct Certainty<'a> {
    image: &'a str,
    annotation: u64,
    posterior: BTreeMap<&'static str, f64>,
}

impl Scenes {
    /// Draws `count` scenes.
    pub fn draw(part: Part, count: usize, seed: u64) -> Self {
        let purpose = format!("world {} scene", part.name());
        let draw = |index| Scene::draw(part.pool(), &mut stream(seed, &purpose, index));
        let scenes: Vec<Scene> = (0..count).map(draw).collect();
        let names = (0..count).map(|index| format!("{}-{index:06}.jpg", part.name())).collect();
        let first = scenes.iter().scan(1, |next, scene| {
            let first = *next;
            *next += scene.things.len() as u64;
            Some(first)
        });
        Self { part, seed, names, first: first.collect(), scenes }
    }

    /// The part.
    pub fn part(&self) -> Part {
        self.part
    }

    /// How many scenes there are.
    pub fn len(&self) -> usize {
        self.scenes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.scenes.is_empty()
    }

    /// Scene `index` with its names.
    pub fn get(&self, index: usize) -> Placed<'_> {
        Placed { scene: &self.scenes[index], image: &self.names[index], first: self.first[index] }
    }

    /// Every scene with its names.
    pub fn iter(&self) -> impl Iterator<Item = Placed<'_>> {
        (0..self.len()).map(|index| self.get(index))
    }

    /// Every thing: its scene, its index there, and its annotation's id.
    pub fn things(&self) -> impl Iterator<Item = (Placed<'_>, usize, u64)> {
        self.iter().flat_map(|placed| (0..placed.scene.things.len()).map(move |i| (placed, i, placed.first + i as u64)))
    }

    /// Paints the pictures of `range` into `folder`, which must exist, on the threads of the current pool.
    pub fn paint(&self, folder: &Path, range: std::ops::Range<usize>) -> Result<(), StageError> {
        range.into_par_iter().try_for_each(|index| {
            let purpose = format!("world {} picture", self.part.name());
            let picture = render::paint(&self.scenes[index], &mut stream(self.seed, &purpose, index));
            let path = folder.join(&self.names[index]);
            let bytes =
                render::jpeg(&picture).map_err(|error| StageError::Machine(format!("{}: {error}", path.display())))?;
            std::fs::write(&path, bytes).map_err(|error| StageError::io(&path, error))
        })
    }

    /// Writes `annotations.json` and `posterior.jsonl` into `folder`.
    pub fn annotate(&self, folder: &Path) -> Result<(), StageError> {
        dataset::write_annotations(folder, &self.coco())?;
        let certainty = |(placed, index, annotation): (Placed<'_>, usize, u64)| {
            serde_json::to_vec(&Certainty {
                image: self.image(annotation),
                annotation,
                posterior: placed.scene.posterior(index),
            })
        };
        write_lines(&folder.join("posterior.jsonl"), self.things().map(certainty))
    }

    fn image(&self, annotation: u64) -> &str {
        &self.names[self.first.partition_point(|first| *first <= annotation) - 1]
    }

    fn coco(&self) -> CocoFile {
        let images = (1..).zip(&self.names).map(|(id, name)| picture(id, name)).collect();
        let annotations = (1..).zip(self.iter()).flat_map(|(image_id, placed)| {
            (placed.first..).zip(&placed.scene.things).map(move |(id, thing)| annotation(id, image_id, thing))
        });
        let categories = CATEGORIES.map(|category| Category {
            id: category.id,
            name: category.name.to_owned(),
            supercategory: category.supercategory.to_owned(),
        });
        CocoFile { images, annotations: annotations.collect(), categories: categories.to_vec() }
    }
}

fn picture(id: u64, name: &str) -> Picture {
    Picture { id, file_name: name.to_owned(), width: SIDE, height: SIDE }
}

fn annotation(id: u64, image_id: u64, thing: &Thing) -> Annotation {
    let [x, y, w, h] = thing.bbox;
    let category_id = by_name(thing.category).expect("the grammar places listed categories").id;
    let outline = vec![vec![x, y, x + w, y, x + w, y + h, x, y + h]];
    let segmentation = Some(Segmentation::Polygons(outline));
    Annotation { id, image_id, category_id, bbox: thing.bbox, area: w * h, iscrowd: 0, segmentation }
}

/// Writes JSON texts to `path`, one a line.
pub fn write_lines(path: &Path, lines: impl Iterator<Item = serde_json::Result<Vec<u8>>>) -> Result<(), StageError> {
    let path: PathBuf = path.to_owned();
    let io = |error| StageError::io(&path, error);
    let mut out = std::io::BufWriter::new(std::fs::File::create(&path).map_err(io)?);
    for line in lines {
        let line = line.map_err(|error| io(error.into()))?;
        out.write_all(&line).and_then(|()| out.write_all(b"\n")).map_err(io)?;
    }
    out.flush().map_err(io)
}
