//! `mpcc logs`: what a node's stage printed.

use std::path::{Path, PathBuf};

use mpcc_engine::journal::{self, RunRecord};

use super::{Answer, find_run, no_node};
use crate::cli::LogsArgs;
use crate::report::{DONE, Failure};
use crate::ui::say;

/// Prints a log.
pub(super) fn logs(args: &LogsArgs, store: &Path) -> Answer {
    let log = find(args, store)?;
    if args.path {
        say(log.display());
        return Ok(DONE);
    }
    let text = match std::fs::read(&log) {
        // A command that printed nothing leaves no log.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        text => text.map_err(|error| Failure::io(&log, &error))?,
    };
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let skip = args.tail.map_or(0, |tail| lines.len().saturating_sub(tail));
    for line in &lines[skip..] {
        say(line);
    }
    Ok(DONE)
}

/// The log in the run that was asked for, or in the newest run that has one: a node that was up to date printed nothing.
fn find(args: &LogsArgs, store: &Path) -> Result<PathBuf, Failure> {
    let first = find_run(store, args.run.as_deref())?;
    if first.node(&args.node).is_none() {
        return Err(no_node(&first, &args.node));
    }
    let log = |run: &RunRecord| run.node(&args.node).and_then(|node| node.log.clone());
    if let Some(log) = log(&first) {
        return Ok(log);
    }
    let older = if args.run.is_some() { Vec::new() } else { journal::list(store)? };
    let mut found = older.iter().filter_map(|id| journal::read(store, id).ok()).filter_map(|run| log(&run));
    found.next().ok_or_else(|| Failure::wrong(format_args!("`{}` did not run, so it has no log", args.node)))
}
