//! What the program reads from its environment, in one place.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;

/// The value of a variable, if it is set and not empty.
#[allow(clippy::disallowed_methods, reason = "the program reads the environment so that nothing below it has to")]
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Secrets by the names of their variables.
pub(crate) fn secrets() -> mpcc_engine::asking::Secrets {
    std::sync::Arc::new(variable)
}

/// Names of the variables that are set and not empty.
pub(crate) fn names() -> BTreeSet<String> {
    let set = std::env::vars_os().filter(|(_, value)| !value.is_empty());
    set.filter_map(|(name, _)| name.into_string().ok()).collect()
}

/// What the providers of remote caches read: credentials and endpoints.
#[cfg(feature = "remote")]
pub(crate) fn of_providers() -> Vec<(String, String)> {
    let theirs = |name: &str| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|prefix| name.starts_with(prefix));
    let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    std::env::vars_os().filter_map(text).filter(|(name, value)| theirs(name) && !value.is_empty()).collect()
}

/// Where downloaded models of the Hugging Face hub lie.
pub(crate) fn hub_cache() -> Option<PathBuf> {
    let explicit = variable("HF_HUB_CACHE").map(PathBuf::from);
    let home = || variable("HF_HOME").map(|home| PathBuf::from(home).join("hub"));
    let default = || variable("HOME").map(|home| PathBuf::from(home).join(".cache/huggingface/hub"));
    explicit.or_else(home).or_else(default)
}

/// What children get: the whole environment without the secrets, and the secrets apart.
pub(crate) struct ForChildren {
    /// The environment without secrets.
    pub(crate) open: Vec<(OsString, OsString)>,
    /// Secrets by name; those that are set.
    pub(crate) secrets: BTreeMap<String, String>,
}

/// Splits the environment: `names` are the secrets of the pipeline.
pub(crate) fn for_children(names: &BTreeSet<String>) -> ForChildren {
    let secret = |name: &OsString| name.to_str().is_some_and(|name| names.contains(name));
    ForChildren {
        open: std::env::vars_os().filter(|(name, _)| !secret(name)).collect(),
        secrets: names.iter().filter_map(|name| Some((name.clone(), variable(name)?))).collect(),
    }
}

/// A text that changes with every build of this program.
pub(crate) fn program() -> String {
    use std::os::unix::fs::MetadataExt;
    let file = std::env::current_exe().and_then(|path| path.metadata());
    let facts = file.map(|file| (file.ino(), file.size(), file.mtime(), file.mtime_nsec()));
    format!("{} {facts:?}", env!("CARGO_PKG_VERSION"))
}

/// The first of the PATH's folders that holds `program`.
pub(crate) fn find_program(program: &str) -> Option<PathBuf> {
    let path = variable("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}
