//! Layouts: what the columns of each of the paper's tables are.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::published::SUBSETS;
use crate::record::{Form, Score};

/// The shape of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Table 4: methods, in distribution (mean of the three difficulties) and out of distribution (all items).
    MethodsBySplit,
    /// Table 2: models, each difficulty, their mean and the sum of the six cells.
    ModelsByDifficulty,
    /// Table 3: true/false accuracy by what is asked about.
    TrueFalse,
    /// Table 5: tasks in BLINK's form.
    CrossTask,
}

/// Which scores count.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Filter {
    pub(super) split: Option<String>,
    pub(super) form: Form,
    pub(super) group: Option<String>,
    /// Kinds of the option asked about; empty for all.
    pub(super) kinds: &'static [&'static str],
}

impl Filter {
    fn new(form: Form) -> Self {
        Self { split: None, form, group: None, kinds: &[] }
    }

    fn group(mut self, group: &str) -> Self {
        self.group = Some(group.to_owned());
        self
    }

    /// Whether `score` of the split `split` counts.
    pub(super) fn takes(&self, split: &str, score: &Score) -> bool {
        self.split.as_ref().is_none_or(|wanted| wanted == split)
            && self.form == score.form
            && self.group.as_ref().is_none_or(|wanted| *wanted == score.group)
            && (self.kinds.is_empty() || score.kind.as_deref().is_some_and(|kind| self.kinds.contains(&kind)))
    }
}

/// A column: the mean of its parts' means, in per cent.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) parts: Vec<Filter>,
    /// Whether methods are compared in it pair by pair.
    pub(super) compared: bool,
}

impl Column {
    fn new(name: impl Into<String>, parts: Vec<Filter>) -> Self {
        Self { name: name.into(), parts, compared: true }
    }

    fn not_compared(mut self) -> Self {
        self.compared = false;
        self
    }
}

const CHOICES: [(&str, Form); 2] = [("Cho.E", Form::ChoiceEasy), ("Cho.H", Form::ChoiceHard)];
const ASKED: [(&str, &[&str]); 4] = [
    ("GT", &["gt"]),
    ("conf.", &["choose", "judgement"]),
    ("irre.", &["irrelevant"]),
    ("All", &["gt", "judgement", "irrelevant"]),
];

impl Layout {
    /// The matrix key that names the rows.
    pub(super) fn row_key(self) -> &'static str {
        match self {
            Self::MethodsBySplit | Self::CrossTask => "method",
            Self::ModelsByDifficulty | Self::TrueFalse => "model",
        }
    }

    /// The heading of the rows.
    pub(super) fn corner(self) -> &'static str {
        match self {
            Self::MethodsBySplit | Self::CrossTask => "Method",
            Self::ModelsByDifficulty | Self::TrueFalse => "Model",
        }
    }

    /// The title when none is given.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::MethodsBySplit => "Accuracy of methods in and out of distribution (per cent)",
            Self::ModelsByDifficulty => "Accuracy of models by difficulty (per cent)",
            Self::TrueFalse => "True/false accuracy by what is asked about (per cent)",
            Self::CrossTask => "Cross-task accuracy (per cent)",
        }
    }

    /// The columns, given the splits and the groups that occur, in order of appearance.
    pub(super) fn columns(self, splits: &[String], groups: &[String]) -> Vec<Column> {
        match self {
            Self::MethodsBySplit => {
                splits.iter().flat_map(|split| CHOICES.map(|(name, form)| by_split(split, name, form))).collect()
            }
            Self::ModelsByDifficulty => by_difficulty(),
            Self::TrueFalse => {
                SUBSETS.iter().flat_map(|subset| ASKED.map(|(name, kinds)| asked(subset, name, kinds))).collect()
            }
            Self::CrossTask => groups
                .iter()
                .map(|group| Column::new(task(group), vec![Filter::new(Form::Blink).group(group)]))
                .collect(),
        }
    }

    /// Pairs of columns whose order the paper shows.
    pub(super) fn column_orders(self) -> Vec<(String, String)> {
        let pair = |a: String, b: String| (a, b);
        match self {
            Self::ModelsByDifficulty => {
                let steps = SUBSETS.windows(2).flat_map(|step| {
                    CHOICES.map(|(form, _)| pair(format!("{} {form}", step[0]), format!("{} {form}", step[1])))
                });
                steps.chain(SUBSETS.map(|subset| pair(format!("{subset} Cho.H"), format!("{subset} Cho.E")))).collect()
            }
            Self::TrueFalse => SUBSETS
                .iter()
                .flat_map(|subset| {
                    [("GT", "irre."), ("conf.", "irre."), ("GT", "conf.")]
                        .map(|(a, b)| pair(format!("{subset} {a}"), format!("{subset} {b}")))
                })
                .collect(),
            Self::MethodsBySplit | Self::CrossTask => Vec::new(),
        }
    }
}

fn by_split(split: &str, name: &str, form: Form) -> Column {
    let filter = Filter { split: Some(split.to_owned()), ..Filter::new(form) };
    match split {
        "full" => Column::new(format!("ID {name}"), SUBSETS.map(|subset| filter.clone().group(subset)).to_vec()),
        "ood" => Column::new(format!("OOD {name}"), vec![filter]),
        other => Column::new(format!("{other} {name}"), vec![filter]),
    }
}

fn by_difficulty() -> Vec<Column> {
    let cell = |subset: &str, (name, form): (&str, Form)| {
        Column::new(format!("{subset} {name}"), vec![Filter::new(form).group(subset)]).not_compared()
    };
    let mean = |(name, form): (&str, Form)| {
        Column::new(format!("Ave. {name}"), SUBSETS.map(|subset| Filter::new(form).group(subset)).to_vec())
    };
    SUBSETS.iter().flat_map(|subset| CHOICES.map(|choice| cell(subset, choice))).chain(CHOICES.map(mean)).collect()
}

fn asked(subset: &str, name: &str, kinds: &'static [&'static str]) -> Column {
    let column =
        Column::new(format!("{subset} {name}"), vec![Filter { kinds, ..Filter::new(Form::TrueFalse).group(subset) }]);
    if name == "All" { column } else { column.not_compared() }
}

/// The paper's short names of BLINK's tasks; other tasks keep theirs.
fn task(group: &str) -> String {
    let lower = group.to_lowercase();
    let known = [("sem", "Sem."), ("rel", "Rel."), ("obj", "Obj."), ("loc", "Obj."), ("spa", "Spa.")];
    known
        .iter()
        .find(|(start, _)| lower.starts_with(start))
        .map_or_else(|| group.to_owned(), |(_, short)| (*short).to_owned())
}
