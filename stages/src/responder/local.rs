//! Requests that weights in this process answer, a chunk at a time.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

use mpcc_engine::asking::Claim;
use mpcc_engine::cache::Digest;
use mpcc_engine::stage::StageError;
use mpcc_models::generate::{Completion, GenerateRequest};
use mpcc_models::sample::Sampling;
use mpcc_models::vlm::Prompt;

use super::{CHUNK, ELSEWHERE_POLL, Open, Responder, keep};
use crate::provider::local::model_error;
use crate::record::Usage;
use crate::request::{Reply, Request};

impl Responder<'_> {
    pub(super) fn generate_here(
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
}

fn reply(prompt: &Prompt, completion: Completion) -> Reply {
    let usage = Usage { prompt: prompt.ids.len() as u32, completion: completion.ids.len() as u32 };
    Reply { text: completion.text, finished: completion.finished, usage, ..Reply::default() }
}
