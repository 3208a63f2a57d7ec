//! One thread that answers. A request that comes while others are in work joins them between two tokens: what an answer is does not
//! depend on its company.
//!
//! | a request | where |
//! |---|---|
//! | waits | in the channel, at most `--queue` of them; one more is told to come back |
//! | is in work | in [`InWork`], at most [`TOGETHER`] of them, under the number by which the model tells it |
//! | has ended, or its client has gone | nowhere: its rows are free for the next |

use std::cell::RefCell;
use std::collections::BTreeMap;
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

/// Requests in work at once at most.
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
        if stopping.load(Ordering::SeqCst) {
            let _ = first.events.send(Event::Failed(Refusal::stopping()));
            continue;
        }
        let in_work = RefCell::new(InWork::default());
        let ended = catch_unwind(AssertUnwindSafe(|| answer(vlm, stopping, first, jobs, &in_work)))
            .unwrap_or_else(|_| Err(Refusal::internal("the model broke on this request or one beside it")));
        // Those that have ended hear nothing of this any more.
        let left = in_work.into_inner().requests;
        if let Err(refusal) = ended {
            for request in left.values() {
                let _ = request.events.send(Event::Failed(refusal.clone()));
            }
        }
    }
}

/// Requests that the model has, by number.
#[derive(Default)]
struct InWork {
    requests: BTreeMap<usize, Growth>,
    /// Requests so far.
    count: usize,
}

/// A request in work: where its events go, and its choices.
struct Growth {
    events: UnboundedSender<Event>,
    choices: Vec<Choice>,
}

impl InWork {
    /// Takes up a request under the next number.
    fn take_up(&mut self, Job { prepared, events }: Job) -> GenerateRequest {
        let Prepared { prompt, sampling, seeds, stops } = prepared;
        let choice = |_: &u64| Choice { stops: Stops::new(stops.clone()), ..Choice::default() };
        self.requests.insert(self.count, Growth { events, choices: seeds.iter().map(choice).collect() });
        self.count += 1;
        GenerateRequest { prompt, sampling, seeds }
    }
}

/// A choice that grows.
#[derive(Default)]
struct Choice {
    growing: Growing,
    stops: Stops,
    stopped: bool,
}

/// Sees every token of what is in work.
struct Watcher<'a> {
    vlm: &'a Vlm,
    stopping: &'a AtomicBool,
    in_work: &'a RefCell<InWork>,
}

impl Watch for Watcher<'_> {
    /// Whoever has gone away while there was no room is out of work.
    fn wanted(&mut self, request: usize) -> bool {
        let mut in_work = self.in_work.borrow_mut();
        let wanted = in_work.requests.get(&request).is_some_and(|growth| !growth.events.is_closed());
        if !wanted {
            in_work.requests.remove(&request);
        }
        wanted
    }

    fn token(&mut self, request: usize, sample: usize, id: u32) -> ControlFlow<()> {
        let mut in_work = self.in_work.borrow_mut();
        let Some(Growth { events, choices }) = in_work.requests.get_mut(&request) else {
            return ControlFlow::Break(());
        };
        if self.stopping.load(Ordering::Relaxed) || events.is_closed() {
            return ControlFlow::Break(());
        }
        if self.vlm.eos().contains(&id) {
            return ControlFlow::Continue(());
        }
        let choice = &mut choices[sample];
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

/// Answers `first` and whatever comes before nothing is in work any more.
fn answer(
    vlm: &Vlm,
    stopping: &AtomicBool,
    first: Job,
    jobs: &Receiver<Job>,
    in_work: &RefCell<InWork>,
) -> Result<(), Refusal> {
    let mut first = Some(first);
    let mut source = || {
        let mut in_work = in_work.borrow_mut();
        if stopping.load(Ordering::SeqCst) || in_work.requests.len() >= TOGETHER {
            return None;
        }
        // Whoever has gone away needs no answer.
        let mut next = std::iter::from_fn(|| first.take().or_else(|| jobs.try_recv().ok()));
        next.find(|job| !job.events.is_closed()).map(|job| in_work.take_up(job))
    };
    let mut watcher = Watcher { vlm, stopping, in_work };
    let generated = vlm.generate_from(&mut source, &mut watcher, &mut |request, completions| {
        if stopping.load(Ordering::SeqCst) {
            return ControlFlow::Break(());
        }
        if let Some(mut growth) = in_work.borrow_mut().requests.remove(&request) {
            for ((sample, completion), choice) in completions.iter().enumerate().zip(&mut growth.choices) {
                choice.end(completion, sample, &growth.events);
            }
        }
        ControlFlow::Continue(())
    });
    generated.map_err(|error| Refusal::internal(&error.to_string()))?;
    if stopping.load(Ordering::SeqCst) { Err(Refusal::stopping()) } else { Ok(()) }
}
