//! Training: packed batches, losses, optimiser, and the three trainers.
//!
//! | module | what |
//! |---|---|
//! | [`batch`] | sequences and groups behind one prompt, packed on one row axis |
//! | [`lm`] | language modelling on conversations: pretraining |
//! | [`sft`] | supervised fine-tuning on responses (paper, Eq. 2) |
//! | [`grpo`], [`advantage`], [`objective`] | group-relative policy optimisation (Eq. 4), prior sampling (Eq. 5) |
//! | [`optim`], [`schedule`] | AdamW, learning rates |
//! | [`checkpoint`] | a killed training goes on to the same final bytes |
//!
//! A trainer knows no pipeline: it reports each step to a callback, which may stop it.

pub mod advantage;
pub mod batch;
pub mod checkpoint;
pub mod grpo;
pub mod images;
pub mod lm;
pub mod logprob;
pub mod objective;
pub mod optim;
pub mod order;
pub mod schedule;
pub mod session;
pub mod sft;

use std::ops::ControlFlow;

/// What a step's callback says: go on, or stop here (the checkpoint is written).
pub type Verdict = ControlFlow<()>;
