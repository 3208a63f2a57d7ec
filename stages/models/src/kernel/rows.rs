//! Row-wise kernels: norm, gate, softmax. Sums run in 16 interleaved parts that a fixed tree joins.

use super::lanes::wide;

/// `e^x` to about one unit in the last place, in plain operations that vectorise; 0 below -87.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to a whole number in the low bits
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = clamped * std::f32::consts::LOG2_E + SHIFT;
    let whole = shifted - SHIFT;
    let r = (clamped - whole * 0.693_359_4) - whole * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p * r + coefficient;
    }
    let value = (p * (r * r) + r) + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x < -87.0 { 0.0 } else { value * scale }
}

/// The sum of `f` over values in the fixed order.
#[inline(always)]
fn fixed_sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut parts = [0.0f32; 16];
    let chunks = values.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (part, value) in parts.iter_mut().zip(chunk) {
            *part += f(*value);
        }
    }
    for (part, value) in parts.iter_mut().zip(rest) {
        *part += f(*value);
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            parts[i] += parts[i + half];
        }
    }
    parts[0]
}

wide! {
    /// Root mean square norm of every row of `x` into `y`, both `[n, weight.len()]`.
    pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
        for (x, y) in x.chunks_exact(weight.len()).zip(y.chunks_exact_mut(weight.len())) {
            let mean = fixed_sum(x, |v| v * v) / weight.len() as f32;
            let scale = 1.0 / (mean + eps).sqrt();
            for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                *y = x * scale * w;
            }
        }
    }
}

wide! {
    /// Layer norm of every row of `x` into `y`, both `[n, weight.len()]`.
    pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
        for (x, y) in x.chunks_exact(weight.len()).zip(y.chunks_exact_mut(weight.len())) {
            let mean = fixed_sum(x, |v| v) / weight.len() as f32;
            let variance = fixed_sum(x, |v| (v - mean) * (v - mean)) / weight.len() as f32;
            let scale = 1.0 / (variance + eps).sqrt();
            for (((y, x), w), b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                *y = (x - mean) * scale * w + b;
            }
        }
    }
}

wide! {
    /// `x sigmoid(1.702 x)` in place.
    pub fn quick_gelu(x: &mut [f32]) {
        for x in x.iter_mut() {
            *x /= 1.0 + exp(-1.702 * *x);
        }
    }
}

wide! {
    /// `silu(gate) * up` of rows `[n, 2 width]`, gate first, into `y` `[n, width]`.
    pub fn swiglu(gate_up: &[f32], width: usize, y: &mut [f32]) {
        for (row, y) in gate_up.chunks_exact(2 * width).zip(y.chunks_exact_mut(width)) {
            let (gate, up) = row.split_at(width);
            for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
                *y = g / (1.0 + exp(-g)) * u;
            }
        }
    }
}

wide! {
    /// `x += y`.
    pub fn add(x: &mut [f32], y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}

wide! {
    /// Turns scores into weights that sum to one.
    pub fn softmax(scores: &mut [f32]) {
        softmax_body(scores);
    }
}

/// The largest value; partial maxima vectorise, and their order does not matter.
#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    let greater = |a: f32, b: f32| if b > a { b } else { a };
    let mut parts = [f32::NEG_INFINITY; 16];
    let chunks = values.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (part, value) in parts.iter_mut().zip(chunk) {
            *part = greater(*part, *value);
        }
    }
    parts.iter().chain(rest).fold(f32::NEG_INFINITY, |top, value| greater(top, *value))
}

/// The body of [`softmax`], for kernels that are compiled wide themselves.
#[inline(always)]
pub(crate) fn softmax_body(scores: &mut [f32]) {
    let top = largest(scores);
    for score in scores.iter_mut() {
        *score = exp(*score - top);
    }
    let scale = 1.0 / fixed_sum(scores, |v| v);
    for score in scores.iter_mut() {
        *score *= scale;
    }
}

/// `ln` of the sum of exponentials, accumulated in f64.
pub fn log_sum_exp(values: &[f32]) -> f64 {
    let top = largest(values);
    let sum: f64 = values.iter().map(|v| f64::from(exp(v - top))).sum();
    f64::from(top) + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close() {
        for i in -9000..9000 {
            let x = i as f32 / 105.0;
            let exact = f64::from(x).exp();
            assert!(((f64::from(exp(x)) - exact) / exact).abs() < 3e-7, "{x}");
        }
        assert_eq!(exp(-200.0), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn softmax_sums_to_one() {
        let mut scores: Vec<f32> = (0..37).map(|i| (i as f32 * 0.37).sin() * 4.0).collect();
        let total = log_sum_exp(&scores);
        let first = f64::from(scores[0]);
        softmax(&mut scores);
        assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!((f64::from(scores[0]).ln() - (first - total)).abs() < 1e-5);
    }

    #[test]
    fn norm_and_gate_follow_their_definitions() {
        let x: Vec<f32> = (0..40).map(|i| (i as f32 * 0.7).cos()).collect();
        let weight: Vec<f32> = (0..20).map(|i| 1.0 + i as f32 * 0.01).collect();
        let mut y = vec![0.0; 40];
        rms_norm(&x, &weight, 1e-6, &mut y);
        let mean: f64 = x[20..].iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 20.0;
        let expected = f64::from(x[25]) / (mean + 1e-6).sqrt() * f64::from(weight[5]);
        assert!((f64::from(y[25]) - expected).abs() < 1e-6);
        let shift: Vec<f32> = (0..20).map(|i| i as f32 * 0.1).collect();
        layer_norm(&x, &weight, &shift, 1e-6, &mut y);
        let middle = x[20..].iter().map(|v| f64::from(*v)).sum::<f64>() / 20.0;
        let spread = x[20..].iter().map(|v| (f64::from(*v) - middle).powi(2)).sum::<f64>() / 20.0;
        let expected = (f64::from(x[25]) - middle) / (spread + 1e-6).sqrt() * f64::from(weight[5]) + 0.5;
        assert!((f64::from(y[25]) - expected).abs() < 1e-6);
        let mut quick = [1.5f32, -0.25, 0.0];
        quick_gelu(&mut quick);
        assert!((f64::from(quick[0]) - 1.5 / (1.0 + (-1.702f64 * 1.5).exp())).abs() < 1e-6 && quick[2] == 0.0);
        let mut gated = vec![0.0; 20];
        swiglu(&x, 10, &mut gated);
        let (g, u) = (f64::from(x[23]), f64::from(x[33]));
        assert!((f64::from(gated[13]) - g / (1.0 + (-g).exp()) * u).abs() < 1e-6);
    }
}
