//! Selectors looked up: from `stage[key=value].port` to nodes and a port.

use std::collections::BTreeMap;

use super::expand::{Draft, Gone};
use super::selector::{Selector, parse};
use super::sources::Lookup;
use crate::port::PortType;
use crate::spec::pipeline::Pipeline;
use crate::spec::source::{Problems, Span};

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

/// Where stages and nodes are found without looking at all of them.
pub(super) struct Directory {
    stages: BTreeMap<String, usize>,
    /// The nodes of each stage, as draft indices.
    nodes: Vec<Vec<usize>>,
    /// The nodes of a stage that have a coordinate: stage -> key -> value as text -> nodes.
    coordinates: Vec<BTreeMap<String, BTreeMap<String, Vec<usize>>>>,
}

impl Directory {
    pub(super) fn new(pipeline: &Pipeline, drafts: &[Draft]) -> Self {
        let count = pipeline.stages.len();
        let stages = pipeline.stages.iter().enumerate().map(|(index, stage)| (stage.name.clone(), index)).collect();
        let mut directory = Self { stages, nodes: vec![Vec::new(); count], coordinates: vec![BTreeMap::new(); count] };
        for (index, draft) in drafts.iter().enumerate() {
            directory.nodes[draft.stage].push(index);
            for (key, value) in &draft.coords {
                if let Some(text) = value.scalar_text() {
                    let of_key = directory.coordinates[draft.stage].entry(key.clone()).or_default();
                    of_key.entry(text).or_default().push(index);
                }
            }
        }
        directory
    }

    fn stage(&self, name: &str) -> Option<usize> {
        self.stages.get(name).copied()
    }

    fn nodes(&self, stage: usize) -> &[usize] {
        &self.nodes[stage]
    }

    /// The nodes of a stage, in order, that have every one of these coordinates.
    fn matching(&self, stage: usize, fixed: &[(&str, &str)]) -> Vec<usize> {
        let of = |(key, value): &(&str, &str)| {
            self.coordinates[stage].get(*key).and_then(|of_key| of_key.get(*value)).map_or(&[][..], Vec::as_slice)
        };
        let mut sets: Vec<&[usize]> = fixed.iter().map(of).collect();
        sets.sort_by_key(|set| set.len());
        match sets.split_first() {
            None => self.nodes[stage].clone(),
            Some((smallest, others)) => {
                let everywhere = |node: &&usize| others.iter().all(|set| set.binary_search(node).is_ok());
                smallest.iter().filter(everywhere).copied().collect()
            }
        }
    }
}

impl Lookup<'_> {
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
        let stage = self.directory.stage(selector.stage)?;
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
        let Some(stage) = self.directory.stage(name) else {
            self.unknown_stage(name, at, problems);
            return None;
        };
        self.check_coordinates(selector, stage, at, problems)?;
        let matching = self.directory.matching(stage, &selector.fixed);
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
        stage: usize,
        at: Span,
        problems: &mut Problems<'_>,
    ) -> Option<()> {
        let nodes = self.directory.nodes(stage);
        let coords = &self.drafts[*nodes.first()?].coords;
        for (key, value) in &selector.fixed {
            if !coords.iter().any(|(known, _)| known == key) {
                let message = format!("the matrix of stage `{}` has no `{key}`", selector.stage);
                let known = coords.iter().map(|(known, _)| known.as_str());
                problems.error_in(at, key, "unknown-matrix-key", message).suggest(key, known);
                return None;
            }
            if self.directory.matching(stage, &[(key, value)]).is_empty() {
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
}

fn value_of(draft: &Draft, key: &str) -> Option<String> {
    draft.coords.iter().find(|(known, _)| known == key).and_then(|(_, value)| value.scalar_text())
}
