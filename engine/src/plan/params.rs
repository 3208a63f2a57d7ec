//! Parameters: from `with` to what a kind is given.
//!
//! A built-in kind parses its own parameters with serde, which stops at the first problem and knows no places. So every
//! parameter is first parsed alone: an error of its own type then belongs to that parameter, and "missing field" to
//! another one. What remains wrong when all are parsed together is what is missing.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::Missing;
use super::contract::{CustomKind, ParamType};
use super::external::Outside;
use super::outside::missing_data;
use crate::registry::{BoundStage, Kind};
use crate::spec::source::{Problems, Span};
use crate::spec::yaml::{Data, Entry, Yaml};

/// Longest text file that a parameter may name, in bytes.
const MAX_TEXT: u64 = 4 << 20;

/// What parameters are read for.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    /// The file system around the pipeline file.
    pub(super) outside: &'a Outside,
    /// The node.
    pub(super) node: &'a str,
    /// Where the stage is, for what has no place of its own.
    pub(super) at: Span,
}

/// Parses the parameters of a built-in kind; file parameters are replaced by their text.
pub(super) fn builtin(
    kind: &Kind,
    with: &[Entry],
    place: Place<'_>,
    missing: &mut Vec<Missing>,
    problems: &mut Problems<'_>,
) -> Option<Box<dyn BoundStage>> {
    let known = properties(kind);
    let mut given = Map::new();
    let mut sound = true;
    for entry in with {
        if !known.contains(&entry.key) {
            let message = format!("kind `{}` has no parameter `{}`", kind.name, entry.key);
            let names = known.iter().map(String::as_str);
            problems.error(entry.key_at, "unknown-param", message).suggest(&entry.key, names);
            sound = false;
            continue;
        }
        given.insert(entry.key.clone(), entry.value.to_json());
        if kind.signature.file_params.contains(&entry.key.as_str()) {
            sound &= insert_text(&mut given, &entry.key, entry.value.at, place.outside, place.node, missing, problems);
        }
        sound &= parses_alone(kind, entry, &given, problems);
    }
    for name in required(kind).filter(|name| !with.iter().any(|entry| entry.key == *name)) {
        missing_param(kind.name, name, place, problems);
        sound = false;
    }
    let bound = if sound { parse_all(kind, given, place, problems)? } else { return None };
    match bound.check() {
        Ok(()) => Some(bound),
        Err(error) => {
            let at = written_at(with, &error.param).unwrap_or(place.at);
            problems.error(at, "param", format!("`{}`: {}", error.param, error.message));
            None
        }
    }
}

/// Where the value of a parameter is written; of a part of it (`lora.rank`) as far down as something is.
fn written_at(with: &[Entry], param: &str) -> Option<Span> {
    let mut keys = param.split('.');
    let first = keys.next()?;
    let mut value = &with.iter().find(|entry| entry.key == first)?.value;
    for key in keys {
        let Some(part) = value.get(key) else { break };
        value = part;
    }
    Some(value.at)
}

fn properties(kind: &Kind) -> Vec<String> {
    let schema = kind.schema.as_value().get("properties").and_then(Value::as_object);
    schema.map(|map| map.keys().cloned().collect()).unwrap_or_default()
}

fn required(kind: &Kind) -> impl Iterator<Item = &str> {
    let names = kind.schema.as_value().get("required").and_then(Value::as_array);
    names.into_iter().flatten().filter_map(Value::as_str)
}

fn missing_param(kind: &str, name: &str, place: Place<'_>, problems: &mut Problems<'_>) {
    let message = format!("kind `{kind}` needs the parameter `{name}`");
    problems.error(place.at, "missing-param", message).help("set it under `with`");
}

fn parses_alone(kind: &Kind, entry: &Entry, given: &Map<String, Value>, problems: &mut Problems<'_>) -> bool {
    let mut alone = Map::new();
    alone.insert(entry.key.clone(), given[&entry.key].clone());
    let Err(error) = kind.parse(Value::Object(alone)) else { return true };
    let text = error.to_string();
    if missing_field(&text).is_some_and(|name| name != entry.key && properties(kind).iter().any(|known| known == name))
    {
        return true;
    }
    let message = format!("parameter `{}` of `{}`: {text}", entry.key, kind.name);
    let quoted: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
    let culprit = culprit(&entry.value, &text, quoted.first().copied());
    let found = problems.error(culprit.unwrap_or(entry.value.at), "param-type", message);
    if let Some((wrong, known)) = quoted.split_first().filter(|_| text.starts_with("unknown ")) {
        found.suggest(wrong, known.iter().copied());
    }
    false
}

/// Where inside a parameter's value the thing is that serde's message is about, if only one can be meant: the key of an
/// unknown field, the word of an unknown variant, the scalar of a wrong type.
fn culprit(value: &Yaml, text: &str, quoted: Option<&str>) -> Option<Span> {
    let mut places = Vec::new();
    let scalar = |value: &Yaml| {
        let shown = value.scalar_text()?;
        let named = text.strip_prefix("invalid type: ").or_else(|| text.strip_prefix("invalid value: "));
        let wrong_type = named.is_some_and(|rest| {
            let forms =
                [format!("string {shown:?},"), format!("integer `{shown}`,"), format!("floating point `{shown}`,")];
            forms.iter().chain([&format!("boolean `{shown}`,")]).any(|form| rest.starts_with(form.as_str()))
        });
        (wrong_type || (text.starts_with("unknown variant") && quoted == Some(&shown))).then_some(value.at)
    };
    let unknown_field = quoted.filter(|_| text.starts_with("unknown field"));
    each_part(value, &mut |part| {
        places.extend(scalar(part));
        places
            .extend(part.entries().iter().filter(|entry| unknown_field == Some(&entry.key)).map(|entry| entry.key_at));
    });
    match places.as_slice() {
        [place] => Some(*place),
        _ => None,
    }
}

fn each_part(value: &Yaml, visit: &mut impl FnMut(&Yaml)) {
    visit(value);
    match &value.data {
        Data::List(items) => items.iter().for_each(|item| each_part(item, visit)),
        Data::Map(entries) => entries.iter().for_each(|entry| each_part(&entry.value, visit)),
        _ => {}
    }
}

fn parse_all(
    kind: &Kind,
    given: Map<String, Value>,
    place: Place<'_>,
    problems: &mut Problems<'_>,
) -> Option<Box<dyn BoundStage>> {
    match kind.parse(Value::Object(given)) {
        Ok(bound) => Some(bound),
        Err(error) => {
            let text = error.to_string();
            match missing_field(&text) {
                Some(name) => missing_param(kind.name, name, place, problems),
                None => {
                    problems.error(place.at, "param", format!("the parameters of `{}`: {text}", kind.name));
                }
            }
            None
        }
    }
}

fn missing_field(text: &str) -> Option<&str> {
    text.strip_prefix("missing field `")?.split('`').next()
}

/// Replaces the path under `key` by the text of that file. False when it cannot be a text file, which is reported; a
/// file that is not there is noted in `missing`.
pub(super) fn insert_text(
    values: &mut Map<String, Value>,
    key: &str,
    at: Span,
    outside: &Outside,
    needed_by: &str,
    missing: &mut Vec<Missing>,
    problems: &mut Problems<'_>,
) -> bool {
    let Some(written) = values.get(key).and_then(Value::as_str) else { return true };
    let path = outside.absolute(written);
    let text = match outside.length(&path).map(|length| length.unwrap_or(u64::MAX)) {
        Err(_) => {
            missing.push(missing_data(needed_by, format!("`{key}`: file {} is not there", path.display())));
            return true;
        }
        Ok(length) if length > MAX_TEXT => Err("is no text file of a sensible length".to_owned()),
        Ok(_) => outside.read(&path).map_err(|error| format!("cannot be read: {error}")),
    };
    match text {
        Ok(text) => {
            values.insert(key.to_owned(), Value::String(text));
            true
        }
        Err(why) => {
            problems.error(at, "file", format!("`{written}` {why}"));
            false
        }
    }
}

/// Parameters of a custom kind, defaults filled in, in declaration order; and the files they name.
pub(super) fn custom(
    kind: &CustomKind,
    with: &[Entry],
    place: Place<'_>,
    missing: &mut Vec<Missing>,
    problems: &mut Problems<'_>,
) -> Option<(Yaml, Vec<PathBuf>)> {
    let mut sound = true;
    for entry in with.iter().filter(|entry| !kind.params.iter().any(|param| param.name == entry.key)) {
        let message = format!("kind `{}` has no parameter `{}`", kind.name, entry.key);
        let names = kind.params.iter().map(|param| param.name.as_str());
        problems.error(entry.key_at, "unknown-param", message).suggest(&entry.key, names);
        sound = false;
    }
    let (mut values, mut files) = (Map::new(), Vec::new());
    for param in &kind.params {
        let given = with.iter().find(|entry| entry.key == param.name).map(|entry| &entry.value);
        let Some(value) = given.or(param.default.as_ref()) else {
            missing_param(&kind.name, &param.name, place, problems);
            sound = false;
            continue;
        };
        let json = value.to_json();
        let nullable = param.default.as_ref().is_some_and(Yaml::is_null) && value.is_null();
        if given.is_some() && !nullable && !param.ty.accepts(&json) {
            let message = format!("parameter `{}` is {}, this is {}", param.name, param.ty.name(), value.what());
            problems.error(value.at, "param-type", message);
            sound = false;
        } else if !param.choices.is_empty() && !param.choices.iter().any(|choice| choice.to_json() == json) {
            let text = value.scalar_text().unwrap_or_default();
            let known: Vec<String> = param.choices.iter().filter_map(Yaml::scalar_text).collect();
            let message = format!("parameter `{}` cannot be `{text}`", param.name);
            problems.error(value.at, "param-type", message).suggest(&text, known.iter().map(String::as_str));
            sound = false;
        }
        if let (ParamType::File, Some(path)) = (param.ty, json.as_str()) {
            files.push(PathBuf::from(path));
            if !place.outside.is_file(&place.outside.absolute(path)) {
                missing.push(missing_data(place.node, format!("`{}`: file {path} is not there", param.name)));
            }
        }
        values.insert(param.name.clone(), json);
    }
    sound.then(|| (Yaml::from_json(Value::Object(values), place.at), files))
}
