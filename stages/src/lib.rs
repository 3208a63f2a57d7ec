//! The stage kinds of mpcc: the paper's stages and the embedded world. One file per family of kinds.

pub mod record;

use mpcc_engine::registry::Registry;

/// Every built-in kind: the one list.
pub fn registry() -> Registry {
    Registry::new()
}
