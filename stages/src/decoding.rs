//! How replies are drawn: sampling parameters as a pipeline writes them.

use mpcc_engine::stage::ParamError;
use mpcc_models::sample::Sampling;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Sampling parameters. The default is greedy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Decoding {
    /// 0 is greedy.
    pub temperature: f64,
    /// Nucleus: the smallest set of tokens whose probability reaches this.
    pub top_p: f64,
    /// Only the k likeliest tokens; none for all.
    pub top_k: Option<usize>,
    /// Divides the logits of tokens already seen; 1 is off.
    pub repetition_penalty: f64,
    /// New tokens at most.
    pub max_new_tokens: usize,
}

impl Default for Decoding {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, top_k: None, repetition_penalty: 1.0, max_new_tokens: 512 }
    }
}

impl Decoding {
    /// Greedy decoding of at most `max_new_tokens`.
    pub fn greedy(max_new_tokens: usize) -> Self {
        Self { max_new_tokens, ..Self::default() }
    }

    /// Sampling at temperature `temperature` of at most `max_new_tokens`.
    pub fn at(temperature: f64, max_new_tokens: usize) -> Self {
        Self { temperature, max_new_tokens, ..Self::default() }
    }

    /// What the model runtime takes.
    pub fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            repetition_penalty: self.repetition_penalty,
            max_new_tokens: self.max_new_tokens,
        }
    }

    /// Checks the ranges.
    pub fn check(&self, param: &str) -> Result<(), ParamError> {
        let wrong = |message: &str| Err(ParamError::new(param, message));
        if self.temperature < 0.0 {
            return wrong("temperature must be 0 (greedy) or more");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong("top_p must be above 0 and at most 1");
        }
        if self.repetition_penalty <= 0.0 || self.max_new_tokens == 0 {
            return wrong("repetition_penalty and max_new_tokens must be above 0");
        }
        Ok(())
    }
}
