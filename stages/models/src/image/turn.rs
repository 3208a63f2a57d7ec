//! Lines to columns and back, a square of bytes at a time.

#![allow(unsafe_code, reason = "vector intrinsics that every x86-64 processor has")]

use crate::kernel::lanes::wide;

/// Side of the square in bytes: a register.
pub(super) const SIDE: usize = 16;

/// Up to [`SIDE`] lines of `size` bytes as `size` lines of [`SIDE`] bytes; lanes of lines that are missing hold anything.
pub(super) fn turn(lines: &[u8], size: usize, turned: &mut [u8]) {
    assert!(turned.len() == size * SIDE && lines.len() <= turned.len() && lines.len().is_multiple_of(size));
    if size < SIDE {
        for (line, bytes) in lines.chunks_exact(size).enumerate() {
            turned[line..].iter_mut().step_by(SIDE).zip(bytes).for_each(|(to, from)| *to = *from);
        }
    } else if lines.len() < turned.len() {
        let mut whole = vec![0; turned.len()];
        whole[..lines.len()].copy_from_slice(lines);
        turn_squares(&whole, size, turned);
    } else {
        turn_squares(lines, size, turned);
    }
}

/// [`turn`] undone for lines of `width` pixels, whose channels are parted.
pub(super) fn turn_back(turned: &[u8], width: usize, lines: &mut [u8]) {
    let size = 3 * width;
    assert!(turned.len() == size * SIDE && lines.len() <= turned.len() && lines.len().is_multiple_of(size));
    if width < SIDE {
        for (line, bytes) in lines.chunks_exact_mut(size).enumerate() {
            for (channel, bytes) in bytes.chunks_exact_mut(width).enumerate() {
                let column = turned[channel * SIDE + line..].iter().step_by(3 * SIDE);
                bytes.iter_mut().zip(column).for_each(|(to, from)| *to = *from);
            }
        }
    } else if lines.len() < turned.len() {
        let mut whole = vec![0; turned.len()];
        turn_squares_back(turned, width, &mut whole);
        lines.copy_from_slice(&whole[..lines.len()]);
    } else {
        turn_squares_back(turned, width, lines);
    }
}

wide! {
    fn turn_squares(lines: &[u8], size: usize, turned: &mut [u8]) {
        for column in (0..size).step_by(SIDE) {
            let column = column.min(size - SIDE);
            // SAFETY: `turn` has seen that there are `SIDE` lines of `size` bytes, no fewer than `SIDE`, on both sides.
            unsafe { square(lines.as_ptr().add(column), size, turned.as_mut_ptr().add(column * SIDE), SIDE) };
        }
    }
}

wide! {
    fn turn_squares_back(turned: &[u8], width: usize, lines: &mut [u8]) {
        for column in (0..width).step_by(SIDE) {
            let column = column.min(width - SIDE);
            for channel in 0..3 {
                let from = (3 * column + channel) * SIDE;
                let to = channel * width + column;
                // SAFETY: `turn_back` has seen that there are `3 * width` turned lines and `SIDE` lines of as many bytes.
                unsafe { square(turned.as_ptr().add(from), 3 * SIDE, lines.as_mut_ptr().add(to), 3 * width) };
            }
        }
    }
}

/// Four perfect shuffles of 16 rows: the rows of the upper half between those of the lower.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn square(from: *const u8, from_row: usize, to: *mut u8, to_row: usize) {
    use std::arch::x86_64::*;
    // SAFETY: the caller's pointers reach `SIDE` rows of `SIDE` bytes.
    unsafe {
        let mut rows: [__m128i; SIDE] = std::array::from_fn(|row| _mm_loadu_si128(from.add(row * from_row).cast()));
        for _ in 0..4 {
            let before = rows;
            for row in 0..SIDE / 2 {
                rows[2 * row] = _mm_unpacklo_epi8(before[row], before[row + SIDE / 2]);
                rows[2 * row + 1] = _mm_unpackhi_epi8(before[row], before[row + SIDE / 2]);
            }
        }
        for (row, values) in rows.into_iter().enumerate() {
            _mm_storeu_si128(to.add(row * to_row).cast(), values);
        }
    }
}

/// Byte by byte.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
unsafe fn square(from: *const u8, from_row: usize, to: *mut u8, to_row: usize) {
    for row in 0..SIDE {
        for column in 0..SIDE {
            // SAFETY: the caller's pointers reach `SIDE` rows of `SIDE` bytes.
            unsafe { *to.add(column * to_row + row) = *from.add(row * from_row + column) };
        }
    }
}
