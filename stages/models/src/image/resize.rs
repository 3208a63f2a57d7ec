//! Pillow's bicubic filter, bit for bit: separable, antialiased, a = -0.5, weights in 22-bit fixed point, 8-bit between the passes.
//! Torchvision's is the same on fewer bits, as many as let the largest weight fit 16, and its passes have a fixed order.

use image::RgbImage;

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
    fn weigh(&self, index: u32, pixel: impl Fn(usize) -> u8) -> u8 {
        let tap = &self.taps[index as usize];
        let half = 1i32 << (self.precision - 1);
        let sum = tap.weights.iter().enumerate().fold(half, |sum, (i, w)| sum + i32::from(pixel(tap.start + i)) * w);
        (sum >> self.precision).clamp(0, 255) as u8
    }
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
    RgbImage::from_fn(width, image.height(), |x, y| {
        image::Rgb([0, 1, 2].map(|c| taps.weigh(x, |at| image.get_pixel(at as u32, y)[c])))
    })
}

fn vertical(image: &RgbImage, height: u32, filter: Filter) -> RgbImage {
    if height == image.height() {
        return image.clone();
    }
    let taps = taps(image.height() as usize, height as usize, filter);
    RgbImage::from_fn(image.width(), height, |x, y| {
        image::Rgb([0, 1, 2].map(|c| taps.weigh(y, |at| image.get_pixel(x, at as u32)[c])))
    })
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
