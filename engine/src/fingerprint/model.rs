//! The identity of a model: what decides its answers.

use mpcc_cache::{Artifact, ArtifactKind};
use serde_json::{Map, Value};

use crate::plan::ModelSource;

/// Settings of a model that cannot change an answer: where it is, how fast and at what price it is asked.
pub const OPERATIONAL: [&str; 20] = [
    "api_key_env",
    "base_url",
    "batch",
    "batch_size",
    "budget",
    "concurrency",
    "description",
    "device",
    "from",
    "headers_env",
    "max_concurrency",
    "price",
    "price_in",
    "price_out",
    "provider",
    "retries",
    "rpm",
    "threads",
    "timeout",
    "tpm",
];

/// `file:DIGEST` or `tree:DIGEST`.
pub(super) fn label(artifact: &Artifact) -> String {
    let kind = match artifact.kind {
        ArtifactKind::File => "file",
        ArtifactKind::Tree => "tree",
    };
    format!("{kind}:{}", artifact.digest)
}

/// The identity of a model whose weights are `weights`.
pub(super) fn identity(source: &ModelSource, weights: Option<&Artifact>) -> Value {
    let mut identity = Map::new();
    identity.insert("provider".to_owned(), serde_json::to_value(source.provider).expect("a provider is a word"));
    if let Some(weights) = weights {
        identity.insert("weights".to_owned(), Value::String(label(weights)));
    }
    let mut settings: Vec<_> = source.settings.iter().filter(|(name, value)| enters(name, value)).collect();
    settings.sort_by_key(|(name, _)| *name);
    identity.extend(settings.into_iter().map(|(name, value)| (name.clone(), value.clone())));
    Value::Object(identity)
}

fn enters(name: &str, value: &Value) -> bool {
    !value.is_null() && !OPERATIONAL.contains(&name)
}
