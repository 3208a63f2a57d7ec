//! Reading and writing records: JSONL, one object a line, errors that name file and line.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use mpcc_engine::stage::{Context, StageError};

use crate::record::Record;

/// Why records could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// The file could not be opened, read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A line is no record of the wanted type.
    #[error("{path}:{line}: no {name} record (schema {schema}): {cause}\n    {text}")]
    Schema {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The record type.
        name: &'static str,
        /// Its schema version.
        schema: u32,
        /// What serde found.
        cause: String,
        /// The start of the line.
        text: String,
    },
    /// Two lines hold the same record.
    #[error("{path}:{line}: the {name} `{id}` is already on line {first}")]
    Duplicate {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The line that had it first.
        first: usize,
        /// The record type.
        name: &'static str,
        /// The id they share.
        id: String,
    },
}

impl From<RecordsError> for StageError {
    fn from(error: RecordsError) -> Self {
        match error {
            RecordsError::Io { .. } => Self::Machine(error.to_string()),
            other => Self::Invalid(other.to_string()),
        }
    }
}

/// Every record of the file at `path`, in order. Empty lines are skipped.
pub fn read<T: Record>(path: &Path) -> Result<Vec<T>, RecordsError> {
    let io = |source| RecordsError::Io { path: path.to_owned(), source };
    let mut lines = BufReader::new(File::open(path).map_err(io)?);
    let (mut records, mut seen, mut text) = (Vec::new(), BTreeMap::new(), String::new());
    for line in 1.. {
        text.clear();
        if lines.read_line(&mut text).map_err(io)? == 0 {
            break;
        }
        if text.trim().is_empty() {
            continue;
        }
        let record: T = parse(path, line, &text)?;
        if let Some(id) = record.unique()
            && let Some(first) = seen.insert(id.to_owned(), line)
        {
            return Err(RecordsError::Duplicate {
                path: path.to_owned(),
                line,
                first,
                name: T::NAME,
                id: id.to_owned(),
            });
        }
        records.push(record);
    }
    Ok(records)
}

fn parse<T: Record>(path: &Path, line: usize, text: &str) -> Result<T, RecordsError> {
    serde_json::from_str(text).map_err(|error| RecordsError::Schema {
        path: path.to_owned(),
        line,
        name: T::NAME,
        schema: T::SCHEMA,
        cause: cause(&error),
        text: shorten(text.trim()),
    })
}

/// serde's message with "line 1" left out: the line is the file's.
fn cause(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let bare = message.split(" at line ").next().unwrap_or(&message);
    format!("{bare} (column {})", error.column())
}

fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(120).collect();
    if short.len() < text.len() {
        short.push_str(" ...");
    }
    short
}

/// Writes `records` to `path`, one a line.
pub fn write<'a, T: Record + 'a>(path: &Path, records: impl IntoIterator<Item = &'a T>) -> Result<(), RecordsError> {
    let io = |source| RecordsError::Io { path: path.to_owned(), source };
    let mut out = BufWriter::new(File::create(path).map_err(io)?);
    for record in records {
        serde_json::to_writer(&mut out, record).map_err(|error| io(error.into()))?;
        out.write_all(b"\n").map_err(io)?;
    }
    out.flush().map_err(io)
}

/// The records of input `port`.
pub fn input<T: Record>(ctx: &Context, port: &str) -> Result<Vec<T>, StageError> {
    Ok(read(&ctx.input(port)?.path)?)
}

/// Writes `records` to output `port`.
pub fn output<'a, T: Record + 'a>(
    ctx: &Context,
    port: &str,
    records: impl IntoIterator<Item = &'a T>,
) -> Result<(), StageError> {
    Ok(write(ctx.output(port)?, records)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Region, Verdict};

    fn region() -> Region {
        let (digest, bbox) = ("ab".repeat(32), [1.0, 2.5, 3.0, 4.0]);
        Region {
            id: Region::identify(&digest, bbox, "cup"),
            image: "1.png".into(),
            image_digest: digest,
            annotation: 7,
            size: [10, 20],
            bbox,
            category: "cup".into(),
            supercategory: "kitchen".into(),
            area: 12.0,
            crowd: false,
            scene: vec![("cup".into(), 1)],
        }
    }

    #[test]
    fn records_come_back_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.jsonl");
        write(&path, [&region()]).unwrap();
        assert_eq!(read::<Region>(&path).unwrap(), vec![region()]);
    }

    #[test]
    fn an_id_depends_on_identity_and_a_rev_on_everything() {
        let mut other = region();
        other.scene.push(("sink".into(), 1));
        assert_eq!(Region::identify(&other.image_digest, other.bbox, &other.category), region().id);
        assert_ne!(other.rev(), region().rev());
    }

    #[test]
    fn errors_name_file_line_and_field() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.jsonl");
        std::fs::write(&path, "\n{\"id\":\"a\",\"model\":\"m\",\"rating\":1,\"kept\":true,\"respons\":\"\"}\n")
            .unwrap();
        let message = read::<Verdict>(&path).unwrap_err().to_string();
        assert!(message.contains("v.jsonl:2: no Verdict record (schema 1): unknown field `respons`"), "{message}");
    }

    #[test]
    fn two_records_of_one_id_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.jsonl");
        write(&path, [&region(), &region()]).unwrap();
        let message = read::<Region>(&path).unwrap_err().to_string();
        assert!(message.contains("r.jsonl:2: the Region `") && message.ends_with("is already on line 1"), "{message}");
    }
}
