//! `questions.build`: the questions about every item.
//!
//! | form | options | questions an item |
//! |---|---|---|
//! | `choice_easy` | the right name, 2 confusing ("choose" kind), 1 irrelevant: A to D | 1, or 4 with `circular` |
//! | `choice_hard` | the right name, 4 confusing, 2 irrelevant: A to G | 1, or 7 with `circular` |
//! | `true_false` | is it this name? right, 2 "choose", 2 "judgement", 2 irrelevant | 7 |
//!
//! The order of options is a permutation drawn for the item's id: editing one item moves no other. With `circular` every
//! rotation of that order is asked, so that a taste for one letter averages out.

use mpcc_engine::port::{PortType, Signature};
use mpcc_engine::stage::{Context, ParamError, Stage, StageError};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::record::{Form, Item, Question, identity};
use crate::{draw, records, template};

/// The prompt of choice questions when none is given.
const CHOICE: &str = "What object is hidden behind the black area of the image?\n{{options}}\nAnswer with the letter of the right option.";
/// The prompt of true/false questions when none is given.
const TRUE_FALSE: &str = "Is the object hidden behind the black area of the image a {{option}}? Answer yes or no.";
/// Wrong names of each kind that the questions use.
const OF_EACH_KIND: usize = 2;

/// A form that can be asked about items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AskedForm {
    /// Four options.
    ChoiceEasy,
    /// Seven options.
    ChoiceHard,
    /// One name.
    TrueFalse,
}

/// Parameters of `questions.build`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QuestionsBuild {
    /// Which questions are asked.
    pub forms: Vec<AskedForm>,
    /// Whether every rotation of a choice is asked.
    pub circular: bool,
    /// Template of choice prompts (a file); `{{options}}` lists them with their letters, `{{letters}}` names the letters,
    /// `{{names}}` the options without letters.
    pub prompt: Option<String>,
    /// Template of true/false prompts (a file); `{{option}}` or `{{category}}` is the name asked about.
    pub prompt_true_false: Option<String>,
}

impl Default for QuestionsBuild {
    fn default() -> Self {
        let forms = vec![AskedForm::ChoiceEasy, AskedForm::ChoiceHard, AskedForm::TrueFalse];
        Self { forms, circular: false, prompt: None, prompt_true_false: None }
    }
}

impl Stage for QuestionsBuild {
    const KIND: &'static str = "questions.build";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Builds choice and true/false questions about items";

    fn signature() -> Signature {
        Signature::new()
            .takes("items", PortType::records("Item"))
            .gives("questions", PortType::records("Question"))
            .file_param("prompt")
            .file_param("prompt_true_false")
            .seeded()
    }

    fn check(&self) -> Result<(), ParamError> {
        if self.forms.is_empty() {
            return Err(ParamError::new(
                "forms",
                "`forms` is empty: name at least one of choice_easy, choice_hard, true_false",
            ));
        }
        let tried = |param: &str, result: Result<String, template::TemplateError>| {
            result.map(drop).map_err(|error| ParamError::new(param, error.to_string()))
        };
        tried("prompt", self.choice_prompt(&[String::new()]))?;
        tried("prompt_true_false", self.true_false_prompt(""))
    }

    fn run(&self, ctx: &Context) -> Result<(), StageError> {
        let items: Vec<Item> = records::input(ctx, "items")?;
        let questions = items.iter().map(|item| self.about(item, ctx.seed)).collect::<Result<Vec<_>, _>>()?.concat();
        ctx.info(format!("{} questions about {} items", questions.len(), items.len()));
        records::output(ctx, "questions", &questions)
    }
}

/// An option and what it is.
type Labelled = (String, &'static str);

impl QuestionsBuild {
    /// The questions about `item`, in the order of `forms`.
    pub fn about(&self, item: &Item, seed: u64) -> Result<Vec<Question>, StageError> {
        let options = options(item)?;
        let of = |kinds: &[(&str, usize)]| -> Vec<Labelled> {
            kinds
                .iter()
                .flat_map(|(kind, count)| options.iter().filter(move |option| option.1 == *kind).take(*count))
                .cloned()
                .collect()
        };
        let mut questions = Vec::new();
        for form in &self.forms {
            match form {
                AskedForm::ChoiceEasy => {
                    questions.extend(self.choices(
                        item,
                        Form::ChoiceEasy,
                        of(&[("gt", 1), ("choose", 2), ("irrelevant", 1)]),
                        seed,
                    )?);
                }
                AskedForm::ChoiceHard => {
                    questions.extend(self.choices(item, Form::ChoiceHard, options.clone(), seed)?)
                }
                AskedForm::TrueFalse => {
                    for option in &options {
                        questions.push(self.true_false(item, option, seed)?);
                    }
                }
            }
        }
        Ok(questions)
    }

    fn choices(
        &self,
        item: &Item,
        form: Form,
        mut options: Vec<Labelled>,
        seed: u64,
    ) -> Result<Vec<Question>, StageError> {
        let seed = draw::rank(seed, "option order", &format!("{}\n{}", item.id, name(form)));
        options.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        let rotations = if self.circular { options.len() } else { 1 };
        (0..rotations)
            .map(|rotation| {
                let mut rotated = options.clone();
                rotated.rotate_left(rotation);
                self.choice(item, form, rotated, seed, rotation)
            })
            .collect()
    }

    fn choice(
        &self,
        item: &Item,
        form: Form,
        options: Vec<Labelled>,
        seed: u64,
        rotation: usize,
    ) -> Result<Question, StageError> {
        let (options, kinds): (Vec<String>, Vec<&str>) = options.into_iter().unzip();
        let answer = kinds.iter().position(|kind| *kind == "gt").expect("the right name is among the options");
        Ok(Question {
            id: identity(&[item.id.as_bytes(), name(form).as_bytes(), rotation.to_string().as_bytes()]),
            item: Some(item.clone()),
            form,
            group: group(item),
            images: Vec::new(),
            prompt: self.choice_prompt(&options).map_err(|error| StageError::invalid(error.to_string()))?,
            options,
            kinds: kinds.into_iter().map(str::to_owned).collect(),
            answer,
            seed,
        })
    }

    fn true_false(&self, item: &Item, (option, kind): &Labelled, seed: u64) -> Result<Question, StageError> {
        Ok(Question {
            id: identity(&[item.id.as_bytes(), name(Form::TrueFalse).as_bytes(), option.as_bytes()]),
            item: Some(item.clone()),
            form: Form::TrueFalse,
            group: group(item),
            images: Vec::new(),
            prompt: self.true_false_prompt(option).map_err(|error| StageError::invalid(error.to_string()))?,
            options: vec![option.clone()],
            kinds: vec![(*kind).to_owned()],
            answer: usize::from(*kind != "gt"),
            seed: draw::rank(seed, "true or false", &item.id),
        })
    }

    fn choice_prompt(&self, options: &[String]) -> Result<String, template::TemplateError> {
        let lines: Vec<String> =
            options.iter().zip('A'..).map(|(option, letter)| format!("{letter}. {option}")).collect();
        let letters: Vec<String> = options.iter().zip('A'..).map(|(_, letter)| letter.to_string()).collect();
        let values = [("options", lines.join("\n")), ("letters", letters.join(", ")), ("names", options.join(", "))];
        template::render(
            self.prompt.as_deref().unwrap_or(CHOICE),
            &values.each_ref().map(|(key, value)| (*key, value.as_str())),
        )
    }

    fn true_false_prompt(&self, option: &str) -> Result<String, template::TemplateError> {
        template::render(
            self.prompt_true_false.as_deref().unwrap_or(TRUE_FALSE),
            &[("option", option), ("category", option)],
        )
    }
}

/// The right name and the six wrong ones: `gt`, two `choose`, two `judgement`, two `irrelevant`.
fn options(item: &Item) -> Result<Vec<Labelled>, StageError> {
    let wrong = &item.distractors;
    let mut options: Vec<Labelled> = vec![(item.region.category.clone(), "gt")];
    for (names, kind) in [(&wrong.choose, "choose"), (&wrong.judgement, "judgement"), (&wrong.irrelevant, "irrelevant")]
    {
        let names: Vec<&String> = names.iter().take(OF_EACH_KIND).collect();
        if names.len() < OF_EACH_KIND {
            return Err(broken(
                item,
                &format!("has {} of 2 wrong options of the kind `{kind}`; mine distractors first", names.len()),
            ));
        }
        for name in names {
            if options.iter().any(|(other, _)| other == name) {
                return Err(broken(item, &format!("has the option `{name}` twice")));
            }
            options.push((name.clone(), kind));
        }
    }
    Ok(options)
}

fn broken(item: &Item, what: &str) -> StageError {
    StageError::invalid(format!(
        "item {} ({}, annotation {}, {}) {what}",
        item.id, item.region.image, item.region.annotation, item.region.category
    ))
}

/// The form as it is written in records.
pub(crate) fn name(form: Form) -> &'static str {
    match form {
        Form::ChoiceEasy => "choice_easy",
        Form::ChoiceHard => "choice_hard",
        Form::TrueFalse => "true_false",
        Form::Blink => "blink",
    }
}

fn group(item: &Item) -> String {
    item.difficulty.name().to_owned()
}
