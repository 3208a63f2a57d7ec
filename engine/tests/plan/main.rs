//! The pipeline language, from files to plans and diagnostics.

mod broken;
mod feed;
mod graph;
mod kinds;
mod mutate;
mod mutations;
mod sound;

use std::path::{Path, PathBuf};

use mpcc_engine::diagnostic::Diagnostics;
use mpcc_engine::plan::{CompileOptions, Plan, compile};

/// Options of a host with 8 CPUs and no GPU.
fn options() -> CompileOptions {
    CompileOptions { gpus: Some(Vec::new()), cpus: 8, memory: 16 << 30, ..CompileOptions::default() }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Compiles text as a file of a folder of its own.
fn compile_text(text: &str, options: &CompileOptions) -> Result<Plan, Diagnostics> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("pipeline.yaml");
    std::fs::write(&file, text).expect("a file in it");
    compile(&file, &kinds::registry(), options)
}
