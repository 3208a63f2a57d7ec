//! What others script against: caching, events, counts, digests, exit codes.

use super::bench::Bench;

#[test]
fn a_second_run_executes_nothing() {
    let bench = Bench::chain();
    bench.mpcc("run pipeline.yaml").code(0);
    assert_eq!(bench.ran(), ["numbers", "count", "report"]);
    let again = bench.mpcc("run pipeline.yaml --json").code(0);
    assert_eq!(again.counts(), [0, 3, 0, 0]);
    assert!(bench.ran().is_empty());
}

#[test]
fn an_edited_input_runs_what_depends_on_it_and_why_names_it() {
    let bench = Bench::chain();
    bench.mpcc("run pipeline.yaml").code(0);
    bench.ran();
    bench.write("given.txt", "a\nb\na b\na\n");
    let why = bench.mpcc("why numbers").code(0).out;
    assert!(why.starts_with("numbers would run: inputs.given file:"), "{why}");
    assert_eq!(bench.mpcc("run pipeline.yaml --json").code(0).counts(), [3, 0, 0, 0]);
    let after = bench.mpcc("why numbers --json").code(0).json();
    assert_eq!((&after[0]["state"], &after[0]["changes"][0]["field"]), (&"hit".into(), &"inputs.given".into()));
}

#[test]
fn equal_bytes_cut_off_what_is_below() {
    let bench = Bench::chain();
    bench.mpcc("run pipeline.yaml").code(0);
    bench.ran();
    bench.write("given.txt", "a\nc\na b\n");
    assert_eq!(bench.mpcc("run pipeline.yaml --json").code(0).counts(), [2, 1, 0, 0]);
    assert_eq!(bench.ran(), ["numbers", "count"], "the count is the same, so the report is");
}

#[test]
fn a_changed_parameter_runs_only_what_reads_it() {
    let bench = Bench::chain();
    bench.mpcc("run pipeline.yaml").code(0);
    assert_eq!(bench.mpcc("run pipeline.yaml --set seed=9 --json").code(0).counts(), [0, 3, 0, 0], "nobody reads it");
    let plan = bench.mpcc("plan pipeline.yaml --set word=b --json").code(0);
    let states: Vec<_> = plan.json().iter().map(|line| (line["node"].clone(), line["state"].clone())).collect();
    assert_eq!(states[0], ("numbers".into(), "hit".into()));
    assert_eq!(states[1], ("count".into(), "run".into()));
    assert_eq!(states[2], ("report".into(), "unknown".into()));
    let last = plan.json().pop().unwrap();
    assert_eq!(
        (&last["event"], &last["hit"], &last["run"], &last["unknown"]),
        (&"plan.finished".into(), &1.into(), &1.into(), &1.into())
    );
    assert_eq!(bench.mpcc("run pipeline.yaml --set word=b --json").code(0).counts(), [2, 1, 0, 0]);
    let why = bench.mpcc("why count").code(0).out;
    assert!(why.starts_with("count is up to date; it ran last because of command"), "{why}");
    bench.mpcc("run pipeline.yaml --dry-run").code(0);
}

#[test]
fn under_json_standard_output_holds_events_only() {
    let bench = Bench::chain();
    let run = bench.mpcc("run pipeline.yaml --json").code(0);
    let events = run.json();
    assert_eq!(events[0]["event"], "run.started");
    assert_eq!(events[0]["nodes"].as_array().unwrap().len(), 3);
    let finished: Vec<_> = events.iter().filter(|event| event["event"] == "node.finished").collect();
    assert_eq!(finished.len(), 3);
    let last = run.finished();
    for count in ["executed", "cached", "failed", "skipped", "waiting", "wall_s"] {
        assert!(last[count].is_number(), "{count} in {last}");
    }
    assert_eq!(run.counts(), [3, 0, 0, 0]);
}

#[test]
fn nodes_can_be_chosen_and_forced() {
    let bench = Bench::chain();
    assert_eq!(bench.mpcc("run pipeline.yaml count --json").code(0).counts(), [2, 0, 0, 0]);
    assert_eq!(bench.mpcc("run pipeline.yaml numbers+ --json").code(0).counts(), [1, 2, 0, 0]);
    bench.ran();
    assert_eq!(bench.mpcc("run pipeline.yaml --force count --json").code(0).counts(), [1, 2, 0, 0]);
    assert_eq!(bench.ran(), ["count"]);
    let wrong = bench.mpcc("run pipeline.yaml cuont").code(2);
    assert!(wrong.err.contains("cuont") && wrong.err.contains("count"), "{}", wrong.err);
}

#[test]
fn the_store_goes_where_it_is_told() {
    let mut bench = Bench::chain();
    bench.mpcc("run pipeline.yaml").code(0);
    assert!(bench.path(".mpcc/runs").is_dir());
    bench.mpcc("run pipeline.yaml --store elsewhere").code(0);
    assert!(bench.path("elsewhere/runs").is_dir());
    let store = bench.path("third").display().to_string();
    bench.variables.push(("MPCC_STORE".into(), store));
    assert_eq!(bench.mpcc("run pipeline.yaml --json").code(0).counts(), [3, 0, 0, 0]);
    assert!(bench.path("third/runs").is_dir());
}

#[test]
fn digests_of_two_stores_compare() {
    let bench = Bench::chain();
    bench.mpcc("run pipeline.yaml --store one").code(0);
    bench.mpcc("run pipeline.yaml --store two --jobs 1").code(0);
    bench.mpcc("run pipeline.yaml --store two").code(0);
    let digests = |store| bench.mpcc(&format!("runs show --digests --store {store}")).code(0).out;
    assert_eq!(digests("one"), digests("two"), "executed and cached nodes alike");
    let lines: Vec<Vec<String>> =
        digests("one").lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect();
    assert_eq!(lines.len(), 3);
    assert!(lines.iter().all(|line| line.len() == 3 && line[2].len() == 64), "{lines:?}");
}

#[test]
fn a_curation_without_decisions_waits_while_other_branches_finish() {
    let region = r#"{"id": "r1", "image": "a.jpg", "image_digest": "d", "annotation": 7, "size": [64, 64], "bbox": [1, 2, 30, 30], "category": "cup", "supercategory": "kitchen", "area": 900, "crowd": false, "scene": [["cup", 1]]}"#;
    let bench = Bench::new(
        r#"
mpcc: 1
name: waiting
stages:
  regions: { run: "cp ${inputs.given} ${outputs.regions}", inputs: { given: { file: given.jsonl } }, outputs: { regions: records<Region> } }
  curation: { uses: curation.import, inputs: { regions: regions, decisions: { file: decisions.csv } } }
  below: { run: "wc -l < ${inputs.items} > ${outputs.n}", inputs: { items: curation.items }, outputs: { n: file } }
  beside: { run: "wc -l < ${inputs.regions} > ${outputs.n}", inputs: { regions: regions }, outputs: { n: file } }
"#,
    );
    bench.write("given.jsonl", &format!("{region}\n"));
    bench.write("decisions.csv", "");
    let waiting = bench.mpcc("run pipeline.yaml --json").code(4).finished();
    let counts = |names: [&str; 3]| names.map(|name| waiting[name].as_u64().unwrap());
    assert_eq!(counts(["executed", "waiting", "failed"]), [2, 2, 0], "{waiting}");
    let told = bench.mpcc("run pipeline.yaml").code(4);
    assert!(format!("{}{}", told.out, told.err).contains("a.jpg,7,accept,easy,me"), "{}{}", told.out, told.err);
    bench.write("decisions.csv", "image,annotation,decision,difficulty,curator\na.jpg,7,accept,easy,me\n");
    assert_eq!(bench.mpcc("run pipeline.yaml --json").code(0).counts(), [2, 2, 0, 0]);
    let path = bench.mpcc("show below").code(0).out;
    assert_eq!(std::fs::read_to_string(path.trim()).unwrap().trim(), "1");
}

#[test]
fn tables_end_a_run() {
    let bench = Bench::new(
        r#"
mpcc: 1
name: tables
stages:
  second: { run: "printf '| b |\n' > ${outputs.t}/table.md", outputs: { t: table } }
  first: { run: "printf '| a |\n' > ${outputs.t}/table.md", outputs: { t: table } }
  inner: { run: "printf '| hidden |\n' > ${outputs.t}/table.md", outputs: { t: table } }
  user: { run: "cp ${inputs.t}/table.md ${outputs.y}", inputs: { t: inner }, outputs: { y: file } }
"#,
    );
    for _ in 0..2 {
        let out = bench.mpcc("run pipeline.yaml").code(0).out;
        let (second, first) = (out.find("| b |").unwrap(), out.find("| a |").unwrap());
        assert!(second < first && !out.contains("hidden"), "{out}");
    }
    assert!(!bench.mpcc("run pipeline.yaml --json").code(0).out.contains("| a |"));
}
