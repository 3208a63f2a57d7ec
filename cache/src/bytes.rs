//! Locks on single bytes of an empty file: many cheap locks that the kernel lets go when their process dies.
//!
//! A byte costs nothing, and no lock leaves a file behind. Two things whose places fall together only wait for each other.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::io::Io;
use crate::{Digest, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

/// The byte that stands for a digest: offsets of files end at 2^63.
pub(crate) fn place_of(digest: &Digest) -> u64 {
    u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("eight bytes")) >> 2
}

/// The bytes of one file that this process has locked. The kernel tells open files apart, not the threads of one.
#[derive(Default)]
struct Held {
    file: Option<Arc<File>>,
    places: BTreeSet<u64>,
}

/// The byte locks of one file; clones share them.
#[derive(Clone)]
pub(crate) struct ByteLocks {
    io: Io,
    path: PathBuf,
    held: Arc<Mutex<Held>>,
}

impl ByteLocks {
    /// Locks on the bytes of `path`, which is made with the first of them.
    pub(crate) fn new(io: Io, path: PathBuf) -> Self {
        Self { io, path, held: Arc::default() }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no panic while locks are held")
    }

    /// Locks the byte at `place`, unless somebody has it.
    pub(crate) fn try_take(&self, place: u64) -> Result<Option<ByteLock>> {
        let mut held = self.held();
        if held.places.contains(&place) {
            return Ok(None);
        }
        let file = match &held.file {
            Some(file) => file.clone(),
            None => {
                self.path.parent().map_or(Ok(()), |parent| self.io.make_dirs(parent))?;
                held.file.insert(Arc::new(self.io.open_lock(&self.path)?)).clone()
            }
        };
        match self.io.try_lock_byte(&file, &self.path, place) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            // A file system without such locks: this process alone keeps order.
            Err(error) if error.io_kind() == Some(std::io::ErrorKind::Unsupported) || is_no_lock(&error) => {}
            Err(error) => return Err(error),
        }
        held.places.insert(place);
        Ok(Some(ByteLock { locks: self.clone(), file, place }))
    }
}

/// `ENOLCK`: a network file system whose lock service is not there.
fn is_no_lock(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { source, .. } if source.raw_os_error() == Some(libc::ENOLCK))
}

/// One locked byte, let go when dropped.
#[must_use = "the lock ends when it is dropped"]
pub struct ByteLock {
    locks: ByteLocks,
    file: Arc<File>,
    place: u64,
}

impl Drop for ByteLock {
    fn drop(&mut self) {
        let mut held = self.locks.held();
        // A lock that cannot be let go ends with the process.
        let _ = self.locks.io.unlock_byte(&self.file, &self.locks.path, self.place);
        held.places.remove(&self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_has_one_holder_of_all_threads_and_open_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("below/bytes");
        let (ours, theirs) = (ByteLocks::new(Io::default(), path.clone()), ByteLocks::new(Io::default(), path));
        let held = ours.try_take(7).unwrap();
        assert!(held.is_some());
        assert!(ours.clone().try_take(7).unwrap().is_none(), "not twice in one process");
        assert!(theirs.try_take(7).unwrap().is_none());
        assert!(theirs.try_take(8).unwrap().is_some());
        drop(held);
        assert!(theirs.try_take(7).unwrap().is_some());
    }

    #[test]
    fn every_digest_has_a_place_that_files_have() {
        assert!(place_of(&Digest::of(b"x")) <= i64::MAX as u64);
    }
}
