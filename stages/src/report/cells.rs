//! From scores to cells.
//!
//! A cell's number is the mean over the parts of its column (for the paper's Ave. the three difficulties weigh the same), each
//! the share of right answers. Several nodes for one row and split (seeds, repeats) are pooled. The interval is Wilson's for
//! a plain share of single questions, else a bootstrap over items, because the questions and repeats of one item are not
//! independent.

use std::collections::{BTreeMap, BTreeSet};

use super::layout::{Column, Filter};
use super::published::SUBSETS;
use super::table::Cell;
use crate::record::{Form, Score};
use crate::stats::{self, Unit};

/// The scores of one node.
pub(super) struct Observed {
    /// The row it belongs to.
    pub(super) row: String,
    /// Its split.
    pub(super) split: String,
    /// Its other coordinates: scores that differ in them are pooled, never paired.
    pub(super) stratum: String,
    pub(super) scores: Vec<Score>,
}

/// Every node's scores.
pub(super) struct Observations(pub(super) Vec<Observed>);

/// What pairs two methods' answers: stratum, split, question, repeat.
pub(super) type Pairing<'a> = (&'a str, &'a str, &'a str, u32);

impl Observations {
    /// Row names in order of appearance.
    pub(super) fn rows(&self) -> Vec<String> {
        distinct(self.0.iter().map(|observed| observed.row.clone()))
    }

    /// Splits in order of appearance.
    pub(super) fn splits(&self) -> Vec<String> {
        distinct(self.0.iter().map(|observed| observed.split.clone()))
    }

    /// Groups of questions in order of appearance.
    pub(super) fn groups(&self) -> Vec<String> {
        distinct(self.0.iter().flat_map(|observed| observed.scores.iter().map(|score| score.group.clone())))
    }

    /// The strata of a row.
    pub(super) fn strata(&self, row: &str) -> BTreeSet<&str> {
        self.0.iter().filter(|observed| observed.row == row).map(|observed| observed.stratum.as_str()).collect()
    }

    fn taken<'a>(&'a self, row: &'a str, filter: &'a Filter) -> impl Iterator<Item = (&'a Observed, &'a Score)> {
        let observed = self.0.iter().filter(move |observed| observed.row == row);
        observed
            .flat_map(|observed| observed.scores.iter().map(move |score| (observed, score)))
            .filter(|(observed, score)| filter.takes(&observed.split, score))
    }

    /// The cell of `row` in `column`; empty when a part has no score.
    pub(super) fn cell(&self, row: &str, column: &Column) -> Cell {
        let parts: Vec<Vec<Unit>> = column.parts.iter().map(|filter| self.units(row, filter)).collect();
        if parts.iter().any(Vec::is_empty) {
            return Cell::default();
        }
        let n = column.parts.iter().map(|filter| self.questions(row, filter)).sum();
        let single = parts.len() == 1 && parts[0].iter().all(|unit| unit.count == 1.0);
        let interval = match single {
            true => stats::wilson(parts[0].iter().map(|unit| unit.sum).sum::<f64>() as u64, parts[0].len() as u64),
            false => stats::bootstrap(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>(), &column.name),
        };
        let value = parts.iter().map(|units| stats::mean(units)).sum::<f64>() / parts.len() as f64;
        Cell::interval(100.0 * value, n, (100.0 * interval.0, 100.0 * interval.1))
    }

    /// One unit an item (in each stratum).
    fn units(&self, row: &str, filter: &Filter) -> Vec<Unit> {
        let mut items: BTreeMap<(&str, &str), Unit> = BTreeMap::new();
        for (observed, score) in self.taken(row, filter) {
            let unit = items.entry((&observed.stratum, &score.item)).or_insert(Unit { sum: 0.0, count: 0.0 });
            unit.sum += f64::from(u8::from(score.correct));
            unit.count += 1.0;
        }
        items.into_values().collect()
    }

    fn questions(&self, row: &str, filter: &Filter) -> u64 {
        let questions: BTreeSet<(&str, &str)> = self
            .taken(row, filter)
            .map(|(observed, score)| (observed.stratum.as_str(), score.question.as_str()))
            .collect();
        questions.len() as u64
    }

    /// The paper's Sum: the six shares of Cho.E and Cho.H in the three difficulties, added up.
    pub(super) fn sum(&self, row: &str) -> Cell {
        let groups: Vec<Vec<Unit>> = SUBSETS.iter().map(|subset| self.both_forms(row, subset)).collect();
        if groups.iter().any(Vec::is_empty) {
            return Cell::default();
        }
        let scale = 100.0 * groups.len() as f64;
        let (low, high) = stats::bootstrap(&groups.iter().map(Vec::as_slice).collect::<Vec<_>>(), "Sum");
        let value = groups.iter().map(|units| stats::mean(units)).sum::<f64>() / groups.len() as f64;
        let n = groups.iter().map(Vec::len).sum::<usize>() as u64;
        Cell::interval(scale * value, n, (scale * low, scale * high))
    }

    /// One unit an item that both forms ask about: the sum of its shares of right answers.
    fn both_forms(&self, row: &str, subset: &str) -> Vec<Unit> {
        let mut items: BTreeMap<(&str, &str), [Unit; 2]> = BTreeMap::new();
        for observed in self.0.iter().filter(|observed| observed.row == row) {
            for score in observed.scores.iter().filter(|score| score.group == subset) {
                let form = match score.form {
                    Form::ChoiceEasy => 0,
                    Form::ChoiceHard => 1,
                    Form::TrueFalse | Form::Blink => continue,
                };
                let units = items.entry((&observed.stratum, &score.item)).or_insert([Unit { sum: 0.0, count: 0.0 }; 2]);
                units[form].sum += f64::from(u8::from(score.correct));
                units[form].count += 1.0;
            }
        }
        let both = items.into_values().filter(|units| units.iter().all(|unit| unit.count > 0.0));
        both.map(|units| Unit { sum: units.iter().map(|unit| unit.sum / unit.count).sum(), count: 1.0 }).collect()
    }

    /// Whether each answer of `row` that counts in `column` is right.
    pub(super) fn answers<'a>(&'a self, row: &'a str, column: &'a Column) -> BTreeMap<Pairing<'a>, bool> {
        let taken = column.parts.iter().flat_map(|filter| self.taken(row, filter));
        taken
            .map(|(observed, score)| {
                (
                    (observed.stratum.as_str(), observed.split.as_str(), score.question.as_str(), score.repeat),
                    score.correct,
                )
            })
            .collect()
    }

    /// What a guess at random would reach in `column`.
    pub(super) fn chance(&self, column: &Column) -> Option<f64> {
        let row = self.0.first()?.row.clone();
        let shares = column.parts.iter().map(|filter| {
            let chances: Vec<f64> = self.taken(&row, filter).map(|(_, score)| 1.0 / score.options as f64).collect();
            (!chances.is_empty()).then(|| chances.iter().sum::<f64>() / chances.len() as f64)
        });
        let shares: Vec<f64> = shares.collect::<Option<_>>()?;
        Some(100.0 * shares.iter().sum::<f64>() / shares.len() as f64)
    }
}

fn distinct(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    names.filter(|name| seen.insert(name.clone())).collect()
}
