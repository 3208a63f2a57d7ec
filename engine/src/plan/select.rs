//! Looking into a plan: by name, by selector, along its edges.

use std::collections::BTreeSet;

use petgraph::graph::{DiGraph, NodeIndex};
use serde_json::Value;

use super::selector::parse;
use super::{Node, NodeId, Plan, Source};
use crate::spec::source::suggestion;

/// Why one node needs another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edge {
    /// Data flows into this input port.
    Input(String),
    /// `needs:`, order alone.
    Need,
}

/// A name on the command line that no node answers to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}", help.as_ref().map(|help| format!("; {help}")).unwrap_or_default())]
pub struct SelectError {
    /// What is wrong.
    pub message: String,
    /// What was probably meant.
    pub help: Option<String>,
}

impl Source {
    /// The nodes behind a source: its own, or the one that makes the model.
    pub fn node(&self) -> Option<NodeId> {
        match self {
            Self::Output { node, .. } => Some(*node),
            Self::Model(model) => model.from.as_ref().and_then(Source::node),
            Self::File { .. } | Self::Dir { .. } | Self::Glob { .. } => None,
        }
    }
}

impl Node {
    /// The nodes that must end before it begins, ascending.
    pub fn parents(&self) -> BTreeSet<NodeId> {
        self.needs.iter().copied().chain(self.data_parents()).collect()
    }

    /// The nodes whose outputs feed it, ascending.
    pub fn data_parents(&self) -> BTreeSet<NodeId> {
        self.inputs.iter().flat_map(|input| &input.sources).filter_map(Source::node).collect()
    }
}

impl Plan {
    /// The node `id`. Ids come from this plan.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// Every id, in topological order.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len()).map(NodeId)
    }

    /// The node whose whole name is `name`.
    pub fn find(&self, name: &str) -> Option<NodeId> {
        self.nodes.iter().position(|node| node.name == name).map(NodeId)
    }

    /// The nodes `id` needs, each with why, in the order of its inputs.
    pub fn edges_into(&self, id: NodeId) -> Vec<(NodeId, Edge)> {
        let node = self.node(id);
        let inputs = node.inputs.iter().flat_map(|input| input.sources.iter().map(move |source| (input, source)));
        let data = inputs.filter_map(|(input, source)| Some((source.node()?, Edge::Input(input.port.clone()))));
        data.chain(node.needs.iter().map(|need| (*need, Edge::Need))).collect()
    }

    /// The nodes that need `id`, ascending.
    pub fn dependents(&self, id: NodeId) -> Vec<NodeId> {
        self.ids().filter(|other| self.node(*other).parents().contains(&id)).collect()
    }

    /// The plan as a graph, edges along the flow of data.
    pub fn graph(&self) -> DiGraph<NodeId, Edge> {
        let mut graph = DiGraph::new();
        let indices: Vec<NodeIndex> = self.ids().map(|id| graph.add_node(id)).collect();
        for id in self.ids() {
            for (need, edge) in self.edges_into(id) {
                graph.add_edge(indices[need.0], indices[id.0], edge);
            }
        }
        graph
    }

    /// The nodes a name stands for: a node's name, a stage (all its nodes), or `stage[k=v]` (those that match).
    pub fn matching(&self, name: &str) -> Result<Vec<NodeId>, SelectError> {
        if let Some(id) = self.find(name) {
            return Ok(vec![id]);
        }
        let wrong = |message: String, help| SelectError { message, help };
        let selector = parse(name).map_err(|message| wrong(message, None))?;
        if let Some(port) = selector.port {
            let help = Some("name a node without its port".to_owned());
            return Err(wrong(format!("`{name}` names the port `{port}`, not a node"), help));
        }
        let fits = |node: &Node| node.stage == selector.stage && has_all(node, &selector.fixed);
        let found: Vec<NodeId> = self.ids().filter(|id| fits(self.node(*id))).collect();
        if found.is_empty() {
            let names = self.nodes.iter().flat_map(|node| [node.name.as_str(), node.stage.as_str()]);
            let known: Vec<&str> = names.collect::<BTreeSet<_>>().into_iter().collect();
            return Err(wrong(format!("the plan has no node `{name}`"), suggestion(name, &known)));
        }
        Ok(found)
    }

    /// The nodes to run for what was named: `NODE` brings what it needs, `NODE+` also all that depends on it and what
    /// that needs. No names at all means every node.
    pub fn select(&self, names: &[String]) -> Result<BTreeSet<NodeId>, SelectError> {
        if names.is_empty() {
            return Ok(self.ids().collect());
        }
        let mut wanted = BTreeSet::new();
        for name in names {
            let (name, with_dependents) = name.strip_suffix('+').map_or((name.as_str(), false), |name| (name, true));
            let found = self.matching(name)?;
            wanted.extend(found.iter().copied());
            if with_dependents {
                wanted.extend(self.below(&found));
            }
        }
        Ok(self.above(wanted))
    }

    /// Everything that depends on `roots`, themselves included. Needs come before users, so one pass is enough.
    pub fn below(&self, roots: &[NodeId]) -> BTreeSet<NodeId> {
        let mut all: BTreeSet<NodeId> = roots.iter().copied().collect();
        for id in self.ids() {
            if self.node(id).parents().iter().any(|need| all.contains(need)) {
                all.insert(id);
            }
        }
        all
    }

    /// `nodes` and everything that they need. Needs come before users, so one pass up is enough.
    pub fn above(&self, mut nodes: BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        for (id, node) in self.nodes.iter().enumerate().rev() {
            if nodes.contains(&NodeId(id)) {
                nodes.extend(node.parents());
            }
        }
        nodes
    }
}

fn has_all(node: &Node, fixed: &[(&str, &str)]) -> bool {
    fixed.iter().all(|(key, want)| {
        let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        node.matrix.iter().any(|(known, value)| known == key && shown(value) == *want)
    })
}
