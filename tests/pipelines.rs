//! The shipped pipelines: they compile, `smoke.yaml` has `full.yaml`'s shape and runs, and its bytes do not depend on the
//! number of processes, on kills, or on who else runs it.

use std::collections::BTreeSet;
use std::process::{Child, Command};
use std::time::Duration;

use serde_json::Value;

use crate::cli::bench::{Bench, Ended};

/// A bench with a copy of `pipelines/`, so that published tables land in its own folder.
fn bench() -> Bench {
    Bench::with_copies(&["pipelines", "pipelines/prompts"])
}

fn digests(bench: &Bench, store: &str) -> String {
    bench.mpcc(&format!("runs show --digests --store {store}")).code(0).out
}

fn stages(bench: &Bench, file: &str) -> BTreeSet<String> {
    let plan = bench.mpcc(&format!("plan {file} --json")).code(0);
    let names = plan.json().into_iter().filter_map(|line| line["node"].as_str().map(str::to_owned));
    names.collect()
}

#[test]
fn every_pipeline_compiles() {
    let bench = bench();
    for words in ["full.yaml", "full.yaml --profile paper", "smoke.yaml", "coco.yaml"] {
        bench.mpcc(&format!("plan pipelines/{words}")).code(0);
    }
}

#[test]
fn smoke_has_the_shape_of_full() {
    let bench = bench();
    let (smoke, full) = (stages(&bench, "pipelines/smoke.yaml"), stages(&bench, "pipelines/full.yaml"));
    assert!(full.len() > 60, "{full:?}");
    assert_eq!(smoke, full);
}

#[test]
fn the_paper_profile_lists_what_is_missing_and_does_not_run() {
    let bench = bench();
    let plan = bench.mpcc("plan pipelines/full.yaml --profile paper").code(0).out;
    for wanted in
        ["instances_train2017.json", "Qwen/Qwen2.5-VL-3B-Instruct", "OPENAI_API_KEY", "zoo[model=internvl3-8b]"]
    {
        assert!(plan.contains(wanted), "no {wanted} in\n{plan}");
    }
    let refused = bench.mpcc("run pipelines/full.yaml --profile paper").code(2);
    assert!(refused.err.contains("instances_train2017.json"), "{}", refused.err);
}

#[test]
fn smoke_gives_the_same_bytes_alone_killed_and_in_company() {
    let bench = bench();
    let run =
        |store: &str, words: &str| bench.start(&format!("run pipelines/smoke.yaml --store {store} --json {words}"));
    let first = Ended::from(run("alone", "--jobs 1").wait_with_output().unwrap()).code(0);
    let executed = first.counts()[0];
    assert!(executed > 60);
    let alone = digests(&bench, "alone");
    assert!(bench.read("results/smoke-table4/table.md").contains("rft+prior"));

    let moments = random_moments(8, Duration::from_millis(4_500));
    for (round, moment) in moments.iter().enumerate() {
        let mut victim = run("killed", "");
        std::thread::sleep(*moment);
        match round % 2 {
            0 => drop(victim.kill()),
            _ => kill_a_stage(&victim),
        }
        victim.wait_with_output().unwrap();
    }
    Ended::from(run("killed", "").wait_with_output().unwrap()).code(0);
    assert_eq!(digests(&bench, "killed"), alone, "killed after {moments:?}: engine, stage, engine, ...");
    bench.mpcc("cache verify --store killed").code(0);

    let both = [run("company", ""), run("company", "")].map(|run| Ended::from(run.wait_with_output().unwrap()).code(0));
    assert_eq!(both.iter().map(|run| run.counts()[0]).sum::<u64>(), executed);
    assert_eq!(digests(&bench, "company"), alone);

    let again = Ended::from(run("alone", "").wait_with_output().unwrap()).code(0);
    assert_eq!(again.counts(), [0, executed, 0, 0]);

    let nodes = "filter[part=test] traces[split=ood] sft[split=ood] questions";
    let audit = bench.mpcc(&format!("audit pipelines/smoke.yaml {nodes} --store alone --times 1 --json")).code(0);
    assert_eq!(audit.json().pop().unwrap()["equal"], 5, "asked and trained again without memo and checkpoint");
}

#[test]
fn built_in_kinds_pass_the_audit() {
    let bench = bench();
    bench.mpcc("run pipelines/smoke.yaml regions[part=test] --store s").code(0);
    let audit = bench.mpcc("audit pipelines/smoke.yaml world[part=test] regions[part=test] --store s --json").code(0);
    for line in &audit.json()[..2] {
        assert_eq!((&line["audit"], &line["stored"]), (&"equal".into(), &true.into()), "{line}");
        assert_eq!(line["wall_s"].as_array().unwrap().len(), 2);
    }
}

/// Moments up to `limit`, different every time; a failure prints them.
fn random_moments(count: usize, limit: Duration) -> Vec<Duration> {
    use std::hash::{BuildHasher, RandomState};
    let random = |number: usize| RandomState::new().hash_one(number) % limit.as_millis() as u64;
    (0..count).map(|number| Duration::from_millis(random(number))).collect()
}

/// kill -9 of one of the engine's children, if it has any at the moment.
fn kill_a_stage(engine: &Child) {
    let id = engine.id();
    let threads = std::fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    let children = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let pids: Vec<String> = children.flat_map(|text| text.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect();
    if let Some(pid) = pids.iter().rfind(|pid| !pid.is_empty()) {
        let _ = Command::new("kill").args(["-9", pid]).status();
    }
}

#[test]
fn an_edited_test_decision_trains_nothing_and_asks_nothing_again() {
    let bench = bench();
    bench.mpcc("run pipelines/smoke.yaml --store s world --json").code(0);
    for part in ["train", "test"] {
        let path = bench.mpcc(&format!("show world[part={part}].decisions --store s")).code(0).out;
        bench.write(&format!("pipelines/{part}.csv"), &std::fs::read_to_string(path.trim()).unwrap());
    }
    let source = "decisions: \"world[part=${matrix.part}].decisions\"";
    let smoke = bench.read("pipelines/smoke.yaml");
    assert!(smoke.contains(source));
    bench.write("pipelines/edited.yaml", &smoke.replace(source, "decisions: { file: \"${matrix.part}.csv\" }"));
    bench.mpcc("run pipelines/edited.yaml --store s --json").code(0);

    let items = bench.mpcc("show curation[part=test].items --store s").code(0).out;
    let items = std::fs::read_to_string(items.trim()).unwrap();
    let item: Value = serde_json::from_str(items.lines().next().unwrap()).unwrap();
    let key = format!("{},{},", item["region"]["image"].as_str().unwrap(), item["region"]["annotation"]);
    let decisions = bench.read("pipelines/test.csv");
    let flipped: Vec<String> =
        decisions.lines().map(|line| if line.starts_with(&key) { flip(line) } else { line.into() }).collect();
    assert_ne!(flipped.join("\n"), decisions.trim_end());
    bench.write("pipelines/test.csv", &(flipped.join("\n") + "\n"));

    let ended = bench.mpcc("run pipelines/edited.yaml --store s --json").code(0);
    let started = |line: &&Value| line["event"] == "node.started";
    let ran: Vec<String> =
        ended.json().iter().filter(started).map(|line| line["node"].as_str().unwrap().to_owned()).collect();
    assert!(ran.iter().any(|node| node.starts_with("answer[")), "{ran:?}");
    let trains = |node: &&String| ["sft", "rft", "pretrain", "traces"].iter().any(|stage| node.starts_with(stage));
    assert_eq!(ran.iter().find(trains), None, "a test decision trains nothing");
    let memo: Vec<Value> = ended.json().into_iter().filter(|line| line["note"] == "memo").collect();
    let sum = |name: &str| memo.iter().map(|line| line[name].as_u64().unwrap()).sum::<u64>();
    assert!(sum("hits") > 0, "{memo:?}");
    assert_eq!(sum("misses"), 0, "a difficulty is in no request");
}

/// The decision's line with its difficulty changed.
fn flip(line: &str) -> String {
    match line.contains(",hard,") {
        true => line.replace(",hard,", ",easy,"),
        false => line.replace(",easy,", ",hard,").replace(",moderate,", ",hard,"),
    }
}
