//! The steps of a node that touch files: keying, preparing, committing. They run on blocking threads.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use mpcc_cache::{Artifact, Digest, Entry, Lease, Store, StoreError, Watch};

use super::seal::Stand;
use crate::fingerprint::{Fingerprinter, KeyError, Outputs, Resolved};
use crate::job::{AttemptId, Job, JobOutput};
use crate::journal::log_file;
use crate::plan::{Node, NodeId, Plan};
use crate::resources::Resources;

/// The key under which a node's latest recipe is kept: pipeline file and node name.
pub(crate) fn node_key(plan: &Plan, node: &Node) -> String {
    format!("{}\n{}", plan.file.display(), node.name)
}

/// The key under which the recipe before its latest one is kept.
pub(crate) fn previous_key(plan: &Plan, node: &Node) -> String {
    format!("{}\nprevious", node_key(plan, node))
}

/// What all steps share.
pub(super) struct Shared {
    pub(super) plan: Arc<Plan>,
    pub(super) store: Store,
    pub(super) fingerprinter: Fingerprinter,
    pub(super) forced: BTreeSet<NodeId>,
    /// The nodes that stand on the seal of an earlier run.
    pub(super) stand: Stand,
    /// The run's folder below the store.
    pub(super) folder: PathBuf,
    /// Outputs of the nodes that are done.
    pub(super) outputs: Mutex<Outputs>,
    /// Folders of attempts that are over.
    pub(super) folders: Mutex<Vec<PathBuf>>,
    /// How often one was used again.
    pub(super) reused: AtomicU64,
}

/// A node's recipe.
pub(super) struct Key {
    pub(super) recipe: Digest,
    /// What it was made from; none of a node that stands.
    pub(super) resolved: Option<Resolved>,
}

impl Key {
    fn resolved(&self) -> &Resolved {
        self.resolved.as_ref().expect("a node that stands is not executed")
    }
}

/// Outputs that the store has, and the copies that were put into the workspace.
pub(super) struct Found {
    pub(super) outputs: BTreeMap<String, Artifact>,
    pub(super) published: Vec<(String, PathBuf)>,
}

/// The answer of [`Shared::prepare`].
pub(super) enum Prepared {
    /// Another run holds the lease.
    Busy,
    /// Another run has published meanwhile.
    Found(Found),
    /// The attempt may start.
    Ready { job: Box<Job>, lease: Lease },
}

/// Why outputs were not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommitError {
    /// A declared output was not written.
    #[error("it ended well but did not write its output `{port}` ({what} at {})", path.display())]
    NoOutput { port: String, what: &'static str, path: PathBuf },
    /// An output that the store refuses.
    #[error("its output `{port}` cannot be kept: {source}")]
    Refused { port: String, source: StoreError },
    /// An input changed.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl CommitError {
    pub(super) fn is_machine(&self) -> bool {
        match self {
            Self::NoOutput { .. } => false,
            Self::Refused { source, .. } => matches!(source, StoreError::Io { .. }),
            Self::Key(error) => error.is_machine(),
        }
    }
}

impl From<StoreError> for CommitError {
    fn from(error: StoreError) -> Self {
        Self::Key(error.into())
    }
}

impl Shared {
    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.plan.nodes[id.0]
    }

    /// Whether an entry of this node may be used.
    fn may_reuse(&self, id: NodeId) -> bool {
        self.node(id).cache && !self.forced.contains(&id)
    }

    /// The node's recipe, and what the store has for it.
    pub(super) fn key(&self, id: NodeId) -> Result<(Key, Option<Found>), KeyError> {
        if let Some(standing) = self.stand.get(id) {
            let outputs = standing.outputs.clone();
            self.outputs.lock().expect("no panic while it is held").insert(id, outputs.clone());
            let key = Key { recipe: standing.recipe, resolved: None };
            return Ok((key, Some(Found { outputs, published: Vec::new() })));
        }
        let above: Outputs = {
            let outputs = self.outputs.lock().expect("no panic while it is held");
            let known = |parent: NodeId| Some((parent, outputs.get(&parent)?.clone()));
            self.node(id).data_parents().into_iter().filter_map(known).collect()
        };
        let resolved = self.fingerprinter.resolve(id, &above)?;
        let key = Key { recipe: resolved.recipe.digest(), resolved: Some(resolved) };
        // A younger entry of another run is found once the lease is held.
        let found = match self.may_reuse(id) {
            true if self.store.has_remote() => self.find(id, &key.recipe)?,
            true => self.take(id, self.store.lookup_recent(&key.recipe)?)?,
            false => None,
        };
        if found.is_some() {
            self.note_recipe(id, &key.recipe)?;
        }
        Ok((key, found))
    }

    /// Notes the node's latest recipe, and which one it replaces.
    fn note_recipe(&self, id: NodeId, recipe: &Digest) -> Result<(), StoreError> {
        let (node, key) = (self.node(id), node_key(&self.plan, self.node(id)));
        let latest = self.store.latest_recipe(&key)?;
        if let Some(replaced) = latest.filter(|latest| latest != recipe) {
            self.store.set_latest_recipe(&previous_key(&self.plan, node), &replaced)?;
        }
        self.store.set_latest_recipe(&key, recipe)
    }

    /// What the store, or the remote behind it, has for `recipe`; published copies are restored.
    fn find(&self, id: NodeId, recipe: &Digest) -> Result<Option<Found>, KeyError> {
        self.take(id, self.store.lookup_through(recipe)?)
    }

    fn take(&self, id: NodeId, entry: Option<Entry>) -> Result<Option<Found>, KeyError> {
        let Some(entry) = entry else { return Ok(None) };
        let outputs: BTreeMap<_, _> = entry.outputs.into_iter().collect();
        if self.node(id).outputs.iter().any(|output| !outputs.contains_key(&output.port.name)) {
            return Ok(None);
        }
        let published = self.deliver(id, &outputs, &BTreeMap::new())?;
        Ok(Some(Found { outputs, published }))
    }

    /// Makes the outputs known to the nodes below, and puts published copies where they are missing or changed. `spares` are
    /// files of the same content that may become the copies.
    fn deliver(
        &self,
        id: NodeId,
        outputs: &BTreeMap<String, Artifact>,
        spares: &BTreeMap<String, PathBuf>,
    ) -> Result<Vec<(String, PathBuf)>, StoreError> {
        let mut published = Vec::new();
        for output in &self.node(id).outputs {
            let (Some(dest), Some(artifact)) = (&output.publish, outputs.get(&output.port.name)) else { continue };
            if !self.store.is_published(artifact, dest) {
                match spares.get(&output.port.name) {
                    Some(spare) => self.store.materialise_from(artifact, dest, spare)?,
                    None => self.store.materialise(artifact, dest)?,
                }
                published.push((output.port.name.clone(), dest.clone()));
            }
        }
        self.outputs.lock().expect("no panic while it is held").insert(id, outputs.clone());
        Ok(published)
    }

    /// What a node that is up to date stands on; none when that cannot be vouched for.
    pub(super) fn watches(&self, id: NodeId, key: &Key) -> Option<(BTreeMap<String, Artifact>, Vec<Watch>)> {
        let node = self.node(id);
        let outputs = self.outputs.lock().expect("no panic while it is held").get(&id)?.clone();
        let mut watches = self.fingerprinter.watches(key.resolved.as_ref()?)?;
        for output in node.outputs.iter().filter(|_| node.cache) {
            let artifact = outputs.get(&output.port.name)?;
            watches.extend(self.store.watch_artifact(artifact)?);
            if let Some(dest) = &output.publish {
                watches.extend(self.store.watch_published(artifact, dest)?);
            }
        }
        node.cache.then_some((outputs, watches))
    }

    /// Takes the lease and makes the job of an attempt that holds `cpus` and `devices`, for which `request` is reserved.
    pub(super) fn prepare(
        &self,
        id: NodeId,
        key: &Key,
        attempt: AttemptId,
        ((cpus, devices), request): ((u32, Vec<usize>), Resources),
    ) -> Result<Prepared, KeyError> {
        let Some(lease) = self.store.lease(&key.recipe)? else { return Ok(Prepared::Busy) };
        if self.may_reuse(id)
            && let Some(found) = self.find(id, &key.recipe)?
        {
            return Ok(Prepared::Found(found));
        }
        let node = self.node(id);
        self.store.put_recipe(&key.resolved().recipe)?;
        self.note_recipe(id, &key.recipe)?;
        // A cluster gives what the node asks for, and numbers its devices from 0; its outputs come as a folder of their own.
        let (folder, cpus, devices) = match node.is_local() {
            true => (self.folder()?, cpus, devices),
            false => {
                let devices = (0..node.resources.gpus as usize).collect();
                (self.store.scratch(&node.name)?, node.resources.cpus, devices)
            }
        };
        let job = Job {
            attempt,
            threads: cpus as usize,
            devices,
            partial: self.store.partial_path(&key.recipe),
            log: log_file(&self.folder, &node.name),
            resources: request,
            ..job_of(node, key.resolved(), &self.fingerprinter, &self.store, folder)?
        };
        Ok(Prepared::Ready { job: Box::new(job), lease })
    }

    /// A folder for an attempt: one that an earlier attempt left empty, or a new one. File systems make new files slowly while
    /// they remember many removed ones. It always gets a new name, so that a process which outlived its stage finds nothing
    /// where it writes.
    fn folder(&self) -> Result<PathBuf, StoreError> {
        let used = self.folders.lock().expect("no panic while it is held").pop();
        if let Some(folder) = used {
            let number = self.reused.fetch_add(1, Ordering::Relaxed);
            let renamed = folder.with_file_name(format!("again{number}-attempt"));
            if std::fs::rename(&folder, &renamed).is_ok() {
                return Ok(renamed);
            }
        }
        self.store.scratch("attempt")
    }

    /// Takes an attempt's folder back, empty; what lies in it is removed.
    pub(super) fn take_back(&self, folder: PathBuf) {
        let (outputs, log) = (Job::outputs_in(&folder), Job::spare_log(&folder));
        let holds = |path: &Path, allowed: &[&Path]| {
            std::fs::read_dir(path).is_ok_and(|mut entries| {
                entries.all(|entry| entry.is_ok_and(|e| allowed.contains(&e.path().as_path())))
            })
        };
        // A link in its place leads elsewhere, and a stage may have changed its permissions.
        let plain = outputs.symlink_metadata().is_ok_and(|meta| meta.is_dir() && meta.mode() & 0o700 == 0o700);
        if plain && holds(&folder, &[&outputs, &log]) && holds(&outputs, &[]) {
            self.folders.lock().expect("no panic while it is held").push(folder);
        } else {
            // What cannot be removed now goes when the store is closed.
            let _ = std::fs::remove_dir_all(folder);
        }
    }

    /// Takes the outputs of an attempt that ended well.
    pub(super) fn commit(&self, id: NodeId, key: &Key, folder: &Path) -> Result<Found, CommitError> {
        self.fingerprinter.recheck(key.resolved())?;
        let node = self.node(id);
        let written = job_outputs(node, folder);
        for (port, output) in &written {
            check_output(port, output)?;
        }
        let (mut outputs, mut spares) = (Vec::new(), BTreeMap::new());
        for output in &node.outputs {
            let port = &output.port.name;
            let JobOutput { path, tree } = &written[port];
            let taken = match tree {
                true => self.store.put_tree(path).map(|artifact| (artifact, false)),
                false => self.store.take_file(path),
            };
            let (artifact, left) = taken.map_err(|source| CommitError::Refused { port: port.clone(), source })?;
            if left {
                spares.insert(port.clone(), path.clone());
            }
            outputs.push((port.clone(), artifact));
        }
        // An entry of a node that runs every time would only be in the way.
        if node.cache {
            self.store.publish(&key.resolved().recipe, outputs.clone())?;
        }
        self.store.drop_partial(&key.recipe)?;
        let outputs = outputs.into_iter().collect();
        let published = self.deliver(id, &outputs, &spares)?;
        // What was not published goes with the attempt's folder at the latest.
        spares.values().for_each(|spare| drop(std::fs::remove_file(spare)));
        Ok(Found { outputs, published })
    }
}

/// Where an attempt in `folder` writes each output of `node`.
pub(crate) fn job_outputs(node: &Node, folder: &Path) -> BTreeMap<String, JobOutput> {
    let place = |name: &str, tree| JobOutput { path: Job::output_in(folder, name), tree };
    let ports = node.outputs.iter().map(|output| &output.port);
    ports.map(|port| (port.name.clone(), place(&port.name, port.ty.is_tree()))).collect()
}

/// What the plan and the recipe of `node` say of its job, done in `folder`, checkpoints and log included. What is granted to it
/// is the caller's to say.
pub(crate) fn job_of(
    node: &Node,
    resolved: &Resolved,
    fingerprinter: &Fingerprinter,
    store: &Store,
    folder: PathBuf,
) -> Result<Job, KeyError> {
    let numerics = resolved.recipe.get("numerics").and_then(|class| class.as_str());
    Ok(Job {
        attempt: AttemptId(0),
        node: node.name.clone(),
        matrix: node.matrix.clone(),
        action: node.action.clone(),
        seed: node.seed,
        threads: node.resources.cpus as usize,
        devices: Vec::new(),
        inputs: fingerprinter.bind(resolved)?,
        outputs: job_outputs(node, &folder),
        partial: folder.join("partial"),
        store: store.root().to_owned(),
        log: folder.join("log"),
        timeout_s: node.timeout_s,
        secrets: node.secrets.clone(),
        executor: node.executor.clone(),
        resources: node.resources.clone(),
        numerics: numerics.map(str::to_owned),
        fresh: false,
        folder,
    })
}

/// Whether a declared output was written: a file, or a directory with something in it.
fn check_output(port: &str, output: &JobOutput) -> Result<(), CommitError> {
    let JobOutput { path, tree } = output;
    let written =
        if *tree { std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) } else { path.is_file() };
    let what = if *tree { "a directory with files" } else { "a file" };
    if written { Ok(()) } else { Err(CommitError::NoOutput { port: port.to_owned(), what, path: path.clone() }) }
}
