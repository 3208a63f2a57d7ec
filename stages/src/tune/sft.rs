//! `train.sft`: supervised fine-tuning on traces.
//!
//! Paper, Eq. 2: the mean negative log-likelihood of the response, thought and answer both. Defaults are the authors'
//! settings (learning rate 2e-5, one epoch, batch 1 x accumulation 2, linear decay); the response ends with the model's end
//! of turn, not with padding.

use mpcc_engine::port::{PortType, Signature};
use mpcc_engine::resources::Resources;
use mpcc_engine::stage::{Context, ParamError, Provider, Stage, StageError};
use mpcc_models::train::sft::{Example, SftConfig, train};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Asking, Lora, Optimiser, at_least_one, checkpoints, lora, observe, response, step_count, trainable, write_lines,
};
use crate::dataset::Dataset;
use crate::mask::Mask;
use crate::provider::local::model_error;
use crate::record::Trace;
use crate::records;
use crate::traces::target;

/// Parameters of `train.sft`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainSft {
    /// Question template file.
    pub prompt: String,
    /// System prompt file.
    pub system: Option<String>,
    /// How the object is hidden.
    pub mask: Mask,
    /// Passes over the traces, when `steps` is 0.
    pub epochs: f64,
    /// Optimiser steps.
    pub steps: usize,
    /// Traces a batch.
    pub batch: usize,
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

impl Default for TrainSft {
    fn default() -> Self {
        Self {
            prompt: "prompts/question.txt".to_owned(),
            system: None,
            mask: Mask::default(),
            epochs: 1.0,
            steps: 0,
            batch: 1,
            freeze_vision: false,
            lora: None,
            optimiser: Optimiser { accumulation: 2, ..Optimiser::linear(2e-5) },
            checkpoint_every: 50,
        }
    }
}

impl Stage for TrainSft {
    const KIND: &'static str = "train.sft";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "fine-tunes a model on reasoning traces";

    fn signature() -> Signature {
        Signature::new()
            .takes("model", PortType::Model)
            .takes("dataset", PortType::Dataset)
            .takes("traces", PortType::records("Trace"))
            .gives("model", PortType::Model)
            .gives("metrics", PortType::File)
            .file_param("prompt")
            .file_param("system")
            .numerics()
            .seeded()
    }

    fn check(&self) -> Result<(), ParamError> {
        at_least_one("batch", self.batch)?;
        self.mask.check("mask")?;
        self.lora.as_ref().map_or(Ok(()), Lora::check)?;
        self.optimiser.check()
    }

    fn check_model(&self, _: &str, provider: Provider) -> Result<(), String> {
        trainable(provider)
    }

    fn resources(&self) -> Resources {
        Resources::default()
    }

    fn run(&self, ctx: &Context) -> Result<(), StageError> {
        let traces: Vec<Trace> = records::input(ctx, "traces")?;
        if traces.is_empty() {
            return Err(StageError::invalid(
                "there are no traces to learn from: every one was rejected, or no item was kept",
            ));
        }
        let vlm = lora::start(ctx, self.lora.as_ref())?;
        let dataset = Dataset::open(&ctx.input("dataset")?.path)?;
        let asking =
            Asking { dataset: &dataset, system: self.system.as_deref(), question: &self.prompt, mask: &self.mask };
        let prompts = asking.prompts(&vlm, traces.iter().map(|trace| &trace.item.region))?;
        let example = |(prompt, trace)| Ok(Example { prompt, target: response(&vlm, &target(trace))? });
        let examples: Vec<Example> =
            prompts.into_iter().zip(&traces).map(example).collect::<Result<_, StageError>>()?;
        let accumulation = self.optimiser.accumulation;
        let steps = step_count(self.steps, self.epochs, examples.len(), self.batch * accumulation);
        let config = SftConfig {
            steps: self.optimiser.steps(steps, self.freeze_vision || self.lora.is_some(), ctx.seed),
            batch: self.batch,
            accumulation,
        };
        let checkpoints = checkpoints(ctx, self.checkpoint_every);
        let history = train(&vlm, &examples, &config, Some(&checkpoints), &mut |step| observe(ctx, step.step, steps))
            .map_err(model_error)?;
        ctx.check_cancelled()?;
        if let Some(last) = history.last() {
            ctx.metric("loss", last.loss);
        }
        write_lines(ctx.output("metrics")?, &history)?;
        lora::save(&vlm, ctx.output("model")?)
    }
}
