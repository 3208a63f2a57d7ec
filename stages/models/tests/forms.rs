//! Weights held in fewer bits: bf16 loses nothing of a checkpoint in bf16, and eight bits stay near, with rows that are each other's
//! business no more than in f32.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{FAMILIES, answers, fixtures};
use image::RgbImage;
use mpcc_models::DType;
use mpcc_models::chat::{Part, Role, Turn};
use mpcc_models::generate::{Completion, GenerateRequest};
use mpcc_models::lora::LoraConfig;
use mpcc_models::sample::Sampling;
use mpcc_models::score::ScoreRequest;
use mpcc_models::vlm::infer::EngineChoice;
use mpcc_models::vlm::{Form, LoadOptions, Prompt, Trainable, Vlm};

/// How far the log-probability of a token may be from f32's. These models are drawn and narrow, so that little of the rounding cancels:
/// 0.02 to 0.08 were seen, and a block read with another's scale gives more than 1.
const NEAR: f64 = 0.2;

fn load(dir: &Path, form: Form, threads: usize) -> Vlm {
    Vlm::load(dir, &LoadOptions { form, threads, ..LoadOptions::default() }).unwrap()
}

/// Questions about a picture, and one about none.
fn prompts(vlm: &Vlm) -> Vec<Arc<Prompt>> {
    let picture = RgbImage::from_fn(117, 90, |x, y| image::Rgb([(x * 3) as u8, (y * 5) as u8, (x + y) as u8]));
    let ask = |words: &str, pictures: &[RgbImage]| {
        let shown = pictures.iter().map(|_| Part::Image);
        let parts = shown.chain([Part::Text(words.to_owned())]).collect();
        Arc::new(vlm.prompt(&[Turn { role: Role::User, parts }], pictures, true).unwrap())
    };
    vec![
        ask("Which one is it? a bus, a car", std::slice::from_ref(&picture)),
        ask("Is it true that it is a tram?", &[picture]),
        ask("What is two and two?", &[]),
    ]
}

fn generate(vlm: &Vlm, prompts: &[Arc<Prompt>], samples: u64) -> Vec<Vec<Completion>> {
    let request = |prompt: &Arc<Prompt>| GenerateRequest {
        prompt: prompt.clone(),
        sampling: Sampling::at(1.0, 8),
        seeds: (0..samples).collect(),
    };
    answers(vlm, &prompts.iter().map(request).collect::<Vec<_>>())
}

fn score(vlm: &Vlm, prompts: &[Arc<Prompt>]) -> Vec<Vec<f64>> {
    let request = |prompt: &Arc<Prompt>| ScoreRequest {
        prompt: prompt.clone(),
        prefix: vec![40, 41],
        continuations: vec![vec![9, 10, 11], vec![20], vec![30, 31]],
    };
    vlm.score(&prompts.iter().map(request).collect::<Vec<_>>()).unwrap()
}

#[test]
fn a_checkpoint_in_bf16_answers_as_in_f32_to_the_bit_in_half_the_memory() {
    for family in FAMILIES {
        let folder = tempfile::tempdir().unwrap();
        load(&fixtures().join(family), Form::F32, 1).save_as(folder.path(), Some(DType::BF16), None).unwrap();
        let (wide, narrow) = (load(folder.path(), Form::F32, 1), load(folder.path(), Form::AsStored, 2));
        assert_eq!((wide.form(), narrow.form()), (Form::F32, Form::Bf16), "{family}");
        let prompts = prompts(&wide);
        assert_eq!(generate(&wide, &prompts, 5), generate(&narrow, &prompts, 5), "{family}");
        assert_eq!(score(&wide, &prompts), score(&narrow, &prompts), "{family}");
        // A checkpoint in f32 is held as it is.
        assert_eq!(load(&fixtures().join(family), Form::AsStored, 1).form(), Form::F32, "{family}");
    }
}

#[test]
fn eight_bits_stay_near() {
    for family in FAMILIES {
        let dir = fixtures().join(family);
        let (wide, narrow) = (load(&dir, Form::F32, 1), load(&dir, Form::Q8, 1));
        assert_eq!((narrow.form(), narrow.weights().count()), (Form::Q8, wide.weights().count()));
        let prompts = prompts(&wide);
        let (wide, narrow) = (score(&wide, &prompts), score(&narrow, &prompts));
        assert_ne!(wide, narrow, "{family}");
        let per_token = wide.iter().flatten().zip(narrow.iter().flatten()).zip([3.0, 1.0, 2.0].iter().cycle());
        let most = per_token.map(|((wide, narrow), tokens)| (wide - narrow).abs() / tokens).fold(0.0, f64::max);
        println!("{family}: {most:.4}");
        assert!(most < NEAR, "{family}: {most}");
    }
}

#[test]
fn eight_bit_rows_do_not_depend_on_their_mates_or_threads() {
    let dir = fixtures().join("families/qwen2_vl");
    let (one, other) = (load(&dir, Form::Q8, 1), load(&dir, Form::Q8, 3));
    let prompts = prompts(&one);
    let all = generate(&one, &prompts, 12);
    assert_eq!(all, generate(&other, &prompts, 12));
    for (prompt, all) in prompts.iter().zip(&all) {
        let alone = generate(&load(&dir, Form::Q8, 1), std::slice::from_ref(prompt), 1);
        assert_eq!(alone[0][0], all[0]);
    }
}

#[test]
fn eight_bits_of_a_damaged_weight_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let vlm = load(&fixtures().join("tiny"), Form::F32, 1);
    let name = "model.layers.0.mlp.down_proj.weight";
    let damaged = (vlm.weights().vars()[name].as_tensor() * f64::NAN).unwrap();
    vlm.weights().vars()[name].set(&damaged).unwrap();
    vlm.save(folder.path()).unwrap();
    let options = LoadOptions { form: Form::Q8, ..LoadOptions::default() };
    let message = Vlm::load(folder.path(), &options).unwrap_err().to_string();
    assert!(message.contains(name) && message.contains("NaN"), "{message}");
}

#[test]
fn eight_bits_are_neither_trained_nor_written_nor_computed_on_tensors() {
    let dir = fixtures().join("tiny");
    let vlm = load(&dir, Form::Q8, 1);
    let folder = tempfile::tempdir().unwrap();
    let lora = LoraConfig { rank: 2, alpha: 4.0, targets: vec!["q_proj".into()] };
    let refused = [
        vlm.save(&folder.path().join("copy")).unwrap_err(),
        vlm.view(Trainable::All).unwrap_err(),
        vlm.with_new_adapter(&lora, 0).unwrap_err(),
        vlm.merged().unwrap_err(),
    ];
    for error in refused {
        assert!(error.to_string().contains("q8"), "{error}");
    }
    assert!(!folder.path().join("copy").exists());
    let options = LoadOptions { form: Form::Q8, engine: EngineChoice::Tensors, ..LoadOptions::default() };
    assert!(Vlm::load(&dir, &options).unwrap_err().to_string().contains("CPU"));
}
