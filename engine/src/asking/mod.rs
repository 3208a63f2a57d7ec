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

use std::sync::{Arc, Mutex};

use mpcc_cache::{Charge, Digest, Store};

use crate::executor::redact::Redactor;
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
    redactor: Redactor,
    /// Sums over all models that the stage asks.
    sums: Arc<Mutex<Sums>>,
}

#[derive(Default)]
struct Sums {
    spent: Charge,
    hits: u64,
    misses: u64,
}

impl Asking {
    /// Asks in earnest: limits are kept in `store`, keys come from `secrets`.
    pub fn new(store: Store, secrets: Secrets, redactor: Redactor) -> Self {
        Self { store: Some(store), secrets, redactor, ..Self::alone() }
    }

    /// Asks nothing: a stage that would ask says so to `rehearsal` and ends.
    pub fn rehearsing(store: Store, rehearsal: Arc<Rehearsal>) -> Self {
        Self { store: Some(store), rehearsal: Some(rehearsal), ..Self::alone() }
    }

    /// For a stage that runs outside any store: no limits, no keys.
    pub fn alone() -> Self {
        let (redactor, sums) = (Redactor::default(), Arc::default());
        Self { store: None, secrets: Arc::new(|_| None), rehearsal: None, redactor, sums }
    }

    /// The value of a secret. Never to be shown, stored or made part of an error.
    pub fn secret(&self, name: &str) -> Option<String> {
        (self.secrets)(name)
    }

    /// `text` without secrets.
    pub fn clean(&self, text: &[u8]) -> Vec<u8> {
        self.redactor.clean(text).into_owned()
    }

    /// Adds what a request took; what all requests of the stage have taken so far, whichever model they asked.
    pub fn spend(&self, took: Charge) -> Charge {
        let mut sums = self.sums.lock().expect("no panic while it is held");
        sums.spent = sums.spent + took;
        sums.spent
    }

    /// Adds answers from the memo and answers computed anew; the sums over the whole stage.
    pub fn count(&self, hits: u64, misses: u64) -> (u64, u64) {
        let mut sums = self.sums.lock().expect("no panic while it is held");
        sums.hits += hits;
        sums.misses += misses;
        (sums.hits, sums.misses)
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
