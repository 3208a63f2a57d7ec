//! The open store: one handle for everything, cheap to clone, safe to share between threads.

use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::bytes::{ByteLock, place_of};
use crate::core::{BootId, Core, Damage};
use crate::entries::{Entry, EntryRecord, OutputsList};
use crate::heartbeat::Beats;
use crate::index::Home;
use crate::io::{Faults, Io};
use crate::lease::{Lease, POLL};
use crate::ledger::Ledger;
use crate::lock::{Lock, Locking, Locks, beat_of, gc_beat};
use crate::manifest::{Links, Manifest};
use crate::memo::MemoStore;
use crate::objects::Trust;
use crate::partial::{claim_writer, sweep};
use crate::recipe::Recipe;
use crate::statcache::Guard;
use crate::sync::Syncer;
use crate::{Artifact, ArtifactKind, Digest, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

/// What the format file says.
const FORMAT: &str = "mpcc-store 1";

/// Port name -> artifact, in the order they were published.
type Outputs = Vec<(String, Artifact)>;

/// How to open a store.
#[derive(Clone)]
pub struct StoreOptions {
    /// Flush published objects, and what gc rewrites, to the device (default). Without it a power cut costs a
    /// verification by hash, and after a gc perhaps the entries it rewrote.
    pub sync: bool,
    /// Injects faults into every file operation; for tests.
    pub faults: Option<Arc<dyn Faults>>,
    /// Stands in for the machine's boot id; for tests.
    pub boot: Option<String>,
    /// Bytes of dead writers' logs in one index that are left alone (default 1 MiB); more are moved into its snapshot.
    pub absorb: u64,
    /// How processes tell each other what they hold. All that have the store open at once must agree, so a choice is kept in
    /// the store; make it while nobody else has it open.
    pub locking: Locking,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { sync: true, faults: None, boot: None, absorb: 1 << 20, locking: Locking::Auto }
    }
}

/// An open store. Clones share it; it closes with the last one.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
    /// Where lookups go on that find nothing here.
    #[cfg(feature = "remote")]
    pub(crate) through: Option<Arc<crate::remote::ReadThrough>>,
}

pub(crate) struct Inner {
    pub(crate) core: Arc<Core>,
    memo: MemoStore,
    syncer: Option<Syncer>,
    /// Held shared as long as the store is open; gc takes it exclusively.
    pub(crate) in_use: Arc<File>,
    _held: Held,
}

/// What keeps gc away, and keeps this writer's logs its own. A memo handle may outlive the store's, and holds it too.
#[derive(Clone)]
pub(crate) struct Held {
    _in_use: Arc<File>,
    _writer: Arc<Lock>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Whatever stays is swept by the next one who opens the store.
        let _ = self.core.io.remove_tree(&self.core.own_tmp());
    }
}

fn boot_id(given: Option<&str>) -> BootId {
    let read = || std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    let text = given.map(str::to_owned).or_else(read);
    text.map_or([0; 16], |text| Digest::of(text.trim().as_bytes()).as_bytes()[..16].try_into().expect("16 bytes"))
}

/// 16 hexadecimal digits that no other writer has: the hasher's keys come from the operating system's randomness.
pub(crate) fn random_id() -> String {
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    format!("{:016x}", hasher.finish())
}

/// Whether the store says that it is of this format; `false` when it says nothing. An older mpcc did not flush the file,
/// so that a power cut could leave it empty or all zeros: that says nothing either.
fn check_format(io: &Io, root: &Path) -> Result<bool> {
    let path = root.join("format");
    let bytes = io.read(&path)?.unwrap_or_default();
    let found = String::from_utf8_lossy(&bytes).trim_matches(|c: char| c == '\0' || c.is_whitespace()).to_owned();
    match found.as_str() {
        "" => Ok(false),
        FORMAT => Ok(true),
        _ => Err(StoreError::Format { path, found, ours: FORMAT }),
    }
}

/// Writes the format down so that it outlives a power cut, the directory's own name included.
fn write_format(core: &Core) -> Result<()> {
    let temporary = core.temporary()?;
    core.io.write_new(&temporary, format!("{FORMAT}\n").as_bytes())?;
    core.io.sync(&temporary)?;
    core.io.rename(&temporary, &core.root.join("format"))?;
    core.io.sync(&core.root)?;
    core.root.parent().map_or(Ok(()), |parent| core.io.sync(parent))
}

fn claim(locks: &Locks, tmp: &Path) -> Result<(String, Lock)> {
    loop {
        let writer = random_id();
        if let Some(lock) = claim_writer(locks, tmp, &writer)? {
            return Ok((writer, lock));
        }
    }
}

/// A record with its outputs, as callers see it.
fn entry((record, outputs): (EntryRecord, Outputs)) -> Entry {
    Entry { recipe: record.recipe, outputs, published_ns: record.time_ns }
}

impl Store {
    /// Opens the store at `root`, creating it when there is none, and removes what dead processes left half-done. Waits
    /// while a gc runs.
    ///
    /// # Errors
    /// The directory holds a store of another format, or the file system refuses.
    pub fn open(root: &Path, options: StoreOptions) -> Result<Self> {
        let io = Io::new(options.sync, options.faults);
        io.make_dirs(root)?;
        let root = std::path::absolute(root).map_err(|error| StoreError::io("resolve", root, error))?;
        let known_format = check_format(&io, &root)?;
        let beat = beat_of(&io, &root, options.locking)?;
        let io = if beat.is_some() { io.on_network() } else { io };
        let beats = beat.map(|beat| Beats::new(io.clone(), root.join("leases"), random_id(), beat)).transpose()?;
        let in_use_path = root.join("in-use");
        let in_use = Arc::new(io.open_lock(&in_use_path)?);
        if beats.is_none() {
            io.lock_shared(&in_use, &in_use_path)?;
        }
        let (tmp, locks) = (root.join("tmp"), Locks { io: io.clone(), beats: beats.clone() });
        io.make_dirs(&tmp)?;
        sweep(&locks, &tmp)?;
        let (writer, lock) = claim(&locks, &tmp)?;
        if let Some(beats) = &beats {
            beats.sweep()?;
            // Whoever comes says so first and looks second, and so does gc: one of them sees the other.
            while !beats.alive(vec![gc_beat(&root)])?.is_empty() {
                std::thread::sleep(POLL);
            }
            // A gc that was taken for dead may come back, and must find that it has lost its place.
            if io.stat(&gc_beat(&root))?.is_some() {
                drop(beats.try_take(&gc_beat(&root))?);
            }
        }
        let home = Home { io, tmp, writer, absorb: options.absorb, beats };
        let held = Held { _in_use: in_use.clone(), _writer: Arc::new(lock) };
        let memo = MemoStore::new(home.clone(), root.join("memo"), held.clone());
        let core = Arc::new(Core::new(root, home, boot_id(options.boot.as_deref())));
        if !known_format {
            write_format(&core)?;
        }
        let syncer = options.sync.then(|| Syncer::new(core.clone()));
        let inner = Arc::new(Inner { core, memo, syncer, in_use, _held: held });
        Ok(Self {
            inner,
            #[cfg(feature = "remote")]
            through: None,
        })
    }

    pub(crate) fn core(&self) -> &Core {
        &self.inner.core
    }

    /// The store's directory, absolute.
    pub fn root(&self) -> &Path {
        &self.core().root
    }

    /// Takes a file: hashes it, makes it read-only and moves it into the store, so `path` is gone afterwards. On another
    /// file system, or when other hard links lead to it, the content is copied and `path` removed.
    ///
    /// # Errors
    /// It is no regular file, it changed meanwhile, or the file system refuses.
    pub fn put_file(&self, path: &Path) -> Result<Artifact> {
        self.core().put_file(path)
    }

    /// [`Store::put_file`], but a file whose content the store already had stays at `path`, a spare; whether it does.
    ///
    /// # Errors
    /// Those of [`Store::put_file`].
    pub fn take_file(&self, path: &Path) -> Result<(Artifact, bool)> {
        self.core().take_file(path)
    }

    /// Takes a directory: its regular files become objects, its list of relative paths, digests and sizes the tree's
    /// manifest. `dir` is gone afterwards. Empty directories and permissions are not kept.
    ///
    /// # Errors
    /// It holds a link, a special file or a hostile name (see [`crate::manifest`]), or the file system refuses.
    pub fn put_tree(&self, dir: &Path) -> Result<Artifact> {
        self.core().put_tree(dir)
    }

    /// Stores bytes as a file artifact.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Artifact> {
        let digest = self.core().put_bytes(bytes)?;
        Ok(Artifact { kind: ArtifactKind::File, digest, bytes: bytes.len() as u64 })
    }

    /// The artifact that an external file or directory is, taken by reference: hashed by all cores and through the stat
    /// cache, never copied, links followed.
    ///
    /// # Errors
    /// There is nothing, or something that is neither file nor directory, or it changes while it is read.
    pub fn digest_path(&self, path: &Path) -> Result<Artifact> {
        self.core().digest_path(path, Guard::Ctime, Links::Follow)
    }

    /// Whether the artifact is in the store and whole. Cheap while nothing changed: one `stat` a file. What changed is
    /// hashed, what is damaged moved to `quarantine/`. A store that cannot be read contains nothing.
    pub fn contains(&self, artifact: &Artifact) -> bool {
        self.core().check(artifact, Trust::StatKey).unwrap_or(false)
    }

    /// A read-only path with the artifact's content: a file's object, or a directory below `trees/` built on first use.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when it is not in the store or damaged.
    pub fn locate(&self, artifact: &Artifact) -> Result<PathBuf> {
        self.core().locate(artifact)
    }

    /// Puts a writable copy at `dest`, by reflink or byte by byte, each file under a temporary name first. In a directory,
    /// files that an earlier call put there and nobody changed are removed; everything else there is left alone.
    ///
    /// # Errors
    /// [`StoreError::Missing`], or the file system refuses (`dest` is a directory where a file goes, or the reverse).
    pub fn materialise(&self, artifact: &Artifact, dest: &Path) -> Result<()> {
        self.core().materialise(artifact, dest, None)
    }

    /// [`Store::materialise`] with a file of the same content that [`Store::take_file`] left: it becomes the copy where it can.
    pub fn materialise_from(&self, artifact: &Artifact, dest: &Path, spare: &Path) -> Result<()> {
        self.core().materialise(artifact, dest, Some(spare))
    }

    /// Whether `dest` holds the artifact's content, through the stat cache.
    pub fn is_published(&self, artifact: &Artifact, dest: &Path) -> bool {
        self.core().is_published(artifact, dest)
    }

    /// The bytes of an object, verified.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when it is not there or damaged.
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>> {
        self.core().read(digest)
    }

    /// What a tree is made of, by its artifact's digest.
    pub fn read_tree(&self, digest: &Digest) -> Result<Arc<Manifest>> {
        self.core().manifest(digest)
    }

    /// A stored recipe.
    pub fn read_recipe(&self, digest: &Digest) -> Result<Recipe> {
        let malformed = |what| StoreError::Malformed { path: self.core().object_path(digest), what };
        Recipe::decode(&self.read(digest)?).map_err(malformed)
    }

    /// The outputs of a recipe, if some execution of it is complete and every object of it is whole.
    ///
    /// # Errors
    /// The file system refuses; damage is no error but a miss.
    pub fn lookup(&self, recipe: &Digest) -> Result<Option<Entry>> {
        Ok(self.best(recipe)?.map(entry))
    }

    /// A [lookup](Self::lookup) that, when nothing is here, asks the remote of [`Store::with_remote`] and fetches what it has.
    /// Blocks for as long as that takes; not for async tasks.
    ///
    /// # Errors
    /// As for a lookup; a remote that fails is no error.
    pub fn lookup_through(&self, recipe: &Digest) -> Result<Option<Entry>> {
        let found = self.lookup(recipe)?;
        #[cfg(feature = "remote")]
        if let (None, Some(through)) = (&found, &self.through)
            && through.fetch(self, recipe)
        {
            return self.lookup(recipe);
        }
        Ok(found)
    }

    /// The recipes that have entries, complete or not.
    pub fn recipes(&self) -> Result<std::collections::BTreeSet<Digest>> {
        Ok(self.entries().all()?.into_iter().map(|record| record.recipe).collect())
    }

    /// The entry that a lookup answers with, and its outputs.
    pub(crate) fn best(&self, recipe: &Digest) -> Result<Option<(EntryRecord, Outputs)>> {
        let records = {
            let mut entries = self.entries();
            entries.refresh()?;
            entries.get(recipe)
        };
        self.first_whole(records)
    }

    /// The first of these entries that is whole.
    fn first_whole(&self, records: Vec<EntryRecord>) -> Result<Option<(EntryRecord, Outputs)>> {
        for record in records {
            if let Some(outputs) = self.whole_outputs(&record)? {
                return Ok(Some((record, outputs)));
            }
        }
        Ok(None)
    }

    /// Notes an entry that another store published at `time_ns`; its objects are here.
    #[cfg(feature = "remote")]
    pub(crate) fn adopt(
        &self,
        recipe: Digest,
        list: Digest,
        time_ns: i64,
        outputs: &[(String, Artifact)],
    ) -> Result<()> {
        let record = self.entries().adopt(recipe, list, time_ns, self.core().boot)?;
        self.sync_later(record, outputs);
        Ok(())
    }

    /// Whether a remote stands behind the store.
    pub fn has_remote(&self) -> bool {
        #[cfg(feature = "remote")]
        return self.through.is_some();
        #[cfg(not(feature = "remote"))]
        false
    }

    /// [`Store::lookup`] that may miss an entry of another process that is younger than a hundredth of a second. Who is told
    /// of a miss and then holds the recipe's lease must look again.
    ///
    /// # Errors
    /// The file system refuses; damage is no error but a miss.
    pub fn lookup_recent(&self, recipe: &Digest) -> Result<Option<Entry>> {
        let records = {
            let mut entries = self.entries();
            entries.refresh_recent()?;
            entries.get(recipe)
        };
        Ok(self.first_whole(records)?.map(entry))
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, crate::entries::Entries> {
        self.core().entries.lock().expect("no panic while entries are held")
    }

    /// The outputs of an entry if all of them are whole.
    fn whole_outputs(&self, record: &EntryRecord) -> Result<Option<Outputs>> {
        let outputs = match self.read(&record.outputs) {
            Ok(bytes) => bytes,
            Err(StoreError::Missing { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Ok(OutputsList { outputs }) = serde_json::from_slice(&outputs) else { return Ok(None) };
        let doubtful = !record.synced && (record.boot != self.core().boot || record.boot == [0; 16]);
        let trust = if doubtful { Trust::Nothing } else { Trust::StatKey };
        for (_, artifact) in &outputs {
            if !self.core().check(artifact, trust)? {
                return Ok(None);
            }
        }
        let mut record = *record;
        if doubtful {
            // Outputs are not less true for a recipe that is lost, but a damaged one must not pass for a recipe either.
            self.core().check_object(&record.recipe, None, Trust::Nothing)?;
            record = self.entries().publish(record.recipe, record.outputs, self.core().boot)?;
        }
        self.sync_later(record, &outputs);
        Ok(Some(outputs))
    }

    fn sync_later(&self, record: EntryRecord, outputs: &[(String, Artifact)]) {
        if let Some(syncer) = self.inner.syncer.as_ref().filter(|_| !record.synced) {
            syncer.entry(record, outputs.iter().map(|(_, artifact)| *artifact).collect());
        }
    }

    /// Publishes a recipe's outputs: the recipe and the list of outputs become objects, then the entry is written.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when an output is not in the store; otherwise the file system refuses.
    pub fn publish(&self, recipe: &Recipe, outputs: Vec<(String, Artifact)>) -> Result<Entry> {
        let core = self.core();
        for (_, artifact) in &outputs {
            if !core.check(artifact, Trust::Witness)? {
                return Err(core.missing(&artifact.digest));
            }
        }
        let recipe = core.put_bytes(&recipe.encode())?;
        let list = OutputsList { outputs };
        let list_digest = core.put_bytes(&serde_json::to_vec(&list).expect("names and digests are JSON"))?;
        let record = self.entries().publish(recipe, list_digest, core.boot)?;
        self.sync_later(record, &list.outputs);
        Ok(Entry { recipe, outputs: list.outputs, published_ns: record.time_ns })
    }

    /// Stores a recipe as an object without an entry, so that `why` can read it even when its node failed.
    pub fn put_recipe(&self, recipe: &Recipe) -> Result<Digest> {
        self.core().put_bytes(&recipe.encode())
    }

    /// The last recipe of a node, by whatever key the caller gives it (pipeline file and node name).
    pub fn latest_recipe(&self, node_key: &str) -> Result<Option<Digest>> {
        self.core().latest.get(&Digest::of(node_key.as_bytes()))
    }

    /// Notes the last recipe of a node; writes nothing when it is the same.
    pub fn set_latest_recipe(&self, node_key: &str, recipe: &Digest) -> Result<()> {
        if self.core().latest.get(&Digest::of(node_key.as_bytes()))? == Some(*recipe) {
            return Ok(());
        }
        self.core().latest.set(Digest::of(node_key.as_bytes()), *recipe)
    }

    /// The memo.
    pub fn memo(&self) -> MemoStore {
        self.inner.memo.clone()
    }

    /// The right to execute a recipe; `None` while another process or handle has it. It ends when dropped, and with its
    /// process.
    pub fn lease(&self, recipe: &Digest) -> Result<Option<Lease>> {
        self.core().lease(recipe)
    }

    /// Waits for the lease, asking `go_on` before each wait of 50 ms; `None` once it says `false`.
    pub fn lease_waiting(&self, recipe: &Digest, go_on: impl FnMut() -> bool) -> Result<Option<Lease>> {
        self.core().lease_waiting(recipe, go_on)
    }

    /// The right to compute what the memo will keep under `key`; `None` while another thread or process has it. Like a
    /// lease it saves work and decides nothing.
    pub fn claim(&self, key: &Digest) -> Result<Option<ByteLock>> {
        self.core().claims.try_take(place_of(key))
    }

    /// One of `slots` slots of `model`, for one request to it; `None` while other threads and processes have them all.
    pub fn slot(&self, model: &Digest, slots: u32) -> Result<Option<ByteLock>> {
        let first = place_of(model) & !u64::from(u32::MAX);
        for slot in 0..u64::from(slots) {
            if let Some(lock) = self.core().slots.try_take(first + slot)? {
                return Ok(Some(lock));
            }
        }
        Ok(None)
    }

    /// What was asked of served models.
    pub fn ledger(&self) -> &Ledger {
        &self.core().ledger
    }

    /// Where checkpoints of a recipe go; it need not be there.
    pub fn partial_path(&self, recipe: &Digest) -> PathBuf {
        self.core().partial_path(recipe)
    }

    /// The directory for checkpoints of a recipe, created; it outlives killed runs.
    pub fn partial_dir(&self, recipe: &Digest) -> Result<PathBuf> {
        self.core().partial_dir(recipe)
    }

    /// Removes a recipe's checkpoints; nothing there is fine.
    pub fn drop_partial(&self, recipe: &Digest) -> Result<()> {
        self.core().drop_partial(recipe)
    }

    /// A fresh, empty directory on the store's file system. It is gone when the store closes; a dead process's is removed
    /// by the next one to open the store.
    pub fn scratch(&self, prefix: &str) -> Result<PathBuf> {
        self.core().scratch(prefix)
    }

    /// What this handle found damaged and moved to quarantine since it was last asked.
    pub fn take_damage(&self) -> Vec<Damage> {
        std::mem::take(&mut *self.core().damage.lock().expect("no panic while damage is held"))
    }

    /// Which boot of the machine this is, as far as the system tells; all zeros when it does not.
    pub fn boot() -> [u8; 16] {
        boot_id(None)
    }

    /// Waits until everything published so far was flushed to the device, as far as that is possible.
    pub fn wait_synced(&self) {
        if let Some(syncer) = &self.inner.syncer {
            syncer.wait();
        }
    }
}
