//! The two passes of a filter: weighted sums of pixels.
//!
//! The vertical pass adds up whole lines, so that neighbouring bytes are neighbouring lanes, whatever channels they are of. The
//! horizontal pass is the vertical pass of the picture on its side: it turns a few lines at a time, which stay in the nearest cache, and
//! turns the sums back. On the way back the channels part: a line then holds all its red values, all green, all blue, which is what
//! patches are cut from.

use std::ops::Range;

use super::turn::{SIDE, turn, turn_back};
use crate::kernel::lanes::wide;

/// Bytes whose sums stay in registers: a pixel of each line that is turned.
const LANES: usize = 3 * SIDE;

/// Fixed-point weights of every target pixel.
pub(super) struct Taps {
    /// The source pixels that a target pixel reads.
    pub(super) taps: Vec<Tap>,
    /// Weights of all target pixels.
    pub(super) weights: Vec<i32>,
    /// Fraction bits of a weight.
    pub(super) precision: u32,
}

/// What one target pixel reads.
pub(super) struct Tap {
    /// The first source pixel.
    pub(super) start: usize,
    /// Where its weights begin.
    pub(super) first: usize,
    /// How many source pixels, and weights.
    pub(super) count: usize,
}

impl Taps {
    /// The source pixels that some target pixels, one at least, read.
    pub(super) fn sources(&self, targets: &Range<usize>) -> Range<usize> {
        let last = &self.taps[targets.end - 1];
        self.taps[targets.start].start..last.start + last.count
    }
}

/// The target lines of a picture of another height, from the source lines that they read; a line is `size` bytes.
pub(super) fn vertical(lines: &[u8], size: usize, taps: &Taps, targets: Range<usize>) -> Vec<u8> {
    let mut out = vec![0; size * targets.len()];
    weigh(lines, size, taps, targets.start, &mut out);
    out
}

/// Lines of `width` pixels as lines of another width, channels apart.
pub(super) fn horizontal(lines: &[u8], width: usize, taps: &Taps) -> Vec<u8> {
    let (from, to) = (3 * width, 3 * taps.taps.len());
    let mut out = vec![0; lines.len() / from * to];
    let (mut turned, mut sums) = (vec![0; from * SIDE], vec![0; to * SIDE]);
    for (lines, out) in lines.chunks(from * SIDE).zip(out.chunks_mut(to * SIDE)) {
        turn(lines, from, &mut turned);
        weigh(&turned, LANES, taps, 0, &mut sums);
        turn_back(&sums, to / 3, out);
    }
    out
}

/// Lines of `width` pixels, channels apart.
pub(super) fn split(lines: &[u8], width: usize) -> Vec<u8> {
    let mut out = vec![0; lines.len()];
    part(lines, width, &mut out);
    out
}

wide! {
    /// Weighted sums of lines of `size` bytes, for the target lines from `first` on; the first of the lines is the first that is read.
    fn weigh(lines: &[u8], size: usize, taps: &Taps, first: usize, out: &mut [u8]) {
        // A half, so that dropping the fraction rounds.
        let half = 1 << (taps.precision - 1);
        let skipped = taps.taps[first].start;
        for (tap, out) in taps.taps[first..].iter().zip(out.chunks_exact_mut(size)) {
            let (lines, weights) = (&lines[(tap.start - skipped) * size..], &taps.weights[tap.first..][..tap.count]);
            if size < LANES {
                for (lane, out) in out.iter_mut().enumerate() {
                    let column = lines[lane..].iter().step_by(size).zip(weights);
                    *out = byte(column.fold(half, |sum, (value, weight)| sum + i32::from(*value) * weight), taps.precision);
                }
                continue;
            }
            for start in (0..size).step_by(LANES) {
                // The last stretch may lie over the one before.
                let start = start.min(size - LANES);
                let mut sums = [half; LANES];
                for (line, weight) in lines.chunks_exact(size).zip(weights) {
                    let values: &[u8; LANES] = line[start..].first_chunk().expect("a stretch of the line");
                    for lane in 0..LANES {
                        sums[lane] += i32::from(values[lane]) * weight;
                    }
                }
                let out: &mut [u8; LANES] = out[start..].first_chunk_mut().expect("a stretch of the line");
                for lane in 0..LANES {
                    out[lane] = byte(sums[lane], taps.precision);
                }
            }
        }
    }
}

#[inline(always)]
fn byte(sum: i32, precision: u32) -> u8 {
    (sum >> precision).clamp(0, 255) as u8
}

wide! {
    fn part(lines: &[u8], width: usize, out: &mut [u8]) {
        for (line, out) in lines.chunks_exact(3 * width).zip(out.chunks_exact_mut(3 * width)) {
            let (red, others) = out.split_at_mut(width);
            let (green, blue) = others.split_at_mut(width);
            for (((pixel, red), green), blue) in line.chunks_exact(3).zip(red).zip(green).zip(blue) {
                (*red, *green, *blue) = (pixel[0], pixel[1], pixel[2]);
            }
        }
    }
}
