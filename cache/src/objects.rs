//! Objects: read-only files named by the BLAKE3 of their bytes, and trees as manifests of objects.
//!
//! An object appears by one rename of a finished file, so it is whole or absent. It is checked by size and stat key before
//! it is trusted, and hashed when they differ from what is remembered; a damaged one is moved to `quarantine/` and counts
//! as absent.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use crate::census::Claim;
use crate::core::{Core, Damage};
use crate::io::{FileKind, FileStat};
use crate::manifest::{Found, Links, Manifest, TreeFile, walk};
use crate::statcache::{Guard, is_settled};
use crate::{Artifact, ArtifactKind, Digest, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

const READ_ONLY: u32 = 0o444;

/// How far a check goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// A remembered stat key is enough.
    StatKey,
    /// A remembered stat key of content that this process has hashed itself; anything else is hashed. For what is about to
    /// be published: after a power cut a stat key may have outlived the bytes it stood for.
    Witness,
    /// Every byte is hashed.
    Nothing,
}

fn regular(path: &Path, stat: Option<FileStat>) -> Result<FileStat> {
    match stat {
        None => Err(StoreError::io("examine", path, std::io::ErrorKind::NotFound.into())),
        Some(stat) => match stat.kind {
            FileKind::File => Ok(stat),
            FileKind::Dir => Err(StoreError::refused(path, "it is a directory; a file was expected")),
            FileKind::Link => Err(StoreError::refused(path, "it is a link; write a regular file")),
            FileKind::Other => Err(StoreError::refused(path, "it is not a regular file")),
        },
    }
}

impl Core {
    pub(crate) fn object_path(&self, digest: &Digest) -> PathBuf {
        self.fanned("objects", digest)
    }

    pub(crate) fn missing(&self, digest: &Digest) -> StoreError {
        StoreError::Missing { digest: *digest, path: self.object_path(digest) }
    }

    /// Takes a file into the store: it is moved, not copied, unless something else links to it.
    pub(crate) fn put_file(&self, path: &Path) -> Result<Artifact> {
        let (artifact, left) = self.take_file(path)?;
        if left {
            self.io.remove_file(path)?;
        }
        Ok(artifact)
    }

    /// [`Core::put_file`], but a file whose content the store already had stays where it is; whether it did.
    pub(crate) fn take_file(&self, path: &Path) -> Result<(Artifact, bool)> {
        let stat = regular(path, self.io.stat(path)?)?;
        // Another name of the same bytes could stay writable, or be a store object already: take a copy of our own.
        if stat.links > 1 {
            return Ok((self.put_copy(path)?, false));
        }
        match self.move_in_if(path, |_| true) {
            Err(error) if error.io_kind() == Some(std::io::ErrorKind::CrossesDevices) => {
                Ok((self.put_copy(path)?, false))
            }
            result => Ok(result?.expect("any digest will do")),
        }
    }

    fn put_copy(&self, path: &Path) -> Result<Artifact> {
        let copy = self.temporary()?;
        self.io.copy(path, &copy)?;
        let artifact = self.move_in(&copy)?;
        self.io.remove_file(path)?;
        Ok(artifact)
    }

    fn move_in(&self, path: &Path) -> Result<Artifact> {
        let (artifact, left) = self.move_in_if(path, |_| true)?.expect("any digest will do");
        if left {
            self.io.remove_file(path)?;
        }
        Ok(artifact)
    }

    /// Takes a file of this writer's own as the object `digest`; when its content is another, it is removed and the answer
    /// is `false`.
    #[cfg(feature = "remote")]
    pub(crate) fn take_as(&self, path: &Path, digest: &Digest) -> Result<bool> {
        let taken = self.move_in_if(path, |found| found == digest)?;
        if taken.is_none_or(|(_, left)| left) {
            self.io.remove_file(path)?;
        }
        Ok(taken.is_some())
    }

    /// The size of an object's file.
    #[cfg(feature = "remote")]
    pub(crate) fn object_size(&self, digest: &Digest) -> Result<u64> {
        let stat = self.io.stat(&self.object_path(digest))?;
        stat.map(|stat| stat.size).ok_or_else(|| self.missing(digest))
    }

    /// Moves a file to where its content belongs, if that is `wanted`; whether it was left, because the store has it already.
    fn move_in_if(&self, path: &Path, wanted: impl FnOnce(&Digest) -> bool) -> Result<Option<(Artifact, bool)>> {
        self.io.set_mode(path, READ_ONLY)?;
        let start_ns = self.io.now_ns();
        let before = regular(path, self.io.stat(path)?)?;
        let digest = self.io.hash(path)?;
        if !wanted(&digest) {
            return Ok(None);
        }
        let artifact = Artifact { kind: ArtifactKind::File, digest, bytes: before.size };
        let object = self.object_path(&digest);
        if self.check_object(&digest, Some(before.size), Trust::Witness)? {
            return Ok(Some((artifact, true)));
        }
        self.io.make_dirs(object.parent().expect("objects lie in a directory"))?;
        self.io.sync_network(path)?;
        self.io.rename(path, &object)?;
        self.witness(&digest);
        self.settle(&object, digest, &before, start_ns)?;
        Ok(Some((artifact, false)))
    }

    /// After the rename: was the file still what was hashed?
    fn settle(&self, object: &Path, digest: Digest, before: &FileStat, start_ns: i64) -> Result<()> {
        let after = self.io.stat(object)?.ok_or_else(|| self.missing(&digest))?;
        if after.ino != before.ino {
            // Another writer put the same content in the same moment; its file stands.
            return Ok(());
        }
        if (after.size, after.mtime_ns) != (before.size, before.mtime_ns) {
            self.quarantine(object)?;
            return Err(StoreError::Changed { path: object.to_owned() });
        }
        if is_settled(before, Guard::Mtime, start_ns) {
            self.stats.remember(&[(after, digest)]);
        }
        Ok(())
    }

    pub(crate) fn put_bytes(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if !self.check_object(&digest, Some(bytes.len() as u64), Trust::Witness)? {
            let temporary = self.temporary()?;
            self.io.write_new(&temporary, bytes)?;
            self.move_in(&temporary)?;
        }
        Ok(digest)
    }

    /// Takes the content of a directory into the store, then removes the directory.
    pub(crate) fn put_tree(&self, dir: &Path) -> Result<Artifact> {
        let found = walk(&self.io, dir, Links::Refuse)?;
        let files = found
            .par_iter()
            .map(|Found { relative, path, .. }| {
                let Artifact { digest, bytes, .. } = self.put_file(path)?;
                Ok(TreeFile { path: relative.clone(), digest, bytes })
            })
            .collect::<Result<Vec<_>>>()?;
        let manifest = Manifest::new(files);
        let digest = self.put_bytes(&manifest.encode())?;
        self.io.remove_tree(dir)?;
        Ok(Artifact { kind: ArtifactKind::Tree, digest, bytes: manifest.bytes() })
    }

    /// The artifact that a file or directory anywhere is, without taking it.
    pub(crate) fn digest_path(&self, path: &Path, guard: Guard, links: Links) -> Result<Artifact> {
        let stat = self.io.stat_target(path)?;
        match stat.kind {
            FileKind::File => {
                let (digest, bytes) = self.stats.digest(path, guard)?;
                Ok(Artifact { kind: ArtifactKind::File, digest, bytes })
            }
            FileKind::Dir => self.digest_dir(path, guard, links),
            _ => Err(StoreError::refused(path, "it is neither a file nor a directory")),
        }
    }

    fn digest_dir(&self, dir: &Path, guard: Guard, links: Links) -> Result<Artifact> {
        let found = walk(&self.io, dir, links)?;
        let files = found
            .par_iter()
            .map(|Found { relative, path, stat }| {
                let known = self.stats.get(stat).map(|digest| (digest, stat.size));
                let (digest, bytes) = known.map_or_else(|| self.stats.hash(path, guard), Ok)?;
                Ok(TreeFile { path: relative.clone(), digest, bytes })
            })
            .collect::<Result<Vec<_>>>()?;
        let manifest = Manifest::new(files);
        Ok(Artifact { kind: ArtifactKind::Tree, digest: Digest::of(&manifest.encode()), bytes: manifest.bytes() })
    }

    fn witness(&self, digest: &Digest) {
        self.witnessed.lock().expect("no panic while witnesses are held").insert(*digest);
    }

    fn knows(&self, stat: &FileStat, digest: &Digest, trust: Trust) -> bool {
        let witnessed = || self.witnessed.lock().expect("no panic while witnesses are held").contains(digest);
        match trust {
            Trust::Nothing => false,
            Trust::StatKey => self.stats.get(stat) == Some(*digest),
            Trust::Witness => self.stats.get(stat) == Some(*digest) && witnessed(),
        }
    }

    /// Whether the object is there and whole; a damaged one is moved away.
    pub(crate) fn check_object(&self, digest: &Digest, size: Option<u64>, trust: Trust) -> Result<bool> {
        match self.io.stat(&self.object_path(digest))? {
            Some(stat) => self.check_seen(digest, &stat, size, trust),
            None => Ok(false),
        }
    }

    /// [`Core::check_object`] of an object whose metadata is `stat`.
    pub(crate) fn check_seen(&self, digest: &Digest, stat: &FileStat, size: Option<u64>, trust: Trust) -> Result<bool> {
        let path = self.object_path(digest);
        if stat.kind != FileKind::File || size.is_some_and(|size| size != stat.size) {
            self.quarantine(&path)?;
            return Ok(false);
        }
        if self.knows(stat, digest, trust) {
            return Ok(true);
        }
        match self.stats.hash(&path, Guard::Mtime) {
            Ok((found, _)) if found == *digest => {
                self.witness(digest);
                Ok(true)
            }
            Ok(_) => self.quarantine(&path).map(|_| false),
            // Another process moved it away in between.
            Err(error) if error.io_kind() == Some(std::io::ErrorKind::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether every object of an artifact is there and whole.
    pub(crate) fn check(&self, artifact: &Artifact, trust: Trust) -> Result<bool> {
        match artifact.kind {
            ArtifactKind::File => self.check_object(&artifact.digest, Some(artifact.bytes), trust),
            ArtifactKind::Tree => {
                if !self.check_object(&artifact.digest, None, trust)? {
                    return Ok(false);
                }
                let manifest = self.manifest(&artifact.digest)?;
                let checks = manifest.files().par_iter().map(|f| self.check_object(&f.digest, Some(f.bytes), trust));
                // All are checked even after a failure, so that one look finds all the damage.
                Ok(checks.collect::<Result<Vec<_>>>()?.into_iter().all(|whole| whole))
            }
        }
    }

    /// Moves a damaged file or directory out of the way, for a person to look at.
    pub(crate) fn quarantine(&self, path: &Path) -> Result<PathBuf> {
        let dir = self.root.join("quarantine");
        self.io.make_dirs(&dir)?;
        let parts = path.strip_prefix(&self.root).unwrap_or(path).components();
        let name: Vec<_> = parts.map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
        let target = dir.join(format!("{}.{}-{}", name.join("-"), self.writer, self.next()));
        match self.io.rename(path, &target) {
            // Another process was quicker.
            Err(error) if error.io_kind() == Some(std::io::ErrorKind::NotFound) => Ok(target),
            Err(error) => Err(error),
            Ok(()) => {
                let damage = Damage { path: path.to_owned(), quarantined: target.clone() };
                self.damage.lock().expect("no panic while damage is held").push(damage);
                Ok(target)
            }
        }
    }

    /// The bytes of an object, always verified.
    pub(crate) fn read(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = self.object_path(digest);
        let bytes = self.io.read(&path)?.ok_or_else(|| self.missing(digest))?;
        if Digest::of(&bytes) != *digest {
            self.quarantine(&path)?;
            return Err(self.missing(digest));
        }
        Ok(bytes)
    }

    fn read_manifest(&self, digest: &Digest) -> Result<Manifest> {
        let malformed = |what| StoreError::Malformed { path: self.object_path(digest), what };
        Manifest::decode(&self.read(digest)?).map_err(malformed)
    }

    /// Every object that an artifact is made of, its manifest included, each with the size it must have. Nothing of it is
    /// remembered: for who looks at all there is.
    pub(crate) fn claims_of(&self, artifact: &Artifact) -> Result<Vec<Claim>> {
        match artifact.kind {
            ArtifactKind::File => Ok(vec![(artifact.digest, Some(artifact.bytes))]),
            ArtifactKind::Tree => {
                let manifest = self.read_manifest(&artifact.digest)?;
                let files = manifest.files().iter().map(|file| (file.digest, Some(file.bytes)));
                Ok(files.chain([(artifact.digest, None)]).collect())
            }
        }
    }

    /// A tree's manifest.
    pub(crate) fn manifest(&self, digest: &Digest) -> Result<Arc<Manifest>> {
        let cached = self.manifests.lock().expect("no panic while manifests are held").get(digest).cloned();
        if let Some(manifest) = cached {
            return Ok(manifest);
        }
        let manifest = Arc::new(self.read_manifest(digest)?);
        let mut manifests = self.manifests.lock().expect("no panic while manifests are held");
        Ok(manifests.entry(*digest).or_insert(manifest).clone())
    }
}
