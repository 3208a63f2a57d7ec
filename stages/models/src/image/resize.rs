//! Pillow's bicubic filter, bit for bit: separable, antialiased, a = -0.5, weights in 22-bit fixed point, 8-bit between the passes.
//! Torchvision's is the same on fewer bits, as many as let the largest weight fit 16, and its passes have a fixed order.
//! Sums are whole numbers, so that their order is free.

use image::RgbImage;

use super::planes::{Planes, split};
use super::weigh::{Tap, Taps, horizontal, vertical};

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
    let mut exact: Vec<f64> = Vec::new();
    let mut taps = Vec::with_capacity(target);
    for index in 0..target {
        let centre = (index as f64 + 0.5) * scale;
        let start = ((centre - support + 0.5) as i64).max(0) as usize;
        let end = ((centre + support + 0.5) as usize).min(source);
        let first = exact.len();
        exact.extend((start..end).map(|x| cubic((x as f64 - centre + 0.5) * (1.0 / stretch))));
        let total: f64 = exact[first..].iter().sum();
        exact[first..].iter_mut().for_each(|weight| *weight /= total);
        taps.push(Tap { start, first, count: end - start });
    }
    let precision = match filter {
        Filter::Pillow => PRECISION,
        Filter::Torchvision => {
            let largest = exact.iter().copied().fold(0.0, f64::max);
            let fits = |bits: &u32| ((0.5 + largest * f64::from(1 << (bits + 1))) as i64) < 1 << 15;
            (0..PRECISION).take_while(fits).count() as u32
        }
    };
    let fixed = |weight: f64| (weight * f64::from(1 << precision)).round() as i32;
    Taps { taps, weights: exact.into_iter().map(fixed).collect(), precision }
}

/// A picture of another size, its channels apart.
///
/// Since version 13 Pillow takes the vertical pass first where the height shrinks by more than twice as many pixels as the width;
/// earlier versions never do. Rounding between the passes makes the two differ by some grey levels where contrasts are hard.
/// Torchvision never does.
pub(super) fn resize(image: &RgbImage, width: usize, height: usize, filter: Filter) -> Planes {
    let from = [image.width(), image.height()].map(|side| side as usize);
    let [shrink_x, shrink_y] = [from[0] as i64 - width as i64, from[1] as i64 - height as i64];
    let bytes = if filter == Filter::Pillow && shrink_y > 0 && shrink_y > 2 * shrink_x {
        let lines = vertical(image.as_raw(), 3 * from[0], &taps(from[1], height, filter));
        widen(&lines, from[0], width, filter)
    } else {
        let lines = widen(image.as_raw(), from[0], width, filter);
        if from[1] == height { lines } else { vertical(&lines, 3 * width, &taps(from[1], height, filter)) }
    };
    Planes { width, height, bytes }
}

/// Lines of pixels as lines of parted channels of another width.
fn widen(lines: &[u8], from: usize, to: usize, filter: Filter) -> Vec<u8> {
    if from == to { split(lines, from) } else { horizontal(lines, from, &taps(from, to, filter)) }
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
