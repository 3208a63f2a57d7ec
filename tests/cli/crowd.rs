//! Eight engines run one pipeline on one store, and one of them is killed again and again, wherever it happens to be.
//!
//! Some 5 seconds by default; `MPCC_HEAVY=1` repeats it 20 times.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::process::Child;
use std::time::Duration;

use super::bench::{Bench, Ended, signal};

const ENGINES: usize = 8;
/// Nodes of one engine that may be under way when it dies: its `--jobs`.
const JOBS: usize = 2;
const LAYERS: usize = 6;
const COLUMNS: usize = 10;
/// How often an engine is killed at most in one round.
const KILLS: usize = 12;

/// Six layers of ten stages; each appends its name to `ran`, which no store knows, with one write.
fn pipeline() -> String {
    let columns: Vec<String> = (0..COLUMNS).map(|n| n.to_string()).collect();
    let mut text = "mpcc: 1\nname: crowd\nstages:\n".to_owned();
    for layer in 0..LAYERS {
        let (source, command) = match layer {
            0 => (String::new(), "echo column ${matrix.n} > ${outputs.y}".to_owned()),
            _ => (
                format!("inputs: {{ x: \"s{}[n=${{matrix.n}}]\" }}, ", layer - 1),
                format!("cat ${{inputs.x}} > ${{outputs.y}}; echo layer {layer} >> ${{outputs.y}}"),
            ),
        };
        text += &format!(
            "  s{layer}: {{ matrix: {{ n: [{}] }}, run: \"echo s{layer}-${{matrix.n}} >> ran; sleep 0.1; {command}\", {source}outputs: {{ y: file }} }}\n",
            columns.join(", ")
        );
    }
    text
}

fn start(bench: &Bench) -> Child {
    bench.start(&format!("run pipeline.yaml --jobs {JOBS}"))
}

fn random(below: u64) -> u64 {
    RandomState::new().hash_one(below) % below
}

/// How often each node was executed.
fn executions(bench: &Bench) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    bench.read("ran").lines().for_each(|line| *counts.entry(line.to_owned()).or_default() += 1);
    counts
}

/// Kills engines until all nodes have begun; returns the engines that live, and how many were killed.
fn harass(bench: &Bench) -> (Vec<Child>, usize) {
    let mut engines: Vec<Child> = (0..ENGINES).map(|_| start(bench)).collect();
    let mut kills = 0;
    while kills < KILLS && executions(bench).len() < LAYERS * COLUMNS {
        std::thread::sleep(Duration::from_millis(20 + random(100)));
        let engine = &mut engines[usize::try_from(random(ENGINES as u64)).unwrap()];
        if engine.try_wait().unwrap().is_none() {
            signal(engine, "KILL");
            kills += 1;
        }
        let old = std::mem::replace(engine, start(bench));
        let ended = Ended::from(old.wait_with_output().unwrap());
        assert!(ended.code == -1 || ended.code == 0, "it was killed or done: {ended:?}");
        assert_calm(&ended);
    }
    (engines, kills)
}

/// Nobody complains of another.
fn assert_calm(ended: &Ended) {
    let text = format!("{}{}", ended.out, ended.err).to_lowercase();
    for word in ["lock", "lease", "busy", "error", "failed", "panic"] {
        assert!(!text.contains(word), "`{word}` in\n{text}");
    }
}

fn round(bench: &Bench) {
    let (engines, kills) = harass(bench);
    for engine in engines {
        let ended = Ended::from(engine.wait_with_output().unwrap()).code(0);
        assert_calm(&ended);
    }
    let counts = executions(bench);
    assert_eq!(counts.len(), LAYERS * COLUMNS);
    let again: usize = counts.values().map(|count| count - 1).sum();
    assert!(kills > 0 && again <= kills * JOBS, "{again} executions more than nodes, {kills} kills: {counts:?}");
    assert!(counts.values().all(|count| *count <= 1 + kills));
    println!("{kills} kills, {again} nodes executed again, at most {} were under way in the killed", kills * JOBS);
    for n in 0..COLUMNS {
        let shown = bench.mpcc(&format!("show s{}[n={n}]", LAYERS - 1)).code(0).out;
        let layers: String = (1..LAYERS).map(|layer| format!("layer {layer}\n")).collect();
        assert_eq!(std::fs::read_to_string(shown.trim()).unwrap(), format!("column {n}\n{layers}"));
    }
    let last = bench.mpcc("run pipeline.yaml --json").code(0);
    assert_eq!(last.counts(), [0, (LAYERS * COLUMNS) as u64, 0, 0]);
    bench.mpcc("cache verify").code(0);
}

#[test]
fn eight_engines_share_one_store_while_one_after_another_is_killed() {
    #[allow(clippy::disallowed_methods, reason = "the one variable that lengthens tests")]
    let heavy = std::env::var_os("MPCC_HEAVY").is_some();
    for _ in 0..if heavy { 20 } else { 1 } {
        round(&Bench::new(&pipeline()));
    }
}

#[test]
fn another_kind_of_lease_is_refused_by_name() {
    let mut bench = Bench::chain();
    bench.variables.push(("MPCC_LEASES".to_owned(), "often".to_owned()));
    let ended = bench.mpcc("run pipeline.yaml").code(2);
    assert!(ended.err.contains("`often`") && ended.err.contains("`heartbeat` or `locks`"), "{}", ended.err);
    assert!(bench.ran().is_empty());
}

#[test]
fn eight_engines_share_one_store_by_heartbeats() {
    let mut bench = Bench::new(&pipeline());
    bench.variables.push(("MPCC_LEASES".to_owned(), "heartbeat".to_owned()));
    let engines: Vec<Child> = (0..ENGINES).map(|_| start(&bench)).collect();
    for engine in engines {
        assert_calm(&Ended::from(engine.wait_with_output().unwrap()).code(0));
    }
    assert!(bench.read(".mpcc/leases/kind").starts_with("heartbeat"));
    let counts = executions(&bench);
    assert!(counts.len() == LAYERS * COLUMNS && counts.values().all(|count| *count == 1), "{counts:?}");
}
