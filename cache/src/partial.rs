//! Directories for what is not finished: `partial/<recipe>` outlives a killed run (training checkpoints), scratch below
//! `tmp/` does not.
//!
//! Each open store has its own directory `tmp/<writer>` beside a lock file that it holds as long as it lives. Whoever opens
//! the store next finds the lock free when that process is dead, and removes the directory.

use std::path::PathBuf;

use crate::core::Core;
use crate::io::FileKind;
use crate::lock::{Lock, Locks};
use crate::{Digest, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

impl Core {
    pub(crate) fn partial_path(&self, recipe: &Digest) -> PathBuf {
        self.root.join("partial").join(recipe.hex())
    }

    pub(crate) fn partial_dir(&self, recipe: &Digest) -> Result<PathBuf> {
        let dir = self.partial_path(recipe);
        self.io.make_dirs(&dir).map(|()| dir)
    }

    pub(crate) fn drop_partial(&self, recipe: &Digest) -> Result<()> {
        let dir = self.partial_path(recipe);
        if self.io.stat(&dir)?.is_none() {
            return Ok(());
        }
        // Out of sight first, so that a kill in the middle leaves no half-emptied checkpoint.
        let doomed = self.temporary()?;
        self.io.rename(&dir, &doomed)?;
        self.io.remove_tree(&doomed)
    }

    pub(crate) fn scratch(&self, prefix: &str) -> Result<PathBuf> {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
        let name: String = prefix.chars().map(plain).take(80).collect();
        let dir = self.own_tmp().join(format!("s{}-{name}", self.next()));
        self.io.make_dirs(&dir).map(|()| dir)
    }
}

/// The lock that says that writer `writer` lives; `None` when the id is taken.
pub(crate) fn claim_writer(locks: &Locks, tmp: &std::path::Path, writer: &str) -> Result<Option<Lock>> {
    let (path, io) = (tmp.join(format!("{writer}.lock")), &locks.io);
    if io.stat(&path)?.is_some() || io.stat(&tmp.join(writer))?.is_some() {
        return Ok(None);
    }
    locks.try_take(&path)
}

/// Removes the directories of dead writers.
pub(crate) fn sweep(locks: &Locks, tmp: &std::path::Path) -> Result<()> {
    let io = &locks.io;
    for path in io.list(tmp)? {
        let Some(stat) = io.stat(&path)? else { continue };
        match stat.kind {
            FileKind::Dir => sweep_writer(locks, &path)?,
            _ if path.extension().is_some_and(|extension| extension == "lock") => {
                // Taking and dropping a dead writer's lock removes its file.
                drop(locks.try_take(&path)?);
            }
            _ => {}
        }
    }
    Ok(())
}

fn sweep_writer(locks: &Locks, dir: &std::path::Path) -> Result<()> {
    match locks.try_take(&dir.with_extension("lock"))? {
        Some(_lock) => locks.io.remove_tree(dir),
        None => Ok(()),
    }
}
