use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::allocator::Grant;
use crate::plan::NodeId;
use crate::resources::{CpuLevel, Gpu, Inventory, Memory, Resources};

const CPUS: u32 = 3;
const MEMORY: u64 = 10;
const GPUS: usize = 2;

fn host() -> Inventory {
    let gpu = |ordinal| Gpu { ordinal, name: "g".into(), memory: 80, capability: (9, 0) };
    Inventory { cpus: CPUS, level: CpuLevel::Base, memory: MEMORY, gpus: (0..GPUS).map(gpu).collect() }
}

fn task(parents: &[usize], cpus: u32, seconds: u64) -> Task {
    Task {
        parents: parents.iter().copied().map(NodeId).collect(),
        request: Resources { cpus, ..Resources::default() },
        duration: Duration::from_secs(seconds),
        ..Task::default()
    }
}

/// A scheduler under test, and what it has asked for so far.
struct World {
    scheduler: Scheduler,
    tasks: BTreeMap<NodeId, Task>,
    open: Vec<Command>,
    running: BTreeMap<NodeId, Grant>,
    order: Vec<NodeId>,
    settled: Vec<(NodeId, Verdict)>,
    finished: u32,
}

impl World {
    fn new(tasks: Vec<Task>, keep_going: bool) -> Self {
        let tasks: BTreeMap<_, _> = tasks.into_iter().enumerate().map(|(id, task)| (NodeId(id), task)).collect();
        let scheduler = Scheduler::new(tasks.clone(), vec![host()], None, keep_going);
        let mut world = Self {
            scheduler,
            tasks,
            open: Vec::new(),
            running: BTreeMap::new(),
            order: Vec::new(),
            settled: Vec::new(),
            finished: 0,
        };
        world.feed(Input::Begin);
        world
    }

    fn feed(&mut self, input: Input) {
        for command in self.scheduler.step(input) {
            match command {
                Command::Start { node, grant, .. } => {
                    self.order.push(node);
                    self.running.insert(node, grant);
                    self.check_resources();
                    self.check_parents(node);
                }
                Command::Settled { node, verdict, .. } => self.settled.push((node, verdict)),
                Command::Finish => self.finished += 1,
                other => self.open.push(other),
            }
        }
    }

    fn check_resources(&self) {
        let held = || self.running.values();
        assert!(held().map(|grant| grant.cpus).sum::<u32>() <= CPUS);
        assert!(held().map(|grant| grant.memory).sum::<u64>() <= MEMORY);
        for ordinal in 0..GPUS {
            let there = held().flat_map(|grant| &grant.devices).filter(|device| device.ordinal == ordinal);
            assert!(there.map(|device| device.memory).sum::<u64>() <= 80, "a device is over-committed");
        }
    }

    fn check_parents(&self, node: NodeId) {
        for &parent in &self.tasks[&node].parents {
            let verdict = self.scheduler.state(parent).unwrap().verdict();
            assert!(matches!(verdict, Some(Verdict::Executed | Verdict::Cached)), "{node:?} began above {verdict:?}");
        }
    }

    fn end(&mut self, node: usize, end: End) {
        let grant = self.running.remove(&NodeId(node)).expect("it runs");
        // Half of the nodes give their grant back before their outputs are taken.
        let grant = match node % 2 {
            0 => Some(grant),
            _ => {
                self.feed(Input::Exited(NodeId(node), grant));
                None
            }
        };
        self.feed(Input::Ended(NodeId(node), grant, end));
    }

    /// Answers every `Key` with a miss, until none is open.
    fn miss(&mut self) {
        while let Some(at) = self.open.iter().position(|command| matches!(command, Command::Key(_))) {
            let Command::Key(node) = self.open.remove(at) else { unreachable!() };
            self.feed(Input::Keyed(node, Keyed::Miss));
        }
    }

    fn verdict(&self, node: usize) -> Option<Verdict> {
        self.scheduler.state(NodeId(node)).unwrap().verdict()
    }
}

#[test]
fn the_longest_chain_starts_first() {
    let mut world = World::new(vec![task(&[], 3, 5), task(&[], 3, 1), task(&[1], 3, 9), task(&[], 3, 7)], true);
    world.miss();
    for node in [1, 2, 3, 0] {
        world.end(node, End::Done);
        world.miss();
    }
    assert_eq!(world.order, [1, 2, 3, 0].map(NodeId));
    assert_eq!(world.finished, 1);
}

#[test]
fn slow_keying_holds_nobody_back() {
    let mut world = World::new(vec![task(&[], 3, 9), task(&[], 3, 1)], true);
    world.feed(Input::Keyed(NodeId(1), Keyed::Miss));
    assert!(world.order.is_empty(), "the longer one is being keyed");
    world.feed(Input::Slow(NodeId(0)));
    assert_eq!(world.order, [NodeId(1)]);
}

#[test]
fn a_wide_node_is_not_starved() {
    let mut tasks = vec![task(&[], 3, 100)];
    tasks.extend((0..60).map(|_| task(&[], 1, 1)));
    let mut world = World::new(tasks, true);
    world.feed(Input::Slow(NodeId(0)));
    // The small ones fill the host; the wide one, first in line, comes when nothing is free.
    for node in (0..=60).rev().map(NodeId) {
        world.feed(Input::Keyed(node, Keyed::Miss));
    }
    let mut before = 0;
    while !world.running.contains_key(&NodeId(0)) {
        let first = world.running.keys().next().unwrap().0;
        world.end(first, End::Done);
        before += 1;
    }
    assert!(before <= PATIENCE + CPUS + 1, "{before} small nodes ended before the wide one began");
}

#[test]
fn an_impatient_gpu_node_lets_cpu_nodes_pass() {
    let gpu = |seconds| Task { request: Resources { gpus: 2, ..Resources::default() }, ..task(&[], 1, seconds) };
    let mut tasks = vec![gpu(50), gpu(40)];
    tasks.extend((0..30).map(|_| task(&[], 1, 1)));
    let mut world = World::new(tasks, true);
    world.miss();
    for _ in 0..30 {
        let small = world.running.keys().find(|node| node.0 > 1).expect("a CPU node runs beside the GPU node").0;
        world.end(small, End::Done);
    }
    assert!(!world.running.contains_key(&NodeId(1)));
}

#[test]
fn a_failure_skips_descendants_only() {
    let tasks = || vec![task(&[], 1, 1), task(&[], 1, 1), task(&[0], 1, 1), task(&[2, 1], 1, 1), task(&[1], 1, 1)];
    let mut world = World::new(tasks(), true);
    world.miss();
    world.end(0, End::Failed { again: false });
    world.end(1, End::Done);
    world.miss();
    world.end(4, End::Done);
    use Verdict::*;
    assert_eq!(
        [0, 1, 2, 3, 4].map(|node| world.verdict(node).unwrap()),
        [Failed, Executed, Skipped, Skipped, Executed]
    );

    let mut world = World::new(tasks(), false);
    world.miss();
    world.end(0, End::Failed { again: false });
    world.end(1, End::Done);
    assert_eq!(
        [0, 1, 2, 3, 4].map(|node| world.verdict(node).unwrap()),
        [Failed, Executed, Skipped, Skipped, Cancelled]
    );
    assert_eq!(world.finished, 1);
}

#[test]
fn a_waiting_node_stops_only_what_needs_it() {
    let tasks = vec![task(&[], 1, 1), task(&[], 1, 1), task(&[0, 1], 1, 1), task(&[1], 1, 1), task(&[2], 1, 1)];
    let mut world = World::new(tasks, false);
    world.miss();
    world.end(0, End::Waiting);
    assert_eq!(world.verdict(2), None, "its other parent runs and may fail");
    world.end(1, End::Done);
    world.miss();
    world.end(3, End::Done);
    use Verdict::*;
    assert_eq!(
        [0, 1, 2, 3, 4].map(|node| world.verdict(node).unwrap()),
        [Waiting, Executed, Waiting, Executed, Waiting]
    );
}

#[test]
fn retries_rest_longer_each_time() {
    let mut world = World::new(vec![Task { retries: 2, ..task(&[], 1, 1) }], true);
    world.miss();
    for (attempt, seconds) in [(2, 1), (3, 2)] {
        world.end(0, End::Failed { again: true });
        let rest = world.open.pop();
        let Some(Command::Rest { attempt: next, delay, .. }) = rest else { panic!("{rest:?}") };
        assert_eq!((next, delay.as_secs()), (attempt, seconds));
        world.feed(Input::Rested(NodeId(0)));
    }
    world.end(0, End::Failed { again: true });
    assert_eq!(world.verdict(0), Some(Verdict::Failed));
}

#[test]
fn who_runs_out_of_memory_gets_more_until_it_had_all() {
    let request = Resources { memory: 3, gpus: 1, gpu_memory: 30, ..Resources::default() };
    let mut world = World::new(vec![Task { request, retries: 1, ..task(&[], 1, 1) }], true);
    world.miss();
    let ends = |memory| End::OutOfMemory { memory, used: 0 };
    let main = |from, to| Growth { memory: Memory::Main, from, to };
    let gpu = |from, to| Growth { memory: Memory::Gpu, from, to };
    let grows = [main(3, 6), gpu(30, 60), gpu(60, 80), main(6, MEMORY)];
    for (before, wanted) in grows.into_iter().enumerate() {
        world.end(0, ends(wanted.memory));
        let rest = world.open.pop();
        let Some(Command::Rest { attempt, delay, growth, .. }) = rest else { panic!("{rest:?}") };
        assert_eq!((attempt as usize, delay, growth), (before + 2, Duration::ZERO, Some(wanted)));
        world.feed(Input::Rested(NodeId(0)));
        let grant = &world.running[&NodeId(0)];
        let request = world.scheduler.request(NodeId(0)).unwrap();
        assert_eq!((grant.memory, grant.devices[0].memory), (request.memory, request.gpu_memory));
    }
    world.end(0, End::Failed { again: true });
    let rest = world.open.pop();
    let Some(Command::Rest { attempt: 6, delay, growth: None, .. }) = rest else { panic!("{rest:?}") };
    assert_eq!(delay, Duration::from_secs(1), "none of its retries was used up");
    world.feed(Input::Rested(NodeId(0)));
    world.end(0, ends(Memory::Gpu));
    assert_eq!(world.verdict(0), Some(Verdict::Failed), "it had all of the device");
}

#[test]
fn nothing_grows_while_the_run_is_stopped() {
    let request = Resources { memory: 3, ..Resources::default() };
    let mut world = World::new(vec![Task { request, ..task(&[], 1, 1) }], true);
    world.miss();
    world.feed(Input::Drain);
    world.end(0, End::OutOfMemory { memory: Memory::Main, used: 0 });
    assert_eq!((world.verdict(0), world.finished), (Some(Verdict::Failed), 1));
}

#[test]
fn another_runs_work_is_followed_and_then_looked_up() {
    let mut world = World::new(vec![task(&[], 3, 1), task(&[], 3, 0)], true);
    world.miss();
    world.end(0, End::Busy);
    assert!(world.running.contains_key(&NodeId(1)), "following holds no resources");
    assert!(matches!(world.open.pop(), Some(Command::Follow(NodeId(0)))));
    world.feed(Input::Freed(NodeId(0)));
    assert!(matches!(world.open.pop(), Some(Command::Key(NodeId(0)))));
    world.feed(Input::Keyed(NodeId(0), Keyed::Hit));
    assert_eq!(world.verdict(0), Some(Verdict::Cached));
}

#[test]
fn what_no_host_has_fails_instead_of_waiting_for_ever() {
    let huge = Task { request: Resources { memory: MEMORY + 1, ..Resources::default() }, ..task(&[], 1, 1) };
    let mut world = World::new(vec![huge, task(&[0], 1, 1)], true);
    world.miss();
    assert_eq!(world.settled, [(NodeId(0), Verdict::Failed), (NodeId(1), Verdict::Skipped)]);
    assert_eq!(world.finished, 1);
}

#[test]
fn what_runs_elsewhere_takes_nothing_here() {
    let remote = || Task {
        request: Resources { cpus: 64, memory: MEMORY + 1, gpus: 9, gpu_memory: 0 },
        remote: true,
        ..task(&[], 1, 1)
    };
    let mut world = World::new(vec![task(&[], 3, 9), remote(), remote(), task(&[], 3, 0)], true);
    world.miss();
    assert_eq!(world.order, [0, 1, 2].map(NodeId), "all but the second that wants this host");
    assert!((1..3).all(|id| world.running[&NodeId(id)] == Grant::nothing()));
}

#[test]
fn draining_starts_nothing_and_killing_reaches_what_runs() {
    let mut world = World::new(vec![task(&[], 2, 9), task(&[], 2, 1), task(&[0], 1, 1)], true);
    world.miss();
    world.feed(Input::Drain);
    assert!(matches!(world.open.pop(), Some(Command::Drain(NodeId(0)))));
    assert_eq!(world.verdict(1), Some(Verdict::Cancelled));
    world.feed(Input::Kill);
    assert!(matches!(world.open.pop(), Some(Command::Kill(NodeId(0)))));
    world.end(0, End::Cancelled);
    assert_eq!(world.verdict(2), Some(Verdict::Cancelled));
    assert_eq!((world.finished, world.order.len()), (1, 1));
}

/// What happens to a node each time something may.
#[derive(Clone, Debug)]
enum Fate {
    Hit,
    Broken,
    Ends(Vec<u8>),
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        2 => Just(Fate::Hit),
        1 => Just(Fate::Broken),
        9 => proptest::collection::vec(0u8..14, 0..6).prop_map(Fate::Ends),
    ]
}

prop_compose! {
    fn node(id: usize)(
        parents in proptest::collection::btree_set(0..id.max(1), 0..4.min(id + 1)),
        cpus in 0u32..5, memory in 0u64..8, gpus in 0u32..3, gpu_memory in 0u64..60, retries in 0u32..3, seconds in 0u64..9,
        remote in proptest::bool::weighted(0.2), fate in fate(),
    ) -> (Task, Fate) {
        let parents = parents.into_iter().filter(|&parent| parent < id).map(NodeId).collect();
        let request = Resources { cpus, memory, gpus, gpu_memory };
        let duration = Duration::from_secs(seconds);
        (Task { parents, request, remote, retries, duration }, fate)
    }
}

fn dag() -> impl Strategy<Value = Vec<(Task, Fate)>> {
    (1usize..25).prop_flat_map(|count| (0..count).map(node).collect::<Vec<_>>())
}

/// Does one of the open things, the `pick`-th.
fn advance(world: &mut World, fates: &mut [Fate], pick: usize) {
    let choices = world.open.len() + world.running.len();
    let at = pick % choices;
    if at >= world.open.len() {
        let node = world.running.keys().nth(at - world.open.len()).unwrap().0;
        let end = match &mut fates[node] {
            Fate::Ends(ends) => ends.pop(),
            _ => None,
        };
        let end = match end {
            Some(0 | 1) => End::Failed { again: true },
            Some(2) => End::Failed { again: false },
            Some(3) => End::Waiting,
            Some(4 | 5) => End::Busy,
            Some(6) => End::Cached,
            Some(7) => End::OutOfMemory { memory: Memory::Main, used: 0 },
            Some(8) => End::OutOfMemory { memory: Memory::Gpu, used: 17 },
            _ => End::Done,
        };
        return world.end(node, end);
    }
    let input = match world.open.remove(at) {
        Command::Key(node) => Input::Keyed(
            node,
            match fates[node.0] {
                Fate::Hit => Keyed::Hit,
                Fate::Broken => Keyed::Broken,
                Fate::Ends(_) => Keyed::Miss,
            },
        ),
        Command::Follow(node) => Input::Freed(node),
        Command::Rest { node, .. } => Input::Rested(node),
        // What is drained or killed here ends as its fate says: an order may come too late.
        Command::Drain(_) | Command::Kill(_) => return,
        other => panic!("{other:?} is not open"),
    };
    world.feed(input);
}

fn ancestors_have(world: &World, node: NodeId, wanted: Verdict) -> bool {
    world.tasks[&node].parents.iter().any(|&parent| {
        world.scheduler.state(parent).unwrap().verdict() == Some(wanted) || ancestors_have(world, parent, wanted)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_node_ends_and_nothing_is_over_committed(
        dag in dag(),
        picks in proptest::collection::vec(any::<usize>(), 1..40),
        keep_going: bool,
        drain_at in proptest::option::of(0usize..40),
    ) {
        let (tasks, mut fates): (Vec<_>, Vec<_>) = dag.into_iter().unzip();
        let mut world = World::new(tasks, keep_going);
        let mut steps = 0;
        while !world.open.is_empty() || !world.running.is_empty() {
            if drain_at == Some(steps) {
                world.feed(Input::Drain);
            }
            if !world.open.is_empty() || !world.running.is_empty() {
                advance(&mut world, &mut fates, picks[steps % picks.len()]);
            }
            steps += 1;
            prop_assert!(steps < 2000, "it does not end");
        }
        prop_assert_eq!(world.finished, 1);
        for &node in world.tasks.keys() {
            let verdict = world.verdict(node.0);
            prop_assert!(verdict.is_some(), "{:?} never ended: {:?}", node, world.scheduler.state(node));
            prop_assert_eq!(verdict == Some(Verdict::Skipped), ancestors_have(&world, node, Verdict::Failed) && !matches!(verdict, Some(Verdict::Cancelled | Verdict::Waiting)));
            if keep_going && drain_at.is_none() {
                prop_assert_ne!(verdict, Some(Verdict::Cancelled));
                prop_assert_eq!(verdict == Some(Verdict::Skipped), ancestors_have(&world, node, Verdict::Failed));
            }
        }
    }
}
