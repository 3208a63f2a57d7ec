//! gc, stats and verify.

use std::collections::BTreeSet;
use std::fs;

use mpcc_cache::{Digest, GcOptions, Keep, StoreError};

use crate::support::{World, below, flip, no_forks, object, recipe, settle};

fn publish(world: &World, name: &str, content: &str) -> Digest {
    let tree = world.put_tree(&[("common", "common"), (name, content)]);
    world.store.locate(&tree).unwrap();
    let outputs = vec![("x".to_owned(), world.put(content)), ("t".to_owned(), tree)];
    world.store.publish(&recipe(name), outputs).unwrap().recipe
}

#[test]
fn what_no_entry_needs_is_freed_and_the_rest_stays() {
    let (world, _still) = (World::new(), no_forks());
    let (old, new, listed) = (publish(&world, "old", "1"), publish(&world, "new", "2"), publish(&world, "listed", "3"));
    world.store.set_latest_recipe("node", &old).unwrap();
    world.store.set_latest_recipe("node", &new).unwrap();
    world.put("orphan");
    world.store.memo().put("vlm", &old, b"kept").unwrap();
    for key in [&old, &new] {
        fs::write(world.store.partial_dir(key).unwrap().join("x"), "x").unwrap();
    }
    let options = GcOptions { also: BTreeSet::from([listed]), dry_run: true, ..GcOptions::default() };
    let before = below(&world.root().join("objects"));
    let counted = world.store.gc(&options).unwrap();
    assert_eq!(below(&world.root().join("objects")), before);
    let report = world.store.gc(&GcOptions { dry_run: false, ..options }).unwrap();
    assert_eq!(report, counted);
    assert_eq!((report.entries_kept, report.entries_dropped, report.trees_removed), (2, 1, 1));
    assert_eq!(report.partials_removed, 1);
    // The old entry's content, manifest, list and recipe, and the orphan.
    assert_eq!(report.objects_removed, 5);
    let reopened = world.reopen();
    for store in [&world.store, &reopened] {
        assert!(store.lookup(&old).unwrap().is_none());
        assert!(store.lookup(&new).unwrap().is_some() && store.lookup(&listed).unwrap().is_some());
        assert_eq!(store.memo().get("vlm", &old).as_deref(), Some(&b"kept"[..]));
        assert!(store.verify().unwrap().is_clean());
    }
    assert_eq!(world.store.latest_recipe("node").unwrap(), Some(new));
}

#[test]
fn gc_refuses_while_the_store_is_open_elsewhere() {
    let (world, _still) = (World::new(), no_forks());
    world.put("orphan");
    let memo = world.reopen().memo();
    assert!(matches!(world.store.gc(&GcOptions::default()), Err(StoreError::Busy { .. })));
    assert_eq!(world.store.stats().unwrap().objects, 1);
    drop(memo);
    assert_eq!(world.store.gc(&GcOptions::default()).unwrap().objects_removed, 1);
    // Its own lock is shared again.
    let other = world.reopen();
    assert!(matches!(world.store.gc(&GcOptions::default()), Err(StoreError::Busy { .. })));
    drop(other);
}

#[test]
fn everything_goes_when_asked() {
    let (world, _still) = (World::new(), no_forks());
    let recipe = publish(&world, "a", "1");
    world.store.memo().put("vlm", &recipe, b"x").unwrap();
    world.store.partial_dir(&Digest::of(b"unfinished")).unwrap();
    flip(&object(&world.root(), &Digest::of(b"common")));
    assert!(world.store.lookup(&recipe).unwrap().is_none());
    let options = GcOptions { keep: Keep::Listed, memo: true, partial: true, quarantine: true, ..GcOptions::default() };
    world.store.gc(&options).unwrap();
    let stats = world.store.stats().unwrap();
    assert_eq!((stats.objects, stats.trees, stats.entries, stats.partials, stats.quarantined), (0, 0, 0, 0, 0));
    assert_eq!(stats.memo, []);
    assert_eq!(world.store.memo().get("vlm", &recipe), None);
    world.store.memo().put("vlm", &recipe, b"y").unwrap();
    assert_eq!(world.store.memo().get("vlm", &recipe).as_deref(), Some(&b"y"[..]));
}

#[test]
fn everything_kept_drops_only_incomplete_entries() {
    let (world, _still) = (World::new(), no_forks());
    let (a, b) = (publish(&world, "a", "1"), publish(&world, "b", "2"));
    let options = GcOptions { keep: Keep::Everything, ..GcOptions::default() };
    assert_eq!(world.store.gc(&options).unwrap().objects_removed, 0);
    assert!(world.store.lookup(&a).unwrap().is_some() && world.store.lookup(&b).unwrap().is_some());
}

#[test]
fn logs_and_memo_files_of_many_writers_become_one() {
    let (world, _still) = (World::new(), no_forks());
    let keys: Vec<_> = (0..6u8).map(|n| Digest::of(&[n])).collect();
    for (n, key) in keys.iter().enumerate() {
        let store = world.reopen();
        store.memo().put("vlm", key, &[n as u8; 100]).unwrap();
        let artifact = crate::support::put(&store, "x");
        store.publish(&recipe(&n.to_string()), vec![("x".to_owned(), artifact)]).unwrap();
    }
    let options = GcOptions { keep: Keep::Everything, ..GcOptions::default() };
    assert_eq!(world.store.gc(&options).unwrap().entries_kept, 6);
    assert_eq!(below(&world.root().join("entries")).len(), 1);
    assert_eq!(below(&world.root().join("memo/vlm")).len(), 2);
    let store = world.reopen();
    for (n, key) in keys.iter().enumerate() {
        assert_eq!(store.memo().get("vlm", key), Some(vec![n as u8; 100]));
        assert_eq!(world.store.memo().get("vlm", key), Some(vec![n as u8; 100]));
        assert!(store.lookup(&recipe(&n.to_string()).digest()).unwrap().is_some());
    }
}

#[test]
fn a_damaged_snapshot_costs_misses_and_stops_gc() {
    let world = World::new();
    let recipe = publish(&world, "a", "1");
    world.store.set_latest_recipe("a", &recipe).unwrap();
    world.store.gc(&GcOptions::default()).unwrap();
    let snapshot = world.root().join("entries/snapshot");
    let whole = fs::read(&snapshot).unwrap();
    for name in ["entries", "latest"] {
        let path = world.root().join(name).join("snapshot");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, [&b"x"[..], &bytes[1..]].concat()).unwrap();
        let error = world.reopen().gc(&GcOptions { dry_run: true, ..GcOptions::default() }).unwrap_err().to_string();
        assert!(error.contains(&format!("{name}/snapshot")) && error.contains("move it away"), "{error}");
        fs::write(&path, bytes).unwrap();
    }
    fs::write(&snapshot, [&b"x"[..], &whole[1..]].concat()).unwrap();
    assert!(world.reopen().lookup(&recipe).unwrap().is_none());
    fs::write(&snapshot, whole).unwrap();
    assert!(world.reopen().lookup(&recipe).unwrap().is_some(), "nothing was lost meanwhile");
}

#[test]
fn verify_reads_every_byte_and_names_what_is_lost() {
    let (world, _still) = (World::new(), no_forks());
    let (good, bad) = (publish(&world, "good", "1"), publish(&world, "bad", "2"));
    settle();
    let clean = world.store.verify().unwrap();
    assert!(clean.is_clean() && clean.objects == 9, "{clean:?}");
    flip(&object(&world.root(), &Digest::of(b"2")));
    let report = world.store.verify().unwrap();
    assert_eq!((report.damaged, report.incomplete), (vec![Digest::of(b"2")], vec![bad]));
    assert_eq!(report.damaged_trees.len(), 1);
    assert!(world.store.lookup(&good).unwrap().is_some());
    world.put("2");
    assert!(world.store.lookup(&bad).unwrap().is_some() && world.store.verify().unwrap().is_clean());
}
