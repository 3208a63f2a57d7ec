//! Locks by heartbeat, as on NFS. The file server's clock is a seam here: [`Server`] gives the stamp of every touched file, so a
//! test decides how old a lock is; what the machine's own clock says never matters.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use mpcc_cache::{Digest, Faults, GcOptions, Locking, Op, Store, StoreError, StoreOptions, Verdict};

use crate::support::{self, Recorder, fast_dir, heavy, put, quiet, recipe};
use crate::workload::{Told, check, converge, run};

/// Beats that nobody renews while a test lasts, stale after two hours by the server's clock.
const HOURLY: Locking = Locking::Heartbeat { every: Duration::from_secs(3600), missed: 2 };
const HOUR_NS: i64 = 3_600_000_000_000;

/// A file server whose clock the test sets; its hosts' clocks differ from it by decades.
struct Server {
    now: AtomicI64,
    /// Operations that pass before the host dies; the last write is torn.
    left: AtomicU64,
}

impl Server {
    fn new(left: u64) -> Arc<Self> {
        Arc::new(Self { now: AtomicI64::new(HOUR_NS * 9), left: AtomicU64::new(left) })
    }

    fn pass(&self, hours: i64) {
        self.now.fetch_add(HOUR_NS * hours, Ordering::SeqCst);
    }

    fn options(self: &Arc<Self>) -> StoreOptions {
        StoreOptions { faults: Some(self.clone()), locking: HOURLY, ..quiet() }
    }
}

impl Faults for Server {
    fn before(&self, op: Op, _: &Path) -> Verdict {
        match (self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)), op) {
            (Err(_), _) => Verdict::Fail(std::io::Error::other("dead")),
            (Ok(1), Op::Write(len)) => Verdict::Tear(len / 2),
            (Ok(_), _) => Verdict::Pass,
        }
    }

    fn server_ns(&self) -> Option<i64> {
        Some(self.now.load(Ordering::SeqCst))
    }
}

fn key() -> Digest {
    recipe("shared").digest()
}

fn publish(store: &Store, content: &str) -> Digest {
    let artifact = put(store, content);
    store.publish(&recipe("shared"), vec![("x".to_owned(), artifact)]).unwrap();
    artifact.digest
}

fn found(store: &Store) -> Digest {
    store.lookup(&key()).unwrap().expect("an entry").output("x").unwrap().digest
}

#[test]
fn a_lease_is_its_holders_until_it_ends_or_misses_its_beats() {
    let (dir, server) = (fast_dir(), Server::new(u64::MAX));
    let open = || Store::open(dir.path(), server.options()).unwrap();
    let (a, b) = (open(), open());
    let lease = a.lease(&key()).unwrap().expect("free");
    assert!(a.lease(&key()).unwrap().is_none() && b.lease(&key()).unwrap().is_none());
    drop(lease);
    let lease = b.lease(&key()).unwrap().expect("given back");
    server.pass(2);
    assert!(a.lease(&key()).unwrap().is_none(), "two beats may be missed");
    server.pass(1);
    let taken = a.lease(&key()).unwrap().expect("three may not");
    drop(lease);
    assert!(b.lease(&key()).unwrap().is_none(), "a zombie gives back nothing but its own");
    drop(taken);
    assert!(b.lease(&key()).unwrap().is_some());
}

#[test]
fn one_of_many_takes_a_stale_lease_over() {
    let (dir, server) = (fast_dir(), Server::new(u64::MAX));
    let open = || Store::open(dir.path(), server.options()).unwrap();
    let dead = open();
    let rounds = if heavy() { 500 } else { 40 };
    for round in 0..rounds {
        let stale = dead.lease(&key()).unwrap().expect("free");
        server.pass(3);
        let stores: Vec<Store> = (0..8).map(|_| open()).collect();
        let gate = &std::sync::Barrier::new(8);
        let taken: Vec<_> = std::thread::scope(|scope| {
            let ask = |store| {
                scope.spawn(move || {
                    gate.wait();
                    Store::lease(store, &key()).unwrap()
                })
            };
            let threads: Vec<_> = stores.iter().map(ask).collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(taken.len(), 1, "round {round}");
        drop((stale, taken));
    }
}

#[test]
fn a_zombies_result_is_complete_and_every_reader_takes_the_same() {
    let (dir, server) = (fast_dir(), Server::new(u64::MAX));
    let open = || Store::open(dir.path(), server.options()).unwrap();
    let (zombie, other) = (open(), open());
    let asleep = zombie.lease(&key()).unwrap().expect("free");
    let early = put(&zombie, "by the zombie");
    server.pass(3);
    let awake = other.lease(&key()).unwrap().expect("taken over");
    let late = publish(&other, "by the other");
    drop(awake);
    zombie.publish(&recipe("shared"), vec![("x".to_owned(), early)]).unwrap();
    drop(asleep);
    let answers: Vec<_> = [&zombie, &other, &open()].map(found).into();
    assert!(answers.iter().all(|answer| *answer == early.digest), "the latest complete one");
    for digest in [early.digest, late] {
        assert!(!open().read(&digest).unwrap().is_empty());
    }
    assert!(open().verify().unwrap().is_clean());
    // What lay unfinished when its host was taken for dead is swept; the zombie is told, and nothing of it is accepted.
    let unfinished = zombie.scratch("late").unwrap().join("file");
    std::fs::write(&unfinished, "too late").unwrap();
    server.pass(3);
    let third = open();
    assert!(matches!(zombie.put_file(&unfinished), Err(StoreError::Io { .. })));
    assert!(third.verify().unwrap().is_clean());
}

#[test]
fn the_living_are_left_alone_and_gc_waits_for_them() {
    let (dir, server) = (fast_dir(), Server::new(u64::MAX));
    let open = || Store::open(dir.path(), server.options()).unwrap();
    let living = open();
    let scratch = living.scratch("work").unwrap();
    let gc = open();
    assert!(scratch.exists());
    assert!(matches!(gc.gc(&GcOptions::default()), Err(StoreError::Busy { .. })));
    assert!(dir.path().join("leases/gc.beat").metadata().is_err(), "it says no longer that it works");
    put(&living, "orphan");
    server.pass(3);
    let later = open();
    assert!(!scratch.exists(), "swept");
    assert_eq!(later.gc(&GcOptions::default()).unwrap().objects_removed, 1);
    // While a gc works nobody comes in, and a gc that died is not waited for for ever.
    std::fs::write(dir.path().join("leases/gc.beat"), "").unwrap();
    let beat = std::fs::File::options().append(true).open(dir.path().join("leases/gc.beat")).unwrap();
    beat.set_modified(std::time::UNIX_EPOCH + Duration::from_nanos(server.now.load(Ordering::SeqCst) as u64)).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(open);
        std::thread::sleep(Duration::from_millis(120));
        assert!(!waiting.is_finished());
        server.pass(3);
        waiting.join().unwrap();
    });
}

/// A gc that is stopped for hours as it removes the first object; meanwhile another host comes in.
struct Stopped {
    server: Arc<Server>,
    root: std::path::PathBuf,
    reached: AtomicU64,
}

impl Faults for Stopped {
    fn before(&self, op: Op, path: &Path) -> Verdict {
        let object = path.starts_with(self.root.join("objects")) && path.is_file();
        if op == Op::Remove && object && self.reached.fetch_add(1, Ordering::SeqCst) == 0 {
            self.server.pass(3);
            let store = Store::open(&self.root, self.server.options()).unwrap();
            publish(&store, "put while the gc was stopped");
        }
        Verdict::Pass
    }

    fn server_ns(&self) -> Option<i64> {
        self.server.server_ns()
    }
}

#[test]
fn a_gc_that_was_stopped_does_not_go_on() {
    let (dir, server) = (fast_dir(), Server::new(u64::MAX));
    let orphans = Store::open(dir.path(), server.options()).unwrap();
    for n in 0..2000 {
        orphans.put_bytes(format!("orphan {n}").as_bytes()).unwrap();
    }
    drop(orphans);
    let root = dir.path().to_owned();
    let stopped = Arc::new(Stopped { server: server.clone(), root: root.clone(), reached: AtomicU64::new(0) });
    let gc = Store::open(&root, StoreOptions { faults: Some(stopped.clone()), ..server.options() }).unwrap();
    assert!(matches!(gc.gc(&GcOptions::default()), Err(StoreError::Busy { .. })));
    assert!(stopped.reached.load(Ordering::SeqCst) < 2000, "it went on");
    let store = Store::open(&root, server.options()).unwrap();
    assert_eq!(found(&store), Digest::of(b"put while the gc was stopped"));
}

#[test]
fn the_choice_is_the_stores() {
    let dir = fast_dir();
    let kind = || std::fs::read_to_string(dir.path().join("leases/kind")).ok();
    let open = |locking| Store::open(dir.path(), StoreOptions { locking, ..quiet() }).unwrap();
    drop(open(Locking::Auto));
    assert_eq!(kind(), None, "this is no NFS");
    drop(open(Locking::HEARTBEAT));
    assert_eq!(kind().as_deref(), Some("heartbeat 5000 12\n"));
    let store = open(Locking::Auto);
    let lease = store.lease(&key()).unwrap();
    assert!(dir.path().join("leases").join(format!("{}.beat", key())).exists());
    drop((lease, store));
    drop(open(Locking::Kernel));
    let lease = open(Locking::Auto).lease(&key()).unwrap();
    assert!(!dir.path().join("leases").join(format!("{}.beat", key())).exists());
    drop(lease);
    std::fs::write(dir.path().join("leases/kind"), "heart").unwrap();
    drop(open(Locking::Auto));
}

#[test]
fn what_others_may_see_was_flushed_before() {
    let (dir, recorder) = (fast_dir(), Arc::new(Recorder::default()));
    let store =
        Store::open(dir.path(), StoreOptions { faults: Some(recorder.clone()), locking: HOURLY, ..quiet() }).unwrap();
    recorder.0.lock().unwrap().clear();
    let digest = publish(&store, "seen by all");
    let seen = recorder.0.lock().unwrap();
    let object = support::object(store.root(), &digest);
    let renamed = seen.iter().position(|(op, path)| *op == Op::Rename && *path == object).unwrap();
    assert_eq!(seen[renamed - 1].0, Op::Sync, "{:?}", &seen[..=renamed]);
}

#[test]
fn a_host_that_dies_anywhere_leaves_the_truth_or_nothing() {
    let (mut finished, mut k) = (false, 0);
    while !finished {
        let (dir, _still) = (fast_dir(), support::no_forks());
        let (server, mut told) = (Server::new(k), Told::default());
        finished = run(dir.path(), server.options(), &mut told).is_ok();
        server.left.store(u64::MAX, Ordering::SeqCst);
        let when = format!("a host that died after {k} operations");
        server.pass(3);
        check(dir.path(), server.options(), &told.promise(), &when);
        converge(dir.path(), server.options(), &when);
        k += if heavy() { 1 } else { 9 };
    }
    assert!(k > 300, "the workload has only {k} operations");
}

/// Set for a child of this test: the store it works on.
const CHILD: &str = "MPCC_CACHE_TEST_ZOMBIE";
/// Real beats, for processes that are really stopped.
const QUICK: Locking = Locking::Heartbeat { every: Duration::from_millis(20), missed: 10 };

/// What the child does: takes the lease, waits for a line, publishes.
#[test]
#[ignore = "runs only as the child of the other test"]
fn child() {
    #[allow(clippy::disallowed_methods, reason = "the parent hands the store's path over")]
    let Ok(root) = std::env::var(CHILD) else { return };
    let store = Store::open(Path::new(&root), StoreOptions { locking: QUICK, ..quiet() }).unwrap();
    let lease = store.lease(&key()).unwrap().expect("free");
    println!("\nleased");
    std::io::stdin().lines().next();
    publish(&store, "by the stopped");
    drop(lease);
    println!("\npublished");
}

fn signal(child: &Child, name: &str) {
    let mut command = Command::new("kill");
    command.args([&format!("-{name}"), &child.id().to_string()]);
    assert!(support::spawn(&mut command).wait().unwrap().success());
}

#[test]
fn a_process_that_was_stopped_for_too_long_does_no_harm() {
    let dir = fast_dir();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "heartbeat::child", "--ignored", "--nocapture"]).env(CHILD, dir.path());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = support::spawn(&mut command);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line == "leased"));
    let store = Store::open(dir.path(), StoreOptions { locking: QUICK, ..quiet() }).unwrap();
    // It beats: thrice the limit later the lease is still its own.
    std::thread::sleep(Duration::from_millis(600));
    assert!(store.lease(&key()).unwrap().is_none());
    signal(&child, "STOP");
    let lease = store.lease_waiting(&key(), || true).unwrap().expect("taken over");
    let own = publish(&store, "by the one who took over");
    signal(&child, "CONT");
    child.stdin.take().unwrap().write_all(b"go on\n").unwrap();
    assert!(lines.any(|line| line == "published"));
    assert!(child.wait().unwrap().success());
    assert!(store.lease(&key()).unwrap().is_none(), "the lease that was taken over stays the taker's");
    drop(lease);
    assert_eq!(found(&store), Digest::of(b"by the stopped"), "the latest complete one");
    assert_eq!(store.read(&own).unwrap(), b"by the one who took over");
    assert!(store.verify().unwrap().is_clean());
}
