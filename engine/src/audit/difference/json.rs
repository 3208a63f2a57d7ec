//! Where two JSON values differ first.

use std::fs::File;
use std::path::Path;

use serde_json::Value;

use super::{Place, shortened};
use crate::audit::AuditError;

/// Documents up to this size are read whole.
const LARGEST: u64 = 64 << 20;

/// The first value that differs, when both files are one JSON document and their values differ.
pub(super) fn compare(paths: [&Path; 2]) -> Result<Option<Place>, AuditError> {
    let [Some(first), Some(second)] = [read(paths[0])?, read(paths[1])?] else { return Ok(None) };
    Ok(first_difference(&first, &second).map(|(path, values)| Place::Value { path, values }))
}

fn read(path: &Path) -> Result<Option<Value>, AuditError> {
    let io = |error| AuditError::io(path, error);
    let file = File::open(path).map_err(io)?;
    if file.metadata().map_err(io)?.len() > LARGEST {
        return Ok(None);
    }
    let value: Option<Value> = serde_json::from_reader(std::io::BufReader::new(file)).ok();
    // A bare number or word is as well any text.
    Ok(value.filter(|value| value.is_object() || value.is_array()))
}

/// Path and texts of the first value that differs, in the order of the first document; `.` is the whole. Objects whose keys
/// differ in nothing but their order differ in that.
pub(super) fn first_difference(first: &Value, second: &Value) -> Option<(String, [String; 2])> {
    let mut path = String::new();
    let values = descend(first, second, &mut path)?;
    Some((if path.is_empty() { ".".to_owned() } else { path }, values))
}

fn descend(first: &Value, second: &Value, path: &mut String) -> Option<[String; 2]> {
    let length = path.len();
    match (first, second) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                path.push_str(&step(key));
                let found = either(a.get(key), b.get(key), path);
                if found.is_some() {
                    return found;
                }
                path.truncate(length);
            }
            let keys = |map: &serde_json::Map<String, Value>| map.keys().cloned().collect::<Vec<_>>().join(", ");
            let [a, b] = [keys(a), keys(b)];
            (a != b).then(|| [a, b].map(|keys| shortened(&format!("the keys {keys}"))))
        }
        (Value::Array(a), Value::Array(b)) => {
            for at in 0..a.len().max(b.len()) {
                path.push_str(&format!("[{at}]"));
                let found = either(a.get(at), b.get(at), path);
                if found.is_some() {
                    return found;
                }
                path.truncate(length);
            }
            None
        }
        _ => (first != second).then(|| [first, second].map(|value| shortened(&value.to_string()))),
    }
}

fn either(first: Option<&Value>, second: Option<&Value>, path: &mut String) -> Option<[String; 2]> {
    match (first, second) {
        (Some(first), Some(second)) => descend(first, second, path),
        (None, None) => None,
        _ => Some([first, second].map(|value| value.map(|value| shortened(&value.to_string())).unwrap_or_default())),
    }
}

/// `.key`, or `["a key"]` when it is no plain word.
fn step(key: &str) -> String {
    let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if plain { format!(".{key}") } else { format!("[{}]", Value::from(key)) }
}
