//! The starter pipeline and the shipped examples run as they are.

use super::bench::{Bench, root};

/// A folder with the examples in it.
fn examples() -> Bench {
    let bench = Bench::new("");
    for entry in std::fs::read_dir(root().join("pipelines/examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let name = path.file_name().unwrap().to_str().unwrap();
            bench.write(name, &std::fs::read_to_string(&path).unwrap());
        }
    }
    bench
}

/// The examples as they lie in the repository, with the prompts beside them.
fn repository() -> Bench {
    Bench::with_copies(&["pipelines/examples", "pipelines/prompts"])
}

/// Runs a pipeline twice: everything is executed, then nothing.
fn runs_twice(bench: &Bench, file: &str, nodes: u64) {
    assert_eq!(bench.mpcc(&format!("run {file} --json")).code(0).counts(), [nodes, 0, 0, 0]);
    assert_eq!(bench.mpcc(&format!("run {file} --json")).code(0).counts(), [0, nodes, 0, 0]);
}

#[test]
fn the_starter_runs() {
    let bench = Bench::new("");
    bench.mpcc("init first.yaml").code(0);
    let twice = bench.mpcc("init first.yaml").code(2);
    assert!(twice.err.contains("exists"), "{}", twice.err);
    runs_twice(&bench, "first.yaml", 6);
    assert_eq!(bench.read("results/report.txt"), "numbers with 1, 2 and 3: 20 19 19\n");
    assert_eq!(bench.mpcc("run first.yaml --set title=digits --json").code(0).counts(), [1, 5, 0, 0]);
}

#[test]
fn a_shell_command() {
    let bench = examples();
    runs_twice(&bench, "shell.yaml", 2);
    assert_eq!(bench.read("results/count.txt"), "2\n");
    bench.mpcc("run shell.yaml --set word=dog").code(0);
    assert!(bench.mpcc("why matching").code(0).out.contains("env.WORD \"cat\" -> \"dog\""));
}

#[test]
fn a_record_stage_in_python() {
    if !["/usr/bin/python3", "/usr/local/bin/python3", "/bin/python3"]
        .iter()
        .any(|path| std::path::Path::new(path).exists())
    {
        #[allow(clippy::disallowed_methods, reason = "the one variable that turns skips into failures")]
        let required = std::env::var_os("MPCC_TEST_ALL").is_some();
        assert!(!required, "python3 is needed");
        println!("skipped: needs python3");
        return;
    }
    let bench = examples();
    runs_twice(&bench, "records.yaml", 2);
    let path = bench.mpcc("show counted").code(0).out;
    let counted = std::fs::read_to_string(path.trim()).unwrap();
    assert!(counted.starts_with("{\"id\": \"c1\", \"words\": 10}\n"), "{counted}");
    bench.write("captions.jsonl", &(bench.read("captions.jsonl") + "{\"id\": \"c7\", \"caption\": \"New.\"}\n"));
    let run = bench.mpcc("run records.yaml --json").code(0);
    let finished = run.json().into_iter().find(|event| event["event"] == "node.finished").unwrap();
    assert_eq!((&finished["memo"]["hits"], &finished["memo"]["misses"]), (&6.into(), &1.into()));
    bench.write("captions.jsonl", &(bench.read("captions.jsonl") + "{\"id\": \"c8\"}\n"));
    assert!(bench.mpcc("run records.yaml").code(1).out.contains("record 8: no caption"));
}

#[test]
fn a_custom_kind_in_a_matrix() {
    let bench = examples();
    runs_twice(&bench, "kinds.yaml", 4);
    let path = bench.mpcc("show together").code(0).out;
    assert_eq!(std::fs::read_to_string(path.trim()).unwrap().lines().count(), 6);
    let wrong = bench.read("kinds.yaml").replace("every: 3", "every: two");
    bench.write("wrong.yaml", &wrong);
    assert!(bench.mpcc("run wrong.yaml").code(2).err.contains("every"));
}

#[test]
fn a_training_with_adapters() {
    let bench = repository();
    runs_twice(&bench, "pipelines/examples/lora.yaml", 9);
    let config = bench.read("pipelines/examples/results/adapter/adapter_config.json");
    assert!(config.contains("\"r\": 8") && config.contains("mlp.down_proj"), "{config}");
    let folder = |port: &str| bench.mpcc(&format!("show {port}")).code(0).out.trim().to_owned();
    let (base, model) = (folder("base.model"), folder("sft.model"));
    bench.mpcc(&format!("model merge-adapter {base} {model}/adapter merged")).code(0);
    let weights = |folder: &str| std::fs::read(format!("{folder}/model.safetensors")).unwrap();
    let merged = bench.path("merged");
    assert!(weights(merged.to_str().unwrap()) == weights(&model), "the adapter on its base is the model of the stage");
    assert!(weights(&folder("rft.model")) != weights(&model));
}
