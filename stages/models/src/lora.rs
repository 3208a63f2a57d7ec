//! Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! An adapted matrix is `W + scale B A`, `scale` being `alpha / rank` (or `alpha / sqrt(rank)`). A packed matrix has one pair for each part
//! that has one on disk, so adapters fit checkpoints of any tool. The sum is formed before the forward pass, so every op serves
//! adapted models, whatever their family: training costs the gradient of the whole matrix for a moment, but state for A and B alone.
//! While B is zero the sum is W itself and takes no memory.
//!
//! Keys may follow either layout that transformers had (`base_model.model.model.layers.N...`,
//! `base_model.model.model.language_model.layers.N...`); every name that a weight is found under counts. We write the later one.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use serde_json::{Value, json};

use crate::checkpoint::{self, TensorFiles, read_json_if_there, write_json};
use crate::error::{ModelError, Result};
use crate::weights::{WeightSpec, normals};

/// What PEFT puts in front of a module's path.
const FRONT: &str = "base_model.model.";

/// Settings of a new adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Inner width.
    pub rank: usize,
    /// The update is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Last names of the language model's maps to adapt, such as `q_proj`.
    pub targets: Vec<String>,
}

/// The pair of one map.
#[derive(Debug, Clone)]
struct Pair {
    /// Path of the module in transformers.
    path: String,
    /// Rows of the variable that the pair updates.
    rows: Range<usize>,
    /// `[rank, in]`.
    a: Var,
    /// `[out, rank]`.
    b: Var,
}

impl Pair {
    /// Whether it changes nothing yet.
    fn is_new(&self) -> Result<bool> {
        Ok(self.b.as_detached_tensor().to_dtype(DType::F32)?.abs()?.sum_all()?.to_scalar::<f32>()? == 0.0)
    }
}

/// Whether all pairs pass a test that may fail.
fn all(pairs: &[Pair], test: impl Fn(&Pair) -> Result<bool>) -> Result<bool> {
    for pair in pairs {
        if !test(pair)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A low-rank adapter of some of a model's weights.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Pairs of each adapted variable, in row order.
    pairs: BTreeMap<String, Vec<Pair>>,
    scale: f64,
    rank: usize,
}

impl Adapter {
    /// A fresh adapter, which changes nothing yet: A is drawn, B is zero.
    ///
    /// # Errors
    /// When no map of the language model has a name asked for, or the rank is zero.
    pub fn draw(
        specs: &[WeightSpec],
        config: &LoraConfig,
        seed: u64,
        dtype: DType,
        device: &Device,
    ) -> Result<Adapter> {
        if config.rank == 0 {
            return Err(ModelError::Setting("the rank of an adapter must be at least 1".into()));
        }
        let mut adapter =
            Adapter { pairs: BTreeMap::new(), scale: config.alpha / config.rank as f64, rank: config.rank };
        let mut missing: Vec<&String> = config.targets.iter().collect();
        for spec in specs.iter().filter(|spec| spec.name.starts_with("model.layers.") && spec.shape.len() == 2) {
            for (names, rows) in parts(spec) {
                let Some(target) =
                    config.targets.iter().find(|target| names[0].ends_with(&format!(".{target}.weight")))
                else {
                    continue;
                };
                missing.retain(|name| *name != target);
                let (path, width) = (module_path(names), spec.shape[1]);
                let values = normals(seed, &format!("{path}.lora_A"), config.rank * width, (width as f64).powf(-0.5));
                let a =
                    Tensor::from_vec(values, (config.rank, width), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?;
                let b = Tensor::zeros((rows.len(), config.rank), dtype, device)?;
                let pair = Pair { path, rows, a: Var::from_tensor(&a)?, b: Var::from_tensor(&b)? };
                adapter.pairs.entry(spec.name.clone()).or_default().push(pair);
            }
        }
        match missing.first() {
            Some(target) => {
                Err(ModelError::Setting(format!("no map of the language model's layers is named `{target}`")))
            }
            None if adapter.pairs.is_empty() => Err(ModelError::Setting("an adapter needs at least one target".into())),
            None => Ok(adapter),
        }
    }

    /// Reads an adapter for a model with these weights.
    ///
    /// # Errors
    /// When a file is missing or damaged, the adapter is of a kind that is not supported, or a pair fits no weight of the model.
    pub fn read(dir: &Path, specs: &[WeightSpec], dtype: DType, device: &Device) -> Result<Adapter> {
        let path = dir.join("adapter_config.json");
        let config = read_json_if_there(&path)?
            .ok_or_else(|| ModelError::File { path: dir.into(), message: "holds no adapter_config.json".into() })?;
        let (alpha, rank, rooted) = settings(&config).map_err(|message| ModelError::File { path, message })?;
        let scale = alpha / if rooted { (rank as f64).sqrt() } else { rank as f64 };
        let files = TensorFiles::open_adapter(dir)?;
        let mut places: BTreeMap<&str, (&WeightSpec, Range<usize>, &[String])> = BTreeMap::new();
        for spec in specs.iter().filter(|spec| !spec.kept && spec.shape.len() == 2) {
            for (names, rows) in parts(spec) {
                names.iter().for_each(|name| {
                    places.insert(name, (spec, rows.clone(), names));
                });
            }
        }
        let mut adapter = Adapter { pairs: BTreeMap::new(), scale, rank };
        for key in files.names().iter().filter(|key| !key.ends_with(".lora_B.weight")) {
            let fits = key.strip_suffix(".lora_A.weight").and_then(|module| {
                let name = format!("{}.weight", module.strip_prefix(FRONT).unwrap_or(module));
                Some((module, places.get(name.as_str())?.clone()))
            });
            let Some((module, (spec, rows, names))) = fits else {
                let message = "fits no weight of the model that the adapter is put on";
                return Err(ModelError::Weight { name: key.clone(), message: message.into() });
            };
            let load = |half: &str, shape: [usize; 2]| {
                let key = format!("{module}.lora_{half}.weight");
                let tensor = files.load(files.must_find(std::slice::from_ref(&key))?, dtype, device)?;
                if tensor.dims() != shape {
                    let message = format!("has shape {:?}, the model and rank {rank} ask for {shape:?}", tensor.dims());
                    return Err(ModelError::Weight { name: key, message });
                }
                Ok(Var::from_tensor(&tensor)?)
            };
            let (a, b) = (load("A", [rank, spec.shape[1]])?, load("B", [rows.len(), rank])?);
            let pair = Pair { path: module_path(names), rows, a, b };
            adapter.pairs.entry(spec.name.clone()).or_default().push(pair);
        }
        if adapter.pairs.is_empty() {
            let message = format!("none of its {} tensors is a pair of an adapter", files.names().len());
            return Err(ModelError::File { path: dir.join("adapter_model.safetensors"), message });
        }
        adapter.pairs.values_mut().for_each(|pairs| pairs.sort_by_key(|pair| pair.rows.start));
        Ok(adapter)
    }

    /// Writes the adapter so that PEFT loads it onto the model of transformers.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(|source| ModelError::Write { path: dir.into(), source })?;
        let pairs = || self.pairs.values().flatten();
        let mut paths: Vec<&str> = pairs().map(|pair| pair.path.as_str()).collect();
        paths.sort_unstable();
        let config = json!({
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "lora_alpha": self.scale * self.rank as f64,
            "lora_dropout": 0.0,
            "peft_type": "LORA",
            "r": self.rank,
            "target_modules": paths,
            "task_type": null,
            "use_dora": false,
            "use_rslora": false,
        });
        write_json(&dir.join("adapter_config.json"), &config)?;
        let named = |pair: &Pair, half: &str, var: &Var| {
            (format!("{FRONT}{}.lora_{half}.weight", pair.path), var.as_tensor().clone())
        };
        let tensors = pairs().flat_map(|pair| [named(pair, "A", &pair.a), named(pair, "B", &pair.b)]).collect();
        checkpoint::write_tensors(&dir.join("adapter_model.safetensors"), &tensors)
    }

    /// What is added to a variable of `rows` rows, if it is adapted; detached where it is frozen, and then nothing while B is zero.
    pub(crate) fn update(&self, name: &str, rows: usize, frozen: bool) -> Result<Option<Tensor>> {
        let Some(pairs) = self.pairs.get(name) else { return Ok(None) };
        if frozen && all(pairs, Pair::is_new)? {
            return Ok(None);
        }
        let (mut blocks, mut next) = (Vec::new(), 0);
        let zeros = |rows: usize, like: &Tensor| Tensor::zeros((rows, like.dim(1)?), like.dtype(), like.device());
        for pair in pairs {
            if pair.rows.start > next {
                blocks.push(zeros(pair.rows.start - next, pair.a.as_tensor())?);
            }
            let half = |var: &Var| if frozen { var.as_detached_tensor() } else { var.as_tensor().clone() };
            blocks.push((half(&pair.b).matmul(&half(&pair.a))? * self.scale)?);
            next = pair.rows.end;
        }
        if next < rows {
            blocks.push(zeros(rows - next, pairs[0].a.as_tensor())?);
        }
        Ok(Some(if blocks.len() == 1 { blocks.remove(0) } else { Tensor::cat(&blocks, 0)? }))
    }

    /// A copy that shares no memory with this one.
    pub(crate) fn deep_copy(&self) -> Result<Adapter> {
        let mut copy = self.clone();
        for pair in copy.pairs.values_mut().flatten() {
            pair.a = Var::from_tensor(&pair.a.as_tensor().copy()?)?;
            pair.b = Var::from_tensor(&pair.b.as_tensor().copy()?)?;
        }
        Ok(copy)
    }

    /// The variables that training changes, by name; a name begins with that of the adapted variable.
    pub(crate) fn vars(&self) -> BTreeMap<String, Var> {
        let named = |name: &str, pair: &Pair| {
            let front = format!("{name}.{}", pair.rows.start);
            [(format!("{front}.lora_A"), pair.a.clone()), (format!("{front}.lora_B"), pair.b.clone())]
        };
        self.pairs.iter().flat_map(|(name, pairs)| pairs.iter().flat_map(move |pair| named(name, pair))).collect()
    }

    /// Number of adapted maps.
    pub fn len(&self) -> usize {
        self.pairs.values().map(Vec::len).sum()
    }

    /// Whether nothing is adapted.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }
}

/// Names and rows of what a variable holds: its parts, and the whole where some checkpoints have it in one tensor.
fn parts(spec: &WeightSpec) -> impl Iterator<Item = (&[String], Range<usize>)> {
    let mut next = 0;
    let parts = spec.parts.iter().map(move |(names, shape)| {
        let rows = next..next + shape[0];
        next = rows.end;
        (names.as_slice(), rows)
    });
    parts.chain(spec.fused.iter().map(|(names, shape)| (names.as_slice(), 0..shape[0])))
}

/// Where transformers 5 has the module of a weight with these names.
fn module_path(names: &[String]) -> String {
    let name = names.iter().rev().find(|name| name.starts_with("model.")).unwrap_or(&names[0]);
    name.trim_end_matches(".weight").to_owned()
}

/// Alpha, rank, and whether the scale divides by the root of the rank.
fn settings(config: &Value) -> std::result::Result<(f64, usize, bool), String> {
    if config["peft_type"].as_str().is_some_and(|kind| kind != "LORA") {
        return Err(format!("`peft_type` is {}; only LORA is supported", config["peft_type"]));
    }
    let given = |key: &str| match &config[key] {
        Value::Null | Value::Bool(false) => false,
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::String(word) => word != "none",
        _ => true,
    };
    let refused = [
        "use_dora",
        "use_qalora",
        "fan_in_fan_out",
        "modules_to_save",
        "bias",
        "rank_pattern",
        "alpha_pattern",
        "trainable_token_indices",
        "target_parameters",
        "layer_replication",
    ];
    if let Some(key) = refused.iter().find(|key| given(key)) {
        return Err(format!("`{key}` is {}, which is not supported", config[*key]));
    }
    let rank = config["r"].as_u64().filter(|rank| *rank > 0).ok_or("`r` must be a whole number above 0")? as usize;
    let alpha = config["lora_alpha"].as_f64().ok_or("`lora_alpha` must be a number")?;
    Ok((alpha, rank, config["use_rslora"] == true))
}

#[cfg(test)]
mod tests {
    use candle_core::Storage;

    use super::*;
    use crate::weights::{Init, Weights};

    const NAME: &str = "model.layers.0.self_attn.q_proj.weight";

    /// Where a tensor's values lie.
    fn place(tensor: &Tensor) -> *const f32 {
        match &*tensor.storage_and_layout().0 {
            Storage::Cpu(cpu) => cpu.as_slice::<f32>().unwrap().as_ptr(),
            _ => unreachable!("drawn on the CPU"),
        }
    }

    #[test]
    fn a_new_adapter_takes_no_second_copy_of_a_weight() {
        let spec = WeightSpec::plain(vec![NAME.to_owned()], vec![4, 6], Init::Normal(1.0));
        let base = Weights::draw(vec![spec], 1, DType::F32, &Device::Cpu).unwrap();
        let config = LoraConfig { rank: 2, alpha: 4.0, targets: vec!["q_proj".to_owned()] };
        let adapter = Adapter::draw(base.specs(), &config, 1, DType::F32, &Device::Cpu).unwrap();
        let adapted = base.adapted(adapter);
        let below = base.get(NAME, true).unwrap();
        assert_eq!(place(&adapted.get(NAME, true).unwrap()), place(&below));
        let second = &adapted.state()[&format!("{NAME}.0.lora_B")];
        second.set(&Tensor::ones((4, 2), DType::F32, &Device::Cpu).unwrap()).unwrap();
        let sum = adapted.get(NAME, true).unwrap();
        assert_ne!(place(&sum), place(&below));
        assert_ne!(sum.to_vec2::<f32>().unwrap(), below.to_vec2::<f32>().unwrap());
    }
}
