//! Who of the queued nodes gets the free resources: priorities, fair shares of API slots, and patience.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::plan::NodeId;
use crate::resources::{Allocator, Grant, Resources};

/// How often a queued node is passed over by later ones before it holds them back.
pub const PATIENCE: u32 = 8;

/// What the scheduler knows of a node.
#[derive(Clone, Debug, Default)]
pub struct Task {
    /// The nodes that must end first, all of them among the scheduled ones.
    pub parents: Vec<NodeId>,
    /// What it holds while it runs.
    pub request: Resources,
    /// It runs elsewhere and holds nothing here.
    pub remote: bool,
    /// The API models that it asks.
    pub apis: BTreeSet<String>,
    /// How often a failed attempt is repeated.
    pub retries: u32,
    /// How long it is expected to run.
    pub duration: Duration,
}

impl Task {
    fn grant(&self, allocator: &mut Allocator) -> Option<Grant> {
        if self.remote { Some(Grant::nothing()) } else { allocator.grant(&self.request) }
    }
}

/// Priority of every node: its own duration plus the longest chain below it.
pub(super) fn priorities(tasks: &BTreeMap<NodeId, Task>) -> BTreeMap<NodeId, Duration> {
    let mut below: BTreeMap<NodeId, Duration> = BTreeMap::new();
    // Plans are in topological order, so the children of a node come after it.
    for (&node, task) in tasks.iter().rev() {
        let total = task.duration + below.get(&node).copied().unwrap_or_default();
        below.insert(node, total);
        for &parent in &task.parents {
            let longest = below.entry(parent).or_default();
            *longest = total.max(*longest);
        }
    }
    below
}

/// A queued node.
#[derive(Debug)]
struct Waiter {
    node: NodeId,
    priority: Duration,
    /// Starts of nodes behind it since it came.
    passed: u32,
}

/// The nodes that may join the queue in a moment.
pub(super) struct Soon {
    pub(super) nodes: Vec<NodeId>,
    /// The highest of their priorities: what is below it does not start now.
    pub(super) floor: Duration,
}

/// A start that the queue allows.
pub(super) struct Start {
    pub(super) node: NodeId,
    pub(super) grant: Grant,
    pub(super) slots: BTreeMap<String, u32>,
}

/// The queued nodes, first the one that should start first, and the API slots that are free.
pub(super) struct Queue {
    waiters: Vec<Waiter>,
    free_slots: BTreeMap<String, u32>,
    held_slots: BTreeMap<NodeId, BTreeMap<String, u32>>,
}

/// What nodes behind an impatient one may not ask for.
#[derive(Default)]
struct Barrier {
    cpus: bool,
    memory: bool,
    gpus: bool,
    apis: BTreeSet<String>,
}

impl Queue {
    pub(super) fn new(slots: BTreeMap<String, u32>) -> Self {
        Self { waiters: Vec::new(), free_slots: slots, held_slots: BTreeMap::new() }
    }

    /// Adds a node behind all of its priority.
    pub(super) fn push(&mut self, node: NodeId, priority: Duration) {
        let at = self
            .waiters
            .partition_point(|w| (w.priority, std::cmp::Reverse(w.node)) >= (priority, std::cmp::Reverse(node)));
        self.waiters.insert(at, Waiter { node, priority, passed: 0 });
    }

    pub(super) fn remove(&mut self, node: NodeId) {
        self.waiters.retain(|waiter| waiter.node != node);
    }

    /// Takes back the slots that `node` held.
    pub(super) fn release_slots(&mut self, node: NodeId) {
        for (api, count) in self.held_slots.remove(&node).unwrap_or_default() {
            *self.free_slots.entry(api).or_default() += count;
        }
    }

    /// The next node that may start now.
    pub(super) fn next(
        &mut self,
        soon: &Soon,
        tasks: &BTreeMap<NodeId, Task>,
        allocator: &mut Allocator,
    ) -> Option<Start> {
        let mut barrier = Barrier::default();
        for at in 0..self.waiters.partition_point(|waiter| waiter.priority >= soon.floor) {
            let node = self.waiters[at].node;
            let task = &tasks[&node];
            if !barrier.lets(task) {
                continue;
            }
            if let Some(slots) = self.share(task, tasks, soon)
                && let Some(grant) = task.grant(allocator)
            {
                return Some(self.start(at, grant, slots));
            }
            if self.waiters[at].passed >= PATIENCE {
                barrier.raise(task, allocator, &self.free_slots);
            }
        }
        None
    }

    fn start(&mut self, at: usize, grant: Grant, slots: BTreeMap<String, u32>) -> Start {
        let node = self.waiters.remove(at).node;
        for waiter in &mut self.waiters[..at] {
            waiter.passed += 1;
        }
        for (api, count) in &slots {
            let free = self.free_slots.get_mut(api).expect("the share was taken from it");
            *free -= count;
        }
        self.held_slots.insert(node, slots.clone());
        Start { node, grant, slots }
    }

    /// A fair share of the free slots of each of the task's API models; `None` while one has no free slot.
    fn share(&self, task: &Task, tasks: &BTreeMap<NodeId, Task>, soon: &Soon) -> Option<BTreeMap<String, u32>> {
        let share = |api: &String| {
            let free = self.free_slots.get(api).copied().filter(|&free| free > 0)?;
            let nodes = self.waiters.iter().map(|waiter| &waiter.node).chain(&soon.nodes);
            let rivals = nodes.filter(|node| tasks[node].apis.contains(api)).count();
            Some((api.clone(), free.div_ceil(u32::try_from(rivals.max(1)).unwrap_or(u32::MAX))))
        };
        task.apis.iter().map(share).collect()
    }
}

impl Barrier {
    /// Forbids what `task` lacks.
    fn raise(&mut self, task: &Task, allocator: &mut Allocator, free_slots: &BTreeMap<String, u32>) {
        let nothing = Resources { cpus: 0, memory: 0, gpus: 0, gpu_memory: 0 };
        let request = &task.request;
        let mut lacks = |part: Resources| match allocator.grant(&part) {
            Some(grant) => {
                allocator.release(grant);
                false
            }
            None => true,
        };
        self.cpus |= lacks(Resources { cpus: request.cpus, ..nothing.clone() });
        self.memory |= lacks(Resources { memory: request.memory, ..nothing.clone() });
        self.gpus |= lacks(Resources { gpus: request.gpus, gpu_memory: request.gpu_memory, ..nothing });
        self.apis.extend(task.apis.iter().filter(|api| free_slots.get(*api).is_none_or(|&free| free == 0)).cloned());
    }

    /// Whether a node behind may start.
    fn lets(&self, task: &Task) -> bool {
        let request = &task.request;
        // Every grant of this host holds a core.
        let here = self.cpus || self.memory && request.memory > 0 || self.gpus && request.gpus > 0;
        !(here && !task.remote || task.apis.iter().any(|api| self.apis.contains(api)))
    }
}
