//! The remote cache: `mpcc cache push`, `mpcc cache pull`, and what a run reads through to.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use mpcc_engine::cache::remote::{Access, Progress, PullReport, PushReport, ReadThrough, Remote, RemoteOptions};
use mpcc_engine::cache::{Digest, Store};
use mpcc_engine::resources::format_size;
use serde_json::{Value, json};

use super::{Answer, find_run, no_node};
use crate::cli::RemoteArgs;
use crate::environment;
use crate::report::{DONE, Failure, MACHINE};
use crate::ui::{complain, say};

/// A run does not wait long for a remote: it can do without.
const PATIENCE_OF_A_RUN: Duration = Duration::from_secs(5);

fn options() -> RemoteOptions {
    RemoteOptions { variables: environment::of_providers(), ..RemoteOptions::default() }
}

fn open(args: &RemoteArgs, access: Access) -> Result<Remote, Failure> {
    let none = || Failure::wrong("which remote? name it with --remote URL, or set MPCC_REMOTE");
    let url = args.url.as_deref().filter(|url| !url.is_empty()).ok_or_else(none)?;
    let options =
        RemoteOptions { transfers: args.transfers.into(), patience: Duration::from_secs(args.patience), ..options() };
    Ok(Remote::open(url, access, options)?)
}

/// `mpcc cache push`.
pub(super) fn push(store: &Store, nodes: &[String], all: bool, args: &RemoteArgs) -> Answer {
    let recipes = if all { store.recipes()? } else { recipes_of_run(store, nodes)? };
    let remote = open(args, Access::Write)?;
    if !remote.creates_only_absent() {
        complain("note: this server ignores If-None-Match; two pushes at once may send the same object twice");
    }
    let bar = bar(args.json);
    let report = store.push(&remote, &recipes, &|progress| show(&bar, progress));
    bar.finish_and_clear();
    let report = report?;
    for (recipe, why) in &report.incomplete {
        complain(format_args!("not sent: the entry of recipe {}: {why}; run the pipeline again", recipe.short()));
    }
    say(if args.json { push_json(&report).to_string() } else { push_text(&report, remote.url()) });
    Ok(if report.incomplete.is_empty() { DONE } else { MACHINE })
}

/// `mpcc cache pull`.
pub(super) fn pull(store: &Store, nodes: &[String], args: &RemoteArgs) -> Answer {
    let recipes = if nodes.is_empty() { None } else { Some(recipes_named(store, nodes)?) };
    let remote = open(args, Access::Read)?;
    let bar = bar(args.json);
    let report = store.pull(&remote, recipes.as_ref(), &|progress| show(&bar, progress));
    bar.finish_and_clear();
    let report = report?;
    for problem in &report.problems {
        complain(format_args!("not taken: {problem}"));
    }
    for recipe in &report.absent {
        complain(format_args!("not there: an entry of recipe {}", recipe.short()));
    }
    say(if args.json { pull_json(&report).to_string() } else { pull_text(&report, remote.url()) });
    Ok(if report.problems.is_empty() { DONE } else { MACHINE })
}

/// The recipes of the last run's nodes, or of some of them.
fn recipes_of_run(store: &Store, nodes: &[String]) -> Result<BTreeSet<Digest>, Failure> {
    let run = find_run(store.root(), None)?;
    for name in nodes {
        if !run.nodes.iter().any(|node| node.header.node == *name || node.header.stage == *name) {
            return Err(no_node(&run, name));
        }
    }
    let named = |node: &str, stage: &str| nodes.is_empty() || nodes.iter().any(|name| name == node || name == stage);
    let wanted = run.nodes.iter().filter(|node| named(&node.header.node, &node.header.stage));
    Ok(wanted.filter_map(|node| node.recipe).collect())
}

/// Digests stand for themselves, other words are nodes of the last run.
fn recipes_named(store: &Store, words: &[String]) -> Result<BTreeSet<Digest>, Failure> {
    let mut recipes: BTreeSet<Digest> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let nodes: Vec<String> = words.iter().filter(|word| word.parse::<Digest>().is_err()).cloned().collect();
    if !nodes.is_empty() {
        recipes.extend(recipes_of_run(store, &nodes)?);
    }
    Ok(recipes)
}

fn bar(json: bool) -> ProgressBar {
    if json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {bytes} of {total_bytes}, {msg} {bytes_per_sec} {eta}");
    ProgressBar::new(0).with_style(style.expect("a sound template"))
}

fn show(bar: &ProgressBar, progress: Progress) {
    bar.set_length(progress.of_bytes);
    bar.set_position(progress.bytes);
    bar.set_message(format!("{} of {} objects", progress.objects, progress.of_objects));
}

fn push_text(report: &PushReport, url: &str) -> String {
    format!(
        "sent {} entries with {} objects, {}, to {url}; {} entries and {} objects were there",
        report.entries,
        report.objects,
        format_size(report.bytes),
        report.entries_skipped,
        report.skipped,
    )
}

fn push_json(report: &PushReport) -> Value {
    json!({
        "event": "cache.pushed", "entries": report.entries, "objects": report.objects, "bytes": report.bytes,
        "skipped": report.skipped, "entries_skipped": report.entries_skipped, "incomplete": report.incomplete.len(),
    })
}

fn pull_text(report: &PullReport, url: &str) -> String {
    format!(
        "fetched {} entries with {} objects, {}, from {url}; {} entries and {} objects were here",
        report.entries,
        report.objects,
        format_size(report.bytes),
        report.entries_skipped,
        report.skipped,
    )
}

fn pull_json(report: &PullReport) -> Value {
    json!({
        "event": "cache.pulled", "entries": report.entries, "objects": report.objects, "bytes": report.bytes,
        "skipped": report.skipped, "entries_skipped": report.entries_skipped, "absent": report.absent.len(),
        "problems": report.problems,
    })
}

/// What a run reads through to, if anything.
pub(super) struct Behind(Option<Arc<ReadThrough>>);

impl Behind {
    /// Says what was fetched.
    pub(super) fn say(&self) {
        let Some(through) = &self.0 else { return };
        let report = through.report();
        if report.entries > 0 {
            say(pull_text(&report, through.url()));
        }
    }
}

/// The store with a remote behind it. A remote that does not answer is told about, and the run does without.
pub(super) fn behind(store: Store, url: Option<&str>) -> Result<(Store, Behind), Failure> {
    let Some(url) = url.filter(|url| !url.is_empty()) else { return Ok((store, Behind(None))) };
    let options = RemoteOptions { patience: PATIENCE_OF_A_RUN, ..options() };
    match Remote::open(url, Access::Read, options) {
        Ok(remote) => {
            let warn = |text: &str| complain(format_args!("warning: {text}"));
            let through = Arc::new(ReadThrough::new(remote, Box::new(warn)));
            Ok((store.with_remote(through.clone()), Behind(Some(through))))
        }
        Err(error) if error.is_passing() => {
            complain(format_args!("warning: {error}; this run goes on without the remote cache"));
            Ok((store, Behind(None)))
        }
        Err(error) => Err(error.into()),
    }
}
