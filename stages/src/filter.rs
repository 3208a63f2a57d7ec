//! `vlm.filter`: a model rates how strongly each box is tied to its context; the well tied ones stay.
//!
//! The model sees the UNMASKED picture and rates on a scale of 1 to 10. A small model's rating is read as the expectation
//! over the ten numbers (`read: expectation`), a large one's from its text (`read: text`). With several models the mean
//! rating decides.

use std::collections::BTreeMap;

use mpcc_engine::port::{PortType, Signature};
use mpcc_engine::stage::{Context, ModelInput, ParamError, Provider, Stage, StageError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::Dataset;
use crate::decoding::Decoding;
use crate::place::{place, size_word};
use crate::record::{Region, Verdict};
use crate::records;
use crate::request::{Options, Picture, Request};
use crate::responder::{Responder, seed, unlikely};
use crate::template::render;

/// How a rating is read off the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reading {
    /// The mean of 1 to 10 under the model's probabilities of answering each number.
    Expectation,
    /// The first number from 1 to 10 in the generated text.
    Text,
}

/// Parameters of `vlm.filter`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VlmFilter {
    /// Prompt template file; `{{category}}`, `{{supercategory}}`, `{{place}}` and `{{size}}` are filled in.
    pub prompt: String,
    /// System prompt file; none leaves the model's own.
    pub system: Option<String>,
    /// How the rating is read.
    pub read: Reading,
    /// Regions rated at least this high stay.
    pub threshold: f64,
    /// At most this many regions a picture stay, the best rated first; 0 for all.
    pub per_image: usize,
    /// How text is generated (`read: text`).
    pub decoding: Decoding,
}

impl Default for VlmFilter {
    fn default() -> Self {
        let prompt = "prompts/filter.txt".to_owned();
        Self {
            prompt,
            system: None,
            read: Reading::Expectation,
            threshold: 6.0,
            per_image: 0,
            decoding: Decoding::greedy(64),
        }
    }
}

impl Stage for VlmFilter {
    const KIND: &'static str = "vlm.filter";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "a model rates how strongly each box is tied to its context; the well tied ones stay";

    fn signature() -> Signature {
        Signature::new()
            .takes("dataset", PortType::Dataset)
            .takes("regions", PortType::records("Region"))
            .takes_many("model", PortType::Model)
            .gives("regions", PortType::records("Region"))
            .gives("verdicts", PortType::records("Verdict"))
            .file_param("prompt")
            .file_param("system")
            .numerics()
            .asks()
            .seeded()
    }

    fn check(&self) -> Result<(), ParamError> {
        if !(1.0..=10.0).contains(&self.threshold) {
            return Err(ParamError::new("threshold", "ratings run from 1 to 10"));
        }
        self.decoding.check("decoding")
    }

    fn check_model(&self, _: &str, provider: Provider) -> Result<(), String> {
        match (self.read, provider) {
            (Reading::Expectation, Provider::Openai | Provider::Replay) => {
                Err(unlikely("`read: expectation`", "`read: text`"))
            }
            _ => Ok(()),
        }
    }

    fn run(&self, ctx: &Context) -> Result<(), StageError> {
        let dataset = Dataset::open(&ctx.input("dataset")?.path)?;
        let regions: Vec<Region> = records::input(ctx, "regions")?;
        let mut verdicts = Vec::new();
        for model in ctx.models("model")? {
            verdicts.extend(self.rate(ctx, &dataset, model, &regions)?);
        }
        let kept = self.keep(&regions, &mut verdicts);
        ctx.info(format!("kept {} of {} regions", kept.len(), regions.len()));
        ctx.metric("kept", kept.len() as f64);
        records::output(ctx, "regions", &kept)?;
        records::output(ctx, "verdicts", &verdicts)
    }
}

impl VlmFilter {
    fn rate(
        &self,
        ctx: &Context,
        dataset: &Dataset,
        model: &ModelInput,
        regions: &[Region],
    ) -> Result<Vec<Verdict>, StageError> {
        let mut responder = Responder::new(ctx, dataset, model)?;
        let requests = regions.iter().map(|region| self.request(region)).collect::<Result<Vec<_>, _>>()?;
        let ratings = match self.read {
            Reading::Expectation => expectations(&mut responder, &requests)?,
            Reading::Text => self.texts(ctx, &mut responder, regions, &requests)?,
        };
        let verdict = |(region, (rating, response)): (&Region, (Option<f64>, String))| Verdict {
            id: region.id.clone(),
            model: responder.model_name().to_owned(),
            rating,
            kept: false,
            response,
        };
        Ok(regions.iter().zip(ratings).map(verdict).collect())
    }

    fn request(&self, region: &Region) -> Result<Request, StageError> {
        let (place, size) = (place(region.bbox, region.size), size_word(region.bbox, region.size));
        let values = [
            ("category", region.category.as_str()),
            ("supercategory", &region.supercategory),
            ("place", &place),
            ("size", size),
        ];
        let user = render(&self.prompt, &values).map_err(|error| StageError::invalid(error.to_string()))?;
        let picture = Picture::Open { image: region.image.clone(), digest: region.image_digest.clone() };
        Ok(Request { system: self.system.clone(), user, pictures: vec![picture], subject: region.id.clone() })
    }

    fn texts(
        &self,
        ctx: &Context,
        responder: &mut Responder,
        regions: &[Region],
        requests: &[Request],
    ) -> Result<Vec<(Option<f64>, String)>, StageError> {
        let seeds: Vec<Vec<u64>> = regions.iter().map(|region| vec![seed(ctx, "filter", &region.id, 0)]).collect();
        let replies = responder.generate(requests, &self.decoding.sampling(), &seeds)?;
        Ok(replies.into_iter().flatten().map(|reply| (first_rating(&reply.text), reply.text)).collect())
    }

    /// Marks the verdicts of kept regions and returns those regions, in their order.
    fn keep(&self, regions: &[Region], verdicts: &mut [Verdict]) -> Vec<Region> {
        let mut ratings: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for verdict in verdicts.iter() {
            ratings.entry(&verdict.id).or_default().extend(verdict.rating);
        }
        let mean = |region: &Region| {
            let given = ratings.get(region.id.as_str()).filter(|given| !given.is_empty())?;
            Some(given.iter().sum::<f64>() / given.len() as f64)
        };
        let mut passed: BTreeMap<&str, Vec<(f64, usize)>> = BTreeMap::new();
        for (index, region) in regions.iter().enumerate() {
            if let Some(rating) = mean(region).filter(|rating| *rating >= self.threshold) {
                passed.entry(&region.image).or_default().push((rating, index));
            }
        }
        let mut chosen: Vec<usize> = Vec::new();
        for best in passed.values_mut() {
            best.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let limit = if self.per_image == 0 { best.len() } else { self.per_image };
            chosen.extend(best.iter().take(limit).map(|(_, index)| *index));
        }
        chosen.sort_unstable();
        let kept: Vec<Region> = chosen.into_iter().map(|index| regions[index].clone()).collect();
        let ids: std::collections::BTreeSet<&str> = kept.iter().map(|region| region.id.as_str()).collect();
        let marks: Vec<bool> = verdicts.iter().map(|verdict| ids.contains(verdict.id.as_str())).collect();
        for (verdict, kept) in verdicts.iter_mut().zip(marks) {
            verdict.kept = kept;
        }
        kept
    }
}

fn expectations(responder: &mut Responder, requests: &[Request]) -> Result<Vec<(Option<f64>, String)>, StageError> {
    let numbers: Vec<String> = (1..=10).map(|number| number.to_string()).collect();
    let options = Options { prefix: String::new(), continuations: numbers, closed: true };
    let scores = responder.score(requests, &vec![options; requests.len()])?;
    Ok(scores.iter().map(|scores| expectation(scores)).map(|mean| (Some(mean), format!("{mean:.3}"))).collect())
}

/// The mean of 1, 2, ... under the normalised probabilities `exp(logprobs)`.
fn expectation(logprobs: &[f64]) -> f64 {
    let highest = logprobs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logprobs.iter().map(|logprob| (logprob - highest).exp()).collect();
    let weighted: f64 = weights.iter().enumerate().map(|(index, weight)| (index + 1) as f64 * weight).sum();
    weighted / weights.iter().sum::<f64>()
}

/// The first whole number from 1 to 10 in `text`.
fn first_rating(text: &str) -> Option<f64> {
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    numbers.filter_map(|digits| digits.parse::<u32>().ok()).find(|number| (1..=10).contains(number)).map(f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ratings() {
        assert_eq!(first_rating("I rate it 8/10."), Some(8.0));
        assert_eq!(first_rating("in 2017: 10"), Some(10.0));
        assert_eq!(first_rating("none"), None);
        let even = vec![-2.0; 10];
        assert!((expectation(&even) - 5.5).abs() < 1e-12);
    }
}
