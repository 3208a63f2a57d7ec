//! Pillow's bicubic filter, bit for bit: separable, antialiased, a = -0.5, weights in 22-bit fixed point, 8-bit between the passes.

use image::RgbImage;

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

fn weigh(tap: &Tap, pixel: impl Fn(usize) -> u8) -> u8 {
    let half = 1i32 << (PRECISION - 1);
    let sum = tap.weights.iter().enumerate().fold(half, |sum, (i, w)| sum + i32::from(pixel(tap.start + i)) * w);
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
    RgbImage::from_fn(width, image.height(), |x, y| {
        let tap = &taps[x as usize];
        image::Rgb([0, 1, 2].map(|c| weigh(tap, |at| image.get_pixel(at as u32, y)[c])))
    })
}

fn vertical(image: &RgbImage, height: u32) -> RgbImage {
    if height == image.height() {
        return image.clone();
    }
    let taps = taps(image.height() as usize, height as usize);
    RgbImage::from_fn(image.width(), height, |x, y| {
        let tap = &taps[y as usize];
        image::Rgb([0, 1, 2].map(|c| weigh(tap, |at| image.get_pixel(x, at as u32)[c])))
    })
}
