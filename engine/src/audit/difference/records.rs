//! Where two files of records, one JSON value a line, differ first.

use std::io::BufRead;
use std::path::Path;

use serde_json::Value;

use super::json::first_difference;
use super::{Place, open, shortened};
use crate::audit::AuditError;

/// The record at `line`, the first that differs, when both lines are JSON or one file has ended before it. Nothing when the two
/// records have equal values and are written differently.
pub(super) fn compare(paths: [&Path; 2], line: u64) -> Result<Option<Place>, AuditError> {
    if line > 1 && !begins_with_a_record(paths[0])? {
        return Ok(None);
    }
    let texts = [read(paths[0], line)?, read(paths[1], line)?];
    let values = texts.each_ref().map(|text| text.as_deref().map(serde_json::from_str::<Value>));
    Ok(match values {
        [Some(Ok(first)), Some(Ok(second))] if is_record(&first) && is_record(&second) => {
            first_difference(&first, &second).map(|(path, values)| {
                let ids = [id(&first), id(&second)];
                let id = ids[0].clone().filter(|_| ids[0] == ids[1]);
                Place::Record { line, id, path: Some(path), values }
            })
        }
        [Some(Ok(only)), None] | [None, Some(Ok(only))] if is_record(&only) => {
            let values = texts.map(|text| text.as_deref().map(shortened).unwrap_or_default());
            Some(Place::Record { line, id: id(&only), path: None, values })
        }
        _ => None,
    })
}

/// A document over several lines may have one that is JSON by itself.
fn begins_with_a_record(path: &Path) -> Result<bool, AuditError> {
    let first = read(path, 1)?.map(|text| serde_json::from_str::<Value>(&text));
    Ok(first.is_some_and(|value| value.is_ok_and(|value| is_record(&value))))
}

/// A line that is a bare number or word is as well any text.
fn is_record(value: &Value) -> bool {
    value.is_object() || value.is_array()
}

fn id(record: &Value) -> Option<String> {
    match record.get("id")? {
        Value::String(id) => Some(id.clone()),
        Value::Number(id) => Some(id.to_string()),
        _ => None,
    }
}

/// Line `number` of a file, from 1; none behind its end, or when it is no text.
fn read(path: &Path, number: u64) -> Result<Option<String>, AuditError> {
    let mut file = open(path)?;
    let mut line = Vec::new();
    for _ in 0..number {
        line.clear();
        if file.read_until(b'\n', &mut line).map_err(|error| AuditError::io(path, error))? == 0 {
            return Ok(None);
        }
    }
    Ok(String::from_utf8(line).ok().map(|line| line.trim_end_matches('\n').to_owned()))
}
