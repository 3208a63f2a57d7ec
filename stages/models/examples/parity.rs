//! Compares model directories with what PyTorch computed with them: `parity PICTURE QUESTION DIR...`.
//!
//! Each folder holds a model, `ref.safetensors` (`input_ids`, `pixel_values`, `logits`, `gen_ids` of the question about the picture) and
//! `prompt.txt`, the rendered conversation.

use std::path::Path;
use std::sync::Arc;

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use mpcc_models::chat::{Part, Role, Turn};
use mpcc_models::generate::GenerateRequest;
use mpcc_models::ops::Segments;
use mpcc_models::sample::Sampling;
use mpcc_models::vlm::{LoadOptions, Packed, Prompt, Vlm};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [picture, question, dirs @ ..] = arguments.as_slice() else {
        return Err("usage: parity PICTURE QUESTION DIR...".into());
    };
    let image = mpcc_models::image::decode(&std::fs::read(picture)?)?;
    let turns = [Turn { role: Role::User, parts: vec![Part::Image, Part::Text(question.clone())] }];
    for dir in dirs.iter().map(Path::new) {
        let vlm = Vlm::load(dir, &LoadOptions::default())?;
        let prompt = vlm.prompt(&turns, std::slice::from_ref(&image), true)?;
        report(dir, &vlm, prompt)?;
    }
    Ok(())
}

#[allow(unsafe_code, reason = "maps a file that nothing changes")]
fn report(dir: &Path, vlm: &Vlm, mut prompt: Prompt) -> Outcome<()> {
    let files = unsafe { MmapedSafetensors::new(dir.join("ref.safetensors"))? };
    let load = |name: &str| -> Outcome<Tensor> { Ok(files.load(name, &Device::Cpu)?) };
    let ids: Vec<i64> = load("input_ids")?.flatten_all()?.to_vec1()?;
    let same_ids = ids.iter().map(|id| *id as u32).eq(prompt.ids.iter().copied());
    let same_text = std::fs::read_to_string(dir.join("prompt.txt"))? == prompt.text;
    let theirs = rows(&load("pixel_values")?, &prompt.images[0].pixels)?;
    let pixels = (&prompt.images[0].pixels - &theirs)?.abs()?;
    let (mean, most) = (pixels.mean_all()?.to_scalar::<f32>()?, pixels.max_all()?.to_scalar::<f32>()?);
    let expected = load("logits")?.squeeze(0)?.to_dtype(DType::F32)?;
    let own = (logits(vlm, &prompt)? - &expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
    // Their pixels, so that the model alone is compared.
    prompt.images[0].pixels = theirs;
    let model = (logits(vlm, &prompt)? - &expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
    let greedy: Vec<i64> = load("gen_ids")?.flatten_all()?.to_vec1()?;
    let sampling = Sampling::greedy(greedy.len());
    let answer = vlm.complete(GenerateRequest { prompt: Arc::new(prompt), sampling, seeds: vec![0] })?.remove(0);
    let equal = answer.ids.iter().zip(&greedy).take_while(|(a, b)| i64::from(**a) == **b).count();
    println!(
        "{}: text {same_text}, ids {same_ids}, pixels {most:.1e} (mean {mean:.1e}), logits {own:.1e}, \
         with their pixels {model:.1e}, greedy {equal} of {}{}",
        dir.display(),
        greedy.len(),
        if answer.finished { ", an end token reached" } else { "" }
    );
    Ok(())
}

/// Processed values in the order of our rows.
fn rows(values: &Tensor, ours: &Tensor) -> Outcome<Tensor> {
    let (_, width) = ours.dims2()?;
    if values.dims() == ours.dims() {
        return Ok(values.clone());
    }
    let values = if values.rank() == 5 { values.squeeze(0)? } else { values.clone() };
    let (tiles, channels, high, wide) = values.dims4()?;
    let patch = ((width / channels) as f64).sqrt() as usize;
    let cut = values.reshape(&[tiles, channels, high / patch, patch, wide / patch, patch][..])?;
    let cut = cut.permute([0, 2, 4, 1, 3, 5])?.contiguous()?.reshape(((), width))?;
    Ok(cut.narrow(0, 0, ours.dim(0)?)?)
}

fn logits(vlm: &Vlm, prompt: &Prompt) -> Outcome<Tensor> {
    let packed = Packed {
        ids: prompt.ids.clone(),
        positions: prompt.positions.clone(),
        segments: Arc::new(Segments::causal([prompt.ids.len()])?),
        images: prompt.images.clone(),
    };
    Ok(vlm.model().forward(&packed, None)?.matmul(&vlm.model().head().t()?)?)
}
