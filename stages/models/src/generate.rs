//! Answers: batched generation with cached keys and values.
//!
//! A request is one prompt and any number of seeds; the prompt and its pictures are encoded once, and every sample's rows attend to that
//! one copy behind which only their own tail is stored. Prompts that begin alike (one picture, many questions) share that beginning
//! too, within a call and between calls ([`crate::vlm::prefix`]). Rows of all requests decode together; a row that ends leaves the batch,
//! and waiting requests take the room, those too that come while others are in work ([`Vlm::generate_from`]). On the processor, what a
//! row answers depends on its prompt, sampling and seed alone, never on its batch, because every kernel's result for a row does not
//! (see [`crate::kernel`]) and each row has its own random stream. On tensors the same holds but for rounding
//! ([`crate::vlm::infer`]).

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::error::{ModelError, Result};
use crate::sample::Sampler;
use crate::source::{Requests, Source};
use crate::vlm::infer::{Engine, Joining, PrefixesOf, Work};
use crate::vlm::prefill::{Prefilled, prefill};
use crate::vlm::{Prompt, Vlm};

pub use crate::sample::Sampling;

/// Rows that decode together at most.
const MAX_ROWS: usize = 256;

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

    /// Whether an answer to a request is still wanted; asked until it starts, for it may wait for room. One that is not wanted never
    /// starts, and no more is said of it.
    fn wanted(&mut self, _request: usize) -> bool {
        true
    }

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
        self.with_engine(Answering { vlm: self, source, watch, done })
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

/// Requests to answer on whichever engine.
struct Answering<'a> {
    vlm: &'a Vlm,
    source: &'a mut Source<'a>,
    watch: &'a mut dyn Watch,
    done: &'a mut Done<'a>,
}

impl Work for Answering<'_> {
    type Out = ();

    fn run<E: Engine>(self, engine: &E, prefixes: &PrefixesOf<E>) -> Result<()> {
        let Answering { vlm, source, watch, done } = self;
        let (rows, lanes, open) = (vec![], E::Lanes::default(), vec![]);
        let requests = Requests::new(source);
        Batch { vlm, engine, prefixes, requests, watch, rows, lanes, open, next: 0, cost: 0 }.run(done)
    }
}

struct Batch<'a, E: Engine> {
    vlm: &'a Vlm,
    engine: &'a E,
    prefixes: &'a PrefixesOf<E>,
    requests: Requests<'a>,
    watch: &'a mut dyn Watch,
    rows: Vec<Row>,
    /// One a row.
    lanes: E::Lanes,
    open: Vec<Open>,
    next: usize,
    cost: usize,
}

type Done<'d> = dyn FnMut(usize, Vec<Completion>) -> ControlFlow<()> + 'd;

impl<E: Engine> Batch<'_, E> {
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
        // With no row free nothing is drawn: it can wait in the source as well.
        while rows < MAX_ROWS
            && let Some(request) = self.requests.next(self.next)?
        {
            if !self.watch.wanted(self.next) {
                self.requests.forget(self.next);
                self.next += 1;
                continue;
            }
            let cost = cache_bytes(self.engine, request);
            let first = rows == 0 && admitted.is_empty();
            if !first && (rows + request.seeds.len() > MAX_ROWS || self.cost + cost > self.engine.room()) {
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
        let (prefilled, logits) = self.vlm.in_pool(|| {
            let prefilled = prefill(self.engine, &prompts, self.prefixes)?;
            let lasts: Vec<&E::Rows> = prefilled.iter().map(|prefilled| &*prefilled.last).collect();
            let lasts = self.engine.pick(&lasts, &(0..lasts.len()).collect::<Vec<_>>())?;
            Ok::<_, ModelError>((prefilled, self.engine.logits(&lasts)?))
        })?;
        let mut joining = Vec::new();
        let vocabulary = logits.len() / prefilled.len();
        for ((&index, prefilled), logits) in admitted.iter().zip(&prefilled).zip(logits.chunks_exact(vocabulary)) {
            self.open_request(index, prefilled, logits, &mut joining)?;
        }
        self.engine.join(&mut self.lanes, joining)
    }

    fn open_request(
        &mut self,
        index: usize,
        prefilled: &Prefilled<E>,
        logits: &[f32],
        joining: &mut Vec<Joining<E::Stretch>>,
    ) -> Result<()> {
        let request = self.requests[index].clone();
        let limit = request.sampling.max_new_tokens;
        self.open.push(Open { request: index, completions: vec![None; request.seeds.len()] });
        for (sample, &seed) in request.seeds.iter().enumerate() {
            let sampler = Sampler::new(request.sampling, seed, logits.len(), &request.prompt.ids);
            let position = request.prompt.next_position();
            let mut row = Row { request: index, sample, sampler, ids: Vec::with_capacity(limit), position };
            if limit == 0 || self.take(&mut row, &mut logits.to_vec()) {
                self.close(row)?;
                continue;
            }
            self.rows.push(row);
            joining.push(Joining { context: prefilled.context.clone(), room: limit });
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
        let counts = vec![1; last.len()];
        let (engine, lanes) = (self.engine, &mut self.lanes);
        let mut logits = self.vlm.in_pool(|| {
            let x = engine.embed_text(&last)?;
            engine.logits(&engine.extend(lanes, &counts, x, &[places.clone(), places.clone(), places])?)
        })?;
        let vocabulary = logits.len() / counts.len();
        let rows = std::mem::take(&mut self.rows);
        let mut stays = Vec::with_capacity(rows.len());
        for (mut row, logits) in rows.into_iter().zip(logits.chunks_exact_mut(vocabulary)) {
            let ended = self.take(&mut row, logits);
            stays.push(!ended);
            if ended {
                self.close(row)?;
            } else {
                self.rows.push(row);
            }
        }
        self.engine.stay(&mut self.lanes, &stays)
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
            self.cost -= cache_bytes(self.engine, &self.requests[open.request]);
            self.requests.forget(open.request);
            done(open.request, open.completions.into_iter().flatten().collect())?;
        }
        ControlFlow::Continue(())
    }
}

/// Bytes of keys and values that a request takes.
fn cache_bytes<E: Engine>(engine: &E, request: &GenerateRequest) -> usize {
    engine.token_bytes() * (request.prompt.ids.len() + request.seeds.len() * request.sampling.max_new_tokens)
}
