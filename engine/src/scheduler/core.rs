//! The machine itself: inputs in, commands out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::growth::Growth;
use super::message::{Command, End, Input, Keyed};
use super::queue::{Queue, Soon, Start, Task, priorities};
use super::state::{Change, State, Verdict};
use crate::allocator::{Allocator, Grant};
use crate::plan::NodeId;
use crate::resources::{Inventory, Memory, Resources};

/// How much of the run is being stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stop {
    No,
    Failure,
    Drain,
    Kill,
}

/// The scheduler of one run.
pub struct Scheduler {
    tasks: BTreeMap<NodeId, Task>,
    states: BTreeMap<NodeId, State>,
    children: BTreeMap<NodeId, Vec<NodeId>>,
    priorities: BTreeMap<NodeId, Duration>,
    attempts: BTreeMap<NodeId, u32>,
    /// Attempts that ran out of memory and are repeated with more.
    grown: BTreeMap<NodeId, u32>,
    /// Nodes that are being keyed, or whose outputs are being taken, and have not been for long; with the priority of what
    /// may start then.
    soon: BTreeSet<(Duration, NodeId)>,
    /// Nodes that have not ended.
    open: usize,
    queue: Queue,
    hosts: Vec<Inventory>,
    allocator: Allocator,
    keep_going: bool,
    stop: Stop,
    finished: bool,
}

impl Scheduler {
    /// A scheduler of `tasks` (in topological order by id) on hosts of each of which it uses at most `cpus` cores.
    pub fn new(tasks: BTreeMap<NodeId, Task>, hosts: Vec<Inventory>, cpus: Option<u32>, keep_going: bool) -> Self {
        let mut children: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
        for (&node, task) in &tasks {
            for &parent in &task.parents {
                children.entry(parent).or_default().push(node);
            }
        }
        Self {
            states: tasks.keys().map(|&node| (node, State::Blocked)).collect(),
            priorities: priorities(&tasks),
            children,
            attempts: BTreeMap::new(),
            grown: BTreeMap::new(),
            soon: BTreeSet::new(),
            open: tasks.len(),
            queue: Queue::default(),
            allocator: Allocator::new(&hosts, cpus),
            hosts,
            keep_going,
            stop: Stop::No,
            finished: false,
            tasks,
        }
    }

    /// Where `node` is; `None` for a node that is not scheduled.
    pub fn state(&self, node: NodeId) -> Option<State> {
        self.states.get(&node).copied()
    }

    /// What is reserved for `node` while it runs.
    pub fn request(&self, node: NodeId) -> Option<&Resources> {
        self.tasks.get(&node).map(|task| &task.request)
    }

    /// How every node that is over has ended.
    pub fn verdicts(&self) -> impl Iterator<Item = (NodeId, Verdict)> {
        self.states.iter().filter_map(|(&node, state)| Some((node, state.verdict()?)))
    }

    /// Takes one input; the answer is what to do now, in order.
    pub fn step(&mut self, input: Input) -> Vec<Command> {
        let mut out = Vec::new();
        match input {
            Input::Begin => self.begin(&mut out),
            Input::Keyed(node, keyed) => self.keyed(node, keyed, &mut out),
            Input::Slow(node) => {
                self.soon.remove(&(self.priorities[&node], node));
                self.forget_heir(node);
            }
            Input::Exited(node, grant) => {
                self.allocator.release(grant);
                self.soon.extend(self.heir(node));
            }
            Input::Ended(node, grant, end) => self.ended(node, grant, end, &mut out),
            Input::Freed(node) if self.states[&node] == State::Following => self.key(node, Change::Freed, &mut out),
            Input::Rested(node) if self.states[&node] == State::Resting => self.enqueue(node, Change::Rested, &mut out),
            // The run was stopped meanwhile.
            Input::Freed(_) | Input::Rested(_) => {}
            Input::Drain => self.halt(Stop::Drain, &mut out),
            Input::Kill => self.halt(Stop::Kill, &mut out),
        }
        self.dispatch(&mut out);
        self.finish(&mut out);
        out
    }

    fn change(&mut self, node: NodeId, change: Change) {
        let state = self.states.get_mut(&node).expect("scheduled");
        let before = *state;
        *state = state.after(change).unwrap_or_else(|| panic!("{change:?} cannot happen to a node that is {state:?}"));
        let after = *state;
        let place = (self.priorities[&node], node);
        if after == State::Keying {
            self.soon.insert(place);
        } else if before == State::Keying {
            self.soon.remove(&place);
        }
        self.open -= usize::from(after.verdict().is_some());
    }

    fn begin(&mut self, out: &mut Vec<Command>) {
        let roots: Vec<_> =
            self.tasks.iter().filter(|(_, task)| task.parents.is_empty()).map(|(&node, _)| node).collect();
        for node in roots {
            self.key(node, Change::Unblock, out);
        }
    }

    fn key(&mut self, node: NodeId, change: Change, out: &mut Vec<Command>) {
        self.change(node, change);
        out.push(Command::Key(node));
    }

    fn keyed(&mut self, node: NodeId, keyed: Keyed, out: &mut Vec<Command>) {
        if self.states[&node] != State::Keying {
            return; // Cancelled meanwhile.
        }
        match keyed {
            Keyed::Hit => {
                self.change(node, Change::Hit);
                self.unblock(node, out);
            }
            Keyed::Miss => self.enqueue(node, Change::Miss, out),
            Keyed::Broken => self.fail(node, out),
        }
    }

    /// Queues a node, or fails it when no host could ever run it.
    fn enqueue(&mut self, node: NodeId, change: Change, out: &mut Vec<Command>) {
        self.change(node, change);
        let task = &self.tasks[&node];
        if task.remote || self.hosts.iter().any(|host| host.fits(&task.request).is_ok()) {
            self.queue.push(node, self.priorities[&node], task);
        } else {
            out.push(Command::Settled { node, verdict: Verdict::Failed, cause: Some(node) });
            self.fail(node, out);
        }
    }

    /// What a node whose outputs are being taken stands for in `soon`: the most urgent node below it, which may want in a
    /// moment what was given back.
    fn heir(&self, node: NodeId) -> Option<(Duration, NodeId)> {
        let children = self.children.get(&node).into_iter().flatten();
        children.map(|child| (self.priorities[child], node)).max()
    }

    fn forget_heir(&mut self, node: NodeId) {
        if let Some(heir) = self.heir(node) {
            self.soon.remove(&heir);
        }
    }

    fn ended(&mut self, node: NodeId, grant: Option<Grant>, end: End, out: &mut Vec<Command>) {
        if let Some(grant) = grant {
            self.allocator.release(grant);
        }
        self.forget_heir(node);
        match end {
            End::Done => self.change(node, Change::Done),
            End::Cached => self.change(node, Change::Hit),
            End::Waiting => self.change(node, Change::Wait),
            End::Busy => return self.busy(node, out),
            End::Failed { again } => return self.failed(node, again, out),
            End::OutOfMemory { memory, used } => return self.out_of_memory(node, memory, used, out),
            End::Cancelled => self.change(node, Change::Cancel),
        }
        self.unblock(node, out);
    }

    fn busy(&mut self, node: NodeId, out: &mut Vec<Command>) {
        *self.attempts.get_mut(&node).expect("it was started") -= 1;
        if self.stop == Stop::No {
            self.change(node, Change::Busy);
            out.push(Command::Follow(node));
        } else {
            self.cancel(node, None, out);
            self.unblock(node, out);
        }
    }

    fn failed(&mut self, node: NodeId, again: bool, out: &mut Vec<Command>) {
        let attempts = self.attempts[&node];
        let counted = attempts - self.grown.get(&node).copied().unwrap_or(0);
        if again && self.stop == Stop::No && counted <= self.tasks[&node].retries {
            self.change(node, Change::Retry);
            out.push(Command::Rest { node, attempt: attempts + 1, delay: back_off(counted), growth: None });
        } else {
            self.fail(node, out);
        }
    }

    /// The node is repeated with a larger reservation, or fails when it had all there is.
    fn out_of_memory(&mut self, node: NodeId, memory: Memory, used: u64, out: &mut Vec<Command>) {
        let growth = Growth::of(&self.tasks[&node], memory, used, &self.hosts).filter(|_| self.stop == Stop::No);
        // It has all there is, but others may have held some of it: then it is a failure like any other.
        let Some(growth) = growth else { return self.failed(node, true, out) };
        growth.apply(&mut self.tasks.get_mut(&node).expect("scheduled").request);
        *self.grown.entry(node).or_default() += 1;
        self.change(node, Change::Retry);
        let attempt = self.attempts[&node] + 1;
        out.push(Command::Rest { node, attempt, delay: Duration::ZERO, growth: Some(growth) });
    }

    /// The node failed for good: all below it is skipped, and without `keep_going` nothing new starts.
    fn fail(&mut self, node: NodeId, out: &mut Vec<Command>) {
        self.change(node, Change::Fail);
        for below in self.descendants(node) {
            if self.states[&below] == State::Blocked {
                self.change(below, Change::Skip);
                out.push(Command::Settled { node: below, verdict: Verdict::Skipped, cause: Some(node) });
            }
        }
        if !self.keep_going {
            self.halt(Stop::Failure, out);
        }
    }

    fn descendants(&self, node: NodeId) -> BTreeSet<NodeId> {
        let mut found = BTreeSet::new();
        let mut open = vec![node];
        while let Some(node) = open.pop() {
            let children = self.children.get(&node).map_or(&[][..], Vec::as_slice);
            open.extend(children.iter().filter(|child| found.insert(**child)));
        }
        found
    }

    /// Looks at the children of a node that has just ended: those with nothing left to wait for move on.
    fn unblock(&mut self, node: NodeId, out: &mut Vec<Command>) {
        let mut open = vec![node];
        while let Some(node) = open.pop() {
            for child in self.children.get(&node).cloned().unwrap_or_default() {
                if self.states[&child] != State::Blocked {
                    continue;
                }
                match self.above(child) {
                    Above::Open => {}
                    Above::Good if self.stop == Stop::No => self.key(child, Change::Unblock, out),
                    Above::Good => {
                        self.cancel(child, None, out);
                        open.push(child);
                    }
                    Above::Cancelled(cause) => {
                        self.cancel(child, Some(cause), out);
                        open.push(child);
                    }
                    Above::Waits(cause) => {
                        self.change(child, Change::Wait);
                        out.push(Command::Settled { node: child, verdict: Verdict::Waiting, cause: Some(cause) });
                        open.push(child);
                    }
                }
            }
        }
    }

    /// What the parents of `node` have come to. None of them has failed, or `node` would be skipped.
    fn above(&self, node: NodeId) -> Above {
        let mut above = Above::Good;
        for &parent in &self.tasks[&node].parents {
            match self.states[&parent].verdict() {
                None => return Above::Open,
                Some(Verdict::Waiting) => above = Above::Waits(parent),
                Some(Verdict::Cancelled) if above == Above::Good => above = Above::Cancelled(parent),
                Some(_) => {}
            }
        }
        above
    }

    fn cancel(&mut self, node: NodeId, cause: Option<NodeId>, out: &mut Vec<Command>) {
        self.change(node, Change::Cancel);
        out.push(Command::Settled { node, verdict: Verdict::Cancelled, cause });
    }

    /// Nothing new starts; `Drain` and `Kill` reach what runs. What is below a running node stays blocked until that ends:
    /// it may yet fail.
    fn halt(&mut self, stop: Stop, out: &mut Vec<Command>) {
        if stop <= self.stop {
            return;
        }
        self.stop = stop;
        for (node, state) in self.states.clone() {
            match state {
                State::Ended(_) | State::Blocked => {}
                State::Running => match stop {
                    Stop::Drain => out.push(Command::Drain(node)),
                    Stop::Kill => out.push(Command::Kill(node)),
                    Stop::No | Stop::Failure => {}
                },
                _ => {
                    self.queue.remove(node, self.priorities[&node], &self.tasks[&node]);
                    self.cancel(node, None, out);
                    self.unblock(node, out);
                }
            }
        }
    }

    fn dispatch(&mut self, out: &mut Vec<Command>) {
        while self.stop == Stop::No {
            let soon = Soon { nodes: &self.soon };
            let Some(Start { node, grant }) = self.queue.next(&soon, &self.tasks, &mut self.allocator) else {
                return;
            };
            self.change(node, Change::Grant);
            let attempt = self.attempts.entry(node).or_default();
            *attempt += 1;
            out.push(Command::Start { node, attempt: *attempt, grant });
        }
    }

    fn finish(&mut self, out: &mut Vec<Command>) {
        if !self.finished && self.open == 0 {
            self.finished = true;
            out.push(Command::Finish);
        }
    }
}

/// What the parents of a node have come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Above {
    Open,
    Good,
    Waits(NodeId),
    Cancelled(NodeId),
}

/// How long a node rests after its `attempts`-th failure.
fn back_off(attempts: u32) -> Duration {
    Duration::from_secs(1 << attempts.saturating_sub(1).min(6)).min(Duration::from_secs(60))
}
