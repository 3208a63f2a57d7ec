//! The order of the data: a function of the seed alone, so that a resumed training needs no memory of it.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// A generator for one step (or epoch) and one purpose of a training.
pub fn stream(seed: u64, purpose: u64, step: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream((purpose << 48) | step as u64);
    rng
}

/// The `count` places drawn by step `step` when `size` records are gone through in a new random order every epoch. An epoch
/// that does not divide evenly goes on in the next one's order.
pub fn places(seed: u64, size: usize, count: usize, step: usize) -> Vec<usize> {
    let first = step * count;
    let mut found = Vec::with_capacity(count);
    let mut epoch = (usize::MAX, Vec::new());
    for position in first..first + count {
        if epoch.0 != position / size {
            epoch = (position / size, permutation(seed, size, position / size));
        }
        found.push(epoch.1[position % size]);
    }
    found
}

fn permutation(seed: u64, size: usize, epoch: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..size).collect();
    order.shuffle(&mut stream(seed, 1, epoch));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_visits_every_record_once() {
        let drawn: Vec<usize> = (0..6).flat_map(|step| places(3, 10, 5, step)).collect();
        for epoch in drawn.chunks(10) {
            let mut seen = epoch.to_vec();
            seen.sort_unstable();
            assert_eq!(seen, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(drawn[..10], drawn[10..20]);
        assert_eq!(places(3, 10, 5, 2), drawn[10..15]);
    }

    #[test]
    fn steps_may_be_larger_than_an_epoch() {
        assert_eq!(places(1, 3, 7, 0).len(), 7);
    }
}
