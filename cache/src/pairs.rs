//! Pairs: small maps from one digest to the last digest written under it, each an index (see [`crate::index`]).
//!
//! The store has two: `latest/` (node key -> its last recipe, so that `mpcc why` can compare) and `published/` (workspace
//! path -> the artifact last put there, so that files of an older one can be removed). Records carry the time they were
//! written at; the latest wins, and of two at one time the greater digest.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use crate::index::{Home, Index};
use crate::io::Io;
use crate::log::Record;
use crate::snapshot::Keyed;
use crate::statcache::{digest_at, word};
use crate::{Digest, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

#[derive(Clone, Copy)]
struct Pair {
    key: Digest,
    value: Digest,
    time_ns: i64,
}

impl Record for Pair {
    const TAG: [u8; 4] = *b"pair";
    const SIZE: usize = 72;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.time_ns.to_le_bytes());
        out.extend(self.key.as_bytes());
        out.extend(self.value.as_bytes());
    }

    fn decode(bytes: &[u8]) -> Self {
        Self { time_ns: word(bytes, 0).cast_signed(), key: digest_at(bytes, 8), value: digest_at(bytes, 40) }
    }
}

impl Keyed for Pair {
    type Key = [u8; 32];
    const KEY_AT: usize = 8;
    const EVEN: bool = true;

    fn key(&self) -> [u8; 32] {
        *self.key.as_bytes()
    }

    fn merge(self, later: Self) -> Self {
        if (later.time_ns, later.value) > (self.time_ns, self.value) { later } else { self }
    }
}

struct State {
    index: Index<Pair>,
    last_ns: i64,
}

/// A map from digest to digest.
pub(crate) struct Pairs {
    io: Io,
    state: Mutex<State>,
}

impl Pairs {
    pub(crate) fn new(home: &Home, dir: PathBuf) -> Self {
        let index = Index::new(home, dir);
        Self { io: home.io.clone(), state: Mutex::new(State { index, last_ns: 0 }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while pairs are held")
    }

    /// The last value under `key`, of whichever process.
    pub(crate) fn get(&self, key: &Digest) -> Result<Option<Digest>> {
        let index = &mut self.lock().index;
        index.refresh()?;
        Ok(index.get(key.as_bytes()).map(|pair| pair.value))
    }

    /// Sets the value under `key`.
    pub(crate) fn set(&self, key: Digest, value: Digest) -> Result<()> {
        let mut state = self.lock();
        let time_ns = self.io.now_ns().max(state.last_ns + 1);
        state.index.append(&[Pair { key, value, time_ns }])?;
        state.last_ns = time_ns;
        Ok(())
    }

    /// The last values, by key.
    pub(crate) fn values(&self) -> Result<Vec<Digest>> {
        let index = &mut self.lock().index;
        // What is asked for here is what gc keeps.
        index.must_be_whole()?;
        Ok(index.iter().map(|pair| pair.value).collect())
    }

    /// Rewrites the index with the last pairs only. Only for a caller that has the store for itself.
    pub(crate) fn compact(&self) -> Result<()> {
        self.lock().index.compact()
    }
}
