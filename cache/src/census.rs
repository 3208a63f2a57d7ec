//! A census: every object looked at once, folder by folder, by all cores.
//!
//! A store may hold millions of objects, so what is done for each counts: one name of a listing and one `stat` relative to its
//! open folder, in the order of inodes, which is how file systems lay out what they would otherwise seek for.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::core::Core;
use crate::io::{FileKind, FileStat};
use crate::objects::Trust;
use crate::{Digest, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

/// An object that somebody needs, and of which size, where that is known.
pub(crate) type Claim = (Digest, Option<u64>);

/// An object that is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
    is_dir: bool,
}

/// What was found.
pub(crate) struct Census {
    /// The objects of each folder below `objects/`.
    folders: Vec<(PathBuf, Vec<Seen>)>,
    /// The claims that a whole object meets, sorted.
    met: Vec<Claim>,
}

/// The part of what is sorted by digest that belongs into the folder `fan`: a search in it touches little memory.
fn part_of<'a, T>(sorted: &'a [T], fan: &Path, digest: impl Fn(&T) -> &Digest) -> &'a [T] {
    let name = fan.file_name().and_then(|name| name.to_str()).unwrap_or("");
    let Ok(first) = u8::from_str_radix(name, 16) else { return &[] };
    let begin = sorted.partition_point(|item| digest(item).as_bytes()[0] < first);
    let end = sorted.partition_point(|item| digest(item).as_bytes()[0] <= first);
    &sorted[begin..end]
}

/// The claims on one object among sorted ones.
fn claims_on<'a>(claims: &'a [Claim], digest: &Digest) -> &'a [Claim] {
    let begin = claims.partition_point(|(other, _)| other < digest);
    let count = claims[begin..].iter().take_while(|(other, _)| other == digest).count();
    &claims[begin..begin + count]
}

impl Census {
    /// Those of the claims (sorted, each once) that no whole object meets.
    pub(crate) fn unmet<'a>(&self, claims: &'a [Claim]) -> BTreeSet<&'a Claim> {
        // All are met as a rule, and met ones are among the claims.
        if self.met.len() == claims.len() {
            return BTreeSet::new();
        }
        claims.iter().filter(|claim| self.met.binary_search(claim).is_err()).collect()
    }
}

impl Core {
    /// Looks at every object, and whether those in `claims` (sorted, each once) are whole. A damaged one is moved away.
    pub(crate) fn census(&self, claims: &[Claim]) -> Result<Census> {
        let fans = self.io.list(&self.root.join("objects"))?;
        let found = fans.into_par_iter().map(|fan| self.look_at(fan, claims)).collect::<Result<Vec<_>>>()?;
        let (mut folders, mut met) = (Vec::new(), Vec::new());
        for (folder, seen, whole) in found {
            folders.push((folder, seen));
            met.extend(whole);
        }
        met.par_sort_unstable();
        Ok(Census { folders, met })
    }

    fn look_at(&self, fan: PathBuf, claims: &[Claim]) -> Result<(PathBuf, Vec<Seen>, Vec<Claim>)> {
        let (mut seen, mut met) = (Vec::new(), Vec::new());
        let Some(folder) = self.io.open_folder(&fan)? else { return Ok((fan, seen, met)) };
        let claims = part_of(claims, &fan, |(digest, _)| digest);
        let start = fan.file_name().and_then(|name| name.to_str()).unwrap_or("").to_owned();
        for name in self.io.names_by_inode(&folder)? {
            // What is not spelled like an object is left alone.
            let Some(digest) = name.to_str().and_then(|name| format!("{start}{name}").parse().ok()) else { continue };
            let Some(stat) = self.io.stat_in(&folder, &name)? else { continue };
            let whole = self.meets(&digest, &stat, claims_on(claims, &digest), &mut met)?;
            if whole {
                seen.push(Seen { digest, bytes: stat.size, is_dir: stat.kind == FileKind::Dir });
            }
        }
        Ok((fan, seen, met))
    }

    /// Adds the claims that an object meets to `met`; `false` when it was damaged and is gone.
    fn meets(&self, digest: &Digest, stat: &FileStat, claims: &[Claim], met: &mut Vec<Claim>) -> Result<bool> {
        for claim in claims {
            if !self.check_seen(digest, stat, claim.1, Trust::StatKey)? {
                return Ok(false);
            }
            met.push(*claim);
        }
        Ok(true)
    }

    /// Removes the objects that are not among `live` (sorted), or only counts them; returns how many stay, how many go and
    /// their bytes. `alone` is asked before each folder.
    pub(crate) fn free(
        &self,
        census: &Census,
        live: &[Digest],
        dry: bool,
        alone: &(dyn Fn() -> Result<()> + Sync),
    ) -> Result<[u64; 3]> {
        let one = |(fan, seen): &(PathBuf, Vec<Seen>)| {
            alone()?;
            let folder = if dry { None } else { self.io.open_folder(fan)? };
            let live = part_of(live, fan, |digest| digest);
            let mut counts = [0; 3];
            for object in seen {
                if live.binary_search(&object.digest).is_ok() {
                    counts[0] += 1;
                    continue;
                }
                counts = [counts[0], counts[1] + 1, counts[2] + object.bytes];
                match &folder {
                    _ if dry => {}
                    Some(folder) if !object.is_dir => self.io.remove_in(folder, &object.digest.hex()[2..])?,
                    _ => self.io.remove_tree(&self.object_path(&object.digest))?,
                }
            }
            Ok(counts)
        };
        let counts = census.folders.par_iter().map(one).collect::<Result<Vec<_>>>()?;
        Ok(counts.into_iter().fold([0; 3], |a, b| std::array::from_fn(|at| a[at] + b[at])))
    }
}
