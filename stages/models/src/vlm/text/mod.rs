//! The language model that all families share: pre-norm layers of grouped-query attention with rotary positions and a gated
//! feed-forward (Qwen2, Llama, Mistral).
//!
//! | file | what |
//! |---|---|
//! | `config` | its part of `config.json` |
//! | `rope` | rotary angles |
//! | `decoder` | forward on packed rows, differentiable |
//!
//! Inference with cached keys and values is [`crate::vlm::infer`].

pub mod config;
pub mod decoder;
pub mod rope;

pub use config::{Decoder, RopeScaling, Sliding, TextConfig};
pub use decoder::LanguageModel;
pub use rope::{Angles, TextRope};
