//! What a pipeline takes from outside: files, folders, patterns, checkpoints in a Hugging Face cache.
//!
//! Paths are relative to the pipeline file's folder. What is not there is never an error of the pipeline; it goes to
//! [`super::Plan::missing`].

use std::path::{Component, Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};

/// Folders no pattern descends into.
const SKIPPED: [&str; 2] = [".mpcc", ".git"];

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
    let text = pattern.to_string_lossy();
    let matcher = matcher(&text)?;
    let is_pattern = |part: &Component<'_>| part.as_os_str().to_string_lossy().contains(['*', '?', '[', '{']);
    let fixed: PathBuf = pattern.components().take_while(|part| !is_pattern(part)).collect();
    let mut found = Vec::new();
    if fixed == pattern {
        found.extend(pattern.is_file().then(|| pattern.to_owned()));
    } else if fixed.is_dir() {
        let rest = pattern.components().count() - fixed.components().count();
        let depth = if text.contains("**") { usize::MAX } else { rest };
        walk(&fixed, depth, &matcher, &mut found)?;
    }
    found.sort();
    Ok(found)
}

/// A malformed pattern, found without looking at any file.
pub(super) fn check_glob(pattern: &str) -> Result<(), GlobError> {
    matcher(pattern).map(|_| ())
}

fn matcher(pattern: &str) -> Result<GlobMatcher, GlobError> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    glob.map(|glob| glob.compile_matcher()).map_err(|e| GlobError::Pattern(pattern.to_owned(), e.kind().to_string()))
}

fn walk(folder: &Path, depth: usize, matcher: &GlobMatcher, found: &mut Vec<PathBuf>) -> Result<(), GlobError> {
    let io = |source| GlobError::Io { path: folder.to_owned(), source };
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(io)?);
        let skipped = SKIPPED.iter().any(|name| entry.file_name() == *name);
        if kind.is_dir() && depth > 1 && !skipped {
            walk(&path, depth - 1, matcher, found)?;
        } else if !kind.is_dir() && matcher.is_match(&path) && path.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

/// The folder of a downloaded checkpoint: `models--ORG--NAME/snapshots/COMMIT` in a Hugging Face cache, where `revision`
/// is a commit or a name under `refs/` (layout: <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>).
pub(super) fn hub_snapshot(cache: &Path, id: &str, revision: &str) -> Option<PathBuf> {
    let safe = |text: &str| !text.split('/').any(|part| part.is_empty() || part == "." || part == "..");
    if !safe(id) || !safe(revision) {
        return None;
    }
    let folder = cache.join(format!("models--{}", id.replace('/', "--")));
    let named = std::fs::read_to_string(folder.join("refs").join(revision)).ok();
    let commit = named.as_deref().map_or(revision, str::trim);
    let snapshot = folder.join("snapshots").join(commit);
    snapshot.join("config.json").is_file().then_some(snapshot)
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
        assert_eq!(hub_snapshot(cache.path(), "Org/Name", "main"), None);
        std::fs::write(snapshot.join("config.json"), "{}").unwrap();
        assert_eq!(hub_snapshot(cache.path(), "Org/Name", "main").as_deref(), Some(snapshot.as_path()));
        assert_eq!(hub_snapshot(cache.path(), "Org/Name", "abc").as_deref(), Some(snapshot.as_path()));
        assert_eq!(hub_snapshot(cache.path(), "Org/Name", "../refs"), None);
    }
}
