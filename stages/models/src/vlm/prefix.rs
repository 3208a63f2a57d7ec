//! What a loaded model keeps between requests: processed pictures, encoded pictures, and keys and values of prompts, within a budget of bytes.
//!
//! Prompts form a radix tree. A node holds the keys and values of the tokens by which its prompt differs from what was there before,
//! behind a chain of earlier nodes' tokens; a new prompt takes the longest chain that says the same and computes the rest. Two
//! prompts say the same up to a token if all ids and positions before it are equal and every picture that starts before it has the
//! same digest. Nothing else enters keys and values, and the host's kernels give a row the same bits whichever way the rows before it
//! came to be, so that what is kept changes the time of an answer and never the answer. (On tensors the rounding may differ: see
//! [`crate::vlm::infer`].)
//!
//! Weights that somebody may change are another matter: once variables were handed out ([`Weights::lent`]), requests that a
//! call takes up together still share, and nothing is kept.
//!
//! [`Weights::lent`]: crate::weights::Weights::lent

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Storage;

use crate::error::{ModelError, Result};
use crate::image::Patches;
use crate::vlm::Prompt;
use crate::vlm::infer::{Bytes, Host, KeysAndValues, PrefixesOf, Tensors};
use image::RgbImage;

/// Fewest tokens worth sharing: one step of the score kernel.
pub const WORTH_SHARING: usize = 16;
/// Prompts kept at most, so that looking through them stays cheap.
const MOST_NODES: usize = 1024;

/// BLAKE3 of a processed picture.
pub type PictureDigest = [u8; 32];

/// The first so many tokens of a stretch.
#[derive(Debug)]
pub struct Part<S> {
    /// The stretch.
    pub stretch: Arc<S>,
    /// Its tokens that count.
    pub tokens: usize,
}

impl<S> Clone for Part<S> {
    fn clone(&self) -> Part<S> {
        Part { stretch: self.stretch.clone(), tokens: self.tokens }
    }
}

impl<S> Part<S> {
    /// Whether both are the same tokens of one stretch.
    pub fn is(&self, other: &Part<S>) -> bool {
        Arc::ptr_eq(&self.stretch, &other.stretch) && self.tokens == other.tokens
    }
}

/// Keys and values of a prompt's first tokens, in stretches behind one another.
#[derive(Debug)]
pub struct Chain<S> {
    /// The stretches.
    pub parts: Vec<Part<S>>,
    /// Tokens in all.
    pub tokens: usize,
    /// The node that ends with the last part.
    node: Option<u64>,
}

impl<S> Clone for Chain<S> {
    fn clone(&self) -> Chain<S> {
        Chain { parts: self.parts.clone(), ..*self }
    }
}

impl<S> Default for Chain<S> {
    fn default() -> Chain<S> {
        Chain { parts: Vec::new(), tokens: 0, node: None }
    }
}

impl<S: KeysAndValues> Chain<S> {
    /// The chain up to a token.
    pub(super) fn cut(&self, tokens: usize) -> Chain<S> {
        let mut room = tokens;
        let mut parts = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            let tokens = part.tokens.min(room);
            if tokens > 0 {
                parts.push(Part { stretch: part.stretch.clone(), tokens });
            }
            room -= tokens;
        }
        Chain { parts, tokens: tokens - room, node: self.node }
    }

    /// The chain with another stretch behind it; no node yet.
    fn with(&self, stretch: &Arc<S>) -> Chain<S> {
        let mut parts = self.parts.clone();
        parts.push(Part { stretch: stretch.clone(), tokens: stretch.tokens() });
        Chain { parts, tokens: self.tokens + stretch.tokens(), node: None }
    }
}

/// Everything that decides the keys and values of a prompt's tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Track {
    ids: Vec<u32>,
    positions: [Vec<u32>; 3],
    pictures: Vec<Shown>,
}

/// A picture's place in a prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shown {
    /// Its first token.
    pub start: usize,
    /// The token behind its last.
    pub end: usize,
    /// Which picture it is.
    pub digest: PictureDigest,
}

impl Track {
    /// The track of a prompt whose pictures have these digests.
    ///
    /// # Errors
    /// When picture tokens and pictures differ in number.
    pub fn new(prompt: &Prompt, image_token: u32, digests: &[PictureDigest]) -> Result<Track> {
        let places: Vec<usize> =
            prompt.ids.iter().enumerate().filter(|(_, id)| **id == image_token).map(|(at, _)| at).collect();
        let mut pictures = Vec::with_capacity(digests.len());
        let mut next = 0;
        for (image, &digest) in prompt.images.iter().zip(digests) {
            if let Some([start, .., last] | [start @ last]) = places.get(next..next + image.tokens) {
                pictures.push(Shown { start: *start, end: last + 1, digest });
            }
            next += image.tokens;
        }
        match next.cmp(&places.len()) {
            std::cmp::Ordering::Less => Err(ModelError::Prompt("more image tokens than picture rows".into())),
            std::cmp::Ordering::Greater => Err(ModelError::Prompt("more picture rows than image tokens".into())),
            std::cmp::Ordering::Equal => {
                Ok(Track { ids: prompt.ids.clone(), positions: prompt.positions.clone(), pictures })
            }
        }
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The pictures in order.
    pub fn pictures(&self) -> &[Shown] {
        &self.pictures
    }

    /// Tokens up to which two tracks say the same; a picture counts whole or not at all.
    pub fn common(&self, other: &Track) -> usize {
        let same = |a: &[u32], b: &[u32]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
        let mut tokens = same(&self.ids, &other.ids);
        for (own, others) in self.positions.iter().zip(&other.positions) {
            tokens = tokens.min(same(own, others));
        }
        for index in 0..self.pictures.len().max(other.pictures.len()) {
            let pair = [self.pictures.get(index), other.pictures.get(index)];
            let shown = pair.into_iter().flatten();
            let start = shown.clone().map(|shown| shown.start).min().unwrap_or(tokens);
            let end = shown.map(|shown| shown.end).max().unwrap_or(tokens);
            if start >= tokens {
                break;
            }
            if pair[0] != pair[1] || end > tokens {
                return start;
            }
        }
        tokens
    }

    fn bytes(&self) -> usize {
        4 * size_of::<u32>() * self.ids.len() + size_of::<Shown>() * self.pictures.len()
    }
}

/// The digest of a processed picture: its values, its shape and the order of its tokens.
///
/// # Errors
/// When the values cannot be read.
pub fn digest(image: &Patches) -> Result<PictureDigest> {
    let mut hasher = blake3::Hasher::new();
    for size in image.grid.iter().chain([&image.tokens]) {
        hasher.update(&(*size as u64).to_le_bytes());
    }
    let picks = image.picks.as_deref().map_or(&[][..], Vec::as_slice);
    hasher.update(&(picks.len() as u64).to_le_bytes());
    for pick in picks {
        hasher.update(&pick.to_le_bytes());
    }
    let mut block = Vec::with_capacity(1 << 16);
    with_values(image, |values| {
        for values in values.chunks(1 << 14) {
            block.clear();
            block.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            hasher.update(&block);
        }
    })?;
    Ok(*hasher.finalize().as_bytes())
}

/// Where the values of a picture lie: equal for two pictures that live at one time only if they share them.
///
/// # Errors
/// When the values cannot be read.
pub(super) fn place(image: &Patches) -> Result<Option<(usize, usize)>> {
    let shared = image.pixels.device().is_cpu() && image.pixels.is_contiguous();
    Ok(if shared { Some(with_values(image, |values| (values.as_ptr() as usize, values.len()))?) } else { None })
}

fn with_values<R>(image: &Patches, work: impl FnOnce(&[f32]) -> R) -> Result<R> {
    if image.pixels.is_contiguous()
        && let (storage, layout) = image.pixels.storage_and_layout()
        && let Storage::Cpu(cpu) = &*storage
    {
        let start = layout.start_offset();
        return Ok(work(&cpu.as_slice::<f32>()?[start..start + image.pixels.elem_count()]));
    }
    Ok(work(&image.pixels.flatten_all()?.to_vec1::<f32>()?))
}

/// What was computed and what was there already, since the model was loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PrefixCounts {
    /// Pictures that passed the vision tower.
    pub pictures_encoded: u64,
    /// Pictures of prompts that did not, because they had before.
    pub pictures_reused: u64,
    /// Tokens of prompts that passed the language model.
    pub tokens_computed: u64,
    /// Tokens of prompts whose keys and values were there.
    pub tokens_reused: u64,
}

/// Encoded pictures and prompts of one model with its weights as they are.
#[derive(Debug)]
pub struct Prefixes<R, S> {
    budget: usize,
    counts: Arc<Mutex<PrefixCounts>>,
    kept: Mutex<Kept<R, S>>,
}

#[derive(Debug)]
struct Kept<R, S> {
    bytes: usize,
    clock: u64,
    pictures: BTreeMap<PictureDigest, Picture<R>>,
    /// Pictures as processed, by the digests of their bytes, and the bytes that they take.
    processed: BTreeMap<PictureDigest, (Patches, u64)>,
    processed_bytes: usize,
    nodes: BTreeMap<u64, Node<S>>,
}

#[derive(Debug)]
struct Picture<R> {
    rows: Arc<R>,
    used: u64,
}

#[derive(Debug)]
struct Node<S> {
    track: Track,
    chain: Chain<S>,
    parent: Option<u64>,
    children: usize,
    bytes: usize,
    used: u64,
}

impl<R: Bytes, S: KeysAndValues> Prefixes<R, S> {
    /// Nothing yet, and room for so many bytes.
    pub fn new(budget: usize) -> Prefixes<R, S> {
        Prefixes { budget, counts: Arc::default(), kept: Mutex::new(Kept::new()) }
    }

    /// Another with the same counts that keeps nothing.
    fn keeping_nothing(&self) -> Prefixes<R, S> {
        Prefixes { budget: 0, counts: self.counts.clone(), kept: Mutex::new(Kept::new()) }
    }

    /// Bytes that may be kept.
    pub fn budget(&self) -> usize {
        self.budget
    }

    /// Bytes that are kept.
    pub fn bytes(&self) -> usize {
        let kept = self.lock();
        kept.bytes + kept.processed_bytes
    }

    /// What of the budget processed pictures may take.
    fn share_of_processed(&self) -> usize {
        self.budget / 8
    }

    fn share_of_computed(&self) -> usize {
        self.budget - self.share_of_processed()
    }

    /// A processed picture: what is kept of equal bytes, else what `process` makes of them. Its tensor is one of its own over
    /// shared values.
    fn processed(&self, image: &RgbImage, process: impl FnOnce() -> Result<Patches>) -> Result<Patches> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&image.width().to_le_bytes()).update(image.as_raw());
        let key = *hasher.finalize().as_bytes();
        let mut kept = self.lock();
        let now = kept.tick();
        if let Some((patches, used)) = kept.processed.get_mut(&key) {
            *used = now;
            return Ok(Patches { pixels: patches.pixels.reshape(patches.pixels.shape())?, ..patches.clone() });
        }
        drop(kept);
        let patches = process()?;
        let bytes = patches.pixels.elem_count() * size_of::<f32>();
        let mut kept = self.lock();
        if bytes <= self.share_of_processed() && !kept.processed.contains_key(&key) {
            kept.processed.insert(key, (patches.clone(), now));
            kept.processed_bytes += bytes;
            kept.shrink_processed(self.share_of_processed());
        }
        Ok(patches)
    }

    /// What was computed and what was there.
    pub fn counts(&self) -> PrefixCounts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to the counts.
    pub(super) fn count(&self, more: &PrefixCounts) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.pictures_encoded += more.pictures_encoded;
        counts.pictures_reused += more.pictures_reused;
        counts.tokens_computed += more.tokens_computed;
        counts.tokens_reused += more.tokens_reused;
    }

    /// Every change leaves the state whole, so that one thread's panic spoils nothing for the others.
    fn lock(&self) -> MutexGuard<'_, Kept<R, S>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rows of a picture that was encoded before.
    pub(super) fn picture(&self, digest: &PictureDigest) -> Option<Arc<R>> {
        let mut kept = self.lock();
        let now = kept.tick();
        let picture = kept.pictures.get_mut(digest)?;
        picture.used = now;
        Some(picture.rows.clone())
    }

    /// Keeps the rows of a picture.
    pub(super) fn keep_picture(&self, digest: PictureDigest, rows: &Arc<R>) {
        let (mut kept, bytes) = (self.lock(), rows.bytes());
        if bytes > self.share_of_computed() || kept.pictures.contains_key(&digest) {
            return;
        }
        let used = kept.tick();
        kept.pictures.insert(digest, Picture { rows: rows.clone(), used });
        kept.bytes += bytes;
        kept.shrink(self.share_of_computed());
    }

    /// The longest kept chain that begins as the track does, of `most` tokens at most; an empty one where none is worth it.
    pub(super) fn find(&self, track: &Track, most: usize) -> Chain<S> {
        let mut kept = self.lock();
        let common = |(id, node): (&u64, &Node<S>)| (node.chain.tokens.min(track.common(&node.track)).min(most), *id);
        let Some((tokens, id)) = kept.nodes.iter().map(common).max_by_key(|(tokens, _)| *tokens) else {
            return Chain::default();
        };
        if tokens < WORTH_SHARING {
            return Chain::default();
        }
        let now = kept.tick();
        let mut next = Some(id);
        while let Some(node) = next.and_then(|id| kept.nodes.get_mut(&id)) {
            node.used = now;
            next = node.parent;
        }
        kept.nodes[&id].chain.cut(tokens)
    }

    /// Keeps a stretch computed behind `root`, unless it is shorter than what is worth it; the chain that ends with it.
    pub(super) fn keep(&self, track: &Track, root: &Chain<S>, stretch: &Arc<S>) -> Chain<S> {
        let mut chain = root.with(stretch);
        let bytes = stretch.bytes() + track.bytes();
        let mut kept = self.lock();
        // The root may have been thrown out meanwhile; its stretches, alive through this chain, would not be counted.
        let rooted =
            root.node.is_none_or(|node| kept.nodes.contains_key(&node)) && (root.tokens == 0) == root.node.is_none();
        if !rooted || bytes > self.share_of_computed() || stretch.tokens() < WORTH_SHARING {
            return chain;
        }
        let (id, parent) = (kept.tick(), root.node);
        if let Some(parent) = parent.and_then(|parent| kept.nodes.get_mut(&parent)) {
            parent.children += 1;
        }
        chain.node = Some(id);
        kept.nodes
            .insert(id, Node { track: track.clone(), chain: chain.clone(), parent, children: 0, bytes, used: id });
        kept.bytes += bytes;
        kept.shrink(self.share_of_computed());
        chain
    }
}

/// What a model keeps, as the engine that it runs on has it.
#[derive(Debug, Clone)]
pub(crate) enum Store {
    /// Rows on the processor.
    Host(Arc<PrefixesOf<Host<'static>>>),
    /// Tensors on the model's device.
    Tensors(Arc<PrefixesOf<Tensors>>),
}

/// The same expression for either engine's prefixes.
macro_rules! of_either {
    ($store:expr, $prefixes:ident => $work:expr) => {
        match $store {
            Store::Host($prefixes) => $work,
            Store::Tensors($prefixes) => $work,
        }
    };
}

impl Store {
    /// Nothing yet, and room for so many bytes.
    pub(crate) fn new(tensors: bool, budget: usize) -> Store {
        match tensors {
            false => Store::Host(Arc::new(Prefixes::new(budget))),
            true => Store::Tensors(Arc::new(Prefixes::new(budget))),
        }
    }

    /// Nothing yet, for the same engine and with the same room.
    pub(crate) fn anew(&self) -> Store {
        Store::new(matches!(self, Store::Tensors(_)), of_either!(self, prefixes => prefixes.budget()))
    }

    /// Another with the same counts that keeps nothing.
    pub(crate) fn keeping_nothing(&self) -> Store {
        match self {
            Store::Host(prefixes) => Store::Host(Arc::new(prefixes.keeping_nothing())),
            Store::Tensors(prefixes) => Store::Tensors(Arc::new(prefixes.keeping_nothing())),
        }
    }

    /// Bytes that are kept.
    pub(crate) fn bytes(&self) -> usize {
        of_either!(self, prefixes => prefixes.bytes())
    }

    /// What was computed and what was there.
    pub(crate) fn counts(&self) -> PrefixCounts {
        of_either!(self, prefixes => prefixes.counts())
    }

    /// A processed picture: what is kept of equal bytes, else what `process` makes of them.
    pub(super) fn processed(&self, image: &RgbImage, process: impl FnOnce() -> Result<Patches>) -> Result<Patches> {
        of_either!(self, prefixes => prefixes.processed(image, process))
    }
}

impl<R: Bytes, S> Kept<R, S> {
    fn new() -> Kept<R, S> {
        let (pictures, processed, nodes) = Default::default();
        Kept { bytes: 0, clock: 0, pictures, processed, processed_bytes: 0, nodes }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Throws out what was used longest ago, of prompts those that no other hangs on.
    fn shrink(&mut self, budget: usize) {
        while self.bytes > budget || self.nodes.len() > MOST_NODES {
            let leaves = self.nodes.iter().filter(|(_, node)| node.children == 0);
            let leaf = leaves.map(|(id, node)| (node.used, *id)).min();
            let picture = self.pictures.iter().map(|(digest, picture)| (picture.used, *digest)).min();
            match (leaf, picture) {
                (Some((used, id)), other) if self.nodes.len() > MOST_NODES || other.is_none_or(|(at, _)| used < at) => {
                    self.remove(id);
                }
                (_, Some((_, digest))) => {
                    let gone = self.pictures.remove(&digest).expect("just found");
                    self.bytes -= gone.rows.bytes();
                }
                (_, None) => return,
            }
        }
    }

    fn shrink_processed(&mut self, budget: usize) {
        while self.processed_bytes > budget {
            let oldest = self.processed.iter().map(|(key, (_, used))| (*used, *key)).min();
            let Some(gone) = oldest.and_then(|(_, key)| self.processed.remove(&key)) else { return };
            self.processed_bytes -= gone.0.pixels.elem_count() * size_of::<f32>();
        }
    }

    fn remove(&mut self, id: u64) {
        let gone = self.nodes.remove(&id).expect("a leaf is there");
        self.bytes -= gone.bytes;
        if let Some(parent) = gone.parent.and_then(|parent| self.nodes.get_mut(&parent)) {
            parent.children -= 1;
        }
    }
}
