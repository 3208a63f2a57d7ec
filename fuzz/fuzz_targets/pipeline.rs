//! Any bytes as a pipeline: a plan or a list of problems with sound places comes out, never a panic and never a hang.
//!
//! The entry and the kinds are those of the engine's own tests, which feed it random damage on every run.

#![no_main]

#[path = "../../engine/tests/plan/feed.rs"]
mod feed;
#[path = "../../engine/tests/plan/kinds.rs"]
mod kinds;

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mpcc_engine::registry::Registry;

static KINDS: LazyLock<Registry> = LazyLock::new(kinds::registry);

fuzz_target!(|bytes: &[u8]| {
    // A folder that is not there: whatever a pipeline names is missing, and nothing is read.
    feed::feed(bytes, Path::new("/nowhere"), &KINDS);
});
