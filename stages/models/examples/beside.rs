//! One side of `benches/beside.py`: seconds for the same work that transformers does there.
//!
//! `cargo run --release -p mpcc-models --example beside -- MODEL PICTURE THREADS TIMES` prints one line of JSON. Each figure is the least of
//! so many repetitions. For prefill nothing is kept between them; for decoding the prompt is, so that what is timed is hardly more than
//! the tokens behind the first. Each time the nine questions are about a picture that differs in a pixel.

mod timing;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use image::RgbImage;
use mimalloc::MiMalloc;
use mpcc_models::chat::{Part, Role, Turn};
use mpcc_models::generate::GenerateRequest;
use mpcc_models::sample::Sampling;
use mpcc_models::vlm::{LoadOptions, Prompt, Vlm};
use serde_json::json;
use timing::least;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Tokens whose decoding is timed, behind the first.
const TOKENS: usize = 32;
/// Tokens of each of the nine answers.
const SHORT: usize = 4;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, picture, threads, times] = arguments.as_slice() else {
        panic!("usage: beside MODEL PICTURE THREADS TIMES")
    };
    let times: usize = times.parse().expect("a number of repetitions");
    let keeping = LoadOptions { threads: threads.parse().expect("a number of threads"), ..LoadOptions::default() };
    let vlm = Vlm::load(Path::new(model), &LoadOptions { kept_bytes: 0, ..keeping }).expect("a model directory");
    let picture = mpcc_models::image::decode(&std::fs::read(picture).expect("a picture")).expect("a picture");
    let prompt = ask(&vlm, &picture, "Detect every bus in the image.");
    let process = || drop(vlm.assets().processor.process(&picture).expect("a processed picture"));
    let preprocessing = vlm.pool().install(|| least(times, process));
    let prefill = least(times, || drop(generate(&vlm, &[request(&prompt, 1, 1)])));
    drop(vlm);
    let vlm = Vlm::load(Path::new(model), &keeping).expect("a model directory");
    let answer = |tokens: usize, rows: usize| {
        let requests = [request(&prompt, tokens, rows)];
        (least(times, || drop(generate(&vlm, &requests))), generate(&vlm, &requests))
    };
    let ((first, _), (one, ids)) = (answer(1, 1), answer(1 + TOKENS, 1));
    let ((first8, _), (eight, _)) = (answer(1, 8), answer(1 + TOKENS, 8));
    let tokens = prompt.ids.len();
    drop(vlm);
    let nine = nine_questions(Path::new(model), &keeping, &picture, times);
    let line = json!({
        "tokens": tokens, "preprocessing": preprocessing, "prefill": prefill,
        "decode 1": TOKENS as f64 / (one - first), "decode 8": (8 * TOKENS) as f64 / (eight - first8),
        "nine questions": nine, "peak MiB": peak(), "ids": ids,
    });
    println!("{line}");
}

/// Seconds of nine answers about a picture that the model never saw, by a model that keeps what it keeps by default.
fn nine_questions(model: &Path, options: &LoadOptions, picture: &RgbImage, times: usize) -> f64 {
    let vlm = Vlm::load(model, options).expect("a model directory");
    let (mut picture, mut rounds) = (picture.clone(), 0);
    let seconds = least(times, || {
        rounds += 1;
        picture.put_pixel(0, 0, image::Rgb([rounds, 255, 0]));
        let prompts: Vec<Arc<Prompt>> = questions().iter().map(|words| ask(&vlm, &picture, words)).collect();
        let requests: Vec<GenerateRequest> = prompts.iter().map(|prompt| request(prompt, SHORT, 1)).collect();
        assert_eq!(generate(&vlm, &requests).len(), 9 * SHORT);
    });
    assert_eq!(vlm.prefix_counts().pictures_encoded, u64::from(rounds), "each picture passes the tower once");
    seconds
}

fn ask(vlm: &Vlm, picture: &RgbImage, words: &str) -> Arc<Prompt> {
    let turns = [Turn { role: Role::User, parts: vec![Part::Image, Part::Text(words.to_owned())] }];
    Arc::new(vlm.prompt(&turns, std::slice::from_ref(picture), true).expect("a prompt"))
}

/// Two choices and seven statements.
fn questions() -> Vec<String> {
    let choice = |options: &str| format!("Which one is in the masked part of the image? {options}");
    let truth = |object: usize| format!("Is it true that object {object} is in the masked part of the image?");
    [choice("a bus, a car"), choice("a bus, a stop sign")].into_iter().chain((0..7).map(truth)).collect()
}

fn request(prompt: &Arc<Prompt>, tokens: usize, rows: usize) -> GenerateRequest {
    GenerateRequest { prompt: prompt.clone(), sampling: Sampling::greedy(tokens), seeds: (0..rows as u64).collect() }
}

/// The ids of all answers, none of which may end early.
fn generate(vlm: &Vlm, requests: &[GenerateRequest]) -> Vec<u32> {
    let mut ids = Vec::new();
    vlm.generate(requests, &mut |index, completions| {
        for completion in completions {
            assert_eq!(completion.ids.len(), requests[index].sampling.max_new_tokens, "an answer ended early");
            ids.extend(completion.ids);
        }
        ControlFlow::Continue(())
    })
    .expect("an answer");
    ids
}

/// Most memory that the process ever had, where Linux says it.
fn peak() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<f64>().ok()? / 1024.0)
}
