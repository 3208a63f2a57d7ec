//! What the tests share.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use mpcc_cache::{Artifact, Digest, Faults, Op, Recipe, Store, StoreOptions, Verdict};
use tempfile::TempDir;

/// A folder with a store in it.
pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) store: Store,
}

/// Options without a background thread, so that tests see only what they do.
pub(crate) fn quiet() -> StoreOptions {
    StoreOptions { sync: false, ..StoreOptions::default() }
}

/// A folder in memory where the system has one, for tests that make and remove very many files: on some disks each removal
/// waits for the device.
pub(crate) fn fast_dir() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

static FORKS: RwLock<()> = RwLock::new(());

/// Starts a child. For the moment between fork and exec it holds a copy of every lock of this process, so that no test may
/// count on a lock being free again: see [`no_forks`].
pub(crate) fn spawn(command: &mut Command) -> Child {
    let _alone = FORKS.write().unwrap_or_else(PoisonError::into_inner);
    command.spawn().unwrap()
}

/// While this lives no other test starts a child.
pub(crate) fn no_forks() -> RwLockReadGuard<'static, ()> {
    FORKS.read().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the long versions are asked for: `MPCC_HEAVY=1`.
pub(crate) fn heavy() -> bool {
    #[allow(clippy::disallowed_methods, reason = "the one variable that lengthens tests")]
    std::env::var_os("MPCC_HEAVY").is_some()
}

impl World {
    pub(crate) fn new() -> Self {
        Self::within(tempfile::tempdir().unwrap())
    }

    pub(crate) fn within(dir: TempDir) -> Self {
        let store = Store::open(&dir.path().join("store"), quiet()).unwrap();
        Self { dir, store }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file outside the store.
    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn put(&self, content: &str) -> Artifact {
        put(&self.store, content)
    }

    /// Puts a tree of (path, content).
    pub(crate) fn put_tree(&self, files: &[(&str, &str)]) -> Artifact {
        put_tree(&self.store, files)
    }

    pub(crate) fn reopen(&self) -> Store {
        Store::open(&self.root(), quiet()).unwrap()
    }
}

pub(crate) fn put(store: &Store, content: &str) -> Artifact {
    let path = store.scratch("put").unwrap().join("file");
    fs::write(&path, content).unwrap();
    store.put_file(&path).unwrap()
}

pub(crate) fn put_tree(store: &Store, files: &[(&str, &str)]) -> Artifact {
    let dir = store.scratch("tree").unwrap();
    for (path, content) in files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    store.put_tree(&dir).unwrap()
}

/// A recipe told from others by its name.
pub(crate) fn recipe(name: &str) -> Recipe {
    let mut recipe = Recipe::new();
    recipe.push("kind", "test");
    recipe.push("name", name);
    recipe
}

pub(crate) fn object(root: &Path, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    root.join("objects").join(&hex[..2]).join(&hex[2..])
}

/// Changes one byte of a read-only file in place.
pub(crate) fn flip(path: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o444)).unwrap();
}

/// Lets stamps grow older than the stat cache's guard.
pub(crate) fn settle() {
    std::thread::sleep(Duration::from_millis(45));
}

/// All regular files and directories below `dir`, itself left out.
pub(crate) fn below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(below(&path));
        }
        found.push(path);
    }
    found.sort();
    found
}

/// Notes every operation and lets it pass.
#[derive(Default)]
pub(crate) struct Recorder(pub(crate) Mutex<Vec<(Op, PathBuf)>>);

impl Recorder {
    /// How often `path` was read or hashed since the last call.
    pub(crate) fn reads_of(&self, path: &Path) -> usize {
        let mut seen = self.0.lock().unwrap();
        let count = seen.iter().filter(|(op, other)| matches!(op, Op::Read | Op::Hash) && other == path).count();
        seen.clear();
        count
    }
}

impl Faults for Recorder {
    fn before(&self, op: Op, path: &Path) -> Verdict {
        self.0.lock().unwrap().push((op, path.to_owned()));
        Verdict::Pass
    }
}
