//! The Slurm executor: one batch job per attempt, on a cluster that shares the store.
//!
//! The job is `mpcc worker --claim JOB.json` with the stage's resources as `sbatch` options. Nothing connects it to the engine
//! but files below the store and Slurm's own commands, so it outlives the engine, and the next engine finds it again.
//!
//! # One attempt
//!
//! ```text
//!            sbatch                 a start claims            end file: done
//! Prepared ---------> Queued ------------------> Running -----------------------> Accepted
//!    |                  ^  \                        |  \
//!    | refused          |   \--- node lost, --------/   \-- ended otherwise --> Over (see the table)
//!    v                  |        preempted: requeued
//!   Over                +--- a new engine: found by name, followed on
//! ```
//!
//! | file below `partial/<recipe>/.slurm/<name>/` | written by | says |
//! |---|---|---|
//! | `job.json`, `script.sh` | engine, before anything else | what is submitted |
//! | `record.json` | engine, before `sbatch` and again with the job's number | a job of this name may exist |
//! | `log` | Slurm | standard output and error of every start |
//! | `starts/1`, `starts/2`, ... | `mkdir` by each start of the job | who runs; outputs, notes and scratch of that start lie inside |
//! | `starts/N/end.json` | that start, last, by rename | how it ended |
//!
//! The name is made of the recipe and of this very attempt; it is the job's name in Slurm, too. So a crash between `sbatch` and
//! writing down its answer loses nothing: the job is found by its name.
//!
//! # What is promised
//!
//! | promise | how |
//! |---|---|
//! | partial output is never accepted | outputs of a start are taken only when its end file says done; the end file appears by rename, after everything else |
//! | one start is accepted, whoever else runs | every start writes to a folder of its own; accepting is one rename of the attempt's folder, which takes it from all others |
//! | a lost host that lives on harms nothing | a start whose folder is gone, or that a later start has followed, kills itself and all below it |
//! | Slurm that does not answer means nothing | only an answer counts; a job is gone when Slurm answers without it, again after [`SlurmOptions::settle`] |
//! | the engine may die | jobs go on; the next engine that needs the recipe finds the folder, follows the job and takes its outputs |
//! | no duplicate submission | before another `sbatch` the name is looked up; a late job finds its folder gone and ends at once |
//! | Slurm is not overrun | one `squeue` for all jobs, less often while nothing changes or nobody answers |
//!
//! # How an attempt ends
//!
//! The start's own word comes first; Slurm's word decides when there is none ([`state::outcome`]).
//!
//! | Slurm says | the newest start said | outcome |
//! |---|---|---|
//! | anything, also nothing | done | done |
//! | pending, running, suspended, requeued, unknown | anything else | none yet |
//! | ended | waiting | waiting |
//! | `OUT_OF_MEMORY` | killed, or nothing | killed, out of memory |
//! | ended by itself | failed, killed | what it said |
//! | `FAILED`, exit 0:S | nothing | killed by signal S |
//! | `FAILED`, exit 126:0, 127:0, 0:53, `BOOT_FAIL` | nothing | machine: mpcc or the log cannot be reached on that host |
//! | `FAILED`, exit N:0 | nothing | failed with exit code N |
//! | `TIMEOUT`, `DEADLINE` | anything else | timed out |
//! | `NODE_FAIL`, `PREEMPTED` | anything else | machine: the host was lost, taken away |
//! | held after a launch that failed | nothing | machine: no host could start it; it is cancelled |
//! | `CANCELLED` | anything else | machine: somebody cancelled it; cancelled or timed out when it was mpcc |
//! | `COMPLETED`, or no such job | nothing | machine: it left no end |
//!
//! # Limits
//!
//! The program and the store must have one path on every host. On a network file system a start learns only after the attribute
//! cache's time that it was followed. `gpu_memory` is not passed on: Slurm grants whole devices; `--constraint` picks the model.

mod client;
mod decide;
mod follow;
mod parse;
mod place;
mod poll;
mod script;
mod start;
mod state;
mod submit;
mod tail;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::executor::{Attempt, Executor, Notes};
use crate::job::Job;

pub(crate) use start::{Start, foreign};

/// How jobs are submitted and watched.
#[derive(Clone, Debug)]
pub struct SlurmOptions {
    /// The executable, at the same path on every host.
    pub program: PathBuf,
    /// More options of `sbatch`, after those that follow from the stage: `--partition=gpu`.
    pub options: Vec<String>,
    /// The environment of Slurm's own commands: `PATH`, `SLURM_CONF`.
    pub environment: Vec<(OsString, OsString)>,
    /// What every job gets; nothing else of the caller's environment reaches it.
    pub exported: Vec<(OsString, OsString)>,
    /// Values of secrets by name. A job gets those that it names.
    pub secrets: BTreeMap<String, String>,
    /// How long a stage may take to end in good order before it is killed.
    pub grace: Duration,
    /// How often the queue is looked at while something happens.
    pub interval: Duration,
    /// How long after a job's end its end file may appear: the time a shared file system takes.
    pub settle: Duration,
    /// How many jobs may be in the queue at once.
    pub limit: usize,
}

/// Submits a batch job for every attempt.
pub struct SlurmExecutor {
    shared: Arc<Shared>,
}

/// What all attempts share.
struct Shared {
    options: SlurmOptions,
    client: Arc<client::Client>,
    queue: poll::Queue,
    room: Semaphore,
}

impl SlurmExecutor {
    /// An executor with these options.
    pub fn new(options: SlurmOptions) -> Self {
        let client = Arc::new(client::Client::new(options.environment.clone()));
        let queue = poll::Queue::new(client.clone(), options.interval);
        let room = Semaphore::new(options.limit.clamp(1, Semaphore::MAX_PERMITS));
        Self { shared: Arc::new(Shared { options, client, queue, room }) }
    }
}

impl Executor for SlurmExecutor {
    fn start(&self, job: Job, notes: Notes) -> Attempt {
        let (attempt, handle) = Attempt::new();
        tokio::spawn(follow::attend(self.shared.clone(), job, notes, handle));
        attempt
    }
}

#[cfg(test)]
pub(in crate::executor) mod tests {
    use super::*;
    use std::path::Path;

    /// A job below `folder` with one output, `y`.
    pub(in crate::executor) fn job(folder: &Path) -> Job {
        let json = serde_json::json!({
            "attempt": 7, "node": "a", "matrix": [], "seed": 1, "threads": 1, "devices": [], "inputs": {},
            "outputs": {"y": {"path": folder.join("job/outputs/y"), "tree": false}},
            "action": {"action": "builtin", "kind": "k", "version": 1, "params": {}, "numerics": false, "seeded": false},
            "folder": folder.join("job"), "partial": folder.join("partial/recipe"), "store": folder.join("store"),
            "log": folder.join("runs/a.log"), "timeout_s": 0, "secrets": []
        });
        serde_json::from_value(json).unwrap()
    }

    pub(super) fn options() -> SlurmOptions {
        SlurmOptions {
            program: "/opt/mpcc".into(),
            options: vec!["--partition=gpu".into()],
            environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
            exported: Vec::new(),
            secrets: BTreeMap::from([("KEY".to_owned(), "hunter2".to_owned())]),
            grace: Duration::from_secs(1),
            interval: Duration::from_millis(50),
            settle: Duration::from_millis(200),
            limit: 10,
        }
    }
}
