//! One thread that answers. Requests that come while it works wait, and are answered together when it is free: what an answer is
//! does not depend on its company.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use mpcc_stages::models::generate::{Completion, GenerateRequest, Sampling, Watch};
use mpcc_stages::models::growing::Growing;
use mpcc_stages::models::vlm::{Prompt, Vlm};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::reply::Refusal;
use super::stops::Stops;
use crate::report::Failure;

/// Requests that are answered together at most.
const TOGETHER: usize = 32;

/// A request, ready for the model.
pub(super) struct Prepared {
    /// What is asked.
    pub(super) prompt: Arc<Prompt>,
    /// How tokens are drawn.
    pub(super) sampling: Sampling,
    /// One answer a seed.
    pub(super) seeds: Vec<u64>,
    /// Strings that end an answer.
    pub(super) stops: Vec<String>,
}

/// What happens to an answer.
#[derive(Debug)]
pub(super) enum Event {
    /// More text of a choice.
    Text(usize, String),
    /// A choice has ended.
    Ended {
        /// Which.
        choice: usize,
        /// Tokens drawn.
        tokens: usize,
        /// Whether it ended by itself or at a stop string; else it was cut.
        by_itself: bool,
    },
    /// There will be no answer.
    Failed(Refusal),
}

struct Job {
    prepared: Prepared,
    events: UnboundedSender<Event>,
}

/// The way to the thread.
pub(super) struct Queue(SyncSender<Job>);

impl Queue {
    /// Starts the thread; `waiting` requests may wait.
    pub(super) fn start(vlm: Arc<Vlm>, stopping: Arc<AtomicBool>, waiting: usize) -> Result<Self, Failure> {
        let (sender, receiver) = sync_channel(waiting);
        let work = move || work(&vlm, &stopping, &receiver);
        let thread = std::thread::Builder::new().name("answers".to_owned()).spawn(work);
        thread.map_err(|error| Failure::machine(format_args!("no thread: {error}")))?;
        Ok(Self(sender))
    }

    /// Puts a request behind the others; its events.
    pub(super) fn push(&self, prepared: Prepared) -> Result<UnboundedReceiver<Event>, Refusal> {
        let (events, receiver) = unbounded_channel();
        match self.0.try_send(Job { prepared, events }) {
            Ok(()) => Ok(receiver),
            Err(TrySendError::Full(_)) => Err(Refusal::busy()),
            Err(TrySendError::Disconnected(_)) => Err(Refusal::stopping()),
        }
    }
}

fn work(vlm: &Vlm, stopping: &AtomicBool, jobs: &Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        let mut batch = vec![first];
        batch.extend(jobs.try_iter().take(TOGETHER - 1));
        // Whoever has gone away needs no answer.
        batch.retain(|job| !job.events.is_closed());
        let ended = match stopping.load(Ordering::SeqCst) {
            true => Err(Refusal::stopping()),
            false => catch_unwind(AssertUnwindSafe(|| answer(vlm, stopping, &batch)))
                .unwrap_or_else(|_| Err(Refusal::internal("the model broke on this request or one beside it"))),
        };
        if let Err(refusal) = ended {
            for job in &batch {
                let _ = job.events.send(Event::Failed(refusal.clone()));
            }
        }
    }
}

/// A choice that grows.
#[derive(Default)]
struct Choice {
    growing: Growing,
    stops: Stops,
    stopped: bool,
}

/// Choices of every request of a batch.
struct Watcher<'a> {
    vlm: &'a Vlm,
    stopping: &'a AtomicBool,
    batch: &'a [Job],
    choices: &'a RefCell<Vec<Vec<Choice>>>,
}

impl Watch for Watcher<'_> {
    fn token(&mut self, request: usize, sample: usize, id: u32) -> ControlFlow<()> {
        let events = &self.batch[request].events;
        if self.stopping.load(Ordering::Relaxed) || events.is_closed() {
            return ControlFlow::Break(());
        }
        if self.vlm.eos().contains(&id) {
            return ControlFlow::Continue(());
        }
        let choice = &mut self.choices.borrow_mut()[request][sample];
        // What cannot be decoded yet comes with the whole text at the end.
        let text = choice.growing.push(self.vlm, id).unwrap_or_default();
        choice.give(&text, sample, events);
        if choice.stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Choice {
    /// Sends text on, up to a stop string.
    fn give(&mut self, text: &str, sample: usize, events: &UnboundedSender<Event>) {
        let (text, stopped) = self.stops.feed(text);
        self.stopped |= stopped;
        if !text.is_empty() {
            let _ = events.send(Event::Text(sample, text));
        }
    }

    fn end(&mut self, completion: &Completion, sample: usize, events: &UnboundedSender<Event>) {
        if !self.stopped {
            let rest = self.growing.rest(&completion.text);
            self.give(&rest, sample, events);
        }
        if !self.stopped {
            let held = self.stops.rest();
            if !held.is_empty() {
                let _ = events.send(Event::Text(sample, held));
            }
        }
        let by_itself = completion.finished || self.stopped;
        let _ = events.send(Event::Ended { choice: sample, tokens: completion.ids.len(), by_itself });
    }
}

fn answer(vlm: &Vlm, stopping: &AtomicBool, batch: &[Job]) -> Result<(), Refusal> {
    let requests: Vec<GenerateRequest> = batch
        .iter()
        .map(|Job { prepared, .. }| GenerateRequest {
            prompt: prepared.prompt.clone(),
            sampling: prepared.sampling,
            seeds: prepared.seeds.clone(),
        })
        .collect();
    let choices = |Job { prepared, .. }: &Job| {
        let choice = |_: &u64| Choice { stops: Stops::new(prepared.stops.clone()), ..Choice::default() };
        prepared.seeds.iter().map(choice).collect::<Vec<_>>()
    };
    let choices = RefCell::new(batch.iter().map(choices).collect::<Vec<_>>());
    let mut watcher = Watcher { vlm, stopping, batch, choices: &choices };
    let generated = vlm.generate_watched(&requests, &mut watcher, &mut |request, completions| {
        if stopping.load(Ordering::SeqCst) {
            return ControlFlow::Break(());
        }
        let mut choices = choices.borrow_mut();
        for (sample, completion) in completions.iter().enumerate() {
            choices[request][sample].end(completion, sample, &batch[request].events);
        }
        ControlFlow::Continue(())
    });
    generated.map_err(|error| Refusal::internal(&error.to_string()))?;
    // Requests that have ended hear nothing of this any more.
    if stopping.load(Ordering::SeqCst) { Err(Refusal::stopping()) } else { Ok(()) }
}
