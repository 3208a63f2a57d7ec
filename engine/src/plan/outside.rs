//! Sources from outside the store: `{ file: .. }`, `{ dir: .. }`, `{ glob: .. }`, relative to the pipeline file.

use std::path::Path;

use super::expand::Draft;
use super::external::check_glob;
use super::sources::{Found, Lookup, is_model_port, takes_many};
use super::{Missing, MissingKind, ModelSource, Source};
use crate::port::InputPort;
use crate::spec::pipeline::check_keys;
use crate::spec::source::Problems;
use crate::spec::yaml::Yaml;
use crate::stage::{Coordinates, Provider};

impl Lookup<'_> {
    /// `{ file: .. }`, `{ dir: .. }`, `{ glob: .. }`.
    pub(super) fn outside_source(
        &self,
        draft: &Draft,
        port: &InputPort,
        value: &Yaml,
        missing: &mut Vec<Missing>,
        problems: &mut Problems<'_>,
    ) -> Option<Found> {
        const KEYS: [&str; 3] = ["file", "dir", "glob"];
        check_keys(value, &KEYS, "an outside source", problems);
        let [entry] = value.entries() else {
            problems.error(value.at, "source", "an outside source is one of `file`, `dir` and `glob`");
            return None;
        };
        let Some(written) = entry.value.text() else {
            problems.error(entry.value.at, "type", format!("a path is text, this is {}", entry.value.what()));
            return None;
        };
        let key = KEYS.into_iter().find(|key| *key == entry.key)?;
        self.check_outside_type(port, key, &entry.value, problems)?;
        let path = self.outside.absolute(written);
        if key != "glob" {
            self.check_there(&path, key == "dir", &entry.value, &draft.name, missing, problems)?;
        }
        let source = match key {
            "file" => Source::File { path },
            "dir" if is_model_port(port) => Source::Model(Box::new(ModelSource {
                name: written.to_owned(),
                matrix: Coordinates::new(),
                provider: Provider::Local,
                from: Some(Source::Dir { path }),
                settings: serde_json::Map::new(),
            })),
            "dir" => Source::Dir { path },
            _ => self.glob(&path, &entry.value, &draft.name, missing, problems)?,
        };
        Some(Found { list: key == "glob", sources: vec![source] })
    }

    fn check_outside_type(&self, port: &InputPort, key: &str, value: &Yaml, problems: &mut Problems<'_>) -> Option<()> {
        let tree = key == "dir";
        let wrong = match &port.ty {
            Some(ty) if ty.is_tree() != tree => {
                Some(format!("takes {ty}, this is {}", if tree { "a directory" } else { "a file" }))
            }
            _ if key == "glob" && !takes_many(port) => Some("takes one file, a pattern stands for a list".to_owned()),
            _ => None,
        };
        match wrong {
            Some(wrong) => {
                problems.error(value.at, "port-type", format!("input `{}` {wrong}", port.name));
                None
            }
            None => Some(()),
        }
    }

    fn check_there(
        &self,
        path: &Path,
        tree: bool,
        value: &Yaml,
        node: &str,
        missing: &mut Vec<Missing>,
        problems: &mut Problems<'_>,
    ) -> Option<()> {
        if !self.outside.exists(path) {
            let what = if tree { "directory" } else { "file" };
            missing.push(missing_data(node, format!("{what} {} is not there", path.display())));
        } else if self.outside.is_dir(path) != tree {
            let (is, write) = if tree { ("a file", "file") } else { ("a directory", "dir") };
            problems
                .error(value.at, "source", format!("`{}` is {is}", value.text().unwrap_or_default()))
                .help(format!("write `{{ {write}: .. }}`"));
            return None;
        }
        Some(())
    }

    fn glob(
        &self,
        pattern: &Path,
        value: &Yaml,
        node: &str,
        missing: &mut Vec<Missing>,
        problems: &mut Problems<'_>,
    ) -> Option<Source> {
        let text = pattern.to_string_lossy().into_owned();
        if let Err(error) = check_glob(&text) {
            problems.error(value.at, "source", error.to_string());
            return None;
        }
        if self.outside.expand(pattern).map_or(true, |files| files.is_empty()) {
            missing.push(missing_data(node, format!("no file matches {text}")));
        }
        Some(Source::Glob { pattern: text })
    }
}

/// A missing file, directory or checkpoint.
pub(super) fn missing_data(needed_by: &str, message: String) -> Missing {
    Missing { what: MissingKind::Data, needed_by: needed_by.to_owned(), message }
}
