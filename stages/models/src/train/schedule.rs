//! Learning-rate schedules: a linear warm-up, then a decay to zero.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Not at all.
    Constant,
    /// To zero along a line.
    Linear,
    /// To zero along half a cosine.
    Cosine,
}

/// A schedule over a known number of steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Highest learning rate.
    pub learning_rate: f64,
    /// How it falls.
    pub decay: Decay,
    /// Share of the steps over which it rises.
    pub warmup: f64,
}

impl Schedule {
    /// The rate of step `step` of `total`, both counted from 0. The first step's rate is above zero, so that no step is lost.
    pub fn rate(&self, step: usize, total: usize) -> f64 {
        let rising = (self.warmup * total as f64).ceil() as usize;
        if step < rising {
            return self.learning_rate * (step + 1) as f64 / rising as f64;
        }
        let left = 1.0 - (step - rising) as f64 / (total - rising).max(1) as f64;
        self.learning_rate
            * match self.decay {
                Decay::Constant => 1.0,
                Decay::Linear => left,
                Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * (1.0 - left)).cos()),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_then_falls() {
        let schedule = Schedule { learning_rate: 1.0, decay: Decay::Linear, warmup: 0.2 };
        let rates: Vec<f64> = (0..10).map(|step| schedule.rate(step, 10)).collect();
        assert_eq!(&rates[..4], &[0.5, 1.0, 1.0, 0.875]);
        assert!(rates[9] > 0.0);
        let cosine = Schedule { learning_rate: 2.0, decay: Decay::Cosine, warmup: 0.0 };
        assert_eq!(cosine.rate(0, 4), 2.0);
        assert!((cosine.rate(2, 4) - 1.0).abs() < 1e-12);
        let constant = Schedule { learning_rate: 3.0, decay: Decay::Constant, warmup: 0.0 };
        assert_eq!(constant.rate(99, 100), 3.0);
    }
}
