//! `mpcc model ask`: one question, answered as the tokens come.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use mpcc_stages::models::generate::{Completion, GenerateRequest, Sampling, Watch};
use mpcc_stages::models::growing::Growing;
use mpcc_stages::models::vlm::Vlm;
use mpcc_stages::provider::local::prompt;
use serde_json::json;

use super::args::AskArgs;
use super::place::{find, load, picture};
use crate::commands::Answer;
use crate::report::{DONE, Failure};
use crate::ui::{complain, say, write};

/// Asks, prints.
pub(super) fn ask(args: &AskArgs) -> Answer {
    let sampling = Sampling::at(args.temperature, args.max_new_tokens as usize);
    sampling.check()?;
    let dir = find(&args.place.model)?;
    let images = args.images.iter().map(|path| picture(path)).collect::<Result<Vec<_>, _>>()?;
    let (vlm, _) = load(&dir, &args.place, &args.device)?;
    let prompt = prompt(&vlm, args.system.as_deref(), &args.question, &images).map_err(Failure::wrong)?;
    let (tokens, image_tokens) = (prompt.ids.len(), prompt.images.iter().map(|image| image.tokens).sum::<usize>());
    let request = GenerateRequest { prompt: Arc::new(prompt), sampling, seeds: vec![args.seed] };
    let mut shown = Shown { vlm: &vlm, growing: Growing::default(), quiet: args.json, first: None };
    let (started, mut answer) = (Instant::now(), None);
    vlm.generate_watched(&[request], &mut shown, &mut |_, mut completions| {
        answer = completions.pop();
        ControlFlow::Continue(())
    })?;
    let answer: Completion = answer.ok_or_else(|| Failure::machine("the model gave no answer"))?;
    let first = shown.first.unwrap_or_else(Instant::now);
    let (reading, writing) = (first.duration_since(started).as_secs_f64(), first.elapsed().as_secs_f64());
    // The first token follows from reading the prompt.
    let speed = if answer.ids.len() > 1 { (answer.ids.len() - 1) as f64 / writing } else { 0.0 };
    if args.json {
        say(json!({
            "text": answer.text, "finished": answer.finished, "prompt_tokens": tokens, "image_tokens": image_tokens,
            "completion_tokens": answer.ids.len(), "ids": answer.ids, "prefill_s": reading, "decode_s": writing,
            "tokens_per_s": speed,
        }));
        return Ok(DONE);
    }
    say(shown.growing.rest(&answer.text));
    let cut = if answer.finished { "" } else { ", cut at --max-new-tokens" };
    complain(format_args!(
        "{tokens} prompt tokens ({image_tokens} of pictures) in {reading:.2} s, {} tokens in {writing:.2} s: \
         {speed:.1} tokens/s{cut}",
        answer.ids.len()
    ));
    Ok(DONE)
}

/// Prints an answer while it grows.
struct Shown<'a> {
    vlm: &'a Vlm,
    growing: Growing,
    quiet: bool,
    first: Option<Instant>,
}

impl Watch for Shown<'_> {
    fn token(&mut self, _: usize, _: usize, id: u32) -> ControlFlow<()> {
        self.first.get_or_insert_with(Instant::now);
        if !self.quiet && !self.vlm.eos().contains(&id) {
            // What the decoder cannot read yet comes with the rest, where its error would end the command.
            write(&self.growing.push(self.vlm, id).unwrap_or_default());
        }
        ControlFlow::Continue(())
    }
}
