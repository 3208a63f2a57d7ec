//! What a run came to, over all its nodes.

use serde::Serialize;

use super::record::{NodeRecord, RunRecord, Status};
use crate::stage::Spent;

/// Sums and peaks over the nodes that this run executed, well or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Totals {
    /// Wall time of the last attempt of each node in seconds, added up: how long one after the other would take.
    pub wall_s: f64,
    /// CPU time of those attempts in seconds.
    pub cpu_s: f64,
    /// Most main memory of any node in bytes.
    pub peak_rss_bytes: u64,
    /// Most memory of any node on one GPU in bytes.
    pub gpu_peak_bytes: u64,
    /// What requests to served models came to.
    pub spent: Spent,
    /// Attempts begun.
    pub attempts: u32,
}

impl NodeRecord {
    /// Whether its numbers are of this run: those of a cached node are of an earlier one.
    pub fn ran(&self) -> bool {
        self.status != Status::Cached && self.attempts > 0
    }
}

impl RunRecord {
    /// What the run came to.
    pub fn totals(&self) -> Totals {
        let add = |all: Totals, node: &NodeRecord| Totals {
            wall_s: all.wall_s + node.wall_s.unwrap_or(0.0),
            cpu_s: all.cpu_s + node.cpu_s.unwrap_or(0.0),
            peak_rss_bytes: all.peak_rss_bytes.max(node.peak_rss_bytes.unwrap_or(0)),
            gpu_peak_bytes: all.gpu_peak_bytes.max(node.gpu_peak_bytes.unwrap_or(0)),
            spent: all.spent + node.spent.unwrap_or_default(),
            attempts: all.attempts + node.attempts,
        };
        self.nodes.iter().filter(|node| node.ran()).fold(Totals::default(), add)
    }
}
