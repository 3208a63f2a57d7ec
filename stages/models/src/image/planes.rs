//! A picture whose channels lie apart, line by line: what patches are cut from.

use image::RgbImage;

use super::share::share;
use crate::kernel::lanes::wide;

/// Lines that one thread takes at a time.
const LINES: usize = 16;

/// 8-bit RGB; each line holds all its red values, then all green, then all blue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planes {
    /// Pixels of a line.
    pub(super) width: usize,
    /// Lines.
    pub(super) height: usize,
    /// The lines, one after another.
    pub(super) bytes: Vec<u8>,
}

impl Planes {
    /// A picture as it is.
    pub(super) fn of(image: &RgbImage) -> Planes {
        let [width, height] = [image.width(), image.height()].map(|side| side as usize);
        Planes { width, height, bytes: split(image.as_raw(), width) }
    }

    /// In the middle of a black canvas that is at least as large.
    pub(super) fn centred(self, width: usize, height: usize) -> Planes {
        if (self.width, self.height) == (width, height) {
            return self;
        }
        let (left, top) = ((width - self.width) / 2, (height - self.height) / 2);
        let mut bytes = vec![0; 3 * width * height];
        // A line of one channel after another, on both sides.
        let rows = bytes[3 * width * top..].chunks_exact_mut(width).zip(self.bytes.chunks_exact(self.width));
        rows.for_each(|(to, from)| to[left..][..from.len()].copy_from_slice(from));
        Planes { width, height, bytes }
    }
}

/// Lines of pixels as lines of channels.
pub(super) fn split(lines: &[u8], width: usize) -> Vec<u8> {
    let size = 3 * width;
    let mut out = vec![0; lines.len()];
    share(&mut out, LINES * size, || (), |(), index, out| part(&lines[index * LINES * size..][..out.len()], width, out));
    out
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
