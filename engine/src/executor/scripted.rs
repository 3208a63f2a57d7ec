//! An executor that runs nothing: every attempt ends as a script says. For tests of the run loop on a virtual clock.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::executor::attempt::Handle;
use crate::executor::{Attempt, Executor, Notes, Order};
use crate::job::{Job, Outcome, Usage};
use crate::stage::Note;

/// What an attempt does.
#[derive(Clone, Debug)]
pub struct Script {
    /// Notes, sent at once.
    pub notes: Vec<Note>,
    /// How long it takes on tokio's clock (which tests pause).
    pub takes: Duration,
    /// How it ends when nobody stops it.
    pub outcome: Outcome,
    /// What it says it used, wall time aside.
    pub usage: Usage,
}

impl Script {
    /// An attempt that ends with `outcome` after `takes`.
    pub fn ends(takes: Duration, outcome: Outcome) -> Self {
        Self { notes: Vec::new(), takes, outcome, usage: Usage::default() }
    }
}

type Author = dyn Fn(&Job) -> Script + Send + Sync;

/// Runs scripts.
pub struct ScriptedExecutor {
    author: Box<Author>,
    started: Arc<Mutex<Vec<Job>>>,
}

impl ScriptedExecutor {
    /// An executor that asks `author` what each job does. The author may write the job's outputs.
    pub fn new(author: impl Fn(&Job) -> Script + Send + Sync + 'static) -> Self {
        Self { author: Box::new(author), started: Arc::default() }
    }

    /// The jobs started so far, in order.
    pub fn started(&self) -> Vec<Job> {
        self.started.lock().expect("unpoisoned").clone()
    }
}

impl Executor for ScriptedExecutor {
    fn start(&self, job: Job, notes: Notes) -> Attempt {
        let script = (self.author)(&job);
        for note in &script.notes {
            // A receiver that is gone wants no notes.
            let _ = notes.send((job.attempt, note.clone()));
        }
        let timeout = Some(Duration::from_secs(job.timeout_s)).filter(|limit| !limit.is_zero());
        self.started.lock().expect("unpoisoned").push(job);
        let (attempt, handle) = Attempt::new();
        tokio::spawn(play(script, timeout, handle));
        attempt
    }
}

async fn play(script: Script, timeout: Option<Duration>, mut handle: Handle) {
    let started = tokio::time::Instant::now();
    let limit = timeout.unwrap_or(Duration::MAX);
    let outcome = tokio::select! {
        biased;
        _ = handle.orders.wait_for(|order| *order >= Order::Drain) => Outcome::Cancelled,
        () = tokio::time::sleep(script.takes.min(limit)) => {
            if script.takes > limit { Outcome::TimedOut } else { script.outcome }
        }
    };
    let usage = Usage { wall_s: started.elapsed().as_secs_f64(), ..script.usage };
    // Nobody listens when the attempt was dropped.
    let _ = handle.end.send((outcome, usage));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::AttemptId;

    fn job(timeout_s: u64) -> Job {
        let json = serde_json::json!({
            "attempt": 7, "node": "a", "matrix": [], "seed": 1, "threads": 1, "devices": [], "inputs": {}, "outputs": {},
            "action": {"action": "builtin", "kind": "k", "version": 1, "params": {}, "numerics": false, "seeded": false},
            "folder": "f", "partial": "p", "store": "s", "log": "l", "timeout_s": timeout_s, "secrets": []
        });
        serde_json::from_value(json).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn ends_as_scripted() {
        let executor = ScriptedExecutor::new(|_| Script {
            notes: vec![Note::Metric { name: "loss".into(), value: 0.5 }],
            ..Script::ends(Duration::from_secs(100), Outcome::Done)
        });
        let (notes, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let (outcome, usage) = executor.start(job(0), notes.clone()).await;
        assert_eq!(outcome, Outcome::Done);
        assert!((usage.wall_s - 100.0).abs() < 0.01, "{usage:?}");
        assert_eq!(heard.recv().await.unwrap().0, AttemptId(7));
        assert_eq!(executor.start(job(50), notes.clone()).await.0, Outcome::TimedOut);
        let attempt = executor.start(job(0), notes);
        attempt.drain();
        assert_eq!(attempt.await.0, Outcome::Cancelled);
        assert_eq!(executor.started().len(), 3);
    }
}
