//! `mpcc trace`: a run as a timeline, in Chrome's trace format.

use std::path::Path;

use mpcc_engine::journal::{NodeRecord, RunRecord, Status};
use serde_json::{Value, json};

use super::{Answer, find_run};
use crate::cli::TraceArgs;
use crate::report::DONE;
use crate::ui::say;

/// Prints the trace of a run: <https://ui.perfetto.dev> and chrome://tracing show it.
pub(super) fn trace(args: &TraceArgs, store: &Path) -> Answer {
    say(events(&find_run(store, args.run.as_deref())?));
    Ok(DONE)
}

/// One complete event (`"ph": "X"`, times in microseconds) for each node that was executed, on the first lane that is free;
/// an instant event for each that was not.
fn events(run: &RunRecord) -> Value {
    let mut nodes: Vec<&NodeRecord> = run.nodes.iter().collect();
    nodes.sort_by(|a, b| start(a).total_cmp(&start(b)));
    let mut lanes: Vec<f64> = Vec::new();
    let events: Vec<Value> = nodes.into_iter().filter_map(|node| event(node, run, &mut lanes)).collect();
    json!({
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": { "run": run.id, "pipeline": run.pipeline, "started": run.started },
    })
}

fn start(node: &NodeRecord) -> f64 {
    node.started_s.or(node.ended_s).unwrap_or(0.0)
}

fn event(node: &NodeRecord, run: &RunRecord, lanes: &mut Vec<f64>) -> Option<Value> {
    let micros = |seconds: f64| (seconds * 1e6).round();
    let about = json!({
        "stage": node.header.stage, "kind": node.header.kind, "status": node.status, "attempts": node.attempts,
        "cpu_s": node.cpu_s, "peak_rss_bytes": node.peak_rss_bytes, "gpu_peak_bytes": node.gpu_peak_bytes, "spent": node.spent, "memo": node.memo, "metrics": node.metrics,
    });
    let name = &node.header.node;
    match (node.started_s, node.status) {
        (Some(began), _) => {
            let ended = node.ended_s.unwrap_or(run.elapsed_s).max(began);
            let free = lanes.iter().position(|until| *until <= began);
            let lane = free.unwrap_or_else(|| {
                lanes.push(0.0);
                lanes.len() - 1
            });
            lanes[lane] = ended;
            Some(json!({
                "name": name, "cat": node.header.kind, "ph": "X", "pid": 1, "tid": lane + 1,
                "ts": micros(began), "dur": micros(ended - began), "args": about,
            }))
        }
        (None, Status::Pending) => None,
        (None, _) => Some(json!({
            "name": name, "cat": node.header.kind, "ph": "i", "s": "p", "pid": 1, "tid": 0,
            "ts": micros(start(node)), "args": about,
        })),
    }
}
