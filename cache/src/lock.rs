//! Locks by name: a lock file, or a heartbeat (see [`crate::heartbeat`]) where the store has those.
//!
//! Lock files: flock on a small file, released by the kernel when its holder drops it or dies.
//!
//! A lock file is removed by its last holder while it holds it. Whoever opened the old file meanwhile notices, because the
//! path no longer leads to the inode it locked, and starts over.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::StoreError;
use crate::heartbeat::{Beat, Beats};
use crate::io::Io;

type Result<T> = std::result::Result<T, StoreError>;

/// How the processes of a store lock by name.
#[derive(Clone)]
pub(crate) struct Locks {
    pub(crate) io: Io,
    /// None: by flock.
    pub(crate) beats: Option<Arc<Beats>>,
}

/// A held exclusive lock of either kind; dropping it lets go.
#[allow(dead_code, reason = "held for what dropping them does")]
pub(crate) enum Lock {
    File(LockFile),
    Beat(Beat),
}

impl Locks {
    /// Takes the lock `path` if nobody holds it.
    pub(crate) fn try_take(&self, path: &Path) -> Result<Option<Lock>> {
        match &self.beats {
            Some(beats) => Ok(beats.try_take(path)?.map(Lock::Beat)),
            None => Ok(LockFile::try_take(&self.io, path)?.map(Lock::File)),
        }
    }
}

/// A held lock file; dropping it removes the file and lets go.
pub(crate) struct LockFile {
    io: Io,
    path: PathBuf,
    file: File,
}

impl LockFile {
    /// Takes the lock if nobody holds it.
    pub(crate) fn try_take(io: &Io, path: &Path) -> Result<Option<Self>> {
        loop {
            let file = io.open_lock(path)?;
            if !io.try_lock(&file, path)? {
                return Ok(None);
            }
            if is_same(io, &file, path)? {
                return Ok(Some(Self { io: io.clone(), path: path.to_owned(), file }));
            }
        }
    }
}

fn is_same(io: &Io, file: &File, path: &Path) -> Result<bool> {
    let held = io.stat_open(file, path)?;
    Ok(io.stat(path)?.is_some_and(|stat| (stat.dev, stat.ino) == (held.dev, held.ino)))
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // Left behind, it is only litter: the next holder takes it over.
        let _ = self.io.remove_file(&self.path);
        let _ = self.io.unlock(&self.file, &self.path);
    }
}
