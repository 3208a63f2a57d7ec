//! Time limits, Ctrl-C, SIGTERM: they reach grandchildren.

use std::time::{Duration, Instant};

use super::bench::{Bench, Ended, signal};

/// A stage that starts a family of processes deaf to SIGTERM, one in a session of its own, and lists them in `pids`.
fn family(rest: &str) -> String {
    format!(
        r#"
mpcc: 1
name: family
stages:
  slow:
    run: |
      trap '' TERM
      echo $$ >> pids
      setsid sh -c 'trap "" TERM; echo $$ >> pids; sleep 300 & echo $! >> pids; wait' &
      wait
    outputs: {{ y: file }}
    {rest}
"#
    )
}

#[test]
fn a_time_limit_kills_grandchildren() {
    let bench = Bench::new(&family("timeout: 1"));
    let started = Instant::now();
    let run = bench.mpcc("run pipeline.yaml --grace 1").code(1);
    assert!(run.out.contains("time limit"), "{}", run.out);
    assert!(started.elapsed() < Duration::from_secs(20));
    bench.assert_gone("pids", 3);
}

#[test]
fn one_interrupt_drains_and_two_kill() {
    let bench = Bench::new(&family(""));
    let run = bench.start("run pipeline.yaml --grace 60 --json");
    bench.wait_for_lines("pids", 3);
    signal(&run, "INT");
    std::thread::sleep(Duration::from_millis(300));
    signal(&run, "INT");
    let ended = Ended::from(run.wait_with_output().unwrap()).code(130);
    assert_eq!(ended.finished()["interrupted"], true);
    bench.assert_gone("pids", 3);
}

#[test]
fn a_draining_stage_may_end_in_good_order() {
    let bench = Bench::new(
        r#"
mpcc: 1
name: draining
stages:
  polite: { run: "trap 'echo tidied > tidy; exit 1' TERM; echo > begun; sleep 300 & wait", outputs: { y: file } }
  after: { run: "cat ${inputs.x} > ${outputs.y}", inputs: { x: polite }, outputs: { y: file } }
"#,
    );
    let run = bench.start("run pipeline.yaml");
    bench.wait_for_lines("begun", 1);
    signal(&run, "TERM");
    let ended = Ended::from(run.wait_with_output().unwrap()).code(130);
    assert_eq!(bench.read("tidy"), "tidied\n");
    assert!(ended.out.contains("interrupted"), "{}", ended.out);
    assert!(bench.mpcc("status").code(0).out.contains("cancelled"));
}

#[test]
fn an_interrupted_record_stage_goes_on_where_it_was() {
    let bench = Bench::new(
        r#"
mpcc: 1
name: records
stages:
  echo:
    each: records
    run: "while read -r line; do echo \"$line\" >> asked; sleep 0.1; echo \"$line\"; done"
    inputs: { records: { file: records.jsonl } }
    outputs: { y: records }
"#,
    );
    let records: String = (0..12).map(|id| format!("{{\"id\":{id}}}\n")).collect();
    bench.write("records.jsonl", &records);
    let run = bench.start("run pipeline.yaml --jobs 1");
    bench.wait_for_lines("asked", 3);
    signal(&run, "INT");
    Ended::from(run.wait_with_output().unwrap()).code(130);
    let before = bench.read("asked").lines().count();
    assert!(before < 12, "it was stopped early");
    let again = bench.mpcc("run pipeline.yaml --json").code(0);
    let finished = again.json().into_iter().find(|event| event["event"] == "node.finished").unwrap();
    assert_eq!(finished["memo"]["hits"], before, "{finished}");
    assert_eq!(bench.read("asked").lines().count(), 12);
    let shown = bench.mpcc("show echo").code(0).out;
    assert_eq!(std::fs::read_to_string(shown.trim()).unwrap(), records);
}
