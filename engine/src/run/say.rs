//! What a run says: its events.

use std::collections::BTreeSet;
use std::path::PathBuf;

use jiff::Timestamp;
use mpcc_cache::{Damage, Digest};

use super::RunError;
use super::core::Run;
use super::step::Found;
use crate::event::{Event, Header, Summary, VERSION, What};
use crate::job::Usage;
use crate::journal::Measured;
use crate::plan::{Action, Node, NodeId};
use crate::scheduler::Verdict;
use crate::stage::{Note, Spent};

impl Run<'_> {
    pub(super) fn say_started(&mut self, nodes: &BTreeSet<NodeId>, started: Timestamp) -> Result<(), RunError> {
        let plan = self.shared.plan.clone();
        let header = |id: &NodeId| {
            let node = &plan.nodes[id.0];
            Header {
                node: node.name.clone(),
                stage: node.stage.clone(),
                matrix: node.matrix.clone(),
                kind: kind(node).to_owned(),
                ports: node.outputs.iter().map(|output| output.port.name.clone()).collect(),
                parents: node.parents().iter().map(|parent| plan.nodes[parent.0].name.clone()).collect(),
                expected_s: self.past.nodes.get(&node.name).map(|seen| seen.wall_s),
            }
        };
        let nodes = nodes.iter().map(header).collect();
        self.say(What::RunStarted {
            version: VERSION,
            run: self.journal.id().to_owned(),
            pipeline: plan.name.clone(),
            file: plan.file.clone(),
            profile: plan.profile.clone(),
            started: started.to_string(),
            nodes,
            since: None,
        })
    }

    /// Says what happened, to the journal and to the listener.
    pub(super) fn say(&mut self, what: What) -> Result<(), RunError> {
        let event = Event { what, at_s: (self.began.elapsed().as_secs_f64() * 1e6).round() / 1e6 };
        self.journal.write(&event)?;
        // Nobody may be listening any more; the journal is.
        let _ = self.events.send(event);
        Ok(())
    }

    pub(super) fn say_cached(&mut self, id: NodeId, recipe: Digest, found: Found) -> Result<(), RunError> {
        let node = self.name(id);
        let seen = self.past.nodes.get(&node).copied();
        let (saved_s, Measured { peak_rss_bytes, gpu_peak_bytes, .. }) =
            (seen.map(|seen| seen.wall_s), seen.unwrap_or_default());
        let outputs = found.outputs;
        self.say(What::NodeCached { node, recipe, outputs, saved_s, peak_rss_bytes, gpu_peak_bytes })?;
        self.say_published(id, found.published)
    }

    pub(super) fn say_published(&mut self, id: NodeId, published: Vec<(String, PathBuf)>) -> Result<(), RunError> {
        for (port, path) in published {
            let node = self.name(id);
            self.say(What::NodePublished { node, port, path })?;
        }
        Ok(())
    }

    /// What the store found damaged by the time this node was looked up: a miss that says why.
    pub(super) fn say_damage(&mut self, id: NodeId) -> Result<(), RunError> {
        for Damage { path, quarantined } in self.shared.store.take_damage() {
            let (path, quarantined) = (path.display(), quarantined.display());
            let message = format!("{path} is damaged and counts as absent; what is left of it is {quarantined}");
            self.say(What::NodeNote { node: self.name(id), note: Note::Warning { message } })?;
        }
        Ok(())
    }

    /// What a node's requests have come to, the present attempt included.
    pub(super) fn spent(&self, id: NodeId) -> Option<Spent> {
        let now = self.live.get(&id).and_then(|live| live.spent);
        let before = self.spent.get(&id).copied();
        now.or(before)?;
        Some(before.unwrap_or_default() + now.unwrap_or_default())
    }

    pub(super) fn say_failed(
        &mut self,
        id: NodeId,
        message: String,
        machine: bool,
        attempts: u32,
        usage: Usage,
    ) -> Result<(), RunError> {
        self.machine |= machine;
        let node = self.name(id);
        let log = (attempts > 0).then(|| self.journal.log(&node));
        let spent = self.spent(id);
        let Usage { wall_s, cpu_s, peak_rss_bytes, gpu_peak_bytes } = usage;
        self.say(What::NodeFailed {
            node,
            message,
            attempts,
            log,
            wall_s,
            cpu_s,
            peak_rss_bytes,
            gpu_peak_bytes,
            machine,
            spent,
        })
    }

    /// Says how a node ended that did not run to its end.
    pub(super) fn settled(&mut self, id: NodeId, verdict: Verdict, cause: Option<NodeId>) -> Result<(), RunError> {
        let node = self.name(id);
        let because = cause.map(|cause| self.name(cause)).unwrap_or_default();
        match verdict {
            Verdict::Skipped => self.say(What::NodeSkipped { node, because }),
            Verdict::Waiting => self.say(What::NodeWaiting { node, message: format!("`{because}` waits") }),
            Verdict::Failed => {
                let unfit = self.inventory.fits(&self.shared.node(id).resources).err();
                let message = unfit.map_or_else(|| "it cannot run here".to_owned(), |unfit| unfit.to_string());
                self.say_failed(id, message, true, 0, Usage::default())
            }
            Verdict::Cancelled | Verdict::Executed | Verdict::Cached => self.say(What::NodeCancelled { node }),
        }
    }

    /// Counts the nodes and says the last word.
    pub(super) fn finish(&mut self) -> Result<(), RunError> {
        let mut summary = Summary { machine: self.machine, ..Summary::default() };
        for (_, verdict) in self.scheduler.verdicts() {
            summary.count(verdict);
        }
        let spent: Spent = self.spent.values().copied().sum();
        summary.spent = (spent != Spent::default()).then_some(spent);
        summary.interrupted = self.stopped && summary.cancelled > 0;
        summary.wall_s = (self.began.elapsed().as_secs_f64() * 1e6).round() / 1e6;
        self.finished = Some(summary);
        self.say(What::RunFinished { summary })
    }
}

/// The node's kind, `run` for a plain command.
fn kind(node: &Node) -> &str {
    match &node.action {
        Action::Builtin { kind, .. } => kind,
        Action::Command(command) => command.kind.as_deref().unwrap_or("run"),
    }
}
