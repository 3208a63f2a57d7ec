//! Locks by name: a lock file, or a heartbeat (see [`crate::heartbeat`]) where the store has those.
//!
//! Lock files: flock on a small file, released by the kernel when its holder drops it or dies.
//!
//! A lock file is removed by its last holder while it holds it. Whoever opened the old file meanwhile notices, because the
//! path no longer leads to the inode it locked, and starts over.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::StoreError;
use crate::heartbeat::{Beat, Beats};
use crate::io::Io;
use crate::store::random_id;

type Result<T> = std::result::Result<T, StoreError>;

/// How processes that have one store open tell each other what they hold: recipes (leases), and that they live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Locking {
    /// As the store says; one that says nothing uses heartbeats on NFS and kernel locks anywhere else.
    #[default]
    Auto,
    /// Kernel locks, from now on, for everybody.
    Kernel,
    /// Files whose mtime is renewed, from now on, for everybody; every write is flushed at once.
    Heartbeat {
        /// How often.
        every: Duration,
        /// After how many missed beats a holder counts as dead.
        missed: u32,
    },
}

impl Locking {
    /// Heartbeats as a store on NFS has them: every 5 s, dead after a minute.
    pub const HEARTBEAT: Self = Self::Heartbeat { every: Duration::from_secs(5), missed: 12 };
}

/// The beat of [`Locking`] that the store at `root` uses; none for kernel locks. A choice that was made now is written down.
pub(crate) fn beat_of(io: &Io, root: &Path, locking: Locking) -> Result<Option<(Duration, u32)>> {
    let path = root.join("leases").join("kind");
    let told = String::from_utf8_lossy(&io.read(&path)?.unwrap_or_default()).into_owned();
    let mut words = told.split_whitespace();
    let known = match (words.next(), words.next().map(str::parse), words.next().map(str::parse)) {
        (Some("heartbeat"), Some(Ok(millis)), Some(Ok(missed))) => Some(Some((Duration::from_millis(millis), missed))),
        (Some("kernel"), None, None) => Some(None),
        _ => None,
    };
    let chosen = match (locking, known) {
        (Locking::Auto, Some(known)) => return Ok(known),
        (Locking::Auto, None) if !io.is_remote(root)? => return Ok(None),
        (Locking::Auto, None) => Locking::HEARTBEAT,
        (given, _) => given,
    };
    let (line, beat) = match chosen {
        Locking::Heartbeat { every, missed } => {
            (format!("heartbeat {} {missed}\n", every.as_millis()), Some((every, missed)))
        }
        _ => ("kernel\n".to_owned(), None),
    };
    if line != told {
        io.make_dirs(&root.join("leases"))?;
        let temporary = root.join("leases").join(format!("{}-0.probe", random_id()));
        io.write_new(&temporary, line.as_bytes())?;
        io.rename(&temporary, &path)?;
    }
    Ok(beat)
}

/// Where gc says that it works, when it cannot say so by a kernel lock.
pub(crate) fn gc_beat(root: &Path) -> PathBuf {
    root.join("leases").join("gc.beat")
}

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

impl Lock {
    /// Whether nobody has taken the lock over, which only heartbeats allow.
    pub(crate) fn is_own(&self) -> Result<bool> {
        match self {
            Self::File(_) => Ok(true),
            Self::Beat(beat) => beat.is_own(),
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
