//! The remote cache: entries and their objects in an object store (S3, Google Cloud Storage, Azure) or a directory, shared
//! by many stores.
//!
//! # Layout below the URL
//!
//! | key | what |
//! |---|---|
//! | `format` | `mpcc-remote 1`; another one is refused by name |
//! | `objects/ab/cdef..` | the store's objects, under the same BLAKE3 names |
//! | `entries/<recipe>/<outputs list>` | one line that says who belongs to whom and when it was published; several may exist |
//! | `probe` | means nothing: whoever writes tries by it whether this server creates only what is absent |
//!
//! # Why it cannot lie
//!
//! An entry is sent after its objects, so a push that is killed leaves objects nobody names. What arrives is hashed before it
//! becomes an object of the local store; what is not what its name says is not taken, is reported, and its entry is a miss. Names
//! are content, so two pushers that send one object send the same bytes: creating it only when it is absent saves one of the
//! two transfers, and a server that ignores the condition costs nothing but that. What a push reads from disk is hashed on its
//! way too: a rotten local object never reaches the remote.
//!
//! # Requests
//!
//! At most [`RemoteOptions::transfers`] (16) requests are under way. As many objects of up to one part of 8 MiB are in memory at
//! once, and of two larger ones five parts each: about 200 MiB at worst, whatever the size of an object. What a push need not send is found by one HEAD an object (up to 1000 objects), or by listing
//! the 256 folders of `objects/`: beyond that many objects a listing, 1000 names an answer, is fewer requests even beside a million
//! objects of others (256 + 1000 against one an object), and below it is more. Objects of an entry that the remote has are looked
//! for all the same: a bucket whose rules expire objects is repaired by the next push.
//!
//! Requests that fail for a passing reason (a 5xx, a connection refused or cut) are tried again with growing pauses for
//! [`RemoteOptions::patience`]. Whoever is interrupted runs the same command again: what is complete is not sent twice.
//!
//! The rest of the crate is synchronous. A [`Remote`] owns a small runtime of its own and blocks its caller, which must not
//! itself be an async task.

mod address;
mod entry;
mod error;
mod fetch;
mod pull;
mod push;
mod tally;
mod through;
mod wire;

pub use error::RemoteError;
pub use pull::PullReport;
pub use push::PushReport;
pub use tally::Progress;
pub use through::{ReadThrough, Warn};

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::io::Faults;
use address::Address;
use wire::Wire;

type Result<T> = std::result::Result<T, RemoteError>;

/// What the format key says.
const FORMAT: &str = "mpcc-remote 1";

/// Entries that are sent or fetched at once, and objects of one entry; all share the bound on requests.
const ENTRIES_AT_ONCE: usize = 8;
const OBJECTS_AT_ONCE: usize = 16;

/// Parts of a large object under way at once.
const PARTS_AT_ONCE: usize = 4;

/// How a remote is reached.
#[derive(Clone)]
pub struct RemoteOptions {
    /// Environment variables by name: `AWS_*`, `GOOGLE_*` and `AZURE_*` hold credentials and endpoints. Others are ignored.
    pub variables: Vec<(String, String)>,
    /// Requests under way at once.
    pub transfers: usize,
    /// How long a request that fails for a passing reason is tried again.
    pub patience: Duration,
    /// Injects faults before every request, the path being the key; for tests.
    pub faults: Option<Arc<dyn Faults>>,
}

impl Default for RemoteOptions {
    fn default() -> Self {
        Self { variables: Vec::new(), transfers: 16, patience: Duration::from_secs(20), faults: None }
    }
}

/// What is to be done with a remote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only read: nothing is written, so credentials that may only read are enough.
    Read,
    /// Read and write: the format key is made, and it is tried whether the server creates only what is absent.
    Write,
}

/// An open remote. Clones share it.
#[derive(Clone)]
pub struct Remote {
    inner: Arc<Inner>,
}

struct Inner {
    wire: Wire,
    /// Taken when dropped.
    runtime: Option<Runtime>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Dropping a runtime waits, which an async caller may not; nothing is under way any more.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Remote {
    /// Opens the remote at `url`: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, `abfss://...`,
    /// `file:///folder`, or a plain path of a folder.
    ///
    /// # Errors
    /// The URL is none of these, credentials are missing or refused, the bucket or folder is not there, it holds another
    /// format, or it cannot be reached.
    pub fn open(url: &str, access: Access, options: RemoteOptions) -> Result<Self> {
        let address = Address::parse(url)?;
        let runtime = Builder::new_multi_thread().worker_threads(2).thread_name("remote").enable_all().build();
        let runtime = runtime.map_err(|error| RemoteError::Threads { source: error })?;
        let mut wire = {
            // Clients are made for the runtime that they will run on.
            let _inside = runtime.enter();
            Wire::new(address, &options)?
        };
        runtime.block_on(greet(&mut wire, access))?;
        Ok(Self { inner: Arc::new(Inner { wire, runtime: Some(runtime) }) })
    }

    /// The URL as given.
    pub fn url(&self) -> &str {
        &self.wire().address().url
    }

    /// Whether the server creates only what is absent, when it was opened to be written to. Safe either way: names are
    /// content.
    pub fn creates_only_absent(&self) -> bool {
        self.wire().conditional()
    }

    fn wire(&self) -> &Wire {
        &self.inner.wire
    }

    fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.inner.runtime.as_ref().expect("taken only when dropped").block_on(work)
    }
}

/// The bucket is there and lets us in, and what lies below the prefix is ours.
async fn greet(wire: &mut Wire, access: Access) -> Result<()> {
    wire.look_in().await?;
    let mut found = wire.get("format").await?;
    if access == Access::Write {
        wire.probe().await?;
        if found.is_none() {
            wire.create("format", format!("{FORMAT}\n").into_bytes()).await?;
            found = wire.get("format").await?;
        }
    }
    match found {
        // Nothing has been pushed yet: everything is a miss.
        None => Ok(()),
        Some(wire::Body::Small(bytes)) if bytes.strip_suffix(b"\n") == Some(FORMAT.as_bytes()) => Ok(()),
        Some(body) => {
            let found = match body {
                wire::Body::Small(bytes) => String::from_utf8_lossy(&bytes).trim().chars().take(60).collect(),
                wire::Body::Large(size) => format!("{size} bytes of something else"),
            };
            Err(RemoteError::Format { url: wire.address().url.clone(), found, ours: FORMAT })
        }
    }
}
