//! What the world's author decides about every box, in the place of the paper's curators.
//!
//! | seen | decided |
//! |---|---|
//! | another thing of the same category in the picture | reject: the name is given away |
//! | the true name has a probability under [`HOPELESS`] | reject: nothing points to it |
//! | probability from [`EASY`] / [`MODERATE`] on / below | accept: easy / moderate / hard |

use serde::Serialize;

use super::scene::Scene;
use crate::record::Difficulty;

/// From this posterior of the true name on an item is easy.
pub const EASY: f64 = 0.85;
/// From this posterior of the true name on an item is moderate.
pub const MODERATE: f64 = 0.6;
/// Below this posterior of the true name a box is rejected.
pub const HOPELESS: f64 = 0.25;
/// Who decides.
pub const CURATOR: &str = "author";

/// A line of the decisions file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decision {
    /// The picture's path inside its dataset.
    pub image: String,
    /// The annotation's id.
    pub annotation: u64,
    /// `accept` or `reject`.
    pub decision: &'static str,
    /// How hard the item is; none when rejected.
    pub difficulty: Option<Difficulty>,
    /// Who decided.
    pub curator: &'static str,
}

/// How hard it is to name a thing whose true name has this posterior.
pub fn difficulty(certainty: f64) -> Difficulty {
    match certainty {
        p if p >= EASY => Difficulty::Easy,
        p if p >= MODERATE => Difficulty::Moderate,
        _ => Difficulty::Hard,
    }
}

/// The difficulty of thing `index`, or none when it is rejected.
pub fn judge(scene: &Scene, index: usize) -> Option<Difficulty> {
    let certainty = scene.certainty(index);
    (scene.is_unique(index) && certainty >= HOPELESS).then(|| difficulty(certainty))
}

/// The decision about thing `index`.
pub fn decide(scene: &Scene, index: usize, image: &str, annotation: u64) -> Decision {
    let difficulty = judge(scene, index);
    let decision = if difficulty.is_some() { "accept" } else { "reject" };
    Decision { image: image.to_owned(), annotation, decision, difficulty, curator: CURATOR }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::random::stream;
    use crate::world::scene::Pool;

    #[test]
    fn thresholds_are_inclusive() {
        let cases = [
            (1.0, Difficulty::Easy),
            (0.85, Difficulty::Easy),
            (0.84, Difficulty::Moderate),
            (0.6, Difficulty::Moderate),
            (0.59, Difficulty::Hard),
        ];
        for (certainty, wanted) in cases {
            assert_eq!(difficulty(certainty), wanted, "{certainty}");
        }
    }

    #[test]
    fn every_difficulty_and_rejection_occurs_in_both_pools() {
        for pool in [Pool::Shown, Pool::KeptOut] {
            let scenes = (0..500).map(|index| Scene::draw(pool, &mut stream(1, "test", index)));
            let mut counts = std::collections::BTreeMap::new();
            for scene in scenes {
                for index in 0..scene.things.len() {
                    *counts.entry(judge(&scene, index)).or_insert(0) += 1;
                }
            }
            assert_eq!(counts.len(), 4);
            assert!(counts.values().all(|&count| count > 150), "{pool:?} {counts:?}");
        }
    }
}
