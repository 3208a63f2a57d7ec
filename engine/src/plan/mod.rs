//! The plan: the resolved DAG. A [`Plan`] cannot exist invalid; the only way to get one is to compile a pipeline.

mod commands;
mod common;
mod compile;
mod contract;
mod expand;
pub(crate) mod external;
pub mod kept;
mod models;
mod order;
mod outside;
mod params;
mod pick;
mod select;
mod selector;
mod sources;

pub use compile::{CompileOptions, compile, compile_bytes};
pub use external::{GlobError, expand_glob, hub_snapshot};
pub(crate) use models::DTYPES;
pub use select::{Edge, SelectError};

use std::collections::BTreeMap;
use std::path::PathBuf;

use mpcc_cache::Digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::diagnostic::Diagnostic;
use crate::port::OutputPort;
use crate::resources::Resources;
use crate::stage::{Coordinates, Provider};

/// Index of a node in [`Plan::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId(pub usize);

/// A pipeline after profiles, matrices and names are resolved and every port is type-checked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The pipeline's name.
    pub name: String,
    /// The pipeline file, absolute; relative paths in it are relative to its folder.
    pub file: PathBuf,
    /// The profile in force.
    pub profile: Option<String>,
    /// Nodes in a topological order that follows declaration order where it can.
    pub nodes: Vec<Node>,
    /// Data, keys and devices that are not there. `plan` lists them, `run` refuses to start.
    pub missing: Vec<Missing>,
    /// What is allowed but probably not meant; shown once when the pipeline is planned.
    #[serde(skip_deserializing)]
    pub warnings: Vec<Diagnostic>,
}

/// One stage after matrix expansion.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Node {
    /// `sft[split=full]`; just the stage's name without a matrix.
    pub name: String,
    /// The stage it comes from.
    pub stage: String,
    /// Line of the stage in the pipeline file, from 1.
    pub line: usize,
    /// Matrix coordinates, the simple keys of `rows` included.
    pub matrix: Coordinates,
    /// `description:`.
    pub description: Option<String>,
    /// What it does.
    pub action: Action,
    /// Input ports with their sources, in the signature's order.
    pub inputs: Vec<PlannedInput>,
    /// Output ports.
    pub outputs: Vec<PlannedOutput>,
    /// Nodes that must end first although no data flows.
    pub needs: Vec<NodeId>,
    /// What it holds while it runs.
    pub resources: Resources,
    /// The seed; enters the recipe when the kind is seeded.
    pub seed: u64,
    /// `cache: false` runs it every time.
    pub cache: bool,
    /// How often a failed attempt is repeated.
    pub retries: u32,
    /// Seconds after which it is stopped, 0 for none.
    pub timeout_s: u64,
    /// [`LOCAL`], or an executor's name.
    pub executor: String,
    /// Names of environment variables passed on as secrets.
    pub secrets: Vec<String>,
}

/// The executor of this host.
pub const LOCAL: &str = "process";

impl Node {
    /// Whether it takes CPUs, memory and devices of this host. What a cluster has is the cluster's business.
    pub fn is_local(&self) -> bool {
        self.executor == LOCAL
    }
}

/// What a node does.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// A built-in kind with its parameters, defaults filled in, file parameters replaced by their text.
    Builtin {
        /// The kind's name.
        kind: String,
        /// The kind's version.
        version: u32,
        /// Every parameter.
        params: Value,
        /// Whether the numerics class enters the recipe.
        numerics: bool,
        /// Whether the seed enters the recipe.
        seeded: bool,
    },
    /// A command of the pipeline file (`run:`) or of a custom kind.
    Command(Command),
}

/// A command stage.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Command {
    /// The custom kind's name, if it is one.
    pub kind: Option<String>,
    /// The words; `${inputs.x}` and `${outputs.y}` are still in place, everything else is resolved.
    pub argv: Vec<String>,
    /// Whether `argv[0]` is a script for `sh -c`.
    pub shell: bool,
    /// Resolved parameters of a custom kind, for the recipe.
    pub params: Value,
    /// The input port whose records are handed to long-lived workers one line at a time.
    pub each: Option<String>,
    /// Declared environment: name -> value, in the recipe.
    pub env: BTreeMap<String, String>,
    /// Files whose content enters the recipe (`code:` globs, expanded, relative to the pipeline's folder).
    pub code: Vec<PathBuf>,
    /// Working directory: the pipeline file's folder.
    pub cwd: PathBuf,
}

/// An input port and what feeds it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlannedInput {
    /// The port.
    pub port: String,
    /// Whether it was written as a list or with `[*]` (coordinates enter the recipe).
    pub list: bool,
    /// The sources, in declaration order.
    pub sources: Vec<Source>,
}

/// Where an input comes from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "snake_case")]
pub enum Source {
    /// A node's output port.
    Output {
        /// The node.
        node: NodeId,
        /// Its port.
        port: String,
    },
    /// A file from outside, absolute.
    File {
        /// The path.
        path: PathBuf,
    },
    /// A directory from outside, absolute.
    Dir {
        /// The path.
        path: PathBuf,
    },
    /// Files from outside that match a pattern, absolute.
    Glob {
        /// The pattern.
        pattern: String,
    },
    /// A model: a name under `models`, or a node's `model` port (then `name` is the node's name).
    Model(Box<ModelSource>),
}

/// A model as a source.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelSource {
    /// The name under `models`, or the node's name.
    pub name: String,
    /// Coordinates of the node that makes it, when bound to a node's port directly.
    pub matrix: Coordinates,
    /// Who answers.
    pub provider: Provider,
    /// The weights: a node's output or a directory; `None` for served models and for hub models that are not downloaded
    /// (those are in [`Plan::missing`]).
    pub from: Option<Source>,
    /// The entry as written, less `from`; `system` holds the text of the prompt file.
    pub settings: serde_json::Map<String, Value>,
}

/// An output port and where a copy goes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlannedOutput {
    /// The port.
    pub port: OutputPort,
    /// Where the workspace gets a copy, absolute.
    pub publish: Option<PathBuf>,
}

/// Something a run would need that is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Data, key or device: `run` exits 2, 2 or 3.
    pub what: MissingKind,
    /// The node or model that needs it.
    pub needed_by: String,
    /// What is missing and where to put it.
    pub message: String,
}

/// The kinds of missing things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MissingKind {
    /// A file, directory or checkpoint.
    Data,
    /// An environment variable with a key.
    Key,
    /// A device.
    Device,
}

/// The recipe's digest: everything that decides a node's outputs.
pub type Fingerprint = Digest;
