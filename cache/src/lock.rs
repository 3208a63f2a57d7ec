//! Lock files: flock on a small file, released by the kernel when its holder drops it or dies.
//!
//! A lock file is removed by its last holder while it holds it. Whoever opened the old file meanwhile notices, because the
//! path no longer leads to the inode it locked, and starts over.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::StoreError;
use crate::io::Io;

type Result<T> = std::result::Result<T, StoreError>;

/// A held exclusive lock; dropping it removes the file and lets go.
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
