//! Artifacts as paths: where a stage reads one, and the copies that `publish` puts in the workspace.
//!
//! | | in the store (`locate`) | in the workspace (`materialise`) |
//! |---|---|---|
//! | a file | the object itself | reflink or copy |
//! | a tree | `trees/ab/cdef..`: reflinks, else hard links, else copies of its objects, read-only | reflink or copy, file by file |
//! | appears | by one rename of the finished directory | each file by one rename |
//! | writable | never | yes: never a hard link, so editing it cannot damage an object |
//!
//! A published tree shares its directory with whatever else lies there: only files that an earlier publication put there,
//! and nobody changed since, are removed.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use rayon::prelude::*;

use crate::core::Core;
use crate::io::{FileKind, FileStat};
use crate::manifest::{Links, Manifest, TreeFile};
use crate::objects::Trust;
use crate::statcache::Guard;
use crate::{Artifact, ArtifactKind, Digest, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

const DIR_READ_ONLY: u32 = 0o555;

fn path_key(path: &Path) -> Digest {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    Digest::of(absolute.as_os_str().as_encoded_bytes())
}

fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl Core {
    pub(crate) fn tree_path(&self, digest: &Digest) -> PathBuf {
        self.fanned("trees", digest)
    }

    /// A read-only path with the artifact's content.
    pub(crate) fn locate(&self, artifact: &Artifact) -> Result<PathBuf> {
        match artifact.kind {
            ArtifactKind::File if self.check(artifact, Trust::StatKey)? => Ok(self.object_path(&artifact.digest)),
            ArtifactKind::File => Err(self.missing(&artifact.digest)),
            ArtifactKind::Tree => self.locate_tree(artifact),
        }
    }

    fn locate_tree(&self, artifact: &Artifact) -> Result<PathBuf> {
        let dir = self.tree_path(&artifact.digest);
        if let Some(stat) = self.io.stat(&dir)? {
            match self.digest_path(&dir, Guard::Mtime, Links::Refuse) {
                Ok(found) if found.digest == artifact.digest => {
                    // Whoever built it died between its rename, for which it must be writable, and this.
                    if stat.mode != DIR_READ_ONLY {
                        self.io.set_mode(&dir, DIR_READ_ONLY)?;
                    }
                    return Ok(dir);
                }
                _ => self.discard_tree(&dir)?,
            }
        }
        if !self.check(artifact, Trust::StatKey)? {
            return Err(self.missing(&artifact.digest));
        }
        self.build_tree(&dir, &artifact.digest)?;
        Ok(dir)
    }

    /// Moves a damaged tree directory away. Its files may share inodes with objects: those are checked by their own keys.
    fn discard_tree(&self, dir: &Path) -> Result<()> {
        // Moving a directory changes its `..`, for which it must be writable.
        match self.io.set_mode(dir, 0o755) {
            Err(error) if error.io_kind() == Some(ErrorKind::NotFound) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.quarantine(dir).map(|_| ()),
        }
    }

    /// Removes a tree directory: out of sight first, so that a kill in the middle leaves no half of it.
    pub(crate) fn drop_tree(&self, dir: &Path) -> Result<()> {
        let doomed = self.temporary()?;
        self.io.set_mode(dir, 0o755)?;
        self.io.rename(dir, &doomed)?;
        self.io.remove_tree(&doomed)
    }

    fn build_tree(&self, dir: &Path, digest: &Digest) -> Result<()> {
        let manifest = self.manifest(digest)?;
        let temporary = self.temporary()?;
        self.make_tree_dirs(&temporary, &manifest)?;
        let linked = manifest
            .files()
            .par_iter()
            .map(|file| self.link_file(file, &temporary.join(&file.path)))
            .collect::<Result<Vec<_>>>()?;
        self.stats.remember(&linked.into_iter().flatten().collect::<Vec<_>>());
        for inner in tree_dirs(&manifest) {
            self.io.set_mode(&temporary.join(inner), DIR_READ_ONLY)?;
        }
        self.io.make_dirs(parent_of(dir))?;
        match self.io.rename(&temporary, dir) {
            Ok(()) => self.io.set_mode(dir, DIR_READ_ONLY),
            // Another process built the same tree first.
            Err(_) if self.io.stat(dir)?.is_some() => self.io.remove_tree(&temporary),
            Err(error) => Err(error),
        }
    }

    fn make_tree_dirs(&self, root: &Path, manifest: &Manifest) -> Result<()> {
        self.io.make_dirs(root)?;
        tree_dirs(manifest).into_iter().rev().try_for_each(|dir| self.io.make_dirs(&root.join(dir)))
    }

    /// Puts an object at `target` without copying if possible. Linking renews the object's ctime, so its new metadata is
    /// returned for the stat cache when its content was known before and did not change.
    fn link_file(&self, file: &TreeFile, target: &Path) -> Result<Option<(FileStat, Digest)>> {
        let object = self.object_path(&file.digest);
        if self.try_reflink(&object, target) {
            self.io.set_mode(target, 0o444)?;
            return Ok(None);
        }
        let before = self.io.stat(&object)?.ok_or_else(|| self.missing(&file.digest))?;
        if self.io.hard_link(&object, target).is_err() {
            self.io.copy(&object, target)?;
            self.io.set_mode(target, 0o444)?;
            return Ok(None);
        }
        let after = self.io.stat(&object)?.ok_or_else(|| self.missing(&file.digest))?;
        let same = (before.ino, before.size, before.mtime_ns) == (after.ino, after.size, after.mtime_ns);
        let known = same && self.stats.get(&before) == Some(file.digest);
        Ok(known.then_some((after, file.digest)))
    }

    /// Whether a reflink was made; a file system that refuses once is not asked again.
    fn try_reflink(&self, from: &Path, to: &Path) -> bool {
        if !self.reflinks.load(Ordering::Relaxed) {
            return false;
        }
        let made = self.io.reflink(from, to).is_ok();
        if !made {
            self.reflinks.store(false, Ordering::Relaxed);
        }
        made
    }

    /// Puts a writable copy of the artifact at `dest`. A `spare` is a file of this process with the same content, on the
    /// store's file system, that becomes the copy where it can.
    pub(crate) fn materialise(&self, artifact: &Artifact, dest: &Path, spare: Option<&Path>) -> Result<()> {
        if !self.check(artifact, Trust::StatKey)? {
            return Err(self.missing(&artifact.digest));
        }
        match artifact.kind {
            ArtifactKind::File => self.place(&artifact.digest, dest, spare)?,
            ArtifactKind::Tree => self.place_tree(&artifact.digest, dest)?,
        }
        let key = path_key(dest);
        if self.published.get(&key)? != Some(artifact.digest) {
            self.published.set(key, artifact.digest)?;
        }
        Ok(())
    }

    fn place(&self, digest: &Digest, dest: &Path, spare: Option<&Path>) -> Result<()> {
        if self.is_same_file(digest, dest) {
            return Ok(());
        }
        let name = dest.file_name().ok_or_else(|| StoreError::refused(dest, "it names no file"))?;
        let parent = parent_of(dest);
        self.io.make_dirs(parent)?;
        // In the store's own folder nothing stays behind when this process dies; across file systems no rename leads out.
        if self.io.stat_target(parent)?.dev == self.io.stat_target(&self.root)?.dev {
            if let Some(spare) = spare {
                self.io.set_mode(spare, 0o644)?;
                if self.io.rename(spare, dest).is_ok() {
                    return Ok(());
                }
            }
            match self.place_by_way_of(&self.temporary()?, digest, dest, true) {
                Err(error) if error.io_kind() == Some(ErrorKind::CrossesDevices) => {}
                result => return result,
            }
        }
        let hidden = format!(".{}.mpcc-{}-{}", name.to_string_lossy(), self.writer, self.next());
        self.place_by_way_of(&parent.join(hidden), digest, dest, false)
    }

    /// `at_home`: the copy is made on the store's own file system.
    fn place_by_way_of(&self, temporary: &Path, digest: &Digest, dest: &Path, at_home: bool) -> Result<()> {
        let object = self.object_path(digest);
        let placed = self.copy_out(&object, temporary, at_home).and_then(|()| self.io.rename(temporary, dest));
        if placed.is_err() {
            // What is left of the copy is not worth hiding the first error.
            let _ = self.io.remove_file(temporary);
        }
        placed
    }

    fn copy_out(&self, object: &Path, to: &Path, at_home: bool) -> Result<()> {
        // Another file system may know reflinks although the store's does not: there they are tried afresh.
        let made = if at_home { self.try_reflink(object, to) } else { self.io.reflink(object, to).is_ok() };
        if !made {
            self.io.copy(object, to)?;
        }
        self.io.set_mode(to, 0o644)
    }

    fn place_tree(&self, digest: &Digest, dest: &Path) -> Result<()> {
        let manifest = self.manifest(digest)?;
        self.io.make_dirs(dest)?;
        manifest.files().par_iter().try_for_each(|file| self.place(&file.digest, &dest.join(&file.path), None))?;
        let Some(previous) = self.published.get(&path_key(dest))?.filter(|previous| previous != digest) else {
            return Ok(());
        };
        // An earlier manifest that is gone only means that its files stay.
        let Ok(previous) = self.manifest(&previous) else { return Ok(()) };
        self.remove_stale(&previous, &manifest, dest)
    }

    fn remove_stale(&self, previous: &Manifest, current: &Manifest, dest: &Path) -> Result<()> {
        let kept = |file: &TreeFile| current.files().binary_search_by(|other| other.path.cmp(&file.path)).is_ok();
        for file in previous.files().iter().filter(|file| !kept(file)) {
            let path = dest.join(&file.path);
            if self.is_same_file(&file.digest, &path) {
                self.io.remove_file(&path)?;
            }
        }
        for dir in tree_dirs(previous) {
            // Fails where something else lies in it, as it should.
            let _ = self.io.remove_dir(&dest.join(dir));
        }
        Ok(())
    }

    fn is_same_file(&self, digest: &Digest, path: &Path) -> bool {
        let regular = matches!(self.io.stat(path), Ok(Some(stat)) if stat.kind == FileKind::File);
        regular && matches!(self.stats.digest(path, Guard::Ctime), Ok((found, _)) if found == *digest)
    }

    /// Whether the workspace copy at `dest` is there and unchanged.
    pub(crate) fn is_published(&self, artifact: &Artifact, dest: &Path) -> bool {
        match artifact.kind {
            ArtifactKind::File => self.is_same_file(&artifact.digest, dest),
            ArtifactKind::Tree => self.manifest(&artifact.digest).is_ok_and(|manifest| {
                let mut files = manifest.files().iter();
                dest.is_dir() && files.all(|file| self.is_same_file(&file.digest, &dest.join(&file.path)))
            }),
        }
    }
}

/// The directories inside a tree, deeper ones before those that hold them.
fn tree_dirs(manifest: &Manifest) -> Vec<&str> {
    let above =
        |path| std::iter::successors(Some(path), |path: &&str| path.rsplit_once('/').map(|(dir, _)| dir)).skip(1);
    let dirs: std::collections::BTreeSet<&str> = manifest.files().iter().flat_map(|f| above(f.path.as_str())).collect();
    // A directory sorts before what lies below it.
    dirs.into_iter().rev().collect()
}
