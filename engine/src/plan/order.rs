//! Order: cycles are reported with their path, everything else is sorted.

use std::collections::{BTreeMap, BTreeSet};

use petgraph::algo::tarjan_scc;
use petgraph::graph::{DiGraph, NodeIndex};

/// The nodes of every cycle, each a path that ends where it begins. `edges` holds, for each node, what it needs.
pub(super) fn cycles(edges: &BTreeMap<usize, BTreeSet<usize>>) -> Vec<Vec<usize>> {
    let mut graph: DiGraph<usize, ()> = DiGraph::new();
    let indices: BTreeMap<usize, NodeIndex> = edges.keys().map(|&node| (node, graph.add_node(node))).collect();
    for (node, needs) in edges {
        for need in needs.iter().filter_map(|need| indices.get(need)) {
            graph.add_edge(*need, indices[node], ());
        }
    }
    let mut found: Vec<Vec<usize>> = tarjan_scc(&graph)
        .into_iter()
        .map(|group| group.into_iter().map(|index| graph[index]).collect::<BTreeSet<usize>>())
        .filter(|group| group.len() > 1 || group.iter().any(|node| edges[node].contains(node)))
        .map(|group| path(&group, edges))
        .collect();
    found.sort();
    found
}

/// The shortest way from the first node of a strongly connected group back to itself, along the flow of data.
fn path(group: &BTreeSet<usize>, edges: &BTreeMap<usize, BTreeSet<usize>>) -> Vec<usize> {
    let start = *group.first().expect("a group has a node");
    // Backwards, from consumer to what it needs, until the start comes up again.
    let mut next: BTreeMap<usize, usize> = BTreeMap::new();
    let mut front = vec![start];
    while !next.contains_key(&start) {
        let mut following = Vec::new();
        for node in front {
            for &need in edges[&node].iter().filter(|need| group.contains(need)) {
                if let std::collections::btree_map::Entry::Vacant(slot) = next.entry(need) {
                    slot.insert(node);
                    following.push(need);
                }
            }
        }
        front = following;
    }
    let mut path = vec![start];
    loop {
        let after = next[path.last().expect("the path begins with the start")];
        path.push(after);
        if after == start {
            return path;
        }
    }
}

/// All nodes such that each comes after what it needs; where that leaves a choice, the lower number comes first. The
/// graph has no cycle.
pub(super) fn sorted(edges: &BTreeMap<usize, BTreeSet<usize>>) -> Vec<usize> {
    let mut open: BTreeMap<usize, usize> = edges.iter().map(|(node, needs)| (*node, needs.len())).collect();
    let mut users: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (node, needs) in edges {
        needs.iter().for_each(|need| users.entry(*need).or_default().push(*node));
    }
    let mut ready: BTreeSet<usize> = open.iter().filter(|(_, needs)| **needs == 0).map(|(node, _)| *node).collect();
    let mut order = Vec::with_capacity(edges.len());
    while let Some(node) = ready.pop_first() {
        order.push(node);
        for user in users.remove(&node).unwrap_or_default() {
            let left = open.get_mut(&user).expect("users are nodes");
            *left -= 1;
            if *left == 0 {
                ready.insert(user);
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(usize, &[usize])]) -> BTreeMap<usize, BTreeSet<usize>> {
        edges.iter().map(|(node, needs)| (*node, needs.iter().copied().collect())).collect()
    }

    #[test]
    fn finds_the_path_of_a_cycle() {
        assert_eq!(cycles(&graph(&[(0, &[2]), (1, &[0]), (2, &[1]), (3, &[2])])), [[0, 1, 2, 0]]);
        assert_eq!(cycles(&graph(&[(0, &[0])])), [[0, 0]]);
        assert_eq!(cycles(&graph(&[(0, &[1]), (1, &[0]), (2, &[3]), (3, &[2])])), [[0, 1, 0], [2, 3, 2]]);
        assert!(cycles(&graph(&[(0, &[]), (1, &[0])])).is_empty());
    }

    #[test]
    fn sorts_by_need_then_by_number() {
        assert_eq!(sorted(&graph(&[(0, &[3]), (1, &[]), (2, &[0]), (3, &[])])), [1, 3, 0, 2]);
    }
}
