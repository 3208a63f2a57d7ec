//! `distractors.mine`: several models guess the hidden object; the wrong guesses become the options.
//!
//! Every model of the list answers the masked picture `samples` times. Names that match a category and are wrong are
//! counted over all models; the four most frequent are the confusing ones (ranks 1 and 3 `choose`, 2 and 4 `judgement`).
//! Items with fewer than four get refills at a higher temperature, then names that most often share a picture with what is
//! visible, and the record says which were filled. Irrelevant names were never guessed and share pictures least.
//! Draws are seeded by the item's id and co-occurrence comes from the whole data set: editing one item moves no other.

use std::collections::BTreeMap;

use mpcc_engine::port::{PortType, Signature};
use mpcc_engine::stage::{Context, ParamError, Stage, StageError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::Dataset;
use crate::dataset::cooccurrence::Cooccurrence;
use crate::decoding::Decoding;
use crate::mask::Mask;
use crate::record::{Distractors, Guess, Item};
use crate::records;
use crate::request::{Picture, Reply, Request};
use crate::responder::{Responder, seed};
use crate::response::Response;
use crate::template::render;
use crate::vocabulary::Vocabulary;

/// Confusing names an item needs.
const CONFUSING: usize = 4;

/// Parameters of `distractors.mine`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DistractorsMine {
    /// Question template file.
    pub prompt: String,
    /// Guesses a model makes an item.
    pub samples: u32,
    /// How guesses are drawn.
    pub decoding: Decoding,
    /// Rounds of refills for items with fewer than four different wrong guesses.
    pub refills: u32,
    /// Temperature of refills.
    pub refill_temperature: f64,
    /// Irrelevant names an item.
    pub irrelevant: usize,
    /// How the object is hidden.
    pub mask: Mask,
}

impl Default for DistractorsMine {
    fn default() -> Self {
        Self {
            prompt: "prompts/question.txt".to_owned(),
            samples: 10,
            decoding: Decoding::at(1.0, 256),
            refills: 1,
            refill_temperature: 1.5,
            irrelevant: 2,
            mask: Mask::default(),
        }
    }
}

impl Stage for DistractorsMine {
    const KIND: &'static str = "distractors.mine";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "several models guess the hidden object; frequent wrong guesses become options";

    fn signature() -> Signature {
        Signature::new()
            .takes("dataset", PortType::Dataset)
            .takes("items", PortType::records("Item"))
            .takes_many("models", PortType::Model)
            .gives("items", PortType::records("Item"))
            .gives("guesses", PortType::records("Guess"))
            .file_param("prompt")
            .numerics()
            .asks()
            .seeded()
    }

    fn check(&self) -> Result<(), ParamError> {
        if self.samples == 0 {
            return Err(ParamError::new("samples", "must be at least 1"));
        }
        if self.irrelevant < 2 {
            return Err(ParamError::new("irrelevant", "choice-hard needs two irrelevant names an item"));
        }
        self.decoding.check("decoding")
    }

    fn run(&self, ctx: &Context) -> Result<(), StageError> {
        let dataset = Dataset::open(&ctx.input("dataset")?.path)?;
        let items: Vec<Item> = records::input(ctx, "items")?;
        let vocabulary = Vocabulary::new(dataset.category_names());
        let mut guesses = Vec::new();
        let mut responders = ctx
            .models("models")?
            .into_iter()
            .map(|model| Responder::new(ctx, &dataset, model))
            .collect::<Result<Vec<_>, _>>()?;
        for round in 0..=self.refills {
            let made = by_item(&guesses);
            let open: Vec<&Item> =
                items.iter().filter(|item| round == 0 || wrong(item, &made).len() < CONFUSING).collect();
            let asking = Asking { vocabulary: &vocabulary, items: &open, round };
            let mut fresh = Vec::new();
            for (position, responder) in responders.iter_mut().enumerate() {
                fresh.extend(self.guess(ctx, responder, position, &asking)?);
            }
            guesses.extend(fresh);
        }
        let (made, together) = (by_item(&guesses), dataset.cooccurrence());
        let mined = |item: Item| {
            let distractors = self.distractors(ctx.seed, &together, &item, wrong(&item, &made));
            Item { distractors, ..item }.sealed()
        };
        let items: Vec<Item> = items.into_iter().map(mined).collect();
        let filled = items.iter().filter(|item| !item.distractors.filled.is_empty()).count();
        ctx.info(format!("{filled} of {} items had names filled in from co-occurrence", items.len()));
        ctx.metric("filled", filled as f64);
        records::output(ctx, "items", &items)?;
        records::output(ctx, "guesses", &guesses)
    }
}

/// One round of guessing.
struct Asking<'a> {
    vocabulary: &'a Vocabulary,
    items: &'a [&'a Item],
    round: u32,
}

impl DistractorsMine {
    fn guess(
        &self,
        ctx: &Context,
        responder: &mut Responder,
        position: usize,
        asking: &Asking,
    ) -> Result<Vec<Guess>, StageError> {
        let user = render(&self.prompt, &[]).map_err(|error| StageError::invalid(error.to_string()))?;
        let request = |item: &&Item| {
            let picture = Picture::Masked { region: item.region.clone(), mask: self.mask.clone() };
            Request { system: None, user: user.clone(), pictures: vec![picture], subject: item.id.clone() }
        };
        // Two models of the list may be the same weights: the position keeps their draws apart.
        let purpose = format!("guess {position} {}", asking.round);
        let draws = |item: &&Item| (0..self.samples).map(|index| seed(ctx, &purpose, &item.id, index)).collect();
        let requests: Vec<Request> = asking.items.iter().map(request).collect();
        let seeds: Vec<Vec<u64>> = asking.items.iter().map(draws).collect();
        let mut decoding = self.decoding.clone();
        if asking.round > 0 {
            decoding.temperature = self.refill_temperature;
        }
        let replies = responder.generate(&requests, &decoding.sampling(), &seeds)?;
        let guess = |(item, replies): (&&Item, Vec<Reply>)| {
            let responses: Vec<String> = replies.into_iter().map(|reply| reply.text).collect();
            let answers = responses.iter().filter_map(|text| Response::parse(text).answer);
            let names = answers.filter_map(|answer| asking.vocabulary.find(answer)).map(str::to_owned).collect();
            Guess { item: item.id.clone(), model: responder.model_name().to_owned(), names, responses }
        };
        Ok(asking.items.iter().zip(replies).map(guess).collect())
    }

    /// The options of `item` given the wrong names in order of frequency.
    fn distractors(&self, seed: u64, together: &Cooccurrence, item: &Item, counted: Vec<(String, u32)>) -> Distractors {
        let mut confusing: Vec<&str> = counted.iter().take(CONFUSING).map(|(name, _)| name.as_str()).collect();
        let guessed = confusing.len();
        for name in together.confusing(&item.region) {
            if confusing.len() < CONFUSING && !confusing.contains(&name) {
                confusing.push(name);
            }
        }
        let named = |name: &&str| confusing.contains(name) || counted.iter().any(|(guess, _)| guess == name);
        let strangers = together.irrelevant(&item.region, seed).into_iter().filter(|name| !named(name));
        let irrelevant = strangers.take(self.irrelevant).map(str::to_owned).collect();
        let every_second =
            |first: usize| confusing.iter().skip(first).step_by(2).map(|name| (*name).to_owned()).collect();
        let filled = confusing[guessed..].iter().map(|name| (*name).to_owned()).collect();
        Distractors {
            choose: every_second(0),
            judgement: every_second(1),
            irrelevant,
            filled,
            guesses: counted.clone(),
        }
    }
}

/// The guesses of every item.
fn by_item(guesses: &[Guess]) -> BTreeMap<&str, Vec<&Guess>> {
    let mut grouped: BTreeMap<&str, Vec<&Guess>> = BTreeMap::new();
    for guess in guesses {
        grouped.entry(&guess.item).or_default().push(guess);
    }
    grouped
}

/// Wrong names with their counts, most frequent first, ties by name.
fn wrong(item: &Item, guesses: &BTreeMap<&str, Vec<&Guess>>) -> Vec<(String, u32)> {
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    let made = guesses.get(item.id.as_str()).into_iter().flatten();
    for name in made.flat_map(|guess| &guess.names).filter(|name| **name != item.region.category) {
        *counts.entry(name).or_default() += 1;
    }
    let mut counted: Vec<(String, u32)> = counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
    counted.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    counted
}
