//! A run that finds everything as it was: its journal points to the run that left the seal.

use std::path::Path;

use jiff::Timestamp;

use super::seal::Seal;
use crate::event::{Event, Summary, VERSION, What};
use crate::journal::{Journal, JournalError};

/// What such a run tells.
#[derive(Clone, Debug)]
pub struct Unchanged {
    /// The run's id.
    pub run: String,
    /// The pipeline's name.
    pub pipeline: String,
    /// The profile in force.
    pub profile: Option<String>,
    /// How it went: every node is up to date.
    pub summary: Summary,
}

/// Writes the journal of a run of the pipeline `file` in the store at `root`, all of whose nodes stand on `seal`. `wall_s`
/// gives the seconds since it `started`.
///
/// # Errors
/// The journal cannot be written.
pub fn unchanged(
    root: &Path,
    file: &Path,
    seal: &Seal,
    started: Timestamp,
    wall_s: impl Fn() -> f64,
) -> Result<Unchanged, JournalError> {
    let mut journal = Journal::create(root, started)?;
    let (pipeline, profile) = seal.pipeline();
    let (run, pipeline, profile) = (journal.id().to_owned(), pipeline.to_owned(), profile.map(str::to_owned));
    let begin = What::RunStarted {
        version: VERSION,
        run: run.clone(),
        pipeline: pipeline.clone(),
        file: file.to_owned(),
        profile: profile.clone(),
        started: started.to_string(),
        nodes: Vec::new(),
        since: Some(seal.base().to_owned()),
    };
    journal.write(&Event { what: begin, at_s: 0.0 })?;
    let summary = Summary { cached: seal.total(), wall_s: (wall_s() * 1e6).round() / 1e6, ..Summary::default() };
    journal.write(&Event { what: What::RunFinished { summary }, at_s: summary.wall_s })?;
    Ok(Unchanged { run, pipeline, profile, summary })
}
