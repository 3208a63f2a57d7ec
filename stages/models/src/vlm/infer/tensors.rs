//! Inference on candle's tensors, on whatever device and in whatever type the weights are.
//!
//! Weights, keys and values stay on the device, and what comes to the host are logits of rows that need a draw, as f32. No graph is kept
//! (the weights are detached), so that candle's fused operations, which cut gradients, are welcome: norm, rotation and softmax are one
//! kernel each. Norms, softmax and logits are in f32 as transformers has them; products are in the type of the weights.

use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};
use candle_nn::ops::rms_norm;
use candle_nn::rotary_emb::rope_thd;

use super::slab::{Form, Lanes, Step};
use super::{Bytes, Engine, Joining, KeysAndValues};
use crate::error::{ModelError, Result};
use crate::image::Patches;
use crate::ops::{HeadShape, reference};
use crate::vlm::family::Config;
use crate::vlm::model::Model;
use crate::vlm::text::TextConfig;
use crate::vlm::text::decoder::Layer;

/// Rows whose logits are there at once where only their sums are asked for.
const LOGITS_AT_ONCE: usize = 256;
/// Attention scores that are there at once: 256 MiB of them.
const SCORES_AT_ONCE: usize = 1 << 26;

/// Keys and values of a stretch of tokens in every layer, on a device.
#[derive(Debug)]
pub struct Stretch {
    /// A layer's keys, then its values: `[2 layers, kv_heads, tokens, head_dim]`.
    kv: Tensor,
}

impl Stretch {
    pub(super) fn new(kv: Tensor) -> Stretch {
        Stretch { kv }
    }

    pub(super) fn kv(&self) -> &Tensor {
        &self.kv
    }
}

impl Bytes for Tensor {
    fn bytes(&self) -> usize {
        self.elem_count() * self.dtype().size_in_bytes()
    }
}

impl Bytes for Stretch {
    fn bytes(&self) -> usize {
        Bytes::bytes(&self.kv)
    }
}

impl KeysAndValues for Stretch {
    fn tokens(&self) -> usize {
        self.kv.dims()[2]
    }
}

/// The whole model over its tensors.
pub struct Tensors {
    model: Model,
    form: Form,
    room: usize,
    /// The windows that layers have.
    windows: Vec<Option<usize>>,
}

impl Tensors {
    /// The engine over a model whose weights get no gradient.
    pub fn new(model: Model) -> Tensors {
        let (text, head) = (model.config().text(), model.head());
        let (dtype, device) = (head.dtype(), head.device().clone());
        let mut windows: Vec<Option<usize>> = (0..text.layers).map(|layer| text.window(layer)).collect();
        windows.sort_unstable();
        windows.dedup();
        let form = Form { layers: text.layers, heads: text.heads, dtype, device, scores: SCORES_AT_ONCE };
        Tensors { room: crate::device::room(&form.device), windows, form, model }
    }

    /// The engine with so many attention scores at once, which bounds the memory of long prompts.
    pub fn with_scores_at_once(mut self, scores: usize) -> Tensors {
        self.form.scores = scores;
        self
    }

    fn text(&self) -> &TextConfig {
        self.model.config().text()
    }

    fn table_rows(&self, ids: &[u32]) -> Result<Tensor> {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.text().vocab_size) {
            return Err(ModelError::Prompt(format!("token {id} is outside the vocabulary")));
        }
        Ok(self.model.text.embed().index_select(&self.index(ids.to_vec())?, 0)?)
    }

    fn index(&self, rows: Vec<u32>) -> Result<Tensor> {
        let count = rows.len();
        Ok(Tensor::from_vec(rows, count, &Device::Cpu)?.to_device(&self.form.device)?)
    }

    /// Norm, projection, rotation, cache and attention of one layer.
    fn attention(
        &self,
        layer: &Layer,
        index: usize,
        (lanes, step): (&Lanes, &Step),
        (cos, sin): (&Tensor, &Tensor),
        x: &Tensor,
    ) -> Result<Tensor> {
        let HeadShape { heads, kv_heads, head_dim } = self.form.heads;
        let (rows, turned) = (x.dim(0)?, heads + kv_heads);
        let qkv = linear(&self.norm(x, &layer.norm1)?, &layer.qkv, layer.qkv_bias.as_ref())?;
        let qk = qkv.narrow(1, 0, turned * head_dim)?.contiguous()?.reshape((1, rows, turned, head_dim))?;
        let qk = rope_thd(&qk, cos, sin)?.squeeze(0)?;
        let v = qkv.narrow(1, turned * head_dim, kv_heads * head_dim)?.reshape((rows, kv_heads, head_dim))?;
        let seen = lanes.attend(&self.form, step, index, self.text().window(index), [&qk, &v])?;
        linear(&seen, &layer.out, None)
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        Ok(rms_norm(x, weight, self.text().rms_norm_eps as f32)?)
    }

    /// Logits `[rows, V]` in f32, still on the device.
    fn head_rows(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(linear(hidden, self.model.head(), None)?.to_dtype(DType::F32)?)
    }
}

/// A linear map of rows.
fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    Ok(reference::linear(x, weight, bias)?)
}

impl Engine for Tensors {
    type Rows = Tensor;
    type Stretch = Stretch;
    type Lanes = Lanes;

    fn config(&self) -> &Config {
        self.model.config()
    }

    fn token_bytes(&self) -> usize {
        let HeadShape { kv_heads, head_dim, .. } = self.form.heads;
        2 * self.form.layers * kv_heads * head_dim * self.form.dtype.size_in_bytes()
    }

    fn room(&self) -> usize {
        self.room
    }

    fn encode(&self, images: &[&Patches]) -> Result<Vec<Tensor>> {
        let rows = self.model.encode_images(images)?;
        let mut start = 0;
        // Copies, so that a picture that is kept does not hold those of its call.
        let own = images.iter().map(|image| {
            start += image.tokens;
            Ok(rows.narrow(0, start - image.tokens, image.tokens)?.force_contiguous()?)
        });
        own.collect()
    }

    fn embed(&self, ids: &[u32], images: &[Arc<Tensor>]) -> Result<Tensor> {
        let text = self.table_rows(ids)?;
        let placeholder = self.config().image_token_id();
        let shown = ids.iter().filter(|&&id| id == placeholder).count();
        let given = images.iter().map(|image| image.dims()[0]).sum::<usize>();
        if shown != given {
            return Err(ModelError::Prompt(format!("{shown} image tokens, but {given} picture rows")));
        }
        if shown == 0 {
            return Ok(text);
        }
        let mut next = ids.len() as u32;
        let places = ids.iter().zip(0u32..).map(|(&id, row)| {
            next += u32::from(id == placeholder);
            if id == placeholder { next - 1 } else { row }
        });
        let places = self.index(places.collect())?;
        let parts: Vec<&Tensor> = std::iter::once(&text).chain(images.iter().map(|image| &**image)).collect();
        Ok(Tensor::cat(&parts, 0)?.index_select(&places, 0)?)
    }

    fn embed_text(&self, ids: &[u32]) -> Result<Tensor> {
        self.table_rows(ids)
    }

    fn join(&self, lanes: &mut Lanes, more: Vec<Joining<Stretch>>) -> Result<()> {
        Ok(lanes.join(&self.form, more)?)
    }

    fn extend(&self, lanes: &mut Lanes, counts: &[usize], x: Tensor, positions: &[Vec<u32>; 3]) -> Result<Tensor> {
        debug_assert_eq!(lanes.len(), counts.len());
        let (cos, sin) = self.model.text.rope.angles(positions).halves(self.form.dtype, &self.form.device)?;
        let step = lanes.open(&self.form, counts, &self.windows)?;
        let mut x = x;
        for (index, layer) in self.model.text.layers.iter().enumerate() {
            x = (&x + self.attention(layer, index, (lanes, &step), (&cos, &sin), &x)?)?;
            let wide = linear(&self.norm(&x, &layer.norm2)?, &layer.gate_up, None)?;
            x = (&x + linear(&reference::swiglu(&wide)?, &layer.down, None)?)?;
        }
        self.norm(&x, &self.model.text.norm)
    }

    fn stay(&self, lanes: &mut Lanes, stays: &[bool]) -> Result<()> {
        Ok(lanes.stay(stays)?)
    }

    fn stretches(&self, lanes: Lanes) -> Result<Vec<Stretch>> {
        Ok(lanes.stretches()?)
    }

    fn pick(&self, parts: &[&Tensor], rows: &[usize]) -> Result<Tensor> {
        let all = if parts.len() == 1 { parts[0].clone() } else { Tensor::cat(parts, 0)? };
        Ok(all.index_select(&self.index(rows.iter().map(|row| *row as u32).collect())?, 0)?)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Vec<f32>> {
        Ok(self.head_rows(hidden)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?)
    }

    fn log_probabilities(&self, hidden: &Tensor, ids: &[u32]) -> Result<Vec<f64>> {
        let mut found = Vec::with_capacity(ids.len());
        for (at, ids) in ids.chunks(LOGITS_AT_ONCE).enumerate() {
            let logits = self.head_rows(&hidden.narrow(0, at * LOGITS_AT_ONCE, ids.len())?)?;
            let all = candle_nn::ops::log_softmax(&logits, D::Minus1)?;
            let asked = all.gather(&self.index(ids.to_vec())?.unsqueeze(1)?, 1)?.squeeze(1)?;
            found.extend(asked.to_device(&Device::Cpu)?.to_vec1::<f32>()?.into_iter().map(f64::from));
        }
        Ok(found)
    }
}
