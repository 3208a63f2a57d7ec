//! Checkpoints from a hub that speaks Hugging Face's protocol, into the cache folder that its own library keeps.
//!
//! | call | what for | file |
//! |---|---|---|
//! | `GET /api/models/ID/revision/REV` | the commit that the revision names, and the files of it | [`choose`] says which a model needs |
//! | `HEAD /ID/resolve/COMMIT/FILE` | the file's digest and size: `X-Linked-Etag`, else `ETag` | [`wire`] |
//! | `GET /ID/resolve/COMMIT/FILE` | its bytes, from where an earlier try ended (`Range`) | [`blob`] |
//!
//! What is written, by [`layout`]: `models--ORG--NAME/blobs/ETAG` holds a file's bytes, `snapshots/COMMIT/FILE` is a link to them, and
//! `refs/REV` holds the commit. Whoever reads that folder (this program, transformers) never sees half of a model:
//!
//! - a blob grows as `ETAG.incomplete` and gets its name when size and digest are those the server named: SHA-256 for weights (an etag
//!   of 64 digits), Git's SHA-1 of a blob for the rest (40 digits). Any other etag names no digest, and the size alone is compared;
//! - `config.json`, by which a snapshot is recognised, is linked when all other files are there;
//! - the ref is written last.
//!
//! All calls after the first name the commit, so a branch that moves meanwhile mixes nothing. A cut or silent connection, 408, 429 and
//! 5xx are tried again with growing pauses, and bytes beyond the furthest so far start the count anew. Two programs that want one file wait for each
//! other at `.locks/models--ORG--NAME/ETAG.lock`, as the hub's own library does.
//!
//! The token goes to the endpoint's own host and nowhere else: downloads are redirected to hosts that get none.

mod blob;
mod choose;
mod layout;
mod wire;

use std::path::{Path, PathBuf};
use std::time::Duration;

use layout::Layout;
use reqwest::Url;
use wire::Wire;

/// The hub that is asked when nobody names another.
pub const ENDPOINT: &str = "https://huggingface.co";

/// A hub, and the cache folder for what comes from it.
pub struct Hub {
    wire: Wire,
    cache: PathBuf,
}

/// A file on its way.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// Its name.
    pub file: &'a str,
    /// Which it is, from 0.
    pub at: usize,
    /// How many files the model needs.
    pub of: usize,
    /// Bytes that are here.
    pub bytes: u64,
    /// Bytes of the whole file.
    pub size: u64,
}

/// A model that is there now.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The commit that the revision names.
    pub commit: String,
    /// The snapshot's folder.
    pub dir: PathBuf,
    /// The files of it that a model needs.
    pub files: Vec<String>,
    /// Bytes of them.
    pub bytes: u64,
    /// Bytes that came through the network.
    pub downloaded: u64,
}

/// Why a model did not come.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The endpoint is no address that may be asked.
    #[error("{0}")]
    Endpoint(String),
    /// Nobody answers, or not in time, or the server is out of order.
    #[error("{why}")]
    Unreachable {
        /// What happened last.
        why: String,
    },
    /// The server will not give it.
    #[error("{0}")]
    Refused(String),
    /// What came is not what the server named, twice.
    #[error("{file}: {why}, twice; what came was thrown away")]
    Damaged {
        /// The file.
        file: String,
        /// What differs.
        why: String,
    },
    /// The server's answer is none of the protocol.
    #[error("{0}")]
    Strange(String),
    /// The revision's files are no model that this program reads.
    #[error("{id} at {commit}: {why}")]
    NoModel {
        /// The model.
        id: String,
        /// The commit.
        commit: String,
        /// What is missing.
        why: String,
    },
    /// The cache folder.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl HubError {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    /// Whether the same command may do better later, or elsewhere.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Damaged { .. } | Self::Io { .. } | Self::Strange(_))
    }
}

impl Hub {
    /// The hub at `endpoint`, asked with `token` if there is one, for the cache folder `cache` (the one that holds `models--ORG--NAME`).
    ///
    /// # Errors
    /// The endpoint is no http or https address, or the token would go over a network unencrypted.
    pub fn new(endpoint: &str, token: Option<String>, cache: &Path) -> Result<Self, HubError> {
        Ok(Self { wire: Wire::new(endpoint, token)?, cache: cache.to_owned() })
    }

    /// Calls `tell` with the reason and the length of each pause of a second or more that the server asks for (`Retry-After`), before it.
    /// Pauses may take ten minutes.
    #[must_use]
    pub fn on_wait(mut self, tell: impl Fn(&str, Duration) + Send + Sync + 'static) -> Self {
        self.wire.on_wait = Box::new(tell);
        self
    }

    /// Brings `id` (`org/name`) at `revision` (a branch, a tag, a commit) into the cache; what is there already does not come again.
    ///
    /// # Errors
    /// The server is out of reach or refuses, the files are no model, or the cache folder cannot be written.
    pub async fn download(
        &self,
        id: &str,
        revision: &str,
        tell: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Fetched, HubError> {
        if revision.split('/').any(|part| part.is_empty() || part.starts_with('.')) {
            return Err(HubError::Refused(format!(
                "`{revision}` is no name of a revision: a branch, a tag or a commit"
            )));
        }
        let listed = self.wire.list(id, revision).await?;
        let no_model = |why: String| HubError::NoModel { id: id.to_owned(), commit: listed.commit.clone(), why };
        let layout = Layout::new(&self.cache, id, &listed.commit);
        let mut files = choose::beside_weights(&listed.files).map_err(no_model)?;
        let mut done =
            Fetched { commit: listed.commit.clone(), dir: layout.snapshot(), files: vec![], bytes: 0, downloaded: 0 };
        let mut at = 0;
        while let Some(file) = files.get(at).cloned() {
            let url = self.wire.file(id, &listed.commit, &file)?;
            let mut tell = |bytes, size| tell(Progress { file: &file, at, of: files.len(), bytes, size });
            let blob = self.bring(&layout, &file, &url, &listed.commit, &mut tell).await?;
            (done.bytes, done.downloaded) = (done.bytes + blob.size, done.downloaded + blob.downloaded);
            if file == choose::INDEX {
                let index = std::fs::read(&blob.path).map_err(HubError::io(&blob.path))?;
                let shards = choose::shards(&index, &listed.files).map_err(no_model)?;
                files.splice(at + 1..at + 1, shards);
            }
            at += 1;
        }
        if revision != listed.commit {
            layout.name(revision)?;
        }
        Ok(Fetched { files, ..done })
    }

    /// One file: its blob, and the snapshot's link to it.
    async fn bring(
        &self,
        layout: &Layout,
        file: &str,
        url: &Url,
        commit: &str,
        tell: &mut dyn FnMut(u64, u64),
    ) -> Result<blob::Blob, HubError> {
        let known = self.wire.look(url, commit).await?;
        let blob = blob::bring(&self.wire, layout, file, url, &known, tell).await?;
        layout.link(file, &known.etag)?;
        Ok(blob)
    }
}
