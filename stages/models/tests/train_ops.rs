//! The fused kernels against the composites they replace: values and gradients over random shapes and segment lists.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor, Var};
use mpcc_models::ops::{self, HeadShape, Segment, Segments, reference};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn draw(rng: &mut ChaCha8Rng, rows: usize, columns: usize) -> Var {
    let values: Vec<f32> = (0..rows * columns).map(|_| rng.random_range(-1.5f32..1.5)).collect();
    Var::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
}

fn vector(rng: &mut ChaCha8Rng, width: usize) -> Var {
    Var::from_tensor(&draw(rng, 1, width).as_tensor().flatten_all().unwrap()).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The value and the gradients of `f`, its output weighted by fixed numbers that reach the op with odd strides.
fn run(f: impl Fn() -> Result<Tensor>, vars: &[&Var]) -> Vec<Vec<f32>> {
    let out = f().unwrap();
    let count = out.elem_count();
    let weights: Vec<f32> = (0..count).map(|i| ((i * 37 % 101) as f32 / 50.0) - 1.0).collect();
    let weighted = match out.rank() {
        2 => {
            let (rows, columns) = out.dims2().unwrap();
            let weights = Tensor::from_vec(weights, (columns, rows), &Device::Cpu).unwrap().t().unwrap();
            (&out.t().unwrap() * weights.t().unwrap()).unwrap()
        }
        _ => (&out * Tensor::from_vec(weights, count, &Device::Cpu).unwrap()).unwrap(),
    };
    let gradients = weighted.sum_all().unwrap().backward().unwrap();
    let grads = vars.iter().map(|var| values(gradients.get(var.as_tensor()).expect("every variable has a gradient")));
    std::iter::once(values(&out)).chain(grads).collect()
}

fn same(what: &str, fused: &[Vec<f32>], plain: &[Vec<f32>]) {
    for (index, (a, b)) in fused.iter().zip(plain).enumerate() {
        let top = b.iter().fold(1e-3f32, |top, v| top.max(v.abs()));
        let worst = a.iter().zip(b).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
        assert!(a.len() == b.len() && worst <= 2e-5 * top, "{what}, part {index}: differs by {worst} of {top}");
        assert!(a.iter().any(|v| *v != 0.0), "{what}, part {index}: all zero");
    }
}

#[test]
fn norm_gate_and_linear_maps_agree_with_their_composites() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (rows, width) in [(1, 8), (3, 24), (130, 96), (65, 33)] {
        let (x, w) = (draw(&mut rng, rows, width), vector(&mut rng, width));
        let fused = run(|| ops::rms_norm(&x, &w, 1e-6), &[&x, &w]);
        same("rms_norm", &fused, &run(|| reference::rms_norm(&x, &w, 1e-6), &[&x, &w]));
        let double = draw(&mut rng, rows, 2 * width);
        same("swiglu", &run(|| ops::swiglu(&double), &[&double]), &run(|| reference::swiglu(&double), &[&double]));
        let (weight, bias) = (draw(&mut rng, 19, width), vector(&mut rng, 19));
        let fused = run(|| ops::linear(&x, &weight, Some(&bias)), &[&x, &weight, &bias]);
        same("linear", &fused, &run(|| reference::linear(&x, &weight, Some(&bias)), &[&x, &weight, &bias]));
        let fused = run(|| ops::linear(&x, &weight, None), &[&x, &weight]);
        same("linear without bias", &fused, &run(|| reference::linear(&x, &weight, None), &[&x, &weight]));
    }
}

fn segments(rng: &mut ChaCha8Rng) -> Segments {
    let mut list: Vec<Segment> = Vec::new();
    let mut start = 0;
    for _ in 0..rng.random_range(1..6) {
        let length = [1, 2, 7, 40, 70, 130][rng.random_range(0..6)];
        let own = start..start + length;
        let earlier = list.get(rng.random_range(0..list.len().max(1)));
        let prefix = match earlier {
            Some(segment) if rng.random_range(0..3) > 0 => {
                segment.own.start..segment.own.start + rng.random_range(1..=segment.own.len())
            }
            _ => start..start,
        };
        list.push(Segment { own, prefix, causal: rng.random_range(0..3) > 0 });
        start += length;
    }
    Segments::new(list).unwrap()
}

fn angles(rng: &mut ChaCha8Rng, rows: usize, width: usize) -> (Tensor, Tensor) {
    let angle = draw(rng, rows, width / 2);
    let both = Tensor::cat(&[angle.as_tensor(), angle.as_tensor()], 1).unwrap().detach();
    (both.cos().unwrap(), both.sin().unwrap())
}

/// A tower's windows: a few sizes, again and again.
fn windows(causal: bool) -> Segments {
    let lengths = [9, 9, 6, 9, 9, 6, 3, 3, 2];
    if causal { Segments::causal(lengths) } else { Segments::full(lengths) }.unwrap()
}

#[test]
fn segments_of_like_length_are_composed_together() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for (heads, kv_heads, head_dim) in [(4, 2, 24), (2, 2, 8), (3, 1, 6)] {
        let shape = HeadShape { heads, kv_heads, head_dim };
        for list in [windows(false), windows(true), Segments::full([5; 4]).unwrap()].map(Arc::new) {
            let qkv = draw(&mut rng, list.rows(), shape.qkv_width());
            let (cos, sin) = angles(&mut rng, list.rows(), head_dim);
            for window in [None, Some(4)] {
                let fused = run(|| ops::windowed_attention(&qkv, &cos, &sin, &list, shape, window), &[&qkv]);
                let plain = run(|| reference::attention(&qkv, &cos, &sin, &list, shape, window), &[&qkv]);
                same(&format!("attention of {window:?} over {list:?}"), &fused, &plain);
            }
        }
    }
}

#[test]
fn attention_agrees_with_its_composite_on_random_segments() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let shapes = [(4, 2, 24), (4, 4, 16), (2, 1, 8), (3, 1, 6), (6, 3, 32)];
    for round in 0..25 {
        let (heads, kv_heads, head_dim) = shapes[round % shapes.len()];
        let shape = HeadShape { heads, kv_heads, head_dim };
        let list = Arc::new(segments(&mut rng));
        let qkv = draw(&mut rng, list.rows(), shape.qkv_width());
        let (cos, sin) = angles(&mut rng, list.rows(), head_dim);
        let fused = run(|| ops::attention(&qkv, &cos, &sin, &list, shape), &[&qkv]);
        let plain = run(|| reference::attention(&qkv, &cos, &sin, &list, shape, None), &[&qkv]);
        same(&format!("attention over {list:?}"), &fused, &plain);
        let window = Some([1, 2, 9, 64, 100][round / 5]);
        let fused = run(|| ops::windowed_attention(&qkv, &cos, &sin, &list, shape, window), &[&qkv]);
        let plain = run(|| reference::attention(&qkv, &cos, &sin, &list, shape, window), &[&qkv]);
        same(&format!("attention of {window:?} over {list:?}"), &fused, &plain);
    }
}

#[test]
fn token_logprobs_agree_with_their_composite() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for (n, width, vocabulary, tokens) in [(5, 8, 11, 9), (40, 24, 130, 70), (3, 4, 300_000, 40)] {
        let (hidden, head) = (draw(&mut rng, n, width), draw(&mut rng, vocabulary, width));
        let mut pick = |below: usize| (0..tokens).map(|_| rng.random_range(0..below as u32)).collect::<Vec<_>>();
        let (rows, targets) = (pick(n), pick(vocabulary));
        let fused = run(|| ops::token_logprobs(&hidden, &head, &rows, &targets), &[&hidden, &head]);
        let plain = run(|| reference::token_logprobs(&hidden, &head, &rows, &targets), &[&hidden, &head]);
        same("token_logprobs", &fused, &plain);
    }
    let (hidden, head) = (draw(&mut rng, 2, 4), draw(&mut rng, 3, 4));
    for (rows, targets) in [(vec![2], vec![0]), (vec![0], vec![3]), (vec![0, 1], vec![0]), (vec![], vec![])] {
        assert!(ops::token_logprobs(&hidden, &head, &rows, &targets).is_err());
    }
}

#[test]
fn attention_follows_finite_differences() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let shape = HeadShape { heads: 2, kv_heads: 1, head_dim: 4 };
    let list = Arc::new(
        Segments::new(vec![
            Segment { own: 0..3, prefix: 0..0, causal: true },
            Segment { own: 3..5, prefix: 0..3, causal: true },
            Segment { own: 5..7, prefix: 0..3, causal: true },
        ])
        .unwrap(),
    );
    let (cos, sin) = angles(&mut rng, 7, 4);
    let qkv = draw(&mut rng, 7, shape.qkv_width());
    let loss = |qkv: &Tensor| ops::attention(qkv, &cos, &sin, &list, shape).unwrap().sqr().unwrap().sum_all().unwrap();
    let gradients = loss(&qkv).backward().unwrap();
    let gradient = values(gradients.get(qkv.as_tensor()).unwrap());
    let at = values(qkv.as_tensor());
    for _ in 0..30 {
        let index = rng.next_u32() as usize % at.len();
        let moved = |by: f32| {
            let mut values = at.clone();
            values[index] += by;
            let tensor = Tensor::from_vec(values, qkv.shape(), &Device::Cpu).unwrap();
            f64::from(loss(&tensor).to_scalar::<f32>().unwrap())
        };
        let slope = (moved(5e-3) - moved(-5e-3)) / 1e-2;
        assert!(
            (slope - f64::from(gradient[index])).abs() < 2e-3 * slope.abs().max(1.0),
            "{slope} {}",
            gradient[index]
        );
    }
}

/// Bits of a chain of all ops and its gradients under a pool of so many threads.
fn chain(threads: usize) -> Vec<Vec<u32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let shape = HeadShape { heads: 4, kv_heads: 2, head_dim: 24 };
    let list = Arc::new(Segments::causal([62; 12]).unwrap());
    let rows = list.rows();
    let (x, norm, qkv) = (draw(&mut rng, rows, 96), vector(&mut rng, 96), draw(&mut rng, shape.qkv_width(), 96));
    let (bias, up, head) = (vector(&mut rng, shape.qkv_width()), draw(&mut rng, 512, 96), draw(&mut rng, 130, 256));
    let (cos, sin) = angles(&mut rng, rows, 24);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let h = ops::linear(&ops::rms_norm(&x, &norm, 1e-6).unwrap(), &qkv, Some(&bias)).unwrap();
        let h = ops::attention(&h, &cos, &sin, &list, shape).unwrap();
        let h = ops::swiglu(&ops::linear(&h, &up, None).unwrap()).unwrap();
        let (picked, targets): (Vec<u32>, Vec<u32>) = (0..rows as u32).map(|row| (row, row % 130)).unzip();
        let loss = ops::token_logprobs(&h, &head, &picked, &targets).unwrap().mean_all().unwrap();
        let gradients = loss.backward().unwrap();
        let all = [&x, &norm, &qkv, &bias, &up, &head].map(|var| values(gradients.get(var.as_tensor()).unwrap()));
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
        all.into_iter().chain([values(&loss)]).map(bits).collect()
    })
}

#[test]
fn bits_depend_on_neither_the_threads_nor_the_run() {
    let one = chain(1);
    assert!(one == chain(1), "two runs differ");
    assert!(one == chain(2), "one and two threads differ");
    assert!(one == chain(3), "one and three threads differ");
}

#[test]
fn what_is_frozen_gets_no_gradient() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let (x, weight, bias) = (draw(&mut rng, 4, 6), draw(&mut rng, 3, 6), vector(&mut rng, 3));
    let (frozen, frozen_bias) = (weight.as_detached_tensor(), bias.as_detached_tensor());
    let y = ops::linear(&x, &frozen, Some(&frozen_bias)).unwrap();
    let gradients = y.sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(x.as_tensor()).is_some());
    assert!(gradients.get(&frozen).is_none() && gradients.get(weight.as_tensor()).is_none());
    assert!(gradients.get(&frozen_bias).is_none());
    let y = reference::linear(&x, &frozen, None).unwrap();
    let plain = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(values(gradients.get(x.as_tensor()).unwrap()), values(plain.get(x.as_tensor()).unwrap()));
    assert!(plain.get(&frozen).is_none());
}
