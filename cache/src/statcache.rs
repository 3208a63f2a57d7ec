//! The stat cache: which content a file had when it was last hashed, so that nothing unchanged is read twice.
//!
//! Key: device, inode, size, mtime and ctime in nanoseconds, all of them. A file that is written, replaced, truncated, or
//! whose mtime is set back gets another key, because the kernel sets ctime itself.
//!
//! The limit is the clock: kernels stamp files with a coarse tick (1 to 10 ms on Linux), so a file changed twice in one tick
//! keeps its key. A hash is therefore remembered only when the file's stamp was older than [`RACY_NS`] as hashing began;
//! then any later change gets a later stamp. File systems that keep whole seconds get [`RACY_COARSE_NS`].
//!
//! | whose file | stamp that must be old | why |
//! |---|---|---|
//! | from outside | ctime | anybody may do anything to it |
//! | in the store | mtime | renaming and linking renew ctime, but content that changes renews mtime |

use std::path::{Path, PathBuf};
use std::sync::RwLock;

use crate::index::{Home, Index};
use crate::io::{FileStat, Io};
use crate::log::Record;
use crate::snapshot::Keyed;
use crate::{Digest, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

/// Twice the slowest tick of a local Linux file system.
const RACY_NS: i64 = 20_000_000;
/// For file systems whose stamps are whole seconds, FAT's two seconds included.
const RACY_COARSE_NS: i64 = 2_500_000_000;
const SECOND_NS: i64 = 1_000_000_000;

/// Which stamp must be old for a hash to be remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    /// For files that the store owns.
    Mtime,
    /// For files from outside.
    Ctime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    dev: u64,
    ino: u64,
    size: u64,
    mtime_ns: i64,
    ctime_ns: i64,
}

impl Key {
    /// The key as five words.
    pub(crate) fn words(&self) -> [u64; 5] {
        let Self { dev, ino, size, mtime_ns, ctime_ns } = *self;
        [dev, ino, size, mtime_ns.cast_unsigned(), ctime_ns.cast_unsigned()]
    }

    /// The key that five words at the front of `bytes` spell.
    pub(crate) fn from_words(bytes: &[u8]) -> Self {
        let at = |index| word(bytes, index);
        let (mtime_ns, ctime_ns) = (at(3).cast_signed(), at(4).cast_signed());
        Self { dev: at(0), ino: at(1), size: at(2), mtime_ns, ctime_ns }
    }
}

impl From<&FileStat> for Key {
    fn from(stat: &FileStat) -> Self {
        let FileStat { dev, ino, size, mtime_ns, ctime_ns, .. } = *stat;
        Self { dev, ino, size, mtime_ns, ctime_ns }
    }
}

/// One file's last known content.
#[derive(Clone, Copy)]
struct StatRecord {
    key: Key,
    digest: Digest,
}

pub(crate) fn word(bytes: &[u8], index: usize) -> u64 {
    u64::from_le_bytes(bytes[8 * index..8 * index + 8].try_into().expect("eight bytes"))
}

pub(crate) fn digest_at(bytes: &[u8], at: usize) -> Digest {
    Digest::from_bytes(bytes[at..at + 32].try_into().expect("32 bytes"))
}

impl Record for StatRecord {
    const TAG: [u8; 4] = *b"stat";
    const SIZE: usize = 72;

    fn encode(&self, out: &mut Vec<u8>) {
        self.key.words().iter().for_each(|word| out.extend(word.to_le_bytes()));
        out.extend(self.digest.as_bytes());
    }

    fn decode(bytes: &[u8]) -> Self {
        Self { key: Key::from_words(bytes), digest: digest_at(bytes, 40) }
    }
}

/// Device and inode as they are written: the start of a record.
fn place(dev: u64, ino: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&dev.to_le_bytes());
    bytes[8..].copy_from_slice(&ino.to_le_bytes());
    bytes
}

impl Keyed for StatRecord {
    type Key = [u8; 16];
    const KEY_AT: usize = 0;
    const EVEN: bool = false;

    fn key(&self) -> [u8; 16] {
        place(self.key.dev, self.key.ino)
    }

    fn merge(self, later: Self) -> Self {
        later
    }
}

struct State {
    index: Index<StatRecord>,
    loaded: bool,
}

/// The stat cache of a store.
pub(crate) struct StatCache {
    io: Io,
    state: RwLock<State>,
}

fn window(stat: &FileStat) -> i64 {
    let whole = stat.mtime_ns % SECOND_NS == 0 && stat.ctime_ns % SECOND_NS == 0;
    if whole { RACY_COARSE_NS } else { RACY_NS }
}

fn stamp(stat: &FileStat, guard: Guard) -> i64 {
    match guard {
        Guard::Mtime => stat.mtime_ns,
        Guard::Ctime => stat.ctime_ns,
    }
}

/// Whether a file with this stamp, hashed from `start_ns` on, would show any later change in its key.
pub(crate) fn is_settled(stat: &FileStat, guard: Guard, start_ns: i64) -> bool {
    stamp(stat, guard).saturating_add(window(stat)) <= start_ns
}

impl StatCache {
    pub(crate) fn new(home: &Home, dir: PathBuf) -> Self {
        let state = State { index: Index::new(home, dir), loaded: false };
        Self { io: home.io.clone(), state: RwLock::new(state) }
    }

    fn with<T>(&self, body: impl FnOnce(&mut Index<StatRecord>) -> Result<T>) -> Result<T> {
        let mut state = self.state.write().expect("no panic while the stat cache is held");
        if !state.loaded {
            state.index.refresh()?;
            state.loaded = true;
        }
        body(&mut state.index)
    }

    /// What is remembered of an inode; threads may ask at once.
    fn known(&self, place: &[u8; 16]) -> Result<Option<StatRecord>> {
        let state = self.state.read().expect("no panic while the stat cache is held");
        if state.loaded {
            return Ok(state.index.get(place));
        }
        drop(state);
        self.with(|index| Ok(index.get(place)))
    }

    /// The remembered digest of the file with this metadata.
    pub(crate) fn get(&self, stat: &FileStat) -> Option<Digest> {
        let key = Key::from(stat);
        // An unreadable stat cache is an empty one: the file is hashed.
        let found = self.known(&place(key.dev, key.ino)).ok().flatten();
        found.filter(|known| known.key == key).map(|known| known.digest)
    }

    /// Remembers digests whose safety the caller has established. Failing to is no error: the files are hashed again.
    pub(crate) fn remember(&self, facts: &[(FileStat, Digest)]) {
        let records: Vec<_> =
            facts.iter().map(|(stat, digest)| StatRecord { key: Key::from(stat), digest: *digest }).collect();
        if !records.is_empty() {
            let _ = self.with(|index| index.append(&records));
        }
    }

    /// The digest of a regular file (links followed) and its size, hashed only when it is not known.
    pub(crate) fn digest(&self, path: &Path, guard: Guard) -> Result<(Digest, u64)> {
        let stat = self.io.stat_target(path)?;
        match self.get(&stat) {
            Some(digest) => Ok((digest, stat.size)),
            None => self.hash(path, guard),
        }
    }

    /// Hashes a regular file whatever is known of it; a file that changes meanwhile is read again, a few times.
    pub(crate) fn hash(&self, path: &Path, guard: Guard) -> Result<(Digest, u64)> {
        for _ in 0..4 {
            let start_ns = self.io.now_ns();
            let before = self.io.stat_target(path)?;
            let digest = self.io.hash(path)?;
            let after = self.io.stat_target(path)?;
            if Key::from(&before) == Key::from(&after) {
                if is_settled(&after, guard, start_ns) {
                    self.remember(&[(after, digest)]);
                }
                return Ok((digest, after.size));
            }
        }
        Err(StoreError::Changed { path: path.to_owned() })
    }

    /// Rewrites the index without what newer records replaced. Only for a caller that has the store for itself.
    pub(crate) fn compact(&self) -> Result<()> {
        self.with(Index::compact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::FileKind;

    fn opened(dir: &Path, writer: &str) -> StatCache {
        StatCache::new(&Home::of(dir, writer, u64::MAX), dir.join("stat"))
    }

    fn stat(mtime_ns: i64, ctime_ns: i64) -> FileStat {
        FileStat { kind: FileKind::File, dev: 1, ino: 2, size: 3, links: 1, mode: 0o444, mtime_ns, ctime_ns }
    }

    #[test]
    fn only_old_stamps_are_settled() {
        let second = SECOND_NS;
        let table = [
            (stat(5, 5), Guard::Ctime, 5 + RACY_NS, true),
            (stat(5, 5), Guard::Ctime, 4 + RACY_NS, false),
            // The store's own renames renew ctime only.
            (stat(5, second + 5), Guard::Mtime, 5 + RACY_NS, true),
            (stat(5, second + 5), Guard::Ctime, 5 + RACY_NS, false),
            // A future mtime from an unpacked archive does no harm.
            (stat(9 * second + 1, 5), Guard::Ctime, second, true),
            // Whole seconds need a wider window.
            (stat(second, second), Guard::Ctime, 2 * second, false),
            (stat(second, second), Guard::Ctime, 4 * second, true),
        ];
        for (stat, guard, start_ns, expected) in table {
            assert_eq!(is_settled(&stat, guard, start_ns), expected, "{stat:?} {guard:?} {start_ns}");
        }
    }

    #[test]
    fn any_part_of_the_key_forgets_the_digest() {
        let dir = tempfile::tempdir().unwrap();
        let cache = opened(dir.path(), "a");
        let (known, digest) = (stat(5, 6), Digest::of(b"x"));
        cache.remember(&[(known, digest)]);
        assert_eq!(cache.get(&known), Some(digest));
        let changed = [
            FileStat { dev: 9, ..known },
            FileStat { ino: 9, ..known },
            FileStat { size: 9, ..known },
            FileStat { mtime_ns: 9, ..known },
            FileStat { ctime_ns: 9, ..known },
        ];
        for stat in changed {
            assert_eq!(cache.get(&stat), None, "{stat:?}");
        }
        let reopened = opened(dir.path(), "b");
        assert_eq!(reopened.get(&known), Some(digest));
        reopened.compact().unwrap();
        assert_eq!(std::fs::read_dir(dir.path().join("stat")).unwrap().count(), 1);
        assert_eq!(opened(dir.path(), "c").get(&known), Some(digest));
    }

    #[test]
    fn a_file_rewritten_at_once_is_hashed_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = opened(dir.path(), "a");
        let path = dir.path().join("file");
        for round in 0..200u32 {
            let bytes = round.to_le_bytes();
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(cache.digest(&path, Guard::Ctime).unwrap(), (Digest::of(&bytes), 4), "round {round}");
        }
    }
}
