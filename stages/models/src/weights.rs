//! The trainable state of a model: named variables.
//!
//! Names mirror the published checkpoint, except that projections which read the same row lie packed in one matrix (query, key and
//! value; gate and up): one multiplication instead of three or two. [`WeightSpec`] says how a packed matrix is assembled on reading
//! and split on writing. A frozen weight is handed out detached, so that no gradient is computed for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Device, Layout, Storage, StorageRef, Tensor, Var};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;

use crate::checkpoint::TensorFiles;
use crate::error::{ModelError, Result};
use crate::kernel::values::{Values, pack_q8};
use crate::lora::Adapter;

/// How a weight is drawn when a model is made anew.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All zero (biases).
    Zeros,
    /// All one (norms).
    Ones,
    /// Normal with this standard deviation.
    Normal(f64),
}

/// How weights are held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits with the exponent of f32. On the CPU they are multiplied as the f32 of the same value.
    Bf16,
    /// [`Form::Bf16`] where all tensors of the files are, else [`Form::F32`]: nothing is lost, and on the CPU answers are those of f32 to
    /// the bit.
    AsStored,
    /// The language model's matrices in eight bits ([`crate::kernel::values`]), the rest in f32: to answer and score with, on the CPU.
    Q8,
}

impl Form {
    /// The type of what is not packed.
    pub fn dtype(self) -> DType {
        match self {
            Form::Bf16 => DType::BF16,
            Form::F32 | Form::AsStored | Form::Q8 => DType::F32,
        }
    }

    /// The form that this one means for such files.
    pub(crate) fn of(self, files: &TensorFiles) -> Form {
        let bf16 = |name: &String| files.describe(name).is_some_and(|(_, dtype, _)| dtype == "BF16");
        match self {
            Form::AsStored if files.names().iter().all(bf16) => Form::Bf16,
            Form::AsStored => Form::F32,
            other => other,
        }
    }

    /// The name in options and settings.
    pub fn name(self) -> &'static str {
        match self {
            Form::F32 => "f32",
            Form::Bf16 => "bf16",
            Form::AsStored => "as stored",
            Form::Q8 => "q8",
        }
    }
}

/// One variable and the tensors of the checkpoint it is made of.
#[derive(Debug, Clone)]
pub struct WeightSpec {
    /// The variable's name.
    pub name: String,
    /// The variable's shape.
    pub shape: Vec<usize>,
    /// Checkpoint tensors stacked along the rows, each with all names it is known by (the one to write first) and its shape on disk.
    pub parts: Vec<(Vec<String>, Vec<usize>)>,
    /// One tensor on disk that holds all parts, as some checkpoints have it.
    pub fused: Option<(Vec<String>, Vec<usize>)>,
    /// The first draw.
    pub init: Init,
    /// Whether the tensor is of no use to us: read if it is there, written back, never trained.
    pub kept: bool,
}

impl WeightSpec {
    /// A variable that is one tensor of the checkpoint, under the given names.
    pub fn plain(names: Vec<String>, shape: Vec<usize>, init: Init) -> WeightSpec {
        WeightSpec {
            name: names[0].clone(),
            parts: vec![(names, shape.clone())],
            shape,
            fused: None,
            init,
            kept: false,
        }
    }

    fn read(&self, files: &TensorFiles, dtype: DType, device: &Device) -> Result<Tensor> {
        if let Some((names, shape)) = &self.fused
            && let Some(name) = files.find(names)
        {
            return Ok(load(files, name, shape, dtype, device)?.reshape(self.shape.as_slice())?);
        }
        let mut stacked = Vec::with_capacity(self.parts.len());
        for (names, shape) in &self.parts {
            let tensor = load(files, files.must_find(names)?, shape, dtype, device)?;
            stacked.push(tensor.reshape(self.part_shape(shape))?);
        }
        Ok(if stacked.len() == 1 { stacked.remove(0) } else { Tensor::cat(&stacked, 0)? })
    }

    /// The names on disk that reading looks at.
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.parts.iter().flat_map(|(names, _)| names).chain(self.fused.iter().flat_map(|(names, _)| names))
    }

    /// A part's shape inside the variable: the variable's own where it has one part, else its rows and the variable's other
    /// dimensions.
    fn part_shape(&self, disk: &[usize]) -> Vec<usize> {
        match self.parts.len() {
            1 => self.shape.clone(),
            _ => std::iter::once(disk[0]).chain(self.shape[1..].iter().copied()).collect(),
        }
    }

    fn split(&self, tensor: &Tensor) -> Result<Vec<(String, Tensor)>> {
        if let [(names, shape)] = self.parts.as_slice() {
            return Ok(vec![(names[0].clone(), tensor.contiguous()?.reshape(shape.as_slice())?)]);
        }
        let mut start = 0;
        let mut parts = Vec::with_capacity(self.parts.len());
        for (names, shape) in &self.parts {
            let part = tensor.narrow(0, start, shape[0])?.contiguous()?.reshape(shape.as_slice())?;
            parts.push((names[0].clone(), part));
            start += shape[0];
        }
        Ok(parts)
    }

    fn draw(&self, seed: u64, dtype: DType, device: &Device) -> Result<Tensor> {
        let shape = self.shape.as_slice();
        Ok(match self.init {
            Init::Zeros => Tensor::zeros(shape, dtype, device)?,
            Init::Ones => Tensor::ones(shape, dtype, device)?,
            Init::Normal(deviation) => {
                let count = shape.iter().product();
                let values = Tensor::from_vec(normals(seed, &self.name, count, deviation), shape, &Device::Cpu)?;
                values.to_dtype(dtype)?.to_device(device)?
            }
        })
    }
}

/// A tensor of the files, which must have this shape.
fn load(files: &TensorFiles, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    let tensor = files.load(name, dtype, device)?;
    if tensor.dims() != shape {
        let message = format!("has shape {:?}, the configuration asks for {shape:?}", tensor.dims());
        return Err(ModelError::Weight { name: name.into(), message });
    }
    Ok(tensor)
}

/// Whether a tensor of a checkpoint is no weight: buffers that earlier releases stored, and a head that is the embedding again.
pub(crate) fn is_no_weight(name: &str, specs: &[WeightSpec]) -> bool {
    let buffer = ["rotary_emb.inv_freq", "embeddings.position_ids", "embeddings.mask_token"];
    let tied = name.ends_with("lm_head.weight") && specs.iter().all(|spec| spec.name != "lm_head.weight");
    tied || buffer.iter().any(|end| name.ends_with(end))
}

/// Normal numbers of a stream that belongs to (seed, name) alone (Box and Muller 1958).
pub(crate) fn normals(seed: u64, name: &str, count: usize, deviation: f64) -> Vec<f32> {
    let mut hasher = blake3::Hasher::new_derive_key("mpcc weight initialisation");
    hasher.update(&seed.to_le_bytes());
    hasher.update(name.as_bytes());
    let mut rng = ChaCha8Rng::from_seed(*hasher.finalize().as_bytes());
    let mut unit = move || ((rng.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        let (radius, angle) = ((-2.0 * unit().ln()).sqrt(), std::f64::consts::TAU * unit());
        values.push((deviation * radius * angle.cos()) as f32);
        values.push((deviation * radius * angle.sin()) as f32);
    }
    values.truncate(count);
    values
}

/// The named variables of a model.
#[derive(Debug, Clone)]
pub struct Weights {
    vars: BTreeMap<String, Var>,
    /// Tensors of no use, under the names they are written with.
    kept: BTreeMap<String, Tensor>,
    specs: Vec<WeightSpec>,
    /// Matrices that are held packed in eight bits, as tensors of bytes, with their shapes.
    packed: BTreeMap<String, Vec<usize>>,
    /// What is added to some weights; then nothing else is trained.
    adapter: Option<Adapter>,
    /// Shared with all that share variables.
    lent: Arc<AtomicBool>,
}

impl Weights {
    /// Reads every weight that the specifications name.
    ///
    /// # Errors
    /// When one is missing or has another shape, or the files hold one that nobody asked for.
    pub fn read(specs: Vec<WeightSpec>, files: &TensorFiles, form: Form, device: &Device) -> Result<Weights> {
        let known: BTreeSet<&String> = specs.iter().flat_map(WeightSpec::names).collect();
        let surplus = files.names().iter().filter(|name| !known.contains(name) && !is_no_weight(name, &specs));
        let surplus: Vec<&String> = surplus.collect();
        if let Some(first) = surplus.first() {
            let others = if surplus.len() > 1 { format!(" (and {} others)", surplus.len() - 1) } else { String::new() };
            let message = format!("is in {}{others}, but no weight of this configuration", files.dir().display());
            return Err(ModelError::Weight { name: (*first).clone(), message });
        }
        let dtype = form.dtype();
        let mut weights = Weights::build(specs, form, |spec| spec.read(files, dtype, device))?;
        for spec in weights.specs.iter().filter(|spec| spec.kept) {
            let there = |(names, _): &(Vec<String>, Vec<usize>)| files.find(names).is_some();
            if spec.parts.iter().all(there) || spec.fused.as_ref().is_some_and(there) {
                weights.kept.extend(spec.split(&spec.read(files, dtype, device)?)?);
            }
        }
        Ok(weights)
    }

    /// Whether matrices are packed: then the weights can be neither trained nor written.
    pub fn are_packed(&self) -> bool {
        !self.packed.is_empty()
    }

    /// Draws every weight; a tensor's values depend on the seed, its name and its shape alone.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn draw(specs: Vec<WeightSpec>, seed: u64, form: Form, device: &Device) -> Result<Weights> {
        let drawn = specs.par_iter().filter(|spec| !spec.kept);
        let drawn = drawn.map(|spec| Ok((spec.name.clone(), spec.draw(seed, form.dtype(), device)?)));
        let mut drawn = drawn.collect::<Result<BTreeMap<String, Tensor>>>()?;
        Weights::build(specs, form, |spec| Ok(drawn.remove(&spec.name).expect("every weight was drawn")))
    }

    fn build(
        specs: Vec<WeightSpec>,
        form: Form,
        mut make: impl FnMut(&WeightSpec) -> Result<Tensor>,
    ) -> Result<Weights> {
        let (mut vars, mut packed) = (BTreeMap::new(), BTreeMap::new());
        for spec in specs.iter().filter(|spec| !spec.kept) {
            let mut tensor = make(spec)?;
            if form == Form::Q8 && spec.shape.len() == 2 && !spec.name.starts_with("visual.") {
                let bytes = {
                    let (storage, layout) = tensor.storage_and_layout();
                    let Storage::Cpu(values) = &*storage else {
                        return Err(ModelError::Device("q8 is for the CPU".into()));
                    };
                    let values = Values::of(values, layout, &spec.shape)?.vector();
                    if let Some(odd) = values.iter().find(|value| !value.is_finite()) {
                        let message = format!("holds {odd}, which eight bits cannot show");
                        return Err(ModelError::Weight { name: spec.name.clone(), message });
                    }
                    pack_q8(values, spec.shape[1])
                };
                let count = bytes.len();
                tensor = Tensor::from_vec(bytes, count, &Device::Cpu)?;
                packed.insert(spec.name.clone(), spec.shape.clone());
            }
            vars.insert(spec.name.clone(), Var::from_tensor(&tensor)?);
        }
        Ok(Weights { vars, kept: BTreeMap::new(), specs, packed, adapter: None, lent: Arc::default() })
    }

    /// A copy that shares no memory with this one, such as the reference policy of a training.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn deep_copy(&self) -> Result<Weights> {
        let copy = |(name, var): (&String, &Var)| Ok((name.clone(), Var::from_tensor(&var.as_tensor().copy()?)?));
        let vars = self.vars.iter().map(copy).collect::<Result<_>>()?;
        let adapter = self.adapter.as_ref().map(Adapter::deep_copy).transpose()?;
        Ok(Weights { vars, adapter, lent: Arc::default(), ..self.clone() })
    }

    /// A weight; detached, so that no gradient flows to it, where it is frozen.
    ///
    /// # Errors
    /// When no weight has this name.
    pub fn get(&self, name: &str, frozen: bool) -> Result<Tensor> {
        let var = self
            .vars
            .get(name)
            .ok_or_else(|| ModelError::Weight { name: name.into(), message: "is no weight of this model".into() })?;
        let Some(adapter) = &self.adapter else {
            return Ok(if frozen { var.as_detached_tensor() } else { var.as_tensor().clone() });
        };
        let base = var.as_detached_tensor();
        match adapter.update(name, base.dims()[0], frozen)? {
            Some(update) => Ok((base + update)?),
            None => Ok(base),
        }
    }

    /// The same weights, shared, under an adapter of their own.
    pub fn adapted(&self, adapter: Adapter) -> Weights {
        Weights { adapter: Some(adapter), ..self.clone() }
    }

    /// The adapter, if there is one.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// New weights into which the adapter is merged.
    ///
    /// # Errors
    /// When there is no room.
    pub fn merged(&self) -> Result<Weights> {
        let merge = |name: &String| Ok((name.clone(), Var::from_tensor(&self.get(name, true)?.copy()?)?));
        let vars = self.vars.keys().map(merge).collect::<Result<_>>()?;
        Ok(Weights { vars, adapter: None, lent: Arc::default(), ..self.clone() })
    }

    /// How the weights are made of tensors on disk.
    pub fn specs(&self) -> &[WeightSpec] {
        &self.specs
    }

    /// The variables whose values decide the model beside what it started from: the adapter's, else all.
    pub fn state(&self) -> BTreeMap<String, Var> {
        self.lent.store(true, Ordering::Relaxed);
        self.adapter.as_ref().map_or_else(|| self.vars.clone(), Adapter::vars)
    }

    /// Whether variables were ever handed out, here or from weights that share them: whoever has them may change them at any time, so
    /// that nothing computed with the weights may be kept.
    pub fn lent(&self) -> bool {
        self.lent.load(Ordering::Relaxed)
    }

    /// All variables by name.
    pub fn vars(&self) -> &BTreeMap<String, Var> {
        self.lent.store(true, Ordering::Relaxed);
        &self.vars
    }

    /// The variables that training changes, in name order: the adapter's if there is one, else all; without those of the vision
    /// tower when it is frozen.
    pub fn trainable(&self, freeze_vision: bool) -> Vec<(String, Var)> {
        let wanted = |name: &str| !(freeze_vision && name.starts_with("visual."));
        self.state().into_iter().filter(|(name, _)| wanted(name)).collect()
    }

    /// Number of values.
    pub fn count(&self) -> usize {
        self.specs.iter().filter(|spec| !spec.kept).map(|spec| spec.shape.iter().product::<usize>()).sum()
    }

    /// The tensors under their published names, packed ones split.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn published(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut all = self.specs_of(&|name| self.get(name, true))?;
        all.extend(self.kept.clone());
        Ok(all)
    }

    /// Any tensors named and shaped like this model's variables (gradients, moments), under their published names.
    ///
    /// # Errors
    /// When a tensor is missing or its shape does not fit.
    pub fn published_like(&self, tensors: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
        self.specs_of(&|name| {
            let missing = || ModelError::Weight { name: name.into(), message: "has no counterpart here".into() };
            tensors.get(name).cloned().ok_or_else(missing)
        })
    }

    /// Lends the values of all weights: in place where they lie on the CPU, as f32 copies otherwise. Vectors are f32 always.
    ///
    /// # Errors
    /// When a weight cannot be read back, and what `work` returns.
    pub fn with_slices<R>(&self, work: impl FnOnce(&Slices<'_>) -> Result<R>) -> Result<R> {
        let merged: Vec<Option<Tensor>> = match &self.adapter {
            Some(_) => self.vars.keys().map(|name| self.get(name, true).map(Some)).collect::<Result<_>>()?,
            None => vec![None; self.vars.len()],
        };
        let held = self.vars.iter().zip(&merged).map(|((name, var), merged)| {
            let tensor = merged.as_ref().unwrap_or_else(|| var.as_tensor());
            let shape = self.packed.get(name).map_or_else(|| tensor.dims(), Vec::as_slice);
            Ok((name.as_str(), Held::new(tensor, shape)?))
        });
        let held: Vec<(&str, Held<'_>)> = held.collect::<Result<_>>()?;
        let slices: Result<BTreeMap<&str, Values<'_>>> =
            held.iter().map(|(name, held)| Ok((*name, held.values()?))).collect();
        work(&Slices(slices?))
    }

    fn specs_of(&self, find: &dyn Fn(&str) -> Result<Tensor>) -> Result<BTreeMap<String, Tensor>> {
        let mut all = BTreeMap::new();
        for spec in self.specs.iter().filter(|spec| !spec.kept) {
            all.extend(spec.split(&find(&spec.name)?)?);
        }
        Ok(all)
    }
}

/// Values of weights by name.
#[derive(Debug)]
pub struct Slices<'a>(BTreeMap<&'a str, Values<'a>>);

impl<'a> Slices<'a> {
    /// The values of one weight.
    ///
    /// # Errors
    /// When no weight has this name.
    pub fn get(&self, name: &str) -> Result<Values<'a>> {
        let missing = || ModelError::Weight { name: name.into(), message: "is no weight of this model".into() };
        self.0.get(name).copied().ok_or_else(missing)
    }
}

/// A tensor's values: locked in place, or copied.
enum Held<'a> {
    Locked(StorageRef<'a>, &'a Layout, &'a [usize]),
    Copied(Vec<f32>),
}

impl<'a> Held<'a> {
    /// The values of a tensor that stands for a weight of this shape.
    fn new(tensor: &'a Tensor, shape: &'a [usize]) -> Result<Held<'a>> {
        let as_it_is = match tensor.dtype() {
            DType::F32 | DType::U8 => true,
            DType::BF16 => shape.len() > 1,
            _ => false,
        };
        if tensor.device().is_cpu() && as_it_is && tensor.is_contiguous() {
            let (storage, layout) = tensor.storage_and_layout();
            return Ok(Held::Locked(storage, layout, shape));
        }
        let copy = tensor.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        Ok(Held::Copied(copy.flatten_all()?.to_vec1()?))
    }

    fn values(&self) -> Result<Values<'_>> {
        match self {
            Held::Copied(values) => Ok(Values::F32(values)),
            Held::Locked(storage, layout, shape) => match &**storage {
                Storage::Cpu(cpu) => Ok(Values::of(cpu, layout, shape)?),
                _ => Err(ModelError::Device("a weight moved while it was read".into())),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(name: &str) -> Vec<String> {
        vec![name.to_owned()]
    }

    #[test]
    fn draws_depend_on_seed_and_name_alone() {
        assert_eq!(normals(1, "a", 5, 1.0), normals(1, "a", 5, 1.0));
        assert_eq!(normals(1, "a", 5, 1.0)[..4], normals(1, "a", 4, 1.0));
        assert_ne!(normals(1, "a", 5, 1.0), normals(2, "a", 5, 1.0));
        assert_ne!(normals(1, "a", 5, 1.0), normals(1, "b", 5, 1.0));
        let many = normals(3, "c", 20_000, 2.0);
        let mean = many.iter().sum::<f32>() / 20_000.0;
        let variance = many.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 20_000.0;
        assert!(mean.abs() < 0.06 && (variance - 4.0).abs() < 0.15, "{mean} {variance}");
    }

    #[test]
    fn packed_weights_split_into_published_ones() {
        let spec = WeightSpec {
            name: "qk".into(),
            shape: vec![3, 2],
            parts: vec![(names("q"), vec![2, 2]), (names("k"), vec![1, 2])],
            fused: None,
            init: Init::Normal(1.0),
            kept: false,
        };
        let weights = Weights::draw(vec![spec], 7, Form::F32, &Device::Cpu).unwrap();
        let published = weights.published().unwrap();
        assert_eq!(published.keys().collect::<Vec<_>>(), ["k", "q"]);
        let all = weights.get("qk", true).unwrap();
        assert_eq!(
            all.get(2).unwrap().to_vec1::<f32>().unwrap(),
            published["k"].get(0).unwrap().to_vec1::<f32>().unwrap()
        );
    }

    #[test]
    fn a_deep_copy_does_not_follow() {
        let spec = WeightSpec::plain(names("visual.w"), vec![2], Init::Ones);
        let weights = Weights::draw(vec![spec], 0, Form::F32, &Device::Cpu).unwrap();
        let copy = weights.deep_copy().unwrap();
        weights.vars()["visual.w"].set(&Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap()).unwrap();
        assert_eq!(weights.get("visual.w", true).unwrap().to_vec1::<f32>().unwrap(), [0.0, 0.0]);
        assert_eq!(copy.get("visual.w", true).unwrap().to_vec1::<f32>().unwrap(), [1.0, 1.0]);
        assert!(weights.trainable(true).is_empty());
    }
}
