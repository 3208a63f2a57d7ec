//! From bytes to the values of flattened patches.

#![allow(unsafe_code, reason = "values are written once, into memory that holds none before")]

use std::mem::MaybeUninit;

use candle_core::{Device, Tensor};
use serde_json::Value;

use super::curve::Curve;
use super::planes::Planes;
use super::share::share;
use crate::error::Result;
use crate::kernel::lanes::wide;

/// Patches that one thread takes at a time.
const PATCHES: usize = 16;

/// How a picture, or a part of one, becomes rows of values: channel after channel, each a patch of lines.
pub(super) struct Cutter {
    /// Side of a patch in pixels.
    patch: usize,
    /// How often each channel is repeated (frames of a still picture).
    repeat: usize,
    /// What the bytes of each channel become.
    curves: [Curve; 3],
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

    /// A row for each of the places, (row, column) in patches, of each picture.
    pub(super) fn cut(&self, parts: &[(&Planes, Vec<(usize, usize)>)]) -> Result<Tensor> {
        let (width, rows) = (self.width(), parts.iter().map(|(_, places)| places.len()).sum::<usize>());
        let mut values: Vec<f32> = Vec::with_capacity(rows * width);
        let mut free = &mut values.spare_capacity_mut()[..rows * width];
        for (picture, places) in parts {
            let (own, others) = free.split_at_mut(places.len() * width);
            free = others;
            share(own, PATCHES * width, || (), |(), index, out| {
                cut_run(self, picture, &places[index * PATCHES..][..out.len() / width], out);
            });
        }
        // SAFETY: `cut_run` has written every value of every row.
        unsafe { values.set_len(rows * width) };
        Ok(Tensor::from_vec(values, (rows, width), &Device::Cpu)?)
    }
}

wide! {
    /// Writes all values of the patches at some places, from the first to the last: what is written behind a line is written over.
    fn cut_run(cutter: &Cutter, picture: &Planes, places: &[(usize, usize)], out: &mut [MaybeUninit<f32>]) {
        let (p, frame) = (cutter.patch, cutter.patch * cutter.patch);
        assert!(out.len() == places.len() * cutter.width());
        let mut begin = 0;
        for (row, column) in places {
            for (channel, curve) in cutter.curves.iter().enumerate() {
                let lines = &picture.bytes[(3 * row * p + channel) * picture.width + column * p..];
                curve.draw(lines, 3 * picture.width, p, &mut out[begin..]);
                for again in 1..cutter.repeat {
                    let (first, rest) = out[begin..].split_at_mut(again * frame);
                    rest[..frame].copy_from_slice(&first[..frame]);
                }
                begin += cutter.repeat * frame;
            }
        }
    }
}

/// Three numbers of a JSON list.
pub(super) fn triple(value: &Value) -> Option<[f64; 3]> {
    let list: Vec<f64> = value.as_array()?.iter().filter_map(Value::as_f64).collect();
    list.try_into().ok()
}
