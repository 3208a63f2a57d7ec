//! Trainings with an adapter on the embedded world: what changes, what does not, and what a killed one ends with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mpcc_engine::harness::Harness;
use mpcc_engine::stage::{ModelInput, Note, Provider, Stage};
use mpcc_models::vlm::{LoadOptions, Vlm};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use super::grpo::TrainGrpo;
use super::lora::{FOLDER, Lora, Target};
use super::sft::TrainSft;
use super::{Optimiser, write_lines};
use crate::decoding::Decoding;
use crate::pretrain::{ModelPretrain, Size};
use crate::record::{Difficulty, Distractors, Item, Region, Trace};
use crate::records;
use crate::regions::RegionsSelect;
use crate::scenes::ScenesGenerate;
use crate::world::part::Part;
use mpcc_models::train::grpo::Prior;

const STEPS: usize = 5;

/// A dataset, items with traces, and a model that has learned nothing.
struct World {
    folder: tempfile::TempDir,
    dataset: PathBuf,
}

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let scenes = ScenesGenerate { part: Part::Train, scenes: Some(6), tasks: 1 };
        let dataset = Harness::new(&folder.path().join("world")).run(&scenes).unwrap().remove("dataset").unwrap();
        let regions = Harness::new(&folder.path().join("regions")).input("dataset", &dataset);
        let regions = regions.run(&RegionsSelect { max_per_image: 1, ..RegionsSelect::default() }).unwrap();
        let regions: Vec<Region> = records::read(&regions["regions"]).unwrap();
        let items: Vec<Item> = regions.into_iter().map(item).collect();
        let trace = |item: &Item| Trace {
            item: item.clone(),
            reasoning: format!("i see a box . likely it is a {}", item.region.category),
            answer: item.region.category.clone(),
            checks: Vec::new(),
        };
        write_lines(&folder.path().join("traces.jsonl"), items.iter().map(trace)).unwrap();
        write_lines(&folder.path().join("items.jsonl"), &items).unwrap();
        let size = Size {
            hidden: 16,
            layers: 2,
            intermediate: 24,
            heads: 2,
            kv_heads: 1,
            vision_hidden: 16,
            vision_layers: 1,
            vision_intermediate: 16,
            vision_heads: 2,
        };
        let pretrain = ModelPretrain { size, ..ModelPretrain::default() };
        pretrain.fresh(5, 1).unwrap().save(&folder.path().join("base")).unwrap();
        World { folder, dataset }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A stage ready to run in the folder `name`.
    fn harness(&self, name: &str) -> Harness {
        let model = ModelInput {
            name: "base".to_owned(),
            matrix: Vec::new(),
            provider: Provider::Local,
            dir: Some(self.path("base")),
            identity: json!("base"),
            settings: serde_json::Map::new(),
        };
        let harness = Harness::new(&self.path(name)).model("model", model).input("dataset", &self.dataset);
        harness.input("items", &self.path("items.jsonl")).input("traces", &self.path("traces.jsonl"))
    }

    /// Trains in the folder `name`; returns the files of the outputs and the steps that were taken.
    fn train<S: Stage>(&self, stage: &S, name: &str) -> (BTreeMap<PathBuf, Vec<u8>>, Vec<u64>) {
        stage.check().unwrap();
        let harness = self.harness(name);
        let notes = harness.notes.clone();
        harness.run(stage).unwrap();
        let step = |note| match note {
            Note::Progress { done, unit, .. } if unit == "steps" => Some(done),
            _ => None,
        };
        (files(&self.path(name).join("outputs")), notes.notes().into_iter().filter_map(step).collect())
    }
}

fn item(region: Region) -> Item {
    let (difficulty, distractors) = (Difficulty::Easy, Distractors::default());
    let id = region.id.clone();
    Item { id, rev: String::new(), region, difficulty, curators: Vec::new(), distractors }.sealed()
}

/// Every file below `folder`.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false => {
                    drop(found.insert(path.strip_prefix(folder).unwrap().to_owned(), std::fs::read(&path).unwrap()))
                }
            }
        }
    }
    found
}

/// The tensors of a file by name, as bytes.
fn tensors(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let tensors = SafeTensors::deserialize(bytes).unwrap();
    tensors.iter().map(|(name, view)| (name.to_owned(), view.data().to_vec())).collect()
}

fn lora() -> Lora {
    Lora { rank: 3, alpha: 6.0, targets: vec![Target::QProj, Target::DownProj] }
}

fn optimiser() -> Optimiser {
    Optimiser::linear(0.02)
}

fn sft() -> TrainSft {
    TrainSft {
        prompt: "what is behind the black box ?".to_owned(),
        steps: STEPS,
        batch: 2,
        lora: Some(lora()),
        optimiser: optimiser(),
        checkpoint_every: 2,
        ..TrainSft::default()
    }
}

/// Nobody is rewarded but the traces, as the model knows nothing.
fn grpo() -> TrainGrpo {
    TrainGrpo {
        prompt: "what is behind the black box ?".to_owned(),
        steps: STEPS,
        prompts: 2,
        group: 3,
        prior: Prior::Replace,
        mask_truncated: Some(false),
        decoding: Decoding::at(1.0, 8),
        lora: Some(lora()),
        optimiser: optimiser(),
        checkpoint_every: 2,
        ..TrainGrpo::default()
    }
}

/// Trains twice, and once more from the checkpoint of step 4 alone: the same bytes each time.
fn the_adapter_alone_is_trained<S: Stage>(world: &World, stage: &S, name: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let (first, steps) = world.train(stage, name);
    assert_eq!(steps, [1, 2, 3, 4, 5]);
    assert!(world.train(stage, &format!("{name}-again")).0 == first, "{name}: another run gave other bytes");

    let partial = world.path(name).join("partial");
    let left = files(&partial);
    assert_eq!(left.keys().collect::<Vec<_>>(), [Path::new("step-000004.safetensors")]);
    let held = tensors(&left[Path::new("step-000004.safetensors")]);
    let weights: Vec<&String> = held.keys().filter(|name| name.starts_with("weight.")).collect();
    assert_eq!(weights.len(), 2 * 2 * lora().targets.len(), "two halves of a pair for each map of two layers");
    assert!(weights.iter().all(|name| name.ends_with(".lora_A") || name.ends_with(".lora_B")), "{weights:?}");
    let to = world.path(&format!("{name}-resumed")).join("partial");
    std::fs::create_dir_all(&to).unwrap();
    std::fs::copy(partial.join("step-000004.safetensors"), to.join("step-000004.safetensors")).unwrap();
    let (resumed, steps) = world.train(stage, &format!("{name}-resumed"));
    assert_eq!(steps, [5]);
    assert!(resumed == first, "{name}: the resumed training ended elsewhere");

    only_targets_moved(world, &first, name);
    first
}

/// Of the weights only adapted maps differ from the base, and they are the base with the adapter beside it merged.
fn only_targets_moved(world: &World, outputs: &BTreeMap<PathBuf, Vec<u8>>, name: &str) {
    let weights = Path::new("model").join("model.safetensors");
    let base = tensors(&std::fs::read(world.path("base/model.safetensors")).unwrap());
    let trained = tensors(&outputs[&weights]);
    assert!(base.keys().eq(trained.keys()));
    for (tensor, bytes) in &base {
        let target = tensor.ends_with(".q_proj.weight") || tensor.ends_with(".down_proj.weight");
        let adapted = target && !tensor.starts_with("visual.");
        assert_eq!(trained[tensor] != *bytes, adapted, "{name}: {tensor}");
    }
    let vlm = Vlm::load(&world.path("base"), &LoadOptions::default()).unwrap();
    let trained = world.path(name).join("outputs/model");
    let merged = world.path(&format!("{name}-merged"));
    vlm.with_adapter(&trained.join(FOLDER)).unwrap().merged().unwrap().save(&merged).unwrap();
    assert!(std::fs::read(merged.join("model.safetensors")).unwrap() == outputs[&weights]);
    let trained = Vlm::load(&trained, &LoadOptions::default()).unwrap();
    assert_eq!(trained.weights().count(), vlm.weights().count());
}

fn lines(outputs: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<Value> {
    let text = std::str::from_utf8(&outputs[Path::new("metrics")]).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn fine_tuning_with_an_adapter() {
    let world = World::new();
    let metrics = lines(&the_adapter_alone_is_trained(&world, &sft(), "sft"));
    let loss = |step: usize| metrics[step]["loss"].as_f64().unwrap();
    assert!(loss(STEPS - 1) < loss(0), "{metrics:?}");
}

#[test]
fn reinforcement_with_an_adapter_is_held_to_the_weights_below_it() {
    let world = World::new();
    let metrics = lines(&the_adapter_alone_is_trained(&world, &grpo(), "grpo"));
    let number = |step: usize, name: &str| metrics[step][name].as_f64().unwrap();
    assert_eq!(number(0, "kl"), 0.0, "the reference is the model at the start");
    assert!(number(STEPS - 1, "kl") > 0.0, "{metrics:?}");
    assert!((0..STEPS).all(|step| number(step, "norm") > 0.0), "{metrics:?}");
}

#[test]
fn a_recipe_without_an_adapter_does_not_mention_it() {
    let names = |value: Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let without = (TrainSft { lora: None, ..sft() }, TrainGrpo { lora: None, ..grpo() });
    for value in [serde_json::to_value(without.0).unwrap(), serde_json::to_value(without.1).unwrap()] {
        assert!(!names(value).contains(&"lora".to_owned()));
    }
    let with = serde_json::to_value(sft()).unwrap();
    assert_eq!(with["lora"], json!({ "rank": 3, "alpha": 6.0, "targets": ["q_proj", "down_proj"] }));
}
