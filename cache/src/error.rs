//! What can go wrong in the store. Every error names its path.

use std::io;
use std::path::{Path, PathBuf};

use crate::Digest;

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file system refused.
    #[error("cannot {op} {}: {source}", path.display())]
    Io {
        /// What was tried: `read`, `rename`, ...
        op: &'static str,
        /// On which path.
        path: PathBuf,
        /// The reason given.
        source: io::Error,
    },
    /// The directory is a store of another format.
    #[error("{} holds a store of format `{found}`, this mpcc knows `{ours}`; use the mpcc that made it or another store", path.display())]
    Format {
        /// The format file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What this version writes.
        ours: &'static str,
    },
    /// An object is not in the store, or was damaged and has been moved to quarantine.
    #[error("{} is not in the store (object {})", path.display(), digest.short())]
    Missing {
        /// The object.
        digest: Digest,
        /// Where it would lie.
        path: PathBuf,
    },
    /// A file that cannot become part of an artifact.
    #[error("{} cannot be part of an artifact: {why}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// The reason and what to do.
        why: &'static str,
    },
    /// A file that changed again and again while its content was being hashed.
    #[error("{} changed while it was being hashed; something still writes to it", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Other processes have the store open.
    #[error("{} is in use by another mpcc process; wait for its runs to end and try again", path.display())]
    Busy {
        /// The store.
        path: PathBuf,
    },
    /// An object whose bytes are what was stored, but not what its reader expects.
    #[error("{} is malformed: {what}", path.display())]
    Malformed {
        /// The object.
        path: PathBuf,
        /// What is wrong, with the offending text.
        what: String,
    },
    /// A memo namespace that cannot be a directory name.
    #[error("`{name}` cannot name a memo namespace below {} (use a-z, 0-9, `.`, `_`, `-`, not starting with `.`)", path.display())]
    Namespace {
        /// The memo directory.
        path: PathBuf,
        /// The name.
        name: String,
    },
}

impl StoreError {
    pub(crate) fn io(op: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { op, path: path.to_owned(), source }
    }

    pub(crate) fn refused(path: &Path, why: &'static str) -> Self {
        Self::Refused { path: path.to_owned(), why }
    }

    /// The kind of the underlying I/O error, if it is one.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io { source, .. } => Some(source.kind()),
            _ => None,
        }
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        let kind = match &error {
            StoreError::Io { source, .. } => source.kind(),
            StoreError::Missing { .. } => io::ErrorKind::NotFound,
            StoreError::Busy { .. } => io::ErrorKind::WouldBlock,
            _ => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}
