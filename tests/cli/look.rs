//! Commands that look: status, logs, runs, show, graph, schema, doctor, cache, help.

use super::bench::{Bench, root};

#[test]
fn a_run_can_be_looked_at_afterwards() {
    let bench = Bench::chain();
    bench.mpcc("run pipeline.yaml").code(0);
    bench.mpcc("run pipeline.yaml").code(0);
    let status = bench.mpcc("status").code(0).out;
    assert!(status.contains("chain (pipeline.yaml)") && status.contains("3 up to date"), "{status}");
    assert_eq!(bench.mpcc("status --json").code(0).json()[0]["nodes"].as_array().unwrap().len(), 3);
    let runs = bench.mpcc("runs list").code(0).out;
    assert_eq!(runs.lines().count(), 2, "{runs}");
    let first = runs.lines().last().unwrap().split(' ').next().unwrap();
    assert!(bench.mpcc(&format!("runs show {first}")).code(0).out.contains("3 executed"));
    bench.mpcc("runs show 1999").code(2);
    let path = bench.mpcc("show report.report").code(0).out;
    assert_eq!(std::fs::read_to_string(path.trim()).unwrap(), "2\n");
    assert_eq!(bench.mpcc("show report").code(0).out, path);
    assert!(bench.mpcc("show report.oops").code(2).err.contains("report"));
    assert!(bench.mpcc("logs repotr").code(2).err.contains("did you mean `report`?"));
    assert!(bench.mpcc("logs report --path").code(0).out.trim().ends_with(".log"), "an older run has the log");
}

#[test]
fn a_run_is_traced() {
    let bench = Bench::chain();
    bench.mpcc("run pipeline.yaml").code(0);
    let trace: serde_json::Value = serde_json::from_str(&bench.mpcc("trace").code(0).out).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let names: Vec<&str> = events.iter().map(|event| event["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["numbers", "count", "report"]);
    for pair in events.windows(2) {
        let end = pair[0]["ts"].as_f64().unwrap() + pair[0]["dur"].as_f64().unwrap();
        assert!(pair[0]["ph"] == "X" && end <= pair[1]["ts"].as_f64().unwrap(), "{pair:?}");
        assert_eq!(pair[1]["tid"], 1, "a chain needs one lane");
    }
    bench.mpcc("run pipeline.yaml").code(0);
    let again: serde_json::Value = serde_json::from_str(&bench.mpcc("trace").code(0).out).unwrap();
    assert!(again["traceEvents"].as_array().unwrap().iter().all(|event| event["ph"] == "i"), "{again}");
}

#[test]
fn a_pipeline_is_simulated_with_recorded_durations() {
    let bench = Bench::new(
        r#"
mpcc: 1
name: farm
stages:
  train: { matrix: { n: [1, 2, 3, 4] }, run: "sleep 0.2; echo ${matrix.n} > ${outputs.y}", outputs: { y: file } }
  all: { run: "cat ${inputs.x} > ${outputs.y}", inputs: { x: "train[*]" }, outputs: { y: file } }
"#,
    );
    let guessed = bench.mpcc("simulate pipeline.yaml --cpus-per-host 4 --json").code(0).json().pop().unwrap();
    assert_eq!((&guessed["guessed"], &guessed["makespan_s"]), (&5.into(), &2.0.into()), "a second each, four at once");
    bench.mpcc("run pipeline.yaml").code(0);
    let at = |cpus: u32| {
        let words = format!("simulate pipeline.yaml --cpus-per-host {cpus} --svg t.svg --json");
        bench.mpcc(&words).code(0).json().pop().unwrap()
    };
    let (narrow, wide) = (at(1), at(8));
    let makespan = |line: &serde_json::Value| line["makespan_s"].as_f64().unwrap();
    assert!(makespan(&narrow) > 0.8 && makespan(&wide) < 0.6, "{narrow} {wide}");
    assert!(makespan(&narrow) >= narrow["lower_bound_s"].as_f64().unwrap() - 1e-6);
    assert!(makespan(&narrow) > narrow["variants"]["one more host"].as_f64().unwrap());
    assert_eq!(bench.read("t.svg").matches("<title>").count(), 5);
    assert!(bench.mpcc("simulate pipeline.yaml").code(0).out.contains("lower bound"));
}

#[test]
fn shells_and_readers_are_served() {
    let bench = Bench::chain();
    for shell in ["bash", "zsh", "fish"] {
        assert!(bench.mpcc(&format!("completions {shell}")).code(0).out.contains("keep-going"), "{shell}");
    }
    let man = bench.mpcc("man").code(0).out;
    assert!(man.contains("MPCC RUN") && man.contains("keep\\-going") && !man.contains("WARDEN"), "{man}");
}

#[test]
fn graphs_are_drawn() {
    let bench = Bench::chain();
    let dot = bench.mpcc("graph pipeline.yaml").code(0).out;
    assert!(dot.starts_with("digraph \"chain\"") && dot.contains("n0 -> n1;"), "{dot}");
    let mermaid = bench.mpcc("graph pipeline.yaml --format mermaid --stages").code(0).out;
    assert!(mermaid.starts_with("flowchart LR") && mermaid.contains("n1 --> n2"), "{mermaid}");
}

#[test]
fn a_pipeline_is_drawn_with_what_a_run_would_do() {
    let bench = Bench::new(
        r#"
mpcc: 1
name: farm
params: { last: all }
stages:
  part: { matrix: { n: [1, 2, 3] }, run: "echo ${matrix.n} > ${outputs.y}", outputs: { y: file }, resources: { cpus: 2 } }
  all: { run: "echo ${params.last}; cat ${inputs.x} > ${outputs.y}", inputs: { x: "part[*]" }, outputs: { y: file } }
"#,
    );
    let drawn = |words: &str| {
        assert_eq!(bench.mpcc(&format!("graph pipeline.yaml --svg g.svg {words}")).code(0).out, "");
        bench.read("g.svg")
    };
    let fresh = drawn("");
    assert!(!bench.path(".mpcc").exists(), "looking makes no store");
    assert!(fresh.contains("4 nodes, 0 up to date, 4 will run") && fresh.contains("part x3"), "{fresh}");
    assert_eq!((fresh.matches("<title>").count(), fresh.matches("<path").count()), (2, 1));
    bench.mpcc("run pipeline.yaml part[n=1]").code(0);
    let mixed = drawn("");
    assert!(mixed.contains("part[n=1]: up to date, took") && mixed.contains("all: unknown until part"), "{mixed}");
    assert!(mixed.contains("2 CPU(s)") && mixed.matches("height=\"3\"").count() == 3, "{mixed}");
    assert_eq!(mixed, drawn(""), "the same bytes");
    let nodes = drawn("--nodes");
    assert_eq!((nodes.matches("<title>").count(), nodes.matches("<path").count()), (4, 3));
    bench.mpcc("run pipeline.yaml").code(0);
    assert!(drawn("").contains("4 up to date"));
    let changed = drawn("--set last=else");
    assert!(changed.contains("3 up to date, 1 will run"), "{changed}");
    bench.mpcc("graph pipeline.yaml --nodes").code(2);
}

#[test]
fn the_schema_is_json_and_names_every_kind() {
    let bench = Bench::chain();
    let schema: serde_json::Value = serde_json::from_str(&bench.mpcc("schema").code(0).out).unwrap();
    let text = schema.to_string();
    for kind in mpcc_stages::registry().kinds() {
        assert!(text.contains(kind.name), "{}", kind.name);
    }
}

/// Editors read the committed file: `mpcc schema > pipelines/schema.json` renews it.
#[test]
fn the_committed_schema_is_fresh() {
    let committed = std::fs::read_to_string(root().join("pipelines/schema.json")).unwrap();
    let fresh = Bench::chain().mpcc("schema").code(0).out;
    assert!(committed == fresh, "pipelines/schema.json is stale: `mpcc schema > pipelines/schema.json` renews it");
}

#[test]
fn doctor_tells_what_is_there_but_no_secrets() {
    let mut bench = Bench::chain();
    bench.variables.push(("OPENAI_API_KEY".into(), "sk-12345678".into()));
    let text = bench.mpcc("doctor pipeline.yaml").code(0).out;
    for expected in ["CPUs", "level", "memory", "disk", "GPUs", "Slurm", "OPENAI_API_KEY set", "HF_TOKEN not set"] {
        assert!(text.contains(expected), "`{expected}` in {text}");
    }
    assert!(!text.contains("sk-12345678"));
    let json: serde_json::Value = serde_json::from_str(&bench.mpcc("doctor --json").code(0).out).unwrap();
    assert!(json["CPUs"]["found"]["count"].as_u64().unwrap() >= 1);
    assert_eq!(json["API keys"]["found"]["OPENAI_API_KEY"], true);
    assert!(!json.to_string().contains("sk-12345678"));
}

#[test]
fn the_store_is_looked_after() {
    let bench = Bench::chain();
    bench.mpcc("run pipeline.yaml").code(0);
    bench.mpcc("run pipeline.yaml --set word=zz").code(0);
    bench.mpcc("run pipeline.yaml --set word=b").code(0);
    let stats: serde_json::Value = serde_json::from_str(&bench.mpcc("cache stats --json").code(0).out).unwrap();
    assert_eq!(stats["entries"], 7, "three, then two, then two");
    bench.mpcc("cache verify").code(0);
    assert!(bench.mpcc("cache gc --dry-run").code(0).out.contains("would free"));
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&bench.mpcc("cache gc --json").code(0).out).unwrap()["entries_kept"],
        5,
        "of each node the latest and the one before it"
    );
    assert_eq!(bench.mpcc("run pipeline.yaml --set word=b --json").code(0).counts(), [0, 3, 0, 0]);

    rot(bench.mpcc("show numbers").code(0).out.trim());
    let verify = bench.mpcc("cache verify").code(3).out;
    assert!(verify.contains("damaged"), "{verify}");
    assert_eq!(
        bench.mpcc("run pipeline.yaml --set word=b --json").code(0).counts(),
        [1, 2, 0, 0],
        "only the damaged one"
    );
}

/// Overwrites a read-only object.
fn rot(object: &str) {
    let mut permissions = std::fs::metadata(object).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
    std::fs::set_permissions(object, permissions).unwrap();
    std::fs::write(object, "rotten").unwrap();
}

#[test]
fn a_damaged_object_is_made_again_and_the_run_says_so() {
    let bench = Bench::chain();
    bench.mpcc("run pipeline.yaml").code(0);
    rot(bench.mpcc("show numbers").code(0).out.trim());
    let run = bench.mpcc("run pipeline.yaml").code(0);
    let said = format!("{}{}", run.out, run.err);
    assert!(said.contains("numbers: warning: ") && said.contains("is damaged and counts as absent"), "{said}");
    assert_eq!(bench.mpcc("run pipeline.yaml --json").code(0).counts(), [0, 3, 0, 0]);
}

#[test]
fn every_command_has_help_with_examples() {
    let bench = Bench::chain();
    let help = bench.mpcc("--help").code(0).out;
    for command in
        ["run", "plan", "why", "graph", "status", "logs", "runs", "show", "cache", "schema", "doctor", "init"]
    {
        assert!(help.contains(&format!("\n  {command} ")), "{command}");
        let own = bench.mpcc(&format!("{command} --help")).code(0).out;
        assert!(own.contains("Examples:") && own.contains("--store"), "{command}: {own}");
    }
    assert!(!help.contains("worker"));
}
