//! Which nodes of a plan a command means.

use std::collections::BTreeSet;

use crate::plan::{ModelSource, Node, NodeId, Plan, Source};

/// A name that fits no node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no node or stage is called `{name}`{}", hint(nearest.as_deref()))]
pub struct SelectError {
    /// What was asked for.
    pub name: String,
    /// The nearest name there is.
    pub nearest: Option<String>,
}

fn hint(nearest: Option<&str>) -> String {
    nearest.map(|nearest| format!("; did you mean `{nearest}`?")).unwrap_or_default()
}

/// The nodes that must end before `node` begins.
pub fn parents(node: &Node) -> BTreeSet<NodeId> {
    node.needs.iter().copied().chain(data_parents(node)).collect()
}

/// The nodes whose outputs feed `node`.
pub(crate) fn data_parents(node: &Node) -> BTreeSet<NodeId> {
    node.inputs.iter().flat_map(|input| &input.sources).filter_map(made_by).collect()
}

fn made_by(source: &Source) -> Option<NodeId> {
    match source {
        Source::Output { node, .. } => Some(*node),
        Source::Model(model) => model.from.as_ref().and_then(made_by),
        Source::File { .. } | Source::Dir { .. } | Source::Glob { .. } => None,
    }
}

/// The names under which something may be missing for a node: its own, its stage's, its models'.
pub(crate) fn names_of(node: &Node) -> Vec<&str> {
    let models = models(node).map(|model| model.name.as_str());
    [node.name.as_str(), node.stage.as_str()].into_iter().chain(models).collect()
}

/// The models that feed a node.
pub(super) fn models(node: &Node) -> impl Iterator<Item = &ModelSource> {
    node.inputs.iter().flat_map(|input| &input.sources).filter_map(|source| match source {
        Source::Model(model) => Some(model.as_ref()),
        _ => None,
    })
}

/// The nodes called `name`: one node, or all nodes of a stage.
pub fn select_named(plan: &Plan, name: &str) -> Result<BTreeSet<NodeId>, SelectError> {
    let fits = |fit: &dyn Fn(&Node) -> bool| -> BTreeSet<NodeId> {
        plan.nodes.iter().enumerate().filter(|(_, node)| fit(node)).map(|(id, _)| NodeId(id)).collect()
    };
    let found = fits(&|node| node.name == name);
    let found = if found.is_empty() { fits(&|node| node.stage == name) } else { found };
    if found.is_empty() {
        return Err(SelectError { name: name.to_owned(), nearest: nearest(plan, name) });
    }
    Ok(found)
}

fn nearest(plan: &Plan, name: &str) -> Option<String> {
    let names = plan.nodes.iter().flat_map(|node| [&node.name, &node.stage]);
    let scored = names.map(|known| (strsim::jaro_winkler(known, name), known));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 > 0.7).then(|| best.1.clone())
}

/// The nodes to bring up to date for what was asked: `NODE` brings what it needs, `NODE+` also all that depends on it;
/// nothing asked means everything.
pub fn select(plan: &Plan, names: &[String]) -> Result<BTreeSet<NodeId>, SelectError> {
    if names.is_empty() {
        return Ok((0..plan.nodes.len()).map(NodeId).collect());
    }
    let mut wanted = BTreeSet::new();
    for name in names {
        match name.strip_suffix('+') {
            // A name may end in a plus of its own.
            Some(base) if select_named(plan, name).is_err() => {
                wanted.extend(with_below(plan, select_named(plan, base)?))
            }
            _ => wanted.extend(select_named(plan, name)?),
        }
    }
    Ok(with_above(plan, wanted))
}

fn with_below(plan: &Plan, mut found: BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    // Nodes are in topological order: one pass down reaches everything.
    for (id, node) in plan.nodes.iter().enumerate() {
        if parents(node).iter().any(|parent| found.contains(parent)) {
            found.insert(NodeId(id));
        }
    }
    found
}

/// `nodes` and everything above them.
pub(crate) fn with_above(plan: &Plan, mut nodes: BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    for (id, node) in plan.nodes.iter().enumerate().rev() {
        if nodes.contains(&NodeId(id)) {
            nodes.extend(parents(node));
        }
    }
    nodes
}
