//! Fetching one recipe's entry with all that it needs into the local store. What arrives is hashed before it becomes an
//! object; the entry comes last.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::OnceCell;

use super::entry::{self, RemoteEntry};
use super::push::blocking;
use super::tally::Tally;
use super::wire::{Body, PART, Wire};
use super::{OBJECTS_AT_ONCE, PARTS_AT_ONCE, RemoteError, Result};
use crate::entries::OutputsList;
use crate::manifest::Manifest;
use crate::objects::Trust;
use crate::{Artifact, ArtifactKind, Digest, Store, StoreError};

/// Why an object did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Gone,
    Damaged,
}

type Arrival = std::result::Result<(), Fault>;

/// The bytes that arrived.
type Brought = std::result::Result<u64, Fault>;

/// What was fetched already, so that no object is fetched twice at once.
#[derive(Default)]
pub(super) struct Seen(Mutex<BTreeMap<Digest, Arc<OnceCell<Arrival>>>>);

/// Fetches entries.
pub(super) struct Fetch<'a> {
    pub(super) store: &'a Store,
    pub(super) wire: &'a Wire,
    pub(super) seen: &'a Seen,
    pub(super) tally: &'a Tally<'a>,
}

/// What came of a recipe.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    /// An entry is in the local store now.
    pub(super) whole: bool,
    /// What was found damaged or incomplete on the way.
    pub(super) problems: Vec<String>,
}

/// An entry cannot be used: the key that is to blame, and how.
struct Broken(String);

enum Stop {
    Broken(Broken),
    Remote(RemoteError),
}

impl From<RemoteError> for Stop {
    fn from(error: RemoteError) -> Self {
        Self::Remote(error)
    }
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Remote(error.into())
    }
}

impl Fetch<'_> {
    /// Asks for a recipe's entries and brings the best one that is whole.
    pub(super) async fn recipe(&self, recipe: &Digest) -> Result<Fetched> {
        let keys = self.wire.list(&entry::folder(recipe)).await?;
        let outputs: Vec<Digest> = keys.iter().filter_map(|(key, _)| Some(entry::spelled(key)?.1)).collect();
        self.best_of(recipe, &outputs).await
    }

    /// Brings the best whole entry among these.
    pub(super) async fn best_of(&self, recipe: &Digest, outputs: &[Digest]) -> Result<Fetched> {
        let mut fetched = Fetched::default();
        let mut entries = Vec::new();
        for outputs in outputs {
            match self.entry(recipe, outputs).await? {
                Some(entry) => entries.push(entry),
                None => fetched.problems.push(self.problem(&entry::key(recipe, outputs), "damaged")),
            }
        }
        entries.sort_by_key(|entry| std::cmp::Reverse((entry.time_ns, entry.outputs)));
        for entry in entries {
            match self.bring(entry).await {
                Ok(()) => {
                    fetched.whole = true;
                    break;
                }
                Err(Stop::Broken(Broken(problem))) => fetched.problems.push(problem),
                Err(Stop::Remote(error)) => return Err(error),
            }
        }
        Ok(fetched)
    }

    fn problem(&self, key: &str, what: &str) -> String {
        format!(
            "{}/{key} is {what}, so its entry counts as absent; delete it there, then push again from a store that has it",
            self.wire.address().url
        )
    }

    /// An entry, if its record is whole.
    async fn entry(&self, recipe: &Digest, outputs: &Digest) -> Result<Option<RemoteEntry>> {
        let Some(Body::Small(bytes)) = self.wire.get(&entry::key(recipe, outputs)).await? else { return Ok(None) };
        Ok(RemoteEntry::decode(&bytes).filter(|entry| (entry.recipe, entry.outputs) == (*recipe, *outputs)))
    }

    /// Brings what an entry needs, then notes it in the local store.
    async fn bring(&self, entry: RemoteEntry) -> std::result::Result<(), Stop> {
        self.all(&BTreeMap::from([(entry.recipe, None), (entry.outputs, None)])).await?;
        let bytes = blocking(self.store, move |store| store.read(&entry.outputs)).await?;
        let list = serde_json::from_slice::<OutputsList>(&bytes);
        let no_list = || Stop::Broken(Broken(self.problem(&entry::object(&entry.outputs), "no list of outputs")));
        let outputs = list.map_err(|_| no_list())?.outputs;
        let roots = outputs.iter().map(|(_, artifact)| (artifact.digest, size_of(artifact))).collect();
        self.all(&roots).await?;
        self.all(&self.files(&outputs).await?).await?;
        blocking(self.store, move |store| store.adopt(entry.recipe, entry.outputs, entry.time_ns, &outputs)).await?;
        Ok(())
    }

    /// The files of all trees among the outputs; their manifests are here.
    async fn files(&self, outputs: &[(String, Artifact)]) -> std::result::Result<BTreeMap<Digest, Option<u64>>, Stop> {
        let mut files = BTreeMap::new();
        for (_, artifact) in outputs.iter().filter(|(_, artifact)| artifact.kind == ArtifactKind::Tree) {
            let digest = artifact.digest;
            let bytes = blocking(self.store, move |store| store.read(&digest)).await?;
            let manifest = Manifest::decode(&bytes);
            let no_tree = |_| Stop::Broken(Broken(self.problem(&entry::object(&digest), "no list of files")));
            files.extend(manifest.map_err(no_tree)?.files().iter().map(|file| (file.digest, Some(file.bytes))));
        }
        Ok(files)
    }

    /// Brings objects; the first that does not arrive breaks the entry.
    async fn all(&self, objects: &BTreeMap<Digest, Option<u64>>) -> std::result::Result<(), Stop> {
        let arrivals = objects.iter().map(|(digest, size)| async move {
            let cell = {
                let mut seen = self.seen.0.lock().expect("no panic while it is held");
                seen.entry(*digest).or_default().clone()
            };
            let arrival = *cell.get_or_try_init(|| self.object(*digest, *size)).await?;
            let what = |fault| match fault {
                Fault::Gone => "not there",
                Fault::Damaged => "damaged",
            };
            let broken = |fault| Stop::Broken(Broken(self.problem(&entry::object(digest), what(fault))));
            arrival.map_err(broken)
        });
        stream::iter(arrivals).buffer_unordered(OBJECTS_AT_ONCE).try_collect().await
    }

    /// Brings an object unless the local store has it.
    async fn object(&self, digest: Digest, size: Option<u64>) -> Result<Arrival> {
        self.tally.need(1, size.unwrap_or(0));
        let had = blocking(self.store, move |store| store.core().check_object(&digest, size, Trust::StatKey)).await?;
        if had {
            self.tally.done(size.unwrap_or(0), false);
            return Ok(Ok(()));
        }
        let key = entry::object(&digest);
        let arrived = match size {
            Some(size) if size > PART => self.large(&key, digest, size).await?,
            _ => self.unmeasured(&key, digest, size).await?,
        };
        Ok(arrived.map(|bytes| {
            if size.is_none() {
                self.tally.need(0, bytes);
            }
            self.tally.done(bytes, true);
        }))
    }

    /// Brings an object of one part, or of a size that is yet to be found out.
    async fn unmeasured(&self, key: &str, digest: Digest, size: Option<u64>) -> Result<Brought> {
        let held = self.wire.hold().await;
        match self.wire.get(key).await? {
            None => Ok(Err(Fault::Gone)),
            Some(Body::Small(bytes)) => self.small(digest, bytes, size).await,
            Some(Body::Large(found)) if size.is_some_and(|size| size != found) => Ok(Err(Fault::Damaged)),
            Some(Body::Large(found)) => {
                drop(held);
                self.large(key, digest, found).await
            }
        }
    }

    async fn small(&self, digest: Digest, bytes: Vec<u8>, size: Option<u64>) -> Result<Brought> {
        let length = bytes.len() as u64;
        if size.is_some_and(|size| size != length) {
            return Ok(Err(Fault::Damaged));
        }
        let taken = blocking(self.store, move |store| {
            let same = Digest::of(&bytes) == digest;
            if same { store.core().put_bytes(&bytes).map(|_| true) } else { Ok(false) }
        });
        Ok(if taken.await? { Ok(length) } else { Err(Fault::Damaged) })
    }

    /// Brings a large object range by range, in order, into a temporary file that becomes the object if its hash is right.
    async fn large(&self, key: &str, digest: Digest, size: u64) -> Result<Brought> {
        let _large = self.wire.hold_large().await;
        let temporary = blocking(self.store, |store| {
            let path = store.core().temporary()?;
            Ok((Arc::new(store.core().io.create_append(&path)?), path))
        });
        let (file, path) = temporary.await?;
        let ranges = (0..size).step_by(PART as usize).map(|at| at..(at + PART).min(size));
        let mut parts = stream::iter(ranges)
            .map(|range| async move { Ok((range.end - range.start, self.wire.get_range(key, range).await?)) })
            .buffered(PARTS_AT_ONCE);
        let mut fault = None;
        while let Some((length, part)) = parts.try_next().await.map_err(|error: RemoteError| error)? {
            match part {
                None => fault = Some(Fault::Gone),
                Some(bytes) if bytes.len() as u64 != length => fault = Some(Fault::Damaged),
                Some(bytes) => {
                    let (file, path) = (file.clone(), path.clone());
                    blocking(self.store, move |store| store.core().io.append(&file, &path, &bytes)).await?;
                }
            }
            if fault.is_some() {
                break;
            }
        }
        let broken = fault.is_some();
        let taken = blocking(self.store, move |store| match broken {
            true => store.core().io.remove_file(&path).map(|()| false),
            false => store.core().take_as(&path, &digest),
        });
        Ok(if taken.await? { Ok(size) } else { Err(fault.unwrap_or(Fault::Damaged)) })
    }
}

/// The size of an artifact's own object, when it tells.
fn size_of(artifact: &Artifact) -> Option<u64> {
    (artifact.kind == ArtifactKind::File).then_some(artifact.bytes)
}
