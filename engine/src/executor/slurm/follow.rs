//! One attempt from its submission, or from where another engine left it, to its end.
//!
//! Each round reads the attempt's files, looks at the latest answer of the queue, and does what [`decide`] says. Stopping is
//! two steps, as everywhere: SIGTERM to the script, which is the worker (a job that only waits is cancelled at once); after the
//! grace period `scancel`, which ends everything. If Slurm does not answer even then, closing the folder does: the start kills
//! itself when it finds it gone.

use std::io;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Shared;
use super::client::CallError;
use super::decide::{Limits, Step, View, decide};
use super::place::{Place, Record, Said, Starts};
use super::poll::{Seen, Watched};
use super::state::{Ended, State, Stop, outcome};
use super::submit::{Submission, blocking};
use super::tail::Tail;
use crate::executor::attempt::Handle;
use crate::executor::memory::LogWatch;
use crate::executor::process::{Orders, stronger, until};
use crate::executor::speech;
use crate::executor::{Notes, Order};
use crate::job::{Job, Outcome, Usage};
use crate::stage::Note;

/// How long a job may take to leave after its stage is done.
const LEAVE: Duration = Duration::from_secs(5);

/// How long a kill waits for Slurm to take it.
const KILL: Duration = Duration::from_secs(5);

/// Carries out one attempt and reports its end.
pub(super) async fn attend(shared: std::sync::Arc<Shared>, job: Job, notes: Notes, mut handle: Handle) {
    let ended = carry_out(&shared, &job, &notes, &mut handle.orders).await;
    // Nobody listens when the attempt was dropped.
    let _ = handle.end.send(ended);
}

async fn carry_out(shared: &Shared, job: &Job, notes: &Notes, orders: &mut Orders) -> (Outcome, Usage) {
    let _room = tokio::select! {
        room = shared.room.acquire() => room.expect("it is never closed"),
        _ = stronger(orders, Order::Run) => return (Outcome::Cancelled, Usage::default()),
    };
    loop {
        let (place, id, adopted) = match place(shared, job, notes, orders).await {
            Ok(found) => found,
            Err(outcome) => return (outcome, Usage::default()),
        };
        let follower = Follower::new(shared, job, notes, place, id, adopted);
        if let Some(ended) = follower.follow(orders).await {
            return ended;
        }
    }
}

/// A job to follow: one that an earlier engine left, else a new one. Also its number, and whether it was left.
async fn place(
    shared: &Shared,
    job: &Job,
    notes: &Notes,
    orders: &mut Orders,
) -> Result<(Place, Option<u64>, bool), Outcome> {
    let unread = |error: io::Error| Outcome::machine(format!("what earlier runs left cannot be read: {error}"));
    if let Some((place, record)) = left(shared, job).await.map_err(unread)? {
        return Ok((place, record.job, true));
    }
    let place = Place::of(job);
    let id = Submission { shared, job, place: &place, notes }.submit(orders).await?;
    Ok((place, Some(id), false))
}

/// The job that an earlier engine left. A folder without a record was never submitted; of two jobs, which no engine makes on
/// purpose, the first is kept.
async fn left(shared: &Shared, job: &Job) -> io::Result<Option<(Place, Record)>> {
    let of = job.clone();
    let places = blocking(move || {
        let records = Place::left(&of)?.into_iter().map(|place| Ok((place.recorded()?, place)));
        records.collect::<io::Result<Vec<_>>>()
    });
    let mut found = None;
    for (record, place) in places.await? {
        match record {
            Some(record) if found.is_none() => found = Some((place, record)),
            record => {
                if record.is_some() {
                    // Without an answer the closed folder ends it.
                    let _ = shared.client.cancel(&place.name()).await;
                }
                let of = job.clone();
                blocking(move || place.close(&of)).await?;
            }
        }
    }
    Ok(found)
}

/// Follows one job.
struct Follower<'a> {
    shared: &'a Shared,
    job: &'a Job,
    notes: &'a Notes,
    place: Place,
    /// The job's number, as soon as it is known.
    id: Option<u64>,
    /// Left by an earlier engine, and not yet seen alive.
    stale: bool,
    watched: Watched,
    seen: Seen,
    heard: Heard,
    words: LogWatch,
    /// What was said of its state last.
    told: String,
    done_since: Option<Instant>,
    over_since: Option<Instant>,
    stop: Option<Stop>,
    /// When the next step of stopping is due, and how many were taken.
    due: Option<Instant>,
    steps: u32,
}

/// What was read so far of files that grow.
#[derive(Default)]
struct Heard {
    start: u32,
    notes: Tail,
    log: Tail,
}

impl<'a> Follower<'a> {
    fn new(shared: &'a Shared, job: &'a Job, notes: &'a Notes, place: Place, id: Option<u64>, adopted: bool) -> Self {
        let watched = shared.queue.watch(place.name());
        let follower = Self {
            shared,
            job,
            notes,
            place,
            id,
            stale: adopted,
            watched,
            seen: Seen::NotYet,
            heard: Heard::default(),
            words: LogWatch::start(job),
            told: String::new(),
            done_since: None,
            over_since: None,
            stop: None,
            due: None,
            steps: 0,
        };
        if adopted {
            follower.say(format!("an earlier run has left Slurm job {}", follower.name()));
        }
        follower
    }

    /// To the end of the job; nothing when the job is not worth following and another one should be submitted.
    async fn follow(mut self, orders: &mut Orders) -> Option<(Outcome, Usage)> {
        let mut obeyed = Order::Run;
        loop {
            let starts = match self.read().await {
                Ok(starts) => starts,
                Err(error) => return Some(self.lost(&error).await),
            };
            self.look(&starts);
            match self.decide(&starts) {
                Step::Wait => {}
                Step::Accept(number) => return Some(self.accept(number, &starts).await),
                Step::Over => return Some(self.over(starts).await),
                Step::Anew => return self.anew().await,
            }
            if self.steps > 2 {
                return Some(self.over(starts).await);
            }
            tokio::select! {
                order = stronger(orders, obeyed) => {
                    obeyed = order;
                    self.stop.get_or_insert(Stop::Cancelled);
                    self.advance(order == Order::Kill).await;
                }
                () = until(self.due) => self.advance(false).await,
                () = self.watched.changed() => {}
                () = sleep(self.shared.options.interval) => {}
            }
        }
    }

    fn name(&self) -> String {
        self.id.map_or_else(|| format!("`{}`", self.place.name()), |id| id.to_string())
    }

    fn say(&self, message: String) {
        self.note(Note::Info { message });
    }

    fn note(&self, note: Note) {
        // A receiver that is gone wants no notes.
        let _ = self.notes.send((self.job.attempt, note));
    }

    /// Reads the files of the attempt; passes on what is new in them.
    async fn read(&mut self) -> io::Result<Starts> {
        let (place, log) = (self.place.clone(), self.job.log.clone());
        let mut heard = std::mem::take(&mut self.heard);
        let (starts, lines, heard) = blocking(move || {
            let starts = place.starts()?;
            if heard.start != starts.newest {
                heard.start = starts.newest;
                heard.notes = Tail::default();
            }
            let lines = heard.notes.lines(&place.notes(starts.newest))?;
            heard.log.copy(&place.log(), &log)?;
            Ok((starts, lines, heard))
        })
        .await?;
        self.heard = heard;
        for line in lines {
            // The end comes from its own file; a line cut by a dying host says nothing.
            if let Ok(speech::Said::Note(note)) = serde_json::from_str(&line) {
                self.note(note);
            }
        }
        Ok(starts)
    }

    /// Looks at the queue's latest answer.
    fn look(&mut self, starts: &Starts) {
        self.seen = self.watched.seen();
        let alive = match &self.seen {
            Seen::NotYet | Seen::Unknown(_) => None,
            Seen::Gone => Some(false),
            Seen::Job(row, _) => Some(row.state.is_alive()),
        };
        if let Seen::Job(row, _) = &self.seen {
            self.id = Some(row.id);
        }
        match alive {
            None => {}
            Some(true) => {
                self.stale = false;
                self.over_since = None;
            }
            Some(false) => drop(self.over_since.get_or_insert_with(Instant::now)),
        }
        if starts.done.is_some() && self.done_since.is_none() {
            self.done_since = Some(Instant::now());
            self.watched.poke();
        }
        self.tell();
        self.check_time();
    }

    /// Says where the job is, when that has changed.
    fn tell(&mut self) {
        let text = match &self.seen {
            Seen::NotYet => return,
            Seen::Unknown(reason) => format!("Slurm does not answer ({reason}); its jobs are taken to go on"),
            Seen::Gone => format!("Slurm knows no job {}", self.name()),
            Seen::Job(row, _) => {
                let hosts = if row.hosts.is_empty() { String::new() } else { format!(" on {}", row.hosts) };
                let waits = row.state == State::Pending && row.reason != "None";
                let reason = if waits { format!(" ({})", row.reason) } else { String::new() };
                format!("Slurm job {}: {}{hosts}{reason}", row.id, row.state.describe())
            }
        };
        if text != self.told {
            self.say(text.clone());
            self.told = text;
        }
    }

    /// Begins to stop a start that has been running for longer than the stage's time limit.
    fn check_time(&mut self) {
        let Seen::Job(row, at) = &self.seen else { return };
        let limit = Duration::from_secs(self.job.timeout_s);
        let ran = row.elapsed + at.elapsed();
        if self.stop.is_none() && !limit.is_zero() && row.state == State::Running && ran >= limit {
            self.stop = Some(Stop::TimedOut);
            self.due = Some(Instant::now());
        }
    }

    fn decide(&self, starts: &Starts) -> Step {
        let since = |moment: Option<Instant>| moment.map(|moment| moment.elapsed()).unwrap_or_default();
        let view = View {
            seen: &self.seen,
            starts,
            done_for: since(self.done_since),
            over_for: since(self.over_since),
            // A job that was told to stop is not submitted again.
            stale: self.stale && self.stop.is_none(),
        };
        decide(&view, Limits { leave: LEAVE, settle: self.shared.options.settle })
    }

    /// The next step of stopping.
    async fn advance(&mut self, kill: bool) {
        self.steps = if kill { 3 } else { self.steps + 1 };
        let (client, name) = (&self.shared.client, self.place.name());
        let runs = matches!(&self.seen, Seen::Job(row, _) if row.state == State::Running);
        let asked: Result<(), CallError> = match self.steps {
            1 if runs => client.terminate(&name).await,
            1 | 2 => client.cancel(&name).await,
            // The caller closes the folder next, which needs nobody's answer.
            _ => tokio::time::timeout(KILL, client.cancel(&name)).await.unwrap_or(Ok(())),
        };
        if let Err(error) = asked {
            self.say(format!("Slurm job {} cannot be told to stop: {error}", self.name()));
        }
        self.due = Some(Instant::now() + self.shared.options.grace);
        self.watched.poke();
    }

    /// Takes the outputs of a start that is done.
    async fn accept(&mut self, number: u32, starts: &Starts) -> (Outcome, Usage) {
        if matches!(&self.seen, Seen::Job(row, _) if row.state.is_alive() && row.state != State::Completing) {
            // Another start, or a copy of the job, is still at it. The closed folder ends it, too.
            let _ = tokio::time::timeout(KILL, self.shared.client.cancel(&self.place.name())).await;
        }
        let usage = starts.done.as_ref().map(|(_, said)| said.usage).unwrap_or_default();
        let (place, job) = (self.place.clone(), self.job.clone());
        let taken = blocking(move || place.close(&job)?.deliver(number, &job)).await;
        match taken {
            Ok(()) => (Outcome::Done, usage),
            Err(error) => (Outcome::machine(format!("its outputs cannot be taken: {error}")), usage),
        }
    }

    /// Ends an attempt that has no outputs.
    async fn over(&mut self, starts: Starts) -> (Outcome, Usage) {
        let said = starts.said.filter(|_| starts.newest > 0);
        let Ending { slurm, hosts, elapsed } = self.ending().await;
        let usage =
            said.as_ref().map_or(Usage { wall_s: elapsed.as_secs_f64(), ..Usage::default() }, |said| said.usage);
        let said = said.map(|Said { outcome, .. }| outcome);
        if matches!(&self.seen, Seen::Job(row, _) if row.state == State::Held) {
            // Nobody waits for it any more; where it stays, it finds nothing to claim.
            let _ = self.shared.client.cancel(&self.place.name()).await;
        }
        let outcome = outcome(Ended { job: self.name(), hosts: &hosts, slurm, said, stop: self.stop });
        // What Slurm has added to the log at the end.
        let _ = self.read().await;
        self.close().await;
        (self.words.judge(outcome), usage)
    }

    /// What Slurm says of the end, unless the attempt was given up before there was one.
    async fn ending(&self) -> Ending {
        let (row, at) = match &self.seen {
            Seen::Job(row, at) => (row, at),
            _ => {
                let slurm = match self.id {
                    Some(id) if self.steps <= 2 => self.shared.client.ended(id).await,
                    _ => None,
                };
                return Ending { slurm, hosts: String::new(), elapsed: Duration::ZERO };
            }
        };
        let running = row.state == State::Running;
        let elapsed = row.elapsed + if running { at.elapsed() } else { Duration::ZERO };
        let is_final = !row.state.is_alive() && row.state != State::Held;
        let shown = if is_final { self.shared.client.ended(row.id).await } else { None };
        let slurm = shown.unwrap_or_else(|| (row.state.clone(), super::state::Exit::default()));
        Ending { slurm: Some(slurm), hosts: row.hosts.clone(), elapsed }
    }

    /// A job of an earlier engine that ended badly, or was never there: its folder goes, and with it the claim of a late start.
    async fn anew(&mut self) -> Option<(Outcome, Usage)> {
        self.say(format!("Slurm job {} ended without outputs; the stage is submitted again", self.name()));
        let (place, job) = (self.place.clone(), self.job.clone());
        match blocking(move || place.close(&job)).await {
            Ok(_) => None,
            Err(error) => {
                let message = format!("what an earlier run left cannot be put away: {error}");
                Some((Outcome::machine(message), Usage::default()))
            }
        }
    }

    /// The attempt's own folder cannot be read.
    async fn lost(&mut self, error: &io::Error) -> (Outcome, Usage) {
        // Without its folder no start of it can succeed.
        let _ = tokio::time::timeout(KILL, self.shared.client.cancel(&self.place.name())).await;
        self.close().await;
        (Outcome::machine(format!("{}: {error}", self.place.folder().display())), Usage::default())
    }

    async fn close(&self) {
        let (place, job) = (self.place.clone(), self.job.clone());
        // A folder that stays is found by the next attempt, which sees that its job is over.
        let _ = blocking(move || place.close(&job)).await;
    }
}

/// How a job ended, as far as Slurm tells.
struct Ending {
    slurm: Option<(State, super::state::Exit)>,
    hosts: String,
    elapsed: Duration,
}
