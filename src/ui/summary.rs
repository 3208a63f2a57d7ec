//! How a run ended: warnings, what failed with the tail of its log, what waits, and the counts.

use mpcc_engine::event::Summary;
use mpcc_engine::executor::log_tail;
use mpcc_engine::journal::{NodeRecord, RunRecord, Status};

use super::{seconds, spent};

/// Lines of a log that are shown of a failed node.
const TAIL_LINES: usize = 15;
/// Bytes of a log that are looked at for them.
const TAIL_BYTES: u64 = 16 << 10;
/// Warnings shown of one node.
const WARNINGS: usize = 5;

/// The lines that end a run.
pub(crate) fn summary(run: &RunRecord) -> Vec<String> {
    let mut lines = Vec::new();
    for node in &run.nodes {
        lines.extend(warnings(node));
    }
    for node in run.nodes.iter().filter(|node| node.status == Status::Failed) {
        lines.extend(failure(node));
    }
    for node in run.nodes.iter().filter(|node| node.status == Status::Waiting) {
        lines.push(format!("{} waits: {}", node.header.node, node.message.as_deref().unwrap_or_default()));
    }
    lines.push(run.summary.map_or_else(|| "the run broke off".to_owned(), |summary| counts(&summary)));
    lines
}

fn warnings(node: &NodeRecord) -> Vec<String> {
    let name = &node.header.node;
    let mut lines: Vec<String> =
        node.warnings.iter().take(WARNINGS).map(|warning| format!("warning: {name}: {warning}")).collect();
    if node.warnings.len() > WARNINGS {
        lines.push(format!("warning: {name}: {} more, see `mpcc logs {name}`", node.warnings.len() - WARNINGS));
    }
    lines
}

fn failure(node: &NodeRecord) -> Vec<String> {
    let name = &node.header.node;
    let mut lines = vec![String::new(), format!("{name} failed: {}", node.message.as_deref().unwrap_or("see its log"))];
    let Some(log) = &node.log else { return lines };
    let text = log_tail(log, TAIL_BYTES);
    let tail: Vec<&str> = text.lines().collect();
    for line in &tail[tail.len().saturating_sub(TAIL_LINES)..] {
        lines.push(format!("  | {line}"));
    }
    lines.push(format!("  log: {}", log.display()));
    lines
}

/// `3 executed, 39 up to date, 1 failed, 2 skipped in 12 s; 3 requests, 1,204 tokens, $0.01`.
pub(crate) fn counts(summary: &Summary) -> String {
    let counts = [
        (summary.executed, "executed"),
        (summary.cached, "up to date"),
        (summary.failed, "failed"),
        (summary.skipped, "skipped"),
        (summary.waiting, "waiting"),
        (summary.cancelled, "cancelled"),
    ];
    let said: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    let said = if said.is_empty() { "nothing to do".to_owned() } else { said.join(", ") };
    let interrupted = if summary.interrupted { "interrupted: " } else { "" };
    let spent = summary.spent.map(|spent| format!("; {}", spent::text(&spent))).unwrap_or_default();
    format!("{interrupted}{said} in {}{spent}", seconds(summary.wall_s))
}
