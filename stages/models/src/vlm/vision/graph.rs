//! Towers on tensors: gradients flow to every weight that is a variable.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::{Activation, Engine, Linear, Norm};
use crate::error::Result;
use crate::ops::{self, HeadShape, Segments};
use crate::vlm::text::Angles;

/// Computes on a device in a type.
#[derive(Debug, Clone)]
pub struct Graph {
    /// Where.
    pub device: Device,
    /// In which type.
    pub dtype: DType,
}

fn rows_tensor(rows: Vec<u32>, device: &Device) -> Result<Tensor> {
    let count = rows.len();
    Ok(Tensor::from_vec(rows, count, &Device::Cpu)?.to_device(device)?)
}

impl Engine for Graph {
    type Rows = Tensor;
    type Weight = Tensor;
    type Angles = (Tensor, Tensor);

    fn pixels(&self, pixels: &[&Tensor], order: Option<Vec<u32>>) -> Result<Tensor> {
        let mut rows = if pixels.len() == 1 { pixels[0].clone() } else { Tensor::cat(pixels, 0)? };
        if let Some(order) = order {
            rows = rows.index_select(&rows_tensor(order, &Device::Cpu)?, 0)?;
        }
        Ok(rows.to_dtype(self.dtype)?.to_device(&self.device)?)
    }

    fn angles(&self, angles: Option<Angles>, rows: usize, shape: HeadShape) -> Result<(Tensor, Tensor)> {
        match angles {
            Some(angles) => Ok(angles.tensors(self.dtype, &self.device)?),
            None => {
                let shape = (rows, shape.head_dim);
                Ok((Tensor::ones(shape, self.dtype, &self.device)?, Tensor::zeros(shape, self.dtype, &self.device)?))
            }
        }
    }

    fn linear(&self, x: &Tensor, map: &Linear<Tensor>) -> Result<Tensor> {
        Ok(ops::linear(x, &map.weight, map.bias.as_ref())?)
    }

    fn norm(&self, x: &Tensor, norm: &Norm<Tensor>) -> Result<Tensor> {
        Ok(match &norm.bias {
            Some(bias) => ops::layer_norm(x, &norm.weight, bias, norm.eps)?,
            None => ops::rms_norm(x, &norm.weight, norm.eps)?,
        })
    }

    fn swiglu(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::swiglu(x)?)
    }

    fn activate(&self, x: Tensor, activation: Activation) -> Result<Tensor> {
        Ok(match activation {
            Activation::Gelu => x.gelu_erf()?,
            Activation::QuickGelu => (candle_nn::ops::silu(&(x * 1.702)?)? / 1.702)?,
        })
    }

    fn norm_queries_and_keys(
        &self,
        qkv: Tensor,
        norms: &(Norm<Tensor>, Norm<Tensor>),
        shape: HeadShape,
    ) -> Result<Tensor> {
        let (q, kv) = (shape.out_width(), shape.kv_heads * shape.head_dim);
        let queries = self.norm(&qkv.narrow(1, 0, q)?.contiguous()?, &norms.0)?;
        let keys = self.norm(&qkv.narrow(1, q, kv)?.contiguous()?, &norms.1)?;
        Ok(Tensor::cat(&[&queries, &keys, &qkv.narrow(1, q + kv, kv)?], 1)?)
    }

    fn attention(
        &self,
        qkv: Tensor,
        (cos, sin): &(Tensor, Tensor),
        segments: &Arc<Segments>,
        shape: HeadShape,
    ) -> Result<Tensor> {
        Ok(ops::attention(&qkv, cos, sin, segments, shape)?)
    }

    fn add(&self, x: Tensor, y: &Tensor) -> Result<Tensor> {
        Ok((x + y)?)
    }

    fn scale(&self, x: Tensor, by: &Tensor) -> Result<Tensor> {
        Ok(x.broadcast_mul(by)?)
    }

    fn fold(&self, x: Tensor, unit: usize) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        Ok(x.reshape((rows / unit, unit * width))?)
    }

    fn table(&self, weight: &Tensor, width: usize) -> Result<Tensor> {
        Ok(weight.reshape((weight.elem_count() / width, width))?)
    }

    fn pick(&self, parts: &[&Tensor], rows: Vec<u32>) -> Result<Tensor> {
        let all = if parts.len() == 1 { parts[0].clone() } else { Tensor::cat(parts, 0)? };
        Ok(all.index_select(&rows_tensor(rows, &self.device)?, 0)?)
    }
}
