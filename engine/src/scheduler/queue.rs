//! Who of the queued nodes gets the free resources: priorities and patience.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::allocator::{Allocator, Grant};
use crate::plan::NodeId;
use crate::resources::Resources;

/// How often the first queued node of its kind of request is passed over by later ones before it holds them back.
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
pub fn priorities(tasks: &BTreeMap<NodeId, Task>) -> BTreeMap<NodeId, Duration> {
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

/// What decides whether a queued node can start now. Of nodes that ask for the same, only the first need be asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Shape {
    /// Whether it takes nothing of this host.
    remote: bool,
    request: Resources,
}

impl Shape {
    fn of(task: &Task) -> Self {
        Self { remote: task.remote, request: task.request.clone() }
    }
}

/// Place in a queue: highest priority first, then lowest id.
type Place = (Reverse<Duration>, NodeId);

/// The queued nodes of one shape.
#[derive(Debug, Default)]
struct Line {
    places: BTreeSet<Place>,
    /// Starts of nodes behind its first one since that became the first.
    passed: u32,
}

/// The nodes that may join the queue in a moment.
pub(super) struct Soon<'a> {
    pub(super) nodes: &'a BTreeSet<(Duration, NodeId)>,
}

impl Soon<'_> {
    /// The highest of their priorities: what is below it does not start now.
    fn floor(&self) -> Duration {
        self.nodes.last().map(|(priority, _)| *priority).unwrap_or_default()
    }
}

/// A start that the queue allows.
pub(super) struct Start {
    pub(super) node: NodeId,
    pub(super) grant: Grant,
}

/// The queued nodes by shape.
#[derive(Default)]
pub(super) struct Queue {
    lines: BTreeMap<Shape, Line>,
}

/// What nodes behind an impatient one may not ask for.
#[derive(Default)]
struct Barrier {
    cpus: bool,
    memory: bool,
    gpus: bool,
}

impl Queue {
    /// Adds a node behind all of its priority.
    pub(super) fn push(&mut self, node: NodeId, priority: Duration, task: &Task) {
        let shape = Shape::of(task);
        self.lines.entry(shape).or_default().places.insert((Reverse(priority), node));
    }

    pub(super) fn remove(&mut self, node: NodeId, priority: Duration, task: &Task) {
        let shape = Shape::of(task);
        self.take_out(&shape, (Reverse(priority), node));
    }

    fn take_out(&mut self, shape: &Shape, place: Place) {
        let Some(line) = self.lines.get_mut(shape) else { return };
        if line.places.first() == Some(&place) {
            line.passed = 0;
        }
        if !line.places.remove(&place) {
            return;
        }
        if line.places.is_empty() {
            self.lines.remove(shape);
        }
    }

    /// The next node that may start now.
    pub(super) fn next(
        &mut self,
        soon: &Soon<'_>,
        tasks: &BTreeMap<NodeId, Task>,
        allocator: &mut Allocator,
    ) -> Option<Start> {
        let floor = soon.floor();
        let first = |(shape, line): (&Shape, &Line)| Some((*line.places.first()?, line.passed, shape.clone()));
        let mut firsts: Vec<(Place, u32, Shape)> = self.lines.iter().filter_map(first).collect();
        firsts.sort_by_key(|(place, ..)| *place);
        let mut barrier = Barrier::default();
        for at in 0..firsts.len() {
            let ((Reverse(priority), node), passed, shape) = &firsts[at];
            if *priority < floor {
                return None;
            }
            let task = &tasks[node];
            // Every grant of this host holds a core.
            if !barrier.lets(task) || !task.remote && allocator.free_cpus() == 0 {
                continue;
            }
            if let Some(grant) = task.grant(allocator) {
                let (node, shape) = (*node, shape.clone());
                for (_, _, ahead) in &firsts[..at] {
                    self.lines.get_mut(ahead).expect("it has a first").passed += 1;
                }
                self.take_out(&shape, firsts[at].0);
                return Some(Start { node, grant });
            }
            if *passed >= PATIENCE {
                barrier.raise(task, allocator);
            }
        }
        None
    }
}

impl Barrier {
    /// Forbids what `task` lacks.
    fn raise(&mut self, task: &Task, allocator: &mut Allocator) {
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
    }

    /// Whether a node behind may start.
    fn lets(&self, task: &Task) -> bool {
        let request = &task.request;
        // Every grant of this host holds a core.
        let here = self.cpus || self.memory && request.memory > 0 || self.gpus && request.gpus > 0;
        !here || task.remote
    }
}
