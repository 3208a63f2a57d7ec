//! The language model for inference: cached keys and values, no graph.
//!
//! Prefill ([`super::prefill`]), what is kept between requests ([`super::prefix`]), the batch of answers ([`crate::generate`]) and
//! likelihoods ([`crate::score`]) are written once, over an [`Engine`]. Two stand behind it:
//!
//! | engine | rows, keys and values | used for |
//! |---|---|---|
//! | [`Host`] | f32 slices and the kernels of [`crate::kernel`] | weights on the CPU: a row's bits do not depend on its company |
//! | [`Tensors`] | candle's tensors in the type of the weights | weights on a GPU, and wherever [`EngineChoice::Tensors`] asks for it |
//!
//! One [`Engine::extend`] serves prefill, decoding and scoring: it takes lanes, each a few new tokens behind a chain of earlier
//! stretches, and returns their hidden rows. All rows of all lanes pass the matrices together.
//!
//! On tensors a row's result is the same function of its inputs in any company, but not the same bits: a library for matrix products
//! picks its kernel, and so the order of its sums, by the number of rows.

mod host;
mod slab;
mod tensors;

use std::fmt::Debug;
use std::sync::Arc;

use super::family::Config;
use super::prefix::{Part, Prefixes};
use crate::error::Result;
use crate::image::Patches;

pub use host::Host;
pub(in crate::vlm) use host::turn;
pub use tensors::{Stretch as TensorStretch, Tensors};

/// Which engine answers and scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineChoice {
    /// [`Host`] where the weights lie on the CPU, else [`Tensors`].
    #[default]
    ByDevice,
    /// [`Tensors`] wherever the weights lie: what a GPU computes can be looked at without one.
    Tensors,
}

/// What takes memory.
pub trait Bytes: Debug + Send + Sync {
    /// How much of it.
    fn bytes(&self) -> usize;
}

/// Keys and values of a stretch of tokens in every layer.
pub trait KeysAndValues: Bytes {
    /// Number of tokens.
    fn tokens(&self) -> usize;
}

/// What computes a model's rows and holds its keys and values.
pub trait Engine: Sync {
    /// Rows as wide as the language model.
    type Rows: Bytes;
    /// Keys and values that lanes share.
    type Stretch: KeysAndValues;
    /// New tokens of any number of sequences, each with what lies before them.
    type Lanes: Default + Send;

    /// The configuration.
    fn config(&self) -> &Config;
    /// Bytes that the keys and values of one token take.
    fn token_bytes(&self) -> usize;
    /// Bytes of keys and values that sequences in work may take together.
    fn room(&self) -> usize;

    /// The rows of pictures, picture by picture.
    ///
    /// # Errors
    /// When a picture does not fit the model.
    fn encode(&self, images: &[&Patches]) -> Result<Vec<Self::Rows>>;

    /// Embedded rows of `ids`; image tokens take the rows of `images` in order.
    ///
    /// # Errors
    /// When a token is outside the vocabulary, or image tokens and image rows differ in number.
    fn embed(&self, ids: &[u32], images: &[Arc<Self::Rows>]) -> Result<Self::Rows>;

    /// Embedded rows of text tokens behind a prompt; no picture is looked for.
    ///
    /// # Errors
    /// When a token is outside the vocabulary.
    fn embed_text(&self, ids: &[u32]) -> Result<Self::Rows>;

    /// Adds lanes, each behind its chain of stretches and with room for so many tokens of its own.
    ///
    /// # Errors
    /// When the device has no room.
    fn join(&self, lanes: &mut Self::Lanes, more: Vec<Joining<Self::Stretch>>) -> Result<()>;

    /// Hidden rows, after the final norm, of new tokens; `counts[i]` rows of `x` and of `positions` belong to lane `i`, which
    /// keeps their keys and values.
    ///
    /// # Errors
    /// When the device fails.
    fn extend(
        &self,
        lanes: &mut Self::Lanes,
        counts: &[usize],
        x: Self::Rows,
        positions: &[Vec<u32>; 3],
    ) -> Result<Self::Rows>;

    /// Drops the lanes that do not stay; the others close up.
    ///
    /// # Errors
    /// When the device has no room.
    fn stay(&self, lanes: &mut Self::Lanes, stays: &[bool]) -> Result<()>;

    /// What lanes that were extended once have got, lane by lane.
    ///
    /// # Errors
    /// When the device has no room.
    fn stretches(&self, lanes: Self::Lanes) -> Result<Vec<Self::Stretch>>;

    /// Rows of `parts`, counted through one part after another, in the order given.
    ///
    /// # Errors
    /// When the device has no room.
    fn pick(&self, parts: &[&Self::Rows], rows: &[usize]) -> Result<Self::Rows>;

    /// Logits of hidden rows, row after row.
    ///
    /// # Errors
    /// When the device fails.
    fn logits(&self, hidden: &Self::Rows) -> Result<Vec<f32>>;

    /// The log-probability (natural) of `ids[i]` behind hidden row `i`; all ids are inside the vocabulary.
    ///
    /// # Errors
    /// When the device fails.
    fn log_probabilities(&self, hidden: &Self::Rows, ids: &[u32]) -> Result<Vec<f64>>;
}

/// A lane to be: what lies before it, and the room that it needs.
#[derive(Debug, Clone)]
pub struct Joining<S> {
    /// Earlier stretches, in order.
    pub context: Vec<Part<S>>,
    /// New tokens at most.
    pub room: usize,
}

/// What an engine keeps between requests.
pub type PrefixesOf<E> = Prefixes<<E as Engine>::Rows, <E as Engine>::Stretch>;

/// Something to do with a model on whichever engine it runs on.
pub(crate) trait Work {
    /// What comes of it.
    type Out;
    /// Does it.
    fn run<E: Engine>(self, engine: &E, prefixes: &PrefixesOf<E>) -> Result<Self::Out>;
}
