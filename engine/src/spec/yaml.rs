//! A YAML value whose every part knows where it was written.

use serde_json::{Map, Number, Value};

use super::source::Span;

/// A value with its place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Yaml {
    /// Where the value starts.
    pub(crate) at: Span,
    /// The value.
    pub(crate) data: Data,
}

/// What a value is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Data {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A finite number.
    Number(Number),
    /// Text.
    Text(String),
    /// A sequence.
    List(Vec<Yaml>),
    /// A mapping, in the order written.
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// The key.
    pub(crate) key: String,
    /// Where the key is.
    pub(crate) key_at: Span,
    /// The value.
    pub(crate) value: Yaml,
}

impl Yaml {
    /// An empty map.
    pub(crate) fn empty_map(at: Span) -> Self {
        Self { at, data: Data::Map(Vec::new()) }
    }

    /// A plain JSON value, every part placed at `at`.
    pub(crate) fn from_json(value: Value, at: Span) -> Self {
        let data = match value {
            Value::Null => Data::Null,
            Value::Bool(value) => Data::Bool(value),
            Value::Number(value) => Data::Number(value),
            Value::String(value) => Data::Text(value),
            Value::Array(items) => Data::List(items.into_iter().map(|item| Self::from_json(item, at)).collect()),
            Value::Object(map) => Data::Map(
                map.into_iter()
                    .map(|(key, value)| Entry { key, key_at: at, value: Self::from_json(value, at) })
                    .collect(),
            ),
        };
        Self { at, data }
    }

    /// The value without places.
    pub(crate) fn to_json(&self) -> Value {
        match &self.data {
            Data::Null => Value::Null,
            Data::Bool(value) => Value::Bool(*value),
            Data::Number(value) => Value::Number(value.clone()),
            Data::Text(value) => Value::String(value.clone()),
            Data::List(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Data::Map(entries) => {
                Value::Object(entries.iter().map(|e| (e.key.clone(), e.value.to_json())).collect::<Map<_, _>>())
            }
        }
    }

    /// The value moved to `at`: what a `${...}` stands for is reported where it is used.
    pub(crate) fn moved(mut self, at: Span) -> Self {
        match &mut self.data {
            Data::List(items) => {
                items.iter_mut().for_each(|item| *item = std::mem::replace(item, Self::null()).moved(at))
            }
            Data::Map(entries) => entries.iter_mut().for_each(|entry| {
                entry.key_at = at;
                entry.value = std::mem::replace(&mut entry.value, Self::null()).moved(at);
            }),
            _ => {}
        }
        self.at = at;
        self
    }

    fn null() -> Self {
        Self { at: Span::COMMAND_LINE, data: Data::Null }
    }

    /// The entries of a map; none for anything else.
    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.data {
            Data::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The entry under `key` of a map.
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// The value under `key` of a map.
    pub(crate) fn get(&self, key: &str) -> Option<&Yaml> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// The text, if it is text.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.data {
            Data::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        self.data == Data::Null
    }

    pub(crate) fn is_map(&self) -> bool {
        matches!(self.data, Data::Map(_))
    }

    /// How a scalar reads inside text, in node names and in selectors; `None` for lists, maps and null.
    pub(crate) fn scalar_text(&self) -> Option<String> {
        match &self.data {
            Data::Text(text) => Some(text.clone()),
            Data::Number(number) => Some(number.to_string()),
            Data::Bool(value) => Some(value.to_string()),
            Data::Null | Data::List(_) | Data::Map(_) => None,
        }
    }

    /// The value itself for a message when it is a scalar, else what it is.
    pub(crate) fn shown(&self) -> String {
        self.scalar_text().map_or_else(|| self.what().to_owned(), |text| format!("`{text}`"))
    }

    /// What to call it in a message: `text`, `a list`, ...
    pub(crate) fn what(&self) -> &'static str {
        match self.data {
            Data::Null => "null",
            Data::Bool(_) => "true or false",
            Data::Number(_) => "a number",
            Data::Text(_) => "text",
            Data::List(_) => "a list",
            Data::Map(_) => "a map",
        }
    }
}
