//! Optimiser and learning-rate schedule as a pipeline writes them.

use mpcc_engine::stage::ParamError;
use mpcc_models::train::optim::AdamWConfig;
use mpcc_models::train::schedule::{Decay, Schedule};
use mpcc_models::train::session::StepConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// AdamW and its schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Optimiser {
    /// Highest learning rate.
    pub learning_rate: f64,
    /// How it falls.
    #[serde(default = "linear")]
    pub decay: Decay,
    /// Share of the steps over which it rises from zero.
    #[serde(default)]
    pub warmup: f64,
    /// Decoupled weight decay.
    #[serde(default)]
    pub weight_decay: f64,
    /// Decay rates of the two moments.
    #[serde(default = "betas")]
    pub betas: [f64; 2],
    /// Gradients are scaled down to this global norm; 0 leaves them.
    #[serde(default = "max_grad_norm")]
    pub max_grad_norm: f64,
    /// Batches whose gradients make one step.
    #[serde(default = "accumulation")]
    pub accumulation: usize,
}

fn linear() -> Decay {
    Decay::Linear
}

fn betas() -> [f64; 2] {
    [0.9, 0.999]
}

fn max_grad_norm() -> f64 {
    1.0
}

fn accumulation() -> usize {
    1
}

impl Optimiser {
    /// A linear decay to zero without warm-up, weight decay or accumulation.
    pub fn linear(learning_rate: f64) -> Self {
        let (decay, betas) = (Decay::Linear, betas());
        Self {
            learning_rate,
            decay,
            warmup: 0.0,
            weight_decay: 0.0,
            betas,
            max_grad_norm: max_grad_norm(),
            accumulation: 1,
        }
    }

    /// What a trainer takes, for `steps` steps.
    pub fn steps(&self, steps: usize, freeze_vision: bool, seed: u64) -> StepConfig {
        let schedule = Schedule { learning_rate: self.learning_rate, decay: self.decay, warmup: self.warmup };
        let betas = (self.betas[0], self.betas[1]);
        let adamw =
            AdamWConfig { betas, eps: 1e-8, weight_decay: self.weight_decay, max_grad_norm: self.max_grad_norm };
        StepConfig { steps, schedule, adamw, freeze_vision, seed }
    }

    /// Checks the ranges.
    pub fn check(&self) -> Result<(), ParamError> {
        let unit = |value: f64| (0.0..1.0).contains(&value);
        let wrong = |message: &str| Err(ParamError::new("optimiser", message));
        if !(self.learning_rate >= 0.0 && self.learning_rate.is_finite()) {
            return wrong("learning_rate must be 0 or more");
        }
        if !unit(self.warmup) || !self.betas.into_iter().all(unit) {
            return wrong("warmup and both betas must be at least 0 and below 1");
        }
        if self.weight_decay < 0.0 || self.max_grad_norm < 0.0 || self.accumulation == 0 {
            return wrong("weight_decay and max_grad_norm must not be negative, accumulation must be at least 1");
        }
        Ok(())
    }
}
