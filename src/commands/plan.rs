//! `mpcc plan`: what a run would do with each node, and why.

use std::path::Path;

use indicatif::HumanCount;
use mpcc_engine::asking::{Asks, price};
use mpcc_engine::plan::{MissingKind, NodeId, Plan, SelectError};
use mpcc_engine::preview::{Forecast, Look, Preview, preview};
use mpcc_engine::run::RunOptions;
use serde_json::{Value, json};

use super::Answer;
use crate::cli::PlanArgs;
use crate::pipeline::{Request, inventory, numerics};
use crate::report::DONE;
use crate::ui::columns::columns;
use crate::ui::{reasons, say, seconds};

/// Prints the plan. What is missing is listed and is no error.
pub(super) fn plan(args: &PlanArgs, store: &Path) -> Answer {
    let request = Request::new(&args.pipeline)?;
    let (plan, id, store) = request.plan(request.kept(store).as_ref(), store)?;
    let seal = id.as_ref().and_then(|id| request.seal(store.root(), id));
    let nodes = plan.select(&args.nodes)?;
    let forced =
        args.force.iter().map(|name| plan.matching(name)).collect::<Result<Vec<Vec<NodeId>>, SelectError>>()?;
    let options = RunOptions::new(nodes, inventory(&args.pipeline.values)?, jiff::Timestamp::UNIX_EPOCH);
    let forced = forced.into_iter().flatten().collect();
    let registry = mpcc_stages::registry();
    let numerics = numerics(&args.pipeline.values, &options.inventory)?;
    let look = Look { nodes: &options.nodes, forced: &forced, numerics, seal, registry: Some(&registry) };
    let previews = preview(&plan, &store, look)?;
    let missing = missing(&plan, &options);
    let lines = if args.json { json_lines(&previews, &missing) } else { text(&previews, &missing) };
    for line in lines {
        say(line);
    }
    Ok(DONE)
}

/// Something a run would need: what kind of thing, who needs it, what to do.
struct Lack {
    kind: &'static str,
    needed_by: String,
    message: String,
}

/// What the pipeline lacks, and what this host is too small for.
fn missing(plan: &Plan, options: &RunOptions) -> Vec<Lack> {
    let kind = |kind| match kind {
        MissingKind::Data => "data",
        MissingKind::Key => "key",
        MissingKind::Device => "device",
    };
    let lack = |one: &mpcc_engine::plan::Missing| Lack {
        kind: kind(one.what),
        needed_by: one.needed_by.clone(),
        message: one.message.clone(),
    };
    let mut lacks: Vec<Lack> = plan.missing.iter().map(lack).collect();
    for NodeId(id) in &options.nodes {
        let node = &plan.nodes[*id];
        if !node.is_local() {
            continue;
        }
        let known = lacks.iter().any(|lack| lack.kind == "device" && lack.needed_by == node.name);
        if let (Err(unfit), false) = (options.inventory.fits(&node.resources), known) {
            lacks.push(Lack { kind: "device", needed_by: node.name.clone(), message: unfit.to_string() });
        }
    }
    lacks
}

/// How many nodes are hits, to run, and unknown.
fn counts(previews: &[Preview]) -> [usize; 3] {
    let count = |of: fn(&Forecast) -> bool| previews.iter().filter(|preview| of(&preview.forecast)).count();
    [
        count(|forecast| matches!(forecast, Forecast::Hit)),
        count(|forecast| matches!(forecast, Forecast::Run { .. })),
        count(|forecast| matches!(forecast, Forecast::Unknown { .. })),
    ]
}

fn text(previews: &[Preview], missing: &[Lack]) -> Vec<String> {
    let row = |preview: &Preview| {
        let (word, why) = forecast(&preview.forecast);
        let asks = preview.asks.as_ref().map(asks).into_iter().filter(|_| word == "run");
        let why = asks.chain(Some(why)).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
        vec![word.to_owned(), preview.node.clone(), why]
    };
    let mut lines = vec![columns(&previews.iter().map(row).collect::<Vec<_>>())];
    if !missing.is_empty() {
        let row = |lack: &Lack| vec![format!("  {}", lack.kind), lack.needed_by.clone(), lack.message.clone()];
        lines.push(format!(
            "\nmissing, a run would not begin:\n{}",
            columns(&missing.iter().map(row).collect::<Vec<_>>())
        ));
    }
    let [hit, run, unknown] = counts(previews);
    let work: f64 = previews
        .iter()
        .filter(|preview| preview.forecast != Forecast::Hit)
        .filter_map(|preview| preview.expected_s)
        .sum();
    let work = if work > 0.0 { format!("; about {} of work when they last ran", seconds(work)) } else { String::new() };
    let asked = previews.iter().filter_map(|preview| preview.asks).reduce(Asks::and);
    let asked = asked.filter(|all| all.missing > 0).map_or_else(String::new, |all| format!("; {}", asks(&all)));
    lines.push(format!("\n{hit} up to date, {run} to run, {unknown} unknown until then{asked}{work}"));
    lines
}

/// A word and the reason.
fn forecast(forecast: &Forecast) -> (&'static str, String) {
    match forecast {
        Forecast::Hit => ("hit", String::new()),
        Forecast::Run { reasons } => ("run", first_reason(reasons)),
        Forecast::Unknown { until } => match &until[..] {
            [one] => ("unknown", format!("until {one}")),
            [one, rest @ ..] => ("unknown", format!("until {one} and {} more", rest.len())),
            [] => ("unknown", String::new()),
        },
    }
}

/// `3 of 100,000 requests, about $0.01`.
fn asks(asks: &Asks) -> String {
    let what = if asks.records { "records" } else { "requests" };
    let cost = match asks.dollars {
        Some(dollars) if asks.missing > 0 && asks.recorded => format!(", about {}", price::shown(dollars)),
        Some(dollars) if asks.missing > 0 => format!(", at most about {}", price::shown(dollars)),
        _ => String::new(),
    };
    format!("{} of {} {what}{cost}", HumanCount(asks.missing), HumanCount(asks.total))
}

fn first_reason(reasons: &[mpcc_engine::preview::Reason]) -> String {
    match reasons {
        [] => String::new(),
        [one] => reasons::reason(one),
        [one, rest @ ..] => format!("{} (and {} more)", reasons::reason(one), rest.len()),
    }
}

fn json_lines(previews: &[Preview], missing: &[Lack]) -> Vec<String> {
    let node = |preview: &Preview| {
        let mut line = json!({"event": "plan.node"});
        merge(&mut line, serde_json::to_value(preview).expect("plain data"));
        line.to_string()
    };
    let lack = |lack: &Lack| {
        json!({"event": "plan.missing", "what": lack.kind, "needed_by": lack.needed_by, "message": lack.message})
            .to_string()
    };
    let [hit, run, unknown] = counts(previews);
    let end = json!({"event": "plan.finished", "hit": hit, "run": run, "unknown": unknown, "missing": missing.len()});
    let mut lines: Vec<String> = previews.iter().map(node).collect();
    lines.extend(missing.iter().map(lack));
    lines.push(end.to_string());
    lines
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}
