//! `curation.import`: people's decisions make items of regions.
//!
//! | file | known by its first character | format |
//! |---|---|---|
//! | CSV | none of the others | `image,annotation,decision,difficulty,curator` and optionally `rev` |
//! | JSONL | `{` | the same names as keys |
//! | Label Studio JSON | `[` | rectangles in per cent with labels or choices |
//! | CVAT for images 1.1 | `<` | boxes with labels or attributes |
//!
//! Several files, or several curators in one, decide by majority: a box is accepted when more curators accept than reject it
//! (a tie goes by `ties`), its difficulty is the one most accepting curators chose (a tie goes to the harder). A decision in
//! `overrides` replaces all others about its box. Keys are picture and annotation id; with `dataset` connected a key that
//! exists nowhere is an error with a suggestion, without it such a key cannot be told from a box that the filter dropped.

mod agreement;
pub mod ballot;
mod cvat;
mod known;
mod label_studio;
mod text;

use std::collections::BTreeMap;

use mpcc_engine::port::{PortType, Signature};
use mpcc_engine::stage::{Context, Input, ParamError, Stage, StageError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::Dataset;
use crate::record::{Difficulty, Distractors, Item, Region};
use crate::records;
use agreement::Votes;
use ballot::{Ballot, Reading, Vote};
use known::{Boxes, Found};

/// What becomes of a box that as many curators accept as reject.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ties {
    /// It is no item.
    #[default]
    Reject,
    /// It is an item.
    Accept,
}

/// What becomes of a decision about another `rev` of its region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stale {
    /// Stop and list them.
    #[default]
    Error,
    /// Leave them out and warn.
    Drop,
    /// Count them all the same and warn.
    Use,
}

/// Parameters of `curation.import`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CurationImport {
    /// What words of the files mean: word -> `easy`, `moderate`, `hard`, `accept` or `reject`.
    pub labels: BTreeMap<String, String>,
    /// Boxes that as many curators accept as reject.
    pub ties: Ties,
    /// Decisions about another `rev` of their region.
    pub stale: Stale,
    /// From this intersection over union on, a drawn box is an annotated one.
    pub overlap: f64,
}

impl Default for CurationImport {
    fn default() -> Self {
        Self { labels: BTreeMap::new(), ties: Ties::default(), stale: Stale::default(), overlap: 0.5 }
    }
}

impl Stage for CurationImport {
    const KIND: &'static str = "curation.import";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Makes items of the regions that curators accepted";

    fn signature() -> Signature {
        Signature::new()
            .takes("regions", PortType::records("Region"))
            .takes_many("decisions", PortType::File)
            .takes_optional("overrides", PortType::File)
            .takes_optional("dataset", PortType::Dataset)
            .gives("items", PortType::records("Item"))
            .gives("agreement", PortType::Table)
    }

    fn check(&self) -> Result<(), ParamError> {
        let words = ["easy", "moderate", "hard", "accept", "reject"];
        if let Some((label, meaning)) = self.labels.iter().find(|(_, meaning)| !words.contains(&meaning.as_str())) {
            let hint = crate::suggest::hint(meaning, words);
            return Err(ParamError::new(
                "labels",
                format!("`{label}: {meaning}` is none of {}{hint}", words.join(", ")),
            ));
        }
        match self.overlap > 0.0 && self.overlap <= 1.0 {
            true => Ok(()),
            false => {
                Err(ParamError::new("overlap", format!("`overlap: {}` is not above 0 and at most 1", self.overlap)))
            }
        }
    }

    fn run(&self, ctx: &Context) -> Result<(), StageError> {
        let regions: Vec<Region> = records::input(ctx, "regions")?;
        let dataset = ctx.optional("dataset")?.map(|input| Dataset::open(&input.path)).transpose()?;
        let decisions = self.read_all(&ctx.artifacts("decisions")?)?;
        let overrides = self.read_all(&ctx.artifacts("overrides")?)?;
        if decisions.is_empty() && overrides.is_empty() {
            return Err(waiting(ctx, &regions));
        }
        let boxes = Boxes::new(&regions, dataset.as_ref(), self.overlap);
        let mut tally = Tally::new(&regions, self);
        tally.add(&boxes, decisions, "decisions")?;
        let mut overriding = Tally::new(&regions, self);
        overriding.add(&boxes, overrides, "overrides")?;
        let (items, table) = tally.settle(overriding, ctx);
        records::output(ctx, "items", &items)?;
        table.output(ctx, "agreement")
    }
}

fn waiting(ctx: &Context, regions: &[Region]) -> StageError {
    let files = ctx.artifacts("decisions").unwrap_or_default();
    let files: Vec<&str> = files.iter().map(|input| input.node.as_str()).collect();
    StageError::Waiting(format!(
        "{} holds no decision yet about {} regions; look at them, write one line a box with the columns \
         image,annotation,decision,difficulty,curator (for example {}), and run again",
        files.join(", "),
        regions.len(),
        regions.first().map_or("a.jpg,1,accept,easy,me".to_owned(), |region| format!(
            "{},{},accept,easy,me",
            region.image, region.annotation
        )),
    ))
}

impl CurationImport {
    fn read_all(&self, inputs: &[&Input]) -> Result<Vec<Ballot>, StageError> {
        let mut ballots = Vec::new();
        for input in inputs {
            let text = std::fs::read_to_string(&input.path).map_err(|error| StageError::io(&input.path, error))?;
            let name =
                if input.path.extension().is_some() { input.path.display().to_string() } else { input.node.clone() };
            ballots.extend(self.read(&text, &name).map_err(StageError::Invalid)?);
        }
        Ok(ballots)
    }

    /// The ballots of a file's text; `name` is what messages call it, and its stem the curator where none is named.
    pub fn read(&self, text: &str, name: &str) -> Result<Vec<Ballot>, String> {
        let file = name.rsplit(['/', '\\']).next().unwrap_or(name);
        let curator = file.split('.').next().unwrap_or(file);
        let reading = Reading { name, curator, labels: &self.labels };
        let text = text.trim_start_matches('\u{feff}');
        match text.trim_start().chars().next() {
            None => Ok(Vec::new()),
            Some('<') => cvat::read(text, &reading),
            Some('[') => label_studio::read(text, &reading),
            Some('{') => text::jsonl(text, &reading),
            Some(_) => text::csv(text, &reading),
        }
    }
}

/// Votes by region, and what happened to the others.
struct Tally<'a> {
    regions: &'a [Region],
    params: &'a CurationImport,
    index: BTreeMap<u64, usize>,
    votes: Vec<Votes>,
    places: BTreeMap<(usize, String), String>,
    elsewhere: usize,
    stale: Vec<String>,
}

impl<'a> Tally<'a> {
    fn new(regions: &'a [Region], params: &'a CurationImport) -> Self {
        let index = regions.iter().map(|region| region.annotation).zip(0..).collect();
        let votes = vec![Votes::new(); regions.len()];
        Self { regions, params, index, votes, places: BTreeMap::new(), elsewhere: 0, stale: Vec::new() }
    }

    fn add(&mut self, boxes: &Boxes, ballots: Vec<Ballot>, what: &str) -> Result<(), StageError> {
        let all = ballots.len();
        let mut problems = Vec::new();
        for ballot in ballots {
            if let Err(problem) = boxes.find(&ballot).and_then(|found| self.count(&found, ballot)) {
                problems.push(problem);
            }
        }
        if self.params.stale == Stale::Error && !self.stale.is_empty() {
            let help = "look at them again, or write `stale: use` or `stale: drop`";
            problems.push(format!("decisions about another state of their region ({help}): {}", self.stale.join(", ")));
        }
        if problems.is_empty() && all > 0 && self.elsewhere == all {
            problems.push(format!("none of the {all} {what} is about a region; are they about another dataset?"));
        }
        if problems.is_empty() { Ok(()) } else { Err(StageError::Invalid(shortened(&problems))) }
    }

    fn count(&mut self, found: &Found, ballot: Ballot) -> Result<(), String> {
        let Some(index) = (match found {
            Found::Annotation(id) => self.index.get(id).copied(),
            Found::Unknown => None,
        }) else {
            self.elsewhere += 1;
            return Ok(());
        };
        if ballot.rev.as_ref().is_some_and(|rev| *rev != self.regions[index].rev()) {
            self.stale.push(ballot.place.clone());
            if self.params.stale == Stale::Drop {
                return Ok(());
            }
        }
        let key = (index, ballot.curator.clone());
        if let Some(before) = self.votes[index].insert(ballot.curator.clone(), ballot.vote)
            && before != ballot.vote
        {
            return Err(format!(
                "{}: `{}` decided otherwise about the same box at {}",
                ballot.place, ballot.curator, self.places[&key]
            ));
        }
        self.places.insert(key, ballot.place);
        Ok(())
    }

    fn settle(self, overriding: Tally<'_>, ctx: &Context) -> (Vec<Item>, crate::report::Table) {
        let (mut items, mut ties, mut undecided, mut overridden) = (Vec::new(), 0, 0, 0);
        for (index, region) in self.regions.iter().enumerate() {
            let overriding = &overriding.votes[index];
            overridden += usize::from(!overriding.is_empty());
            let votes = if overriding.is_empty() { &self.votes[index] } else { overriding };
            undecided += usize::from(votes.is_empty());
            let accepts = votes.values().filter(|vote| **vote != Vote::Reject).count();
            let tie = accepts > 0 && 2 * accepts == votes.len();
            ties += usize::from(tie);
            if 2 * accepts > votes.len() || (tie && self.params.ties == Ties::Accept) {
                items.push(item(region, votes));
            }
        }
        let mut table = agreement::table(&self.votes);
        let elsewhere = self.elsewhere + overriding.elsewhere;
        let stale = self.stale.len() + overriding.stale.len();
        let counts = [
            (items.len(), "items"),
            (undecided, "regions without a decision"),
            (elsewhere, "decisions about boxes that are not among the regions (the filter dropped them); not counted"),
            (overridden, "regions decided by the overrides"),
            (ties, "ties between accept and reject"),
            (stale, "decisions about another state of their region"),
        ];
        counts
            .iter()
            .filter(|(count, what)| *count > 0 || *what == "items")
            .for_each(|(count, what)| table.note(format!("{count} {what}")));
        if stale > 0 {
            ctx.warn(format!(
                "{stale} decisions are about another state of their region: {}",
                [self.stale, overriding.stale].concat().join(", ")
            ));
        }
        ctx.info(table.notes.join("; "));
        (items, table)
    }
}

fn item(region: &Region, votes: &Votes) -> Item {
    let accepted = |wanted: Difficulty| votes.values().filter(|vote| **vote == Vote::Accept(wanted)).count();
    let harder_first = [Difficulty::Hard, Difficulty::Moderate, Difficulty::Easy];
    let most = harder_first.iter().map(|difficulty| accepted(*difficulty)).max().unwrap_or(0);
    let difficulty =
        harder_first.into_iter().find(|difficulty| accepted(*difficulty) == most).unwrap_or(Difficulty::Hard);
    let curators = votes.keys().cloned().collect();
    Item {
        id: region.id.clone(),
        rev: String::new(),
        region: region.clone(),
        difficulty,
        curators,
        distractors: Distractors::default(),
    }
    .sealed()
}

fn shortened(problems: &[String]) -> String {
    let mut lines: Vec<String> = problems.iter().take(12).cloned().collect();
    if problems.len() > 12 {
        lines.push(format!("and {} more", problems.len() - 12));
    }
    lines.join("\n")
}
