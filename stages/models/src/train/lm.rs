//! Language modelling: the mean negative log-likelihood of weighted tokens of whole conversations. Pretraining uses it.

use serde::{Deserialize, Serialize};

use super::Verdict;
use super::batch::Batch;
use super::checkpoint::Checkpoints;
use super::logprob::weighted;
use super::session::{Session, StepConfig, drive};
use crate::error::{ModelError, Result};
use crate::vlm::{Prompt, Vlm};

/// A conversation with the weight of each token in the loss; the first token's is ignored, nothing predicts it.
#[derive(Debug, Clone)]
pub struct Sequence {
    /// Tokens, positions and pictures.
    pub prompt: Prompt,
    /// One weight a token; 0 for what is given.
    pub weights: Vec<f32>,
}

/// One step's numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LmStep {
    /// Step, from 1.
    pub step: usize,
    /// Weighted mean negative log-likelihood, nats a token.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub norm: f64,
    /// Learning rate.
    pub rate: f64,
}

/// Trains `vlm` in place; `batch` gives the sequences of a step (from 0), `observe` sees each step. Returns every step's
/// numbers, those before a resumption included.
///
/// # Errors
/// When a batch has no weighted token, or the model or the optimiser fails.
pub fn train(
    vlm: &Vlm,
    config: StepConfig,
    batch: &mut dyn FnMut(usize) -> Result<Vec<Sequence>>,
    checkpoints: Option<&Checkpoints>,
    observe: &mut dyn FnMut(&LmStep) -> Verdict,
) -> Result<Vec<LmStep>> {
    let mut step = |session: &mut Session<'_>, step: usize| {
        let sequences = batch(step)?;
        let loss = vlm.pool().install(|| step_loss(session, &sequences))?;
        let taken = session.take()?;
        Ok(LmStep { step: step + 1, loss, norm: taken.norm, rate: taken.rate })
    };
    drive(vlm, config, checkpoints, &mut step, observe)
}

fn step_loss(session: &mut Session<'_>, sequences: &[Sequence]) -> Result<f64> {
    let mut batch = Batch::new();
    let (mut rows, mut targets, mut weights) = (Vec::new(), Vec::new(), Vec::new());
    for sequence in sequences {
        if sequence.weights.len() != sequence.prompt.ids.len() {
            return Err(ModelError::Setting("a sequence needs one weight a token".to_owned()));
        }
        let own = batch.add_sequence(&sequence.prompt);
        for (place, row) in own.clone().skip(1).enumerate() {
            let weight = sequence.weights[place + 1];
            if weight != 0.0 {
                rows.push(row as u32 - 1);
                targets.push(sequence.prompt.ids[place + 1]);
                weights.push(weight);
            }
        }
    }
    let total: f32 = weights.iter().sum();
    if total <= 0.0 {
        return Err(ModelError::Setting("a batch has no token to learn from".to_owned()));
    }
    let coefficients: Vec<f32> = weights.iter().map(|weight| -weight / total).collect();
    let (packed, embeds) = batch.pack(session.vlm.device())?;
    let model = session.model()?;
    let hidden = model.forward(&packed, embeds.as_ref())?;
    let loss = weighted(&hidden, model.head(), &rows, &targets, &coefficients)?;
    let value = f64::from(loss.to_dtype(candle_core::DType::F32)?.to_scalar::<f32>()?);
    session.gather(&loss, 1.0)?;
    Ok(value)
}
