//! What must not come in, and what must not lead out: names, links and special files in outputs, manifests that somebody made
//! by hand, entries that point at them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use mpcc_cache::{Artifact, ArtifactKind, Digest, StoreError};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::support::{World, below, recipe};

fn deep(dir: &Path) {
    let mut dir = dir.to_owned();
    for _ in 0..70 {
        dir = dir.join("d");
    }
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("x"), "").unwrap();
}

#[test]
fn hostile_trees_are_refused_and_say_which_file() {
    let world = World::new();
    type Make = fn(&Path);
    let table: [(&str, Make); 11] = [
        ("is a link", |dir| symlink("/etc/passwd", dir.join("x")).unwrap()),
        ("is a link", |dir| symlink("/etc", dir.join("x")).unwrap()),
        ("is a link", |dir| symlink("nowhere", dir.join("x")).unwrap()),
        ("is a link", |dir| symlink(".", dir.join("x")).unwrap()),
        ("control characters", |dir| fs::write(dir.join("a\nb"), "").unwrap()),
        ("control characters", |dir| fs::write(dir.join("\u{1b}[2J"), "").unwrap()),
        ("control characters", |dir| fs::create_dir(dir.join("\r")).unwrap()),
        ("not UTF-8", |dir| fs::write(dir.join(OsStr::from_bytes(b"\xff")), "").unwrap()),
        ("neither a file", |dir| drop(std::os::unix::net::UnixListener::bind(dir.join("x")).unwrap())),
        ("neither a file", |dir| mknodat(CWD, dir.join("x"), FileType::Fifo, Mode::RUSR, 0).unwrap()),
        ("deep", deep),
    ];
    for (expected, make) in table {
        let dir = world.store.scratch("t").unwrap();
        fs::write(dir.join("innocent"), "innocent").unwrap();
        make(&dir);
        let error = world.store.put_tree(&dir).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, StoreError::Refused { .. }), "{text}");
        assert!(text.contains(expected) && text.contains(&*dir.to_string_lossy()), "{text}");
        assert!(dir.join("innocent").exists(), "nothing was taken before all was looked at");
    }
    assert_eq!(world.store.stats().unwrap().objects, 0);
}

/// A manifest of one file at `path`, made by hand and stored.
fn forged(world: &World, path: &str) -> Artifact {
    let file = world.put("x");
    let text = format!("mpcc-tree 1\n{} 1 {path}\n", file.digest);
    let digest = world.store.put_bytes(text.as_bytes()).unwrap().digest;
    Artifact { kind: ArtifactKind::Tree, digest, bytes: 1 }
}

/// Writes an entry for `name` past the store, as somebody else's log.
fn forge_entry(world: &World, name: &str, output: &Artifact) {
    let list = serde_json::json!({ "outputs": [["t", output]] }).to_string();
    let list = world.store.put_bytes(list.as_bytes()).unwrap().digest;
    let mut record = 1_700_000_000_000_000_000_u64.to_le_bytes().to_vec();
    record.extend(1_u64.to_le_bytes());
    record.extend(recipe(name).digest().as_bytes());
    record.extend(list.as_bytes());
    record.extend([0; 16]);
    let mut log = b"mpcclog1entr\x60\0\0\0".to_vec();
    log.extend(&record);
    log.extend(&Digest::of(&record).as_bytes()[..8]);
    fs::create_dir_all(world.root().join("entries")).unwrap();
    fs::write(world.root().join("entries").join(format!("{}-0.log", &Digest::of(name.as_bytes()).hex()[..16])), log)
        .unwrap();
}

#[test]
fn a_hostile_manifest_is_refused_wherever_it_comes_in() {
    let world = World::new();
    let outside = world.file("outside/victim", "mine");
    let absolute = outside.to_str().unwrap();
    for path in ["../../../outside/victim", absolute, "a/../../x", "./x", "a//x", "", ".", "..", "a\u{7}", "a\r"] {
        let tree = forged(&world, path);
        let dest = world.path("out");
        let publish = world.store.publish(&recipe("by hand"), vec![("t".to_owned(), tree)]).map(|_| ());
        forge_entry(&world, path, &tree);
        let attempts = [
            ("publish", publish),
            ("read_tree", world.store.read_tree(&tree.digest).map(|_| ())),
            ("locate", world.store.locate(&tree).map(|_| ())),
            ("materialise", world.store.materialise(&tree, &dest)),
            ("lookup", world.reopen().lookup(&recipe(path).digest()).map(|_| ())),
        ];
        for (what, result) in attempts {
            let error = result.expect_err(&format!("{what} takes {path:?}"));
            assert!(matches!(error, StoreError::Malformed { .. }), "{what} of {path:?}: {error}");
        }
        assert!(!world.store.contains(&tree) && !world.store.is_published(&tree, &dest));
        assert!(!dest.exists() && fs::read_to_string(&outside).unwrap() == "mine", "{path:?}");
    }
    assert_eq!(below(&world.path("outside")), [outside]);
}

#[test]
fn odd_names_stay_inside() {
    let world = World::new();
    for name in ["..\\..\\x", "C:\\x", "~", "-rf", "$(touch pwned)", "a b", "...", "\u{202e}x"] {
        let tree = world.put_tree(&[(name, "x")]);
        assert_eq!(fs::read_to_string(world.store.locate(&tree).unwrap().join(name)).unwrap(), "x");
        let dest = world.path("out");
        world.store.materialise(&tree, &dest).unwrap();
        assert!(dest.join(name).exists() && world.store.is_published(&tree, &dest), "{name}");
    }
    assert!(!world.path("pwned").exists());
}

#[test]
fn a_link_planted_where_a_copy_goes_is_replaced_not_followed() {
    let world = World::new();
    let victim = world.file("victim", "mine");
    let artifact = world.put("published");
    symlink(&victim, world.path("copy")).unwrap();
    world.store.materialise(&artifact, &world.path("copy")).unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
    assert!(fs::symlink_metadata(world.path("copy")).unwrap().is_file());
}

#[test]
fn a_damaged_object_is_a_miss_that_says_so() {
    let world = World::new();
    let artifact = world.put("content");
    world.store.publish(&recipe("a"), vec![("x".to_owned(), artifact)]).unwrap();
    assert_eq!(world.store.take_damage(), []);
    let path = crate::support::object(&world.root(), &artifact.digest);
    crate::support::flip(&path);
    assert_eq!(world.store.lookup(&recipe("a").digest()).unwrap(), None);
    let damage = world.store.take_damage();
    assert_eq!(damage.iter().map(|damage| &damage.path).collect::<Vec<_>>(), [&path]);
    assert!(damage[0].quarantined.exists() && !path.exists());
    assert_eq!(world.store.take_damage(), [], "it is said once");
}
