//! What patches are cut from: a resized picture, perhaps in the middle of something black.

use std::ops::Range;

use super::resize::Resized;

/// A resized picture on a black ground that is at least as large.
pub(super) struct Canvas<'a> {
    picture: Resized<'a>,
    /// Width and height in pixels.
    pub(super) size: [usize; 2],
}

impl<'a> Canvas<'a> {
    /// A picture and nothing around it.
    pub(super) fn of(picture: Resized<'a>) -> Canvas<'a> {
        let size = picture.size;
        Canvas { picture, size }
    }

    /// A picture in the middle of so much width and height.
    pub(super) fn around(picture: Resized<'a>, size: [usize; 2]) -> Canvas<'a> {
        Canvas { picture, size }
    }

    /// Some lines, each all red values, all green, all blue.
    pub(super) fn lines(&self, lines: Range<usize>) -> Vec<u8> {
        if self.picture.size == self.size {
            return self.picture.lines(lines);
        }
        let [width, height] = self.picture.size;
        let (left, top) = ((self.size[0] - width) / 2, (self.size[1] - height) / 2);
        let mut canvas = vec![0; 3 * self.size[0] * lines.len()];
        let shown = lines.start.max(top)..lines.end.min(top + height);
        if !shown.is_empty() {
            // A line of one channel after another, on both sides.
            let rows = canvas[3 * self.size[0] * (shown.start - lines.start)..].chunks_exact_mut(self.size[0]);
            let picture = self.picture.lines(shown.start - top..shown.end - top);
            rows.zip(picture.chunks_exact(width)).for_each(|(to, from)| to[left..][..width].copy_from_slice(from));
        }
        canvas
    }
}
