//! True/false by threshold: an item's name is said to be right when its probability, after the model's own thought, is above
//! a threshold.
//!
//! Fitting takes the threshold that answers the most questions of the paper's mix (the right name, two "judgement" confusions,
//! two irrelevant names) right on other items than those that are scored; among equals the middle one.

use std::collections::BTreeMap;

use crate::record::{Answer, Form, Question};

/// The probability that `answer` gives the name asked about: e to its log-probability.
pub(super) fn probability(answer: &Answer) -> Option<f64> {
    answer.scores.first().map(|score| score.logprob.exp())
}

/// The threshold fitted on `answers`; none when they hold no scored true/false question of the mix.
pub(super) fn fit(questions: &BTreeMap<&str, &Question>, answers: &[Answer]) -> Option<f64> {
    let mut points: Vec<(f64, bool)> = answers
        .iter()
        .filter_map(|answer| {
            let question = questions.get(answer.question.as_str())?;
            let mixed = question.form == Form::TrueFalse && question.kinds[0] != "choose";
            mixed.then_some((probability(answer)?, question.answer == 0))
        })
        .collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    best(&points)
}

/// Below the first point every name is called right; passing a point calls its name wrong.
fn best(points: &[(f64, bool)]) -> Option<f64> {
    points.first()?;
    let mut right = points.iter().filter(|point| point.1).count() as i64;
    let mut cuts = vec![(right, 0.0)];
    for (index, (value, is_right)) in points.iter().enumerate() {
        right += if *is_right { -1 } else { 1 };
        let next = points.get(index + 1).map_or(1.0, |next| next.0);
        if next > *value {
            cuts.push((right, f64::midpoint(*value, next)));
        }
    }
    let most = cuts.iter().map(|cut| cut.0).max()?;
    let equal: Vec<f64> = cuts.iter().filter(|cut| cut.0 == most).map(|cut| cut.1).collect();
    Some(equal[equal.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cut_separates_what_can_be_separated() {
        assert_eq!(best(&[(0.1, false), (0.2, false), (0.6, true), (0.9, true)]), Some(0.4));
        assert_eq!(best(&[(0.5, true)]), Some(0.0));
        assert_eq!(best(&[]), None);
    }
}
