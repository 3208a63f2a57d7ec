//! Devices shared by declared memory: a trace of real shapes against its bound, and random schedules against the rules.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use mpcc_engine::allocator::Grant;
use mpcc_engine::allocator::{INTERFERENCE, SHARERS};
use mpcc_engine::journal::Measured;
use mpcc_engine::plan::NodeId;
use mpcc_engine::resources::{CpuLevel, Gpu, Inventory, Memory, Resources};
use mpcc_engine::run::reserve;
use mpcc_engine::scheduler::{Command, End, Input, Keyed, Scheduler, Task, Verdict};
use mpcc_engine::simulate::{Timeline, simulate};
use proptest::prelude::*;
use serde::Deserialize;

const GIB: u64 = 1 << 30;

fn host(cpus: u32, gpus: usize, gpu_gib: u64) -> Inventory {
    let gpu = |ordinal| Gpu { ordinal, name: "made up".into(), memory: gpu_gib * GIB, capability: (9, 0) };
    Inventory { cpus, level: CpuLevel::Avx2, memory: u64::MAX, gpus: (0..gpus).map(gpu).collect() }
}

#[derive(Deserialize)]
struct Trace {
    capacity: Capacity,
    interference: f64,
    nodes: Vec<TraceNode>,
}

#[derive(Deserialize)]
struct Capacity {
    nodes: usize,
    gpus: usize,
    gpu_gib: u64,
    cpus: u32,
}

#[derive(Deserialize)]
struct TraceNode {
    id: String,
    needs: Vec<String>,
    seconds: f64,
    gpus: u32,
    gpu_gib: u64,
    cpus: u32,
}

/// The tasks of a trace; with `whole`, devices are asked for whole.
fn tasks(trace: &Trace, whole: bool) -> BTreeMap<NodeId, Task> {
    let ids: BTreeMap<&str, NodeId> =
        trace.nodes.iter().enumerate().map(|(at, node)| (node.id.as_str(), NodeId(at))).collect();
    let task = |node: &TraceNode| Task {
        parents: node.needs.iter().map(|need| ids[need.as_str()]).collect(),
        request: Resources {
            cpus: node.cpus,
            memory: 0,
            gpus: node.gpus,
            gpu_memory: if whole { 0 } else { node.gpu_gib * GIB },
        },
        duration: Duration::from_secs_f64(node.seconds),
        ..Task::default()
    };
    trace.nodes.iter().enumerate().map(|(at, node)| (NodeId(at), task(node))).collect()
}

#[test]
fn the_mixed_trace_ends_within_a_tenth_of_its_bound() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/engines/mixed-trace.json");
    let Ok(text) = std::fs::read_to_string(file) else {
        println!("skipped: needs ../shared/engines/mixed-trace.json");
        return;
    };
    let trace: Trace = serde_json::from_str(&text).unwrap();
    let Capacity { nodes, gpus, gpu_gib, cpus } = trace.capacity;
    let hosts = vec![host(cpus, gpus, gpu_gib); nodes];
    let shared = simulate(&tasks(&trace, false), &hosts, trace.interference);
    let whole = simulate(&tasks(&trace, true), &hosts, trace.interference);
    let bound = shared.lower_bound_s();
    println!(
        "bound {bound:.0} s; shared devices {:.0} s ({:.2}); whole devices {:.0} s ({:.2})",
        shared.makespan_s,
        shared.makespan_s / bound,
        whole.makespan_s,
        whole.makespan_s / bound
    );
    assert!((bound - 11_494.0).abs() < 1.0, "{bound}");
    assert!(shared.makespan_s <= 1.1 * bound, "{}", shared.makespan_s);
    assert!(shared.makespan_s < whole.makespan_s);
    assert!(shared.impossible.is_empty() && shared.spans.len() == trace.nodes.len());
}

/// Checks a timeline against what was asked for.
fn check(timeline: &Timeline, tasks: &BTreeMap<NodeId, Task>, hosts: &[Inventory]) {
    assert_eq!(timeline.spans.len() + timeline.impossible.len(), tasks.len(), "every node ends, or never could");
    let ends: BTreeMap<NodeId, f64> = timeline.spans.iter().map(|span| (span.node, span.end_s)).collect();
    for span in &timeline.spans {
        let task = &tasks[&span.node];
        assert!(task.parents.iter().all(|parent| ends[parent] <= span.start_s), "it waits for what it needs");
        assert_eq!(span.devices.len(), task.request.gpus as usize, "a gang gets all its devices");
        let beside: Vec<_> = timeline
            .spans
            .iter()
            .filter(|other| other.host == span.host && other.start_s <= span.start_s && span.start_s < other.end_s)
            .collect();
        assert!(beside.iter().map(|other| other.cpus).sum::<u32>() <= hosts[span.host].cpus);
        for device in &span.devices {
            let there: Vec<_> = beside.iter().filter(|other| other.devices.contains(device)).collect();
            let memory = hosts[span.host].gpus[*device].memory;
            let asked = |id: NodeId| match tasks[&id].request.gpu_memory {
                0 => memory,
                bytes => bytes,
            };
            assert!(there.len() <= SHARERS);
            assert!(there.iter().map(|other| asked(other.node)).sum::<u64>() <= memory, "a device is over-committed");
        }
    }
}

/// What a made-up node asks for (CPUs, devices, GiB on each), how long it takes, and which nodes before it it needs.
type MadeUp = ((u32, u32, u64), u64, Vec<prop::sample::Index>);

fn schedule() -> impl Strategy<Value = (BTreeMap<NodeId, Task>, Vec<Inventory>)> {
    let request = (1u32..6, 0u32..4, prop_oneof![Just(0), Just(9), Just(18), Just(36), Just(70), Just(90)]);
    let node = (request, 1u64..500, proptest::collection::vec(any::<prop::sample::Index>(), 0..3));
    let hosts = proptest::collection::vec((1u32..9, 0usize..5), 1..4);
    (proptest::collection::vec(node, 1..40), hosts).prop_map(|(nodes, hosts)| {
        let task = |(at, ((cpus, gpus, gib), seconds, above)): (usize, &MadeUp)| {
            let mut parents: Vec<NodeId> =
                above.iter().filter(|_| at > 0).map(|index| NodeId(index.index(at))).collect();
            parents.sort();
            parents.dedup();
            let request = Resources { cpus: *cpus, memory: 0, gpus: *gpus, gpu_memory: gib * GIB };
            (NodeId(at), Task { parents, request, duration: Duration::from_secs(*seconds), ..Task::default() })
        };
        let tasks = nodes.iter().enumerate().map(task).collect();
        (tasks, hosts.into_iter().map(|(cpus, gpus)| host(cpus, gpus, 80)).collect())
    })
}

/// `few` cases; `many` with MPCC_HEAVY=1.
fn cases(few: u32, many: u32) -> ProptestConfig {
    #[allow(clippy::disallowed_methods, reason = "a test may be told to do more")]
    let cases = if std::env::var_os("MPCC_HEAVY").is_some() { many } else { few };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// 2,000 schedules; 100,000 with MPCC_HEAVY=1.
#[test]
fn random_schedules_keep_the_rules() {
    proptest!(cases(2_000, 100_000), |((tasks, hosts) in schedule())| {
        check(&simulate(&tasks, &hosts, INTERFERENCE), &tasks, &hosts);
    });
}

#[test]
fn ten_thousand_nodes_on_four_thousand_devices_take_seconds() {
    let task = |at: usize| Task {
        parents: if at < 1000 { Vec::new() } else { vec![NodeId(at - 1000)] },
        request: Resources {
            cpus: 4,
            memory: 0,
            gpus: 1 + u32::from(at.is_multiple_of(8)),
            gpu_memory: [9, 18, 70][at % 3] * GIB,
        },
        duration: Duration::from_secs(60 + (at * 7919 % 600) as u64),
        ..Task::default()
    };
    let tasks: BTreeMap<NodeId, Task> = (0..10_000).map(|at| (NodeId(at), task(at))).collect();
    let timeline = simulate(&tasks, &vec![host(64, 8, 80); 512], INTERFERENCE);
    assert_eq!(timeline.spans.len(), 10_000);
    assert!(timeline.makespan_s >= timeline.critical_path_s - 1e-6);
}

/// Main memory of every host in the tests below.
const MAIN: u64 = 64 * GIB;

/// What a node really needs: main memory, and memory on each of its devices.
type Need = (u64, u64);

/// A run in which whoever gets less memory than it needs runs out of it.
struct Greedy<'a> {
    scheduler: Scheduler,
    hosts: &'a [Inventory],
    needs: &'a [Need],
    open: Vec<Command>,
    running: Vec<(NodeId, Grant)>,
    /// How often somebody ran out.
    starved: usize,
}

impl<'a> Greedy<'a> {
    /// Runs to the end; whoever ends next is `picks`' choice.
    fn run(tasks: &BTreeMap<NodeId, Task>, hosts: &'a [Inventory], needs: &'a [Need], picks: &[usize]) -> Self {
        let scheduler = Scheduler::new(tasks.clone(), hosts.to_vec(), None, true);
        let mut run = Self { scheduler, hosts, needs, open: Vec::new(), running: Vec::new(), starved: 0 };
        run.feed(Input::Begin);
        for step in 0.. {
            assert!(step < 20 * tasks.len() + 20, "it does not end");
            while let Some(command) = run.open.pop() {
                match command {
                    Command::Key(node) => run.feed(Input::Keyed(node, Keyed::Miss)),
                    Command::Rest { node, .. } => run.feed(Input::Rested(node)),
                    _ => {}
                }
            }
            if run.running.is_empty() {
                return run;
            }
            let at = picks[step % picks.len()] % run.running.len();
            let (node, grant) = run.running.swap_remove(at);
            let end = run.end(node, &grant);
            run.feed(Input::Ended(node, Some(grant), end));
        }
        run
    }

    fn feed(&mut self, input: Input) {
        for command in self.scheduler.step(input) {
            match command {
                Command::Start { node, grant, .. } => {
                    self.running.push((node, grant));
                    self.check();
                }
                other => self.open.push(other),
            }
        }
    }

    fn end(&mut self, node: NodeId, grant: &Grant) -> End {
        let (main, gpu) = self.needs[node.0];
        let held = grant.devices.iter().map(|device| device.memory).min();
        let memory = if grant.memory < main {
            Memory::Main
        } else if held.is_some_and(|held| held < gpu) {
            Memory::Gpu
        } else {
            return End::Done;
        };
        self.starved += 1;
        End::OutOfMemory { memory, used: 0 }
    }

    fn check(&self) {
        for (at, host) in self.hosts.iter().enumerate() {
            let held = || self.running.iter().map(|(_, grant)| grant).filter(|grant| grant.host == at);
            assert!(held().map(|grant| grant.cpus).sum::<u32>() <= host.cpus);
            assert!(held().map(|grant| grant.memory).sum::<u64>() <= host.memory, "main memory is over-committed");
            for gpu in &host.gpus {
                let there = held().flat_map(|grant| &grant.devices).filter(|device| device.ordinal == gpu.ordinal);
                let (count, bytes) = there.fold((0, 0), |(count, bytes), device| (count + 1, bytes + device.memory));
                assert!(count <= SHARERS && bytes <= gpu.memory, "a device is over-committed");
            }
        }
        for (node, grant) in &self.running {
            let request = self.scheduler.request(*node).unwrap();
            assert_eq!((grant.devices.len(), grant.memory), (request.gpus as usize, request.memory));
        }
    }

    fn verdicts(&self) -> BTreeMap<NodeId, Verdict> {
        self.scheduler.verdicts().collect()
    }
}

/// A schedule, and what each of its nodes really needs.
fn hungry() -> impl Strategy<Value = (BTreeMap<NodeId, Task>, Vec<Inventory>, Vec<Need>)> {
    let need = (prop_oneof![3 => Just(0), 1 => 1u64..70], prop_oneof![1 => Just(0), 3 => 1u64..90]);
    (schedule(), proptest::collection::vec(need, 40)).prop_map(|((mut tasks, mut hosts), needs)| {
        hosts.iter_mut().for_each(|host| host.memory = MAIN);
        for task in tasks.values_mut() {
            task.parents.clear();
        }
        (tasks, hosts, needs.into_iter().map(|(main, gpu)| (main * GIB, gpu * GIB)).collect())
    })
}

/// 1,000 schedules; 50,000 with MPCC_HEAVY=1. Who runs out of memory gets more, until it has what it needs or had all there is;
/// with what the first run has measured nobody runs out in the second.
#[test]
fn who_runs_out_grows_and_the_next_run_knows() {
    let picks = proptest::collection::vec(any::<usize>(), 1..20);
    proptest!(cases(1_000, 50_000), |((mut tasks, hosts, needs) in hungry(), picks in picks)| {
        let first = Greedy::run(&tasks, &hosts, &needs, &picks);
        let verdicts = first.verdicts();
        prop_assert_eq!(verdicts.len(), tasks.len(), "every node ends");
        for (id, task) in &tasks {
            let (main, gpu) = needs[id.0];
            let request = &task.request;
            let devices = hosts.iter().filter(|host| host.fits(&Resources { memory: 0, ..request.clone() }).is_ok());
            let possible = devices.count() > 0 && main <= MAIN && (request.gpus == 0 || gpu <= 80 * GIB);
            prop_assert_eq!(verdicts[id] == Verdict::Executed, possible, "{:?} needs {} and {}", request, main, gpu);
        }
        for (id, task) in &mut tasks {
            if verdicts[id] == Verdict::Executed {
                let (peak_rss_bytes, gpu_peak_bytes) = needs[id.0];
                let seen = Measured { wall_s: 1.0, peak_rss_bytes, gpu_peak_bytes, of_sibling: false };
                task.request = reserve(&task.request, &seen, &hosts.iter().max_by_key(|host| host.gpus.len()).unwrap().clone());
            }
        }
        tasks.retain(|id, _| verdicts[id] == Verdict::Executed);
        let second = Greedy::run(&tasks, &hosts, &needs, &picks);
        prop_assert_eq!(second.starved, 0, "what was measured is enough");
        prop_assert!(second.verdicts().values().all(|verdict| *verdict == Verdict::Executed));
    });
}
