//! Objects and trees inside the store.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::Arc;

use mpcc_cache::{ArtifactKind, Digest, Store, StoreError, StoreOptions};

use crate::support::{Recorder, World, below, flip, object, put, quiet, settle};

#[test]
fn a_file_is_taken_and_can_be_read() {
    let world = World::new();
    let path = world.file("out", "hello");
    let artifact = world.store.put_file(&path).unwrap();
    assert_eq!((artifact.kind, artifact.digest, artifact.bytes), (ArtifactKind::File, Digest::of(b"hello"), 5));
    assert!(!path.exists());
    assert!(world.store.contains(&artifact));
    assert_eq!(fs::read(world.store.locate(&artifact).unwrap()).unwrap(), b"hello");
    assert_eq!(world.store.read(&artifact.digest).unwrap(), b"hello");
    assert_eq!(world.put("hello"), artifact);
    assert_eq!(world.store.put_bytes(b"hello").unwrap(), artifact);
    assert_eq!(world.store.stats().unwrap().objects, 1);
}

#[test]
fn what_is_no_regular_file_is_refused() {
    let world = World::new();
    world.file("target", "x");
    symlink(world.path("target"), world.path("link")).unwrap();
    fs::create_dir(world.path("dir")).unwrap();
    for name in ["link", "dir"] {
        let error = world.store.put_file(&world.path(name)).unwrap_err();
        assert!(matches!(error, StoreError::Refused { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
    let error = world.store.put_file(&world.path("nothing")).unwrap_err();
    assert!(error.to_string().contains("nothing"), "{error}");
}

#[test]
fn a_file_with_other_names_is_copied_so_nobody_can_write_the_object() {
    let world = World::new();
    let path = world.file("data", "shared");
    fs::hard_link(&path, world.path("other")).unwrap();
    let artifact = world.store.put_file(&path).unwrap();
    fs::write(world.path("other"), "changed").unwrap();
    assert!(world.store.contains(&artifact));
    assert!(!path.exists());
    // An output that is a link to a store object: the object stays.
    fs::hard_link(world.store.locate(&artifact).unwrap(), world.path("again")).unwrap();
    assert_eq!(world.store.put_file(&world.path("again")).unwrap(), artifact);
    assert!(world.store.contains(&artifact) && !world.path("again").exists());
}

#[test]
fn a_file_that_the_store_has_already_may_become_its_own_copy() {
    let world = World::new();
    let (first, second) = (world.file("first", "same"), world.file("second", "same"));
    let (artifact, left) = world.store.take_file(&first).unwrap();
    assert!(!left && !first.exists());
    assert_eq!(world.store.take_file(&second).unwrap(), (artifact, true));
    let inode = fs::metadata(&second).unwrap().ino();
    let copy = world.path("results/copy");
    world.store.materialise_from(&artifact, &copy, &second).unwrap();
    let meta = fs::metadata(&copy).unwrap();
    assert_eq!((meta.ino(), meta.permissions().mode() & 0o777, meta.nlink()), (inode, 0o644, 1));
    assert!(!second.exists() && world.store.is_published(&artifact, &copy));
    // It can be written without harm, and is restored by copying when there is nothing to spare.
    fs::write(&copy, "changed").unwrap();
    assert!(world.store.contains(&artifact) && !world.store.is_published(&artifact, &copy));
    world.store.materialise_from(&artifact, &copy, &second).unwrap_err();
    world.store.materialise(&artifact, &copy).unwrap();
    assert_eq!(fs::read(&copy).unwrap(), b"same");
}

#[test]
fn a_tree_is_taken_located_and_rebuilt() {
    let world = World::new();
    let files = [("b.txt", "two"), ("a/x", "one"), ("a/deep/y", "one")];
    let artifact = world.put_tree(&files);
    assert_eq!((artifact.kind, artifact.bytes), (ArtifactKind::Tree, 9));
    let manifest = world.store.read_tree(&artifact.digest).unwrap();
    assert_eq!(manifest.files().iter().map(|f| f.path.as_str()).collect::<Vec<_>>(), ["a/deep/y", "a/x", "b.txt"]);
    let dir = world.store.locate(&artifact).unwrap();
    for (path, content) in files {
        assert_eq!(fs::read_to_string(dir.join(path)).unwrap(), content);
    }
    assert_eq!(world.store.digest_path(&dir).unwrap(), artifact);
    let inode = fs::metadata(dir.join("a")).unwrap().ino();
    assert_eq!(world.store.locate(&artifact).unwrap(), dir);
    assert_eq!(fs::metadata(dir.join("a")).unwrap().ino(), inode, "an intact tree is not rebuilt");
    fs::set_permissions(dir.join("a"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(dir.join("a/x")).unwrap();
    assert_eq!(world.store.locate(&artifact).unwrap(), dir);
    assert_eq!(fs::read_to_string(dir.join("a/x")).unwrap(), "one");
}

#[test]
fn an_empty_tree_is_a_tree() {
    let world = World::new();
    let artifact = world.put_tree(&[]);
    assert!(world.store.contains(&artifact));
    assert!(world.store.locate(&artifact).unwrap().is_dir());
}

#[test]
fn nothing_in_the_store_is_writable_or_executable() {
    let world = World::new();
    let script = world.file("script", "#!/bin/sh\n");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o777)).unwrap();
    world.store.put_file(&script).unwrap();
    let tree = world.put_tree(&[("a/x", "one")]);
    world.store.locate(&tree).unwrap();
    for area in ["objects", "trees"] {
        for path in below(&world.root().join(area)) {
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            let depth = path.strip_prefix(world.root().join(area)).unwrap().components().count();
            match path.is_dir() {
                // Fan-out directories take new objects; what lies in a tree does not.
                true if depth == 1 => {}
                true => assert_eq!(mode, 0o555, "{}", path.display()),
                false => assert_eq!(mode, 0o444, "{}", path.display()),
            }
        }
    }
}

#[test]
fn a_flipped_byte_is_a_miss_and_goes_to_quarantine() {
    let world = World::new();
    let tree = world.put_tree(&[("a", "one"), ("b", "two")]);
    let file = world.put("three");
    world.store.locate(&tree).unwrap();
    settle();
    assert!(world.store.contains(&tree) && world.store.contains(&file));
    flip(&object(&world.root(), &Digest::of(b"one")));
    flip(&object(&world.root(), &file.digest));
    assert!(!world.store.contains(&tree) && !world.store.contains(&file));
    assert!(matches!(world.store.locate(&file), Err(StoreError::Missing { .. })));
    // The tree's hard link leads to the damaged bytes too.
    assert!(matches!(world.store.locate(&tree), Err(StoreError::Missing { .. })));
    assert!(world.store.stats().unwrap().quarantined >= 2);
    assert_eq!(world.put("one").digest, Digest::of(b"one"));
    assert!(world.store.contains(&tree));
    let dir = world.store.locate(&tree).unwrap();
    assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "one");
}

#[test]
fn a_truncated_or_missing_object_is_a_miss() {
    let world = World::new();
    let (a, b) = (world.put("aaaa"), world.put("bbbb"));
    let path = object(&world.root(), &a.digest);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, "aa").unwrap();
    fs::remove_file(object(&world.root(), &b.digest)).unwrap();
    assert!(!world.store.contains(&a) && !world.store.contains(&b));
    assert!(world.store.read(&b.digest).unwrap_err().to_string().contains("not in the store"));
}

#[test]
fn unchanged_objects_are_not_read_again() {
    let world = World::new();
    let recorder = Arc::new(Recorder::default());
    let options = StoreOptions { faults: Some(recorder.clone()), ..quiet() };
    let store = Store::open(&world.root(), options).unwrap();
    let artifact = put(&store, "content");
    let path = object(store.root(), &artifact.digest);
    settle();
    store.contains(&artifact);
    recorder.reads_of(&path);
    assert!(store.contains(&artifact));
    assert_eq!(recorder.reads_of(&path), 0);
    let tree = crate::support::put_tree(&store, &[("x", "content")]);
    store.locate(&tree).unwrap();
    recorder.reads_of(&path);
    assert!(store.contains(&artifact) && store.locate(&tree).is_ok());
    assert_eq!(recorder.reads_of(&path), 0, "linking into a tree is followed by a new look at the stamps");
    fs::File::open(&path).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert!(store.contains(&artifact));
    assert_eq!(recorder.reads_of(&path), 1, "another stamp, another look at the bytes");
}

#[test]
fn another_format_is_refused_by_name() {
    let world = World::new();
    fs::write(world.root().join("format"), "mpcc-store 99\n").unwrap();
    let Err(error) = Store::open(&world.root(), StoreOptions::default()) else { panic!("opened") };
    let text = error.to_string();
    assert!(text.contains("mpcc-store 99") && text.contains("mpcc-store 1") && text.contains("format"), "{text}");
}

#[test]
fn scratch_of_a_closed_store_is_gone_and_partial_stays() {
    let world = World::new();
    let key = Digest::of(b"recipe");
    let store = world.reopen();
    let scratch = store.scratch("stage a/b").unwrap();
    fs::write(scratch.join("x"), "x").unwrap();
    let partial = store.partial_dir(&key).unwrap();
    fs::write(partial.join("step-3"), "x").unwrap();
    assert_ne!(scratch, store.scratch("stage a/b").unwrap());
    drop(store);
    assert!(!scratch.exists() && partial.join("step-3").exists());
    world.store.drop_partial(&key).unwrap();
    world.store.drop_partial(&key).unwrap();
    assert!(!partial.exists());
    // A directory whose writer is dead: its lock file is free.
    let dead = world.root().join("tmp/00000000deadbeef");
    fs::create_dir_all(dead.join("s0")).unwrap();
    let mine = world.store.scratch("mine").unwrap();
    drop(world.reopen());
    assert!(!dead.exists() && mine.exists());
}
