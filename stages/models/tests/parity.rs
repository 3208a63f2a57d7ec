//! The model against PyTorch: fixtures written by `make_fixtures.py` from a tiny random Qwen2.5-VL.

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{Device, Tensor};
use common::fixtures;
use image::RgbImage;
use mpcc_models::chat::{Part, Role, Turn};
use mpcc_models::ops::Segments;
use mpcc_models::vlm::{LoadOptions, Packed, Prompt, Vlm};
use serde_json::Value;

fn cases() -> Value {
    serde_json::from_slice(&std::fs::read(fixtures().join("cases.json")).unwrap()).unwrap()
}

#[allow(unsafe_code, reason = "maps a fixture that nothing changes")]
fn reference(name: &str) -> Tensor {
    let files = unsafe { MmapedSafetensors::new(fixtures().join("reference.safetensors")) }.unwrap();
    files.load(name, &Device::Cpu).unwrap()
}

fn load(dir: &Path) -> Vlm {
    Vlm::load(dir, &LoadOptions::default()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn turns(case: &Value) -> (Vec<Turn>, Vec<RgbImage>) {
    let mut images = Vec::new();
    let turns = case["turns"].as_array().unwrap().iter().map(|turn| {
        let role = match turn["role"].as_str().unwrap() {
            "system" => Role::System,
            "user" => Role::User,
            _ => Role::Assistant,
        };
        let parts = turn["parts"].as_array().unwrap().iter().map(|part| match part["image"].as_str() {
            Some(name) => {
                images.push(image::open(fixtures().join("images").join(name)).unwrap().to_rgb8());
                Part::Image
            }
            None => Part::Text(part["text"].as_str().unwrap().to_owned()),
        });
        Turn { role, parts: parts.collect() }
    });
    (turns.collect(), images)
}

fn prompt(vlm: &Vlm, case: &Value) -> Prompt {
    let (turns, images) = turns(case);
    vlm.prompt(&turns, &images, true).unwrap()
}

fn logits(vlm: &Vlm, prompt: &Prompt) -> Tensor {
    let packed = Packed {
        ids: prompt.ids.clone(),
        positions: prompt.positions.clone(),
        segments: Arc::new(Segments::causal([prompt.ids.len()]).unwrap()),
        images: prompt.images.clone(),
    };
    let hidden = vlm.model().forward(&packed, None).unwrap();
    hidden.matmul(&vlm.model().head().t().unwrap()).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn each_case(mut check: impl FnMut(&str, &Value, &Vlm)) {
    let vlm = load(&fixtures().join("tiny"));
    for case in cases()["cases"].as_array().unwrap() {
        check(case["name"].as_str().unwrap(), case, &vlm);
    }
}

#[test]
fn prompts_have_the_same_text_tokens_and_positions() {
    each_case(|name, case, vlm| {
        let prompt = prompt(vlm, case);
        assert_eq!(prompt.text, case["text"].as_str().unwrap(), "{name}");
        assert_eq!(prompt.ids, ids(&case["ids"]), "{name}");
        for axis in 0..3 {
            assert_eq!(prompt.positions[axis], ids(&case["positions"][axis]), "{name}, axis {axis}");
        }
    });
}

#[test]
fn texts_encode_alike() {
    let vlm = load(&fixtures().join("tiny"));
    for entry in cases()["encodings"].as_array().unwrap() {
        assert_eq!(vlm.encode(entry["text"].as_str().unwrap()).unwrap(), ids(&entry["ids"]), "{}", entry["text"]);
    }
}

#[test]
fn pictures_become_the_same_numbers() {
    each_case(|name, case, vlm| {
        let prompt = prompt(vlm, case);
        if prompt.images.is_empty() {
            return;
        }
        let grids: Vec<_> = prompt.images.iter().map(|image| image.grid).collect();
        assert_eq!(serde_json::to_value(grids).unwrap(), case["grids"], "{name}");
        let ours: Vec<f32> = prompt.images.iter().flat_map(|image| flat(&image.pixels)).step_by(7).collect();
        let difference = worst(&ours, &flat(&reference(&format!("{name}.pixels"))));
        assert!(difference < 1e-5, "{name}: {difference}");
    });
}

#[test]
fn logits_agree() {
    each_case(|name, case, vlm| {
        let theirs = reference(&format!("{name}.logits"));
        let prompt = prompt(vlm, case);
        let rows = theirs.dim(0).unwrap();
        let ours = logits(vlm, &prompt).narrow(0, prompt.ids.len() - rows, rows).unwrap();
        let difference = worst(&flat(&ours), &flat(&theirs));
        assert!(difference < 1e-4, "{name}: {difference}");
    });
}

#[test]
fn a_saved_model_is_the_same_model() {
    let vlm = load(&fixtures().join("tiny"));
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    vlm.save(first.path()).unwrap();
    let again = load(first.path());
    again.save(second.path()).unwrap();
    for entry in std::fs::read_dir(first.path()).unwrap() {
        let name = entry.unwrap().file_name();
        let bytes = |dir: &Path| std::fs::read(dir.join(&name)).unwrap();
        assert_eq!(bytes(first.path()), bytes(second.path()), "{name:?}");
    }
    let case = &cases()["cases"][1];
    assert_eq!(flat(&logits(&vlm, &prompt(&vlm, case))), flat(&logits(&again, &prompt(&again, case))));
}

#[test]
fn transformers_loads_what_we_save() {
    let script = r#"
import sys, json, torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor
directory, fixtures = sys.argv[1], sys.argv[2]
model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
processor = AutoProcessor.from_pretrained(directory)
case = json.load(open(fixtures + "/cases.json"))["cases"][0]
ids = processor.tokenizer(case["text"], return_tensors="pt")["input_ids"]
assert ids[0].tolist() == case["ids"]
with torch.no_grad(): logits = model(input_ids=ids).logits[0, -48:]
worst = (logits - load_file(fixtures + "/reference.safetensors")["text.logits"]).abs().max().item()
assert worst < 1e-4, worst
print("agrees", worst)
"#;
    let python = interpreter();
    let there = Command::new(&python).args(["-c", "import torch, transformers"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        assert!(!everything(), "transformers is absent");
        println!("skipped: needs transformers");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    load(&fixtures().join("tiny")).save(dir.path()).unwrap();
    let output = Command::new(python)
        .args(["-c", script])
        .arg(dir.path())
        .arg(fixtures())
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[allow(clippy::disallowed_methods, reason = "a test that may be told which Python to use")]
fn interpreter() -> String {
    std::env::var("MPCC_TEST_PYTHON").unwrap_or_else(|_| "python3".into())
}

#[allow(clippy::disallowed_methods, reason = "a test that may be told not to skip")]
fn everything() -> bool {
    std::env::var("MPCC_TEST_ALL").is_ok_and(|value| value == "1")
}
