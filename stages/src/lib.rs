//! The stage kinds of mpcc: the paper's stages and the embedded world. One file per family of kinds.

pub mod answer;
pub mod coco;
pub mod contact;
pub mod curation;
pub mod dataset;
pub mod decoding;
pub mod draw;
pub mod filter;
pub mod hub;
pub mod import;
pub mod mask;
pub mod mine;
pub mod place;
pub mod pretrain;
pub mod provider;
pub mod questions;
pub mod record;
pub mod records;
pub mod regions;
pub mod report;
pub mod request;
pub mod responder;
pub mod response;
pub mod reward;
pub mod scenes;
pub mod score;
pub mod split;
pub mod stats;
pub mod suggest;
pub mod template;
pub mod traces;
pub mod tune;
pub mod vocabulary;
pub mod world;

use mpcc_engine::registry::Registry;

pub use mpcc_models as models;

/// Every built-in kind: the one list.
pub fn registry() -> Registry {
    Registry::new()
        .with::<tune::sft::TrainSft>()
        .with::<tune::grpo::TrainGrpo>()
        .with::<traces::TracesSynthesize>()
        .with::<mine::DistractorsMine>()
        .with::<filter::VlmFilter>()
        .with::<answer::EvalAnswer>()
        .with::<coco::CocoImport>()
        .with::<contact::ExportContact>()
        .with::<curation::CurationImport>()
        .with::<questions::QuestionsBuild>()
        .with::<regions::RegionsSelect>()
        .with::<report::ReportTables>()
        .with::<score::EvalCeiling>()
        .with::<score::EvalScore>()
        .with::<split::SplitCategories>()
        .with::<import::ModelImport>()
        .with::<pretrain::ModelPretrain>()
        .with::<scenes::ScenesGenerate>()
}
