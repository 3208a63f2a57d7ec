//! Pillow's bicubic filter, bit for bit: separable, antialiased, a = -0.5, weights in 22-bit fixed point, 8-bit between the passes.
//! Sums are whole numbers, so that their order is free.

use image::RgbImage;

use crate::kernel::lanes::wide;

/// Fixed-point fraction bits of a filter weight.
const PRECISION: u32 = 22;

/// Source pixels that one target pixel reads: where they start and what each counts.
struct Tap {
    start: usize,
    weights: Vec<i32>,
}

fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn taps(source: usize, target: usize) -> Vec<Tap> {
    let scale = source as f64 / target as f64;
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    (0..target)
        .map(|index| {
            let centre = (index as f64 + 0.5) * scale;
            let start = ((centre - support + 0.5) as i64).max(0) as usize;
            let end = ((centre + support + 0.5) as usize).min(source);
            let raw: Vec<f64> = (start..end).map(|x| cubic((x as f64 - centre + 0.5) * (1.0 / stretch))).collect();
            let total: f64 = raw.iter().sum();
            let fixed = |weight: f64| (weight / total * f64::from(1 << PRECISION)).round() as i32;
            Tap { start, weights: raw.into_iter().map(fixed).collect() }
        })
        .collect()
}

/// What the sums of weighted bytes begin with: a half, so that dropping the fraction rounds.
const HALF: i32 = 1 << (PRECISION - 1);

#[inline(always)]
fn byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Pillow's `Image.resize((width, height), BICUBIC)`.
///
/// Since version 13 Pillow takes the vertical pass first where the height shrinks by more than twice as many pixels as the width;
/// earlier versions never do. Rounding between the passes makes the two differ by some grey levels where contrasts are hard.
pub fn resize_bicubic(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let [shrink_x, shrink_y] =
        [(image.width(), width), (image.height(), height)].map(|(from, to)| i64::from(from) - i64::from(to));
    if shrink_y > 0 && shrink_y > 2 * shrink_x {
        return horizontal(&vertical(image, height), width);
    }
    vertical(&horizontal(image, width), height)
}

fn horizontal(image: &RgbImage, width: u32) -> RgbImage {
    if width == image.width() {
        return image.clone();
    }
    let taps = taps(image.width() as usize, width as usize);
    let mut out = RgbImage::new(width, image.height());
    let (from, to) = (3 * image.width() as usize, 3 * width as usize);
    for (line, out) in image.as_raw().chunks_exact(from).zip(out.chunks_exact_mut(to)) {
        weigh_pixels(line, &taps, out);
    }
    out
}

fn vertical(image: &RgbImage, height: u32) -> RgbImage {
    if height == image.height() {
        return image.clone();
    }
    let taps = taps(image.height() as usize, height as usize);
    let mut out = RgbImage::new(image.width(), height);
    let size = 3 * image.width() as usize;
    let mut sums = vec![0; size];
    for (tap, out) in taps.iter().zip(out.chunks_exact_mut(size)) {
        weigh_lines(&image.as_raw()[tap.start * size..], tap, &mut sums, out);
    }
    out
}

wide! {
    fn weigh_pixels(line: &[u8], taps: &[Tap], out: &mut [u8]) {
        for (tap, out) in taps.iter().zip(out.chunks_exact_mut(3)) {
            let mut sums = [HALF; 3];
            for (pixel, weight) in line[3 * tap.start..].chunks_exact(3).zip(&tap.weights) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*value) * weight;
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = byte(sum);
            }
        }
    }
}

wide! {
    fn weigh_lines(lines: &[u8], tap: &Tap, sums: &mut [i32], out: &mut [u8]) {
        sums.fill(HALF);
        for (line, weight) in lines.chunks_exact(sums.len()).zip(&tap.weights) {
            for (sum, value) in sums.iter_mut().zip(line) {
                *sum += i32::from(*value) * weight;
            }
        }
        for (out, sum) in out.iter_mut().zip(sums.iter()) {
            *out = byte(*sum);
        }
    }
}
