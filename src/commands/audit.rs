//! `mpcc audit`: whether nodes make the same bytes each time.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use mpcc_engine::audit::{AuditError, AuditOptions, Audited, Verdict, audit as execute};
use mpcc_engine::plan::{NodeId, Plan, SelectError};
use serde_json::{Value, json};

use super::{Answer, open_existing, run};
use crate::cli::AuditArgs;
use crate::pipeline::{compile, inventory, numerics};
use crate::report::{DONE, FAILED, Failure};
use crate::ui::{complain, say, seconds};

/// How long a stage that ran past its time limit may take to end.
const GRACE: Duration = Duration::from_secs(30);

/// Audits nodes; 1 when one of them differs or fails.
pub(super) fn audit(args: &AuditArgs, store: &Path) -> Answer {
    let plan = compile(&args.pipeline.file, &args.pipeline.values)?;
    let store = open_existing(store)?;
    let host = inventory(&args.pipeline.values)?;
    let numerics = numerics(&args.pipeline.values, &host)?;
    let options = AuditOptions { nodes: nodes(&plan, &args.nodes)?, times: args.times, inventory: host, numerics };
    let executor = run::process_executor(&plan, GRACE)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::machine(format_args!("no threads: {error}")))?;
    let told =
        |audited: &Audited| say(if args.json { json_line(audited).to_string() } else { text(audited, args.times) });
    let all = runtime.block_on(execute(&plan, &store, &options, &executor, told))?;
    let count = |of: fn(&Verdict) -> bool| all.iter().filter(|audited| of(&audited.verdict)).count();
    let equal = count(|verdict| matches!(verdict, Verdict::Equal { .. }));
    let failed = count(|verdict| matches!(verdict, Verdict::Failed { .. }));
    let differ = all.len() - equal - failed;
    if args.json {
        say(json!({"event": "audit.finished", "equal": equal, "differ": differ, "failed": failed}));
    } else if all.len() > 1 {
        complain(format_args!("{equal} equal, {differ} differ, {failed} failed"));
    }
    Ok(if equal == all.len() { DONE } else { FAILED })
}

/// Exactly the nodes that are named; all when none is.
fn nodes(plan: &Plan, names: &[String]) -> Result<BTreeSet<NodeId>, SelectError> {
    if names.is_empty() {
        return Ok(plan.ids().collect());
    }
    let matching = names.iter().map(|name| plan.matching(name)).collect::<Result<Vec<_>, _>>()?;
    Ok(matching.into_iter().flatten().collect())
}

fn json_line(audited: &Audited) -> Value {
    let mut line = json!({"event": "audit.node"});
    if let (Value::Object(line), Value::Object(fields)) = (&mut line, json!(audited)) {
        line.extend(fields);
    }
    line
}

fn text(audited: &Audited, times: u32) -> String {
    let node = &audited.node;
    let took = seconds(audited.wall_s.iter().sum());
    match &audited.verdict {
        Verdict::Equal { .. } => {
            let times = if times == 1 { "once".to_owned() } else { format!("{times} times") };
            let stored =
                if audited.stored { ", and so has the store" } else { "; the store has nothing to compare with" };
            format!("{node}: executed {times} in {took}, the same bytes each time{stored}")
        }
        Verdict::Differs { port, versions: [first, second], digests, first: place } => {
            let digests = digests.each_ref().map(|digest| digest.short());
            format!(
                "{node}: output `{port}` differs between {first} ({}) and {second} ({}):\n  {place}",
                digests[0], digests[1]
            )
        }
        Verdict::Failed { execution, message } => format!("{node}: execution {execution} failed: {message}"),
    }
}

impl From<AuditError> for Failure {
    fn from(error: AuditError) -> Self {
        if error.is_machine() { Self::machine(error) } else { Self::wrong(error) }
    }
}
