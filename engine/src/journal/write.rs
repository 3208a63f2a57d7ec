//! Writing a journal.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};

use super::{JournalError, events_file, log_file, runs_folder};
use crate::event::{Event, What};
use crate::stage::Note;

/// Bytes of lines that may wait to be written.
const HELD: usize = 64 << 10;

/// Seconds between two kept counting notes of one sort of a node.
const PROGRESS_S: f64 = 1.0;

/// The notes that come often and replace each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Count {
    Progress,
    Memo,
    Usage,
}

impl Count {
    fn of(note: &Note) -> Option<Self> {
        match note {
            Note::Progress { .. } => Some(Self::Progress),
            Note::Memo { .. } => Some(Self::Memo),
            Note::Usage { .. } => Some(Self::Usage),
            Note::Info { .. } | Note::Warning { .. } | Note::Metric { .. } => None,
        }
    }
}

/// The journal of a run that is going on.
pub struct Journal {
    id: String,
    folder: PathBuf,
    /// Locked until it is closed.
    file: File,
    /// Lines that are not written yet: what the store tells anyhow may wait for the next other event.
    held: Vec<u8>,
    /// When the last note of each counting sort of a node was kept.
    counted: BTreeMap<(String, Count), f64>,
}

impl Journal {
    /// Begins the journal of a run that `started` now.
    pub fn create(store: &Path, started: Timestamp) -> Result<Self, JournalError> {
        let (id, folder) = claim(&runs_folder(store), started)?;
        let logs = folder.join("logs");
        std::fs::create_dir(&logs).map_err(|error| JournalError::io(&logs, error))?;
        let path = events_file(&folder);
        let file = File::create_new(&path).map_err(|error| JournalError::io(&path, error))?;
        // Some network file systems have no locks; then a killed run looks like one that is going on.
        let _ = flock(&file, FlockOperation::NonBlockingLockExclusive);
        Ok(Self { id, folder, file, held: Vec::new(), counted: BTreeMap::new() })
    }

    /// The run's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The run's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the log of `node` goes.
    pub fn log(&self, node: &str) -> PathBuf {
        log_file(&self.folder, node)
    }

    /// Keeps one event.
    pub fn write(&mut self, event: &Event) -> Result<(), JournalError> {
        if !self.keeps(event) {
            return Ok(());
        }
        serde_json::to_writer(&mut self.held, event).expect("events are plain data");
        self.held.push(b'\n');
        if matches!(event.what, What::NodeCached { .. }) && self.held.len() < HELD {
            return Ok(());
        }
        let written = self.file.write_all(&self.held);
        self.held.clear();
        written.map_err(|error| JournalError::io(&events_file(&self.folder), error))
    }

    fn keeps(&mut self, event: &Event) -> bool {
        let What::NodeNote { node, note } = &event.what else { return true };
        let Some(count) = Count::of(note) else { return true };
        let key = (node.clone(), count);
        let due = self.counted.get(&key).is_none_or(|last| event.at_s - last >= PROGRESS_S);
        if due {
            self.counted.insert(key, event.at_s);
        }
        due
    }
}

/// Creates a fresh run folder: `20260102-030405-678`, with a count behind it when two runs began in one millisecond.
fn claim(runs: &Path, started: Timestamp) -> Result<(String, PathBuf), JournalError> {
    std::fs::create_dir_all(runs).map_err(|error| JournalError::io(runs, error))?;
    let base = started.strftime("%Y%m%d-%H%M%S-%3f").to_string();
    let mut count = 1;
    loop {
        let id = if count == 1 { base.clone() } else { format!("{base}-{count}") };
        let folder = runs.join(&id);
        match std::fs::create_dir(&folder) {
            Ok(()) => return Ok((id, folder)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => count += 1,
            Err(error) => return Err(JournalError::io(&folder, error)),
        }
    }
}
