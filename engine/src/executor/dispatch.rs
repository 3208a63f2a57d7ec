//! Routes each job to the executor that its node names.

use std::collections::BTreeMap;

use crate::executor::attempt::Attempt;
use crate::executor::{Executor, Notes};
use crate::job::{Job, Outcome, Usage};

/// Executors by name.
#[derive(Default)]
pub struct Dispatch {
    executors: BTreeMap<String, Box<dyn Executor>>,
}

impl Dispatch {
    /// Also knows `executor` under `name`.
    pub fn with(mut self, name: &str, executor: impl Executor + 'static) -> Self {
        self.executors.insert(name.to_owned(), Box::new(executor));
        self
    }
}

impl Executor for Dispatch {
    fn start(&self, job: Job, notes: Notes) -> Attempt {
        if let Some(executor) = self.executors.get(&job.executor) {
            return executor.start(job, notes);
        }
        let (attempt, handle) = Attempt::new();
        let message = format!("there is no executor `{}` here", job.executor);
        // The receiver is in the attempt beside it.
        let _ = handle.end.send((Outcome::machine(message), Usage::default()));
        attempt
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::scripted::{Script, ScriptedExecutor};
    use std::time::Duration;

    fn ends_as(outcome: Outcome) -> ScriptedExecutor {
        ScriptedExecutor::new(move |_| Script::ends(Duration::ZERO, outcome.clone()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_goes_where_its_node_says() {
        let executors =
            Dispatch::default().with("process", ends_as(Outcome::Done)).with("slurm", ends_as(Outcome::TimedOut));
        let (notes, _heard) = tokio::sync::mpsc::unbounded_channel();
        let folder = tempfile::tempdir().unwrap();
        let mut job = crate::executor::slurm::tests::job(folder.path());
        assert_eq!(executors.start(job.clone(), notes.clone()).await.0, Outcome::Done);
        job.executor = "slurm".to_owned();
        assert_eq!(executors.start(job.clone(), notes.clone()).await.0, Outcome::TimedOut);
        job.executor = "grid".to_owned();
        assert!(executors.start(job, notes).await.0.describe().contains("`grid`"));
    }
}
