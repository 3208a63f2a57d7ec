//! Pillow's bicubic filter, bit for bit: separable, antialiased, a = -0.5, weights in 22-bit fixed point, 8-bit between the passes.
//! Torchvision's is the same on fewer bits, as many as let the largest weight fit 16, and its passes have a fixed order.
//! Sums are whole numbers, so that their order is free.

use image::RgbImage;

use crate::kernel::lanes::wide;

/// Whose bicubic filter. Where contrasts are hard, the two differ by some grey levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Filter {
    /// Pillow's: what this crate trains and answers with.
    #[default]
    Pillow,
    /// Torchvision's: what transformers 5 picks where torchvision is installed.
    Torchvision,
}

/// Pillow's fixed-point fraction bits of a filter weight.
const PRECISION: u32 = 22;

/// Fixed-point weights of every target pixel.
struct Taps {
    taps: Vec<Tap>,
    precision: u32,
}

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

fn taps(source: usize, target: usize, filter: Filter) -> Taps {
    let scale = source as f64 / target as f64;
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    let exact: Vec<(usize, Vec<f64>)> = (0..target)
        .map(|index| {
            let centre = (index as f64 + 0.5) * scale;
            let start = ((centre - support + 0.5) as i64).max(0) as usize;
            let end = ((centre + support + 0.5) as usize).min(source);
            let raw: Vec<f64> = (start..end).map(|x| cubic((x as f64 - centre + 0.5) * (1.0 / stretch))).collect();
            let total: f64 = raw.iter().sum();
            (start, raw.into_iter().map(|weight| weight / total).collect())
        })
        .collect();
    let precision = match filter {
        Filter::Pillow => PRECISION,
        Filter::Torchvision => {
            let largest = exact.iter().flat_map(|(_, weights)| weights).copied().fold(0.0, f64::max);
            let fits = |bits: &u32| ((0.5 + largest * f64::from(1 << (bits + 1))) as i64) < 1 << 15;
            (0..PRECISION).take_while(fits).count() as u32
        }
    };
    let fixed = |weight: f64| (weight * f64::from(1 << precision)).round() as i32;
    let tap = |(start, weights): (usize, Vec<f64>)| Tap { start, weights: weights.into_iter().map(fixed).collect() };
    Taps { taps: exact.into_iter().map(tap).collect(), precision }
}

impl Taps {
    /// What the sums of weighted bytes begin with: a half, so that dropping the fraction rounds.
    fn half(&self) -> i32 {
        1 << (self.precision - 1)
    }
}

#[inline(always)]
fn byte(sum: i32, precision: u32) -> u8 {
    (sum >> precision).clamp(0, 255) as u8
}

/// A picture of another size, by either filter.
pub(super) fn resize(image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    match filter {
        Filter::Pillow => resize_bicubic(image, width, height),
        Filter::Torchvision => vertical(&horizontal(image, width, filter), height, filter),
    }
}

/// Pillow's `Image.resize((width, height), BICUBIC)`.
///
/// Since version 13 Pillow takes the vertical pass first where the height shrinks by more than twice as many pixels as the width;
/// earlier versions never do. Rounding between the passes makes the two differ by some grey levels where contrasts are hard.
pub fn resize_bicubic(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let [shrink_x, shrink_y] =
        [(image.width(), width), (image.height(), height)].map(|(from, to)| i64::from(from) - i64::from(to));
    if shrink_y > 0 && shrink_y > 2 * shrink_x {
        return horizontal(&vertical(image, height, Filter::Pillow), width, Filter::Pillow);
    }
    vertical(&horizontal(image, width, Filter::Pillow), height, Filter::Pillow)
}

fn horizontal(image: &RgbImage, width: u32, filter: Filter) -> RgbImage {
    if width == image.width() {
        return image.clone();
    }
    let taps = taps(image.width() as usize, width as usize, filter);
    let mut out = RgbImage::new(width, image.height());
    let (from, to) = (3 * image.width() as usize, 3 * width as usize);
    for (line, out) in image.as_raw().chunks_exact(from).zip(out.chunks_exact_mut(to)) {
        weigh_pixels(line, &taps, out);
    }
    out
}

fn vertical(image: &RgbImage, height: u32, filter: Filter) -> RgbImage {
    if height == image.height() {
        return image.clone();
    }
    let taps = taps(image.height() as usize, height as usize, filter);
    let mut out = RgbImage::new(image.width(), height);
    let size = 3 * image.width() as usize;
    let mut sums = vec![0; size];
    for (tap, out) in taps.taps.iter().zip(out.chunks_exact_mut(size)) {
        sums.fill(taps.half());
        weigh_lines(&image.as_raw()[tap.start * size..], tap, taps.precision, &mut sums, out);
    }
    out
}

wide! {
    fn weigh_pixels(line: &[u8], taps: &Taps, out: &mut [u8]) {
        for (tap, out) in taps.taps.iter().zip(out.chunks_exact_mut(3)) {
            let mut sums = [taps.half(); 3];
            for (pixel, weight) in line[3 * tap.start..].chunks_exact(3).zip(&tap.weights) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*value) * weight;
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = byte(sum, taps.precision);
            }
        }
    }
}

wide! {
    fn weigh_lines(lines: &[u8], tap: &Tap, precision: u32, sums: &mut [i32], out: &mut [u8]) {
        for (line, weight) in lines.chunks_exact(sums.len()).zip(&tap.weights) {
            for (sum, value) in sums.iter_mut().zip(line) {
                *sum += i32::from(*value) * weight;
            }
        }
        for (out, sum) in out.iter_mut().zip(sums.iter()) {
            *out = byte(*sum, precision);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What torchvision 0.29 gives: `resize(image, [height, width], BICUBIC, antialias=True)` on bytes.
    #[test]
    fn torchvision_is_met_to_the_bit() {
        let value = |x: u32, y: u32, c: u32| ((x * 73 + y * 151 + c * 59).pow(2) / 7 % 256) as u8;
        let image = RgbImage::from_fn(31, 17, |x, y| image::Rgb([0, 1, 2].map(|c| value(x, y, c))));
        for (width, height, first, sum) in [
            (12, 23, [168, 181, 164, 182, 100, 147, 77, 153, 123, 156, 94, 54], 39_792_547u64),
            (40, 9, [103, 207, 144, 118, 180, 100, 132, 157, 100, 141, 138, 141], 67_774_742),
        ] {
            let values = resize(&image, width, height, Filter::Torchvision).into_raw();
            assert_eq!(values[..12], first);
            assert_eq!(values.iter().zip(1u64..).map(|(value, place)| place * u64::from(*value)).sum::<u64>(), sum);
        }
        assert_ne!(resize(&image, 12, 23, Filter::Torchvision), resize(&image, 12, 23, Filter::Pillow));
    }
}
