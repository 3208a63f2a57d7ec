//! Files outside the store: taken by reference, published as copies.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::Arc;

use mpcc_cache::{ArtifactKind, Digest, Op, Store, StoreOptions};

use crate::support::{Recorder, World, quiet, recipe, settle};

#[test]
fn external_data_is_digested_in_place() {
    let world = World::new();
    let file = world.file("data/a.txt", "one");
    world.file("data/sub/b.txt", "two");
    let artifact = world.store.digest_path(&file).unwrap();
    assert_eq!((artifact.kind, artifact.digest), (ArtifactKind::File, Digest::of(b"one")));
    let dir = world.store.digest_path(&world.path("data")).unwrap();
    assert_eq!((dir.kind, dir.bytes), (ArtifactKind::Tree, 6));
    assert_eq!(world.store.stats().unwrap().objects, 0, "nothing was copied");
    assert_eq!(dir, world.put_tree(&[("a.txt", "one"), ("sub/b.txt", "two")]), "the same content has the same name");
    fs::write(world.path("data/sub/b.txt"), "2wo").unwrap();
    assert_ne!(world.store.digest_path(&world.path("data")).unwrap(), dir);
    assert!(world.store.digest_path(&world.path("nothing")).unwrap_err().to_string().contains("nothing"));
}

#[test]
fn links_in_external_data_are_followed_and_loops_refused() {
    let world = World::new();
    let blob = world.file("blobs/1", "weights");
    fs::create_dir(world.path("snapshot")).unwrap();
    symlink(&blob, world.path("snapshot/model.safetensors")).unwrap();
    let artifact = world.store.digest_path(&world.path("snapshot")).unwrap();
    assert_eq!(artifact, world.put_tree(&[("model.safetensors", "weights")]));
    symlink(world.path("snapshot"), world.path("snapshot/loop")).unwrap();
    assert!(world.store.digest_path(&world.path("snapshot")).unwrap_err().to_string().contains("loop"));
}

#[test]
fn external_files_are_read_once_while_unchanged() {
    let world = World::new();
    let recorder = Arc::new(Recorder::default());
    let options = || StoreOptions { faults: Some(recorder.clone()), ..quiet() };
    let file = world.file("big", "content");
    settle();
    let store = Store::open(&world.root(), options()).unwrap();
    store.digest_path(&file).unwrap();
    assert_eq!(recorder.reads_of(&file), 1);
    let store = Store::open(&world.root(), options()).unwrap();
    store.digest_path(&file).unwrap();
    assert_eq!(recorder.reads_of(&file), 0, "another process knows too");
    fs::write(&file, "c0ntent").unwrap();
    assert_eq!(store.digest_path(&file).unwrap().digest, Digest::of(b"c0ntent"));
    assert_eq!(recorder.reads_of(&file), 1);
}

#[test]
fn nothing_is_hashed_when_nothing_has_changed() {
    let world = World::new();
    let recorder = Arc::new(Recorder::default());
    for n in 0..40 {
        world.file(&format!("data/{}/{n}", n % 3), &format!("picture {n}"));
    }
    let (file, dest) = (world.put("weights"), world.path("out/tree"));
    let tree = world.put_tree(&[("a", "1"), ("b/c", "2")]);
    world.store.publish(&recipe("x"), vec![("file".to_owned(), file), ("tree".to_owned(), tree)]).unwrap();
    world.store.materialise(&tree, &dest).unwrap();
    let look = || {
        let store = Store::open(&world.root(), StoreOptions { faults: Some(recorder.clone()), ..quiet() }).unwrap();
        let data = store.digest_path(&world.path("data")).unwrap();
        let entry = store.lookup(&recipe("x").digest()).unwrap().unwrap();
        assert!(entry.outputs.iter().all(|(_, artifact)| store.contains(artifact)));
        store.locate(&tree).unwrap();
        assert!(store.is_published(&tree, &dest));
        let hashed = recorder.0.lock().unwrap().iter().filter(|(op, _)| *op == Op::Hash).count();
        recorder.0.lock().unwrap().clear();
        (data, hashed)
    };
    settle();
    let (data, hashed) = look();
    assert!(hashed >= 40, "the first look reads: {hashed}");
    assert_eq!(look(), (data, 0));
    assert_eq!(look(), (data, 0));
}

#[test]
fn a_published_file_is_a_writable_copy_and_is_restored() {
    let world = World::new();
    let artifact = world.put("result");
    let dest = world.path("out/deep/result.txt");
    assert!(!world.store.is_published(&artifact, &dest));
    world.store.materialise(&artifact, &dest).unwrap();
    assert!(world.store.is_published(&artifact, &dest));
    let (copy, object) = (fs::metadata(&dest).unwrap(), fs::metadata(world.store.locate(&artifact).unwrap()).unwrap());
    assert_ne!(copy.ino(), object.ino());
    assert_eq!(copy.permissions().mode() & 0o777, 0o644);
    fs::write(&dest, "edited").unwrap();
    assert!(!world.store.is_published(&artifact, &dest));
    assert!(world.store.contains(&artifact));
    world.store.materialise(&artifact, &dest).unwrap();
    assert_eq!(fs::read_to_string(&dest).unwrap(), "result");
    assert_eq!(fs::read_dir(dest.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn a_published_tree_leaves_other_files_alone_and_removes_its_own_stale_ones() {
    let world = World::new();
    let dest = world.path("results");
    let notes = world.file("results/notes.txt", "mine");
    let old = world.put_tree(&[("table.md", "1"), ("old/plot.png", "2"), ("old/edited", "3")]);
    world.store.materialise(&old, &dest).unwrap();
    assert!(world.store.is_published(&old, &dest));
    fs::write(dest.join("old/edited"), "by hand").unwrap();
    let new = world.put_tree(&[("table.md", "9"), ("table.csv", "9")]);
    world.store.materialise(&new, &dest).unwrap();
    assert!(world.store.is_published(&new, &dest) && !world.store.is_published(&old, &dest));
    assert_eq!(fs::read_to_string(&notes).unwrap(), "mine");
    assert!(!dest.join("old/plot.png").exists());
    assert_eq!(fs::read_to_string(dest.join("old/edited")).unwrap(), "by hand");
    fs::remove_file(dest.join("table.csv")).unwrap();
    assert!(!world.store.is_published(&new, &dest));
}
