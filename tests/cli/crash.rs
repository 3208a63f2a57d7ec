//! kill -9 of the engine or of a stage, and two runs at once.

use std::time::{Duration, Instant};

use super::bench::{Bench, Ended, signal};

/// Five stages; each notes its name and its process, sleeps, and hands on.
const SLOW: &str = r#"
mpcc: 1
name: slow
stages:
  a: { run: "echo a >> ran; echo $$ >> pids; sleep 0.3; seq 100 > ${outputs.y}", outputs: { y: file } }
  b: { run: "echo b >> ran; echo $$ >> pids; sleep 0.3; tac ${inputs.x} > ${outputs.y}", inputs: { x: a }, outputs: { y: file } }
  c: { run: "echo c >> ran; echo $$ >> pids; sleep 0.3; cp ${inputs.x} ${outputs.y}/copy; cp ${inputs.x} ${outputs.y}/other", inputs: { x: a }, outputs: { y: dir } }
  d: { matrix: { n: [1, 2] }, run: "echo d >> ran; echo $$ >> pids; sleep 0.2; head -n ${matrix.n} ${inputs.x} > ${outputs.y}", inputs: { x: b }, outputs: { y: file } }
  e: { run: "echo e >> ran; echo $$ >> pids; cat ${inputs.d} ${inputs.c}/copy > ${outputs.y}", inputs: { d: "d[*]", c: c }, outputs: { y: file } }
"#;

fn digests(bench: &Bench, store: &str) -> String {
    bench.mpcc(&format!("runs show --digests --store {store}")).code(0).out
}

#[test]
fn a_killed_engine_leaves_nothing_behind_and_runs_again() {
    let bench = Bench::new(SLOW);
    bench.mpcc("run pipeline.yaml --store whole").code(0);
    for millis in [40, 250, 420, 700, 950] {
        let store = format!("at{millis}");
        let _ = std::fs::remove_file(bench.path("pids"));
        let mut run = bench.start(&format!("run pipeline.yaml --store {store}"));
        let started = Instant::now();
        std::thread::sleep(Duration::from_millis(millis).saturating_sub(started.elapsed()));
        let _ = run.kill();
        run.wait().unwrap();
        bench.assert_gone("pids", 0);
        bench.mpcc(&format!("run pipeline.yaml --store {store} --json")).code(0);
        assert_eq!(digests(&bench, &store), digests(&bench, "whole"), "killed after {millis} ms");
        assert_eq!(bench.mpcc(&format!("run pipeline.yaml --store {store} --json")).code(0).counts(), [0, 6, 0, 0]);
        bench.mpcc(&format!("cache verify --store {store}")).code(0);
    }
}

#[test]
fn a_killed_stage_fails_and_runs_again() {
    let bench = Bench::new(SLOW);
    let run = bench.start("run pipeline.yaml");
    let pids = bench.wait_for_lines("pids", 1);
    std::process::Command::new("kill").args(["-9", &pids[0]]).status().unwrap();
    let ended = Ended::from(run.wait_with_output().unwrap()).code(1);
    assert!(ended.out.contains("a failed: killed by signal 9"), "{}", ended.out);
    assert_eq!(bench.mpcc("run pipeline.yaml --json").code(0).counts(), [6, 0, 0, 0]);
}

#[test]
fn two_runs_at_once_execute_each_node_once() {
    let bench = Bench::new(SLOW);
    let runs = [bench.start("run pipeline.yaml --json"), bench.start("run pipeline.yaml --json")];
    let ended = runs.map(|run| Ended::from(run.wait_with_output().unwrap()).code(0));
    let executed: u64 = ended.iter().map(|run| run.counts()[0]).sum();
    let mut ran = bench.ran();
    ran.sort();
    assert_eq!(ran, ["a", "b", "c", "d", "d", "e"]);
    assert_eq!(executed, 6);
    for run in &ended {
        let [executed, cached, failed, skipped] = run.counts();
        assert_eq!((executed + cached, failed, skipped), (6, 0, 0));
    }
}

#[test]
fn one_of_two_runs_may_be_killed() {
    let bench = Bench::new(SLOW);
    let first = bench.start("run pipeline.yaml");
    bench.wait_for_lines("ran", 1);
    let second = bench.start("run pipeline.yaml --json");
    std::thread::sleep(Duration::from_millis(150));
    signal(&first, "KILL");
    first.wait_with_output().unwrap();
    let ended = Ended::from(second.wait_with_output().unwrap()).code(0);
    let [executed, cached, ..] = ended.counts();
    assert_eq!(executed + cached, 6);
}
