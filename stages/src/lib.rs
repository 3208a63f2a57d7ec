//! The stage kinds of mpcc: the paper's stages and the embedded world. One file per family of kinds.

pub mod coco;
pub mod curation;
pub mod dataset;
pub mod draw;
pub mod import;
pub mod mask;
pub mod place;
pub mod questions;
pub mod record;
pub mod records;
pub mod regions;
pub mod report;
pub mod response;
pub mod reward;
pub mod stats;
pub mod suggest;
pub mod template;
pub mod vocabulary;
pub mod scenes;
pub mod score;
pub mod split;
pub mod world;

use mpcc_engine::registry::Registry;

/// Every built-in kind: the one list.
pub fn registry() -> Registry {
    Registry::new().with::<coco::CocoImport>().with::<curation::CurationImport>().with::<questions::QuestionsBuild>().with::<regions::RegionsSelect>().with::<score::EvalCeiling>().with::<score::EvalScore>().with::<split::SplitCategories>().with::<import::ModelImport>().with::<scenes::ScenesGenerate>()
}
