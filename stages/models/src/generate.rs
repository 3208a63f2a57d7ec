//! Answers: batched generation with cached keys and values.
//!
//! A request is one prompt and any number of seeds; the prompt and its pictures are encoded once, and every sample's rows attend to that
//! one copy behind which only their own tail is stored. Prompts that begin alike (one picture, many questions) share that beginning
//! too, within a call and between calls ([`crate::vlm::prefix`]). Rows of all requests decode together; a row that ends leaves the batch,
//! and waiting requests take the room, those too that come while others are in work ([`Vlm::generate_from`]). What a row answers depends
//! on its prompt, sampling and seed alone, never on its batch, because every kernel's result for a row does not (see
//! [`crate::kernel`]) and each row has its own random stream.
//!
//! Generation runs on the processor in f32: weights that live elsewhere are copied there for the call.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::error::{ModelError, Result};
use crate::sample::Sampler;
use crate::source::Requests;
use crate::vlm::infer::{Inference, Lane};
use crate::vlm::prefill::Prefilled;
use crate::vlm::prefix::Prefixes;
use crate::vlm::{Config, Prompt, Vlm};

pub use crate::sample::Sampling;

/// Rows that decode together at most.
const MAX_ROWS: usize = 256;
/// Bytes of cached keys and values that requests in work may take together, unless one alone takes more.
const CACHE_BYTES: usize = 1 << 30;

/// One prompt to answer, once a seed.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// What is asked.
    pub prompt: Arc<Prompt>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// One completion a seed.
    pub seeds: Vec<u64>,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// The tokens, the end token included where it was reached.
    pub ids: Vec<u32>,
    /// Their text, without the end token.
    pub text: String,
    /// Whether an end token was reached; otherwise the answer was cut at its longest length.
    pub finished: bool,
}

/// Looks on while answers grow.
pub trait Watch {
    /// The newest token of a completion, the end token included; `Break` ends this completion with it.
    fn token(&mut self, request: usize, sample: usize, id: u32) -> ControlFlow<()>;

    /// Tokens that no answer may hold.
    fn banned(&self) -> &[u32] {
        &[]
    }
}

/// Nobody looks on.
struct Unwatched;

impl Watch for Unwatched {
    fn token(&mut self, _: usize, _: usize, _: u32) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

impl Vlm {
    /// Answers requests; `done` gets each request's index and its completions, one a seed and in their order, as soon as the
    /// last of them ends, and may stop the rest.
    ///
    /// # Errors
    /// When a sampling makes no sense or a prompt does not fit the model.
    pub fn generate(
        &self,
        requests: &[GenerateRequest],
        done: &mut dyn FnMut(usize, Vec<Completion>) -> ControlFlow<()>,
    ) -> Result<()> {
        self.generate_watched(requests, &mut Unwatched, done)
    }

    /// [`Vlm::generate`] with somebody who sees every token as it is drawn. What a row answers does not depend on who looks on,
    /// except that its answer may be ended and tokens may be banned.
    ///
    /// # Errors
    /// As [`Vlm::generate`].
    pub fn generate_watched(
        &self,
        requests: &[GenerateRequest],
        watch: &mut dyn Watch,
        done: &mut dyn FnMut(usize, Vec<Completion>) -> ControlFlow<()>,
    ) -> Result<()> {
        for request in requests {
            request.sampling.check()?;
        }
        let mut rest = requests.iter().cloned();
        self.generate_from(&mut || rest.next(), watch, done)
    }

    /// [`Vlm::generate_watched`] with requests that may come while others are in work. Between two steps `source` is asked for more, as
    /// long as there is room; what it gives joins the rows that decode. Requests are told by their number: the first that comes is 0.
    /// Ends when nothing is in work and nothing comes. What a request answers does not depend on when it came.
    ///
    /// # Errors
    /// As [`Vlm::generate`]; whatever is in work then has no answer.
    pub fn generate_from(
        &self,
        source: &mut dyn FnMut() -> Option<GenerateRequest>,
        watch: &mut dyn Watch,
        done: &mut dyn FnMut(usize, Vec<Completion>) -> ControlFlow<()>,
    ) -> Result<()> {
        self.weights().with_slices(|slices| {
            let inference = Inference::new(self.config(), slices, self.threads())?;
            let (prefixes, requests) = (self.prefixes(), Requests::new(source));
            let (rows, lanes, open) = (vec![], vec![], vec![]);
            let batch = Batch { vlm: self, inference, prefixes, requests, watch, rows, lanes, open, next: 0, cost: 0 };
            batch.run(done)
        })
    }

    /// Answers one request.
    ///
    /// # Errors
    /// As [`Vlm::generate`].
    pub fn complete(&self, request: GenerateRequest) -> Result<Vec<Completion>> {
        let mut all = Vec::new();
        self.generate(&[request], &mut |_, completions| {
            all = completions;
            ControlFlow::Continue(())
        })?;
        Ok(all)
    }
}

/// One completion in work.
struct Row {
    request: usize,
    sample: usize,
    sampler: Sampler,
    ids: Vec<u32>,
    position: u32,
}

/// A request in work: its completions so far.
struct Open {
    request: usize,
    completions: Vec<Option<Completion>>,
}

struct Batch<'a> {
    vlm: &'a Vlm,
    inference: Inference<'a>,
    prefixes: Arc<Prefixes>,
    requests: Requests<'a>,
    watch: &'a mut dyn Watch,
    rows: Vec<Row>,
    /// One a row.
    lanes: Vec<Lane>,
    open: Vec<Open>,
    next: usize,
    cost: usize,
}

type Done<'d> = dyn FnMut(usize, Vec<Completion>) -> ControlFlow<()> + 'd;

impl Batch<'_> {
    fn run(mut self, done: &mut Done<'_>) -> Result<()> {
        loop {
            let admitted = self.admit()?;
            if !admitted.is_empty() {
                self.start(&admitted)?;
                if self.report(done).is_break() {
                    return Ok(());
                }
            } else if self.rows.is_empty() {
                return Ok(());
            }
            // Whoever joins does not keep the others from their next token, however many come.
            if !self.rows.is_empty() {
                self.step()?;
                if self.report(done).is_break() {
                    return Ok(());
                }
            }
        }
    }

    /// The next requests for which there is room.
    fn admit(&mut self) -> Result<Vec<usize>> {
        let mut admitted = Vec::new();
        let mut rows = self.rows.len();
        if rows > MAX_ROWS * 3 / 4 {
            return Ok(admitted);
        }
        while let Some(request) = self.requests.next(self.next)? {
            let cost = cache_bytes(self.vlm.config(), request);
            let first = rows == 0 && admitted.is_empty();
            if !first && (rows + request.seeds.len() > MAX_ROWS || self.cost + cost > CACHE_BYTES) {
                break;
            }
            admitted.push(self.next);
            rows += request.seeds.len();
            self.cost += cost;
            self.next += 1;
        }
        Ok(admitted)
    }

    /// Prefills requests and draws the first token of each sample.
    fn start(&mut self, admitted: &[usize]) -> Result<()> {
        let prompts: Vec<&Arc<Prompt>> = admitted.iter().map(|&index| &self.requests[index].prompt).collect();
        if let Some(empty) = prompts.iter().position(|prompt| prompt.ids.is_empty()) {
            return Err(ModelError::Prompt(format!("request {} has an empty prompt", admitted[empty])));
        }
        let prefilled = self.vlm.in_pool(|| self.inference.prefill(&prompts, &self.prefixes))?;
        for (&index, prefilled) in admitted.iter().zip(prefilled) {
            self.open_request(index, &prefilled)?;
        }
        Ok(())
    }

    fn open_request(&mut self, index: usize, prefilled: &Prefilled) -> Result<()> {
        let request = self.requests[index].clone();
        let limit = request.sampling.max_new_tokens;
        self.open.push(Open { request: index, completions: vec![None; request.seeds.len()] });
        let mut logits = Vec::new();
        self.inference.logits(&prefilled.last, &mut logits);
        for (sample, &seed) in request.seeds.iter().enumerate() {
            let sampler = Sampler::new(request.sampling, seed, logits.len(), &request.prompt.ids);
            let position = request.prompt.next_position();
            let mut row = Row { request: index, sample, sampler, ids: Vec::with_capacity(limit), position };
            if limit == 0 || self.take(&mut row, &mut logits.clone()) {
                self.close(row)?;
                continue;
            }
            self.rows.push(row);
            self.lanes.push(Lane::new(prefilled.context.clone(), self.vlm.config(), limit));
        }
        Ok(())
    }

    /// Draws a row's next token; whether it was the last. A drawn answer never holds the placeholder of a picture: there is
    /// no picture to stand for, and training on the answer would look for one.
    fn take(&mut self, row: &mut Row, logits: &mut [f32]) -> bool {
        for &id in self.watch.banned() {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        if self.requests[row.request].sampling.temperature > 0.0
            && let Some(logit) = logits.get_mut(self.vlm.config().image_token_id() as usize)
        {
            *logit = f32::NEG_INFINITY;
        }
        let id = row.sampler.draw(logits);
        row.ids.push(id);
        let stop = self.watch.token(row.request, row.sample, id).is_break();
        stop || self.vlm.eos().contains(&id) || row.ids.len() >= self.requests[row.request].sampling.max_new_tokens
    }

    fn close(&mut self, row: Row) -> Result<()> {
        let finished = row.ids.last().is_some_and(|id| self.vlm.eos().contains(id));
        let text = self.vlm.decode(&row.ids[..row.ids.len() - usize::from(finished)])?;
        let open = self.open.iter_mut().find(|open| open.request == row.request).expect("a row's request is open");
        open.completions[row.sample] = Some(Completion { ids: row.ids, text, finished });
        Ok(())
    }

    /// One more token for every row.
    fn step(&mut self) -> Result<()> {
        let last: Vec<u32> = self.rows.iter().map(|row| *row.ids.last().expect("a row starts with a token")).collect();
        let places: Vec<u32> = self.rows.iter().map(|row| row.position + row.ids.len() as u32 - 1).collect();
        let mut x = Vec::new();
        self.inference.embed_text(&last, &mut x)?;
        let counts = vec![1; last.len()];
        let (inference, lanes) = (&self.inference, &mut self.lanes);
        let mut logits = Vec::new();
        self.vlm.in_pool(|| {
            let hidden = inference.extend(lanes, &counts, x, &[places.clone(), places.clone(), places]);
            inference.logits(&hidden, &mut logits);
        });
        let vocabulary = logits.len() / counts.len();
        let (rows, lanes) = (std::mem::take(&mut self.rows), std::mem::take(&mut self.lanes));
        for ((mut row, lane), logits) in rows.into_iter().zip(lanes).zip(logits.chunks_exact_mut(vocabulary)) {
            if self.take(&mut row, logits) {
                self.close(row)?;
            } else {
                self.rows.push(row);
                self.lanes.push(lane);
            }
        }
        Ok(())
    }

    /// Hands over every request whose completions are all there.
    fn report(&mut self, done: &mut Done<'_>) -> ControlFlow<()> {
        let mut index = 0;
        while index < self.open.len() {
            if self.open[index].completions.iter().any(Option::is_none) {
                index += 1;
                continue;
            }
            let open = self.open.remove(index);
            self.cost -= cache_bytes(self.vlm.config(), &self.requests[open.request]);
            self.requests.forget(open.request);
            done(open.request, open.completions.into_iter().flatten().collect())?;
        }
        ControlFlow::Continue(())
    }
}

/// Bytes of keys and values that a request takes.
fn cache_bytes(config: &Config, request: &GenerateRequest) -> usize {
    let (layers, heads) = (config.text().layers, config.text().heads);
    let token = 2 * layers * heads.kv_heads * heads.head_dim * size_of::<f32>();
    token * (request.prompt.ids.len() + request.seeds.len() * request.sampling.max_new_tokens)
}
