//! Bytes, whatever they are, through the whole compiler: what the fuzz target and the test of random damage share.

use std::path::Path;

use mpcc_engine::plan::{CompileOptions, Plan, compile_bytes};
use mpcc_engine::registry::Registry;

/// Compiles `bytes` as a pipeline of the folder `at`. `None` when they do not compile. Panics when there is no plan and no
/// problem, or a problem without words or outside of the text.
pub(crate) fn feed(bytes: &[u8], at: &Path, registry: &Registry) -> Option<Plan> {
    // An absolute pattern with `**` is the user's wish to walk the disk; here nobody wishes it.
    if bytes.windows(2).any(|pair| pair == b"**") {
        return None;
    }
    let options = CompileOptions { gpus: Some(Vec::new()), cpus: 8, memory: 16 << 30, ..CompileOptions::default() };
    let lines = String::from_utf8_lossy(bytes).lines().count().max(1) + 1;
    match compile_bytes(&at.join("pipeline.yaml"), bytes.to_vec(), registry, &options) {
        Ok(plan) => Some(plan),
        Err(found) => {
            assert!(!found.is_empty(), "no plan and no problem");
            for problem in found.iter() {
                let whole = problem.to_string();
                assert!(!problem.message.is_empty() && (1..=lines).contains(&problem.line), "{whole}");
            }
            None
        }
    }
}
