//! Our numbers beside those of another implementation, tensor by tensor, under the names that transformers' processors and models give
//! them: `input_ids`, `attention_mask`, `pixel_values`, `image_grid_thw`, `image_sizes`, `mm_token_type_ids`, `logits` (of every
//! prompt position) and `gen_ids` (the greedy answer, without the prompt).
//!
//! The logits come from the differentiable model and the answer from inference on plain rows, so both are held to the reference.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use image::RgbImage;

use crate::checkpoint::TensorFiles;
use crate::error::{ModelError, Result};
use crate::image::{Patches, Processor};
use crate::ops::Segments;
use crate::vlm::{Packed, Prompt, Trainable, Vlm};

/// How far pixel values may be from the reference's.
pub const PIXELS: f64 = 1e-5;
/// How far logits may be from the reference's.
pub const LOGITS: f64 = 1e-4;

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// What the processor makes of a prompt, under the reference's names and in its shapes. `sizes` are width and height of the pictures.
///
/// # Errors
/// When a tensor operation fails.
pub fn inputs(vlm: &Vlm, prompt: &Prompt, sizes: &[(u32, u32)]) -> Result<Tensors> {
    let placeholder = vlm.config().image_token_id();
    let line = |values: Vec<i64>| Tensor::from_vec(values, (1, prompt.ids.len()), &Device::Cpu);
    let mut tensors = Tensors::new();
    let mut put = |name: &str, tensor: Tensor| tensors.insert(name.to_owned(), tensor);
    put("input_ids", line(prompt.ids.iter().map(|&id| i64::from(id)).collect())?);
    put("attention_mask", line(vec![1; prompt.ids.len()])?);
    let processor = &vlm.assets().processor;
    if let Processor::Qwen(_) = processor {
        put("mm_token_type_ids", line(prompt.ids.iter().map(|&id| i64::from(id == placeholder)).collect())?);
    }
    if prompt.images.is_empty() {
        return Ok(tensors);
    }
    let table = |values: Vec<i64>, width| Tensor::from_vec(values, (prompt.images.len(), width), &Device::Cpu);
    let images = prompt.images.iter();
    match processor {
        Processor::Qwen(_) => {
            put("image_grid_thw", table(images.clone().flat_map(|image| image.grid.map(|n| n as i64)).collect(), 3)?);
            let rows: Vec<&Tensor> = images.map(|image| &image.pixels).collect();
            put("pixel_values", Tensor::cat(&rows, 0)?);
        }
        Processor::AnyRes(_) => {
            let sides = sizes.iter().flat_map(|&(width, height)| [i64::from(height), i64::from(width)]);
            put("image_sizes", table(sides.collect(), 2)?);
            let most = images.clone().map(|image| image.grid[0]).max().unwrap_or(0);
            let padded = images.map(|image| Ok(tiles(image)?.pad_with_zeros(0, 0, most - image.grid[0])?));
            put("pixel_values", Tensor::stack(&padded.collect::<Result<Vec<_>>>()?, 0)?);
        }
        Processor::Tiles(_) => {
            put("pixel_values", Tensor::cat(&images.map(tiles).collect::<Result<Vec<_>>>()?, 0)?);
        }
    }
    Ok(tensors)
}

/// Logits of every position of a prompt, `[1, tokens, vocabulary]`.
///
/// # Errors
/// When the prompt does not fit the model.
pub fn logits(vlm: &Vlm, prompt: &Prompt) -> Result<Tensor> {
    let packed = Packed {
        ids: prompt.ids.clone(),
        positions: prompt.positions.clone(),
        segments: Arc::new(Segments::causal([prompt.ids.len()])?),
        images: prompt.images.clone(),
    };
    vlm.pool().install(|| {
        let model = vlm.view(Trainable::Nothing)?;
        let hidden = model.forward(&packed, None)?;
        Ok(hidden.matmul(&model.head().t()?)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.unsqueeze(0)?)
    })
}

/// An answer as the reference has it, `[1, tokens]`.
///
/// # Errors
/// When a tensor operation fails.
pub fn answer(ids: &[u32]) -> Result<Tensor> {
    let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let width = ids.len();
    Ok(Tensor::from_vec(ids, (1, width), &Device::Cpu)?)
}

/// Whether all values of a tensor are finite.
///
/// # Errors
/// When a tensor operation fails.
pub fn finite(tensor: &Tensor) -> Result<bool> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?.into_iter().all(f32::is_finite))
}

/// A picture's rows as `[tiles, channels, height, width]`.
fn tiles(image: &Patches) -> Result<Tensor> {
    let (_, width) = image.pixels.dims2()?;
    let ([count, high, wide], patch) = (image.grid, ((width / 3) as f64).sqrt() as usize);
    let split = image.pixels.reshape(&[count, high, wide, 3, patch, patch][..])?;
    Ok(split.permute([0, 3, 1, 4, 2, 5])?.contiguous()?.reshape((count, 3, high * patch, wide * patch))?)
}

/// The rows of `[tiles, channels, height, width]`, patches of this side.
fn rows(tiles: &Tensor, patch: usize) -> Result<Tensor> {
    let (count, channels, height, width) = tiles.dims4()?;
    let cut = tiles.reshape(&[count, channels, height / patch, patch, width / patch, patch][..])?;
    Ok(cut.permute([0, 2, 4, 1, 3, 5])?.contiguous()?.reshape(((), channels * patch * patch))?)
}

/// A file of tensors that another implementation wrote.
pub struct Reference {
    files: TensorFiles,
}

impl Reference {
    /// Opens a safetensors file.
    ///
    /// # Errors
    /// When it is missing or damaged, or holds none of the tensors that are compared.
    pub fn open(path: &Path) -> Result<Reference> {
        let files = TensorFiles::open_file(path)?;
        let known = ["input_ids", "pixel_values", "logits", "gen_ids"];
        if !known.iter().any(|name| files.names().contains(*name)) {
            let message = format!("holds none of {}; nothing could be compared", known.join(", "));
            return Err(ModelError::File { path: path.into(), message });
        }
        Ok(Reference { files })
    }

    /// A tensor as f32 or, where it holds whole numbers, i64; none where there is none.
    ///
    /// # Errors
    /// When its data cannot be read.
    pub fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        let Some((_, kind, _)) = self.files.describe(name) else { return Ok(None) };
        let dtype = if kind.starts_with(['F', 'B']) && kind != "BOOL" { DType::F32 } else { DType::I64 };
        self.files.load(name, dtype, &Device::Cpu).map(Some)
    }

    /// The whole numbers of a tensor in order; none where there is none.
    ///
    /// # Errors
    /// When its data cannot be read.
    pub fn numbers(&self, name: &str) -> Result<Option<Vec<i64>>> {
        let flat = |tensor: Tensor| Ok(tensor.to_dtype(DType::I64)?.flatten_all()?.to_vec1()?);
        self.tensor(name)?.map(flat).transpose()
    }

    fn must(&self, name: &str) -> Result<Tensor> {
        let missing = || ModelError::Weight { name: name.into(), message: "is not in the reference".into() };
        self.tensor(name)?.ok_or_else(missing)
    }

    /// A tensor of one row a picture, such as sizes or grids, each value a sensible length.
    fn table<const N: usize>(&self, name: &str) -> Result<Vec<[usize; N]>> {
        let row = |row: Vec<i64>| {
            let lengths: Option<Vec<usize>> =
                row.iter().map(|&n| usize::try_from(n).ok().filter(|n| (1..=1 << 15).contains(n))).collect();
            let wrong = || ModelError::Weight { name: name.into(), message: format!("holds {row:?}") };
            lengths.and_then(|lengths| lengths.try_into().ok()).ok_or_else(wrong)
        };
        self.must(name)?.to_vec2::<i64>()?.into_iter().map(row).collect()
    }

    /// The reference's own tokens and pixel values as a prompt, so that the model alone is compared.
    ///
    /// # Errors
    /// When a tensor is missing, or does not fit the model.
    pub fn prompt(&self, vlm: &Vlm) -> Result<Prompt> {
        let ids = self.must("input_ids")?.flatten_all()?.to_vec1::<i64>()?;
        let ids: Vec<u32> = ids.into_iter().map(|id| u32::try_from(id).unwrap_or(u32::MAX)).collect();
        let images = if self.files.names().contains("pixel_values") { self.pictures(vlm, &ids)? } else { vec![] };
        let positions = vlm.config().positions(&ids, &images)?;
        Ok(Prompt { text: vlm.decode(&ids)?, ids, positions, images })
    }

    fn pictures(&self, vlm: &Vlm, ids: &[u32]) -> Result<Vec<Patches>> {
        let values = self.must("pixel_values")?;
        match &vlm.assets().processor {
            Processor::Qwen(processor) => {
                let (mut start, merged) = (0, processor.merge_size.pow(2));
                let image = |grid: [usize; 3]| {
                    let count = grid.iter().product::<usize>();
                    let pixels = values.narrow(0, start, count)?;
                    start += count;
                    Ok(Patches { pixels, grid, tokens: count / merged, picks: None })
                };
                self.table("image_grid_thw")?.into_iter().map(image).collect()
            }
            // Which rows are tokens depends on the size alone: a black picture of this size shows it.
            Processor::AnyRes(processor) => {
                let image = |(index, size): (usize, [usize; 2])| {
                    let mut image = processor.process(&RgbImage::new(size[1] as u32, size[0] as u32))?;
                    let tiles = values.get(index)?.narrow(0, 0, image.grid[0])?;
                    image.pixels = rows(&tiles, processor.patch_size)?;
                    Ok(image)
                };
                self.table("image_sizes")?.into_iter().enumerate().map(image).collect()
            }
            Processor::Tiles(processor) => {
                let side = processor.tile / processor.patch_size;
                let mut start = 0;
                let image = |tokens: usize| {
                    let count = tokens / processor.tile_tokens();
                    let pixels = rows(&values.narrow(0, start, count)?, processor.patch_size)?;
                    start += count;
                    Ok(Patches { pixels, grid: [count, side, side], tokens, picks: None })
                };
                let shown = |id: &u32| *id == vlm.config().image_token_id();
                let runs = ids.chunk_by(|a, b| shown(a) == shown(b)).filter(|run| shown(&run[0]));
                runs.map(<[u32]>::len).map(image).collect()
            }
        }
    }

    /// Compares tensors with those of the same name in the reference.
    ///
    /// # Errors
    /// When a tensor's data cannot be read.
    pub fn compare(&self, ours: &Tensors) -> Result<Vec<Compared>> {
        let mut all = Vec::new();
        for (name, ours) in ours {
            if let Some(theirs) = self.tensor(name)? {
                all.push(Compared::new(name, ours, &theirs)?);
            }
        }
        Ok(all)
    }
}

/// A tensor of ours beside the reference's.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// The name of both.
    pub name: String,
    /// Our shape.
    pub ours: Vec<usize>,
    /// The reference's shape.
    pub theirs: Vec<usize>,
    /// Largest absolute difference; infinite where a value is no number or the shapes differ.
    pub largest: f64,
    /// The largest that is allowed.
    pub limit: f64,
}

impl Compared {
    fn new(name: &str, ours: &Tensor, theirs: &Tensor) -> Result<Compared> {
        let limit = match name {
            "pixel_values" => PIXELS,
            "logits" => LOGITS,
            _ => 0.0,
        };
        let values = |tensor: &Tensor| tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
        let largest = match ours.dims() == theirs.dims() {
            true => largest(&values(ours)?, &values(theirs)?),
            false => f64::INFINITY,
        };
        Ok(Compared { name: name.into(), ours: ours.dims().into(), theirs: theirs.dims().into(), largest, limit })
    }

    /// Whether the difference is allowed.
    pub fn holds(&self) -> bool {
        self.largest <= self.limit
    }
}

fn largest(ours: &[f64], theirs: &[f64]) -> f64 {
    let difference = |(a, b): (&f64, &f64)| if (a - b).is_nan() { f64::INFINITY } else { (a - b).abs() };
    ours.iter().zip(theirs).map(difference).fold(0.0, f64::max)
}
