//! Pillow's Gaussian blur on an 8-bit picture: three box passes along rows, then three along columns.
//!
//! The box has a fractional radius, chosen so that three passes have the variance of the Gaussian (Gwosdek et al., "Theoretical
//! foundations of Gaussian convolution by extended box filtering", 2011, equations 7, 11 and 14). Pillow sums in 24-bit
//! fixed point and rounds to 8 bits after every pass; so does this, which makes it equal on every pixel.

const PASSES: u32 = 3;

/// Blurs `pixels` (row-major, `width` a row) with standard deviation `sigma`.
pub fn gaussian(pixels: &mut [u8], width: usize, height: usize, sigma: f32) {
    if sigma <= 0.0 || pixels.is_empty() {
        return;
    }
    let box_filter = BoxFilter::new(box_radius(sigma));
    for row in pixels.chunks_exact_mut(width) {
        box_filter.passes(row);
    }
    let mut column = vec![0; height];
    for x in 0..width {
        (0..height).for_each(|y| column[y] = pixels[y * width + x]);
        box_filter.passes(&mut column);
        (0..height).for_each(|y| pixels[y * width + x] = column[y]);
    }
}

fn box_radius(sigma: f32) -> f32 {
    let variance = sigma * sigma / PASSES as f32;
    let length = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
    let whole = ((length - 1.0) / 2.0).floor();
    let part = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance);
    whole + part / (6.0 * (variance - (whole + 1.0) * (whole + 1.0)))
}

/// A box of `2 * whole + 1` pixels of weight `inner` and one of weight `outer` at each end, in units of 2^-24.
struct BoxFilter {
    whole: usize,
    inner: u32,
    outer: u32,
}

impl BoxFilter {
    fn new(radius: f32) -> Self {
        let whole = radius as u32;
        let inner = ((1_u32 << 24) as f32 / (radius * 2.0 + 1.0)) as u32;
        Self { whole: whole as usize, inner, outer: ((1 << 24) - (whole * 2 + 1) * inner) / 2 }
    }

    fn passes(&self, line: &mut [u8]) {
        let mut source = line.to_vec();
        for _ in 0..PASSES {
            source.copy_from_slice(line);
            self.pass(&source, line);
        }
    }

    /// One pass; beyond its ends the line goes on with its first and last value.
    fn pass(&self, source: &[u8], line: &mut [u8]) {
        let last = source.len() as isize - 1;
        let at = |place: isize| u32::from(source[place.clamp(0, last) as usize]);
        let reach = self.whole as isize;
        let mut sum: u32 = (-reach..=reach).map(at).sum();
        for (x, out) in (0..=last).zip(line.iter_mut()) {
            let total = sum * self.inner + (at(x - reach - 1) + at(x + reach + 1)) * self.outer;
            *out = ((total + (1 << 23)) >> 24) as u8;
            sum = sum + at(x + reach + 1) - at(x - reach);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_picture_stays_flat_and_an_edge_is_half_way() {
        let mut flat = vec![255; 40 * 30];
        gaussian(&mut flat, 40, 30, 5.0);
        assert!(flat.iter().all(|value| *value == 255));
        let mut step: Vec<u8> = (0..60 * 3).map(|k| if k % 60 < 30 { 0 } else { 255 }).collect();
        gaussian(&mut step, 60, 3, 5.0);
        assert!(step[29] < 128 && step[30] > 126 && step[5] == 0 && step[55] == 255, "{step:?}");
    }
}
