//! What a node needs from outside before it can begin.

use crate::plan::{ModelSource, Node, Source};

/// The names under which something may be missing for a node: its own, its stage's, its models'.
pub(crate) fn names_of(node: &Node) -> Vec<&str> {
    let models = models(node).map(|model| model.name.as_str());
    [node.name.as_str(), node.stage.as_str()].into_iter().chain(models).collect()
}

/// The models that feed a node.
fn models(node: &Node) -> impl Iterator<Item = &ModelSource> {
    node.inputs.iter().flat_map(|input| &input.sources).filter_map(|source| match source {
        Source::Model(model) => Some(model.as_ref()),
        _ => None,
    })
}
