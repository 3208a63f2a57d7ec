//! Pillow's bicubic filter, bit for bit: separable, antialiased, a = -0.5, weights in 22-bit fixed point, 8-bit between the passes.
//! Torchvision's is the same on fewer bits, as many as let the largest weight fit 16, and its passes have a fixed order.
//! Sums are whole numbers, so that their order is free.

use std::ops::Range;

use image::RgbImage;

use super::weigh::{Tap, Taps, horizontal, split, vertical};
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

fn taps(source: usize, target: usize, filter: Filter) -> Taps {
    let scale = source as f64 / target as f64;
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    let mut taps = Vec::with_capacity(target);
    // Distances from the middle first, then weights in their place.
    let mut exact: Vec<f64> = Vec::new();
    for index in 0..target {
        let centre = (index as f64 + 0.5) * scale;
        let start = ((centre - support + 0.5) as i64).max(0) as usize;
        let end = ((centre + support + 0.5) as usize).min(source);
        taps.push(Tap { start, first: exact.len(), count: end - start });
        exact.extend((start..end).map(|x| (x as f64 - centre + 0.5) * (1.0 / stretch)));
    }
    cubic(&mut exact);
    for tap in &taps {
        let weights = &mut exact[tap.first..][..tap.count];
        let total: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= total);
    }
    let precision = match filter {
        Filter::Pillow => PRECISION,
        Filter::Torchvision => {
            let largest = exact.iter().copied().fold(0.0, f64::max);
            let fits = |bits: &u32| ((0.5 + largest * f64::from(1 << (bits + 1))) as i64) < 1 << 15;
            (0..PRECISION).take_while(fits).count() as u32
        }
    };
    let mut weights = vec![0; exact.len()];
    fix(&exact, f64::from(1 << precision), &mut weights);
    Taps { taps, weights, precision }
}

wide! {
    /// Puts the filter's value in place of each distance.
    fn cubic(distances: &mut [f64]) {
        const A: f64 = -0.5;
        for distance in distances {
            let x = distance.abs();
            let near = ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
            let far = (((x - 5.0) * x + 8.0) * x - 4.0) * A;
            *distance = if x < 1.0 { near } else if x < 2.0 { far } else { 0.0 };
        }
    }
}

wide! {
    fn fix(exact: &[f64], one: f64, weights: &mut [i32]) {
        for (weight, exact) in weights.iter_mut().zip(exact) {
            *weight = (exact * one).round() as i32;
        }
    }
}

/// A picture of another size, of which any lines can be had.
pub(super) struct Resized<'a> {
    image: &'a RgbImage,
    /// Width and height in pixels.
    pub(super) size: [usize; 2],
    /// The weights of each pass that is needed.
    across: Option<Taps>,
    down: Option<Taps>,
    down_first: bool,
}

impl<'a> Resized<'a> {
    /// An image that has a pixel, of another size.
    ///
    /// Since version 13 Pillow takes the vertical pass first where the height shrinks by more than twice as many pixels as the width;
    /// earlier versions never do. Rounding between the passes makes the two differ by some grey levels where contrasts are hard.
    /// Torchvision never does.
    pub(super) fn new(image: &'a RgbImage, size: [usize; 2], filter: Filter) -> Resized<'a> {
        let from = [image.width(), image.height()].map(|side| side as usize);
        let [shrink_x, shrink_y] = [0, 1].map(|axis| from[axis] as i64 - size[axis] as i64);
        let pass = |axis: usize| (from[axis] != size[axis]).then(|| taps(from[axis], size[axis], filter));
        let down_first = filter == Filter::Pillow && shrink_y > 0 && shrink_y > 2 * shrink_x;
        Resized { image, size, across: pass(0), down: pass(1), down_first }
    }

    /// A picture as it is.
    pub(super) fn same(image: &'a RgbImage) -> Resized<'a> {
        let size = [image.width(), image.height()].map(|side| side as usize);
        Resized::new(image, size, Filter::default())
    }

    /// Some lines, one at least; each holds all its red values, all green, all blue.
    pub(super) fn lines(&self, lines: Range<usize>) -> Vec<u8> {
        let size = 3 * self.image.width() as usize;
        let source = |lines: Range<usize>| &self.image.as_raw()[lines.start * size..lines.end * size];
        match &self.down {
            None => self.widen(source(lines)),
            Some(down) if self.down_first => self.widen(&vertical(source(down.sources(&lines)), size, down, lines)),
            Some(down) => vertical(&self.widen(source(down.sources(&lines))), 3 * self.size[0], down, lines),
        }
    }

    /// Lines of pixels as wide as the image, as lines of parted channels of the wanted width.
    fn widen(&self, lines: &[u8]) -> Vec<u8> {
        let width = self.image.width() as usize;
        match &self.across {
            None => split(lines, width),
            Some(across) => horizontal(lines, width, across),
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
        let resized = |width: usize, height: usize, filter| {
            let parted = Resized::new(&image, [width, height], filter).lines(0..height);
            let pixel =
                |place: usize| (0..3).map(move |channel| 3 * (place / width * width) + channel * width + place % width);
            (0..width * height).flat_map(pixel).map(|place| parted[place]).collect::<Vec<u8>>()
        };
        for (width, height, first, sum) in [
            (12, 23, [168, 181, 164, 182, 100, 147, 77, 153, 123, 156, 94, 54], 39_792_547u64),
            (40, 9, [103, 207, 144, 118, 180, 100, 132, 157, 100, 141, 138, 141], 67_774_742),
        ] {
            let values = resized(width, height, Filter::Torchvision);
            assert_eq!(values[..12], first);
            assert_eq!(values.iter().zip(1u64..).map(|(value, place)| place * u64::from(*value)).sum::<u64>(), sum);
        }
        assert_ne!(resized(12, 23, Filter::Torchvision), resized(12, 23, Filter::Pillow));
    }
}
