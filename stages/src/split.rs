//! `split.categories`: training and test items, in distribution or with disjoint categories.
//!
//! | split | train | test |
//! |---|---|---|
//! | `full` | every item | every item |
//! | `ood` | items of one half of the categories | items of the other half |
//!
//! The halves are a seeded draw over the dataset's categories, so they do not depend on which items were curated. With
//! `options: held_out` the wrong options of the test items come from the test half too: otherwise training on the other half
//! would teach which options cannot be right. Names outside the half are taken out and the gaps filled: first from the item's
//! own wrong guesses, most frequent first, then by co-occurrence in the raw dataset ([`Distractors::filled`] records those).

use std::collections::BTreeSet;

use mpcc_engine::port::{PortType, Signature};
use mpcc_engine::stage::{Context, Stage, StageError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::Dataset;
use crate::dataset::cooccurrence::Cooccurrence;
use crate::record::{Distractors, Item};
use crate::{draw, records, suggest};

/// Confusing names of each kind, and irrelevant ones, that an item keeps.
const OF_EACH_KIND: usize = 2;

/// In or out of distribution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Every category in both parts.
    #[default]
    Full,
    /// One half of the categories in each part.
    Ood,
}

/// Where the wrong options of out-of-distribution test items may come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OptionSource {
    /// Any category.
    #[default]
    All,
    /// The test half only.
    HeldOut,
}

/// Parameters of `split.categories`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SplitCategories {
    /// In or out of distribution.
    pub split: Split,
    /// Where wrong options of test items come from (`ood` only).
    pub options: OptionSource,
    /// The categories of the test half, in place of a seeded draw.
    pub held_out: Vec<String>,
}

impl Stage for SplitCategories {
    const KIND: &'static str = "split.categories";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Splits items by category, in or out of distribution";

    fn signature() -> Signature {
        Signature::new()
            .takes("train", PortType::records("Item"))
            .takes("test", PortType::records("Item"))
            .takes_optional("dataset", PortType::Dataset)
            .gives("train", PortType::records("Item"))
            .gives("test", PortType::records("Item"))
            .seeded()
    }

    fn run(&self, ctx: &Context) -> Result<(), StageError> {
        let (train, test): (Vec<Item>, Vec<Item>) = (records::input(ctx, "train")?, records::input(ctx, "test")?);
        if self.split == Split::Full {
            records::output(ctx, "train", &train)?;
            return records::output(ctx, "test", &test);
        }
        let dataset = ctx.optional("dataset")?.ok_or_else(|| {
            StageError::invalid("`split: ood` needs the input `dataset` (the raw dataset of the test items): it decides the halves and fills options")
        })?;
        let dataset = Dataset::open(&dataset.path)?;
        let held_out = self.half(dataset.category_names().collect(), ctx.seed)?;
        let inside = |item: &Item| held_out.contains(&item.region.category);
        let counts = (train.len(), test.len());
        let train: Vec<Item> = train.into_iter().filter(|item| !inside(item)).collect();
        let test = test.into_iter().filter(inside);
        let test: Vec<Item> = match self.options {
            OptionSource::All => test.collect(),
            OptionSource::HeldOut => {
                let together = dataset.cooccurrence();
                test.map(|item| refill(item, &held_out, &together, ctx.seed)).collect::<Result<_, _>>()?
            }
        };
        ctx.info(format!(
            "train {} of {} items, test {} of {}; held out: {}",
            train.len(),
            counts.0,
            test.len(),
            counts.1,
            listed(&held_out)
        ));
        records::output(ctx, "train", &train)?;
        records::output(ctx, "test", &test)
    }
}

fn listed(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

impl SplitCategories {
    /// The categories of the test half.
    pub fn half(&self, mut names: Vec<&str>, seed: u64) -> Result<BTreeSet<String>, StageError> {
        if let Some(unknown) = self.held_out.iter().find(|name| !names.contains(&name.as_str())) {
            let hint = suggest::hint(unknown, names.iter().copied());
            return Err(StageError::invalid(format!("`held_out`: `{unknown}` is no category of the dataset{hint}")));
        }
        if !self.held_out.is_empty() {
            return Ok(self.held_out.iter().cloned().collect());
        }
        names.sort_by_key(|name| (draw::rank(seed, "held-out half", name), *name));
        let half = names.len() / 2;
        Ok(names.drain(..half).map(str::to_owned).collect())
    }
}

/// `item` with wrong options from `allowed` only.
fn refill(mut item: Item, allowed: &BTreeSet<String>, together: &Cooccurrence, seed: u64) -> Result<Item, StageError> {
    if item.distractors == Distractors::default() {
        return Ok(item);
    }
    let fits = |name: &String| allowed.contains(name) && *name != item.region.category;
    let mut wrong = item.distractors.clone();
    for names in [&mut wrong.choose, &mut wrong.judgement, &mut wrong.irrelevant, &mut wrong.filled] {
        names.retain(fits);
    }
    let mut used: BTreeSet<String> =
        [&wrong.choose, &wrong.judgement, &wrong.irrelevant].into_iter().flatten().cloned().collect();
    let guessed = wrong.guesses.iter().map(|(name, _)| name.clone());
    let fitting = together.confusing(&item.region).into_iter().map(str::to_owned);
    let mut confusing = guessed.map(|name| (name, true)).chain(fitting.map(|name| (name, false)));
    for names in [&mut wrong.choose, &mut wrong.judgement] {
        while names.len() < OF_EACH_KIND {
            let (name, guessed) = confusing
                .find(|(name, _)| fits(name) && !used.contains(name))
                .ok_or_else(|| too_few(&item, allowed))?;
            if !guessed {
                wrong.filled.push(name.clone());
            }
            used.insert(name.clone());
            names.push(name);
        }
    }
    let mut irrelevant = together.irrelevant(&item.region, seed).into_iter().map(str::to_owned);
    while wrong.irrelevant.len() < OF_EACH_KIND {
        let absent = irrelevant.find(|name| fits(name) && !used.contains(name));
        let name = absent.or_else(|| {
            confusing.by_ref().map(|(name, _)| name).filter(|name| fits(name) && !used.contains(name)).last()
        });
        let name = name.ok_or_else(|| too_few(&item, allowed))?;
        used.insert(name.clone());
        wrong.irrelevant.push(name);
    }
    item.distractors = wrong;
    Ok(item.sealed())
}

fn too_few(item: &Item, allowed: &BTreeSet<String>) -> StageError {
    StageError::invalid(format!(
        "item {} ({}, annotation {}): the held-out half has too few other names for six wrong options: {}",
        item.id,
        item.region.image,
        item.region.annotation,
        listed(allowed)
    ))
}
