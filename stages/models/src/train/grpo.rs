//! Group-relative policy optimisation with a verifiable reward (paper, Eq. 4), and prior sampling (Eq. 5).
//!
//! A step draws G responses to each of P prompts, scores them, turns scores into advantages, and takes one or more updates.
//! The responses of a group stand behind ONE copy of their prompt; each picture is encoded once for the whole training while
//! the vision tower is frozen. A dead group (all rewards equal) is counted and left out: its responses cost no update.
//!
//! Prior sampling: a prompt with a given trajectory puts it among the group's samples ([`Prior`] says how); its reward takes
//! part in mean and deviation and it gets its own advantage. Log-probabilities of the reference are those of the model as it
//! was at the start: a frozen copy, or, under an adapter, the weights below it.

use std::ops::ControlFlow;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use rand::Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Verdict;
use super::advantage::{Scaling, advantages, deviation, mean};
use super::batch::{Batch, Span};
use super::checkpoint::Checkpoints;
use super::images::ImageCache;
use super::logprob::logprobs;
use super::objective::{Objective, Tokens};
use super::order::{places, stream};
use super::session::{Session, StepConfig, drive};
use crate::error::{ModelError, Result};
use crate::generate::GenerateRequest;
use crate::sample::Sampling;
use crate::vlm::{Model, Packed, Prompt, Trainable, Vlm};

/// How a given trajectory joins a group of G.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Prior {
    /// Not at all.
    #[default]
    Off,
    /// G - 1 are drawn, the trajectory is the last (the paper's text).
    Replace,
    /// G are drawn and the trajectory added; prompts without one draw G + 1 (the authors' scripts).
    Add,
    /// G are drawn; when none reaches the trajectory's reward it replaces the worst.
    OnFailure,
}

/// A prompt to learn on.
#[derive(Debug, Clone)]
pub struct Task {
    /// The prompt.
    pub prompt: Arc<Prompt>,
    /// A given trajectory, end of turn included.
    pub prior: Option<Vec<u32>>,
}

/// Settings of an optimisation.
#[derive(Debug, Clone, PartialEq)]
pub struct GrpoConfig {
    /// Steps, rate, optimiser, seed.
    pub steps: StepConfig,
    /// Prompts a step.
    pub prompts: usize,
    /// G, responses a prompt.
    pub group: usize,
    /// Updates on one step's responses.
    pub updates: usize,
    /// How responses are drawn.
    pub sampling: Sampling,
    /// The objective.
    pub objective: Objective,
    /// What advantages are divided by.
    pub scaling: Scaling,
    /// How given trajectories join.
    pub prior: Prior,
    /// Leaves responses that never ended out of the update.
    pub mask_truncated: bool,
}

/// One response of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Which task.
    pub task: usize,
    /// Its text.
    pub text: String,
    /// Weighted terms of its reward.
    pub terms: Vec<f64>,
    /// Its advantage.
    pub advantage: f64,
    /// Whether it is a given trajectory.
    pub prior: bool,
    /// Whether it ended by itself.
    pub finished: bool,
}

/// One step's numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GrpoStep {
    /// Step, from 1.
    pub step: usize,
    /// Mean reward of the drawn responses.
    pub reward: f64,
    /// Mean of each term over the drawn responses.
    pub terms: Vec<f64>,
    /// Mean deviation within groups.
    pub spread: f64,
    /// Groups whose rewards were all equal.
    pub dead: usize,
    /// Groups in all.
    pub groups: usize,
    /// Share of drawn responses that never ended.
    pub truncated: f64,
    /// Mean tokens of the drawn responses.
    pub length: f64,
    /// Loss of the first update.
    pub loss: f64,
    /// Weighted divergence from the reference in the first update.
    pub kl: f64,
    /// Norm of the gradient before clipping.
    pub norm: f64,
    /// Learning rate.
    pub rate: f64,
}

/// The weighted terms of the reward of a response's text to a task.
pub type Reward<'a> = &'a dyn Fn(usize, &str) -> Vec<f64>;

/// Optimises `vlm` in place. `observe` sees each step with its responses. Returns every step's numbers and responses, those
/// before a resumption included.
///
/// # Errors
/// When there is no task, a setting makes no sense, or the model or the optimiser fails.
pub fn train(
    vlm: &Vlm,
    tasks: &[Task],
    config: &GrpoConfig,
    reward: Reward<'_>,
    checkpoints: Option<&Checkpoints>,
    observe: &mut dyn FnMut(&GrpoStep) -> Verdict,
) -> Result<Vec<(GrpoStep, Vec<Sample>)>> {
    check(tasks, config)?;
    let reference = if config.objective.beta > 0.0 { Some(reference(vlm)?) } else { None };
    let mut pictures = ImageCache::default();
    let mut step = |session: &mut Session<'_>, step: usize| {
        let drawn = places(config.steps.seed, tasks.len(), config.prompts, step);
        let mut groups = draw(vlm, tasks, config, reward, &drawn, step)?;
        let dead = settle(&mut groups, config);
        let (update, taken) = {
            let reference = reference.as_ref();
            let mut learner = Learner { session, config, tasks, reference, pictures: &mut pictures };
            vlm.pool().install(|| learner.learn(&groups))?
        };
        let line = numbers(step, &groups, &dead, update, taken);
        Ok((line, groups.into_iter().flat_map(|group| group.members).map(|member| member.sample).collect()))
    };
    drive(vlm, config.steps, checkpoints, &mut step, &mut |(line, _): &(GrpoStep, Vec<Sample>)| observe(line))
}

/// The model as it is now, whatever training makes of it. An adapter leaves the weights below it alone, so that they are shared:
/// with a new one nothing is copied.
fn reference(vlm: &Vlm) -> Result<Model> {
    match vlm.weights().adapter() {
        Some(_) => vlm.view(Trainable::Nothing),
        None => Ok(vlm.deep_copy()?.model().clone()),
    }
}

fn check(tasks: &[Task], config: &GrpoConfig) -> Result<()> {
    let wrong = |message: &str| Err(ModelError::Setting(message.to_owned()));
    if tasks.is_empty() {
        return wrong("there is no task to learn on");
    }
    if config.group < 2 || config.prompts == 0 || config.updates == 0 {
        return wrong("a group needs two responses at least, a step one prompt and one update");
    }
    Ok(())
}

/// A response with its tokens.
struct Member {
    ids: Vec<u32>,
    sample: Sample,
}

/// The responses to one prompt.
struct Group {
    task: usize,
    members: Vec<Member>,
}

impl Group {
    fn rewards(&self) -> Vec<f64> {
        self.members.iter().map(|member| member.sample.terms.iter().sum()).collect()
    }

    /// Whether nobody in it did better than another, so that all advantages are zero.
    fn dead(&self) -> bool {
        self.members.iter().all(|member| member.sample.advantage == 0.0)
    }
}

/// Draws and scores the responses of a step, given trajectories included.
fn draw(
    vlm: &Vlm,
    tasks: &[Task],
    config: &GrpoConfig,
    reward: Reward<'_>,
    drawn: &[usize],
    step: usize,
) -> Result<Vec<Group>> {
    let mut rng = stream(config.steps.seed, 2, step);
    let request = |&task: &usize| GenerateRequest {
        prompt: tasks[task].prompt.clone(),
        sampling: config.sampling,
        seeds: (0..own_samples(config, &tasks[task])).map(|_| rng.next_u64()).collect(),
    };
    let requests: Vec<GenerateRequest> = drawn.iter().map(request).collect();
    let mut groups: Vec<Group> = drawn.iter().map(|&task| Group { task, members: Vec::new() }).collect();
    vlm.generate(&requests, &mut |index, completions| {
        let group = &mut groups[index];
        for completion in completions {
            let terms = reward(group.task, &completion.text);
            let (text, finished) = (completion.text, completion.finished);
            let sample = Sample { task: group.task, text, terms, advantage: 0.0, prior: false, finished };
            group.members.push(Member { ids: completion.ids, sample });
        }
        ControlFlow::Continue(())
    })?;
    for group in &mut groups {
        if let Some(prior) = tasks[group.task].prior.as_ref() {
            join(vlm, group, prior, config.prior, reward)?;
        }
    }
    Ok(groups)
}

fn own_samples(config: &GrpoConfig, task: &Task) -> usize {
    match (config.prior, &task.prior) {
        (Prior::Replace, Some(_)) => config.group - 1,
        (Prior::Add, None) => config.group + 1,
        _ => config.group,
    }
}

/// Puts a given trajectory into its group.
fn join(vlm: &Vlm, group: &mut Group, prior: &[u32], how: Prior, reward: Reward<'_>) -> Result<()> {
    if how == Prior::Off {
        return Ok(());
    }
    let text = vlm.decode(prior)?;
    let terms = reward(group.task, &text);
    let sample = Sample { task: group.task, text, terms, advantage: 0.0, prior: true, finished: true };
    let given: f64 = sample.terms.iter().sum();
    let member = Member { ids: prior.to_vec(), sample };
    if how != Prior::OnFailure {
        group.members.push(member);
        return Ok(());
    }
    let rewards = group.rewards();
    let worst = (0..rewards.len()).min_by(|&a, &b| rewards[a].total_cmp(&rewards[b]));
    if let Some(worst) = worst.filter(|_| rewards.iter().all(|reward| *reward < given)) {
        group.members[worst] = member;
    }
    Ok(())
}

/// Sets every sample's advantage; returns which groups are dead.
fn settle(groups: &mut [Group], config: &GrpoConfig) -> Vec<bool> {
    let rewards: Vec<Vec<f64>> = groups.iter().map(Group::rewards).collect();
    let (found, dead) = advantages(&rewards, config.scaling);
    for (group, advantages) in groups.iter_mut().zip(found) {
        for (member, advantage) in group.members.iter_mut().zip(advantages) {
            member.sample.advantage = advantage;
        }
    }
    dead
}

/// What an update reports.
#[derive(Debug, Clone, Copy, Default)]
struct Updated {
    loss: f64,
    kl: f64,
    norm: f64,
}

struct Learner<'s, 'a> {
    session: &'s mut Session<'a>,
    config: &'s GrpoConfig,
    tasks: &'s [Task],
    reference: Option<&'s Model>,
    /// Encoded pictures under the tower that stays as it is: everybody's where it is frozen, else the reference's.
    pictures: &'s mut ImageCache,
}

/// The packed batch of a step with what the objective must know.
struct Lesson {
    packed: Packed,
    embeds: Option<Tensor>,
    rows: Vec<u32>,
    targets: Vec<u32>,
    tokens: Tokens,
}

impl Learner<'_, '_> {
    fn learn(&mut self, groups: &[Group]) -> Result<(Updated, f64)> {
        let mut first = Updated::default();
        let lesson = self.lesson(groups)?;
        let mut rate = 0.0;
        let Some(mut lesson) = lesson else {
            // Every group is dead: the step passes without a gradient, so that schedules and order stay as they are.
            let taken = self.session.take()?;
            return Ok((first, taken.rate));
        };
        for update in 0..self.config.updates {
            let (loss, kl) = self.pass(&mut lesson, update)?;
            let taken = self.session.take()?;
            if update == 0 {
                first = Updated { loss, kl, norm: taken.norm };
            }
            rate = taken.rate;
        }
        Ok((first, rate))
    }

    /// One pass forward and back; returns loss and divergence. Its graph is gone when the step is taken.
    fn pass(&mut self, lesson: &mut Lesson, update: usize) -> Result<(f64, f64)> {
        let model = self.session.model()?;
        let hidden = model.forward(&lesson.packed, lesson.embeds.as_ref())?;
        let logp = logprobs(&hidden, model.head(), &lesson.rows, &lesson.targets)?;
        if update == 0 && self.config.updates > 1 {
            lesson.tokens.old = Some(values(&logp)?);
        }
        let (loss, kl) = self.config.objective.loss(&logp, &lesson.tokens)?;
        self.session.gather(&loss, 1.0)?;
        Ok((scalar(&loss)?, scalar(&kl)?))
    }

    /// Packs the live responses of a step; `None` when there is none.
    fn lesson(&mut self, groups: &[Group]) -> Result<Option<Lesson>> {
        let live = |member: &&Member| !self.config.mask_truncated || member.sample.finished;
        let responses: usize = groups.iter().map(|group| group.members.len()).sum();
        let all: usize = groups.iter().flat_map(|group| &group.members).map(|member| member.ids.len()).sum();
        let (mut batch, mut spans) = (Batch::new(), Vec::new());
        let mut tokens = Tokens::default();
        let mut places = Vec::new();
        for group in groups {
            let members: Vec<&Member> = group.members.iter().filter(live).collect();
            if members.is_empty() || group.dead() {
                continue;
            }
            let prompt = &self.tasks[group.task].prompt;
            let embeds = match self.config.steps.freeze_vision {
                true => self.pictures.embeds(self.session.vlm.model(), group.task, prompt)?,
                false => None,
            };
            let ids: Vec<&[u32]> = members.iter().map(|member| member.ids.as_slice()).collect();
            spans.extend(batch.add(prompt, embeds.as_ref(), &ids)?);
            for member in &members {
                let length = member.ids.len();
                let weight = self.config.objective.weight(length, groups.len(), responses, all) as f32;
                tokens.advantage.extend(std::iter::repeat_n(member.sample.advantage as f32, length));
                tokens.weight.extend(std::iter::repeat_n(weight, length));
                tokens.prior.extend(std::iter::repeat_n(f32::from(u8::from(member.sample.prior)), length));
            }
            places.push(group.task);
        }
        if spans.is_empty() {
            return Ok(None);
        }
        let (packed, embeds) = batch.pack(self.session.vlm.device())?;
        let (rows, targets) = join_spans(spans);
        tokens.reference = self.judge(&packed, embeds.as_ref(), &places, &rows, &targets)?;
        Ok(Some(Lesson { packed, embeds, rows, targets, tokens }))
    }

    /// Log-probabilities of the batch's responses under the reference. `embeds` are its pictures under a frozen tower, which is
    /// the reference's, too.
    fn judge(
        &mut self,
        packed: &Packed,
        embeds: Option<&Tensor>,
        tasks: &[usize],
        rows: &[u32],
        targets: &[u32],
    ) -> Result<Option<Vec<f32>>> {
        let Some(reference) = self.reference else { return Ok(None) };
        let mut own = Vec::new();
        for &task in tasks.iter().filter(|_| embeds.is_none()) {
            own.extend(self.pictures.embeds(reference, task, &self.tasks[task].prompt)?);
        }
        let own = if own.is_empty() { None } else { Some(Tensor::cat(&own, 0)?) };
        let embeds = embeds.or(own.as_ref());
        let hidden = reference.forward(packed, embeds)?;
        Ok(Some(values(&logprobs(&hidden, reference.head(), rows, targets)?)?))
    }
}

fn join_spans(spans: Vec<Span>) -> (Vec<u32>, Vec<u32>) {
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for span in spans {
        rows.extend(span.rows);
        targets.extend(span.targets);
    }
    (rows, targets)
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.detach().to_dtype(DType::F32)?.to_vec1()?)
}

fn scalar(tensor: &Tensor) -> Result<f64> {
    Ok(f64::from(tensor.to_dtype(DType::F32)?.to_scalar::<f32>()?))
}

fn numbers(step: usize, groups: &[Group], dead: &[bool], update: Updated, rate: f64) -> GrpoStep {
    let drawn: Vec<&Member> =
        groups.iter().flat_map(|group| &group.members).filter(|member| !member.sample.prior).collect();
    let average = |value: &dyn Fn(&Member) -> f64| mean(&drawn.iter().map(|member| value(member)).collect::<Vec<_>>());
    let terms = drawn.first().map_or(0, |member| member.sample.terms.len());
    GrpoStep {
        step: step + 1,
        reward: average(&|member| member.sample.terms.iter().sum()),
        terms: (0..terms).map(|term| average(&|member| member.sample.terms[term])).collect(),
        spread: mean(&groups.iter().map(|group| deviation(&group.rewards())).collect::<Vec<_>>()),
        dead: dead.iter().filter(|dead| **dead).count(),
        groups: groups.len(),
        truncated: average(&|member| f64::from(u8::from(!member.sample.finished))),
        length: average(&|member| member.ids.len() as f64),
        loss: update.loss,
        kl: update.kl,
        norm: update.norm,
        rate,
    }
}
