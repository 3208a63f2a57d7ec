//! Garbage collection: forgets entries that nobody will ask for, then frees what no entry needs.
//!
//! Safe against runs by exclusion, not by grace periods: every open store holds `in-use` shared, gc takes it exclusively or
//! says [`StoreError::Busy`]; who opens the store meanwhile waits. So no log has a living writer and no object is between
//! being put and being published.
//!
//! Order: indexes are rewritten first (each by one rename of its snapshot), then trees go, then objects. A gc killed anywhere leaves
//! garbage or entries whose objects are gone, and those are misses.
//!
//! | kept | why |
//! |---|---|
//! | entries that the [`Keep`] policy or `also` names, all their objects and trees | hits of later runs |
//! | recipes that are the latest of a node | `why` compares with them |
//! | manifests of published trees | to remove their stale files from the workspace |
//! | memo, unless asked | it costs the most to compute and the least to keep |
//! | kept plans and seals do not stay | they are derived, and speak of entries that may go |
//! | partial directories of recipes without an entry, unless asked | a killed training resumes from them |

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use crate::census::{Census, Claim};
use crate::core::Core;
use crate::entries::{EntryRecord, OutputsList};
use crate::heartbeat::{Beat, Beats};
use crate::lock::gc_beat;
use crate::{ArtifactKind, Digest, Store, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

/// Which entries stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// Every complete entry; only what no entry needs is freed.
    Everything,
    /// Entries whose recipe is the latest of some node, and those in [`GcOptions::also`].
    #[default]
    Latest,
    /// Only those in [`GcOptions::also`].
    Listed,
}

/// What a gc may free.
#[derive(Clone, Debug, Default)]
pub struct GcOptions {
    /// Which entries stay.
    pub keep: Keep,
    /// Recipes whose entries stay whatever `keep` says, for example those of the last runs.
    pub also: BTreeSet<Digest>,
    /// Forget the memo too.
    pub memo: bool,
    /// Remove every partial directory, not only those of recipes that are done.
    pub partial: bool,
    /// Empty the quarantine.
    pub quarantine: bool,
    /// Only count.
    pub dry_run: bool,
}

/// What a gc freed, or would free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Entries that stay.
    pub entries_kept: u64,
    /// Entries forgotten.
    pub entries_dropped: u64,
    /// Objects that stay.
    pub objects_kept: u64,
    /// Objects freed.
    pub objects_removed: u64,
    /// Bytes of the objects freed.
    pub bytes_freed: u64,
    /// Read-only tree directories removed.
    pub trees_removed: u64,
    /// Partial directories removed.
    pub partials_removed: u64,
}

/// An entry that may stay, and what it needs.
struct Candidate {
    record: EntryRecord,
    needs: Vec<Claim>,
    trees: Vec<Digest>,
}

impl Candidate {
    /// Reads what an entry needs; none when a list or manifest of it is gone.
    ///
    /// # Errors
    /// They cannot be looked at now. That says nothing about them, so nothing may be freed.
    fn read(core: &Core, record: EntryRecord) -> Result<Option<Self>> {
        let Some(bytes) = unless_lost(core.read(&record.outputs))? else { return Ok(None) };
        let Ok(OutputsList { outputs }) = serde_json::from_slice::<OutputsList>(&bytes) else { return Ok(None) };
        let (mut needs, mut trees) = (Vec::new(), Vec::new());
        for (_, artifact) in outputs {
            let Some(claims) = unless_lost(core.claims_of(&artifact))? else { return Ok(None) };
            needs.extend(claims);
            trees.extend((artifact.kind == ArtifactKind::Tree).then_some(artifact.digest));
        }
        Ok(Some(Self { record, needs, trees }))
    }
}

/// What must stay, and what there is.
struct Live {
    entries: Vec<EntryRecord>,
    /// Sorted.
    objects: Vec<Digest>,
    trees: BTreeSet<Digest>,
    census: Census,
}

/// Sorted, each once.
fn sorted<T: Ord + Send>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut all: Vec<T> = all.collect();
    all.par_sort_unstable();
    all.dedup();
    all
}

impl Live {
    /// Looks at every object, and keeps the candidates that are whole, with all they need.
    fn of(core: &Core, mut candidates: Vec<Candidate>) -> Result<Self> {
        let claims = sorted(candidates.iter().flat_map(|candidate| &candidate.needs).copied());
        let census = core.census(&claims)?;
        let unmet = census.unmet(&claims);
        candidates.retain(|candidate| unmet.is_empty() || !candidate.needs.iter().any(|claim| unmet.contains(claim)));
        let own = candidates.iter().flat_map(|candidate| [candidate.record.recipe, candidate.record.outputs]);
        let needed = candidates.iter().flat_map(|candidate| &candidate.needs).map(|(digest, _)| *digest);
        Ok(Self {
            objects: sorted(own.chain(needed)),
            trees: candidates.iter().flat_map(|candidate| &candidate.trees).copied().collect(),
            entries: candidates.into_iter().map(|candidate| candidate.record).collect(),
            census,
        })
    }
}

/// `None` for what is gone or malformed, as opposed to what cannot be read at the moment.
fn unless_lost<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::Missing { .. } | StoreError::Malformed { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `<root>/<area>/ab/cdef...` with the digests their paths spell; what is not spelled so is left alone.
pub(crate) fn fanned_paths(core: &Core, area: &str) -> Result<Vec<(Digest, PathBuf)>> {
    let mut found = Vec::new();
    for fan in core.io.list(&core.root.join(area))? {
        for path in core.io.list(&fan)? {
            let spelled = [&fan, &path].map(|path| path.file_name().and_then(|name| name.to_str()).unwrap_or(""));
            if let Ok(digest) = spelled.concat().parse() {
                found.push((digest, path));
            }
        }
    }
    Ok(found)
}

impl Store {
    /// Frees what the options allow.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while any other handle, of this process or another, has the store open (a dry run never is);
    /// otherwise the file system refuses.
    pub fn gc(&self, options: &GcOptions) -> Result<GcReport> {
        if options.dry_run {
            return self.collect(options, &|| Ok(()));
        }
        if let Some(beats) = self.core().beats.clone() {
            let beat = self.enter_alone(&beats)?;
            // One that was stopped for too long must not go on.
            return self.collect(options, &|| if beat.is_own()? { Ok(()) } else { Err(self.busy()) });
        }
        self.enter_exclusive()?;
        let result = self.collect(options, &|| Ok(()));
        self.leave_exclusive()?;
        result
    }

    /// The exclusion of heartbeats: says that a gc works, then looks whether anybody else lives.
    fn enter_alone(&self, beats: &Arc<Beats>) -> Result<Beat> {
        let beat = beats.try_take(&gc_beat(self.root()))?.ok_or_else(|| self.busy())?;
        let tmp = self.root().join("tmp");
        let own = tmp.join(format!("{}.lock", self.core().writer));
        let locks = self.core().io.list(&tmp)?.into_iter();
        let others = locks.filter(|path| *path != own && path.extension().is_some_and(|e| e == "lock")).collect();
        if beats.alive(others)?.is_empty() { Ok(beat) } else { Err(self.busy()) }
    }

    fn busy(&self) -> StoreError {
        StoreError::Busy { path: self.root().to_owned() }
    }

    fn in_use_path(&self) -> PathBuf {
        self.root().join("in-use")
    }

    fn enter_exclusive(&self) -> Result<()> {
        let (io, file, path) = (&self.core().io, &self.inner.in_use, self.in_use_path());
        // A lock cannot be raised in one step: let go, then try.
        io.unlock(file, &path)?;
        let taken = io.try_lock(file, &path);
        if taken.as_ref().is_ok_and(|taken| *taken) {
            return Ok(());
        }
        io.lock_shared(file, &path)?;
        taken.and(Err(self.busy()))
    }

    fn leave_exclusive(&self) -> Result<()> {
        let (io, path) = (&self.core().io, self.in_use_path());
        io.unlock(&self.inner.in_use, &path)?;
        io.lock_shared(&self.inner.in_use, &path)
    }

    /// `alone` is asked before each step that takes something away, and says when it may not be taken any more.
    fn collect(&self, options: &GcOptions, alone: &(dyn Fn() -> Result<()> + Sync)) -> Result<GcReport> {
        let core = self.core();
        let mut report = GcReport::default();
        let live = self.live(options, &mut report)?;
        if !options.dry_run {
            alone()?;
            self.rewrite_indexes(&live, options)?;
        }
        let trees = fanned_paths(core, "trees")?;
        for (_, path) in trees.iter().filter(|(digest, _)| !live.trees.contains(digest)) {
            report.trees_removed += 1;
            if !options.dry_run {
                alone()?;
                core.drop_tree(path)?;
            }
        }
        [report.objects_kept, report.objects_removed, report.bytes_freed] =
            core.free(&live.census, &live.objects, options.dry_run, alone)?;
        report.partials_removed = self.free_partials(&live, options)?;
        // Derived from what may go; made again by the next runs.
        self.remove(&self.root().join("kept"), options)?;
        if options.quarantine {
            self.remove(&self.root().join("quarantine"), options)?;
        }
        Ok(report)
    }

    fn live(&self, options: &GcOptions, report: &mut GcReport) -> Result<Live> {
        let core = self.core();
        let latest: BTreeSet<_> = core.latest.values()?.into_iter().collect();
        let wanted = |recipe: &Digest| match options.keep {
            Keep::Everything => true,
            Keep::Latest => latest.contains(recipe) || options.also.contains(recipe),
            Keep::Listed => options.also.contains(recipe),
        };
        let records = core.entries.lock().expect("no panic while entries are held").all()?;
        let count = records.len();
        let wanted: Vec<_> = records.into_iter().filter(|record| wanted(&record.recipe)).collect();
        let read = wanted.into_par_iter().map(|record| Candidate::read(core, record));
        let candidates = read.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        let mut live = Live::of(core, candidates)?;
        report.entries_kept = live.entries.len() as u64;
        report.entries_dropped = (count - live.entries.len()) as u64;
        live.objects = sorted(live.objects.into_iter().chain(latest).chain(core.published.values()?));
        Ok(live)
    }

    fn rewrite_indexes(&self, live: &Live, options: &GcOptions) -> Result<()> {
        let core = self.core();
        core.entries.lock().expect("no panic while entries are held").rewrite(&live.entries)?;
        core.latest.compact()?;
        core.published.compact()?;
        core.ledger.compact(&core.temporary()?)?;
        core.stats.compact()?;
        core.manifests.lock().expect("no panic while manifests are held").clear();
        let memo = self.memo();
        if options.memo { memo.clear() } else { memo.compact() }
    }

    fn free_partials(&self, live: &Live, options: &GcOptions) -> Result<u64> {
        let done: BTreeSet<_> = live.entries.iter().map(|record| record.recipe.hex()).collect();
        let mut removed = 0;
        for path in self.core().io.list(&self.root().join("partial"))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if options.partial || done.contains(&*name) {
                removed += 1;
                self.remove(&path, options)?;
            }
        }
        Ok(removed)
    }

    fn remove(&self, path: &Path, options: &GcOptions) -> Result<()> {
        if options.dry_run { Ok(()) } else { self.core().io.remove_tree(path) }
    }
}
