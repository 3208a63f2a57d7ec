//! Executors carry out jobs. An executor starts an attempt and answers once, when it is over; while it runs, the stage's
//! notes arrive on the channel that the caller gave.
//!
//! | executor | where the stage runs |
//! |---|---|
//! | [`process`] | in a child process of this host, one per stage; plain commands under one [`warden`] a run |
//! | [`slurm`] | in a batch job of a cluster |
//! | [`dispatch`] | where the job's node says: one of the others |
//! | [`scripted`] | nowhere: it ends as the test's script says |

pub mod attempt;
mod direct;
pub mod dispatch;
mod memory;
pub(crate) mod meter;
pub mod process;
pub mod redact;
pub mod scripted;
pub mod slurm;
pub mod speech;
pub mod tree;
pub mod warden;

use tokio::sync::mpsc::UnboundedSender;

use crate::job::{AttemptId, Job};
use crate::stage::Note;

pub use attempt::{Attempt, Control, Order};
pub use dispatch::Dispatch;
pub use memory::OutOfMemoryWatch;
pub use process::{ProcessExecutor, ProcessOptions, log_tail};
pub use slurm::{SlurmExecutor, SlurmOptions};

/// Where the notes of running stages go.
pub type Notes = UnboundedSender<(AttemptId, Note)>;

/// Starts jobs. Must be called inside a tokio runtime.
pub trait Executor: Send + Sync {
    /// Starts `job`. It never fails here: an attempt that cannot start ends as [`crate::job::Outcome::Failed`].
    fn start(&self, job: Job, notes: Notes) -> Attempt;
}
