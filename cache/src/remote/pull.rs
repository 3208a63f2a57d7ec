//! Pull: entries of the remote and all that they need, into the local store.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::entry;
use super::fetch::{Fetch, Seen};
use super::push::blocking;
use super::tally::{Counts, Tally};
use super::{ENTRIES_AT_ONCE, Progress, Remote, Result};
use crate::{Digest, Store};

/// What a pull did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullReport {
    /// Entries that the local store has now and had not before.
    pub entries: u64,
    /// Recipes that the local store could answer already; nothing was fetched for them.
    pub entries_skipped: u64,
    /// Objects fetched.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects of fetched entries that the local store had already.
    pub skipped: u64,
    /// Named recipes of which the remote has no entry.
    pub absent: Vec<Digest>,
    /// What was found damaged or incomplete there, and was not taken.
    pub problems: Vec<String>,
}

impl Store {
    /// Brings the entries of `recipes`, or all, with everything they need. For each recipe that the local store cannot
    /// answer, the entry that every reader would choose; the next one when that is damaged.
    ///
    /// # Errors
    /// The remote fails and goes on failing, or the local store does. Damage is no error but a problem of the report.
    pub fn pull(
        &self,
        remote: &Remote,
        recipes: Option<&BTreeSet<Digest>>,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<PullReport> {
        remote.block_on(pull(self, remote, recipes, progress))
    }
}

async fn pull(
    store: &Store,
    remote: &Remote,
    recipes: Option<&BTreeSet<Digest>>,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<PullReport> {
    let (tally, seen) = (Tally::new(progress), Seen::default());
    let fetch = Fetch { store, wire: remote.wire(), seen: &seen, tally: &tally };
    let mut report = PullReport::default();
    let known = known(remote, recipes).await?;
    report.absent = recipes.into_iter().flatten().filter(|recipe| !known.contains_key(recipe)).copied().collect();
    let fetched = stream::iter(&known).map(|(recipe, outputs)| {
        let (fetch, recipe) = (&fetch, *recipe);
        async move {
            if blocking(store, move |store| store.lookup(&recipe)).await?.is_some() {
                return Ok(None);
            }
            fetch.best_of(&recipe, outputs).await.map(Some)
        }
    });
    let fetched: Vec<_> = fetched.buffer_unordered(ENTRIES_AT_ONCE).try_collect().await?;
    for one in fetched {
        match one {
            None => report.entries_skipped += 1,
            Some(one) => {
                report.entries += u64::from(one.whole);
                report.problems.extend(one.problems);
            }
        }
    }
    report.problems.sort();
    let Counts { objects, bytes, skipped } = tally.counts();
    (report.objects, report.bytes, report.skipped) = (objects, bytes, skipped);
    Ok(report)
}

/// The entries of the remote: recipe -> digests of outputs lists.
async fn known(remote: &Remote, recipes: Option<&BTreeSet<Digest>>) -> Result<BTreeMap<Digest, Vec<Digest>>> {
    let folders = match recipes {
        None => vec!["entries".to_owned()],
        Some(recipes) => recipes.iter().map(entry::folder).collect(),
    };
    let listed = stream::iter(&folders).map(|folder| remote.wire().list(folder)).buffer_unordered(ENTRIES_AT_ONCE);
    let listed: Vec<_> = listed.try_collect().await?;
    let mut known: BTreeMap<Digest, Vec<Digest>> = BTreeMap::new();
    for (recipe, outputs) in listed.into_iter().flatten().filter_map(|(key, _)| entry::spelled(&key)) {
        known.entry(recipe).or_default().push(outputs);
    }
    Ok(known)
}
