//! A kill at every file operation: whatever was reached, the next process finds the truth or nothing, and can go on.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mpcc_cache::{Digest, Faults, GcOptions, Keep, Op, Store, StoreError, StoreOptions, Verdict};

use crate::support::{fast_dir, quiet, recipe};

/// Lets `left` operations pass and none after; the last write is torn in half.
struct Crash {
    left: AtomicU64,
}

impl Faults for Crash {
    fn before(&self, op: Op, _: &Path) -> Verdict {
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match (left, op) {
            (Err(_), _) => Verdict::Fail(io::Error::other("dead")),
            (Ok(1), Op::Write(len)) => Verdict::Tear(len / 2),
            (Ok(_), _) => Verdict::Pass,
        }
    }
}

/// What the scenario was told is done.
#[derive(Default)]
struct Told {
    published: bool,
    memo: bool,
    latest: bool,
}

fn key() -> Digest {
    Digest::of(b"request")
}

/// Everything a run does with a store, once.
fn scenario(root: &Path, dest: &Path, options: StoreOptions, told: &mut Told) -> Result<(), StoreError> {
    let store = Store::open(root, options)?;
    let lease = store.lease(&recipe("a").digest())?;
    assert!(lease.is_some(), "no lock outlives its holder");
    let dir = store.scratch("stage")?;
    let (file, tree) = (dir.join("file"), dir.join("tree"));
    std::fs::write(&file, "file").unwrap();
    std::fs::create_dir_all(tree.join("sub")).unwrap();
    std::fs::write(tree.join("a"), "one").unwrap();
    std::fs::write(tree.join("sub/b"), "two").unwrap();
    let wrap = |path, source| StoreError::Io { op: "put", path, source };
    store.memo().put("vlm", &key(), b"answer").map_err(|error| wrap(dir, error))?;
    told.memo = true;
    store.partial_dir(&recipe("a").digest())?;
    let outputs = vec![("f".to_owned(), store.put_file(&file)?), ("t".to_owned(), store.put_tree(&tree)?)];
    let entry = store.publish(&recipe("a"), outputs)?;
    told.published = true;
    store.set_latest_recipe("node", &entry.recipe)?;
    told.latest = true;
    store.drop_partial(&entry.recipe)?;
    store.locate(&entry.outputs[1].1)?;
    store.materialise(&entry.outputs[0].1, &dest.join("file"))?;
    store.materialise(&entry.outputs[1].1, &dest.join("tree"))?;
    store.gc(&GcOptions { keep: Keep::Everything, ..GcOptions::default() })?;
    Ok(())
}

fn check(root: &Path, dest: &Path, told: &Told, k: u64) {
    let store = Store::open(root, quiet()).unwrap();
    let found = store.lookup(&recipe("a").digest()).unwrap();
    assert!(found.is_some() || !told.published, "published, then lost: {k}");
    if let Some(entry) = found {
        assert_eq!(store.read(&entry.output("f").unwrap().digest).unwrap(), b"file");
        let tree = store.locate(entry.output("t").unwrap()).unwrap();
        assert_eq!(std::fs::read_to_string(tree.join("sub/b")).unwrap(), "two");
    }
    let answer = store.memo().get("vlm", &key());
    assert!(answer.is_none() && !told.memo || answer.as_deref() == Some(b"answer"), "memo: {k}");
    let latest = store.latest_recipe("node").unwrap();
    assert!(latest.is_none() && !told.latest || latest == Some(recipe("a").digest()), "latest: {k}");
    assert!(store.verify().unwrap().is_clean(), "half-written objects: {k}");
    for (path, content) in [("file", "file"), ("tree/a", "one"), ("tree/sub/b", "two")] {
        let copy = std::fs::read_to_string(dest.join(path));
        assert!(copy.is_err() || copy.unwrap() == content, "{path}: {k}");
    }
}

#[test]
fn a_kill_at_any_operation_leaves_the_truth_or_nothing() {
    let mut finished = false;
    let mut k = 0;
    while !finished {
        let dir = fast_dir();
        let (root, dest) = (dir.path().join("store"), dir.path().join("out"));
        let mut told = Told::default();
        let faults: Arc<dyn Faults> = Arc::new(Crash { left: AtomicU64::new(k) });
        finished = scenario(&root, &dest, StoreOptions { faults: Some(faults), ..quiet() }, &mut told).is_ok();
        check(&root, &dest, &told, k);
        scenario(&root, &dest, quiet(), &mut told).unwrap_or_else(|error| panic!("after a kill at {k}: {error}"));
        check(&root, &dest, &told, k);
        assert_eq!(std::fs::read_to_string(dest.join("tree/sub/b")).unwrap(), "two");
        k += 1;
    }
    assert!(k > 150, "the scenario has only {k} operations");
}
