//! What a pipeline takes from outside: files, folders, patterns, checkpoints in a Hugging Face cache.
//!
//! Paths are relative to the pipeline file's folder. What is not there is never an error of the pipeline; it goes to
//! [`super::Plan::missing`]. The plan looks at the file system through [`Outside`] alone, which remembers what was looked
//! at, so that a plan can be kept for as long as all of it is as it was.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};
use mpcc_cache::Watch;

/// Deepest folder that `**` reaches; ends a ring of links.
const MAX_DEPTH: usize = 64;
/// Folders no pattern descends into.
const SKIPPED: [&str; 2] = [".mpcc", ".git"];

/// The file system around a pipeline file, and what was looked at in it.
pub(crate) struct Outside {
    folder: PathBuf,
    /// Path -> whether its content counts, and the watch.
    seen: RefCell<BTreeMap<PathBuf, (bool, Watch)>>,
}

impl Outside {
    /// The file system around `file`, an absolute path.
    pub(super) fn around(file: &Path) -> Self {
        Self { folder: file.parent().unwrap_or(Path::new("/")).to_owned(), seen: RefCell::default() }
    }

    /// The pipeline file's folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// `path` made absolute against the folder.
    pub(super) fn absolute(&self, path: &str) -> PathBuf {
        absolute(&self.folder, path)
    }

    /// Everything that was looked at, as it was then.
    pub(super) fn into_seen(self) -> Vec<Watch> {
        self.seen.into_inner().into_values().map(|(_, watch)| watch).collect()
    }

    fn look_at_kind(&self, path: &Path) -> Watch {
        let mut seen = self.seen.borrow_mut();
        seen.entry(path.to_owned()).or_insert_with(|| (false, Watch::kind(path))).1.clone()
    }

    /// Remembers the content of a file or the entries of a folder; call it before reading.
    fn look_into(&self, path: &Path) {
        let mut seen = self.seen.borrow_mut();
        // The first look counts: what changed since then must show.
        if !seen.get(path).is_some_and(|(content, _)| *content) {
            seen.insert(path.to_owned(), (true, Watch::exact(path)));
        }
    }

    pub(super) fn exists(&self, path: &Path) -> bool {
        self.look_at_kind(path).is_there()
    }

    pub(super) fn is_file(&self, path: &Path) -> bool {
        // Not from the watch, which may be an exact one by now.
        self.look_at_kind(path).is_there() && path.is_file()
    }

    pub(super) fn is_dir(&self, path: &Path) -> bool {
        self.look_at_kind(path).is_there() && path.is_dir()
    }

    /// Size of the file at `path` in bytes; none when it is no file.
    pub(super) fn length(&self, path: &Path) -> std::io::Result<Option<u64>> {
        self.look_into(path);
        std::fs::metadata(path).map(|meta| meta.is_file().then_some(meta.len()))
    }

    pub(super) fn read(&self, path: &Path) -> std::io::Result<String> {
        self.look_into(path);
        std::fs::read_to_string(path)
    }

    pub(super) fn read_bytes(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        self.look_into(path);
        std::fs::read(path)
    }

    /// The files that match an absolute pattern; see [`expand_glob`].
    pub(super) fn expand(&self, pattern: &Path) -> Result<Vec<PathBuf>, GlobError> {
        expand(pattern, &mut |folder| self.look_into(folder))
    }

    /// The folder of a downloaded checkpoint: `models--ORG--NAME/snapshots/COMMIT` in a Hugging Face cache, where `revision`
    /// is a commit or a name under `refs/` (layout: <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>).
    pub(super) fn hub_snapshot(&self, cache: &Path, id: &str, revision: &str) -> Option<PathBuf> {
        let safe = |text: &str| !text.split('/').any(|part| part.is_empty() || part == "." || part == "..");
        if !safe(id) || !safe(revision) {
            return None;
        }
        let folder = cache.join(format!("models--{}", id.replace('/', "--")));
        let named = self.read(&folder.join("refs").join(revision)).ok();
        let commit = named.as_deref().map_or(revision, str::trim);
        let snapshot = folder.join("snapshots").join(commit);
        self.is_file(&snapshot.join("config.json")).then_some(snapshot)
    }
}

/// The folder of a checkpoint in a Hugging Face cache, for callers without a plan; `revision` is a commit or a name under `refs/`.
pub fn hub_snapshot(cache: &Path, id: &str, revision: &str) -> Option<PathBuf> {
    Outside::around(Path::new("/")).hub_snapshot(cache, id, revision)
}

/// `path` made absolute against `folder`, `.` and `..` taken out by name.
pub(crate) fn absolute(folder: &Path, path: &str) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in folder.join(path).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    clean
}

/// Why a pattern cannot be expanded.
#[derive(Debug, thiserror::Error)]
pub enum GlobError {
    /// The pattern is malformed.
    #[error("`{0}` is no pattern: {1}")]
    Pattern(String, String),
    /// A folder cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The files that match an absolute `pattern` (`*` stays within a folder, `**` crosses folders), sorted by path. None is
/// no error.
pub fn expand_glob(pattern: &Path) -> Result<Vec<PathBuf>, GlobError> {
    expand(pattern, &mut |_| {})
}

/// [`expand_glob`]; tells of each file or folder that decides the answer before it looks into it.
pub(crate) fn expand(pattern: &Path, look: &mut dyn FnMut(&Path)) -> Result<Vec<PathBuf>, GlobError> {
    let text = pattern.to_string_lossy();
    let matcher = matcher(&text)?;
    let fixed = fixed_part(pattern);
    let mut found = Vec::new();
    if fixed == pattern {
        look(pattern);
        found.extend(pattern.is_file().then(|| pattern.to_owned()));
    } else if !fixed.is_dir() {
        look(&fixed);
    } else {
        let rest = pattern.components().count() - fixed.components().count();
        let depth = if text.contains("**") { MAX_DEPTH } else { rest };
        walk(&fixed, depth, &matcher, look, &mut found)?;
    }
    found.sort();
    Ok(found)
}

/// The folder above the first component with a wildcard; the pattern itself when it has none.
pub(crate) fn fixed_part(pattern: &Path) -> PathBuf {
    let is_pattern = |part: &Component<'_>| part.as_os_str().to_string_lossy().contains(['*', '?', '[', '{']);
    pattern.components().take_while(|part| !is_pattern(part)).collect()
}

/// A malformed pattern, found without looking at any file.
pub(super) fn check_glob(pattern: &str) -> Result<(), GlobError> {
    matcher(pattern).map(|_| ())
}

fn matcher(pattern: &str) -> Result<GlobMatcher, GlobError> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    glob.map(|glob| glob.compile_matcher()).map_err(|e| GlobError::Pattern(pattern.to_owned(), e.kind().to_string()))
}

fn walk(
    folder: &Path,
    depth: usize,
    matcher: &GlobMatcher,
    look: &mut dyn FnMut(&Path),
    found: &mut Vec<PathBuf>,
) -> Result<(), GlobError> {
    look(folder);
    let io = |source| GlobError::Io { path: folder.to_owned(), source };
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let path = entry.path();
        let skipped = SKIPPED.iter().any(|name| entry.file_name() == *name);
        // Links are followed: data sets are often linked into a workspace.
        let is_dir = path.is_dir();
        if is_dir && depth > 1 && !skipped {
            walk(&path, depth - 1, matcher, look, found)?;
        } else if !is_dir && matcher.is_match(&path) && path.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned() {
        assert_eq!(absolute(Path::new("/a/b"), "../c/./d"), Path::new("/a/c/d"));
        assert_eq!(absolute(Path::new("/a/b"), "/x"), Path::new("/x"));
    }

    #[test]
    fn patterns_find_files_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.py", "a.py", "c.txt", "sub/d.py", ".git/e.py"] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let names = |pattern: &str| -> Vec<String> {
            let found = expand_glob(&folder.path().join(pattern)).unwrap();
            found.iter().map(|p| p.strip_prefix(folder.path()).unwrap().display().to_string()).collect()
        };
        assert_eq!(names("*.py"), ["a.py", "b.py"]);
        assert_eq!(names("**/*.py"), ["a.py", "b.py", "sub/d.py"]);
        assert_eq!(names("sub/*"), ["sub/d.py"]);
        assert_eq!(names("c.txt"), ["c.txt"]);
        assert!(names("nothing/*").is_empty());
        assert!(expand_glob(&folder.path().join("[")).is_err());
    }

    #[test]
    fn finds_a_snapshot_by_name_and_by_commit() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("models--Org--Name");
        let snapshot = folder.join("snapshots/abc");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(folder.join("refs")).unwrap();
        std::fs::write(folder.join("refs/main"), "abc\n").unwrap();
        let hub_snapshot = |cache: &Path, id: &str, revision: &str| {
            Outside::around(Path::new("/nowhere/p.yaml")).hub_snapshot(cache, id, revision)
        };
        assert_eq!(hub_snapshot(cache.path(), "Org/Name", "main"), None);
        std::fs::write(snapshot.join("config.json"), "{}").unwrap();
        assert_eq!(hub_snapshot(cache.path(), "Org/Name", "main").as_deref(), Some(snapshot.as_path()));
        assert_eq!(hub_snapshot(cache.path(), "Org/Name", "abc").as_deref(), Some(snapshot.as_path()));
        assert_eq!(hub_snapshot(cache.path(), "Org/Name", "../refs"), None);
    }
}
