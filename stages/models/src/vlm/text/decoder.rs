//! The language model on packed rows, differentiable.

use std::sync::Arc;

use candle_core::{Result as TensorResult, Tensor};

use super::config::TextConfig;
use super::rope::TextRope;
use crate::error::Result;
use crate::ops::{self, Segments};
use crate::weights::Weights;

/// The language model over named weights, from embedded rows to normalised hidden rows.
#[derive(Debug, Clone)]
pub struct LanguageModel {
    config: TextConfig,
    pub(in crate::vlm) rope: TextRope,
    embed: Tensor,
    pub(in crate::vlm) layers: Vec<Layer>,
    pub(in crate::vlm) norm: Tensor,
    head: Tensor,
}

/// The weights of one layer.
#[derive(Debug, Clone)]
pub(in crate::vlm) struct Layer {
    pub(in crate::vlm) norm1: Tensor,
    pub(in crate::vlm) norm2: Tensor,
    pub(in crate::vlm) qkv: Tensor,
    pub(in crate::vlm) qkv_bias: Option<Tensor>,
    pub(in crate::vlm) out: Tensor,
    pub(in crate::vlm) gate_up: Tensor,
    pub(in crate::vlm) down: Tensor,
}

impl LanguageModel {
    /// The model over its weights; frozen ones get no gradient.
    ///
    /// # Errors
    /// When a weight is missing.
    pub fn new(config: &TextConfig, weights: &Weights, frozen: bool) -> Result<LanguageModel> {
        let get = |name: &str| weights.get(name, frozen);
        let bias = config.decoder.has_bias();
        let layer = |index: usize| {
            let get = |name: &str| get(&format!("model.layers.{index}.{name}"));
            Ok(Layer {
                norm1: get("input_layernorm.weight")?,
                norm2: get("post_attention_layernorm.weight")?,
                qkv: get("self_attn.qkv_proj.weight")?,
                qkv_bias: bias.then(|| get("self_attn.qkv_proj.bias")).transpose()?,
                out: get("self_attn.o_proj.weight")?,
                gate_up: get("mlp.gate_up_proj.weight")?,
                down: get("mlp.down_proj.weight")?,
            })
        };
        let embed = get("model.embed_tokens.weight")?;
        Ok(LanguageModel {
            config: config.clone(),
            rope: TextRope::new(config),
            head: if config.tie_word_embeddings { embed.clone() } else { get("lm_head.weight")? },
            embed,
            layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
            norm: get("model.norm.weight")?,
        })
    }

    /// The embedding table `[V, hidden]`.
    pub fn embed(&self) -> &Tensor {
        &self.embed
    }

    /// The output head `[V, hidden]`.
    pub fn head(&self) -> &Tensor {
        &self.head
    }

    /// Hidden rows `[N, hidden]` after the last norm.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, x: &Tensor, positions: &[Vec<u32>; 3], segments: &Arc<Segments>) -> TensorResult<Tensor> {
        let (cos, sin) = self.rope.angles(positions).tensors(x.dtype(), x.device())?;
        let eps = self.config.rms_norm_eps;
        let mut x = x.clone();
        for (index, layer) in self.layers.iter().enumerate() {
            let qkv = ops::linear(&ops::rms_norm(&x, &layer.norm1, eps)?, &layer.qkv, layer.qkv_bias.as_ref())?;
            let window = self.config.window(index);
            let seen = ops::windowed_attention(&qkv, &cos, &sin, segments, self.config.heads, window)?;
            x = (x + ops::linear(&seen, &layer.out, None)?)?;
            let gate_up = ops::linear(&ops::rms_norm(&x, &layer.norm2, eps)?, &layer.gate_up, None)?;
            x = (&x + ops::linear(&ops::swiglu(&gate_up)?, &layer.down, None)?)?;
        }
        ops::rms_norm(&x, &self.norm, eps)
    }
}
