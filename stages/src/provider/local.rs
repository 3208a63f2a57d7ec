//! Models that run in this process: loading, prompts, tokens.

use mpcc_engine::resources::CpuLevel;
use mpcc_engine::stage::{Context, ModelInput, StageError};
use mpcc_models::chat::{Part, Role, Turn};
use mpcc_models::device::DeviceChoice;
use mpcc_models::vlm::{Form, LoadOptions, Prompt, Vlm};

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

/// What weights are loaded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To answer and score.
    Answer,
    /// To be trained, too.
    Train,
}

/// Loads the weights of a local model.
pub fn load_local(ctx: &Context, model: &ModelInput, purpose: Purpose) -> Result<Vlm, StageError> {
    let dir =
        model.dir.as_deref().ok_or_else(|| StageError::invalid(format!("model `{}` has no directory", model.name)))?;
    let device = ctx.devices.first().map_or(DeviceChoice::Cpu, |device| DeviceChoice::Cuda(*device));
    let form = form(model, device, purpose)?;
    let options = LoadOptions { threads: ctx.threads, form, device, ..LoadOptions::default() };
    Vlm::load(dir, &options).map_err(model_error)
}

/// The numerics class of this process: answers may differ between devices and CPU levels in the last bits.
pub(crate) fn numerics(ctx: &Context) -> String {
    if ctx.devices.is_empty() { format!("cpu/{}", CpuLevel::detect()) } else { "cuda".to_owned() }
}

/// How the weights are held: `dtype:` of the model. Left out, it is bf16 on a GPU, and on the CPU what loses nothing. Training on the CPU is
/// in f32 whatever a model is held in elsewhere.
fn form(model: &ModelInput, device: DeviceChoice, purpose: Purpose) -> Result<Form, StageError> {
    let asked = match model.settings.get("dtype").and_then(serde_json::Value::as_str) {
        None => None,
        Some("f32") => Some(Form::F32),
        Some("bf16") => Some(Form::Bf16),
        Some("q8") => Some(Form::Q8),
        Some(other) => {
            let message = format!("model `{}`: dtype `{other}` is none of f32, bf16, q8", model.name);
            return Err(StageError::invalid(message));
        }
    };
    Ok(match (device, purpose) {
        (DeviceChoice::Cpu, Purpose::Train) => Form::F32,
        (DeviceChoice::Cpu, Purpose::Answer) => asked.unwrap_or(Form::AsStored),
        (DeviceChoice::Cuda(_), _) => asked.unwrap_or(Form::Bf16),
    })
}

/// A model's error as the stage's.
pub fn model_error(error: mpcc_models::ModelError) -> StageError {
    StageError::invalid(error.to_string())
}
