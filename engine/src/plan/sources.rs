//! Inputs: from what is written under `inputs` to [`Source`]s whose types fit their ports.

use std::collections::BTreeMap;

use super::contract::Contract;
use super::expand::Draft;
use super::external::Outside;
use super::pick::{Directory, Picked};
use super::{Missing, ModelSource, NodeId, PlannedInput, Source};
use crate::interpolate::Scope;
use crate::port::{Arity, InputPort, PortType};
use crate::registry::BoundStage;
use crate::spec::pipeline::Pipeline;
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
    /// The file system around the pipeline file.
    pub(super) outside: &'a Outside,
    /// Resolved parameters.
    pub(super) params: &'a Yaml,
    /// Ports by stage.
    pub(super) contracts: &'a [Option<Contract<'a>>],
    /// Every node, those that vanished included.
    pub(super) drafts: &'a [Draft],
    /// Where stages and nodes are found by name and coordinate.
    pub(super) directory: Directory,
    /// Models by name.
    pub(super) models: BTreeMap<String, Model>,
}

/// What one written source stands for.
#[derive(Default)]
pub(super) struct Found {
    pub(super) list: bool,
    pub(super) sources: Vec<Source>,
}

/// The plain coordinates of a draft.
pub(super) fn coordinates(draft: &Draft) -> Coordinates {
    draft.coords.iter().map(|(key, value)| (key.clone(), value.to_json())).collect()
}

/// Whether a port takes a list.
pub(super) fn takes_many(port: &InputPort) -> bool {
    matches!(port.arity, Arity::Many | Arity::OptionalMany)
}

pub(super) fn is_model_port(port: &InputPort) -> bool {
    port.ty == Some(PortType::Model)
}

/// The item of a written list of sources that names `model`, or the whole.
fn naming<'y>(written: &'y Yaml, model: &str) -> &'y Yaml {
    let names = |item: &&Yaml| item.text().is_some_and(|text| text.trim().trim_start_matches("models.") == model);
    match &written.data {
        Data::List(items) => items.iter().find(names).unwrap_or(written),
        _ => written,
    }
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

    /// Checks that the models which feed a node can do what its stage asks of them.
    pub(super) fn check_models(
        &self,
        draft: &Draft,
        bound: &dyn BoundStage,
        inputs: &[PlannedInput],
        problems: &mut Problems<'_>,
    ) {
        let stage = &self.pipeline.stages[draft.stage];
        for input in inputs {
            let models = input.sources.iter().filter_map(|source| match source {
                Source::Model(model) => Some(model),
                _ => None,
            });
            for model in models {
                let Err(message) = bound.check_model(&input.port, model.provider) else { continue };
                let written = stage.fields.get("inputs").and_then(|inputs| inputs.get(&input.port));
                let at = written.map_or(stage.at, |written| naming(written, &model.name).at);
                let of = format!("`{}` is a model with `provider: {}`", model.name, model.provider.name());
                problems.error(at, "model", message).help(of);
            }
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
            Data::Map(_) => self.outside_source(draft, port, value, missing, problems),
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

    pub(super) fn deleted(&self, name: &str, what: &str, span: Span, at: Span, problems: &mut Problems<'_>) {
        let profile = self.pipeline.profile.as_deref().unwrap_or_default();
        problems
            .error(at, "vanished", format!("{what} `{name}` is deleted by profile `{profile}`"))
            .help(format!("the deletion is on line {}; give this another source in that profile", span.line));
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
}
