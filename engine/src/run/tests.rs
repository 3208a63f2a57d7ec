use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use mpcc_cache::{Store, StoreOptions};
use serde_json::json;
use tokio::sync::mpsc;

use super::*;
use crate::event::{Event, What};
use crate::executor::scripted::{Script, ScriptedExecutor};
use crate::job::{Job, Outcome, Usage};
use crate::journal::{self, Status};
use crate::plan::{Action, Missing, MissingKind, Node, NodeId, Plan, PlannedInput, PlannedOutput, Source};
use crate::port::{OutputPort, PortType};
use crate::resources::{CpuLevel, Gpu, Inventory, Memory, Resources};
use crate::stage::{Bound, Note, Spent};

/// A node that makes `y`, a file, from the files of `above`.
pub(crate) fn node(name: &str, above: &[usize]) -> Node {
    let source = |id: &usize| Source::Output { node: NodeId(*id), port: "y".to_owned() };
    Node {
        name: name.to_owned(),
        stage: name.split('[').next().unwrap_or(name).to_owned(),
        line: 1,
        matrix: Vec::new(),
        description: None,
        action: Action::Builtin {
            kind: "test.copy".to_owned(),
            version: 1,
            params: json!({ "word": name }),
            numerics: false,
            seeded: false,
        },
        inputs: vec![PlannedInput { port: "x".to_owned(), list: true, sources: above.iter().map(source).collect() }],
        outputs: vec![PlannedOutput { port: OutputPort { name: "y".to_owned(), ty: PortType::File }, publish: None }],
        needs: Vec::new(),
        resources: Resources::default(),
        seed: 17,
        cache: true,
        retries: 0,
        timeout_s: 0,
        executor: "process".to_owned(),
        secrets: Vec::new(),
    }
}

pub(crate) fn set_word(node: &mut Node, word: &str) {
    let Action::Builtin { params, .. } = &mut node.action else { panic!("a built-in kind") };
    params["word"] = json!(word);
}

pub(crate) fn plan(nodes: Vec<Node>) -> Plan {
    Plan {
        name: "demo".to_owned(),
        file: "/nowhere/demo.yaml".into(),
        profile: None,
        nodes,
        missing: Vec::new(),
        warnings: Vec::new(),
    }
}

/// a -> b -> d, a -> c -> d.
pub(crate) fn diamond() -> Plan {
    plan(vec![node("a", &[]), node("b", &[0]), node("c", &[0]), node("d", &[1, 2])])
}

/// Writes what a job's stage would: its word and its inputs, in order. A word before a `|` is not written, so two recipes may
/// make the same bytes.
fn write_output(job: &Job) {
    let Action::Builtin { params, .. } = &job.action else { panic!("a built-in kind") };
    let word = params["word"].as_str().unwrap();
    let mut text = word.rsplit('|').next().unwrap().to_owned();
    for bound in &job.inputs["x"] {
        let Bound::Artifact(input) = bound else { panic!("a file") };
        text += &format!("({})", std::fs::read_to_string(&input.path).unwrap());
    }
    for output in job.outputs.values() {
        std::fs::write(&output.path, &text).unwrap();
    }
}

fn second() -> Script {
    Script::ends(Duration::from_secs(1), Outcome::Done)
}

/// An executor whose stages write their outputs and take a second.
fn copier() -> ScriptedExecutor {
    ScriptedExecutor::new(|job| {
        write_job(job);
        second()
    })
}

fn write_job(job: &Job) {
    job.prepare().unwrap();
    write_output(job);
}

pub(crate) struct Bench {
    folder: tempfile::TempDir,
    pub(crate) store: Store,
}

struct Ran {
    summary: Summary,
    events: Vec<Event>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        Self { folder, store }
    }

    fn options(&self, plan: &Plan) -> RunOptions {
        let inventory = Inventory { cpus: 2, level: CpuLevel::Base, memory: 1 << 30, gpus: Vec::new() };
        let started = Timestamp::from_second(1_700_000_000).unwrap();
        RunOptions::new(plan.select(&[]).unwrap(), inventory, started)
    }

    async fn run_with(&self, plan: &Plan, executor: &ScriptedExecutor, options: RunOptions) -> Ran {
        let (_keep, control) = mpsc::channel(1);
        let (events, mut said) = mpsc::unbounded_channel();
        let summary = run(plan, &self.store, options, executor, events, control).await.unwrap();
        let mut events = Vec::new();
        while let Ok(event) = said.try_recv() {
            events.push(event);
        }
        Ran { summary, events }
    }

    async fn run(&self, plan: &Plan, executor: &ScriptedExecutor) -> Ran {
        self.run_with(plan, executor, self.options(plan)).await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn latest(&self) -> journal::RunRecord {
        journal::latest(self.store.root()).unwrap().expect("a run")
    }

    pub(crate) fn numerics(&self) -> crate::fingerprint::Numerics {
        self.options(&plan(Vec::new())).numerics
    }

    /// Runs the plan with stages that do their work.
    pub(crate) async fn copy(&self, plan: &Plan) {
        assert_eq!(self.run(plan, &copier()).await.summary.exit_code(), 0);
    }

    /// Runs the plan with stages that fail.
    pub(crate) async fn fail(&self, plan: &Plan) {
        let executor = ScriptedExecutor::new(|_| Script::ends(Duration::ZERO, Outcome::failed("no luck")));
        assert_eq!(self.run(plan, &executor).await.summary.exit_code(), 1);
    }

    /// Removes the object behind a node's output from the store.
    pub(crate) fn lose(&self, node: &str) {
        let artifact = self.latest().node(node).unwrap().outputs["y"];
        std::fs::remove_file(self.store.locate(&artifact).unwrap()).unwrap();
    }

    /// The text of a node's output in the last run.
    fn text(&self, node: &str) -> String {
        let record = self.latest();
        let artifact = record.node(node).unwrap().outputs["y"];
        String::from_utf8(self.store.read(&artifact.digest).unwrap()).unwrap()
    }
}

fn open(folder: &Path) -> Store {
    Store::open(&folder.join("store"), StoreOptions { sync: false, ..StoreOptions::default() }).unwrap()
}

fn counts(summary: &Summary) -> [usize; 6] {
    let Summary { executed, cached, failed, skipped, waiting, cancelled, .. } = *summary;
    [executed, cached, failed, skipped, waiting, cancelled]
}

fn started(executor: &ScriptedExecutor) -> Vec<String> {
    executor.started().into_iter().map(|job| job.node).collect()
}

fn names(ran: &Ran) -> Vec<String> {
    let kind = |event: &Event| serde_json::to_value(event).unwrap()["event"].as_str().unwrap().to_owned();
    ran.events.iter().map(|event| format!("{} {}", kind(event), event.what.node().unwrap_or("-"))).collect()
}

#[tokio::test(start_paused = true)]
async fn two_nodes_run_and_the_second_run_does_nothing() {
    let (bench, plan) = (Bench::new(), plan(vec![node("a", &[]), node("b", &[0])]));
    let ran = bench.run(&plan, &copier()).await;
    assert_eq!(counts(&ran.summary), [2, 0, 0, 0, 0, 0]);
    assert!((2.0..2.1).contains(&ran.summary.wall_s), "{}", ran.summary.wall_s);
    assert_eq!(
        names(&ran),
        ["run.started -", "node.started a", "node.finished a", "node.started b", "node.finished b", "run.finished -"]
    );
    assert_eq!(bench.text("b"), "b(a)");
    let executor = copier();
    let ran = bench.run(&plan, &executor).await;
    assert_eq!((counts(&ran.summary), executor.started().len()), ([0, 2, 0, 0, 0, 0], 0));
    assert_eq!(bench.text("b"), "b(a)");
}

#[tokio::test(start_paused = true)]
async fn equal_bytes_upstream_cut_off_everything_below() {
    let (bench, mut plan) = (Bench::new(), diamond());
    bench.run(&plan, &copier()).await;
    set_word(&mut plan.nodes[0], "other words|a");
    let executor = copier();
    let ran = bench.run(&plan, &executor).await;
    assert_eq!((counts(&ran.summary), started(&executor)), ([1, 3, 0, 0, 0, 0], vec!["a".to_owned()]));
    set_word(&mut plan.nodes[0], "A");
    let ran = bench.run(&plan, &copier()).await;
    assert_eq!(counts(&ran.summary), [4, 0, 0, 0, 0, 0]);
    assert_eq!(bench.text("d"), "d(b(A))(c(A))");
}

#[tokio::test(start_paused = true)]
async fn a_forced_node_and_one_without_cache_run_again() {
    let (bench, mut plan) = (Bench::new(), diamond());
    bench.run(&plan, &copier()).await;
    let executor = copier();
    let forced = RunOptions { forced: plan.matching("b").unwrap().into_iter().collect(), ..bench.options(&plan) };
    let ran = bench.run_with(&plan, &executor, forced).await;
    assert_eq!((counts(&ran.summary), started(&executor)), ([1, 3, 0, 0, 0, 0], vec!["b".to_owned()]));
    plan.nodes[2].cache = false;
    let executor = copier();
    bench.run(&plan, &executor).await;
    assert_eq!(started(&executor), ["c"]);
}

#[tokio::test(start_paused = true)]
async fn only_what_was_asked_for_runs() {
    let (bench, plan) = (Bench::new(), diamond());
    let executor = copier();
    let options = RunOptions { nodes: plan.select(&["b".to_owned()]).unwrap(), ..bench.options(&plan) };
    bench.run_with(&plan, &executor, options).await;
    assert_eq!(started(&executor), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_skips_what_is_below_and_says_why() {
    let bench = Bench::new();
    let plan = plan(vec![node("a", &[]), node("b", &[0]), node("c", &[]), node("d", &[1, 2]), node("e", &[2])]);
    let failing = || {
        ScriptedExecutor::new(|job| {
            write_job(job);
            let outcome = if job.node == "a" { Outcome::failed("no luck") } else { Outcome::Done };
            let takes = if job.node == "a" { 1 } else { 5 };
            Script::ends(Duration::from_secs(takes), outcome)
        })
    };
    let ran = bench.run(&plan, &failing()).await;
    assert_eq!(counts(&ran.summary), [1, 0, 1, 2, 0, 1], "c is let finish, e does not begin");
    assert_eq!(ran.summary.exit_code(), 1);
    let record = bench.latest();
    let failed = record.node("a").unwrap();
    assert_eq!((failed.status, failed.message.as_deref()), (Status::Failed, Some("no luck")));
    assert!(failed.log.as_ref().unwrap().ends_with("logs/a.log"));
    assert_eq!(record.node("d").unwrap().message.as_deref(), Some("`a` failed"));

    let options = RunOptions { keep_going: true, ..bench.options(&plan) };
    let ran = bench.run_with(&plan, &failing(), options).await;
    assert_eq!(counts(&ran.summary), [1, 1, 1, 2, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn retries_rest_and_then_succeed() {
    let (bench, mut plan) = (Bench::new(), plan(vec![node("a", &[])]));
    plan.nodes[0].retries = 2;
    let tries = Arc::new(Mutex::new(0));
    let executor = ScriptedExecutor::new(move |job| {
        write_job(job);
        let mut tries = tries.lock().unwrap();
        *tries += 1;
        Script::ends(Duration::from_secs(1), if *tries < 3 { Outcome::TimedOut } else { Outcome::Done })
    });
    let ran = bench.run(&plan, &executor).await;
    assert_eq!((counts(&ran.summary), executor.started().len()), ([1, 0, 0, 0, 0, 0], 3));
    assert!((6.0..6.2).contains(&ran.summary.wall_s), "three seconds of work, rests of 1 s and 2 s: {:?}", ran.summary);
    assert_eq!(names(&ran)[1..4], ["node.started a", "node.retrying a", "node.started a"]);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_fails_is_told_from_a_stage_that_does() {
    let bench = Bench::new();
    let plan = plan(vec![node("a", &[]), node("b", &[])]);
    let executor = ScriptedExecutor::new(|job| {
        let outcome = if job.node == "a" { Outcome::machine("the disk is full") } else { Outcome::failed("no luck") };
        Script::ends(Duration::from_secs(1), outcome)
    });
    let options = RunOptions { keep_going: true, ..bench.options(&plan) };
    let ran = bench.run_with(&plan, &executor, options).await;
    assert_eq!(counts(&ran.summary), [0, 0, 2, 0, 0, 0]);
    assert_eq!(ran.summary.exit_code(), 3, "a broken machine weighs more than a failed stage");
}

#[tokio::test(start_paused = true)]
async fn invalid_input_is_not_tried_again() {
    let (bench, mut plan) = (Bench::new(), plan(vec![node("a", &[])]));
    plan.nodes[0].retries = 5;
    let executor = ScriptedExecutor::new(|_| Script::ends(Duration::from_secs(1), Outcome::invalid("bad")));
    bench.run(&plan, &executor).await;
    assert_eq!(executor.started().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_declared_output_that_is_missing_is_a_failure_that_names_it() {
    let bench = Bench::new();
    let mut tree = node("b", &[]);
    tree.outputs[0].port.ty = PortType::Dir;
    let plan = plan(vec![node("a", &[]), tree]);
    let executor = ScriptedExecutor::new(|job| {
        job.prepare().unwrap();
        second()
    });
    let options = RunOptions { keep_going: true, ..bench.options(&plan) };
    let ran = bench.run_with(&plan, &executor, options).await;
    assert_eq!(counts(&ran.summary), [0, 0, 2, 0, 0, 0]);
    for node in ["a", "b"] {
        let message = bench.latest().node(node).unwrap().message.clone().unwrap();
        assert!(message.contains("did not write its output `y`"), "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiting_node_lets_other_branches_finish() {
    let (bench, plan) = (Bench::new(), diamond());
    let executor = ScriptedExecutor::new(|job| {
        write_job(job);
        let waits = Outcome::Waiting { message: "decide".to_owned() };
        Script::ends(Duration::from_secs(1), if job.node == "b" { waits } else { Outcome::Done })
    });
    let ran = bench.run(&plan, &executor).await;
    assert_eq!((counts(&ran.summary), ran.summary.exit_code()), ([2, 0, 0, 0, 2, 0], 4));
    assert_eq!(bench.latest().node("b").unwrap().message.as_deref(), Some("decide"));
}

#[tokio::test(start_paused = true)]
async fn published_copies_are_made_and_restored() {
    let (bench, mut plan) = (Bench::new(), plan(vec![node("a", &[])]));
    let dest = bench.path("results/a.txt");
    plan.nodes[0].outputs[0].publish = Some(dest.clone());
    bench.run(&plan, &copier()).await;
    assert_eq!(std::fs::read_to_string(&dest).unwrap(), "a");
    for spoil in [|dest: &Path| std::fs::remove_file(dest), |dest: &Path| std::fs::write(dest, "changed")] {
        spoil(&dest).unwrap();
        let ran = bench.run(&plan, &copier()).await;
        assert_eq!(counts(&ran.summary), [0, 1, 0, 0, 0, 0]);
        assert_eq!(std::fs::read_to_string(&dest).unwrap(), "a");
        assert!(names(&ran).contains(&"node.published a".to_owned()));
    }
    let ran = bench.run(&plan, &copier()).await;
    assert!(!names(&ran).contains(&"node.published a".to_owned()), "it is there");
}

#[tokio::test(start_paused = true)]
async fn an_input_that_changes_while_it_is_read_fails_the_node() {
    let (bench, mut plan) = (Bench::new(), plan(vec![node("a", &[])]));
    let data = bench.path("data.txt");
    std::fs::write(&data, "before").unwrap();
    plan.nodes[0].inputs[0].sources = vec![Source::File { path: data.clone() }];
    let executor = ScriptedExecutor::new(move |job| {
        write_job(job);
        std::fs::write(&data, "after it was read").unwrap();
        second()
    });
    let ran = bench.run(&plan, &executor).await;
    assert_eq!(counts(&ran.summary), [0, 0, 1, 0, 0, 0]);
    let ran = bench.run(&plan, &copier()).await;
    assert_eq!((counts(&ran.summary), bench.text("a")), ([1, 0, 0, 0, 0, 0], "a(after it was read)".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn two_runs_at_once_execute_each_node_once() {
    let (bench, plan) = (Bench::new(), diamond());
    let other = Bench { store: open(bench.folder.path()), folder: tempfile::tempdir().unwrap() };
    let executor = copier();
    let (one, two) = tokio::join!(bench.run(&plan, &executor), other.run(&plan, &executor));
    let mut ran = started(&executor);
    ran.sort();
    assert_eq!(ran, ["a", "b", "c", "d"]);
    let both = [counts(&one.summary), counts(&two.summary)];
    assert_eq!(both[0][0] + both[1][0], 4, "{both:?}");
    assert_eq!(both[0][1] + both[1][1], 4, "{both:?}");
    assert_eq!(journal::list(bench.store.root()).unwrap().len(), 2);
    let elsewhere = |ran: &Ran| ran.events.iter().any(|event| matches!(event.what, What::NodeElsewhere { .. }));
    assert!(elsewhere(&one) || elsewhere(&two));
}

#[tokio::test(start_paused = true)]
async fn a_run_killed_in_the_middle_is_completed_by_the_next() {
    let (bench, plan) = (Bench::new(), diamond());
    let executor = copier();
    let options = bench.options(&plan);
    let (_keep, control) = mpsc::channel(1);
    let (events, _said) = mpsc::unbounded_channel();
    // Dropping the future is as rude as a kill can be within one process.
    let killed = tokio::time::timeout(
        Duration::from_millis(1500),
        run(&plan, &bench.store, options, &executor, events, control),
    );
    killed.await.unwrap_err();
    let record = bench.latest();
    assert_eq!(record.summary, None);
    assert_eq!(record.node("a").unwrap().status, Status::Executed);
    assert_eq!(record.node("b").unwrap().status, Status::Interrupted);
    let ran = bench.run(&plan, &copier()).await;
    assert_eq!(counts(&ran.summary), [3, 1, 0, 0, 0, 0]);
    assert_eq!(bench.text("d"), "d(b(a))(c(a))");
}

#[tokio::test(start_paused = true)]
async fn draining_ends_what_runs_and_starts_nothing() {
    let (bench, plan) = (Bench::new(), diamond());
    let (orders, control) = mpsc::channel(1);
    let (events, _said) = mpsc::unbounded_channel();
    let executor = copier();
    let stop = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        orders.send(Control::Drain).await.unwrap();
    };
    let (summary, ()) = tokio::join!(run(&plan, &bench.store, bench.options(&plan), &executor, events, control), stop);
    let summary = summary.unwrap();
    assert_eq!((counts(&summary), summary.exit_code()), ([1, 0, 0, 0, 0, 3], 130));
}

#[tokio::test(start_paused = true)]
async fn a_run_that_lacks_something_does_not_begin() {
    let (bench, mut plan) = (Bench::new(), diamond());
    let lack = |what| Missing { what, needed_by: "d".to_owned(), message: "get it".to_owned() };
    for (what, code) in [(MissingKind::Key, 2), (MissingKind::Data, 2), (MissingKind::Device, 3)] {
        plan.missing = vec![lack(what)];
        let (_keep, control) = mpsc::channel(1);
        let (events, _said) = mpsc::unbounded_channel();
        let error = run(&plan, &bench.store, bench.options(&plan), &copier(), events, control).await.unwrap_err();
        assert_eq!(error.exit_code(), code);
    }
    // What is not asked for is not missed.
    let options = RunOptions { nodes: plan.select(&["b".to_owned()]).unwrap(), ..bench.options(&plan) };
    assert_eq!(counts(&bench.run_with(&plan, &copier(), options).await.summary), [2, 0, 0, 0, 0, 0]);
    plan.missing.clear();
    plan.nodes[3].resources.gpus = 1;
    let (_keep, control) = mpsc::channel(1);
    let (events, _said) = mpsc::unbounded_channel();
    let error = run(&plan, &bench.store, bench.options(&plan), &copier(), events, control).await.unwrap_err();
    assert_eq!((error.exit_code(), error.to_string()), (3, "d asks for 1 GPU(s), this host has 0".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn the_journal_tells_what_the_events_told() {
    let (bench, plan) = (Bench::new(), plan(vec![node("a", &[]), node("b", &[0])]));
    let executor = ScriptedExecutor::new(|job| {
        write_job(job);
        let notes = vec![
            Note::Progress { done: 3, total: 9, unit: "steps".to_owned() },
            Note::Warning { message: "careful".to_owned() },
            Note::Metric { name: "loss".to_owned(), value: 0.5 },
            Note::Memo { hits: 4, misses: 2 },
        ];
        Script { notes, ..second() }
    });
    let ran = bench.run(&plan, &executor).await;
    let mut live = journal::RunRecord::begin(&ran.events[0]).unwrap();
    ran.events[1..].iter().for_each(|event| live.apply(event));
    live.alive = false;
    let read = bench.latest();
    // The journal keeps one progress or memo note a second, the end of a node repeats what counts.
    assert_eq!(read.nodes[0].memo.map(|memo| (memo.hits, memo.misses)), Some((4, 2)));
    assert_eq!(read.nodes[0].metrics["loss"], 0.5);
    assert_eq!(read.nodes[0].warnings, ["careful"]);
    assert_eq!(read, live);
    let known = journal::durations(bench.store.root(), &plan.file);
    assert_eq!(known["b"], 1.0);
    bench.run(&plan, &copier()).await;
    assert_eq!(bench.latest().node("b").unwrap().wall_s, Some(1.0), "a cached node carries its duration along");
    assert_eq!(journal::read(bench.store.root(), "20231114-221320-000").unwrap().id, "20231114-221320-000");
    assert_eq!(bench.latest().id, "20231114-221320-000-2");
}

/// A stage that needs `need` bytes of GPU memory, as a script that knows what is reserved for it.
fn hungry(need: u64) -> ScriptedExecutor {
    ScriptedExecutor::new(move |job| {
        write_job(job);
        let held = job.resources.gpu_memory;
        let short = held > 0 && held < need;
        let full = Outcome::OutOfMemory { memory: Memory::Gpu, message: "the GPU is full".to_owned() };
        let usage = Usage { gpu_peak_bytes: need.min(held), peak_rss_bytes: 3 << 20, ..Usage::default() };
        Script { usage, outcome: if short { full } else { Outcome::Done }, ..second() }
    })
}

fn two_gpus(bench: &Bench, plan: &Plan) -> RunOptions {
    let gpu = |ordinal| Gpu { ordinal, name: "g".into(), memory: 80 << 30, capability: (9, 0) };
    let options = bench.options(plan);
    RunOptions { inventory: Inventory { gpus: (0..2).map(gpu).collect(), ..options.inventory.clone() }, ..options }
}

#[tokio::test(start_paused = true)]
async fn a_full_gpu_means_a_larger_reservation_now_and_the_measured_one_later() {
    let (bench, mut plan) = (Bench::new(), plan(vec![node("a[x=1]", &[]), node("a[x=2]", &[])]));
    for node in &mut plan.nodes {
        node.resources = Resources { gpus: 1, gpu_memory: 10 << 30, ..node.resources.clone() };
    }
    let options = RunOptions { nodes: plan.select(&["a[x=1]".to_owned()]).unwrap(), ..two_gpus(&bench, &plan) };
    let executor = hungry(30 << 30);
    let ran = bench.run_with(&plan, &executor, options).await;
    assert_eq!((counts(&ran.summary), executor.started().len()), ([1, 0, 0, 0, 0, 0], 3), "10, 20, 40 GiB");
    assert!(ran.summary.wall_s < 3.5, "nobody rests: {:?}", ran.summary);
    let grown: Vec<_> = ran
        .events
        .iter()
        .filter_map(|event| match &event.what {
            What::NodeRetrying { growth: Some(growth), .. } => {
                Some((growth.memory, growth.from >> 30, growth.to >> 30))
            }
            _ => None,
        })
        .collect();
    assert_eq!(grown, [(Memory::Gpu, 10, 20), (Memory::Gpu, 20, 40)]);
    // Its sister has never run: what was measured of the stage counts, and the cached one carries its own along.
    set_word(&mut plan.nodes[1], "other");
    let executor = hungry(30 << 30);
    let ran = bench.run_with(&plan, &executor, two_gpus(&bench, &plan)).await;
    assert_eq!((counts(&ran.summary), executor.started()[0].resources.gpu_memory >> 30), ([1, 1, 0, 0, 0, 0], 33));
    assert_eq!(executor.started().len(), 1);
    set_word(&mut plan.nodes[0], "new");
    let executor = hungry(30 << 30);
    bench.run_with(&plan, &executor, two_gpus(&bench, &plan)).await;
    assert_eq!(executor.started()[0].resources.gpu_memory >> 30, 33, "known from the run before the last one");
    assert_eq!(executor.started()[0].resources.memory, 16 << 20);
    assert_eq!(plan.nodes[0].resources.gpu_memory, 10 << 30, "what is stated stays");
}

#[tokio::test(start_paused = true)]
async fn who_had_all_memory_fails_and_says_how_much_that_was() {
    let (bench, mut plan) = (Bench::new(), plan(vec![node("a", &[]), node("b", &[]), node("c", &[])]));
    plan.nodes[0].resources = Resources { gpus: 2, gpu_memory: 50 << 30, ..Resources::default() };
    plan.nodes[1].resources.memory = 1 << 29;
    plan.nodes[2].retries = 3;
    let executor = ScriptedExecutor::new(|job| {
        let full = Outcome::OutOfMemory { memory: Memory::Gpu, message: "the GPU is full".to_owned() };
        let killed = Outcome::Killed { signal: 9, out_of_memory: true };
        Script::ends(Duration::from_secs(1), if job.node == "b" { killed } else { full })
    });
    let options = RunOptions { keep_going: true, ..two_gpus(&bench, &plan) };
    let ran = bench.run_with(&plan, &executor, options).await;
    assert_eq!(counts(&ran.summary), [0, 0, 3, 0, 0, 0]);
    let message = |node: &str| bench.latest().node(node).unwrap().message.clone().unwrap();
    assert_eq!(message("a"), "the GPU is full: it had 80.0 GiB of 80.0 GiB on each of its 2 device(s)");
    assert_eq!(message("b"), "ran out of memory: it had 1.0 GiB of 1.0 GiB");
    assert_eq!(message("c"), "the GPU is full: it asks for no GPU; state `gpus`");
    let tries = |node: &str| executor.started().iter().filter(|job| job.node == node).count();
    assert_eq!(
        ["a", "b", "c"].map(tries),
        [2, 2, 4],
        "50 and 80 GiB; half a GiB and all of it; no more for c, so that its own retries are left"
    );
}

#[tokio::test(start_paused = true)]
async fn a_cluster_is_asked_for_more_memory_than_before() {
    let (bench, mut plan) = (Bench::new(), plan(vec![node("a", &[]), node("b", &[])]));
    for node in &mut plan.nodes {
        node.executor = "slurm".to_owned();
    }
    plan.nodes[0].resources.memory = 3 << 30;
    let executor = ScriptedExecutor::new(|job| {
        write_job(job);
        let killed = Outcome::Killed { signal: 9, out_of_memory: true };
        let enough = job.resources.memory >= 10 << 30;
        Script::ends(Duration::from_secs(1), if enough { Outcome::Done } else { killed })
    });
    let options = RunOptions { keep_going: true, ..bench.options(&plan) };
    let ran = bench.run_with(&plan, &executor, options).await;
    assert_eq!(counts(&ran.summary), [1, 0, 1, 0, 0, 0]);
    let asked = |node: &str| -> Vec<u64> {
        executor.started().iter().filter(|job| job.node == node).map(|job| job.resources.memory >> 30).collect()
    };
    assert_eq!(asked("a"), [3, 6, 12], "more than this host has is the cluster's business");
    assert_eq!(asked("b"), [0], "what it had is not known, so neither is what more would be");
    let message = bench.latest().node("b").unwrap().message.clone().unwrap();
    assert_eq!(message, "ran out of memory: it had what the cluster gives by default; state `memory`");
}

#[tokio::test(start_paused = true)]
async fn requests_are_counted_over_all_attempts_and_nodes() {
    let (bench, mut plan) = (Bench::new(), plan(vec![node("a", &[]), node("b", &[]), node("c", &[])]));
    plan.nodes[0].retries = 1;
    let tries = Arc::new(Mutex::new(0));
    let usage = |requests: u64| Note::Usage { requests, prompt_tokens: 100, completion_tokens: 10, cost: 0.25 };
    let executor = ScriptedExecutor::new(move |job| {
        write_job(job);
        let mut tries = tries.lock().unwrap();
        *tries += u32::from(job.node == "a");
        let fails = job.node == "b" || job.node == "a" && *tries == 1;
        let notes = if job.node == "c" { Vec::new() } else { vec![usage(1), usage(2)] };
        Script { notes, outcome: if fails { Outcome::failed("no luck") } else { Outcome::Done }, ..second() }
    });
    let options = RunOptions { keep_going: true, ..bench.options(&plan) };
    let ran = bench.run_with(&plan, &executor, options).await;
    let spent = |attempts: u64| {
        let cost = 0.25 * attempts as f64;
        Some(Spent { requests: 2 * attempts, prompt_tokens: 100 * attempts, completion_tokens: 10 * attempts, cost })
    };
    let read = bench.latest();
    assert_eq!(read.node("a").unwrap().spent, spent(2), "a failed attempt costs as much as another");
    assert_eq!(read.node("b").unwrap().spent, spent(1));
    assert_eq!(read.node("c").unwrap().spent, None);
    assert_eq!((ran.summary.spent, read.summary.unwrap().spent), (spent(3), spent(3)));
    assert_eq!(bench.run(&plan, &copier()).await.summary.spent, None);
}

#[tokio::test]
async fn the_second_run_of_a_hundred_nodes_is_quick() {
    let bench = Bench::new();
    let mut nodes = vec![node("n0", &[])];
    nodes.extend((1..100).map(|id| node(&format!("n{id}"), &[id - 1, id / 2])));
    let plan = plan(nodes);
    let instant = ScriptedExecutor::new(|job| {
        job.prepare().unwrap();
        std::fs::write(&job.outputs["y"].path, &job.node).unwrap();
        Script::ends(Duration::ZERO, Outcome::Done)
    });
    bench.run(&plan, &instant).await;
    let bench = Bench { store: open(bench.folder.path()), folder: bench.folder };
    let ran = bench.run(&plan, &instant).await;
    assert_eq!(counts(&ran.summary), [0, 100, 0, 0, 0, 0]);
    assert!(ran.summary.wall_s < 0.3, "{} s", ran.summary.wall_s);
}
