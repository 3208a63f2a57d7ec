//! A job: one attempt of one node, described so completely that any process on any host with the store can run it.
//!
//! The run loop makes the job, an executor starts it, the worker carries it out. It travels as one JSON file, so the same
//! file runs in a child process here and under a cluster's batch system. Secrets travel by name only; their values reach
//! the stage through its environment.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::plan::{Action, LOCAL};
use crate::resources::{Memory, Resources};
use crate::stage::{Bound, Coordinates, StageError};

/// Names one attempt within one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttemptId(pub u64);

/// One self-contained attempt of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// Which attempt this is.
    pub attempt: AttemptId,
    /// The node: `sft[split=full]`.
    pub node: String,
    /// Its matrix coordinates.
    pub matrix: Coordinates,
    /// What to do.
    pub action: Action,
    /// The node's seed.
    pub seed: u64,
    /// Threads granted.
    pub threads: usize,
    /// Ordinals of the GPU devices granted, as the host numbers them.
    pub devices: Vec<usize>,
    /// What feeds each input port, in declaration order.
    pub inputs: BTreeMap<String, Vec<Bound>>,
    /// Where each output port must be written.
    pub outputs: BTreeMap<String, JobOutput>,
    /// A folder of this attempt alone. The executor creates it and everything below it: `job.json`, `scratch/`, and by
    /// convention the outputs ([`Job::output_in`]). The caller removes it when the attempt is over.
    pub folder: PathBuf,
    /// Checkpoints that outlive a killed attempt of the same recipe. Created by the executor.
    pub partial: PathBuf,
    /// Root of the store, for the memo.
    pub store: PathBuf,
    /// Where standard output and error of the stage go. Appended to.
    pub log: PathBuf,
    /// Seconds after which the attempt is stopped, 0 for none.
    pub timeout_s: u64,
    /// Names of the secrets that it states; see [`Job::secret_names`].
    pub secrets: Vec<String>,
    /// Who carries it out: the name of an executor.
    #[serde(default = "local")]
    pub executor: String,
    /// What the node asks for; a cluster is asked for it, this host has granted `threads` and `devices`.
    #[serde(default)]
    pub resources: Resources,
    /// The numerics class in its recipe, if there is one: whoever carries it out must compute like that.
    #[serde(default)]
    pub numerics: Option<String>,
    /// It answers nothing from the store's memo and leaves nothing there: the memo is an empty one of its own.
    #[serde(default)]
    pub fresh: bool,
}

fn local() -> String {
    LOCAL.to_owned()
}

/// Where one output port must be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobOutput {
    /// The path, below [`Job::folder`] or at least on the store's file system.
    pub path: PathBuf,
    /// Whether it is a directory; the executor creates it, empty.
    pub tree: bool,
}

impl Job {
    /// Where the outputs lie in an attempt's `folder`.
    pub(crate) fn outputs_in(folder: &Path) -> PathBuf {
        folder.join("outputs")
    }

    /// The place of output `port` in an attempt's `folder`.
    pub fn output_in(folder: &Path, port: &str) -> PathBuf {
        Self::outputs_in(folder).join(port)
    }

    /// A file in an attempt's `folder` that its log is another name of, see [`Job::lay_log`].
    pub(crate) fn spare_log(folder: &Path) -> PathBuf {
        folder.join("log")
    }

    /// Makes the log a second name of a file that stays with the folder. Most commands print nothing: then the name goes and the
    /// file serves the folder's next attempt, so that ten thousand stages make a few files and leave no empty logs. Where it
    /// cannot be done, whoever opens the log makes it.
    pub(crate) fn lay_log(&self) {
        let spare = Self::spare_log(&self.folder);
        if spare.is_file() || std::fs::File::create_new(&spare).is_ok() {
            // An earlier attempt's log is there and is added to.
            let _ = std::fs::hard_link(spare, &self.log);
        }
    }

    /// After the attempt: the log goes when nothing is in it and it was `done`; a log that was written has its file to itself.
    pub(crate) fn settle_log(&self, done: bool) {
        let empty = std::fs::metadata(&self.log).is_ok_and(|meta| meta.len() == 0);
        // What cannot be removed is only litter.
        let _ = match empty && done {
            true => std::fs::remove_file(&self.log),
            false => std::fs::remove_file(Self::spare_log(&self.folder)),
        };
    }

    /// The job's own file.
    pub fn file(&self) -> PathBuf {
        self.folder.join("job.json")
    }

    /// Scratch space of the stage.
    pub fn scratch(&self) -> PathBuf {
        self.folder.join("scratch")
    }

    /// Where a record stage keeps the records that failed, with their errors: beside the log.
    pub fn failed_records(&self) -> PathBuf {
        self.log.with_extension("failed.jsonl")
    }

    /// Names of every secret it gets: those it states, and the keys of the models that feed it.
    pub fn secret_names(&self) -> BTreeSet<String> {
        let keys = self.inputs.values().flatten().filter_map(|bound| match bound {
            Bound::Model(model) => model.settings.get("api_key_env")?.as_str().map(str::to_owned),
            Bound::Artifact(_) => None,
        });
        self.secrets.iter().cloned().chain(keys).collect()
    }

    /// Creates every folder the attempt needs and writes [`Job::file`].
    pub fn prepare(&self) -> std::io::Result<()> {
        std::fs::create_dir_all(self.scratch())?;
        std::fs::create_dir_all(&self.partial)?;
        for parent in [self.log.parent(), self.file().parent()].into_iter().flatten() {
            std::fs::create_dir_all(parent)?;
        }
        self.prepare_outputs()?;
        let text = serde_json::to_vec(self).expect("a job is plain data");
        std::fs::write(self.file(), text)
    }

    /// Creates the folders that the outputs lie in, and those that are outputs.
    pub fn prepare_outputs(&self) -> std::io::Result<()> {
        self.outputs.values().try_for_each(|output| {
            let folder = if output.tree { Some(output.path.as_path()) } else { output.path.parent() };
            folder.map_or(Ok(()), ensure_dir)
        })
    }

    /// How a stage has fared that says it is done: every output must be there.
    pub fn outputs_written(&self) -> Outcome {
        for (port, output) in &self.outputs {
            let (there, what) =
                if output.tree { (output.path.is_dir(), "directory") } else { (output.path.is_file(), "file") };
            if !there {
                let path = output.path.display();
                return Outcome::failed(format!("it ended without its output `{port}`: there is no {what} {path}"));
            }
        }
        Outcome::Done
    }

    /// Reads a job file.
    pub fn read(path: &Path) -> Result<Self, JobError> {
        let io = |source| JobError::Io { path: path.to_owned(), source };
        let text = std::fs::read(path).map_err(io)?;
        serde_json::from_slice(&text).map_err(|source| JobError::Malformed { path: path.to_owned(), source })
    }
}

/// Creates a folder that nearly always is there: asking does not lock the folder above, as trying to make it would.
pub(crate) fn ensure_dir(path: &Path) -> std::io::Result<()> {
    if path.is_dir() { Ok(()) } else { std::fs::create_dir_all(path) }
}

/// Why a job file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no job of this version of mpcc.
    #[error("{}: not a job: {source}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

impl From<StageError> for Outcome {
    fn from(error: StageError) -> Self {
        match error {
            StageError::Invalid(message) => Self::invalid(message),
            StageError::Machine(message) => Self::machine(message),
            StageError::OutOfMemory { memory, message } => Self::OutOfMemory { memory, message },
            StageError::Waiting(message) => Self::Waiting { message },
            StageError::Cancelled => Self::Cancelled,
        }
    }
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The stage says that every output is written.
    Done,
    /// The stage reported an error.
    Failed {
        /// What went wrong.
        message: String,
        /// What is to blame.
        blame: Blame,
    },
    /// A person must decide first.
    Waiting {
        /// What is waited for and how to go on.
        message: String,
    },
    /// It ended because it was told to.
    Cancelled,
    /// It ran past its time limit and was stopped.
    TimedOut,
    /// The stage says that memory ran out.
    OutOfMemory {
        /// Which.
        memory: Memory,
        /// What it said.
        message: String,
    },
    /// The process died of a signal that mpcc did not send.
    Killed {
        /// The signal's number.
        signal: i32,
        /// Whether the machine ran out of memory, as far as can be told.
        out_of_memory: bool,
    },
}

/// What is to blame for a failure: it decides the exit code, and whether another attempt makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blame {
    /// The stage's own work. Another attempt may not meet it.
    Stage,
    /// Its inputs or parameters: the same attempt would fail again.
    Inputs,
    /// I/O, memory or network of the machine. Another attempt may not meet it.
    Machine,
}

impl Outcome {
    /// A failure of the stage that another attempt may not meet.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), blame: Blame::Stage }
    }

    /// Wrong inputs or parameters.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), blame: Blame::Inputs }
    }

    /// A failure of the machine.
    pub fn machine(message: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), blame: Blame::Machine }
    }

    /// Whether another attempt may end better.
    pub fn may_pass_again(&self) -> bool {
        !matches!(self, Self::Failed { blame: Blame::Inputs, .. })
    }

    /// The memory that ran out, if that is how it ended.
    pub fn out_of_memory(&self) -> Option<Memory> {
        match self {
            Self::OutOfMemory { memory, .. } => Some(*memory),
            Self::Killed { out_of_memory: true, .. } => Some(Memory::Main),
            _ => None,
        }
    }

    /// A failure in whose `words` (its message, the end of its log) a library says that a GPU is full, as what it is.
    #[must_use]
    pub fn recognised(self, words: &str) -> Self {
        match self {
            Self::Failed { message, .. } if names_full_gpu(words) => {
                Self::OutOfMemory { memory: Memory::Gpu, message: format!("ran out of GPU memory: {message}") }
            }
            other => other,
        }
    }

    /// Whether the machine is to blame rather than the stage.
    pub fn is_machine(&self) -> bool {
        matches!(self, Self::Failed { blame: Blame::Machine, .. })
    }

    /// One line for people: what happened.
    pub fn describe(&self) -> String {
        match self {
            Self::Done => "done".to_owned(),
            Self::Failed { message, .. } => message.clone(),
            Self::Waiting { message } => format!("waiting: {message}"),
            Self::Cancelled => "cancelled".to_owned(),
            Self::TimedOut => "ran past its time limit".to_owned(),
            Self::OutOfMemory { message, .. } => message.clone(),
            Self::Killed { out_of_memory: true, .. } => "ran out of memory".to_owned(),
            Self::Killed { signal, .. } => format!("killed by {}", signal_name(*signal)),
        }
    }
}

/// What drivers and libraries write when a GPU is full: CUDA's driver, PyTorch (CUDA and ROCm), CUDA's runtime, cuBLAS.
const FULL_GPU: [&str; 5] = [
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUDA out of memory",
    "HIP out of memory",
    "cudaErrorMemoryAllocation",
    "CUBLAS_STATUS_ALLOC_FAILED",
];

/// Whether a text says that a GPU is full.
pub fn names_full_gpu(text: &str) -> bool {
    FULL_GPU.iter().any(|words| text.contains(words))
}

/// `signal 11 (SIGSEGV, a bad memory access)`.
fn signal_name(signal: i32) -> String {
    let name = match signal {
        4 => "SIGILL, an instruction this CPU lacks",
        6 => "SIGABRT, the process gave up",
        7 => "SIGBUS, a file it read was truncated or memory failed",
        8 => "SIGFPE, a bad division",
        9 => "SIGKILL, not sent by mpcc: somebody or the kernel killed it",
        11 => "SIGSEGV, a bad memory access",
        15 => "SIGTERM, not sent by mpcc",
        _ => return format!("signal {signal}"),
    };
    format!("signal {signal} ({name})")
}

/// What an attempt used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Wall time in seconds.
    pub wall_s: f64,
    /// CPU time in seconds, user and system, children included; 0 when the process died before it could tell.
    pub cpu_s: f64,
    /// Most main memory in bytes: of its largest process, or of all together as seen once a second; 0 when the process died
    /// before either told.
    pub peak_rss_bytes: u64,
    /// Most memory on one of its GPUs in bytes, as seen every other second; 0 when nothing was seen.
    #[serde(default)]
    pub gpu_peak_bytes: u64,
}
