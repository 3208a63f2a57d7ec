//! The memo: results below stage level (one model request, one custom record), stored as they complete.
//!
//! Each namespace has its directory, and in it each writer two append-only files: values back to back in `<id>.data`, and the
//! log of an index (see [`crate::index`]) with key, place, length and a check of the value. No record has a file of its own, so
//! 10^5 requests are two files; and what the index's snapshot holds is not loaded: a record costs 72 bytes of disk.
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

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::index::{Home, Index};
use crate::io::Io;
use crate::log::Record;
use crate::snapshot::Keyed;
use crate::statcache::{digest_at, word};
use crate::store::Held;
use crate::{Digest, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

/// Open data files kept for reading.
const MAX_OPEN: usize = 64;
/// A data file of this many bytes that is mostly needed is not rewritten by gc.
const LARGE: u64 = 16 << 20;
/// How much gc gathers before it writes.
const CHUNK: usize = 1 << 20;

#[derive(Clone, Copy)]
struct Place {
    /// Which data file.
    data: u64,
    offset: u64,
    len: u64,
    /// The first eight bytes of the value's BLAKE3.
    check: u64,
}

#[derive(Clone, Copy)]
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

impl Keyed for IndexRecord {
    type Key = [u8; 32];
    const KEY_AT: usize = 32;
    const EVEN: bool = true;

    fn key(&self) -> [u8; 32] {
        *self.key.as_bytes()
    }

    fn merge(self, later: Self) -> Self {
        later
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

/// A data file open for reading, and how long it was when somebody looked.
struct Data {
    file: File,
    size: u64,
}

/// One namespace as this process sees it.
struct Space {
    io: Io,
    dir: PathBuf,
    writer: u64,
    files_started: u64,
    index: Index<IndexRecord>,
    open: BTreeMap<u64, Data>,
    own: Option<OwnData>,
}

impl Space {
    fn new(home: &Home, dir: PathBuf) -> Self {
        let writer = u64::from_str_radix(&home.writer, 16).expect("writer ids are 16 hexadecimal digits");
        let index = Index::new(home, dir.clone());
        Self { io: home.io.clone(), dir, writer, files_started: 0, index, open: BTreeMap::new(), own: None }
    }

    fn data_path(&self, id: u64) -> PathBuf {
        self.dir.join(format!("{id:016x}.data"))
    }

    /// The data file `id`, at least `end` bytes long; none when it is not.
    fn data(&mut self, id: u64, end: u64) -> Result<Option<&File>> {
        let path = self.data_path(id);
        if !self.open.contains_key(&id) {
            if self.open.len() >= MAX_OPEN {
                self.open.clear();
            }
            match self.io.open(&path) {
                Ok(file) => drop(self.open.insert(id, Data { file, size: 0 })),
                // A power cut may keep the index and lose the values.
                Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        let data = self.open.get_mut(&id).expect("it was opened above");
        if end > data.size {
            data.size = self.io.stat_open(&data.file, &path)?.size;
        }
        Ok((end <= data.size).then_some(&data.file))
    }

    /// The value at `place` if it is what was put there.
    fn value(&mut self, place: Place) -> Result<Option<Vec<u8>>> {
        let (io, path) = (self.io.clone(), self.data_path(place.data));
        let Some(file) = self.data(place.data, place.offset.saturating_add(place.len))? else { return Ok(None) };
        let len = usize::try_from(place.len).expect("a file's length fits memory addresses");
        let value = io.read_at(file, &path, place.offset, len)?;
        Ok(Some(value).filter(|value| check_of(value) == place.check))
    }

    fn place(&self, key: &Digest) -> Option<Place> {
        self.index.get(key.as_bytes()).map(|record| record.place)
    }

    fn get(&mut self, key: &Digest) -> Result<Option<Vec<u8>>> {
        if let Some(place) = self.place(key) {
            return self.value(place);
        }
        self.index.refresh()?;
        self.place(key).map_or(Ok(None), |place| self.value(place))
    }

    /// Looks at what others have written only for keys that are not known, and then at most every 10 ms.
    fn contains(&mut self, key: &Digest) -> bool {
        if self.place(key).is_some() {
            return true;
        }
        // What cannot be read is not there.
        let _ = self.index.refresh_recent();
        self.place(key).is_some()
    }

    fn put(&mut self, key: &Digest, value: &[u8]) -> Result<()> {
        if let Some(place) = self.place(key) {
            let same = place.len == value.len() as u64 && place.check == check_of(value);
            if same && self.value(place).is_ok_and(|found| found.is_some()) {
                return Ok(());
            }
        }
        let place = self.append_value(value)?;
        self.index.append(&[IndexRecord { key: *key, place }])
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

    /// The data files that are not worth rewriting, and those that are.
    fn sort_data(&self, records: &[IndexRecord]) -> Result<(BTreeSet<u64>, Vec<PathBuf>)> {
        let mut live = BTreeMap::<PathBuf, u64>::new();
        for record in records {
            *live.entry(self.data_path(record.place.data)).or_default() += record.place.len;
        }
        let (mut kept, mut old) = (BTreeSet::new(), Vec::new());
        for path in self.io.list(&self.dir)?.into_iter().filter(|path| is_data(path)) {
            let size = self.io.stat(&path)?.map_or(0, |stat| stat.size);
            let needed = live.get(&path).copied().unwrap_or(0);
            match path.file_stem().and_then(|name| u64::from_str_radix(name.to_str()?, 16).ok()) {
                Some(id) if size >= LARGE && needed >= size / 4 * 3 => drop(kept.insert(id)),
                _ => old.push(path),
            }
        }
        Ok((kept, old))
    }

    /// Merges all small files into one and drops what nobody points to. Only for a caller that has the store for itself.
    fn compact(&mut self) -> Result<()> {
        self.index.refresh()?;
        let records: Vec<_> = self.index.iter().collect();
        let (kept, old) = self.sort_data(&records)?;
        if self.index.is_compact() && old.is_empty() {
            return Ok(());
        }
        let records = self.merge(records, &kept)?;
        self.index.rewrite(&records)?;
        self.own = None;
        self.open.clear();
        old.iter().try_for_each(|path| self.io.remove_file(path))
    }

    /// Copies the values that are in none of the `kept` files into a new one; returns where everything is then.
    fn merge(&mut self, records: Vec<IndexRecord>, kept: &BTreeSet<u64>) -> Result<Vec<IndexRecord>> {
        let (mut placed, mut waiting) = (Vec::with_capacity(records.len()), Vec::new());
        let mut merged = None;
        for record in records {
            if kept.contains(&record.place.data) {
                placed.push(record);
                continue;
            }
            let Some(value) = self.value(record.place)? else { continue };
            let own: &mut OwnData = match &mut merged {
                Some(own) => own,
                none => none.insert(self.start()?),
            };
            placed.push(IndexRecord { place: Place { data: own.id, offset: own.len, ..record.place }, ..record });
            own.len += record.place.len;
            waiting.extend(value);
            if waiting.len() >= CHUNK {
                self.io.append(&own.file, &own.path, &waiting)?;
                waiting.clear();
            }
        }
        if let Some(own) = merged {
            self.io.append(&own.file, &own.path, &waiting)?;
            // Whatever the store's options: the values' old places go next.
            self.io.sync_always(&own.path)?;
        }
        Ok(placed)
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
    home: Home,
    dir: PathBuf,
    spaces: Mutex<BTreeMap<String, Arc<Mutex<Space>>>>,
    _held: Held,
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
    pub(crate) fn new(home: Home, dir: PathBuf, held: Held) -> Self {
        Self { shared: Arc::new(Shared { home, dir, spaces: Mutex::new(BTreeMap::new()), _held: held }) }
    }

    fn space(&self, namespace: &str) -> Result<Arc<Mutex<Space>>> {
        let Shared { home, dir, spaces, .. } = &*self.shared;
        if !is_name(namespace) {
            return Err(StoreError::Namespace { path: dir.clone(), name: namespace.to_owned() });
        }
        let mut spaces = spaces.lock().expect("no panic while the memo is held");
        let fresh = || Arc::new(Mutex::new(Space::new(home, dir.join(namespace))));
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
        let dirs = self.shared.home.io.list(&self.shared.dir)?;
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
        space.index.refresh()?;
        let mut bytes = 0;
        for path in self.shared.home.io.list(&space.dir)? {
            bytes += self.shared.home.io.stat(&path)?.map_or(0, |stat| stat.size);
        }
        Ok(MemoStats { namespace, records: space.index.len() as u64, bytes })
    }

    /// Merges the files of every namespace. Only for a caller that has the store for itself.
    pub(crate) fn compact(&self) -> Result<()> {
        for namespace in self.namespaces()? {
            self.space(&namespace)?.lock().expect("no panic while a namespace is held").compact()?;
        }
        Ok(())
    }

    /// Forgets everything. Only for a caller that has the store for itself.
    pub(crate) fn clear(&self) -> Result<()> {
        self.shared.spaces.lock().expect("no panic while the memo is held").clear();
        self.shared.home.io.remove_tree(&self.shared.dir)
    }
}
