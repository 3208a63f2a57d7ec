//! Push: entries of the local store and all that they need, to the remote. Objects first, their entry last.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use futures_util::stream::{self, FuturesUnordered};
use futures_util::{StreamExt, TryStreamExt};
use object_store::MultipartUpload;
use tokio::sync::OnceCell;

use super::entry::{self, RemoteEntry};
use super::tally::{Counts, Tally};
use super::wire::{PART, Wire};
use super::{ENTRIES_AT_ONCE, OBJECTS_AT_ONCE, PARTS_AT_ONCE, Progress, Remote, Result};
use crate::objects::Trust;
use crate::{ArtifactKind, Digest, Store, StoreError};

/// Up to so many objects are looked for one by one; for more, folders are listed.
const LOOK_ONE_BY_ONE: usize = 1000;

/// What a push did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PushReport {
    /// Entries sent.
    pub entries: u64,
    /// Entries that were there already.
    pub entries_skipped: u64,
    /// Objects sent.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that were there already.
    pub skipped: u64,
    /// Entries that were not sent because the local store has them not whole: recipe and reason.
    pub incomplete: Vec<(Digest, String)>,
}

/// An entry to send.
struct Parcel {
    entry: RemoteEntry,
    /// The objects that it needs, and their sizes.
    objects: BTreeMap<Digest, u64>,
}

/// What became of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    There,
    /// The local one is gone or damaged.
    Lost,
}

struct Push<'a> {
    store: &'a Store,
    wire: &'a Wire,
    tally: Tally<'a>,
    /// Sizes of the remote's objects, when it was cheaper to list them.
    listed: Option<BTreeMap<Digest, u64>>,
    /// Every object is sent by the first entry that needs it.
    objects: Mutex<BTreeMap<Digest, Arc<OnceCell<Sent>>>>,
}

impl Store {
    /// Sends the entries of `recipes`, for each the one that a lookup answers with, and everything they need. Recipes
    /// without an entry are passed over. `progress` is told after every object.
    ///
    /// # Errors
    /// The remote fails and goes on failing. What was complete by then is kept, and not sent again by the next push.
    pub fn push(
        &self,
        remote: &Remote,
        recipes: &BTreeSet<Digest>,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<PushReport> {
        let mut report = PushReport::default();
        let (known, mut parcels) = (self.recipes()?, Vec::new());
        for recipe in recipes {
            match self.parcel(recipe) {
                Ok(Some(parcel)) => parcels.push(parcel),
                Ok(None) if known.contains(recipe) => {
                    report.incomplete.push((*recipe, "some of its objects are gone or damaged".to_owned()));
                }
                Ok(None) => {}
                Err(StoreError::Missing { path, .. }) => {
                    report.incomplete.push((*recipe, format!("{} is gone or damaged", path.display())));
                }
                Err(error) => return Err(error.into()),
            }
        }
        remote.block_on(push(self, remote.wire(), &parcels, progress, &mut report))?;
        Ok(report)
    }

    /// What an entry of `recipe` is made of; `None` when there is no whole one.
    fn parcel(&self, recipe: &Digest) -> std::result::Result<Option<Parcel>, StoreError> {
        let Some((record, outputs)) = self.best(recipe)? else { return Ok(None) };
        let core = self.core();
        let mut objects = BTreeMap::new();
        for digest in [record.recipe, record.outputs] {
            objects.insert(digest, core.object_size(&digest)?);
        }
        for (_, artifact) in outputs {
            match artifact.kind {
                ArtifactKind::File => drop(objects.insert(artifact.digest, artifact.bytes)),
                ArtifactKind::Tree => {
                    objects.insert(artifact.digest, core.object_size(&artifact.digest)?);
                    objects
                        .extend(core.manifest(&artifact.digest)?.files().iter().map(|file| (file.digest, file.bytes)));
                }
            }
        }
        let entry = RemoteEntry { recipe: *recipe, outputs: record.outputs, time_ns: record.time_ns };
        Ok(Some(Parcel { entry, objects }))
    }
}

async fn push(
    store: &Store,
    wire: &Wire,
    parcels: &[Parcel],
    progress: &(dyn Fn(Progress) + Send + Sync),
    report: &mut PushReport,
) -> Result<()> {
    let all: BTreeMap<Digest, u64> = parcels.iter().flat_map(|parcel| parcel.objects.clone()).collect();
    let tally = Tally::new(progress);
    tally.need(all.len() as u64, all.values().sum());
    let listed = if all.len() > LOOK_ONE_BY_ONE { Some(list(wire, &all).await?) } else { None };
    let push = Push { store, wire, tally, listed, objects: Mutex::new(BTreeMap::new()) };
    let sent = stream::iter(parcels).map(|parcel| push.parcel(parcel)).buffer_unordered(ENTRIES_AT_ONCE);
    let sent: Vec<_> = sent.try_collect().await?;
    for (recipe, outcome) in sent {
        match outcome {
            Ok(true) => report.entries += 1,
            Ok(false) => report.entries_skipped += 1,
            Err(lost) => report.incomplete.push((recipe, format!("its object {lost} is gone or damaged"))),
        }
    }
    report.incomplete.sort();
    let Counts { objects, bytes, skipped } = push.tally.counts();
    (report.objects, report.bytes, report.skipped) = (objects, bytes, skipped);
    Ok(())
}

/// The sizes of the remote's objects in the folders where some of `wanted` would lie.
async fn list(wire: &Wire, wanted: &BTreeMap<Digest, u64>) -> Result<BTreeMap<Digest, u64>> {
    let folders: BTreeSet<String> = wanted.keys().map(|digest| format!("objects/{}", &digest.hex()[..2])).collect();
    let listed = stream::iter(&folders).map(|folder| wire.list(folder)).buffer_unordered(OBJECTS_AT_ONCE);
    let listed: Vec<_> = listed.try_collect().await?;
    let digest = |key: String| key.strip_prefix("objects/")?.replace('/', "").parse().ok();
    Ok(listed.into_iter().flatten().filter_map(|(key, size)| Some((digest(key)?, size))).collect())
}

impl Push<'_> {
    /// Sends an entry: `Ok(true)`; it was there: `Ok(false)`; a local object is lost: `Err`.
    async fn parcel(&self, parcel: &Parcel) -> Result<(Digest, std::result::Result<bool, Digest>)> {
        let recipe = parcel.entry.recipe;
        let objects = parcel.objects.iter().map(|(digest, size)| async move {
            let cell = {
                let mut objects = self.objects.lock().expect("no panic while it is held");
                objects.entry(*digest).or_default().clone()
            };
            let sent = cell.get_or_try_init(|| self.object(digest, *size)).await?;
            Result::Ok((*digest, *sent))
        });
        let sent: Vec<_> = stream::iter(objects).buffer_unordered(OBJECTS_AT_ONCE).try_collect().await?;
        if let Some((lost, _)) = sent.into_iter().find(|(_, sent)| *sent == Sent::Lost) {
            return Ok((recipe, Err(lost)));
        }
        let key = parcel.entry.key();
        let there = self.wire.size(&key).await?.is_some();
        Ok((recipe, Ok(!there && self.wire.create(&key, parcel.entry.encode()).await?)))
    }

    async fn object(&self, digest: &Digest, size: u64) -> Result<Sent> {
        let key = entry::object(digest);
        let there = match &self.listed {
            Some(listed) => listed.get(digest).copied(),
            None => self.wire.size(&key).await?,
        };
        if there == Some(size) {
            self.tally.done(size, false);
            return Ok(Sent::There);
        }
        // One of another size is damaged: it is written over.
        let moved = match (size > PART, there) {
            (true, _) => self.large(&key, *digest, size).await?,
            (false, there) => self.small(&key, *digest, there.is_some()).await?,
        };
        let Some(moved) = moved else { return Ok(Sent::Lost) };
        self.tally.done(size, moved);
        Ok(Sent::There)
    }

    /// Whether it was sent rather than there; `None` when the local one is lost.
    async fn small(&self, key: &str, digest: Digest, replace: bool) -> Result<Option<bool>> {
        let _held = self.wire.hold().await;
        let read = blocking(self.store, move |store| store.read(&digest)).await;
        match read {
            Ok(bytes) if replace => self.wire.put(key, bytes).await.map(|()| Some(true)),
            Ok(bytes) => self.create(key, bytes).await.map(Some),
            Err(StoreError::Missing { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn create(&self, key: &str, bytes: Vec<u8>) -> Result<bool> {
        if self.wire.create(key, bytes.clone()).await? {
            return Ok(true);
        }
        // Servers also answer so while another one is still writing it, who may yet fail: look.
        match self.wire.size(key).await? {
            Some(size) if size == bytes.len() as u64 => Ok(false),
            _ => self.wire.put(key, bytes).await.map(|()| true),
        }
    }

    /// Sends a large object part by part, hashing what is read; a damaged one is never completed.
    async fn large(&self, key: &str, digest: Digest, size: u64) -> Result<Option<bool>> {
        let _large = self.wire.hold_large().await;
        let opened = blocking(self.store, move |store| Reader::open(store, &digest)).await;
        let mut reader = match opened {
            Ok(reader) => reader,
            Err(error) if error.io_kind() == Some(std::io::ErrorKind::NotFound) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut upload = self.wire.begin_parts(key).await?;
        let sent = self.parts(key, size, &mut reader, &mut *upload).await;
        let whole = matches!(sent, Ok(()) if reader.hasher.finalize().as_bytes() == digest.as_bytes());
        if whole {
            let ended = self.wire.end_parts(key, &mut *upload).await;
            // It may have been done though the answer was cut off.
            return if ended.is_ok() || self.wire.size(key).await? == Some(size) {
                Ok(Some(true))
            } else {
                ended.map(|()| None)
            };
        }
        // Nobody sees an upload that is not completed; what the server keeps of it, its own rules remove.
        let _ = upload.abort().await;
        sent?;
        blocking(self.store, move |store| store.core().check_object(&digest, Some(size), Trust::Nothing)).await?;
        Ok(None)
    }

    async fn parts(&self, key: &str, size: u64, reader: &mut Reader, upload: &mut dyn MultipartUpload) -> Result<()> {
        // Servers take at most 10,000 parts.
        let part = PART.max(size.div_ceil(9_000));
        let mut under_way = FuturesUnordered::new();
        let mut at = 0;
        while at < size {
            if under_way.len() >= PARTS_AT_ONCE {
                under_way.next().await.unwrap_or(Ok(()))?;
            }
            let length = part.min(size - at) as usize;
            let bytes = reader.next(self.store, at, length).await?;
            let sending = upload.put_part(bytes.into());
            under_way.push(self.wire.send_part(key, length, sending));
            at += length as u64;
        }
        under_way.try_collect().await
    }
}

/// Reads an object part by part and hashes what it reads.
struct Reader {
    file: Arc<File>,
    path: PathBuf,
    hasher: blake3::Hasher,
}

impl Reader {
    fn open(store: &Store, digest: &Digest) -> std::result::Result<Self, StoreError> {
        let path = store.core().object_path(digest);
        Ok(Self { file: Arc::new(store.core().io.open(&path)?), path, hasher: blake3::Hasher::new() })
    }

    async fn next(&mut self, store: &Store, at: u64, length: usize) -> Result<Vec<u8>> {
        let (file, path) = (self.file.clone(), self.path.clone());
        let mut hasher = std::mem::take(&mut self.hasher);
        let read = blocking(store, move |store| {
            let bytes = store.core().io.read_at(&file, &path, at, length)?;
            hasher.update_rayon(&bytes);
            Ok((bytes, hasher))
        });
        let (bytes, hasher) = read.await?;
        self.hasher = hasher;
        Ok(bytes)
    }
}

/// Work on the local store, away from the threads that wait for the network.
pub(super) async fn blocking<T: Send + 'static>(
    store: &Store,
    work: impl FnOnce(&Store) -> std::result::Result<T, StoreError> + Send + 'static,
) -> std::result::Result<T, StoreError> {
    let store = store.clone();
    let done = tokio::task::spawn_blocking(move || work(&store)).await;
    done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
