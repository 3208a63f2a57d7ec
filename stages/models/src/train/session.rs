//! A training session: what every trainer does around its own step.

use candle_core::Tensor;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Verdict;
use super::checkpoint::Checkpoints;
use super::optim::{AdamW, AdamWConfig};
use super::schedule::Schedule;
use crate::error::{ModelError, Result};
use crate::vlm::{Model, Trainable, Vlm};

/// How a training takes its steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepConfig {
    /// Steps in all.
    pub steps: usize,
    /// Learning rate over them.
    pub schedule: Schedule,
    /// The optimiser.
    pub adamw: AdamWConfig,
    /// Leaves the vision tower as it is.
    pub freeze_vision: bool,
    /// Decides the data order and every draw.
    pub seed: u64,
}

/// The state of a training under way.
pub(crate) struct Session<'a> {
    pub(crate) vlm: &'a Vlm,
    /// Under an adapter it holds the sums of a step, from the first forward pass until the weights change.
    model: Option<Model>,
    trainable: Trainable,
    config: StepConfig,
    optimiser: AdamW,
    checkpoints: Option<&'a Checkpoints>,
    log: Vec<String>,
    step: usize,
}

/// Trains `vlm` in place: `step` takes one step (counted from 0) and returns its line of the log, `observe` sees the line and may
/// stop. Returns every line, those before a resumption included.
pub(crate) fn drive<T: Serialize + DeserializeOwned>(
    vlm: &Vlm,
    config: StepConfig,
    checkpoints: Option<&Checkpoints>,
    step: &mut dyn FnMut(&mut Session<'_>, usize) -> Result<T>,
    observe: &mut dyn FnMut(&T) -> Verdict,
) -> Result<Vec<T>> {
    let mut session = Session::open(vlm, config, checkpoints)?;
    let mut history: Vec<T> = session.history()?;
    while let Some(next) = session.next() {
        let line = step(&mut session, next)?;
        let stop = observe(&line).is_break();
        session.end(&line, stop)?;
        history.push(line);
        if stop {
            break;
        }
    }
    Ok(history)
}

/// What a step cost and did.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) norm: f64,
    pub(crate) rate: f64,
}

impl<'a> Session<'a> {
    /// Starts or resumes a training of `vlm` in place.
    fn open(vlm: &'a Vlm, config: StepConfig, checkpoints: Option<&'a Checkpoints>) -> Result<Session<'a>> {
        let trainable = if config.freeze_vision { Trainable::Text } else { Trainable::All };
        let mut optimiser = AdamW::new(vlm.weights().trainable(config.freeze_vision), config.adamw)?;
        let resumed = match checkpoints {
            Some(checkpoints) => checkpoints.resume(vlm.weights(), &mut optimiser)?,
            None => Default::default(),
        };
        Ok(Session {
            vlm,
            model: None,
            trainable,
            config,
            optimiser,
            checkpoints,
            log: resumed.log,
            step: resumed.steps,
        })
    }

    /// The log of the steps before a resumption, as values.
    fn history<T: DeserializeOwned>(&self) -> Result<Vec<T>> {
        let parse = |line: &String| serde_json::from_str(line);
        let parsed: std::result::Result<Vec<T>, _> = self.log.iter().map(parse).collect();
        parsed.map_err(|error| ModelError::Setting(format!("the checkpoint's log: {error}")))
    }

    /// The step to take next, or `None` when all are done.
    fn next(&self) -> Option<usize> {
        (self.step < self.config.steps).then_some(self.step)
    }

    /// The architecture over the weights as they stand, with gradients to what is trained.
    pub(crate) fn model(&mut self) -> Result<Model> {
        if let Some(model) = &self.model {
            return Ok(model.clone());
        }
        let model = self.vlm.view(self.trainable)?;
        self.model = Some(model.clone());
        Ok(model)
    }

    /// Adds the gradients of one micro-batch's loss.
    pub(crate) fn gather(&mut self, loss: &Tensor, scale: f32) -> Result<()> {
        self.optimiser.gather(&loss.backward()?, scale)
    }

    /// Takes the step with what was gathered. Whoever still holds a model from before it holds old sums under an adapter.
    pub(crate) fn take(&mut self) -> Result<Taken> {
        let rate = self.config.schedule.rate(self.step, self.config.steps);
        let norm = self.optimiser.step(rate)?;
        if self.vlm.weights().adapter().is_some() {
            // The sums are formed anew when the next pass asks for them, and take no room until then.
            self.model = None;
        }
        Ok(Taken { norm, rate })
    }

    /// Ends the step: its log line, and a checkpoint when one is due or `leave` is set.
    fn end<T: Serialize>(&mut self, line: &T, leave: bool) -> Result<()> {
        self.step += 1;
        let Some(checkpoints) = self.checkpoints else { return Ok(()) };
        self.log.push(serde_json::to_string(line).expect("a log line is plain data"));
        let due = self.step.is_multiple_of(checkpoints.every.max(1)) && self.step < self.config.steps;
        if due || leave {
            checkpoints.write(self.vlm.weights(), &self.optimiser, self.step, &self.log)?;
        }
        Ok(())
    }
}
