//! `mpcc model bench`: how fast a model is loaded, reads and answers on this machine.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use mpcc_engine::resources::format_size;
use mpcc_stages::models::device;
use mpcc_stages::models::generate::{GenerateRequest, Sampling, Watch};
use mpcc_stages::models::image::RgbImage;
use mpcc_stages::models::vlm::{Prompt, Vlm};
use mpcc_stages::provider::local::{encode, prompt};
use serde_json::json;

use super::args::BenchArgs;
use super::place::{find, load, name, options};
use crate::commands::Answer;
use crate::report::{DONE, Failure};
use crate::ui::columns::columns;
use crate::ui::say;

/// Measures, prints.
pub(super) fn bench(args: &BenchArgs) -> Answer {
    let dir = find(&args.place.model)?;
    let (vlm, load_s) = match args.random {
        false => load(&dir, &args.place, &args.device)?,
        true => {
            let (started, options) = (Instant::now(), options(&args.place, &args.device)?);
            (Vlm::draw(&dir, 0, &options)?, started.elapsed().as_secs_f64())
        }
    };
    let mut rounds = Vec::new();
    for round in 0..args.repeat {
        rounds.push(measure(&vlm, args, round)?);
    }
    let best = |value: fn(&Round) -> f64| rounds.iter().map(value).fold(f64::INFINITY, f64::min);
    let [preprocess, prefill, decode] =
        [best(|round| round.preprocess_s), best(|round| round.prefill_s), best(|round| round.decode_s)];
    let (prompt_tokens, image_tokens) = (rounds[0].prompt_tokens, rounds[0].image_tokens);
    // The first token of each answer follows from reading its prompt.
    let decoded = (args.batch * (args.decode - 1)) as usize;
    let (read_speed, write_speed) = (prompt_tokens as f64 / prefill, decoded as f64 / decode);
    let preprocess_ms = args.image.map(|_| preprocess * 1000.0 / f64::from(args.batch));
    let (peak, gpu_peak, threads) = (peak_memory(), device::peak(vlm.device()), vlm.threads());
    let (on, dtype) = (place(&vlm), vlm.dtype().as_str());
    if args.json {
        say(json!({
            "model": name(&args.place.model), "family": vlm.config().to_json()["model_type"],
            "values": vlm.weights().count(), "random": args.random, "device": on, "dtype": dtype, "threads": threads, "batch": args.batch, "repeat": args.repeat,
            "image": args.image.map(|(width, height)| [width, height]),
            "prompt_tokens": prompt_tokens, "image_tokens": image_tokens, "decode_tokens": decoded,
            "load_s": load_s, "preprocess_ms_per_image": preprocess_ms,
            "prefill_s": prefill, "prefill_tokens_per_s": read_speed,
            "decode_s": decode, "decode_tokens_per_s": write_speed, "peak_memory_bytes": peak,
            "peak_gpu_memory_bytes": gpu_peak,
        }));
        return Ok(DONE);
    }
    let row = |what: &str, found: String| vec![what.to_owned(), found];
    let mut rows = vec![row("load", format!("{load_s:.2} s, {} values", vlm.weights().count()))];
    rows.extend(preprocess_ms.map(|ms| row("preprocess", format!("{ms:.2} ms an image"))));
    let of_images = if image_tokens > 0 { format!(" ({image_tokens} of pictures)") } else { String::new() };
    rows.push(row("prefill", format!("{prefill:.3} s, {read_speed:.1} tokens/s: {prompt_tokens} tokens{of_images}")));
    rows.push(row(
        "decode",
        format!("{decode:.3} s, {write_speed:.1} tokens/s: {decoded} tokens, batch {}", args.batch),
    ));
    rows.push(row("device", format!("{on}, {dtype}")));
    rows.push(row("threads", threads.to_string()));
    rows.extend(gpu_peak.map(|bytes| row("peak memory of the GPU", format_size(bytes))));
    rows.extend(peak.map(|bytes| row("peak memory", format_size(bytes))));
    say(columns(&rows));
    Ok(DONE)
}

/// What computes.
fn place(vlm: &Vlm) -> &'static str {
    match (vlm.device().is_cpu(), vlm.on_tensors()) {
        (true, false) => "cpu",
        (true, true) => "cpu, on tensors",
        (false, _) => "cuda",
    }
}

/// One round.
struct Round {
    preprocess_s: f64,
    prefill_s: f64,
    decode_s: f64,
    prompt_tokens: usize,
    image_tokens: usize,
}

fn measure(vlm: &Vlm, args: &BenchArgs, round: u32) -> Result<Round, Failure> {
    let (mut preprocess_s, mut requests) = (0.0, Vec::new());
    for row in 0..args.batch {
        let salt = round * args.batch + row;
        let text = words(vlm, args.prompt as usize, salt)?;
        let image = args.image.map(|(width, height)| noise(width, height, salt));
        let started = Instant::now();
        if let Some(image) = &image {
            vlm.assets().processor.process(image)?;
        }
        preprocess_s += started.elapsed().as_secs_f64();
        let prompt: Prompt = prompt(vlm, None, &text, image.as_slice()).map_err(Failure::wrong)?;
        let sampling = Sampling::greedy(args.decode as usize);
        requests.push(GenerateRequest { prompt: Arc::new(prompt), sampling, seeds: vec![0] });
    }
    let prompts = || requests.iter().map(|request| &request.prompt);
    let prompt_tokens = prompts().map(|prompt| prompt.ids.len()).sum();
    let image_tokens = prompts().flat_map(|prompt| &prompt.images).map(|image| image.tokens).sum();
    let mut clock =
        Clock { banned: vlm.eos().to_vec(), waiting: requests.len(), seen: vec![false; requests.len()], read: None };
    let started = Instant::now();
    vlm.generate_watched(&requests, &mut clock, &mut |_, _| ControlFlow::Continue(()))?;
    let ended = Instant::now();
    let read = clock.read.unwrap_or(ended);
    Ok(Round {
        preprocess_s,
        prefill_s: read.duration_since(started).as_secs_f64(),
        decode_s: ended.duration_since(read).as_secs_f64(),
        prompt_tokens,
        image_tokens,
    })
}

/// Notes when every prompt has its first token; bans end tokens, so that all answers have their full length.
struct Clock {
    banned: Vec<u32>,
    waiting: usize,
    seen: Vec<bool>,
    read: Option<Instant>,
}

impl Watch for Clock {
    fn token(&mut self, request: usize, _: usize, _: u32) -> ControlFlow<()> {
        if !std::mem::replace(&mut self.seen[request], true) {
            self.waiting -= 1;
            if self.waiting == 0 {
                self.read = Some(Instant::now());
            }
        }
        ControlFlow::Continue(())
    }

    fn banned(&self) -> &[u32] {
        &self.banned
    }
}

/// A text of at least so many tokens that begins like no other.
fn words(vlm: &Vlm, tokens: usize, salt: u32) -> Result<String, Failure> {
    let mut text = salt.to_string();
    let count = |text: &str| encode(vlm, text).map(|ids| ids.len()).map_err(Failure::wrong);
    let words = ["on", "the", "table", "is", "a", "cup", "and", "two"];
    let mut next = words.iter().cycle();
    loop {
        let have = count(&text)?;
        if have >= tokens {
            return Ok(text);
        }
        // A word is a token at least.
        let more = (tokens - have).div_ceil(4);
        for word in next.by_ref().take(more) {
            text.push(' ');
            text.push_str(word);
        }
    }
}

/// A picture like no other.
fn noise(width: u32, height: u32, salt: u32) -> RgbImage {
    let mut state = u64::from(salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    let values = (0..3 * width as usize * height as usize).map(|_| byte()).collect();
    RgbImage::from_raw(width, height, values).expect("three values a pixel")
}

/// The most memory that this process held, in bytes, as Linux tells it.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
