//! Looking the whole store over: sizes and counts, and a verification that trusts nothing but hashes.

use std::path::Path;

use rayon::prelude::*;

use crate::core::Core;
use crate::gc::fanned_paths;
use crate::io::FileKind;
use crate::manifest::Links;
use crate::memo::MemoStats;
use crate::statcache::Guard;
use crate::{Digest, Store, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

/// What a store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Number of objects.
    pub objects: u64,
    /// Their bytes.
    pub object_bytes: u64,
    /// Read-only tree directories.
    pub trees: u64,
    /// Entries.
    pub entries: u64,
    /// Partial directories.
    pub partials: u64,
    /// Their bytes.
    pub partial_bytes: u64,
    /// Things in quarantine.
    pub quarantined: u64,
    /// The memo's namespaces.
    pub memo: Vec<MemoStats>,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Objects hashed.
    pub objects: u64,
    /// Bytes hashed.
    pub bytes: u64,
    /// Objects whose bytes are not what their name says; they are in quarantine now.
    pub damaged: Vec<Digest>,
    /// Tree directories that are not what their name says; removed, they are rebuilt when needed.
    pub damaged_trees: Vec<Digest>,
    /// Recipes none of whose entries is complete: they will be executed again.
    pub incomplete: Vec<Digest>,
}

impl VerifyReport {
    /// Whether nothing was wrong.
    pub fn is_clean(&self) -> bool {
        self.damaged.is_empty() && self.damaged_trees.is_empty() && self.incomplete.is_empty()
    }
}

/// Bytes of all regular files below `path`.
fn bytes_below(core: &Core, path: &Path) -> Result<u64> {
    match core.io.stat(path)? {
        Some(stat) if stat.kind == FileKind::Dir => {
            core.io.list(path)?.iter().map(|child| bytes_below(core, child)).sum()
        }
        stat => Ok(stat.map_or(0, |stat| stat.size)),
    }
}

impl Store {
    /// Sizes and counts.
    pub fn stats(&self) -> Result<StoreStats> {
        let core = self.core();
        let objects = fanned_paths(core, "objects")?;
        let mut object_bytes = 0;
        for (_, path) in &objects {
            object_bytes += core.io.stat(path)?.map_or(0, |stat| stat.size);
        }
        let partial = core.root.join("partial");
        Ok(StoreStats {
            objects: objects.len() as u64,
            object_bytes,
            trees: fanned_paths(core, "trees")?.len() as u64,
            entries: core.entries.lock().expect("no panic while entries are held").all()?.len() as u64,
            partials: core.io.list(&partial)?.len() as u64,
            partial_bytes: bytes_below(core, &partial)?,
            quarantined: core.io.list(&core.root.join("quarantine"))?.len() as u64,
            memo: self.memo().stats()?,
        })
    }

    /// Hashes every object and looks at every tree and entry; what is damaged is moved to quarantine. Safe beside runs.
    pub fn verify(&self) -> Result<VerifyReport> {
        let core = self.core();
        let objects = fanned_paths(core, "objects")?;
        let checks = objects.par_iter().map(|(digest, path)| verify_object(core, digest, path));
        let checks = checks.collect::<Result<Vec<_>>>()?;
        let damaged = objects.iter().zip(&checks).filter(|(_, size)| size.is_none()).map(|((d, _), _)| *d).collect();
        let bytes = checks.iter().flatten().sum();
        let damaged_trees = verify_trees(core)?;
        Ok(VerifyReport {
            objects: objects.len() as u64,
            bytes,
            damaged,
            damaged_trees,
            incomplete: self.incomplete()?,
        })
    }

    fn incomplete(&self) -> Result<Vec<Digest>> {
        let records = self.core().entries.lock().expect("no panic while entries are held").all()?;
        let mut recipes: Vec<_> = records.iter().map(|record| record.recipe).collect();
        recipes.dedup();
        let mut incomplete = Vec::new();
        for recipe in recipes {
            if self.lookup(&recipe)?.is_none() {
                incomplete.push(recipe);
            }
        }
        Ok(incomplete)
    }
}

/// The object's size, or `None` when it was damaged and is in quarantine now.
fn verify_object(core: &Core, digest: &Digest, path: &Path) -> Result<Option<u64>> {
    let (found, size) = core.stats.hash(path, Guard::Mtime)?;
    if found == *digest {
        return Ok(Some(size));
    }
    core.quarantine(path).map(|_| None)
}

fn verify_trees(core: &Core) -> Result<Vec<Digest>> {
    let mut damaged = Vec::new();
    for (digest, path) in fanned_paths(core, "trees")? {
        let found = core.digest_path(&path, Guard::Mtime, Links::Refuse);
        if found.is_ok_and(|artifact| artifact.digest == digest) {
            continue;
        }
        core.drop_tree(&path)?;
        damaged.push(digest);
    }
    Ok(damaged)
}
