//! How attempts end, and how they are stopped.

use std::time::{Duration, Instant};

use super::{Lab, message};
use crate::cli::bench::{Ended, signal};

#[test]
fn every_end_is_told_apart() {
    let Some(lab) = Lab::new(
        r#"
mpcc: 1
name: ends
stages:
  coded: { run: "echo the reason >&2; exit 3", outputs: { y: file } }
  crashed: { run: "kill -SEGV $$", outputs: { y: file } }
  murdered: { run: "kill -KILL $PPID; sleep 9", outputs: { y: file } }
  unwritten: { run: "true", outputs: { y: file } }
  partly: { run: "echo half > ${outputs.y}; exit 1", outputs: { y: file } }
  impossible: { run: "true > ${outputs.y}", resources: { gpus: 9 }, outputs: { y: file } }
  late: { run: "echo half > ${outputs.y}; sleep 60", timeout: 2s, outputs: { y: file } }
  again: { run: "echo again >> ran; test $(wc -l < ran) = 2 && echo done > ${outputs.y}", retries: 1, outputs: { y: file } }
  below: { run: "cp ${inputs.x} ${outputs.y}", inputs: { x: partly }, outputs: { y: file } }
"#,
    ) else {
        return;
    };
    let run = lab.run("--keep-going --json").code(1);
    assert_eq!(run.counts(), [1, 0, 7, 1]);
    for (node, expected) in [
        ("coded", "exit code 3"),
        ("crashed", "signal 11"),
        ("murdered", "signal 9"),
        ("unwritten", "without its output `y`"),
        ("partly", "exit code 1"),
        ("impossible", "Slurm refuses the job: "),
        ("late", "time limit"),
    ] {
        let message = message(&run, node);
        assert!(message.contains(expected), "{node}: {message}");
    }
    assert_eq!(lab.bench.ran(), ["again", "again"]);
    assert!(lab.bench.mpcc("logs coded").code(0).out.starts_with("the reason\n"));
    lab.cluster.wait_until_idle();
}

#[test]
fn an_interrupt_ends_what_runs_in_good_order_and_what_waits_at_once() {
    let Some(lab) = Lab::new(
        r#"
mpcc: 1
name: stopped
stages:
  polite: { run: "trap 'echo tidied > tidy; exit 1' TERM; echo polite >> begun; sleep 300 & wait", outputs: { y: file } }
  deaf: { run: "trap '' TERM; echo deaf >> begun; sleep 300 & echo $! >> pids; wait; sleep 300", outputs: { y: file } }
  queued: { run: "echo queued >> begun", outputs: { y: file } }
"#,
    ) else {
        return;
    };
    let alone = "--slurm-option=--exclusive --slurm-option=--nodelist=n1 --json";
    let mut runs =
        vec![lab.start(&format!("polite {alone}")), lab.start("deaf --store two --slurm-option=--nodelist=n2 --json")];
    lab.bench.wait_for_lines("begun", 2);
    runs.push(lab.start(&format!("queued --store three {alone}")));
    lab.cluster.wait("a job to wait", |cluster| cluster.jobs().iter().any(|job| job.ends_with(" PENDING")));
    let started = Instant::now();
    for run in &runs {
        signal(run, "INT");
    }
    for run in runs {
        let ended = Ended::from(run.wait_with_output().unwrap()).code(130);
        assert_eq!(ended.finished()["cancelled"], 1);
    }
    assert_eq!(lab.bench.read("tidy"), "tidied\n");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    lab.bench.assert_gone("pids", 1);
    lab.cluster.wait_until_idle();
    assert_eq!(lab.bench.read("begun").lines().count(), 2, "the queued stage never began");
}
