//! Rehearsals: `mpcc plan` runs a stage up to the point where it would ask, and counts.
//!
//! The stage runs as ever, with its real inputs and the real memo, but writes to scratch space. When it announces what it is
//! about to ask and the memo does not have all of it, it ends there. What it would ask after those answers is not known, so the
//! count is that of its first step with something open.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use mpcc_cache::{Store, StoreError};
use serde::{Deserialize, Serialize};

use super::Asking;
use crate::command;
use crate::job::JobOutput;
use crate::plan::{Action, Node};
use crate::registry::Registry;
use crate::run::job_outputs;
use crate::stage::{Bound, Context, Note, NoteSink, StageError};
use crate::worker::builtin;

/// What a stage would ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Asks {
    /// Requests or records in all.
    pub total: u64,
    /// Those that the memo does not have.
    pub missing: u64,
    /// What the missing ones will cost, in dollars, when that can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dollars: Option<f64>,
    /// Whether that cost is the mean of recorded requests; otherwise it is the most they can cost.
    #[serde(default)]
    pub recorded: bool,
    /// What is counted: requests to models, or records of a record stage.
    #[serde(default)]
    pub records: bool,
}

impl Asks {
    /// Both together.
    pub fn and(self, other: Self) -> Self {
        let dollars = match (self.dollars, other.dollars) {
            (None, None) => None,
            (a, b) => Some(a.unwrap_or(0.0) + b.unwrap_or(0.0)),
        };
        Self {
            total: self.total + other.total,
            missing: self.missing + other.missing,
            dollars,
            recorded: (self.recorded || self.dollars.is_none()) && (other.recorded || other.dollars.is_none()),
            records: self.records && other.records,
        }
    }
}

/// Collects what a stage announces.
#[derive(Default)]
pub struct Rehearsal {
    asks: Mutex<Option<Asks>>,
}

impl Rehearsal {
    pub(super) fn take(&self, asks: &Asks) -> Result<(), StageError> {
        let mut taken = self.asks.lock().expect("no panic while it is held");
        *taken = Some(taken.map_or(*asks, |before| before.and(*asks)));
        if asks.missing > 0 { Err(StageError::Cancelled) } else { Ok(()) }
    }

    /// What was announced; none when the stage came to no such point.
    pub fn asks(&self) -> Option<Asks> {
        *self.asks.lock().expect("no panic while it is held")
    }
}

/// Notes of a rehearsal are for nobody.
struct Silence;

impl NoteSink for Silence {
    fn note(&self, _: Note) {}
}

/// Whether a node asks models or hands out records, and says so beforehand.
fn can_rehearse(action: &Action, registry: &Registry) -> bool {
    match action {
        Action::Command(command) => command.each.is_some(),
        Action::Builtin { kind, .. } => registry.get(kind).is_some_and(|kind| kind.signature.asks),
    }
}

/// What `node` would ask, given what feeds it; none when it asks nothing, or cannot get so far.
///
/// # Errors
/// The store refuses scratch space.
pub(crate) fn rehearse(
    node: &Node,
    inputs: BTreeMap<String, Vec<Bound>>,
    store: &Store,
    registry: &Registry,
) -> Result<Option<Asks>, StoreError> {
    if !can_rehearse(&node.action, registry) {
        return Ok(None);
    }
    let folder = store.scratch("rehearsal")?;
    let rehearsal = Arc::new(Rehearsal::default());
    let ctx = Context {
        node: node.name.clone(),
        matrix: node.matrix.clone(),
        seed: node.seed,
        threads: 1,
        devices: (0..node.resources.gpus as usize).collect(),
        inputs,
        outputs: outputs(node, &folder),
        scratch: folder.join("scratch"),
        partial: folder.join("partial"),
        memo: Arc::new(store.memo()),
        asking: Asking::rehearsing(store.clone(), rehearsal.clone()),
        notes: Arc::new(Silence),
        cancel: Arc::new(AtomicBool::new(false)),
    };
    // How it ends says nothing: a stage that would fail will say so when it runs.
    let _ = match &node.action {
        Action::Command(command) => command::carry_out(command, &ctx, &folder.join("failed.jsonl")),
        Action::Builtin { kind, version, params, .. } => builtin(registry, kind, *version, params, &ctx),
    };
    let _ = std::fs::remove_dir_all(folder);
    Ok(rehearsal.asks())
}

/// Where it may write, with the folders that a stage expects.
fn outputs(node: &Node, folder: &Path) -> BTreeMap<String, std::path::PathBuf> {
    let made = |(port, JobOutput { path, tree }): (String, JobOutput)| {
        let dir = if tree { Some(path.as_path()) } else { path.parent() };
        // A stage that finds no folder ends early, and the count is missing.
        let _ = dir.map(std::fs::create_dir_all);
        (port, path)
    };
    job_outputs(node, folder).into_iter().map(made).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_goes_on_until_something_is_missing() {
        let rehearsal = Rehearsal::default();
        assert_eq!(rehearsal.asks(), None);
        let known = Asks { total: 5, dollars: Some(0.0), recorded: true, ..Asks::default() };
        assert!(rehearsal.take(&known).is_ok());
        let open = Asks { total: 7, missing: 2, dollars: Some(0.5), recorded: false, records: false };
        assert!(rehearsal.take(&open).is_err());
        let sum = Asks { total: 12, missing: 2, dollars: Some(0.5), recorded: false, records: false };
        assert_eq!(rehearsal.asks(), Some(sum));
    }
}
