//! Entries: the notes that a recipe's outputs are complete. Written last, so what they name is there.
//!
//! An entry is a fixed-size record of an index (see [`crate::index`]): recipe digest, digest of the outputs list (an
//! object), boot id, time, synced mark. Several may exist for one recipe: two runs that both did the work, or a forced
//! second execution. The tie-break is the same for every reader: the latest complete one, of two at one time the greater
//! outputs digest.
//!
//! | entry | power cut since? | trusted |
//! |---|---|---|
//! | synced | any | by stat key |
//! | not synced, of this boot | no | by stat key |
//! | not synced, of another boot | maybe | after every byte of its outputs was hashed |

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::core::BootId;
use crate::index::{Home, Index};
use crate::io::Io;
use crate::log::Record;
use crate::snapshot::Keyed;
use crate::statcache::{digest_at, word};
use crate::{Artifact, Digest, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

/// What the store knows about a recipe whose outputs are complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Digest of the recipe.
    pub recipe: Digest,
    /// Port name -> artifact, in the order they were published.
    pub outputs: Vec<(String, Artifact)>,
    /// When it was published, nanoseconds since 1970 by the publisher's clock.
    pub published_ns: i64,
}

impl Entry {
    /// The artifact of output `port`.
    pub fn output(&self, port: &str) -> Option<&Artifact> {
        self.outputs.iter().find(|(name, _)| name == port).map(|(_, artifact)| artifact)
    }
}

/// The outputs list as stored.
#[derive(Serialize, Deserialize)]
pub(crate) struct OutputsList {
    pub(crate) outputs: Vec<(String, Artifact)>,
}

/// An entry as logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryRecord {
    pub(crate) recipe: Digest,
    pub(crate) outputs: Digest,
    pub(crate) boot: BootId,
    pub(crate) time_ns: i64,
    pub(crate) synced: bool,
}

impl Record for EntryRecord {
    const TAG: [u8; 4] = *b"entr";
    const SIZE: usize = 96;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.time_ns.to_le_bytes());
        out.extend(u64::from(self.synced).to_le_bytes());
        out.extend(self.recipe.as_bytes());
        out.extend(self.outputs.as_bytes());
        out.extend(self.boot);
    }

    fn decode(bytes: &[u8]) -> Self {
        Self {
            time_ns: word(bytes, 0).cast_signed(),
            synced: word(bytes, 1) == 1,
            recipe: digest_at(bytes, 16),
            outputs: digest_at(bytes, 48),
            boot: bytes[80..96].try_into().expect("16 bytes"),
        }
    }
}

impl Keyed for EntryRecord {
    /// Recipe, then outputs: the entries of one recipe lie together.
    type Key = [u8; 64];
    const KEY_AT: usize = 16;
    const EVEN: bool = true;

    fn key(&self) -> [u8; 64] {
        key(&self.recipe, self.outputs.as_bytes())
    }

    /// A synced mark never goes away; otherwise the latest word stands.
    fn merge(self, later: Self) -> Self {
        let stands = if later.time_ns >= self.time_ns { later } else { self };
        Self { synced: self.synced || later.synced, ..stands }
    }
}

fn key(recipe: &Digest, outputs: &[u8; 32]) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(recipe.as_bytes());
    bytes[32..].copy_from_slice(outputs);
    bytes
}

/// The index of entries.
pub(crate) struct Entries {
    io: Io,
    index: Index<EntryRecord>,
    last_ns: i64,
}

impl Entries {
    pub(crate) fn new(home: &Home, dir: PathBuf) -> Self {
        Self { index: Index::new(home, dir), io: home.io.clone(), last_ns: 0 }
    }

    /// Reads what other processes appended since.
    pub(crate) fn refresh(&mut self) -> Result<()> {
        self.index.refresh()
    }

    /// [`Entries::refresh`], unless it was done a moment ago.
    pub(crate) fn refresh_recent(&mut self) -> Result<()> {
        self.index.refresh_recent()
    }

    /// The entries known for a recipe, best first.
    pub(crate) fn get(&self, recipe: &Digest) -> Vec<EntryRecord> {
        let keys = key(recipe, &[0; 32])..=key(recipe, &[255; 32]);
        let mut records = self.index.starting_with(recipe.as_bytes(), keys);
        records.sort_by_key(|record| std::cmp::Reverse((record.time_ns, record.outputs)));
        records
    }

    /// Appends an entry of this boot, not synced yet.
    pub(crate) fn publish(&mut self, recipe: Digest, outputs: Digest, boot: BootId) -> Result<EntryRecord> {
        let time_ns = self.io.now_ns().max(self.last_ns + 1);
        let record = EntryRecord { recipe, outputs, boot, time_ns, synced: false };
        self.index.append(&[record])?;
        self.last_ns = time_ns;
        Ok(record)
    }

    /// Appends an entry that another store published at `time_ns`, so that the tie-break is the same here and there.
    #[cfg(feature = "remote")]
    pub(crate) fn adopt(&mut self, recipe: Digest, outputs: Digest, time_ns: i64, boot: BootId) -> Result<EntryRecord> {
        let record = EntryRecord { recipe, outputs, boot, time_ns, synced: false };
        self.index.append(&[record])?;
        Ok(record)
    }

    /// Appends the synced mark of an entry.
    pub(crate) fn mark_synced(&mut self, record: EntryRecord) -> Result<()> {
        self.index.append(&[EntryRecord { synced: true, ..record }])
    }

    pub(crate) fn own_path(&self) -> Option<&Path> {
        self.index.own_path()
    }

    /// Every entry, by recipe.
    pub(crate) fn all(&mut self) -> Result<Vec<EntryRecord>> {
        self.index.must_be_whole()?;
        Ok(self.index.iter().collect())
    }

    /// Rewrites the index with `kept` only, which are in the order of [`Entries::all`]. Only for a caller that has the store
    /// for itself.
    pub(crate) fn rewrite(&mut self, kept: &[EntryRecord]) -> Result<()> {
        self.index.rewrite(kept)
    }
}
