//! Pairs: small maps from one digest to the last digest written under it, kept as append-only logs.
//!
//! The store has two: `latest/` (node key -> its last recipe, so that `mpcc why` can compare) and `published/` (workspace
//! path -> the artifact last put there, so that files of an older one can be removed). Records carry the time they were
//! written at; the latest wins, and of two at one time the greater digest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::io::Io;
use crate::log::{Log, Record};
use crate::statcache::{digest_at, word};
use crate::{Digest, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

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

struct State {
    log: Log<Pair>,
    map: BTreeMap<Digest, (i64, Digest)>,
    last_ns: i64,
}

/// A map from digest to digest.
pub(crate) struct Pairs {
    io: Io,
    state: Mutex<State>,
}

fn apply(map: &mut BTreeMap<Digest, (i64, Digest)>, pair: &Pair) {
    let slot = map.entry(pair.key).or_insert((pair.time_ns, pair.value));
    *slot = (*slot).max((pair.time_ns, pair.value));
}

impl Pairs {
    pub(crate) fn new(io: Io, dir: PathBuf, writer: &str) -> Self {
        let log = Log::new(io.clone(), dir, writer);
        Self { io, state: Mutex::new(State { log, map: BTreeMap::new(), last_ns: 0 }) }
    }

    /// The last value under `key`, of whichever process.
    pub(crate) fn get(&self, key: &Digest) -> Result<Option<Digest>> {
        let mut state = self.state.lock().expect("no panic while pairs are held");
        let State { log, map, .. } = &mut *state;
        log.refresh(|pair| apply(map, &pair))?;
        Ok(map.get(key).map(|(_, value)| *value))
    }

    /// The value under `key` as of a moment ago.
    pub(crate) fn get_recent(&self, key: &Digest) -> Result<Option<Digest>> {
        let mut state = self.state.lock().expect("no panic while pairs are held");
        let State { log, map, .. } = &mut *state;
        log.refresh_recent(|pair| apply(map, &pair))?;
        Ok(map.get(key).map(|(_, value)| *value))
    }

    /// Sets the value under `key`.
    pub(crate) fn set(&self, key: Digest, value: Digest) -> Result<()> {
        let mut state = self.state.lock().expect("no panic while pairs are held");
        let time_ns = self.io.now_ns().max(state.last_ns + 1);
        let pair = Pair { key, value, time_ns };
        state.log.append(&[Pair { ..pair }])?;
        state.last_ns = time_ns;
        apply(&mut state.map, &pair);
        Ok(())
    }

    /// All pairs.
    pub(crate) fn all(&self) -> Result<BTreeMap<Digest, Digest>> {
        let mut state = self.state.lock().expect("no panic while pairs are held");
        let State { log, map, .. } = &mut *state;
        log.refresh(|pair| apply(map, &pair))?;
        Ok(map.iter().map(|(key, (_, value))| (*key, *value)).collect())
    }

    /// Rewrites the log with the last pairs only. Only for a caller that has the store for itself.
    pub(crate) fn compact(&self, temporary: &Path) -> Result<()> {
        self.all()?;
        let mut state = self.state.lock().expect("no panic while pairs are held");
        let State { log, map, .. } = &mut *state;
        let pairs: Vec<_> =
            map.iter().map(|(key, (time_ns, value))| Pair { key: *key, value: *value, time_ns: *time_ns }).collect();
        log.rewrite(&pairs, temporary)
    }
}
