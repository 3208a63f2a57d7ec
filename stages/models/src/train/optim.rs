//! AdamW (Loshchilov and Hutter 2019) with gradient accumulation and clipping by the global norm.
//!
//! Decay is decoupled: `w -= rate (m / (sqrt(v) + eps) + decay w)` with bias-corrected moments. Everything is f32 in name
//! order with one thread and a fixed order of summation, so equal gradients give equal bytes. A rate of 0 leaves the weights
//! as they are, bit for bit.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};

use crate::error::{ModelError, Result};

/// The number of steps in a checkpoint; it differs from the trainer's where a step takes several updates.
const STEPS: &str = "optimiser.steps";

/// Settings of [`AdamW`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay rates of the moments.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm; 0 leaves them.
    pub max_grad_norm: f64,
}

impl Default for AdamWConfig {
    fn default() -> AdamWConfig {
        AdamWConfig { betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 }
    }
}

/// One trained variable with its moments and the gradient gathered so far.
#[derive(Debug)]
struct Slot {
    name: String,
    var: Var,
    weight: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
    gradient: Vec<f32>,
}

/// The optimiser and its state.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    slots: Vec<Slot>,
    steps: u64,
}

impl AdamW {
    /// An optimiser of `variables`, moments zero.
    ///
    /// # Errors
    /// When a variable cannot be read.
    pub fn new(variables: Vec<(String, Var)>, config: AdamWConfig) -> Result<AdamW> {
        let slot = |(name, var): (String, Var)| {
            let weight = flat(var.as_tensor())?;
            let zeros = vec![0.0; weight.len()];
            Ok(Slot { name, var, weight, first: zeros.clone(), second: zeros.clone(), gradient: zeros })
        };
        Ok(AdamW { config, slots: variables.into_iter().map(slot).collect::<Result<_>>()?, steps: 0 })
    }

    /// Adds the gradients of one micro-batch, scaled by `scale`. A variable without one in the store got none.
    ///
    /// # Errors
    /// When a gradient cannot be read.
    pub fn gather(&mut self, gradients: &GradStore, scale: f32) -> Result<()> {
        for slot in &mut self.slots {
            let Some(gradient) = gradients.get(slot.var.as_tensor()) else { continue };
            for (sum, value) in slot.gradient.iter_mut().zip(flat(gradient)?) {
                *sum += scale * value;
            }
        }
        Ok(())
    }

    /// Takes one step with the gathered gradients at `rate` and forgets them. Returns their norm before clipping.
    ///
    /// # Errors
    /// When the gradients hold a value that is not finite (the weights stay as they are), or a variable cannot be written.
    pub fn step(&mut self, rate: f64) -> Result<f64> {
        let norm = self.norm();
        if !norm.is_finite() {
            return Err(ModelError::Setting(format!(
                "the gradient's norm is {norm} at step {}: lower the learning rate",
                self.steps + 1
            )));
        }
        self.steps += 1;
        let limit = self.config.max_grad_norm;
        let clip = if limit > 0.0 && norm > limit { (limit / (norm + 1e-6)) as f32 } else { 1.0 };
        let update = Update::new(&self.config, self.steps, rate, clip);
        for slot in &mut self.slots {
            update.apply(slot);
            if rate != 0.0 {
                slot.write()?;
            }
            slot.gradient.fill(0.0);
        }
        Ok(norm)
    }

    /// The global norm of the gathered gradients.
    fn norm(&self) -> f64 {
        let squares = |slot: &Slot| slot.gradient.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
        self.slots.iter().map(squares).sum::<f64>().sqrt()
    }

    /// Moments by variable name, `first.` and `second.` in front, and the number of steps taken, for a checkpoint; of variables
    /// of another type than f32 also the values that they were rounded from, `exact.` in front.
    ///
    /// # Errors
    /// When a tensor cannot be made.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for slot in &self.slots {
            let exact = slot.is_rounded().then_some(("exact", &slot.weight));
            for (part, values) in [("first", &slot.first), ("second", &slot.second)].into_iter().chain(exact) {
                let tensor = Tensor::from_slice(values, values.len(), &Device::Cpu)?;
                state.insert(format!("{part}.{}", slot.name), tensor);
            }
        }
        state.insert(STEPS.to_owned(), Tensor::new(&[self.steps as i64], &Device::Cpu)?);
        Ok(state)
    }

    /// Takes moments and steps from a checkpoint; f32 weights are read from the variables anew, others from the checkpoint, too.
    ///
    /// # Errors
    /// When a moment is missing or has another size.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let steps = state.get(STEPS).ok_or_else(|| ModelError::Setting(format!("the checkpoint has no `{STEPS}`")))?;
        self.steps = steps.to_vec1::<i64>()?.iter().sum::<i64>() as u64;
        for slot in &mut self.slots {
            slot.weight = flat(slot.var.as_tensor())?;
            let exact = slot.is_rounded().then_some(("exact", &mut slot.weight));
            for (part, values) in [("first", &mut slot.first), ("second", &mut slot.second)].into_iter().chain(exact) {
                let key = format!("{part}.{}", slot.name);
                let missing =
                    || ModelError::Setting(format!("the checkpoint has no `{key}` of {} values", values.len()));
                let tensor =
                    state.get(&key).filter(|tensor| tensor.elem_count() == values.len()).ok_or_else(missing)?;
                *values = flat(tensor)?;
            }
        }
        Ok(())
    }
}

impl Slot {
    /// Whether the variable holds less of its value than the optimiser does.
    fn is_rounded(&self) -> bool {
        self.var.as_tensor().dtype() != DType::F32
    }

    fn write(&self) -> Result<()> {
        let tensor = Tensor::from_slice(&self.weight, self.var.shape(), &Device::Cpu)?;
        Ok(self.var.set(&tensor.to_device(self.var.device())?.to_dtype(self.var.dtype())?)?)
    }
}

/// The numbers of one step that are the same for every value.
struct Update {
    beta1: f32,
    beta2: f32,
    scale: f32,
    root: f32,
    eps: f32,
    decay: f32,
    clip: f32,
}

impl Update {
    fn new(config: &AdamWConfig, steps: u64, rate: f64, clip: f32) -> Update {
        let (beta1, beta2) = config.betas;
        let bias = |beta: f64| 1.0 - beta.powf(steps as f64);
        Update {
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            scale: (rate / bias(beta1)) as f32,
            root: bias(beta2).sqrt().recip() as f32,
            eps: config.eps as f32,
            decay: (1.0 - rate * config.weight_decay) as f32,
            clip,
        }
    }

    fn apply(&self, slot: &mut Slot) {
        let moments = slot.first.iter_mut().zip(&mut slot.second);
        for ((weight, gradient), (first, second)) in slot.weight.iter_mut().zip(&slot.gradient).zip(moments) {
            let gradient = gradient * self.clip;
            *first = self.beta1 * *first + (1.0 - self.beta1) * gradient;
            *second = self.beta2 * *second + (1.0 - self.beta2) * gradient * gradient;
            *weight = *weight * self.decay - self.scale * *first / (second.sqrt() * self.root + self.eps);
        }
    }
}

/// The values of a tensor as f32 on the CPU, in row-major order.
fn flat(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quadratic(var: &Var) -> GradStore {
        var.as_tensor().sqr().unwrap().sum_all().unwrap().backward().unwrap()
    }

    fn optimiser(var: &Var, config: AdamWConfig) -> AdamW {
        AdamW::new(vec![("w".to_owned(), var.clone())], config).unwrap()
    }

    #[test]
    fn the_first_step_is_the_rate_long() {
        let var = Var::new(&[3.0f32, -2.0], &Device::Cpu).unwrap();
        let mut adam = optimiser(&var, AdamWConfig { max_grad_norm: 0.0, ..AdamWConfig::default() });
        adam.gather(&quadratic(&var), 1.0).unwrap();
        let norm = adam.step(0.1).unwrap();
        assert!((norm - 52f64.sqrt()).abs() < 1e-6);
        let values: Vec<f32> = var.as_tensor().to_vec1().unwrap();
        assert!((values[0] - 2.9).abs() < 1e-6 && (values[1] + 1.9).abs() < 1e-6, "{values:?}");
    }

    #[test]
    fn decay_is_decoupled_and_a_zero_rate_changes_nothing() {
        let var = Var::new(&[1.5f32], &Device::Cpu).unwrap();
        let mut adam = optimiser(&var, AdamWConfig { weight_decay: 0.5, ..AdamWConfig::default() });
        assert_eq!(adam.step(0.1).unwrap(), 0.0);
        assert_eq!(var.as_tensor().to_vec1::<f32>().unwrap(), [1.5 * 0.95]);
        adam.gather(&quadratic(&var), 1.0).unwrap();
        adam.step(0.0).unwrap();
        assert_eq!(var.as_tensor().to_vec1::<f32>().unwrap(), [1.5 * 0.95]);
    }

    #[test]
    fn a_restored_optimiser_takes_the_same_steps() {
        restored(DType::F32);
    }

    /// Steps far smaller than the type's grain add up in what it was rounded from.
    #[test]
    fn a_restored_optimiser_of_rounded_weights_takes_the_same_steps() {
        restored(DType::BF16);
    }

    fn restored(dtype: DType) {
        let start = Tensor::new(&[1.0f32, 4.0], &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let var = Var::from_tensor(&start).unwrap();
        let mut adam = optimiser(&var, AdamWConfig::default());
        for _ in 0..3 {
            adam.gather(&quadratic(&var), 1.0).unwrap();
            adam.step(0.1).unwrap();
        }
        let (state, twin) = (adam.state().unwrap(), Var::from_tensor(&var.as_tensor().copy().unwrap()).unwrap());
        let mut other = optimiser(&twin, AdamWConfig::default());
        other.restore(&state).unwrap();
        for (adam, var) in [(&mut adam, &var), (&mut other, &twin)] {
            adam.gather(&quadratic(var), 1.0).unwrap();
            adam.step(0.1).unwrap();
        }
        assert_eq!(adam.slots[0].weight, other.slots[0].weight);
        assert_eq!(flat(var.as_tensor()).unwrap(), flat(twin.as_tensor()).unwrap());
    }

    #[test]
    fn a_broken_gradient_is_refused() {
        let var = Var::new(&[f32::NAN], &Device::Cpu).unwrap();
        let mut adam = optimiser(&var, AdamWConfig::default());
        adam.gather(&quadratic(&var), 1.0).unwrap();
        assert!(adam.step(0.1).unwrap_err().to_string().contains("at step 1"));
    }
}
