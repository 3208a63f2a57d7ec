//! The cache folder as `huggingface_hub` lays it out. Everything appears by a rename, so a reader sees all of it or nothing.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::HubError;

/// How often a lock is tried for.
const LOCK_POLL: Duration = Duration::from_millis(200);

/// One model's part of the cache, for one commit.
pub(super) struct Layout {
    cache: PathBuf,
    folder: String,
    commit: String,
}

impl Layout {
    pub(super) fn new(cache: &Path, id: &str, commit: &str) -> Self {
        let folder = format!("models--{}", id.replace('/', "--"));
        Self { cache: cache.to_owned(), folder, commit: commit.to_owned() }
    }

    /// The folder that holds a model's files.
    pub(super) fn snapshot(&self) -> PathBuf {
        self.cache.join(&self.folder).join("snapshots").join(&self.commit)
    }

    /// Where a file's bytes lie when they are all there.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.cache.join(&self.folder).join("blobs").join(etag)
    }

    /// Where they grow.
    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.blob(&format!("{etag}.incomplete"))
    }

    /// Waits until nobody else brings this blob; held as long as the file is open.
    pub(super) async fn lock(&self, etag: &str) -> Result<File, HubError> {
        let path = self.cache.join(".locks").join(&self.folder).join(format!("{etag}.lock"));
        create_parent(&path)?;
        let file = File::create(&path).map_err(HubError::io(&path))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_POLL).await,
                Err(TryLockError::Error(error)) => return Err(HubError::io(&path)(error)),
            }
        }
    }

    /// Makes `file` of the snapshot a link to the blob.
    pub(super) fn link(&self, file: &str, etag: &str) -> Result<(), HubError> {
        let (snapshot, target) = (self.snapshot(), Path::new("../../blobs").join(etag));
        let link = snapshot.join(file);
        if fs::read_link(&link).is_ok_and(|there| there == target) {
            return Ok(());
        }
        let aside = snapshot.join(format!(".{file}.{}", std::process::id()));
        create_parent(&link)?;
        let _ = fs::remove_file(&aside);
        symlink(target, &aside).map_err(HubError::io(&aside))?;
        fs::rename(&aside, &link).map_err(HubError::io(&link))
    }

    /// Makes `revision` the name of the commit.
    pub(super) fn name(&self, revision: &str) -> Result<(), HubError> {
        let path = self.cache.join(&self.folder).join("refs").join(revision);
        if fs::read_to_string(&path).is_ok_and(|commit| commit == self.commit) {
            return Ok(());
        }
        create_parent(&path)?;
        let aside = path.with_file_name(format!(".{}", std::process::id()));
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&aside)?;
            file.write_all(self.commit.as_bytes())?;
            file.sync_all()
        };
        write().map_err(HubError::io(&aside))?;
        fs::rename(&aside, &path).map_err(HubError::io(&path))
    }
}

/// Makes the folder that is to hold `path`.
pub(super) fn create_parent(path: &Path) -> Result<(), HubError> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(HubError::io(folder))
}
