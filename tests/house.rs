//! The rules of docs/architecture.md that a test can see.

use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `folder`, test modules included.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut open = vec![root().join(folder)];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "{folder} has no sources");
    found
}

/// The code of a file: comments and the test module at its end left out.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn forbid(folder: &str, words: &[&str]) {
    for (path, text) in sources(folder) {
        let code = code(&text);
        for word in words {
            let line = code.lines().find(|line| line.contains(word));
            assert!(line.is_none(), "{} names `{word}`: {}", path.display(), line.unwrap_or_default().trim());
        }
    }
}

/// A newcomer follows the paths that docs/architecture.md names.
#[test]
fn every_path_in_the_architecture_is_there() {
    let text = std::fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let quoted = text.split('`').skip(1).step_by(2);
    let crates = ["src/", "engine/", "cache/", "stages/", "pipelines/", "tests/", "docs/"];
    let paths: Vec<&str> = quoted.filter(|word| crates.iter().any(|name| word.starts_with(name))).collect();
    assert!(paths.len() > 25, "{paths:?}");
    for path in paths {
        let there = root().join(path);
        assert!(there.exists() || there.with_extension("rs").exists(), "docs/architecture.md names {path}");
    }
}

#[test]
fn dependencies_run_one_way() {
    forbid("engine/src", &["candle", "mpcc_stages", "mpcc_models"]);
    forbid("cache/src", &["mpcc_engine", "mpcc_stages", "serde_yaml", "candle"]);
    forbid("stages/models/src", &["mpcc_engine", "mpcc_stages", "mpcc_cache"]);
}

#[test]
fn the_engine_names_no_built_in_kind() {
    let kinds: Vec<String> = mpcc_stages::registry().kinds().map(|kind| format!("\"{}\"", kind.name)).collect();
    assert!(kinds.len() > 10);
    forbid("engine/src", &kinds.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn only_the_program_prints_reads_the_environment_or_exits() {
    let words = ["println!", "eprintln!", "print!(", "env::var", "process::exit"];
    for folder in ["engine/src", "cache/src", "stages/src", "stages/models/src"] {
        forbid(folder, &words);
    }
}

#[test]
fn the_scheduler_is_pure() {
    forbid("engine/src/scheduler", &["std::fs", "tokio", "Instant", "SystemTime", "std::thread"]);
}

#[test]
fn models_are_shown_items_only_through_the_mask() {
    for (path, text) in sources("stages/src") {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let code = code(&text);
        let opens = code.contains(".open_rgb(") || code.contains(".image_bytes(");
        let allowed = ["dataset.rs", "mask.rs", "request.rs", "contact.rs", "validate.rs", "coco.rs", "lessons.rs"];
        assert!(!opens || allowed.contains(&name.as_str()), "{} opens pictures without a mask", path.display());
    }
}
