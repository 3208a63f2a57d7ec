//! The language model for inference: plain f32 rows, cached keys and values, no graph.
//!
//! One [`Inference::extend`] serves prefill, decoding and scoring: it takes lanes, each a few new tokens behind a chain of earlier
//! stretches, and returns their hidden rows. All rows of all lanes pass the matrices together; by the kernels' rules each row's
//! result is the same in any company.

use rayon::prelude::*;

use super::family::{Config, Tower};
use super::prefix::Part;
use super::text::{Angles, TextConfig, TextRope};
use super::vision::Plain;
use crate::error::{ModelError, Result};
use crate::image::Patches;
use crate::kernel::attend::{Seen, Stretch, attend, rotate, slide};
use crate::kernel::linear::{Matrix, linear};
use crate::kernel::rows::{add, rms_norm, swiglu};
use crate::ops::HeadShape;
use crate::weights::Slices;

/// New tokens of one sequence and what lies before them.
#[derive(Debug)]
pub struct Lane {
    /// Earlier stretches, in order, shared with other lanes.
    pub context: Vec<Part>,
    /// The stretch that the new tokens join.
    pub own: Stretch,
}

impl Lane {
    /// A lane behind `context` with room for `tokens` tokens of its own.
    pub fn new(context: Vec<Part>, config: &Config, tokens: usize) -> Lane {
        let text = config.text();
        Lane { context, own: Stretch::with_capacity(text.layers, text.heads, tokens) }
    }
}

/// The whole model over borrowed weights.
pub struct Inference<'a> {
    /// The configuration.
    pub config: &'a Config,
    text: &'a TextConfig,
    vision: Tower<&'a [f32]>,
    rope: TextRope,
    embed: &'a [f32],
    head: &'a [f32],
    norm: &'a [f32],
    layers: Vec<Layer<'a>>,
    threads: usize,
}

struct Layer<'a> {
    norm1: &'a [f32],
    norm2: &'a [f32],
    qkv: Matrix<'a>,
    out: Matrix<'a>,
    gate_up: Matrix<'a>,
    down: Matrix<'a>,
}

/// Buffers that steps use again.
#[derive(Default)]
struct Buffers {
    normed: Vec<f32>,
    qkv: Vec<f32>,
    seen: Vec<f32>,
    wide: Vec<f32>,
    gated: Vec<f32>,
    update: Vec<f32>,
}

impl<'a> Inference<'a> {
    /// The model over lent weights; `threads` is the size of the pool that calls run in.
    ///
    /// # Errors
    /// When a weight is missing.
    pub fn new(config: &'a Config, weights: &Slices<'a>, threads: usize) -> Result<Inference<'a>> {
        let text = config.text();
        let width = text.hidden_size;
        let layer = |index: usize| {
            let get = |name: &str| weights.get(&format!("model.layers.{index}.{name}"));
            let matrix =
                |name: &str, width: usize| Ok::<_, ModelError>(Matrix { weight: get(name)?, bias: None, width });
            let qkv_bias = text.decoder.has_bias().then(|| get("self_attn.qkv_proj.bias")).transpose()?;
            Ok::<_, ModelError>(Layer {
                norm1: get("input_layernorm.weight")?,
                norm2: get("post_attention_layernorm.weight")?,
                qkv: Matrix { bias: qkv_bias, ..matrix("self_attn.qkv_proj.weight", width)? },
                out: matrix("self_attn.o_proj.weight", text.heads.out_width())?,
                gate_up: matrix("mlp.gate_up_proj.weight", width)?,
                down: matrix("mlp.down_proj.weight", text.intermediate_size)?,
            })
        };
        let embed = weights.get("model.embed_tokens.weight")?;
        Ok(Inference {
            config,
            text,
            vision: Tower::new(config, &|name| weights.get(name))?,
            rope: TextRope::new(text),
            embed,
            head: if text.tie_word_embeddings { embed } else { weights.get("lm_head.weight")? },
            norm: weights.get("model.norm.weight")?,
            layers: (0..text.layers).map(layer).collect::<Result<_>>()?,
            threads,
        })
    }

    /// Tokens `[tokens, hidden]` of pictures, one picture after another.
    ///
    /// # Errors
    /// When a picture does not fit the model.
    pub fn encode(&self, images: &[&Patches]) -> Result<Vec<f32>> {
        Ok(self.vision.forward(&Plain::new(self.threads), images)?.values)
    }

    /// Embedded rows of `ids`; image tokens take the rows of `images` in order.
    ///
    /// # Errors
    /// When a token is outside the vocabulary, or image tokens and image rows differ in number.
    pub fn embed(&self, ids: &[u32], images: &[f32], rows: &mut Vec<f32>) -> Result<()> {
        let width = self.text.hidden_size;
        let mut images = images.chunks_exact(width);
        for &id in ids {
            let row = if id == self.config.image_token_id() {
                images.next().ok_or_else(|| ModelError::Prompt("more image tokens than picture rows".into()))?
            } else {
                self.table_row(id)?
            };
            rows.extend_from_slice(row);
        }
        if images.next().is_some() {
            return Err(ModelError::Prompt("more picture rows than image tokens".into()));
        }
        Ok(())
    }

    /// Embedded rows of text tokens behind a prompt; no picture is looked for.
    ///
    /// # Errors
    /// When a token is outside the vocabulary.
    pub fn embed_text(&self, ids: &[u32], rows: &mut Vec<f32>) -> Result<()> {
        for &id in ids {
            rows.extend_from_slice(self.table_row(id)?);
        }
        Ok(())
    }

    fn table_row(&self, id: u32) -> Result<&'a [f32]> {
        let width = self.text.hidden_size;
        self.embed
            .get(id as usize * width..(id as usize + 1) * width)
            .ok_or_else(|| ModelError::Prompt(format!("token {id} is outside the vocabulary")))
    }

    /// Hidden rows, after the final norm, of new tokens; `counts[i]` rows of `x` and of `positions` belong to `lanes[i]`, which
    /// keep their keys and values.
    pub fn extend(&self, lanes: &mut [Lane], counts: &[usize], mut x: Vec<f32>, positions: &[Vec<u32>; 3]) -> Vec<f32> {
        let width = self.text.hidden_size;
        let eps = self.text.rms_norm_eps as f32;
        let angles = self.rope.angles(positions);
        let places = places(counts);
        let mut buffers = Buffers::default();
        for (index, layer) in self.layers.iter().enumerate() {
            self.attention(layer, index, lanes, &places, &angles, &x, &mut buffers);
            add(&mut x, &buffers.update);
            buffers.normed.resize(x.len(), 0.0);
            rms_norm(&x, layer.norm2, eps, &mut buffers.normed);
            linear(&buffers.normed, layer.gate_up, &mut buffers.wide, self.threads);
            buffers.gated.resize(buffers.wide.len() / 2, 0.0);
            swiglu(&buffers.wide, self.text.intermediate_size, &mut buffers.gated);
            linear(&buffers.gated, layer.down, &mut buffers.update, self.threads);
            add(&mut x, &buffers.update);
        }
        for (lane, count) in lanes.iter_mut().zip(counts) {
            lane.own.advance(*count);
        }
        let mut hidden = vec![0.0; x.len()];
        rms_norm(&x, self.norm, eps, &mut hidden);
        debug_assert_eq!(hidden.len(), places.len() * width);
        hidden
    }

    /// Norm, projection, rotation, cache and attention of one layer; the update is left in `buffers.update`.
    #[allow(clippy::too_many_arguments, reason = "one layer's whole state, used in one place")]
    fn attention(
        &self,
        layer: &Layer<'_>,
        index: usize,
        lanes: &mut [Lane],
        places: &[(usize, usize)],
        angles: &Angles,
        x: &[f32],
        buffers: &mut Buffers,
    ) {
        let shape = self.text.heads;
        buffers.normed.resize(x.len(), 0.0);
        rms_norm(x, layer.norm1, self.text.rms_norm_eps as f32, &mut buffers.normed);
        linear(&buffers.normed, layer.qkv, &mut buffers.qkv, self.threads);
        turn(&mut buffers.qkv, angles, shape);
        let (q, kv) = (shape.out_width(), shape.kv_heads * shape.head_dim);
        for ((lane, offset), row) in places.iter().zip(buffers.qkv.chunks_exact(shape.qkv_width())) {
            lanes[*lane].own.put(index, *offset, shape, &row[q..q + kv], &row[q + kv..]);
        }
        let lanes = &*lanes;
        let window = self.text.window(index);
        let gather = |scratch: &mut Vec<f32>, ((row, out), place): (RowPair<'_>, &(usize, usize))| {
            let lane = &lanes[place.0];
            let earlier = lane.context.iter().map(|part| Seen { stretch: &part.stretch, from: 0, tokens: part.tokens });
            let own = Seen { stretch: &lane.own, from: 0, tokens: lane.own.len() + place.1 + 1 };
            let mut seen: Vec<Seen<'_>> = earlier.chain(std::iter::once(own)).collect();
            if let Some(window) = window {
                slide(&mut seen, window);
            }
            attend(&row[..q], &seen, index, shape, scratch, out);
        };
        buffers.seen.resize(places.len() * q, 0.0);
        let rows = (&*buffers.qkv, &mut *buffers.seen);
        if self.threads > 1 && places.len() > 8 {
            let (from, to) = (rows.0.par_chunks_exact(shape.qkv_width()), rows.1.par_chunks_exact_mut(q));
            from.zip(to).zip(places).for_each_init(Vec::new, gather);
        } else {
            let mut scratch = Vec::new();
            let (from, to) = (rows.0.chunks_exact(shape.qkv_width()), rows.1.chunks_exact_mut(q));
            from.zip(to).zip(places).for_each(|row| gather(&mut scratch, row));
        }
        linear(&buffers.seen, layer.out, &mut buffers.update, self.threads);
    }

    /// Logits `[rows, V]` of hidden rows.
    pub fn logits(&self, hidden: &[f32], out: &mut Vec<f32>) {
        let head = Matrix { weight: self.head, bias: None, width: self.text.hidden_size };
        linear(hidden, head, out, self.threads);
    }
}

/// A row of packed projections and the row that attention writes for it.
type RowPair<'a> = (&'a [f32], &'a mut [f32]);

/// For every row its lane and its place among the lane's new tokens.
fn places(counts: &[usize]) -> Vec<(usize, usize)> {
    counts.iter().enumerate().flat_map(|(lane, &count)| (0..count).map(move |offset| (lane, offset))).collect()
}

/// Turns queries and keys of packed projection rows in place.
pub(in crate::vlm) fn turn(qkv: &mut [f32], angles: &Angles, shape: HeadShape) {
    let width = shape.head_dim;
    let turned = (shape.heads + shape.kv_heads) * width;
    let tables = angles.cos.chunks_exact(width).zip(angles.sin.chunks_exact(width));
    for (row, (cos, sin)) in qkv.chunks_exact_mut(shape.qkv_width()).zip(tables) {
        for head in row[..turned].chunks_exact_mut(width) {
            rotate(head, cos, sin);
        }
    }
}
