//! Many requests to one server: at most so many at once, within its limits, each until it is answered or given up.
//!
//! A request goes round: *waiting*, then claimed (so that nobody else asks the same), then admitted by the [`Quota`], then
//! under way. What is worth sending again comes back after a pause that doubles from half a second to half a minute, with
//! jitter, and holds no slot and no claim meanwhile; while as many come back as there are slots, nothing new is sent. When the
//! stage is cancelled, or the budget is used up, what is under way is still waited for and kept, as long as the run's grace
//! period allows.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use mpcc_engine::asking::{Admission, Admitted, Claim, Quota};
use mpcc_engine::cache::{Charge, Digest};
use mpcc_engine::stage::{Context, Note, StageError};
use tokio::time::Instant;

use super::openai::{Failure, Server, Spoken};
use crate::draw;

/// How often a request is sent at most.
const TRIES: u32 = 8;
/// Requests given up in a row, without an answer between, after which the server is.
const GIVEN_UP: usize = 4;
/// The longest pause that a server may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// How soon to look again at requests that others are at, and whether the stage is cancelled.
const POLL: Duration = Duration::from_millis(50);

/// A request that the memo does not answer.
pub struct Wanted {
    /// Which of the caller's requests.
    pub request: usize,
    /// Its key in the memo.
    pub key: Digest,
    /// Its seed.
    pub seed: u64,
    /// The record it is about, for messages.
    pub subject: String,
}

/// An answer with what it took.
pub struct Answered {
    /// What the server said.
    pub spoken: Spoken,
    /// Tokens and money.
    pub took: Charge,
}

/// The caller's side: what is sent, what is known, what is kept.
pub trait Caller {
    /// Makes what is sent.
    fn body(&self, wanted: &Wanted) -> Result<Vec<u8>, StageError>;
    /// The most it may take, as far as is known by now.
    fn estimate(&self, wanted: &Wanted) -> Charge;
    /// Takes the answer from the memo if somebody has put it there meanwhile; whether there was one.
    fn recall(&mut self, wanted: &Wanted) -> bool;
    /// Stores an answer.
    fn keep(&mut self, wanted: &Wanted, answered: Answered) -> Result<(), StageError>;
}

/// A request on its way.
struct Pending {
    wanted: Wanted,
    tries: u32,
    claim: Option<Claim>,
    body: Option<Vec<u8>>,
}

struct Returned {
    pending: Pending,
    admitted: Admitted,
    result: Result<Spoken, Failure>,
}

type UnderWay<'a> = FuturesUnordered<Pin<Box<dyn Future<Output = Returned> + 'a>>>;

/// What of a stage's requests came to nothing.
struct GivenUp {
    subject: String,
    why: String,
    /// Whether another time might do better.
    passing: bool,
}

/// Sends the requests of one stage to one server.
pub struct Exchange<'a> {
    ctx: &'a Context,
    server: &'a Server,
    quota: &'a Quota,
    waiting: VecDeque<Pending>,
    later: Vec<(Instant, Pending)>,
    given_up: Vec<GivenUp>,
    /// Requests given up since the last answer.
    in_a_row: usize,
    any_answer: bool,
    /// Why nothing new is sent.
    over: Option<StageError>,
    total: usize,
}

impl<'a> Exchange<'a> {
    /// Requests to `server` within `quota`.
    pub fn new(ctx: &'a Context, server: &'a Server, quota: &'a Quota) -> Self {
        let (waiting, later, given_up) = (VecDeque::new(), Vec::new(), Vec::new());
        Self { ctx, server, quota, waiting, later, given_up, in_a_row: 0, any_answer: false, over: None, total: 0 }
    }

    /// Gets every request answered.
    ///
    /// # Errors
    /// Some were not: cancelled, refused, over budget, or given up. What was answered is kept.
    pub fn run(mut self, wanted: Vec<Wanted>, caller: &mut dyn Caller) -> Result<(), StageError> {
        self.total = wanted.len();
        self.waiting = wanted.into_iter().map(|wanted| Pending { wanted, tries: 0, claim: None, body: None }).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| StageError::Machine(format!("no runtime: {error}")))?;
        runtime.block_on(self.drive(caller))?;
        self.verdict()
    }

    async fn drive(&mut self, caller: &mut dyn Caller) -> Result<(), StageError> {
        let mut under_way: UnderWay<'a> = FuturesUnordered::new();
        loop {
            if self.over.is_none()
                && let Err(cancelled) = self.ctx.check_cancelled()
            {
                self.over = Some(cancelled);
            }
            let wake = if self.over.is_none() { self.send(&mut under_way, caller)? } else { POLL };
            let idle = self.waiting.is_empty() && self.later.is_empty();
            if under_way.is_empty() && (idle || self.over.is_some()) {
                return Ok(());
            }
            tokio::select! {
                Some(returned) = under_way.next() => self.take(returned, caller)?,
                () = tokio::time::sleep(wake) => {}
            }
        }
    }

    /// Sends what may be sent now; how soon to look again.
    fn send(&mut self, under_way: &mut UnderWay<'a>, caller: &mut dyn Caller) -> Result<Duration, StageError> {
        self.recover();
        let slots = self.quota.slots() as usize;
        while under_way.len() < slots {
            // A server that fails is not given ever new requests to fail at.
            let failing = self.later.iter().filter(|(_, pending)| pending.tries > 0).count() >= slots;
            if failing && self.waiting.front().is_some_and(|pending| pending.tries == 0) {
                break;
            }
            let Some(mut pending) = self.waiting.pop_front() else { break };
            if pending.claim.is_none() && !self.claim(&mut pending, caller) {
                self.put_off(pending, POLL);
                continue;
            }
            let Some(_) = pending.claim else { continue };
            let body = match pending.body.take() {
                Some(body) => body,
                None => match caller.body(&pending.wanted) {
                    Ok(body) => body,
                    // A picture that cannot be read costs its own request, not those under way.
                    Err(error) => {
                        self.give_up(pending, error.to_string(), false);
                        continue;
                    }
                },
            };
            match self.quota.admit(caller.estimate(&pending.wanted))? {
                Admission::Go(admitted) => under_way.push(Box::pin(exchange(self.server, pending, body, admitted))),
                Admission::Wait(wait) => {
                    pending.body = Some(body);
                    self.waiting.push_front(pending);
                    return Ok(wait.min(POLL));
                }
                // What is under way may take less than it was charged.
                Admission::Spent { .. } if !under_way.is_empty() => {
                    pending.body = Some(body);
                    self.waiting.push_front(pending);
                    return Ok(POLL);
                }
                Admission::Spent { message } => {
                    self.over = Some(StageError::invalid(message));
                    break;
                }
            }
        }
        Ok(POLL)
    }

    /// Takes the claim; `false` when somebody else has it. A request that was answered meanwhile is left without one.
    fn claim(&self, pending: &mut Pending, caller: &mut dyn Caller) -> bool {
        let Some(claim) = self.ctx.asking.claim(&pending.wanted.key) else {
            return caller.recall(&pending.wanted);
        };
        if !caller.recall(&pending.wanted) {
            pending.claim = Some(claim);
        }
        true
    }

    fn put_off(&mut self, pending: Pending, pause: Duration) {
        self.later.push((Instant::now() + pause, pending));
    }

    /// Moves what is due to the front of those waiting.
    fn recover(&mut self) {
        let now = Instant::now();
        let mut at = 0;
        while at < self.later.len() {
            if self.later[at].0 <= now {
                let (_, pending) = self.later.swap_remove(at);
                self.waiting.push_front(pending);
            } else {
                at += 1;
            }
        }
    }

    fn take(&mut self, returned: Returned, caller: &mut dyn Caller) -> Result<(), StageError> {
        let Returned { pending, admitted, result } = returned;
        match result {
            Ok(spoken) => self.answered(&pending, admitted, spoken, caller),
            Err(Failure::Again { why, after, unheard }) => {
                let took = unheard.then(|| admitted.estimate());
                self.settle(admitted, took)?;
                self.again(pending, why, after)
            }
            Err(Failure::Request(why)) => {
                self.settle(admitted, None)?;
                self.give_up(pending, why, false);
                Ok(())
            }
            Err(Failure::Server(why)) => {
                self.settle(admitted, None)?;
                self.over.get_or_insert(StageError::invalid(why));
                Ok(())
            }
        }
    }

    fn answered(
        &mut self,
        pending: &Pending,
        admitted: Admitted,
        spoken: Spoken,
        caller: &mut dyn Caller,
    ) -> Result<(), StageError> {
        let estimate = admitted.estimate();
        let took = match spoken.usage {
            Some((prompt, completion)) => self.quota.charge_of(prompt.into(), completion.into()),
            None => estimate,
        };
        // First the answer, then the correction of its charge: a kill in between costs estimated money, not the answer.
        caller.keep(&pending.wanted, Answered { spoken, took })?;
        self.in_a_row = 0;
        self.any_answer = true;
        self.settle(admitted, Some(took))?;
        let left = self.waiting.len() + self.later.len();
        self.ctx.progress(self.total.saturating_sub(left) as u64, self.total as u64, "requests");
        Ok(())
    }

    fn settle(&mut self, admitted: Admitted, took: Option<Charge>) -> Result<(), StageError> {
        let spent = self.ctx.asking.spend(took.unwrap_or(Charge { requests: 1, ..Charge::default() }));
        let Charge { requests, prompt_tokens, completion_tokens, .. } = spent;
        self.ctx.notes.note(Note::Usage {
            requests: requests.unsigned_abs(),
            prompt_tokens: prompt_tokens.unsigned_abs(),
            completion_tokens: completion_tokens.unsigned_abs(),
            cost: spent.dollars(),
        });
        self.quota.settle(admitted, took)
    }

    fn again(&mut self, mut pending: Pending, why: String, after: Option<Duration>) -> Result<(), StageError> {
        if let Some(pause) = after {
            if pause > LONGEST_PAUSE {
                let message = format!("{why}; it asks to wait {} s. Run again later", pause.as_secs());
                self.over.get_or_insert(StageError::Machine(message));
                return Ok(());
            }
            self.quota.hold(pause)?;
        }
        // Others may ask it meanwhile, and thousands of bodies would fill the memory.
        (pending.claim, pending.body) = (None, None);
        pending.tries += 1;
        if pending.tries >= TRIES {
            self.give_up(pending, format!("{why} (sent {TRIES} times)"), true);
        } else {
            let pause = after.unwrap_or_default().max(pause(&pending));
            self.put_off(pending, pause);
        }
        Ok(())
    }

    fn give_up(&mut self, pending: Pending, why: String, passing: bool) {
        self.in_a_row += 1;
        if !passing && !self.any_answer && self.in_a_row >= GIVEN_UP {
            let message = format!("{why}; the first {GIVEN_UP} requests were refused, so no more are sent");
            self.over.get_or_insert(StageError::invalid(message));
        }
        if passing && self.in_a_row >= GIVEN_UP {
            let message = format!("{why}; {GIVEN_UP} requests in a row came to nothing. Answers so far are kept");
            self.over.get_or_insert(StageError::Machine(message));
        }
        self.given_up.push(GivenUp { subject: pending.wanted.subject, why, passing });
    }

    fn verdict(self) -> Result<(), StageError> {
        if let Some(over) = self.over {
            return Err(over);
        }
        let Some(first) = self.given_up.first() else { return Ok(()) };
        let (count, total) = (self.given_up.len(), self.total);
        let message = format!(
            "{count} of {total} requests failed; the first, about {}: {}; the others' answers are kept",
            first.subject, first.why
        );
        let passing = self.given_up.iter().all(|one| one.passing);
        Err(if passing { StageError::Machine(message) } else { StageError::invalid(message) })
    }
}

async fn exchange(server: &Server, pending: Pending, body: Vec<u8>, admitted: Admitted) -> Returned {
    let result = server.ask(body).await;
    Returned { pending, admitted, result }
}

/// How long to wait before a request is sent again: doubling, and different for each request, so that they do not all come back
/// at once.
fn pause(pending: &Pending) -> Duration {
    let longest = Duration::from_millis(500 * (1 << pending.tries.min(7))).min(Duration::from_secs(30));
    let draw = draw::rank(u64::from(pending.tries), "pause", &pending.wanted.key.hex());
    longest.mul_f64(0.5 + 0.5 * (draw as f64 / u64::MAX as f64))
}
