//! `mpcc simulate`: what a pipeline would take on hosts that one may not have.

use std::collections::BTreeMap;
use std::path::Path;

use mpcc_engine::journal::{self, Status};
use mpcc_engine::plan::{NodeId, Plan};
use mpcc_engine::resources::{CpuLevel, Gpu, Inventory, format_size};
use mpcc_engine::run::task;
use mpcc_engine::scheduler::Task;
use mpcc_engine::simulate::{Timeline, simulate as on_virtual_clock};
use serde_json::json;

use super::{Answer, find_run};
use crate::cli::SimulateArgs;
use crate::pipeline::compile;
use crate::report::{DONE, Failure};
use crate::ui::{columns::columns, say, seconds, timeline};

/// Simulates a pipeline, and what a little more would change.
pub(super) fn simulate(args: &SimulateArgs, store: &Path) -> Answer {
    let plan = compile(&args.pipeline.file, &args.pipeline.values)?;
    let durations = durations(&plan, args, store)?;
    let guessed = plan.nodes.iter().filter(|node| !durations.contains_key(&node.name)).count();
    let tasks: BTreeMap<NodeId, Task> =
        plan.ids().map(|id| (id, Task { remote: false, ..task(plan.node(id), &durations) })).collect();
    let run = |hosts: usize, gpus: usize| on_virtual_clock(&tasks, &cluster(args, hosts, gpus), args.interference);
    let (hosts, gpus) = (args.hosts, args.gpus_per_host);
    let asked = run(hosts, gpus);
    if let Some(path) = &args.svg {
        let picture = timeline::svg(&plan, &asked);
        std::fs::write(path, picture).map_err(|error| Failure::io(path, &error))?;
    }
    let more = [("one more GPU a host", run(hosts, gpus + 1)), ("one more host", run(hosts + 1, gpus))];
    let whole = on_virtual_clock(&whole_devices(&tasks), &cluster(args, hosts, gpus), args.interference);
    let others: Vec<(&str, Timeline)> = more.into_iter().chain([("whole devices, none shared", whole)]).collect();
    if args.json {
        print_json(&plan, args, &asked, &others, guessed);
    } else {
        print_text(&plan, args, &asked, &others, guessed);
    }
    Ok(DONE)
}

/// How long each node takes, from the run that `--durations` names, else from the newest runs of the pipeline.
fn durations(plan: &Plan, args: &SimulateArgs, store: &Path) -> Result<BTreeMap<String, f64>, Failure> {
    let Some(run) = &args.durations else { return Ok(journal::durations(store, &plan.file)) };
    let record = find_run(store, Some(run))?;
    let done = record.nodes.iter().filter(|node| matches!(node.status, Status::Executed | Status::Cached));
    Ok(done.filter_map(|node| Some((node.header.node.clone(), node.wall_s?))).collect())
}

fn cluster(args: &SimulateArgs, hosts: usize, gpus: usize) -> Vec<Inventory> {
    let gpu = |ordinal| Gpu { ordinal, name: "simulated".to_owned(), memory: args.gpu_memory, capability: (9, 0) };
    let host = Inventory {
        cpus: args.cpus_per_host,
        level: CpuLevel::Base,
        memory: u64::MAX,
        gpus: (0..gpus).map(gpu).collect(),
    };
    vec![host; hosts]
}

/// The same tasks, asking for devices of their own.
fn whole_devices(tasks: &BTreeMap<NodeId, Task>) -> BTreeMap<NodeId, Task> {
    let mut tasks = tasks.clone();
    tasks.values_mut().for_each(|task| task.request.gpu_memory = 0);
    tasks
}

fn names(plan: &Plan, nodes: &[NodeId]) -> Vec<String> {
    nodes.iter().map(|id| plan.node(*id).name.clone()).collect()
}

fn print_json(plan: &Plan, args: &SimulateArgs, asked: &Timeline, others: &[(&str, Timeline)], guessed: usize) {
    for span in &asked.spans {
        say(json!({
            "event": "simulated.node", "node": plan.node(span.node).name, "host": span.host, "devices": span.devices,
            "start_s": span.start_s, "end_s": span.end_s,
        }));
    }
    let variants: BTreeMap<&str, f64> = others.iter().map(|(name, timeline)| (*name, timeline.makespan_s)).collect();
    say(json!({
        "event": "simulated", "nodes": plan.nodes.len(), "hosts": args.hosts, "gpus_per_host": args.gpus_per_host,
        "makespan_s": asked.makespan_s, "lower_bound_s": asked.lower_bound_s(), "critical_path_s": asked.critical_path_s,
        "gpu_work_s": asked.gpu_work_s, "cpu_work_s": asked.cpu_work_s,
        "gpu_utilisation": asked.gpu_utilisation(args.hosts * args.gpus_per_host),
        "guessed": guessed, "impossible": names(plan, &asked.impossible), "variants": variants,
    }));
}

fn print_text(plan: &Plan, args: &SimulateArgs, asked: &Timeline, others: &[(&str, Timeline)], guessed: usize) {
    let devices = args.hosts * args.gpus_per_host;
    say(format_args!(
        "{}: {} nodes on {} host(s) of {} GPU(s) with {} and {} CPU(s)",
        plan.name,
        plan.nodes.len(),
        args.hosts,
        args.gpus_per_host,
        format_size(args.gpu_memory),
        args.cpus_per_host,
    ));
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let mut rows = vec![
        row("makespan", seconds(asked.makespan_s)),
        row("lower bound", seconds(asked.lower_bound_s())),
        row("  longest chain", seconds(asked.critical_path_s)),
        row("  GPU work / GPUs", seconds(asked.gpu_work_s)),
        row("  CPU work / CPUs", seconds(asked.cpu_work_s)),
    ];
    if devices > 0 {
        rows.push(row("GPUs in use", format!("{:.0} % of the time", 100.0 * asked.gpu_utilisation(devices))));
    }
    for (name, timeline) in others {
        rows.push(row(name, format!("{} ({:+.0} %)", seconds(timeline.makespan_s), change(asked, timeline))));
    }
    say(columns(&rows));
    if guessed > 0 {
        say(format_args!(
            "{guessed} node(s) have no recorded duration: 30 s for training and generation, 1 s for others"
        ));
    }
    if !asked.impossible.is_empty() {
        let names = names(plan, &asked.impossible);
        say(format_args!("{} node(s) would never run there: {}", names.len(), names[..names.len().min(5)].join(", ")));
    }
}

fn change(from: &Timeline, to: &Timeline) -> f64 {
    if from.makespan_s > 0.0 { 100.0 * (to.makespan_s / from.makespan_s - 1.0) } else { 0.0 }
}
