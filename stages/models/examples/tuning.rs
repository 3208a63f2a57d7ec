//! Seconds and memory of training steps, of all weights or of an adapter.
//!
//! `cargo run --release -p mpcc-models --example tuning -- MODEL PICTURE sft|grpo full|RANK THREADS STEPS` prints one line of JSON. A step of
//! `sft` learns one response of 64 tokens, a step of `grpo` draws four of 32 tokens and is held to the reference. Seconds are the
//! least of the steps; the vision tower is frozen, so the picture is encoded once.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use mimalloc::MiMalloc;
use mpcc_models::chat::{Part, Role, Turn};
use mpcc_models::lora::LoraConfig;
use mpcc_models::sample::Sampling;
use mpcc_models::train::Verdict;
use mpcc_models::train::advantage::Scaling;
use mpcc_models::train::grpo::{self, GrpoConfig, Prior, Task};
use mpcc_models::train::objective::{DemoWeight, Kl, Loss, Objective};
use mpcc_models::train::optim::AdamWConfig;
use mpcc_models::train::schedule::{Decay, Schedule};
use mpcc_models::train::session::StepConfig;
use mpcc_models::train::sft::{self, Example, SftConfig};
use mpcc_models::vlm::{LoadOptions, Prompt, Vlm};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Tokens of a response to learn, and of one that is drawn.
const LEARNED: u32 = 64;
const DRAWN: usize = 32;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, picture, method, what, threads, steps] = arguments.as_slice() else {
        panic!("usage: tuning MODEL PICTURE sft|grpo full|RANK THREADS STEPS")
    };
    let options = LoadOptions { threads: threads.parse().expect("a number of threads"), ..LoadOptions::default() };
    let base = Vlm::load(Path::new(model), &options).expect("a model directory");
    let (vlm, weights) = match what.as_str() {
        "full" => (base.clone(), base.weights().trainable(true)),
        rank => {
            let adapted = base.with_new_adapter(&config(rank.parse().expect("a rank")), 1).expect("an adapter");
            let weights = adapted.weights().trainable(true);
            (adapted, weights)
        }
    };
    let trained: usize = weights.iter().map(|(_, var)| var.as_tensor().elem_count()).sum();
    drop((base, weights));
    let (loaded, picture) = (peak(), std::fs::read(picture).expect("a picture"));
    let picture = mpcc_models::image::decode(&picture).expect("a picture");
    let parts = vec![Part::Image, Part::Text("What is hidden?".to_owned())];
    let turns = [Turn { role: Role::User, parts }];
    let prompt = Arc::new(vlm.prompt(&turns, &[picture], true).expect("a prompt"));
    let tokens = prompt.ids.len();
    let mut clock = Clock { last: Instant::now(), least: f64::INFINITY };
    let steps = step_config(steps.parse().expect("a number of steps"));
    match method.as_str() {
        "sft" => learn(&vlm, prompt, steps, &mut clock),
        _ => reinforce(&vlm, prompt, steps, &mut clock),
    }
    let line = json!({
        "prompt tokens": tokens, "weights": vlm.weights().count(), "trained": trained, "least step s": clock.least,
        "loaded MiB": loaded, "peak MiB": peak(),
    });
    println!("{line}");
}

fn config(rank: usize) -> LoraConfig {
    let targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    LoraConfig { rank, alpha: 2.0 * rank as f64, targets: targets.map(str::to_owned).to_vec() }
}

fn step_config(steps: usize) -> StepConfig {
    let schedule = Schedule { learning_rate: 1e-5, decay: Decay::Constant, warmup: 0.0 };
    StepConfig { steps, schedule, adamw: AdamWConfig::default(), freeze_vision: true, seed: 1 }
}

/// The least time between two steps.
struct Clock {
    last: Instant,
    least: f64,
}

impl Clock {
    fn tick(&mut self) -> Verdict {
        self.least = self.least.min(self.last.elapsed().as_secs_f64());
        self.last = Instant::now();
        ControlFlow::Continue(())
    }
}

fn learn(vlm: &Vlm, prompt: Arc<Prompt>, steps: StepConfig, clock: &mut Clock) {
    let examples = [Example { prompt, target: (0..LEARNED).map(|place| 40 + place % 100).collect() }];
    let config = SftConfig { steps, batch: 1, accumulation: 1 };
    sft::train(vlm, &examples, &config, None, &mut |_| clock.tick()).expect("a training");
}

fn reinforce(vlm: &Vlm, prompt: Arc<Prompt>, steps: StepConfig, clock: &mut Clock) {
    let objective = Objective {
        loss: Loss::Grpo,
        beta: 0.04,
        kl: Kl::K3,
        clip_low: 0.2,
        clip_high: 0.2,
        demo: DemoWeight::One,
        longest: DRAWN,
    };
    let config = GrpoConfig {
        steps,
        prompts: 1,
        group: 4,
        updates: 1,
        sampling: Sampling::at(1.0, DRAWN),
        objective,
        scaling: Scaling::Group,
        prior: Prior::Off,
        mask_truncated: false,
    };
    // Any reward that tells answers apart.
    let reward = |_: usize, text: &str| vec![f64::from(text.bytes().fold(0u8, u8::wrapping_add))];
    let tasks = [Task { prompt, prior: None }];
    grpo::train(vlm, &tasks, &config, &reward, None, &mut |_| clock.tick()).expect("a training");
}

/// Most memory that the process ever held, MiB.
fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a Linux system");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a line of the peak");
    let kib: f64 = line.split_whitespace().nth(1).expect("a number").parse().expect("a number");
    (kib / 1024.0).round()
}
