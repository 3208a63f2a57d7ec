//! Whole runs with real processes: an engine killed at any moment, two engines on one store. This binary is the engine and its
//! worker too, so it brings its own `main`: `engine FILE STORE` runs a pipeline, `worker JOB.json` carries out a job, anything
//! else runs the tests below.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mpcc_engine::asking::Secrets;
use mpcc_engine::cache::{Digest, Store, StoreOptions};
use mpcc_engine::executor::{ProcessExecutor, ProcessOptions};
use mpcc_engine::journal::{self, RunRecord, Status};
use mpcc_engine::plan::{CompileOptions, Plan, compile};
use mpcc_engine::preview::why;
use mpcc_engine::registry::Registry;
use mpcc_engine::resources::{CpuLevel, Inventory};
use mpcc_engine::run::{RunOptions, run};
use mpcc_engine::worker::worker_main;

/// Every stage notes in `executed` that it began; two chains meet in `all`.
const PIPELINE: &str = r#"
mpcc: 1
name: demo
params: { word: hello }
stages:
  words:
    run: "echo words >> executed; sleep 0.05; echo ${params.word} > ${outputs.text}"
    outputs: { text: file }
  shout:
    matrix: { times: [1, 2] }
    run: "echo shout >> executed; sleep 0.05; for i in $(seq ${matrix.times}); do tr a-z A-Z < ${inputs.text}; done > ${outputs.text}"
    inputs: { text: words.text }
    outputs: { text: file }
  tree:
    run: "echo tree >> executed; sleep 0.05; cp ${inputs.text} ${outputs.dir}/one; cp ${inputs.text} ${outputs.dir}/two"
    inputs: { text: "shout[times=2].text" }
    outputs: { dir: dir }
  all:
    run: "echo all >> executed; cat ${inputs.text} ${inputs.dir}/* > ${outputs.text}"
    inputs: { text: "shout[times=1].text", dir: tree.dir }
    outputs: { text: { type: file, path: results/all.txt } }
"#;

const NODES: usize = 5;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    #[allow(clippy::disallowed_methods, reason = "this test binary stands in for the program, which may read it")]
    let environment: Secrets = std::sync::Arc::new(|name: &str| std::env::var(name).ok());
    match arguments.get(1).map(String::as_str) {
        Some("warden") => std::process::exit(mpcc_engine::executor::warden::warden_main()),
        Some("worker") => std::process::exit(worker_main(Path::new(&arguments[2]), &Registry::new(), &environment)),
        Some("engine") => {
            let path = environment("PATH").unwrap_or_default();
            std::process::exit(engine(Path::new(&arguments[2]), Path::new(&arguments[3]), path))
        }
        _ => {}
    }
    let wanted = arguments.iter().skip(1).find(|argument| !argument.starts_with('-')).cloned().unwrap_or_default();
    for (name, test) in TESTS.iter().filter(|(name, _)| name.contains(&wanted)) {
        let started = Instant::now();
        test();
        println!("{name} ... ok ({:.2} s)", started.elapsed().as_secs_f64());
    }
}

const TESTS: &[(&str, fn())] = &[
    ("a_second_run_does_nothing_and_a_change_is_explained", a_second_run_does_nothing_and_a_change_is_explained),
    ("a_run_killed_at_any_moment_is_completed_to_the_same_digests", a_run_killed_at_any_moment),
    ("two_runs_at_once_execute_each_node_once", two_runs_at_once),
];

fn host() -> Inventory {
    Inventory { cpus: 2, level: CpuLevel::Base, memory: 1 << 30, gpus: Vec::new() }
}

fn plan(file: &Path) -> Plan {
    compile(file, &Registry::new(), &CompileOptions::default()).unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// What the program does: compile, run, exit.
fn engine(file: &Path, store: &Path, path: String) -> i32 {
    let plan = plan(file);
    let store = Store::open(store, StoreOptions::default()).unwrap();
    let executor = ProcessExecutor::new(ProcessOptions {
        program: std::env::current_exe().unwrap(),
        arguments: vec!["worker".into()],
        warden: vec!["warden".into()],
        environment: [("PATH".into(), path.into())].into(),
        secrets: BTreeMap::new(),
        grace: Duration::from_secs(1),
    });
    let started = jiff::Timestamp::now();
    let options = RunOptions::new(plan.select(&[]).unwrap(), host(), started);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (events, _nobody) = tokio::sync::mpsc::unbounded_channel();
    let (_keep, control) = tokio::sync::mpsc::channel(1);
    let summary = runtime.block_on(run(&plan, &store, options, &executor, events, control)).unwrap();
    i32::from(summary.exit_code())
}

/// A pipeline in a folder of its own.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        place.write(PIPELINE);
        place
    }

    fn write(&self, pipeline: &str) {
        std::fs::write(self.0.path().join("demo.yaml"), pipeline).unwrap();
    }

    fn start(&self) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("engine").arg(self.0.path().join("demo.yaml")).arg(self.0.path().join("store"));
        command.stdin(Stdio::null()).spawn().unwrap()
    }

    fn run(&self) -> RunRecord {
        assert_eq!(self.start().wait().unwrap().code(), Some(0));
        let record = journal::latest(&self.0.path().join("store")).unwrap().unwrap();
        assert!(record.nodes.iter().all(|node| matches!(node.status, Status::Executed | Status::Cached)));
        record
    }

    fn executed(&self) -> usize {
        std::fs::read_to_string(self.0.path().join("executed")).unwrap_or_default().lines().count()
    }
}

fn digests(record: &RunRecord) -> BTreeMap<(String, String), Digest> {
    let ports = |node: &journal::NodeRecord| {
        let name = node.header.node.clone();
        node.outputs.clone().into_iter().map(move |(port, artifact)| ((name.clone(), port), artifact.digest))
    };
    record.nodes.iter().flat_map(ports).collect()
}

fn a_second_run_does_nothing_and_a_change_is_explained() {
    let place = Place::new();
    place.run();
    let result = place.0.path().join("results/all.txt");
    assert_eq!(std::fs::read_to_string(&result).unwrap(), "HELLO\nHELLO\nHELLO\nHELLO\nHELLO\n");
    assert_eq!(place.executed(), NODES);
    std::fs::remove_file(&result).unwrap();
    let second = place.run();
    assert_eq!((place.executed(), second.counts()[&Status::Cached]), (NODES, NODES));
    assert!(result.exists(), "the published copy is restored");
    // Other spelling, same bytes after the second stage: the rest is cut off.
    place.write(&PIPELINE.replace("word: hello", "word: heLLo"));
    let third = place.run();
    assert_eq!((place.executed(), third.counts()[&Status::Cached]), (NODES + 3, 2));
    let store = Store::open(&place.0.path().join("store"), StoreOptions::default()).unwrap();
    let plan = plan(&place.0.path().join("demo.yaml"));
    let told = why(
        &plan,
        &store,
        plan.find("words").unwrap(),
        RunOptions::new(Default::default(), host(), jiff::Timestamp::UNIX_EPOCH).numerics,
    )
    .unwrap();
    assert_eq!(told.changes[0].field, "command.argv[0]");
}

fn a_run_killed_at_any_moment() {
    let clean = digests(&Place::new().run());
    assert_eq!(clean.len(), NODES);
    for delay in [20, 70, 130, 190, 260] {
        let place = Place::new();
        let mut engine = place.start();
        std::thread::sleep(Duration::from_millis(delay));
        engine.kill().unwrap();
        engine.wait().unwrap();
        assert_eq!(digests(&place.run()), clean, "killed after {delay} ms");
        // What was done before the kill is not done again: at most the two that ran were lost.
        assert!(place.executed() <= NODES + 2, "{} stages began", place.executed());
    }
}

fn two_runs_at_once() {
    let place = Place::new();
    let engines = [place.start(), place.start()];
    for mut engine in engines {
        assert_eq!(engine.wait().unwrap().code(), Some(0));
    }
    assert_eq!(place.executed(), NODES, "each node is executed once");
    let store = place.0.path().join("store");
    let records: Vec<_> = journal::list(&store).unwrap().iter().map(|id| journal::read(&store, id).unwrap()).collect();
    assert_eq!(records.len(), 2);
    assert_eq!(digests(&records[0]), digests(&records[1]));
}
