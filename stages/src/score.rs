//! `eval.score`: answers become scores.
//!
//! An answer with option log-probabilities chooses the likeliest option (the first of equals); a true/false one says yes when
//! the name's probability is above the threshold. An answer without them is read by a parser. Scoring asks no model:
//! another parser re-scores stored answers.

mod ceiling;
mod parse;
mod threshold;

use std::collections::{BTreeMap, BTreeSet};

use mpcc_engine::port::{PortType, Signature};
use mpcc_engine::stage::{Context, Input, ParamError, Stage, StageError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::record::{Answer, Form, Question, Score};
use crate::records;
use crate::response::Response;

pub use ceiling::EvalCeiling;
pub use parse::Parser;

/// Parameters of `eval.score`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvalScore {
    /// How texts are read.
    pub parser: Parser,
    /// True/false by probability: the name is right above this, unless `dev_answers` are connected to fit it.
    pub threshold: f64,
}

impl Default for EvalScore {
    fn default() -> Self {
        Self { parser: Parser::Strict, threshold: 0.5 }
    }
}

impl Stage for EvalScore {
    const KIND: &'static str = "eval.score";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Reads answers and compares them with the right ones";

    fn signature() -> Signature {
        Signature::new()
            .takes("questions", PortType::records("Question"))
            .takes("answers", PortType::records("Answer"))
            .takes_optional("dev_questions", PortType::records("Question"))
            .takes_optional("dev_answers", PortType::records("Answer"))
            .gives("scores", PortType::Scores)
    }

    fn check(&self) -> Result<(), ParamError> {
        match (0.0..=1.0).contains(&self.threshold) {
            true => Ok(()),
            false => Err(ParamError::new(
                "threshold",
                format!("`threshold: {}` is no probability between 0 and 1", self.threshold),
            )),
        }
    }

    fn run(&self, ctx: &Context) -> Result<(), StageError> {
        let questions: Vec<Question> = records::input(ctx, "questions")?;
        let answers: Vec<Answer> = records::input(ctx, "answers")?;
        let by_id: BTreeMap<&str, &Question> =
            questions.iter().map(|question| (question.id.as_str(), question)).collect();
        complete(&by_id, &answers)?;
        let threshold = self.fitted(ctx)?;
        let scores = answers
            .iter()
            .map(|answer| self.score(by_id[answer.question.as_str()], answer, threshold))
            .collect::<Result<Vec<_>, _>>()?;
        let unparsed = scores.iter().filter(|score| score.chosen.is_none()).count();
        if unparsed > 0 {
            ctx.info(format!("{unparsed} of {} answers could not be parsed and count as wrong", scores.len()));
        }
        ctx.metric("unparsed", unparsed as f64);
        records::output(ctx, "scores", &scores)
    }
}

impl EvalScore {
    fn fitted(&self, ctx: &Context) -> Result<f64, StageError> {
        let read = |questions: &Input, answers: &Input| {
            Ok::<_, StageError>((records::read::<Question>(&questions.path)?, records::read::<Answer>(&answers.path)?))
        };
        let (questions, answers) = match (ctx.optional("dev_questions")?, ctx.optional("dev_answers")?) {
            (None, None) => return Ok(self.threshold),
            (Some(questions), Some(answers)) => read(questions, answers)?,
            _ => {
                return Err(StageError::invalid(
                    "`dev_questions` and `dev_answers` go together: connect both or neither",
                ));
            }
        };
        let by_id = questions.iter().map(|question| (question.id.as_str(), question)).collect();
        let fitted = threshold::fit(&by_id, &answers);
        let fitted = fitted.ok_or_else(|| {
            StageError::invalid(
                "`dev_answers` hold no true/false answer with a log-probability to fit the threshold on",
            )
        })?;
        ctx.info(format!("threshold {fitted:.4}, fitted on {} answers", answers.len()));
        ctx.metric("threshold", fitted);
        Ok(fitted)
    }

    fn score(&self, question: &Question, answer: &Answer, threshold: f64) -> Result<Score, StageError> {
        let chosen = match (answer.scores.is_empty(), question.form) {
            (true, _) => self.parser.read(question, &answer.text),
            (false, Form::TrueFalse) => {
                threshold::probability(answer).map(|probability| usize::from(probability <= threshold))
            }
            (false, _) => Some(likeliest(question, answer)?),
        };
        let formatted = Response::parse(&answer.text).well_formed;
        Ok(scored(question, chosen, formatted, answer.repeat))
    }
}

/// The score of choosing `chosen`.
fn scored(question: &Question, chosen: Option<usize>, formatted: bool, repeat: u32) -> Score {
    Score {
        question: question.id.clone(),
        item: question.item.as_ref().map_or_else(|| question.id.clone(), |item| item.id.clone()),
        form: question.form,
        group: question.group.clone(),
        kind: (question.form == Form::TrueFalse).then(|| question.kinds[0].clone()),
        options: if question.form == Form::TrueFalse { 2 } else { question.options.len() },
        chosen,
        correct: chosen == Some(question.answer),
        formatted,
        repeat,
    }
}

fn likeliest(question: &Question, answer: &Answer) -> Result<usize, StageError> {
    let scored: Vec<&str> = answer.scores.iter().map(|score| score.option.as_str()).collect();
    if scored != question.options {
        let wanted = question.options.join(", ");
        return Err(StageError::invalid(format!(
            "the answer to question {} scores the options [{}], the question has [{wanted}]",
            question.id,
            scored.join(", ")
        )));
    }
    let values = answer.scores.iter().map(|score| score.logprob).enumerate();
    let best = values.reduce(|best, next| if next.1 > best.1 { next } else { best });
    best.map(|(index, _)| index).ok_or_else(|| StageError::invalid(format!("question {} has no option", question.id)))
}

/// Every answer is to a question, and every question is answered in every repeat.
fn complete(questions: &BTreeMap<&str, &Question>, answers: &[Answer]) -> Result<(), StageError> {
    let mut seen: BTreeSet<(&str, u32)> = BTreeSet::new();
    for answer in answers {
        if !questions.contains_key(answer.question.as_str()) {
            return Err(StageError::invalid(format!(
                "an answer is to question {}, which is not among the questions",
                answer.question
            )));
        }
        if !seen.insert((&answer.question, answer.repeat)) {
            return Err(StageError::invalid(format!(
                "question {} is answered twice in repeat {}",
                answer.question, answer.repeat
            )));
        }
    }
    let repeats: BTreeSet<u32> = answers.iter().map(|answer| answer.repeat).collect();
    let missing: Vec<&str> =
        questions.keys().filter(|id| repeats.iter().any(|repeat| !seen.contains(&(**id, *repeat)))).copied().collect();
    match (missing.first(), answers.is_empty() && !questions.is_empty()) {
        (None, false) => Ok(()),
        (first, _) => Err(StageError::invalid(format!(
            "{} of {} questions have no answer, {} first; the answers are of other questions or incomplete",
            if answers.is_empty() { questions.len() } else { missing.len() },
            questions.len(),
            first.copied().or_else(|| questions.keys().next().copied()).unwrap_or_default()
        ))),
    }
}
