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

mod local;
mod score;
mod served;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mpcc_engine::asking::{Asks, Quota};
use mpcc_engine::cache::Digest;
use mpcc_engine::stage::{Context, Memo, ModelInput, Note, Provider, StageError};
use mpcc_models::sample::Sampling;
use mpcc_models::vlm::{Prompt, Vlm};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::dataset::Dataset;
use crate::draw;
use crate::provider::local::{load_local, numerics, prompt};
use crate::provider::openai::Server;
use crate::provider::replay::Replay;
use crate::request::{Reply, Request};

pub(crate) use score::unlikely;

/// Requests handed to the model at a time: enough to fill its batches, few enough for a lively progress bar.
const CHUNK: usize = 64;
/// How soon to look again at requests that others are at.
const ELSEWHERE_POLL: Duration = Duration::from_millis(50);
const NAMESPACE: &str = "vlm";

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
}

fn keep(memo: &dyn Memo, key: &Digest, value: &impl Serialize) -> Result<(), StageError> {
    let bytes = serde_json::to_vec(value).expect("an answer is plain data");
    memo.put(NAMESPACE, key, &bytes).map_err(|error| StageError::Machine(format!("the memo: {error}")))
}

/// The seed of draw `index` for one purpose and subject (a record's id), whatever else is asked.
pub fn seed(ctx: &Context, purpose: &str, subject: &str, index: u32) -> u64 {
    draw::rank(ctx.seed, purpose, &format!("{subject}\n{index}"))
}
