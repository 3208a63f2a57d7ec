//! Which rows of a packed batch see which.

use std::ops::Range;

use candle_core::{Result, bail};

/// One run of rows that attend alike: each row of `own` sees every row of `prefix`, and `own` itself, causally or fully.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The rows this segment computes.
    pub own: Range<usize>,
    /// Earlier rows that all of `own` sees, such as the prompt that several completions share; may be empty.
    pub prefix: Range<usize>,
    /// Whether a row of `own` sees only itself and the rows before it; false for the vision tower.
    pub causal: bool,
}

/// The segments of a packed batch, checked: their own rows tile `0..rows` in order, and every prefix ends before its segment begins.
///
/// A plain batch is one causal segment a sequence; bidirectional vision, its windows and a group of completions behind
/// one copy of their prompt are other lists for the same kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Segments {
    list: Vec<Segment>,
    rows: usize,
}

impl Segments {
    /// Checks a list of segments.
    ///
    /// # Errors
    /// When a segment is empty, leaves a gap, overlaps another, or has a prefix that reaches into its own rows.
    pub fn new(list: Vec<Segment>) -> Result<Segments> {
        let mut rows = 0;
        for (index, segment) in list.iter().enumerate() {
            if segment.own.start != rows || segment.own.end <= segment.own.start {
                bail!("segment {index} owns rows {:?}, but the rows before it end at {rows}", segment.own);
            }
            if segment.prefix.start > segment.prefix.end || segment.prefix.end > segment.own.start {
                bail!(
                    "segment {index} owns rows {:?}, so its prefix {:?} must end before them",
                    segment.own,
                    segment.prefix
                );
            }
            rows = segment.own.end;
        }
        Ok(Segments { list, rows })
    }

    /// Sequences of these lengths, one after another, each causal on its own.
    ///
    /// # Errors
    /// When a length is zero.
    pub fn causal(lengths: impl IntoIterator<Item = usize>) -> Result<Segments> {
        Segments::new(runs(lengths, true))
    }

    /// Blocks of these lengths, one after another, each of which sees all of itself.
    ///
    /// # Errors
    /// When a length is zero.
    pub fn full(lengths: impl IntoIterator<Item = usize>) -> Result<Segments> {
        Segments::new(runs(lengths, false))
    }

    /// Number of rows of the packed batch.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The segments in row order.
    pub fn iter(&self) -> std::slice::Iter<'_, Segment> {
        self.list.iter()
    }

    /// Number of segments.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is no segment at all.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

impl<'a> IntoIterator for &'a Segments {
    type Item = &'a Segment;
    type IntoIter = std::slice::Iter<'a, Segment>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

fn runs(lengths: impl IntoIterator<Item = usize>, causal: bool) -> Vec<Segment> {
    let mut start = 0;
    lengths
        .into_iter()
        .map(|length| {
            let own = start..start + length;
            start = own.end;
            Segment { prefix: own.start..own.start, own, causal }
        })
        .collect()
}

/// How the columns of a packed query-key-value projection divide into heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
}

impl HeadShape {
    /// Width of the attention's output, `heads * head_dim`.
    pub fn out_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of the packed projection, `(heads + 2 * kv_heads) * head_dim`.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Query heads that share one key head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_lists_that_do_not_tile() {
        let segment = |own: Range<usize>, prefix: Range<usize>| Segment { own, prefix, causal: true };
        assert!(Segments::new(vec![segment(0..3, 0..0), segment(3..5, 0..3)]).is_ok());
        for bad in [
            vec![segment(1..3, 0..0)],
            vec![segment(0..3, 0..0), segment(4..5, 0..0)],
            vec![segment(0..3, 0..0), segment(2..5, 0..0)],
            vec![segment(0..0, 0..0)],
            vec![segment(0..3, 0..1)],
            vec![segment(0..3, 0..0), segment(3..5, 0..4)],
        ] {
            assert!(Segments::new(bad.clone()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn causal_lengths_follow_one_another() {
        let segments = Segments::causal([2, 3]).unwrap();
        assert_eq!(segments.rows(), 5);
        assert_eq!(segments.iter().map(|s| s.own.clone()).collect::<Vec<_>>(), [0..2, 2..5]);
        assert!(Segments::causal([2, 0]).is_err());
    }
}
