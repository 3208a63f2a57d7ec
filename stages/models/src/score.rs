//! Likelihoods: how probable given continuations are behind a prompt.
//!
//! The prompt is encoded once, then a prefix that all continuations share (the model's own thought, say), then all continuations as
//! branches that see both and themselves. Results do not depend on what is scored together.

use std::sync::Arc;

use crate::error::{ModelError, Result};
use crate::kernel::rows::log_sum_exp;
use crate::vlm::infer::{Inference, Lane};
use crate::vlm::prefill::{Prefilled, ROWS_AT_ONCE};
use crate::vlm::prefix::{Part, Prefixes};
use crate::vlm::{Prompt, Vlm};

/// Continuations to weigh against each other.
#[derive(Debug, Clone)]
pub struct ScoreRequest {
    /// What comes first.
    pub prompt: Arc<Prompt>,
    /// Tokens that the model has already written; may be empty.
    pub prefix: Vec<u32>,
    /// What may come next.
    pub continuations: Vec<Vec<u32>>,
}

impl Vlm {
    /// The summed log-probability (natural) of every continuation of every request; 0 for an empty one.
    ///
    /// # Errors
    /// When a prompt does not fit the model or a token is outside the vocabulary.
    pub fn score(&self, requests: &[ScoreRequest]) -> Result<Vec<Vec<f64>>> {
        self.weights().with_slices(|slices| {
            let inference = Inference::new(self.config(), slices, self.threads())?;
            let scorer = Scorer { inference, prefixes: self.prefixes() };
            let mut scores = Vec::with_capacity(requests.len());
            for group in groups(requests) {
                scores.extend(self.in_pool(|| scorer.group(group))?);
            }
            Ok(scores)
        })
    }
}

/// Requests whose rows fit the buffers together.
fn groups(requests: &[ScoreRequest]) -> Vec<&[ScoreRequest]> {
    let (mut all, mut start, mut rows) = (Vec::new(), 0, 0);
    for (index, request) in requests.iter().enumerate() {
        let own = request.prefix.len() + request.continuations.iter().map(Vec::len).sum::<usize>();
        if index > start && rows + own > ROWS_AT_ONCE {
            all.push(&requests[start..index]);
            (start, rows) = (index, 0);
        }
        rows += own;
    }
    if start < requests.len() {
        all.push(&requests[start..]);
    }
    all
}

/// A branch: what it hangs on and the hidden row before its first token.
struct Root {
    context: Vec<Part>,
    before: Arc<Vec<f32>>,
    position: u32,
}

struct Scorer<'a> {
    inference: Inference<'a>,
    prefixes: Arc<Prefixes>,
}

impl Scorer<'_> {
    fn group(&self, requests: &[ScoreRequest]) -> Result<Vec<Vec<f64>>> {
        if requests.iter().any(|request| request.prompt.ids.is_empty()) {
            return Err(ModelError::Prompt("a request to score has an empty prompt".into()));
        }
        let prompts: Vec<&Arc<Prompt>> = requests.iter().map(|request| &request.prompt).collect();
        let roots = self.roots(requests, self.inference.prefill(&prompts, &self.prefixes)?)?;
        let branches: Vec<(&Root, &[u32])> = requests
            .iter()
            .zip(&roots)
            .flat_map(|(request, root)| request.continuations.iter().map(move |ids| (root, ids.as_slice())))
            .collect();
        let mut sums = self.sums(&branches)?.into_iter();
        Ok(requests.iter().map(|request| sums.by_ref().take(request.continuations.len()).collect()).collect())
    }

    /// Prompts with their prefixes behind them.
    fn roots(&self, requests: &[ScoreRequest], prefilled: Vec<Prefilled>) -> Result<Vec<Root>> {
        let mut roots: Vec<Root> = requests
            .iter()
            .zip(prefilled)
            .map(|(request, done)| Root {
                context: done.context,
                before: done.last,
                position: request.prompt.next_position(),
            })
            .collect();
        let with: Vec<usize> = (0..requests.len()).filter(|&index| !requests[index].prefix.is_empty()).collect();
        let branches: Vec<(&Root, &[u32])> =
            with.iter().map(|&index| (&roots[index], requests[index].prefix.as_slice())).collect();
        let (lanes, hidden) = self.extend(&branches)?;
        let (width, mut end) = (self.inference.config.text().hidden_size, 0);
        for (index, lane) in with.into_iter().zip(lanes) {
            let count = requests[index].prefix.len();
            end += count;
            let root = &mut roots[index];
            root.before = Arc::new(hidden[(end - 1) * width..end * width].to_vec());
            root.position += count as u32;
            root.context.push(Part { tokens: lane.own.len(), stretch: Arc::new(lane.own) });
        }
        Ok(roots)
    }

    /// All tokens of branches, each behind its root: the lanes and the hidden rows.
    fn extend(&self, branches: &[(&Root, &[u32])]) -> Result<(Vec<Lane>, Vec<f32>)> {
        let (mut rows, mut places, mut counts, mut lanes) = (vec![], vec![], vec![], vec![]);
        for (root, ids) in branches {
            self.inference.embed_text(ids, &mut rows)?;
            places.extend(root.position..root.position + ids.len() as u32);
            counts.push(ids.len());
            lanes.push(Lane::new(root.context.clone(), self.inference.config, ids.len()));
        }
        let hidden = self.inference.extend(&mut lanes, &counts, rows, &[places.clone(), places.clone(), places]);
        Ok((lanes, hidden))
    }

    /// The row before each token of a branch predicts it; the last token's own row predicts nothing that is asked.
    fn sums(&self, branches: &[(&Root, &[u32])]) -> Result<Vec<f64>> {
        let shortened: Vec<(&Root, &[u32])> =
            branches.iter().map(|(root, ids)| (*root, &ids[..ids.len().saturating_sub(1)])).collect();
        let (_, hidden) = self.extend(&shortened)?;
        let width = self.inference.config.text().hidden_size;
        let (mut start, mut sums) = (0, Vec::with_capacity(branches.len()));
        for (root, ids) in branches {
            let mut rows = root.before.to_vec();
            let own = ids.len().saturating_sub(1) * width;
            rows.extend_from_slice(&hidden[start..start + own]);
            start += own;
            sums.push(if ids.is_empty() { 0.0 } else { self.log_probability(&rows, ids)? });
        }
        Ok(sums)
    }

    fn log_probability(&self, rows: &[f32], ids: &[u32]) -> Result<f64> {
        let mut logits = Vec::new();
        self.inference.logits(rows, &mut logits);
        let vocabulary = logits.len() / ids.len();
        let mut sum = 0.0;
        for (row, &id) in logits.chunks_exact(vocabulary).zip(ids) {
            let logit = row.get(id as usize);
            let logit = logit.ok_or_else(|| ModelError::Prompt(format!("token {id} is outside the vocabulary")))?;
            sum += f64::from(*logit) - log_sum_exp(row);
        }
        Ok(sum)
    }
}
