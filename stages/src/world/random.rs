//! Independent streams of randomness: one for each purpose and index, all decided by the seed.

use rand_chacha::ChaCha8Rng;

use crate::draw;

/// The stream for item `index` of `purpose` under `seed`. Streams are independent, so items can be made in any order.
pub fn stream(seed: u64, purpose: &str, index: usize) -> ChaCha8Rng {
    draw::rng(seed, purpose, &index.to_string())
}
