//! Devices shared by declared memory: a trace of real shapes against its bound, and random schedules against the rules.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use mpcc_engine::allocator::{INTERFERENCE, SHARERS};
use mpcc_engine::plan::NodeId;
use mpcc_engine::resources::{CpuLevel, Gpu, Inventory, Resources};
use mpcc_engine::scheduler::Task;
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

/// 2,000 schedules; 100,000 with MPCC_HEAVY=1.
#[test]
fn random_schedules_keep_the_rules() {
    #[allow(clippy::disallowed_methods, reason = "a test may be told to do more")]
    let cases = if std::env::var_os("MPCC_HEAVY").is_some() { 100_000 } else { 2_000 };
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |((tasks, hosts) in schedule())| {
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
