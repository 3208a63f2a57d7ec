//! Ballots: one decision of one curator about one box, whatever file it came from.

use std::collections::BTreeMap;

use crate::record::Difficulty;
use crate::suggest;

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Vote {
    /// Not an item.
    Reject,
    /// An item of this difficulty.
    Accept(Difficulty),
}

impl Vote {
    /// Every vote, in the order of [`Vote::index`].
    pub const ALL: [Self; 4] = [
        Self::Reject,
        Self::Accept(Difficulty::Hard),
        Self::Accept(Difficulty::Moderate),
        Self::Accept(Difficulty::Easy),
    ];

    /// Its place in [`Vote::ALL`].
    pub fn index(self) -> usize {
        match self {
            Self::Reject => 0,
            Self::Accept(Difficulty::Hard) => 1,
            Self::Accept(Difficulty::Moderate) => 2,
            Self::Accept(Difficulty::Easy) => 3,
        }
    }
}

/// Which box a ballot is about.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// The annotation with this id.
    Annotation(u64),
    /// The annotation that overlaps this box (x, y, width, height in pixels) best.
    Box([f64; 4]),
}

/// One decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Ballot {
    /// `decisions.csv:12`.
    pub place: String,
    /// Who decided.
    pub curator: String,
    /// The picture as the file names it.
    pub image: String,
    /// The box.
    pub target: Target,
    /// The decision.
    pub vote: Vote,
    /// The region's `rev` when it was decided, where the file states one.
    pub rev: Option<String>,
}

/// What a file says, and how its words are to be read.
pub struct Reading<'a> {
    /// The file as messages name it.
    pub name: &'a str,
    /// The curator of ballots that name none.
    pub curator: &'a str,
    /// Words of the file -> `easy`, `moderate`, `hard`, `accept` or `reject`.
    pub labels: &'a BTreeMap<String, String>,
}

const WORDS: [&str; 5] = ["accept", "reject", "easy", "moderate", "hard"];

impl Reading<'_> {
    /// The vote that `words` (a decision, a difficulty, labels; empty ones ignored) make together.
    pub fn vote<'w>(&self, words: impl IntoIterator<Item = &'w str>) -> Result<Vote, String> {
        let (mut accept, mut reject, mut difficulty) = (false, false, None);
        for word in words.into_iter().map(str::trim).filter(|word| !word.is_empty()) {
            let meaning = self.labels.get(word).cloned().unwrap_or_else(|| word.to_lowercase());
            let judged = match meaning.as_str() {
                "accept" => {
                    accept = true;
                    continue;
                }
                "reject" => {
                    reject = true;
                    continue;
                }
                "easy" => Difficulty::Easy,
                "moderate" => Difficulty::Moderate,
                "hard" => Difficulty::Hard,
                _ => {
                    return Err(format!(
                        "`{word}` is none of {}{}; say what it means with `labels:`",
                        WORDS.join(", "),
                        suggest::hint(word, WORDS)
                    ));
                }
            };
            if difficulty.replace(judged).is_some_and(|before| before != judged) {
                return Err("two different difficulties".to_owned());
            }
        }
        match (accept, reject, difficulty) {
            (true, true, _) => Err("both accepted and rejected".to_owned()),
            (false, true, _) => Ok(Vote::Reject),
            (_, false, Some(difficulty)) => Ok(Vote::Accept(difficulty)),
            (true, false, None) => Err("accepted without a difficulty (easy, moderate, hard)".to_owned()),
            (false, false, None) => Err("no decision: write accept or reject, and a difficulty".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_make_a_vote() {
        let labels = BTreeMap::from([("helmet".to_owned(), "hard".to_owned())]);
        let reading = Reading { name: "f", curator: "c", labels: &labels };
        let hard = Ok(Vote::Accept(Difficulty::Hard));
        for (words, vote) in [
            (vec!["accept", "hard"], hard.clone()),
            (vec!["", " Hard "], hard.clone()),
            (vec!["helmet"], hard),
            (vec!["reject", "easy"], Ok(Vote::Reject)),
            (vec!["accept"], Err("accepted without a difficulty (easy, moderate, hard)".to_owned())),
            (vec!["hard", "easy"], Err("two different difficulties".to_owned())),
        ] {
            assert_eq!(reading.vote(words), vote);
        }
        assert!(reading.vote(["esay"]).unwrap_err().contains("did you mean `easy`?"));
    }
}
