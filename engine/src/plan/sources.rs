//! Inputs: from what is written under `inputs` to [`Source`]s whose types fit their ports.

use std::collections::BTreeMap;
use std::path::Path;

use super::contract::Contract;
use super::expand::{Draft, Gone};
use super::external::{absolute, check_glob, expand_glob};
use super::selector::{Selector, parse};
use super::{Missing, MissingKind, ModelSource, NodeId, PlannedInput, Source};
use crate::interpolate::Scope;
use crate::port::{Arity, InputPort, PortType};
use crate::spec::pipeline::{Pipeline, check_keys};
use crate::spec::source::{Problems, Span};
use crate::spec::yaml::{Data, Yaml};
use crate::stage::{Coordinates, Provider};

/// A model under `models`, resolved.
pub(super) struct Model {
    /// The source it stands for; `None` when it is broken, which is reported.
    pub(super) source: Option<ModelSource>,
    /// What a run that uses it would lack.
    pub(super) missing: Vec<Missing>,
}

/// What sources are looked up in.
pub(super) struct Lookup<'a> {
    /// The pipeline as written.
    pub(super) pipeline: &'a Pipeline,
    /// The pipeline file's folder.
    pub(super) folder: &'a Path,
    /// Resolved parameters.
    pub(super) params: &'a Yaml,
    /// Ports by stage.
    pub(super) contracts: &'a [Option<Contract<'a>>],
    /// Every node, those that vanished included.
    pub(super) drafts: &'a [Draft],
    /// Models by name.
    pub(super) models: BTreeMap<String, Model>,
}

/// What one written source stands for.
#[derive(Default)]
struct Found {
    list: bool,
    sources: Vec<Source>,
}

/// A port of nodes that a selector names.
pub(super) struct Picked {
    /// Nodes, as draft indices.
    pub(super) nodes: Vec<usize>,
    /// The output port.
    pub(super) port: String,
    /// Its type.
    pub(super) ty: PortType,
    /// Whether `*` was written.
    pub(super) star: bool,
}

/// The plain coordinates of a draft.
pub(super) fn coordinates(draft: &Draft) -> Coordinates {
    draft.coords.iter().map(|(key, value)| (key.clone(), value.to_json())).collect()
}

/// Whether a port takes a list.
fn takes_many(port: &InputPort) -> bool {
    matches!(port.arity, Arity::Many | Arity::OptionalMany)
}

fn is_model_port(port: &InputPort) -> bool {
    port.ty == Some(PortType::Model)
}

impl<'a> Lookup<'a> {
    /// The inputs of a node; `missing` takes what is not there.
    pub(super) fn inputs(
        &self,
        draft: &Draft,
        missing: &mut Vec<Missing>,
        problems: &mut Problems<'_>,
    ) -> Vec<PlannedInput> {
        let stage = &self.pipeline.stages[draft.stage];
        let Some(contract) = &self.contracts[draft.stage] else { return Vec::new() };
        let written = stage.fields.get("inputs").map(Yaml::entries).unwrap_or_default();
        for entry in written {
            if !contract.inputs.iter().any(|port| port.name == entry.key) {
                let known = contract.inputs.iter().map(|port| port.name.as_str());
                let message = format!("stage `{}` has no input `{}`", stage.name, entry.key);
                problems.error(entry.key_at, "unknown-port", message).suggest(&entry.key, known);
            }
        }
        let mut inputs = Vec::new();
        for port in &contract.inputs {
            let entry = written.iter().find(|entry| entry.key == port.name);
            let value =
                entry.map(|entry| (entry, Scope::node(self.params, &draft.coords).resolve(&entry.value, problems)));
            match value {
                Some((_, None)) => {}
                Some((entry, Some(value))) if !value.is_null() => {
                    let input = self.input(draft, port, &value, entry.key_at, missing, problems);
                    inputs.extend(input);
                }
                _ => self.check_required(port, &stage.name, entry.map_or(stage.at, |entry| entry.key_at), problems),
            }
        }
        inputs
    }

    fn check_required(&self, port: &InputPort, stage: &str, at: Span, problems: &mut Problems<'_>) {
        if matches!(port.arity, Arity::One | Arity::Many) {
            let ty = port.ty.as_ref().map_or_else(String::new, |ty| format!(" ({ty})"));
            problems
                .error(at, "missing-input", format!("stage `{stage}` needs the input `{}`{ty}", port.name))
                .help(format!("add `{}: SOURCE` under its `inputs`", port.name));
        }
    }

    fn input(
        &self,
        draft: &Draft,
        port: &InputPort,
        value: &Yaml,
        key_at: Span,
        missing: &mut Vec<Missing>,
        problems: &mut Problems<'_>,
    ) -> Option<PlannedInput> {
        let found = self.read(draft, port, value, missing, problems)?;
        let many = takes_many(port);
        if found.sources.is_empty() && matches!(port.arity, Arity::One | Arity::Many) {
            problems.error(value.at, "arity", format!("input `{}` gets nothing: no node is left", port.name));
            return None;
        }
        if !many && (found.list || found.sources.len() > 1) && found.sources.len() != 1 {
            let message = format!("input `{}` takes one source, this is {}", port.name, found.sources.len());
            problems.error(if value.at.line == 0 { key_at } else { value.at }, "arity", message);
            return None;
        }
        let list = many && (found.list || found.sources.len() > 1);
        Some(PlannedInput { port: port.name.clone(), list, sources: found.sources })
    }

    fn read(
        &self,
        draft: &Draft,
        port: &InputPort,
        value: &Yaml,
        missing: &mut Vec<Missing>,
        problems: &mut Problems<'_>,
    ) -> Option<Found> {
        match &value.data {
            Data::Text(text) => self.named(port, text, value.at, missing, problems),
            Data::Map(_) => self.outside(draft, port, value, missing, problems),
            Data::List(items) if takes_many(port) => {
                let parts: Vec<_> =
                    items.iter().map(|item| self.read_item(draft, port, item, missing, problems)).collect();
                let mut all = Found { list: true, sources: Vec::new() };
                for part in parts {
                    all.sources.extend(part?.sources);
                }
                Some(all)
            }
            Data::List(_) => {
                let message = format!("input `{}` takes one source, this is a list", port.name);
                problems.error(value.at, "arity", message);
                None
            }
            _ => {
                problems
                    .error(value.at, "source", format!("{} is no source", value.what()))
                    .help("write `stage`, `stage.port`, `stage[key=value].port`, a model, or `{ file: PATH }`");
                None
            }
        }
    }

    fn read_item(
        &self,
        draft: &Draft,
        port: &InputPort,
        item: &Yaml,
        missing: &mut Vec<Missing>,
        problems: &mut Problems<'_>,
    ) -> Option<Found> {
        if matches!(item.data, Data::List(_)) {
            problems.error(item.at, "source", "a list of sources holds no further lists");
            return None;
        }
        self.read(draft, port, item, missing, problems)
    }

    /// `models.NAME`, a model's name, or a selector.
    fn named(
        &self,
        port: &InputPort,
        text: &str,
        at: Span,
        missing: &mut Vec<Missing>,
        problems: &mut Problems<'_>,
    ) -> Option<Found> {
        let text = text.trim();
        let name = text.strip_prefix("models.").unwrap_or(text);
        if let Some(model) = self.models.get(name) {
            let source = self.model(port, name, model, at, missing, problems)?;
            return Some(Found { list: false, sources: vec![source] });
        }
        if name != text {
            self.unknown_model(name, at, problems);
            return None;
        }
        let picked = self.pick(text, at, problems)?;
        self.check_type(port, &picked.ty, text, at, problems)?;
        if !takes_many(port) && picked.nodes.len() != 1 && !(picked.nodes.is_empty() && port.arity == Arity::Optional) {
            self.ambiguous(port, text, &picked, at, problems);
            return None;
        }
        let as_model = is_model_port(port);
        let sources = picked.nodes.iter().map(|&node| self.output(node, &picked.port, as_model)).collect();
        Some(Found { list: picked.star, sources })
    }

    fn output(&self, node: usize, port: &str, as_model: bool) -> Source {
        let output = Source::Output { node: NodeId(node), port: port.to_owned() };
        if !as_model {
            return output;
        }
        let draft = &self.drafts[node];
        Source::Model(Box::new(ModelSource {
            name: draft.name.clone(),
            matrix: coordinates(draft),
            provider: Provider::Local,
            from: Some(output),
            settings: serde_json::Map::new(),
        }))
    }

    fn model(
        &self,
        port: &InputPort,
        name: &str,
        model: &Model,
        at: Span,
        missing: &mut Vec<Missing>,
        problems: &mut Problems<'_>,
    ) -> Option<Source> {
        if let Some(ty) = port.ty.as_ref().filter(|ty| **ty != PortType::Model) {
            let message = format!("input `{}` takes {ty}, `{name}` is a model", port.name);
            problems.error(at, "port-type", message);
            return None;
        }
        let source = model.source.clone()?;
        if port.ty.is_none() && source.provider != Provider::Local {
            problems
                .error(at, "port-type", format!("a command needs files, `{name}` is a model behind a server"))
                .help("only `provider: local` models have a directory");
            return None;
        }
        missing.extend(model.missing.iter().cloned());
        Some(Source::Model(Box::new(source)))
    }

    fn unknown_model(&self, name: &str, at: Span, problems: &mut Problems<'_>) {
        if let Some(span) = self.pipeline.deleted.find("models", name) {
            self.deleted(name, "model", span, at, problems);
            return;
        }
        let known = self.models.keys().map(String::as_str);
        problems.error(at, "unknown-model", format!("there is no model `{name}`")).suggest(name, known);
    }

    fn deleted(&self, name: &str, what: &str, span: Span, at: Span, problems: &mut Problems<'_>) {
        let profile = self.pipeline.profile.as_deref().unwrap_or_default();
        problems
            .error(at, "vanished", format!("{what} `{name}` is deleted by profile `{profile}`"))
            .help(format!("the deletion is on line {}; give this another source in that profile", span.line));
    }

    /// The port of the nodes that `text` selects.
    pub(super) fn pick(&self, text: &str, at: Span, problems: &mut Problems<'_>) -> Option<Picked> {
        let selector = match parse(text) {
            Ok(selector) => selector,
            Err(message) => {
                problems.error(at, "source", message);
                return None;
            }
        };
        let nodes = self.select(&selector, at, problems)?;
        let stage = self.pipeline.stages.iter().position(|stage| stage.name == selector.stage)?;
        let outputs = &self.contracts[stage].as_ref()?.outputs;
        let port = match selector.port {
            None => outputs.first(),
            Some(name) => outputs.iter().find(|port| port.name == name),
        };
        let Some(port) = port else {
            self.no_port(&selector, outputs.iter().map(|port| port.name.as_str()), at, problems);
            return None;
        };
        Some(Picked { nodes, port: port.name.clone(), ty: port.ty.clone(), star: selector.star })
    }

    fn no_port<'n>(
        &self,
        selector: &Selector<'_>,
        known: impl Iterator<Item = &'n str>,
        at: Span,
        problems: &mut Problems<'_>,
    ) {
        match selector.port {
            Some(port) => problems
                .error_in(at, port, "unknown-port", format!("stage `{}` has no output `{port}`", selector.stage))
                .suggest(port, known),
            None => {
                let message = format!("stage `{}` has no outputs", selector.stage);
                problems.error(at, "unknown-port", message).help("order without data goes under `needs`");
            }
        }
    }

    /// The live nodes that a selector leaves.
    pub(super) fn select(&self, selector: &Selector<'_>, at: Span, problems: &mut Problems<'_>) -> Option<Vec<usize>> {
        let name = selector.stage;
        let Some(stage) = self.pipeline.stages.iter().position(|stage| stage.name == name) else {
            self.unknown_stage(name, at, problems);
            return None;
        };
        let of_stage: Vec<usize> = (0..self.drafts.len()).filter(|&i| self.drafts[i].stage == stage).collect();
        self.check_coordinates(selector, &of_stage, at, problems)?;
        let fits = |index: &usize| selector.fixed.iter().all(|(key, want)| has(&self.drafts[*index], key, want));
        let matching: Vec<usize> = of_stage.into_iter().filter(fits).collect();
        let live: Vec<usize> = matching.iter().copied().filter(|&i| self.drafts[i].gone.is_none()).collect();
        if live.is_empty() && !selector.star {
            self.vanished(name, &matching, at, problems);
            return None;
        }
        Some(live)
    }

    fn unknown_stage(&self, name: &str, at: Span, problems: &mut Problems<'_>) {
        for (section, what) in [("stages", "stage"), ("models", "model")] {
            if let Some(span) = self.pipeline.deleted.find(section, name) {
                self.deleted(name, what, span, at, problems);
                return;
            }
        }
        let stages = self.pipeline.stages.iter().map(|stage| stage.name.as_str());
        let known = stages.chain(self.models.keys().map(String::as_str));
        let message = format!("no stage or model is called `{name}`");
        problems.error_in(at, name, "unknown-stage", message).suggest(name, known);
    }

    fn check_coordinates(
        &self,
        selector: &Selector<'_>,
        nodes: &[usize],
        at: Span,
        problems: &mut Problems<'_>,
    ) -> Option<()> {
        let coords = &self.drafts[*nodes.first()?].coords;
        for (key, value) in &selector.fixed {
            if !coords.iter().any(|(known, _)| known == key) {
                let message = format!("the matrix of stage `{}` has no `{key}`", selector.stage);
                let known = coords.iter().map(|(known, _)| known.as_str());
                problems.error_in(at, key, "unknown-matrix-key", message).suggest(key, known);
                return None;
            }
            if !nodes.iter().any(|&node| has(&self.drafts[node], key, value)) {
                let message = format!("no node of stage `{}` has {key}={value}", selector.stage);
                let mut known: Vec<String> =
                    nodes.iter().filter_map(|&node| value_of(&self.drafts[node], key)).collect();
                known.dedup();
                problems
                    .error_in(at, value, "unknown-matrix-value", message)
                    .suggest(value, known.iter().map(String::as_str));
                return None;
            }
        }
        Some(())
    }

    fn vanished(&self, stage: &str, matching: &[usize], at: Span, problems: &mut Problems<'_>) {
        let Some(draft) = matching.first().map(|&index| &self.drafts[index]) else {
            problems.error(at, "arity", format!("this leaves no node of stage `{stage}`"));
            return;
        };
        let (why, line) = match draft.gone {
            Some(Gone::When(span)) => ("switched off by `when`", span.line),
            Some(Gone::Excluded(span)) => ("taken out by `exclude`", span.line),
            None => return,
        };
        problems
            .error(at, "vanished", format!("node `{}` is {why}", draft.name))
            .help(format!("see line {line}; `[*]` takes only the nodes that are there"));
    }

    fn ambiguous(&self, port: &InputPort, text: &str, picked: &Picked, at: Span, problems: &mut Problems<'_>) {
        let names: Vec<&str> = picked.nodes.iter().take(4).map(|&node| self.drafts[node].name.as_str()).collect();
        let more = if picked.nodes.len() > 4 { ", ..." } else { "" };
        let message = format!("input `{}` takes one source, `{text}` leaves {} nodes", port.name, picked.nodes.len());
        let found = problems.error(at, "arity", message);
        if !names.is_empty() {
            found.help(format!("fix every coordinate: {}{more}", names.join(", ")));
        }
    }

    /// Whether an output of type `have` may feed `port`; the problem names both types.
    fn check_type(
        &self,
        port: &InputPort,
        have: &PortType,
        text: &str,
        at: Span,
        problems: &mut Problems<'_>,
    ) -> Option<()> {
        match &port.ty {
            Some(want) if !want.accepts(have) => {
                problems.error(at, "port-type", format!("input `{}` takes {want}, `{text}` is {have}", port.name));
                None
            }
            _ => Some(()),
        }
    }

    /// `{ file: .. }`, `{ dir: .. }`, `{ glob: .. }`.
    fn outside(
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
        let path = absolute(self.folder, written);
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
        if !path.exists() {
            let what = if tree { "directory" } else { "file" };
            missing.push(missing_data(node, format!("{what} {} is not there", path.display())));
        } else if path.is_dir() != tree {
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
        if expand_glob(pattern).map_or(true, |files| files.is_empty()) {
            missing.push(missing_data(node, format!("no file matches {text}")));
        }
        Some(Source::Glob { pattern: text })
    }
}

/// A missing file, directory or checkpoint.
pub(super) fn missing_data(needed_by: &str, message: String) -> Missing {
    Missing { what: MissingKind::Data, needed_by: needed_by.to_owned(), message }
}

fn value_of(draft: &Draft, key: &str) -> Option<String> {
    draft.coords.iter().find(|(known, _)| known == key).and_then(|(_, value)| value.scalar_text())
}

fn has(draft: &Draft, key: &str, want: &str) -> bool {
    value_of(draft, key).is_some_and(|value| value == want)
}
