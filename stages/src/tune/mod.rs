//! Fine-tuning: from items and traces to trained models. What `train.sft` and `train.grpo` share stands here.

pub mod grpo;
pub mod lora;
pub mod optimiser;
pub mod sft;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use mpcc_engine::stage::{Context, ParamError, Provider, StageError};
use mpcc_models::train::checkpoint::Checkpoints;
use mpcc_models::vlm::{Prompt, Vlm};
use serde::Serialize;

use crate::dataset::Dataset;
use crate::mask::{Mask, MaskedImage};
use crate::provider::local::{encode, load_local, prompt};
use crate::record::Region;
use crate::template::render;

pub use lora::Lora;
pub use optimiser::Optimiser;

/// Whether a model has weights here.
fn trainable(provider: Provider) -> Result<(), String> {
    match provider {
        Provider::Local => Ok(()),
        Provider::Openai | Provider::Replay => Err("only a local model, whose weights are here, can be trained".into()),
    }
}

/// The local model to start from.
fn load(ctx: &Context) -> Result<Vlm, StageError> {
    let model = ctx.model("model")?;
    match model.provider {
        Provider::Local => load_local(ctx, model),
        _ => Err(StageError::invalid(format!(
            "model `{}` has no weights here: only a local model can be trained",
            model.name
        ))),
    }
}

/// How masked pictures are put to the model under training.
struct Asking<'a> {
    dataset: &'a Dataset,
    system: Option<&'a str>,
    question: &'a str,
    mask: &'a Mask,
}

impl Asking<'_> {
    /// The prompts of masked regions, all with the same question.
    fn prompts<'r>(
        &self,
        vlm: &Vlm,
        regions: impl Iterator<Item = &'r Region>,
    ) -> Result<Vec<Arc<Prompt>>, StageError> {
        let user = render(self.question, &[]).map_err(|error| StageError::invalid(error.to_string()))?;
        let masked = |region: &Region| {
            let image = MaskedImage::open(self.dataset, region, self.mask)?;
            prompt(vlm, self.system, &user, &[image.into_rgb()]).map(Arc::new)
        };
        regions.map(masked).collect()
    }
}

/// Tokens of a response, the end of the turn included.
fn response(vlm: &Vlm, text: &str) -> Result<Vec<u32>, StageError> {
    let mut ids = encode(vlm, text)?;
    ids.extend(vlm.eos().first());
    Ok(ids)
}

/// Checkpoints in the stage's own folder.
fn checkpoints(ctx: &Context, every: usize) -> Checkpoints {
    Checkpoints { folder: ctx.partial.clone(), every }
}

/// Steps that go `epochs` times through `records` records, `per_step` a step, unless `steps` is set.
fn step_count(steps: usize, epochs: f64, records: usize, per_step: usize) -> usize {
    match steps {
        0 => (epochs * records as f64 / per_step as f64).ceil().max(1.0) as usize,
        steps => steps,
    }
}

/// Reports a step; a cancelled run stops after it, with a checkpoint.
fn observe(ctx: &Context, step: usize, total: usize) -> ControlFlow<()> {
    ctx.progress(step as u64, total as u64, "steps");
    if ctx.check_cancelled().is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// Writes one JSON object a line.
fn write_lines<T: Serialize>(path: &Path, lines: impl IntoIterator<Item = T>) -> Result<(), StageError> {
    let mut text = String::new();
    for line in lines {
        text.push_str(&serde_json::to_string(&line).expect("metrics are plain data"));
        text.push('\n');
    }
    std::fs::write(path, text).map_err(|error| StageError::io(path, error))
}

fn at_least_one(param: &str, value: usize) -> Result<(), ParamError> {
    if value == 0 { Err(ParamError::new(param, "must be at least 1")) } else { Ok(()) }
}
