//! `eval.answer`: a model answers questions about masked (or, in BLINK's form, open) pictures.
//!
//! Two modes. `generate` stores the text, to be parsed by `eval.score`. `likelihood` lets the model write its own thought,
//! then scores every option at the place of the answer by its summed log-probability up to and with the closing tag (for a
//! response without tags: from the start of the turn to its end). Raw texts are stored in both, so re-scoring never re-asks.
//! Questions of one item that share their prompt share the thought: it is generated once.

use mpcc_engine::port::{PortType, Signature};
use mpcc_engine::stage::{Context, ParamError, Provider, Stage, StageError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::Dataset;
use crate::decoding::Decoding;
use crate::mask::Mask;
use crate::record::{Answer, OptionScore, Question};
use crate::records;
use crate::request::{Options, Picture, Reply, Request};
use crate::responder::{Responder, seed, unlikely};
use crate::response::Response;

/// How an answer is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The generated text is the answer.
    Generate,
    /// After its own thought, the likeliest option is the answer.
    Likelihood,
}

/// Parameters of `eval.answer`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvalAnswer {
    /// How an answer is chosen.
    pub mode: Mode,
    /// System prompt file; none for the base setting without one.
    pub system: Option<String>,
    /// How text is generated.
    pub decoding: Decoding,
    /// Answers a question; more than one needs a temperature.
    pub repeats: u32,
    /// How the object is hidden.
    pub mask: Mask,
}

impl Default for EvalAnswer {
    fn default() -> Self {
        Self { mode: Mode::Generate, system: None, decoding: Decoding::default(), repeats: 1, mask: Mask::default() }
    }
}

impl Stage for EvalAnswer {
    const KIND: &'static str = "eval.answer";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "a model answers questions, by text or by option likelihood after its own thought";

    fn signature() -> Signature {
        Signature::new()
            .takes("model", PortType::Model)
            .takes("dataset", PortType::Dataset)
            .takes("questions", PortType::records("Question"))
            .gives("answers", PortType::records("Answer"))
            .file_param("system")
            .numerics()
            .asks()
            .seeded()
    }

    fn check(&self) -> Result<(), ParamError> {
        if self.repeats == 0 {
            return Err(ParamError::new("repeats", "must be at least 1"));
        }
        if self.repeats > 1 && self.decoding.temperature == 0.0 {
            return Err(ParamError::new(
                "repeats",
                "greedy answers are all equal; set decoding.temperature above 0 or repeats to 1",
            ));
        }
        self.decoding.check("decoding")
    }

    fn check_model(&self, _: &str, provider: Provider) -> Result<(), String> {
        match (self.mode, provider) {
            (Mode::Likelihood, Provider::Openai | Provider::Replay) => {
                Err(unlikely("`mode: likelihood`", "`mode: generate`"))
            }
            _ => Ok(()),
        }
    }

    fn run(&self, ctx: &Context) -> Result<(), StageError> {
        let dataset = Dataset::open(&ctx.input("dataset")?.path)?;
        let questions: Vec<Question> = records::input(ctx, "questions")?;
        let mut responder = Responder::new(ctx, &dataset, ctx.model("model")?)?;
        let requests: Vec<Request> =
            questions.iter().map(|question| self.request(question, &dataset)).collect::<Result<_, _>>()?;
        let seeds: Vec<Vec<u64>> = questions.iter().map(|question| self.seeds(ctx, question)).collect();
        let replies = responder.generate(&requests, &self.decoding.sampling(), &seeds)?;
        let mut answers = Vec::with_capacity(questions.len() * self.repeats as usize);
        for repeat in 0..self.repeats {
            let replies: Vec<&Reply> = replies.iter().map(|replies| &replies[repeat as usize]).collect();
            let scores = match self.mode {
                Mode::Generate => vec![Vec::new(); questions.len()],
                Mode::Likelihood => rank(&mut responder, &questions, &requests, &replies)?,
            };
            for ((question, reply), scores) in questions.iter().zip(replies).zip(scores) {
                let model = responder.model_name().to_owned();
                let (text, usage) = (reply.text.clone(), reply.usage);
                answers.push(Answer { question: question.id.clone(), model, text, scores, usage, repeat });
            }
        }
        records::output(ctx, "answers", &answers)
    }
}

impl EvalAnswer {
    fn request(&self, question: &Question, dataset: &Dataset) -> Result<Request, StageError> {
        let pictures = match &question.item {
            Some(item) => vec![Picture::Masked { region: item.region.clone(), mask: self.mask.clone() }],
            None => question.images.iter().map(|image| open(dataset, image)).collect::<Result<_, _>>()?,
        };
        Ok(Request {
            system: self.system.clone(),
            user: question.prompt.clone(),
            pictures,
            subject: question.id.clone(),
        })
    }

    /// Seeds of the repeats. Questions of one item share them, so equal prompts share the thought.
    fn seeds(&self, ctx: &Context, question: &Question) -> Vec<u64> {
        let subject = question.item.as_ref().map_or(&question.id, |item| &item.id);
        (0..self.repeats).map(|repeat| seed(ctx, "answer", subject, repeat)).collect()
    }
}

fn open(dataset: &Dataset, image: &str) -> Result<Picture, StageError> {
    let digest = dataset.digest(image)?.hex();
    Ok(Picture::Open { image: image.to_owned(), digest })
}

fn rank(
    responder: &mut Responder,
    questions: &[Question],
    requests: &[Request],
    replies: &[&Reply],
) -> Result<Vec<Vec<OptionScore>>, StageError> {
    let options: Vec<Options> =
        questions.iter().zip(replies).map(|(question, reply)| options_after(&reply.text, &question.options)).collect();
    let scores = responder.score(requests, &options)?;
    let named = |(question, scores): (&Question, Vec<f64>)| {
        let pairs = question.options.iter().zip(scores);
        pairs.map(|(option, logprob)| OptionScore { option: option.clone(), logprob }).collect()
    };
    Ok(questions.iter().zip(scores).map(named).collect())
}

/// The options as continuations of a response: inside its answer tags, or from the start of the turn when it has no thought.
fn options_after(text: &str, names: &[String]) -> Options {
    match Response::answer_prefix(text) {
        Some(prefix) => {
            let continuations = names.iter().map(|name| format!("{name}</answer>")).collect();
            Options { prefix, continuations, closed: false }
        }
        None => Options { prefix: String::new(), continuations: names.to_vec(), closed: true },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_stand_where_the_answer_stands() {
        let names = vec!["cup".to_owned()];
        let thought = options_after("<think> a </think> <answer> bowl </answer>", &names);
        assert_eq!(thought.prefix, "<think> a </think> <answer>");
        assert_eq!(thought.continuations, ["cup</answer>"]);
        let direct = options_after("bowl", &names);
        assert!(direct.prefix.is_empty() && direct.closed);
    }
}
