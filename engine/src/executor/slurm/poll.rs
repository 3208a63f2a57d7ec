//! One `squeue` for all jobs.
//!
//! A task asks for every name that somebody watches and publishes the answer. It asks again after the interval; less often while
//! nothing changes (up to [`CALM`] intervals) and, twice as long each time up to [`TROUBLE`], while nobody answers. Whoever knows
//! that something has changed pokes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use super::client::{CallError, Client};
use super::parse::Row;

/// The longest pause while nothing changes, in intervals.
const CALM: u32 = 8;

/// The longest pause while nobody answers.
const TROUBLE: Duration = Duration::from_secs(30);

/// What one `squeue` told.
pub(super) struct Snapshot {
    asked: BTreeSet<String>,
    rows: Result<Vec<Row>, String>,
    at: Instant,
}

/// What a snapshot tells of one name.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Seen {
    /// It was not asked for yet.
    NotYet,
    /// Nobody answered, for this reason. It means nothing.
    Unknown(String),
    /// Slurm knows no such job.
    Gone,
    /// The job, a live one if there are several, and when it was seen.
    Job(Row, Instant),
}

impl Snapshot {
    pub(super) fn of(&self, name: &str) -> Seen {
        match &self.rows {
            _ if !self.asked.contains(name) => Seen::NotYet,
            Err(reason) => Seen::Unknown(reason.clone()),
            Ok(rows) => {
                let rows = rows.iter().filter(|row| row.name == name);
                let best = rows.max_by_key(|row| (row.state.is_alive(), row.id));
                best.map_or(Seen::Gone, |row| Seen::Job(row.clone(), self.at))
            }
        }
    }
}

/// Watches the queue.
pub(super) struct Queue {
    inner: Arc<Inner>,
    task: OnceLock<AbortHandle>,
}

struct Inner {
    client: Arc<Client>,
    interval: Duration,
    names: Mutex<BTreeMap<String, usize>>,
    poked: Notify,
    snapshots: watch::Sender<Arc<Snapshot>>,
}

/// One name that is asked for, as long as this value lives.
pub(super) struct Watched {
    name: String,
    inner: Arc<Inner>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

impl Queue {
    pub(super) fn new(client: Arc<Client>, interval: Duration) -> Self {
        let nothing = Snapshot { asked: BTreeSet::new(), rows: Ok(Vec::new()), at: Instant::now() };
        let (snapshots, _) = watch::channel(Arc::new(nothing));
        let inner = Inner { client, interval, names: Mutex::default(), poked: Notify::new(), snapshots };
        Self { inner: Arc::new(inner), task: OnceLock::new() }
    }

    /// Asks for `name` from now on.
    pub(super) fn watch(&self, name: String) -> Watched {
        *self.inner.names().entry(name.clone()).or_default() += 1;
        self.task.get_or_init(|| tokio::spawn(keep_asking(self.inner.clone())).abort_handle());
        self.inner.poked.notify_one();
        Watched { name, inner: self.inner.clone(), snapshots: self.inner.snapshots.subscribe() }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

impl Inner {
    fn names(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, usize>> {
        self.names.lock().expect("nobody panics with it")
    }
}

impl Watched {
    /// What is known now.
    pub(super) fn seen(&mut self) -> Seen {
        self.snapshots.borrow_and_update().of(&self.name)
    }

    /// Waits for the next answer.
    pub(super) async fn changed(&mut self) {
        if self.snapshots.changed().await.is_err() {
            // The queue is being dropped, and with it everything that could tell.
            std::future::pending::<()>().await;
        }
    }

    /// Something has changed: asks soon.
    pub(super) fn poke(&self) {
        self.inner.poked.notify_one();
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut names = self.inner.names();
        if let Some(count) = names.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                names.remove(&self.name);
            }
        }
    }
}

async fn keep_asking(inner: Arc<Inner>) {
    let mut rhythm = Rhythm::new(inner.interval);
    let mut before = None;
    loop {
        let names: Vec<String> = inner.names().keys().cloned().collect();
        if names.is_empty() {
            inner.poked.notified().await;
            continue;
        }
        let at = Instant::now();
        let rows = inner.client.queue(&names).await;
        let states =
            rows.as_ref().ok().map(|rows| rows.iter().map(|row| (row.id, row.state.clone())).collect::<Vec<_>>());
        let delay = rhythm.next(states.is_some(), states != before);
        before = states;
        let answered = rows.is_ok();
        inner.snapshots.send_replace(Arc::new(Snapshot {
            asked: names.into_iter().collect(),
            rows: rows.map_err(|error: CallError| error.to_string()),
            at,
        }));
        tokio::select! {
            () = sleep(delay) => {}
            () = inner.poked.notified(), if answered => {
                // Those that poke together are answered together.
                sleep(inner.interval / 4).await;
                rhythm = Rhythm::new(inner.interval);
            }
        }
    }
}

/// How long to pause.
struct Rhythm {
    interval: Duration,
    delay: Duration,
}

impl Rhythm {
    fn new(interval: Duration) -> Self {
        Self { interval, delay: interval }
    }

    fn next(&mut self, answered: bool, changed: bool) -> Duration {
        self.delay = match (answered, changed) {
            (false, _) => (self.delay * 2).min(TROUBLE.max(self.interval)),
            (true, true) => self.interval,
            (true, false) => (self.delay * 3 / 2).min(self.interval * CALM),
        };
        self.delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::slurm::parse::rows;

    #[test]
    fn only_an_answer_counts() {
        let snapshot = |rows| Snapshot { asked: BTreeSet::from(["a".to_owned()]), rows, at: Instant::now() };
        assert_eq!(snapshot(Err("down".into())).of("a"), Seen::Unknown("down".into()));
        assert_eq!(snapshot(Err("down".into())).of("b"), Seen::NotYet);
        let two =
            snapshot(Ok(rows("7|RUNNING|None|0:01|n1|a\n9|FAILED|None|0:01|n1|a\n8|RUNNING|None|0:01|n1|other\n")));
        let Seen::Job(row, _) = two.of("a") else { panic!("it is there") };
        assert_eq!(row.id, 7, "the live one");
        assert_eq!(two.of("b"), Seen::NotYet);
        assert_eq!(snapshot(Ok(Vec::new())).of("a"), Seen::Gone);
    }

    #[test]
    fn the_rhythm_slows_down_and_picks_up() {
        let second = Duration::from_secs(1);
        let mut rhythm = Rhythm::new(second);
        for _ in 0..20 {
            rhythm.next(true, false);
        }
        assert_eq!(rhythm.delay, 8 * second);
        assert_eq!(rhythm.next(true, true), second);
        for _ in 0..20 {
            rhythm.next(false, true);
        }
        assert_eq!(rhythm.delay, TROUBLE);
        assert!(rhythm.next(true, true) == second);
    }
}
