//! The journal: what a run did, kept beside the store's objects, and read back by every command that looks at a run.
//!
//! ```text
//! <store>/runs/<id>/events.jsonl      the event stream, one event a line, written as it happens
//! <store>/runs/<id>/logs/<node>.log   what the node's stage printed
//! ```
//!
//! A run's id is the time at which it began, so ids sort by age. The journal is not synced: after a power cut its end may
//! be missing, which costs nothing but history. While its run lives, the journal file is locked; a journal without
//! `run.finished` whose lock is free belongs to a run that was killed.
//!
//! Of the progress notes of a node at most one a second is kept, and likewise of its memo counts and of its usage.

mod record;
mod runs;
#[cfg(test)]
mod tests;
mod totals;
mod write;

pub use record::{NodeRecord, RunRecord, Status};
pub use runs::{Measured, Past, durations, latest, list, past, read};
pub use totals::Totals;
pub use write::Journal;

use std::path::{Path, PathBuf};

/// Why a journal cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// The reason given.
        source: std::io::Error,
    },
    /// There is no such run.
    #[error("{} holds no run `{id}`", store.display())]
    NoRun {
        /// The store's root.
        store: PathBuf,
        /// What was asked for.
        id: String,
    },
    /// The journal does not begin with `run.started`.
    #[error("{} is not the journal of a run", path.display())]
    NoJournal {
        /// The file.
        path: PathBuf,
    },
    /// The journal was written by a later mpcc.
    #[error("{} is a journal of version {found}, this mpcc knows version {ours}", path.display(), ours = crate::event::VERSION)]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

impl JournalError {
    fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}

/// The folder of all runs of a store.
pub(crate) fn runs_folder(store: &Path) -> PathBuf {
    store.join("runs")
}

/// The events of the run in `folder`.
fn events_file(folder: &Path) -> PathBuf {
    folder.join("events.jsonl")
}

/// Where the log of `node` lies in a run's `folder`.
pub(crate) fn log_file(folder: &Path, node: &str) -> PathBuf {
    folder.join("logs").join(format!("{}.log", file_name(node)))
}

/// A node's name as a file name: everything that a file system or a shell minds is written `%xx`; long names are cut and
/// end in a hash.
fn file_name(node: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.,=[]+".contains(&byte);
    let name: String = node
        .bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02x}") })
        .collect();
    if name.len() <= 200 {
        name
    } else {
        format!("{}-{}", &name[..180], mpcc_cache::Digest::of(node.as_bytes()).short())
    }
}
