//! Low-rank adapters (LoRA) as a pipeline writes them.
//!
//! With `lora:` a training changes the adapter alone; the weights it started from stay as they are, to the bit. The stage's
//! model is those weights with the adapter merged into them, so later stages need not know, and a folder [`FOLDER`] inside it
//! holds the adapter by itself in PEFT's layout: its base is the model that the stage was given.

use std::path::Path;

use mpcc_engine::stage::{Context, ParamError, StageError};
use mpcc_models::lora::LoraConfig;
use mpcc_models::vlm::Vlm;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::load;
use crate::provider::local::model_error;

/// Where inside the trained model its adapter lies.
pub const FOLDER: &str = "adapter";

/// A map of the language model's layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Queries of the attention.
    QProj,
    /// Its keys.
    KProj,
    /// Its values.
    VProj,
    /// Its output.
    OProj,
    /// The gate of the feed-forward layer.
    GateProj,
    /// Its widening map.
    UpProj,
    /// Its narrowing map.
    DownProj,
}

impl Target {
    /// All of them.
    const ALL: [Self; 7] =
        [Self::QProj, Self::KProj, Self::VProj, Self::OProj, Self::GateProj, Self::UpProj, Self::DownProj];

    /// As checkpoints name it.
    fn name(self) -> &'static str {
        match self {
            Self::QProj => "q_proj",
            Self::KProj => "k_proj",
            Self::VProj => "v_proj",
            Self::OProj => "o_proj",
            Self::GateProj => "gate_proj",
            Self::UpProj => "up_proj",
            Self::DownProj => "down_proj",
        }
    }
}

/// A low-rank adapter to train in place of the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// Inner width of the update of a map.
    pub rank: usize,
    /// The update is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Which maps of the language model's layers are adapted; all of them by default.
    pub targets: Vec<Target>,
}

impl Default for Lora {
    fn default() -> Self {
        Self { rank: 16, alpha: 32.0, targets: Target::ALL.to_vec() }
    }
}

impl Lora {
    /// Checks the ranges.
    pub fn check(&self) -> Result<(), ParamError> {
        if self.rank == 0 {
            return Err(ParamError::new("lora.rank", "must be at least 1; leave `lora` out to train all weights"));
        }
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            return Err(ParamError::new("lora.alpha", "must be above 0"));
        }
        if self.targets.is_empty() {
            return Err(ParamError::new("lora.targets", "names no map; leave it out to adapt them all"));
        }
        let repeated = self.targets.iter().enumerate().find(|(place, target)| self.targets[..*place].contains(target));
        if let Some((_, target)) = repeated {
            return Err(ParamError::new("lora.targets", format!("names `{}` twice", target.name())));
        }
        Ok(())
    }

    fn config(&self) -> LoraConfig {
        let targets = self.targets.iter().map(|target| target.name().to_owned()).collect();
        LoraConfig { rank: self.rank, alpha: self.alpha, targets }
    }
}

/// The local model to start from, under a new adapter where one is asked for.
pub(super) fn start(ctx: &Context, lora: Option<&Lora>) -> Result<Vlm, StageError> {
    let vlm = load(ctx)?;
    let Some(lora) = lora else { return Ok(vlm) };
    let adapted = vlm.with_new_adapter(&lora.config(), ctx.seed).map_err(model_error)?;
    let values: usize = adapted.weights().trainable(true).iter().map(|(_, var)| var.as_tensor().elem_count()).sum();
    let maps = adapted.weights().adapter().map_or(0, mpcc_models::lora::Adapter::len);
    ctx.info(format!("an adapter of {maps} maps: {values} values beside {}", adapted.weights().count()));
    Ok(adapted)
}

/// Writes the trained model, its adapter merged, and the adapter by itself.
pub(super) fn save(vlm: &Vlm, dir: &Path) -> Result<(), StageError> {
    vlm.save(dir).map_err(model_error)?;
    match vlm.weights().adapter() {
        Some(adapter) => adapter.save(&dir.join(FOLDER)).map_err(model_error),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Lora, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn names_are_those_of_checkpoints() {
        for target in Target::ALL {
            assert_eq!(serde_json::to_value(target).unwrap(), target.name());
        }
    }

    #[test]
    fn what_is_left_out_takes_its_default() {
        assert_eq!(read("{}").unwrap(), Lora::default());
        let few = read(r#"{ "rank": 4, "targets": ["q_proj", "v_proj"] }"#).unwrap();
        assert_eq!(few.config().targets, ["q_proj", "v_proj"]);
        assert_eq!((few.rank, few.alpha), (4, 32.0));
        assert!(few.check().is_ok());
        assert!(read(r#"{ "targets": ["w_proj"] }"#).unwrap_err().to_string().contains("unknown variant `w_proj`"));
    }

    #[test]
    fn settings_without_sense_are_refused() {
        let refused = |text: &str| read(text).unwrap().check().unwrap_err().param;
        assert_eq!(refused(r#"{ "rank": 0 }"#), "lora.rank");
        assert_eq!(refused(r#"{ "alpha": 0 }"#), "lora.alpha");
        assert_eq!(refused(r#"{ "targets": [] }"#), "lora.targets");
        assert_eq!(refused(r#"{ "targets": ["q_proj", "o_proj", "q_proj"] }"#), "lora.targets");
    }
}
