//! Seals: a run that brought everything up to date leaves a note of all it looked at and all it found. While what a node
//! was made from, its objects and its published copies are what they were, the node *stands*: the next run takes its
//! outputs from the seal and neither reads, hashes nor looks anything up for it.
//!
//! | the next run | does |
//! |---|---|
//! | everything stands | one `stat` for each file that was looked at, and nothing else |
//! | some watched files changed | the nodes that they feed, and all below, are keyed as ever; the others stand |
//! | no seal, another plan, other numerics, a seal of another plan of this file in between | every node is keyed |
//! | another boot of the machine: a power cut may have left stamps without content | every node is keyed |
//!
//! A run that has to do anything takes the seal out of force first, so that one which fails, is stopped or dies leaves none.
//!
//! A node stands on the word of the stat cache and no other: an exact [watch](mpcc_cache::watch) for each external file,
//! each folder of an external directory or pattern, each code file, each object of its outputs, each published copy. A
//! node of which any of these changed a moment ago has no place in the seal; the next run keys it and then seals it.
//!
//! The file is derived and may be lost at any time. It lies beside the kept plan and names its content: it speaks of that
//! plan's nodes by number and of no other's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use mpcc_cache::{Artifact, ArtifactKind, Digest, Store, StoreError, Watch};

use crate::fingerprint::Numerics;
use crate::plan::kept::{self, PlanId, put_count, take_count};
use crate::plan::{NodeId, Plan};
use crate::port::PortType;

const HEAD: &[u8] = b"mpcc-seal 1\n";

/// What the seal says of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) recipe: Digest,
    pub(crate) outputs: BTreeMap<String, Artifact>,
    /// Places in the seal's list of watches.
    watches: Vec<u32>,
}

/// A seal as read.
#[derive(Debug)]
pub struct Seal {
    /// The journal of `base`; empty in a seal that is being written.
    journal: PathBuf,
    /// The plan that it speaks of.
    plan: Digest,
    /// The run whose journal tells of every node; empty when it was not a run of all nodes.
    base: String,
    pipeline: String,
    profile: Option<String>,
    /// The boot of the machine it was left in.
    boot: [u8; 16],
    numerics: Numerics,
    /// Whether the plan asks for GPUs, so that their numerics count.
    gpus: bool,
    /// Whether the plan makes tables.
    tables: bool,
    /// Nodes of the plan.
    total: usize,
    watches: Vec<Watch>,
    nodes: BTreeMap<NodeId, Standing>,
}

/// The file that names the seal in force for a pipeline file.
fn current(file: &Path) -> PathBuf {
    Path::new("kept").join(format!("{}.current", Digest::of(file.as_os_str().as_encoded_bytes()).short()))
}

impl Seal {
    /// The seal of the plan `id`, if the last complete run of the pipeline `file` left one and its numerics are those of this host:
    /// `cpu`, and `gpu`, which is asked for only when the plan holds GPUs.
    pub fn load(root: &Path, file: &Path, id: &PlanId, cpu: &str, gpu: impl FnOnce() -> String) -> Option<Self> {
        let in_force = std::fs::read(root.join(current(file))).ok()?;
        if in_force != id.key.digest().hex().as_bytes() {
            return None;
        }
        let bytes = std::fs::read(root.join(id.key.place("seal"))).ok()?;
        let mut seal = decode(kept::open(HEAD, &bytes)?)?;
        seal.journal = root.join("runs").join(&seal.base).join("events.jsonl");
        let same_boot = seal.boot == Store::boot() && seal.boot != [0; 16];
        (seal.plan == id.content && same_boot && seal.numerics.cpu == cpu && (!seal.gpus || seal.numerics.gpu == gpu()))
            .then_some(seal)
    }

    /// The run whose journal tells of every node.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// The pipeline's name and the profile in force.
    pub(crate) fn pipeline(&self) -> (&str, Option<&str>) {
        (&self.pipeline, self.profile.as_deref())
    }

    /// Nodes of the plan.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Whether the plan makes tables.
    pub fn makes_tables(&self) -> bool {
        self.tables
    }

    /// Whether every node of the plan stands.
    pub fn all_stand(&self) -> bool {
        self.has_base() && self.nodes.len() == self.total && self.watches.iter().all(Watch::holds)
    }

    /// Whether the journal that tells of every node is there.
    fn has_base(&self) -> bool {
        !self.base.is_empty() && self.journal.is_file()
    }

    /// The nodes of `plan`, which is the one that the seal was loaded for, that stand when those `forced` are executed whatever the store has.
    pub(crate) fn standing(self, plan: &Plan, forced: &BTreeSet<NodeId>) -> Stand {
        let changed: BTreeSet<u32> =
            (0..).zip(&self.watches).filter(|(_, watch)| !watch.holds()).map(|(index, _)| index).collect();
        let has_base = self.has_base();
        let mut nodes = self.nodes;
        // In topological order: what a node needs was decided before it.
        for id in plan.ids() {
            let node = plan.node(id);
            let sound = |standing: &Standing| !standing.watches.iter().any(|watch| changed.contains(watch));
            let below = node.parents().iter().all(|parent| nodes.contains_key(parent));
            if forced.contains(&id) || !(node.cache && below && nodes.get(&id).is_some_and(sound)) {
                nodes.remove(&id);
            }
        }
        Stand { watches: self.watches, nodes, has_base }
    }
}

/// The nodes that stand, and what they stand on.
#[derive(Debug, Default)]
pub(crate) struct Stand {
    watches: Vec<Watch>,
    nodes: BTreeMap<NodeId, Standing>,
    /// Whether the run that left the seal can still be read.
    pub(crate) has_base: bool,
}

impl Stand {
    pub(crate) fn get(&self, id: NodeId) -> Option<&Standing> {
        self.nodes.get(&id)
    }

    /// What a standing node stands on.
    fn watches_of(&self, standing: &Standing) -> Vec<Watch> {
        standing.watches.iter().filter_map(|index| self.watches.get(*index as usize).cloned()).collect()
    }
}

/// Takes the seal of a pipeline `file` out of force: from here on a run changes what it speaks of, and may end anywhere.
pub(crate) fn withdraw(store: &Store, file: &Path) -> Result<(), StoreError> {
    store.discard(&current(file))
}

/// Collects a seal, node by node.
pub(crate) struct Sealing {
    list: Vec<Watch>,
    places: BTreeMap<PathBuf, u32>,
    nodes: BTreeMap<NodeId, Standing>,
}

impl Sealing {
    pub(crate) fn new() -> Self {
        Self { list: Vec::new(), places: BTreeMap::new(), nodes: BTreeMap::new() }
    }

    /// A node that stood in this run stands on.
    pub(crate) fn keep(&mut self, id: NodeId, stand: &Stand) {
        if let Some(standing) = stand.get(id) {
            self.add(id, standing.recipe, standing.outputs.clone(), stand.watches_of(standing));
        }
    }

    /// A node that was keyed in this run, with what it stands on.
    pub(crate) fn add(&mut self, id: NodeId, recipe: Digest, outputs: BTreeMap<String, Artifact>, watches: Vec<Watch>) {
        let mut places = Vec::with_capacity(watches.len());
        for watch in watches {
            let next = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
            let place = *self.places.entry(watch.path().to_owned()).or_insert(next);
            if place == next {
                self.list.push(watch);
            } else if self.list[place as usize] != watch {
                // Two nodes saw the path in two states; neither is vouched for.
                return;
            }
            places.push(place);
        }
        self.nodes.insert(id, Standing { recipe, outputs, watches: places });
    }

    /// Writes the seal of a run of `plan` whose journal is `base`, and puts it in force. A seal that cannot be written is no
    /// error: the next run looks for itself.
    pub(crate) fn write(self, store: &Store, plan: &Plan, id: &PlanId, numerics: &Numerics, base: &str) {
        let seal = Seal {
            journal: PathBuf::new(),
            plan: id.content,
            base: base.to_owned(),
            pipeline: plan.name.clone(),
            profile: plan.profile.clone(),
            boot: Store::boot(),
            numerics: numerics.clone(),
            gpus: kept::asks_for_gpus(plan),
            tables: plan.nodes.iter().flat_map(|node| &node.outputs).any(|output| output.port.ty == PortType::Table),
            total: plan.nodes.len(),
            watches: self.list,
            nodes: self.nodes,
        };
        let written = store.keep(&id.key.place("seal"), &kept::sealed(HEAD, &encode(&seal)));
        if written.is_ok() {
            // Without it the next run keys every node.
            let _ = store.keep(&current(&plan.file), id.key.digest().hex().as_bytes());
        }
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_count(out, text.len());
    out.extend(text.as_bytes());
}

fn encode(seal: &Seal) -> Vec<u8> {
    let mut out = seal.plan.as_bytes().to_vec();
    let profile = seal.profile.as_deref().map_or(String::new(), |profile| format!("={profile}"));
    for text in [&seal.base, &seal.pipeline, &profile, &seal.numerics.cpu, &seal.numerics.gpu] {
        put_text(&mut out, text);
    }
    out.extend(seal.boot);
    out.extend([u8::from(seal.gpus), u8::from(seal.tables)]);
    put_count(&mut out, seal.total);
    put_count(&mut out, seal.watches.len());
    seal.watches.iter().for_each(|watch| watch.encode(&mut out));
    put_count(&mut out, seal.nodes.len());
    for (NodeId(id), standing) in &seal.nodes {
        put_count(&mut out, *id);
        out.extend(standing.recipe.as_bytes());
        put_count(&mut out, standing.outputs.len());
        for (port, artifact) in &standing.outputs {
            put_text(&mut out, port);
            out.push(u8::from(artifact.kind == ArtifactKind::Tree));
            out.extend(artifact.digest.as_bytes());
            out.extend(artifact.bytes.to_le_bytes());
        }
        put_count(&mut out, standing.watches.len());
        standing.watches.iter().for_each(|place| put_count(&mut out, *place as usize));
    }
    out
}

fn take_text(bytes: &mut &[u8]) -> Option<String> {
    let length = take_count(bytes)? as usize;
    String::from_utf8(bytes.split_off(..length)?.to_vec()).ok()
}

fn take_digest(bytes: &mut &[u8]) -> Option<Digest> {
    Some(Digest::from_bytes(bytes.split_off(..32)?.try_into().ok()?))
}

fn take_output(bytes: &mut &[u8]) -> Option<(String, Artifact)> {
    let port = take_text(bytes)?;
    let kind = if bytes.split_off(..1)?[0] == 1 { ArtifactKind::Tree } else { ArtifactKind::File };
    let digest = take_digest(bytes)?;
    let size = u64::from_le_bytes(bytes.split_off(..8)?.try_into().ok()?);
    Some((port, Artifact { kind, digest, bytes: size }))
}

fn take_standing(bytes: &mut &[u8]) -> Option<(NodeId, Standing)> {
    let id = NodeId(take_count(bytes)? as usize);
    let recipe = take_digest(bytes)?;
    let outputs = (0..take_count(bytes)?).map(|_| take_output(bytes)).collect::<Option<_>>()?;
    let watches = (0..take_count(bytes)?).map(|_| take_count(bytes)).collect::<Option<_>>()?;
    Some((id, Standing { recipe, outputs, watches }))
}

fn decode(mut bytes: &[u8]) -> Option<Seal> {
    let bytes = &mut bytes;
    let plan = take_digest(bytes)?;
    let (base, pipeline, profile) = (take_text(bytes)?, take_text(bytes)?, take_text(bytes)?);
    let profile = profile.strip_prefix('=').map(str::to_owned);
    let numerics = Numerics { cpu: take_text(bytes)?, gpu: take_text(bytes)? };
    let boot = bytes.split_off(..16)?.try_into().ok()?;
    let [gpus, tables] = [bytes.split_off(..1)?[0] == 1, bytes.split_off(..1)?[0] == 1];
    let total = take_count(bytes)? as usize;
    let watches = (0..take_count(bytes)?).map(|_| Watch::decode(bytes)).collect::<Option<_>>()?;
    let nodes = (0..take_count(bytes)?).map(|_| take_standing(bytes)).collect::<Option<_>>()?;
    Some(Seal {
        journal: PathBuf::new(),
        plan,
        base,
        pipeline,
        profile,
        boot,
        numerics,
        gpus,
        tables,
        total,
        watches,
        nodes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_reads_back_and_anything_torn_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let (file, gone) = (dir.path().join("f"), dir.path().join("gone"));
        std::fs::write(&file, "x").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(30));
        let artifact = Artifact { kind: ArtifactKind::Tree, digest: Digest::of(b"y"), bytes: 7 };
        let mut sealing = Sealing::new();
        let outputs = BTreeMap::from([("y".to_owned(), artifact)]);
        sealing.add(NodeId(3), Digest::of(b"r"), outputs.clone(), vec![Watch::exact(&file), Watch::kind(&gone)]);
        sealing.add(NodeId(4), Digest::of(b"s"), outputs, vec![Watch::exact(&file)]);
        let seal = Seal {
            journal: file.clone(),
            plan: Digest::of(b"plan"),
            base: "run".into(),
            pipeline: "p".into(),
            profile: None,
            boot: Store::boot(),
            gpus: false,
            tables: true,
            numerics: Numerics { cpu: "c".into(), gpu: "g".into() },
            total: 2,
            watches: sealing.list,
            nodes: sealing.nodes,
        };
        assert_eq!(seal.watches.len(), 2, "a path that two nodes share is watched once");
        let bytes = encode(&seal);
        let read = Seal { journal: file.clone(), ..decode(&bytes).unwrap() };
        assert_eq!((&read.nodes, &read.base, read.total), (&seal.nodes, &seal.base, 2));
        assert!(read.all_stand());
        assert!((0..bytes.len()).all(|length| decode(&bytes[..length]).is_none()));
        std::fs::write(&gone, "now it is there").unwrap();
        assert!(!read.all_stand());
        std::fs::remove_file(&gone).unwrap();
        assert!(read.all_stand());
        std::fs::remove_file(&file).unwrap();
        assert!(!read.all_stand(), "the journal is gone");
    }
}
