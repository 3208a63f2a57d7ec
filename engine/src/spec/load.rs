//! From text to [`Yaml`]: values from serde_yaml, places from the parse events.

use serde_json::Number;
use serde_yaml::Value;

use super::positions::{Place, index};
use super::source::{Problems, SourceText, Span, position};
use super::yaml::{Data, Entry, Yaml};

/// Longest pipeline file, in bytes.
const MAX_BYTES: usize = 4 << 20;

/// Reads a pipeline file. `None` when it is no YAML, which is reported.
pub(crate) fn load(source: &SourceText, problems: &mut Problems<'_>) -> Option<Yaml> {
    if source.text.len() > MAX_BYTES {
        problems.error(Span::START, "too-large", format!("the file is longer than {MAX_BYTES} bytes"));
        return None;
    }
    if let Some((at, odd)) = source.text.char_indices().find(|(at, c)| is_odd(*c, &source.text[*at..])) {
        let (line, column) = position(&source.text, at);
        let message = format!("the control character U+{:04X} has no place in a pipeline file", u32::from(odd));
        problems.error(Span { line, column, length: 1 }, "syntax", message).help("delete it; it may be invisible");
        return None;
    }
    let place = index(&source.text, problems);
    if place.is_none() && problems.any_error() {
        return None;
    }
    let mut value: Value = match serde_yaml::from_str(&source.text) {
        Ok(value) => value,
        Err(error) => {
            report(&error, problems);
            return None;
        }
    };
    if let Err(error) = value.apply_merge() {
        report(&error, problems);
        return None;
    }
    let place = place.unwrap_or_default();
    let near = if place.at.line == 0 { Span::START } else { place.at };
    convert(value, &place, near, problems)
}

/// What YAML does not allow in its text; and a carriage return alone, which it counts as the end of a line and hardly any
/// editor does.
fn is_odd(c: char, rest: &str) -> bool {
    match c {
        '\t' | '\n' | '\u{85}' => false,
        '\r' => !rest.starts_with("\r\n"),
        _ => c.is_control(),
    }
}

fn report(error: &serde_yaml::Error, problems: &mut Problems<'_>) {
    let at = error.location().map_or(Span::START, |at| Span { line: at.line(), column: at.column(), length: 1 });
    let text = error.to_string();
    let message = text.split(" at line ").next().unwrap_or(&text);
    problems.error(at, "syntax", format!("this is not YAML: {message}"));
}

/// Joins a value with its place; `near` is the place of what is around it.
fn convert(value: Value, place: &Place, near: Span, problems: &mut Problems<'_>) -> Option<Yaml> {
    let at = if place.at.line == 0 { near } else { place.at };
    let data = match value {
        Value::Null => Data::Null,
        Value::Bool(value) => Data::Bool(value),
        Value::String(text) => Data::Text(text),
        Value::Number(value) => Data::Number(number(&value, at, problems)?),
        Value::Sequence(items) => Data::List(convert_items(items, place, at, problems)?),
        Value::Mapping(map) => Data::Map(convert_entries(map, place, at, problems)?),
        Value::Tagged(tagged) => {
            problems
                .error(at, "yaml-tag", format!("the tag `{}` has no meaning here", tagged.tag))
                .help("leave it out, or put the value in quotes");
            return None;
        }
    };
    Some(Yaml { at, data })
}

fn number(value: &serde_yaml::Number, at: Span, problems: &mut Problems<'_>) -> Option<Number> {
    let whole = value.as_u64().map(Number::from).or_else(|| value.as_i64().map(Number::from));
    let number = whole.or_else(|| value.as_f64().and_then(Number::from_f64));
    if number.is_none() {
        problems.error(at, "number", format!("`{value}` is not a finite number"));
    }
    number
}

fn convert_items(items: Vec<Value>, place: &Place, at: Span, problems: &mut Problems<'_>) -> Option<Vec<Yaml>> {
    let none = Place::default();
    let converted: Vec<Option<Yaml>> = items
        .into_iter()
        .enumerate()
        .map(|(index, item)| convert(item, place.item(index).map_or(&none, |place| place), at, problems))
        .collect();
    converted.into_iter().collect()
}

fn convert_entries(
    map: serde_yaml::Mapping,
    place: &Place,
    at: Span,
    problems: &mut Problems<'_>,
) -> Option<Vec<Entry>> {
    let none = Place::default();
    let (mut entries, mut sound) = (Vec::with_capacity(map.len()), true);
    for (key, value) in map {
        let Some(key) = key_text(&key) else {
            problems.error(at, "key", "a key of this map is no plain text");
            sound = false;
            continue;
        };
        let found = place.key(&key);
        let key_at = found.map_or(at, |(key_at, _)| key_at);
        let value = convert(value, found.map_or(&none, |(_, place)| place), key_at, problems);
        sound &= value.is_some();
        entries.extend(value.map(|value| Entry { key, key_at, value }));
    }
    sound.then_some(entries)
}

fn key_text(key: &Value) -> Option<String> {
    match key {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(text: &str) -> Result<Yaml, Vec<String>> {
        let source = SourceText::new(Path::new("t.yaml"), text.to_owned());
        let mut problems = Problems::new(&source);
        let yaml = load(&source, &mut problems);
        let found = problems.into_found();
        yaml.ok_or_else(|| found.iter().map(|d| format!("{}@{}:{}", d.code, d.line, d.column)).collect())
    }

    #[test]
    fn values_know_their_places() {
        let yaml = read("a: 1\nb:\n  c: [x, \"y z\"]\n").unwrap();
        let list = yaml.get("b").and_then(|b| b.get("c")).unwrap();
        let Data::List(items) = &list.data else { panic!("a list") };
        assert_eq!((items[1].at.line, items[1].at.column, items[1].at.length), (3, 10, 5));
        assert_eq!(yaml.get("b").unwrap().entry("c").unwrap().key_at.column, 3);
    }

    #[test]
    fn merge_keys_and_aliases_keep_places() {
        let yaml = read("base: &b { x: 1 }\nuse:\n  <<: *b\n  y: 2\nsame: *b\n").unwrap();
        assert_eq!(yaml.get("use").unwrap().get("x").unwrap().at.line, 1);
        assert_eq!(yaml.get("same").unwrap().get("x").unwrap().at.line, 1);
    }

    #[test]
    fn bounds_hold() {
        let deep = |levels: usize| read(&format!("a: {}{}", "[".repeat(levels), "]".repeat(levels)));
        assert!(deep(200).unwrap_err()[0].starts_with("too-deep@1"));
        assert!(!deep(50_000).unwrap_err().is_empty());
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..10 {
            let inside = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb += &format!("a{level}: &a{level} [{inside}]\n");
        }
        assert!(read(&bomb).unwrap_err()[0].starts_with("too-large"));
        assert!(!read("a: &a [*a]\n").unwrap_err().is_empty());
    }

    #[test]
    fn refuses_what_is_no_plain_data() {
        assert_eq!(read("a: 1\na: 2\n").unwrap_err(), ["duplicate-key@2:1"]);
        assert_eq!(read("a: 1\r\na: 2\r\n").unwrap_err(), ["duplicate-key@2:1"]);
        assert_eq!(read("a: 1\rb: 2\n").unwrap_err(), ["syntax@1:5"]);
        assert_eq!(read("a: x\u{7}\n").unwrap_err(), ["syntax@1:5"]);
        assert_eq!(read("a: .nan\n").unwrap_err(), ["number@1:4"]);
        assert_eq!(read("a: !x 1\n").unwrap_err(), ["yaml-tag@1:7"]);
        assert!(read("a: [1\n").unwrap_err()[0].starts_with("syntax"));
        assert!(read("? [a]\n: 1\n").unwrap_err()[0].starts_with("key"));
    }
}
