//! What the caller of a run decides, and why a run does not begin.

use std::collections::BTreeSet;

use jiff::Timestamp;
use mpcc_cache::StoreError;

use crate::fingerprint::Numerics;
use crate::journal::JournalError;
use crate::plan::{Missing, MissingKind, NodeId};
use crate::resources::{Inventory, Unfit};

/// What the caller decides.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The nodes to bring up to date, with everything above them; see [`Plan::select`](crate::plan::Plan::select).
    pub nodes: BTreeSet<NodeId>,
    /// Nodes whose entries are ignored once.
    pub forced: BTreeSet<NodeId>,
    /// Go on with other branches after a failure.
    pub keep_going: bool,
    /// What the host has.
    pub inventory: Inventory,
    /// CPU cores to use, if not all.
    pub jobs: Option<u32>,
    /// The host's numerics classes.
    pub numerics: Numerics,
    /// The time now: names the run.
    pub started: Timestamp,
}

impl RunOptions {
    /// Brings `nodes` up to date on this host, beginning at `started`.
    pub fn new(nodes: BTreeSet<NodeId>, inventory: Inventory, started: Timestamp) -> Self {
        let numerics = Numerics::of(&inventory);
        Self { nodes, forced: BTreeSet::new(), keep_going: false, inventory, jobs: None, numerics, started }
    }
}

/// What a run is told while it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Start nothing new, ask what runs to end.
    Drain,
    /// Kill what runs.
    Kill,
}

/// Why a run did not begin, or broke off.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Data, keys or devices are not there; nothing has run.
    #[error("{}", list(_0.iter().map(|missing| format!("{}: {}", missing.needed_by, missing.message))))]
    Missing(Vec<Missing>),
    /// Nodes ask for more than this host has; nothing has run.
    #[error("{}", list(_0.iter().map(|(node, unfit)| format!("{node} {unfit}"))))]
    Unfit(Vec<(String, Unfit)>),
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn list(lines: impl Iterator<Item = String>) -> String {
    lines.collect::<Vec<_>>().join("\n")
}

impl RunError {
    /// The exit code: 2 when declared data or a key is missing, 3 for the machine.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Missing(missing) if missing.iter().any(|one| one.what != MissingKind::Device) => 2,
            _ => 3,
        }
    }
}
