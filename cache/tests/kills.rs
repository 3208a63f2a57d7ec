//! A real process killed at random moments, again and again: no partial output is ever accepted, and the next process goes on
//! without any command.
//!
//! 25 kills by default, 1,000 with `MPCC_HEAVY=1`; every 5 kills start a new store. A failure prints the moments.

use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mpcc_cache::{Digest, Entry, GcOptions, Keep, Store, StoreOptions};

use crate::support::{self, fast_dir, heavy, no_forks, recipe};
use crate::workload::absorbing;

/// Set for a child of this test: the store it works on.
const CHILD: &str = "MPCC_CACHE_TEST_KILLED";
/// Set for a child of this test: how many units it does before it ends by itself.
const UNITS: &str = "MPCC_CACHE_TEST_UNITS";
const KILLS_A_STORE: usize = 5;

fn variable(name: &str) -> Option<String> {
    #[allow(clippy::disallowed_methods, reason = "the parent hands it over")]
    std::env::var(name).ok()
}

fn spawn(root: &Path, units: u64) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "kills::child", "--ignored", "--nocapture"]).env(CHILD, root);
    support::spawn(command.env(UNITS, units.to_string()).stdout(Stdio::piped()).stderr(Stdio::null()))
}

fn text(n: u64) -> String {
    format!("{n} ").repeat(50 + (n % 7) as usize * 400)
}

/// What a child does: unit after unit, those that are there already only looked at.
#[test]
#[ignore = "runs only as the child of the other test"]
fn child() {
    let Some(root) = variable(CHILD) else { return };
    let units = variable(UNITS).unwrap().parse().unwrap();
    let store = Store::open(Path::new(&root), absorbing(StoreOptions::default())).unwrap();
    println!("\nopen");
    for n in 0..units {
        match store.lookup(&recipe(&n.to_string()).digest()).unwrap() {
            Some(entry) => assert_whole(&store, n, &entry),
            None => execute(&store, n),
        }
        if n % 16 == 15 {
            store.gc(&GcOptions { keep: Keep::Everything, ..GcOptions::default() }).unwrap();
        }
        println!("done {n}");
    }
}

fn execute(store: &Store, n: u64) {
    let lease = store.lease(&recipe(&n.to_string()).digest()).unwrap().expect("the dead hold no lease");
    let dir = store.scratch("unit").unwrap();
    store.memo().put("vlm", &Digest::of(&n.to_le_bytes()), text(n).as_bytes()).unwrap();
    std::fs::write(dir.join("file"), text(n)).unwrap();
    std::fs::create_dir(dir.join("tree")).unwrap();
    std::fs::write(dir.join("tree/own"), text(n)).unwrap();
    std::fs::write(dir.join("tree/same"), "same").unwrap();
    let file = store.put_file(&dir.join("file")).unwrap();
    let tree = store.put_tree(&dir.join("tree")).unwrap();
    store.publish(&recipe(&n.to_string()), vec![("file".to_owned(), file), ("tree".to_owned(), tree)]).unwrap();
    drop(lease);
}

fn assert_whole(store: &Store, n: u64, entry: &Entry) {
    let file = store.locate(entry.output("file").unwrap()).unwrap();
    assert_eq!(std::fs::read_to_string(file).unwrap(), text(n));
    let tree = store.locate(entry.output("tree").unwrap()).unwrap();
    assert_eq!(std::fs::read_to_string(tree.join("own")).unwrap(), text(n));
    assert_eq!(std::fs::read_to_string(tree.join("same")).unwrap(), "same");
}

/// Three of four children are killed some time after they opened the store, the others some time after they were started.
fn wait_until_open(child: &mut Child) {
    let mut output = child.stdout.take().unwrap();
    let (mut byte, mut seen) = ([0], Vec::new());
    while !seen.ends_with(b"open\n") && output.read(&mut byte).unwrap() > 0 {
        seen.push(byte[0]);
    }
    child.stdout = Some(output);
}

/// How many units the child said it had done.
fn told(child: &mut Child) -> u64 {
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    // The kill may have cut the last line short.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().filter(|line| line.starts_with("done ")).count() as u64
}

/// Looks at everything the way the next process would; returns how many units are there.
fn look(root: &Path, told: u64, when: &str) -> u64 {
    let _still = no_forks();
    let store = Store::open(root, absorbing(StoreOptions::default())).unwrap();
    let mut found = 0;
    for n in 0_u64.. {
        let memo = store.memo().get("vlm", &Digest::of(&n.to_le_bytes()));
        assert!(memo.as_ref().is_none_or(|memo| *memo == text(n).into_bytes()), "{when}: the memo of {n} lies");
        match store.lookup(&recipe(&n.to_string()).digest()).unwrap() {
            Some(entry) => assert_whole(&store, n, &entry),
            None => {
                assert!(n >= told, "{when}: unit {n} of {told} is lost");
                break;
            }
        }
        assert!(memo.is_some(), "{when}: the memo of {n} is lost");
        found = n + 1;
    }
    let report = store.verify().unwrap();
    assert!(report.is_clean(), "{when}: {report:?}");
    assert_eq!(store.stats().unwrap().quarantined, 0, "{when}");
    found
}

#[test]
fn a_process_killed_at_random_moments_never_leaves_a_partial_output() {
    let kills = if heavy() { 1000 } else { 25 };
    let (mut published, mut interrupted) = (0, 0);
    for first in (0..kills).step_by(KILLS_A_STORE) {
        let dir = fast_dir();
        let root = dir.path().join("store");
        let mut done = 0;
        for kill in first..(first + KILLS_A_STORE).min(kills) {
            let moment = Duration::from_micros(RandomState::new().hash_one(kill) % 30_000);
            let mut child = spawn(&root, u64::MAX);
            if kill % 4 > 0 {
                wait_until_open(&mut child);
            }
            std::thread::sleep(moment);
            child.kill().unwrap();
            child.wait().unwrap();
            let said = told(&mut child).max(done);
            let found = if root.exists() { look(&root, said, &format!("kill {kill} after {moment:?}")) } else { 0 };
            interrupted += usize::from(found > done);
            done = found;
        }
        let mut last = spawn(&root, done + 5);
        assert!(last.wait().unwrap().success(), "the last process did not go on");
        assert_eq!(told(&mut last), done + 5);
        published += look(&root, done + 5, "at the end");
    }
    println!("{kills} kills, {interrupted} of them while units were being published, {published} units published");
    assert!(interrupted * 4 > kills, "only {interrupted} of {kills} kills hit a process at work");
}
