//! `mpcc status`: where each node of a run is.

use std::path::Path;

use mpcc_engine::journal::{NodeRecord, RunRecord, Status};

use super::{Answer, find_run, shown};
use crate::cli::StatusArgs;
use crate::report::DONE;
use crate::ui::columns::columns;
use crate::ui::json::to_line;
use crate::ui::{say, seconds};

/// Prints a run's state.
pub(super) fn status(args: &StatusArgs, store: &Path) -> Answer {
    let run = find_run(store, args.run.as_deref())?;
    say(if args.json { to_line(&run) } else { text(&run) });
    Ok(DONE)
}

/// A run and its nodes, for people.
pub(super) fn text(run: &RunRecord) -> String {
    let rows: Vec<Vec<String>> = run.nodes.iter().map(row).collect();
    format!("{}\n\n{}", headline(run), columns(&rows))
}

/// `20260101-120000-000 full (pipelines/full.yaml): 3 executed, 2 running`.
pub(super) fn headline(run: &RunRecord) -> String {
    let counts: Vec<String> = run.counts().iter().map(|(status, count)| format!("{count} {}", word(*status))).collect();
    let state = match (&run.summary, run.alive) {
        (Some(summary), _) => format!(", took {}", seconds(summary.wall_s)),
        (None, true) => format!(", running for {}", seconds(run.elapsed_s)),
        (None, false) => ", was killed".to_owned(),
    };
    let profile = run.profile.as_ref().map(|profile| format!(", profile {profile}")).unwrap_or_default();
    format!("{} {} ({}{profile}): {}{state}", run.id, run.pipeline, shown(&run.file).display(), counts.join(", "))
}

fn row(node: &NodeRecord) -> Vec<String> {
    let time = match (node.status, node.wall_s) {
        (Status::Executed | Status::Failed, Some(wall_s)) => seconds(wall_s),
        (Status::Cached, Some(wall_s)) => format!("saved {}", seconds(wall_s)),
        _ => String::new(),
    };
    let progress = node.progress.as_ref().filter(|_| node.status == Status::Running);
    let progress = progress.map(|(done, total, unit)| format!("{done} of {total} {unit}"));
    let message = node.message.as_ref().and_then(|message| message.lines().next()).map(str::to_owned);
    let detail = progress.or(message).unwrap_or_default();
    vec![node.header.node.clone(), word(node.status).to_owned(), time, detail]
}

/// A state for people.
pub(crate) fn word(status: Status) -> &'static str {
    match status {
        Status::Pending => "pending",
        Status::Running => "running",
        Status::Elsewhere => "running elsewhere",
        Status::Resting => "resting",
        Status::Interrupted => "interrupted",
        Status::Executed => "executed",
        Status::Cached => "up to date",
        Status::Failed => "failed",
        Status::Skipped => "skipped",
        Status::Waiting => "waiting",
        Status::Cancelled => "cancelled",
    }
}
