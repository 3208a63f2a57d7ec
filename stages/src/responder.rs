//! The responder: asks a model and never asks twice.
//!
//! Every request (model identity, messages, pictures, sampling, seed, numerics class) is looked up in the memo first and
//! stored as it completes, so a killed stage resumes where it stopped and an edited input re-asks only what changed. Equal
//! requests of one call are asked once. A local model is loaded at the first request that the memo cannot answer: a stage
//! whose answers are all known never reads the weights.
//!
//! | enters the key | does not |
//! |---|---|
//! | model identity, numerics class | model name, provider limits, price |
//! | system and user text | which stage, node or question asks |
//! | picture digest, box and mask | the dataset's name or place |
//! | sampling and seed (greedy: no seed) | batch size, thread count, order |
//! | for scores: own prefix and continuation | the other options |

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use mpcc_engine::cache::Digest;
use mpcc_engine::resources::CpuLevel;
use mpcc_engine::stage::{Context, ModelInput, Note, Provider, StageError};
use mpcc_models::DType;
use mpcc_models::chat::{Part, Role, Turn};
use mpcc_models::device::DeviceChoice;
use mpcc_models::generate::{Completion, GenerateRequest};
use mpcc_models::sample::Sampling;
use mpcc_models::score::ScoreRequest;
use mpcc_models::vlm::{LoadOptions, Prompt, Vlm};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::dataset::Dataset;
use crate::draw;
use crate::mask::{Mask, MaskedImage};
use crate::record::{Region, Usage};

/// Requests handed to the model at a time: enough to fill its batches, few enough for a lively progress bar.
const CHUNK: usize = 64;
const NAMESPACE: &str = "vlm";

/// A picture as a model is shown it.
#[derive(Clone, Debug)]
pub enum Picture {
    /// An item with its object hidden.
    Masked {
        /// The hidden region.
        region: Region,
        /// How it is hidden.
        mask: Mask,
    },
    /// A picture as it is.
    Open {
        /// Path inside the dataset.
        image: String,
        /// BLAKE3 of the file.
        digest: String,
    },
}

impl Picture {
    fn key(&self) -> serde_json::Value {
        match self {
            Self::Masked { region, mask } => {
                json!({ "image": region.image_digest, "box": region.bbox, "mask": mask, "annotation": region.annotation })
            }
            Self::Open { digest, .. } => json!({ "image": digest }),
        }
    }

    fn render(&self, dataset: &Dataset) -> Result<image::RgbImage, StageError> {
        match self {
            Self::Masked { region, mask } => Ok(MaskedImage::open(dataset, region, mask)?.into_rgb()),
            Self::Open { image, .. } => Ok(dataset.open_rgb(image)?),
        }
    }
}

/// One thing asked of a model.
#[derive(Clone, Debug)]
pub struct Request {
    /// The system prompt; `None` falls back to the model's own.
    pub system: Option<String>,
    /// The user turn's text, after the pictures.
    pub user: String,
    /// The pictures.
    pub pictures: Vec<Picture>,
}

/// A generated reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The text, tags included, end tokens excluded.
    pub text: String,
    /// Whether the model ended by itself.
    pub finished: bool,
    /// Token counts.
    pub usage: Usage,
}

/// Options whose log-probability is wanted at one place.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the model has generated so far, up to where the options go; empty for the start of its turn.
    pub prefix: String,
    /// The texts; each ends with its closing tag, or with the end of the turn when `closed` is set.
    pub continuations: Vec<String>,
    /// Whether the end-of-turn token is scored too.
    pub closed: bool,
}

/// Asks one model about the pictures of one dataset.
pub struct Responder<'a> {
    ctx: &'a Context,
    dataset: &'a Dataset,
    model: &'a ModelInput,
    vlm: Option<Vlm>,
    hits: u64,
    misses: u64,
}

impl<'a> Responder<'a> {
    /// A responder for `model`. Fails when no provider for it is built in.
    pub fn new(ctx: &'a Context, dataset: &'a Dataset, model: &'a ModelInput) -> Result<Self, StageError> {
        if model.provider != Provider::Local {
            let message =
                format!("model `{}`: this build runs `provider: local` only; bind a local model instead", model.name);
            return Err(StageError::invalid(message));
        }
        Ok(Self { ctx, dataset, model, vlm: None, hits: 0, misses: 0 })
    }

    /// The name records carry for the model: the coordinate-free name under `models`, or its node.
    pub fn model_name(&self) -> &str {
        &self.model.name
    }

    /// One reply per seed for every request, in order. Greedy sampling ignores the seeds' values but not their count.
    pub fn generate(
        &mut self,
        requests: &[Request],
        sampling: &Sampling,
        seeds: &[Vec<u64>],
    ) -> Result<Vec<Vec<Reply>>, StageError> {
        let keys: Vec<Vec<Digest>> = requests
            .iter()
            .zip(seeds)
            .map(|(request, seeds)| seeds.iter().map(|seed| self.generation_key(request, sampling, *seed)).collect())
            .collect();
        let mut known: BTreeMap<Digest, Reply> = BTreeMap::new();
        let mut wanted: Vec<(usize, Vec<(Digest, u64)>)> = Vec::new();
        let mut asked = std::collections::BTreeSet::new();
        for (index, keys) in keys.iter().enumerate() {
            let mut missing = Vec::new();
            for (key, seed) in keys.iter().zip(&seeds[index]) {
                if !known.contains_key(key) && asked.insert(*key) {
                    match self.recall(key) {
                        Some(reply) => drop(known.insert(*key, reply)),
                        None => missing.push((*key, *seed)),
                    }
                }
            }
            if !missing.is_empty() {
                wanted.push((index, missing));
            }
        }
        self.ask(requests, sampling, &wanted, &mut known)?;
        Ok(keys.iter().map(|keys| keys.iter().map(|key| known[key].clone()).collect()).collect())
    }

    fn ask(
        &mut self,
        requests: &[Request],
        sampling: &Sampling,
        wanted: &[(usize, Vec<(Digest, u64)>)],
        known: &mut BTreeMap<Digest, Reply>,
    ) -> Result<(), StageError> {
        for (position, chunk) in wanted.chunks(CHUNK).enumerate() {
            self.ctx.check_cancelled()?;
            self.ctx.progress((position * CHUNK) as u64, wanted.len() as u64, "requests");
            let batch = chunk.iter().map(|(index, missing)| {
                let prompt = Arc::new(self.prompt(&requests[*index])?);
                let seeds = missing.iter().map(|(_, seed)| *seed).collect();
                Ok(GenerateRequest { prompt, sampling: *sampling, seeds })
            });
            let batch: Vec<GenerateRequest> = batch.collect::<Result<_, StageError>>()?;
            let mut failure = None;
            let memo = self.ctx.memo.clone();
            let mut done = |request: usize, completions: Vec<Completion>| {
                for ((key, _), completion) in chunk[request].1.iter().zip(completions) {
                    let reply = reply(&batch[request].prompt, completion);
                    if let Err(error) =
                        memo.put(NAMESPACE, key, &serde_json::to_vec(&reply).expect("a reply is plain data"))
                    {
                        failure = Some(StageError::Machine(format!("the memo: {error}")));
                        return ControlFlow::Break(());
                    }
                    known.insert(*key, reply);
                }
                if self.ctx.check_cancelled().is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let vlm = self.vlm.as_ref().expect("loaded by prompt()");
            vlm.generate(&batch, &mut done).map_err(model_error)?;
            if let Some(failure) = failure {
                return Err(failure);
            }
            self.ctx.check_cancelled()?;
            self.misses += chunk.iter().map(|(_, missing)| missing.len() as u64).sum::<u64>();
            self.report();
        }
        self.report();
        Ok(())
    }

    /// Summed natural log-probabilities of every continuation of every request, in order.
    pub fn score(&mut self, requests: &[Request], options: &[Options]) -> Result<Vec<Vec<f64>>, StageError> {
        let mut known: BTreeMap<Digest, f64> = BTreeMap::new();
        let mut wanted: BTreeMap<Digest, (usize, Vec<(Digest, String)>)> = BTreeMap::new();
        let mut order: Vec<Digest> = Vec::new();
        let mut keys = Vec::with_capacity(requests.len());
        for (index, (request, options)) in requests.iter().zip(options).enumerate() {
            let place = self.place_key(request, options);
            let row: Vec<Digest> = options.continuations.iter().map(|text| continuation_key(&place, text)).collect();
            for (key, text) in row.iter().zip(&options.continuations) {
                if known.contains_key(key) {
                    continue;
                }
                if let Some(value) = self.recall(key) {
                    known.insert(*key, value);
                    continue;
                }
                let entry = wanted.entry(place).or_insert_with(|| {
                    order.push(place);
                    (index, Vec::new())
                });
                if !entry.1.iter().any(|(seen, _)| seen == key) {
                    entry.1.push((*key, text.clone()));
                }
            }
            keys.push(row);
        }
        for chunk in order.chunks(CHUNK) {
            self.ctx.check_cancelled()?;
            let places: Vec<&(usize, Vec<(Digest, String)>)> = chunk.iter().map(|place| &wanted[place]).collect();
            self.score_chunk(requests, options, &places, &mut known)?;
        }
        self.report();
        Ok(keys.iter().map(|row| row.iter().map(|key| known[key]).collect()).collect())
    }

    fn score_chunk(
        &mut self,
        requests: &[Request],
        options: &[Options],
        places: &[&(usize, Vec<(Digest, String)>)],
        known: &mut BTreeMap<Digest, f64>,
    ) -> Result<(), StageError> {
        let mut batch = Vec::with_capacity(places.len());
        for (index, missing) in places {
            let prompt = Arc::new(self.prompt(&requests[*index])?);
            let vlm = self.vlm.as_ref().expect("loaded by prompt()");
            let options = &options[*index];
            let continuations = missing
                .iter()
                .map(|(_, text)| continuation_ids(vlm, text, options.closed))
                .collect::<Result<_, _>>()?;
            batch.push(ScoreRequest { prompt, prefix: encode(vlm, &options.prefix)?, continuations });
        }
        let scores = self.vlm.as_ref().expect("loaded by prompt()").score(&batch).map_err(model_error)?;
        for ((_, missing), scores) in places.iter().zip(scores) {
            for ((key, _), score) in missing.iter().zip(scores) {
                let bytes = serde_json::to_vec(&score).expect("a number is plain data");
                self.ctx
                    .memo
                    .put(NAMESPACE, key, &bytes)
                    .map_err(|error| StageError::Machine(format!("the memo: {error}")))?;
                known.insert(*key, score);
                self.misses += 1;
            }
        }
        Ok(())
    }

    fn prompt(&mut self, request: &Request) -> Result<Prompt, StageError> {
        let system = self.system(request).map(str::to_owned);
        let images =
            request.pictures.iter().map(|picture| picture.render(self.dataset)).collect::<Result<Vec<_>, _>>()?;
        prompt(self.load()?, system.as_deref(), &request.user, &images)
    }

    fn load(&mut self) -> Result<&Vlm, StageError> {
        if self.vlm.is_none() {
            self.vlm = Some(load_local(self.ctx, self.model)?);
        }
        Ok(self.vlm.as_ref().expect("just loaded"))
    }

    fn system<'r>(&'r self, request: &'r Request) -> Option<&'r str> {
        request.system.as_deref().or_else(|| self.model.settings.get("system").and_then(serde_json::Value::as_str))
    }

    fn recall<T: for<'de> Deserialize<'de>>(&mut self, key: &Digest) -> Option<T> {
        let value = self.ctx.memo.get(NAMESPACE, key).and_then(|bytes| serde_json::from_slice(&bytes).ok())?;
        self.hits += 1;
        Some(value)
    }

    fn report(&self) {
        self.ctx.notes.note(Note::Memo { hits: self.hits, misses: self.misses });
    }

    fn base_key(&self, request: &Request) -> serde_json::Value {
        let pictures: Vec<_> = request.pictures.iter().map(Picture::key).collect();
        json!({
            "v": 1, "model": self.model.identity, "numerics": numerics(self.ctx),
            "system": self.system(request), "user": request.user, "pictures": pictures,
        })
    }

    fn generation_key(&self, request: &Request, sampling: &Sampling, seed: u64) -> Digest {
        let seed = if sampling.temperature > 0.0 { json!(seed) } else { json!(null) };
        let key = json!({ "ask": self.base_key(request), "sampling": sampling, "seed": seed });
        Digest::of(key.to_string().as_bytes())
    }

    fn place_key(&self, request: &Request, options: &Options) -> Digest {
        let key = json!({ "ask": self.base_key(request), "prefix": options.prefix, "closed": options.closed });
        Digest::of(key.to_string().as_bytes())
    }
}

fn continuation_key(place: &Digest, text: &str) -> Digest {
    Digest::of(format!("{place}\n{text}").as_bytes())
}

fn reply(prompt: &Prompt, completion: Completion) -> Reply {
    let usage = Usage { prompt: prompt.ids.len() as u32, completion: completion.ids.len() as u32 };
    Reply { text: completion.text, finished: completion.finished, usage }
}

fn continuation_ids(vlm: &Vlm, text: &str, closed: bool) -> Result<Vec<u32>, StageError> {
    let mut ids = encode(vlm, text)?;
    if closed {
        ids.extend(vlm.eos().first());
    }
    Ok(ids)
}

/// Token ids of `text`; an empty text has none.
pub fn encode(vlm: &Vlm, text: &str) -> Result<Vec<u32>, StageError> {
    vlm.encode(text).map_err(model_error)
}

/// A prompt of an optional system turn and one user turn: pictures first, then text.
pub fn prompt(vlm: &Vlm, system: Option<&str>, user: &str, images: &[image::RgbImage]) -> Result<Prompt, StageError> {
    let mut turns = Vec::new();
    turns.extend(system.map(|text| Turn { role: Role::System, parts: vec![Part::Text(text.to_owned())] }));
    let mut parts: Vec<Part> = images.iter().map(|_| Part::Image).collect();
    parts.push(Part::Text(user.to_owned()));
    turns.push(Turn { role: Role::User, parts });
    vlm.prompt(&turns, images, true).map_err(model_error)
}

/// Loads the weights of a local model.
pub fn load_local(ctx: &Context, model: &ModelInput) -> Result<Vlm, StageError> {
    let dir =
        model.dir.as_deref().ok_or_else(|| StageError::invalid(format!("model `{}` has no directory", model.name)))?;
    let (device, dtype) = match ctx.devices.first() {
        Some(device) => (DeviceChoice::Cuda(*device), dtype(model)?),
        None => (DeviceChoice::Cpu, DType::F32),
    };
    let options = LoadOptions { threads: ctx.threads, dtype, device };
    Vlm::load(dir, &options).map_err(model_error)
}

/// The numerics class of this process: answers may differ between devices and CPU levels in the last bits.
fn numerics(ctx: &Context) -> String {
    if ctx.devices.is_empty() { format!("cpu/{}", CpuLevel::detect()) } else { "cuda".to_owned() }
}

/// The type of the weights on a GPU: `dtype:` of the model, bf16 by default. On the CPU f32 is both exact and fastest.
fn dtype(model: &ModelInput) -> Result<DType, StageError> {
    match model.settings.get("dtype").and_then(serde_json::Value::as_str) {
        None | Some("bf16") => Ok(DType::BF16),
        Some("f32") => Ok(DType::F32),
        Some(other) => {
            Err(StageError::invalid(format!("model `{}`: dtype `{other}` is neither bf16 nor f32", model.name)))
        }
    }
}

/// A model's error as the stage's.
pub fn model_error(error: mpcc_models::ModelError) -> StageError {
    StageError::invalid(error.to_string())
}

/// The seed of draw `index` for one purpose and subject (a record's id), whatever else is asked.
pub fn seed(ctx: &Context, purpose: &str, subject: &str, index: u32) -> u64 {
    draw::rank(ctx.seed, purpose, &format!("{subject}\n{index}"))
}
