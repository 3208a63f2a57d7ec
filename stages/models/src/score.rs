//! Likelihoods: how probable given continuations are behind a prompt.
//!
//! The prompt is encoded once, then a prefix that all continuations share (the model's own thought, say), then all continuations as
//! branches that see both and themselves. On the processor results do not depend on what is scored together; on tensors they do in
//! rounding alone.

use std::sync::Arc;

use crate::error::{ModelError, Result};
use crate::vlm::infer::{Engine, Joining, KeysAndValues, PrefixesOf, Work};
use crate::vlm::prefill::{Prefilled, ROWS_AT_ONCE, prefill};
use crate::vlm::prefix::Part;
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
        self.with_engine(Scoring { vlm: self, requests })
    }
}

/// Requests to score on whichever engine.
struct Scoring<'a> {
    vlm: &'a Vlm,
    requests: &'a [ScoreRequest],
}

impl Work for Scoring<'_> {
    type Out = Vec<Vec<f64>>;

    fn run<E: Engine>(self, engine: &E, prefixes: &PrefixesOf<E>) -> Result<Vec<Vec<f64>>> {
        let scorer = Scorer { engine, prefixes };
        let mut scores = Vec::with_capacity(self.requests.len());
        for group in groups(self.requests, engine.token_bytes(), engine.room()) {
            scores.extend(self.vlm.in_pool(|| scorer.group(group))?);
        }
        Ok(scores)
    }
}

/// Requests whose rows fit the buffers together, and whose keys and values fit the room for them; one alone is never too much.
fn groups(requests: &[ScoreRequest], token_bytes: usize, room: usize) -> Vec<&[ScoreRequest]> {
    let (mut all, mut start, mut rows, mut bytes) = (Vec::new(), 0, 0, 0);
    for (index, request) in requests.iter().enumerate() {
        let own = request.prefix.len() + request.continuations.iter().map(Vec::len).sum::<usize>();
        let kept = token_bytes * (request.prompt.ids.len() + own);
        if index > start && (rows + own > ROWS_AT_ONCE || bytes + kept > room) {
            all.push(&requests[start..index]);
            (start, rows, bytes) = (index, 0, 0);
        }
        rows += own;
        bytes += kept;
    }
    if start < requests.len() {
        all.push(&requests[start..]);
    }
    all
}

/// A branch: what it hangs on and the hidden row before its first token.
struct Root<E: Engine> {
    context: Vec<Part<E::Stretch>>,
    before: Arc<E::Rows>,
    position: u32,
}

/// Tokens behind a root.
type Branch<'b, E> = (&'b Root<E>, &'b [u32]);

struct Scorer<'a, E: Engine> {
    engine: &'a E,
    prefixes: &'a PrefixesOf<E>,
}

impl<E: Engine> Scorer<'_, E> {
    fn group(&self, requests: &[ScoreRequest]) -> Result<Vec<Vec<f64>>> {
        if requests.iter().any(|request| request.prompt.ids.is_empty()) {
            return Err(ModelError::Prompt("a request to score has an empty prompt".into()));
        }
        let vocabulary = self.engine.config().text().vocab_size;
        let mut asked = requests.iter().flat_map(|request| &request.continuations).flatten();
        if let Some(id) = asked.find(|id| **id as usize >= vocabulary) {
            return Err(ModelError::Prompt(format!("token {id} is outside the vocabulary")));
        }
        let prompts: Vec<&Arc<Prompt>> = requests.iter().map(|request| &request.prompt).collect();
        let roots = self.roots(requests, prefill(self.engine, &prompts, self.prefixes)?)?;
        let branches: Vec<Branch<'_, E>> = requests
            .iter()
            .zip(&roots)
            .flat_map(|(request, root)| request.continuations.iter().map(move |ids| (root, ids.as_slice())))
            .collect();
        let mut sums = self.sums(&branches)?.into_iter();
        Ok(requests.iter().map(|request| sums.by_ref().take(request.continuations.len()).collect()).collect())
    }

    /// Prompts with their prefixes behind them.
    fn roots(&self, requests: &[ScoreRequest], prefilled: Vec<Prefilled<E>>) -> Result<Vec<Root<E>>> {
        let mut roots: Vec<Root<E>> = requests
            .iter()
            .zip(prefilled)
            .map(|(request, done)| Root {
                context: done.context,
                before: done.last,
                position: request.prompt.next_position(),
            })
            .collect();
        let with: Vec<usize> = (0..requests.len()).filter(|&index| !requests[index].prefix.is_empty()).collect();
        if with.is_empty() {
            return Ok(roots);
        }
        let branches: Vec<Branch<'_, E>> =
            with.iter().map(|&index| (&roots[index], requests[index].prefix.as_slice())).collect();
        let (lanes, hidden) = self.extend(&branches)?;
        let mut end = 0;
        for (index, own) in with.into_iter().zip(self.engine.stretches(lanes)?) {
            let count = requests[index].prefix.len();
            end += count;
            let root = &mut roots[index];
            root.before = Arc::new(self.engine.pick(&[&hidden], &[end - 1])?);
            root.position += count as u32;
            root.context.push(Part { tokens: own.tokens(), stretch: Arc::new(own) });
        }
        Ok(roots)
    }

    /// All tokens of branches, each behind its root: the lanes and the hidden rows.
    fn extend(&self, branches: &[Branch<'_, E>]) -> Result<(E::Lanes, E::Rows)> {
        let (mut all, mut places, mut counts, mut joining) = (vec![], vec![], vec![], vec![]);
        for (root, ids) in branches {
            all.extend_from_slice(ids);
            places.extend(root.position..root.position + ids.len() as u32);
            counts.push(ids.len());
            joining.push(Joining { context: root.context.clone(), room: ids.len() });
        }
        let (x, mut lanes) = (self.engine.embed_text(&all)?, E::Lanes::default());
        self.engine.join(&mut lanes, joining)?;
        let hidden = self.engine.extend(&mut lanes, &counts, x, &[places.clone(), places.clone(), places])?;
        Ok((lanes, hidden))
    }

    /// The row before each token of a branch predicts it; the last token's own row predicts nothing that is asked.
    fn sums(&self, branches: &[Branch<'_, E>]) -> Result<Vec<f64>> {
        let long = branches.iter().filter(|(_, ids)| ids.len() > 1);
        let shortened: Vec<Branch<'_, E>> = long.map(|(root, ids)| (*root, &ids[..ids.len() - 1])).collect();
        let hidden = if shortened.is_empty() { None } else { Some(self.extend(&shortened)?.1) };
        // The rows before, one a branch, and behind them the new ones.
        let (mut picks, mut asked, mut next) = (Vec::new(), Vec::new(), branches.len());
        for (index, (_, ids)) in branches.iter().enumerate().filter(|(_, (_, ids))| !ids.is_empty()) {
            picks.push(index);
            picks.extend(next..next + ids.len() - 1);
            next += ids.len() - 1;
            asked.extend_from_slice(ids);
        }
        if asked.is_empty() {
            return Ok(vec![0.0; branches.len()]);
        }
        let parts: Vec<&E::Rows> = branches.iter().map(|(root, _)| &*root.before).chain(&hidden).collect();
        let mut found = self.engine.log_probabilities(&self.engine.pick(&parts, &picks)?, &asked)?.into_iter();
        Ok(branches.iter().map(|(_, ids)| found.by_ref().take(ids.len()).fold(0.0, |sum, one| sum + one)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(prompt: usize, prefix: usize, continuations: &[usize]) -> ScoreRequest {
        let prompt =
            Prompt { ids: vec![1; prompt], positions: [vec![], vec![], vec![]], images: vec![], text: String::new() };
        let continuations = continuations.iter().map(|&count| vec![1; count]).collect();
        ScoreRequest { prompt: Arc::new(prompt), prefix: vec![1; prefix], continuations }
    }

    fn sizes(requests: &[ScoreRequest], token_bytes: usize, room: usize) -> Vec<usize> {
        groups(requests, token_bytes, room).into_iter().map(<[_]>::len).collect()
    }

    #[test]
    fn a_group_ends_where_its_rows_or_its_keys_and_values_are_too_many() {
        let requests = [request(50, 2, &[3, 5]), request(40, 0, &[10]), request(300, 0, &[1]), request(9, 0, &[1])];
        assert_eq!(sizes(&requests, 8, 8 * 10_000), [4]);
        // 60 and 50 tokens fill it; the 301 are too many alone and come alone.
        assert_eq!(sizes(&requests, 8, 8 * 110), [2, 1, 1]);
        assert_eq!(sizes(&requests, 8, 8 * 110 - 1), [1, 1, 1, 1]);
        let wide = [request(1, 0, &[ROWS_AT_ONCE]), request(1, 0, &[1])];
        assert_eq!(sizes(&wide, 1, usize::MAX), [1, 1]);
        assert_eq!(sizes(&[], 1, 1), [0; 0]);
    }
}
