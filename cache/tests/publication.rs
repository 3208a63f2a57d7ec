//! Recipes, entries, the memo and leases.

use std::sync::Arc;

use mpcc_cache::{Digest, Recipe, Store, StoreError, StoreOptions};

use crate::support::{Recorder, World, flip, object, quiet, recipe, settle};

#[test]
fn what_is_published_is_found_by_everybody() {
    let world = World::new();
    let other = world.reopen();
    let key = recipe("a").digest();
    assert_eq!(other.lookup(&key).unwrap(), None);
    let outputs = vec![("y".to_owned(), world.put("y")), ("x".to_owned(), world.put_tree(&[("f", "x")]))];
    let entry = world.store.publish(&recipe("a"), outputs.clone()).unwrap();
    assert_eq!((entry.recipe, &entry.outputs), (key, &outputs));
    for store in [&world.store, &other, &world.reopen()] {
        assert_eq!(store.lookup(&key).unwrap().as_ref(), Some(&entry));
        assert_eq!(store.read_recipe(&key).unwrap(), recipe("a"));
    }
    assert_eq!(entry.output("x"), Some(&outputs[1].1));
    assert_eq!(world.store.lookup(&recipe("b").digest()).unwrap(), None);
}

#[test]
fn an_entry_needs_its_outputs() {
    let world = World::new();
    let absent = world.store.digest_path(&world.file("outside", "x")).unwrap();
    let error = world.store.publish(&recipe("a"), vec![("x".to_owned(), absent)]).unwrap_err();
    assert!(matches!(error, StoreError::Missing { .. }), "{error}");
    assert_eq!(world.store.lookup(&recipe("a").digest()).unwrap(), None);
}

#[test]
fn the_latest_complete_entry_wins_and_damage_falls_back() {
    let world = World::new();
    let (first, second) = (world.put("first"), world.put("second"));
    let key = recipe("a").digest();
    for artifact in [first, second] {
        world.store.publish(&recipe("a"), vec![("x".to_owned(), artifact)]).unwrap();
    }
    for store in [&world.store, &world.reopen()] {
        assert_eq!(store.lookup(&key).unwrap().unwrap().output("x"), Some(&second));
    }
    flip(&object(&world.root(), &second.digest));
    assert_eq!(world.store.lookup(&key).unwrap().unwrap().output("x"), Some(&first));
    flip(&object(&world.root(), &first.digest));
    assert_eq!(world.store.lookup(&key).unwrap(), None);
}

#[test]
fn an_unsynced_entry_of_another_boot_is_hashed_before_trust() {
    let world = World::new();
    let artifact = world.put("content");
    let path = object(&world.root(), &artifact.digest);
    let recorder = Arc::new(Recorder::default());
    let open = |boot: &str, sync| {
        let boot = Some(boot.to_owned());
        Store::open(&world.root(), StoreOptions { sync, faults: Some(recorder.clone()), boot, ..quiet() }).unwrap()
    };
    let key = recipe("a").digest();
    settle();
    let before = open("one", false);
    before.publish(&recipe("a"), vec![("x".to_owned(), artifact)]).unwrap();
    before.lookup(&key).unwrap();
    recorder.reads_of(&path);
    assert!(open("one", false).lookup(&key).unwrap().is_some());
    assert_eq!(recorder.reads_of(&path), 0, "the same boot");
    assert!(open("two", false).lookup(&key).unwrap().is_some());
    assert_eq!(recorder.reads_of(&path), 1, "another boot");
    assert!(open("two", false).lookup(&key).unwrap().is_some());
    assert_eq!(recorder.reads_of(&path), 0, "verified in this boot");
    let syncing = open("two", true);
    assert!(syncing.lookup(&key).unwrap().is_some());
    syncing.wait_synced();
    recorder.reads_of(&path);
    assert!(open("three", false).lookup(&key).unwrap().is_some());
    assert_eq!(recorder.reads_of(&path), 0, "synced before that boot");
}

#[test]
fn the_latest_recipe_of_a_node_is_kept_across_processes() {
    let world = World::new();
    let other = world.reopen();
    let (old, new) = (recipe("old"), recipe("new"));
    assert_eq!(world.store.latest_recipe("p.yaml#sft").unwrap(), None);
    let old_digest = world.store.put_recipe(&old).unwrap();
    world.store.set_latest_recipe("p.yaml#sft", &old_digest).unwrap();
    assert_eq!(other.latest_recipe("p.yaml#sft").unwrap(), Some(old.digest()));
    other.set_latest_recipe("p.yaml#sft", &other.put_recipe(&new).unwrap()).unwrap();
    assert_eq!(world.store.latest_recipe("p.yaml#sft").unwrap(), Some(new.digest()));
    assert_eq!(world.reopen().latest_recipe("p.yaml#other").unwrap(), None);
    let changes = Recipe::diff(&world.store.read_recipe(&old_digest).unwrap(), &new);
    assert_eq!(changes[0].field, "name");
}

#[test]
fn the_memo_is_shared_and_checked() {
    let world = World::new();
    let (memo, other) = (world.store.memo(), world.reopen().memo());
    let key = Digest::of(b"request");
    assert_eq!(memo.get("vlm", &key), None);
    memo.put("vlm", &key, b"answer").unwrap();
    assert_eq!(memo.get("vlm", &key).as_deref(), Some(&b"answer"[..]));
    assert_eq!(other.get("vlm", &key).as_deref(), Some(&b"answer"[..]));
    assert_eq!(other.get("records", &key), None);
    other.put("vlm", &Digest::of(b"empty"), b"").unwrap();
    assert_eq!(memo.get("vlm", &Digest::of(b"empty")).as_deref(), Some(&b""[..]));
    let stats = world.reopen().stats().unwrap();
    assert_eq!((stats.memo.len(), stats.memo[0].records), (1, 2));
    memo.put("vlm", &key, b"answer").unwrap();
    assert_eq!(world.store.stats().unwrap(), stats, "the same again writes nothing");
    for name in ["", "..", "a/b", "A", ".hidden"] {
        assert!(memo.put(name, &key, b"x").unwrap_err().to_string().contains("memo namespace"), "{name}");
        assert_eq!(memo.get(name, &key), None);
    }
}

#[test]
fn a_memo_value_that_rotted_is_none() {
    let world = World::new();
    let key = Digest::of(b"request");
    world.store.memo().put("vlm", &key, b"a long enough answer").unwrap();
    let data = crate::support::below(&world.root().join("memo/vlm"));
    let data = data.iter().find(|path| path.extension().is_some_and(|e| e == "data")).unwrap();
    flip(data);
    let memo = world.reopen().memo();
    assert_eq!(memo.get("vlm", &key), None);
    memo.put("vlm", &key, b"a long enough answer").unwrap();
    assert_eq!(memo.get("vlm", &key).as_deref(), Some(&b"a long enough answer"[..]));
}

#[test]
fn a_lease_has_one_holder_and_ends_when_dropped() {
    let _still = crate::support::no_forks();
    let world = World::new();
    let other = world.reopen();
    let key = Digest::of(b"recipe");
    let lease = world.store.lease(&key).unwrap().expect("free");
    assert_eq!(lease.recipe(), key);
    assert!(other.lease(&key).unwrap().is_none() && world.store.lease(&key).unwrap().is_none());
    assert!(other.lease(&Digest::of(b"another")).unwrap().is_some());
    let mut asked = 0;
    let waited = other.lease_waiting(&key, || {
        asked += 1;
        asked < 3
    });
    assert!(waited.unwrap().is_none() && asked == 3);
    let waiter = std::thread::spawn(move || other.lease_waiting(&key, || true).unwrap().is_some());
    std::thread::sleep(std::time::Duration::from_millis(80));
    drop(lease);
    assert!(waiter.join().unwrap());
    assert!(world.store.lease(&key).unwrap().is_some());
    assert_eq!(crate::support::below(&world.root().join("leases")).len(), 1, "one file for all leases");
}

#[test]
fn options_open_the_same_store() {
    let world = World::new();
    let artifact = world.put("x");
    drop(world.store);
    let store = Store::open(&world.dir.path().join("store"), StoreOptions::default()).unwrap();
    assert!(store.contains(&artifact));
    store.publish(&recipe("a"), vec![("x".to_owned(), artifact)]).unwrap();
    store.wait_synced();
    drop(store);
    let store = Store::open(&world.dir.path().join("store"), quiet()).unwrap();
    assert!(store.lookup(&recipe("a").digest()).unwrap().is_some());
}
