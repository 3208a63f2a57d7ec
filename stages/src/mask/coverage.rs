//! Coverage: how strongly the fill lies on each pixel, 0 (untouched) to 255 (hidden).

use super::blur;

/// Coverage of a picture, row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage {
    width: usize,
    height: usize,
    values: Vec<u8>,
}

impl Coverage {
    /// Nothing covered.
    pub fn new(width: u32, height: u32) -> Self {
        let (width, height) = (width as usize, height as usize);
        Self { width, height, values: vec![0; width * height] }
    }

    /// The values, row-major.
    pub fn values(&self) -> &[u8] {
        &self.values
    }

    /// Covers a rectangle, first pixels included, ends not, cut off at the picture's edge.
    pub fn cover(&mut self, x: std::ops::Range<i64>, y: std::ops::Range<i64>) {
        let cut = |value: i64, size: usize| value.clamp(0, size as i64) as usize;
        let columns = cut(x.start, self.width)..cut(x.end, self.width).max(cut(x.start, self.width));
        for row in cut(y.start, self.height)..cut(y.end, self.height) {
            self.values[row * self.width..][..self.width][columns.clone()].fill(255);
        }
    }

    /// Covers the pixels of `segment` (row-major).
    pub fn cover_segment(&mut self, segment: &[bool]) {
        self.values.iter_mut().zip(segment).filter(|(_, inside)| **inside).for_each(|(value, _)| *value = 255);
    }

    /// Blurs it like Pillow, which also weakens it inside the covered part.
    pub fn blur(&mut self, sigma: f32) {
        blur::gaussian(&mut self.values, self.width, self.height, sigma);
    }

    /// Lets it fade out linearly over `feather` pixels outside the covered part, which stays fully covered. Distances are
    /// Euclidean between pixel centres.
    pub fn grow(&mut self, feather: f32) {
        let reach = feather.floor() as usize;
        if reach == 0 {
            return;
        }
        let rows: Vec<Vec<usize>> = self.values.chunks_exact(self.width).map(|row| row_distances(row, reach)).collect();
        let squared = |x: usize, y: usize, from: usize| rows[from][x].pow(2) + y.abs_diff(from).pow(2);
        for y in 0..self.height {
            let near = y.saturating_sub(reach)..(y + reach + 1).min(self.height);
            if near.clone().all(|from| rows[from].iter().all(|distance| *distance > reach)) {
                continue;
            }
            for x in 0..self.width {
                let nearest = near.clone().map(|from| squared(x, y, from)).min().expect("the row itself is near");
                let strength = 1.0 - (nearest as f32).sqrt() / (feather + 1.0);
                self.values[y * self.width + x] = (strength.max(0.0) * 255.0).round() as u8;
            }
        }
    }
}

/// For each pixel of a row the distance to the nearest covered one, at most `reach + 1`.
fn row_distances(row: &[u8], reach: usize) -> Vec<usize> {
    let mut distances = vec![reach + 1; row.len()];
    let mut walk = |order: &mut dyn Iterator<Item = usize>| {
        let mut distance = reach + 1;
        for x in order {
            distance = if row[x] == 255 { 0 } else { (distance + 1).min(reach + 1) };
            distances[x] = distances[x].min(distance);
        }
    };
    walk(&mut (0..row.len()));
    walk(&mut (0..row.len()).rev());
    distances
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_keeps_the_inside_and_fades_outside() {
        let mut coverage = Coverage::new(12, 9);
        coverage.cover(5..7, 4..5);
        coverage.grow(4.0);
        let at = |x: usize, y: usize| coverage.values()[y * 12 + x];
        assert_eq!((at(5, 4), at(6, 4)), (255, 255));
        assert_eq!([at(4, 4), at(3, 4), at(2, 4), at(1, 4), at(0, 4)], [204, 153, 102, 51, 0]);
        assert_eq!(at(4, 3), (255.0_f32 * (1.0 - 2.0_f32.sqrt() / 5.0)).round() as u8);
    }
}
