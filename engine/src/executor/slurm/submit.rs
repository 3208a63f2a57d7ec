//! Getting a job into the queue, once.
//!
//! ```text
//! record written -> sbatch --number--> record with the number -> followed
//!                      |  \--refused for what it asks--> over
//!                      \--anything else: it may have been taken
//!                            -> pause -> squeue by name --found--> followed
//!                                 ^         |   \--not there--> sbatch again
//!                                 \--no answer
//! ```

use std::io;
use std::time::Duration;

use tokio::time::sleep;

use super::place::{Place, Record};
use super::{Shared, script};
use crate::executor::process::{Orders, stronger};
use crate::executor::{Notes, Order};
use crate::job::{Job, Outcome};
use crate::stage::Note;

/// The first and the longest pause after a failure that says nothing about the job.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A job on its way into the queue.
pub(super) struct Submission<'a> {
    pub(super) shared: &'a Shared,
    pub(super) job: &'a Job,
    pub(super) place: &'a Place,
    pub(super) notes: &'a Notes,
}

impl Submission<'_> {
    /// Submits until Slurm has taken the job or refused it; its number.
    pub(super) async fn submit(&self, orders: &mut Orders) -> Result<u64, Outcome> {
        self.create().await.map_err(|error| Outcome::machine(format!("the job cannot be written: {error}")))?;
        let words = script::words(&self.shared.options, self.job, self.place);
        let secrets = script::secrets(&self.shared.options, self.job);
        let mut pause = PAUSE.0;
        let id = loop {
            let error = match self.shared.client.submit(&words, &secrets).await {
                Ok(id) => break id,
                Err(error) if error.is_final() => return Err(self.refused(&error).await),
                Err(error) => error,
            };
            self.say(format!("Slurm did not take the job: {error}; trying again"));
            if let Some(id) = self.look(&mut pause, orders).await? {
                break id;
            }
        };
        self.recorded(id)
            .await
            .map_err(|error| Outcome::machine(format!("the job cannot be written down: {error}")))?;
        Ok(id)
    }

    /// After a failed `sbatch`: whether the job is in the queue all the same. Asks until somebody answers.
    async fn look(&self, pause: &mut Duration, orders: &mut Orders) -> Result<Option<u64>, Outcome> {
        loop {
            tokio::select! {
                _ = stronger(orders, Order::Run) => return Err(self.given_up().await),
                () = sleep(*pause) => {}
            }
            *pause = (*pause * 2).min(PAUSE.1);
            if let Ok(rows) = self.shared.client.queue(&[self.place.name()]).await {
                return Ok(rows.iter().map(|row| row.id).max());
            }
        }
    }

    fn say(&self, message: String) {
        // A receiver that is gone wants no notes.
        let _ = self.notes.send((self.job.attempt, Note::Info { message }));
    }

    async fn refused(&self, error: &super::client::CallError) -> Outcome {
        self.close().await;
        match error {
            super::client::CallError::Start { .. } => Outcome::machine(error.to_string()),
            _ => Outcome::invalid(format!("Slurm refuses the job: {error}")),
        }
    }

    /// Stopped while nobody knew whether the job was taken. If it was, it finds nothing to claim.
    async fn given_up(&self) -> Outcome {
        // Closing the place is what counts; the queue is only tidied.
        let _ = tokio::time::timeout(Duration::from_secs(5), self.shared.client.cancel(&self.place.name())).await;
        self.close().await;
        Outcome::Cancelled
    }

    async fn close(&self) {
        let (place, job) = (self.place.clone(), self.job.clone());
        // A folder that stays is looked at by the next attempt, which finds no job of its name.
        let _ = blocking(move || place.close(&job)).await;
    }

    async fn create(&self) -> io::Result<()> {
        let (place, job, options) = (self.place.clone(), self.job.clone(), self.shared.options.clone());
        blocking(move || {
            place.create(&options, &job)?;
            place.record(Record { job: None })
        })
        .await
    }

    async fn recorded(&self, id: u64) -> io::Result<()> {
        let place = self.place.clone();
        blocking(move || place.record(Record { job: Some(id) })).await
    }
}

/// Does file work off the loop.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
