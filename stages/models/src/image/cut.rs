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
/// Bytes that are copied at once: a register.
const COPIED: usize = 16;

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
            share(own, PATCHES * width, || vec![0; self.patch * self.patch + COPIED], |square, index, out| {
                for (place, out) in places[index * PATCHES..].iter().zip(out.chunks_exact_mut(width)) {
                    cut_patch(self, picture, *place, square, out);
                }
            });
        }
        // SAFETY: `cut_patch` has written every value of every row.
        unsafe { values.set_len(rows * width) };
        Ok(Tensor::from_vec(values, (rows, width), &Device::Cpu)?)
    }
}

wide! {
    /// Writes all values of one patch; `square` has room for its bytes and a copy's more.
    fn cut_patch(cutter: &Cutter, picture: &Planes, place: (usize, usize), square: &mut [u8], out: &mut [MaybeUninit<f32>]) {
        let (p, (row, column)) = (cutter.patch, place);
        assert!(out.len() == cutter.width());
        for (channel, out) in out.chunks_exact_mut(cutter.repeat * p * p).enumerate() {
            for y in 0..p {
                let line = (3 * (row * p + y) + channel) * picture.width;
                copy(&picture.bytes[line + column * p..], p, &mut square[y * p..]);
            }
            cutter.curves[channel].draw(&square[..p * p], out);
        }
    }
}

/// The first `count` bytes and perhaps some more, a register at a time: a call costs more than so short a copy.
#[inline(always)]
fn copy(from: &[u8], count: usize, to: &mut [u8]) {
    for start in (0..count).step_by(COPIED) {
        let (from, to) = (&from[start..], &mut to[start..]);
        match (from.first_chunk::<COPIED>(), to.first_chunk_mut::<COPIED>()) {
            (Some(from), Some(to)) => *to = *from,
            _ => to.iter_mut().zip(from).for_each(|(to, from)| *to = *from),
        }
    }
}

/// Three numbers of a JSON list.
pub(super) fn triple(value: &Value) -> Option<[f64; 3]> {
    let list: Vec<f64> = value.as_array()?.iter().filter_map(Value::as_f64).collect();
    list.try_into().ok()
}
