//! A vision-language model as one thing: weights, tokenizer, picture processor, chat template and generation settings, read from and
//! written to a directory in Hugging Face layout.
//!
//! | module | what |
//! |---|---|
//! | [`family`] | which families there are: the one place that names them all |
//! | [`qwen`], [`llava_next`], [`internvl`] | what each brings: configuration, weights, vision tower |
//! | [`text`], [`vision`] | what they share: the language model, the blocks of towers and their two engines |
//! | [`model`] | tower and language model together, differentiable |
//! | [`infer`], [`prefill`] | the language model with cached keys and values, without gradients, on two engines |
//! | [`prefix`] | what is kept between requests |
//! | [`prompt`] | conversations and pictures to tokens |

pub mod family;
pub mod infer;
pub mod internvl;
pub mod llava_next;
pub mod model;
pub mod prefill;
pub mod prefix;
pub mod prompt;
pub mod qwen;
mod section;
mod specs;
pub mod text;
pub mod vision;

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};
use rayon::ThreadPool;
use serde_json::{Value, json};

use crate::chat::ChatTemplate;
use crate::checkpoint::{self, TensorFiles, read_json_if_there, write_json};
use crate::device::DeviceChoice;
use crate::error::{ModelError, Result};
use crate::image::Processor;
use crate::lora::{Adapter, LoraConfig};
use crate::tokenizer::TextTokenizer;
use crate::weights::Weights;
use infer::{EngineChoice, Host, Tensors, Work};
use prefix::Store;

pub use family::Config;
pub use model::{Model, Packed, Trainable};
pub use prefix::PrefixCounts;
pub use prompt::Prompt;
pub use text::TextConfig;

/// Default of [`LoadOptions::kept_bytes`]: some 20,000 tokens of a model of 141 million parameters.
const KEPT_BYTES: usize = 256 << 20;

/// How a model is brought into memory.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// Threads of the model's own pool; results do not depend on it.
    pub threads: usize,
    /// Type of the weights; on the CPU f32 is the fast one, and its own engine computes in f32 whatever it is.
    pub dtype: DType,
    /// Where the weights live.
    pub device: DeviceChoice,
    /// Bytes of encoded pictures and of keys and values that the model keeps for later requests; results do not depend on it.
    pub kept_bytes: usize,
    /// What answers and scores: by default what fits the device.
    pub engine: EngineChoice,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        let (dtype, device, engine) = (DType::F32, DeviceChoice::Cpu, EngineChoice::ByDevice);
        LoadOptions { threads: 1, dtype, device, kept_bytes: KEPT_BYTES, engine }
    }
}

/// `generation_config.json`: which tokens end an answer. The other keys are kept and written back.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationConfig {
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
    raw: Value,
}

impl GenerationConfig {
    /// Settings with these end tokens and this padding token.
    pub fn new(eos: Vec<u32>, pad: u32) -> GenerationConfig {
        let raw = json!({ "do_sample": false, "eos_token_id": eos, "pad_token_id": pad });
        GenerationConfig { eos, raw }
    }

    fn read(dir: &Path, config: &Config) -> Result<GenerationConfig> {
        let path = dir.join("generation_config.json");
        let raw = read_json_if_there(&path)?.unwrap_or_else(|| json!({}));
        let eos: Vec<u32> = match &raw["eos_token_id"] {
            Value::Array(ids) => ids.iter().filter_map(Value::as_u64).map(|id| id as u32).collect(),
            id => id.as_u64().map(|id| id as u32).or(config.eos_token_id()).into_iter().collect(),
        };
        if eos.is_empty() {
            let message = "no `eos_token_id` here or in config.json, so that no answer could end".to_owned();
            return Err(ModelError::File { path, message });
        }
        Ok(GenerationConfig { eos, raw })
    }
}

/// What a model needs beside its weights.
#[derive(Debug, Clone)]
pub struct Assets {
    /// Text to ids and back.
    pub tokenizer: TextTokenizer,
    /// Conversations to text.
    pub chat: ChatTemplate,
    /// Pictures to patches.
    pub processor: Processor,
    /// End tokens.
    pub generation: GenerationConfig,
}

/// A vision-language model ready to answer or to be trained.
#[derive(Debug, Clone)]
pub struct Vlm {
    config: Config,
    weights: Weights,
    model: Model,
    assets: Assets,
    /// Tokens before and behind those of a picture, where the family frames them.
    frame: Option<[u32; 2]>,
    pool: Arc<ThreadPool>,
    /// Valid for `weights` as they are.
    prefixes: Store,
}

impl Vlm {
    /// Reads a model directory.
    ///
    /// # Errors
    /// When a file is missing or malformed, the architecture is not supported, or the device is not there.
    pub fn load(dir: &Path, options: &LoadOptions) -> Result<Vlm> {
        let (config, assets) = Vlm::read_assets(dir)?;
        let device = options.device.open()?;
        let weights = Weights::read(config.specs(), &TensorFiles::open(dir)?, options.dtype, &device)?;
        Vlm::assemble(config, weights, assets, pool(options)?, options)
    }

    /// Reads a model directory but for its weights, which are drawn: what a published model costs can be measured without it.
    ///
    /// # Errors
    /// As [`Vlm::load`].
    pub fn draw(dir: &Path, seed: u64, options: &LoadOptions) -> Result<Vlm> {
        let (config, assets) = Vlm::read_assets(dir)?;
        Vlm::init(config, assets, seed, options)
    }

    fn read_assets(dir: &Path) -> Result<(Config, Assets)> {
        let tokenizer = TextTokenizer::read(dir)?;
        let (config, value) = Config::read(&dir.join("config.json"), &tokenizer)?;
        let chat = ChatTemplate::read(dir, tokenizer.config())?;
        let processor = config.read_processor(dir, &value)?;
        let generation = GenerationConfig::read(dir, &config)?;
        Ok((config, Assets { tokenizer, chat, processor, generation }))
    }

    /// Makes a model with freshly drawn weights, for pretraining.
    ///
    /// # Errors
    /// When the configuration contradicts itself or the tokenizer, or the device is not there.
    pub fn init(config: impl Into<Config>, assets: Assets, seed: u64, options: &LoadOptions) -> Result<Vlm> {
        let config = config.into();
        config.check().map_err(ModelError::Setting)?;
        let (device, pool) = (options.device.open()?, pool(options)?);
        let weights = pool.install(|| Weights::draw(config.specs(), seed, options.dtype, &device))?;
        Vlm::assemble(config, weights, assets, pool, options)
    }

    fn assemble(
        config: Config,
        weights: Weights,
        assets: Assets,
        pool: ThreadPool,
        options: &LoadOptions,
    ) -> Result<Vlm> {
        check_agreement(&config, &assets)?;
        let model = Model::new(&config, &weights, Trainable::Nothing)?;
        let frame = config.frame(&assets.tokenizer)?;
        let tensors = options.engine == EngineChoice::Tensors || !model.head().device().is_cpu();
        let prefixes = Store::new(tensors, options.kept_bytes);
        Ok(Vlm { config, weights, model, assets, frame, pool: Arc::new(pool), prefixes })
    }

    /// Writes the model as a directory that transformers loads.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        self.save_as(dir, None, None)
    }

    /// [`Vlm::save`] with the weights in another type, and in files of at most so many bytes.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save_as(&self, dir: &Path, dtype: Option<DType>, limit: Option<usize>) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(|source| ModelError::Write { path: dir.into(), source })?;
        let assets = &self.assets;
        write_json(&dir.join("config.json"), &self.config.to_json())?;
        write_json(&dir.join("generation_config.json"), &assets.generation.raw)?;
        write_json(&dir.join("preprocessor_config.json"), &assets.processor.to_json())?;
        let placeholder = assets.tokenizer.token(self.config.image_token_id());
        if let Some(extras) = self.config.processor_extras(placeholder) {
            write_json(&dir.join("processor_config.json"), &extras)?;
        }
        write_json(&dir.join("tokenizer_config.json"), &self.tokenizer_config())?;
        checkpoint::write(&dir.join("tokenizer.json"), assets.tokenizer.file())?;
        checkpoint::write(&dir.join("chat_template.jinja"), assets.chat.source().as_bytes())?;
        let mut tensors = self.weights.published()?;
        if let Some(dtype) = dtype {
            for tensor in tensors.values_mut() {
                *tensor = tensor.to_dtype(dtype)?;
            }
        }
        checkpoint::write_weights(dir, &tensors, limit)
    }

    fn tokenizer_config(&self) -> Value {
        let known = self.assets.tokenizer.config();
        if !known.is_null() {
            return known.clone();
        }
        let end = self.assets.tokenizer.token(self.assets.generation.eos[0]);
        json!({ "eos_token": end, "pad_token": end, "tokenizer_class": "PreTrainedTokenizerFast" })
    }

    /// An independent copy of the model: training one leaves the other as it is.
    ///
    /// # Errors
    /// When there is no room for the weights.
    pub fn deep_copy(&self) -> Result<Vlm> {
        let weights = self.weights.deep_copy()?;
        self.over(weights)
    }

    /// The same model, its weights shared, under a new adapter that changes nothing yet; training then changes the adapter alone.
    ///
    /// # Errors
    /// When a target is no map of the language model.
    pub fn with_new_adapter(&self, config: &LoraConfig, seed: u64) -> Result<Vlm> {
        let head = self.model.head();
        self.under(Adapter::draw(self.weights.specs(), config, seed, head.dtype(), head.device())?)
    }

    /// The same model, its weights shared, under an adapter read from a folder in PEFT's layout.
    ///
    /// # Errors
    /// When a file is missing or damaged, or a pair fits no weight of the model.
    pub fn with_adapter(&self, dir: &Path) -> Result<Vlm> {
        let head = self.model.head();
        self.under(Adapter::read(dir, self.weights.specs(), head.dtype(), head.device())?)
    }

    /// The same model over other weights, with nothing kept of the old ones.
    fn over(&self, weights: Weights) -> Result<Vlm> {
        let model = Model::new(&self.config, &weights, Trainable::Nothing)?;
        let prefixes = self.prefixes.anew();
        Ok(Vlm { weights, model, prefixes, ..self.clone() })
    }

    fn under(&self, adapter: Adapter) -> Result<Vlm> {
        if self.weights.adapter().is_some() {
            return Err(ModelError::Setting("the model has an adapter already: merge it first".into()));
        }
        let weights = self.weights.adapted(adapter);
        self.over(weights)
    }

    /// The model with its adapter, as it stands now, merged into weights of its own.
    ///
    /// # Errors
    /// When there is no room for the weights.
    pub fn merged(&self) -> Result<Vlm> {
        let weights = self.weights.merged()?;
        self.over(weights)
    }

    /// The architecture over the model's weights, for inference: no gradient flows. Under an adapter it shows the weights as
    /// they were when the adapter came; [`Vlm::merged`] and [`Vlm::view`] show them as they are.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The architecture over the same weights, with gradients to what is trainable.
    ///
    /// # Errors
    /// When a weight is missing, which a loaded model excludes.
    pub fn view(&self, trainable: Trainable) -> Result<Model> {
        Model::new(&self.config, &self.weights, trainable)
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Tokenizer, template, processor and end tokens.
    pub fn assets(&self) -> &Assets {
        &self.assets
    }

    /// The tokens that end an answer.
    pub fn eos(&self) -> &[u32] {
        &self.assets.generation.eos
    }

    /// The ids of a text; special tokens written in it are recognised, none are added.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.assets.tokenizer.encode(text)
    }

    /// The text of some ids, special tokens left out except the think and answer tags.
    ///
    /// # Errors
    /// When the tokenizer's decoder refuses them.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.assets.tokenizer.decode(ids)
    }

    /// Where the weights live.
    pub fn device(&self) -> &Device {
        self.model.head().device()
    }

    /// The type of the weights.
    pub fn dtype(&self) -> DType {
        self.model.head().dtype()
    }

    /// Number of the model's own threads.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs work in the model's own threads; on the caller's where there is only one.
    pub(crate) fn in_pool<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        if self.threads() == 1 { work() } else { self.pool.install(work) }
    }

    /// Does work on the engine that this model runs on. What it may reuse and add to is what the model keeps, or nothing where
    /// somebody may change the weights.
    pub(crate) fn with_engine<W: Work>(&self, work: W) -> Result<W::Out> {
        let store = if self.weights.lent() { self.prefixes.keeping_nothing() } else { self.prefixes.clone() };
        match store {
            Store::Host(prefixes) => self
                .weights
                .with_slices(|slices| work.run(&Host::new(&self.config, slices, self.threads())?, &prefixes)),
            Store::Tensors(prefixes) => {
                // Under an adapter the model shows the weights as they were when it came.
                let model = match self.weights.adapter() {
                    Some(_) => self.view(Trainable::Nothing)?,
                    None => self.model.clone(),
                };
                work.run(&Tensors::new(model), &prefixes)
            }
        }
    }

    /// Whether answers and scores are computed on tensors, as on a GPU.
    pub fn on_tensors(&self) -> bool {
        matches!(self.prefixes, Store::Tensors(_))
    }

    /// How often pictures passed the vision tower and tokens of prompts the language model, and how often they did not have to.
    pub fn prefix_counts(&self) -> PrefixCounts {
        self.prefixes.counts()
    }

    /// Bytes that the model keeps for later requests.
    pub fn kept_bytes(&self) -> usize {
        self.prefixes.bytes()
    }

    /// The model's own threads.
    pub fn pool(&self) -> &ThreadPool {
        &self.pool
    }
}

/// The model's own threads.
fn pool(options: &LoadOptions) -> Result<ThreadPool> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads.max(1)).build();
    pool.map_err(|error| ModelError::Setting(format!("{} threads: {error}", options.threads)))
}

/// Refuses parts that were not made for each other.
fn check_agreement(config: &Config, assets: &Assets) -> Result<()> {
    config.agrees(&assets.processor).map_err(ModelError::Setting)?;
    let (largest, rows) = (assets.tokenizer.largest_id() as usize, config.text().vocab_size);
    if largest >= rows {
        return Err(ModelError::Setting(format!(
            "the tokenizer has {} tokens up to id {largest}, but the embedding table {rows} rows",
            assets.tokenizer.len()
        )));
    }
    let placeholder = config.image_token_id() as usize;
    if placeholder >= rows {
        return Err(ModelError::Setting(format!(
            "the placeholder of pictures is token {placeholder}, but the embedding table has {rows} rows"
        )));
    }
    Ok(())
}
