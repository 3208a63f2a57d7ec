//! Requests that a server answers, and what they may cost.

use std::collections::BTreeMap;

use mpcc_engine::asking::Quota;
use mpcc_engine::cache::{Charge, Digest};
use mpcc_engine::stage::StageError;
use mpcc_models::sample::Sampling;

use super::{Answerer, Open, Responder, keep};
use crate::provider::openai::{Server, data_url};
use crate::provider::served::{Answered, Caller, Exchange, Wanted};
use crate::record::Usage;
use crate::request::{Picture, Reply, Request};

/// What a server charges for one large picture, tokens.
const PICTURE_TOKENS: usize = 1500;

impl Responder<'_> {
    pub(super) fn ask_server(
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

    /// The most that a request may take: a token for three bytes of text (few texts have more) and for each picture what servers
    /// charge for a large one, or twice the `mean` of prompts that were answered; and the longest answers.
    pub(super) fn estimate(&self, quota: &Quota, request: &Request, sampling: &Sampling, mean: Option<i64>) -> Charge {
        let text = request.user.len() + self.system(request).map_or(0, str::len);
        let unheard = (text / 3 + PICTURE_TOKENS * request.pictures.len()) as i64;
        let prompt = mean.filter(|mean| *mean > 0).map_or(unheard, |mean| 2 * mean);
        let stated = |key: &str| self.model.settings.get("request")?.get(key)?.as_i64();
        let longest = stated("max_completion_tokens").or_else(|| stated("max_tokens"));
        let longest = longest.unwrap_or(sampling.max_new_tokens as i64);
        quota.charge_of(prompt, longest.saturating_mul(stated("n").unwrap_or(1)))
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
