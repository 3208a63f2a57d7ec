//! Inference on the processor: plain f32 rows over borrowed weights; by the kernels' rules each row's result is the same in any
//! company.

use std::sync::Arc;

use rayon::prelude::*;

use super::{Bytes, Engine, Joining, KeysAndValues};
use crate::error::{ModelError, Result};
use crate::image::Patches;
use crate::kernel::attend::{Seen, Stretch, attend, rotate, slide};
use crate::kernel::linear::{Matrix, linear};
use crate::kernel::rows::{add, log_sum_exp, rms_norm, swiglu};
use crate::ops::HeadShape;
use crate::vlm::family::{Config, Tower};
use crate::vlm::prefix::Part;
use crate::vlm::text::{Angles, TextConfig, TextRope};
use crate::vlm::vision::Plain;
use crate::weights::Slices;

/// Bytes of cached keys and values that sequences in work may take together.
const ROOM: usize = 1 << 30;
/// Rows whose logits are there at once where only their sums are asked for.
const LOGITS_AT_ONCE: usize = 64;

impl Bytes for Vec<f32> {
    fn bytes(&self) -> usize {
        self.len() * size_of::<f32>()
    }
}

impl Bytes for Stretch {
    fn bytes(&self) -> usize {
        Stretch::bytes(self)
    }
}

impl KeysAndValues for Stretch {
    fn tokens(&self) -> usize {
        self.len()
    }
}

/// New tokens of one sequence and what lies before them.
#[derive(Debug)]
pub struct Lane {
    /// Earlier stretches, in order, shared with other lanes.
    context: Vec<Part<Stretch>>,
    /// The stretch that the new tokens join.
    own: Stretch,
}

/// The whole model over borrowed weights.
pub struct Host<'a> {
    config: &'a Config,
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

impl<'a> Host<'a> {
    /// The model over lent weights; `threads` is the size of the pool that calls run in.
    ///
    /// # Errors
    /// When a weight is missing.
    pub fn new(config: &'a Config, weights: &Slices<'a>, threads: usize) -> Result<Host<'a>> {
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
        Ok(Host {
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

    fn table_row(&self, id: u32) -> Result<&'a [f32]> {
        let width = self.text.hidden_size;
        self.embed
            .get(id as usize * width..(id as usize + 1) * width)
            .ok_or_else(|| ModelError::Prompt(format!("token {id} is outside the vocabulary")))
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

    fn head_rows(&self, hidden: &[f32], out: &mut Vec<f32>) {
        let head = Matrix { weight: self.head, bias: None, width: self.text.hidden_size };
        linear(hidden, head, out, self.threads);
    }
}

impl Engine for Host<'_> {
    type Rows = Vec<f32>;
    type Stretch = Stretch;
    type Lanes = Vec<Lane>;

    fn config(&self) -> &Config {
        self.config
    }

    fn token_bytes(&self) -> usize {
        let heads = self.text.heads;
        2 * self.text.layers * heads.kv_heads * heads.head_dim * size_of::<f32>()
    }

    fn room(&self) -> usize {
        ROOM
    }

    fn encode(&self, images: &[&Patches]) -> Result<Vec<Vec<f32>>> {
        let width = self.text.hidden_size;
        let rows = self.vision.forward(&Plain::new(self.threads), images)?.values;
        let mut start = 0;
        let own = images.iter().map(|image| {
            let size = image.tokens * width;
            start += size;
            rows[start - size..start].to_vec()
        });
        Ok(own.collect())
    }

    fn embed(&self, ids: &[u32], images: &[Arc<Vec<f32>>]) -> Result<Vec<f32>> {
        let width = self.text.hidden_size;
        let mut images = images.iter().flat_map(|rows| rows.chunks_exact(width));
        let mut rows = Vec::with_capacity(ids.len() * width);
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
        Ok(rows)
    }

    fn embed_text(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let mut rows = Vec::with_capacity(ids.len() * self.text.hidden_size);
        for &id in ids {
            rows.extend_from_slice(self.table_row(id)?);
        }
        Ok(rows)
    }

    fn join(&self, lanes: &mut Vec<Lane>, more: Vec<Joining<Stretch>>) -> Result<()> {
        lanes.extend(more.into_iter().map(|Joining { context, room }| {
            let own = Stretch::with_capacity(self.text.layers, self.text.heads, room);
            Lane { context, own }
        }));
        Ok(())
    }

    fn extend(
        &self,
        lanes: &mut Vec<Lane>,
        counts: &[usize],
        mut x: Vec<f32>,
        positions: &[Vec<u32>; 3],
    ) -> Result<Vec<f32>> {
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
        Ok(hidden)
    }

    fn stay(&self, lanes: &mut Vec<Lane>, stays: &[bool]) -> Result<()> {
        let mut stays = stays.iter();
        lanes.retain(|_| stays.next() == Some(&true));
        Ok(())
    }

    fn stretches(&self, lanes: Vec<Lane>) -> Result<Vec<Stretch>> {
        Ok(lanes.into_iter().map(|lane| lane.own).collect())
    }

    fn pick(&self, parts: &[&Vec<f32>], rows: &[usize]) -> Result<Vec<f32>> {
        let width = self.text.hidden_size;
        let all: Vec<&[f32]> = parts.iter().flat_map(|part| part.chunks_exact(width)).collect();
        Ok(rows.iter().flat_map(|row| all[*row]).copied().collect())
    }

    fn logits(&self, hidden: &Vec<f32>) -> Result<Vec<f32>> {
        let mut logits = Vec::new();
        self.head_rows(hidden, &mut logits);
        Ok(logits)
    }

    fn log_probabilities(&self, hidden: &Vec<f32>, ids: &[u32]) -> Result<Vec<f64>> {
        let (width, mut logits, mut found) = (self.text.hidden_size, Vec::new(), Vec::with_capacity(ids.len()));
        for (rows, ids) in hidden.chunks(LOGITS_AT_ONCE * width).zip(ids.chunks(LOGITS_AT_ONCE)) {
            self.head_rows(rows, &mut logits);
            let vocabulary = logits.len() / ids.len();
            for (row, &id) in logits.chunks_exact(vocabulary).zip(ids) {
                found.push(f64::from(row[id as usize]) - log_sum_exp(row));
            }
        }
        Ok(found)
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
