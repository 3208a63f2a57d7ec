//! Kept plans: a pipeline that was compiled once is not compiled again while everything that the plan depends on is as it
//! was.
//!
//! | depends on | how it is seen |
//! |---|---|
//! | the pipeline file, prompt files, folders that a pattern looked into | exact [watches](mpcc_cache::watch) |
//! | whether declared data is there | watches of its kind: editing a data set does not touch the plan |
//! | profile, `--set`, `--executor`, names of environment variables, the program itself | the key |
//! | the GPUs of the host | compared, when a node asks for one |
//!
//! A plan with warnings is not kept, so that they are told every time; neither is one whose files changed in the moment
//! they were read. A kept plan that cannot be read is no plan: the pipeline is compiled.

use std::path::{Path, PathBuf};

use mpcc_cache::{Digest, Store, Watch};
use serde_json::json;

use super::compile::{CompileOptions, compile_watched};
use super::{Node, Plan};
use crate::diagnostic::Diagnostics;
use crate::registry::Registry;

const HEAD: &[u8] = b"mpcc-plan 1\n";

/// A path as it is, for names that are no text.
fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

/// What a pipeline is kept under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanKey(Digest);

impl PlanKey {
    /// The key of `file` compiled with `options` by this `program`, whose text changes with every build of it.
    pub fn new(file: &Path, options: &CompileOptions, program: &str) -> std::io::Result<Self> {
        let decides = json!([
            program,
            bytes(&std::path::absolute(file)?),
            options.profile,
            options.sets,
            options.env_present,
            options.cpus,
            options.memory,
            options.hub_cache.as_deref().map(bytes),
            options.executor,
        ]);
        Ok(Self(Digest::of(decides.to_string().as_bytes())))
    }

    /// Where something of this key lies below the store's root.
    pub(crate) fn place(&self, what: &str) -> PathBuf {
        Path::new("kept").join(format!("{}.{what}", self.0.short()))
    }

    /// The digest behind it.
    pub(crate) fn digest(&self) -> &Digest {
        &self.0
    }
}

/// A plan by name and content: two plans of one key differ when a file that decides them was edited in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanId {
    /// What it is kept under.
    pub key: PlanKey,
    /// Digest of the plan itself.
    pub content: Digest,
}

/// Whether the GPUs of the host enter the plan.
pub fn asks_for_gpus(plan: &Plan) -> bool {
    plan.nodes.iter().any(|node: &Node| node.resources.gpus > 0)
}

/// A kept plan, everything that it depends on being as it was; not parsed yet.
pub struct Kept {
    id: PlanId,
    bytes: Vec<u8>,
    /// Where the plan begins.
    plan_at: usize,
}

impl Kept {
    /// The kept plan of `key` in the store at `root`, if there is one that still holds. `gpus` is called when the plan
    /// depends on them.
    pub fn load(root: &Path, key: &PlanKey, gpus: impl FnOnce() -> Option<Vec<u64>>) -> Option<Self> {
        let bytes = std::fs::read(root.join(key.place("plan"))).ok()?;
        let mut rest = open(HEAD, &bytes)?;
        // The file's name has only the beginning of the key.
        if rest.split_off(..32)? != key.0.as_bytes() {
            return None;
        }
        for _ in 0..take_count(&mut rest)? {
            if !Watch::decode(&mut rest)?.holds() {
                return None;
            }
        }
        let length = take_count(&mut rest)? as usize;
        let made_for: Option<Option<Vec<u64>>> = serde_json::from_slice(rest.split_off(..length)?).ok()?;
        if made_for.is_some_and(|made_for| made_for != gpus()) {
            return None;
        }
        let content = Digest::from_bytes(rest.split_off(..32)?.try_into().ok()?);
        let plan_at = bytes.len() - rest.len();
        Some(Self { id: PlanId { key: *key, content }, bytes, plan_at })
    }

    /// Which plan it is.
    pub fn id(&self) -> PlanId {
        self.id
    }

    /// The plan; none when a later or earlier mpcc wrote it differently.
    pub fn plan(&self) -> Option<Plan> {
        serde_json::from_slice(&self.bytes[self.plan_at..]).ok()
    }
}

/// Takes a count that [`put_count`] wrote off the front of `bytes`.
pub(crate) fn take_count(bytes: &mut &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.split_off(..4)?.try_into().ok()?))
}

/// Appends a count. One that does not fit is written as the largest, which no reader finds enough bytes for.
pub(crate) fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend(u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
}

/// A plan fresh from its file, with what it depends on.
pub struct Fresh {
    /// The plan.
    pub plan: Plan,
    /// None when it holds a path that is no text.
    text: Option<Vec<u8>>,
    seen: Vec<Watch>,
    gpus: Option<Vec<u64>>,
}

/// Compiles the pipeline in `file` in such a way that its plan can be kept.
///
/// # Errors
/// Every problem of the pipeline at once.
pub fn compile(file: &Path, registry: &Registry, options: &CompileOptions) -> Result<Fresh, Diagnostics> {
    let (plan, seen) = compile_watched(file, registry, options)?;
    let text = serde_json::to_vec(&plan).ok();
    Ok(Fresh { plan, text, seen, gpus: options.gpus.clone() })
}

impl Fresh {
    /// Which plan it is; none of a plan that cannot be written down.
    pub fn id(&self, key: PlanKey) -> Option<PlanId> {
        Some(PlanId { key, content: Digest::of(self.text.as_deref()?) })
    }

    /// Keeps the plan under `key`. One that cannot be kept is no error: the next call compiles again.
    pub fn keep(&self, store: &Store, key: &PlanKey) {
        let (Some(id), Some(text)) = (self.id(*key), &self.text) else { return };
        if !self.plan.warnings.is_empty() || !self.seen.iter().all(Watch::is_settled) {
            return;
        }
        let mut body = key.0.as_bytes().to_vec();
        put_count(&mut body, self.seen.len());
        self.seen.iter().for_each(|watch| watch.encode(&mut body));
        let made_for = serde_json::to_vec(&asks_for_gpus(&self.plan).then_some(&self.gpus)).expect("plain data");
        put_count(&mut body, made_for.len());
        body.extend(made_for);
        body.extend(id.content.as_bytes());
        body.extend(text);
        let _ = store.keep(&key.place("plan"), &sealed(HEAD, &body));
    }
}

/// `body` behind a head and a checksum.
pub(crate) fn sealed(head: &[u8], body: &[u8]) -> Vec<u8> {
    [head, Digest::of(body).as_bytes(), body].concat()
}

/// The body of what [`sealed`] made; `None` for anything else.
pub(crate) fn open<'b>(head: &[u8], bytes: &'b [u8]) -> Option<&'b [u8]> {
    let (check, body) = bytes.strip_prefix(head)?.split_at_checked(32)?;
    (Digest::of(body).as_bytes() == check).then_some(body)
}
