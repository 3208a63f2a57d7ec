//! Leases: two runs that want one recipe share one execution.
//!
//! A lease is efficiency, never correctness: without it both would do the work and publish two complete results. It is an
//! exclusive lock on one byte of the file `leases/bytes`, whose place is the recipe's digest cut to 62 bits; it belongs to the
//! open file, ends when it is dropped and when its process dies, and so there is no unlock command. Two recipes of one place
//! would only wait for each other. A byte costs nothing: a lock file for each recipe would be made and removed for each
//! stage, and file systems make new files slowly while they remember many removed ones.
//!
//! On NFS a lease is a heartbeat instead, the file `leases/<recipe>.beat` (see [`crate::heartbeat`]).

use std::time::Duration;

use crate::bytes::{ByteLock, place_of};
use crate::core::Core;
use crate::heartbeat::Beat;
use crate::{Digest, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

/// How often a waiting caller looks again.
pub(crate) const POLL: Duration = Duration::from_millis(50);

/// The right to execute a recipe, while this value lives.
#[must_use = "a lease ends when it is dropped"]
pub struct Lease {
    recipe: Digest,
    _hold: Hold,
}

/// What a lease is made of.
#[allow(dead_code, reason = "held for what dropping them does")]
enum Hold {
    Byte(ByteLock),
    Beat(Beat),
}

impl Lease {
    /// Which recipe it is for.
    pub fn recipe(&self) -> Digest {
        self.recipe
    }
}

impl Core {
    pub(crate) fn lease(&self, recipe: &Digest) -> Result<Option<Lease>> {
        let hold = match &self.beats {
            Some(beats) => beats.try_take(&self.root.join("leases").join(format!("{recipe}.beat")))?.map(Hold::Beat),
            None => self.leases.try_take(place_of(recipe))?.map(Hold::Byte),
        };
        Ok(hold.map(|hold| Lease { recipe: *recipe, _hold: hold }))
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
