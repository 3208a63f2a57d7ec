//! `mpcc model convert` and `merge-adapter`: a model's directory, written anew.

use std::path::{Path, PathBuf};

use mpcc_stages::models::DType;
use mpcc_stages::models::survey::Survey;
use mpcc_stages::models::vlm::Vlm;
use serde_json::json;

use super::args::{ConvertArgs, Device, DeviceArgs, Dtype, Held, MergeArgs, WriteArgs};
use super::place::{find, load};
use crate::commands::Answer;
use crate::report::{DONE, Failure};
use crate::ui::say;

/// Rewrites a model.
pub(super) fn convert(args: &ConvertArgs) -> Answer {
    let dir = find(&args.place.model)?;
    let out = Output::new(&args.out)?;
    let (vlm, _) = load(&dir, &args.place, &on_cpu())?;
    out.write(&vlm, dtype(&dir, &args.write)?, &args.write, None)
}

/// Merges an adapter.
pub(super) fn merge(args: &MergeArgs) -> Answer {
    let dir = find(&args.place.model)?;
    let out = Output::new(&args.out)?;
    if !args.adapter.is_dir() {
        let path = args.adapter.display();
        return Err(Failure::wrong(format_args!("there is no folder {path}; an adapter is a folder in PEFT's layout")));
    }
    // In f32: the update is added before anything is rounded.
    let (vlm, _) = load(&dir, &args.place, &DeviceArgs { dtype: Some(Held::F32), ..on_cpu() })?;
    let adapted = vlm.with_adapter(&args.adapter)?;
    let pairs = adapted.weights().adapter().map_or(0, |adapter| adapter.len());
    out.write(&adapted.merged()?, dtype(&dir, &args.write)?, &args.write, Some(pairs))
}

/// Weights are only read and written.
fn on_cpu() -> DeviceArgs {
    DeviceArgs { device: Some(Device::Cpu), ..DeviceArgs::default() }
}

/// The type to write: the one asked for, else that of most tensors where it is one of ours, else f32.
fn dtype(dir: &Path, args: &WriteArgs) -> Result<DType, Failure> {
    Ok(match args.dtype {
        Some(Dtype::F32) => DType::F32,
        Some(Dtype::Bf16) => DType::BF16,
        None if Survey::of(dir)?.1.main_dtype() == Some("BF16") => DType::BF16,
        None => DType::F32,
    })
}

/// A folder that appears when it is complete.
struct Output {
    path: PathBuf,
    part: PathBuf,
}

impl Output {
    /// Refuses a folder that holds something.
    fn new(path: &Path) -> Result<Output, Failure> {
        let path = std::path::absolute(path).map_err(|error| Failure::io(path, &error))?;
        let free = match std::fs::read_dir(&path) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        };
        if !free {
            let shown = path.display();
            return Err(Failure::wrong(format_args!(
                "{shown} is there already; name a folder that is not, or is empty"
            )));
        }
        let name = path.file_name().ok_or_else(|| Failure::wrong("the folder to write has no name"))?;
        let part = path.with_file_name(format!(".{}.part", name.to_string_lossy()));
        Ok(Output { path, part })
    }

    fn write(&self, vlm: &Vlm, dtype: DType, args: &WriteArgs, pairs: Option<usize>) -> Answer {
        let io = |error: std::io::Error| Failure::io(&self.path, &error);
        if self.part.exists() {
            // What an earlier call left when it was killed.
            std::fs::remove_dir_all(&self.part).map_err(io)?;
        }
        let limit = usize::try_from(args.shard).unwrap_or(usize::MAX);
        let written = vlm.save_as(&self.part, Some(dtype), Some(limit)).map_err(Failure::from);
        if let Err(failure) = written.and_then(|()| std::fs::rename(&self.part, &self.path).map_err(io)) {
            let _ = std::fs::remove_dir_all(&self.part);
            return Err(failure);
        }
        let weights = std::fs::read_dir(&self.path).map_err(io)?.filter_map(Result::ok);
        let files = weights.filter(|entry| entry.path().extension().is_some_and(|end| end == "safetensors")).count();
        let (path, values, name) = (self.path.display(), vlm.weights().count(), dtype.as_str());
        if args.json {
            say(json!({
                "written": self.path, "values": values, "dtype": name, "weight_files": files, "merged_pairs": pairs,
            }));
        } else {
            let merged = pairs.map_or_else(String::new, |pairs| format!(", {pairs} pairs of the adapter merged"));
            say(format_args!("{path}: {values} values as {name} in {files} weight files{merged}"));
        }
        Ok(DONE)
    }
}
