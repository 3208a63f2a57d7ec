//! Several threads and several real processes on one store, one of them killed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use mpcc_cache::{Digest, Store};

use crate::support::{self, World, put, put_tree, quiet, recipe};

/// Set for a child of these tests: the store it works on.
const CHILD: &str = "MPCC_CACHE_TEST_STORE";

fn spawn(root: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "processes::child", "--ignored", "--nocapture"]).env(CHILD, root);
    support::spawn(command.stdout(Stdio::piped()).stderr(Stdio::null()))
}

fn value(n: u64) -> Vec<u8> {
    n.to_le_bytes().repeat(1 + (n % 50) as usize)
}

/// What a child does until it is killed: memo records and entries, each reported once it is done.
#[test]
#[ignore = "runs only as the child of the other tests"]
fn child() {
    #[allow(clippy::disallowed_methods, reason = "the parent hands the store's path over")]
    let Ok(root) = std::env::var(CHILD) else { return };
    let store = Store::open(Path::new(&root), quiet()).unwrap();
    let lease = store.lease(&Digest::of(b"leased")).unwrap();
    println!("\nleased {}", lease.is_some());
    for n in 0..u64::MAX {
        store.memo().put("vlm", &Digest::of(&n.to_le_bytes()), &value(n)).unwrap();
        if n % 8 == 0 {
            let tree = put_tree(&store, &[("n", &n.to_string()), ("same", "same")]);
            store.publish(&recipe(&n.to_string()), vec![("t".to_owned(), tree)]).unwrap();
        }
        println!("done {n}");
    }
}

/// Reads a child's lines until it reports `n`; gives the answer to its wish for the lease.
fn wait_for(child: &mut Child, n: u64) -> bool {
    let mut leased = None;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        leased = leased.or_else(|| line.strip_prefix("leased ").map(|answer| answer == "true"));
        if line == format!("done {n}") {
            return leased.expect("the lease comes first");
        }
    }
    panic!("the child ended before record {n}");
}

fn check(store: &Store, up_to: u64) {
    for n in 0..=up_to {
        assert_eq!(store.memo().get("vlm", &Digest::of(&n.to_le_bytes())), Some(value(n)), "record {n}");
        if n % 8 == 0 {
            let entry = store.lookup(&recipe(&n.to_string()).digest()).unwrap().expect("published");
            let dir = store.locate(entry.output("t").unwrap()).unwrap();
            assert_eq!(std::fs::read_to_string(dir.join("n")).unwrap(), n.to_string());
        }
    }
}

#[test]
fn what_a_killed_process_had_done_is_there_and_its_lease_is_free() {
    let world = World::new();
    for n in [3, 40, 77] {
        let mut child = spawn(&world.root());
        assert!(wait_for(&mut child, n), "the lease of the killed child before is free");
        assert!(world.store.lease(&Digest::of(b"leased")).unwrap().is_none(), "the child holds it");
        child.kill().unwrap();
        child.wait().unwrap();
        check(&world.store, n);
        check(&world.reopen(), n);
        assert!(world.store.verify().unwrap().is_clean());
    }
}

#[test]
fn two_processes_at_once_do_not_disturb_each_other() {
    let world = World::new();
    let mut children = [spawn(&world.root()), spawn(&world.root())];
    for child in &mut children {
        wait_for(child, 60);
    }
    for child in &mut children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    check(&world.reopen(), 60);
    assert!(world.store.verify().unwrap().is_clean());
}

#[test]
fn threads_that_publish_the_same_thing_all_succeed() {
    let world = World::new();
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let store = if thread % 2 == 0 { world.store.clone() } else { world.reopen() };
            scope.spawn(move || {
                for n in 0..8 {
                    let files = [("a", "same"), ("b", "same"), ("n", &n.to_string())];
                    let outputs =
                        vec![("f".to_owned(), put(&store, "same")), ("t".to_owned(), put_tree(&store, &files))];
                    let entry = store.publish(&recipe(&n.to_string()), outputs).unwrap();
                    assert_eq!(store.lookup(&entry.recipe).unwrap().unwrap().outputs, entry.outputs);
                    let dir = store.locate(entry.output("t").unwrap()).unwrap();
                    assert_eq!(std::fs::read_to_string(dir.join("n")).unwrap(), n.to_string());
                }
            });
        }
    });
    let report = world.store.verify().unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(world.store.stats().unwrap().quarantined, 0);
}

#[test]
fn one_of_many_threads_gets_the_lease() {
    let world = World::new();
    let key = Digest::of(b"recipe");
    let running = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    if let Some(lease) = world.store.lease(&key).unwrap() {
                        assert_eq!(running.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        assert_eq!(running.fetch_sub(1, std::sync::atomic::Ordering::SeqCst), 1);
                        drop(lease);
                    }
                }
            });
        }
    });
}
