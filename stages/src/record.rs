//! Records: what flows between the paper's stages, one JSON object a line.
//!
//! Records nest their parents by value and are self-sufficient. `id` hashes identity alone (image digest, annotation box,
//! category), so joins survive later stages; `rev` hashes the whole content, so a decision taken on another `rev` is stale
//! and found. Pictures are never copied: a record points into a dataset by path and content digest.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What every record type is: one line of a JSONL file.
pub trait Record: Serialize + DeserializeOwned {
    /// The name written in `records<NAME>`.
    const NAME: &'static str;
    /// Version of the record's schema, raised when a field changes; unknown and missing fields are errors when read.
    const SCHEMA: u32;

    /// What no two records of one file may share; `None` where repeats are meant.
    fn unique(&self) -> Option<&str> {
        None
    }
}

macro_rules! records {
    ($($name:ident $schema:literal $(unique $field:ident)?),* $(,)?) => {$(
        impl Record for $name {
            const NAME: &'static str = stringify!($name);
            const SCHEMA: u32 = $schema;
            $(fn unique(&self) -> Option<&str> {
                Some(&self.$field)
            })?
        }
    )*};
}

records! {
    Region 1 unique id, Verdict 1, Item 1 unique id, Guess 1, Question 1 unique id, Answer 1, Score 1, Trace 1,
}

/// The first 24 hexadecimal digits of the BLAKE3 hash of `parts`, each preceded by its length.
pub fn identity(parts: &[&[u8]]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().to_hex()[..24].to_owned()
}

/// [`identity`] of the JSON text of `value`.
fn content<T: Serialize>(value: &T) -> String {
    identity(&[&serde_json::to_vec(value).expect("records are plain data")])
}

/// A box of a picture that may be hidden.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// Hash of (image digest, box, category).
    pub id: String,
    /// The picture's path inside its dataset.
    pub image: String,
    /// BLAKE3 of the picture file.
    pub image_digest: String,
    /// The annotation's id in the COCO file.
    pub annotation: u64,
    /// Width and height of the picture in pixels.
    pub size: [u32; 2],
    /// x, y, width, height in pixels, as annotated.
    pub bbox: [f64; 4],
    /// Category name.
    pub category: String,
    /// Supercategory name.
    pub supercategory: String,
    /// Annotated area in square pixels.
    pub area: f64,
    /// COCO's iscrowd.
    pub crowd: bool,
    /// Every category in the same picture with how many boxes it has, the region's own included, sorted by name.
    pub scene: Vec<(String, u32)>,
}

impl Region {
    /// The id of the region with this picture digest, box and category.
    pub fn identify(image_digest: &str, bbox: [f64; 4], category: &str) -> String {
        let sides = bbox.map(f64::to_le_bytes);
        identity(&[image_digest.as_bytes(), sides.as_flattened(), category.as_bytes()])
    }

    /// Hash of the whole content: a decision taken on another `rev` is stale.
    pub fn rev(&self) -> String {
        content(self)
    }
}

/// What a model said about how strongly a region is tied to its context.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// The region's id.
    pub id: String,
    /// The model's name.
    pub model: String,
    /// The rating, 1 to 10; none when the answer held no number.
    pub rating: Option<f64>,
    /// Whether the region was kept.
    pub kept: bool,
    /// The model's raw answer.
    pub response: String,
}

/// How hard an item is, as its curators judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Difficulty {
    /// Context does not settle it.
    Hard,
    /// In between.
    Moderate,
    /// Context all but settles it.
    Easy,
}

impl Difficulty {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hard => "hard",
            Self::Moderate => "moderate",
            Self::Easy => "easy",
        }
    }
}

/// Wrong options of an item.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distractors {
    /// Two confusing names used in choice-easy ("choose" kind).
    pub choose: Vec<String>,
    /// Two more confusing names ("judgement" kind).
    pub judgement: Vec<String>,
    /// Names nobody would guess here, two or more.
    pub irrelevant: Vec<String>,
    /// Every wrong guess with how often it was made, most frequent first, ties by name.
    pub guesses: Vec<(String, u32)>,
    /// Confusing names that had to be filled in from co-occurrence because too few were guessed.
    pub filled: Vec<String>,
}

/// A region accepted by a curation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// The region's id.
    pub id: String,
    /// Hash of the content.
    pub rev: String,
    /// The region.
    pub region: Region,
    /// Difficulty.
    pub difficulty: Difficulty,
    /// Who decided.
    pub curators: Vec<String>,
    /// Wrong options; empty until mined.
    pub distractors: Distractors,
}

impl Item {
    /// The item with `rev` computed anew; call it after every change.
    pub fn sealed(mut self) -> Self {
        self.rev = String::new();
        self.rev = content(&self);
        self
    }
}

impl Distractors {
    /// The four confusing names, "choose" kind first.
    pub fn confusing(&self) -> impl Iterator<Item = &str> {
        self.choose.iter().chain(&self.judgement).map(String::as_str)
    }
}

/// A wrong or right name a model guessed for a hidden object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guess {
    /// The item's id.
    pub item: String,
    /// The model's name.
    pub model: String,
    /// Guesses in the order they were made, normalised to category names where they match one.
    pub names: Vec<String>,
    /// Raw responses.
    pub responses: Vec<String>,
}

/// The form of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// The right name, two confusing, one irrelevant: A to D.
    ChoiceEasy,
    /// The right name, four confusing, two irrelevant: A to G.
    ChoiceHard,
    /// Is it this name? Seven questions an item: the right name, four confusing, two irrelevant.
    TrueFalse,
    /// A question in BLINK's form: its own pictures, choices and right letter.
    Blink,
}

/// One question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// Hash of (item id, form, option asked about).
    pub id: String,
    /// The item, for masked questions.
    pub item: Option<Item>,
    /// Its form.
    pub form: Form,
    /// What it belongs to in a table: the difficulty for masked questions, the task for BLINK's.
    pub group: String,
    /// Pictures that are not masked, as paths inside the dataset (BLINK); empty for masked questions.
    pub images: Vec<String>,
    /// The text of the user turn, picture excluded.
    pub prompt: String,
    /// Options in the order shown; for true/false the one name asked about.
    pub options: Vec<String>,
    /// What each option is: `gt`, `choose` and `judgement` (the two kinds of confusing names), `irrelevant`, or `choice` (BLINK).
    pub kinds: Vec<String>,
    /// Index of the right option; for true/false 0 when the name is the right one, 1 when not.
    pub answer: usize,
    /// Seed of the option permutation.
    pub seed: u64,
}

/// A log-probability of an option.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptionScore {
    /// The option.
    pub option: String,
    /// Summed natural log-probability of the option's tokens up to and with the closing tag.
    pub logprob: f64,
}

/// One answer of one model to one question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// The question's id.
    pub question: String,
    /// The model's name.
    pub model: String,
    /// The text as generated, tags included.
    pub text: String,
    /// Log-probabilities of the options after the model's own thought (`mode: likelihood`).
    pub scores: Vec<OptionScore>,
    /// Tokens of the prompt and of the answer.
    pub usage: Usage,
    /// Which repeat this is, from 0.
    pub repeat: u32,
}

/// Token counts of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Tokens of the prompt, pictures included.
    pub prompt: u32,
    /// Tokens generated.
    pub completion: u32,
}

/// A scored answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// The question's id.
    pub question: String,
    /// The item's id, or the question's for BLINK.
    pub item: String,
    /// The question's form.
    pub form: Form,
    /// The question's group (difficulty or task).
    pub group: String,
    /// The kind of the option asked about, for true/false.
    pub kind: Option<String>,
    /// How many options there were.
    pub options: usize,
    /// The option chosen; none when the answer could not be parsed.
    pub chosen: Option<usize>,
    /// Whether it was the right one.
    pub correct: bool,
    /// Whether the text keeps the format think, then answer.
    pub formatted: bool,
    /// Which repeat this is, from 0.
    pub repeat: u32,
}

/// A reasoning trace for an item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trace {
    /// The item.
    pub item: Item,
    /// The reasoning, without tags.
    pub reasoning: String,
    /// The answer the trace ends with: the item's category.
    pub answer: String,
    /// Name and outcome of every check.
    pub checks: Vec<(String, bool)>,
}
