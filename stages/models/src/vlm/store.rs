//! What a model keeps between requests ([`super::prefix`]), in the form of the engine that it runs on.

use std::sync::Arc;

use image::RgbImage;

use super::infer::{Host, PrefixesOf, Tensors};
use super::prefix::{PrefixCounts, Prefixes};
use crate::error::Result;
use crate::image::Patches;

/// What a model keeps, as the engine that it runs on has it.
#[derive(Debug, Clone)]
pub(crate) enum Store {
    /// Rows on the processor.
    Host(Arc<PrefixesOf<Host<'static>>>),
    /// Tensors on the model's device.
    Tensors(Arc<PrefixesOf<Tensors>>),
}

/// The same expression for either engine's prefixes.
macro_rules! of_either {
    ($store:expr, $prefixes:ident => $work:expr) => {
        match $store {
            Store::Host($prefixes) => $work,
            Store::Tensors($prefixes) => $work,
        }
    };
}

impl Store {
    /// Nothing yet, and room for so many bytes.
    pub(crate) fn new(tensors: bool, budget: usize) -> Store {
        match tensors {
            false => Store::Host(Arc::new(Prefixes::new(budget))),
            true => Store::Tensors(Arc::new(Prefixes::new(budget))),
        }
    }

    /// Nothing yet, for the same engine and with the same room.
    pub(crate) fn anew(&self) -> Store {
        Store::new(matches!(self, Store::Tensors(_)), of_either!(self, prefixes => prefixes.budget()))
    }

    /// Another with the same counts that keeps nothing.
    pub(crate) fn keeping_nothing(&self) -> Store {
        match self {
            Store::Host(prefixes) => Store::Host(Arc::new(prefixes.keeping_nothing())),
            Store::Tensors(prefixes) => Store::Tensors(Arc::new(prefixes.keeping_nothing())),
        }
    }

    /// Bytes that are kept.
    pub(crate) fn bytes(&self) -> usize {
        of_either!(self, prefixes => prefixes.bytes())
    }

    /// What was computed and what was there.
    pub(crate) fn counts(&self) -> PrefixCounts {
        of_either!(self, prefixes => prefixes.counts())
    }

    /// A processed picture: what is kept of equal bytes, else what `process` makes of them.
    pub(super) fn processed(&self, image: &RgbImage, process: impl FnOnce() -> Result<Patches>) -> Result<Patches> {
        of_either!(self, prefixes => prefixes.processed(image, process))
    }
}
