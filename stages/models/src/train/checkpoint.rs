//! Checkpoints: weights, moments and the log of a training, so that a killed one goes on to the same final bytes.
//!
//! A checkpoint is one file, `step-NNNNNN.safetensors`, written under another name and renamed; the log travels in its
//! header. Weights that are not f32 stand there twice, as the model has them and as the optimiser does. Data order and draws
//! are functions of the seed and the step, so nothing else is needed. Older files go once a newer one stands; a torn file never
//! has the final name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use safetensors::SafeTensors;

use super::optim::AdamW;
use crate::error::{ModelError, Result};
use crate::weights::Weights;

const PREFIX: &str = "step-";
const SUFFIX: &str = ".safetensors";
const LOG: &str = "log";

/// Where and how often checkpoints are written.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    /// The folder; it exists.
    pub folder: PathBuf,
    /// Steps between two checkpoints.
    pub every: usize,
}

/// What a checkpoint holds beside tensors.
#[derive(Debug, Default)]
pub struct Resumed {
    /// Steps done.
    pub steps: usize,
    /// The log's lines so far.
    pub log: Vec<String>,
}

impl Checkpoints {
    /// Writes the state after `steps` steps and drops older files.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, weights: &Weights, optimiser: &AdamW, steps: usize, log: &[String]) -> Result<()> {
        let named = weights.state().into_iter().map(|(name, var)| (format!("weight.{name}"), var.as_tensor().clone()));
        let tensors: BTreeMap<String, Tensor> = named.chain(optimiser.state()?).collect();
        #[expect(clippy::disallowed_types, reason = "the writer's signature; one entry, nothing iterates")]
        let header = std::collections::HashMap::from([(LOG.to_owned(), log.join("\n"))]);
        let path = self.path(steps);
        let partial = path.with_extension("partial");
        let failed = |source: std::io::Error| ModelError::Write { path: partial.clone(), source };
        let bytes =
            safetensors::serialize(&tensors, Some(header)).map_err(|error| failed(std::io::Error::other(error)))?;
        std::fs::write(&partial, bytes).map_err(failed)?;
        std::fs::rename(&partial, &path).map_err(failed)?;
        for (older, file) in self.files() {
            if older < steps {
                // A file left behind costs room, nothing else.
                let _ = std::fs::remove_file(file);
            }
        }
        Ok(())
    }

    /// Brings weights and optimiser to the newest checkpoint, if there is one.
    ///
    /// # Errors
    /// When it does not fit the model.
    pub fn resume(&self, weights: &Weights, optimiser: &mut AdamW) -> Result<Resumed> {
        let Some((steps, path)) = self.files().pop() else { return Ok(Resumed::default()) };
        let broken = |message: String| ModelError::File { path: path.clone(), message };
        let bytes = std::fs::read(&path).map_err(|error| broken(error.to_string()))?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| broken(error.to_string()))?;
        let log = metadata.metadata().as_ref().and_then(|header| header.get(LOG)).cloned().unwrap_or_default();
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?;
        let tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
        for (name, var) in weights.state() {
            let key = format!("weight.{name}");
            let tensor = tensors.get(&key).ok_or_else(|| broken(format!("no `{key}`")))?;
            var.set(&tensor.to_device(var.device())?)?;
        }
        optimiser.restore(&tensors)?;
        Ok(Resumed { steps, log: log.lines().map(str::to_owned).collect() })
    }

    fn path(&self, steps: usize) -> PathBuf {
        self.folder.join(format!("{PREFIX}{steps:06}{SUFFIX}"))
    }

    /// Complete checkpoints, oldest first.
    fn files(&self) -> Vec<(usize, PathBuf)> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut files: Vec<(usize, PathBuf)> =
            entries.map(|entry| entry.path()).filter_map(|path| Some((steps_of(&path)?, path))).collect();
        files.sort();
        files
    }
}

fn steps_of(path: &Path) -> Option<usize> {
    path.file_name()?.to_str()?.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok()
}
