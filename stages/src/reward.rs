//! Rewards of a completion, term by term.
//!
//! Paper, Eq. 3: `R(a, o) = r_fmt + 1[a = o] + (1 - levenshtein(a, o))` with a normalised distance, maximum 3. The authors'
//! scripts differ: format 0.6 by a strict whole-text pattern, no exact-match term, InDel similarity, 0 without `</think>`.
//! Both are lists of weighted [`Term`]s; a new term is one variant of [`TermKind`] and one arm of [`Term::value`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::response::Response;

/// What a term measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TermKind {
    /// 1 when the whole text is one thought and one answer in their tags.
    Format,
    /// 1 when the answer equals the category, case and surrounding white space aside.
    Exact,
    /// `1 - d/max(len)` with the Levenshtein distance d over characters (crate strsim).
    Levenshtein,
    /// `2 LCS / (|a| + |o|)` over characters, case-sensitive, 0 when the thought is never closed (crate rapidfuzz).
    Indel,
}

/// One weighted term of the reward.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Term {
    /// What it measures.
    pub term: TermKind,
    /// Its weight in the sum.
    #[serde(default = "one")]
    pub weight: f64,
}

fn one() -> f64 {
    1.0
}

impl Term {
    const fn new(term: TermKind, weight: f64) -> Self {
        Self { term, weight }
    }

    /// The paper's Eq. 3.
    pub fn paper() -> Vec<Self> {
        [TermKind::Format, TermKind::Exact, TermKind::Levenshtein].map(|term| Self::new(term, 1.0)).to_vec()
    }

    /// What the authors' scripts compute.
    pub fn authors() -> Vec<Self> {
        vec![Self::new(TermKind::Format, 0.6), Self::new(TermKind::Indel, 1.0)]
    }

    /// The weighted value of this term for `text` when `truth` is hidden.
    pub fn value(&self, text: &str, truth: &str) -> f64 {
        let response = Response::parse(text);
        let answer = response.answer.unwrap_or("");
        self.weight
            * match self.term {
                TermKind::Format => f64::from(u8::from(response.well_formed)),
                TermKind::Exact => f64::from(u8::from(answer.trim().eq_ignore_ascii_case(truth))),
                TermKind::Levenshtein => strsim::normalized_levenshtein(answer.trim(), truth),
                TermKind::Indel if !text.contains("</think>") => 0.0,
                TermKind::Indel => {
                    rapidfuzz::distance::indel::normalized_similarity(answer.trim().chars(), truth.chars())
                }
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "<think> in a kitchen </think><answer> cup </answer>";

    fn total(terms: &[Term], text: &str, truth: &str) -> f64 {
        terms.iter().map(|term| term.value(text, truth)).sum()
    }

    #[test]
    fn a_perfect_completion_reaches_the_maximum() {
        assert_eq!(total(&Term::paper(), GOOD, "cup"), 3.0);
        assert!((total(&Term::authors(), GOOD, "cup") - 1.6).abs() < 1e-12);
    }

    #[test]
    fn terms_fall_one_by_one() {
        let cap = total(&Term::paper(), GOOD, "cap");
        assert!((cap - (1.0 + 2.0 / 3.0)).abs() < 1e-12, "{cap}");
        let bare = total(&Term::paper(), "cup", "cup");
        assert!((bare - 2.0).abs() < 1e-12, "a bare right answer has no format: {bare}");
        assert_eq!(total(&Term::authors(), "cup", "cup"), 0.0);
    }
}
