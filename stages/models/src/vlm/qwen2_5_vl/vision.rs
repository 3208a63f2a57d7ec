//! The vision tower: patch embedding, blocks of windowed or full attention, and the merger to the language model's width.

use candle_core::{DType, Device, Result as TensorResult, Tensor};

use super::config::VisionConfig;
use super::rope::vision_angles;
use super::windows::Layout;
use crate::error::Result;
use crate::image::Patches;
use crate::ops;
use crate::weights::Weights;

/// Added to the mean square in the tower's norms.
pub(super) const EPS: f64 = 1e-6;

/// The tower over named weights.
#[derive(Debug, Clone)]
pub struct VisionTower {
    config: VisionConfig,
    patch: Tensor,
    blocks: Vec<Block>,
    merger: Merger,
}

#[derive(Debug, Clone)]
struct Block {
    norm1: Tensor,
    norm2: Tensor,
    qkv: (Tensor, Tensor),
    proj: (Tensor, Tensor),
    gate_up: (Tensor, Tensor),
    down: (Tensor, Tensor),
    full: bool,
}

#[derive(Debug, Clone)]
struct Merger {
    norm: Tensor,
    first: (Tensor, Tensor),
    second: (Tensor, Tensor),
}

impl VisionTower {
    /// The tower over a model's weights; frozen ones get no gradient.
    ///
    /// # Errors
    /// When a weight is missing.
    pub fn new(config: &VisionConfig, weights: &Weights, frozen: bool) -> Result<VisionTower> {
        let get = |name: &str| weights.get(&format!("visual.{name}"), frozen);
        let pair =
            |name: &str| Ok::<_, crate::ModelError>((get(&format!("{name}.weight"))?, get(&format!("{name}.bias"))?));
        let block = |index: usize| {
            let of = |name: &str| format!("blocks.{index}.{name}");
            Ok(Block {
                norm1: get(&of("norm1.weight"))?,
                norm2: get(&of("norm2.weight"))?,
                qkv: pair(&of("attn.qkv"))?,
                proj: pair(&of("attn.proj"))?,
                gate_up: pair(&of("mlp.gate_up_proj"))?,
                down: pair(&of("mlp.down_proj"))?,
                full: config.fullatt_block_indexes.contains(&index),
            })
        };
        Ok(VisionTower {
            config: config.clone(),
            patch: get("patch_embed.proj.weight")?,
            blocks: (0..config.depth).map(block).collect::<Result<_>>()?,
            merger: Merger {
                norm: get("merger.ln_q.weight")?,
                first: pair("merger.mlp.0")?,
                second: pair("merger.mlp.2")?,
            },
        })
    }

    /// The merged tokens `[tokens, out_hidden_size]` of pictures, in order.
    ///
    /// # Errors
    /// When there is no picture or one does not fit the configuration.
    pub fn forward(&self, images: &[&Patches]) -> Result<Tensor> {
        let grids: Vec<[usize; 3]> = images.iter().map(|image| image.grid).collect();
        let layout = Layout::new(&self.config, &grids)?;
        let unit = self.config.merge_unit();
        let (device, dtype) = (self.patch.device(), self.patch.dtype());
        let pixels: Vec<&Tensor> = images.iter().map(|image| &image.pixels).collect();
        let mut pixels = if pixels.len() == 1 { pixels[0].clone() } else { Tensor::cat(&pixels, 0)? };
        if !layout.identity {
            pixels = gather(&pixels, layout.patch_rows(unit), &Device::Cpu)?;
        }
        let angles = vision_angles(&self.config, &layout.places).tensors(dtype, device)?;
        let mut x = ops::linear(&pixels.to_dtype(dtype)?.to_device(device)?, &self.patch, None)?;
        for block in &self.blocks {
            x = block.forward(&x, &angles, &layout, &self.config)?;
        }
        let merged = self.merger.forward(&x, unit)?;
        Ok(if layout.identity { merged } else { gather(&merged, layout.back, device)? })
    }
}

impl Block {
    fn forward(
        &self,
        x: &Tensor,
        (cos, sin): &(Tensor, Tensor),
        layout: &Layout,
        config: &VisionConfig,
    ) -> TensorResult<Tensor> {
        let segments = if self.full { &layout.frames } else { &layout.windows };
        let qkv = linear(&ops::rms_norm(x, &self.norm1, EPS)?, &self.qkv)?;
        let seen = ops::attention(&qkv, cos, sin, segments, config.head_shape())?;
        let x = (x + linear(&seen, &self.proj)?)?;
        let gate_up = linear(&ops::rms_norm(&x, &self.norm2, EPS)?, &self.gate_up)?;
        &x + linear(&ops::swiglu(&gate_up)?, &self.down)?
    }
}

impl Merger {
    fn forward(&self, x: &Tensor, unit: usize) -> TensorResult<Tensor> {
        let (rows, width) = x.dims2()?;
        let x = ops::rms_norm(x, &self.norm, EPS)?.reshape((rows / unit, unit * width))?;
        linear(&linear(&x, &self.first)?.gelu_erf()?, &self.second)
    }
}

fn linear(x: &Tensor, (weight, bias): &(Tensor, Tensor)) -> TensorResult<Tensor> {
    ops::linear(x, weight, Some(bias))
}

fn gather(x: &Tensor, rows: Vec<u32>, device: &Device) -> TensorResult<Tensor> {
    let count = rows.len();
    x.index_select(&Tensor::from_vec(rows, count, &Device::Cpu)?.to_dtype(DType::U32)?.to_device(device)?, 0)
}
