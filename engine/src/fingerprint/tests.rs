use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use mpcc_cache::{Digest, Store, StoreOptions};
use serde_json::{Value, json};

use super::*;
use crate::plan::{Action, Command, ModelSource, Node, NodeId, PlannedInput, Source};
use crate::resources::Resources;
use crate::run::tests::{node, plan, set_word};
use crate::stage::{Bound, Provider};

struct Lab {
    folder: tempfile::TempDir,
    store: Store,
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = StoreOptions { sync: false, ..StoreOptions::default() };
        Self { store: Store::open(&folder.path().join("store"), options).unwrap(), folder }
    }

    fn file(&self, name: &str, text: &str) -> std::path::PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    fn fingerprinter(&self, node: Node) -> Fingerprinter {
        self.on(node, "cpu/f32/avx2")
    }

    fn on(&self, node: Node, cpu: &str) -> Fingerprinter {
        let numerics = Numerics { cpu: cpu.to_owned(), gpu: "cuda/bf16/sm90".to_owned() };
        Fingerprinter::new(Arc::new(plan(vec![node])), self.store.clone(), numerics)
    }

    fn resolve(&self, node: Node) -> Result<Resolved, KeyError> {
        self.fingerprinter(node).resolve(NodeId(0), &Outputs::new())
    }

    fn digest(&self, node: Node) -> Digest {
        self.resolve(node).unwrap().recipe.digest()
    }

    fn fields(&self, node: Node) -> BTreeMap<String, Value> {
        self.resolve(node).unwrap().recipe.fields.into_iter().collect()
    }
}

fn reading(sources: Vec<Source>, list: bool) -> Node {
    Node { inputs: vec![PlannedInput { port: "x".to_owned(), list, sources }], ..node("a", &[]) }
}

fn file(path: &Path) -> Source {
    Source::File { path: path.to_owned() }
}

fn model(name: &str, settings: Value) -> ModelSource {
    let Value::Object(settings) = settings else { panic!("an object") };
    ModelSource { name: name.to_owned(), matrix: Vec::new(), provider: Provider::Openai, from: None, settings }
}

fn asking(model: ModelSource) -> Node {
    reading(vec![Source::Model(Box::new(model))], false)
}

#[test]
fn what_cannot_change_outputs_does_not_enter() {
    let lab = Lab::new();
    let plain = node("a", &[]);
    let digest = lab.digest(plain.clone());
    let mut others = vec![plain.clone(); 9];
    others[0].name = "b[x=1]".to_owned();
    others[1].resources = Resources { cpus: 8, memory: 1, gpus: 1, gpu_memory: 1 };
    others[2].retries = 3;
    others[3].timeout_s = 9;
    others[4].executor = "slurm".to_owned();
    others[5].secrets = vec!["TOKEN".to_owned()];
    others[6].outputs[0].publish = Some("/elsewhere".into());
    others[7].seed = 99;
    others[8].matrix = vec![("split".to_owned(), json!("ood"))];
    for other in others {
        assert_eq!(lab.digest(other.clone()), digest, "{other:?}");
    }
}

#[test]
fn what_decides_outputs_enters() {
    let lab = Lab::new();
    let digest = lab.digest(node("a", &[]));
    let mut word = node("a", &[]);
    set_word(&mut word, "b");
    assert_ne!(lab.digest(word), digest);
    let with = |change: fn(&mut u32, &mut bool, &mut bool)| {
        let mut node = node("a", &[]);
        let Action::Builtin { version, numerics, seeded, .. } = &mut node.action else { panic!() };
        change(version, numerics, seeded);
        node
    };
    assert_ne!(lab.digest(with(|version, _, _| *version = 2)), digest);
    let seeded = with(|_, _, seeded| *seeded = true);
    assert_ne!(lab.digest(seeded.clone()), lab.digest(Node { seed: 18, ..seeded }));
    let numeric = with(|_, numerics, _| *numerics = true);
    let gpu = Node { resources: Resources { gpus: 1, ..Resources::default() }, ..numeric.clone() };
    assert_eq!(lab.fields(numeric.clone())["numerics"], "cpu/f32/avx2");
    assert_eq!(lab.fields(gpu)["numerics"], "cuda/bf16/sm90");
    let elsewhere = lab.on(numeric.clone(), "cpu/f32/avx512").resolve(NodeId(0), &Outputs::new()).unwrap();
    assert_ne!(elsewhere.recipe.digest(), lab.digest(numeric));
}

#[test]
fn external_data_counts_by_content_not_by_place() {
    let lab = Lab::new();
    let (here, there, other) = (lab.file("a.txt", "data"), lab.file("b/c.txt", "data"), lab.file("d.txt", "dota"));
    let digest = |path: &Path| lab.digest(reading(vec![file(path)], false));
    assert_eq!(digest(&here), digest(&there));
    assert_ne!(digest(&here), digest(&other));
    let gone = lab.resolve(reading(vec![file(&lab.folder.path().join("gone.txt"))], false)).unwrap_err();
    assert!(gone.to_string().ends_with("gone.txt is not there"), "{gone}");
}

#[test]
fn a_list_carries_coordinates_and_a_pattern_the_names() {
    let lab = Lab::new();
    for name in ["data/b.csv", "data/deep/a.csv", "data/c.txt"] {
        lab.file(name, name);
    }
    let pattern = lab.folder.path().join("data/**/*.csv").display().to_string();
    let fields = lab.fields(reading(vec![Source::Glob { pattern }], true));
    let from: Vec<_> = fields["inputs.x"].as_array().unwrap().iter().map(|one| one["from"]["file"].clone()).collect();
    assert_eq!(from, ["b.csv", "deep/a.csv"]);
    let pattern = lab.folder.path().join("data/*.png").display().to_string();
    let none = lab.resolve(reading(vec![Source::Glob { pattern }], true)).unwrap_err();
    assert!(matches!(none, KeyError::NoMatch { .. }), "{none}");
}

#[test]
fn a_models_identity_is_what_decides_its_answers() {
    let lab = Lab::new();
    let digest = |settings: Value| lab.digest(asking(model("m", settings)));
    let plain = digest(json!({ "model": "gpt" }));
    let fast = json!({ "max_concurrency": 9, "rpm": 3, "base_url": "http://u:p@h", "api_key_env": "K", "model": "gpt", "budget": 2 });
    assert_eq!(digest(fast), plain);
    assert_eq!(lab.digest(asking(model("other name", json!({ "model": "gpt", "system": null })))), plain);
    for other in [
        json!({ "model": "gpt2" }),
        json!({ "model": "gpt", "revision": "1" }),
        json!({ "model": "gpt", "system": "Be brief." }),
        json!({ "model": "gpt", "something_new": 1 }),
    ] {
        assert_ne!(digest(other), plain);
    }
    let weights = |text| {
        let dir = lab.file(&format!("{text}/model.safetensors"), text).parent().unwrap().to_owned();
        asking(ModelSource {
            provider: Provider::Local,
            from: Some(Source::Dir { path: dir }),
            ..model("m", json!({}))
        })
    };
    assert_ne!(lab.digest(weights("one")), lab.digest(weights("two")));
}

#[test]
fn a_models_limit_reaches_the_stage_but_not_the_recipe() {
    let lab = Lab::new();
    let fingerprinter = lab.fingerprinter(asking(model("m", json!({ "max_concurrency": 16 }))));
    let resolved = fingerprinter.resolve(NodeId(0), &Outputs::new()).unwrap();
    let bound = fingerprinter.bind(&resolved).unwrap();
    let Bound::Model(model) = &bound["x"][0] else { panic!("a model") };
    assert_eq!(model.settings["max_concurrency"], 16);
    assert_eq!(model.identity, json!({ "provider": "openai" }));
}

#[test]
fn a_commands_recipe_is_readable_and_knows_its_code() {
    let lab = Lab::new();
    let script = lab.file("code/dedup.py", "print()");
    let command = Command {
        kind: Some("text.dedup".to_owned()),
        argv: vec!["python".to_owned(), "dedup.py".to_owned(), "${inputs.x}".to_owned()],
        shell: false,
        params: json!({ "threshold": 0.9 }),
        each: None,
        env: [("LANG".to_owned(), "C".to_owned())].into(),
        code: vec!["dedup.py".into()],
        cwd: script.parent().unwrap().to_owned(),
    };
    let stage = Node { action: Action::Command(command), ..node("a", &[]) };
    let fingerprinter = lab.fingerprinter(stage.clone());
    let resolved = fingerprinter.resolve(NodeId(0), &Outputs::new()).unwrap();
    let names: Vec<_> = resolved.recipe.fields.iter().map(|(name, _)| name.as_str()).collect();
    let expected = ["kind", "command", "outputs.y", "params.threshold", "env.LANG", "code.dedup.py", "inputs.x"];
    assert_eq!(names, expected);
    fingerprinter.recheck(&resolved).unwrap();
    std::fs::write(&script, "print(1)").unwrap();
    assert!(matches!(fingerprinter.recheck(&resolved), Err(KeyError::Changed { .. })));
    assert_ne!(lab.digest(stage), resolved.recipe.digest());
}

#[test]
fn what_is_above_and_unknown_is_said() {
    let lab = Lab::new();
    let error = lab.fingerprinter(node("a", &[0])).resolve(NodeId(0), &Outputs::new()).unwrap_err();
    assert_eq!(error.to_string(), "output `y` of `a` is not known");
}
