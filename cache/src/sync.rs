//! Background syncing: after a publication, one thread flushes its objects to the device and then marks the entry.
//!
//! Nobody waits for it: a killed process loses nothing that reached the kernel, and after a power cut an entry without its
//! mark is verified by hash. An fsync costs milliseconds a file and makes everybody's renames wait, and syncfs would flush
//! everybody's pages; so the thread gathers what is published within a few seconds, by when the kernel has written most of
//! it, flushes each file and folder once, and stops early when the store is closed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::core::Core;
use crate::entries::EntryRecord;
use crate::{Artifact, ArtifactKind, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

/// How long publications are gathered before they are flushed together.
const WINDOW: Duration = Duration::from_secs(5);

enum Job {
    Entry(EntryRecord, Vec<Artifact>),
    Reached(Sender<()>),
}

/// Hands work to the syncing thread, which starts with the first job.
pub(crate) struct Syncer {
    core: Arc<Core>,
    stop: Arc<AtomicBool>,
    queue: Mutex<Option<Sender<Job>>>,
    queued: Mutex<BTreeSet<(crate::Digest, crate::Digest)>>,
}

impl Syncer {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        Self { core, stop, queue: Mutex::new(None), queued: Mutex::new(BTreeSet::new()) }
    }

    fn send(&self, job: Job) {
        let mut queue = self.queue.lock().expect("no panic while the queue is held");
        let sender = queue.get_or_insert_with(|| {
            let (sender, receiver) = channel();
            let (core, stop) = (self.core.clone(), self.stop.clone());
            std::thread::spawn(move || work(&core, &receiver, &stop));
            sender
        });
        // The thread ends only with the store.
        let _ = sender.send(job);
    }

    /// Queues an entry, once.
    pub(crate) fn entry(&self, record: EntryRecord, outputs: Vec<Artifact>) {
        let mut queued = self.queued.lock().expect("no panic while the queue is held");
        if queued.insert((record.recipe, record.outputs)) {
            self.send(Job::Entry(record, outputs));
        }
    }

    /// Waits until everything queued so far was tried.
    pub(crate) fn wait(&self) {
        let (sender, receiver) = channel();
        self.send(Job::Reached(sender));
        // An error means that the thread is gone; then there is nothing to wait for.
        let _ = receiver.recv();
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// An entry and what it names.
type Unsynced = (EntryRecord, Vec<Artifact>);

fn work(core: &Core, jobs: &Receiver<Job>, stop: &AtomicBool) {
    while let Ok(first) = jobs.recv() {
        let (batch, reached) = gather(first, jobs);
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // What fails to sync stays unmarked, which is safe.
        let _ = sync_batch(core, &batch, stop);
        if let Some(sender) = reached {
            // Whoever waited may have given up.
            let _ = sender.send(());
        }
    }
}

/// Everything that is queued within [`WINDOW`] of the first job, or until somebody waits.
fn gather(first: Job, jobs: &Receiver<Job>) -> (Vec<Unsynced>, Option<Sender<()>>) {
    let (mut batch, begun) = (Vec::new(), Instant::now());
    let mut next = Some(first);
    while let Some(job) = next {
        match job {
            Job::Entry(record, outputs) => batch.push((record, outputs)),
            Job::Reached(sender) => return (batch, Some(sender)),
        }
        next = jobs.recv_timeout(WINDOW.saturating_sub(begun.elapsed())).ok();
    }
    (batch, None)
}

/// Flushes the objects of the entries, then the folders, each once; then marks the entries and flushes the log.
fn sync_batch(core: &Core, batch: &[Unsynced], stop: &AtomicBool) -> Result<()> {
    let mut files = BTreeSet::new();
    for (record, outputs) in batch {
        files.extend([core.object_path(&record.recipe), core.object_path(&record.outputs)]);
        for artifact in outputs {
            files.insert(core.object_path(&artifact.digest));
            if artifact.kind == ArtifactKind::Tree {
                let manifest = core.manifest(&artifact.digest)?;
                files.extend(manifest.files().iter().map(|file| core.object_path(&file.digest)));
            }
        }
    }
    let dirs: BTreeSet<PathBuf> = files.iter().filter_map(|file| file.parent()).map(Path::to_owned).collect();
    // The root too: it has the names of `objects` and `entries`.
    for path in files.iter().chain(&dirs).chain([&core.root.join("objects"), &core.root]) {
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        core.io.sync(path)?;
    }
    mark(core, batch)
}

/// Marks the entries, then flushes the log so that the marks outlive a power cut too.
fn mark(core: &Core, batch: &[Unsynced]) -> Result<()> {
    let log = {
        let mut entries = core.entries.lock().expect("no panic while entries are held");
        batch.iter().try_for_each(|(record, _)| entries.mark_synced(*record))?;
        entries.own_path().map(Path::to_owned)
    };
    log.iter().map(PathBuf::as_path).chain([&*core.root.join("entries")]).try_for_each(|path| core.io.sync(path))
}
