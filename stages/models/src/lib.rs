//! Vision-language models on candle: architectures, generation, likelihoods, training.
//!
//! | module | what |
//! |---|---|
//! | [`image`], [`tokenizer`], [`chat`] | from pictures and conversations to what a model reads |
//! | [`vlm`] | architectures, and [`Vlm`](vlm::Vlm), a model directory in memory |
//! | [`weights`], [`checkpoint`] | named variables and the files they come from |
//! | [`lora`] | low-rank adapters |
//! | [`generate`], [`score`], [`sample`] | answers, likelihoods, and how a token is drawn |
//! | [`survey`], [`parity`] | what a directory lacks; our numbers against a reference's |
//! | [`growing`] | the text of an answer while its tokens come |
//! | [`kernel`] | inference on plain rows, a row's result independent of its batch |
//! | [`ops`] | differentiable operations on packed rows |
//!
//! The crate knows no pipeline: it reads no environment, prints nothing, and reports progress through callbacks.

pub mod chat;
pub mod checkpoint;
pub mod device;
pub mod error;
pub mod generate;
pub mod growing;
pub mod image;
pub mod kernel;
pub mod lora;
pub mod ops;
pub mod parity;
pub mod sample;
pub mod score;
mod source;
pub mod survey;
pub mod tokenizer;
pub mod train;
pub mod vlm;
pub mod weights;

pub use candle_core::DType;
pub use error::{ModelError, Result};
