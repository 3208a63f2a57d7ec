//! The shipped pipelines: they compile, `smoke.yaml` has `full.yaml`'s shape and runs, and its bytes do not depend on the
//! number of processes, on kills, or on who else runs it.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use crate::cli::bench::{Bench, Ended, root};

/// A bench with a copy of `pipelines/`, so that published tables land in its own folder.
fn bench() -> Bench {
    let bench = Bench::new("");
    for folder in ["pipelines", "pipelines/prompts"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let name = format!("{folder}/{}", path.file_name().unwrap().to_str().unwrap());
                bench.write(&name, &std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    bench
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

    for millis in [300, 900, 1_700, 2_900, 4_100] {
        let mut victim = run("killed", "");
        std::thread::sleep(Duration::from_millis(millis));
        let _ = victim.kill();
        victim.wait_with_output().unwrap();
    }
    Ended::from(run("killed", "").wait_with_output().unwrap()).code(0);
    assert_eq!(digests(&bench, "killed"), alone);
    bench.mpcc("cache verify --store killed").code(0);

    let both = [run("company", ""), run("company", "")].map(|run| Ended::from(run.wait_with_output().unwrap()).code(0));
    assert_eq!(both.iter().map(|run| run.counts()[0]).sum::<u64>(), executed);
    assert_eq!(digests(&bench, "company"), alone);

    let again = Ended::from(run("alone", "").wait_with_output().unwrap()).code(0);
    assert_eq!(again.counts(), [0, executed, 0, 0]);
}

#[test]
fn an_edited_decision_asks_only_about_its_item() {
    let bench = bench();
    bench.mpcc("run pipelines/smoke.yaml --store s --json").code(0);
    let decisions = bench.mpcc("show world[part=test].decisions --store s").code(0).out;
    let text = std::fs::read_to_string(decisions.trim()).unwrap();
    let items = bench.mpcc("show curation[part=test].items --store s").code(0).out;
    let items = std::fs::read_to_string(items.trim()).unwrap();
    let item: Value = serde_json::from_str(items.lines().next().unwrap()).unwrap();
    let key = format!("{},{},", item["region"]["image"].as_str().unwrap(), item["region"]["annotation"]);
    let edited: Vec<String> =
        text.lines().map(|line| if line.starts_with(&key) { flip(line) } else { line.to_owned() }).collect();
    assert_ne!(edited.join("\n"), text.trim_end());
    bench.write("pipelines/edited.csv", &(edited.join("\n") + "\n"));
    let source = "decisions: \"world[part=${matrix.part}].decisions\"";
    let smoke = bench.read("pipelines/smoke.yaml");
    assert!(smoke.contains(source));
    let other = smoke.replace(source, &format!("{source}, overrides: {{ file: edited.csv }}"));
    bench.write("pipelines/edited.yaml", &other);
    let ended = bench.mpcc("run pipelines/edited.yaml --store s --json").code(0);
    let trained: Vec<String> = ended
        .json()
        .iter()
        .filter(|line| line["event"] == "node.started")
        .filter_map(|line| line["node"].as_str().map(str::to_owned))
        .filter(|node| ["sft", "rft", "pretrain"].iter().any(|stage| node.starts_with(stage)))
        .collect();
    assert!(trained.is_empty(), "a test decision trained {trained:?}");
}

/// The decision's line with its difficulty changed.
fn flip(line: &str) -> String {
    match line.contains(",hard,") {
        true => line.replace(",hard,", ",easy,"),
        false => line.replace(",easy,", ",hard,").replace(",moderate,", ",hard,"),
    }
}
