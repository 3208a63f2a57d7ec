//! Profiles and `--set`: one pipeline from several texts.
//!
//! Maps merge, lists and scalars replace, `null` deletes. Two places are finer: a new `uses` drops what belonged to the
//! old kind (`with`, `inputs`; and the fields of a command when a command becomes a kind, or the other way round), and a
//! source (`{ file: .. }`, `{ hub: .. }`, ..) replaces a source as a whole, since half of each means nothing.

use super::source::{Problems, Span};
use super::yaml::{Data, Entry, Yaml};

/// Sections whose entries have names that a profile may delete.
const NAMED: [&str; 4] = ["params", "models", "kinds", "stages"];

/// What a profile deleted: section, name, where.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deleted(Vec<(String, String, Span)>);

impl Deleted {
    /// Where `name` of `section` was deleted.
    pub(crate) fn find(&self, section: &str, name: &str) -> Option<Span> {
        self.0.iter().find(|(s, n, _)| s == section && n == name).map(|(.., at)| *at)
    }
}

/// Lays `overlay` over `base`.
pub(crate) fn overlay(base: Yaml, overlay: &Yaml, problems: &mut Problems<'_>) -> (Yaml, Deleted) {
    let mut merger = Merger { path: Vec::new(), deleted: Deleted::default(), problems };
    let merged = merger.merge(base, overlay);
    (merged, merger.deleted)
}

struct Merger<'a, 's> {
    path: Vec<String>,
    deleted: Deleted,
    problems: &'a mut Problems<'s>,
}

impl Merger<'_, '_> {
    fn merge(&mut self, base: Yaml, overlay: &Yaml) -> Yaml {
        let at = base.at;
        match (base.data, &overlay.data) {
            (Data::Map(mut entries), Data::Map(changes)) if !self.replaces_source(changes) => {
                self.drop_old_kind(&mut entries, changes);
                for change in changes {
                    self.apply(&mut entries, change);
                }
                Yaml { at, data: Data::Map(entries) }
            }
            _ => without_nulls(overlay),
        }
    }

    fn apply(&mut self, entries: &mut Vec<Entry>, change: &Entry) {
        let index = entries.iter().position(|entry| entry.key == change.key);
        self.path.push(change.key.clone());
        match index {
            _ if change.value.is_null() => self.delete(entries, index, change),
            Some(index) => {
                let merges = change.value.is_map() && entries[index].value.is_map();
                let slot = &mut entries[index];
                let placeholder = Yaml { at: slot.value.at, data: Data::Null };
                let base = std::mem::replace(&mut slot.value, placeholder);
                slot.value = self.merge(base, &change.value);
                if !merges {
                    slot.key_at = change.key_at;
                }
            }
            None => entries.push(Entry { value: without_nulls(&change.value), ..change.clone() }),
        }
        self.path.pop();
    }

    fn delete(&mut self, entries: &mut Vec<Entry>, index: Option<usize>, change: &Entry) {
        let named = matches!(self.path.as_slice(), [section, _] if NAMED.contains(&section.as_str()));
        match index {
            Some(index) => {
                entries.remove(index);
                if named {
                    self.deleted.0.push((self.path[0].clone(), change.key.clone(), change.key_at));
                }
            }
            None if named => {
                let message = format!("there is no `{}` under `{}` to delete", change.key, self.path[0]);
                let known = entries.iter().map(|entry| entry.key.as_str());
                self.problems.error(change.key_at, "nothing-to-delete", message).suggest(&change.key, known);
            }
            None => {}
        }
    }

    /// Whether the map at hand is a source and `changes` names another one.
    fn replaces_source(&self, changes: &[Entry]) -> bool {
        let source = match self.path.as_slice() {
            [stages, _, inputs, _] => stages == "stages" && inputs == "inputs",
            [models, _, from] => models == "models" && from == "from",
            _ => false,
        };
        source && changes.iter().any(|change| ["file", "dir", "glob", "hub"].contains(&change.key.as_str()))
    }

    fn drop_old_kind(&self, entries: &mut Vec<Entry>, changes: &[Entry]) {
        if !matches!(self.path.as_slice(), [stages, _] if stages == "stages") {
            return;
        }
        let text = |list: &[Entry], key: &str| list.iter().find(|e| e.key == key).map(|e| e.value.clone());
        let (old, new) = (text(entries, "uses"), text(changes, "uses"));
        let has_run = |list: &[Entry]| list.iter().any(|e| e.key == "run" && !e.value.is_null());
        let other_kind =
            new.as_ref().is_some_and(|new| !new.is_null() && old.as_ref().is_none_or(|old| old.data != new.data));
        if other_kind {
            entries.retain(|e| !["with", "inputs", "run", "each", "code", "env", "outputs"].contains(&e.key.as_str()));
        } else if old.is_some() && new.is_none() && has_run(changes) {
            entries.retain(|e| !["uses", "with", "inputs"].contains(&e.key.as_str()));
        }
    }
}

/// A part of a profile that lands where nothing was: its deletions have nothing to delete. Lists are data and stay.
fn without_nulls(yaml: &Yaml) -> Yaml {
    let data = match &yaml.data {
        Data::Map(entries) => Data::Map(
            entries
                .iter()
                .filter(|entry| !entry.value.is_null())
                .map(|entry| Entry { value: without_nulls(&entry.value), ..entry.clone() })
                .collect(),
        ),
        other => other.clone(),
    };
    Yaml { at: yaml.at, data }
}

/// Sets `params.key` (dots go into maps) to a YAML scalar; an undeclared name is an error.
pub(crate) fn set(root: &mut Yaml, key: &str, text: &str, problems: &mut Problems<'_>) {
    let at = Span::COMMAND_LINE;
    let parsed: Result<serde_json::Value, _> = serde_yaml::from_str(text);
    let value = match parsed {
        Ok(value) => Yaml::from_json(value, at),
        Err(error) => {
            problems.error(at, "set", format!("--set {key}={text}: the value is not YAML: {error}"));
            return;
        }
    };
    let key = key.trim();
    let mut here = entry_mut(root, "params");
    for part in key.split('.') {
        let known: Vec<String> = here.iter().flat_map(|yaml| yaml.entries()).map(|e| e.key.clone()).collect();
        here = here.and_then(|yaml| entry_mut(yaml, part));
        if here.is_none() {
            let wrong = key.strip_prefix("params.").unwrap_or(part);
            let message = format!("--set {key}: the pipeline declares no parameter `{key}`");
            let known = known.iter().map(String::as_str);
            problems.error(at, "unknown-param", message).suggest(wrong, known);
            return;
        }
    }
    if let Some(slot) = here {
        *slot = value;
    }
}

fn entry_mut<'y>(yaml: &'y mut Yaml, key: &str) -> Option<&'y mut Yaml> {
    match &mut yaml.data {
        Data::Map(entries) => entries.iter_mut().find(|entry| entry.key == key).map(|entry| &mut entry.value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::load::load;
    use super::super::source::SourceText;
    use super::*;

    fn merged(base: &str, top: &str) -> (serde_json::Value, Vec<String>) {
        let (base_source, top_source) =
            (SourceText::new(Path::new("a"), base.into()), SourceText::new(Path::new("b"), top.into()));
        let mut problems = Problems::new(&base_source);
        let base = load(&base_source, &mut problems).unwrap();
        let top = load(&top_source, &mut problems).unwrap();
        let (yaml, _) = overlay(base, &top, &mut problems);
        (yaml.to_json(), problems.into_found().into_iter().map(|d| d.message).collect())
    }

    #[test]
    fn maps_merge_lists_replace_null_deletes() {
        let (yaml, problems) =
            merged("{a: {x: 1, y: [1, 2]}, b: 2, c: 3}", "{a: {y: [9], z: {k: null}}, b: null, c: {n: 1}}");
        assert_eq!(yaml, serde_json::json!({"a": {"x": 1, "y": [9], "z": {}}, "c": {"n": 1}}));
        assert!(problems.is_empty());
    }

    #[test]
    fn a_new_kind_drops_what_belonged_to_the_old_one() {
        let base = "stages: {s: {uses: a, seed: 1, with: {p: 1}, inputs: {i: x}}}";
        let (yaml, _) = merged(base, "stages: {s: {uses: b, inputs: {j: y}}}");
        assert_eq!(yaml["stages"]["s"], serde_json::json!({"uses": "b", "seed": 1, "inputs": {"j": "y"}}));
        let (yaml, _) = merged(base, "stages: {s: {uses: a, with: {q: 2}}}");
        assert_eq!(yaml["stages"]["s"]["with"], serde_json::json!({"p": 1, "q": 2}));
        let (yaml, _) = merged(base, "stages: {s: {run: 'true'}}");
        assert_eq!(yaml["stages"]["s"], serde_json::json!({"seed": 1, "run": "true"}));
    }

    #[test]
    fn a_source_replaces_a_source_whole() {
        let (yaml, _) = merged("models: {m: {from: {hub: A, revision: r}}}", "models: {m: {from: {hub: B}}}");
        assert_eq!(yaml["models"]["m"]["from"], serde_json::json!({"hub": "B"}));
    }

    #[test]
    fn deleting_what_is_not_there_is_an_error() {
        let (_, problems) = merged("stages: {train: {uses: a}}", "stages: {trian: null}");
        assert_eq!(problems, ["there is no `trian` under `stages` to delete"]);
    }
}
