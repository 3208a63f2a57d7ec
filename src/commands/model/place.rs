//! Where a model lies, and how it and its pictures are brought into memory.

use std::path::{Path, PathBuf};
use std::time::Instant;

use mpcc_engine::plan::hub_snapshot;
use mpcc_stages::models::DType;
use mpcc_stages::models::device::{BUILT, DeviceChoice};
use mpcc_stages::models::image::{self, RgbImage};
use mpcc_stages::models::vlm::infer::EngineChoice;
use mpcc_stages::models::vlm::{LoadOptions, Vlm};

use super::args::{Device, DeviceArgs, Dtype, PlaceArgs};
use crate::environment::hub_cache;
use crate::report::Failure;
use crate::ui::complain;

/// The revision of an id that names none.
const MAIN: &str = "main";

/// The folder that was meant: one that is there, else a checkpoint in the Hugging Face cache.
pub(super) fn find(model: &str) -> Result<PathBuf, Failure> {
    let dir = PathBuf::from(model);
    if dir.is_dir() {
        return Ok(dir);
    }
    let Some((id, revision)) = hub_id(model) else {
        return Err(Failure::wrong(format_args!(
            "there is no folder {model}; a model is a folder in Hugging Face layout, or `org/name[@revision]`"
        )));
    };
    let cache = hub_cache();
    let found = cache.as_deref().and_then(|cache| hub_snapshot(cache, id, revision));
    found.ok_or_else(|| not_downloaded(model, id, revision, cache.as_deref()))
}

/// `org/name[@revision]`.
pub(super) fn hub_id(text: &str) -> Option<(&str, &str)> {
    let (id, revision) = text.split_once('@').unwrap_or((text, MAIN));
    let (org, name) = id.split_once('/')?;
    let plain = |part: &str| {
        let of_ids = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(of_ids)
    };
    (plain(org) && plain(name) && !revision.is_empty()).then_some((id, revision))
}

fn not_downloaded(model: &str, id: &str, revision: &str, cache: Option<&Path>) -> Failure {
    let place = place_of(id, cache);
    Failure::wrong(format_args!(
        "there is no folder {model}, and checkpoint {id} (revision {revision}) is not in the Hugging Face cache.\n\
         Looked for {place}/snapshots/COMMIT/config.json, where COMMIT is `{revision}` or what {place}/refs/{revision} holds.\n\
         `mpcc model download {id}@{revision}` brings it. {}",
        without_network(id, cache)
    ))
}

/// What to do where there is no network.
pub(super) fn without_network(id: &str, cache: Option<&Path>) -> String {
    let (folder, place) = (folder_of(id), place_of(id, cache));
    format!(
        "Without a network: run it where there is one, copy the folder {folder} of that cache to {place}, or set HF_HUB_CACHE to a \
         folder that holds {folder}."
    )
}

fn folder_of(id: &str) -> String {
    format!("models--{}", id.replace('/', "--"))
}

fn place_of(id: &str, cache: Option<&Path>) -> String {
    cache.map_or_else(|| PathBuf::from("$HF_HOME/hub"), Path::to_owned).join(folder_of(id)).display().to_string()
}

/// What a model is called: the last part of what was typed.
pub(super) fn name(model: &str) -> String {
    let id = if Path::new(model).is_dir() { model } else { hub_id(model).map_or(model, |(id, _)| id) };
    let absolute = std::path::absolute(id).unwrap_or_else(|_| PathBuf::from(id));
    absolute.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Threads as asked for, else one a CPU core.
pub(super) fn threads(args: &PlaceArgs) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    args.threads.map_or_else(cores, usize::from)
}

/// Loads a model; the seconds that it took.
pub(super) fn load(dir: &Path, args: &PlaceArgs, device: &DeviceArgs) -> Result<(Vlm, f64), Failure> {
    let started = Instant::now();
    let vlm = Vlm::load(dir, &options(args, device)?)?;
    Ok((vlm, started.elapsed().as_secs_f64()))
}

/// How a model is brought into memory. A GPU that is not there is a line where one would have been liked; where one was asked for, loading
/// ends with an error.
pub(super) fn options(args: &PlaceArgs, asked: &DeviceArgs) -> Result<LoadOptions, Failure> {
    let device = match asked.device {
        Some(Device::Cpu) => DeviceChoice::Cpu,
        Some(Device::Cuda(index)) => DeviceChoice::Cuda(index),
        None if !BUILT => DeviceChoice::Cpu,
        Some(Device::Auto) | None => {
            let (device, why) = DeviceChoice::preferred();
            let why = why.or_else(|| (!BUILT).then(|| "this build has no CUDA (docs/cuda.md)".to_owned()));
            if let Some(why) = why {
                complain(format_args!("warning: {}; computing on the CPU", why.lines().next().unwrap_or_default()));
            }
            device
        }
    };
    let cpu = device == DeviceChoice::Cpu;
    if cpu && asked.dtype == Some(Dtype::Bf16) && !asked.tensors {
        return Err(Failure::wrong(
            "--dtype bf16 on the CPU: it computes in f32 and would widen all weights again and again; \
             leave --dtype out, or see with --tensors what a GPU would compute",
        ));
    }
    let dtype = match asked.dtype {
        Some(Dtype::Bf16) => DType::BF16,
        None if !cpu => DType::BF16,
        Some(Dtype::F32) | None => DType::F32,
    };
    let engine = if asked.tensors { EngineChoice::Tensors } else { EngineChoice::ByDevice };
    Ok(LoadOptions { threads: threads(args), dtype, device, engine, ..LoadOptions::default() })
}

/// Reads a picture.
pub(super) fn picture(path: &Path) -> Result<RgbImage, Failure> {
    let bytes = std::fs::read(path).map_err(|error| Failure::wrong(format_args!("{}: {error}", path.display())))?;
    image::decode(&bytes).map_err(|error| Failure::wrong(format_args!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_folders_are_told_apart() {
        assert_eq!(hub_id("Qwen/Qwen2.5-VL-3B-Instruct"), Some(("Qwen/Qwen2.5-VL-3B-Instruct", "main")));
        assert_eq!(hub_id("a/b@v1.0"), Some(("a/b", "v1.0")));
        for path in ["models", "./models", "../a", "/a/b", "a/b/c", "a/b@", "a//b", "~/x", "a/.."] {
            assert_eq!(hub_id(path), None, "{path}");
        }
        assert_eq!(name("src"), "src");
        assert_eq!(name("a/b@v1"), "b");
    }

    #[test]
    fn what_is_not_there_is_told_with_its_place() {
        let told = not_downloaded("a/b@v1", "a/b", "v1", Some(Path::new("/hub"))).text;
        assert!(told.contains("/hub/models--a--b/refs/v1") && told.contains("mpcc model download a/b@v1"), "{told}");
    }
}
