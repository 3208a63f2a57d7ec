//! The tables a run ends with: those of its nodes that nothing else depends on.

use std::collections::BTreeSet;

use mpcc_engine::cache::Store;
use mpcc_engine::journal::{NodeRecord, RunRecord};
use mpcc_engine::plan::{NodeId, Plan};
use mpcc_engine::port::PortType;

/// The file of a table that is for people.
const MARKDOWN: &str = "table.md";

/// The text of every table in declaration order, each under its node's name.
pub(crate) fn tables(plan: &Plan, run: &RunRecord, store: &Store) -> Vec<String> {
    let read: BTreeSet<NodeId> = plan.nodes.iter().flat_map(|node| node.parents()).collect();
    let mut terminal: Vec<_> =
        plan.nodes.iter().enumerate().filter(|(id, _)| !read.contains(&NodeId(*id))).map(|(_, node)| node).collect();
    terminal.sort_by_key(|node| node.line);
    let record = |name: &str| run.node(name);
    terminal
        .into_iter()
        .filter_map(|node| Some((node, record(&node.name)?)))
        .flat_map(|(node, record)| {
            let ports = node.outputs.iter().filter(|output| output.port.ty == PortType::Table);
            ports.filter_map(|output| table(record, &output.port.name, store)).collect::<Vec<_>>()
        })
        .collect()
}

fn table(node: &NodeRecord, port: &str, store: &Store) -> Option<String> {
    let artifact = node.outputs.get(port)?;
    let text = std::fs::read_to_string(store.locate(artifact).ok()?.join(MARKDOWN)).ok()?;
    Some(format!("\n{}\n\n{}", node.header.node, text.trim_end()))
}
