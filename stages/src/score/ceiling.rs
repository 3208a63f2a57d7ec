//! `eval.ceiling`: the scores of whoever knows how the world was made.
//!
//! A generated dataset notes for each annotation the exact probability of every category given all that stays visible
//! (`posterior.jsonl`: `image`, `annotation`, `posterior`). The ceiling chooses the most probable option, the first of equals; to
//! a true/false question it says yes when the name is more probable than not. No model that sees the same can do better in
//! the mean. Questions without an item have no ceiling here and are passed over.

use std::collections::BTreeMap;
use std::path::Path;

use mpcc_engine::port::{PortType, Signature};
use mpcc_engine::stage::{Context, Stage, StageError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scored;
use crate::record::{Form, Question};
use crate::records;

/// Parameters of `eval.ceiling`: none.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvalCeiling {}

/// A line of `posterior.jsonl`.
#[derive(Debug, Deserialize)]
struct Line {
    annotation: u64,
    posterior: BTreeMap<String, f64>,
}

type Posteriors = BTreeMap<u64, BTreeMap<String, f64>>;

impl Stage for EvalCeiling {
    const KIND: &'static str = "eval.ceiling";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Scores the best answer that a generated world allows (Bayes)";

    fn signature() -> Signature {
        Signature::new()
            .takes("dataset", PortType::Dataset)
            .takes("questions", PortType::records("Question"))
            .gives("scores", PortType::Scores)
    }

    fn run(&self, ctx: &Context) -> Result<(), StageError> {
        let posteriors = read(&ctx.input("dataset")?.path.join("posterior.jsonl"))?;
        let questions: Vec<Question> = records::input(ctx, "questions")?;
        let mut scores = Vec::with_capacity(questions.len());
        for question in &questions {
            let Some(item) = &question.item else { continue };
            let posterior = posteriors.get(&item.region.annotation);
            let posterior = posterior.ok_or_else(|| {
                StageError::invalid(format!("annotation {} has no posterior in this dataset", item.region.annotation))
            })?;
            scores.push(scored(question, Some(best(question, posterior)), true, 0));
        }
        records::output(ctx, "scores", &scores)
    }
}

fn best(question: &Question, posterior: &BTreeMap<String, f64>) -> usize {
    let probability = |option: &String| posterior.get(option).copied().unwrap_or(0.0);
    if question.form == Form::TrueFalse {
        return usize::from(probability(&question.options[0]) <= 0.5);
    }
    let options = question.options.iter().map(probability).enumerate();
    options.reduce(|best, next| if next.1 > best.1 { next } else { best }).map_or(0, |(index, _)| index)
}

fn read(path: &Path) -> Result<Posteriors, StageError> {
    let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            StageError::invalid("this dataset has no posterior.jsonl: only a generated world knows its ceiling")
        }
        _ => StageError::io(path, error),
    })?;
    text.lines()
        .zip(1..)
        .map(|(line, number)| {
            let line: Line = serde_json::from_str(line)
                .map_err(|error| StageError::invalid(format!("{}:{number}: {error}", path.display())))?;
            Ok((line.annotation, line.posterior))
        })
        .collect()
}
