//! Decisions as CSV and as JSONL.
//!
//! Columns or keys: `image`, `annotation`, `decision` (accept or reject), `difficulty` (easy, moderate, hard), `curator`, and
//! optionally `rev`. `image` and `annotation` are needed, and one of `decision` and `difficulty`. Others are ignored.

use serde::Deserialize;

use super::ballot::{Ballot, Reading, Target};
use crate::suggest;

const COLUMNS: [&str; 6] = ["image", "annotation", "decision", "difficulty", "curator", "rev"];

/// A line as written.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    image: String,
    annotation: Option<u64>,
    decision: Option<String>,
    difficulty: Option<String>,
    curator: Option<String>,
    rev: Option<String>,
}

impl Line {
    fn ballot(self, reading: &Reading<'_>, line: u64) -> Result<Ballot, String> {
        let place = format!("{}:{line}", reading.name);
        let wrong = |what: String| format!("{place}: {what}");
        if self.image.trim().is_empty() {
            return Err(wrong("`image` is empty".to_owned()));
        }
        let annotation =
            self.annotation.ok_or_else(|| wrong("`annotation` is empty; write the annotation's id".to_owned()))?;
        let words = self.decision.iter().chain(&self.difficulty).map(String::as_str);
        let vote = reading.vote(words).map_err(wrong)?;
        let named = |text: Option<String>| text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        Ok(Ballot {
            curator: named(self.curator).unwrap_or_else(|| reading.curator.to_owned()),
            image: self.image.trim().to_owned(),
            target: Target::Annotation(annotation),
            rev: named(self.rev),
            place,
            vote,
        })
    }
}

/// The ballots of a CSV text.
pub(super) fn csv(text: &str, reading: &Reading<'_>) -> Result<Vec<Ballot>, String> {
    let mut lines = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let header = lines.headers().map_err(|error| format!("{}: {error}", reading.name))?.clone();
    if header.is_empty() {
        return Ok(Vec::new());
    }
    check_header(&header, reading)?;
    let mut ballots = Vec::new();
    for record in lines.records() {
        let record = record.map_err(|error| format!("{}: {error}", reading.name))?;
        let line = record.position().map_or(0, csv::Position::line);
        let parsed: Line = record.deserialize(Some(&header)).map_err(|error| {
            let cell = cell_of(&error, &header).unwrap_or_default();
            format!("{}:{line}: {cell}{}", reading.name, error_text(&error))
        })?;
        ballots.push(parsed.ballot(reading, line)?);
    }
    Ok(ballots)
}

fn check_header(header: &csv::StringRecord, reading: &Reading<'_>) -> Result<(), String> {
    let has = |name: &str| header.iter().any(|column| column == name);
    let missing = ["image", "annotation"].into_iter().find(|name| !has(name));
    let missing = missing.or_else(|| (!has("decision") && !has("difficulty")).then_some("decision"));
    let Some(missing) = missing else { return Ok(()) };
    let near = suggest::nearest(missing, header.iter().filter(|column| !COLUMNS.contains(column)));
    let near = near.map_or(String::new(), |near| format!(" (is `{near}` meant?)"));
    Err(format!("{}:1: no column `{missing}`{near}; the columns are {}", reading.name, COLUMNS.join(",")))
}

fn cell_of(error: &csv::Error, header: &csv::StringRecord) -> Option<String> {
    let csv::ErrorKind::Deserialize { err, .. } = error.kind() else { return None };
    let column = header.get(usize::try_from(err.field()?).ok()?)?;
    Some(format!("column `{column}`: "))
}

fn error_text(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Deserialize { err, .. } => err.kind().to_string(),
        _ => error.to_string(),
    }
}

/// The ballots of a JSONL text.
pub(super) fn jsonl(text: &str, reading: &Reading<'_>) -> Result<Vec<Ballot>, String> {
    let lines = text.lines().zip(1_u64..).filter(|(line, _)| !line.trim().is_empty());
    lines
        .map(|(text, line)| {
            let parsed: Line =
                serde_json::from_str(text).map_err(|error| format!("{}:{line}: {error}", reading.name))?;
            parsed.ballot(reading, line)
        })
        .collect()
}
