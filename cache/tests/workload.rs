//! Everything a run does with a store, as one function, and what must hold of the store whatever became of that run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mpcc_cache::{Artifact, Charge, Digest, Entry, GcOptions, Store, StoreError, StoreOptions};

use crate::support::{below, recipe};

/// The recipes whose entries stay.
pub(crate) const KEPT: [&str; 2] = ["a", "b"];
/// The recipe whose entry the workload's gc forgets.
const FORGOTTEN: &str = "old";

/// What the workload was told is done.
#[derive(Default)]
pub(crate) struct Told {
    /// `publish` returned.
    pub(crate) published: BTreeSet<&'static str>,
    /// `wait_synced` returned, and the store could still be used then.
    pub(crate) flushed: BTreeSet<&'static str>,
    /// `memo().put` returned.
    pub(crate) memo: BTreeSet<&'static str>,
    /// `set_latest_recipe` returned.
    pub(crate) latest: BTreeSet<&'static str>,
    /// Charges that returned.
    pub(crate) charged: i64,
    /// `partial_dir` returned and the checkpoint was written, and `drop_partial` was not called.
    pub(crate) partial: BTreeSet<&'static str>,
}

/// Content of the outputs of recipe `name`, by path; one file is the same for all.
pub(crate) fn contents(name: &str) -> BTreeMap<String, String> {
    let entries = [
        ("file", format!("the file of {name}")),
        ("tree/same", "same".repeat(40)),
        ("tree/sub/own", format!("{name}'s")),
    ];
    entries.map(|(path, text)| (path.to_owned(), text)).into()
}

/// Writes a file that looks an hour old, so that the stat cache dares to remember it.
fn write_old(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    let old = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
    File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
}

fn key(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

/// Runs two stages and one that is forgotten, puts copies into `out/`, collects garbage. The last stage is done by another
/// process than the first two, so to say, which absorbs what that one wrote. Called again, it goes on from whatever is there.
/// Returns what was published.
pub(crate) fn run(top: &Path, options: StoreOptions, told: &mut Told) -> Result<Vec<Artifact>, StoreError> {
    let open = || Store::open(&top.join("store"), absorbing(options.clone()));
    let mut artifacts = Vec::new();
    let first = open()?;
    stage(&first, FORGOTTEN, told)?;
    artifacts.extend(delivered(&first, top, "a", told)?);
    drop(first);
    let second = open()?;
    artifacts.extend(delivered(&second, top, "b", told)?);
    second.gc(&GcOptions::default())?;
    Ok(artifacts)
}

/// Options of a store that absorbs every log of a dead writer.
pub(crate) fn absorbing(options: StoreOptions) -> StoreOptions {
    StoreOptions { absorb: 1, ..options }
}

fn delivered(store: &Store, top: &Path, name: &'static str, told: &mut Told) -> Result<Vec<Artifact>, StoreError> {
    let entry = stage(store, name, told)?;
    for (port, artifact) in &entry.outputs {
        store.materialise(artifact, &top.join("out").join(name).join(port))?;
    }
    Ok(entry.outputs.iter().map(|(_, artifact)| *artifact).collect())
}

fn stage(store: &Store, name: &'static str, told: &mut Told) -> Result<Entry, StoreError> {
    let recipe = recipe(name);
    let lease = store.lease(&recipe.digest())?;
    assert!(lease.is_some(), "no lock outlives its holder");
    let found = store.lookup(&recipe.digest())?;
    let entry = match found {
        Some(entry) => entry,
        None => execute(store, name, told)?,
    };
    if name != FORGOTTEN {
        store.set_latest_recipe(name, &entry.recipe)?;
        told.latest.insert(name);
    }
    told.partial.remove(name);
    store.drop_partial(&entry.recipe)?;
    store.wait_synced();
    store.latest_recipe(name)?;
    told.flushed.insert(name);
    let tree = store.locate(entry.output("tree").unwrap())?;
    assert_eq!(fs::read_to_string(tree.join("same")).unwrap(), contents(name)["tree/same"]);
    drop(lease);
    Ok(entry)
}

/// What a stage does on a miss.
fn execute(store: &Store, name: &'static str, told: &mut Told) -> Result<Entry, StoreError> {
    let dir = store.scratch("stage")?;
    if store.memo().get("vlm", &key(name)).is_none() {
        let wrap = |source| StoreError::Io { op: "put", path: dir.clone(), source };
        store.memo().put("vlm", &key(name), name.repeat(30).as_bytes()).map_err(wrap)?;
    }
    told.memo.insert(name);
    store.ledger().charge(&key("gpt"), Charge { requests: 1, nanodollars: 5, ..Charge::default() }, 7)?;
    told.charged += 1;
    let partial = store.partial_dir(&recipe(name).digest())?;
    fs::write(partial.join("step-1"), "checkpoint").unwrap();
    told.partial.insert(name);
    for (path, text) in contents(name) {
        write_old(&dir.join(path), &text);
    }
    let file = store.put_file(&dir.join("file"))?;
    let tree = store.put_tree(&dir.join("tree"))?;
    let entry = store.publish(&recipe(name), vec![("file".to_owned(), file), ("tree".to_owned(), tree)])?;
    told.published.insert(name);
    Ok(entry)
}

/// What a store must still have.
#[derive(Default)]
pub(crate) struct Promise<'a> {
    /// Requests in the ledger, at least.
    pub(crate) charged: i64,
    pub(crate) entries: BTreeSet<&'a str>,
    pub(crate) memo: BTreeSet<&'a str>,
    pub(crate) latest: BTreeSet<&'a str>,
    pub(crate) partial: BTreeSet<&'a str>,
}

impl Told {
    /// What a kill or a failing disk may not take back.
    pub(crate) fn promise(&self) -> Promise<'_> {
        let all = |set: &BTreeSet<&'static str>| set.iter().copied().collect();
        let entries = self.published.iter().copied().filter(|name| *name != FORGOTTEN).collect();
        Promise {
            charged: self.charged,
            entries,
            memo: all(&self.memo),
            latest: all(&self.latest),
            partial: all(&self.partial),
        }
    }
}

/// Opens the store as the next process would and holds it to the truth: what it answers is whole, what was promised is
/// there, nothing of the dead process lies about. Returns the objects that its answers rest on.
pub(crate) fn check(top: &Path, options: StoreOptions, promise: &Promise<'_>, when: &str) -> BTreeSet<Digest> {
    let store = Store::open(&top.join("store"), options).unwrap_or_else(|error| panic!("{when}: {error}"));
    assert_no_litter(top, when);
    let total = store.ledger().balance(&key("gpt"), 0).unwrap().total;
    assert!(total.requests >= promise.charged, "{when}: money is forgotten, {total:?} of {}", promise.charged);
    // A stage that was begun again has charged again; nothing is counted twice.
    assert!(total.requests <= 6 && total.nanodollars == 5 * total.requests, "{when}: {total:?}");
    let mut objects = BTreeSet::new();
    for name in [FORGOTTEN, "a", "b"] {
        match store.lookup(&recipe(name).digest()).unwrap_or_else(|error| panic!("{when}: {error}")) {
            Some(entry) => objects.extend(check_entry(&store, name, &entry, when)),
            None => assert!(!promise.entries.contains(name), "{when}: the entry of {name} is lost"),
        }
        let answer = store.memo().get("vlm", &key(name));
        assert!(answer.is_some() || !promise.memo.contains(name), "{when}: the memo of {name} is lost");
        assert!(answer.is_none_or(|answer| answer == name.repeat(30).as_bytes()), "{when}: the memo of {name} lies");
        let latest = store.latest_recipe(name).unwrap();
        assert!(latest.is_some() || !promise.latest.contains(name), "{when}: the latest recipe of {name} is lost");
        assert!(
            latest.is_none_or(|latest| latest == recipe(name).digest()),
            "{when}: the latest recipe of {name} lies"
        );
        let checkpoint = store.partial_dir(&recipe(name).digest()).unwrap().join("step-1");
        assert!(checkpoint.exists() || !promise.partial.contains(name), "{when}: the checkpoint of {name} is lost");
    }
    objects
}

/// An answer's bytes, all of them, read past the store.
fn check_entry(store: &Store, name: &str, entry: &Entry, when: &str) -> BTreeSet<Digest> {
    let tree = entry.output("tree").unwrap();
    let places = [store.locate(entry.output("file").unwrap()).unwrap(), store.locate(tree).unwrap()];
    for (path, text) in contents(name) {
        let place = match path.strip_prefix("tree/") {
            Some(inside) => places[1].join(inside),
            None => places[0].clone(),
        };
        let found = fs::read_to_string(&place).unwrap_or_else(|error| panic!("{when}: {}: {error}", place.display()));
        assert_eq!(found, text, "{when}: {name}/{path}");
    }
    let manifest = store.read_tree(&tree.digest).unwrap();
    let files = manifest.files().iter().map(|file| file.digest);
    files.chain(entry.outputs.iter().map(|(_, artifact)| artifact.digest)).chain([entry.recipe]).collect()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).into_iter().flatten().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// No temporary file of a process that is gone: in the store's folder, in `tmp/`, beside the published copies.
fn assert_no_litter(top: &Path, when: &str) {
    const KNOWN: [&str; 14] = [
        "entries",
        "format",
        "in-use",
        "latest",
        "leases",
        "ledger",
        "memo",
        "objects",
        "partial",
        "published",
        "quarantine",
        "stat",
        "tmp",
        "trees",
    ];
    for name in names(&top.join("store")) {
        assert!(KNOWN.contains(&name.as_str()), "{when}: {name} lies in the store");
    }
    let mine = names(&top.join("store/tmp"));
    let own = |name: &String| name.strip_suffix(".lock").unwrap_or(name).len() == 16;
    assert!(mine.len() <= 2 && mine.iter().all(own), "{when}: {mine:?} in tmp");
    assert!(mine.len() < 2 || mine[1] == format!("{}.lock", mine[0]), "{when}: {mine:?} in tmp");
    for path in below(&top.join("out")) {
        assert!(!path.to_string_lossy().contains(".mpcc-"), "{when}: {} is left", path.display());
    }
}

/// Nothing in the store can be written or executed: files are 0444, directories of trees 0555.
pub(crate) fn assert_modes(root: &Path, when: &str) {
    for area in ["objects", "trees"] {
        for path in below(&root.join(area)) {
            let mode = fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o7777;
            let depth = path.strip_prefix(root.join(area)).unwrap().components().count();
            let expected = if path.is_dir() { 0o555 } else { 0o444 };
            // Fan-out directories take new objects; what lies in a tree does not.
            assert!((path.is_dir() && depth == 1) || mode == expected, "{when}: {} is {mode:o}", path.display());
        }
    }
}

/// A run without faults after whatever happened: it needs no command first, ends well, gives the same bytes, and what it
/// leaves is clean.
pub(crate) fn converge(top: &Path, options: StoreOptions, when: &str) {
    let artifacts =
        run(top, options.clone(), &mut Told::default()).unwrap_or_else(|error| panic!("{when}, rerun: {error}"));
    assert_eq!(artifacts, expected(), "{when}: another result");
    let all = || KEPT.into_iter().collect();
    let promise = Promise { entries: all(), latest: all(), ..Promise::default() };
    check(top, options.clone(), &promise, &format!("{when}, rerun"));
    assert_modes(&top.join("store"), when);
    let report = Store::open(&top.join("store"), options).unwrap().verify().unwrap();
    assert!(report.is_clean(), "{when}, rerun: {report:?}");
    for (path, text) in KEPT.iter().flat_map(|name| copies(top, name)) {
        assert_eq!(fs::read_to_string(&path).unwrap(), text, "{when}: {}", path.display());
    }
}

/// The published copies of `name` and what should be in them.
pub(crate) fn copies(top: &Path, name: &str) -> Vec<(PathBuf, String)> {
    contents(name).into_iter().map(|(path, text)| (top.join("out").join(name).join(path), text)).collect()
}

/// What the workload publishes, computed without the workload.
fn expected() -> Vec<Artifact> {
    let world = crate::support::World::within(crate::support::fast_dir());
    let outputs = |name: &str| {
        let all = contents(name);
        let tree: Vec<_> =
            all.iter().filter_map(|(path, text)| Some((path.strip_prefix("tree/")?, text.as_str()))).collect();
        [world.put(&all["file"]), world.put_tree(&tree)]
    };
    KEPT.into_iter().flat_map(outputs).collect()
}
