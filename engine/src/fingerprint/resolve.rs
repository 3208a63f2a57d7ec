//! From a node of the plan to its recipe and to what its stage will see.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mpcc_cache::{Artifact, Recipe, Store, StoreError, Watch};
use serde_json::{Map, Value, json};

use super::external::{External, glob, look};
use super::model::{identity, label};
use crate::plan::{Action, Command, ModelSource, Node, NodeId, Plan, PlannedInput, Source};
use crate::resources::Inventory;
use crate::stage::{Bound, Coordinates, Input, ModelInput};

/// The outputs of the nodes that are done: port -> artifact.
pub type Outputs = BTreeMap<NodeId, BTreeMap<String, Artifact>>;

/// Why a node has no recipe.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file or directory from outside is not there.
    #[error("{} is not there", path.display())]
    Absent {
        /// The path.
        path: PathBuf,
    },
    /// No file matches a pattern.
    #[error("no file matches `{pattern}`")]
    NoMatch {
        /// The pattern.
        pattern: String,
    },
    /// A pattern cannot be read.
    #[error("`{pattern}` is no pattern: {message}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// Why.
        message: String,
    },
    /// A folder cannot be listed.
    #[error("{}: {source}", path.display())]
    Read {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A node above has no such output: its outputs are not known yet.
    #[error("output `{port}` of `{node}` is not known")]
    Unknown {
        /// The node above.
        node: String,
        /// The port.
        port: String,
    },
    /// An input changed while the node ran, so its outputs belong to no recipe.
    #[error("{} changed while the node ran; run again", path.display())]
    Changed {
        /// The input.
        path: PathBuf,
    },
    /// An object of the store that the node read is not what it was; it was moved to the store's quarantine.
    #[error("an input in the store ({}) was changed while the node ran; inputs are read-only, the damaged copy is in quarantine", artifact.digest.short())]
    Damaged {
        /// The input.
        artifact: Artifact,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl KeyError {
    /// Whether the machine is to blame rather than the pipeline or its data.
    pub fn is_machine(&self) -> bool {
        matches!(self, Self::Store(_) | Self::Read { .. })
    }
}

/// The numerics classes of this host, such as `cpu/f32/avx512` and `cuda/bf16/sm90`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numerics {
    /// Of nodes that hold no GPU.
    pub cpu: String,
    /// Of nodes that hold one.
    pub gpu: String,
}

impl Numerics {
    /// Those of `host`.
    pub fn of(host: &Inventory) -> Self {
        Self { cpu: host.numerics_class("f32", false), gpu: host.numerics_class("bf16", true) }
    }

    /// The one of a node that holds `devices` GPUs.
    pub fn class(&self, devices: usize) -> &str {
        if devices > 0 { &self.gpu } else { &self.cpu }
    }
}

/// A source with what it stands for.
#[derive(Clone, Debug)]
enum Fed {
    Artifact { node: String, matrix: Coordinates, artifact: Artifact, external: Option<PathBuf> },
    Model { source: Box<ModelSource>, weights: Option<(Artifact, Option<PathBuf>)>, identity: Value },
}

/// A node's recipe and the artifacts behind it.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// What decides its outputs.
    pub recipe: Recipe,
    node: NodeId,
    ports: Vec<(String, Vec<Fed>)>,
    code: Vec<(PathBuf, Artifact)>,
}

impl Resolved {
    /// Whether the path from outside is among its inputs.
    fn is_fed(&self, path: &Path) -> bool {
        self.ports.iter().flat_map(|(_, fed)| fed).any(|fed| match fed {
            Fed::Artifact { external, .. } => external.as_deref() == Some(path),
            Fed::Model { weights, .. } => weights.as_ref().and_then(|(_, path)| path.as_deref()) == Some(path),
        })
    }
}

/// Computes recipes for the nodes of one plan.
pub struct Fingerprinter {
    plan: Arc<Plan>,
    store: Store,
    numerics: Numerics,
    external: External,
}

impl Fingerprinter {
    /// For the nodes of `plan`, on a host of these numerics classes.
    pub fn new(plan: Arc<Plan>, store: Store, numerics: Numerics) -> Self {
        Self { plan, store, numerics, external: External::default() }
    }

    /// The recipe of `id`, given the outputs of the nodes above it. Reads files that the store has not seen; slow then.
    pub fn resolve(&self, id: NodeId, outputs: &Outputs) -> Result<Resolved, KeyError> {
        let node = &self.plan.nodes[id.0];
        let mut recipe = Recipe::new();
        let code = match &node.action {
            Action::Builtin { kind, version, params, numerics, seeded } => {
                recipe.push("kind", kind.as_str());
                recipe.push("version", *version);
                push_params(&mut recipe, params);
                if *seeded {
                    recipe.push("seed", node.seed);
                }
                if *numerics {
                    recipe.push("numerics", self.numerics(node));
                }
                Vec::new()
            }
            Action::Command(command) => self.push_command(&mut recipe, node, command)?,
        };
        let mut ports = Vec::new();
        for input in &node.inputs {
            let fed = self.port(input, outputs)?;
            recipe.push(format!("inputs.{}", input.port), port_value(input.list, &fed));
            ports.push((input.port.clone(), fed));
        }
        Ok(Resolved { recipe, node: id, ports, code })
    }

    fn numerics(&self, node: &Node) -> &str {
        self.numerics.class(node.resources.gpus as usize)
    }

    fn push_command(
        &self,
        recipe: &mut Recipe,
        node: &Node,
        command: &Command,
    ) -> Result<Vec<(PathBuf, Artifact)>, KeyError> {
        recipe.push("kind", command.kind.as_deref().unwrap_or("run"));
        recipe.push("command", json!({ "argv": command.argv, "shell": command.shell }));
        if let Some(port) = &command.each {
            recipe.push("each", port.as_str());
        }
        for output in &node.outputs {
            recipe.push(format!("outputs.{}", output.port.name), output.port.ty.to_string());
        }
        push_params(recipe, &command.params);
        for (name, value) in &command.env {
            recipe.push(format!("env.{name}"), value.as_str());
        }
        let mut code = Vec::new();
        for path in &command.code {
            let path = command.cwd.join(path);
            let artifact = self.external.artifact(&self.store, &path)?;
            let name = path.strip_prefix(&command.cwd).unwrap_or(&path).display();
            recipe.push(format!("code.{name}"), label(&artifact));
            code.push((path, artifact));
        }
        Ok(code)
    }

    fn port(&self, input: &PlannedInput, outputs: &Outputs) -> Result<Vec<Fed>, KeyError> {
        let mut fed = Vec::new();
        for source in &input.sources {
            self.feed(source, outputs, &mut fed)?;
        }
        Ok(fed)
    }

    fn feed(&self, source: &Source, outputs: &Outputs, fed: &mut Vec<Fed>) -> Result<(), KeyError> {
        let external = |path: &Path, matrix| {
            let artifact = self.external.artifact(&self.store, path)?;
            let node = path.display().to_string();
            Ok::<_, KeyError>(Fed::Artifact { node, matrix, artifact, external: Some(path.to_owned()) })
        };
        match source {
            Source::Output { node, port } => {
                let artifact = self.output(*node, port, outputs)?;
                let Node { name, matrix, .. } = &self.plan.nodes[node.0];
                fed.push(Fed::Artifact { node: name.clone(), matrix: matrix.clone(), artifact, external: None });
            }
            Source::File { path } | Source::Dir { path } => fed.push(external(path, Vec::new())?),
            Source::Glob { pattern } => {
                for found in glob(pattern, &mut |_| {})? {
                    fed.push(external(&found.path, vec![("file".to_owned(), Value::String(found.relative))])?);
                }
            }
            Source::Model(model) => fed.push(self.model(model, outputs)?),
        }
        Ok(())
    }

    fn output(&self, node: NodeId, port: &str, outputs: &Outputs) -> Result<Artifact, KeyError> {
        let unknown = || KeyError::Unknown { node: self.plan.nodes[node.0].name.clone(), port: port.to_owned() };
        outputs.get(&node).and_then(|ports| ports.get(port)).copied().ok_or_else(unknown)
    }

    fn model(&self, source: &ModelSource, outputs: &Outputs) -> Result<Fed, KeyError> {
        let weights = match &source.from {
            None => None,
            Some(Source::Output { node, port }) => Some((self.output(*node, port, outputs)?, None)),
            Some(Source::File { path } | Source::Dir { path }) => {
                Some((self.external.artifact(&self.store, path)?, Some(path.clone())))
            }
            Some(Source::Glob { pattern }) => {
                let path = glob(pattern, &mut |_| {})?.swap_remove(0).path;
                Some((self.external.artifact(&self.store, &path)?, Some(path)))
            }
            Some(Source::Model(inner)) => return self.model(inner, outputs),
        };
        let identity = identity(source, weights.as_ref().map(|(artifact, _)| artifact));
        Ok(Fed::Model { source: Box::new(source.clone()), weights, identity })
    }

    /// What the stage will see: every artifact with a path.
    pub fn bind(&self, resolved: &Resolved) -> Result<BTreeMap<String, Vec<Bound>>, KeyError> {
        let bind = |fed: &Fed| match fed {
            Fed::Artifact { node, matrix, artifact, external } => {
                let path = self.locate(artifact, external.as_deref())?;
                Ok(Bound::Artifact(Input { node: node.clone(), matrix: matrix.clone(), artifact: *artifact, path }))
            }
            Fed::Model { source, weights, identity } => {
                let dir = weights.as_ref().map(|(weights, path)| self.locate(weights, path.as_deref())).transpose()?;
                Ok(Bound::Model(model_input(source, dir, identity)))
            }
        };
        let bind_port = |(port, fed): &(String, Vec<Fed>)| {
            Ok((port.clone(), fed.iter().map(bind).collect::<Result<Vec<_>, KeyError>>()?))
        };
        resolved.ports.iter().map(bind_port).collect()
    }

    fn locate(&self, artifact: &Artifact, external: Option<&Path>) -> Result<PathBuf, KeyError> {
        match external {
            Some(path) => Ok(path.to_owned()),
            None => Ok(self.store.locate(artifact)?),
        }
    }

    /// Looks at every input and code file again after the node ran: each must still be what the recipe says.
    pub fn recheck(&self, resolved: &Resolved) -> Result<(), KeyError> {
        for fed in resolved.ports.iter().flat_map(|(_, fed)| fed) {
            match fed {
                Fed::Artifact { artifact, external, .. } => self.recheck_one(artifact, external.as_deref())?,
                Fed::Model { weights: Some((weights, path)), .. } => self.recheck_one(weights, path.as_deref())?,
                Fed::Model { weights: None, .. } => {}
            }
        }
        resolved.code.iter().try_for_each(|(path, artifact)| self.recheck_one(artifact, Some(path)))
    }

    /// Watches under which every input from outside and every code file is what it was; none when the store cannot vouch for
    /// one without reading it. Outputs of other nodes are not among them.
    pub(crate) fn watches(&self, resolved: &Resolved) -> Option<Vec<Watch>> {
        let mut watches = Vec::new();
        for fed in resolved.ports.iter().flat_map(|(_, fed)| fed) {
            let (artifact, path) = match fed {
                Fed::Artifact { artifact, external: Some(path), .. } => (artifact, path),
                Fed::Model { weights: Some((weights, Some(path))), .. } => (weights, path),
                _ => continue,
            };
            watches.extend(self.store.watch_path(path, artifact)?);
        }
        for (path, artifact) in &resolved.code {
            watches.extend(self.store.watch_path(path, artifact)?);
        }
        let sources = self.plan.nodes[resolved.node.0].inputs.iter().flat_map(|input| &input.sources);
        for (pattern, first_only) in sources.filter_map(pattern) {
            // Each folder's watch is from before it is listed, and what is listed must be what the recipe was made of.
            let found = glob(pattern, &mut |folder| watches.push(Watch::exact(folder))).ok()?;
            let count = if first_only { 1 } else { found.len() };
            if !found.iter().take(count).all(|found| resolved.is_fed(&found.path)) {
                return None;
            }
        }
        watches.iter().all(Watch::is_settled).then_some(watches)
    }

    fn recheck_one(&self, artifact: &Artifact, external: Option<&Path>) -> Result<(), KeyError> {
        if let Some(path) = external {
            let same = look(&self.store, path).is_ok_and(|now| now == *artifact);
            return if same { Ok(()) } else { Err(KeyError::Changed { path: path.to_owned() }) };
        }
        let whole = self.store.contains(artifact) && self.store.locate(artifact).is_ok();
        if whole { Ok(()) } else { Err(KeyError::Damaged { artifact: *artifact }) }
    }
}

/// The pattern of a source, if it is one or a model found by one; of a model only the first match counts.
fn pattern(source: &Source) -> Option<(&str, bool)> {
    match source {
        Source::Glob { pattern } => Some((pattern, false)),
        Source::Model(model) => Some((pattern(model.from.as_ref()?)?.0, true)),
        Source::Output { .. } | Source::File { .. } | Source::Dir { .. } => None,
    }
}

fn push_params(recipe: &mut Recipe, params: &Value) {
    match params {
        Value::Object(params) => {
            for (name, value) in params {
                recipe.push(format!("params.{name}"), value.clone());
            }
        }
        Value::Null => {}
        other => recipe.push("params", other.clone()),
    }
}

fn port_value(list: bool, fed: &[Fed]) -> Value {
    match fed {
        [one] if !list => one.value(),
        many => Value::Array(many.iter().map(|one| json!({ "from": one.coordinates(), "is": one.value() })).collect()),
    }
}

impl Fed {
    fn value(&self) -> Value {
        match self {
            Self::Artifact { artifact, .. } => Value::String(label(artifact)),
            Self::Model { identity, .. } => identity.clone(),
        }
    }

    fn coordinates(&self) -> Value {
        let matrix = match self {
            Self::Artifact { matrix, .. } => matrix,
            Self::Model { source, .. } => &source.matrix,
        };
        Value::Object(matrix.iter().cloned().collect::<Map<_, _>>())
    }
}

fn model_input(source: &ModelSource, dir: Option<PathBuf>, identity: &Value) -> ModelInput {
    ModelInput {
        name: source.name.clone(),
        matrix: source.matrix.clone(),
        provider: source.provider,
        dir,
        identity: identity.clone(),
        settings: source.settings.clone(),
    }
}
