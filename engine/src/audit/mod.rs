//! The audit: does a node make the same bytes each time? Its stage is executed several times over, and the outputs are
//! compared with each other and with what the store has.
//!
//! | what | how |
//! |---|---|
//! | inputs | what the store has of the nodes above; nothing above is executed, and what is not there is said |
//! | outputs | scratch folders that are gone afterwards; no entry, no recipe, no copy in the workspace is written |
//! | memo | each execution begins with an empty one in memory, so every answer is computed again, and none is kept |
//! | checkpoints | each execution begins without one |
//! | devices, threads, environment | as in a run on this host; one execution after the other |
//! | served models | are asked again, which costs what it costs |
//!
//! The first version, which the others are compared with, is that of the store, if it has one, else that of the first
//! execution. The first output that differs is looked into for the first place that does ([`difference`]).
//!
//! Equal bytes prove nothing about the next execution; different ones are a fact.

pub mod difference;
mod execute;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mpcc_cache::{Artifact, Digest, Store, StoreError};
use serde::Serialize;

use crate::executor::Executor;
use crate::fingerprint::{Fingerprinter, KeyError, Numerics, Outputs, Resolved};
use crate::job::Outcome;
use crate::plan::{Node, NodeId, Plan};
use crate::resources::{Inventory, Unfit};
use difference::{Difference, difference};
use execute::{Execution, Executions};

/// What to audit.
#[derive(Debug)]
pub struct AuditOptions {
    /// The nodes.
    pub nodes: BTreeSet<NodeId>,
    /// Executions of each.
    pub times: u32,
    /// What the host has.
    pub inventory: Inventory,
    /// The host's numerics classes.
    pub numerics: Numerics,
}

/// What came out for one node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Audited {
    /// The node.
    pub node: String,
    /// Its recipe's digest.
    pub recipe: Digest,
    /// Whether the store had outputs to compare with.
    pub stored: bool,
    /// Wall time of each execution in seconds.
    pub wall_s: Vec<f64>,
    /// How it went.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// How the audit of a node went.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "audit", rename_all = "snake_case")]
pub enum Verdict {
    /// Every version has the same bytes.
    Equal {
        /// The artifact of each port.
        outputs: BTreeMap<String, Artifact>,
    },
    /// Two versions differ.
    Differs {
        /// The output port.
        port: String,
        /// The versions: `the store`, `execution 1`.
        versions: [String; 2],
        /// Their digests.
        digests: [Digest; 2],
        /// The first place that differs.
        first: Box<Difference>,
    },
    /// An execution did not end well.
    Failed {
        /// Which, from 1.
        execution: u32,
        /// Why.
        message: String,
    },
}

/// Why there is no audit.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The store does not have what a node needs.
    #[error("`{node}` needs the outputs of `{needs}`, which are not up to date in the store: run it first")]
    NotRun {
        /// The node.
        node: String,
        /// The node above it.
        needs: String,
    },
    /// A recipe cannot be made, or an input changed.
    #[error("`{node}`: {source}")]
    Key {
        /// The node.
        node: String,
        /// Why.
        source: KeyError,
    },
    /// This host is too small.
    #[error("`{node}` {source}")]
    Unfit {
        /// The node.
        node: String,
        /// What it lacks.
        source: Unfit,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason given.
        source: std::io::Error,
    },
}

impl AuditError {
    fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    /// Whether the machine is to blame rather than the caller.
    pub fn is_machine(&self) -> bool {
        match self {
            Self::NotRun { .. } => false,
            Self::Key { source, .. } => source.is_machine(),
            Self::Unfit { .. } | Self::Store(_) | Self::Io { .. } => true,
        }
    }
}

/// Executes each node of `options` several times by `executor` and compares. `told` gets each result as it comes.
///
/// # Errors
/// A node cannot be audited here and now; see [`AuditError`]. Outputs that differ are no error.
pub async fn audit(
    plan: &Plan,
    store: &Store,
    options: &AuditOptions,
    executor: &dyn Executor,
    mut told: impl FnMut(&Audited),
) -> Result<Vec<Audited>, AuditError> {
    let fingerprinter = Fingerprinter::new(Arc::new(plan.clone()), store.clone(), options.numerics.clone());
    let ready = ready(plan, store, &fingerprinter, &options.nodes)?;
    let mut all = Vec::new();
    for (id, resolved, stored) in ready {
        let executions =
            Executions { plan, store, fingerprinter: &fingerprinter, options, executor, id, resolved: &resolved };
        let audited = audit_one(&executions, stored).await?;
        told(&audited);
        all.push(audited);
    }
    Ok(all)
}

/// Outputs of a node that the store has.
type Stored = BTreeMap<String, Artifact>;

/// The recipe of each node of `wanted` and what the store has for it. All are made before the first execution, so that a
/// node that cannot be audited is known at once.
fn ready(
    plan: &Plan,
    store: &Store,
    fingerprinter: &Fingerprinter,
    wanted: &BTreeSet<NodeId>,
) -> Result<Vec<(NodeId, Resolved, Option<Stored>)>, AuditError> {
    let mut outputs = Outputs::new();
    let mut ready = Vec::new();
    for id in plan.above(wanted.clone()) {
        let node = plan.node(id);
        let lacks = node.data_parents().into_iter().find(|parent| !outputs.contains_key(parent));
        match lacks {
            Some(parent) if wanted.contains(&id) => {
                return Err(AuditError::NotRun { node: node.name.clone(), needs: plan.node(parent).name.clone() });
            }
            // Whoever needs this one says so.
            Some(_) => continue,
            None => {}
        }
        let resolved = match fingerprinter.resolve(id, &outputs) {
            Ok(resolved) => resolved,
            Err(_) if !wanted.contains(&id) => continue,
            Err(source) => return Err(AuditError::Key { node: node.name.clone(), source }),
        };
        let stored = stored(store, node, &resolved)?;
        if let Some(stored) = &stored {
            outputs.insert(id, stored.clone());
        }
        if wanted.contains(&id) {
            ready.push((id, resolved, stored));
        }
    }
    Ok(ready)
}

fn stored(store: &Store, node: &Node, resolved: &Resolved) -> Result<Option<Stored>, StoreError> {
    let entry = store.lookup(&resolved.recipe.digest())?;
    let stored: Option<Stored> = entry.map(|entry| entry.outputs.into_iter().collect());
    Ok(stored.filter(|stored| node.outputs.iter().all(|output| stored.contains_key(&output.port.name))))
}

/// One version of a node's outputs.
struct Version {
    name: String,
    artifacts: Stored,
    paths: BTreeMap<String, PathBuf>,
    /// Removed with the version.
    folder: Option<PathBuf>,
}

impl Drop for Version {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            // What cannot be removed now goes when the store is closed.
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

async fn audit_one(executions: &Executions<'_>, stored: Option<Stored>) -> Result<Audited, AuditError> {
    let (store, node) = (executions.store, executions.plan.node(executions.id));
    let mut audited = Audited {
        node: node.name.clone(),
        recipe: executions.resolved.recipe.digest(),
        stored: stored.is_some(),
        wall_s: Vec::new(),
        verdict: Verdict::Equal { outputs: stored.clone().unwrap_or_default() },
    };
    let mut first = stored.map(|artifacts| of_store(store, artifacts)).transpose()?;
    for number in 1..=executions.options.times {
        let Execution { outcome, wall_s, outputs, folder } = executions.execute().await?;
        audited.wall_s.push(wall_s);
        if outcome != Outcome::Done {
            let _ = std::fs::remove_dir_all(folder);
            audited.verdict = Verdict::Failed { execution: number, message: outcome.describe() };
            return Ok(audited);
        }
        let artifacts = digests(store, &outputs)?;
        let name = format!("execution {number}");
        let version = Version { name, artifacts, paths: outputs, folder: Some(folder) };
        match &first {
            None => {
                audited.verdict = Verdict::Equal { outputs: version.artifacts.clone() };
                first = Some(version);
            }
            Some(first) => {
                if let Some(differs) = compare(node, first, &version)? {
                    audited.verdict = differs;
                    return Ok(audited);
                }
            }
        }
    }
    Ok(audited)
}

fn of_store(store: &Store, artifacts: Stored) -> Result<Version, AuditError> {
    let locate = |(port, artifact): (&String, &Artifact)| Ok((port.clone(), store.locate(artifact)?));
    let paths = artifacts.iter().map(locate).collect::<Result<_, StoreError>>()?;
    Ok(Version { name: "the store".to_owned(), artifacts, paths, folder: None })
}

fn digests(store: &Store, outputs: &BTreeMap<String, PathBuf>) -> Result<Stored, AuditError> {
    let digest = |(port, path): (&String, &PathBuf)| Ok((port.clone(), store.digest_path(path)?));
    outputs.iter().map(digest).collect()
}

/// The first port, in declaration order, in which two versions differ.
fn compare(node: &Node, first: &Version, second: &Version) -> Result<Option<Verdict>, AuditError> {
    for output in &node.outputs {
        let port = &output.port.name;
        let digests = [first, second].map(|version| version.artifacts[port].digest);
        if digests[0] == digests[1] {
            continue;
        }
        let paths = [first, second].map(|version| version.paths[port].as_path());
        let versions = [first, second].map(|version| version.name.clone());
        let first = Box::new(difference(paths)?);
        return Ok(Some(Verdict::Differs { port: port.clone(), versions, digests, first }));
    }
    Ok(None)
}
