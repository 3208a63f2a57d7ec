//! Files from outside the store: hashed by reference, once a run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use mpcc_cache::{Artifact, Store};

use super::KeyError;
use crate::plan::GlobError;
use crate::plan::external::{expand, fixed_part};

type Slot = Arc<OnceLock<Artifact>>;

/// The artifacts that paths from outside are. Each is looked at once, so that all nodes of a run see the same bytes.
#[derive(Default)]
pub struct External {
    known: Mutex<BTreeMap<PathBuf, Slot>>,
}

impl External {
    /// The artifact that `path` is.
    pub(super) fn artifact(&self, store: &Store, path: &Path) -> Result<Artifact, KeyError> {
        let slot = self.known.lock().expect("no panic while it is held").entry(path.to_owned()).or_default().clone();
        if let Some(artifact) = slot.get() {
            return Ok(*artifact);
        }
        let artifact = look(store, path)?;
        // Two nodes may have looked at once; one answer stands for both.
        Ok(*slot.get_or_init(|| artifact))
    }

    /// Forgets what was seen, so that the next look sees what is there then.
    pub fn forget(&self) {
        self.known.lock().expect("no panic while it is held").clear();
    }
}

/// The artifact that `path` is now.
pub(super) fn look(store: &Store, path: &Path) -> Result<Artifact, KeyError> {
    store.digest_path(path).map_err(|source| match source.io_kind() {
        Some(std::io::ErrorKind::NotFound) => KeyError::Absent { path: path.to_owned() },
        _ => KeyError::Store(source),
    })
}

/// A file that matches a pattern: its path, and its path below the pattern's fixed folder.
pub(super) struct Match {
    pub(super) path: PathBuf,
    pub(super) relative: String,
}

/// The files that match `pattern`, sorted by name; `look` is told of each folder that decides the answer.
pub(super) fn glob(pattern: &str, look: &mut dyn FnMut(&Path)) -> Result<Vec<Match>, KeyError> {
    let whole = Path::new(pattern);
    let found = expand(whole, look).map_err(|error| match error {
        GlobError::Pattern(pattern, message) => KeyError::Pattern { pattern, message },
        GlobError::Io { path, source } => KeyError::Read { path, source },
    })?;
    let base = match fixed_part(whole) {
        fixed if fixed == whole => whole.parent().unwrap_or(whole).to_owned(),
        fixed => fixed,
    };
    let name = |path: PathBuf| {
        let relative = path.strip_prefix(&base).unwrap_or(&path).to_string_lossy().into_owned();
        Match { path, relative }
    };
    let mut found: Vec<Match> = found.into_iter().map(name).collect();
    if found.is_empty() {
        return Err(KeyError::NoMatch { pattern: pattern.to_owned() });
    }
    found.sort_by(|a, b| a.relative.cmp(&b.relative));
    Ok(found)
}
