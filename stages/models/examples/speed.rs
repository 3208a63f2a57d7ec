//! Seconds for 128 answers of 30 tokens from a model of the embedded world's shape: `cargo run --release -p mpcc-models --example speed`.

#[path = "../tests/common/mod.rs"]
mod common;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use mpcc_models::generate::GenerateRequest;
use mpcc_models::sample::Sampling;

fn main() {
    let vlm = common::tiny(1, 1);
    for (prompts, seeds) in [(16, 8), (128, 1)] {
        let request = |salt| GenerateRequest {
            prompt: Arc::new(
                vlm.prompt(&common::question(salt, 10), &[common::picture(salt)], true).expect("a prompt"),
            ),
            sampling: Sampling::at(1.0, 30),
            seeds: (0..seeds).collect(),
        };
        let made = Instant::now();
        let requests: Vec<GenerateRequest> = (0..prompts).map(request).collect();
        let preparing = made.elapsed().as_secs_f64();
        let (mut tokens, mut best) = (0, f64::INFINITY);
        for _ in 0..7 {
            let start = Instant::now();
            tokens = 0;
            vlm.generate(&requests, &mut |_, completions| {
                tokens += completions.iter().map(|completion| completion.ids.len()).sum::<usize>();
                ControlFlow::Continue(())
            })
            .expect("generation");
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!(
            "{prompts} prompts x {seeds} samples: {best:.4} s for {tokens} tokens; prompts prepared in {preparing:.4} s"
        );
    }
}
