//! Compiling: from a pipeline file to a [`Plan`].
//!
//! 1. read: text -> YAML with places -> profile and `--set` -> shape (`spec`)
//! 2. expand: parameters, contracts of stages, nodes of matrices
//! 3. resolve: models, then each node's inputs, parameters, command, common fields
//! 4. order: cycles, then a topological order; only here do nodes get their final ids
//!
//! Every step reports all it finds and leaves out what is broken, so one run shows every problem; a plan is built only
//! when there was none.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::common::{Fields, check_possible, over};
use super::contract::{Contract, Doing, contracts, custom_kinds};
use super::expand::{Draft, drafts};
use mpcc_cache::Watch;

use super::external::Outside;
use super::models::resolve_models;
use super::pick::Directory;
use super::sources::{Lookup, coordinates};
use super::{
    Action, LOCAL, Missing, Node, NodeId, Plan, PlannedInput, PlannedOutput, Source, commands, order, params, selector,
};
use crate::diagnostic::{Diagnostic, Diagnostics, Severity};
use crate::interpolate::{Scope, resolve_params};
use crate::registry::Registry;
use crate::resources::Resources;
use crate::spec::load::load;
use crate::spec::pipeline::{Pipeline, read};
use crate::spec::source::{Problems, SourceText, Span};
use crate::spec::yaml::{Data, Entry, Yaml};

/// What a pipeline is compiled for. Everything the machine would answer is passed in, so the same options give the same
/// plan anywhere.
#[derive(Clone, Debug, Default)]
pub struct CompileOptions {
    /// The profile; the first one when not given.
    pub profile: Option<String>,
    /// `--set`: keys of `params` (dots go into maps) and YAML values, applied after the profile.
    pub sets: Vec<(String, String)>,
    /// Names of environment variables that are set.
    pub env_present: BTreeSet<String>,
    /// Memory of each GPU in bytes; `None` when it is not known which there are.
    pub gpus: Option<Vec<u64>>,
    /// CPU cores of this host; 0 when not known.
    pub cpus: u32,
    /// Main memory of this host in bytes; 0 when not known.
    pub memory: u64,
    /// The Hugging Face cache folder (`.../hub`).
    pub hub_cache: Option<PathBuf>,
    /// The executor of stages that state none; this host's when not given.
    pub executor: Option<String>,
}

/// Compiles the pipeline in `file`. Either a plan, or every problem at once.
pub fn compile(file: &Path, registry: &Registry, options: &CompileOptions) -> Result<Plan, Diagnostics> {
    compile_watched(file, registry, options).map(|(plan, _)| plan)
}

/// [`compile`], and everything outside that the plan depends on as it was then.
pub(super) fn compile_watched(
    file: &Path,
    registry: &Registry,
    options: &CompileOptions,
) -> Result<(Plan, Vec<Watch>), Diagnostics> {
    let broken = |error: std::io::Error| Diagnostics::new(vec![unreadable(file, &error)]);
    let whole = std::path::absolute(file).map_err(broken)?;
    let outside = Outside::around(&whole);
    let bytes = outside.read_bytes(&whole).map_err(broken)?;
    let plan = compile_around(file, &whole, bytes, &outside, registry, options)?;
    Ok((plan, outside.into_seen()))
}

/// Compiles `bytes` as if they were in `file`, which is not read: its folder is what relative paths are relative to.
pub fn compile_bytes(
    file: &Path,
    bytes: Vec<u8>,
    registry: &Registry,
    options: &CompileOptions,
) -> Result<Plan, Diagnostics> {
    let whole = std::path::absolute(file).map_err(|error| Diagnostics::new(vec![unreadable(file, &error)]))?;
    compile_around(file, &whole, bytes, &Outside::around(&whole), registry, options)
}

fn compile_around(
    file: &Path,
    whole: &Path,
    bytes: Vec<u8>,
    outside: &Outside,
    registry: &Registry,
    options: &CompileOptions,
) -> Result<Plan, Diagnostics> {
    let source = SourceText::decode(file, bytes).map_err(|problem| Diagnostics::new(vec![*problem]))?;
    let mut problems = Problems::new(&source);
    let plan = build(whole, &source, outside, registry, options, &mut problems);
    let (errors, warnings) = Diagnostics::new(problems.into_found()).split();
    match plan {
        Some(plan) if errors.is_empty() => Ok(Plan { warnings, ..plan }),
        _ => Err(Diagnostics::new([errors, warnings].concat())),
    }
}

fn unreadable(file: &Path, error: &std::io::Error) -> Diagnostic {
    Diagnostic {
        code: "unreadable",
        severity: Severity::Error,
        message: format!("the pipeline file cannot be read: {error}"),
        file: file.to_owned(),
        line: 0,
        column: 0,
        length: 0,
        source: String::new(),
        help: None,
    }
}

fn build(
    file: &Path,
    source: &SourceText,
    outside: &Outside,
    registry: &Registry,
    options: &CompileOptions,
    problems: &mut Problems<'_>,
) -> Option<Plan> {
    let root = load(source, problems)?;
    let pipeline = read(root, options.profile.as_deref(), &options.sets, problems)?;
    let params = resolve_params(&pipeline.params, problems);
    let kinds = custom_kinds(&pipeline.kinds, registry, problems);
    let contracts = contracts(&pipeline, registry, &kinds, problems);
    let drafts = drafts(&pipeline, &params, problems);
    let mut lookup = Lookup {
        pipeline: &pipeline,
        outside,
        params: &params,
        contracts: &contracts,
        drafts: &drafts,
        directory: Directory::new(&pipeline, &drafts),
        models: BTreeMap::new(),
    };
    resolve_models(&mut lookup, options, problems);
    let mut builder =
        Builder { lookup: &lookup, options, missing: Vec::new(), published: BTreeMap::new(), clashes: BTreeSet::new() };
    let live = drafts.iter().enumerate().filter(|(_, draft)| draft.gone.is_none());
    let nodes: BTreeMap<usize, Node> =
        live.filter_map(|(index, draft)| Some((index, builder.node(draft, problems)?))).collect();
    let missing = builder.missing;
    check_cycles(&nodes, &pipeline, &drafts, problems);
    if problems.any_error() {
        return None;
    }
    Some(assemble(file, &pipeline, nodes, missing))
}

/// Resolves nodes one by one.
struct Builder<'a> {
    lookup: &'a Lookup<'a>,
    options: &'a CompileOptions,
    missing: Vec<Missing>,
    published: BTreeMap<PathBuf, String>,
    clashes: BTreeSet<(PathBuf, Span)>,
}

impl Builder<'_> {
    fn node(&mut self, draft: &Draft, problems: &mut Problems<'_>) -> Option<Node> {
        let stage = &self.lookup.pipeline.stages[draft.stage];
        let contract = self.lookup.contracts[draft.stage].as_ref();
        let scope = Scope::node(self.lookup.params, &draft.coords);
        let fields = Fields { written: &stage.fields, scope };
        let inputs = self.lookup.inputs(draft, &mut self.missing, problems);
        let done = contract.and_then(|contract| self.action(draft, contract, &inputs, problems));
        let (action, base) = done.unzip();
        let resources = fields.resources(base.unwrap_or_default(), problems);
        let executor = fields.executor(self.options, problems);
        if executor == LOCAL {
            let at = stage.fields.entry("resources").map_or(stage.at, |entry| entry.key_at);
            check_possible(&stage.name, &draft.name, &resources, at, self.options, &mut self.missing, problems);
        }
        let node = Node {
            name: draft.name.clone(),
            stage: stage.name.clone(),
            line: stage.at.line,
            matrix: coordinates(draft),
            description: fields.description(problems),
            inputs,
            outputs: self.outputs(draft, contract, &fields, problems),
            needs: self.needs(draft, &fields, problems),
            resources,
            seed: fields.seed(problems),
            cache: fields.cache(problems),
            retries: fields.retries(problems),
            timeout_s: self.timeout(&fields, contract, problems),
            executor,
            secrets: fields.secrets(&draft.name, self.options, &mut self.missing, problems),
            action: action?,
        };
        Some(node)
    }

    /// A stage's own time limit, else its custom kind's.
    fn timeout(&self, fields: &Fields<'_>, contract: Option<&Contract<'_>>, problems: &mut Problems<'_>) -> u64 {
        match contract.map(|contract| contract.doing) {
            Some(Doing::Custom(kind)) if fields.written.get("timeout").is_none() => {
                Fields { written: &kind.fields, scope: Scope::params(self.lookup.params) }.timeout(problems)
            }
            _ => fields.timeout(problems),
        }
    }

    /// What the node does, and the resources its kind asks for.
    fn action(
        &mut self,
        draft: &Draft,
        contract: &Contract<'_>,
        inputs: &[PlannedInput],
        problems: &mut Problems<'_>,
    ) -> Option<(Action, Resources)> {
        let stage = &self.lookup.pipeline.stages[draft.stage];
        let scope = Scope::node(self.lookup.params, &draft.coords);
        let place = params::Place { outside: self.lookup.outside, node: &draft.name, at: stage.at };
        match contract.doing {
            Doing::Builtin(kind) => {
                let with = self.with(&stage.fields, scope, problems)?;
                let bound = params::builtin(kind, &with, place, &mut self.missing, problems)?;
                self.lookup.check_models(draft, bound.as_ref(), inputs, problems);
                let action = Action::Builtin {
                    kind: kind.name.to_owned(),
                    version: kind.version,
                    params: bound.params(),
                    numerics: kind.signature.numerics,
                    seeded: kind.signature.seeded,
                };
                Some((action, bound.resources()))
            }
            Doing::Custom(kind) => {
                let with = self.with(&stage.fields, scope, problems)?;
                let (values, files) = params::custom(kind, &with, place, &mut self.missing, problems)?;
                let making = commands::Making {
                    kind: Some(&kind.name),
                    fields: &kind.fields,
                    scope: Scope::params(&values),
                    inputs: &kind.inputs,
                    outputs: &kind.outputs,
                    params: values.to_json(),
                    param_files: files,
                    outside: self.lookup.outside,
                    node: &draft.name,
                };
                let base = kind.fields.get("resources").map(|written| over(Resources::default(), written, problems));
                Some((Action::Command(making.command(&mut self.missing, problems)?), base.unwrap_or_default()))
            }
            Doing::Command => {
                let making = commands::Making {
                    kind: None,
                    fields: &stage.fields,
                    scope,
                    inputs: &contract.inputs,
                    outputs: &contract.outputs,
                    params: serde_json::json!({}),
                    param_files: Vec::new(),
                    outside: self.lookup.outside,
                    node: &draft.name,
                };
                Some((Action::Command(making.command(&mut self.missing, problems)?), Resources::default()))
            }
        }
    }

    /// The entries of `with`, resolved; `None` when one could not be, which is reported.
    fn with(&self, fields: &Yaml, scope: Scope<'_>, problems: &mut Problems<'_>) -> Option<Vec<Entry>> {
        let written = fields.get("with").map(Yaml::entries).unwrap_or_default();
        let resolved: Vec<Option<Entry>> = written
            .iter()
            .map(|entry| Some(Entry { value: scope.resolve(&entry.value, problems)?, ..entry.clone() }))
            .collect();
        resolved.into_iter().collect()
    }

    fn outputs(
        &mut self,
        draft: &Draft,
        contract: Option<&Contract<'_>>,
        fields: &Fields<'_>,
        problems: &mut Problems<'_>,
    ) -> Vec<PlannedOutput> {
        let Some(contract) = contract else { return Vec::new() };
        let declared = match contract.doing {
            Doing::Builtin(_) => None,
            Doing::Custom(kind) => kind.fields.get("outputs"),
            Doing::Command => fields.written.get("outputs"),
        };
        let mut publish = fields.publish(&contract.outputs, declared, self.lookup.outside.folder(), problems);
        for (path, at) in publish.values() {
            let other = self.published.insert(path.clone(), draft.name.clone());
            if let Some(other) = other.filter(|_| self.clashes.insert((path.clone(), *at))) {
                let message = format!("`{other}` and `{}` would both publish {}", draft.name, path.display());
                problems.error(*at, "publish", message).help("put `${matrix.KEY}` into the path");
            }
        }
        let outputs = contract.outputs.iter();
        outputs
            .map(|port| PlannedOutput { port: port.clone(), publish: publish.remove(&port.name).map(|(path, _)| path) })
            .collect()
    }

    fn needs(&self, draft: &Draft, fields: &Fields<'_>, problems: &mut Problems<'_>) -> Vec<NodeId> {
        let Some(written) = fields.written.get("needs") else { return Vec::new() };
        let Some(resolved) = Scope::node(self.lookup.params, &draft.coords).resolve(written, problems) else {
            return Vec::new();
        };
        let items = match resolved.data {
            Data::List(items) => items,
            Data::Null => Vec::new(),
            _ => vec![resolved],
        };
        let found: BTreeSet<usize> = items.iter().flat_map(|item| self.need(item, problems)).collect();
        found.into_iter().map(NodeId).collect()
    }

    fn need(&self, item: &Yaml, problems: &mut Problems<'_>) -> Vec<usize> {
        let Some(text) = item.text() else {
            problems.error(item.at, "type", format!("`needs` names stages, this is {}", item.what()));
            return Vec::new();
        };
        match selector::parse(text) {
            Ok(selector) if selector.port.is_none() => {
                self.lookup.select(&selector, item.at, problems).unwrap_or_default()
            }
            Ok(_) => {
                let message = format!("`{text}` is a port; order needs a stage or a node");
                problems.error(item.at, "source", message).help("data goes under `inputs`");
                Vec::new()
            }
            Err(message) => {
                problems.error(item.at, "source", message);
                Vec::new()
            }
        }
    }
}

fn edges(nodes: &BTreeMap<usize, Node>) -> BTreeMap<usize, BTreeSet<usize>> {
    let needs = |node: &Node| {
        let data = node.inputs.iter().flat_map(|input| &input.sources).filter_map(Source::node);
        data.chain(node.needs.iter().copied()).map(|id| id.0).filter(|id| nodes.contains_key(id)).collect()
    };
    nodes.iter().map(|(index, node)| (*index, needs(node))).collect()
}

fn check_cycles(nodes: &BTreeMap<usize, Node>, pipeline: &Pipeline, drafts: &[Draft], problems: &mut Problems<'_>) {
    for cycle in order::cycles(&edges(nodes)) {
        let names: Vec<&str> = cycle.iter().map(|index| drafts[*index].name.as_str()).collect();
        let stage = &pipeline.stages[drafts[cycle[0]].stage];
        let at: Span = stage.at;
        problems
            .error(at, "cycle", format!("these nodes wait for each other: {}", names.join(" -> ")))
            .help("take one of these inputs or `needs` away");
    }
}

/// Gives every node its final id and place.
fn assemble(file: &Path, pipeline: &Pipeline, mut drafts: BTreeMap<usize, Node>, missing: Vec<Missing>) -> Plan {
    let sorted = order::sorted(&edges(&drafts));
    let ids: BTreeMap<usize, NodeId> = sorted.iter().enumerate().map(|(id, draft)| (*draft, NodeId(id))).collect();
    let mut nodes: Vec<Node> = sorted.iter().filter_map(|draft| drafts.remove(draft)).collect();
    for node in &mut nodes {
        node.needs.iter_mut().for_each(|need| *need = ids[&need.0]);
        node.needs.sort();
        let sources = node.inputs.iter_mut().flat_map(|input: &mut PlannedInput| &mut input.sources);
        sources.for_each(|source| renumber(source, &ids));
    }
    let mut seen = BTreeSet::new();
    let missing = missing.into_iter().filter(|m| seen.insert((m.needed_by.clone(), m.message.clone()))).collect();
    Plan {
        name: pipeline.name.clone(),
        file: file.to_owned(),
        profile: pipeline.profile.clone(),
        nodes,
        missing,
        warnings: Vec::new(),
    }
}

fn renumber(source: &mut Source, ids: &BTreeMap<usize, NodeId>) {
    match source {
        Source::Output { node, .. } => *node = ids[&node.0],
        Source::Model(model) => model.from.iter_mut().for_each(|from| renumber(from, ids)),
        Source::File { .. } | Source::Dir { .. } | Source::Glob { .. } => {}
    }
}
