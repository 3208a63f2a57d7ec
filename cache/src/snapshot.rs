//! Snapshots: the records of an index as one sorted file, searched where it lies and never loaded.
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | `mpccsnp1` |
//! | 8..12 | the record type's tag |
//! | 12..16 | payload size n, little endian |
//! | 16..24 | number of records, little endian |
//! | 24..32 | the first 8 bytes of the BLAKE3 of what precedes |
//! | then, repeated, by ascending key | n bytes of payload, 8 bytes of its BLAKE3 |
//!
//! Opening one looks at the header and the file's length, whatever its size; a record is checked when it is read, and one that
//! fails counts as absent. A snapshot appears by one rename of a flushed file and is never written to, so it is mapped: what
//! nobody asks for takes no memory, and all processes share what they ask for. On a network file system it is read instead,
//! because a mapped file that another host replaces ends the process that looks at it.
//!
//! Keys are compared as bytes. Digests are spread evenly, so a search guesses the place and halves the rest in turn: some 9
//! probes of a million records instead of 20.

use std::marker::PhantomData;
use std::path::Path;

use crate::StoreError;
use crate::io::{Content, FileStat, Io};
use crate::log::{CHECK, Record, is_whole, push_frame};

type Result<T> = std::result::Result<T, StoreError>;

const MAGIC: &[u8; 8] = b"mpccsnp1";
const HEADER: usize = 32;
/// How much is gathered before it is written.
const CHUNK: usize = 1 << 20;

/// A record that is found by its key.
pub(crate) trait Keyed: Record + Copy {
    /// The key: a byte array.
    type Key: Ord + Copy + AsRef<[u8]>;
    /// Where the key's bytes begin in the payload.
    const KEY_AT: usize;
    /// Whether keys are spread evenly over all values, as digests are.
    const EVEN: bool;
    /// The bytes at [`Keyed::KEY_AT`].
    fn key(&self) -> Self::Key;
    /// What stands when `self` is known and `later` is read.
    fn merge(self, later: Self) -> Self;
}

/// An open snapshot.
pub(crate) struct Snapshot<R> {
    content: Content,
    stat: FileStat,
    record: PhantomData<R>,
}

fn header<R: Record>(count: usize) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(R::TAG);
    bytes.extend(u32::try_from(R::SIZE).expect("records are small").to_le_bytes());
    bytes.extend((count as u64).to_le_bytes());
    let check = blake3::hash(&bytes);
    bytes.extend(&check.as_bytes()[..CHECK]);
    bytes
}

/// Writes a new file at `path` with `records`, whose keys ascend, and flushes it.
pub(crate) fn write<R: Keyed>(io: &Io, path: &Path, records: impl Iterator<Item = R> + Clone) -> Result<()> {
    let file = io.create_append(path)?;
    let mut bytes = header::<R>(records.clone().count());
    for record in records {
        push_frame(&record, &mut bytes);
        if bytes.len() >= CHUNK {
            io.append(&file, path, &bytes)?;
            bytes.clear();
        }
    }
    io.append(&file, path, &bytes)?;
    // Whatever the store's options: the logs that it stands for are removed next.
    io.sync_always(path)
}

impl<R: Keyed> Snapshot<R> {
    const FRAME: usize = R::SIZE + CHECK;

    /// The snapshot at `path`; none when nothing is there, or something that is no whole snapshot of such records.
    pub(crate) fn open(io: &Io, path: &Path) -> Result<Option<Self>> {
        let Some((content, stat)) = io.content(path)? else { return Ok(None) };
        let count = content.len().saturating_sub(HEADER) / Self::FRAME;
        let whole = content.len() == HEADER + count * Self::FRAME && content.starts_with(&header::<R>(count));
        Ok(whole.then_some(Self { content, stat, record: PhantomData }))
    }

    /// The metadata of the file when it was opened.
    pub(crate) fn stat(&self) -> &FileStat {
        &self.stat
    }

    /// Its size in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.content.len() as u64
    }

    /// Number of records, damaged ones included.
    pub(crate) fn len(&self) -> usize {
        (self.content.len() - HEADER) / Self::FRAME
    }

    fn frame(&self, index: usize) -> &[u8] {
        let at = HEADER + index * Self::FRAME;
        &self.content[at..at + Self::FRAME]
    }

    fn key_bytes(&self, index: usize) -> &[u8] {
        &self.frame(index)[R::KEY_AT..R::KEY_AT + size_of::<R::Key>()]
    }

    fn record(&self, index: usize) -> Option<R> {
        let frame = self.frame(index);
        is_whole(frame).then(|| R::decode(&frame[..R::SIZE]))
    }

    /// The place of the first record whose key is not below `key` (or one that begins with it).
    fn first_from(&self, key: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.len());
        let (mut below, mut above) = (0, u64::MAX);
        let wanted = prefix(key);
        let mut guess = R::EVEN;
        while low < high {
            let middle = if guess { estimate(low, high, (below, above), wanted) } else { low + (high - low) / 2 };
            let found = self.key_bytes(middle);
            if found < key {
                (low, below) = (middle + 1, prefix(found));
            } else {
                (high, above) = (middle, prefix(found));
            }
            guess = R::EVEN && !guess;
        }
        low
    }

    /// The record with this key.
    pub(crate) fn get(&self, key: &R::Key) -> Option<R> {
        let at = self.first_from(key.as_ref());
        if at < self.len() && self.key_bytes(at) == key.as_ref() { self.record(at) } else { None }
    }

    /// The records whose keys begin with `start`.
    pub(crate) fn starting_with(&self, start: &[u8]) -> impl Iterator<Item = R> {
        let places = self.first_from(start)..self.len();
        places.take_while(move |at| self.key_bytes(*at).starts_with(start)).filter_map(|at| self.record(at))
    }

    /// All whole records, by key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = R> + Clone {
        (0..self.len()).filter_map(|at| self.record(at))
    }
}

/// The first eight bytes as a number that sorts like them.
fn prefix(key: &[u8]) -> u64 {
    key.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// Where in `low..high` a key with prefix `wanted` is to be expected, when what precedes has prefix `below` and what follows `above`.
fn estimate(low: usize, high: usize, (below, above): (u64, u64), wanted: u64) -> usize {
    let (span, part) = (above.saturating_sub(below), wanted.saturating_sub(below).min(above.saturating_sub(below)));
    let share = u128::from(part) * (high - low) as u128 / (u128::from(span) + 1);
    (low + usize::try_from(share).unwrap_or(0)).min(high - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statcache::digest_at;
    use crate::{Digest, log};

    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Named<const EVEN: bool>(Digest, u64);

    impl<const EVEN: bool> Record for Named<EVEN> {
        const TAG: [u8; 4] = *b"test";
        const SIZE: usize = 40;

        fn encode(&self, out: &mut Vec<u8>) {
            out.extend(self.1.to_le_bytes());
            out.extend(self.0.as_bytes());
        }

        fn decode(bytes: &[u8]) -> Self {
            Self(digest_at(bytes, 8), crate::statcache::word(bytes, 0))
        }
    }

    impl<const EVEN: bool> Keyed for Named<EVEN> {
        type Key = [u8; 32];
        const KEY_AT: usize = 8;
        const EVEN: bool = EVEN;

        fn key(&self) -> [u8; 32] {
            *self.0.as_bytes()
        }

        fn merge(self, later: Self) -> Self {
            later
        }
    }

    /// Keys of digests, and keys that share their first bytes.
    fn keys(count: u64) -> Vec<Digest> {
        let close = |n: u64| {
            let mut bytes = [7; 32];
            bytes[20..28].copy_from_slice(&n.to_be_bytes());
            Digest::from_bytes(bytes)
        };
        let mut keys: Vec<_> =
            (0..count).map(|n| if n % 3 == 0 { close(n) } else { Digest::of(&n.to_le_bytes()) }).collect();
        keys.sort();
        keys
    }

    fn written<const EVEN: bool>(path: &Path, keys: &[Digest]) -> Snapshot<Named<EVEN>> {
        let records = keys.iter().enumerate().map(|(n, key)| Named::<EVEN>(*key, n as u64));
        write(&Io::default(), path, records).unwrap();
        Snapshot::open(&Io::default(), path).unwrap().expect("a snapshot")
    }

    fn finds_all<const EVEN: bool>(count: u64) {
        let dir = tempfile::tempdir().unwrap();
        let keys = keys(count);
        let snapshot = written::<EVEN>(&dir.path().join("s"), &keys);
        assert_eq!(snapshot.len(), keys.len());
        for (n, key) in keys.iter().enumerate() {
            assert_eq!(snapshot.get(key.as_bytes()), Some(Named(*key, n as u64)));
            let mut absent = *key.as_bytes();
            absent[31] ^= 1;
            assert_eq!(snapshot.get(&absent), None);
            let start = &key.as_bytes()[..4];
            let expected = keys.iter().filter(|key| key.as_bytes().starts_with(start)).count();
            assert_eq!(snapshot.starting_with(start).count(), expected);
        }
        assert!([[0; 32], [255; 32]].iter().all(|key| snapshot.get(key).is_none()));
        assert_eq!(snapshot.iter().map(|record| record.0).collect::<Vec<_>>(), keys);
    }

    #[test]
    fn every_record_is_found_and_nothing_else() {
        for count in [0, 1, 2, 3, 500] {
            finds_all::<true>(count);
            finds_all::<false>(count);
        }
    }

    #[test]
    fn a_snapshot_cut_anywhere_is_none_and_a_flipped_bit_costs_a_record_or_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let (path, keys) = (dir.path().join("s"), keys(5));
        let whole = {
            written::<true>(&path, &keys);
            std::fs::read(&path).unwrap()
        };
        for len in 0..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            assert!(Snapshot::<Named<true>>::open(&Io::default(), &path).unwrap().is_none(), "{len} bytes");
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            let opened = Snapshot::<Named<true>>::open(&Io::default(), &path).unwrap();
            assert_eq!(opened.is_none(), at < HEADER, "byte {at}");
            let Some(snapshot) = opened else { continue };
            let lost = (at - HEADER) / (40 + log::CHECK);
            assert_eq!(snapshot.iter().count(), 4, "byte {at}");
            for (n, key) in keys.iter().enumerate() {
                let found = snapshot.get(key.as_bytes());
                assert!(
                    found.is_none() || (n != lost && found == Some(Named(*key, n as u64))),
                    "byte {at}, record {n}"
                );
            }
        }
    }

    #[test]
    fn another_type_of_record_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, [&header::<Named<true>>(0)[..8], b"othr", &[0; 20]].concat()).unwrap();
        assert!(Snapshot::<Named<true>>::open(&Io::default(), &path).unwrap().is_none());
    }
}
