//! `mpcc audit`, and what a run cost: `mpcc runs show`, `mpcc trace`, and what later runs make of it.

use super::bench::Bench;

const AUDITED: &str = r#"
mpcc: 1
name: audited
stages:
  fixed: { run: "echo fixed >> ran; cat ${inputs.given} > ${outputs.y}", inputs: { given: { file: given.txt } }, outputs: { y: { type: file, path: out/fixed.txt } } }
  clock: { run: "echo since; echo start > ${outputs.y}; date +%N >> ${outputs.y}", outputs: { y: file } }
  below: { run: "cat ${inputs.x} > ${outputs.y}", inputs: { x: clock }, outputs: { y: file } }
  set:
    run:
      - sh
      - -c
      - 'echo "{\"id\":\"first\",\"words\":[1]}" > "$1"; echo "{\"id\":\"second\",\"words\":[1,$(date +%N)]}" >> "$1"'
      - sh
      - "${outputs.y}"
    outputs: { y: records }
  tree: { run: "mkdir -p ${outputs.y}/deep; echo a > ${outputs.y}/a; date +%N > ${outputs.y}/deep/b", outputs: { y: dir } }
  upper:
    run: [sh, -c, "while read line; do echo asked >> asked; echo \"$line\"; done"]
    each: x
    inputs: { x: { file: records.jsonl } }
    outputs: { y: records }
  broken: { run: "test -e allowed && echo > ${outputs.y}", outputs: { y: file } }
"#;

fn bench() -> Bench {
    let bench = Bench::new(AUDITED);
    bench.write("given.txt", "given\n");
    bench.write("records.jsonl", "{\"id\":\"r1\"}\n{\"id\":\"r2\"}\n");
    bench.write("allowed", "");
    bench
}

#[test]
fn what_makes_the_same_bytes_passes_and_leaves_no_trace() {
    let bench = bench();
    bench.mpcc("run pipeline.yaml fixed upper").code(0);
    assert_eq!(bench.ran(), ["fixed"]);
    std::fs::remove_file(bench.path("out/fixed.txt")).unwrap();
    let stats = bench.mpcc("cache stats --json").code(0).out;
    let told = bench.mpcc("audit pipeline.yaml fixed --times 3").code(0).out;
    assert!(told.contains("fixed: executed 3 times") && told.contains("and so has the store"), "{told}");
    assert_eq!(bench.ran(), ["fixed"; 3]);
    assert!(!bench.path("out/fixed.txt").exists(), "nothing is published");
    let _ = std::fs::remove_file(bench.path("asked"));
    bench.mpcc("audit pipeline.yaml upper").code(0);
    assert_eq!(bench.read("asked").lines().count(), 4, "the memo answers nothing: two records, twice");
    assert_eq!(bench.mpcc("cache stats --json").code(0).out, stats, "and learns nothing");
    assert_eq!(std::fs::read_dir(bench.path(".mpcc/tmp")).unwrap().count(), 0, "the outputs are gone");
}

#[test]
fn what_differs_is_named_to_the_place() {
    let bench = bench();
    let told = bench.mpcc("audit pipeline.yaml clock").code(2);
    assert!(told.err.contains("there is no store"), "{}", told.err);
    bench.mpcc("run pipeline.yaml fixed").code(0);
    let first = |words: &str| {
        let line = bench.mpcc(&format!("audit pipeline.yaml {words} --json")).code(1).json().remove(0);
        assert_eq!((&line["audit"], &line["port"]), (&"differs".into(), &"y".into()), "{line}");
        line
    };
    let clock = first("clock");
    assert_eq!(clock["versions"], serde_json::json!(["execution 1", "execution 2"]), "the store has none yet");
    assert_eq!((&clock["first"]["differs"], &clock["first"]["line"]), (&"line".into(), &2.into()));
    let set = first("set");
    let place = &set["first"];
    assert_eq!((&place["line"], &place["id"], &place["path"]), (&2.into(), &"second".into(), &".words[1]".into()));
    assert_eq!(first("tree")["first"]["file"], "deep/b");
    let needs = bench.mpcc("audit pipeline.yaml below").code(2).err;
    assert!(needs.contains("`below` needs the outputs of `clock`") && needs.contains("run it first"), "{needs}");
    bench.mpcc("run pipeline.yaml").code(0);
    assert_eq!(first("clock")["versions"][0], "the store");
    bench.mpcc("audit pipeline.yaml below").code(0);
    let all = bench.mpcc("audit pipeline.yaml --times 1").code(1);
    assert!(all.err.contains("4 equal, 3 differ, 0 failed"), "{}", all.err);
    std::fs::remove_file(bench.path("allowed")).unwrap();
    let broken = bench.mpcc("audit pipeline.yaml broken --json").code(1).json().remove(0);
    assert_eq!((&broken["audit"], &broken["execution"]), (&"failed".into(), &1.into()), "{broken}");
}

#[test]
fn a_run_shows_what_it_cost() {
    let bench = Bench::new(
        r#"
mpcc: 1
name: costs
stages:
  work: { run: "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo > ${outputs.y}", outputs: { y: file } }
  fails: { run: "exit 1", outputs: { y: file }, retries: 1 }
"#,
    );
    bench.mpcc("run pipeline.yaml --keep-going").code(1);
    let shown = bench.mpcc("runs show").code(0).out;
    let row = |name: &str| shown.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    for title in ["state", "wall", "CPU", "memory", "attempts"] {
        assert!(row("node").contains(title), "{shown}");
    }
    assert!(!shown.contains("tokens") && !shown.contains("GPU"), "nothing of that was used: {shown}");
    assert!(row("work").contains("executed") && row("work").contains("MiB"), "{shown}");
    assert!(row("fails").contains("failed") && row("fails").ends_with('2'), "{shown}");
    assert!(row("in all").ends_with('3'), "{shown}");
    let json = bench.mpcc("runs show last --json").code(0).json().remove(0);
    assert!(json["totals"]["cpu_s"].as_f64().unwrap() > 0.01, "{json}");
    assert_eq!(json["totals"]["attempts"], 3);
    let trace: serde_json::Value = serde_json::from_str(&bench.mpcc("trace").code(0).out).unwrap();
    let work = trace["traceEvents"].as_array().unwrap().iter().find(|event| event["name"] == "work").unwrap();
    assert!(work["args"]["peak_rss_bytes"].as_u64().unwrap() > 1 << 18, "{work}");
    assert!(work["args"].get("gpu_peak_bytes").is_some() && work["args"].get("spent").is_some(), "{work}");
    bench.mpcc("run pipeline.yaml --keep-going").code(1);
    let again = bench.mpcc("runs show --json").code(0).json().remove(0);
    assert_eq!(again["totals"]["attempts"], 2, "what is up to date cost nothing");
}

/// A bench on which `nvidia-smi` says that 10 GiB of device 0 are in use.
fn with_a_gpu(yaml: &str) -> Bench {
    use std::os::unix::fs::PermissionsExt;
    let mut bench = Bench::new(yaml);
    bench.write("bin/nvidia-smi", "#!/bin/sh\ncase $1 in --query-gpu*) echo '0, GPU-a, 10240';; esac\n");
    let program = bench.path("bin/nvidia-smi");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", program.parent().unwrap().display());
    bench.variables.push(("PATH".into(), path));
    bench
}

#[test]
fn what_was_measured_of_a_gpu_is_reserved_next_time() {
    let bench = with_a_gpu(
        r#"
mpcc: 1
name: gpu
params: { word: a }
stages:
  use: { matrix: { n: [1, 2] }, run: "sleep 1.4; echo ${params.word} ${matrix.n} > ${outputs.y}", outputs: { y: file }, resources: { gpus: 1 } }
"#,
    );
    let run = |words: &str| {
        bench.mpcc(&format!("run pipeline.yaml --inventory fake:1x80GiB --jobs 4 --json {words}")).code(0).json()
    };
    let apart = |events: &[serde_json::Value]| {
        let started = events.iter().filter(|event| event["event"] == "node.started");
        let at: Vec<f64> = started.map(|event| event["at_s"].as_f64().unwrap()).collect();
        at[1] - at[0]
    };
    let first = run("");
    assert!(apart(&first) >= 1.4, "each has the device for itself");
    let of = |events: &[serde_json::Value], kind: &str, field: &str| -> Vec<u64> {
        events
            .iter()
            .filter(|event| event["event"] == kind)
            .map(|event| event[field].as_u64().unwrap_or(0) >> 20)
            .collect()
    };
    assert_eq!(of(&first, "node.started", "gpu_memory"), [80 << 10; 2]);
    assert_eq!(of(&first, "node.finished", "gpu_peak_bytes"), [10 << 10; 2]);
    assert!(bench.mpcc("runs show").code(0).out.contains("10.0 GiB"));
    let second = run("--set word=b");
    assert_eq!(of(&second, "node.started", "gpu_memory"), [11 << 10; 2], "the peak and a tenth");
    assert!(apart(&second) < 1.0, "they share the device");
}

#[test]
fn a_full_gpu_gets_the_stage_more_of_it() {
    let bench = with_a_gpu(
        r#"
mpcc: 1
name: gpu
stages:
  use:
    run: "if test -e full; then echo > ${outputs.y}; else touch full; echo 'RuntimeError: CUDA out of memory.' >&2; exit 1; fi"
    outputs: { y: file }
    resources: { gpus: 1, gpu_memory: 50GiB }
"#,
    );
    let told = bench.mpcc("run pipeline.yaml --inventory fake:1x80GiB").code(0).out;
    assert!(
        told.contains("ran out of GPU memory")
            && told.contains("attempt 2 gets 80.0 GiB of GPU memory instead of 50.0 GiB"),
        "{told}"
    );
    let trace: serde_json::Value = serde_json::from_str(&bench.mpcc("trace").code(0).out).unwrap();
    assert_eq!(trace["traceEvents"][0]["args"]["attempts"], 2);
}

#[test]
fn a_gang_gets_its_devices_at_once_and_sees_no_other() {
    let bench = with_a_gpu(
        r#"
mpcc: 1
name: gangs
stages:
  gang: { matrix: { n: [1, 2, 3] }, run: "echo begin ${matrix.n} >> log; sleep 0.4; echo end ${matrix.n} >> log; echo [$CUDA_VISIBLE_DEVICES] > ${outputs.y}", outputs: { y: file }, resources: { gpus: 2 } }
  none: { run: "echo [$${CUDA_VISIBLE_DEVICES-unset}] > ${outputs.y}", outputs: { y: file } }
"#,
    );
    let events = bench.mpcc("run pipeline.yaml --inventory fake:5x80GiB --jobs 8 --json").code(0).json();
    for event in events.iter().filter(|event| event["event"] == "node.started") {
        let devices: Vec<String> = event["devices"].as_array().unwrap().iter().map(ToString::to_string).collect();
        let node = event["node"].as_str().unwrap();
        let path = bench.mpcc(&format!("show {node}")).code(0).out;
        let seen = std::fs::read_to_string(path.trim()).unwrap();
        assert_eq!(seen.trim(), format!("[{}]", devices.join(",")), "{node}");
        assert_eq!(devices.len(), if node == "none" { 0 } else { 2 });
    }
    let log = bench.read("log");
    let mut running = 0;
    for line in log.lines() {
        running += if line.starts_with("begin") { 1 } else { -1 };
        assert!((0..=2).contains(&running), "five devices hold two gangs of two: {log}");
    }
    assert!(log.starts_with("begin") && log.lines().nth(1).unwrap().starts_with("begin"), "two at once: {log}");
}
