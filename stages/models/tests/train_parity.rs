//! Losses, gradients and advantages against PyTorch: `fixtures/reference.safetensors` is written by `make_fixtures.py`;
//! `fixtures/objective.json` holds a group, its advantages and the four losses of one batch in f64, as TRL's trainer gives them.

mod common;

use std::collections::BTreeMap;

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{Device, Tensor, Var};
use common::fixtures;
use image::RgbImage;
use mpcc_models::chat::{Part, Role, Turn};
use mpcc_models::train::advantage::{Scaling, advantages};
use mpcc_models::train::batch::Batch;
use mpcc_models::train::logprob::{logprobs, weighted};
use mpcc_models::train::objective::{DemoWeight, Kl, Loss, Objective, Tokens};
use mpcc_models::vlm::{LoadOptions, Prompt, Trainable, Vlm};
use serde_json::Value;

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixtures().join(name)).unwrap()).unwrap()
}

fn load() -> Vlm {
    Vlm::load(&fixtures().join("tiny"), &LoadOptions::default()).unwrap()
}

fn array(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    array(value).iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn floats(value: &Value) -> Vec<f64> {
    array(value).iter().map(|number| number.as_f64().unwrap()).collect()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn prompt(vlm: &Vlm, cases: &Value, name: &Value) -> Prompt {
    let case = array(&cases["cases"]).iter().find(|case| case["name"] == *name).unwrap();
    let mut images: Vec<RgbImage> = Vec::new();
    let turns = array(&case["turns"]).iter().map(|turn| {
        let role = match turn["role"].as_str().unwrap() {
            "system" => Role::System,
            "user" => Role::User,
            _ => Role::Assistant,
        };
        let parts = array(&turn["parts"]).iter().map(|part| match part["image"].as_str() {
            Some(name) => {
                images.push(image::open(fixtures().join("images").join(name)).unwrap().to_rgb8());
                Part::Image
            }
            None => Part::Text(part["text"].as_str().unwrap().to_owned()),
        });
        Turn { role, parts: parts.collect() }
    });
    let turns: Vec<Turn> = turns.collect();
    vlm.prompt(&turns, &images, true).unwrap()
}

/// Compares the gradients of `loss` with the fixture's samples of them; every variable must have one that is not zero.
fn gradients_agree(prefix: &str, vlm: &Vlm, loss: &Tensor) {
    #[allow(unsafe_code, reason = "maps a fixture that nothing changes")]
    let reference = unsafe { MmapedSafetensors::new(fixtures().join("reference.safetensors")) }.unwrap();
    let store = loss.backward().unwrap();
    let mut found = BTreeMap::new();
    for (name, var) in vlm.weights().vars() {
        let gradient = store.get(var.as_tensor()).unwrap_or_else(|| panic!("{name} has no gradient"));
        assert!(flat(gradient).iter().any(|value| *value != 0.0), "the gradient of {name} is zero");
        found.insert(name.clone(), gradient.clone());
    }
    for (name, ours) in vlm.weights().published_like(&found).unwrap() {
        let ours = flat(&ours);
        let ours: Vec<f32> = ours.iter().step_by((ours.len() / 512).max(1)).copied().collect();
        let theirs = flat(&reference.load(&format!("{prefix}.{name}"), &Device::Cpu).unwrap());
        let top = theirs.iter().fold(1e-4f32, |top, value| top.max(value.abs()));
        let worst = ours.iter().zip(&theirs).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
        assert!(ours.len() == theirs.len() && worst < 5e-4 * top, "{prefix}.{name}: differs by {worst} of {top}");
    }
}

fn scalar(tensor: &Tensor) -> f64 {
    f64::from(tensor.to_scalar::<f32>().unwrap())
}

#[test]
fn sft_gradients_agree_with_pytorch() {
    let (vlm, cases) = (load(), json("cases.json"));
    let (mut batch, mut rows, mut targets) = (Batch::new(), vec![], vec![]);
    for example in array(&cases["sft"]["examples"]) {
        let prompt = prompt(&vlm, &cases, &example["prompt"]);
        for span in batch.add(&prompt, None, &[&ids(&example["target"])]).unwrap() {
            rows.extend(span.rows);
            targets.extend(span.targets);
        }
    }
    let model = vlm.view(Trainable::All).unwrap();
    let (packed, _) = batch.pack(&Device::Cpu).unwrap();
    let hidden = model.forward(&packed, None).unwrap();
    let mean = vec![-1.0 / rows.len() as f32; rows.len()];
    let loss = weighted(&hidden, model.head(), &rows, &targets, &mean).unwrap();
    assert!((scalar(&loss) - cases["sft"]["loss"].as_f64().unwrap()).abs() < 2e-5);
    gradients_agree("sft", &vlm, &loss);
}

/// A batch with what it predicts, and the length and advantage of each completion.
struct Groups {
    batch: Batch,
    rows: Vec<u32>,
    targets: Vec<u32>,
    members: Vec<(usize, f64)>,
}

/// The fixture's groups packed: each completion behind the one copy of its prompt, or each with a prompt of its own.
fn grpo_batch(vlm: &Vlm, cases: &Value, shared: bool) -> Groups {
    let (mut batch, mut rows, mut targets, mut members) = (Batch::new(), vec![], vec![], vec![]);
    for group in array(&cases["grpo"]["groups"]) {
        let prompt = prompt(vlm, cases, &group["prompt"]);
        let completions: Vec<Vec<u32>> = array(&group["completions"]).iter().map(|one| ids(&one["ids"])).collect();
        let slices: Vec<&[u32]> = completions.iter().map(Vec::as_slice).collect();
        for part in slices.chunks(if shared { slices.len() } else { 1 }) {
            for span in batch.add(&prompt, None, part).unwrap() {
                rows.extend(span.rows);
                targets.extend(span.targets);
            }
        }
        members.extend(
            array(&group["completions"]).iter().map(|one| (ids(&one["ids"]).len(), one["advantage"].as_f64().unwrap())),
        );
    }
    Groups { batch, rows, targets, members }
}

#[test]
fn grpo_gradients_agree_with_pytorch_whether_the_prompt_is_shared_or_not() {
    let (vlm, cases) = (load(), json("cases.json"));
    let grpo = &cases["grpo"];
    let objective = Objective {
        loss: Loss::Grpo,
        beta: grpo["beta"].as_f64().unwrap(),
        kl: Kl::K3,
        clip_low: 0.2,
        clip_high: 0.2,
        demo: DemoWeight::One,
        longest: 64,
    };
    let reference = vlm.deep_copy().unwrap();
    for var in reference.weights().vars().values() {
        var.set(&(var.as_tensor().detach() * grpo["reference_scale"].as_f64().unwrap()).unwrap()).unwrap();
    }
    for shared in [true, false] {
        let Groups { batch, rows, targets, members } = grpo_batch(&vlm, &cases, shared);
        let (packed, _) = batch.pack(&Device::Cpu).unwrap();
        let judged = reference.model().forward(&packed, None).unwrap();
        let judged = flat(&logprobs(&judged, reference.model().head(), &rows, &targets).unwrap());
        let theirs: Vec<f64> = array(&grpo["reference_logps"]).iter().flat_map(floats).collect();
        assert!(judged.iter().zip(&theirs).all(|(a, b)| (f64::from(*a) - b).abs() < 2e-4));
        let mut tokens = Tokens { reference: Some(judged), ..Tokens::default() };
        for (length, advantage) in &members {
            let weight = objective.weight(*length, 2, members.len(), rows.len()) as f32;
            tokens.advantage.extend(vec![*advantage as f32; *length]);
            tokens.weight.extend(vec![weight; *length]);
            tokens.prior.extend(vec![0.0; *length]);
        }
        let model = vlm.view(Trainable::All).unwrap();
        let hidden = model.forward(&packed, None).unwrap();
        let logp = logprobs(&hidden, model.head(), &rows, &targets).unwrap();
        let (loss, _) = objective.loss(&logp, &tokens).unwrap();
        assert!((scalar(&loss) - grpo["loss"].as_f64().unwrap()).abs() < 2e-5, "{loss}");
        gradients_agree("grpo", &vlm, &loss);
    }
}

#[test]
fn advantages_and_losses_have_their_published_values() {
    let golden = json("objective.json");
    let rewards = floats(&golden["group"]["rewards"]);
    let (found, dead) = advantages(std::slice::from_ref(&rewards), Scaling::Group);
    let wanted = floats(&golden["group"]["adv"]);
    assert!(found[0].iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-12) && !dead[0]);

    let lengths: Vec<usize> =
        array(&golden["mask"]).iter().map(|row| floats(row).iter().sum::<f64>() as usize).collect();
    let kept = |name: &str| -> Vec<f32> {
        let rows = array(&golden[name]).iter().zip(&lengths);
        rows.flat_map(|(row, length)| floats(row)[..*length].to_vec()).map(|value| value as f32).collect()
    };
    let all: usize = lengths.iter().sum();
    for (name, loss) in [("grpo", Loss::Grpo), ("bnpo", Loss::Bnpo), ("dr_grpo", Loss::DrGrpo), ("dapo", Loss::Dapo)] {
        let objective = Objective {
            loss,
            beta: golden["beta"].as_f64().unwrap(),
            kl: Kl::K3,
            clip_low: 0.2,
            clip_high: 0.2,
            demo: DemoWeight::One,
            longest: golden["max_len"].as_u64().unwrap() as usize,
        };
        let mut tokens = Tokens { reference: Some(kept("ref")), prior: vec![0.0; all], ..Tokens::default() };
        for (length, advantage) in lengths.iter().zip(&wanted) {
            let weight = objective.weight(*length, 1, lengths.len(), all) as f32;
            tokens.advantage.extend(vec![*advantage as f32; *length]);
            tokens.weight.extend(vec![weight; *length]);
        }
        let logp = Var::new(kept("logp").as_slice(), &Device::Cpu).unwrap();
        let (value, _) = objective.loss(logp.as_tensor(), &tokens).unwrap();
        assert!((scalar(&value) - golden["loss"][name].as_f64().unwrap()).abs() < 1e-6, "{name}: {value}");
    }
}
