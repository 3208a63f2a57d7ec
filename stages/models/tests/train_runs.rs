//! Whole trainings of a tiny model: stopped and resumed, at rate zero, with parts frozen.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use mpcc_models::sample::Sampling;
use mpcc_models::train::advantage::Scaling;
use mpcc_models::train::checkpoint::Checkpoints;
use mpcc_models::train::grpo::{self, GrpoConfig, Prior, Task};
use mpcc_models::train::lm::{self, Sequence};
use mpcc_models::train::objective::{DemoWeight, Kl, Loss, Objective};
use mpcc_models::train::optim::AdamWConfig;
use mpcc_models::train::schedule::{Decay, Schedule};
use mpcc_models::train::session::StepConfig;
use mpcc_models::train::sft::{self, Example, SftConfig};
use mpcc_models::vlm::{Prompt, Vlm};

fn steps(steps: usize, rate: f64, freeze_vision: bool) -> StepConfig {
    let schedule = Schedule { learning_rate: rate, decay: Decay::Cosine, warmup: 0.2 };
    let adamw = AdamWConfig { weight_decay: 0.05, ..AdamWConfig::default() };
    StepConfig { steps, schedule, adamw, freeze_vision, seed: 5 }
}

fn prompt(vlm: &Vlm, salt: u32) -> Arc<Prompt> {
    Arc::new(vlm.prompt(&common::question(salt, 6), &[common::picture(salt)], true).unwrap())
}

fn target(salt: u32) -> Vec<u32> {
    (0..6).map(|i| 10 + (salt * 5 + i * 3) % 90).chain([2]).collect()
}

fn bits(vlm: &Vlm) -> Vec<(String, Vec<u32>)> {
    let values = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let bits = |(name, var): (&String, &candle_core::Var)| {
        (name.clone(), values(var.as_tensor()).into_iter().map(f32::to_bits).collect())
    };
    vlm.weights().vars().iter().map(bits).collect()
}

type Training<'a> = &'a dyn Fn(&Vlm, Option<&Checkpoints>, Option<usize>) -> String;

/// Trains in one go, then stopped after two steps and resumed by another model: both must end in the same bits and log.
fn resumes(training: Training<'_>) -> Vec<(String, Vec<u32>)> {
    let whole = common::tiny(3, 1);
    let log = training(&whole, None, None);
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints { folder: dir.path().to_owned(), every: 100 };
    let part = common::tiny(3, 1);
    training(&part, Some(&checkpoints), Some(2));
    assert_ne!(bits(&part), bits(&whole), "stopped too late to tell");
    let resumed = common::tiny(3, 2);
    assert_eq!(training(&resumed, Some(&checkpoints), None), log);
    assert!(bits(&resumed) == bits(&whole), "the resumed training ended elsewhere");
    bits(&whole)
}

fn until<'a, T>(last: Option<usize>, step: impl Fn(&T) -> usize + 'a) -> impl FnMut(&T) -> ControlFlow<()> + 'a {
    move |line| if last == Some(step(line)) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

#[test]
fn a_stopped_fine_tuning_resumes_to_the_same_bits() {
    resumes(&|vlm, checkpoints, last| {
        let examples: Vec<Example> =
            (0..5).map(|salt| Example { prompt: prompt(vlm, salt), target: target(salt) }).collect();
        let config = SftConfig { steps: steps(5, 3e-3, true), batch: 2, accumulation: 2 };
        let log = sft::train(vlm, &examples, &config, checkpoints, &mut until(last, |line: &sft::SftStep| line.step));
        let log = log.unwrap();
        if last.is_none() {
            assert!(log[4].loss < log[0].loss, "{log:?}");
        }
        format!("{log:?}")
    });
}

#[test]
fn a_stopped_pretraining_resumes_to_the_same_bits() {
    let before = bits(&common::tiny(3, 1));
    let after = resumes(&|vlm, checkpoints, last| {
        let sequence = |salt: u32| {
            let prompt = (*prompt(vlm, salt)).clone();
            Sequence { weights: vec![1.0; prompt.ids.len()], prompt }
        };
        let mut batch = |step: usize| Ok((0..3).map(|i| sequence(step as u32 * 3 + i)).collect());
        let observe = &mut until(last, |line: &lm::LmStep| line.step);
        format!("{:?}", lm::train(vlm, steps(4, 3e-3, false), &mut batch, checkpoints, observe).unwrap())
    });
    for ((name, before), (_, after)) in before.iter().zip(&after) {
        assert_ne!(before, after, "{name} was not trained");
    }
}

fn grpo_config(rate: f64, prior: Prior) -> GrpoConfig {
    GrpoConfig {
        steps: steps(4, rate, true),
        prompts: 2,
        group: 4,
        updates: 2,
        sampling: Sampling::at(1.0, 8),
        objective: Objective {
            loss: Loss::Grpo,
            beta: 0.05,
            kl: Kl::K3,
            clip_low: 0.2,
            clip_high: 0.2,
            demo: DemoWeight::One,
            longest: 8,
        },
        scaling: Scaling::Group,
        prior,
        mask_truncated: false,
    }
}

fn optimise(vlm: &Vlm, config: &GrpoConfig, checkpoints: Option<&Checkpoints>, last: Option<usize>) -> String {
    let task = |salt: u32| Task { prompt: prompt(vlm, salt), prior: (salt != 1).then(|| target(salt)) };
    let tasks: Vec<Task> = (0..3).map(task).collect();
    let reward = |_: usize, text: &str| vec![text.len() as f64 * 0.1, f64::from(u8::from(text.contains("w1")))];
    let observe = &mut until(last, |line: &grpo::GrpoStep| line.step);
    format!("{:?}", grpo::train(vlm, &tasks, config, &reward, checkpoints, observe).unwrap())
}

#[test]
fn a_stopped_optimisation_resumes_to_the_same_bits() {
    let before = bits(&common::tiny(3, 1));
    let config = grpo_config(1e-3, Prior::Replace);
    let after = resumes(&|vlm, checkpoints, last| optimise(vlm, &config, checkpoints, last));
    for ((name, before), (_, after)) in before.iter().zip(&after) {
        assert_eq!(name.starts_with("visual."), before == after, "{name}");
    }
}

#[test]
fn a_rate_of_zero_leaves_every_bit() {
    for prior in [Prior::Off, Prior::Add, Prior::OnFailure] {
        let vlm = common::tiny(3, 1);
        let before = bits(&vlm);
        optimise(&vlm, &grpo_config(0.0, prior), None, None);
        assert!(before == bits(&vlm), "{prior:?}");
    }
}
