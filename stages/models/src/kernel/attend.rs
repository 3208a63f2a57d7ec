//! Keys and values of a stretch of tokens, and attention of one row to a chain of such stretches.
//!
//! A completion's row sees its prompt's stretch, shared by all completions of that prompt, and its own tail: nothing is copied a sample.
//! Keys lie transposed (`[head, head_dim, capacity]`), so that scores vectorise over keys; values lie a key a row.

use super::lanes::wide;
use super::rows::softmax_body;
use crate::ops::HeadShape;

/// Keys that one step of the score kernel takes.
const STEP: usize = 16;
/// Rows that are taken together where they see the same: each key and value is read once for all of them.
const TOGETHER: usize = 4;

/// Keys and values of one layer.
#[derive(Debug, Clone, Default)]
pub struct LayerKv {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Keys and values of a stretch of tokens in every layer.
#[derive(Debug, Clone, Default)]
pub struct Stretch {
    layers: Vec<LayerKv>,
    capacity: usize,
    len: usize,
}

impl Stretch {
    /// Room for at least `tokens` tokens.
    pub fn with_capacity(layers: usize, shape: HeadShape, tokens: usize) -> Stretch {
        let capacity = tokens.next_multiple_of(STEP);
        let size = shape.kv_heads * shape.head_dim * capacity;
        // Zeroed by the system a page at a time as it is written; copies of one layer would take the whole room at once.
        let layer = |_| LayerKv { keys: vec![0.0; size], values: vec![0.0; size] };
        Stretch { layers: (0..layers).map(layer).collect(), capacity, len: 0 }
    }

    /// Tokens whose keys and values are complete in all layers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is there yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that the keys and values take.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|kv| (kv.keys.len() + kv.values.len()) * size_of::<f32>()).sum()
    }

    /// Counts tokens that every layer has got.
    pub fn advance(&mut self, tokens: usize) {
        self.len += tokens;
        assert!(self.len <= self.capacity, "room for every token was asked for");
    }

    /// Writes the keys and values of the `offset`-th token behind the counted ones; both are `[kv_heads * head_dim]`.
    pub fn put(&mut self, layer: usize, offset: usize, shape: HeadShape, keys: &[f32], values: &[f32]) {
        let (at, width) = (self.len + offset, shape.head_dim);
        let kv = &mut self.layers[layer];
        for (row, key) in keys.iter().enumerate() {
            kv.keys[row * self.capacity + at] = *key;
        }
        for head in 0..shape.kv_heads {
            let start = (head * self.capacity + at) * width;
            kv.values[start..start + width].copy_from_slice(&values[head * width..][..width]);
        }
    }

    fn head(&self, layer: usize, head: usize, width: usize) -> (&[f32], &[f32]) {
        let size = width * self.capacity;
        let kv = &self.layers[layer];
        (&kv.keys[head * size..][..size], &kv.values[head * size..][..size])
    }
}

/// A stretch and which of its tokens a row sees.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The stretch.
    pub stretch: &'a Stretch,
    /// Its first visible token: above 0 where a sliding window has left tokens behind.
    pub from: usize,
    /// The token behind its last visible one.
    pub tokens: usize,
}

impl Seen<'_> {
    fn len(&self) -> usize {
        self.tokens - self.from
    }
}

/// Takes from the front of what a row sees all but its last `window` tokens.
pub fn slide(seen: &mut Vec<Seen<'_>>, window: usize) {
    let mut room = window;
    for part in seen.iter_mut().rev() {
        part.from = part.tokens - part.len().min(room);
        room -= part.len();
    }
    seen.retain(|part| part.len() > 0);
}

/// What one row's query heads `[heads * head_dim]` gather from what the row sees, into `out` of the same width.
pub fn attend(
    query: &[f32],
    seen: &[Seen<'_>],
    layer: usize,
    shape: HeadShape,
    scratch: &mut Vec<f32>,
    out: &mut [f32],
) {
    attend_rows(query, query.len(), seen, layer, shape, scratch, out);
}

/// [`attend`] for rows that see the same, `row` values apart in `queries`, one behind another in `out`.
pub fn attend_rows(
    queries: &[f32],
    row: usize,
    seen: &[Seen<'_>],
    layer: usize,
    shape: HeadShape,
    scratch: &mut Vec<f32>,
    out: &mut [f32],
) {
    let tokens: usize = seen.iter().map(Seen::len).sum();
    let width = shape.out_width();
    for (queries, out) in queries.chunks(TOGETHER * row).zip(out.chunks_mut(TOGETHER * width)) {
        scratch.clear();
        scratch.resize(TOGETHER * (tokens + 2 * STEP), 0.0);
        for head in 0..shape.heads {
            let one = Head { seen, layer, head: head / shape.group(), width: shape.head_dim, tokens };
            let at = head * shape.head_dim;
            if out.len() == TOGETHER * width {
                rows_together(one, &queries[at..], row, scratch, &mut out[at..], width);
            } else {
                for (queries, out) in queries.chunks(row).zip(out.chunks_mut(width)) {
                    row_alone(one, &queries[at..], scratch, &mut out[at..]);
                }
            }
        }
    }
}

/// A head of a layer's keys and values, and what is seen of it.
#[derive(Clone, Copy)]
struct Head<'a> {
    seen: &'a [Seen<'a>],
    layer: usize,
    head: usize,
    width: usize,
    tokens: usize,
}

impl<'a> Head<'a> {
    /// The head's keys and values in a part of what is seen.
    #[inline(always)]
    fn of(&self, part: &Seen<'a>) -> (&'a [f32], &'a [f32]) {
        part.stretch.head(self.layer, self.head, self.width)
    }
}

wide! {
    fn row_alone(head: Head<'_>, query: &[f32], scores: &mut [f32], out: &mut [f32]) {
        gather::<1>(head, query, head.width, scores, out, head.width);
    }
}

wide! {
    fn rows_together(head: Head<'_>, queries: &[f32], row: usize, scores: &mut [f32], out: &mut [f32], out_row: usize) {
        gather::<TOGETHER>(head, queries, row, scores, out, out_row);
    }
}

/// One head of `Q` rows: scores, softmax, weighted values. Each row's sums are its own, in the order of [`attend`].
#[inline(always)]
fn gather<const Q: usize>(
    head: Head<'_>,
    queries: &[f32],
    row: usize,
    scores: &mut [f32],
    out: &mut [f32],
    out_row: usize,
) {
    let Head { seen, width, tokens, .. } = head;
    let room = tokens + 2 * STEP;
    let scale = 1.0 / (width as f32).sqrt();
    let mut start = 0;
    for part in seen {
        let (keys, _) = head.of(part);
        // Keys are scored from a whole step on; those before the window are dropped by moving the rest to the front.
        let skip = part.from % STEP;
        let first = part.from - skip;
        let (keys, capacity) = (&keys[first..], part.stretch.capacity);
        score_keys::<Q>(queries, row, width, keys, capacity, part.tokens - first, scale, &mut scores[start..], room);
        if skip > 0 {
            for q in 0..Q {
                let at = q * room + start;
                scores.copy_within(at + skip..at + skip + part.len(), at);
            }
        }
        start += part.len();
    }
    for scores in scores.chunks_mut(room).take(Q) {
        softmax_body(&mut scores[..tokens]);
    }
    let mut first = 0;
    while first < width {
        first += match width - first {
            64.. if Q == 1 => weighted::<Q, 64>(head, first, scores, room, out, out_row),
            32.. => weighted::<Q, 32>(head, first, scores, room, out, out_row),
            16.. => weighted::<Q, 16>(head, first, scores, room, out, out_row),
            8.. => weighted::<Q, 8>(head, first, scores, room, out, out_row),
            _ => weighted::<Q, 1>(head, first, scores, room, out, out_row),
        };
    }
}

/// `N` columns of the weighted values of `Q` rows, from `first` on; keys in order, the sums in registers. Returns `N`.
#[inline(always)]
fn weighted<const Q: usize, const N: usize>(
    head: Head<'_>,
    first: usize,
    scores: &[f32],
    room: usize,
    out: &mut [f32],
    out_row: usize,
) -> usize {
    let mut sums = [[0.0f32; N]; Q];
    let mut start = 0;
    for part in head.seen {
        let (width, (_, values)) = (head.width, head.of(part));
        for (key, row) in values[part.from * width..part.tokens * width].chunks_exact(width).enumerate() {
            let row: &[f32; N] = row[first..][..N].try_into().expect("N values");
            for (q, sums) in sums.iter_mut().enumerate() {
                let weight = scores[q * room + start + key];
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum += weight * value;
                }
            }
        }
        start += part.len();
    }
    for (q, sums) in sums.iter().enumerate() {
        out[q * out_row + first..][..N].copy_from_slice(sums);
    }
    N
}

/// Scaled scores of the first `tokens` keys for `Q` rows; writes up to a whole step more.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "one head's whole state, used in one place")]
fn score_keys<const Q: usize>(
    queries: &[f32],
    row: usize,
    width: usize,
    keys: &[f32],
    capacity: usize,
    tokens: usize,
    scale: f32,
    scores: &mut [f32],
    room: usize,
) {
    let mut first = 0;
    while Q == 1 && first + 3 * STEP <= tokens.next_multiple_of(STEP) {
        score_some::<Q, { 3 * STEP }>(queries, row, width, &keys[first..], capacity, scale, &mut scores[first..], room);
        first += 3 * STEP;
    }
    while first < tokens {
        score_some::<Q, STEP>(queries, row, width, &keys[first..], capacity, scale, &mut scores[first..], room);
        first += STEP;
    }
}

/// Scaled scores of `N` keys for `Q` rows, the head's width in order; the sums stay in registers.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "one head's whole state, used in one place")]
fn score_some<const Q: usize, const N: usize>(
    queries: &[f32],
    row: usize,
    width: usize,
    keys: &[f32],
    capacity: usize,
    scale: f32,
    scores: &mut [f32],
    room: usize,
) {
    let mut sums = [[0.0f32; N]; Q];
    for d in 0..width {
        let keys: &[f32; N] = keys[d * capacity..][..N].try_into().expect("N keys");
        for (q, sums) in sums.iter_mut().enumerate() {
            let factor = queries[q * row + d];
            for (sum, key) in sums.iter_mut().zip(keys) {
                *sum += factor * key;
            }
        }
    }
    for (q, sums) in sums.iter().enumerate() {
        for (score, sum) in scores[q * room..][..N].iter_mut().zip(sums) {
            *score = sum * scale;
        }
    }
}

/// Turns one head of a row in place, rotate-half form.
pub fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = head.len() / 2;
    for i in 0..half {
        let (a, b) = (head[i], head[i + half]);
        head[i] = a * cos[i] - b * sin[i];
        head[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: HeadShape = HeadShape { heads: 2, kv_heads: 1, head_dim: 6 };

    fn stretch(tokens: std::ops::Range<usize>) -> Stretch {
        let mut made = Stretch::with_capacity(1, SHAPE, tokens.len());
        for (offset, token) in tokens.clone().enumerate() {
            let row =
                |salt: usize| (0..6).map(|d| ((token * 13 + d * 5 + salt) as f32 * 0.31).sin()).collect::<Vec<_>>();
            made.put(0, offset, SHAPE, &row(1), &row(2));
        }
        made.advance(tokens.len());
        made
    }

    fn query() -> Vec<f32> {
        (0..12).map(|i| (i as f32 * 0.9).cos()).collect()
    }

    fn gathered(seen: &[Seen<'_>]) -> Vec<f32> {
        let mut out = vec![0.0; 12];
        attend(&query(), seen, 0, SHAPE, &mut vec![], &mut out);
        out
    }

    #[test]
    fn a_chain_of_stretches_is_one_sequence() {
        let (whole, first, second) = (stretch(0..37), stretch(0..20), stretch(20..37));
        let parts = [Seen { stretch: &first, from: 0, tokens: 20 }, Seen { stretch: &second, from: 0, tokens: 17 }];
        assert_eq!(gathered(&[Seen { stretch: &whole, from: 0, tokens: 37 }]), gathered(&parts));
    }

    #[test]
    fn a_window_sees_the_latest_tokens_alone_wherever_stretches_part() {
        let whole = stretch(0..60);
        for cut in [1, 16, 20, 37, 59] {
            let (first, second) = (stretch(0..cut), stretch(cut..60));
            for window in [1, 5, 16, 23, 40, 59, 60, 90] {
                let alone = stretch(60usize.saturating_sub(window)..60);
                let expected = gathered(&[Seen { stretch: &alone, from: 0, tokens: alone.len() }]);
                let mut one = vec![Seen { stretch: &whole, from: 0, tokens: 60 }];
                let parts = [(&first, cut), (&second, 60 - cut)];
                let mut two: Vec<_> =
                    parts.iter().map(|(stretch, tokens)| Seen { stretch, from: 0, tokens: *tokens }).collect();
                slide(&mut one, window);
                slide(&mut two, window);
                assert_eq!(gathered(&one), expected, "{window}");
                assert_eq!(gathered(&two), expected, "{window} behind {cut}");
            }
        }
    }

    #[test]
    fn rows_that_see_the_same_are_gathered_as_each_alone() {
        for head_dim in [6, 16, 24, 72, 128] {
            let shape = HeadShape { heads: 4, kv_heads: 2, head_dim };
            let value = |i: usize, salt: usize| ((i * 7919 + salt * 104_729) % 2003) as f32 / 1001.0 - 1.0;
            let kv: Vec<f32> = (0..2 * head_dim).map(|i| value(i, 1)).collect();
            let mut made = Stretch::with_capacity(1, shape, 70);
            for token in 0..70 {
                let [keys, values] =
                    [2, 3].map(|salt| kv.iter().enumerate().map(|(i, v)| v * value(i + token, salt)).collect());
                let (keys, values): (Vec<f32>, Vec<f32>) = (keys, values);
                made.put(0, token, shape, &keys, &values);
            }
            made.advance(70);
            let seen = [Seen { stretch: &made, from: 3, tokens: 65 }, Seen { stretch: &made, from: 0, tokens: 20 }];
            let (row, width) = (shape.out_width() + 5, shape.out_width());
            for rows in 1..10 {
                let queries: Vec<f32> = (0..rows * row).map(|i| value(i, 4)).collect();
                let (mut together, mut alone, mut scratch) = (vec![0.0; rows * width], vec![0.0; width], vec![]);
                attend_rows(&queries, row, &seen, 0, shape, &mut scratch, &mut together);
                for (query, together) in queries.chunks(row).zip(together.chunks(width)) {
                    attend(&query[..width], &seen, 0, shape, &mut scratch, &mut alone);
                    let same = alone.iter().zip(together).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{rows} rows, width {head_dim}");
                }
            }
        }
    }

    #[test]
    fn follows_the_definition() {
        let made = stretch(0..5);
        let got = gathered(&[Seen { stretch: &made, from: 0, tokens: 3 }]);
        let value = |token: usize, d: usize, salt: usize| f64::from(((token * 13 + d * 5 + salt) as f32 * 0.31).sin());
        for head in 0..2 {
            let dot = |token: usize| (0..6).map(|d| f64::from(query()[head * 6 + d]) * value(token, d, 1)).sum::<f64>();
            let weights: Vec<f64> = (0..3).map(|token| (dot(token) / 6f64.sqrt()).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for d in 0..6 {
                let exact: f64 = (0..3).map(|token| weights[token] / sum * value(token, d, 2)).sum();
                assert!((exact - f64::from(got[head * 6 + d])).abs() < 1e-6);
            }
        }
    }
}
