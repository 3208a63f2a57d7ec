//! Vision-language models on candle: architectures, generation, likelihoods, training.
//!
//! | module | what |
//! |---|---|
//! | [`image`], [`tokenizer`], [`chat`] | from pictures and conversations to what a model reads |
//! | [`vlm`] | architectures, and [`Vlm`](vlm::Vlm), a model directory in memory |
//! | [`weights`], [`checkpoint`] | named variables and the files they come from |
//! | [`ops`] | differentiable operations on packed rows |
//!
//! The crate knows no pipeline: it reads no environment, prints nothing, and reports progress through callbacks.

pub mod chat;
pub mod checkpoint;
pub mod device;
pub mod error;
pub mod image;
pub mod ops;
pub mod tokenizer;
pub mod vlm;
pub mod weights;

pub use candle_core::DType;
pub use error::{ModelError, Result};
