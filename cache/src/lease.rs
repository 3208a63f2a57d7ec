//! Leases: two runs that want one recipe share one execution.
//!
//! A lease is efficiency, never correctness: without it both would do the work and publish two complete results. It is an
//! exclusive flock on `leases/<recipe>`; it ends when it is dropped and when its process dies, so there is no unlock command.

use std::time::Duration;

use crate::core::Core;
use crate::lock::LockFile;
use crate::{Digest, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

/// How often a waiting caller looks again.
const POLL: Duration = Duration::from_millis(50);

/// The right to execute a recipe, while this value lives.
#[must_use = "a lease ends when it is dropped"]
pub struct Lease {
    recipe: Digest,
    _lock: LockFile,
}

impl Lease {
    /// Which recipe it is for.
    pub fn recipe(&self) -> Digest {
        self.recipe
    }
}

impl Core {
    pub(crate) fn lease(&self, recipe: &Digest) -> Result<Option<Lease>> {
        let dir = self.root.join("leases");
        self.io.make_dirs(&dir)?;
        let lock = LockFile::try_take(&self.io, &dir.join(recipe.hex()))?;
        Ok(lock.map(|lock| Lease { recipe: *recipe, _lock: lock }))
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
