//! Every family against PyTorch: fixtures written by `make_families.py` from tiny random models, others drawn on the spot where
//! transformers is there.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{Device, Tensor};
use common::{answers, fixtures};
use image::RgbImage;
use mpcc_models::chat::{Part, Role, Turn};
use mpcc_models::generate::{Completion, GenerateRequest};
use mpcc_models::ops::Segments;
use mpcc_models::sample::Sampling;
use mpcc_models::score::ScoreRequest;
use mpcc_models::train::batch::Batch;
use mpcc_models::train::logprob::weighted;
use mpcc_models::vlm::{LoadOptions, Packed, Prompt, Trainable, Vlm};
use serde_json::Value;

const COMMITTED: [&str; 4] = ["qwen2_vl", "llava_next_vicuna", "llava_next_mistral", "internvl"];

/// A model with what PyTorch computed with it.
struct Family {
    name: String,
    dir: PathBuf,
    vlm: Vlm,
    cases: Value,
}

impl Family {
    fn open(dir: &Path) -> Family {
        let vlm = Vlm::load(dir, &LoadOptions::default()).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        let cases = serde_json::from_slice(&std::fs::read(dir.join("cases.json")).unwrap()).unwrap();
        Family { name: dir.file_name().unwrap().to_string_lossy().into_owned(), dir: dir.into(), vlm, cases }
    }

    fn committed() -> impl Iterator<Item = Family> {
        COMMITTED.iter().map(|name| Family::open(&fixtures().join("families").join(name)))
    }

    #[allow(unsafe_code, reason = "maps a fixture that nothing changes")]
    fn reference(&self, name: &str) -> Option<Tensor> {
        let files = unsafe { MmapedSafetensors::new(self.dir.join("reference.safetensors")) }.unwrap();
        files.load(name, &Device::Cpu).ok()
    }

    fn each(&self) -> &Vec<Value> {
        self.cases["cases"].as_array().unwrap()
    }

    fn picture(&self, name: &str) -> RgbImage {
        let own = self.dir.join("images").join(name);
        let path = if own.exists() { own } else { fixtures().join("images").join(name) };
        mpcc_models::image::decode(&std::fs::read(path).unwrap()).unwrap()
    }

    fn prompt(&self, case: &Value) -> Prompt {
        let mut images = Vec::new();
        let turns = case["turns"].as_array().unwrap().iter().map(|turn| {
            let role = match turn["role"].as_str().unwrap() {
                "system" => Role::System,
                "user" => Role::User,
                _ => Role::Assistant,
            };
            let parts = turn["parts"].as_array().unwrap().iter().map(|part| match part["image"].as_str() {
                Some(name) => {
                    images.push(self.picture(name));
                    Part::Image
                }
                None => Part::Text(part["text"].as_str().unwrap().to_owned()),
            });
            Turn { role, parts: parts.collect() }
        });
        let turns: Vec<Turn> = turns.collect();
        self.vlm.prompt(&turns, &images, true).unwrap()
    }

    fn prompts(&self) -> Vec<Arc<Prompt>> {
        self.each().iter().map(|case| Arc::new(self.prompt(case))).collect()
    }

    fn label(&self, case: &Value) -> String {
        format!("{}, {}", self.name, case["name"].as_str().unwrap())
    }
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Logits of every row of prompts that stand behind one another in one batch.
fn logits(vlm: &Vlm, prompts: &[Arc<Prompt>]) -> Tensor {
    let mut packed = Packed {
        ids: vec![],
        positions: Default::default(),
        segments: Arc::new(Segments::causal(prompts.iter().map(|prompt| prompt.ids.len())).unwrap()),
        images: vec![],
    };
    for prompt in prompts {
        packed.ids.extend(&prompt.ids);
        packed.images.extend(prompt.images.iter().cloned());
        packed.positions.iter_mut().zip(&prompt.positions).for_each(|(all, own)| all.extend(own));
    }
    let hidden = vlm.model().forward(&packed, None).unwrap();
    hidden.matmul(&vlm.model().head().t().unwrap()).unwrap()
}

/// Largest differences to PyTorch.
#[derive(Debug, Default)]
struct Differences {
    pixels: f32,
    logits: f32,
    gradients: f32,
}

/// Compares text, tokens, positions, pixels, logits (in a batch of unequal prompts), greedy answers and gradients.
fn agrees(family: &Family) -> Differences {
    let mut found = Differences::default();
    let prompts = family.prompts();
    for (case, prompt) in family.each().iter().zip(&prompts) {
        let label = family.label(case);
        assert_eq!(prompt.text, case["text"].as_str().unwrap(), "{label}");
        assert_eq!(prompt.ids, ids(&case["ids"]), "{label}");
        if let Some(axes) = case["positions"].as_array() {
            axes.iter().zip(&prompt.positions).for_each(|(theirs, ours)| assert_eq!(*ours, ids(theirs), "{label}"));
        }
        if let Some(theirs) = family.reference(&format!("{}.pixels", case["name"].as_str().unwrap())) {
            let ours: Vec<f32> = prompt.images.iter().flat_map(|image| flat(&image.pixels)).step_by(31).collect();
            found.pixels = found.pixels.max(worst(&ours, &flat(&theirs)));
            assert!(found.pixels < 1e-5, "{label}: pixels differ by {}", found.pixels);
        }
    }
    let together = logits(&family.vlm, &prompts);
    let mut end = 0;
    for (case, prompt) in family.each().iter().zip(&prompts) {
        end += prompt.ids.len();
        let theirs = family.reference(&format!("{}.logits", case["name"].as_str().unwrap())).unwrap();
        let rows = theirs.dim(0).unwrap();
        let ours = together.narrow(0, end - rows, rows).unwrap();
        found.logits = found.logits.max(worst(&flat(&ours), &flat(&theirs)));
        assert!(found.logits < 1e-4, "{}: logits differ by {}", family.label(case), found.logits);
        let request = GenerateRequest { prompt: prompt.clone(), sampling: Sampling::greedy(32), seeds: vec![0] };
        assert_eq!(family.vlm.complete(request).unwrap()[0].ids, ids(&case["greedy"]), "{}", family.label(case));
    }
    found.gradients = gradients_agree(family, &prompts);
    found
}

/// Compares the gradients of one answer's loss with the fixture's samples of them, relative to the largest of each weight.
fn gradients_agree(family: &Family, prompts: &[Arc<Prompt>]) -> f32 {
    let (sft, vlm) = (&family.cases["sft"], &family.vlm);
    let at = family.each().iter().position(|case| case["name"] == sft["prompt"]).unwrap();
    let mut batch = Batch::new();
    let span = batch.add(&prompts[at], None, &[&ids(&sft["target"])]).unwrap().remove(0);
    let (packed, _) = batch.pack(&Device::Cpu).unwrap();
    let model = vlm.view(Trainable::All).unwrap();
    let hidden = model.forward(&packed, None).unwrap();
    let mean = vec![-1.0 / span.rows.len() as f32; span.rows.len()];
    let loss = weighted(&hidden, model.head(), &span.rows, &span.targets, &mean).unwrap();
    let difference = f64::from(loss.to_scalar::<f32>().unwrap()) - sft["loss"].as_f64().unwrap();
    assert!(difference.abs() < 2e-5, "{}: losses differ by {difference}", family.name);
    let store = loss.backward().unwrap();
    let gradient = |(name, var): (&String, &candle_core::Var)| {
        let gradient = store.get(var.as_tensor()).unwrap_or_else(|| panic!("{}: {name} has none", family.name));
        (name.clone(), gradient.clone())
    };
    let found: BTreeMap<String, Tensor> = vlm.weights().vars().iter().map(gradient).collect();
    let mut most = 0f32;
    for (name, ours) in vlm.weights().published_like(&found).unwrap() {
        let ours = flat(&ours);
        let ours: Vec<f32> = ours.iter().step_by((ours.len() / 48).max(1)).copied().collect();
        let theirs = family.reference(&format!("sft.{name}")).unwrap_or_else(|| panic!("{}: no {name}", family.name));
        let theirs = flat(&theirs);
        // A window may keep an answer from its picture: then PyTorch's gradient is zero too.
        let zero = |values: &[f32]| values.iter().all(|value| *value == 0.0);
        assert_eq!(zero(&ours), zero(&theirs), "{}: the gradient of {name}", family.name);
        let top = theirs.iter().fold(1e-3f32, |top, value| top.max(value.abs()));
        most = most.max(worst(&ours, &theirs) / top);
        assert!(most < 1e-3, "{}: the gradient of {name} differs by {most} of {top}", family.name);
    }
    most
}

#[test]
fn committed_fixtures_agree() {
    for family in Family::committed() {
        println!("{}: {:?}", family.name, agrees(&family));
    }
}

#[test]
fn other_seeds_pictures_and_variants_agree() {
    let dir = tempfile::tempdir().unwrap();
    for seed in if heavy() { &["2", "3"][..] } else { &["2"] } {
        let (seed, folder) = (*seed, dir.path().join(seed));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/make_families.py");
        let Some(output) = python(&[script.as_os_str(), folder.as_os_str(), seed.as_ref()]) else { return };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        assert_eq!(names.len(), 9);
        for path in names {
            let family = Family::open(&path);
            println!("seed {seed}, {}: {:?}", family.name, agrees(&family));
        }
    }
}

#[test]
fn a_saved_model_is_the_same_model() {
    for family in Family::committed() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        family.vlm.save(first.path()).unwrap();
        let again = Vlm::load(first.path(), &LoadOptions::default()).unwrap();
        again.save(second.path()).unwrap();
        for entry in std::fs::read_dir(first.path()).unwrap() {
            let name = entry.unwrap().file_name();
            let bytes = |dir: &Path| std::fs::read(dir.join(&name)).unwrap();
            assert_eq!(bytes(first.path()), bytes(second.path()), "{}: {name:?}", family.name);
        }
        let prompts = family.prompts();
        assert_eq!(flat(&logits(&family.vlm, &prompts)), flat(&logits(&again, &prompts)), "{}", family.name);
        assert_eq!(again.config(), family.vlm.config());
    }
}

#[test]
fn transformers_loads_what_we_save() {
    let script = r#"
import json, sys, torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor
images = sys.argv[1]
for directory, fixture in zip(sys.argv[2::2], sys.argv[3::2]):
    model, info = AutoModelForImageTextToText.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"] and not info["unexpected_keys"], (fixture, info)
    processor = AutoProcessor.from_pretrained(directory)
    reference = load_file(fixture + "/reference.safetensors")
    for case in json.load(open(fixture + "/cases.json"))["cases"]:
        shown = [Image.open(f"{images}/{part['image']}") for turn in case["turns"] for part in turn["parts"] if "image" in part]
        inputs = processor(text=[case["text"]], images=shown or None, return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == case["ids"], (fixture, case["name"])
        with torch.no_grad(): logits = model.eval()(**inputs).logits[0, -16:]
        worst = (logits - reference[case["name"] + ".logits"]).abs().max().item()
        # The processor that transformers picks resizes by torchvision, a grey level off here and there.
        assert worst < (1e-4 if not shown else 0.2), (fixture, case["name"], worst)
        print(fixture.split("/")[-1], case["name"], worst)
"#;
    let dir = tempfile::tempdir().unwrap();
    let mut arguments: Vec<PathBuf> = vec!["-c".into(), script.into(), fixtures().join("images")];
    for family in Family::committed() {
        let saved = dir.path().join(&family.name);
        family.vlm.save(&saved).unwrap();
        arguments.extend([saved, family.dir]);
    }
    let arguments: Vec<&std::ffi::OsStr> = arguments.iter().map(|argument| argument.as_os_str()).collect();
    let Some(output) = python(&arguments) else { return };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    println!("{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn an_answer_depends_on_neither_batch_nor_prefix_nor_threads() {
    for family in Family::committed() {
        let prompts = family.prompts();
        let sampling = Sampling { top_p: 0.95, top_k: Some(40), repetition_penalty: 1.1, ..Sampling::at(1.0, 12) };
        // Alone, each prompt encoded anew; then many rows, most of which find their prompt encoded already.
        let request =
            |row: usize| GenerateRequest { prompt: prompts[row % 3].clone(), sampling, seeds: vec![row as u64] };
        let alone: Vec<Vec<Completion>> = (0..65)
            .map(|row| {
                let prompt = Arc::new(Prompt::clone(&prompts[row % 3]));
                family.vlm.complete(GenerateRequest { prompt, ..request(row) }).unwrap()
            })
            .collect();
        for size in [1, 2, 3, 5, 8, 13, 16, 17, 31, 33, 64, 65] {
            let requests: Vec<GenerateRequest> = (0..size).map(request).collect();
            assert_eq!(answers(&family.vlm, &requests), alone[..size], "{} in a batch of {size}", family.name);
        }
        let threaded = LoadOptions { threads: 3, ..LoadOptions::default() };
        let threaded = Vlm::load(&family.dir, &threaded).unwrap();
        let requests: Vec<GenerateRequest> = (0..33).map(request).collect();
        assert_eq!(answers(&threaded, &requests), alone[..33], "{} on three threads", family.name);
        let shared = GenerateRequest { seeds: (0..65).filter(|row| row % 3 == 1).collect(), ..request(1) };
        let expected: Vec<Completion> = (0..65).filter(|row| row % 3 == 1).map(|row| alone[row][0].clone()).collect();
        assert_eq!(family.vlm.complete(shared).unwrap(), expected, "{} behind one prompt", family.name);
    }
}

#[test]
fn scores_are_the_forwards_in_any_company_to_the_bit() {
    for family in Family::committed() {
        let prompts = family.prompts();
        let request = |row: usize| ScoreRequest {
            prompt: prompts[row % 3].clone(),
            prefix: (0..(row % 5) as u32).map(|id| 40 + id).collect(),
            continuations: vec![vec![9, 10, 11], vec![20 + row as u32 % 7], vec![]],
        };
        let alone: Vec<Vec<f64>> = (0..33).map(|row| family.vlm.score(&[request(row)]).unwrap().remove(0)).collect();
        for size in [2, 7, 16, 33] {
            let requests: Vec<ScoreRequest> = (0..size).map(request).collect();
            assert_eq!(family.vlm.score(&requests).unwrap(), alone[..size], "{} with {size}", family.name);
        }
        for (row, alone) in alone.iter().enumerate().take(6) {
            let ScoreRequest { prompt, prefix, continuations } = request(row);
            let mut longer = Prompt::clone(&prompt);
            longer.ids.extend(prefix.iter().chain(&continuations[0]));
            let next = prompt.next_position();
            let count = (longer.ids.len() - prompt.ids.len()) as u32;
            longer.positions.iter_mut().for_each(|axis| axis.extend(next..next + count));
            let logits = logits(&family.vlm, &[Arc::new(longer.clone())]);
            let rows = candle_nn::ops::log_softmax(&logits, 1).unwrap().to_vec2::<f32>().unwrap();
            let start = longer.ids.len() - 4;
            let sum: f64 = (0..3).map(|at| f64::from(rows[start + at][continuations[0][at] as usize])).sum();
            assert!((sum - alone[0]).abs() < 1e-4 * (1.0 + sum.abs()), "{}: {sum} {}", family.name, alone[0]);
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "a test that may be told to take longer")]
fn heavy() -> bool {
    std::env::var("MPCC_HEAVY").is_ok_and(|value| value == "1")
}

#[allow(clippy::disallowed_methods, reason = "a test that may be told which Python to use and not to skip")]
fn python(arguments: &[&std::ffi::OsStr]) -> Option<Output> {
    let python = std::env::var("MPCC_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let there = Command::new(&python).args(["-c", "import torch, transformers"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        assert!(!std::env::var("MPCC_TEST_ALL").is_ok_and(|value| value == "1"), "transformers is absent");
        println!("skipped: needs transformers");
        return None;
    }
    Some(Command::new(python).args(arguments).env("HF_HUB_OFFLINE", "1").output().unwrap())
}
