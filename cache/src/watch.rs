//! Watches: what a path was when somebody looked, and whether it is that still. A thing that was derived from files may be
//! kept with the watches of those files, and used again while all of them hold, without reading or even opening one.
//!
//! | watch | holds while |
//! |---|---|
//! | exact | device, inode, size, mtime and ctime are what they were |
//! | kind | there is a file, a directory, or nothing, as there was |
//!
//! An exact watch can only be trusted when the path had rested before it was looked at, for the reason that the stat cache
//! gives (see [`crate::statcache`]): [`Watch::is_settled`] says so. A directory's exact watch sees entries come and go, not
//! what happens inside them.

use std::path::{Path, PathBuf};

use crate::artifact::{Artifact, ArtifactKind};
use crate::core::Core;
use crate::io::{FileKind, FileStat, Io};
use crate::manifest::{Found, Links, Manifest, TreeFile, walk_folders};
use crate::statcache::{Guard, Key, is_settled};
use crate::{Digest, Store, StoreError};

/// What there is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Nothing,
    File,
    Dir,
    Exactly(Key),
}

/// What a path was when somebody looked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    path: PathBuf,
    seen: Seen,
    settled: bool,
}

fn kind_at(io: &Io, path: &Path) -> Seen {
    match io.stat_target(path) {
        Ok(stat) if stat.kind == FileKind::Dir => Seen::Dir,
        Ok(_) => Seen::File,
        Err(_) => Seen::Nothing,
    }
}

impl Watch {
    /// Watches whether there is a file, a directory or nothing at `path`.
    pub fn kind(path: &Path) -> Self {
        Self { path: path.to_owned(), seen: kind_at(&Io::default(), path), settled: true }
    }

    /// Watches the content of the file, or the entries of the directory, at `path`. Take it before reading.
    pub fn exact(path: &Path) -> Self {
        let io = Io::default();
        let now = io.now_ns();
        match io.stat_target(path) {
            Ok(stat) => Self::of(path, &stat, is_settled(&stat, Guard::Ctime, now)),
            Err(_) => Self { path: path.to_owned(), seen: Seen::Nothing, settled: true },
        }
    }

    fn of(path: &Path, stat: &FileStat, settled: bool) -> Self {
        Self { path: path.to_owned(), seen: Seen::Exactly(Key::from(stat)), settled }
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether any later change would show.
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// Whether there was a file or a directory.
    pub fn is_there(&self) -> bool {
        self.seen != Seen::Nothing
    }

    /// Whether the path is still what it was.
    pub fn holds(&self) -> bool {
        let io = Io::default();
        match self.seen {
            Seen::Exactly(key) => io.stat_target(&self.path).is_ok_and(|stat| Key::from(&stat) == key),
            seen => kind_at(&io, &self.path) == seen,
        }
    }

    /// Appends the watch to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let path = self.path.as_os_str().as_encoded_bytes();
        out.extend(u32::try_from(path.len()).unwrap_or(0).to_le_bytes());
        out.extend(path);
        let kind: u8 = match self.seen {
            Seen::Nothing => 0,
            Seen::File => 1,
            Seen::Dir => 2,
            Seen::Exactly(_) => 3,
        };
        out.push(kind);
        if let Seen::Exactly(key) = self.seen {
            key.words().iter().for_each(|word| out.extend(word.to_le_bytes()));
        }
    }

    /// Takes a watch off the front of `bytes`; `None` when they hold none.
    pub fn decode(bytes: &mut &[u8]) -> Option<Self> {
        use std::os::unix::ffi::OsStrExt;
        let length = u32::from_le_bytes(bytes.split_off(..4)?.try_into().ok()?) as usize;
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(bytes.split_off(..length)?));
        let seen = match bytes.split_off(..1)?[0] {
            0 => Seen::Nothing,
            1 => Seen::File,
            2 => Seen::Dir,
            3 => {
                let words = bytes.split_off(..40)?;
                Seen::Exactly(Key::from_words(words))
            }
            _ => return None,
        };
        Some(Self { path, seen, settled: true })
    }
}

// Watches under which an artifact is at a path, from what the stat cache knows; `None` when it does not know it all, or a file
// has changed a moment ago.
impl Core {
    fn watch_file(&self, path: &Path, digest: &Digest) -> Option<Watch> {
        let stat = self.io.stat_target(path).ok().filter(|stat| stat.kind == FileKind::File)?;
        (self.stats.get(&stat) == Some(*digest)).then(|| Watch::of(path, &stat, true))
    }

    fn watch_dir(&self, dir: &Path, artifact: &Artifact) -> Option<Vec<Watch>> {
        let begun = self.io.now_ns();
        // A folder's stamp is from before it was listed, and an empty folder has one too.
        let (found, folders) = walk_folders(&self.io, dir, Links::Follow).ok()?;
        let settled = |stat: &FileStat| is_settled(stat, Guard::Ctime, begun);
        let mut watches: Vec<Watch> =
            folders.iter().map(|(folder, stat)| Watch::of(folder, stat, settled(stat))).collect();
        let mut files = Vec::new();
        for Found { relative, path, stat } in &found {
            let digest = self.stats.get(stat)?;
            watches.push(Watch::of(path, stat, true));
            files.push(TreeFile { path: relative.clone(), digest, bytes: stat.size });
        }
        let same = Digest::of(&Manifest::new(files).encode()) == artifact.digest;
        (same && watches.iter().all(Watch::is_settled)).then_some(watches)
    }

    fn watch_objects(&self, artifact: &Artifact) -> Option<Vec<Watch>> {
        let own = self.watch_file(&self.object_path(&artifact.digest), &artifact.digest)?;
        let mut watches = vec![own];
        if artifact.kind == ArtifactKind::Tree {
            for file in self.manifest(&artifact.digest).ok()?.files() {
                watches.push(self.watch_file(&self.object_path(&file.digest), &file.digest)?);
            }
        }
        Some(watches)
    }

    fn watch_published(&self, artifact: &Artifact, dest: &Path) -> Option<Vec<Watch>> {
        match artifact.kind {
            ArtifactKind::File => Some(vec![self.watch_file(dest, &artifact.digest)?]),
            ArtifactKind::Tree => {
                let manifest = self.manifest(&artifact.digest).ok()?;
                manifest.files().iter().map(|file| self.watch_file(&dest.join(&file.path), &file.digest)).collect()
            }
        }
    }
}

impl Store {
    /// Watches under which the file or directory `path` from outside is `artifact`. `None` when that cannot be vouched for
    /// without reading.
    pub fn watch_path(&self, path: &Path, artifact: &Artifact) -> Option<Vec<Watch>> {
        match artifact.kind {
            ArtifactKind::File => Some(vec![self.core().watch_file(path, &artifact.digest)?]),
            ArtifactKind::Tree => self.core().watch_dir(path, artifact),
        }
    }

    /// Watches under which every object of `artifact` is in the store and whole.
    pub fn watch_artifact(&self, artifact: &Artifact) -> Option<Vec<Watch>> {
        self.core().watch_objects(artifact)
    }

    /// Watches under which `dest` is a published copy of `artifact`.
    pub fn watch_published(&self, artifact: &Artifact, dest: &Path) -> Option<Vec<Watch>> {
        self.core().watch_published(artifact, dest)
    }

    /// Removes what [`Store::keep`] wrote; nothing there is fine.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn discard(&self, name: &Path) -> Result<(), StoreError> {
        self.core().io.remove_file(&self.core().root.join(name))
    }

    /// Writes a file below the store's root that is derived from other things and may be lost at any time, by one rename.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn keep(&self, name: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let core = self.core();
        let (temporary, target) = (core.temporary()?, core.root.join(name));
        core.io.make_dirs(target.parent().unwrap_or(&core.root))?;
        core.io.write_new(&temporary, bytes)?;
        core.io.rename(&temporary, &target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_sees_every_change_and_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        let nothing = Watch::kind(&file);
        let empty = Watch::exact(dir.path());
        std::fs::write(&file, "a").unwrap();
        assert!(!nothing.holds() && !empty.holds());
        std::thread::sleep(std::time::Duration::from_millis(30));
        let (exact, kind) = (Watch::exact(&file), Watch::kind(&file));
        assert!(exact.holds() && kind.holds() && exact.is_settled());
        std::fs::write(&file, "b").unwrap();
        assert!(!exact.holds() && kind.holds());
        assert!(!Watch::exact(&file).is_settled(), "it was written in this very moment");
        let mut bytes = Vec::new();
        [&exact, &kind, &nothing].iter().for_each(|watch| watch.encode(&mut bytes));
        let mut rest = &bytes[..];
        for watch in [&exact, &kind, &nothing] {
            let read = Watch::decode(&mut rest).unwrap();
            assert_eq!((read.path, read.seen), (watch.path.clone(), watch.seen));
        }
        assert!(rest.is_empty() && Watch::decode(&mut rest).is_none());
    }
}
