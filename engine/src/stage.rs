//! What a stage kind is, and what it sees while it runs.
//!
//! A kind is one struct whose fields are its parameters; it implements [`Stage`] and has one line in a
//! [`crate::registry::Registry`]. It reads its inputs from paths, writes its outputs to paths, and speaks to the engine
//! only through its [`Context`]. It never prints, reads the environment, or looks at a clock.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use mpcc_cache::{Artifact, Digest};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::asking::Asking;
use crate::port::Signature;
use crate::resources::{Memory, Resources};

/// A stage kind.
pub trait Stage: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// The name a pipeline `uses`, for example `vlm.filter`.
    const KIND: &'static str;
    /// Raised whenever the outputs change for the same inputs and parameters.
    const VERSION: u32;
    /// One line for the reference and for `mpcc schema`.
    const ABOUT: &'static str;

    /// The ports.
    fn signature() -> Signature;

    /// Checks parameter values when the pipeline is planned, before anything runs.
    fn check(&self) -> Result<(), ParamError> {
        Ok(())
    }

    /// Checks, when the pipeline is planned, whether a model that feeds input `port` can do what is asked of it, by who answers for it;
    /// if not, says what it lacks and what to write instead.
    fn check_model(&self, port: &str, provider: Provider) -> Result<(), String> {
        let _ = (port, provider);
        Ok(())
    }

    /// Resources when the pipeline states none.
    fn resources(&self) -> Resources {
        Resources::default()
    }

    /// Does the work: reads inputs, writes every declared output.
    fn run(&self, ctx: &Context) -> Result<(), StageError>;
}

/// A parameter value that parses but makes no sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamError {
    /// The parameter's name; dots lead into a map (`lora.rank`).
    pub param: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl ParamError {
    /// An error about parameter `param`.
    pub fn new(param: &str, message: impl Into<String>) -> Self {
        Self { param: param.to_owned(), message: message.into() }
    }
}

/// Why a stage ended without its outputs.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The inputs or parameters are wrong; retrying would not help.
    #[error("{0}")]
    Invalid(String),
    /// The machine failed: I/O, memory, network.
    #[error("{0}")]
    Machine(String),
    /// Memory ran out: the node is repeated with more of it.
    #[error("{message}")]
    OutOfMemory {
        /// Which.
        memory: Memory,
        /// What happened.
        message: String,
    },
    /// A person must decide first (a curation without decisions); other branches go on.
    #[error("waiting: {0}")]
    Waiting(String),
    /// The run was cancelled; what is in `partial` is good for a later run.
    #[error("cancelled")]
    Cancelled,
}

impl StageError {
    /// A wrong input or parameter.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(message.into())
    }

    /// An I/O error on `path`.
    pub fn io(path: &Path, error: std::io::Error) -> Self {
        Self::Machine(format!("{}: {error}", path.display()))
    }
}

/// The matrix coordinates of a node, in declaration order.
pub type Coordinates = Vec<(String, Value)>;

/// One artifact that feeds an input port.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Input {
    /// The node it came from, or the path as written for external data.
    pub node: String,
    /// That node's matrix coordinates.
    pub matrix: Coordinates,
    /// The artifact; external inputs have one too (digest of their content).
    pub artifact: Artifact,
    /// Where to read it. Read-only.
    pub path: PathBuf,
}

/// Who answers for a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// Weights in a directory, run in this process.
    Local,
    /// An OpenAI-compatible server.
    Openai,
    /// Recorded answers.
    Replay,
}

impl Provider {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Openai => "openai",
            Self::Replay => "replay",
        }
    }
}

/// A model bound to a `model` port.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelInput {
    /// The name under `models`, or the node that made it. Not part of its identity.
    pub name: String,
    /// Matrix coordinates of the node that made it; empty for a name under `models`.
    pub matrix: Coordinates,
    /// Who answers.
    pub provider: Provider,
    /// The model directory of a local model. Read-only.
    pub dir: Option<PathBuf>,
    /// What decides its answers, for recipes and memo keys: content digest and dtype of a local model; provider, model and
    /// revision of a served one; the text of its own system prompt.
    pub identity: Value,
    /// The entry under `models` as written, less `from` (`model`, `base_url`, `api_key_env`, `rpm`, ...). `system`, if
    /// any, holds the text of the prompt file.
    pub settings: serde_json::Map<String, Value>,
}

/// What feeds an input port.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// An artifact.
    Artifact(Input),
    /// A model.
    Model(ModelInput),
}

/// One line a running stage says to the engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "snake_case")]
pub enum Note {
    /// `done` of `total` `unit`s (`total` 0 when unknown).
    Progress {
        /// Units finished.
        done: u64,
        /// Units in all, or 0.
        total: u64,
        /// What is counted: `requests`, `steps`, `images`.
        unit: String,
    },
    /// Something worth a line in the log.
    Info {
        /// The text.
        message: String,
    },
    /// Something the user should see at the end.
    Warning {
        /// The text.
        message: String,
    },
    /// A named number for the journal, such as a final loss.
    Metric {
        /// Name.
        name: String,
        /// Value.
        value: f64,
    },
    /// Requests or records answered from the memo and computed anew, in total so far.
    Memo {
        /// Answered from the memo.
        hits: u64,
        /// Computed anew.
        misses: u64,
    },
    /// What the requests of this attempt to served models came to, in total so far.
    Usage {
        /// Requests sent; one that is tried again counts again.
        requests: u64,
        /// Tokens of the prompts, as the servers count them.
        prompt_tokens: u64,
        /// Tokens of the answers, likewise.
        completion_tokens: u64,
        /// US dollars, at the prices that the pipeline states; 0 without prices.
        cost: f64,
    },
}

/// What requests to served models came to. Answers from the memo cost nothing and are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// Requests sent; one that is tried again counts again.
    pub requests: u64,
    /// Tokens of the prompts, as the servers count them.
    pub prompt_tokens: u64,
    /// Tokens of the answers, likewise.
    pub completion_tokens: u64,
    /// US dollars, at the prices that the pipeline states; 0 without prices.
    pub cost: f64,
}

impl Spent {
    /// What a note tells; nothing unless it is [`Note::Usage`].
    pub fn of(note: &Note) -> Option<Self> {
        let Note::Usage { requests, prompt_tokens, completion_tokens, cost } = *note else { return None };
        Some(Self { requests, prompt_tokens, completion_tokens, cost })
    }

    /// Tokens of prompts and answers.
    pub fn tokens(&self) -> u64 {
        self.prompt_tokens + self.completion_tokens
    }
}

impl std::ops::Add for Spent {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            completion_tokens: self.completion_tokens + other.completion_tokens,
            cost: self.cost + other.cost,
        }
    }
}

impl std::iter::Sum for Spent {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), std::ops::Add::add)
    }
}

/// Receives the notes of a running stage.
pub trait NoteSink: Send + Sync {
    /// Takes one note.
    fn note(&self, note: Note);
}

/// The store of per-request results below stage level. Keys are content digests, so a value never changes.
pub trait Memo: Send + Sync {
    /// The value under `key` in `namespace`.
    fn get(&self, namespace: &str, key: &Digest) -> Option<Vec<u8>>;
    /// Whether there is a value under `key`, without reading it.
    fn contains(&self, namespace: &str, key: &Digest) -> bool {
        self.get(namespace, key).is_some()
    }
    /// Stores a value; durable against a kill of this process when it returns.
    fn put(&self, namespace: &str, key: &Digest, value: &[u8]) -> std::io::Result<()>;
}

/// A memo in memory, gone with the process.
#[derive(Default)]
pub struct MemoryMemo(Mutex<BTreeMap<(String, Digest), Vec<u8>>>);

impl Memo for MemoryMemo {
    fn get(&self, namespace: &str, key: &Digest) -> Option<Vec<u8>> {
        self.0.lock().expect("unpoisoned").get(&(namespace.to_owned(), *key)).cloned()
    }

    fn put(&self, namespace: &str, key: &Digest, value: &[u8]) -> std::io::Result<()> {
        self.0.lock().expect("unpoisoned").insert((namespace.to_owned(), *key), value.to_vec());
        Ok(())
    }
}

/// What a stage sees while it runs.
pub struct Context {
    /// `sft[split=full]`.
    pub node: String,
    /// The node's matrix coordinates.
    pub matrix: Coordinates,
    /// The node's seed.
    pub seed: u64,
    /// Threads granted.
    pub threads: usize,
    /// GPU device ordinals granted (already numbered as this process sees them).
    pub devices: Vec<usize>,
    /// What feeds each input port, in declaration order.
    pub inputs: BTreeMap<String, Vec<Bound>>,
    /// Where each output port must be written: a file, or for tree types a directory that exists and is empty.
    pub outputs: BTreeMap<String, PathBuf>,
    /// Scratch space, gone afterwards.
    pub scratch: PathBuf,
    /// Checkpoints that outlive a killed run of the same recipe.
    pub partial: PathBuf,
    /// The memo.
    pub memo: Arc<dyn Memo>,
    /// What it asks models with.
    pub asking: Asking,
    /// Where notes go.
    pub notes: Arc<dyn NoteSink>,
    /// Set when the run is being cancelled: finish the record at hand, then return [`StageError::Cancelled`].
    pub cancel: Arc<AtomicBool>,
}

impl Context {
    /// The one artifact of input `port`. The plan has checked that it is there.
    pub fn input(&self, port: &str) -> Result<&Input, StageError> {
        self.optional(port)?.ok_or_else(|| StageError::invalid(format!("input `{port}` is not connected")))
    }

    /// The artifact of input `port`, if connected.
    pub fn optional(&self, port: &str) -> Result<Option<&Input>, StageError> {
        Ok(self.artifacts(port)?.into_iter().next())
    }

    /// Every artifact of input `port`, in declaration order.
    pub fn artifacts(&self, port: &str) -> Result<Vec<&Input>, StageError> {
        let bound = self.inputs.get(port).map_or(&[][..], Vec::as_slice);
        bound
            .iter()
            .map(|bound| match bound {
                Bound::Artifact(input) => Ok(input),
                Bound::Model(model) => {
                    Err(StageError::invalid(format!("input `{port}` is the model `{}`", model.name)))
                }
            })
            .collect()
    }

    /// The one model of input `port`.
    pub fn model(&self, port: &str) -> Result<&ModelInput, StageError> {
        let models = self.models(port)?;
        models.into_iter().next().ok_or_else(|| StageError::invalid(format!("model `{port}` is not connected")))
    }

    /// Every model of input `port`, in declaration order.
    pub fn models(&self, port: &str) -> Result<Vec<&ModelInput>, StageError> {
        let bound = self.inputs.get(port).map_or(&[][..], Vec::as_slice);
        bound
            .iter()
            .map(|bound| match bound {
                Bound::Model(model) => Ok(model),
                Bound::Artifact(input) => {
                    Err(StageError::invalid(format!("input `{port}` is `{}`, no model", input.node)))
                }
            })
            .collect()
    }

    /// Where output `port` must be written.
    pub fn output(&self, port: &str) -> Result<&Path, StageError> {
        let path = self.outputs.get(port);
        path.map(PathBuf::as_path).ok_or_else(|| StageError::invalid(format!("`{port}` is no output of this kind")))
    }

    /// Reports progress.
    pub fn progress(&self, done: u64, total: u64, unit: &str) {
        self.notes.note(Note::Progress { done, total, unit: unit.to_owned() });
    }

    /// Says something for the log.
    pub fn info(&self, message: impl Into<String>) {
        self.notes.note(Note::Info { message: message.into() });
    }

    /// Warns: shown again when the run ends.
    pub fn warn(&self, message: impl Into<String>) {
        self.notes.note(Note::Warning { message: message.into() });
    }

    /// Records a named number in the journal.
    pub fn metric(&self, name: &str, value: f64) {
        self.notes.note(Note::Metric { name: name.to_owned(), value });
    }

    /// Returns [`StageError::Cancelled`] once the run is being cancelled; call it between records and steps.
    pub fn check_cancelled(&self) -> Result<(), StageError> {
        if self.cancel.load(Ordering::Relaxed) { Err(StageError::Cancelled) } else { Ok(()) }
    }
}
