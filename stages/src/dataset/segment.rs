//! Outlines to pixels: polygons and run lengths.

use super::format::{Counts, Rle, Segmentation};

/// Why an outline has no pixels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// A polygon that encloses nothing.
    #[error("polygon {index} has {numbers} numbers; it takes an even count of 6 or more")]
    Polygon {
        /// Which polygon, from 0.
        index: usize,
        /// How many numbers it holds.
        numbers: usize,
    },
    /// A coordinate that is no number.
    #[error("polygon {0} holds a coordinate that is not finite")]
    NotFinite(usize),
    /// Compressed run lengths that do not decode.
    #[error("the compressed run lengths break off or hold a character outside `0`..`o` at byte {0}")]
    Compressed(usize),
    /// Run lengths of another picture.
    #[error("the run lengths are for {rle_width} x {rle_height}, the picture has {width} x {height}")]
    Size {
        /// Width the run lengths state.
        rle_width: u32,
        /// Height the run lengths state.
        rle_height: u32,
        /// Width of the picture.
        width: u32,
        /// Height of the picture.
        height: u32,
    },
    /// Run lengths that do not fill the picture.
    #[error("the run lengths cover {covered} pixels of {pixels}")]
    Sum {
        /// What they add up to.
        covered: u64,
        /// Pixels of the picture.
        pixels: u64,
    },
}

/// The runs of `rle` as plain numbers.
///
/// Compressed form: groups of 5 bits, low first, offset by 48, bit 0x20 = more follow, the last group sign-extended; from
/// the fourth number on each is the difference to the one two places before.
pub fn runs(rle: &Rle) -> Result<Vec<u32>, SegmentError> {
    let text = match &rle.counts {
        Counts::Plain(runs) => return Ok(runs.clone()),
        Counts::Compressed(text) => text.as_bytes(),
    };
    let (mut runs, mut at) = (Vec::<i64>::new(), 0);
    while at < text.len() {
        let (mut value, mut shift) = (0_i64, 0_u32);
        loop {
            let byte = text.get(at).filter(|byte| (48..112).contains(*byte)).ok_or(SegmentError::Compressed(at))?;
            let group = i64::from(byte - 48);
            if shift > 50 {
                return Err(SegmentError::Compressed(at));
            }
            value |= (group & 0x1f) << shift;
            shift += 5;
            at += 1;
            if group & 0x20 == 0 {
                if group & 0x10 != 0 {
                    value |= -1 << shift;
                }
                break;
            }
        }
        if runs.len() > 2 {
            value += runs[runs.len() - 2];
        }
        runs.push(value);
    }
    runs.into_iter().map(|run| u32::try_from(run).map_err(|_| SegmentError::Compressed(text.len()))).collect()
}

/// Checks `segmentation` against a picture of `width` x `height`.
pub fn check(segmentation: &Segmentation, width: u32, height: u32) -> Result<(), SegmentError> {
    match segmentation {
        Segmentation::Polygons(polygons) => polygons.iter().enumerate().try_for_each(|(index, polygon)| {
            if polygon.len() < 6 || polygon.len() % 2 == 1 {
                return Err(SegmentError::Polygon { index, numbers: polygon.len() });
            }
            if polygon.iter().all(|value| value.is_finite()) { Ok(()) } else { Err(SegmentError::NotFinite(index)) }
        }),
        Segmentation::Rle(rle) => {
            let [rle_height, rle_width] = rle.size;
            if (rle_width, rle_height) != (width, height) {
                return Err(SegmentError::Size { rle_width, rle_height, width, height });
            }
            let covered = runs(rle)?.into_iter().map(u64::from).sum();
            let pixels = u64::from(width) * u64::from(height);
            if covered == pixels { Ok(()) } else { Err(SegmentError::Sum { covered, pixels }) }
        }
    }
}

/// The pixels of `segmentation` in row-major order: a pixel belongs to a polygon when its centre does (even-odd rule).
pub fn pixels(segmentation: &Segmentation, width: u32, height: u32) -> Result<Vec<bool>, SegmentError> {
    check(segmentation, width, height)?;
    let mut inside = vec![false; width as usize * height as usize];
    match segmentation {
        Segmentation::Polygons(polygons) => {
            polygons.iter().for_each(|polygon| fill(&mut inside, polygon, width, height))
        }
        Segmentation::Rle(rle) => {
            let mut at = 0_usize;
            for (index, run) in runs(rle)?.into_iter().enumerate() {
                if index % 2 == 1 {
                    (at..at + run as usize)
                        .for_each(|k| inside[k % height as usize * width as usize + k / height as usize] = true);
                }
                at += run as usize;
            }
        }
    }
    Ok(inside)
}

fn fill(inside: &mut [bool], polygon: &[f64], width: u32, height: u32) {
    let points: Vec<(f64, f64)> = polygon.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
    for row in 0..height {
        let y = f64::from(row) + 0.5;
        let mut crossings: Vec<f64> = points
            .iter()
            .zip(points.iter().cycle().skip(1))
            .filter(|((_, y0), (_, y1))| (*y0 <= y) != (*y1 <= y))
            .map(|((x0, y0), (x1, y1))| x0 + (y - y0) / (y1 - y0) * (x1 - x0))
            .collect();
        crossings.sort_by(f64::total_cmp);
        for pair in crossings.chunks_exact(2) {
            let first = (pair[0] - 0.5).ceil().max(0.0) as u32;
            let end = ((pair[1] - 0.5).ceil().max(0.0) as u32).min(width);
            (first..end).for_each(|column| inside[(row * width + column) as usize] = true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rle(counts: Counts) -> Segmentation {
        Segmentation::Rle(Rle { size: [3, 2], counts })
    }

    #[test]
    fn polygons_take_the_pixels_whose_centres_they_hold() {
        let square = Segmentation::Polygons(vec![vec![1.0, 1.0, 3.0, 1.0, 3.0, 2.0, 1.0, 2.0]]);
        assert_eq!(pixels(&square, 4, 3).unwrap().iter().filter(|inside| **inside).count(), 2);
    }

    #[test]
    fn run_lengths_go_down_columns() {
        let inside = pixels(&rle(Counts::Plain(vec![1, 3, 2])), 2, 3).unwrap();
        assert_eq!(inside, [false, true, true, false, true, false]);
    }

    #[test]
    fn compressed_runs_are_differences() {
        // 6, 1, 40, 4 then differences: the encoding that pycocotools gives.
        let plain = vec![6, 1, 40, 4, 5, 4, 5, 4, 21];
        let text = "61X13mN000`0";
        let got = runs(&Rle { size: [9, 10], counts: Counts::Compressed(text.into()) }).unwrap();
        assert_eq!(got, plain);
    }

    #[test]
    fn errors_say_what_is_wrong() {
        assert_eq!(check(&rle(Counts::Plain(vec![1])), 2, 3), Err(SegmentError::Sum { covered: 1, pixels: 6 }));
        assert!(matches!(check(&rle(Counts::Plain(vec![6])), 3, 2), Err(SegmentError::Size { .. })));
        let line = Segmentation::Polygons(vec![vec![0.0; 4]]);
        assert_eq!(check(&line, 2, 2), Err(SegmentError::Polygon { index: 0, numbers: 4 }));
        assert!(runs(&Rle { size: [1, 1], counts: Counts::Compressed("\u{7f}".into()) }).is_err());
    }
}
