//! Pipelines that compile, and what they become.

use mpcc_engine::plan::{CompileOptions, MissingKind, Plan, compile};
use mpcc_engine::schema::json_schema;
use serde_json::Value;

use crate::{compile_text, fixtures, kinds, options};

fn mini(options: &CompileOptions) -> Plan {
    compile(&fixtures().join("mini.yaml"), &kinds::registry(), options).unwrap_or_else(|error| panic!("{error}"))
}

/// The plan as text that is the same on every machine.
fn shown(plan: &Plan) -> String {
    let text = serde_json::to_string_pretty(plan).expect("a plan is plain data");
    text.replace(&fixtures().display().to_string(), "[fixtures]")
}

#[test]
fn the_mini_pipeline_in_its_first_profile() {
    insta::assert_snapshot!("mini-small", shown(&mini(&options())));
}

#[test]
fn the_mini_pipeline_in_another_profile() {
    let options = CompileOptions { profile: Some("large".to_owned()), ..options() };
    insta::assert_snapshot!("mini-large", shown(&mini(&options)));
}

#[test]
fn set_reaches_parameters_after_the_profile() {
    let sets = vec![("seed".to_owned(), "99".to_owned()), ("extra".to_owned(), "true".to_owned())];
    let plan = mini(&CompileOptions { sets, profile: Some("large".to_owned()), ..options() });
    assert!(plan.nodes.iter().all(|node| node.seed == 99));
    assert!(plan.find("extra").is_some());
}

#[test]
fn what_is_missing_is_listed_by_kind() {
    let plan = mini(&CompileOptions { profile: Some("large".to_owned()), ..options() });
    let count = |kind| plan.missing.iter().filter(|missing| missing.what == kind).count();
    assert_eq!((count(MissingKind::Key), count(MissingKind::Device)), (2, 1), "{:#?}", plan.missing);
    assert!(plan.missing.iter().any(|missing| missing.message.contains("Org/Base")));
    let unknown = mini(&CompileOptions { gpus: None, profile: Some("large".to_owned()), ..options() });
    assert!(unknown.missing.iter().all(|missing| missing.what != MissingKind::Device));
    let rich = CompileOptions {
        gpus: Some(vec![80 << 30]),
        env_present: ["JUDGE_KEY", "UPLOAD_TOKEN"].map(str::to_owned).into(),
        profile: Some("large".to_owned()),
        ..options()
    };
    assert!(mini(&rich).missing.iter().all(|missing| missing.what == MissingKind::Data));
}

#[test]
fn the_skeleton_of_the_paper_compiles_in_both_profiles() {
    let file = fixtures().join("../../../../shared/full.skeleton.yaml");
    if !file.exists() {
        println!("skipped: needs ../shared/full.skeleton.yaml");
        return;
    }
    let nodes = |profile: &str| {
        let options = CompileOptions { profile: Some(profile.to_owned()), ..options() };
        compile(&file, &kinds::registry(), &options).unwrap_or_else(|error| panic!("{error}")).nodes.len()
    };
    assert_eq!((nodes("embedded"), nodes("paper")), (51, 49));
}

#[test]
fn a_script_that_is_not_declared_as_code_is_warned_of() {
    let text = "mpcc: 1\nstages:\n  a: { run: [python, run.py, '${outputs.o}'], outputs: { o: file } }\n";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.yaml");
    std::fs::write(&file, text).unwrap();
    std::fs::write(folder.path().join("run.py"), "").unwrap();
    let plan = compile(&file, &kinds::registry(), &options()).unwrap();
    assert_eq!(plan.warnings.iter().map(|warning| warning.code).collect::<Vec<_>>(), ["unseen-code"]);
    assert!(compile_text(text, &options()).unwrap().warnings.is_empty());
}

#[test]
fn the_schema_knows_every_kind_and_its_parameters() {
    let schema = json_schema(&kinds::registry());
    let text = schema.to_string();
    for word in ["scenes.generate", "threshold", "gpu_memory", "max_concurrency", "publish"] {
        assert!(text.contains(word), "{word}");
    }
    assert_references_resolve(&schema, &schema);
}

/// Every `$ref` of the schema points at something in it.
fn assert_references_resolve(root: &Value, part: &Value) {
    match part {
        Value::Object(map) => {
            if let Some(target) = map.get("$ref").and_then(Value::as_str) {
                assert!(root.pointer(target.trim_start_matches('#')).is_some(), "{target}");
            }
            map.values().for_each(|value| assert_references_resolve(root, value));
        }
        Value::Array(items) => items.iter().for_each(|item| assert_references_resolve(root, item)),
        _ => {}
    }
}

#[test]
fn the_first_example_of_the_reference_compiles_and_its_first_error_is_as_shown() {
    let page = std::fs::read_to_string(fixtures().join("../../../docs/pipeline.md")).expect("the reference");
    let block = |start: &str| -> String {
        let (_, rest) = page.split_once(start).expect("the block");
        rest.split_once("```").expect("its end").0.to_owned()
    };
    let (example, shown) = (block("```yaml\n"), block("```text\n"));
    assert_eq!(compile_text(&example, &options()).unwrap().nodes.len(), 3);
    let broken = example.replace("inputs: { dataset: world }", "inputs: { dataset: world.data }");
    let found = compile_text(&broken, &options()).unwrap_err();
    let first = found.iter().next().expect("a problem");
    let text = first.to_string().replace(&first.file.display().to_string(), "demo.yaml");
    assert_eq!(text.trim(), shown.trim());
}
