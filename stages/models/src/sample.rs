//! How the next token is drawn from a row of logits.
//!
//! The steps and their order are those of the usual generation libraries: repetition penalty over everything so far, temperature,
//! the `top_k` most likely, of these the smallest set whose probability reaches `top_p`, one draw. Ties go to the smaller id.
//! Each row has its own stream of random numbers from its own seed, so that its draws do not depend on its batch.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::error::{ModelError, Result};
use crate::kernel::rows::log_sum_exp;

/// How answers are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f64,
    /// Probability that the tokens drawn from must reach together; 1 keeps all.
    pub top_p: f64,
    /// Number of most likely tokens kept; `None` keeps all.
    pub top_k: Option<usize>,
    /// Above 1, tokens of the prompt and of the answer so far become less likely (Keskar et al. 2019).
    pub repetition_penalty: f64,
    /// Longest answer in tokens.
    pub max_new_tokens: usize,
}

impl Sampling {
    /// The most likely token at every step.
    pub fn greedy(max_new_tokens: usize) -> Sampling {
        Sampling { temperature: 0.0, top_p: 1.0, top_k: None, repetition_penalty: 1.0, max_new_tokens }
    }

    /// Draws from the model's own distribution at a temperature.
    pub fn at(temperature: f64, max_new_tokens: usize) -> Sampling {
        Sampling { temperature, ..Sampling::greedy(max_new_tokens) }
    }

    /// Refuses values that mean nothing.
    ///
    /// # Errors
    /// When one does.
    pub fn check(&self) -> Result<()> {
        let refuse = |message: String| Err(ModelError::Setting(message));
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return refuse(format!("temperature {} must be zero or more", self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse(format!("top_p {} must be above 0 and at most 1", self.top_p));
        }
        if self.top_k == Some(0) {
            return refuse("top_k must be at least 1".into());
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return refuse(format!("repetition penalty {} must be above 0", self.repetition_penalty));
        }
        Ok(())
    }
}

/// The state of one row's draws.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
    seen: Vec<bool>,
}

impl Sampler {
    /// A row's sampler: `before` are the tokens of its prompt.
    pub fn new(sampling: Sampling, seed: u64, vocabulary: usize, before: &[u32]) -> Sampler {
        let mut hasher = blake3::Hasher::new_derive_key("mpcc token sampling");
        hasher.update(&seed.to_le_bytes());
        let rng = ChaCha8Rng::from_seed(*hasher.finalize().as_bytes());
        let mut sampler = Sampler { sampling, rng, seen: vec![] };
        if sampling.repetition_penalty != 1.0 {
            sampler.seen = vec![false; vocabulary];
            before.iter().for_each(|&id| sampler.note(id));
        }
        sampler
    }

    fn note(&mut self, id: u32) {
        if let Some(seen) = self.seen.get_mut(id as usize) {
            *seen = true;
        }
    }

    /// Draws the next token; the logits are spent.
    pub fn draw(&mut self, logits: &mut [f32]) -> u32 {
        let penalty = self.sampling.repetition_penalty as f32;
        for (logit, _) in logits.iter_mut().zip(&self.seen).filter(|(_, seen)| **seen) {
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
        let id = if self.sampling.temperature == 0.0 { most_likely(logits) } else { self.random(logits) };
        self.note(id);
        id
    }

    fn random(&mut self, logits: &mut [f32]) -> u32 {
        let scale = 1.0 / self.sampling.temperature as f32;
        logits.iter_mut().for_each(|logit| *logit *= scale);
        let unit = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        if self.sampling.top_k.is_none() && self.sampling.top_p == 1.0 {
            return pick(logits.iter().copied().zip(0..), log_sum_exp(logits), unit);
        }
        let mut ranked: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        ranked.truncate(self.sampling.top_k.unwrap_or(usize::MAX));
        let total = log_sum_exp(&ranked.iter().map(|(logit, _)| *logit).collect::<Vec<_>>());
        let (mut reached, mut kept) = (0.0, 0);
        for (logit, _) in &ranked {
            kept += 1;
            reached += (f64::from(*logit) - total).exp();
            if reached >= self.sampling.top_p {
                break;
            }
        }
        ranked.truncate(kept);
        let total = log_sum_exp(&ranked.iter().map(|(logit, _)| *logit).collect::<Vec<_>>());
        pick(ranked.iter().copied(), total, unit)
    }
}

fn most_likely(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

/// The token at which the running sum of probabilities passes `unit`; the last one if rounding leaves a gap.
fn pick(tokens: impl Iterator<Item = (f32, u32)>, total: f64, unit: f64) -> u32 {
    let (mut sum, mut last) = (0.0, 0);
    for (logit, id) in tokens {
        let probability = f64::from(crate::kernel::rows::exp((f64::from(logit) - total) as f32));
        sum += probability;
        if probability > 0.0 {
            last = id;
        }
        if unit < sum {
            return id;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(sampling: Sampling, logits: &[f32], count: u64) -> Vec<u32> {
        (0..count).map(|seed| Sampler::new(sampling, seed, logits.len(), &[]).draw(&mut logits.to_vec())).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_best() {
        assert_eq!(draws(Sampling::greedy(1), &[0.0, 2.0, 2.0, 1.0], 3), [1, 1, 1]);
    }

    #[test]
    fn frequencies_follow_the_distribution() {
        let logits = [1.0f32, 0.0, 2.0, -1.0];
        let total: f32 = logits.iter().map(|l| (l / 2.0).exp()).sum();
        let drawn = draws(Sampling::at(2.0, 1), &logits, 4000);
        for (id, logit) in logits.iter().enumerate() {
            let share = drawn.iter().filter(|d| **d == id as u32).count() as f32 / 4000.0;
            assert!((share - (logit / 2.0).exp() / total).abs() < 0.03, "{id}: {share}");
        }
    }

    #[test]
    fn top_k_and_top_p_leave_out_the_tail() {
        let logits = [2.0f32, 1.0, 0.5, -3.0];
        let top_k = Sampling { top_k: Some(2), ..Sampling::at(1.0, 1) };
        let drawn = draws(top_k, &logits, 300);
        assert!(drawn.iter().all(|id| *id < 2) && drawn.contains(&1));
        // The first token alone has probability .61, the first two .84.
        let top_p = Sampling { top_p: 0.7, ..Sampling::at(1.0, 1) };
        let drawn = draws(top_p, &logits, 300);
        assert!(drawn.iter().all(|id| *id < 2) && drawn.contains(&1));
        let narrow = Sampling { top_p: 0.5, ..Sampling::at(1.0, 1) };
        assert!(draws(narrow, &logits, 50).iter().all(|id| *id == 0));
    }

    #[test]
    fn repetition_is_penalised_in_prompt_and_answer() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::greedy(3) };
        let mut sampler = Sampler::new(sampling, 0, 3, &[0]);
        assert_eq!(sampler.draw(&mut [3.0, 2.0, 1.2]), 1);
        assert_eq!(sampler.draw(&mut [2.0, 2.0, 1.2]), 2);
        assert_eq!(sampler.draw(&mut [-1.0, -1.5, -1.2]), 0);
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            Sampling { top_p: 0.0, ..Sampling::greedy(1) },
            Sampling { temperature: -1.0, ..Sampling::greedy(1) },
            Sampling { temperature: f64::NAN, ..Sampling::greedy(1) },
            Sampling { top_k: Some(0), ..Sampling::greedy(1) },
            Sampling { repetition_penalty: 0.0, ..Sampling::greedy(1) },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
