//! The memo: results below stage level (one model request, one custom record), stored as they complete.
//!
//! Each namespace has its directory, and in it each writer two append-only files: values back to back in `<id>.data`, and an
//! index log of fixed-size records (see [`crate::log`]) with key, place, length and a check of the value. No record has a
//! file of its own, so 10^5 requests are two files.
//!
//! | what happens | what is left |
//! |---|---|
//! | the process is killed after `put` returned | the record: both writes reached the kernel |
//! | killed between the two writes | bytes nobody points to |
//! | killed inside the index write | a torn tail, dropped by every reader |
//! | power cut | possibly an index record without its value: the check fails, `get` says nothing |
//!
//! Keys are content keys: two values under one key are both valid, and readers may see either. Nothing here is synced to the
//! device; a power cut may cost the last requests, never give a wrong one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::io::Io;
use crate::log::{Log, Record};
use crate::statcache::{digest_at, word};
use crate::{Digest, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

/// Open data files kept for reading.
const MAX_OPEN: usize = 64;

#[derive(Clone, Copy)]
struct Place {
    /// Which data file.
    data: u64,
    offset: u64,
    len: u64,
    /// The first eight bytes of the value's BLAKE3.
    check: u64,
}

struct IndexRecord {
    key: Digest,
    place: Place,
}

impl Record for IndexRecord {
    const TAG: [u8; 4] = *b"memo";
    const SIZE: usize = 64;

    fn encode(&self, out: &mut Vec<u8>) {
        let Place { data, offset, len, check } = self.place;
        for word in [data, offset, len, check] {
            out.extend(word.to_le_bytes());
        }
        out.extend(self.key.as_bytes());
    }

    fn decode(bytes: &[u8]) -> Self {
        let at = |index| word(bytes, index);
        let place = Place { data: at(0), offset: at(1), len: at(2), check: at(3) };
        Self { key: digest_at(bytes, 32), place }
    }
}

fn check_of(value: &[u8]) -> u64 {
    word(Digest::of(value).as_bytes(), 0)
}

struct OwnData {
    file: File,
    path: PathBuf,
    id: u64,
    len: u64,
}

/// One namespace as this process sees it.
struct Space {
    io: Io,
    dir: PathBuf,
    writer: u64,
    files_started: u64,
    log: Log<IndexRecord>,
    map: BTreeMap<Digest, Place>,
    open: BTreeMap<u64, File>,
    own: Option<OwnData>,
}

impl Space {
    fn new(io: Io, dir: PathBuf, writer: &str) -> Self {
        let id = u64::from_str_radix(writer, 16).expect("writer ids are 16 hexadecimal digits");
        let log = Log::new(io.clone(), dir.clone(), writer);
        Self { io, dir, writer: id, files_started: 0, log, map: BTreeMap::new(), open: BTreeMap::new(), own: None }
    }

    fn refresh(&mut self) -> Result<()> {
        let Self { log, map, .. } = self;
        log.refresh(|record| {
            map.insert(record.key, record.place);
        })
    }

    fn data_path(&self, id: u64) -> PathBuf {
        self.dir.join(format!("{id:016x}.data"))
    }

    /// The value at `place` if it is what was put there.
    fn value(&mut self, place: Place) -> Result<Option<Vec<u8>>> {
        let path = self.data_path(place.data);
        if !self.open.contains_key(&place.data) {
            if self.open.len() >= MAX_OPEN {
                self.open.clear();
            }
            match self.io.open(&path) {
                Ok(file) => drop(self.open.insert(place.data, file)),
                // A power cut may keep the index and lose the values.
                Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        let size = self.io.stat(&path)?.map_or(0, |stat| stat.size);
        if place.offset.saturating_add(place.len) > size {
            return Ok(None);
        }
        let len = usize::try_from(place.len).expect("a file's length fits memory addresses");
        let value = self.io.read_at(&self.open[&place.data], &path, place.offset, len)?;
        Ok(Some(value).filter(|value| check_of(value) == place.check))
    }

    fn get(&mut self, key: &Digest) -> Result<Option<Vec<u8>>> {
        if !self.map.contains_key(key) {
            self.refresh()?;
        }
        match self.map.get(key).copied() {
            Some(place) => self.value(place),
            None => Ok(None),
        }
    }

    /// Looks at what others have written only for keys that are not known, and then at most every 10 ms.
    fn contains(&mut self, key: &Digest) -> bool {
        if !self.map.contains_key(key) {
            let Self { log, map, .. } = self;
            // What cannot be read is not there.
            let _ = log.refresh_recent(|record| {
                map.insert(record.key, record.place);
            });
        }
        self.map.contains_key(key)
    }

    fn put(&mut self, key: &Digest, value: &[u8]) -> Result<()> {
        if let Some(place) = self.map.get(key).copied() {
            let same = place.len == value.len() as u64 && place.check == check_of(value);
            if same && self.value(place).is_ok_and(|found| found.is_some()) {
                return Ok(());
            }
        }
        let place = self.append_value(value)?;
        self.log.append(&[IndexRecord { key: *key, place }])?;
        self.map.insert(*key, place);
        Ok(())
    }

    /// Appends to this writer's data file; a file whose last write failed is not used again.
    fn append_value(&mut self, value: &[u8]) -> Result<Place> {
        let mut own = match self.own.take() {
            Some(own) => own,
            None => self.start()?,
        };
        self.io.append(&own.file, &own.path, value)?;
        let place = Place { data: own.id, offset: own.len, len: value.len() as u64, check: check_of(value) };
        own.len += place.len;
        self.own = Some(own);
        Ok(place)
    }

    fn start(&mut self) -> Result<OwnData> {
        self.io.make_dirs(&self.dir)?;
        let id = self.writer.wrapping_add(self.files_started);
        self.files_started += 1;
        let path = self.data_path(id);
        let file = self.io.create_append(&path)?;
        Ok(OwnData { file, path, id, len: 0 })
    }

    /// Merges all files into one pair. Only for a caller that has the store for itself.
    fn compact(&mut self, temporary: &Path) -> Result<()> {
        self.refresh()?;
        let old: Vec<_> = self.io.list(&self.dir)?.into_iter().filter(|path| is_data(path)).collect();
        let merged = self.start()?;
        let (mut records, mut len) = (Vec::new(), 0);
        for (key, place) in self.map.clone() {
            let Some(value) = self.value(place)? else { continue };
            self.io.append(&merged.file, &merged.path, &value)?;
            records.push(IndexRecord { key, place: Place { data: merged.id, offset: len, ..place } });
            len += place.len;
        }
        self.io.sync(&merged.path)?;
        self.log.rewrite(&records, temporary)?;
        self.map = records.into_iter().map(|record| (record.key, record.place)).collect();
        self.own = None;
        self.open.clear();
        old.iter().try_for_each(|path| self.io.remove_file(path))
    }
}

fn is_data(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "data")
}

/// What a memo namespace holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoStats {
    /// The namespace.
    pub namespace: String,
    /// Number of records.
    pub records: u64,
    /// Bytes on disk, index and replaced values included.
    pub bytes: u64,
}

struct Shared {
    io: Io,
    dir: PathBuf,
    writer: String,
    spaces: Mutex<BTreeMap<String, Arc<Mutex<Space>>>>,
    /// A memo handle may outlive the store's: it too keeps gc away.
    _in_use: Arc<File>,
}

/// The memo of an open store; clones share it.
#[derive(Clone)]
pub struct MemoStore {
    shared: Arc<Shared>,
}

fn is_name(name: &str) -> bool {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    !name.is_empty() && name.len() <= 100 && !name.starts_with('.') && name.chars().all(fine)
}

impl MemoStore {
    pub(crate) fn new(io: Io, dir: PathBuf, writer: &str, in_use: Arc<File>) -> Self {
        let spaces = Mutex::new(BTreeMap::new());
        Self { shared: Arc::new(Shared { io, dir, writer: writer.to_owned(), spaces, _in_use: in_use }) }
    }

    fn space(&self, namespace: &str) -> Result<Arc<Mutex<Space>>> {
        let Shared { io, dir, writer, spaces, .. } = &*self.shared;
        if !is_name(namespace) {
            return Err(StoreError::Namespace { path: dir.clone(), name: namespace.to_owned() });
        }
        let mut spaces = spaces.lock().expect("no panic while the memo is held");
        let fresh = || Arc::new(Mutex::new(Space::new(io.clone(), dir.join(namespace), writer)));
        Ok(spaces.entry(namespace.to_owned()).or_insert_with(fresh).clone())
    }

    /// The value under `key`, whichever process put it. A value that cannot be read or does not pass its check is none.
    pub fn get(&self, namespace: &str, key: &Digest) -> Option<Vec<u8>> {
        let space = self.space(namespace).ok()?;
        let mut space = space.lock().expect("no panic while a namespace is held");
        space.get(key).ok().flatten()
    }

    /// Whether a value was put under `key`, without reading it.
    pub fn contains(&self, namespace: &str, key: &Digest) -> bool {
        let Ok(space) = self.space(namespace) else { return false };
        let mut space = space.lock().expect("no panic while a namespace is held");
        space.contains(key)
    }

    /// Stores a value; it outlives a kill of this process once this returns.
    ///
    /// # Errors
    /// The file system refuses, or the namespace is no plain lower-case name.
    pub fn put(&self, namespace: &str, key: &Digest, value: &[u8]) -> io::Result<()> {
        let space = self.space(namespace)?;
        let mut space = space.lock().expect("no panic while a namespace is held");
        Ok(space.put(key, value)?)
    }

    /// The namespaces on disk.
    pub fn namespaces(&self) -> Result<Vec<String>> {
        let dirs = self.shared.io.list(&self.shared.dir)?;
        let names = dirs.iter().filter_map(|dir| dir.file_name()?.to_str()).map(str::to_owned);
        Ok(names.filter(|name| is_name(name)).collect())
    }

    /// Records and bytes of every namespace.
    pub fn stats(&self) -> Result<Vec<MemoStats>> {
        self.namespaces()?.into_iter().map(|namespace| self.space_stats(namespace)).collect()
    }

    fn space_stats(&self, namespace: String) -> Result<MemoStats> {
        let space = self.space(&namespace)?;
        let mut space = space.lock().expect("no panic while a namespace is held");
        space.refresh()?;
        let mut bytes = 0;
        for path in self.shared.io.list(&space.dir)? {
            bytes += self.shared.io.stat(&path)?.map_or(0, |stat| stat.size);
        }
        Ok(MemoStats { namespace, records: space.map.len() as u64, bytes })
    }

    /// Merges the files of every namespace. Only for a caller that has the store for itself.
    pub(crate) fn compact(&self, temporary: impl Fn() -> Result<PathBuf>) -> Result<()> {
        for namespace in self.namespaces()? {
            let space = self.space(&namespace)?;
            space.lock().expect("no panic while a namespace is held").compact(&temporary()?)?;
        }
        Ok(())
    }

    /// Forgets everything. Only for a caller that has the store for itself.
    pub(crate) fn clear(&self) -> Result<()> {
        self.shared.spaces.lock().expect("no panic while the memo is held").clear();
        self.shared.io.remove_tree(&self.shared.dir)
    }
}
