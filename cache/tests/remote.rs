//! Push, pull and read-through over a directory: what arrives, what damage and kills leave, what is not moved twice.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use mpcc_cache::remote::{Access, Progress, PullReport, PushReport, ReadThrough, Remote, RemoteError, RemoteOptions};
use mpcc_cache::{Artifact, Digest, Faults, Op, Store, StoreError, Verdict};
use tempfile::TempDir;

use crate::support::{World, below, fast_dir, flip, object, put_tree, recipe, settle};

/// More than two parts, and not a multiple of one.
const LARGE: usize = (20 << 20) + 3;

/// A folder that serves as remote.
struct Bucket(TempDir);

impl Bucket {
    fn new() -> Self {
        Self(fast_dir())
    }

    fn url(&self) -> String {
        format!("file://{}", self.0.path().display())
    }

    fn open(&self) -> Remote {
        self.with(RemoteOptions::default())
    }

    fn with(&self, options: RemoteOptions) -> Remote {
        Remote::open(&self.url(), Access::Write, options).unwrap()
    }

    /// Files below one of its folders.
    fn files(&self, folder: &str) -> Vec<PathBuf> {
        // What is still being written has a `#` in its name.
        let whole = |path: &PathBuf| path.is_file() && !path.to_string_lossy().contains('#');
        below(&self.0.path().join(folder)).into_iter().filter(whole).collect()
    }

    fn object(&self, digest: &Digest) -> PathBuf {
        object(self.0.path(), digest)
    }
}

/// One request after another, with faults.
fn faulty(faults: Arc<dyn Faults>) -> RemoteOptions {
    RemoteOptions { transfers: 1, faults: Some(faults), ..RemoteOptions::default() }
}

fn quietly(_: Progress) {}

fn push(store: &Store, remote: &Remote) -> PushReport {
    store.push(remote, &store.recipes().unwrap(), &quietly).unwrap()
}

fn pull(store: &Store, remote: &Remote) -> PullReport {
    store.pull(remote, None, &quietly).unwrap()
}

/// Bytes that do not repeat.
fn bytes(seed: &str, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let digest = Digest::of(seed.as_bytes());
    for (at, chunk) in bytes.chunks_mut(32).enumerate() {
        let block = Digest::of(&[digest.as_bytes().as_slice(), &at.to_le_bytes()].concat());
        chunk.copy_from_slice(&block.as_bytes()[..chunk.len()]);
    }
    bytes
}

fn publish(store: &Store, name: &str, outputs: &[(&str, Artifact)]) {
    let outputs = outputs.iter().map(|(port, artifact)| ((*port).to_owned(), *artifact)).collect();
    store.publish(&recipe(name), outputs).unwrap();
}

/// Three entries that share objects: a file, a tree, both.
fn furnish(world: &World) {
    let file = world.put("one");
    let tree = world.put_tree(&[("a", "one"), ("sub/b", "two"), ("c", "three")]);
    publish(&world.store, "file", &[("x", file)]);
    publish(&world.store, "tree", &[("t", tree)]);
    publish(&world.store, "both", &[("x", file), ("t", tree)]);
}

/// Recipes, lists of outputs, contents, a manifest.
const OBJECTS: u64 = 3 + 3 + 3 + 1;

fn outputs(store: &Store, name: &str) -> Option<Vec<(String, Artifact)>> {
    Some(store.lookup(&recipe(name).digest()).unwrap()?.outputs)
}

fn assert_equal(from: &World, to: &World, names: &[&str]) {
    for name in names {
        let key = recipe(name).digest();
        let (here, there) = (from.store.lookup(&key).unwrap().unwrap(), to.store.lookup(&key).unwrap().unwrap());
        assert_eq!(here, there, "{name}: outputs and time of publication");
        assert_eq!(to.store.read_recipe(&key).unwrap(), recipe(name));
        for (_, artifact) in &there.outputs {
            let path = to.store.locate(artifact).unwrap();
            assert_eq!(to.store.digest_path(&path).unwrap(), *artifact);
        }
    }
    assert!(to.store.verify().unwrap().is_clean());
}

#[test]
fn what_is_pushed_is_pulled_with_the_same_digests_and_nothing_moves_twice() {
    let (bucket, from, to) = (Bucket::new(), World::new(), World::new());
    furnish(&from);
    let large = from.store.put_bytes(&bytes("large", LARGE)).unwrap();
    let big_tree = from.store.scratch("t").unwrap();
    fs::write(big_tree.join("big"), bytes("other", 9 << 20)).unwrap();
    fs::write(big_tree.join("empty"), "").unwrap();
    let big_tree = from.store.put_tree(&big_tree).unwrap();
    publish(&from.store, "large", &[("m", large), ("t", big_tree)]);
    let remote = bucket.open();
    assert!(remote.creates_only_absent(), "a folder can");
    let sent = push(&from.store, &remote);
    assert_eq!((sent.entries, sent.objects, sent.skipped), (4, OBJECTS + 6, 0), "{sent:?}");
    assert_eq!(bucket.files("objects").len() as u64, sent.objects);
    let on_disk: u64 = bucket.files("objects").iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert_eq!(sent.bytes, on_disk);
    let again = push(&from.store, &bucket.open());
    assert_eq!((again.entries, again.entries_skipped, again.objects, again.bytes), (0, 4, 0, 0));
    assert_eq!(again.skipped, sent.objects);
    let fetched = pull(&to.store, &bucket.open());
    assert_eq!((fetched.entries, fetched.objects, fetched.bytes), (4, sent.objects, sent.bytes), "{fetched:?}");
    assert_equal(&from, &to, &["file", "tree", "both", "large"]);
    let again = pull(&to.store, &bucket.open());
    assert_eq!((again.entries, again.entries_skipped, again.objects), (0, 4, 0));
}

#[test]
fn only_what_is_named_is_moved() {
    let (bucket, from, to) = (Bucket::new(), World::new(), World::new());
    furnish(&from);
    let named = BTreeSet::from([recipe("file").digest(), recipe("unknown").digest()]);
    let sent = from.store.push(&bucket.open(), &named, &quietly).unwrap();
    assert_eq!((sent.entries, sent.objects), (1, 3));
    push(&from.store, &bucket.open());
    let fetched = to.store.pull(&bucket.open(), Some(&named), &quietly).unwrap();
    assert_eq!((fetched.entries, fetched.objects), (1, 3));
    assert_eq!(fetched.absent, [recipe("unknown").digest()]);
    assert!(outputs(&to.store, "file").is_some() && outputs(&to.store, "tree").is_none());
}

#[test]
fn progress_ends_where_it_said() {
    let (bucket, from, to) = (Bucket::new(), World::new(), World::new());
    furnish(&from);
    let last = Mutex::new(Progress::default());
    let note = |progress: Progress| *last.lock().unwrap() = progress;
    let sent = from.store.push(&bucket.open(), &from.store.recipes().unwrap(), &note).unwrap();
    let seen = *last.lock().unwrap();
    assert_eq!((seen.objects, seen.of_objects, seen.bytes, seen.of_bytes), (OBJECTS, OBJECTS, sent.bytes, sent.bytes));
    to.store.pull(&bucket.open(), None, &note).unwrap();
    assert_eq!(*last.lock().unwrap(), seen);
}

#[test]
fn a_damaged_object_is_refused_reported_and_its_entry_is_a_miss() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 3] = [
        ("is damaged", |path| flip(path)),
        ("is damaged", |path| fs::write(path, "cut").unwrap()),
        ("is not there", |path| fs::remove_file(path).unwrap()),
    ];
    for large in [false, true] {
        for (said, harm) in harms {
            let (bucket, from, to) = (Bucket::new(), World::new(), World::new());
            let content = if large { bytes("x", LARGE) } else { bytes("x", 1000) };
            let artifact = from.store.put_bytes(&content).unwrap();
            publish(&from.store, "harmed", &[("x", artifact)]);
            publish(&from.store, "whole", &[("x", from.put("whole"))]);
            push(&from.store, &bucket.open());
            harm(&bucket.object(&artifact.digest));
            let fetched = pull(&to.store, &bucket.open());
            assert_eq!((fetched.entries, fetched.problems.len()), (1, 1), "{fetched:?}");
            let problem = &fetched.problems[0];
            assert!(problem.contains(said) && problem.contains(&artifact.digest.hex()[2..]), "{problem}");
            assert_eq!(outputs(&to.store, "harmed"), None);
            assert!(outputs(&to.store, "whole").is_some() && !to.store.contains(&artifact));
            assert!(to.store.verify().unwrap().is_clean());
            assert_eq!(to.store.stats().unwrap().objects, fetched.objects, "no bytes of the damaged one stay");
        }
    }
}

#[test]
fn an_object_that_was_cut_or_lost_is_repaired_by_the_next_push() {
    let (bucket, from, to) = (Bucket::new(), World::new(), World::new());
    furnish(&from);
    push(&from.store, &bucket.open());
    fs::write(bucket.object(&Digest::of(b"two")), "t").unwrap();
    fs::remove_file(bucket.object(&Digest::of(b"three"))).unwrap();
    assert_eq!(pull(&to.store, &bucket.open()).entries, 1, "only the file");
    let sent = push(&from.store, &bucket.open());
    assert_eq!((sent.entries, sent.objects, sent.skipped), (0, 2, OBJECTS - 2));
    assert_eq!(pull(&to.store, &bucket.open()).entries, 2);
    assert_equal(&from, &to, &["file", "tree", "both"]);
}

#[test]
fn hostile_records_and_manifests_are_refused() {
    let (bucket, from, to) = (Bucket::new(), World::new(), World::new());
    furnish(&from);
    push(&from.store, &bucket.open());
    for path in bucket.files("entries") {
        let other = path.with_file_name(Digest::of(b"another").hex());
        fs::copy(&path, other).unwrap();
        flip(&path);
    }
    fs::write(bucket.0.path().join("entries/litter"), "x").unwrap();
    let fetched = pull(&to.store, &bucket.open());
    assert_eq!((fetched.entries, fetched.problems.len()), (0, 6), "{:?}", fetched.problems);
    // An outputs list that is what its name says, and no list; a manifest that leaves its tree.
    let evil = format!("mpcc-tree 1\n{} 1 ../../x\n", Digest::of(b"x"));
    let tree = from.store.put_bytes(evil.as_bytes()).unwrap();
    let remote = bucket.open();
    let listed = |list: &[u8]| {
        let list = from.store.put_bytes(list).unwrap().digest;
        let key = from.store.put_recipe(&recipe("evil")).unwrap();
        for digest in [list, key, tree.digest] {
            let target = bucket.object(&digest);
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::write(target, from.store.read(&digest).unwrap()).unwrap();
        }
        let text = format!("mpcc-entry 1 {key} {list} 5");
        let folder = bucket.0.path().join(format!("entries/{key}"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(list.hex()), format!("{text} {}\n", Digest::of(text.as_bytes()))).unwrap();
        let named = BTreeSet::from([key]);
        to.store.pull(&remote, Some(&named), &quietly).unwrap()
    };
    let fetched = listed(b"[]");
    assert!(fetched.entries == 0 && fetched.problems[0].contains("no list of outputs"), "{fetched:?}");
    let list = format!(r#"{{"outputs":[["t",{{"kind":"tree","digest":"{}","bytes":1}}]]}}"#, tree.digest);
    let fetched = listed(list.as_bytes());
    assert!(fetched.problems.iter().any(|problem| problem.contains("no list of files")), "{fetched:?}");
    assert_eq!(outputs(&to.store, "evil"), None);
}

#[test]
fn the_latest_entry_wins_and_damage_falls_back() {
    let (bucket, first, second) = (Bucket::new(), World::new(), World::new());
    for (world, content) in [(&first, "first"), (&second, "second")] {
        publish(&world.store, "a", &[("x", world.put(content))]);
        assert_eq!(push(&world.store, &bucket.open()).entries, 1);
    }
    assert_eq!(bucket.files("entries").len(), 2);
    let chosen = |world: &World| outputs(&world.store, "a").unwrap()[0].1.digest;
    let to = World::new();
    pull(&to.store, &bucket.open());
    assert_eq!(chosen(&to), Digest::of(b"second"));
    let kept = pull(&first.store, &bucket.open());
    assert_eq!((kept.entries, kept.entries_skipped, chosen(&first)), (0, 1, Digest::of(b"first")), "it has an answer");
    flip(&bucket.object(&Digest::of(b"second")));
    let to = World::new();
    let fetched = pull(&to.store, &bucket.open());
    assert_eq!((fetched.entries, fetched.problems.len(), chosen(&to)), (1, 1, Digest::of(b"first")));
}

/// Flips a byte of an object at the moment it is opened to be sent.
struct Rot(PathBuf, AtomicU64);

impl Faults for Rot {
    fn before(&self, op: Op, path: &Path) -> Verdict {
        if matches!(op, Op::Read | Op::Hash | Op::Open) && path == self.0 && self.1.fetch_add(1, Ordering::SeqCst) == 0
        {
            flip(path);
        }
        Verdict::Pass
    }
}

#[test]
fn an_object_that_rots_on_its_way_is_not_sent() {
    for length in [1000, LARGE] {
        let (bucket, from) = (Bucket::new(), World::new());
        let artifact = from.store.put_bytes(&bytes("x", length)).unwrap();
        publish(&from.store, "rotten", &[("x", artifact)]);
        publish(&from.store, "whole", &[("x", from.put("whole"))]);
        settle();
        assert!(from.store.contains(&artifact));
        let rot = Arc::new(Rot(object(&from.root(), &artifact.digest), AtomicU64::new(0)));
        let options = mpcc_cache::StoreOptions { faults: Some(rot.clone()), ..crate::support::quiet() };
        let store = Store::open(&from.root(), options).unwrap();
        for seen in [1, 0] {
            // The first push reads it; the second finds it in quarantine already.
            let sent = push(&store, &bucket.open());
            assert_eq!((sent.entries, sent.incomplete.len()), (seen, 1), "{sent:?}");
            assert_eq!(sent.incomplete[0].0, recipe("rotten").digest());
        }
        assert!(rot.1.load(Ordering::SeqCst) > 0, "it was read");
        assert!(!bucket.object(&artifact.digest).exists() && !store.contains(&artifact));
        let to = World::new();
        assert_eq!(pull(&to.store, &bucket.open()).problems, [""; 0]);
        assert!(outputs(&to.store, "whole").is_some());
    }
}

/// Lets `left` requests pass that `counts` and fails all after them.
struct Cut {
    left: AtomicU64,
    counts: fn(Op) -> bool,
}

impl Cut {
    fn after(left: u64, counts: fn(Op) -> bool) -> Arc<Self> {
        Arc::new(Self { left: AtomicU64::new(left), counts })
    }
}

impl Faults for Cut {
    fn before(&self, op: Op, _: &Path) -> Verdict {
        let counted = (self.counts)(op);
        let take = |left: u64| if counted { left.checked_sub(1) } else { (left > 0).then_some(left) };
        match self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take) {
            Ok(_) => Verdict::Pass,
            Err(_) => Verdict::Fail(io::Error::other("cut off")),
        }
    }
}

#[test]
fn a_push_cut_off_at_any_request_leaves_no_lie_and_goes_on() {
    let from = World::new();
    furnish(&from);
    let large = from.store.put_bytes(&bytes("large", LARGE)).unwrap();
    publish(&from.store, "large", &[("m", large)]);
    let (all, mut cuts) = (OBJECTS + 3, 0);
    for k in 0.. {
        let bucket = Bucket::new();
        let opened = Remote::open(&bucket.url(), Access::Write, faulty(Cut::after(k, |_| true)));
        let ended = opened.and_then(|remote| from.store.push(&remote, &from.store.recipes().unwrap(), &quietly));
        let to = World::within(fast_dir());
        let early = pull(&to.store, &bucket.open());
        assert_eq!(early.problems, [""; 0], "an entry without its objects, cut at {k}");
        assert_eq!(early.entries, bucket.files("entries").len() as u64);
        let (there, entries) = (bucket.files("objects").len() as u64, early.entries);
        let rest = push(&from.store, &bucket.open());
        assert_eq!((rest.objects, rest.skipped), (all - there, there), "cut at {k}");
        assert_eq!((rest.entries, rest.entries_skipped), (4 - entries, entries), "cut at {k}");
        pull(&to.store, &bucket.open());
        assert_equal(&from, &to, &["file", "tree", "both", "large"]);
        match ended {
            Ok(_) => break,
            Err(error) => {
                assert!(error.is_passing() && error.to_string().contains(&bucket.url()), "{error}");
                cuts += 1;
            }
        }
    }
    // Opening, a look and a write for each object and entry, the parts of the large one.
    assert!(cuts > 30, "only {cuts} requests");
}

#[test]
fn a_pull_cut_off_at_any_request_leaves_no_lie_and_goes_on() {
    let (bucket, from) = (Bucket::new(), World::new());
    furnish(&from);
    publish(&from.store, "large", &[("m", from.store.put_bytes(&bytes("large", LARGE)).unwrap())]);
    let all = push(&from.store, &bucket.open()).objects;
    for k in 0.. {
        let to = World::within(fast_dir());
        let opened = Remote::open(&bucket.url(), Access::Read, faulty(Cut::after(k, |_| true)));
        let ended = opened.and_then(|remote| to.store.pull(&remote, None, &quietly));
        assert!(to.store.verify().unwrap().is_clean(), "cut at {k}");
        let before = to.store.stats().unwrap();
        let rest = pull(&to.store, &bucket.open());
        assert_eq!(rest.entries + rest.entries_skipped, 4);
        assert_eq!(rest.entries_skipped, before.entries);
        // An object that had arrived may be taken after the pull has failed.
        let left = all - before.objects;
        assert!(rest.objects == left || rest.objects + 1 == left, "{} of {left}, cut at {k}", rest.objects);
        assert_equal(&from, &to, &["file", "tree", "both", "large"]);
        if ended.is_ok() {
            assert!(k > 20, "only {k} requests");
            break;
        }
    }
}

#[test]
fn two_pushers_at_once_send_every_object_once() {
    for round in 0..5 {
        let (bucket, one, two) = (Bucket::new(), World::new(), World::new());
        for world in [&one, &two] {
            for n in 0..20 {
                let tree = put_tree(&world.store, &[("n", &n.to_string()), ("same", "same")]);
                publish(&world.store, &n.to_string(), &[("t", tree)]);
            }
        }
        let reports = std::thread::scope(|scope| {
            let pushing = [&one, &two].map(|world| scope.spawn(|| push(&world.store, &bucket.open())));
            pushing.map(|thread| thread.join().unwrap())
        });
        let all = bucket.files("objects").len() as u64;
        assert_eq!(reports[0].objects + reports[1].objects, all, "round {round}");
        assert!(reports.iter().all(|report| report.objects + report.skipped == all && report.incomplete.is_empty()));
        let to = World::new();
        assert_eq!(pull(&to.store, &bucket.open()).entries, 20);
        assert!(to.store.verify().unwrap().is_clean());
    }
}

#[test]
fn many_objects_are_listed_instead_of_looked_for_one_by_one() {
    #[derive(Default)]
    struct Count(Mutex<[u64; 3]>);
    impl Faults for Count {
        fn before(&self, op: Op, _: &Path) -> Verdict {
            let mut counts = self.0.lock().unwrap();
            match op {
                Op::Stat => counts[0] += 1,
                Op::List => counts[1] += 1,
                Op::Write(_) => counts[2] += 1,
                _ => {}
            }
            Verdict::Pass
        }
    }
    let (bucket, from) = (Bucket::new(), World::within(fast_dir()));
    let names: Vec<String> = (0..1100).map(|n| n.to_string()).collect();
    let files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), name.as_str())).collect();
    publish(&from.store, "many", &[("t", from.put_tree(&files))]);
    let count = Arc::new(Count::default());
    let options = || RemoteOptions { faults: Some(count.clone()), ..RemoteOptions::default() };
    let sent = push(&from.store, &bucket.with(options()));
    assert_eq!(sent.objects, 1103);
    let again = push(&from.store, &bucket.with(options()));
    assert_eq!((again.objects, again.skipped), (0, 1103));
    let [stats, lists, writes] = *count.0.lock().unwrap();
    assert_eq!(stats, 2, "the entry, each time");
    assert!(lists <= 2 * 257, "{lists} listings");
    // Objects, entry, format, a probe of two puts and one of one.
    assert_eq!(writes, 1103 + 1 + 1 + 2 + 1);
}

#[test]
fn a_missing_folder_is_no_miss_and_another_format_is_refused_by_name() {
    let bucket = Bucket::new();
    let gone = format!("{}/gone", bucket.url());
    for access in [Access::Read, Access::Write] {
        let Err(error) = Remote::open(&gone, access, RemoteOptions::default()) else { panic!("opened") };
        let text = error.to_string();
        assert!(matches!(error, RemoteError::NoBucket { .. }) && text.contains("gone") && text.contains("create it"));
    }
    fs::write(bucket.0.path().join("format"), "mpcc-remote 99\n").unwrap();
    for access in [Access::Read, Access::Write] {
        let Err(error) = Remote::open(&bucket.url(), access, RemoteOptions::default()) else { panic!("opened") };
        let text = error.to_string();
        assert!(text.contains("mpcc-remote 99") && text.contains("mpcc-remote 1"), "{text}");
    }
}

#[test]
fn who_only_reads_writes_nothing() {
    let (bucket, to) = (Bucket::new(), World::new());
    let remote = Remote::open(&bucket.url(), Access::Read, RemoteOptions::default()).unwrap();
    assert_eq!(pull(&to.store, &remote), PullReport::default());
    assert!(below(bucket.0.path()).is_empty());
}

fn through(store: &Store, remote: Remote) -> (Store, Arc<Mutex<Vec<String>>>, Arc<ReadThrough>) {
    let said = Arc::new(Mutex::new(Vec::new()));
    let heard = said.clone();
    let warn = Box::new(move |text: &str| heard.lock().unwrap().push(text.to_owned()));
    let through = Arc::new(ReadThrough::new(remote, warn));
    (store.with_remote(through.clone()), said, through)
}

#[test]
fn a_lookup_goes_through_to_the_remote_and_asks_once() {
    let (bucket, from, to) = (Bucket::new(), World::new(), World::new());
    furnish(&from);
    push(&from.store, &bucket.open());
    let (store, said, through) = through(&to.store, bucket.open());
    let (known, unknown) = (recipe("file").digest(), recipe("unknown").digest());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(store.lookup_through(&known).unwrap().is_some()));
        }
    });
    assert_eq!(store.lookup_through(&unknown).unwrap(), None);
    assert_eq!((through.report().entries, through.report().objects), (1, 3));
    assert!(to.store.lookup(&known).unwrap().is_some(), "it is here now");
    assert_eq!(to.store.lookup_through(&recipe("tree").digest()).unwrap(), None, "this handle has no remote");
    // What comes later is not asked for again by the same run.
    publish(&from.store, "unknown", &[("x", from.put("late"))]);
    push(&from.store, &bucket.open());
    assert_eq!(store.lookup_through(&unknown).unwrap(), None);
    assert_eq!(*said.lock().unwrap(), [""; 0]);
}

#[test]
fn a_remote_that_fails_under_a_run_is_told_once_and_left_alone() {
    let (bucket, from, to) = (Bucket::new(), World::new(), World::new());
    furnish(&from);
    push(&from.store, &bucket.open());
    let cut = Cut::after(6, |op| matches!(op, Op::Read | Op::Hash));
    let remote = Remote::open(&bucket.url(), Access::Read, faulty(cut.clone())).unwrap();
    let (store, said, _) = through(&to.store, remote);
    let found = ["file", "tree", "both"].map(|name| store.lookup_through(&recipe(name).digest()).unwrap().is_some());
    assert_eq!(found, [true, false, false]);
    let said = said.lock().unwrap();
    assert!(said.len() == 1 && said[0].contains(&bucket.url()) && said[0].contains("goes on without"), "{said:?}");
    assert!(to.store.verify().unwrap().is_clean());
}

#[test]
fn damage_behind_a_lookup_is_told_and_is_a_miss() {
    let (bucket, from, to) = (Bucket::new(), World::new(), World::new());
    furnish(&from);
    push(&from.store, &bucket.open());
    flip(&bucket.object(&Digest::of(b"two")));
    let (store, said, through) = through(&to.store, bucket.open());
    assert_eq!(store.lookup_through(&recipe("tree").digest()).unwrap(), None);
    assert!(store.lookup_through(&recipe("file").digest()).unwrap().is_some());
    assert_eq!(through.report().problems, *said.lock().unwrap());
    assert!(said.lock().unwrap()[0].contains("is damaged"));
}

#[test]
fn a_local_store_that_refuses_fails_a_pull_and_not_a_lookup() {
    let (bucket, from, to) = (Bucket::new(), World::new(), World::new());
    furnish(&from);
    push(&from.store, &bucket.open());
    struct Full;
    impl Faults for Full {
        fn before(&self, op: Op, path: &Path) -> Verdict {
            let full = matches!(op, Op::Write(_)) && path.components().any(|part| part.as_os_str() == "tmp");
            if full { Verdict::Fail(io::ErrorKind::StorageFull.into()) } else { Verdict::Pass }
        }
    }
    let options = mpcc_cache::StoreOptions { faults: Some(Arc::new(Full)), ..crate::support::quiet() };
    let full = Store::open(&to.root(), options).unwrap();
    let error = full.pull(&bucket.open(), None, &quietly).unwrap_err();
    assert!(matches!(&error, RemoteError::Store(StoreError::Io { .. })), "{error}");
    let (store, said, _) = through(&full, bucket.open());
    assert_eq!(store.lookup_through(&recipe("file").digest()).unwrap(), None);
    assert_eq!(said.lock().unwrap().len(), 1);
}
