//! The vision tower for inference, on plain f32 rows.

use candle_core::cpu::erf::erf_f32;
use rayon::prelude::*;

use super::config::VisionConfig;
use super::infer::{Buffers, turn};
use super::rope::{Angles, vision_angles};
use super::vision::EPS;
use super::windows::Layout;
use crate::error::{ModelError, Result};
use crate::image::Patches;
use crate::kernel::attend::{Seen, Stretch, attend};
use crate::kernel::linear::{Matrix, linear};
use crate::kernel::rows::{add, rms_norm, swiglu};
use crate::ops::{HeadShape, Segments};
use crate::weights::Slices;

/// The tower over borrowed weights.
pub struct VisionInference<'a> {
    config: &'a VisionConfig,
    patch: Matrix<'a>,
    blocks: Vec<Block<'a>>,
    norm: &'a [f32],
    first: Matrix<'a>,
    second: Matrix<'a>,
    threads: usize,
}

struct Block<'a> {
    norm1: &'a [f32],
    norm2: &'a [f32],
    qkv: Matrix<'a>,
    proj: Matrix<'a>,
    gate_up: Matrix<'a>,
    down: Matrix<'a>,
    full: bool,
}

impl<'a> VisionInference<'a> {
    /// The tower over lent weights.
    ///
    /// # Errors
    /// When a weight is missing.
    pub fn new(config: &'a VisionConfig, weights: &Slices<'a>, threads: usize) -> Result<VisionInference<'a>> {
        let get = |name: &str| weights.get(&format!("visual.{name}"));
        let matrix = |name: &str, width: usize| {
            let (weight, bias) = (get(&format!("{name}.weight"))?, Some(get(&format!("{name}.bias"))?));
            Ok::<_, ModelError>(Matrix { weight, bias, width })
        };
        let (width, merged) = (config.hidden_size, config.hidden_size * config.merge_unit());
        let block = |index: usize| {
            let of = |name: &str| format!("blocks.{index}.{name}");
            Ok(Block {
                norm1: get(&of("norm1.weight"))?,
                norm2: get(&of("norm2.weight"))?,
                qkv: matrix(&of("attn.qkv"), width)?,
                proj: matrix(&of("attn.proj"), width)?,
                gate_up: matrix(&of("mlp.gate_up_proj"), width)?,
                down: matrix(&of("mlp.down_proj"), config.intermediate_size)?,
                full: config.fullatt_block_indexes.contains(&index),
            })
        };
        Ok(VisionInference {
            config,
            patch: Matrix { weight: get("patch_embed.proj.weight")?, bias: None, width: config.patch_width() },
            blocks: (0..config.depth).map(block).collect::<Result<_>>()?,
            norm: get("merger.ln_q.weight")?,
            first: matrix("merger.mlp.0", merged)?,
            second: matrix("merger.mlp.2", merged)?,
            threads,
        })
    }

    /// Merged tokens `[tokens, out_hidden_size]` of pictures, one picture after another.
    ///
    /// # Errors
    /// When a picture does not fit the configuration.
    pub fn encode(&self, images: &[&Patches]) -> Result<Vec<f32>> {
        let grids: Vec<[usize; 3]> = images.iter().map(|image| image.grid).collect();
        let layout = Layout::new(self.config, &grids)?;
        let angles = vision_angles(self.config, &layout.places);
        let mut x = self.embed(images, &layout)?;
        let mut buffers = Buffers::default();
        for block in &self.blocks {
            self.block(block, &mut x, &angles, &layout, &mut buffers);
        }
        Ok(self.merge(&x, &layout, &mut buffers))
    }

    fn embed(&self, images: &[&Patches], layout: &Layout) -> Result<Vec<f32>> {
        let mut pixels = Vec::new();
        for image in images {
            pixels.extend(image.pixels.flatten_all()?.to_vec1::<f32>()?);
        }
        if !layout.identity {
            pixels = gather(&pixels, self.patch.width, &layout.patch_rows(self.config.merge_unit()));
        }
        let mut x = Vec::new();
        linear(&pixels, self.patch, &mut x, self.threads);
        Ok(x)
    }

    fn block(&self, block: &Block<'_>, x: &mut [f32], angles: &Angles, layout: &Layout, buffers: &mut Buffers) {
        let shape = self.config.head_shape();
        buffers.normed.resize(x.len(), 0.0);
        rms_norm(x, block.norm1, EPS as f32, &mut buffers.normed);
        linear(&buffers.normed, block.qkv, &mut buffers.qkv, self.threads);
        turn(&mut buffers.qkv, angles, shape);
        buffers.seen.resize(x.len(), 0.0);
        let segments = if block.full { &layout.frames } else { &layout.windows };
        self.attention(&buffers.qkv, segments, shape, &mut buffers.seen);
        linear(&buffers.seen, block.proj, &mut buffers.update, self.threads);
        add(x, &buffers.update);
        rms_norm(x, block.norm2, EPS as f32, &mut buffers.normed);
        linear(&buffers.normed, block.gate_up, &mut buffers.wide, self.threads);
        buffers.gated.resize(buffers.wide.len() / 2, 0.0);
        swiglu(&buffers.wide, self.config.intermediate_size, &mut buffers.gated);
        linear(&buffers.gated, block.down, &mut buffers.update, self.threads);
        add(x, &buffers.update);
    }

    fn attention(&self, qkv: &[f32], segments: &Segments, shape: HeadShape, out: &mut [f32]) {
        let (row_width, width) = (shape.qkv_width(), shape.out_width());
        for segment in segments {
            let rows = &qkv[segment.own.start * row_width..segment.own.end * row_width];
            let mut stretch = Stretch::with_capacity(1, shape, segment.own.len());
            for (offset, row) in rows.chunks_exact(row_width).enumerate() {
                stretch.put(0, offset, shape, &row[width..2 * width], &row[2 * width..]);
            }
            stretch.advance(segment.own.len());
            let seen = [Seen { stretch: &stretch, tokens: stretch.len() }];
            let one = |scratch: &mut Vec<f32>, (row, out): (&[f32], &mut [f32])| {
                attend(&row[..width], &seen, 0, shape, scratch, out);
            };
            let out = &mut out[segment.own.start * width..segment.own.end * width];
            if self.threads > 1 {
                rows.par_chunks_exact(row_width).zip(out.par_chunks_exact_mut(width)).for_each_init(Vec::new, one);
            } else {
                let mut scratch = Vec::new();
                rows.chunks_exact(row_width).zip(out.chunks_exact_mut(width)).for_each(|row| one(&mut scratch, row));
            }
        }
    }

    fn merge(&self, x: &[f32], layout: &Layout, buffers: &mut Buffers) -> Vec<f32> {
        rms_norm(x, self.norm, EPS as f32, &mut buffers.normed);
        linear(&buffers.normed, self.first, &mut buffers.wide, self.threads);
        for value in &mut buffers.wide {
            *value = *value * 0.5 * (1.0 + erf_f32(*value * std::f32::consts::FRAC_1_SQRT_2));
        }
        let mut merged = Vec::new();
        linear(&buffers.wide, self.second, &mut merged, self.threads);
        if layout.identity { merged } else { gather(&merged, self.config.out_hidden_size, &layout.back) }
    }
}

fn gather(rows: &[f32], width: usize, order: &[u32]) -> Vec<f32> {
    order.iter().flat_map(|&row| &rows[row as usize * width..(row as usize + 1) * width]).copied().collect()
}
