//! A power cut at every file operation: what was not flushed may be gone, torn, zeroed or undone.
//!
//! [`Disk`] watches the store work and notes what each flush makes durable: a file's bytes, a directory's names. After the
//! cut a [`Loss`] decides for every name and every byte that was not flushed what becomes of it, and the image of the disk
//! is written out. The next boot must answer with the truth or nothing, keep what was flushed and marked, and go on to the
//! same bytes. Numbers of operations differ a little from run to run, as several threads work; every count is visited.
//!
//! | loss | names not flushed | bytes not flushed |
//! |---|---|---|
//! | `Everything` | as at the last flush | gone |
//! | `Truncated` | there | gone |
//! | `Zeroed` | there | zeros, the file has its full size and its old stamps |
//! | `Hollow` | there | those of every other object are zeros, as above; all others are there |
//! | `Torn` | there | half of them there |
//! | `Undone` | there, and what was removed or replaced is back | there |
//! | `Mixed` | each by the toss of a coin | each file one of the above |
//!
//! The stat cache is made to match the image, so that an old stamp vouches for new zeros as it would on a file system that
//! writes sizes before content.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use mpcc_cache::{Faults, Op, Store, StoreOptions, Verdict};

use crate::support::{fast_dir, heavy, no_forks};
use crate::workload::{KEPT, Promise, Told, check, converge, run};

/// What becomes of what was not flushed.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Everything,
    Truncated,
    Zeroed,
    Hollow(u64),
    Torn,
    Undone,
    Mixed(u64),
}

type Names = BTreeMap<OsString, u64>;

#[derive(Default)]
struct Durable {
    left: u64,
    /// Bytes of an inode at its last flush.
    files: BTreeMap<u64, Vec<u8>>,
    /// Names in a directory at its last flush.
    dirs: BTreeMap<PathBuf, Names>,
    /// Bytes of what was removed or replaced since, and how many of them were flushed: it may come back, and as long as a name
    /// may lead to it, what was flushed of it is there.
    removed: BTreeMap<u64, (Vec<u8>, usize)>,
}

/// Lets some operations pass, then the power is off; remembers what was flushed.
struct Disk(Mutex<Durable>);

fn names_in(dir: &Path) -> Names {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| (entry.file_name(), fs::symlink_metadata(entry.path()).unwrap().ino())).collect()
}

impl Durable {
    fn flush(&mut self, path: &Path) {
        let Ok(stat) = fs::symlink_metadata(path) else { return };
        if stat.is_dir() {
            self.dirs.insert(path.to_owned(), names_in(path));
        } else {
            self.files.insert(stat.ino(), fs::read(path).unwrap());
        }
    }

    fn forget(&mut self, path: &Path) {
        if let Ok(stat) = fs::symlink_metadata(path)
            && stat.is_file()
            && stat.nlink() == 1
        {
            // Some file systems give the number to another file at once.
            let flushed = self.files.remove(&stat.ino()).map_or(0, |bytes| bytes.len());
            self.removed.insert(stat.ino(), (fs::read(path).unwrap(), flushed));
        }
    }
}

impl Faults for Disk {
    fn before(&self, op: Op, path: &Path) -> Verdict {
        let mut disk = self.0.lock().unwrap();
        if disk.left == 0 {
            return Verdict::Fail(io::Error::other("the power is off"));
        }
        disk.left -= 1;
        match op {
            Op::Sync => disk.flush(path),
            Op::Remove | Op::Rename => disk.forget(path),
            Op::Write(len) if disk.left == 0 => return Verdict::Tear(len / 2),
            _ => {}
        }
        Verdict::Pass
    }
}

#[derive(Clone)]
struct Bytes {
    all: Vec<u8>,
    flushed: usize,
    mode: u32,
}

/// Writes the image of a disk after a cut.
struct Image<'a> {
    disk: &'a Durable,
    loss: Loss,
    from: &'a Path,
    to: &'a Path,
    /// Old inode -> its place in the image, to keep hard links together.
    placed: BTreeMap<u64, PathBuf>,
    /// Bytes by old inode, whatever its names now, and how many of them were flushed.
    bytes: BTreeMap<u64, Bytes>,
}

/// A coin and a die that fall the same way every time for the same name.
fn toss(seed: u64, what: &str) -> u64 {
    u64::from_le_bytes(blake3::hash(format!("{seed} {what}").as_bytes()).as_bytes()[..8].try_into().unwrap())
}

impl<'a> Image<'a> {
    fn write(disk: &'a Durable, loss: Loss, from: &'a Path, to: &'a Path) {
        let mut bytes: BTreeMap<_, _> = disk
            .removed
            .iter()
            .map(|(ino, (all, flushed))| (*ino, Bytes { all: all.clone(), flushed: *flushed, mode: 0o444 }))
            .collect();
        for path in crate::support::below(from) {
            let stat = fs::symlink_metadata(&path).unwrap();
            if stat.is_file() {
                let flushed = disk.files.get(&stat.ino()).map_or(0, Vec::len);
                let mode = stat.mode() & 0o7777;
                bytes.insert(stat.ino(), Bytes { all: fs::read(&path).unwrap(), flushed, mode });
            }
        }
        let mut image = Self { disk, loss, from, to, placed: BTreeMap::new(), bytes };
        image.dir(from, 0o755);
        forge_stamps(from, to, &image.placed);
    }

    fn inside(&self, path: &Path) -> PathBuf {
        self.to.join(path.strip_prefix(self.from).unwrap())
    }

    fn dir(&mut self, dir: &Path, mode: u32) {
        let target = self.inside(dir);
        fs::create_dir_all(&target).unwrap();
        let (now, then) = (names_in(dir), self.disk.dirs.get(dir).cloned().unwrap_or_default());
        let all: BTreeSet<&OsString> = now.keys().chain(then.keys()).collect();
        for name in all {
            let path = dir.join(name);
            let Some(ino) = self.name(&path, now.get(name), then.get(name)) else { continue };
            match fs::symlink_metadata(&path) {
                Ok(stat) if stat.is_dir() && stat.ino() == ino => self.dir(&path, stat.mode() & 0o7777),
                // A directory that is gone comes back as it was flushed.
                _ if self.disk.dirs.contains_key(&path) && !self.bytes.contains_key(&ino) => self.dir(&path, 0o755),
                _ => self.file(&path, ino),
            }
        }
        fs::set_permissions(&target, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// The inode that the name leads to after the cut.
    fn name(&self, path: &Path, now: Option<&u64>, then: Option<&u64>) -> Option<u64> {
        if now == then {
            return now.copied();
        }
        let back = match self.loss {
            Loss::Everything => true,
            Loss::Truncated | Loss::Zeroed | Loss::Hollow(_) | Loss::Torn => false,
            Loss::Undone => then.is_some(),
            Loss::Mixed(seed) => toss(seed, &path.to_string_lossy()).is_multiple_of(2),
        };
        if back { then.copied() } else { now.copied() }
    }

    fn file(&mut self, path: &Path, ino: u64) {
        let target = self.inside(path);
        if let Some(first) = self.placed.get(&ino) {
            return fs::hard_link(first, &target).unwrap();
        }
        let Some(bytes) = self.bytes.get(&ino).cloned() else { return };
        fs::write(&target, self.content(path, ino, &bytes)).unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(bytes.mode)).unwrap();
        self.placed.insert(ino, target);
    }

    fn content(&self, path: &Path, ino: u64, bytes: &Bytes) -> Vec<u8> {
        let now = &bytes.all;
        let durable = bytes.flushed.min(now.len());
        let loss = match self.loss {
            Loss::Mixed(seed) => {
                [Loss::Truncated, Loss::Zeroed, Loss::Torn, Loss::Undone][(toss(seed, &format!("{ino}")) % 4) as usize]
            }
            Loss::Hollow(seed) => {
                let object = path.starts_with(self.from.join("store/objects"));
                if object && toss(seed, &format!("{ino}")).is_multiple_of(2) { Loss::Zeroed } else { Loss::Undone }
            }
            other => other,
        };
        // The workspace is not the store's: of its files only lengths are promised to tell.
        let outside = !path.starts_with(self.from.join("store"));
        let keep = match loss {
            Loss::Undone => now.len(),
            Loss::Torn => durable + (now.len() - durable) / 2,
            Loss::Zeroed if !outside => durable,
            _ => durable,
        };
        let mut bytes = now[..keep].to_vec();
        if matches!(loss, Loss::Zeroed) && !outside {
            bytes.resize(now.len(), 0);
        }
        bytes
    }
}

/// Bytes of a record of the stat cache, and of its payload.
const FRAME: usize = 80;
const PAYLOAD: usize = 72;

fn stamp(seconds: i64, ns: i64) -> u64 {
    (seconds * 1_000_000_000 + ns).cast_unsigned()
}

/// Makes the records of the stat cache that were true before the cut true of the image: a disk keeps inode and stamps.
fn forge_stamps(from: &Path, to: &Path, placed: &BTreeMap<u64, PathBuf>) {
    let mut before = BTreeMap::new();
    for path in crate::support::below(from) {
        let stat = fs::symlink_metadata(&path).unwrap();
        before.insert(stat.ino(), [stamp(stat.mtime(), stat.mtime_nsec()), stamp(stat.ctime(), stat.ctime_nsec())]);
    }
    for file in crate::support::below(&to.join("store/stat")) {
        let sorted = file.ends_with("snapshot");
        let mut bytes = fs::read(&file).unwrap();
        let frames = bytes.get_mut(if sorted { 32 } else { 16 }..).unwrap_or_default();
        for frame in frames.chunks_exact_mut(FRAME) {
            forge(frame, &before, placed);
        }
        if sorted {
            let mut all: Vec<_> = frames.chunks_exact(FRAME).map(<[u8]>::to_vec).collect();
            all.sort_by(|a, b| a[..16].cmp(&b[..16]));
            frames[..all.len() * FRAME].copy_from_slice(&all.concat());
        }
        fs::write(&file, bytes).unwrap();
    }
}

/// Gives a record device, inode and stamps of the file's place in the image.
fn forge(frame: &mut [u8], before: &BTreeMap<u64, [u64; 2]>, placed: &BTreeMap<u64, PathBuf>) {
    let word = |at: usize| u64::from_le_bytes(frame[8 * at..8 * at + 8].try_into().unwrap());
    let (ino, size) = (word(1), word(2));
    let true_before = before.get(&ino) == Some(&[word(3), word(4)]);
    let Some(stat) = placed.get(&ino).filter(|_| true_before).map(|path| fs::metadata(path).unwrap()) else { return };
    // Another size is another key, on a disk too.
    if stat.size() != size || blake3::hash(&frame[..PAYLOAD]).as_bytes()[..8] != frame[PAYLOAD..] {
        return;
    }
    let stamps = [stamp(stat.mtime(), stat.mtime_nsec()), stamp(stat.ctime(), stat.ctime_nsec())];
    for (at, value) in [stat.dev(), stat.ino(), size, stamps[0], stamps[1]].into_iter().enumerate() {
        frame[8 * at..8 * at + 8].copy_from_slice(&value.to_le_bytes());
    }
    let check = blake3::hash(&frame[..PAYLOAD]);
    frame[PAYLOAD..].copy_from_slice(&check.as_bytes()[..8]);
}

fn boot(name: &str, faults: Option<Arc<dyn Faults>>) -> StoreOptions {
    StoreOptions { sync: true, boot: Some(name.to_owned()), faults, ..StoreOptions::default() }
}

/// Cuts the power after `k` operations and boots from an image for each loss; whether the workload had ended before.
fn cut(k: u64, losses: &[Loss]) -> bool {
    let (dir, _still) = (fast_dir(), no_forks());
    let disk = Arc::new(Disk(Mutex::new(Durable { left: k, ..Durable::default() })));
    let mut told = Told::default();
    let finished = run(dir.path(), boot("one", Some(disk.clone())), &mut told).is_ok();
    let disk = disk.0.lock().unwrap();
    for (index, loss) in losses.iter().enumerate() {
        let image = fast_dir();
        Image::write(&disk, *loss, dir.path(), image.path());
        let when = format!("cut after {k} operations, {loss:?}");
        // Half of the time somebody looks around first, which may heal things; half of the time a run goes straight on.
        if (index as u64 + k).is_multiple_of(2) {
            look_around(image.path(), &told, &when);
        }
        converge(image.path(), boot("two", None), &when);
    }
    finished
}

/// What was flushed and marked is answered, and nothing that is answered is found damaged when every byte is hashed.
fn look_around(top: &Path, told: &Told, when: &str) {
    let entries = told.flushed.iter().copied().filter(|name| KEPT.contains(name)).collect();
    let answered = check(top, boot("two", None), &Promise { entries, ..Promise::default() }, when);
    let report = Store::open(&top.join("store"), boot("two", None)).unwrap().verify().unwrap();
    let lies: Vec<_> = report.damaged.iter().filter(|digest| answered.contains(digest)).collect();
    assert!(lies.is_empty(), "{when}: answered, but damaged: {lies:?}");
}

/// Three of the losses, others for the next `k`; all of them and twenty of the mixed ones when time does not matter.
fn losses(k: u64) -> Vec<Loss> {
    let fixed = [Loss::Everything, Loss::Truncated, Loss::Zeroed, Loss::Hollow(k), Loss::Torn, Loss::Undone];
    if heavy() {
        let seeds = (0..20).map(|seed| k * 1000 + seed);
        return fixed.into_iter().chain(seeds.flat_map(|seed| [Loss::Mixed(seed), Loss::Hollow(seed)])).collect();
    }
    let turn = (k / 2) as usize;
    vec![fixed[turn % 6], fixed[(turn + 3) % 6], Loss::Mixed(k)]
}

#[test]
fn a_power_cut_at_any_operation_costs_at_most_work() {
    let cuts: u64 = std::thread::scope(|scope| {
        let all_cuts = |first: u64| {
            let mut k = first;
            loop {
                if cut(k, &losses(k)) {
                    return k / 2;
                }
                k += 2;
            }
        };
        let threads = [0, 1].map(|first| scope.spawn(move || all_cuts(first)));
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(cuts > 350, "the workload has only {cuts} operations");
}
