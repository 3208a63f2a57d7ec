//! `mpcc runs`: the runs a store has seen.

use std::path::Path;

use mpcc_engine::journal::{self, RunRecord};
use serde_json::{Value, json};

use super::{Answer, find_run, status};
use crate::cli::RunsCommand;
use crate::report::DONE;
use crate::ui::{costs, say};

/// Lists runs or shows one.
pub(super) fn runs(command: &RunsCommand, store: &Path) -> Answer {
    match command {
        RunsCommand::List { json } => list(store, *json),
        RunsCommand::Show { run, digests, json } => {
            let run = find_run(store, run.as_deref())?;
            match (digests, json) {
                (true, _) => digests_of(&run),
                (_, true) => say(with_totals(&run)),
                _ => say(format_args!("{}\n\n{}", status::headline(&run), costs::table(&run))),
            }
            Ok(DONE)
        }
    }
}

/// The run as `status --json` shows it, and what it came to.
fn with_totals(run: &RunRecord) -> Value {
    let mut value = json!(run);
    value["totals"] = json!(run.totals());
    value
}

fn list(store: &Path, json: bool) -> Answer {
    for id in journal::list(store)? {
        // A run that was killed before its first line did nothing; a journal of a later version is not ours to read.
        let Ok(run) = journal::read(store, &id) else { continue };
        if json {
            let line = json!({
                "run": run.id, "pipeline": run.pipeline, "file": run.file, "profile": run.profile, "started": run.started,
                "alive": run.alive, "summary": run.summary,
            });
            say(line);
        } else {
            say(status::headline(&run));
        }
    }
    Ok(DONE)
}

/// `node`, `port`, `digest` with tabs between, one a line, in plan order.
fn digests_of(run: &RunRecord) {
    for node in &run.nodes {
        for (port, artifact) in &node.outputs {
            say(format_args!("{}\t{port}\t{}", node.header.node, artifact.digest));
        }
    }
}
