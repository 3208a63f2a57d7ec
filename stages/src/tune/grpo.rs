//! `train.grpo`: reinforcement fine-tuning with a verifiable reward, with or without prior sampling.
//!
//! Three presets set what the readings of the paper differ in; every switch can be set by itself.
//!
//! | | `paper` (the text) | `authors` (their scripts) | `fixed` (default) |
//! |---|---|---|---|
//! | loss | `eq4`, beta 0 | `grpo`, k3, beta 0.04 | `grpo`, k3, beta 0.04 |
//! | reward | Eq. 3, maximum 3 | format 0.6 + InDel, maximum 1.6 | Eq. 3 |
//! | mask | the authors' soft edge | the authors' soft edge | the whole box hidden |
//! | truncated responses | count | count | left out |
//!
//! Left out on purpose are the scripts' plain defects: training on unmasked pictures, scrambled patches, a fake end of turn.

use mpcc_engine::port::{PortType, Signature};
use mpcc_engine::stage::{Context, ParamError, Provider, Stage, StageError};
use mpcc_models::train::advantage::Scaling;
use mpcc_models::train::grpo::{GrpoConfig, Prior, Sample, Task, train};
use mpcc_models::train::objective::{DemoWeight, Kl, Loss, Objective};
use mpcc_models::train::schedule::Decay;
use mpcc_models::vlm::Vlm;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Asking, Lora, Optimiser, at_least_one, checkpoints, lora, observe, response, step_count, trainable, write_lines,
};
use crate::dataset::Dataset;
use crate::decoding::Decoding;
use crate::draw;
use crate::mask::Mask;
use crate::provider::local::model_error;
use crate::record::{Item, Trace};
use crate::records;
use crate::reward::Term;
use crate::traces::target;

/// Which reading of the paper gives the defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// As the paper's text says.
    Paper,
    /// As the authors' scripts do.
    Authors,
    /// What is right.
    #[default]
    Fixed,
}

/// Parameters of `train.grpo`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainGrpo {
    /// Which reading of the paper gives the defaults of `loss`, `beta`, `reward`, `mask` and `mask_truncated`.
    pub preset: Preset,
    /// Question template file.
    pub prompt: String,
    /// System prompt file.
    pub system: Option<String>,
    /// How the object is hidden.
    pub mask: Option<Mask>,
    /// G, samples a prompt.
    pub group: usize,
    /// Prompts a step.
    pub prompts: usize,
    /// Passes over the items, when `steps` is 0.
    pub epochs: f64,
    /// Optimiser steps.
    pub steps: usize,
    /// Updates on one step's samples.
    pub updates: usize,
    /// How samples are drawn.
    pub decoding: Decoding,
    /// The reward's weighted terms.
    pub reward: Option<Vec<Term>>,
    /// What tokens are divided by.
    pub loss: Option<Loss>,
    /// Weight of the divergence from the reference.
    pub beta: Option<f64>,
    /// Its estimator.
    pub kl: Kl,
    /// What advantages are divided by.
    pub scale: Scaling,
    /// The ratio is clipped to [1 - clip[0], 1 + clip[1]].
    pub clip: [f64; 2],
    /// How traces join their groups.
    pub prior: Prior,
    /// Share of the items with a trace that use it, drawn by the item's id.
    pub prior_fraction: f64,
    /// What stands for the ratio on a trace's tokens.
    pub demo_weight: DemoWeight,
    /// Leaves samples that never ended out of the update.
    pub mask_truncated: Option<bool>,
    /// Leaves the vision tower as it is; with `lora` it stays as it is anyway.
    pub freeze_vision: bool,
    /// A low-rank adapter to train in place of the weights; none trains them all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
    /// Optimiser and schedule.
    pub optimiser: Optimiser,
    /// Steps between two checkpoints.
    pub checkpoint_every: usize,
}

impl Default for TrainGrpo {
    fn default() -> Self {
        let optimiser = Optimiser {
            decay: Decay::Cosine,
            warmup: 0.1,
            weight_decay: 0.1,
            betas: [0.9, 0.99],
            max_grad_norm: 0.1,
            ..Optimiser::linear(5e-6)
        };
        Self {
            preset: Preset::Fixed,
            prompt: "prompts/question.txt".to_owned(),
            system: None,
            mask: None,
            group: 4,
            prompts: 2,
            epochs: 4.0,
            steps: 0,
            updates: 1,
            decoding: Decoding::at(1.0, 256),
            reward: None,
            loss: None,
            beta: None,
            kl: Kl::K3,
            scale: Scaling::Group,
            clip: [0.2, 0.2],
            prior: Prior::Off,
            prior_fraction: 1.0,
            demo_weight: DemoWeight::One,
            mask_truncated: None,
            freeze_vision: false,
            lora: None,
            optimiser,
            checkpoint_every: 25,
        }
    }
}

impl Stage for TrainGrpo {
    const KIND: &'static str = "train.grpo";
    const VERSION: u32 = 1;
    const ABOUT: &'static str =
        "reinforcement fine-tuning (GRPO) with a verifiable reward, with or without prior sampling";

    fn signature() -> Signature {
        Signature::new()
            .takes("model", PortType::Model)
            .takes("dataset", PortType::Dataset)
            .takes("items", PortType::records("Item"))
            .takes_optional("traces", PortType::records("Trace"))
            .gives("model", PortType::Model)
            .gives("metrics", PortType::File)
            .gives("completions", PortType::File)
            .file_param("prompt")
            .file_param("system")
            .numerics()
            .seeded()
    }

    fn check(&self) -> Result<(), ParamError> {
        at_least_one("prompts", self.prompts)?;
        at_least_one("updates", self.updates)?;
        if self.group < 2 {
            return Err(ParamError::new("group", "a group needs two samples at least"));
        }
        if self.decoding.temperature == 0.0 {
            return Err(ParamError::new("decoding", "greedy samples are all equal; set a temperature above 0"));
        }
        if !(0.0..=1.0).contains(&self.prior_fraction) {
            return Err(ParamError::new("prior_fraction", "must be from 0 to 1"));
        }
        if self.beta.is_some_and(|beta| beta < 0.0) || self.clip.iter().any(|clip| *clip < 0.0) {
            return Err(ParamError::new("beta", "beta and clip must not be negative"));
        }
        self.mask().check("mask")?;
        self.decoding.check("decoding")?;
        self.lora.as_ref().map_or(Ok(()), Lora::check)?;
        self.optimiser.check()
    }

    fn check_model(&self, _: &str, provider: Provider) -> Result<(), String> {
        trainable(provider)
    }

    fn run(&self, ctx: &Context) -> Result<(), StageError> {
        let items: Vec<Item> = records::input(ctx, "items")?;
        let vlm = lora::start(ctx, self.lora.as_ref())?;
        let tasks = self.tasks(ctx, &vlm, &items)?;
        let steps = step_count(self.steps, self.epochs, tasks.len(), self.prompts);
        let config = self.config(steps, ctx.seed);
        let terms = self.terms();
        let reward =
            |task: usize, text: &str| terms.iter().map(|term| term.value(text, &items[task].region.category)).collect();
        let checkpoints = checkpoints(ctx, self.checkpoint_every);
        let history =
            train(&vlm, &tasks, &config, &reward, Some(&checkpoints), &mut |step| observe(ctx, step.step, steps))
                .map_err(model_error)?;
        ctx.check_cancelled()?;
        if let Some((last, _)) = history.last() {
            ctx.metric("reward", last.reward);
        }
        write_lines(ctx.output("metrics")?, history.iter().map(|(step, _)| step))?;
        write_lines(
            ctx.output("completions")?,
            history.iter().flat_map(|(step, samples)| lines(step.step, samples, &items)),
        )?;
        lora::save(&vlm, ctx.output("model")?)
    }
}

/// A sample as the `completions` file has it.
#[derive(Serialize)]
struct Line<'a> {
    step: usize,
    item: &'a str,
    category: &'a str,
    #[serde(flatten)]
    sample: &'a Sample,
}

fn lines<'a>(step: usize, samples: &'a [Sample], items: &'a [Item]) -> impl Iterator<Item = Line<'a>> {
    samples.iter().map(move |sample| {
        let item = &items[sample.task];
        Line { step, item: &item.id, category: &item.region.category, sample }
    })
}

impl TrainGrpo {
    fn tasks(&self, ctx: &Context, vlm: &Vlm, items: &[Item]) -> Result<Vec<Task>, StageError> {
        let dataset = Dataset::open(&ctx.input("dataset")?.path)?;
        let mask = self.mask();
        let asking = Asking { dataset: &dataset, system: self.system.as_deref(), question: &self.prompt, mask: &mask };
        let prompts = asking.prompts(vlm, items.iter().map(|item| &item.region))?;
        let traces: Vec<Trace> = match ctx.optional("traces")? {
            Some(input) => records::read(&input.path)?,
            None => Vec::new(),
        };
        let by_item: std::collections::BTreeMap<&str, &Trace> =
            traces.iter().map(|trace| (trace.item.id.as_str(), trace)).collect();
        let share = |item: &Item| draw::rank(ctx.seed, "prior", &item.id) as f64 / u64::MAX as f64;
        let task = |(prompt, item): (_, &Item)| {
            let trace =
                by_item.get(item.id.as_str()).filter(|_| self.prior != Prior::Off && share(item) < self.prior_fraction);
            let prior = trace.map(|trace| response(vlm, &target(trace))).transpose()?;
            Ok(Task { prompt, prior })
        };
        prompts.into_iter().zip(items).map(task).collect()
    }

    fn mask(&self) -> Mask {
        let default = || if self.preset == Preset::Fixed { Mask::default() } else { Mask::authors() };
        self.mask.clone().unwrap_or_else(default)
    }

    fn terms(&self) -> Vec<Term> {
        let default = || if self.preset == Preset::Authors { Term::authors() } else { Term::paper() };
        self.reward.clone().unwrap_or_else(default)
    }

    fn config(&self, steps: usize, seed: u64) -> GrpoConfig {
        GrpoConfig {
            steps: self.optimiser.steps(steps, self.freeze_vision || self.lora.is_some(), seed),
            prompts: self.prompts,
            group: self.group,
            updates: self.updates,
            sampling: self.decoding.sampling(),
            objective: self.objective(),
            scaling: self.scale,
            prior: self.prior,
            mask_truncated: self.mask_truncated.unwrap_or(self.preset == Preset::Fixed),
        }
    }

    fn objective(&self) -> Objective {
        let paper = self.preset == Preset::Paper;
        Objective {
            loss: self.loss.unwrap_or(if paper { Loss::Eq4 } else { Loss::Grpo }),
            beta: self.beta.unwrap_or(if paper { 0.0 } else { 0.04 }),
            kl: self.kl,
            clip_low: self.clip[0],
            clip_high: self.clip[1],
            demo: self.demo_weight,
            longest: self.decoding.max_new_tokens,
        }
    }
}
