//! The store at scale, measured: `cargo run --release -p mpcc-cache --example scale -- WHAT N [DIR]`.
//!
//! | what | N | measures |
//! |---|---|---|
//! | `hash` | GiB | hashing a file that is in the page cache, on one thread and on all |
//! | `memo` | records of 400 bytes | putting them, the index on disk; opening them and asking three, before gc, after it |
//! | `entries` | entries | the same for the index of entries |
//! | `gc` | objects | gc with nothing to free, then with half of them to free |
//!
//! Everything lies in DIR (the system's temporary folder by default) and is removed at the end. Memory is this process's
//! resident set as /proc tells it; on a busy machine the CPU seconds tell more than the wall's.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use mpcc_cache::{Digest, GcOptions, Keep, Recipe, Store, StoreOptions};
use rayon::prelude::*;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Files in a tree of the gc's store.
const TREE: u64 = 500;

fn main() -> Outcome {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (what, n) =
        (args.first().ok_or("say what: hash, memo, entries or gc")?, args.get(1).ok_or("say how many")?.parse()?);
    if what == "ask" {
        return ask(Path::new(args.get(2).ok_or("say where")?), n, args.get(3).ok_or("say what")?);
    }
    let home = args.get(2).map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(home)?;
    match what.as_str() {
        "hash" => hash(dir.path(), n),
        "memo" => memo(dir.path(), n),
        "entries" => entries(dir.path(), n),
        "gc" => gc(dir.path(), n),
        other => Err(format!("`{other}` is none of hash, memo, entries, gc").into()),
    }
}

fn open(root: &Path) -> Result<Store, mpcc_cache::StoreError> {
    Store::open(root, StoreOptions::default())
}

/// A line of /proc/self/status in KiB: VmRSS is all that is resident, RssAnon what the process made itself.
fn resident(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

/// CPU seconds of all threads of this process so far.
fn cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn timed<T>(what: &str, body: impl FnOnce() -> T) -> T {
    let (begun, before) = (Instant::now(), cpu());
    let value = body();
    println!("{what}: {:.3} s, CPU {:.3} s", begun.elapsed().as_secs_f64(), cpu() - before);
    value
}

fn hash(dir: &Path, gib: u64) -> Outcome {
    let path = dir.join("file");
    let mut file = File::create(&path)?;
    let block: Vec<u8> = (0..1_u32 << 20).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    for _ in 0..gib << 10 {
        file.write_all(&block)?;
    }
    drop(file);
    for threads in [1, std::thread::available_parallelism()?.get()] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let store = open(&dir.join(format!("store-{threads}")))?;
        let begun = Instant::now();
        let artifact = pool.install(|| store.digest_path(&path))?;
        let seconds = begun.elapsed().as_secs_f64();
        let rate = artifact.bytes as f64 / seconds / 1e9;
        println!("{threads} threads: {seconds:.3} s, {rate:.2} GB/s, {:.2} GB/s a thread", rate / threads as f64);
        let again = Instant::now();
        store.digest_path(&path)?;
        println!("again, nothing hashed: {:.6} s", again.elapsed().as_secs_f64());
    }
    Ok(())
}

fn key(n: u64) -> Digest {
    Digest::of(&n.to_le_bytes())
}

/// What a process of its own does: opens the store at `root` and asks for three of `n` things.
fn ask(root: &Path, n: u64, what: &str) -> Outcome {
    let before = resident("RssAnon");
    let begun = Instant::now();
    let store = open(root)?;
    for at in [0, n / 2, n - 1] {
        let found = match what {
            "memo" => store.memo().get("requests", &key(at)).is_some(),
            _ => store.lookup(&recipe(at).digest())?.is_some(),
        };
        assert!(found, "{what} {at}");
    }
    let (took, after) = (begun.elapsed().as_secs_f64() * 1000.0, resident("RssAnon"));
    println!(
        "    open and ask 3: {took:.2} ms, {} KiB allocated and kept; process: {} KiB resident at its peak, {} of them its own at the end",
        after.saturating_sub(before),
        resident("VmHWM"),
        after
    );
    Ok(())
}

/// [`ask`] in a new process.
fn ask_anew(root: &Path, n: u64, what: &str, when: &str) -> Outcome {
    println!("{when}:");
    let mut command = std::process::Command::new(std::env::current_exe()?);
    let ended = command.args(["ask", &n.to_string()]).arg(root).arg(what).status()?;
    if ended.success() { Ok(()) } else { Err("the process that asks failed".into()) }
}

fn files(dir: &Path, extension: Option<&str>) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let wanted = entries.filter(|entry| entry.path().extension().and_then(|e| e.to_str()) == extension);
    wanted.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum()
}

fn memo(dir: &Path, n: u64) -> Outcome {
    let root = dir.join("store");
    let store = open(&root)?;
    let memo = store.memo();
    let value = |at: u64| format!("{at:0400}").into_bytes();
    timed(&format!("put {n} records of 400 bytes"), || {
        (0..n).try_for_each(|at| memo.put("requests", &key(at), &value(at)))
    })?;
    drop((memo, store));
    let space = root.join("memo/requests");
    println!("log: {:.1} bytes a record", files(&space, Some("log")) as f64 / n as f64);
    ask_anew(&root, n, "memo", "first process, which absorbs the log")?;
    println!(
        "snapshot: {:.1} bytes a record, log {} bytes",
        files(&space, None) as f64 / n as f64,
        files(&space, Some("log"))
    );
    ask_anew(&root, n, "memo", "any other")?;
    let memo = open(&root)?.memo();
    timed(&format!("get {n} records"), || {
        (0..n).for_each(|at| assert_eq!(memo.get("requests", &key(at)), Some(value(at))))
    });
    timed(&format!("miss {} records", n / 10), || {
        (n..n + n / 10).for_each(|at| assert!(memo.get("requests", &key(at)).is_none()))
    });
    timed("put 10000 more", || (n..n + 10_000).try_for_each(|at| memo.put("requests", &key(at), &value(at))))?;
    drop(memo);
    let store = open(&root)?;
    timed("gc", || store.gc(&GcOptions::default()))?;
    drop(store);
    ask_anew(&root, n, "memo", "after gc")
}

fn recipe(n: u64) -> Recipe {
    let mut recipe = Recipe::new();
    recipe.push("kind", "scale");
    recipe.push("n", n);
    recipe
}

fn entries(dir: &Path, n: u64) -> Outcome {
    let root = dir.join("store");
    let store = open(&root)?;
    let artifact = store.put_bytes(b"the same for all")?;
    timed(&format!("publish {n} entries"), || {
        (0..n).try_for_each(|at| store.publish(&recipe(at), vec![("y".to_owned(), artifact)]).map(|_| ()))
    })?;
    drop(store);
    ask_anew(&root, n, "entries", "first process, which absorbs the logs")?;
    ask_anew(&root, n, "entries", "any other")
}

/// One tree of [`TREE`] files of its own as an entry.
fn fill(store: &Store, n: u64) -> Result<Digest, mpcc_cache::StoreError> {
    let tree = store.scratch("tree")?;
    for file in 0..TREE {
        fs::write(tree.join(file.to_string()), format!("{n} {file}")).expect("the disk takes it");
    }
    // Stamps must rest before the stat cache believes them.
    std::thread::sleep(Duration::from_millis(25));
    let artifact = store.put_tree(&tree)?;
    Ok(store.publish(&recipe(n), vec![("y".to_owned(), artifact)])?.recipe)
}

fn gc(dir: &Path, n: u64) -> Outcome {
    let root = dir.join("store");
    let store = Store::open(&root, StoreOptions { sync: false, ..StoreOptions::default() })?;
    let recipes = timed(&format!("make {n} objects"), || {
        (0..n / TREE).into_par_iter().map(|at| fill(&store, at)).collect::<Result<Vec<_>, _>>()
    })?;
    drop(store);
    for (when, kept) in
        [("nothing to free", recipes.len()), ("again", recipes.len()), ("half to free", recipes.len() / 2)]
    {
        let store = open(&root)?;
        let also = recipes[..kept].iter().copied().collect();
        let options = GcOptions { keep: Keep::Listed, also, ..GcOptions::default() };
        let report = timed(&format!("gc, {when}"), || store.gc(&options))?;
        println!("    {report:?}, at most {} MiB", resident("VmHWM") >> 10);
    }
    timed("verify what is left", || open(&root)?.verify().map(|report| assert!(report.is_clean())))?;
    Ok(())
}
