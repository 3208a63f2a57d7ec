//! Background syncing: after a publication, one thread flushes its objects to the device and then marks the entry.
//!
//! Nobody waits for it: a killed process loses nothing that reached the kernel, and after a power cut an entry without its
//! mark is verified by hash. An fsync costs milliseconds a file, and syncfs would flush everybody's pages; so the thread goes
//! file by file and stops early when the store is closed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use crate::core::Core;
use crate::entries::EntryRecord;
use crate::{Artifact, ArtifactKind, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

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

fn work(core: &Core, jobs: &Receiver<Job>, stop: &AtomicBool) {
    for job in jobs {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        match job {
            // What fails to sync stays unmarked, which is safe.
            Job::Entry(record, outputs) => drop(sync_entry(core, record, &outputs, stop)),
            Job::Reached(sender) => drop(sender.send(())),
        }
    }
}

fn sync_entry(core: &Core, record: EntryRecord, outputs: &[Artifact], stop: &AtomicBool) -> Result<()> {
    let mut files = BTreeSet::from([core.object_path(&record.recipe), core.object_path(&record.outputs)]);
    for artifact in outputs {
        files.insert(core.object_path(&artifact.digest));
        if artifact.kind == ArtifactKind::Tree {
            files.extend(core.manifest(&artifact.digest)?.files().iter().map(|file| core.object_path(&file.digest)));
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
    mark(core, record)
}

/// Marks the entry, then flushes the log so that the mark outlives a power cut too.
fn mark(core: &Core, record: EntryRecord) -> Result<()> {
    let log = {
        let mut entries = core.entries.lock().expect("no panic while entries are held");
        entries.mark_synced(record)?;
        entries.own_path().map(Path::to_owned)
    };
    log.iter().map(PathBuf::as_path).chain([&*core.root.join("entries")]).try_for_each(|path| core.io.sync(path))
}
