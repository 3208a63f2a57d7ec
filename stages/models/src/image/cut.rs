//! From bytes to the values of flattened patches.
//!
//! A picture is cut band by band, and each band is resized by whoever cuts it: threads meet once a picture. What a band's edges share
//! is computed twice, which is little and no bit of the result.

#![allow(unsafe_code, reason = "values are written once, into memory that holds none before")]

use std::mem::MaybeUninit;
use std::ops::Range;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde_json::Value;

use super::canvas::Canvas;
use super::curve::Curve;
use crate::error::Result;
use crate::kernel::lanes::wide;

/// Bands that each thread gets, so that one which is held up does not hold up the others for long.
const BANDS: usize = 2;
/// Fewest values of a band: less is not worth waking a thread for.
const WORTH: usize = 1 << 16;

/// How pictures become rows of values: channel after channel, each a patch of lines.
pub(super) struct Cutter {
    /// Side of a patch in pixels.
    patch: usize,
    /// How often each channel is repeated (frames of a still picture).
    repeat: usize,
    /// What the bytes of each channel become.
    curves: [Curve; 3],
}

/// A picture whose patches are cut in squares of `block * block` patches, line after line of squares.
pub(super) struct Part<'a> {
    /// The picture.
    pub(super) canvas: Canvas<'a>,
    /// Patches a side of a square.
    pub(super) block: usize,
}

/// Some lines of patches of a picture.
struct Band<'a> {
    canvas: &'a Canvas<'a>,
    /// Lines of patches.
    rows: Range<usize>,
    runs: Vec<Run<'a>>,
}

/// Patches that are neighbours in a line and in the result.
struct Run<'a> {
    row: usize,
    column: usize,
    out: &'a mut [MaybeUninit<f32>],
}

impl Cutter {
    /// Patches of `patch * patch` pixels, each channel `repeat` times.
    pub(super) fn new(
        patch: usize,
        repeat: usize,
        rescale: Option<f64>,
        normalise: Option<([f64; 3], [f64; 3])>,
    ) -> Cutter {
        let (mean, std) = normalise.unwrap_or(([0.0; 3], [1.0; 3]));
        let curves = [0, 1, 2].map(|channel| Curve::new(rescale.unwrap_or(1.0), mean[channel], std[channel]));
        Cutter { patch, repeat, curves }
    }

    /// Values of a row.
    fn width(&self) -> usize {
        3 * self.repeat * self.patch * self.patch
    }

    /// The patches of all parts, a row each, in the threads of the pool that the caller runs in; outside of any on the caller's alone, so
    /// that nobody takes more processors than it was given.
    pub(super) fn cut(&self, parts: &[Part]) -> Result<Tensor> {
        let threads = if rayon::current_thread_index().is_some() { rayon::current_num_threads() } else { 1 };
        let patches = |part: &Part| part.canvas.size.map(|side| side / self.patch).iter().product::<usize>();
        let (rows, width) = (parts.iter().map(patches).sum::<usize>(), self.width());
        let mut values: Vec<f32> = Vec::with_capacity(rows * width);
        let mut free = &mut values.spare_capacity_mut()[..rows * width];
        let mut bands = Vec::new();
        for part in parts {
            let (own, others) = free.split_at_mut(patches(part) * width);
            free = others;
            bands.extend(self.bands(part, own, threads));
        }
        match threads {
            1 => bands.into_iter().for_each(|band| self.draw(band)),
            _ => bands.into_par_iter().for_each(|band| self.draw(band)),
        }
        // SAFETY: each value is of one run, and `cut_run` has written all values of all runs.
        unsafe { values.set_len(rows * width) };
        Ok(Tensor::from_vec(values, (rows, width), &Device::Cpu)?)
    }

    /// A part in as many bands as are of use.
    fn bands<'a>(&self, part: &'a Part, out: &'a mut [MaybeUninit<f32>], threads: usize) -> Vec<Band<'a>> {
        let [columns, rows] = part.canvas.size.map(|side| side / self.patch);
        let useful = if threads == 1 { 1 } else { (BANDS * threads).min(out.len() / WORTH).clamp(1, rows) };
        let start = |band: usize| band * rows / useful;
        let band = |band| Band { canvas: &part.canvas, rows: start(band)..start(band + 1), runs: Vec::new() };
        let mut bands: Vec<Band> = (0..useful).map(band).collect();
        let (block, across) = (part.block, columns / part.block);
        for (index, out) in out.chunks_exact_mut(block * self.width()).enumerate() {
            let row = index / block / across * block + index % block;
            let band = bands.iter_mut().find(|band| band.rows.contains(&row)).expect("bands hold all lines");
            band.runs.push(Run { row, column: index / block % across * block, out });
        }
        bands
    }

    fn draw(&self, band: Band) {
        let (width, patch) = (band.canvas.size[0], self.patch);
        let lines = band.canvas.lines(band.rows.start * patch..band.rows.end * patch);
        for run in band.runs {
            let first = 3 * width * (run.row - band.rows.start) * patch + run.column * patch;
            cut_run(self, &lines[first..], width, run.out);
        }
    }
}

wide! {
    /// Writes all values of neighbouring patches, from the first to the last: what is written behind a line is written over.
    fn cut_run(cutter: &Cutter, lines: &[u8], width: usize, out: &mut [MaybeUninit<f32>]) {
        let (side, frame) = (cutter.patch, cutter.patch * cutter.patch);
        for (index, begin) in (0..out.len()).step_by(cutter.repeat * frame).enumerate() {
            let (patch, channel) = (index / 3, index % 3);
            cutter.curves[channel].draw(&lines[channel * width + patch * side..], 3 * width, side, &mut out[begin..]);
            for again in 1..cutter.repeat {
                let (first, rest) = out[begin..].split_at_mut(again * frame);
                rest[..frame].copy_from_slice(&first[..frame]);
            }
        }
    }
}

/// Three numbers of a JSON list.
pub(super) fn triple(value: &Value) -> Option<[f64; 3]> {
    let list: Vec<f64> = value.as_array()?.iter().filter_map(Value::as_f64).collect();
    list.try_into().ok()
}
