//! Prompts into cached keys and values: each distinct picture once, and once what prompts have in common.
//!
//! A call looks up what is kept of each prompt ([`super::prefix`]), then which of its prompts begin alike: their common beginning, a
//! trunk, is computed once, and then all rests together, each behind its trunk.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::infer::{Engine, Joining, PrefixesOf};
use super::prefix::{Chain, Part, PictureDigest, PrefixCounts, Track, WORTH_SHARING, digest, place};
use crate::error::Result;
use crate::image::Patches;
use crate::vlm::Prompt;

/// Rows that pass the matrices together; bounds the size of the buffers.
pub const ROWS_AT_ONCE: usize = 1024;
/// Patches that pass the vision tower together, unless one picture alone has more.
const PATCHES_AT_ONCE: usize = 4096;

/// A prompt that continuations can hang on.
pub struct Prefilled<E: Engine> {
    /// Its keys and values.
    pub context: Vec<Part<E::Stretch>>,
    /// The hidden row of its last token, from which the next token follows.
    pub last: Arc<E::Rows>,
}

/// A prompt with what decides its keys and values.
struct Asked<'p> {
    prompt: &'p Prompt,
    track: Track,
}

/// A beginning that several prompts of one call have in common.
struct Trunk {
    members: Vec<usize>,
    tokens: usize,
}

/// The tokens of a prompt from the end of `root` to `until`, to be computed.
struct Job<'a, S> {
    asked: &'a Asked<'a>,
    root: Chain<S>,
    until: usize,
}

impl Asked<'_> {
    fn len(&self) -> usize {
        self.track.len()
    }
}

impl<'a, S> Job<'a, S> {
    fn len(&self) -> usize {
        self.until - self.root.tokens
    }

    /// The pictures among the job's tokens.
    fn pictures(&self) -> impl Iterator<Item = (PictureDigest, &'a Patches)> {
        let range = self.root.tokens..self.until;
        let shown = self.asked.track.pictures().iter().zip(&self.asked.prompt.images);
        shown.filter(move |(shown, _)| range.contains(&shown.start)).map(|(shown, image)| (shown.digest, image))
    }
}

/// What one call has done so far.
struct Work<'p, E: Engine> {
    prefixes: &'p PrefixesOf<E>,
    pictures: BTreeMap<PictureDigest, Arc<E::Rows>>,
    encoded: usize,
    computed: usize,
}

impl<E: Engine> Work<'_, E> {
    fn count(&self, asked: &[Asked<'_>]) {
        let shown: usize = asked.iter().map(|one| one.track.pictures().len()).sum();
        let tokens: usize = asked.iter().map(Asked::len).sum();
        self.prefixes.count(&PrefixCounts {
            pictures_encoded: self.encoded as u64,
            pictures_reused: shown.saturating_sub(self.encoded) as u64,
            tokens_computed: self.computed as u64,
            tokens_reused: tokens.saturating_sub(self.computed) as u64,
        });
    }
}

/// What a job yields: the chain up to its end, and the hidden row of its last token.
type Ended<E> = (Chain<<E as Engine>::Stretch>, Arc<<E as Engine>::Rows>);

/// Prefills prompts; none may be empty. The same `Arc` given twice is computed once.
///
/// # Errors
/// When a prompt does not fit the model.
pub fn prefill<E: Engine>(engine: &E, prompts: &[&Arc<Prompt>], prefixes: &PrefixesOf<E>) -> Result<Vec<Prefilled<E>>> {
    Prefill { engine }.prompts(prompts, prefixes)
}

/// The prefill of one call.
struct Prefill<'e, E> {
    engine: &'e E,
}

impl<E: Engine> Prefill<'_, E> {
    fn prompts(&self, prompts: &[&Arc<Prompt>], prefixes: &PrefixesOf<E>) -> Result<Vec<Prefilled<E>>> {
        let mut distinct: Vec<&Arc<Prompt>> = Vec::new();
        let mut index = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let known = distinct.iter().position(|other| Arc::ptr_eq(other, prompt));
            index.push(known.unwrap_or(distinct.len()));
            if known.is_none() {
                distinct.push(prompt);
            }
        }
        let asked = self.asked(&distinct)?;
        let find = |one: &Asked<'_>| prefixes.find(&one.track, one.track.len().saturating_sub(1));
        let mut roots: Vec<Chain<E::Stretch>> = asked.iter().map(find).collect();
        let mut work = Work { prefixes, pictures: BTreeMap::new(), encoded: 0, computed: 0 };
        self.grow_trunks(&asked, &mut roots, &mut work)?;
        let whole =
            |(asked, root): (_, &Chain<E::Stretch>)| Job { asked, root: root.clone(), until: Asked::len(asked) };
        let jobs: Vec<Job<'_, E::Stretch>> = asked.iter().zip(&roots).map(whole).collect();
        let done = self.run(&jobs, &mut work)?;
        work.count(&asked);
        let prefilled = |at: usize| Prefilled { context: done[at].0.parts.clone(), last: done[at].1.clone() };
        Ok(index.into_iter().map(prefilled).collect())
    }

    /// Prompts with the digests of their pictures, each of which is read once.
    fn asked<'p>(&self, prompts: &[&'p Arc<Prompt>]) -> Result<Vec<Asked<'p>>> {
        let mut known = BTreeMap::new();
        let mut digest_of = |image: &Patches| match place(image)? {
            None => digest(image),
            Some(place) => match known.get(&place) {
                // The same values in another shape or order are another picture.
                Some((grid, picks, digest)) if *grid == image.grid && *picks == image.picks => Ok(*digest),
                _ => {
                    let digest = digest(image)?;
                    known.insert(place, (image.grid, image.picks.clone(), digest));
                    Ok(digest)
                }
            },
        };
        let ask = |prompt: &&'p Arc<Prompt>| {
            let digests: Vec<PictureDigest> = prompt.images.iter().map(&mut digest_of).collect::<Result<_>>()?;
            Ok(Asked { prompt, track: Track::new(prompt, self.engine.config().image_token_id(), &digests)? })
        };
        prompts.iter().map(ask).collect()
    }

    /// Computes the trunks of prompts that begin alike, and roots the prompts in them.
    fn grow_trunks(&self, asked: &[Asked<'_>], roots: &mut [Chain<E::Stretch>], work: &mut Work<'_, E>) -> Result<()> {
        let mut trunks = Vec::new();
        let mut jobs = Vec::new();
        for trunk in alike(asked) {
            let longest = trunk.members.iter().max_by_key(|&&member| roots[member].tokens.min(trunk.tokens));
            let Some(&head) = longest else { continue };
            let root = roots[head].cut(trunk.tokens);
            if trunk.members.len() > 1 && trunk.tokens >= root.tokens + WORTH_SHARING {
                jobs.push(Job { asked: &asked[head], root, until: trunk.tokens });
                trunks.push(trunk);
            }
        }
        for (trunk, (chain, _)) in trunks.iter().zip(self.run(&jobs, work)?) {
            for &member in &trunk.members {
                if roots[member].tokens < chain.tokens {
                    roots[member] = chain.clone();
                }
            }
        }
        Ok(())
    }

    /// Computes jobs, as many together as the buffers take.
    fn run(&self, jobs: &[Job<'_, E::Stretch>], work: &mut Work<'_, E>) -> Result<Vec<Ended<E>>> {
        self.see(jobs, work)?;
        let (mut done, mut start) = (Vec::with_capacity(jobs.len()), 0);
        while start < jobs.len() {
            let mut rows = 0;
            let fits = jobs[start..].iter().take_while(|job| {
                rows += job.len();
                rows <= ROWS_AT_ONCE
            });
            let end = start + fits.count().max(1);
            done.extend(self.run_together(&jobs[start..end], work)?);
            start = end;
        }
        Ok(done)
    }

    /// Brings the pictures that jobs show to rows, unless they are there.
    fn see(&self, jobs: &[Job<'_, E::Stretch>], work: &mut Work<'_, E>) -> Result<()> {
        let mut fresh: Vec<(PictureDigest, &Patches)> = Vec::new();
        for (digest, image) in jobs.iter().flat_map(Job::pictures) {
            if work.pictures.contains_key(&digest) || fresh.iter().any(|(seen, _)| *seen == digest) {
                continue;
            }
            match work.prefixes.picture(&digest) {
                Some(rows) => drop(work.pictures.insert(digest, rows)),
                None => fresh.push((digest, image)),
            }
        }
        let mut next = 0;
        while next < fresh.len() {
            let mut patches = 0;
            let fits = fresh[next..].iter().take_while(|(_, image)| {
                patches += image.len();
                patches <= PATCHES_AT_ONCE
            });
            let group = &fresh[next..next + fits.count().max(1)];
            let images: Vec<&Patches> = group.iter().map(|(_, image)| *image).collect();
            for ((digest, _), rows) in group.iter().zip(self.engine.encode(&images)?) {
                let own = Arc::new(rows);
                work.prefixes.keep_picture(*digest, &own);
                work.pictures.insert(*digest, own);
            }
            next += group.len();
        }
        work.encoded += fresh.len();
        Ok(())
    }

    fn run_together(&self, jobs: &[Job<'_, E::Stretch>], work: &mut Work<'_, E>) -> Result<Vec<Ended<E>>> {
        let counts: Vec<usize> = jobs.iter().map(Job::len).collect();
        let mut positions: [Vec<u32>; 3] = Default::default();
        let (mut ids, mut lanes) = (Vec::new(), E::Lanes::default());
        for job in jobs {
            let (range, prompt) = (job.root.tokens..job.until, job.asked.prompt);
            ids.extend(&prompt.ids[range.clone()]);
            for (all, own) in positions.iter_mut().zip(&prompt.positions) {
                all.extend(&own[range.clone()]);
            }
        }
        let shown: Vec<Arc<E::Rows>> =
            jobs.iter().flat_map(Job::pictures).map(|(digest, _)| work.pictures[&digest].clone()).collect();
        let rows = self.engine.embed(&ids, &shown)?;
        let joining = |job: &Job<'_, E::Stretch>| Joining { context: job.root.parts.clone(), room: job.len() };
        self.engine.join(&mut lanes, jobs.iter().map(joining).collect())?;
        let hidden = self.engine.extend(&mut lanes, &counts, rows, &positions)?;
        let (mut end, mut ended) = (0, Vec::with_capacity(jobs.len()));
        for (job, own) in jobs.iter().zip(self.engine.stretches(lanes)?) {
            end += job.len();
            let last = Arc::new(self.engine.pick(&[&hidden], &[end - 1])?);
            ended.push((work.prefixes.keep(&job.asked.track, &job.root, &Arc::new(own)), last));
        }
        work.computed += counts.iter().sum::<usize>();
        Ok(ended)
    }
}

/// The beginnings that prompts have in common, each prompt in one of them. A prompt joins the one with which it has most in common if
/// that leaves at least half of it to the others.
fn alike(asked: &[Asked<'_>]) -> Vec<Trunk> {
    let mut trunks: Vec<Trunk> = Vec::new();
    for (index, one) in asked.iter().enumerate() {
        let most = one.track.len().saturating_sub(1);
        let common = |trunk: &Trunk| one.track.common(&asked[trunk.members[0]].track).min(trunk.tokens).min(most);
        let best = trunks.iter_mut().map(|trunk| (common(trunk), trunk)).max_by_key(|(tokens, _)| *tokens);
        match best {
            Some((tokens, trunk)) if tokens >= WORTH_SHARING && 2 * tokens >= trunk.tokens => {
                trunk.members.push(index);
                trunk.tokens = tokens;
            }
            _ => trunks.push(Trunk { members: vec![index], tokens: most }),
        }
    }
    trunks
}
