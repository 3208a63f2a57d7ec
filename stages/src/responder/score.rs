//! Scoring: how likely a model finds given texts at one place of its answer. Only weights in this process tell.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use mpcc_engine::asking::Asks;
use mpcc_engine::cache::Digest;
use mpcc_engine::stage::StageError;
use mpcc_models::score::ScoreRequest;
use serde_json::json;

use super::{Answerer, CHUNK, ELSEWHERE_POLL, Responder, keep};
use crate::provider::local::{continuation_ids, encode, model_error};
use crate::request::{Options, Request};

/// A place in a prompt with the options that the memo does not score.
struct OpenPlace {
    request: usize,
    place: Digest,
    missing: Vec<(Digest, String)>,
}

impl Responder<'_> {
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

    fn place_key(&self, request: &Request, options: &Options) -> Digest {
        let key = json!({ "ask": self.base_key(request), "prefix": options.prefix, "closed": options.closed });
        Digest::of(key.to_string().as_bytes())
    }
}

fn continuation_key(place: &Digest, text: &str) -> Digest {
    Digest::of(format!("{place}\n{text}").as_bytes())
}

/// Why a setting that reads likelihoods does not fit a model which only answers in text, and what does.
pub(crate) fn unlikely(setting: &str, instead: &str) -> String {
    format!("{setting} asks how likely given texts are, which only a local model tells; {instead} reads its answers")
}
