//! Commands: `run:` stages and custom kinds become [`Command`]s whose words hold nothing but the paths of ports.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::common::is_env_name;
use super::external::Outside;
use super::outside::missing_data;
use super::{Command, Missing};
use crate::interpolate::Scope;
use crate::port::{InputPort, OutputPort, PortType};
use crate::spec::source::{Problems, Span};
use crate::spec::yaml::{Data, Yaml};

/// What a command is made from.
pub(super) struct Making<'a> {
    /// The custom kind's name, if it is one.
    pub(super) kind: Option<&'a str>,
    /// The fields of the stage, or of the kind.
    pub(super) fields: &'a Yaml,
    /// What variables stand for; inside a kind its own parameters.
    pub(super) scope: Scope<'a>,
    /// Input ports.
    pub(super) inputs: &'a [InputPort],
    /// Output ports.
    pub(super) outputs: &'a [OutputPort],
    /// Resolved parameters of a custom kind.
    pub(super) params: Value,
    /// Files that parameters name: their content enters the recipe.
    pub(super) param_files: Vec<PathBuf>,
    /// The file system around the pipeline file.
    pub(super) outside: &'a Outside,
    /// The node.
    pub(super) node: &'a str,
}

impl Making<'_> {
    /// The command; `None` when it cannot be told, which is reported.
    pub(super) fn command(mut self, missing: &mut Vec<Missing>, problems: &mut Problems<'_>) -> Option<Command> {
        let run = self.fields.get("run")?;
        let argv = self.argv(run, problems);
        let each = self.each(problems);
        let env = self.env(problems);
        let code = self.code(missing, problems);
        let (argv, shell) = argv?;
        self.warn_of_unseen_code(run, &argv, &code, problems);
        let params = std::mem::take(&mut self.params);
        let kind = self.kind.map(str::to_owned);
        Some(Command { kind, argv, shell, params, each, env, code, cwd: self.outside.folder().to_owned() })
    }

    fn argv(&self, run: &Yaml, problems: &mut Problems<'_>) -> Option<(Vec<String>, bool)> {
        let inputs: Vec<String> = self.inputs.iter().map(|port| port.name.clone()).collect();
        let outputs: Vec<String> = self.outputs.iter().map(|port| port.name.clone()).collect();
        let scope = Scope { ports: Some((&inputs, &outputs)), ..self.scope };
        match &run.data {
            Data::Text(text) if !text.trim().is_empty() => {
                Some((vec![word(&scope.resolve(run, problems)?, run.at, problems)?], true))
            }
            Data::List(items) if !items.is_empty() => {
                let resolve = |item: &Yaml, problems: &mut Problems<'_>| {
                    let resolved = scope.resolve(item, problems)?;
                    word(&resolved, item.at, problems)
                };
                let words: Vec<_> = items.iter().map(|item| resolve(item, problems)).collect();
                Some((words.into_iter().collect::<Option<_>>()?, false))
            }
            _ => {
                let message = "`run` is a list of words, or text for `sh -c`, and not empty";
                problems.error(run.at, "type", message);
                None
            }
        }
    }

    /// The record input of a record stage. Its first output must hold records, too.
    fn each(&self, problems: &mut Problems<'_>) -> Option<String> {
        let each = self.fields.get("each").filter(|each| !each.is_null())?;
        let name = each.text().unwrap_or_default();
        let Some(port) = self.inputs.iter().find(|port| port.name == name) else {
            let known = self.inputs.iter().map(|port| port.name.as_str());
            let message = format!("`each` names an input, there is no `{name}`");
            problems.error(each.at, "unknown-port", message).suggest(name, known);
            return None;
        };
        if let Some(ty) = port.ty.as_ref().filter(|ty| !is_lines(ty)) {
            problems.error(each.at, "port-type", format!("`each` takes records, input `{name}` is {ty}"));
        }
        match self.outputs.first() {
            Some(output) if is_lines(&output.ty) => {}
            Some(output) => {
                let message = format!("`each` writes records, output `{}` is {}", output.name, output.ty);
                problems.error(each.at, "port-type", message).help("make the first output `records`");
            }
            None => {
                problems.error(each.at, "port-type", "`each` writes records: declare an output of that type");
            }
        }
        Some(name.to_owned())
    }

    fn env(&self, problems: &mut Problems<'_>) -> BTreeMap<String, String> {
        let mut env = BTreeMap::new();
        for entry in self.fields.get("env").map(Yaml::entries).unwrap_or_default() {
            if !is_env_name(&entry.key) {
                let message = format!("`{}` is no name of an environment variable", entry.key);
                problems.error(entry.key_at, "name", message);
            }
            let Some(value) = self.scope.resolve(&entry.value, problems) else { continue };
            match value.scalar_text() {
                Some(text) => {
                    env.insert(entry.key.clone(), text);
                }
                None => {
                    let message = format!("`{}` is text or a number, this is {}", entry.key, value.what());
                    problems.error(entry.value.at, "type", message);
                }
            }
        }
        env
    }

    /// Files whose content enters the recipe, relative to the pipeline's folder.
    fn code(&self, missing: &mut Vec<Missing>, problems: &mut Problems<'_>) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = self.param_files.clone();
        for pattern in self.code_patterns(problems) {
            let Some(text) = pattern.text() else {
                problems.error(pattern.at, "type", format!("`code` names files, this is {}", pattern.what()));
                continue;
            };
            match self.outside.expand(&self.outside.absolute(text)) {
                Ok(found) if found.is_empty() => {
                    missing.push(missing_data(self.node, format!("`code`: no file matches {text}")));
                }
                Ok(found) => files.extend(found.iter().map(|path| self.relative(path))),
                Err(error) => {
                    problems.error(pattern.at, "code", error.to_string());
                }
            }
        }
        files.sort();
        files.dedup();
        files
    }

    fn code_patterns(&self, problems: &mut Problems<'_>) -> Vec<Yaml> {
        let Some(code) = self.fields.get("code") else { return Vec::new() };
        match self.scope.resolve(code, problems) {
            Some(Yaml { data: Data::List(items), .. }) => items,
            Some(value) if value.is_null() => Vec::new(),
            Some(value) => vec![value],
            None => Vec::new(),
        }
    }

    fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(self.outside.folder()).unwrap_or(path).to_owned()
    }

    /// A script that is run but not declared as code: edits of it would go unnoticed.
    fn warn_of_unseen_code(&self, run: &Yaml, argv: &[String], code: &[PathBuf], problems: &mut Problems<'_>) {
        let words: Vec<&str> = argv.iter().flat_map(|word| word.split_whitespace()).collect();
        for word in words.into_iter().filter(|word| !word.contains("${") && !word.starts_with('-')) {
            let path = self.outside.absolute(word);
            let script = [".py", ".sh", ".pl", ".rb", ".js", ".R", ".jl"].iter().any(|suffix| word.ends_with(suffix));
            if script && self.outside.is_file(&path) && !code.contains(&self.relative(&path)) {
                problems
                    .warning(
                        run.at,
                        "unseen-code",
                        format!("edits of `{word}` would go unnoticed: it is not under `code`"),
                    )
                    .help(format!("add `code: [{word}]`"));
            }
        }
    }
}

fn is_lines(ty: &PortType) -> bool {
    matches!(ty, PortType::Records(_))
}

fn word(value: &Yaml, at: Span, problems: &mut Problems<'_>) -> Option<String> {
    let text = value.scalar_text();
    if text.is_none() {
        problems
            .error(at, "interpolation", format!("a word of a command is text, this is {}", value.what()))
            .help("a number or true and false will do; a list or map cannot be a word");
    }
    text
}
