//! Seconds a training step at the embedded world's shapes, one thread: `cargo bench -p mpcc-models`.

#[path = "../tests/common/mod.rs"]
mod common;

use std::sync::Arc;
use std::time::Instant;

use candle_core::{Tensor, Var};
use mpcc_models::ops::reference;
use mpcc_models::ops::{self, HeadShape, Segments};
use mpcc_models::train::batch::{Batch, Span};
use mpcc_models::train::logprob::{logprobs, weighted};
use mpcc_models::train::optim::{AdamW, AdamWConfig};
use mpcc_models::vlm::{Packed, Prompt, Trainable, Vlm};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs a piece of work until two seconds have passed; the least and the median of the seconds it took.
fn time(name: &str, mut work: impl FnMut()) {
    work();
    let (begin, mut taken) = (Instant::now(), Vec::new());
    while taken.len() < 5 || begin.elapsed().as_secs_f64() < 2.0 {
        let start = Instant::now();
        work();
        taken.push(start.elapsed().as_secs_f64());
    }
    taken.sort_by(f64::total_cmp);
    println!("{name:<52} {:>8.4} {:>8.4} {:>5}", taken[0], taken[taken.len() / 2], taken.len());
}

/// A packed batch with what it predicts.
struct Lesson {
    packed: Packed,
    embeds: Option<Tensor>,
    rows: Vec<u32>,
    targets: Vec<u32>,
}

fn response(salt: usize) -> Vec<u32> {
    (0..30).map(|i| 7 + ((salt * 5 + i * 3) % 113) as u32).collect()
}

fn lesson(vlm: &Vlm, prompts: &[Prompt], responses: usize, frozen: bool) -> Lesson {
    let (mut batch, mut spans) = (Batch::new(), Vec::<Span>::new());
    for (index, prompt) in prompts.iter().enumerate() {
        let images: Vec<_> = prompt.images.iter().collect();
        let embeds = frozen.then(|| vlm.model().encode_images(&images).expect("an encoded picture"));
        let texts: Vec<Vec<u32>> = (0..responses).map(|g| response(index * 8 + g)).collect();
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        spans.extend(batch.add(prompt, embeds.as_ref(), &texts).expect("responses"));
    }
    let (packed, embeds) = batch.pack(vlm.device()).expect("a batch");
    let (rows, targets) = spans.into_iter().fold((vec![], vec![]), |(mut rows, mut targets), span| {
        rows.extend(span.rows);
        targets.extend(span.targets);
        (rows, targets)
    });
    Lesson { packed, embeds, rows, targets }
}

fn step(vlm: &Vlm, lesson: &Lesson, frozen: bool, adam: &mut AdamW) {
    let model = vlm.view(if frozen { Trainable::Text } else { Trainable::All }).expect("a view");
    let hidden = model.forward(&lesson.packed, lesson.embeds.as_ref()).expect("a forward pass");
    let mean = vec![-1.0 / lesson.rows.len() as f32; lesson.rows.len()];
    let loss = weighted(&hidden, model.head(), &lesson.rows, &lesson.targets, &mean).expect("a loss");
    adam.gather(&loss.backward().expect("a backward pass"), 1.0).expect("gradients");
    adam.step(1e-5).expect("a step");
}

fn judge(vlm: &Vlm, lesson: &Lesson) {
    let hidden = vlm.model().forward(&lesson.packed, lesson.embeds.as_ref()).expect("a forward pass");
    logprobs(&hidden, vlm.model().head(), &lesson.rows, &lesson.targets).expect("log-probabilities");
}

fn adam(vlm: &Vlm, frozen: bool) -> AdamW {
    AdamW::new(vlm.weights().trainable(frozen), AdamWConfig::default()).expect("an optimiser")
}

fn main() {
    let vlm = common::tiny(1, 1);
    vlm.pool().install(|| run(&vlm));
}

fn run(vlm: &Vlm) {
    let prompt = |salt: u32| {
        let prompt = vlm.prompt(&common::question(salt, 8), &[common::picture(salt)], true);
        prompt.expect("a prompt")
    };
    let prompts: Vec<Prompt> = (0..32).map(prompt).collect();
    let many: Vec<Prompt> = (0..128).map(|i| prompts[i / 8].clone()).collect();
    println!("{} weights, prompts of {} tokens, responses of 30", vlm.weights().count(), prompts[0].ids.len());
    println!("{:<52} {:>8} {:>8} {:>5}", "one thread, seconds", "least", "median", "runs");
    let sft = lesson(vlm, &prompts, 1, true);
    let mut optimiser = adam(vlm, true);
    time("SFT step, 32 sequences, vision frozen", || step(vlm, &sft, true, &mut optimiser));
    let pretrain = lesson(vlm, &prompts, 1, false);
    let mut all = adam(vlm, false);
    time("pretraining step, 32 sequences, vision trained", || step(vlm, &pretrain, false, &mut all));
    let rows = lesson(vlm, &many, 1, true);
    time("GRPO update, 128 separate rows", || step(vlm, &rows, true, &mut optimiser));
    time("reference forward, 128 separate rows", || judge(vlm, &rows));
    let packed = lesson(vlm, &prompts[..16], 8, true);
    time("GRPO update, 16 prompts x 8 completions packed", || step(vlm, &packed, true, &mut optimiser));
    time("reference forward, 16 x 8 packed", || judge(vlm, &packed));
    time("AdamW step", || {
        optimiser.step(1e-5).expect("a step");
    });
    single_ops();
}

/// Each fused op beside the composite that it replaces, forward and backward at the SFT step's shapes.
fn single_ops() {
    let rows = 32 * 62;
    let draw =
        |rows: usize, columns: usize| Var::randn(0f32, 1.0, (rows, columns), &candle_core::Device::Cpu).expect("room");
    let both = |name: &str, fused: &dyn Fn() -> Tensor, plain: &dyn Fn() -> Tensor| {
        let run =
            |f: &dyn Fn() -> Tensor| f().sum_all().and_then(|loss| loss.backward()).map(|_| ()).expect("gradients");
        time(&format!("{name}, fused"), || run(fused));
        time(&format!("{name}, candle operations"), || run(plain));
    };
    let (x, norm) = (draw(rows, 96), Var::ones(96, candle_core::DType::F32, &candle_core::Device::Cpu).expect("room"));
    let fused = || ops::rms_norm(&x, &norm, 1e-6).expect("a norm");
    both("rms_norm [1984, 96]", &fused, &|| reference::rms_norm(&x, &norm, 1e-6).expect("a norm"));
    let gate = draw(rows, 512);
    both("swiglu [1984, 512]", &|| ops::swiglu(&gate).expect("a gate"), &|| reference::swiglu(&gate).expect("a gate"));
    let (weight, bias) =
        (draw(512, 96), Var::zeros(512, candle_core::DType::F32, &candle_core::Device::Cpu).expect("room"));
    let fused = || ops::linear(&x, &weight, Some(&bias)).expect("a product");
    both("linear [1984, 96] x [512, 96]", &fused, &|| reference::linear(&x, &weight, Some(&bias)).expect("a product"));
    let shape = HeadShape { heads: 4, kv_heads: 2, head_dim: 24 };
    let segments = Arc::new(Segments::causal([62; 32]).expect("segments"));
    let (qkv, angle) = (draw(rows, shape.qkv_width()), draw(rows, 24));
    let (cos, sin) = (angle.as_detached_tensor().cos().expect("room"), angle.as_detached_tensor().sin().expect("room"));
    let fused = || ops::attention(&qkv, &cos, &sin, &segments, shape).expect("attention");
    let plain = || reference::attention(&qkv, &cos, &sin, &segments, shape, None).expect("attention");
    both("attention, 32 x 62 causal", &fused, &plain);
}
