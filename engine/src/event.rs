//! The event stream of a run: what the terminal, `--json`, the journal and every replay read.
//!
//! An event is one line of JSON, tagged by `event`; the first line of a run carries [`VERSION`]. Within one version fields
//! and events are only added: readers skip what they do not know. Times are seconds since the run began; the one wall
//! clock reading is `started` of `run.started`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use mpcc_cache::{Artifact, Digest};
use serde::{Deserialize, Serialize};

use crate::scheduler::{Growth, Verdict};
use crate::stage::{Coordinates, Note, Spent};

/// Version of the stream. Raised when a field changes its meaning or goes away.
pub const VERSION: u32 = 1;

/// One line of the stream: when, and what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// What happened.
    #[serde(flatten)]
    pub what: What,
    /// Seconds since the run began.
    pub at_s: f64,
}

/// A node as the first event lists it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// `sft[split=full]`.
    pub node: String,
    /// The stage it comes from.
    pub stage: String,
    /// Its matrix coordinates.
    pub matrix: Coordinates,
    /// The kind, or `run` for a command without one.
    pub kind: String,
    /// Its output ports, the default one first.
    pub ports: Vec<String>,
    /// The nodes that must end first.
    pub parents: Vec<String>,
    /// Seconds it is expected to run, when an earlier run tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_s: Option<f64>,
}

/// Requests or records answered from the memo and computed anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoCount {
    /// Answered from the memo.
    pub hits: u64,
    /// Computed anew.
    pub misses: u64,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event")]
pub enum What {
    /// The run begins.
    #[serde(rename = "run.started")]
    RunStarted {
        /// [`VERSION`].
        version: u32,
        /// The run's id.
        run: String,
        /// The pipeline's name.
        pipeline: String,
        /// The pipeline file.
        file: PathBuf,
        /// The profile in force.
        profile: Option<String>,
        /// When, RFC 3339.
        started: String,
        /// The nodes of the run in plan order; none when `since` is there.
        nodes: Vec<Header>,
        /// The run since which nothing has changed: every node is up to date as that one left it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<String>,
    },
    /// An attempt begins.
    #[serde(rename = "node.started")]
    NodeStarted {
        /// The node.
        node: String,
        /// Which attempt, from 1.
        attempt: u32,
        /// CPU cores it holds.
        cpus: u32,
        /// GPU devices it holds.
        devices: Vec<usize>,
        /// Bytes of main memory reserved for it; 0 when none are counted.
        #[serde(default, skip_serializing_if = "is_zero")]
        memory: u64,
        /// Bytes reserved for it on each of its devices.
        #[serde(default, skip_serializing_if = "is_zero")]
        gpu_memory: u64,
        /// Its log.
        log: PathBuf,
    },
    /// The running stage says something.
    #[serde(rename = "node.note")]
    NodeNote {
        /// The node.
        node: String,
        /// What it says.
        #[serde(flatten)]
        note: Note,
    },
    /// Another run executes the node; this one waits for it.
    #[serde(rename = "node.elsewhere")]
    NodeElsewhere {
        /// The node.
        node: String,
    },
    /// An attempt failed and another will follow.
    #[serde(rename = "node.retrying")]
    NodeRetrying {
        /// The node.
        node: String,
        /// The attempt that comes next.
        attempt: u32,
        /// Seconds until then.
        delay_s: f64,
        /// Why the last one failed.
        message: String,
        /// The memory that it gets from now on, when it ran out of it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        growth: Option<Growth>,
    },
    /// The store had the outputs.
    #[serde(rename = "node.cached")]
    NodeCached {
        /// The node.
        node: String,
        /// Its recipe's digest.
        recipe: Digest,
        /// Its outputs.
        outputs: BTreeMap<String, Artifact>,
        /// Seconds it took when it was executed, when an earlier run tells.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        saved_s: Option<f64>,
        /// Most main memory held then in bytes, as far as it is known.
        #[serde(default, skip_serializing_if = "is_zero")]
        peak_rss_bytes: u64,
        /// Most memory held on one of its GPUs then in bytes, as far as it is known.
        #[serde(default, skip_serializing_if = "is_zero")]
        gpu_peak_bytes: u64,
    },
    /// The node ran and its outputs are in the store.
    #[serde(rename = "node.finished")]
    NodeFinished {
        /// The node.
        node: String,
        /// Its recipe's digest.
        recipe: Digest,
        /// Its outputs.
        outputs: BTreeMap<String, Artifact>,
        /// Wall time of the last attempt in seconds.
        wall_s: f64,
        /// CPU time of the last attempt in seconds.
        cpu_s: f64,
        /// Most main memory held in the last attempt in bytes.
        peak_rss_bytes: u64,
        /// Most memory held on one of its GPUs in the last attempt in bytes, as far as it was seen.
        #[serde(default, skip_serializing_if = "is_zero")]
        gpu_peak_bytes: u64,
        /// Requests answered from the memo and computed anew; absent when the stage has none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        memo: Option<MemoCount>,
        /// What its requests to served models came to, over all attempts of this run; absent when it made none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        spent: Option<Spent>,
    },
    /// The node failed for good.
    #[serde(rename = "node.failed")]
    NodeFailed {
        /// The node.
        node: String,
        /// Why.
        message: String,
        /// Attempts made; 0 when it failed before the first.
        attempts: u32,
        /// Its log, when there was an attempt.
        log: Option<PathBuf>,
        /// Wall time of the last attempt in seconds.
        wall_s: f64,
        /// CPU time of the last attempt in seconds, as far as it was told.
        #[serde(default)]
        cpu_s: f64,
        /// Most main memory held in the last attempt in bytes, as far as it was told.
        #[serde(default)]
        peak_rss_bytes: u64,
        /// Most memory held on one of its GPUs in the last attempt in bytes, as far as it was seen.
        #[serde(default, skip_serializing_if = "is_zero")]
        gpu_peak_bytes: u64,
        /// Whether the machine is to blame (the store, a process that cannot be started) rather than the stage.
        #[serde(default)]
        machine: bool,
        /// What its requests to served models came to, over all attempts; absent when it made none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        spent: Option<Spent>,
    },
    /// The node is below a failure.
    #[serde(rename = "node.skipped")]
    NodeSkipped {
        /// The node.
        node: String,
        /// The node that failed.
        because: String,
    },
    /// The node waits for a person, or is below one that does.
    #[serde(rename = "node.waiting")]
    NodeWaiting {
        /// The node.
        node: String,
        /// What is waited for.
        message: String,
    },
    /// The node was stopped, or not started, because the run is ending.
    #[serde(rename = "node.cancelled")]
    NodeCancelled {
        /// The node.
        node: String,
    },
    /// The workspace has a new copy of an output.
    #[serde(rename = "node.published")]
    NodePublished {
        /// The node.
        node: String,
        /// The output port.
        port: String,
        /// Where the copy is.
        path: PathBuf,
    },
    /// The run is over. Counts are of nodes.
    #[serde(rename = "run.finished")]
    RunFinished {
        /// How it went.
        #[serde(flatten)]
        summary: Summary,
    },
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// How a run went, in nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Nodes that ran to their end.
    pub executed: usize,
    /// Nodes whose outputs were in the store.
    pub cached: usize,
    /// Nodes that failed.
    pub failed: usize,
    /// Nodes below a failure.
    pub skipped: usize,
    /// Nodes that wait for a person, or are below one that does.
    pub waiting: usize,
    /// Nodes stopped or not started because the run was interrupted or stopped at a failure.
    #[serde(default)]
    pub cancelled: usize,
    /// Seconds the run took.
    pub wall_s: f64,
    /// Whether the run was interrupted.
    #[serde(default)]
    pub interrupted: bool,
    /// Whether the machine is to blame for a failure.
    #[serde(default)]
    pub machine: bool,
    /// What requests to served models came to, those of failed and cancelled attempts too; absent when none was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spent: Option<Spent>,
}

impl Summary {
    /// Counts one node.
    pub fn count(&mut self, verdict: Verdict) {
        *match verdict {
            Verdict::Executed => &mut self.executed,
            Verdict::Cached => &mut self.cached,
            Verdict::Failed => &mut self.failed,
            Verdict::Skipped => &mut self.skipped,
            Verdict::Waiting => &mut self.waiting,
            Verdict::Cancelled => &mut self.cancelled,
        } += 1;
    }

    /// The exit code: 130 interrupted, 3 the machine, 1 a stage failed, 4 waiting for a person, 0 done. Where several hold,
    /// the first of these.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self { interrupted: true, .. } => 130,
            Self { machine: true, .. } => 3,
            Self { failed: 1.., .. } => 1,
            Self { waiting: 1.., .. } => 4,
            _ => 0,
        }
    }
}

impl What {
    /// The node it is about.
    pub fn node(&self) -> Option<&str> {
        match self {
            Self::RunStarted { .. } | Self::RunFinished { .. } => None,
            Self::NodeStarted { node, .. }
            | Self::NodeNote { node, .. }
            | Self::NodeElsewhere { node }
            | Self::NodeRetrying { node, .. }
            | Self::NodeCached { node, .. }
            | Self::NodeFinished { node, .. }
            | Self::NodeFailed { node, .. }
            | Self::NodeSkipped { node, .. }
            | Self::NodeWaiting { node, .. }
            | Self::NodeCancelled { node }
            | Self::NodePublished { node, .. } => Some(node),
        }
    }
}
