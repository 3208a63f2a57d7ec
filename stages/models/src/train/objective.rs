//! The objective of group-relative policy optimisation, token by token.
//!
//! With `rho_t = p_t / p_old_t`, the surrogate of a token is `min(rho A, clip(rho, 1 - low, 1 + high) A)`, minus `beta` times
//! an estimate of the divergence from the reference. [`Loss`] says what tokens are divided by:
//!
//! | [`Loss`] | divisor |
//! |---|---|
//! | `eq4` | 1 a group: the sequence sum of the paper's Eq. 4 read literally, no clipping |
//! | `grpo` | the response's length, then the number of responses |
//! | `dr_grpo` | the longest length allowed, then the number of responses |
//! | `dapo`, `bnpo` | all response tokens of the step |
//!
//! (`dapo` and `bnpo` differ only when a step is split into micro-batches; a step here is one batch.)
//! Estimators with `d = log p_ref - log p`: `k1 = -d`, `k2 = d^2 / 2`, `k3 = exp(d) - d - 1`.
//! A token of a prior (a given trajectory) was not drawn from the policy; [`DemoWeight`] says what stands for `rho` there.

use candle_core::{Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// What tokens are divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// The paper's Eq. 4.
    Eq4,
    /// Mean over a response, then over responses.
    #[default]
    Grpo,
    /// Sum over a response divided by a constant.
    DrGrpo,
    /// Mean over all tokens of the step.
    Dapo,
    /// Mean over all tokens of the batch.
    Bnpo,
}

/// The estimator of the divergence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kl {
    /// `-d`.
    K1,
    /// `d^2 / 2`.
    K2,
    /// `exp(d) - d - 1`.
    #[default]
    K3,
}

/// What stands for the ratio on the tokens of a prior.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DemoWeight {
    /// 1, as if the policy had drawn it (the authors).
    #[default]
    One,
    /// `p / (p + gamma)` with gamma 0.1 (LUFFY's shaping): unlikely tokens count more.
    Shaped,
    /// `p`, importance against a behaviour that was certain, clipped like any ratio.
    Importance,
}

/// LUFFY's gamma.
const GAMMA: f64 = 0.1;

/// The objective's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    /// What tokens are divided by.
    pub loss: Loss,
    /// Weight of the divergence; 0 needs no reference.
    pub beta: f64,
    /// Its estimator.
    pub kl: Kl,
    /// Lower clip.
    pub clip_low: f64,
    /// Upper clip.
    pub clip_high: f64,
    /// The ratio on a prior's tokens.
    pub demo: DemoWeight,
    /// Longest response allowed, in tokens (`dr_grpo`).
    pub longest: usize,
}

/// What is known of the tokens of a step, response after response.
#[derive(Debug, Default)]
pub struct Tokens {
    /// Advantage of each token's response.
    pub advantage: Vec<f32>,
    /// What its surrogate and divergence are multiplied by (1 over the divisor).
    pub weight: Vec<f32>,
    /// 1 on the tokens of a prior, else 0.
    pub prior: Vec<f32>,
    /// Log-probabilities when the responses were drawn; none on the first update.
    pub old: Option<Vec<f32>>,
    /// Log-probabilities under the reference; needed when beta is above 0.
    pub reference: Option<Vec<f32>>,
}

impl Objective {
    /// The weight of each token of a response of `length` tokens in a step of `responses` responses in `groups` groups with
    /// `tokens` tokens in all.
    pub fn weight(&self, length: usize, groups: usize, responses: usize, tokens: usize) -> f64 {
        match self.loss {
            Loss::Eq4 => 1.0 / groups as f64,
            Loss::Grpo => 1.0 / (length * responses) as f64,
            Loss::DrGrpo => 1.0 / (self.longest * responses) as f64,
            Loss::Dapo | Loss::Bnpo => 1.0 / tokens as f64,
        }
    }

    /// The loss to minimise and the mean divergence, from the log-probabilities `logp` `[tokens]`, through which gradients flow.
    ///
    /// # Errors
    /// When lengths differ.
    pub fn loss(&self, logp: &Tensor, tokens: &Tokens) -> Result<(Tensor, Tensor)> {
        let row = |values: &[f32]| Tensor::from_slice(values, values.len(), &Device::Cpu)?.to_device(logp.device());
        let old = match &tokens.old {
            Some(old) => row(old)?,
            None => logp.detach(),
        };
        let (advantage, weight) = (row(&tokens.advantage)?, row(&tokens.weight)?);
        let surrogate = match self.loss {
            Loss::Eq4 => (logp * &advantage)?,
            _ => self.clipped(&self.ratio(logp, &old, &row(&tokens.prior)?)?, &advantage)?,
        };
        let policy = (surrogate * &weight)?.sum_all()?.neg()?;
        let Some(reference) = tokens.reference.as_ref().filter(|_| self.beta > 0.0) else {
            return Ok((policy, Tensor::zeros((), logp.dtype(), logp.device())?));
        };
        let divergence = (self.divergence(&(row(reference)? - logp)?)? * &weight)?.sum_all()?;
        Ok(((policy + (&divergence * self.beta)?)?, divergence.detach()))
    }

    fn ratio(&self, logp: &Tensor, old: &Tensor, prior: &Tensor) -> Result<Tensor> {
        let ratio = (logp - old)?.exp()?;
        let given = match self.demo {
            DemoWeight::One => return Ok(ratio),
            DemoWeight::Shaped => {
                let p = logp.exp()?;
                p.div(&(&p + GAMMA)?)?
            }
            DemoWeight::Importance => logp.exp()?,
        };
        let drawn = prior.affine(-1.0, 1.0)?;
        Ok(((ratio * drawn)? + (given * prior)?)?)
    }

    fn clipped(&self, ratio: &Tensor, advantage: &Tensor) -> Result<Tensor> {
        let clipped = ratio.clamp((1.0 - self.clip_low) as f32, (1.0 + self.clip_high) as f32)?;
        Ok((ratio * advantage)?.minimum(&(clipped * advantage)?)?)
    }

    fn divergence(&self, d: &Tensor) -> Result<Tensor> {
        Ok(match self.kl {
            Kl::K1 => d.neg()?,
            Kl::K2 => (d.sqr()? * 0.5)?,
            Kl::K3 => ((d.exp()? - d)? - 1.0)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    fn objective(loss: Loss) -> Objective {
        Objective { loss, beta: 0.0, kl: Kl::K3, clip_low: 0.2, clip_high: 0.2, demo: DemoWeight::One, longest: 10 }
    }

    fn gradient(objective: &Objective, logp: &[f32], tokens: &Tokens) -> Vec<f32> {
        let logp = Var::new(logp, &Device::Cpu).unwrap();
        let (loss, _) = objective.loss(logp.as_tensor(), tokens).unwrap();
        loss.backward().unwrap().get(logp.as_tensor()).unwrap().to_vec1().unwrap()
    }

    fn two(advantage: f32) -> Tokens {
        Tokens { advantage: vec![advantage; 2], weight: vec![0.5; 2], prior: vec![0.0; 2], old: None, reference: None }
    }

    #[test]
    fn on_policy_the_gradient_is_the_weighted_advantage() {
        for loss in [Loss::Eq4, Loss::Grpo, Loss::Dapo] {
            assert_eq!(gradient(&objective(loss), &[-1.0, -2.0], &two(3.0)), [-1.5, -1.5]);
        }
    }

    #[test]
    fn clipping_stops_the_gradient_on_the_far_side() {
        let tokens = Tokens { old: Some(vec![-2.0, -1.0]), ..two(1.0) };
        let found = gradient(&objective(Loss::Grpo), &[-1.0, -1.0], &tokens);
        assert_eq!(found, [0.0, -0.5]);
    }

    #[test]
    fn k3_pulls_towards_the_reference() {
        let tokens = Tokens { reference: Some(vec![-1.0, -3.0]), ..two(0.0) };
        let objective = Objective { beta: 2.0, ..objective(Loss::Grpo) };
        let found = gradient(&objective, &[-2.0, -2.0], &tokens);
        // d/dlogp of exp(d) - d - 1 with d = ref - logp is 1 - exp(d).
        let wanted = [1.0 - 1f32.exp(), 1.0 - (-1f32).exp()];
        assert!(found.iter().zip(wanted).all(|(found, wanted)| (found - wanted).abs() < 1e-5), "{found:?}");
    }

    #[test]
    fn a_shaped_prior_counts_unlikely_tokens_more_than_their_probability() {
        let objective = Objective { demo: DemoWeight::Shaped, ..objective(Loss::Grpo) };
        let tokens = Tokens { prior: vec![1.0, 0.0], ..two(1.0) };
        let found = gradient(&objective, &[(0.1f32).ln(), -1.0], &tokens);
        // p gamma / (p + gamma)^2 = 0.25 at p = gamma.
        assert!((found[0] + 0.125).abs() < 1e-6 && (found[1] + 0.5).abs() < 1e-6, "{found:?}");
    }
}
