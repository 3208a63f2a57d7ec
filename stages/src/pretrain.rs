//! `model.pretrain`: a tiny base model from the embedded world's lore.
//!
//! The model has the true Qwen2.5-VL architecture (patches of 14, windows, merger, grouped heads, M-RoPE, tied head) at about
//! half a million parameters, so that every later stage runs on it as it would on the published one. It learns in one
//! training of two phases: captions until it sees, then the mix of conversations. Both phases take the lore in a
//! seeded order, so a killed training goes on to the same bytes.

use std::path::Path;

use mpcc_engine::port::{PortType, Signature};
use mpcc_engine::stage::{Context, ParamError, Stage, StageError};
use mpcc_models::ModelError;
use mpcc_models::chat::ChatTemplate;
use mpcc_models::image::ImageProcessor;
use mpcc_models::ops::HeadShape;
use mpcc_models::tokenizer::TextTokenizer;
use mpcc_models::train::Verdict;
use mpcc_models::train::checkpoint::Checkpoints;
use mpcc_models::train::lm::{self, LmStep, Sequence};
use mpcc_models::train::optim::AdamWConfig;
use mpcc_models::train::order::places;
use mpcc_models::train::schedule::{Decay, Schedule};
use mpcc_models::train::session::StepConfig;
use mpcc_models::vlm::qwen::{Blocks, Config, VisionConfig};
use mpcc_models::vlm::text::{Decoder, RopeScaling, TextConfig};
use mpcc_models::vlm::{Assets, GenerationConfig, LoadOptions, Vlm};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::Dataset;
use crate::world::lessons::Lessons;
use crate::world::lore::Kind;
use crate::world::words::{self, special};

/// Side of a patch in pixels; two by two merge into a token.
const PATCH: usize = 14;
const MERGE: usize = 2;

/// Widths and depths of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Size {
    /// Width of the language model.
    pub hidden: usize,
    /// Its layers.
    pub layers: usize,
    /// Width of its feed-forward layers.
    pub intermediate: usize,
    /// Its query heads.
    pub heads: usize,
    /// Its key and value heads.
    pub kv_heads: usize,
    /// Width of the vision tower.
    pub vision_hidden: usize,
    /// Its blocks; the last sees the whole picture, the others windows of 112 pixels.
    pub vision_layers: usize,
    /// Width of its feed-forward layers.
    pub vision_intermediate: usize,
    /// Its heads.
    pub vision_heads: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            hidden: 96,
            layers: 3,
            intermediate: 256,
            heads: 4,
            kv_heads: 2,
            vision_hidden: 64,
            vision_layers: 2,
            vision_intermediate: 128,
            vision_heads: 4,
        }
    }
}

/// Parameters of `model.pretrain`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelPretrain {
    /// Steps on captions.
    pub caption_steps: usize,
    /// Steps on the mix of conversations, after them.
    pub talk_steps: usize,
    /// Conversations with pictures a step.
    pub batch: usize,
    /// Conversations without pictures a step, in the second phase.
    pub text_batch: usize,
    /// Weight of those beside the others.
    pub text_weight: f64,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Share of the steps over which it rises; then it falls along half a cosine.
    pub warmup: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this norm.
    pub max_grad_norm: f64,
    /// Steps between two checkpoints.
    pub checkpoint: usize,
    /// Widths and depths.
    pub size: Size,
}

impl Default for ModelPretrain {
    fn default() -> Self {
        Self {
            caption_steps: 260,
            talk_steps: 500,
            batch: 32,
            text_batch: 14,
            text_weight: 0.3,
            learning_rate: 4e-3,
            warmup: 0.05,
            beta2: 0.98,
            weight_decay: 0.01,
            max_grad_norm: 1.0,
            checkpoint: 50,
            size: Size::default(),
        }
    }
}

impl Stage for ModelPretrain {
    const KIND: &'static str = "model.pretrain";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "trains a tiny base model of Qwen2.5-VL's architecture on the embedded world's lore";

    fn signature() -> Signature {
        Signature::new()
            .takes("dataset", PortType::Dataset)
            .takes("lore", PortType::File)
            .gives("model", PortType::Model)
            .numerics()
            .seeded()
    }

    fn check(&self) -> Result<(), ParamError> {
        if self.caption_steps + self.talk_steps == 0 {
            return Err(ParamError::new("talk_steps", "there must be at least one step in all"));
        }
        if self.batch == 0 {
            return Err(ParamError::new("batch", "must be at least 1"));
        }
        let unit = |value: f64| value.is_finite() && (0.0..=1.0).contains(&value);
        if !unit(self.warmup) || !unit(self.beta2) {
            return Err(ParamError::new("warmup", "`warmup` and `beta2` lie between 0 and 1"));
        }
        let size = &self.size;
        if size.heads == 0 || !size.hidden.is_multiple_of(2 * size.heads) || size.vision_layers == 0 {
            return Err(ParamError::new(
                "size",
                "`hidden` must be a multiple of twice `heads`, and `vision_layers` at least 1",
            ));
        }
        self.size.config().check().map_err(|message| ParamError::new("size", message))
    }

    fn run(&self, ctx: &Context) -> Result<(), StageError> {
        let dataset = Dataset::open(&ctx.input("dataset")?.path)?;
        let mut lessons = Lessons::read(&ctx.input("lore")?.path, dataset)?;
        let vlm = self.fresh(ctx.seed, ctx.threads).map_err(failed)?;
        ctx.info(format!("{} parameters, {} words", vlm.weights().count(), words::vocabulary().len()));
        self.check_lore(&lessons)?;
        std::fs::create_dir_all(&ctx.partial).map_err(|error| StageError::io(&ctx.partial, error))?;
        let mut observe = |step: &LmStep| self.report(step, ctx);
        let steps = self.train(&vlm, &mut lessons, ctx.seed, &ctx.partial, &mut observe).map_err(failed)?;
        if steps.len() < self.steps() {
            return Err(StageError::Cancelled);
        }
        let last = steps.len().clamp(1, 20);
        let loss = steps.iter().rev().take(last).map(|step| step.loss).sum::<f64>() / last as f64;
        ctx.metric("loss", loss);
        vlm.save(ctx.output("model")?).map_err(failed)
    }
}

fn failed(error: ModelError) -> StageError {
    match error {
        ModelError::Read { .. } | ModelError::Write { .. } => StageError::Machine(error.to_string()),
        other => StageError::invalid(other.to_string()),
    }
}

impl Size {
    /// The architecture.
    fn config(&self) -> Config {
        let head_dim = self.hidden / self.heads;
        Config {
            text: TextConfig {
                decoder: Decoder::Qwen2,
                vocab_size: words::vocabulary().len(),
                hidden_size: self.hidden,
                intermediate_size: self.intermediate,
                layers: self.layers,
                heads: HeadShape { heads: self.heads, kv_heads: self.kv_heads, head_dim },
                max_position_embeddings: 2048,
                rms_norm_eps: 1e-6,
                rope_theta: 10_000.0,
                rope_scaling: RopeScaling::None,
                mrope_section: Some(sections(head_dim / 2)),
                sliding: None,
                tie_word_embeddings: true,
            },
            vision: self.vision(),
            image_token_id: special(words::PICTURE),
            video_token_id: special(words::VIDEO),
            vision_start_token_id: special(words::START_OF_PICTURE),
            vision_end_token_id: special(words::END_OF_PICTURE),
            bos_token_id: None,
            eos_token_id: Some(special(words::END_OF_TURN)),
        }
    }

    fn vision(&self) -> VisionConfig {
        VisionConfig {
            depth: self.vision_layers,
            hidden_size: self.vision_hidden,
            intermediate_size: self.vision_intermediate,
            heads: self.vision_heads,
            in_channels: 3,
            patch_size: PATCH,
            spatial_merge_size: MERGE,
            temporal_patch_size: 1,
            out_hidden_size: self.hidden,
            blocks: Blocks::Windowed {
                window_size: 112,
                fullatt_block_indexes: vec![self.vision_layers - 1],
                tokens_per_second: 2,
            },
        }
    }
}

/// How many of `half` frequencies turn with time, row and column: a quarter, then the rest shared.
fn sections(half: usize) -> [usize; 3] {
    let time = half / 4;
    let row = (half - time) / 2;
    [time, row, half - time - row]
}

/// Tokenizer, template, picture processor and end token of the world's models.
fn assets() -> Result<Assets, ModelError> {
    let file = serde_json::to_vec(&words::tokenizer()).expect("plain data");
    let side = PATCH * MERGE;
    let processor = ImageProcessor {
        min_pixels: side * side,
        max_pixels: 64 * side * side,
        temporal_patch_size: 1,
        normalise: Some(([0.5; 3], [0.5; 3])),
        ..ImageProcessor::default()
    };
    Ok(Assets {
        tokenizer: TextTokenizer::new(file, words::tokenizer_config())?,
        chat: ChatTemplate::new(words::CHAT_TEMPLATE)?,
        processor: processor.into(),
        generation: GenerationConfig::new(vec![special(words::END_OF_TURN)], special(words::END_OF_TEXT)),
    })
}

impl ModelPretrain {
    /// A model with fresh weights.
    ///
    /// # Errors
    /// When the sizes contradict each other.
    pub fn fresh(&self, seed: u64, threads: usize) -> Result<Vlm, ModelError> {
        Vlm::init(self.size.config(), assets()?, seed, &LoadOptions { threads, ..LoadOptions::default() })
    }

    /// Trains `vlm` in place with checkpoints in `folder`, which exists; `observe` sees each step and may stop.
    fn train(
        &self,
        vlm: &Vlm,
        lessons: &mut Lessons,
        seed: u64,
        folder: &Path,
        observe: &mut dyn FnMut(&LmStep) -> Verdict,
    ) -> Result<Vec<LmStep>, ModelError> {
        let checkpoints = Checkpoints { folder: folder.to_owned(), every: self.checkpoint };
        let mut batch = |step| self.batch(vlm, lessons, step, seed);
        lm::train(vlm, self.config(seed), &mut batch, Some(&checkpoints), observe)
    }

    /// Tells the engine how far it is; stops when the run is being cancelled.
    fn report(&self, step: &LmStep, ctx: &Context) -> Verdict {
        ctx.progress(step.step as u64, self.steps() as u64, "steps");
        if step.step.is_multiple_of(50) || step.step == self.caption_steps {
            ctx.info(format!("step {} of {}: loss {:.3}", step.step, self.steps(), step.loss));
        }
        if ctx.check_cancelled().is_err() { Verdict::Break(()) } else { Verdict::Continue(()) }
    }

    fn steps(&self) -> usize {
        self.caption_steps + self.talk_steps
    }

    fn check_lore(&self, lessons: &Lessons) -> Result<(), StageError> {
        let wanted = [
            (Kind::Caption, self.caption_steps),
            (Kind::Talk, self.talk_steps),
            (Kind::Text, self.talk_steps * self.text_batch),
        ];
        match wanted.into_iter().find(|(kind, steps)| *steps > 0 && lessons.len(*kind) == 0) {
            Some((kind, _)) => Err(StageError::invalid(format!("the lore has no conversation of kind {kind:?}"))),
            None => Ok(()),
        }
    }

    fn config(&self, seed: u64) -> StepConfig {
        StepConfig {
            steps: self.steps(),
            schedule: Schedule { learning_rate: self.learning_rate, decay: Decay::Cosine, warmup: self.warmup },
            adamw: AdamWConfig {
                betas: (0.9, self.beta2),
                eps: 1e-8,
                weight_decay: self.weight_decay,
                max_grad_norm: self.max_grad_norm,
            },
            freeze_vision: false,
            seed,
        }
    }

    /// The sequences of step `step`, counted from 0 over both phases.
    fn batch(&self, vlm: &Vlm, lessons: &mut Lessons, step: usize, seed: u64) -> Result<Vec<Sequence>, ModelError> {
        let Some(step) = step.checked_sub(self.caption_steps) else {
            return draw(vlm, lessons, Kind::Caption, self.batch, step, seed);
        };
        let mut talks = draw(vlm, lessons, Kind::Talk, self.batch, step, seed)?;
        if self.text_batch > 0 {
            let mut texts = draw(vlm, lessons, Kind::Text, self.text_batch, step, seed)?;
            let factor = self.text_weight as f32 * weight(&talks) / weight(&texts);
            texts.iter_mut().flat_map(|text| &mut text.weights).for_each(|weight| *weight *= factor);
            talks.append(&mut texts);
        }
        Ok(talks)
    }
}

/// `count` conversations of `kind` for step `step`.
fn draw(
    vlm: &Vlm,
    lessons: &mut Lessons,
    kind: Kind,
    count: usize,
    step: usize,
    seed: u64,
) -> Result<Vec<Sequence>, ModelError> {
    let places = places(seed.wrapping_add(kind as u64), lessons.len(kind), count, step);
    places.into_iter().map(|place| lessons.sequence(vlm, kind, place)).collect()
}

/// The sum of all weights.
fn weight(sequences: &[Sequence]) -> f32 {
    sequences.iter().flat_map(|sequence| &sequence.weights).sum()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use mpcc_engine::harness::Harness;

    use super::*;
    use crate::scenes::ScenesGenerate;
    use crate::world::part::Part;

    fn tiny() -> ModelPretrain {
        let size = Size {
            hidden: 16,
            layers: 1,
            intermediate: 24,
            heads: 2,
            kv_heads: 1,
            vision_hidden: 16,
            vision_layers: 2,
            vision_intermediate: 16,
            vision_heads: 2,
        };
        ModelPretrain {
            caption_steps: 3,
            talk_steps: 4,
            batch: 3,
            text_batch: 2,
            checkpoint: 2,
            size,
            ..ModelPretrain::default()
        }
    }

    fn world(folder: &Path) -> BTreeMap<String, PathBuf> {
        let stage = ScenesGenerate { part: Part::Pretrain, scenes: Some(12), tasks: 1 };
        Harness::new(&folder.join("world")).run(&stage).unwrap()
    }

    fn lessons(world: &BTreeMap<String, PathBuf>) -> Lessons {
        Lessons::read(&world["lore"], Dataset::open(&world["dataset"]).unwrap()).unwrap()
    }

    fn weights(vlm: &Vlm) -> Vec<Vec<f32>> {
        let vars = vlm.weights().vars().values();
        vars.map(|var| var.as_tensor().flatten_all().unwrap().to_vec1().unwrap()).collect()
    }

    /// The weights after training, interrupted after each of `stops`.
    fn trained(world: &BTreeMap<String, PathBuf>, folder: &Path, stops: &[usize], threads: usize) -> Vec<Vec<f32>> {
        let stage = tiny();
        std::fs::create_dir_all(folder).unwrap();
        for stop in stops.iter().chain([&usize::MAX]) {
            let vlm = stage.fresh(5, threads).unwrap();
            let mut observe =
                |step: &LmStep| if step.step == *stop { Verdict::Break(()) } else { Verdict::Continue(()) };
            let steps = stage.train(&vlm, &mut lessons(world), 5, folder, &mut observe).unwrap();
            if *stop == usize::MAX {
                assert_eq!(steps.len(), 7);
                return weights(&vlm);
            }
        }
        unreachable!("the last run is never interrupted")
    }

    #[test]
    fn an_interrupted_training_ends_with_the_same_bytes_on_any_number_of_threads() {
        let folder = tempfile::tempdir().unwrap();
        let world = world(folder.path());
        let whole = trained(&world, &folder.path().join("whole"), &[], 1);
        assert_eq!(whole, trained(&world, &folder.path().join("parts"), &[1, 4], 2));
    }

    #[test]
    fn the_stage_writes_a_model_that_loads_and_has_learned() {
        let folder = tempfile::tempdir().unwrap();
        let world = world(folder.path());
        let stage = ModelPretrain { caption_steps: 12, talk_steps: 12, ..tiny() };
        let harness = Harness::new(&folder.path().join("model"));
        let harness = harness.input("dataset", &world["dataset"]).input("lore", &world["lore"]);
        let notes = harness.notes.clone();
        let outputs = harness.run(&stage).unwrap();
        let vlm = Vlm::load(&outputs["model"], &LoadOptions::default()).unwrap();
        assert_ne!(weights(&vlm), weights(&stage.fresh(17, 1).unwrap()));
        let loss = notes.notes().into_iter().find_map(|note| match note {
            mpcc_engine::stage::Note::Metric { name, value } if name == "loss" => Some(value),
            _ => None,
        });
        let uniform = (words::vocabulary().len() as f64).ln();
        assert!(loss.unwrap() < uniform, "{loss:?} {uniform}");
    }

    #[test]
    fn lore_that_is_missing_or_broken_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let world = world(folder.path());
        let open = || Dataset::open(&world["dataset"]).unwrap();
        let path = folder.path().join("lore.jsonl");
        std::fs::write(&path, "").unwrap();
        assert!(Lessons::read(&path, open()).err().unwrap().to_string().contains("part: pretrain"));
        std::fs::write(&path, "{}\n").unwrap();
        assert!(Lessons::read(&path, open()).err().unwrap().to_string().contains("lore.jsonl:1: no conversation"));
        let line = r#"{"kind":"talk","think":false,"images":[{"image":"x.jpg","hidden":null}],"turns":[]}"#;
        std::fs::write(&path, line).unwrap();
        assert!(Lessons::read(&path, open()).err().unwrap().to_string().contains("no picture `x.jpg`"));
    }
}
