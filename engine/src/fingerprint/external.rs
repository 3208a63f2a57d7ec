//! Files from outside the store: hashed by reference, once a run.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use globset::GlobBuilder;
use mpcc_cache::{Artifact, Store};

use super::KeyError;

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

/// The files that match `pattern`, sorted by name.
pub(super) fn glob(pattern: &str) -> Result<Vec<Match>, KeyError> {
    let matcher = GlobBuilder::new(pattern).literal_separator(true).build();
    let matcher =
        matcher.map_err(|error| KeyError::Pattern { pattern: pattern.to_owned(), message: error.to_string() })?;
    let matcher = matcher.compile_matcher();
    let base = fixed_part(pattern);
    let mut found = Vec::new();
    let mut open = vec![base.clone()];
    while let Some(folder) = open.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(source) => return Err(KeyError::Read { path: folder, source }),
        };
        for entry in entries {
            let path = entry.map_err(|source| KeyError::Read { path: folder.clone(), source })?.path();
            if path.is_dir() {
                open.push(path);
            } else if matcher.is_match(&path) {
                let relative = path.strip_prefix(&base).unwrap_or(&path).to_string_lossy().into_owned();
                found.push(Match { path, relative });
            }
        }
    }
    if found.is_empty() {
        return Err(KeyError::NoMatch { pattern: pattern.to_owned() });
    }
    found.sort_by(|a, b| a.relative.cmp(&b.relative));
    Ok(found)
}

/// The folder above the first component with a wildcard.
fn fixed_part(pattern: &str) -> PathBuf {
    let plain = |part: &Component<'_>| !part.as_os_str().to_string_lossy().contains(['*', '?', '[', '{']);
    let parts: Vec<_> = Path::new(pattern).components().collect();
    let fixed = parts.iter().take_while(|part| plain(part)).count().min(parts.len().saturating_sub(1));
    parts[..fixed].iter().collect()
}
