//! `mpcc show`: where an artifact lies.

use std::path::Path;

use mpcc_engine::journal::{NodeRecord, RunRecord};

use super::{Answer, find_run, no_node, open_existing};
use crate::cli::ShowArgs;
use crate::report::{DONE, Failure};
use crate::ui::say;

/// Prints the path of an artifact.
pub(super) fn show(args: &ShowArgs, store: &Path) -> Answer {
    let run = find_run(store, args.run.as_deref())?;
    let (node, port) = find(&run, &args.artifact)?;
    let artifact = node.outputs.get(port).ok_or_else(|| {
        Failure::wrong(format_args!(
            "`{}` has no output in run {}: it did not end well there",
            node.header.node, run.id
        ))
    })?;
    say(open_existing(store)?.locate(artifact)?.display());
    Ok(DONE)
}

/// `NODE` for its first port, or `NODE.port`. Names may hold dots, so the whole text is tried first.
fn find<'a>(run: &'a RunRecord, text: &str) -> Result<(&'a NodeRecord, &'a str), Failure> {
    if let Some(node) = run.node(text) {
        let first = node.header.ports.first();
        let port = first.ok_or_else(|| Failure::wrong(format_args!("`{text}` has no outputs")))?;
        return Ok((node, port));
    }
    let (name, port) = text.rsplit_once('.').ok_or_else(|| no_node(run, text))?;
    let node = run.node(name).ok_or_else(|| no_node(run, text))?;
    let known = node.header.ports.iter().find(|known| *known == port).ok_or_else(|| {
        Failure::wrong(format_args!("`{name}` has no output `{port}`; it has {}", node.header.ports.join(", ")))
    })?;
    Ok((node, known))
}
