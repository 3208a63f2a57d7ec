//! Read-through: a store that asks a remote for what it has not.
//!
//! A remote makes a run faster, never wrong and never failed. Each recipe is asked for once; what is found damaged is told and
//! counts as absent; a remote that fails is told about once and left alone from then on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::fetch::{Fetch, Seen};
use super::tally::{Counts, Tally};
use super::{PullReport, Remote};
use crate::{Digest, Store};

/// Is told what a person should know.
pub type Warn = Box<dyn Fn(&str) + Send + Sync>;

/// A remote behind a store; see [`Store::with_remote`].
pub struct ReadThrough {
    remote: Remote,
    warn: Warn,
    /// Recipes that were asked for, and whether their entry came.
    asked: Mutex<BTreeMap<Digest, Arc<OnceLock<bool>>>>,
    seen: Seen,
    down: AtomicBool,
    report: Mutex<PullReport>,
}

impl ReadThrough {
    /// Reads through to `remote`; `warn` is told once when it fails, and of everything that is damaged there.
    pub fn new(remote: Remote, warn: Warn) -> Self {
        Self {
            remote,
            warn,
            asked: Mutex::default(),
            seen: Seen::default(),
            down: AtomicBool::new(false),
            report: Mutex::default(),
        }
    }

    /// What was fetched so far.
    pub fn report(&self) -> PullReport {
        self.report.lock().expect("no panic while it is held").clone()
    }

    /// The URL of the remote.
    pub fn url(&self) -> &str {
        self.remote.url()
    }

    /// Whether the recipe's entry is in `store` now because it was fetched. Who asks for one that is being fetched waits.
    pub(crate) fn fetch(&self, store: &Store, recipe: &Digest) -> bool {
        let cell = self.asked.lock().expect("no panic while it is held").entry(*recipe).or_default().clone();
        *cell.get_or_init(|| !self.down.load(Ordering::Relaxed) && self.ask(store, recipe))
    }

    fn ask(&self, store: &Store, recipe: &Digest) -> bool {
        let tally = Tally::new(&|_| {});
        let fetch = Fetch { store, wire: self.remote.wire(), seen: &self.seen, tally: &tally };
        let fetched = match self.remote.block_on(fetch.recipe(recipe)) {
            Ok(fetched) => fetched,
            Err(error) => {
                if !self.down.swap(true, Ordering::Relaxed) {
                    (self.warn)(&format!("{error}; this run goes on without the remote cache"));
                }
                return false;
            }
        };
        fetched.problems.iter().for_each(|problem| (self.warn)(problem));
        let Counts { objects, bytes, skipped } = tally.counts();
        let mut report = self.report.lock().expect("no panic while it is held");
        report.entries += u64::from(fetched.whole);
        report.objects += objects;
        report.bytes += bytes;
        report.skipped += skipped;
        report.problems.extend(fetched.problems);
        fetched.whole
    }
}

impl Store {
    /// The same store, whose [`lookup_through`](Store::lookup_through) asks a remote for what is not here.
    pub fn with_remote(&self, through: Arc<ReadThrough>) -> Self {
        Self { inner: self.inner.clone(), through: Some(through) }
    }
}
