//! Heartbeats: locks made of files alone, for stores on NFS, whose servers emulate kernel locks well, badly or not at all.
//!
//! A lock is a file. Whoever holds it renews the file's mtime every few seconds; one that has missed many beats belongs to the
//! dead and may be taken over. Ages are differences of two stamps that the *file server* gave: a file's, and that of a probe
//! which the one who asks has just touched. No host's own clock is ever looked at.
//!
//! | step | how it is atomic |
//! |---|---|
//! | take | the probe, which says who asks, is linked to the lock's name; a reply that got lost is found by the probe's two links |
//! | renew | times are set through the open file, so that a name which another holder has by now is not renewed |
//! | take over | the stale file is renamed to a name of the taker's own: one of many wins; then the lock is free to be taken |
//! | give back | the name is removed if it still leads to the holder's file |
//!
//! A file is opened before its stamp is read, because NFS asks the server again on open and may answer from memory otherwise.
//!
//! What it is not: a holder that was stopped for longer than the limit comes back as a *zombie* and believes what is no longer
//! so. For a lease that costs a second execution, and both results are complete. Between a taker's look and its rename another
//! may have taken over; it is then put back, and in the moment between a third may enter.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::StoreError;
use crate::io::Io;

type Result<T> = std::result::Result<T, StoreError>;

/// Everybody's heartbeats of one open store.
pub(crate) struct Beats {
    io: Io,
    /// Where probes lie.
    dir: PathBuf,
    /// Random; names this one's probes.
    token: String,
    about: String,
    every: Duration,
    missed: u32,
    counter: AtomicU64,
    beating: AtomicBool,
    held: Mutex<BTreeMap<u64, (Arc<File>, PathBuf)>>,
}

/// A held lock; dropping it gives it back.
pub(crate) struct Beat {
    beats: Arc<Beats>,
    id: u64,
    file: Arc<File>,
    path: PathBuf,
}

/// What came of one try.
enum Try {
    Taken,
    Alive,
    Again,
}

impl Beats {
    /// Beats of a writer with random `token`, which are renewed `every` so often and stale after `missed` of them.
    pub(crate) fn new(io: Io, dir: PathBuf, token: String, (every, missed): (Duration, u32)) -> Result<Arc<Self>> {
        io.make_dirs(&dir)?;
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let about = format!("host {host}\nboot {}\npid {}\ntoken {token}\n", boot.trim(), std::process::id());
        let (counter, beating, held) = (AtomicU64::new(0), AtomicBool::new(false), Mutex::default());
        Ok(Arc::new(Self { io, dir, token, about, every, missed, counter, beating, held }))
    }

    fn limit_ns(&self) -> i64 {
        i64::try_from(self.every.as_nanos()).unwrap_or(i64::MAX).saturating_mul(i64::from(self.missed))
    }

    fn own(&self, extension: &str) -> PathBuf {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        self.dir.join(format!("{}-{number}.{extension}", self.token))
    }

    /// A new file that says who asks, and the server's time.
    fn probe(&self) -> Result<(Arc<File>, PathBuf, i64)> {
        let path = self.own("probe");
        self.io.write_new(&path, self.about.as_bytes())?;
        let file = self.io.open(&path)?;
        self.io.touch(&file, &path)?;
        let now = self.io.stat_open(&file, &path)?.mtime_ns;
        Ok((Arc::new(file), path, now))
    }

    /// Takes the lock `path` unless somebody who is alive holds it.
    pub(crate) fn try_take(self: &Arc<Self>, path: &Path) -> Result<Option<Beat>> {
        let (file, probe, now) = self.probe()?;
        let taken = self.take(&file, &probe, path, now);
        self.io.remove_file(&probe)?;
        if !taken? {
            return Ok(None);
        }
        let id = self.counter.fetch_add(1, Ordering::Relaxed);
        self.held.lock().expect("no panic while beats are held").insert(id, (file.clone(), path.to_owned()));
        self.start();
        Ok(Some(Beat { beats: self.clone(), id, file, path: path.to_owned() }))
    }

    fn take(&self, file: &File, probe: &Path, path: &Path, now: i64) -> Result<bool> {
        loop {
            match self.try_once(file, probe, path, now)? {
                Try::Taken => return Ok(true),
                Try::Alive => return Ok(false),
                Try::Again => {}
            }
        }
    }

    fn try_once(&self, file: &File, probe: &Path, path: &Path, now: i64) -> Result<Try> {
        match self.io.hard_link(probe, path) {
            Ok(()) => return Ok(Try::Taken),
            Err(error) if error.io_kind() == Some(ErrorKind::AlreadyExists) => {}
            Err(error) => return Err(error),
        }
        if self.io.stat_open(file, probe)?.links > 1 {
            return Ok(Try::Taken);
        }
        let Some(seen) = self.stat_fresh(path)? else { return Ok(Try::Again) };
        if now.saturating_sub(seen.mtime_ns) <= self.limit_ns() {
            return Ok(Try::Alive);
        }
        let stale = self.own("stale");
        match self.io.rename(path, &stale) {
            // Another was quicker.
            Err(error) if error.io_kind() == Some(ErrorKind::NotFound) => return Ok(Try::Again),
            result => result?,
        }
        let moved = self.stat_fresh(&stale)?;
        let right = moved.is_some_and(|moved| (moved.ino, moved.mtime_ns) == (seen.ino, seen.mtime_ns));
        if !right {
            // It was somebody's who is alive: back with it, unless the name is taken.
            let _ = self.io.hard_link(&stale, path);
        }
        self.io.remove_file(&stale)?;
        Ok(if right { Try::Again } else { Try::Alive })
    }

    /// Metadata as the server has it now.
    fn stat_fresh(&self, path: &Path) -> Result<Option<crate::io::FileStat>> {
        match self.io.open(path).and_then(|file| self.io.stat_open(&file, path)) {
            Ok(stat) => Ok(Some(stat)),
            Err(error) if error.io_kind() == Some(ErrorKind::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Which of these files somebody alive holds.
    pub(crate) fn alive(&self, paths: Vec<PathBuf>) -> Result<Vec<PathBuf>> {
        let mut alive = Vec::new();
        if paths.is_empty() {
            return Ok(alive);
        }
        let (_file, probe, now) = self.probe()?;
        self.io.remove_file(&probe)?;
        for path in paths {
            if self.stat_fresh(&path)?.is_some_and(|stat| now.saturating_sub(stat.mtime_ns) <= self.limit_ns()) {
                alive.push(path);
            }
        }
        Ok(alive)
    }

    /// Removes what those who died while they asked have left.
    pub(crate) fn sweep(&self) -> Result<()> {
        let passing = |path: &PathBuf| path.extension().is_some_and(|e| e == "probe" || e == "stale");
        let all: Vec<_> = self.io.list(&self.dir)?.into_iter().filter(passing).collect();
        let alive = self.alive(all.clone())?;
        all.iter().filter(|path| !alive.contains(path)).try_for_each(|path| self.io.remove_file(path))
    }

    /// Starts the thread that beats, once; it ends some time after the store is closed.
    fn start(self: &Arc<Self>) {
        if self.beating.swap(true, Ordering::SeqCst) {
            return;
        }
        let (weak, every) = (Arc::downgrade(self), self.every);
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(every);
                let Some(beats) = weak.upgrade() else { return };
                beats.beat();
            }
        });
    }

    fn beat(&self) {
        let held: Vec<_> = self.held.lock().expect("no panic while beats are held").values().cloned().collect();
        for (file, path) in held {
            // A beat that fails is a beat missed.
            let _ = self.io.touch(&file, &path);
        }
    }
}

impl Beat {
    /// Whether nobody has taken the lock over.
    pub(crate) fn is_own(&self) -> Result<bool> {
        let own = self.beats.io.stat_open(&self.file, &self.path)?;
        Ok(self.beats.stat_fresh(&self.path)?.is_some_and(|now| now.ino == own.ino))
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        self.beats.held.lock().expect("no panic while beats are held").remove(&self.id);
        // What cannot be given back grows stale.
        if self.is_own().unwrap_or(false) {
            let _ = self.beats.io.remove_file(&self.path);
        }
    }
}
