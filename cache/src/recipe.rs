//! Recipes: everything that decides a node's outputs, as one ordered list of named values.
//!
//! The same list is hashed (the fingerprint), stored as an object beside the outputs, and compared by `mpcc why`, so what is
//! explained is what was hashed.
//!
//! Canonical bytes: the line `mpcc-recipe 1`, then one line a field: the JSON array `[name,value]`, compact, with the keys
//! of every object sorted. The order of the fields counts; the order of keys inside a value does not.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Digest;

const HEAD: &str = "mpcc-recipe 1";

/// Everything that decides a node's outputs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Names and values. Order counts; a name should occur once.
    pub fields: Vec<(String, Value)>,
}

/// A field that differs between two recipes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The field, with the path inside its value: `params.threshold`, `inputs.items[2]`.
    pub field: String,
    /// The old value; `None` when the field is new.
    pub old: Option<Value>,
    /// The new value; `None` when the field is gone.
    pub new: Option<Value>,
}

/// A value with the keys of its objects sorted.
fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<_, _> = map.iter().map(|(key, value)| (key.clone(), canonical(value))).collect();
            Value::Object(sorted.into_iter().collect::<Map<_, _>>())
        }
        Value::Array(values) => Value::Array(values.iter().map(canonical).collect()),
        other => other.clone(),
    }
}

impl Recipe {
    /// A recipe without fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a field at the end.
    pub fn push(&mut self, name: impl Into<String>, value: impl Into<Value>) {
        self.fields.push((name.into(), value.into()));
    }

    /// The first field of this name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value)
    }

    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut text = format!("{HEAD}\n");
        for (name, value) in &self.fields {
            text.push_str(&Value::Array(vec![Value::String(name.clone()), canonical(value)]).to_string());
            text.push('\n');
        }
        text.into_bytes()
    }

    /// Reads canonical bytes back; anything else is refused with the reason.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
        let body = text.strip_prefix(HEAD).and_then(|rest| rest.strip_prefix('\n'));
        let body = body.ok_or_else(|| format!("it does not begin with `{HEAD}`"))?;
        let field = |line| serde_json::from_str(line).map_err(|error| format!("`{line}`: {error}"));
        Ok(Self { fields: body.lines().map(field).collect::<Result<_, _>>()? })
    }

    /// The fingerprint: the BLAKE3 of the canonical bytes.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.encode())
    }

    /// What differs between two recipes, in the order of the new one; fields that are gone stand where they stood in the
    /// old one. Empty exactly when the digests are equal or only the order of equal fields differs.
    pub fn diff(old: &Self, new: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (place, (name, value)) in new.fields.iter().enumerate() {
            let mut found = Vec::new();
            match old.get(name) {
                Some(before) => compare(name, before, value, &mut found),
                None => found.push(Change { field: name.clone(), old: None, new: Some(value.clone()) }),
            }
            changes.extend(found.into_iter().map(|change| (place, change)));
        }
        for (place, (name, value)) in old.fields.iter().enumerate() {
            if new.get(name).is_none() {
                changes.push((place, Change { field: name.clone(), old: Some(value.clone()), new: None }));
            }
        }
        changes.sort_by_key(|(place, _)| *place);
        changes.into_iter().map(|(_, change)| change).collect()
    }
}

/// Adds the smallest differences between two values below `field`.
fn compare(field: &str, old: &Value, new: &Value, changes: &mut Vec<Change>) {
    match (old, new) {
        _ if canonical(old) == canonical(new) => {}
        (Value::Object(old), Value::Object(new)) => compare_objects(field, old, new, changes),
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                compare(&format!("{field}[{index}]"), old, new, changes);
            }
        }
        _ => changes.push(Change { field: field.to_owned(), old: Some(old.clone()), new: Some(new.clone()) }),
    }
}

fn compare_objects(field: &str, old: &Map<String, Value>, new: &Map<String, Value>, changes: &mut Vec<Change>) {
    for (key, value) in new {
        let path = format!("{field}.{key}");
        match old.get(key) {
            Some(before) => compare(&path, before, value, changes),
            None => changes.push(Change { field: path, old: None, new: Some(value.clone()) }),
        }
    }
    for (key, value) in old.iter().filter(|(key, _)| !new.contains_key(*key)) {
        changes.push(Change { field: format!("{field}.{key}"), old: Some(value.clone()), new: None });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn recipe(value: Value) -> Recipe {
        let Value::Object(map) = value else { panic!("an object") };
        Recipe { fields: map.into_iter().collect() }
    }

    #[test]
    fn the_digest_sees_fields_order_and_types_but_not_key_order() {
        let base = recipe(json!({"kind": "train.sft", "params": {"lr": 1.0, "steps": 3}}));
        let same = recipe(json!({"kind": "train.sft", "params": {"steps": 3, "lr": 1.0}}));
        assert_eq!(base.digest(), same.digest());
        let others = [
            json!({"params": {"lr": 1.0, "steps": 3}, "kind": "train.sft"}),
            json!({"kind": "train.sft", "params": {"lr": 1, "steps": 3}}),
            json!({"kind": "train.sft", "params": {"lr": 1.0, "steps": "3"}}),
            json!({"kind": "train.sft", "params": {"lr": 1.0}}),
            json!({"kind": "train.sft", "params": {"lr": 1.0, "steps": 3}, "seed": null}),
        ];
        for other in others {
            assert_ne!(base.digest(), recipe(other.clone()).digest(), "{other}");
        }
    }

    #[test]
    fn the_canonical_bytes_are_fixed_and_read_back() {
        let recipe = recipe(json!({"kind": "x", "params": {"b": [1, 2.5, "a\nb"], "a": null}}));
        let bytes = recipe.encode();
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert_eq!(text, "mpcc-recipe 1\n[\"kind\",\"x\"]\n[\"params\",{\"a\":null,\"b\":[1,2.5,\"a\\nb\"]}]\n");
        assert_eq!(Recipe::decode(&bytes).unwrap().encode(), bytes);
        assert!(Recipe::decode(b"mpcc-recipe 2\n").unwrap_err().contains("mpcc-recipe 1"));
        assert!(Recipe::decode(b"mpcc-recipe 1\n[1]\n").unwrap_err().contains("[1]"));
    }

    #[test]
    fn diff_names_the_smallest_difference_first_differing_first() {
        let old =
            recipe(json!({"kind": "k", "gone": 1, "params": {"a": 1, "b": {"c": [1, 2]}}, "code": ["x"], "seed": 7}));
        let new = recipe(
            json!({"kind": "k", "params": {"a": 1, "b": {"c": [1, 3]}, "d": true}, "code": ["x", "y"], "seed": 8}),
        );
        let changes = Recipe::diff(&old, &new);
        let told: Vec<_> = changes.iter().map(|c| (c.field.as_str(), c.old.clone(), c.new.clone())).collect();
        assert_eq!(
            told,
            [
                ("params.b.c[1]", Some(json!(2)), Some(json!(3))),
                ("params.d", None, Some(json!(true))),
                ("gone", Some(json!(1)), None),
                ("code", Some(json!(["x"])), Some(json!(["x", "y"]))),
                ("seed", Some(json!(7)), Some(json!(8))),
            ]
        );
        assert_eq!(Recipe::diff(&old, &old), []);
    }
}
