//! Models that run in this process: loading, prompts, tokens.

use mpcc_engine::resources::CpuLevel;
use mpcc_engine::stage::{Context, ModelInput, StageError};
use mpcc_models::DType;
use mpcc_models::chat::{Part, Role, Turn};
use mpcc_models::device::DeviceChoice;
use mpcc_models::vlm::{LoadOptions, Prompt, Vlm};

/// Token ids of a continuation; one that is `closed` ends the turn.
///
/// # Errors
/// The tokenizer refuses the text.
pub(crate) fn continuation_ids(vlm: &Vlm, text: &str, closed: bool) -> Result<Vec<u32>, StageError> {
    let mut ids = encode(vlm, text)?;
    if closed {
        ids.extend(vlm.eos().first());
    }
    Ok(ids)
}

/// Token ids of `text`; an empty text has none.
pub fn encode(vlm: &Vlm, text: &str) -> Result<Vec<u32>, StageError> {
    vlm.encode(text).map_err(model_error)
}

/// A prompt of an optional system turn and one user turn: pictures first, then text.
pub fn prompt(vlm: &Vlm, system: Option<&str>, user: &str, images: &[image::RgbImage]) -> Result<Prompt, StageError> {
    let mut turns = Vec::new();
    turns.extend(system.map(|text| Turn { role: Role::System, parts: vec![Part::Text(text.to_owned())] }));
    let mut parts: Vec<Part> = images.iter().map(|_| Part::Image).collect();
    parts.push(Part::Text(user.to_owned()));
    turns.push(Turn { role: Role::User, parts });
    vlm.prompt(&turns, images, true).map_err(model_error)
}

/// Loads the weights of a local model.
pub fn load_local(ctx: &Context, model: &ModelInput) -> Result<Vlm, StageError> {
    let dir =
        model.dir.as_deref().ok_or_else(|| StageError::invalid(format!("model `{}` has no directory", model.name)))?;
    let (device, dtype) = match ctx.devices.first() {
        Some(device) => (DeviceChoice::Cuda(*device), dtype(model)?),
        None => (DeviceChoice::Cpu, DType::F32),
    };
    let options = LoadOptions { threads: ctx.threads, dtype, device, ..LoadOptions::default() };
    Vlm::load(dir, &options).map_err(model_error)
}

/// The numerics class of this process: answers may differ between devices and CPU levels in the last bits.
pub(crate) fn numerics(ctx: &Context) -> String {
    if ctx.devices.is_empty() { format!("cpu/{}", CpuLevel::detect()) } else { "cuda".to_owned() }
}

/// The type of the weights on a GPU: `dtype:` of the model, bf16 by default. On the CPU f32 is both exact and fastest.
fn dtype(model: &ModelInput) -> Result<DType, StageError> {
    match model.settings.get("dtype").and_then(serde_json::Value::as_str) {
        None | Some("bf16") => Ok(DType::BF16),
        Some("f32") => Ok(DType::F32),
        Some(other) => {
            Err(StageError::invalid(format!("model `{}`: dtype `{other}` is neither bf16 nor f32", model.name)))
        }
    }
}

/// A model's error as the stage's.
pub fn model_error(error: mpcc_models::ModelError) -> StageError {
    StageError::invalid(error.to_string())
}
