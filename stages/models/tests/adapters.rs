//! Low-rank adapters: PEFT's read in both key styles, ours read by PEFT, and training.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{Device, Tensor};
use mpcc_models::ModelError;
use mpcc_models::generate::GenerateRequest;
use mpcc_models::lora::LoraConfig;
use mpcc_models::ops::Segments;
use mpcc_models::sample::Sampling;
use mpcc_models::train::checkpoint::Checkpoints;
use mpcc_models::train::optim::AdamWConfig;
use mpcc_models::train::schedule::{Decay, Schedule};
use mpcc_models::train::session::StepConfig;
use mpcc_models::train::sft::{Example, SftConfig, train};
use mpcc_models::vlm::{LoadOptions, Packed, Prompt, Vlm};
use serde_json::{Value, json};

const FAMILIES: [&str; 4] = ["qwen2_vl", "llava_next_vicuna", "llava_next_mistral", "internvl"];

fn dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(name)
}

fn load(name: &str) -> Vlm {
    Vlm::load(&dir(name), &LoadOptions::default()).unwrap()
}

#[allow(unsafe_code, reason = "maps a fixture that nothing changes")]
fn tensors(path: &Path) -> MmapedSafetensors {
    unsafe { MmapedSafetensors::new(path) }.unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The prompt of the case `one`.
fn prompt(vlm: &Vlm, name: &str) -> Arc<Prompt> {
    let cases: Value = serde_json::from_slice(&std::fs::read(dir(name).join("cases.json")).unwrap()).unwrap();
    let case = cases["cases"].as_array().unwrap().iter().find(|case| case["name"] == "one").unwrap();
    let text = case["text"].as_str().unwrap().to_owned();
    let picture = dir(name).join("../../images/wide.png");
    let picture = mpcc_models::image::decode(&std::fs::read(picture).unwrap()).unwrap();
    let patches = vlm.assets().processor.process(&picture).unwrap();
    Arc::new(vlm.prompt_of_text(text, vec![patches]).unwrap())
}

/// Logits of the last rows, 16 at most.
fn logits(vlm: &Vlm, prompt: &Prompt) -> Vec<f32> {
    let packed = Packed {
        ids: prompt.ids.clone(),
        positions: prompt.positions.clone(),
        segments: Arc::new(Segments::causal([prompt.ids.len()]).unwrap()),
        images: prompt.images.clone(),
    };
    let hidden = vlm.model().forward(&packed, None).unwrap();
    let count = prompt.ids.len().min(16);
    let rows = hidden.narrow(0, prompt.ids.len() - count, count).unwrap();
    flat(&rows.matmul(&vlm.model().head().t().unwrap()).unwrap())
}

/// The adapter with other keys and settings.
fn rewritten(name: &str, to: &Path, key: impl Fn(&str) -> String, change: impl Fn(&mut Value)) {
    let from = dir(name).join("adapter");
    let mut config: Value = serde_json::from_slice(&std::fs::read(from.join("adapter_config.json")).unwrap()).unwrap();
    change(&mut config);
    std::fs::create_dir_all(to).unwrap();
    std::fs::write(to.join("adapter_config.json"), config.to_string()).unwrap();
    let files = tensors(&from.join("adapter_model.safetensors"));
    let all =
        files.tensors().into_iter().map(|(old, _)| (key(&old), files.load(&old, &Device::Cpu).unwrap())).collect();
    mpcc_models::checkpoint::write_tensors(&to.join("adapter_model.safetensors"), &all).unwrap();
}

#[test]
fn pefts_adapters_give_pytorchs_logits_in_both_key_styles() {
    for name in FAMILIES {
        let vlm = load(name);
        let prompt = prompt(&vlm, name);
        let theirs = tensors(&dir(name).join("reference.safetensors")).load("adapted.logits", &Device::Cpu).unwrap();
        let adapted = vlm.with_adapter(&dir(name).join("adapter")).unwrap();
        let ours = logits(&adapted, &prompt);
        assert!(worst(&ours, &flat(&theirs)) < 1e-4, "{name}: {}", worst(&ours, &flat(&theirs)));
        assert!(worst(&logits(&vlm, &prompt), &ours) > 0.1, "{name}: the adapter changes nothing");
        let folder = tempfile::tempdir().unwrap();
        // Before transformers 5 the language model stood elsewhere.
        let old = if name == "qwen2_vl" { "model." } else { "language_model.model." };
        rewritten(name, folder.path(), |key| key.replace("model.language_model.", old), |_| {});
        let again = vlm.with_adapter(folder.path()).unwrap();
        assert_eq!(logits(&again, &prompt), ours, "{name}");
        let merged = adapted.merged().unwrap();
        assert_eq!(logits(&merged, &prompt), ours, "{name}");
        let answer = |vlm: &Vlm| {
            let request = GenerateRequest { prompt: prompt.clone(), sampling: Sampling::greedy(12), seeds: vec![0] };
            vlm.complete(request).unwrap()
        };
        assert_eq!(answer(&merged), answer(&adapted), "{name}");
    }
}

#[test]
fn an_adapter_that_does_not_fit_is_named() {
    let vlm = load("internvl");
    let refused = |key: &dyn Fn(&str) -> String, change: &dyn Fn(&mut Value)| -> String {
        let folder = tempfile::tempdir().unwrap();
        rewritten("internvl", folder.path(), key, change);
        vlm.with_adapter(folder.path()).unwrap_err().to_string()
    };
    let same = |key: &str| key.to_owned();
    let message = refused(&|key| key.replace("layers.1.", "layers.7."), &|_| {});
    assert!(message.contains("layers.7.") && message.contains("fits no weight"), "{message}");
    assert!(refused(&same, &|config| config["r"] = 3.into()).contains("rank 3 ask for [3, "));
    assert!(refused(&same, &|config| config["use_dora"] = true.into()).contains("`use_dora` is true"));
    assert!(refused(&same, &|config| config["peft_type"] = "IA3".into()).contains("only LORA"));
    assert!(refused(&|key| key.replace("lora_A", "lora_B.x"), &|_| {}).contains("fits no weight"));
    let empty = tempfile::tempdir().unwrap();
    assert!(vlm.with_adapter(empty.path()).unwrap_err().to_string().contains("adapter_config.json"));
    let config = std::fs::read(dir("internvl").join("adapter/adapter_config.json")).unwrap();
    std::fs::write(empty.path().join("adapter_config.json"), config).unwrap();
    mpcc_models::checkpoint::write_tensors(&empty.path().join("adapter_model.safetensors"), &Default::default())
        .unwrap();
    assert!(vlm.with_adapter(empty.path()).unwrap_err().to_string().contains("none of its 0 tensors"));
}

fn sft(vlm: &Vlm, examples: &[Example], steps: usize, checkpoints: Option<&Checkpoints>, stop: usize) -> Vec<f64> {
    let schedule = Schedule { learning_rate: 0.02, decay: Decay::Constant, warmup: 0.0 };
    let steps = StepConfig { steps, schedule, adamw: AdamWConfig::default(), freeze_vision: true, seed: 1 };
    let config = SftConfig { steps, batch: 1, accumulation: 1 };
    let mut observe = |step: &mpcc_models::train::sft::SftStep| match step.step == stop {
        true => std::ops::ControlFlow::Break(()),
        false => std::ops::ControlFlow::Continue(()),
    };
    train(vlm, examples, &config, checkpoints, &mut observe).unwrap().iter().map(|step| step.loss).collect()
}

#[test]
fn adapters_learn_and_leave_the_base_alone() {
    let (dir_of_all, mut saved_all) = (tempfile::tempdir().unwrap(), vec![]);
    for name in FAMILIES {
        let vlm = load(name);
        let target = vec![40, 41, 42, 43, vlm.eos()[0]];
        let examples = [Example { prompt: prompt(&vlm, name), target }];
        let before = logits(&vlm, &examples[0].prompt);
        let config =
            LoraConfig { rank: 3, alpha: 6.0, targets: vec!["q_proj".into(), "o_proj".into(), "up_proj".into()] };
        let fresh = || vlm.with_new_adapter(&config, 4).unwrap();
        assert_eq!(logits(&fresh(), &examples[0].prompt), before, "{name}: a new adapter changes nothing");
        let whole = fresh();
        let losses = sft(&whole, &examples, 12, None, usize::MAX);
        assert!(losses[11] < 0.5 * losses[0], "{name}: {losses:?}");
        assert_eq!(logits(&vlm, &examples[0].prompt), before, "{name}: the base is as it was");

        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints { folder: folder.path().into(), every: 5 };
        sft(&fresh(), &examples, 12, Some(&checkpoints), 7);
        let resumed = fresh();
        assert_eq!(sft(&resumed, &examples, 12, Some(&checkpoints), usize::MAX), losses, "{name}");
        let after = logits(&whole.merged().unwrap(), &examples[0].prompt);
        assert_eq!(logits(&resumed.merged().unwrap(), &examples[0].prompt), after, "{name}");
        assert!(worst(&before, &after) > 0.1);

        let saved = dir_of_all.path().join(name);
        whole.weights().adapter().unwrap().save(&saved).unwrap();
        assert_eq!(logits(&vlm.with_adapter(&saved).unwrap(), &examples[0].prompt), after, "{name}");
        // A text alone: the processor that transformers picks resizes by torchvision, a grey level off here and there.
        let text = vlm.prompt_of_text("What is hidden behind the black box? Think first.".into(), vec![]).unwrap();
        let expected = logits(&whole.merged().unwrap(), &text);
        saved_all.push(json!({ "base": dir(name), "adapter": saved, "ids": text.ids, "logits": expected }));
    }
    load_in_peft(&saved_all);
}

#[test]
fn a_target_that_is_no_map_is_refused() {
    let vlm = load("qwen2_vl");
    let config = |targets: &[&str], rank| LoraConfig {
        rank,
        alpha: 1.0,
        targets: targets.iter().map(|t| (*t).into()).collect(),
    };
    let refused = |targets: &[&str], rank| vlm.with_new_adapter(&config(targets, rank), 1).unwrap_err().to_string();
    assert!(refused(&["q_proj", "w_proj"], 2).contains("`w_proj`"));
    assert!(refused(&["q_proj"], 0).contains("rank"));
    assert!(refused(&[], 2).contains("at least one"));
    let twice = vlm.with_new_adapter(&config(&["q_proj"], 2), 1).unwrap();
    assert!(matches!(twice.with_new_adapter(&config(&["q_proj"], 2), 1), Err(ModelError::Setting(_))));
}

/// PEFT on transformers must give the same logits.
#[allow(clippy::disallowed_methods, reason = "a test that may be told which Python to use and not to skip")]
fn load_in_peft(saved: &[Value]) {
    let python = std::env::var("MPCC_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let there = Command::new(&python).args(["-c", "import torch, transformers, peft"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        assert!(!std::env::var("MPCC_TEST_ALL").is_ok_and(|value| value == "1"), "peft is absent");
        println!("skipped: needs peft");
        return;
    }
    let script = r#"
import sys, json, torch, warnings
from transformers import AutoModelForImageTextToText
import peft
for one in json.load(open(sys.argv[1])):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        base = AutoModelForImageTextToText.from_pretrained(one["base"], dtype=torch.float32, attn_implementation="eager")
        model = peft.PeftModel.from_pretrained(base, one["adapter"]).eval()
    assert not any("missing adapter keys" in str(w.message) for w in caught), [str(w.message) for w in caught]
    with torch.no_grad(): logits = model(input_ids=torch.tensor([one["ids"]])).logits[0, -16:].flatten()
    worst = (logits - torch.tensor(one["logits"])).abs().max().item()
    print(one["base"], worst)
    assert worst < 1e-4, (one["base"], worst)
"#;
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("list.json");
    std::fs::write(&list, serde_json::to_string(saved).unwrap()).unwrap();
    let output = Command::new(python).args(["-c", script]).arg(list).env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    println!("{}", String::from_utf8_lossy(&output.stdout));
}
