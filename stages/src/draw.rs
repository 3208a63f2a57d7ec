//! Seeded draws: the same for the same seed, subject and purpose, whatever else is drawn.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// BLAKE3 of (seed, purpose, subject).
fn digest(seed: u64, purpose: &str, subject: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    for part in [purpose, subject] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// A generator for one purpose and subject (a record's id).
pub fn rng(seed: u64, purpose: &str, subject: &str) -> ChaCha8Rng {
    ChaCha8Rng::from_seed(digest(seed, purpose, subject))
}

/// A number that ranks subjects at random: adding or removing one moves no other.
pub fn rank(seed: u64, purpose: &str, subject: &str) -> u64 {
    let bytes = digest(seed, purpose, subject);
    u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_counts() {
        let base = rank(1, "a", "b");
        assert_eq!(base, rank(1, "a", "b"));
        assert!(
            [rank(2, "a", "b"), rank(1, "b", "a"), rank(1, "ab", ""), rank(1, "", "ab")]
                .iter()
                .all(|other| *other != base)
        );
    }
}
