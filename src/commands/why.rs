//! `mpcc why`: why a node would run, or why it ran last.

use std::path::Path;

use mpcc_engine::preview::{Forecast, Why, why as explain};
use serde_json::json;

use super::{Answer, find_run, open_existing};
use crate::cli::{ValueArgs, WhyArgs};
use crate::invocation::Invocation;
use crate::pipeline::{compile, inventory, numerics};
use crate::report::{DONE, Failure};
use crate::ui::{reasons, say};

/// Prints why.
pub(super) fn why(args: &WhyArgs, store: &Path) -> Answer {
    let (file, values) = which(args, store)?;
    let plan = compile(&file, &values)?;
    let nodes = plan.matching(&args.node)?;
    let numerics = numerics(&values, &inventory(&values)?)?;
    let store = open_existing(store)?;
    for node in nodes {
        let why = explain(&plan, &store, node, numerics.clone())?;
        let lines = if args.json { vec![json_line(&why)] } else { text(&why) };
        lines.into_iter().for_each(say);
    }
    Ok(DONE)
}

/// The pipeline that is meant: the one named, or that of the last run with the values it was called with.
fn which(args: &WhyArgs, store: &Path) -> Result<(std::path::PathBuf, ValueArgs), Failure> {
    if let Some(file) = &args.file {
        return Ok((file.clone(), args.values.clone()));
    }
    let last = Invocation::of(store, &find_run(store, None)?)?;
    let file = last.file.clone();
    let mut values = last.values();
    values.sets.extend(args.values.sets.iter().cloned());
    values.profile = args.values.profile.clone().or(values.profile);
    values.inventory = args.values.inventory.clone().or(values.inventory);
    Ok((file, values))
}

fn text(why: &Why) -> Vec<String> {
    let node = &why.preview.node;
    let mut lines = Vec::new();
    match &why.preview.forecast {
        Forecast::Hit if why.changes.is_empty() => {
            lines.push(format!("{node} is up to date; it has run with one recipe only"))
        }
        Forecast::Hit => {
            lines.push(format!("{node} is up to date; it ran last because of {}", reasons::change(&why.changes[0])));
            lines.extend(why.changes[1..].iter().map(|change| format!("  and {}", reasons::change(change))));
        }
        Forecast::Run { reasons } => {
            let mut texts = reasons.iter().map(reasons::reason);
            lines.push(format!("{node} would run: {}", texts.next().unwrap_or_default()));
            lines.extend(texts.map(|reason| format!("  and {reason}")));
        }
        Forecast::Unknown { until } => {
            lines.push(format!("{node} is unknown until {}", until.join(", ")));
            for above in &why.above {
                let Forecast::Run { reasons } = &above.forecast else { continue };
                let first = reasons.first().map(reasons::reason).unwrap_or_default();
                lines.push(format!("  {} would run: {first}", above.node));
            }
        }
    }
    lines
}

/// One object with the first field that differs on top.
fn json_line(why: &Why) -> String {
    let mut line = json!({"event": "why"});
    let fields = serde_json::to_value(why).expect("plain data");
    if let (Some(line), serde_json::Value::Object(fields)) = (line.as_object_mut(), fields) {
        line.extend(fields);
    }
    line.to_string()
}
