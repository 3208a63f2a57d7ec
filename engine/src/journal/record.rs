//! A run as its events tell it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use mpcc_cache::{Artifact, Digest};
use serde::{Deserialize, Serialize};

use crate::event::{Event, Header, MemoCount, Summary, What};
use crate::stage::{Note, Spent};

/// Where a node is, as far as the events tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Nothing has happened to it.
    #[default]
    Pending,
    /// An attempt is going on.
    Running,
    /// Another run executes it.
    Elsewhere,
    /// It rests before its next attempt.
    Resting,
    /// Its run was killed while it ran.
    Interrupted,
    /// It ran to its end.
    Executed,
    /// The store had its outputs.
    Cached,
    /// It failed.
    Failed,
    /// It is below a failure.
    Skipped,
    /// It waits for a person, or is below a node that does.
    Waiting,
    /// It was stopped or not started because the run was ending.
    Cancelled,
}

/// One node of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeRecord {
    /// Name, stage, matrix, kind, ports.
    #[serde(flatten)]
    pub header: Header,
    /// Where it is.
    pub status: Status,
    /// Attempts begun.
    pub attempts: u32,
    /// When its last attempt began, in seconds since the run began.
    pub started_s: Option<f64>,
    /// When it ended, likewise.
    pub ended_s: Option<f64>,
    /// Its recipe's digest, once it has outputs.
    pub recipe: Option<Digest>,
    /// Its outputs.
    pub outputs: BTreeMap<String, Artifact>,
    /// Wall time of its execution in seconds; of a cached node that of an earlier run, when one tells.
    pub wall_s: Option<f64>,
    /// CPU time in seconds.
    pub cpu_s: Option<f64>,
    /// Most main memory held in bytes; of a cached node that of an earlier run, when one tells.
    pub peak_rss_bytes: Option<u64>,
    /// Most memory held on one of its GPUs in bytes; of a cached node that of an earlier run, when one tells.
    pub gpu_peak_bytes: Option<u64>,
    /// Requests answered from the memo and computed anew.
    pub memo: Option<MemoCount>,
    /// What its requests to served models came to, over all attempts of this run.
    pub spent: Option<Spent>,
    /// That of the attempts before the present one.
    #[serde(skip)]
    spent_before: Option<Spent>,
    /// Done, total, unit of its last progress note.
    pub progress: Option<(u64, u64, String)>,
    /// Named numbers, the last value of each.
    pub metrics: BTreeMap<String, f64>,
    /// Warnings.
    pub warnings: Vec<String>,
    /// Why it failed, waits or was skipped.
    pub message: Option<String>,
    /// Its log, when an attempt began.
    pub log: Option<PathBuf>,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunRecord {
    /// The id.
    pub id: String,
    /// The pipeline's name.
    pub pipeline: String,
    /// The pipeline file.
    pub file: PathBuf,
    /// The profile in force.
    pub profile: Option<String>,
    /// When it began, RFC 3339.
    pub started: String,
    /// Whether its process lives. `true` in a record made from live events.
    pub alive: bool,
    /// The last event's time in seconds since the run began.
    pub elapsed_s: f64,
    /// How it went; `None` while it runs and when it was killed.
    pub summary: Option<Summary>,
    /// Its nodes in plan order.
    pub nodes: Vec<NodeRecord>,
    /// Where each node is in the list.
    #[serde(skip)]
    places: BTreeMap<String, usize>,
}

impl NodeRecord {
    fn new(header: Header) -> Self {
        Self {
            header,
            status: Status::Pending,
            attempts: 0,
            started_s: None,
            ended_s: None,
            recipe: None,
            outputs: BTreeMap::new(),
            wall_s: None,
            cpu_s: None,
            peak_rss_bytes: None,
            gpu_peak_bytes: None,
            memo: None,
            spent: None,
            spent_before: None,
            progress: None,
            metrics: BTreeMap::new(),
            warnings: Vec::new(),
            message: None,
            log: None,
        }
    }

    fn end(&mut self, status: Status, at_s: f64) {
        self.status = status;
        self.ended_s = Some(at_s);
    }

    fn note(&mut self, note: &Note) {
        match note {
            Note::Progress { done, total, unit } => self.progress = Some((*done, *total, unit.clone())),
            Note::Info { .. } => {}
            Note::Warning { message } => self.warnings.push(message.clone()),
            Note::Metric { name, value } => {
                self.metrics.insert(name.clone(), *value);
            }
            Note::Memo { hits, misses } => self.memo = Some(MemoCount { hits: *hits, misses: *misses }),
            Note::Usage { .. } => {
                self.spent = Spent::of(note).map(|spent| self.spent_before.unwrap_or_default() + spent);
            }
        }
    }

    fn apply(&mut self, what: &What, at_s: f64) {
        match what {
            What::NodeStarted { attempt, log, .. } => {
                self.status = Status::Running;
                self.attempts = *attempt;
                self.started_s = Some(at_s);
                self.spent_before = self.spent;
                self.log = Some(log.clone());
            }
            What::NodeNote { note, .. } => self.note(note),
            What::NodeElsewhere { .. } => self.status = Status::Elsewhere,
            What::NodeRetrying { message, .. } => {
                self.status = Status::Resting;
                self.message = Some(message.clone());
            }
            What::NodeCached { recipe, outputs, saved_s, peak_rss_bytes, gpu_peak_bytes, .. } => {
                self.end(Status::Cached, at_s);
                self.recipe = Some(*recipe);
                self.outputs = outputs.clone();
                self.wall_s = *saved_s;
                self.peak_rss_bytes = Some(*peak_rss_bytes).filter(|bytes| *bytes > 0);
                self.gpu_peak_bytes = Some(*gpu_peak_bytes).filter(|bytes| *bytes > 0);
            }
            What::NodeFinished { .. } => self.finished(what, at_s),
            What::NodeFailed { message, attempts, log, spent, .. } => {
                self.end(Status::Failed, at_s);
                self.message = Some(message.clone());
                self.attempts = *attempts;
                self.log = log.clone();
                self.measured(what);
                self.spent = spent.or(self.spent);
            }
            What::NodeSkipped { because, .. } => {
                self.end(Status::Skipped, at_s);
                self.message = Some(format!("`{because}` failed"));
            }
            What::NodeWaiting { message, .. } => {
                self.end(Status::Waiting, at_s);
                self.message = Some(message.clone());
            }
            What::NodeCancelled { .. } => self.end(Status::Cancelled, at_s),
            What::NodePublished { .. } | What::RunStarted { .. } | What::RunFinished { .. } => {}
        }
    }

    /// What its last attempt used. What is not known stays out.
    fn measured(&mut self, what: &What) {
        let (What::NodeFinished { wall_s, cpu_s, peak_rss_bytes, gpu_peak_bytes, .. }
        | What::NodeFailed { wall_s, cpu_s, peak_rss_bytes, gpu_peak_bytes, .. }) = what
        else {
            return;
        };
        self.wall_s = Some(*wall_s);
        self.cpu_s = Some(*cpu_s).filter(|seconds| *seconds > 0.0);
        self.peak_rss_bytes = Some(*peak_rss_bytes).filter(|bytes| *bytes > 0);
        self.gpu_peak_bytes = Some(*gpu_peak_bytes).filter(|bytes| *bytes > 0);
    }

    fn finished(&mut self, what: &What, at_s: f64) {
        let What::NodeFinished { recipe, outputs, memo, spent, .. } = what else { return };
        self.end(Status::Executed, at_s);
        self.message = None;
        self.recipe = Some(*recipe);
        self.outputs = outputs.clone();
        self.measured(what);
        self.memo = *memo;
        self.spent = *spent;
    }
}

impl RunRecord {
    /// The record after the first event; `None` when that is not `run.started`.
    pub fn begin(first: &Event) -> Option<Self> {
        let What::RunStarted { run, pipeline, file, profile, started, nodes, .. } = &first.what else { return None };
        Some(Self {
            id: run.clone(),
            pipeline: pipeline.clone(),
            file: file.clone(),
            profile: profile.clone(),
            started: started.clone(),
            alive: true,
            elapsed_s: first.at_s,
            summary: None,
            places: nodes.iter().enumerate().map(|(place, header)| (header.node.clone(), place)).collect(),
            nodes: nodes.iter().cloned().map(NodeRecord::new).collect(),
        })
    }

    /// Takes the next event.
    pub fn apply(&mut self, event: &Event) {
        self.elapsed_s = event.at_s;
        if let What::RunFinished { summary } = &event.what {
            self.summary = Some(*summary);
        }
        if let Some(name) = event.what.node()
            && let Some(place) = self.places.get(name)
        {
            self.nodes[*place].apply(&event.what, event.at_s);
        }
    }

    /// The node called `name`.
    pub fn node(&self, name: &str) -> Option<&NodeRecord> {
        self.places.get(name).map(|place| &self.nodes[*place])
    }

    /// How many nodes have each status.
    pub fn counts(&self) -> BTreeMap<Status, usize> {
        let mut counts = BTreeMap::new();
        for node in &self.nodes {
            *counts.entry(node.status).or_default() += 1;
        }
        counts
    }

    /// Takes every node over from the run `base`, since which nothing has changed.
    pub(super) fn stand_on(&mut self, base: RunRecord) {
        self.places = base.places;
        self.nodes = base.nodes;
        for node in &mut self.nodes {
            *node = NodeRecord {
                status: Status::Cached,
                recipe: node.recipe,
                outputs: std::mem::take(&mut node.outputs),
                wall_s: node.wall_s,
                peak_rss_bytes: node.peak_rss_bytes,
                gpu_peak_bytes: node.gpu_peak_bytes,
                ended_s: Some(self.elapsed_s),
                ..NodeRecord::new(node.header.clone())
            };
        }
    }

    /// Marks what was under way when the run's process died.
    pub(super) fn died(&mut self) {
        self.alive = false;
        for node in &mut self.nodes {
            if matches!(node.status, Status::Running | Status::Elsewhere | Status::Resting) {
                node.status = Status::Interrupted;
            }
        }
    }
}
