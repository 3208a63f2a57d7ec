//! `traces.synthesize`: a teacher is shown the masked picture AND told the answer, and writes the reasoning.
//!
//! A trace is kept when it passes every check in `checks`; the default looks at the form alone, since dropping traces by
//! their conclusion drops the surprising items. A rejected trace is asked again `attempts - 1` times at `retry_temperature`.

use mpcc_engine::port::{PortType, Signature};
use mpcc_engine::stage::{Context, ParamError, Stage, StageError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::Dataset;
use crate::decoding::Decoding;
use crate::mask::Mask;
use crate::record::{Item, Trace};
use crate::records;
use crate::request::{Picture, Reply, Request};
use crate::responder::{Responder, seed};
use crate::response::Response;
use crate::template::render;

/// A check that a trace must pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// The model ended by itself.
    Finished,
    /// No think or answer tag inside the reasoning.
    NoTags,
    /// At least `min_words` and at most `max_words` words.
    Length,
    /// The category is named somewhere in the reasoning.
    NamesAnswer,
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::NoTags => "no_tags",
            Self::Length => "length",
            Self::NamesAnswer => "names_answer",
        }
    }
}

/// Parameters of `traces.synthesize`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TracesSynthesize {
    /// Prompt template file; `{{category}}` is filled in.
    pub prompt: String,
    /// System prompt file.
    pub system: Option<String>,
    /// How the reasoning is generated at first.
    pub decoding: Decoding,
    /// How the object is hidden.
    pub mask: Mask,
    /// The checks.
    pub checks: Vec<Check>,
    /// Words at least (check `length`).
    pub min_words: usize,
    /// Words at most (check `length`).
    pub max_words: usize,
    /// Attempts in all.
    pub attempts: u32,
    /// Temperature from the second attempt on.
    pub retry_temperature: f64,
}

impl Default for TracesSynthesize {
    fn default() -> Self {
        Self {
            prompt: "prompts/teacher.txt".to_owned(),
            system: None,
            decoding: Decoding::greedy(512),
            mask: Mask::default(),
            checks: vec![Check::Finished, Check::NoTags, Check::Length],
            min_words: 3,
            max_words: 400,
            attempts: 3,
            retry_temperature: 0.7,
        }
    }
}

impl Stage for TracesSynthesize {
    const KIND: &'static str = "traces.synthesize";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "a teacher sees the masked picture and the answer and writes the reasoning";

    fn signature() -> Signature {
        Signature::new()
            .takes("dataset", PortType::Dataset)
            .takes("items", PortType::records("Item"))
            .takes("model", PortType::Model)
            .gives("traces", PortType::records("Trace"))
            .gives("rejected", PortType::records("Trace"))
            .file_param("prompt")
            .file_param("system")
            .numerics()
            .asks()
            .seeded()
    }

    fn check(&self) -> Result<(), ParamError> {
        if self.attempts == 0 {
            return Err(ParamError::new("attempts", "must be at least 1"));
        }
        if self.min_words > self.max_words {
            return Err(ParamError::new("min_words", "must not exceed max_words"));
        }
        self.decoding.check("decoding")
    }

    fn run(&self, ctx: &Context) -> Result<(), StageError> {
        let dataset = Dataset::open(&ctx.input("dataset")?.path)?;
        let items: Vec<Item> = records::input(ctx, "items")?;
        let mut responder = Responder::new(ctx, &dataset, ctx.model("model")?)?;
        let mut traces: Vec<Option<Trace>> = vec![None; items.len()];
        for attempt in 0..self.attempts {
            let open: Vec<usize> =
                (0..items.len()).filter(|index| !traces[*index].as_ref().is_some_and(passed)).collect();
            if open.is_empty() {
                break;
            }
            for (index, reply) in open.iter().zip(self.ask(ctx, &mut responder, &items, &open, attempt)?) {
                traces[*index] = Some(self.trace(&items[*index], &reply));
            }
        }
        let (kept, rejected): (Vec<Trace>, Vec<Trace>) = traces.into_iter().flatten().partition(passed);
        ctx.info(format!("{} traces, {} rejected", kept.len(), rejected.len()));
        ctx.metric("rejected", rejected.len() as f64);
        records::output(ctx, "traces", &kept)?;
        records::output(ctx, "rejected", &rejected)
    }
}

impl TracesSynthesize {
    fn ask(
        &self,
        ctx: &Context,
        responder: &mut Responder,
        items: &[Item],
        open: &[usize],
        attempt: u32,
    ) -> Result<Vec<Reply>, StageError> {
        let requests = open.iter().map(|index| self.request(&items[*index])).collect::<Result<Vec<_>, _>>()?;
        let seeds: Vec<Vec<u64>> =
            open.iter().map(|index| vec![seed(ctx, "trace", &items[*index].id, attempt)]).collect();
        let mut decoding = self.decoding.clone();
        if attempt > 0 {
            decoding.temperature = self.retry_temperature;
        }
        Ok(responder.generate(&requests, &decoding.sampling(), &seeds)?.into_iter().flatten().collect())
    }

    fn request(&self, item: &Item) -> Result<Request, StageError> {
        let user = render(&self.prompt, &[("category", &item.region.category)])
            .map_err(|error| StageError::invalid(error.to_string()))?;
        let picture = Picture::Masked { region: item.region.clone(), mask: self.mask.clone() };
        Ok(Request { system: self.system.clone(), user, pictures: vec![picture], subject: item.id.clone() })
    }

    fn trace(&self, item: &Item, reply: &Reply) -> Trace {
        let parsed = Response::parse(&reply.text);
        let reasoning = parsed.thought.unwrap_or(&reply.text).trim().to_owned();
        let checks = self
            .checks
            .iter()
            .map(|check| (check.name().to_owned(), self.holds(*check, &reasoning, item, reply)))
            .collect();
        Trace { item: item.clone(), reasoning, answer: item.region.category.clone(), checks }
    }

    fn holds(&self, check: Check, reasoning: &str, item: &Item, reply: &Reply) -> bool {
        match check {
            Check::Finished => reply.finished,
            Check::NoTags => {
                !["<think>", "</think>", "<answer>", "</answer>"].iter().any(|tag| reasoning.contains(tag))
            }
            Check::Length => (self.min_words..=self.max_words).contains(&reasoning.split_whitespace().count()),
            Check::NamesAnswer => reasoning.to_lowercase().contains(&item.region.category),
        }
    }
}

fn passed(trace: &Trace) -> bool {
    trace.checks.iter().all(|(_, holds)| *holds)
}

/// The text a model is trained on, in the authors' form.
pub fn target(trace: &Trace) -> String {
    format!("<think> {}</think><answer>{}</answer>", trace.reasoning, trace.answer)
}
