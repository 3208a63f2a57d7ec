//! The shipped pipelines damaged in known places: what is said, where, and what is suggested. The damage and the judgement are
//! the engine's (`engine/tests/plan/mutate.rs`); the kinds here are the real ones.

#[path = "../engine/tests/plan/mutate.rs"]
mod mutate;

use mpcc_engine::plan::{CompileOptions, compile_bytes};

use crate::cli::bench::root;

#[test]
fn damage_in_a_shipped_pipeline_is_reported_there_with_what_was_meant() {
    let registry = mpcc_stages::registry();
    let mut total = 0;
    for name in [
        "smoke.yaml",
        "full.yaml",
        "coco.yaml",
        "examples/kinds.yaml",
        "examples/lora.yaml",
        "examples/records.yaml",
        "examples/shell.yaml",
    ] {
        let file = root().join("pipelines").join(name);
        let text = std::fs::read_to_string(&file).unwrap();
        // Without a model and a curation half of coco.yaml is switched off, and nobody looks at what is.
        let text = text.replace("  model: none ", "  model: some ").replace("  decisions: none ", "  decisions: some ");
        // The machine is passed in, so the answer is the same on every host.
        let options = |profile: Option<&str>| CompileOptions {
            profile: profile.map(str::to_owned),
            gpus: Some(Vec::new()),
            cpus: 8,
            memory: 64 << 30,
            ..CompileOptions::default()
        };
        let tally = mutate::hold(name, &text, 17, |bytes, profile| {
            compile_bytes(&file, bytes.to_vec(), &registry, &options(profile))
        });
        assert!(tally.harmless * 10 < tally.total(), "{name}: {tally:?}");
        total += tally.total();
    }
    assert!(total > 1000, "{total}");
}
