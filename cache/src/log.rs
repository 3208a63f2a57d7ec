//! Append-only logs of fixed-size records: how the store remembers small facts without a file for each.
//!
//! A directory holds one log file a writer (a process that has the store open), named by the writer's random id, so no two
//! processes ever write to one file. Readers merge all files; each remembers how far it has read and later reads tails only.
//! What dead writers left is moved into a sorted file (see [`crate::index`]).
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | `mpcclog1` |
//! | 8..12 | the record type's tag |
//! | 12..16 | payload size n, little endian |
//! | then, repeated | n bytes of payload, 8 bytes of its BLAKE3 |
//!
//! A killed writer leaves at worst a torn record at the end of its own file; readers stop before it, and nobody appends after
//! it. A writer whose append failed abandons its file and starts another, so a record never follows a torn one. A whole record
//! with a wrong checksum is skipped.

use std::collections::BTreeMap;
use std::fs::File;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use crate::StoreError;
use crate::io::Io;

type Result<T> = std::result::Result<T, StoreError>;

const MAGIC: &[u8; 8] = b"mpcclog1";
const HEADER: usize = 16;
/// Bytes of a record's checksum.
pub(crate) const CHECK: usize = 8;
/// How long a reading counts as recent.
const RECENT_NS: i64 = 10_000_000;

/// A record of fixed size.
pub(crate) trait Record: Sized {
    /// Tells log types apart.
    const TAG: [u8; 4];
    /// Payload size in bytes.
    const SIZE: usize;
    /// Writes exactly [`Record::SIZE`] bytes.
    fn encode(&self, out: &mut Vec<u8>);
    /// Reads exactly [`Record::SIZE`] bytes.
    fn decode(bytes: &[u8]) -> Self;
}

struct Own {
    file: File,
    path: PathBuf,
    len: u64,
}

/// The logs of one directory, as one writer sees them.
pub(crate) struct Log<R> {
    io: Io,
    dir: PathBuf,
    writer: String,
    files_started: u32,
    own: Option<Own>,
    consumed: BTreeMap<PathBuf, u64>,
    /// When the files were last read to their ends.
    refreshed_ns: i64,
    record: PhantomData<R>,
}

fn header<R: Record>() -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(R::TAG);
    bytes.extend(u32::try_from(R::SIZE).expect("records are small").to_le_bytes());
    bytes
}

/// Appends a record and its checksum.
pub(crate) fn push_frame<R: Record>(record: &R, out: &mut Vec<u8>) {
    let start = out.len();
    record.encode(out);
    debug_assert_eq!(out.len() - start, R::SIZE);
    let check = blake3::hash(&out[start..]);
    out.extend(&check.as_bytes()[..CHECK]);
}

/// Whether a payload and its checksum belong together.
pub(crate) fn is_whole(frame: &[u8]) -> bool {
    let (payload, check) = frame.split_at(frame.len() - CHECK);
    blake3::hash(payload).as_bytes()[..CHECK] == *check
}

/// The whole records of `bytes` (which start at a frame boundary) and the length up to the end of the last valid one.
fn parse_frames<R: Record>(bytes: &[u8], mut apply: impl FnMut(R)) -> usize {
    let frame = R::SIZE + CHECK;
    let mut valid = 0;
    for (index, chunk) in bytes.chunks_exact(frame).enumerate() {
        if is_whole(chunk) {
            apply(R::decode(&chunk[..R::SIZE]));
            valid = (index + 1) * frame;
        }
    }
    valid
}

impl<R: Record> Log<R> {
    /// The logs below `dir`, none read yet. The directory is made with the first record.
    pub(crate) fn new(io: Io, dir: PathBuf, writer: &str) -> Self {
        let (own, consumed) = (None, BTreeMap::new());
        Self {
            io,
            dir,
            writer: writer.to_owned(),
            files_started: 0,
            own,
            consumed,
            refreshed_ns: 0,
            record: PhantomData,
        }
    }

    /// Appends records to this writer's file, all in one write.
    pub(crate) fn append(&mut self, records: &[R]) -> Result<()> {
        let mut bytes = Vec::new();
        let mut own = match self.own.take() {
            Some(own) => own,
            None => {
                bytes = header::<R>();
                self.start()?
            }
        };
        records.iter().for_each(|record| push_frame(record, &mut bytes));
        self.io.append(&own.file, &own.path, &bytes)?;
        own.len += bytes.len() as u64;
        self.consumed.insert(own.path.clone(), own.len);
        self.own = Some(own);
        Ok(())
    }

    fn start(&mut self) -> Result<Own> {
        self.io.make_dirs(&self.dir)?;
        let path = self.dir.join(format!("{}-{}.log", self.writer, self.files_started));
        self.files_started += 1;
        let file = self.io.create_append(&path)?;
        Ok(Own { file, path, len: 0 })
    }

    /// Hands every record not seen yet to `apply`; records appended through `self` count as seen.
    pub(crate) fn refresh(&mut self, mut apply: impl FnMut(R)) -> Result<()> {
        self.refreshed_ns = self.io.now_ns();
        let mut files = self.io.list(&self.dir)?;
        files.retain(|path| is_log(path));
        if self.consumed.len() > files.len() {
            self.consumed.retain(|path, _| files.binary_search(path).is_ok());
        }
        files.iter().try_for_each(|path| self.refresh_file(path, &mut apply))
    }

    /// Whether the last refresh was within [`RECENT_NS`]: for who asks thousands of questions in a row and is not hurt by
    /// missing what another process wrote a moment ago.
    pub(crate) fn is_recent(&self) -> bool {
        let age = self.io.now_ns().saturating_sub(self.refreshed_ns);
        (0..RECENT_NS).contains(&age)
    }

    fn refresh_file(&mut self, path: &Path, apply: &mut impl FnMut(R)) -> Result<()> {
        let seen = self.consumed.get(path).copied().unwrap_or(0);
        let size = self.io.size(path)?;
        if size <= seen || size < HEADER as u64 {
            return Ok(());
        }
        let bytes = self.io.read_from(path, seen)?.unwrap_or_default();
        let skip = if seen == 0 { HEADER } else { 0 };
        if bytes.len() < skip || (skip > 0 && bytes[..HEADER] != *header::<R>()) {
            return Ok(());
        }
        let valid = parse_frames(&bytes[skip..], apply);
        self.consumed.insert(path.to_owned(), seen + (skip + valid) as u64);
        Ok(())
    }

    /// The file that this writer appends to, once it has.
    pub(crate) fn own_path(&self) -> Option<&Path> {
        self.own.as_ref().map(|own| own.path.as_path())
    }

    /// The files read so far and how far; those of another record type are none of them.
    pub(crate) fn consumed(&self) -> &BTreeMap<PathBuf, u64> {
        &self.consumed
    }

    /// Forgets what was read: the next refresh hands everything over again.
    pub(crate) fn forget(&mut self) {
        self.consumed.clear();
        self.refreshed_ns = 0;
    }

    /// Removes every file. Only for a caller that has the store for itself.
    pub(crate) fn clear(&mut self) -> Result<()> {
        self.own = None;
        self.forget();
        let files = self.io.list(&self.dir)?;
        files.iter().filter(|path| is_log(path)).try_for_each(|path| self.io.remove_file(path))
    }
}

impl<R: Record> Log<R> {
    /// Replaces all files by one that holds `records`: complete under its name before the old ones go. Only for a caller that
    /// has the store for itself.
    pub(crate) fn rewrite(&mut self, records: &[R], temporary: &Path) -> Result<()> {
        let old = self.io.list(&self.dir)?;
        self.own = None;
        self.forget();
        if !records.is_empty() {
            let mut bytes = header::<R>();
            records.iter().for_each(|record| push_frame(record, &mut bytes));
            self.io.write_new(temporary, &bytes)?;
            self.io.sync(temporary)?;
            let path = self.dir.join(format!("{}-{}.log", self.writer, self.files_started));
            self.files_started += 1;
            self.io.rename(temporary, &path)?;
            self.io.sync(&self.dir)?;
            self.consumed.insert(path, bytes.len() as u64);
        }
        old.iter().filter(|path| is_log(path)).try_for_each(|path| self.io.remove_file(path))
    }
}

fn is_log(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "log")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Number(u64);

    impl Record for Number {
        const TAG: [u8; 4] = *b"test";
        const SIZE: usize = 8;

        fn encode(&self, out: &mut Vec<u8>) {
            out.extend(self.0.to_le_bytes());
        }

        fn decode(bytes: &[u8]) -> Self {
            Self(u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
        }
    }

    fn log(dir: &Path, writer: &str) -> Log<Number> {
        Log::new(Io::default(), dir.to_owned(), writer)
    }

    fn news(log: &mut Log<Number>) -> Vec<u64> {
        let mut seen = Vec::new();
        log.refresh(|number| seen.push(number.0)).unwrap();
        seen
    }

    #[test]
    fn readers_see_each_record_of_every_other_writer_once() {
        let dir = tempfile::tempdir().unwrap();
        let (mut a, mut b) = (log(dir.path(), "a"), log(dir.path(), "b"));
        assert!(news(&mut a).is_empty());
        a.append(&[Number(1), Number(2)]).unwrap();
        b.append(&[Number(3)]).unwrap();
        assert_eq!(news(&mut b), [1, 2]);
        assert_eq!(news(&mut a), [3]);
        a.append(&[Number(4)]).unwrap();
        assert_eq!(news(&mut b), [4]);
        assert_eq!((news(&mut a), news(&mut b)), (vec![], vec![]));
        assert_eq!(news(&mut log(dir.path(), "c")), [1, 2, 4, 3]);
    }

    #[test]
    fn a_tail_torn_at_any_byte_is_dropped_and_what_precedes_it_stays() {
        let dir = tempfile::tempdir().unwrap();
        log(dir.path(), "a").append(&[Number(1), Number(2), Number(3)]).unwrap();
        let path = dir.path().join("a-0.log");
        let whole = std::fs::read(&path).unwrap();
        for len in 0..=whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            let expected = len.saturating_sub(HEADER) / 16;
            let mut reader = log(dir.path(), "b");
            assert_eq!(news(&mut reader), [1, 2, 3][..expected], "{len} bytes");
            // What a slow writer adds later is found from there.
            std::fs::write(&path, &whole).unwrap();
            assert_eq!(news(&mut reader), [1, 2, 3][expected..], "{len} bytes, then all");
        }
    }

    #[test]
    fn a_record_with_a_flipped_bit_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        log(dir.path(), "a").append(&[Number(1), Number(2), Number(3)]).unwrap();
        let path = dir.path().join("a-0.log");
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            let expected = match at.checked_sub(HEADER) {
                None => vec![],
                Some(at) => [1, 2, 3].into_iter().enumerate().filter(|(i, _)| *i != at / 16).map(|(_, n)| n).collect(),
            };
            assert_eq!(news(&mut log(dir.path(), "b")), expected, "byte {at}");
        }
    }
}
