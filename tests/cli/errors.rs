//! Failures: what is said, and the exit code.

use super::bench::Bench;

const FAILING: &str = r#"
mpcc: 1
name: failing
stages:
  good: { run: "echo good > ${outputs.y}", outputs: { y: file } }
  bad: { run: "for i in 1 2 3; do echo line $i; done; echo the reason >&2; exit 3", outputs: { y: file } }
  below: { run: "cat ${inputs.x} > ${outputs.y}", inputs: { x: bad }, outputs: { y: file } }
  other: { run: "sleep 0.2; cat ${inputs.x} > ${outputs.y}", inputs: { x: good }, outputs: { y: file } }
"#;

#[test]
fn a_failure_ends_with_the_tail_of_its_log() {
    let bench = Bench::new(FAILING);
    let run = bench.mpcc("run pipeline.yaml --keep-going").code(1);
    for expected in ["bad failed", "exit code 3", "| line 3", "| the reason", "1 failed", "1 skipped", "2 executed"] {
        assert!(run.out.contains(expected), "`{expected}` in {}", run.out);
    }
    let again = bench.mpcc("run pipeline.yaml --keep-going --json").code(1);
    assert_eq!(again.counts(), [0, 2, 1, 1]);
    assert_eq!(bench.mpcc("logs bad --tail 2").code(0).out, "line 3\nthe reason\n");
    assert!(bench.mpcc("status").code(0).out.contains("skipped"));
}

#[test]
fn without_keep_going_nothing_new_starts() {
    let bench = Bench::new(FAILING);
    let run = bench.mpcc("run pipeline.yaml --jobs 1 --json").code(1);
    let [executed, _, failed, skipped] = run.counts();
    assert_eq!((failed, skipped), (1, 1));
    assert!(executed <= 2);
}

#[test]
fn retries_are_made() {
    let bench = Bench::new(
        r#"
mpcc: 1
name: flaky
stages:
  flaky: { run: "echo try >> ran; test $(wc -l < ran) -ge 2 && echo > ${outputs.y}", outputs: { y: file }, retries: 2 }
"#,
    );
    let run = bench.mpcc("run pipeline.yaml --json").code(0);
    assert_eq!(bench.ran().len(), 2);
    assert!(run.json().iter().any(|event| event["event"] == "node.retrying"));
}

#[test]
fn a_malformed_pipeline_is_refused_with_every_problem() {
    let bench = Bench::new(
        "mpcc: 1\nname: wrong\nstages:\n  a: { run: \"true\", outputs: { y: file }, colour: red }\n  b: { uses: no.such.kind }\n",
    );
    let run = bench.mpcc("run pipeline.yaml").code(2);
    assert!(run.out.is_empty(), "{}", run.out);
    for expected in ["pipeline.yaml:4:", "colour", "pipeline.yaml:5:", "no.such.kind", "nothing has run"] {
        assert!(run.err.contains(expected), "`{expected}` in {}", run.err);
    }
    assert!(!bench.path(".mpcc").exists());
    let json = bench.mpcc("run pipeline.yaml --json").code(2);
    assert!(json.out.is_empty(), "{}", json.out);
    bench.mpcc("plan pipeline.yaml").code(2);
    bench.mpcc("run absent.yaml").code(2);
    bench.mpcc("run pipeline.yaml --colour").code(2);
}

#[test]
fn unknown_parameters_and_profiles_are_refused() {
    let bench = Bench::chain();
    assert!(bench.mpcc("run pipeline.yaml --set wrod=b").code(2).err.contains("word"));
    assert!(bench.mpcc("run pipeline.yaml --profile paper").code(2).err.contains("paper"));
    assert!(bench.ran().is_empty());
}

#[test]
fn missing_data_is_listed_by_plan_and_refused_by_run() {
    let bench = Bench::chain();
    std::fs::remove_file(bench.path("given.txt")).unwrap();
    let plan = bench.mpcc("plan pipeline.yaml").code(0);
    assert!(plan.out.contains("given.txt"), "{}", plan.out);
    let run = bench.mpcc("run pipeline.yaml").code(2);
    assert!(run.err.contains("given.txt"), "{}", run.err);
    assert!(bench.ran().is_empty());
}

#[test]
fn too_few_devices_are_listed_by_plan_and_refused_by_run() {
    let yaml = "mpcc: 1\nname: gpu\nstages:\n  a: { run: \"true\", outputs: { y: file }, resources: { gpus: 64 } }\n";
    let bench = Bench::new(yaml);
    let plan = bench.mpcc("plan pipeline.yaml --inventory fake:2x80GiB").code(0);
    assert!(plan.out.contains("device"), "{}", plan.out);
    bench.mpcc("run pipeline.yaml --inventory fake:2x80GiB").code(3);
    assert!(bench.mpcc("run pipeline.yaml --inventory 2x80GiB").code(2).err.contains("fake:"));
}

#[test]
fn an_output_that_is_not_written_is_a_failure() {
    let yaml = "mpcc: 1\nname: lazy\nstages:\n  a: { run: \"true\", outputs: { y: file } }\n";
    let bench = Bench::new(yaml);
    assert!(bench.mpcc("run pipeline.yaml").code(1).out.contains("without its output `y`"));
}

#[test]
fn commands_that_look_make_no_store() {
    let bench = Bench::chain();
    for words in ["status", "logs a", "show a", "runs show", "cache stats", "why a"] {
        let ended = bench.mpcc(words).code(2);
        assert!(ended.err.contains("no store"), "{words}: {}", ended.err);
    }
    assert!(!bench.path(".mpcc").exists());
}

/// A filter and an evaluation that read likelihoods, and a training, of models that answer in text alone.
const TEXT_ALONE: &str = r#"mpcc: 1
name: likelihoods
models:
  there: { provider: openai, model: m, base_url: "http://127.0.0.1:9" }
  past: { provider: replay, from: { file: answers.jsonl } }
  here: { from: { dir: weights } }
stages:
  world: { uses: scenes.generate, with: { part: test } }
  regions: { uses: regions.select, inputs: { dataset: world } }
  filter:
    uses: vlm.filter
    inputs: { dataset: world, regions: regions, model: [here, models.there] }
  answer:
    matrix: { model: [here, past] }
    uses: eval.answer
    inputs: { dataset: world, questions: world.tasks, model: "${matrix.model}" }
    with: { mode: likelihood }
  sft:
    uses: train.sft
    inputs: { dataset: world, traces: { file: traces.jsonl }, model: there }
"#;

#[test]
fn a_model_that_answers_in_text_alone_is_not_asked_for_likelihoods_or_weights() {
    let bench = Bench::new(TEXT_ALONE);
    let plan = bench.mpcc("plan pipeline.yaml").code(2);
    for expected in [
        "pipeline.yaml:12:63",
        "`read: expectation` asks how likely given texts are, which only a local model tells; `read: text` reads its answers",
        "`there` is a model with `provider: openai`",
        "pipeline.yaml:16:62",
        "`mode: likelihood` asks",
        "`past` is a model with `provider: replay`",
        "pipeline.yaml:20:70",
        "only a local model, whose weights are here, can be trained",
    ] {
        assert!(plan.err.contains(expected), "`{expected}` in {}", plan.err);
    }
    assert!(!plan.err.contains("`here`"), "{}", plan.err);
    let text =
        TEXT_ALONE.replace("model: [here, models.there] }", "model: [here, models.there] }\n    with: { read: text }");
    let text = text.replace("likelihood }", "generate }").replace("model: there }", "model: here }");
    bench.write("pipeline.yaml", &text);
    bench.mpcc("plan pipeline.yaml").code(0);
}

#[test]
fn an_adapter_that_makes_no_sense_is_refused_where_it_is_written() {
    let yaml = |lora: &str| {
        format!(
            "mpcc: 1\nname: lora\nstages:\n  sft:\n    uses: train.sft\n    inputs: {{ model: {{ dir: m }}, dataset: {{ dir: d }}, traces: {{ file: t }} }}\n    with:\n      lora: {lora}\n"
        )
    };
    for (lora, place, said) in [
        ("{ targets: [q_proj, w_proj] }", "8:33", "did you mean"),
        ("{ rank: 0 }", "8:21", "must be at least 1"),
        ("{ rank: 4, alpha: 0 }", "8:31", "must be above 0"),
        ("{ targets: [] }", "8:24", "names no map"),
        ("{ dropout: 0.1 }", "8:15", "unknown field `dropout`"),
        ("{ rank: two }", "8:21", "invalid type"),
    ] {
        let bench = Bench::new(&yaml(lora));
        let plan = bench.mpcc("plan pipeline.yaml").code(2);
        assert!(
            plan.err.contains(&format!("pipeline.yaml:{place}")) && plan.err.contains(said),
            "{lora}: {}",
            plan.err
        );
    }
    Bench::new(&yaml("{}")).mpcc("plan pipeline.yaml").code(0);
    Bench::new(&yaml("null")).mpcc("plan pipeline.yaml").code(0);
}
