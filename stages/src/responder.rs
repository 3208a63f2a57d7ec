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
//!
//! While a request is being answered it is claimed: whoever else wants the same, in another node or another run, does
//! something else meanwhile and finds the answer in the memo. Nobody waits while holding a claim that others could want.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use mpcc_engine::asking::{Asks, Claim, Quota};
use mpcc_engine::cache::{Charge, Digest};
use mpcc_engine::stage::{Context, Memo, ModelInput, Note, Provider, StageError};
use mpcc_models::generate::{Completion, GenerateRequest};
use mpcc_models::sample::Sampling;
use mpcc_models::score::ScoreRequest;
use mpcc_models::vlm::{Prompt, Vlm};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::dataset::Dataset;
use crate::draw;
use crate::mask::{Mask, MaskedImage, Shape};
use crate::provider::local::{continuation_ids, encode, load_local, model_error, numerics, prompt};
use crate::provider::openai::{Server, data_url};
use crate::provider::replay::Replay;
use crate::provider::served::{Answered, Caller, Exchange, Wanted};
use crate::record::{Region, Usage};

/// Requests handed to the model at a time: enough to fill its batches, few enough for a lively progress bar.
const CHUNK: usize = 64;
/// How soon to look again at requests that others are at.
const ELSEWHERE_POLL: Duration = Duration::from_millis(50);
/// What a server charges for one large picture, tokens.
const PICTURE_TOKENS: usize = 1500;
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
    fn key(&self, dataset: &Dataset) -> serde_json::Value {
        match self {
            Self::Masked { region, mask } => {
                // The outline lies in the dataset's annotations and may be mended there.
                let outline = (mask.shape == Shape::Segment).then(|| {
                    let annotation = dataset.annotation(region.annotation).map(|one| json!(one.segmentation));
                    Digest::of(json!(annotation).to_string().as_bytes())
                });
                json!({ "image": region.image_digest, "box": region.bbox, "mask": mask, "outline": outline })
            }
            Self::Open { digest, .. } => json!({ "image": digest }),
        }
    }

    /// The file that a server is sent: as it is, or with the object hidden.
    fn encoded(&self, dataset: &Dataset) -> Result<Vec<u8>, StageError> {
        let as_is = match self {
            Self::Open { image, .. } => Some(dataset.image_bytes(image)?),
            Self::Masked { .. } => None,
        };
        let sendable = |bytes: &Vec<u8>| bytes.starts_with(b"\x89PNG") || bytes.starts_with(&[0xff, 0xd8]);
        if let Some(bytes) = as_is.filter(sendable) {
            return Ok(bytes);
        }
        let mut png = std::io::Cursor::new(Vec::new());
        let written = self.render(dataset)?.write_to(&mut png, image::ImageFormat::Png);
        written.map_err(|error| StageError::invalid(format!("a picture cannot be written as PNG: {error}")))?;
        Ok(png.into_inner())
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
    /// The record it is about: its id. For recorded answers and messages; not for the key.
    pub subject: String,
}

/// A generated reply.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The text, tags included, end tokens excluded.
    pub text: String,
    /// Whether the model ended by itself.
    pub finished: bool,
    /// Token counts.
    pub usage: Usage,
    /// The model that a server says it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served: Option<String>,
    /// What it cost in dollars, of a served model with a price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
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

/// Who answers what the memo does not.
enum Answerer {
    /// Weights, loaded at the first request.
    Local(Option<Box<Vlm>>),
    Served {
        server: Box<Server>,
        quota: Box<Quota>,
    },
    Replay(Replay),
}

/// Asks one model about the pictures of one dataset.
pub struct Responder<'a> {
    ctx: &'a Context,
    dataset: &'a Dataset,
    model: &'a ModelInput,
    answerer: Answerer,
}

/// A request with the seeds that the memo does not answer.
struct Open {
    request: usize,
    missing: Vec<(Digest, u64)>,
}

/// A place in a prompt with the options that the memo does not score.
struct OpenPlace {
    request: usize,
    place: Digest,
    missing: Vec<(Digest, String)>,
}

impl<'a> Responder<'a> {
    /// A responder for `model`.
    ///
    /// # Errors
    /// The model's settings or its recorded answers are malformed, or its key is not there.
    pub fn new(ctx: &'a Context, dataset: &'a Dataset, model: &'a ModelInput) -> Result<Self, StageError> {
        let answerer = match model.provider {
            Provider::Local => Answerer::Local(None),
            Provider::Openai => {
                Answerer::Served { server: Server::new(ctx, model)?.into(), quota: Box::new(ctx.asking.quota(model)?) }
            }
            Provider::Replay => Answerer::Replay(Replay::open(model)?),
        };
        Ok(Self { ctx, dataset, model, answerer })
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
        let row = |(request, seeds): (&Request, &Vec<u64>)| self.generation_keys(request, sampling, seeds);
        let keys: Vec<Vec<Digest>> = requests.iter().zip(seeds).map(row).collect();
        let mut known: BTreeMap<Digest, Reply> = BTreeMap::new();
        let mut wanted: Vec<Open> = Vec::new();
        let mut asked = BTreeSet::new();
        for (request, keys) in keys.iter().enumerate() {
            let mut missing = Vec::new();
            for (key, seed) in keys.iter().zip(&seeds[request]) {
                if !known.contains_key(key) && asked.insert(*key) {
                    match self.recall(key) {
                        Some(reply) => drop(known.insert(*key, reply)),
                        None => missing.push((*key, *seed)),
                    }
                }
            }
            if !missing.is_empty() {
                wanted.push(Open { request, missing });
            }
        }
        self.announce(requests, sampling, &keys, &known, &wanted)?;
        self.answer(requests, sampling, wanted, &keys, &mut known)?;
        self.report(0);
        Ok(keys.iter().map(|keys| keys.iter().map(|key| known[key].clone()).collect()).collect())
    }

    /// Says what is about to be asked; a rehearsal ends here when there is anything.
    fn announce(
        &self,
        requests: &[Request],
        sampling: &Sampling,
        keys: &[Vec<Digest>],
        known: &BTreeMap<Digest, Reply>,
        wanted: &[Open],
    ) -> Result<(), StageError> {
        self.ctx.asking.announce(|| {
            let total = keys.iter().map(|keys| keys.len() as u64).sum();
            let missing = wanted.iter().map(|open| open.missing.len() as u64).sum();
            let asks = Asks { total, missing, ..Asks::default() };
            let Answerer::Served { quota, .. } = &self.answerer else { return asks };
            let costs: Vec<f64> = known.values().filter_map(|reply| reply.cost).collect();
            let recorded = match quota.mean() {
                _ if !costs.is_empty() => Some(costs.iter().sum::<f64>() / costs.len() as f64),
                Ok(Some(mean)) if quota.has_price() => Some(mean.dollars()),
                _ => None,
            };
            let most = |open: &Open| {
                open.missing.len() as f64 * self.estimate(quota, &requests[open.request], sampling, None).dollars()
            };
            let dollars = match recorded {
                Some(mean) => Some(mean * missing as f64),
                None => quota.has_price().then(|| wanted.iter().map(most).sum()),
            };
            Asks { dollars, recorded: recorded.is_some(), ..asks }
        })
    }

    fn answer(
        &mut self,
        requests: &[Request],
        sampling: &Sampling,
        wanted: Vec<Open>,
        keys: &[Vec<Digest>],
        known: &mut BTreeMap<Digest, Reply>,
    ) -> Result<(), StageError> {
        match &self.answerer {
            Answerer::Local(_) => self.generate_here(requests, sampling, wanted, known),
            Answerer::Served { .. } => self.ask_server(requests, sampling, wanted, known),
            Answerer::Replay(_) => self.replay(requests, &wanted, keys, known),
        }
    }

    fn generate_here(
        &mut self,
        requests: &[Request],
        sampling: &Sampling,
        wanted: Vec<Open>,
        known: &mut BTreeMap<Digest, Reply>,
    ) -> Result<(), StageError> {
        let total = wanted.len() as u64;
        let mut queue = VecDeque::from(wanted);
        while !queue.is_empty() {
            self.ctx.check_cancelled()?;
            self.ctx.progress(total - queue.len() as u64, total, "requests");
            let (chunk, _claims) = self.take_chunk(&mut queue, known);
            if !chunk.is_empty() {
                self.generate_chunk(requests, sampling, &chunk, known)?;
                self.report(chunk.iter().map(|open| open.missing.len() as u64).sum());
            } else if !queue.is_empty() {
                std::thread::sleep(ELSEWHERE_POLL);
            }
        }
        Ok(())
    }

    /// The next requests that nobody else is at, with the claims on them. What others have answered meanwhile goes to
    /// `known`; what they are at goes to the end of the queue.
    fn take_chunk(&self, queue: &mut VecDeque<Open>, known: &mut BTreeMap<Digest, Reply>) -> (Vec<Open>, Vec<Claim>) {
        let (mut chunk, mut claims) = (Vec::new(), Vec::new());
        for _ in 0..queue.len() {
            if chunk.len() == CHUNK {
                break;
            }
            let Some(Open { request, missing }) = queue.pop_front() else { break };
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for (key, seed) in missing {
                let claim = self.ctx.asking.claim(&key);
                match (self.recall(&key), claim) {
                    (Some(reply), _) => drop(known.insert(key, reply)),
                    (None, Some(claim)) => {
                        ours.push((key, seed));
                        claims.push(claim);
                    }
                    (None, None) => theirs.push((key, seed)),
                }
            }
            if !theirs.is_empty() {
                queue.push_back(Open { request, missing: theirs });
            }
            if !ours.is_empty() {
                chunk.push(Open { request, missing: ours });
            }
        }
        (chunk, claims)
    }

    fn generate_chunk(
        &mut self,
        requests: &[Request],
        sampling: &Sampling,
        chunk: &[Open],
        known: &mut BTreeMap<Digest, Reply>,
    ) -> Result<(), StageError> {
        let batch = chunk.iter().map(|open| {
            let prompt = Arc::new(self.prompt(&requests[open.request])?);
            let seeds = open.missing.iter().map(|(_, seed)| *seed).collect();
            Ok(GenerateRequest { prompt, sampling: *sampling, seeds })
        });
        let batch: Vec<GenerateRequest> = batch.collect::<Result<_, StageError>>()?;
        let mut failure = None;
        let memo = self.ctx.memo.as_ref();
        let mut done = |request: usize, completions: Vec<Completion>| {
            for ((key, _), completion) in chunk[request].missing.iter().zip(completions) {
                let reply = reply(&batch[request].prompt, completion);
                if let Err(error) = keep(memo, key, &reply) {
                    failure = Some(error);
                    return ControlFlow::Break(());
                }
                known.insert(*key, reply);
            }
            if self.ctx.check_cancelled().is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        self.vlm().generate(&batch, &mut done).map_err(model_error)?;
        failure.map_or(Ok(()), Err)?;
        self.ctx.check_cancelled()
    }

    fn ask_server(
        &self,
        requests: &[Request],
        sampling: &Sampling,
        wanted: Vec<Open>,
        known: &mut BTreeMap<Digest, Reply>,
    ) -> Result<(), StageError> {
        let Answerer::Served { server, quota } = &self.answerer else { return Ok(()) };
        let each = |open: Open| {
            let subject = requests[open.request].subject.clone();
            open.missing.into_iter().map(move |(key, seed)| Wanted {
                request: open.request,
                key,
                seed,
                subject: subject.clone(),
            })
        };
        let wanted: Vec<Wanted> = wanted.into_iter().flat_map(each).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let mut caller = Asker { responder: self, server, quota, requests, sampling, known, answers: 0, answered: 0 };
        Exchange::new(self.ctx, server, quota).run(wanted, &mut caller)
    }

    fn replay(
        &self,
        requests: &[Request],
        wanted: &[Open],
        keys: &[Vec<Digest>],
        known: &mut BTreeMap<Digest, Reply>,
    ) -> Result<(), StageError> {
        let Answerer::Replay(replay) = &self.answerer else { return Ok(()) };
        for Open { request, missing } in wanted {
            for (key, _) in missing {
                let repeat = keys[*request].iter().position(|one| one == key).unwrap_or(0);
                let text = replay.answer(&requests[*request].subject, repeat)?.to_owned();
                let reply = Reply { text, finished: true, ..Reply::default() };
                keep(self.ctx.memo.as_ref(), key, &reply)?;
                known.insert(*key, reply);
            }
        }
        self.report(wanted.iter().map(|open| open.missing.len() as u64).sum());
        Ok(())
    }

    /// Summed natural log-probabilities of every continuation of every request, in order.
    ///
    /// # Errors
    /// Only weights in this process tell them.
    pub fn score(&mut self, requests: &[Request], options: &[Options]) -> Result<Vec<Vec<f64>>, StageError> {
        if !matches!(self.answerer, Answerer::Local(_)) {
            let message = format!(
                "model `{}`: only local models tell how likely a given text is; read its answers as text instead (`mode: \
                 generate` of eval.answer, `read: text` of vlm.filter)",
                self.model.name
            );
            return Err(StageError::invalid(message));
        }
        let mut known: BTreeMap<Digest, f64> = BTreeMap::new();
        let mut wanted: BTreeMap<Digest, OpenPlace> = BTreeMap::new();
        let mut order: Vec<Digest> = Vec::new();
        let mut keys = Vec::with_capacity(requests.len());
        for (request, (asked, options)) in requests.iter().zip(options).enumerate() {
            let place = self.place_key(asked, options);
            let row: Vec<Digest> = options.continuations.iter().map(|text| continuation_key(&place, text)).collect();
            for (key, text) in row.iter().zip(&options.continuations) {
                if known.contains_key(key) {
                    continue;
                }
                if let Some(value) = self.recall(key) {
                    known.insert(*key, value);
                    continue;
                }
                let open = wanted.entry(place).or_insert_with(|| {
                    order.push(place);
                    OpenPlace { request, place, missing: Vec::new() }
                });
                if !open.missing.iter().any(|(seen, _)| seen == key) {
                    open.missing.push((*key, text.clone()));
                }
            }
            keys.push(row);
        }
        self.ctx.asking.announce(|| {
            let missing = wanted.values().map(|open| open.missing.len() as u64).sum();
            Asks { total: keys.iter().map(|row| row.len() as u64).sum(), missing, ..Asks::default() }
        })?;
        let queue = order.into_iter().filter_map(|place| wanted.remove(&place)).collect();
        self.score_here(requests, options, queue, &mut known)?;
        self.report(0);
        Ok(keys.iter().map(|row| row.iter().map(|key| known[key]).collect()).collect())
    }

    fn score_here(
        &mut self,
        requests: &[Request],
        options: &[Options],
        mut queue: VecDeque<OpenPlace>,
        known: &mut BTreeMap<Digest, f64>,
    ) -> Result<(), StageError> {
        while !queue.is_empty() {
            self.ctx.check_cancelled()?;
            let (mut chunk, mut claims) = (Vec::new(), Vec::new());
            for _ in 0..queue.len() {
                let Some(mut open) = queue.pop_front() else { break };
                let claim = self.ctx.asking.claim(&open.place);
                open.missing.retain(|(key, _)| match self.recall(key) {
                    Some(score) => known.insert(*key, score).is_some(),
                    None => true,
                });
                match claim {
                    _ if open.missing.is_empty() => {}
                    Some(claim) => {
                        claims.push(claim);
                        chunk.push(open);
                    }
                    None => queue.push_back(open),
                }
                if chunk.len() == CHUNK {
                    break;
                }
            }
            if !chunk.is_empty() {
                self.score_chunk(requests, options, &chunk, known)?;
            } else if !queue.is_empty() {
                std::thread::sleep(ELSEWHERE_POLL);
            }
        }
        Ok(())
    }

    fn score_chunk(
        &mut self,
        requests: &[Request],
        options: &[Options],
        places: &[OpenPlace],
        known: &mut BTreeMap<Digest, f64>,
    ) -> Result<(), StageError> {
        let mut batch = Vec::with_capacity(places.len());
        for OpenPlace { request, missing, .. } in places {
            let prompt = Arc::new(self.prompt(&requests[*request])?);
            let (vlm, options) = (self.vlm(), &options[*request]);
            let continuations = missing
                .iter()
                .map(|(_, text)| continuation_ids(vlm, text, options.closed))
                .collect::<Result<_, _>>()?;
            batch.push(ScoreRequest { prompt, prefix: encode(vlm, &options.prefix)?, continuations });
        }
        let scores = self.vlm().score(&batch).map_err(model_error)?;
        for (open, scores) in places.iter().zip(scores) {
            for ((key, _), score) in open.missing.iter().zip(scores) {
                keep(self.ctx.memo.as_ref(), key, &score)?;
                known.insert(*key, score);
            }
        }
        self.report(places.iter().map(|open| open.missing.len() as u64).sum());
        Ok(())
    }

    fn prompt(&mut self, request: &Request) -> Result<Prompt, StageError> {
        let system = self.system(request).map(str::to_owned);
        let images =
            request.pictures.iter().map(|picture| picture.render(self.dataset)).collect::<Result<Vec<_>, _>>()?;
        if let Answerer::Local(vlm @ None) = &mut self.answerer {
            *vlm = Some(Box::new(load_local(self.ctx, self.model)?));
        }
        prompt(self.vlm(), system.as_deref(), &request.user, &images)
    }

    /// The weights. Only once a prompt was made.
    fn vlm(&self) -> &Vlm {
        match &self.answerer {
            Answerer::Local(Some(vlm)) => vlm,
            _ => unreachable!("prompt() loads them, and only local models make prompts"),
        }
    }

    fn system<'r>(&'r self, request: &'r Request) -> Option<&'r str> {
        request.system.as_deref().or_else(|| self.model.settings.get("system").and_then(serde_json::Value::as_str))
    }

    /// The most that a request may take: a token for three bytes of text (few texts have more) and for each picture what servers
    /// charge for a large one, or twice the `mean` of prompts that were answered; and the longest answers.
    fn estimate(&self, quota: &Quota, request: &Request, sampling: &Sampling, mean: Option<i64>) -> Charge {
        let text = request.user.len() + self.system(request).map_or(0, str::len);
        let unheard = (text / 3 + PICTURE_TOKENS * request.pictures.len()) as i64;
        let prompt = mean.filter(|mean| *mean > 0).map_or(unheard, |mean| 2 * mean);
        let stated = |key: &str| self.model.settings.get("request")?.get(key)?.as_i64();
        let longest = stated("max_completion_tokens").or_else(|| stated("max_tokens"));
        let longest = longest.unwrap_or(sampling.max_new_tokens as i64);
        quota.charge_of(prompt, longest.saturating_mul(stated("n").unwrap_or(1)))
    }

    fn recall<T: for<'de> Deserialize<'de>>(&self, key: &Digest) -> Option<T> {
        let value = self.ctx.memo.get(NAMESPACE, key).and_then(|bytes| serde_json::from_slice(&bytes).ok())?;
        self.ctx.asking.count(1, 0);
        Some(value)
    }

    /// Reports what the stage's answers came from, of which `answered` are new.
    fn report(&self, answered: u64) {
        let (hits, misses) = self.ctx.asking.count(0, answered);
        self.ctx.notes.note(Note::Memo { hits, misses });
    }

    fn base_key(&self, request: &Request) -> serde_json::Value {
        let pictures: Vec<_> = request.pictures.iter().map(|picture| picture.key(self.dataset)).collect();
        let mut key = json!({
            "v": 2, "model": self.model.identity, "numerics": numerics(self.ctx),
            "system": self.system(request), "user": request.user, "pictures": pictures,
        });
        match self.model.provider {
            Provider::Local => {}
            // It computes elsewhere.
            Provider::Openai => key["numerics"] = json!(null),
            // What was recorded is known by what it is about.
            Provider::Replay => key["numerics"] = json!({ "subject": request.subject }),
        }
        key
    }

    fn generation_keys(&self, request: &Request, sampling: &Sampling, seeds: &[u64]) -> Vec<Digest> {
        let base = self.base_key(request);
        let mut repeat = 0;
        let key = |seed: &u64| {
            repeat += 1;
            let seed = match self.model.provider {
                Provider::Replay => json!(repeat),
                _ if sampling.temperature > 0.0 => json!(seed),
                _ => json!(null),
            };
            Digest::of(json!({ "ask": base, "sampling": sampling, "seed": seed }).to_string().as_bytes())
        };
        seeds.iter().map(key).collect()
    }

    fn place_key(&self, request: &Request, options: &Options) -> Digest {
        let key = json!({ "ask": self.base_key(request), "prefix": options.prefix, "closed": options.closed });
        Digest::of(key.to_string().as_bytes())
    }
}

/// One stage's side of an exchange with a server.
struct Asker<'r, 'a> {
    responder: &'r Responder<'a>,
    server: &'r Server,
    quota: &'r Quota,
    requests: &'r [Request],
    sampling: &'r Sampling,
    known: &'r mut BTreeMap<Digest, Reply>,
    /// Answers of this exchange, and the tokens of their prompts.
    answers: u64,
    answered: u64,
}

impl Caller for Asker<'_, '_> {
    fn body(&self, wanted: &Wanted) -> Result<Vec<u8>, StageError> {
        let request = &self.requests[wanted.request];
        let url = |picture: &Picture| Ok(data_url(&picture.encoded(self.responder.dataset)?));
        let pictures: Vec<String> = request.pictures.iter().map(url).collect::<Result<_, StageError>>()?;
        let system = self.responder.system(request);
        Ok(self.server.body(system, &request.user, &pictures, self.sampling, wanted.seed))
    }

    fn estimate(&self, wanted: &Wanted) -> Charge {
        let mean = self.answered.checked_div(self.answers).map(|tokens| tokens as i64);
        self.responder.estimate(self.quota, &self.requests[wanted.request], self.sampling, mean)
    }

    fn recall(&mut self, wanted: &Wanted) -> bool {
        let Some(reply) = self.responder.recall(&wanted.key) else { return false };
        self.known.insert(wanted.key, reply);
        true
    }

    fn keep(&mut self, wanted: &Wanted, answered: Answered) -> Result<(), StageError> {
        let Answered { spoken, took } = answered;
        let (prompt, completion) = spoken.usage.unwrap_or_default();
        let reply = Reply {
            text: spoken.text,
            finished: spoken.finished,
            usage: Usage { prompt, completion },
            served: spoken.served,
            cost: self.quota.has_price().then(|| took.dollars()),
        };
        keep(self.responder.ctx.memo.as_ref(), &wanted.key, &reply)?;
        self.known.insert(wanted.key, reply);
        self.answers += 1;
        self.answered += u64::from(prompt);
        self.responder.report(1);
        Ok(())
    }
}

fn keep(memo: &dyn Memo, key: &Digest, value: &impl Serialize) -> Result<(), StageError> {
    let bytes = serde_json::to_vec(value).expect("an answer is plain data");
    memo.put(NAMESPACE, key, &bytes).map_err(|error| StageError::Machine(format!("the memo: {error}")))
}

fn continuation_key(place: &Digest, text: &str) -> Digest {
    Digest::of(format!("{place}\n{text}").as_bytes())
}

fn reply(prompt: &Prompt, completion: Completion) -> Reply {
    let usage = Usage { prompt: prompt.ids.len() as u32, completion: completion.ids.len() as u32 };
    Reply { text: completion.text, finished: completion.finished, usage, ..Reply::default() }
}

/// Why a setting that reads likelihoods does not fit a model which only answers in text, and what does.
pub(crate) fn unlikely(setting: &str, instead: &str) -> String {
    format!("{setting} asks how likely given texts are, which only a local model tells; {instead} reads its answers")
}

/// The seed of draw `index` for one purpose and subject (a record's id), whatever else is asked.
pub fn seed(ctx: &Context, purpose: &str, subject: &str, index: u32) -> u64 {
    draw::rank(ctx.seed, purpose, &format!("{subject}\n{index}"))
}
