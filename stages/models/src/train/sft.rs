//! Supervised fine-tuning: the mean negative log-likelihood of responses (paper, Eq. 2).

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Verdict;
use super::batch::Batch;
use super::checkpoint::Checkpoints;
use super::images::ImageCache;
use super::logprob::weighted;
use super::order::places;
use super::session::{Session, StepConfig, drive};
use crate::error::{ModelError, Result};
use crate::vlm::{Prompt, Vlm};

/// A prompt and the response to learn, end of turn included.
#[derive(Debug, Clone)]
pub struct Example {
    /// The prompt.
    pub prompt: Arc<Prompt>,
    /// The response's tokens.
    pub target: Vec<u32>,
}

/// Settings of a fine-tuning.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SftConfig {
    /// Steps, rate, optimiser, seed.
    pub steps: StepConfig,
    /// Examples a micro-batch. Eq. 2 is taken over its tokens.
    pub batch: usize,
    /// Micro-batches a step.
    pub accumulation: usize,
}

/// One step's numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SftStep {
    /// Step, from 1.
    pub step: usize,
    /// Mean negative log-likelihood of response tokens, nats.
    pub loss: f64,
    /// Response tokens of the step.
    pub tokens: usize,
    /// Norm of the gradient before clipping.
    pub norm: f64,
    /// Learning rate.
    pub rate: f64,
}

/// Fine-tunes `vlm` in place. Returns every step's numbers, those before a resumption included.
///
/// # Errors
/// When there is no example, or the model or the optimiser fails.
pub fn train(
    vlm: &Vlm,
    examples: &[Example],
    config: &SftConfig,
    checkpoints: Option<&Checkpoints>,
    observe: &mut dyn FnMut(&SftStep) -> Verdict,
) -> Result<Vec<SftStep>> {
    if examples.is_empty() {
        return Err(ModelError::Setting("there is no example to learn from".to_owned()));
    }
    let mut images = ImageCache::default();
    let mut step = |session: &mut Session<'_>, step: usize| {
        let drawn = places(config.steps.seed, examples.len(), config.batch * config.accumulation, step);
        let (mut loss, mut tokens) = (0.0, 0);
        for part in drawn.chunks(config.batch) {
            let cache = config.steps.freeze_vision.then_some(&mut images);
            let scale = 1.0 / config.accumulation as f32;
            let (part_loss, part_tokens) = vlm.pool().install(|| micro_batch(session, examples, part, cache, scale))?;
            loss += part_loss * f64::from(scale);
            tokens += part_tokens;
        }
        let taken = session.take()?;
        Ok(SftStep { step: step + 1, loss, tokens, norm: taken.norm, rate: taken.rate })
    };
    drive(vlm, config.steps, checkpoints, &mut step, observe)
}

fn micro_batch(
    session: &mut Session<'_>,
    examples: &[Example],
    part: &[usize],
    mut images: Option<&mut ImageCache>,
    scale: f32,
) -> Result<(f64, usize)> {
    let mut batch = Batch::new();
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for &index in part {
        let example = &examples[index];
        let embeds = match images.as_mut() {
            Some(images) => images.embeds(session.vlm.model(), index, &example.prompt)?,
            None => None,
        };
        for span in batch.add(&example.prompt, embeds.as_ref(), &[&example.target])? {
            rows.extend(span.rows);
            targets.extend(span.targets);
        }
    }
    let (packed, embeds) = batch.pack(session.vlm.device())?;
    let model = session.model()?;
    let hidden = model.forward(&packed, embeds.as_ref())?;
    let coefficients = vec![-1.0 / rows.len() as f32; rows.len()];
    let loss = weighted(&hidden, model.head(), &rows, &targets, &coefficients)?;
    let value = f64::from(loss.to_dtype(candle_core::DType::F32)?.to_scalar::<f32>()?);
    session.gather(&loss, scale)?;
    Ok((value, rows.len()))
}
