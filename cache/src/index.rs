//! Indexes: sorted snapshot below, logs on top.
//!
//! A directory holds one file `snapshot` (see [`crate::snapshot`]) and the logs (see [`crate::log`]) of what was written since.
//! A reader keeps the records of the logs in memory, the *tail*, and asks the snapshot for the rest where it lies.
//!
//! Two write snapshots. gc, which has the store for itself, writes what it keeps. And whoever first looks at an index while
//! dead writers' logs have grown large *absorbs* them, so that what is loaded stays small without a gc:
//!
//! 1. takes the index's lock, or leaves it to whoever has it
//! 2. finds the logs of writers that are gone: no lock file of theirs is left, so nobody will append
//! 3. reads everything, writes all of it as a new snapshot, flushes it, renames it into place, flushes the folder
//! 4. removes those logs
//!
//! | killed | what is left |
//! |---|---|
//! | before the rename | a temporary file, swept like all of the dead |
//! | after it | some logs whose records the snapshot has too, and they agree; the next to absorb removes them |
//!
//! A reader lists and reads the logs first and looks at the snapshot last. A log that it did not find any more was removed
//! after the rename, so the snapshot that it then opens has those records; a snapshot has one name, so it cannot be overlooked.
//! Nobody takes a snapshot's records back but gc.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::ops::RangeBounds;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::StoreError;
use crate::heartbeat::Beats;
use crate::io::Io;
use crate::lock::Locks;
use crate::log::Log;
use crate::snapshot::{self, Keyed, Snapshot};

type Result<T> = std::result::Result<T, StoreError>;

/// Logs are absorbed when they hold an eighth of what the snapshot does: each record is rewritten some eight times at most
/// while an index doubles.
const SHARE: u64 = 8;

/// Where the indexes of a store live, and who writes.
#[derive(Clone)]
pub(crate) struct Home {
    pub(crate) io: Io,
    /// The store's folder for what is not finished, with the lock files of living writers.
    pub(crate) tmp: PathBuf,
    pub(crate) writer: String,
    /// Bytes of dead writers' logs that are left alone.
    pub(crate) absorb: u64,
    pub(crate) beats: Option<Arc<Beats>>,
}

impl Home {
    /// How processes that have the store open lock by name.
    pub(crate) fn locks(&self) -> Locks {
        Locks { io: self.io.clone(), beats: self.beats.clone() }
    }
}

#[cfg(test)]
impl Home {
    /// A home below `root` without faults.
    pub(crate) fn of(root: &Path, writer: &str, absorb: u64) -> Self {
        Self { io: Io::default(), tmp: root.join("tmp"), writer: writer.to_owned(), absorb, beats: None }
    }
}

/// The records of one directory, as one writer sees them.
pub(crate) struct Index<R: Keyed> {
    home: Home,
    dir: PathBuf,
    log: Log<R>,
    snapshot: Option<Snapshot<R>>,
    /// A snapshot is there that is none: whoever would replace it could lose what it holds.
    damaged: bool,
    tail: BTreeMap<R::Key, R>,
    looked: bool,
}

fn add<R: Keyed>(tail: &mut BTreeMap<R::Key, R>, record: R) {
    tail.entry(record.key()).and_modify(|known| *known = known.merge(record)).or_insert(record);
}

/// Two ascending streams as one; where both have a key, the second is the later word.
#[derive(Clone)]
struct Merged<R, A: Iterator<Item = R>, B: Iterator<Item = R>>(Peekable<A>, Peekable<B>);

impl<R: Keyed, A: Iterator<Item = R>, B: Iterator<Item = R>> Iterator for Merged<R, A, B> {
    type Item = R;

    fn next(&mut self) -> Option<R> {
        let Self(old, new) = self;
        match (old.peek(), new.peek()) {
            (Some(a), Some(b)) if a.key() == b.key() => Some(old.next()?.merge(new.next()?)),
            (Some(a), Some(b)) if a.key() > b.key() => new.next(),
            (None, _) => new.next(),
            _ => old.next(),
        }
    }
}

impl<R: Keyed> Index<R> {
    /// The index below `dir`, nothing read yet. The directory is made with the first record.
    pub(crate) fn new(home: &Home, dir: PathBuf) -> Self {
        let log = Log::new(home.io.clone(), dir.clone(), &home.writer);
        Self { home: home.clone(), dir, log, snapshot: None, damaged: false, tail: BTreeMap::new(), looked: false }
    }

    fn snapshot_path(&self) -> PathBuf {
        self.dir.join("snapshot")
    }

    /// Reads what other processes appended since.
    pub(crate) fn refresh(&mut self) -> Result<()> {
        self.read()?;
        if !self.looked {
            self.looked = true;
            // Where it fails everything is as it was, and somebody else will try.
            let _ = self.absorb();
        }
        Ok(())
    }

    /// [`Index::refresh`], unless it was done a moment ago.
    pub(crate) fn refresh_recent(&mut self) -> Result<()> {
        if self.log.is_recent() { Ok(()) } else { self.refresh() }
    }

    fn read(&mut self) -> Result<()> {
        let Self { log, tail, .. } = self;
        log.refresh(|record| add(tail, record))?;
        // The snapshot last: see above.
        self.look()
    }

    /// Opens the snapshot that is there now, unless it is open.
    fn look(&mut self) -> Result<()> {
        let path = self.snapshot_path();
        let now = self.home.io.stat(&path)?;
        if now.as_ref() != self.snapshot.as_ref().map(Snapshot::stat) {
            self.snapshot = if now.is_some() { Snapshot::open(&self.home.io, &path)? } else { None };
            self.damaged = now.is_some() && self.snapshot.is_none();
        }
        Ok(())
    }

    /// The record under `key`, as far as it was read.
    pub(crate) fn get(&self, key: &R::Key) -> Option<R> {
        let below = self.snapshot.as_ref().and_then(|snapshot| snapshot.get(key));
        match (below, self.tail.get(key)) {
            (Some(old), Some(new)) => Some(old.merge(*new)),
            (old, new) => old.or(new.copied()),
        }
    }

    /// The records whose keys begin with `start`; `keys` are the keys that do.
    pub(crate) fn starting_with(&self, start: &[u8], keys: impl RangeBounds<R::Key>) -> Vec<R> {
        let below = self.snapshot.iter().flat_map(|snapshot| snapshot.starting_with(start));
        Merged(below.peekable(), self.tail.range(keys).map(|(_, record)| *record).peekable()).collect()
    }

    /// All records, by key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = R> + Clone {
        let below = self.snapshot.iter().flat_map(Snapshot::iter);
        Merged(below.peekable(), self.tail.values().copied().peekable())
    }

    /// Number of records, those that are damaged included.
    pub(crate) fn len(&self) -> usize {
        let Some(snapshot) = &self.snapshot else { return self.tail.len() };
        snapshot.len() + self.tail.keys().filter(|key| snapshot.get(key).is_none()).count()
    }

    /// Appends records to this writer's log, all in one write.
    pub(crate) fn append(&mut self, records: &[R]) -> Result<()> {
        self.log.append(records)?;
        records.iter().for_each(|record| add(&mut self.tail, *record));
        Ok(())
    }

    /// The log that this writer appends to, once it has.
    pub(crate) fn own_path(&self) -> Option<&Path> {
        self.log.own_path()
    }

    /// The logs read whose writers are gone, when they hold enough to be moved.
    fn dead_logs(&self) -> Result<Vec<PathBuf>> {
        let enough = self.home.absorb.max(self.snapshot.as_ref().map_or(0, Snapshot::bytes) / SHARE);
        let mut dead = Vec::new();
        if self.log.consumed().values().sum::<u64>() < enough {
            return Ok(dead);
        }
        let mut bytes = 0;
        for (path, size) in self.log.consumed() {
            if self.is_dead(path)? {
                bytes += size;
                dead.push(path.clone());
            }
        }
        Ok(if bytes >= enough { dead } else { Vec::new() })
    }

    /// Whether the writer of a log holds no lock file any more. A dead writer's is removed by whoever opens the store.
    fn is_dead(&self, log: &Path) -> Result<bool> {
        let name = log.file_stem().unwrap_or_default().to_string_lossy();
        let writer = name.split('-').next().unwrap_or_default();
        let alive = self.home.io.stat(&self.home.tmp.join(format!("{writer}.lock")))?;
        Ok(writer != self.home.writer && alive.is_none())
    }

    fn absorb(&mut self) -> Result<()> {
        if self.home.absorb == u64::MAX || self.dead_logs()?.is_empty() {
            return Ok(());
        }
        let Some(lock) = self.home.locks().try_take(&self.dir.join("absorb.lock"))? else { return Ok(()) };
        // Somebody may have done it meanwhile.
        self.read()?;
        let dead = self.dead_logs()?;
        if dead.is_empty() {
            return Ok(());
        }
        // Who was found dead wrote its last before it is read now.
        self.read()?;
        self.place(self.iter(), &|| lock.is_own())?;
        dead.iter().try_for_each(|path| self.home.io.remove_file(path))?;
        self.tail.clear();
        self.log.forget();
        self.read()
    }

    /// Puts a snapshot of `records` in the place of the one that is there.
    ///
    /// # Errors
    /// The one that is there is damaged, or `may` says no when all is written: somebody else is at it now.
    fn place(&self, records: impl Iterator<Item = R> + Clone, may: &dyn Fn() -> Result<bool>) -> Result<()> {
        if self.damaged {
            return Err(self.whole());
        }
        let Home { io, tmp, writer, .. } = &self.home;
        io.make_dirs(&tmp.join(writer))?;
        let name: String =
            self.dir.components().rev().take(2).map(|part| part.as_os_str().to_string_lossy() + ".").collect();
        let temporary = tmp.join(writer).join(format!("{name}snapshot"));
        io.remove_file(&temporary)?;
        snapshot::write(io, &temporary, records)?;
        if !may()? {
            io.remove_file(&temporary)?;
            return Err(StoreError::Busy { path: self.dir.clone() });
        }
        io.rename(&temporary, &self.snapshot_path())?;
        io.sync_always(&self.dir)
    }

    /// What to say of a snapshot that is none.
    fn whole(&self) -> StoreError {
        let what = "it is no whole snapshot of this index; move it away to go on without what it held".to_owned();
        StoreError::Malformed { path: self.snapshot_path(), what }
    }

    /// Refuses to go on where the snapshot cannot be read: who frees things must know all there is.
    pub(crate) fn must_be_whole(&mut self) -> Result<()> {
        self.refresh()?;
        if self.damaged { Err(self.whole()) } else { Ok(()) }
    }

    /// Moves everything into the snapshot. Only for a caller that has the store for itself.
    pub(crate) fn compact(&mut self) -> Result<()> {
        self.refresh()?;
        if self.is_compact() {
            return Ok(());
        }
        let records: Vec<_> = self.iter().collect();
        self.rewrite(&records)
    }

    /// Whether every record lies in the snapshot, as far as was read.
    pub(crate) fn is_compact(&self) -> bool {
        self.log.consumed().is_empty()
    }

    /// Replaces everything by `records`, whose keys ascend: complete under its name before the old files go. Only for a
    /// caller that has the store for itself.
    pub(crate) fn rewrite(&mut self, records: &[R]) -> Result<()> {
        if self.damaged {
            return Err(self.whole());
        }
        if !records.is_empty() {
            self.home.io.make_dirs(&self.dir)?;
            self.place(records.iter().copied(), &|| Ok(true))?;
        }
        self.log.clear()?;
        if records.is_empty() {
            self.home.io.remove_file(&self.snapshot_path())?;
        }
        self.tail.clear();
        self.read()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;
    use crate::log::Record;

    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Fact(Digest, u64);

    impl Record for Fact {
        const TAG: [u8; 4] = *b"fact";
        const SIZE: usize = 40;

        fn encode(&self, out: &mut Vec<u8>) {
            out.extend(self.0.as_bytes());
            out.extend(self.1.to_le_bytes());
        }

        fn decode(bytes: &[u8]) -> Self {
            Self(crate::statcache::digest_at(bytes, 0), crate::statcache::word(bytes, 4))
        }
    }

    impl Keyed for Fact {
        type Key = [u8; 32];
        const KEY_AT: usize = 0;
        const EVEN: bool = true;

        fn key(&self) -> [u8; 32] {
            *self.0.as_bytes()
        }

        fn merge(self, later: Self) -> Self {
            if later.1 > self.1 { later } else { self }
        }
    }

    fn fact(n: u64, value: u64) -> Fact {
        Fact(Digest::of(&n.to_le_bytes()), value)
    }

    fn index(root: &Path, writer: &str, absorb: u64) -> Index<Fact> {
        Index::new(&Home::of(root, writer, absorb), root.join("facts"))
    }

    /// What a reader that just came finds of `0..count`, without changing anything.
    fn values(root: &Path, count: u64) -> Vec<Option<u64>> {
        let mut reader = index(root, "reader", u64::MAX);
        reader.refresh().unwrap();
        let values: Vec<_> = (0..count).map(|n| reader.get(&fact(n, 0).key()).map(|fact| fact.1)).collect();
        assert_eq!(reader.len(), values.iter().flatten().count());
        assert_eq!(reader.iter().count(), reader.len());
        values
    }

    fn files(root: &Path) -> Vec<String> {
        let list = Io::default().list(&root.join("facts")).unwrap();
        list.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    /// Says that a writer lives.
    fn live(root: &Path, writer: &str) -> PathBuf {
        std::fs::create_dir_all(root.join("tmp")).unwrap();
        let path = root.join("tmp").join(format!("{writer}.lock"));
        std::fs::write(&path, "").unwrap();
        path
    }

    #[test]
    fn only_logs_of_the_dead_are_absorbed_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let lock = live(root, "a");
        let (mut a, mut b) = (index(root, "a", 1), index(root, "b", 1));
        a.append(&[fact(0, 1), fact(1, 1)]).unwrap();
        b.append(&[fact(1, 2), fact(2, 1)]).unwrap();
        drop(b);
        let mut c = index(root, "c", 1);
        c.refresh().unwrap();
        assert_eq!(files(root), ["a-0.log", "snapshot"]);
        a.append(&[fact(3, 1), fact(2, 5)]).unwrap();
        assert_eq!(values(root, 5), [Some(1), Some(2), Some(5), Some(1), None]);
        c.refresh().unwrap();
        assert_eq!(c.get(&fact(2, 0).key()), Some(fact(2, 5)));
        std::fs::remove_file(lock).unwrap();
        index(root, "d", 1).refresh().unwrap();
        assert_eq!(files(root), ["snapshot"]);
        assert_eq!(values(root, 5), [Some(1), Some(2), Some(5), Some(1), None]);
        // Who had read the logs before they went still knows, and sees the next snapshot.
        index(root, "e", 1).append(&[fact(4, 9)]).unwrap();
        index(root, "f", 1).refresh().unwrap();
        a.refresh().unwrap();
        assert_eq!((0..5).filter_map(|n| Some(a.get(&fact(n, 0).key())?.1)).collect::<Vec<_>>(), [1, 2, 5, 1, 9]);
    }

    #[test]
    fn little_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        index(root, "a", 1).append(&[fact(0, 1)]).unwrap();
        index(root, "b", 1000).refresh().unwrap();
        assert_eq!(files(root), ["a-0.log"]);
        // Beside a large snapshot much is little.
        index(root, "c", 1).rewrite(&sorted(0..100)).unwrap();
        index(root, "d", 1).append(&[fact(200, 1), fact(201, 1)]).unwrap();
        index(root, "e", 1).refresh().unwrap();
        assert_eq!(files(root), ["d-0.log", "snapshot"]);
    }

    fn sorted(numbers: std::ops::Range<u64>) -> Vec<Fact> {
        let mut facts: Vec<_> = numbers.map(|n| fact(n, n)).collect();
        facts.sort_by_key(Keyed::key);
        facts
    }

    #[test]
    fn rewriting_leaves_one_file_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let mut a = index(root, "a", u64::MAX);
        a.append(&[fact(0, 1)]).unwrap();
        index(root, "b", 1).append(&[fact(1, 1)]).unwrap();
        a.rewrite(&sorted(3..5)).unwrap();
        assert_eq!(files(root), ["snapshot"]);
        assert_eq!(values(root, 5), [None, None, None, Some(3), Some(4)]);
        a.append(&[fact(0, 7)]).unwrap();
        assert_eq!(values(root, 5), [Some(7), None, None, Some(3), Some(4)]);
        a.rewrite(&[]).unwrap();
        assert_eq!((files(root).len(), a.len()), (0, 0));
    }

    #[test]
    fn readers_beside_a_crowd_that_absorbs_miss_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        live(root, "r");
        let written = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..400 {
                    index(root, &format!("w{n}"), 1).append(&[fact(n, n)]).unwrap();
                    written.store(n + 1, std::sync::atomic::Ordering::SeqCst);
                }
            });
            for thread in 0..3 {
                let written = &written;
                scope.spawn(move || {
                    let mut old = index(root, "r", u64::MAX);
                    while written.load(std::sync::atomic::Ordering::SeqCst) < 400 {
                        let known = written.load(std::sync::atomic::Ordering::SeqCst);
                        let mut fresh = index(root, &format!("r{thread}"), 1);
                        fresh.refresh().unwrap();
                        old.refresh().unwrap();
                        for reader in [&fresh, &old] {
                            assert!(
                                (0..known).all(|n| reader.get(&fact(n, 0).key()) == Some(fact(n, n))),
                                "of {known}"
                            );
                        }
                    }
                });
            }
        });
        assert_eq!(values(root, 400).iter().flatten().count(), 400);
    }
}
