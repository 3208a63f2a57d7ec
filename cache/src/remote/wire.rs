//! Every request to the remote goes through [`Wire`]: one place for error texts, one bound on what is under way, one seam for
//! injected faults.

use std::ops::Range;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::address::Address;
use super::error::{says_cut, says_no_bucket, told};
use super::{RemoteOptions, Result};
use crate::io::{Faults, Op, Verdict};

/// The most bytes that one request moves, and that are held in memory for it.
pub(super) const PART: u64 = 8 << 20;

/// Large objects that are moved at once, each with a few parts in memory.
const LARGE_AT_ONCE: usize = 2;

const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// The content of a key.
pub(super) enum Body {
    /// All of it.
    Small(Vec<u8>),
    /// It has this many bytes, more than a part: read it range by range.
    Large(u64),
}

/// The remote, request by request.
pub(super) struct Wire {
    store: Arc<dyn ObjectStore>,
    address: Address,
    /// Requests under way.
    requests: Semaphore,
    /// Contents of one part in memory.
    held: Semaphore,
    /// Large objects under way.
    large: Semaphore,
    patience: Duration,
    /// Whether the server creates only what is absent.
    conditional: bool,
    faults: Option<Arc<dyn Faults>>,
}

type Raw<T> = std::result::Result<T, Error>;

fn injected(error: std::io::Error) -> Error {
    Error::Generic { store: "test", source: error.into() }
}

impl Wire {
    pub(super) fn new(address: Address, options: &RemoteOptions) -> Result<Self> {
        Ok(Self {
            store: address.client(options)?,
            address,
            requests: Semaphore::new(options.transfers.max(1)),
            held: Semaphore::new(options.transfers.max(1)),
            large: Semaphore::new(LARGE_AT_ONCE),
            patience: options.patience,
            conditional: false,
            faults: options.faults.clone(),
        })
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    pub(super) fn conditional(&self) -> bool {
        self.conditional
    }

    fn path(&self, key: &str) -> Path {
        key.split('/').fold(self.address.prefix.clone(), Path::join)
    }

    /// The right to hold the content of an object of one part in memory.
    pub(super) async fn hold(&self) -> SemaphorePermit<'_> {
        self.held.acquire().await.expect("never closed")
    }

    /// The right to move a large object.
    pub(super) async fn hold_large(&self) -> SemaphorePermit<'_> {
        self.large.acquire().await.expect("never closed")
    }

    /// Makes a request as soon as there may be another one.
    async fn once<T>(&self, op: Op, key: &str, request: impl Future<Output = Raw<T>>) -> Raw<T> {
        let _request = self.requests.acquire().await.expect("never closed");
        self.pass(op, key)?;
        request.await
    }

    /// Makes a request that may be repeated. The client itself repeats those that got no answer; an answer that breaks off
    /// in its middle is left to us.
    async fn act<T, F: Future<Output = Raw<T>>>(&self, op: Op, key: &str, request: impl Fn() -> F) -> Raw<T> {
        let (began, mut pause) = (Instant::now(), Duration::from_millis(100));
        loop {
            match self.once(op, key, request()).await {
                Err(error) if says_cut(&told(&error)) && began.elapsed() < self.patience => {
                    tokio::time::sleep(pause).await;
                    pause = LONGEST_PAUSE.min(pause * 2);
                }
                result => return result,
            }
        }
    }

    fn pass(&self, op: Op, key: &str) -> Raw<()> {
        match self.faults.as_ref().map_or(Verdict::Pass, |faults| faults.before(op, FilePath::new(key))) {
            Verdict::Pass => Ok(()),
            Verdict::Tear(_) => Err(injected(std::io::Error::other("torn"))),
            Verdict::Fail(error) => Err(injected(error)),
        }
    }

    fn told<T>(&self, op: &str, key: &str, result: Raw<T>) -> Result<T> {
        result.map_err(|error| self.address.explain(op, key, &error))
    }

    /// `None` for a key that is not there, in a bucket that is.
    fn absent_is_none<T>(&self, op: &str, key: &str, result: Raw<T>) -> Result<Option<T>> {
        match result {
            Err(error @ Error::NotFound { .. }) if !says_no_bucket(&told(&error)) => Ok(None),
            result => self.told(op, key, result).map(Some),
        }
    }

    /// Looks whether the bucket is there and lets us look.
    pub(super) async fn look_in(&self) -> Result<()> {
        let prefix = &self.address.prefix;
        let listed = self.act(Op::List, "", || self.store.list_with_delimiter(Some(prefix))).await;
        self.told("list", "it", listed).map(|_| ())
    }

    /// Finds out whether the server creates only what is absent: some ignore the condition without a word. The key stays, so
    /// that the next one needs a single request, and that nobody takes it away between another's two.
    pub(super) async fn probe(&mut self) -> Result<()> {
        let key = self.path("probe");
        for _ in 0..2 {
            let put = self.store.put_opts(&key, PutPayload::from_static(b"probe\n"), PutMode::Create.into());
            match self.once(Op::Write(6), "probe", put).await {
                Ok(_) => {}
                Err(Error::AlreadyExists { .. }) => {
                    self.conditional = true;
                    break;
                }
                // A server that does not know the condition may refuse it in its own way; then a plain put must do.
                Err(_) => {
                    self.put("probe", b"probe\n".to_vec()).await?;
                    break;
                }
            }
        }
        Ok(())
    }

    /// The keys below a folder, without the prefix, and their sizes.
    pub(super) async fn list(&self, folder: &str) -> Result<Vec<(String, u64)>> {
        let path = self.path(folder);
        let listed = self.act(Op::List, folder, || self.store.list(Some(&path)).try_collect::<Vec<_>>()).await;
        let found = self.absent_is_none("list", folder, listed)?.unwrap_or_default();
        let relative = |location: &Path| {
            let parts = location.prefix_match(&self.address.prefix)?;
            Some(parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/"))
        };
        Ok(found.into_iter().filter_map(|meta| Some((relative(&meta.location)?, meta.size))).collect())
    }

    /// The size of a key's content, if it is there.
    pub(super) async fn size(&self, key: &str) -> Result<Option<u64>> {
        let path = self.path(key);
        let found = self.act(Op::Stat, key, || self.store.head(&path)).await;
        Ok(self.absent_is_none("look for", key, found)?.map(|meta| meta.size))
    }

    /// The content of a key, if it is there.
    pub(super) async fn get(&self, key: &str) -> Result<Option<Body>> {
        let path = self.path(key);
        let request = || async {
            let answer = self.store.get(&path).await?;
            match answer.meta.size {
                size if size > PART => Ok(Body::Large(size)),
                _ => Ok(Body::Small(answer.bytes().await?.into())),
            }
        };
        let got = self.act(Op::Read, key, request).await;
        self.absent_is_none("read", key, got)
    }

    /// A range of a key's content, if the key is there.
    pub(super) async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Vec<u8>>> {
        let path = self.path(key);
        let got = self.act(Op::Read, key, || self.store.get_range(&path, range.clone())).await;
        Ok(self.absent_is_none("read", key, got)?.map(Into::into))
    }

    /// Writes a key's content, whatever is there.
    pub(super) async fn put(&self, key: &str, bytes: Vec<u8>) -> Result<()> {
        let (path, payload) = (self.path(key), PutPayload::from(bytes));
        let op = Op::Write(payload.content_length());
        let put = self.act(op, key, || self.store.put(&path, payload.clone())).await;
        self.told("write", key, put).map(|_| ())
    }

    /// Writes a key's content unless it is there; `false` when it was. Where the server cannot tell, it is written.
    pub(super) async fn create(&self, key: &str, bytes: Vec<u8>) -> Result<bool> {
        if !self.conditional {
            return self.put(key, bytes).await.map(|()| true);
        }
        let (path, length, began) = (self.path(key), bytes.len(), Instant::now());
        let payload = PutPayload::from(bytes.clone());
        let put = self.store.put_opts(&path, payload, PutOptions::from(PutMode::Create));
        match self.once(Op::Write(length), key, put).await {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. }) => Ok(false),
            // A conditional request that was cut is not repeated by the client, since it may have been carried out; the
            // same bytes may be written again.
            Err(Error::Generic { .. }) if began.elapsed() < self.patience => self.put(key, bytes).await.map(|()| true),
            Err(error) => Err(self.address.explain("write", key, &error)),
        }
    }

    /// Begins to write a key's content part by part; nothing is to be seen of it until it is complete.
    pub(super) async fn begin_parts(&self, key: &str) -> Result<Box<dyn MultipartUpload>> {
        let path = self.path(key);
        let begun = self.act(Op::Open, key, || self.store.put_multipart(&path)).await;
        self.told("write", key, begun)
    }

    /// Sends a part that [`MultipartUpload::put_part`] made.
    pub(super) async fn send_part(&self, key: &str, length: usize, part: object_store::UploadPart) -> Result<()> {
        let sent = self.once(Op::Write(length), key, part).await;
        self.told("write", key, sent)
    }

    /// Makes the parts the key's content.
    pub(super) async fn end_parts(&self, key: &str, upload: &mut dyn MultipartUpload) -> Result<()> {
        let ended = self.once(Op::Rename, key, upload.complete()).await;
        self.told("write", key, ended).map(|_| ())
    }
}
