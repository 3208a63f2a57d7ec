//! What the parts of the store share: its root, the seam to the file system, who this writer is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::bytes::ByteLocks;
use crate::entries::Entries;
use crate::heartbeat::Beats;
use crate::index::Home;
use crate::io::Io;
use crate::ledger::Ledger;
use crate::manifest::Manifest;
use crate::pairs::Pairs;
use crate::statcache::StatCache;
use crate::{Digest, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

/// Which boot of the machine this is: the first 16 bytes of the boot id's hash, zeros when unknown.
pub(crate) type BootId = [u8; 16];

/// Something that was not what its name says, and where it lies now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where it was.
    pub path: PathBuf,
    /// Where it is, for a person to look at.
    pub quarantined: PathBuf,
}

/// The state behind every handle of one open store.
pub(crate) struct Core {
    pub(crate) root: PathBuf,
    pub(crate) io: Io,
    /// Random, 16 hexadecimal digits: names this writer's logs and temporary files.
    pub(crate) writer: String,
    pub(crate) boot: BootId,
    pub(crate) stats: StatCache,
    pub(crate) entries: Mutex<Entries>,
    pub(crate) latest: Pairs,
    pub(crate) published: Pairs,
    pub(crate) manifests: Mutex<BTreeMap<Digest, Arc<Manifest>>>,
    /// Objects whose bytes this process has hashed itself.
    pub(crate) witnessed: Mutex<BTreeSet<Digest>>,
    /// What was quarantined and nobody has asked about yet.
    pub(crate) damage: Mutex<Vec<Damage>>,
    /// Recipes that somebody executes.
    pub(crate) leases: ByteLocks,
    /// Requests that somebody is answering.
    pub(crate) claims: ByteLocks,
    /// Requests that served models are answering.
    pub(crate) slots: ByteLocks,
    pub(crate) ledger: Ledger,
    /// None: leases and liveness are kernel locks.
    pub(crate) beats: Option<Arc<Beats>>,
    pub(crate) reflinks: AtomicBool,
    pub(crate) counter: AtomicU64,
}

impl Core {
    pub(crate) fn new(root: PathBuf, home: Home, boot: BootId) -> Self {
        let bytes = |name: &str| ByteLocks::new(home.io.clone(), root.join("leases").join(name));
        Self {
            stats: StatCache::new(&home, root.join("stat")),
            entries: Mutex::new(Entries::new(&home, root.join("entries"))),
            latest: Pairs::new(&home, root.join("latest")),
            published: Pairs::new(&home, root.join("published")),
            manifests: Mutex::new(BTreeMap::new()),
            witnessed: Mutex::new(BTreeSet::new()),
            damage: Mutex::new(Vec::new()),
            leases: bytes("bytes"),
            claims: bytes("requests"),
            slots: bytes("slots"),
            ledger: Ledger::new(home.io.clone(), root.join("ledger"), &home.writer),
            beats: home.beats,
            reflinks: AtomicBool::new(true),
            counter: AtomicU64::new(0),
            root,
            io: home.io,
            writer: home.writer,
            boot,
        }
    }

    /// A number not used before by this writer.
    pub(crate) fn next(&self) -> u64 {
        self.counter.fetch_add(1, Ordering::Relaxed)
    }

    /// This writer's own directory for what is not finished; removed by whoever opens the store after its death.
    pub(crate) fn own_tmp(&self) -> PathBuf {
        self.root.join("tmp").join(&self.writer)
    }

    /// A fresh path for something that will be renamed into place.
    pub(crate) fn temporary(&self) -> Result<PathBuf> {
        self.io.make_dirs(&self.own_tmp())?;
        Ok(self.own_tmp().join(format!("t{}", self.next())))
    }

    /// `<root>/<area>/ab/cdef...`.
    pub(crate) fn fanned(&self, area: &str, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join(area).join(&hex[..2]).join(&hex[2..])
    }
}
