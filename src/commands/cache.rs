//! `mpcc cache`: looking after the store.

use std::collections::BTreeSet;
use std::path::Path;

use mpcc_engine::cache::{Digest, GcOptions, GcReport, Keep, MemoStats, StoreStats, VerifyReport};
use mpcc_engine::journal;
use mpcc_engine::resources::format_size;
use serde_json::{Value, json};

use super::{Answer, open, open_existing, remote};
use crate::cli::CacheCommand;
use crate::report::{DONE, MACHINE};
use crate::ui::columns::columns;
use crate::ui::say;

/// Does what was asked.
pub(super) fn cache(command: &CacheCommand, store: &Path) -> Answer {
    // What is fetched needs no store that was there before.
    let store = if matches!(command, CacheCommand::Pull { .. }) { open(store)? } else { open_existing(store)? };
    match command {
        CacheCommand::Stats { json } => {
            let stats = store.stats()?;
            say(if *json { stats_json(&stats).to_string() } else { stats_text(&stats) });
        }
        CacheCommand::Gc { json, .. } => {
            let options = GcOptions { also: last_recipes(store.root()), ..gc_options(command) };
            let report = store.gc(&options)?;
            say(if *json { gc_json(&report).to_string() } else { gc_text(&report, options.dry_run) });
        }
        CacheCommand::Verify { json } => {
            let report = store.verify()?;
            say(if *json { verify_json(&report).to_string() } else { verify_text(&report) });
            return Ok(if report.is_clean() { DONE } else { MACHINE });
        }
        CacheCommand::Push { nodes, all, remote } => return remote::push(&store, nodes, *all, remote),
        CacheCommand::Pull { nodes, remote } => return remote::pull(&store, nodes, remote),
    }
    Ok(DONE)
}

fn gc_options(command: &CacheCommand) -> GcOptions {
    let CacheCommand::Gc { dry_run, keep_entries, memo, partial, quarantine, .. } = command else {
        return GcOptions { dry_run: true, ..GcOptions::default() };
    };
    let keep = if *keep_entries { Keep::Everything } else { Keep::Latest };
    GcOptions {
        keep,
        memo: *memo,
        partial: *partial,
        quarantine: *quarantine,
        dry_run: *dry_run,
        ..GcOptions::default()
    }
}

/// What the last run of each pipeline file used stays.
fn last_recipes(store: &Path) -> BTreeSet<Digest> {
    let ids = journal::list(store).unwrap_or_default();
    let mut seen = BTreeSet::new();
    let runs = ids.iter().filter_map(|id| journal::read(store, id).ok());
    let newest = runs.filter(|run| seen.insert((run.file.clone(), run.profile.clone())));
    newest.flat_map(|run| run.nodes).filter_map(|node| node.recipe).collect()
}

fn stats_text(stats: &StoreStats) -> String {
    let row = |name: &str, count: u64, bytes: u64| {
        let size = if bytes > 0 { format_size(bytes) } else { String::new() };
        vec![name.to_owned(), count.to_string(), size]
    };
    let mut rows = vec![
        row("objects", stats.objects, stats.object_bytes),
        row("entries", stats.entries, 0),
        row("trees", stats.trees, 0),
        row("checkpoints", stats.partials, stats.partial_bytes),
        row("quarantined", stats.quarantined, 0),
    ];
    rows.extend(stats.memo.iter().map(|memo| row(&format!("memo {}", memo.namespace), memo.records, memo.bytes)));
    columns(&rows)
}

fn stats_json(stats: &StoreStats) -> Value {
    let memo = |memo: &MemoStats| json!({"namespace": memo.namespace, "records": memo.records, "bytes": memo.bytes});
    json!({
        "objects": stats.objects, "object_bytes": stats.object_bytes, "entries": stats.entries, "trees": stats.trees,
        "partials": stats.partials, "partial_bytes": stats.partial_bytes, "quarantined": stats.quarantined,
        "memo": stats.memo.iter().map(memo).collect::<Vec<_>>(),
    })
}

fn gc_text(report: &GcReport, dry_run: bool) -> String {
    let verb = if dry_run { "would free" } else { "freed" };
    format!(
        "{verb} {} in {} objects, {} entries, {} trees and {} checkpoints; {} entries with {} objects stay",
        format_size(report.bytes_freed),
        report.objects_removed,
        report.entries_dropped,
        report.trees_removed,
        report.partials_removed,
        report.entries_kept,
        report.objects_kept,
    )
}

fn gc_json(report: &GcReport) -> Value {
    json!({
        "bytes_freed": report.bytes_freed, "objects_removed": report.objects_removed, "objects_kept": report.objects_kept,
        "entries_dropped": report.entries_dropped, "entries_kept": report.entries_kept,
        "trees_removed": report.trees_removed, "partials_removed": report.partials_removed,
    })
}

fn verify_text(report: &VerifyReport) -> String {
    let mut lines = vec![format!("{} objects, {} hashed", report.objects, format_size(report.bytes))];
    let list = |what: &'static str, digests: &[Digest]| -> Vec<String> {
        digests.iter().map(|digest| format!("{what} {digest}")).collect()
    };
    lines.extend(list("damaged, now in quarantine:", &report.damaged));
    lines.extend(list("damaged tree, removed:", &report.damaged_trees));
    lines.extend(list("incomplete, will be executed again:", &report.incomplete));
    lines.push(
        if report.is_clean() { "everything is whole" } else { "run the pipeline again to make what is gone" }
            .to_owned(),
    );
    lines.join("\n")
}

fn verify_json(report: &VerifyReport) -> Value {
    json!({
        "objects": report.objects, "bytes": report.bytes, "damaged": report.damaged, "damaged_trees": report.damaged_trees,
        "incomplete": report.incomplete, "clean": report.is_clean(),
    })
}
