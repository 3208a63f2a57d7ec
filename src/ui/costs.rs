//! What a run cost, node by node, for people.

use mpcc_engine::journal::{NodeRecord, RunRecord};
use mpcc_engine::resources::format_size;
use mpcc_engine::stage::Spent;

use super::columns::columns;
use super::seconds;
use super::spent::{grouped, money};
use crate::commands::word;

/// The columns after the node's name, in the order of [`numbers`].
const TITLES: [&str; 9] = ["state", "wall", "CPU", "memory", "GPU memory", "requests", "tokens", "money", "attempts"];

/// One line a node and one for all. Columns in which nothing stands are left out.
pub(crate) fn table(run: &RunRecord) -> String {
    let totals = run.totals();
    let all = Numbers {
        wall_s: run.summary.map(|summary| summary.wall_s).or(Some(run.elapsed_s)),
        cpu_s: Some(totals.cpu_s),
        memory: Some(totals.peak_rss_bytes),
        gpu: Some(totals.gpu_peak_bytes),
        spent: Some(totals.spent),
        attempts: totals.attempts,
    };
    let mut rows = vec![TITLES.map(str::to_owned).to_vec()];
    rows.extend(run.nodes.iter().map(|node| numbers(word(node.status), &Numbers::of(node))));
    rows.push(numbers("", &all));
    let empty = |column: usize| rows[1..].iter().all(|row| row[column].is_empty());
    let kept: Vec<usize> = (0..TITLES.len()).filter(|&column| !empty(column)).collect();
    let names = ["node"].into_iter().chain(run.nodes.iter().map(|node| node.header.node.as_str())).chain(["in all"]);
    let lines: Vec<Vec<String>> = names
        .zip(&rows)
        .map(|(name, row)| [name.to_owned()].into_iter().chain(kept.iter().map(|&at| row[at].clone())).collect())
        .collect();
    columns(&lines)
}

struct Numbers {
    wall_s: Option<f64>,
    cpu_s: Option<f64>,
    memory: Option<u64>,
    gpu: Option<u64>,
    spent: Option<Spent>,
    attempts: u32,
}

impl Numbers {
    /// Those of this run: a cached node has none.
    fn of(node: &NodeRecord) -> Self {
        let ran = node.ran();
        Self {
            wall_s: node.wall_s.filter(|_| ran),
            cpu_s: node.cpu_s.filter(|_| ran),
            memory: node.peak_rss_bytes.filter(|_| ran),
            gpu: node.gpu_peak_bytes.filter(|_| ran),
            spent: node.spent.filter(|_| ran),
            attempts: if ran { node.attempts } else { 0 },
        }
    }
}

fn numbers(state: &str, of: &Numbers) -> Vec<String> {
    let time = |value: Option<f64>| value.map(seconds).unwrap_or_default();
    let size = |value: Option<u64>| value.filter(|bytes| *bytes > 0).map(format_size).unwrap_or_default();
    let count = |value: u64| if value > 0 { grouped(value) } else { String::new() };
    let spent = of.spent.unwrap_or_default();
    vec![
        state.to_owned(),
        time(of.wall_s),
        time(of.cpu_s),
        size(of.memory),
        size(of.gpu),
        count(spent.requests),
        count(spent.tokens()),
        if spent.cost > 0.0 { money(spent.cost) } else { String::new() },
        count(u64::from(of.attempts)),
    ]
}
