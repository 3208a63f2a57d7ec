//! Recorded answers: `provider: replay` answers from a file instead of a model.
//!
//! The file is JSONL. A line names its subject (the id of the question, item or region that was asked about) in `question`,
//! `item`, `region`, `subject` or `id`, and its text in `text`, `response` or `answer`; so the answers of `eval.answer` are such
//! a file. Several lines of one subject are its repeats, in order. When the model states `model`, only lines of that `model`
//! count.

use std::collections::BTreeMap;
use std::path::Path;

use mpcc_engine::stage::{ModelInput, StageError};
use serde_json::Value;

/// Recorded answers by subject.
pub struct Replay {
    name: String,
    answers: BTreeMap<String, Vec<String>>,
}

fn text<'a>(line: &'a Value, names: &[&str]) -> Option<&'a str> {
    names.iter().find_map(|name| line.get(name)?.as_str())
}

impl Replay {
    /// Reads the answers of a model with `provider: replay`.
    ///
    /// # Errors
    /// The file cannot be read, or a line is no recorded answer.
    pub fn open(model: &ModelInput) -> Result<Self, StageError> {
        let path = model.dir.as_deref();
        let path =
            path.ok_or_else(|| StageError::invalid(format!("model `{}` has no recorded answers", model.name)))?;
        let content = std::fs::read_to_string(path).map_err(|error| StageError::io(path, error))?;
        let only = model.settings.get("model").and_then(Value::as_str);
        let mut answers: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (number, line) in content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let (subject, said, model) = recorded(path, number + 1, line)?;
            if only.is_none_or(|only| model.is_none_or(|model| model == only)) {
                answers.entry(subject).or_default().push(said);
            }
        }
        Ok(Self { name: model.name.clone(), answers })
    }

    /// Answer `repeat` about `subject`.
    ///
    /// # Errors
    /// There is none; the message says what there is.
    pub fn answer(&self, subject: &str, repeat: usize) -> Result<&str, StageError> {
        let known = self.answers.get(subject).map_or(&[][..], Vec::as_slice);
        known.get(repeat).map(String::as_str).ok_or_else(|| {
            let (subjects, count) = (self.answers.len(), known.len());
            StageError::invalid(format!(
                "model `{}` has {count} recorded answers about {subject}, answer {} is wanted; it knows {subjects} subjects",
                self.name,
                repeat + 1
            ))
        })
    }
}

fn recorded(path: &Path, number: usize, line: &str) -> Result<(String, String, Option<String>), StageError> {
    let wrong = |what: &str| {
        let shown: String = line.chars().take(80).collect();
        StageError::invalid(format!("{}:{number}: {what}: `{shown}`", path.display()))
    };
    let value: Value = serde_json::from_str(line).map_err(|error| wrong(&format!("no JSON ({error})")))?;
    let subject = text(&value, &["question", "item", "region", "subject", "id"]);
    let subject = subject.ok_or_else(|| wrong("it names no `question`, `item`, `region`, `subject` or `id`"))?;
    let said = text(&value, &["text", "response", "answer"]);
    let said = said.ok_or_else(|| wrong("it has no `text`, `response` or `answer`"))?;
    Ok((subject.to_owned(), said.to_owned(), text(&value, &["model"]).map(str::to_owned)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mpcc_engine::stage::Provider;
    use serde_json::json;

    fn open(content: &str, settings: Value) -> Result<Replay, StageError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("answers.jsonl");
        std::fs::write(&path, content).unwrap();
        Replay::open(&ModelInput {
            name: "human".to_owned(),
            matrix: Vec::new(),
            provider: Provider::Replay,
            dir: Some(path),
            identity: json!({}),
            settings: settings.as_object().unwrap().clone(),
        })
    }

    #[test]
    fn repeats_keep_their_order_and_models_are_told_apart() {
        let lines = "{\"question\":\"q1\",\"model\":\"a\",\"text\":\"one\"}\n\n{\"id\":\"q1\",\"response\":\"two\"}\n\
                     {\"question\":\"q1\",\"model\":\"b\",\"text\":\"three\"}\n";
        let all = open(lines, json!({})).unwrap();
        assert_eq!((all.answer("q1", 0).unwrap(), all.answer("q1", 2).unwrap()), ("one", "three"));
        let a = open(lines, json!({ "model": "a" })).unwrap();
        assert_eq!(a.answer("q1", 1).unwrap(), "two");
        let error = a.answer("q1", 2).unwrap_err().to_string();
        assert!(error.contains("2 recorded answers about q1, answer 3 is wanted"), "{error}");
    }

    #[test]
    fn a_line_that_is_none_is_named() {
        for (line, what) in [("{", "no JSON"), (r#"{"text":"x"}"#, "names no"), (r#"{"id":"x"}"#, "has no `text`")] {
            let error = open(&format!("{{\"id\":\"a\",\"text\":\"b\"}}\n{line}\n"), json!({})).map(drop).unwrap_err();
            assert!(error.to_string().contains("answers.jsonl:2: ") && error.to_string().contains(what), "{error}");
        }
    }
}
