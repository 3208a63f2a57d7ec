//! Attempts: from a grant to outputs in the store, or to a failure.

use std::path::PathBuf;

use mpcc_cache::Lease;

use super::RunError;
use super::core::{Message, Run, SLOW};
use super::step::{CommitError, Found, Prepared};
use crate::allocator::Grant;
use crate::event::{MemoCount, What};
use crate::executor::{Control, Order};
use crate::fingerprint::KeyError;
use crate::job::{AttemptId, Job, Outcome, Usage};
use crate::plan::NodeId;
use crate::resources::{Memory, format_size};
use crate::scheduler::{Command, End, Input};
use crate::stage::{Note, Spent};

/// An attempt under way.
pub(super) struct Live {
    attempt: u32,
    /// Given back as soon as its process is over.
    grant: Option<Grant>,
    /// What it was told, also before it could be.
    order: Order,
    control: Option<Control>,
    lease: Option<Lease>,
    folder: Option<PathBuf>,
    memo: Option<MemoCount>,
    pub(super) spent: Option<Spent>,
}

impl Live {
    /// Remembers what the end of the node repeats.
    pub(super) fn hear(&mut self, note: &Note) {
        if let Note::Memo { hits, misses } = note {
            self.memo = Some(MemoCount { hits: *hits, misses: *misses });
        }
        self.spent = Spent::of(note).or(self.spent);
    }
}

/// The end of an attempt that another one would not make better.
const LOST: End = End::Failed { again: false };

/// A failure as the journal tells it.
struct Failure {
    message: String,
    machine: bool,
    end: End,
    usage: Usage,
}

impl Run<'_> {
    /// Takes the lease and makes the job.
    pub(super) fn prepare(&mut self, id: NodeId, attempt: u32, grant: Grant) {
        let number = AttemptId(self.attempts.len() as u64);
        self.attempts.insert(number, id);
        let held = (grant.cpus, grant.devices.iter().map(|device| device.ordinal).collect());
        let key = self.keys[&id].clone();
        let request = self.scheduler.request(id).expect("it is scheduled").clone();
        let live = Live {
            attempt,
            grant: Some(grant),
            order: Order::Run,
            control: None,
            lease: None,
            folder: None,
            memo: None,
            spent: None,
        };
        self.live.insert(id, live);
        self.blocking(move |shared| Message::Prepared(id, shared.prepare(id, &key, number, (held, request))));
    }

    pub(super) fn prepared(&mut self, id: NodeId, result: Result<Prepared, KeyError>) -> Result<(), RunError> {
        let live = self.live.get_mut(&id).expect("it is being prepared");
        match result {
            Ok(Prepared::Busy) => self.end(id, End::Busy),
            Ok(Prepared::Found(found)) => {
                let recipe = self.keys[&id].recipe;
                self.say_cached(id, recipe, found)?;
                self.end(id, End::Cached)
            }
            Ok(Prepared::Ready { job, .. }) if live.order > Order::Run => {
                live.folder = Some(job.folder);
                self.cancelled(id)
            }
            Ok(Prepared::Ready { job, lease }) => {
                live.lease = Some(lease);
                live.folder = Some(job.folder.clone());
                self.start(id, *job)
            }
            Err(error) => self.failed(
                id,
                Failure { message: error.to_string(), machine: error.is_machine(), end: LOST, usage: Usage::default() },
            ),
        }
    }

    fn start(&mut self, id: NodeId, job: Job) -> Result<(), RunError> {
        let live = self.live.get_mut(&id).expect("it was prepared");
        let started = What::NodeStarted {
            node: job.node.clone(),
            attempt: live.attempt,
            cpus: u32::try_from(job.threads).unwrap_or(u32::MAX),
            devices: job.devices.clone(),
            memory: live.grant.as_ref().map_or(0, |grant| grant.memory),
            gpu_memory: live.grant.as_ref().and_then(|grant| grant.devices.first()).map_or(0, |device| device.memory),
            log: job.log.clone(),
        };
        let attempt = self.executor.start(job, self.notes.clone());
        live.control = Some(attempt.control());
        let inbox = self.inbox.clone();
        self.tasks.spawn(async move {
            let (outcome, usage) = attempt.await;
            // The run is over when nobody receives.
            let _ = inbox.send(Message::Ended(id, outcome, usage));
        });
        self.say(started)
    }

    /// Passes an order on, now or as soon as there is somebody to give it to.
    pub(super) fn order(&mut self, id: NodeId, order: Order) {
        let Some(live) = self.live.get_mut(&id) else { return };
        live.order = live.order.max(order);
        match (&live.control, order) {
            (None, _) | (_, Order::Run) => {}
            (Some(control), Order::Drain) => control.drain(),
            (Some(control), Order::Kill) => control.kill(),
        }
    }

    pub(super) fn ended(&mut self, id: NodeId, outcome: Outcome, usage: Usage) -> Result<(), RunError> {
        let live = self.live.get_mut(&id).expect("it ran");
        live.control = None;
        let message = outcome.describe();
        let machine = outcome.is_machine();
        let end = match outcome.out_of_memory() {
            Some(memory @ Memory::Main) => End::OutOfMemory { memory, used: usage.peak_rss_bytes },
            Some(memory @ Memory::Gpu) => End::OutOfMemory { memory, used: usage.gpu_peak_bytes },
            None => End::Failed { again: outcome.may_pass_again() },
        };
        match outcome {
            Outcome::Done => {
                let (key, folder) = (self.keys[&id].clone(), live.folder.clone().expect("a started job has a folder"));
                let grant = live.grant.take();
                self.blocking(move |shared| Message::Committed(id, shared.commit(id, &key, &folder), usage));
                self.later(SLOW, Message::Slow(vec![id]));
                // Hashing its outputs keeps no device from the next one.
                grant.map_or(Ok(()), |grant| self.step(Input::Exited(id, grant)))
            }
            Outcome::Waiting { message } => {
                let node = self.name(id);
                self.say(What::NodeWaiting { node, message })?;
                self.end(id, End::Waiting)
            }
            _ if live.order > Order::Run => self.cancelled(id),
            Outcome::Cancelled => {
                let message = "it stopped as if it had been cancelled".to_owned();
                self.failed(id, Failure { message, machine: false, end, usage })
            }
            _ => self.failed(id, Failure { message, machine, end, usage }),
        }
    }

    pub(super) fn committed(
        &mut self,
        id: NodeId,
        result: Result<Found, CommitError>,
        usage: Usage,
    ) -> Result<(), RunError> {
        let Found { outputs, published } = match result {
            Ok(found) => found,
            Err(error) => {
                let (message, machine) = (error.to_string(), error.is_machine());
                return self.failed(id, Failure { message, machine, end: LOST, usage });
            }
        };
        let Usage { wall_s, cpu_s, peak_rss_bytes, gpu_peak_bytes } = usage;
        let (node, recipe, memo) = (self.name(id), self.keys[&id].recipe, self.live[&id].memo);
        let spent = self.spent(id);
        let finished =
            What::NodeFinished { node, recipe, outputs, wall_s, cpu_s, peak_rss_bytes, gpu_peak_bytes, memo, spent };
        self.say(finished)?;
        self.say_published(id, published)?;
        self.end(id, End::Done)
    }

    fn cancelled(&mut self, id: NodeId) -> Result<(), RunError> {
        let node = self.name(id);
        self.say(What::NodeCancelled { node })?;
        self.end(id, End::Cancelled)
    }

    /// Tells the scheduler that the attempt failed, and the listeners what becomes of it.
    fn failed(&mut self, id: NodeId, failure: Failure) -> Result<(), RunError> {
        let attempts = self.live[&id].attempt;
        let grant = self.retire(id);
        let Failure { mut message, machine, usage, end } = failure;
        let commands = self.scheduler.step(Input::Ended(id, grant, end));
        let retry = commands.iter().find_map(|command| match command {
            Command::Rest { node, attempt, delay, growth } if *node == id => {
                Some((*attempt, delay.as_secs_f64(), *growth))
            }
            _ => None,
        });
        match retry {
            Some((attempt, delay_s, growth)) => {
                let node = self.name(id);
                self.say(What::NodeRetrying { node, attempt, delay_s, message, growth })?;
            }
            None => {
                if let End::OutOfMemory { memory, .. } = end {
                    message += &format!(": {}", self.had(id, memory));
                }
                self.say_failed(id, message, machine, attempts, usage)?;
            }
        }
        commands.into_iter().try_for_each(|command| self.obey(command))
    }

    /// What a node had of the memory that it ran out of, for people. It gets no more.
    fn had(&self, id: NodeId, memory: Memory) -> String {
        let node = self.shared.node(id);
        let request = self.scheduler.request(id).unwrap_or(&node.resources);
        match (memory, node.is_local()) {
            (Memory::Gpu, _) if request.gpus == 0 => "it asks for no GPU; state `gpus`".to_owned(),
            (Memory::Gpu, true) => {
                let all = self.inventory.most_gpu_memory(request.gpus).unwrap_or(0);
                let held = if request.gpu_memory == 0 { all } else { request.gpu_memory };
                format!(
                    "it had {} of {} on each of its {} device(s)",
                    format_size(held),
                    format_size(all),
                    request.gpus
                )
            }
            (Memory::Gpu, false) => format!("it had {} whole device(s) of the cluster", request.gpus),
            (Memory::Main, true) => match request.memory {
                0 => format!("none was reserved for it of {}", format_size(self.inventory.memory)),
                held => format!("it had {} of {}", format_size(held), format_size(self.inventory.memory)),
            },
            (Memory::Main, false) => match request.memory {
                0 => "it had what the cluster gives by default; state `memory`".to_owned(),
                held => format!("it had {}", format_size(held)),
            },
        }
    }

    fn end(&mut self, id: NodeId, end: End) -> Result<(), RunError> {
        let grant = self.retire(id);
        self.step(Input::Ended(id, grant, end))
    }

    /// Ends the attempt's lease and takes its folder back; its grant, if it still has one.
    fn retire(&mut self, id: NodeId) -> Option<Grant> {
        let live = self.live.remove(&id).expect("it is under way");
        if let Some(spent) = live.spent {
            let all = self.spent.entry(id).or_default();
            *all = *all + spent;
        }
        if let Some(folder) = live.folder {
            let shared = self.shared.clone();
            tokio::task::spawn_blocking(move || shared.take_back(folder));
        }
        live.grant
    }
}
