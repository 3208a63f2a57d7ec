//! Leases: two runs that want one recipe share one execution.
//!
//! A lease is efficiency, never correctness: without it both would do the work and publish two complete results. It is an
//! exclusive lock on one byte of the file `leases/bytes`, whose place is the recipe's digest cut to 62 bits; it belongs to the
//! open file, ends when it is dropped and when its process dies, and so there is no unlock command. Two recipes of one place
//! would only wait for each other. A byte costs nothing: a lock file for each recipe would be made and removed for each
//! stage, and file systems make new files slowly while they remember many removed ones.
//!
//! On NFS a lease is a heartbeat instead, the file `leases/<recipe>.beat` (see [`crate::heartbeat`]).

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::core::Core;
use crate::heartbeat::Beat;
use crate::io::Io;
use crate::{Digest, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

/// How often a waiting caller looks again.
pub(crate) const POLL: Duration = Duration::from_millis(50);

/// The leases that one open store holds. The kernel tells open files apart, not the threads of one.
#[derive(Default)]
pub(crate) struct Leases {
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    file: Option<Arc<File>>,
    places: BTreeSet<u64>,
}

impl Leases {
    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().expect("no panic while leases are held")
    }
}

/// The right to execute a recipe, while this value lives.
#[must_use = "a lease ends when it is dropped"]
pub struct Lease {
    recipe: Digest,
    _hold: Hold,
}

/// What a lease is made of.
#[allow(dead_code, reason = "held for what dropping them does")]
enum Hold {
    Byte(Byte),
    Beat(Beat),
}

impl Lease {
    /// Which recipe it is for.
    pub fn recipe(&self) -> Digest {
        self.recipe
    }
}

/// A held byte of `leases/bytes`.
struct Byte {
    io: Io,
    leases: Arc<Leases>,
    file: Arc<File>,
    path: PathBuf,
    at: u64,
}

impl Drop for Byte {
    fn drop(&mut self) {
        let mut held = self.leases.lock();
        // A lock that cannot be let go ends with the process.
        let _ = self.io.unlock_byte(&self.file, &self.path, self.at);
        held.places.remove(&self.at);
    }
}

/// The byte that stands for a recipe.
fn place(recipe: &Digest) -> u64 {
    u64::from_le_bytes(recipe.as_bytes()[..8].try_into().expect("eight bytes")) >> 2
}

impl Core {
    pub(crate) fn lease(&self, recipe: &Digest) -> Result<Option<Lease>> {
        let hold = match &self.beats {
            Some(beats) => beats.try_take(&self.root.join("leases").join(format!("{recipe}.beat")))?.map(Hold::Beat),
            None => self.hold_byte(place(recipe))?.map(Hold::Byte),
        };
        Ok(hold.map(|hold| Lease { recipe: *recipe, _hold: hold }))
    }

    fn hold_byte(&self, at: u64) -> Result<Option<Byte>> {
        let path = self.root.join("leases").join("bytes");
        let mut held = self.leases.lock();
        if held.places.contains(&at) {
            return Ok(None);
        }
        let file = match &held.file {
            Some(file) => file.clone(),
            None => {
                self.io.make_dirs(&self.root.join("leases"))?;
                held.file.insert(Arc::new(self.io.open_lock(&path)?)).clone()
            }
        };
        if !self.io.try_lock_byte(&file, &path, at)? {
            return Ok(None);
        }
        held.places.insert(at);
        Ok(Some(Byte { io: self.io.clone(), leases: self.leases.clone(), file, path, at }))
    }

    /// Waits for the lease; `go_on` is asked before each wait and ends it with `false`.
    pub(crate) fn lease_waiting(&self, recipe: &Digest, mut go_on: impl FnMut() -> bool) -> Result<Option<Lease>> {
        loop {
            if let Some(lease) = self.lease(recipe)? {
                return Ok(Some(lease));
            }
            if !go_on() {
                return Ok(None);
            }
            std::thread::sleep(POLL);
        }
    }
}
