//! Asking: what a stage needs to ask a model, beyond the model itself.
//!
//! | file | says |
//! |---|---|
//! | [`quota`] | what a served model may still be asked, by all nodes of all runs on one store together |
//! | [`price`] | what tokens cost |
//! | [`rehearsal`] | what a stage would ask, when it is only to be counted |
//!
//! An answer in the memo needs none of this: it waits for no slot, no minute and no money.

pub mod price;
pub mod quota;
pub mod rehearsal;

use std::sync::Arc;

use mpcc_cache::{Digest, Store};

use crate::stage::{ModelInput, StageError};
pub use price::Price;
pub use quota::{Admission, Admitted, Quota};
pub use rehearsal::{Asks, Rehearsal};

/// Gives the value of a secret by its name.
pub type Secrets = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// What a stage asks with.
#[derive(Clone)]
pub struct Asking {
    store: Option<Store>,
    secrets: Secrets,
    rehearsal: Option<Arc<Rehearsal>>,
}

impl Asking {
    /// Asks in earnest: limits are kept in `store`, keys come from `secrets`.
    pub fn new(store: Store, secrets: Secrets) -> Self {
        Self { store: Some(store), secrets, rehearsal: None }
    }

    /// Asks nothing: a stage that would ask says so to `rehearsal` and ends.
    pub fn rehearsing(store: Store, rehearsal: Arc<Rehearsal>) -> Self {
        Self { store: Some(store), secrets: Arc::new(|_| None), rehearsal: Some(rehearsal) }
    }

    /// For a stage that runs outside any store: no limits, no keys.
    pub fn alone() -> Self {
        Self { store: None, secrets: Arc::new(|_| None), rehearsal: None }
    }

    /// The value of a secret. Never to be shown, stored or made part of an error.
    pub fn secret(&self, name: &str) -> Option<String> {
        (self.secrets)(name)
    }

    /// What served model `model` may be asked.
    ///
    /// # Errors
    /// Its settings are malformed.
    pub fn quota(&self, model: &ModelInput) -> Result<Quota, StageError> {
        Quota::new(self.store.clone(), model)
    }

    /// The right to compute what the memo will keep under `key`, or none while somebody else does: then look again later, and
    /// never wait while holding another. It saves work and decides nothing, so where locks fail it is given.
    pub fn claim(&self, key: &Digest) -> Option<Claim> {
        match self.store.as_ref().map(|store| store.claim(key)) {
            Some(Ok(lock)) => lock.map(|lock| Claim { _lock: Some(lock) }),
            None | Some(Err(_)) => Some(Claim { _lock: None }),
        }
    }

    /// To be called before asking, once for everything that the stage knows it will ask: in a rehearsal it ends the stage.
    pub fn announce(&self, asks: impl FnOnce() -> Asks) -> Result<(), StageError> {
        match &self.rehearsal {
            Some(rehearsal) => rehearsal.take(&asks()),
            None => Ok(()),
        }
    }

    /// Whether nothing is really asked.
    pub fn is_rehearsal(&self) -> bool {
        self.rehearsal.is_some()
    }
}

/// See [`Asking::claim`].
#[must_use = "it ends when it is dropped"]
pub struct Claim {
    _lock: Option<mpcc_cache::ByteLock>,
}
