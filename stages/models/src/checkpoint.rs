//! Files of a model directory in Hugging Face layout: JSON beside one or several safetensors files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use crate::error::{ModelError, Result};

/// The JSON of a file, or `None` where there is no such file.
///
/// # Errors
/// When the file is there but cannot be read or is no JSON.
pub fn read_json_if_there(path: &Path) -> Result<Option<Value>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ModelError::Read { path: path.into(), source }),
    };
    let value = serde_json::from_slice(&bytes);
    value.map(Some).map_err(|error| ModelError::File { path: path.into(), message: error.to_string() })
}

/// Writes JSON with two spaces of indentation and a last line break.
///
/// # Errors
/// When the file cannot be written.
pub fn write_json(path: &Path, value: &Value) -> Result<()> {
    write(path, format!("{value:#}\n").as_bytes())
}

/// Writes bytes.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).map_err(|source| ModelError::Write { path: path.into(), source })
}

/// Writes tensors as one safetensors file; equal tensors give equal bytes.
///
/// # Errors
/// When a tensor cannot be read back from its device or the file cannot be written.
#[allow(clippy::disallowed_types, reason = "the file format's writer takes a HashMap; it holds one key")]
pub fn write_tensors(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(tensors, Some(metadata), path)
        .map_err(|error| ModelError::File { path: path.into(), message: error.to_string() })
}

/// Writes the weights of a model directory: one file, or several of at most `limit` bytes (unless one tensor alone has more) and
/// the index that lists them.
///
/// # Errors
/// As [`write_tensors`].
pub fn write_weights(dir: &Path, tensors: &BTreeMap<String, Tensor>, limit: Option<usize>) -> Result<()> {
    let bytes = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
    let total: usize = tensors.values().map(bytes).sum();
    if limit.is_none_or(|limit| total <= limit) {
        return write_tensors(&dir.join("model.safetensors"), tensors);
    }
    let (mut shards, mut room): (Vec<BTreeMap<String, Tensor>>, usize) = (vec![], 0);
    for (name, tensor) in tensors {
        let size = bytes(tensor);
        if shards.is_empty() || size > room {
            shards.push(BTreeMap::new());
            room = limit.unwrap_or(usize::MAX);
        }
        room = room.saturating_sub(size);
        shards.last_mut().expect("one was pushed").insert(name.clone(), tensor.clone());
    }
    let mut map = serde_json::Map::new();
    for (index, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", index + 1, shards.len());
        write_tensors(&dir.join(&file), shard)?;
        map.extend(shard.keys().map(|name| (name.clone(), Value::from(file.as_str()))));
    }
    let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": map });
    write_json(&dir.join("model.safetensors.index.json"), &index)
}

/// The tensors of a model directory, mapped and read one at a time.
pub struct TensorFiles {
    files: MmapedSafetensors,
    names: BTreeSet<String>,
    dir: PathBuf,
}

impl TensorFiles {
    /// Opens `model.safetensors`, or the files that `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// When neither is there or a file is damaged.
    pub fn open(dir: &Path) -> Result<TensorFiles> {
        TensorFiles::map(dir, &weight_files(dir)?)
    }

    /// Opens one file.
    ///
    /// # Errors
    /// When it is not there or damaged.
    pub fn open_file(path: &Path) -> Result<TensorFiles> {
        TensorFiles::map(path, &[path.to_owned()])
    }

    /// Opens `adapter_model.safetensors`.
    ///
    /// # Errors
    /// When it is not there or damaged.
    pub fn open_adapter(dir: &Path) -> Result<TensorFiles> {
        TensorFiles::map(dir, &[dir.join("adapter_model.safetensors")])
    }

    #[allow(unsafe_code, reason = "maps weight files instead of copying gigabytes; they are not changed while open")]
    fn map(dir: &Path, paths: &[PathBuf]) -> Result<TensorFiles> {
        // SAFETY: model directories are read-only artifacts; nobody truncates them while a model loads.
        let files = unsafe { MmapedSafetensors::multi(paths) }
            .map_err(|error| ModelError::File { path: dir.into(), message: error.to_string() })?;
        let names = files.tensors().into_iter().map(|(name, _)| name).collect();
        Ok(TensorFiles { files, names, dir: dir.into() })
    }

    /// The names in the files.
    pub fn names(&self) -> &BTreeSet<String> {
        &self.names
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Shape, type and bytes of a tensor, its data unread.
    pub fn describe(&self, name: &str) -> Option<(Vec<usize>, String, usize)> {
        let view = self.files.get(name).ok()?;
        Some((view.shape().to_vec(), format!("{:?}", view.dtype()), view.data().len()))
    }

    /// The first of `names` that exists.
    pub fn find<'n>(&self, names: &'n [String]) -> Option<&'n str> {
        names.iter().find(|name| self.names.contains(*name)).map(String::as_str)
    }

    /// The first of `names` that exists.
    ///
    /// # Errors
    /// When none exists.
    pub fn must_find<'n>(&self, names: &'n [String]) -> Result<&'n str> {
        self.find(names).ok_or_else(|| ModelError::Weight {
            name: names[0].clone(),
            message: format!("missing in {} ({} tensors there)", self.dir.display(), self.names.len()),
        })
    }

    /// Reads a tensor.
    ///
    /// # Errors
    /// When it does not exist or its data cannot be read.
    pub fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = self.files.load(name, &Device::Cpu);
        let tensor = tensor.map_err(|error| ModelError::Weight { name: name.into(), message: error.to_string() })?;
        Ok(tensor.to_dtype(dtype)?.to_device(device)?)
    }
}

fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let single = dir.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let index = dir.join("model.safetensors.index.json");
    let Some(value) = read_json_if_there(&index)? else {
        let message = "holds neither model.safetensors nor model.safetensors.index.json";
        return Err(ModelError::File { path: dir.into(), message: message.into() });
    };
    let map = value["weight_map"]
        .as_object()
        .ok_or_else(|| ModelError::File { path: index, message: "`weight_map` is missing".into() })?;
    let files: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    Ok(files.into_iter().map(|file| dir.join(file)).collect())
}
