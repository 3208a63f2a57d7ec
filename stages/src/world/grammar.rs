//! The grammar: which things stand where in which kind of place, and how sure one can be of a thing that is hidden.
//!
//! A place ([`Setting`]) has six slots. A slot has a box of cells on the 4 x 4 grid and, for each category that its
//! parent slot may hold, the odds of its own category. Slots form a forest, so the probability of a hidden category given
//! everything visible is exact and cheap: its own odds times those of its children ([`posterior`]). The posterior gives an
//! item's difficulty, the confusing names, and the ceiling that no reader of the picture can pass on average.
//!
//! 15 % of the configurations (a place with its categories) are kept out of everything a model trains on ([`kept_out`]):
//! a model that only remembers scenes has no use for that on a test part.
//!
//! Limits: the odds are invented; a scene's left-right mirror image is equally likely and tells nothing; the posterior is
//! that of the grammar, before the 15 % are set apart.

use std::collections::BTreeMap;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Categories with their odds; the odds of a list sum to 1.
pub type Odds = &'static [(&'static str, f64)];

/// A part of a place that holds one thing.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// x, y, width, height in cells.
    pub cells: [u8; 4],
    /// Index of the slot whose category decides the odds; it comes earlier in the list.
    pub parent: Option<usize>,
    /// The odds for each category of the parent; one entry under `""` without a parent.
    pub odds: &'static [(&'static str, Odds)],
}

/// A kind of place.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// One word.
    pub name: &'static str,
    /// Colour above the horizon.
    pub upper: [u8; 3],
    /// Colour below it.
    pub lower: [u8; 3],
    /// The slots, parents first.
    pub slots: &'static [Slot],
}

const fn root(cells: [u8; 4], odds: &'static [(&'static str, Odds); 1]) -> Slot {
    Slot { cells, parent: None, odds }
}

const fn child(cells: [u8; 4], parent: usize, odds: &'static [(&'static str, Odds)]) -> Slot {
    Slot { cells, parent: Some(parent), odds }
}

/// Every kind of place.
pub static SETTINGS: [Setting; 8] = [
    Setting {
        name: "kitchen",
        upper: [235, 220, 180],
        lower: [190, 150, 110],
        slots: &[
            root([1, 1, 2, 2], &[("", &[("oven", 0.5), ("sink", 0.5)])]),
            root([0, 1, 1, 2], &[("", &[("refrigerator", 0.6), ("chair", 0.4)])]),
            child(
                [1, 0, 1, 1],
                0,
                &[
                    ("oven", &[("bowl", 0.5), ("cup", 0.3), ("clock", 0.2)]),
                    ("sink", &[("cup", 0.85), ("clock", 0.15)]),
                ],
            ),
            child(
                [3, 2, 1, 1],
                0,
                &[
                    ("oven", &[("knife", 0.85), ("bowl", 0.15)]),
                    ("sink", &[("bowl", 0.5), ("cup", 0.3), ("knife", 0.2)]),
                ],
            ),
            child(
                [3, 0, 1, 1],
                2,
                &[
                    ("bowl", &[("clock", 0.55), ("cup", 0.45)]),
                    ("cup", &[("clock", 0.9), ("knife", 0.1)]),
                    ("clock", &[("knife", 0.6), ("bowl", 0.4)]),
                ],
            ),
            child(
                [1, 3, 1, 1],
                1,
                &[
                    ("refrigerator", &[("cat", 0.5), ("bowl", 0.3), ("dog", 0.2)]),
                    ("chair", &[("dog", 0.9), ("cat", 0.1)]),
                ],
            ),
        ],
    },
    Setting {
        name: "bathroom",
        upper: [180, 220, 230],
        lower: [235, 235, 240],
        slots: &[
            root([0, 1, 2, 2], &[("", &[("toilet", 0.5), ("sink", 0.5)])]),
            child(
                [2, 1, 2, 2],
                0,
                &[("toilet", &[("sink", 0.9), ("toilet", 0.1)]), ("sink", &[("toilet", 0.9), ("sink", 0.1)])],
            ),
            child(
                [0, 0, 1, 1],
                0,
                &[
                    ("toilet", &[("book", 0.55), ("clock", 0.3), ("vase", 0.15)]),
                    ("sink", &[("toothbrush", 0.8), ("cup", 0.2)]),
                ],
            ),
            child(
                [3, 0, 1, 1],
                1,
                &[
                    ("toilet", &[("book", 0.5), ("clock", 0.3), ("potted plant", 0.2)]),
                    ("sink", &[("toothbrush", 0.6), ("cup", 0.4)]),
                ],
            ),
            child(
                [1, 3, 1, 1],
                2,
                &[
                    ("book", &[("cat", 0.85), ("potted plant", 0.15)]),
                    ("clock", &[("potted plant", 0.5), ("cat", 0.3), ("vase", 0.2)]),
                    ("vase", &[("cat", 0.6), ("potted plant", 0.4)]),
                    ("toothbrush", &[("potted plant", 0.55), ("vase", 0.45)]),
                    ("cup", &[("vase", 0.9), ("cat", 0.1)]),
                ],
            ),
            child(
                [2, 3, 1, 1],
                1,
                &[("toilet", &[("bowl", 0.85), ("cup", 0.15)]), ("sink", &[("cup", 0.55), ("bowl", 0.45)])],
            ),
        ],
    },
    Setting {
        name: "bedroom",
        upper: [200, 170, 210],
        lower: [150, 110, 80],
        slots: &[
            root([0, 1, 2, 2], &[("", &[("bed", 0.9), ("bench", 0.1)])]),
            root([1, 0, 1, 1], &[("", &[("teddy bear", 0.5), ("book", 0.5)])]),
            child(
                [2, 2, 1, 1],
                1,
                &[
                    ("teddy bear", &[("cup", 0.5), ("clock", 0.3), ("remote", 0.2)]),
                    ("book", &[("clock", 0.85), ("cup", 0.15)]),
                ],
            ),
            root([3, 1, 1, 2], &[("", &[("chair", 0.6), ("person", 0.4)])]),
            child(
                [3, 0, 1, 1],
                2,
                &[
                    ("cup", &[("clock", 0.85), ("book", 0.15)]),
                    ("clock", &[("book", 0.5), ("teddy bear", 0.3), ("vase", 0.2)]),
                    ("remote", &[("tv", 0.9), ("book", 0.1)]),
                ],
            ),
            child(
                [2, 3, 1, 1],
                3,
                &[("chair", &[("cat", 0.55), ("teddy bear", 0.45)]), ("person", &[("dog", 0.9), ("cat", 0.1)])],
            ),
        ],
    },
    Setting {
        name: "office",
        upper: [190, 190, 190],
        lower: [100, 120, 150],
        slots: &[
            root([1, 0, 2, 2], &[("", &[("laptop", 0.55), ("tv", 0.45)])]),
            child(
                [1, 2, 1, 1],
                0,
                &[("laptop", &[("book", 0.55), ("keyboard", 0.45)]), ("tv", &[("keyboard", 0.9), ("remote", 0.1)])],
            ),
            child(
                [2, 2, 1, 1],
                1,
                &[
                    ("keyboard", &[("mouse", 0.9), ("cup", 0.1)]),
                    ("book", &[("cup", 0.5), ("mouse", 0.3), ("clock", 0.2)]),
                    ("remote", &[("cup", 0.6), ("vase", 0.4)]),
                ],
            ),
            root([0, 1, 1, 2], &[("", &[("chair", 0.6), ("person", 0.4)])]),
            child(
                [3, 0, 1, 1],
                2,
                &[
                    ("mouse", &[("clock", 0.65), ("book", 0.35)]),
                    ("cup", &[("book", 0.5), ("clock", 0.3), ("vase", 0.2)]),
                    ("clock", &[("book", 0.9), ("vase", 0.1)]),
                    ("vase", &[("clock", 0.6), ("book", 0.4)]),
                ],
            ),
            child(
                [3, 3, 1, 1],
                3,
                &[
                    ("chair", &[("potted plant", 0.9), ("vase", 0.1)]),
                    ("person", &[("dog", 0.5), ("potted plant", 0.3), ("bowl", 0.2)]),
                ],
            ),
        ],
    },
    Setting {
        name: "lounge",
        upper: [165, 200, 165],
        lower: [115, 70, 65],
        slots: &[
            root([2, 1, 2, 2], &[("", &[("couch", 0.5), ("tv", 0.5)])]),
            child(
                [2, 3, 1, 1],
                0,
                &[("couch", &[("cat", 0.55), ("dog", 0.45)]), ("tv", &[("remote", 0.9), ("cup", 0.1)])],
            ),
            child(
                [2, 0, 1, 1],
                0,
                &[
                    ("couch", &[("book", 0.5), ("clock", 0.3), ("bird", 0.2)]),
                    ("tv", &[("vase", 0.85), ("book", 0.15)]),
                ],
            ),
            child(
                [0, 2, 1, 2],
                1,
                &[
                    ("cat", &[("potted plant", 0.85), ("chair", 0.15)]),
                    ("dog", &[("person", 0.65), ("chair", 0.35)]),
                    ("remote", &[("chair", 0.5), ("person", 0.3), ("potted plant", 0.2)]),
                    ("cup", &[("person", 0.6), ("potted plant", 0.4)]),
                ],
            ),
            child(
                [0, 0, 1, 1],
                2,
                &[
                    ("book", &[("clock", 0.55), ("vase", 0.45)]),
                    ("clock", &[("book", 0.85), ("vase", 0.15)]),
                    ("vase", &[("clock", 0.9), ("bird", 0.1)]),
                    ("bird", &[("clock", 0.6), ("book", 0.4)]),
                ],
            ),
            child(
                [3, 0, 1, 1],
                1,
                &[
                    ("cat", &[("bird", 0.6), ("teddy bear", 0.4)]),
                    ("dog", &[("teddy bear", 0.85), ("book", 0.15)]),
                    ("remote", &[("cup", 0.5), ("bowl", 0.3), ("clock", 0.2)]),
                    ("cup", &[("bowl", 0.9), ("book", 0.1)]),
                ],
            ),
        ],
    },
    Setting {
        name: "street",
        upper: [150, 195, 240],
        lower: [110, 110, 115],
        slots: &[
            root([1, 1, 2, 2], &[("", &[("car", 0.4), ("bus", 0.35), ("truck", 0.25)])]),
            child(
                [0, 0, 1, 2],
                0,
                &[
                    ("car", &[("stop sign", 0.9), ("traffic light", 0.1)]),
                    ("bus", &[("traffic light", 0.9), ("stop sign", 0.1)]),
                    ("truck", &[("traffic light", 0.6), ("stop sign", 0.4)]),
                ],
            ),
            child(
                [0, 3, 1, 1],
                1,
                &[
                    ("stop sign", &[("fire hydrant", 0.85), ("dog", 0.15)]),
                    ("traffic light", &[("dog", 0.5), ("fire hydrant", 0.3), ("bird", 0.2)]),
                ],
            ),
            child(
                [3, 2, 1, 2],
                0,
                &[
                    ("car", &[("bicycle", 0.85), ("person", 0.15)]),
                    ("bus", &[("person", 0.85), ("bicycle", 0.15)]),
                    ("truck", &[("person", 0.55), ("bicycle", 0.45)]),
                ],
            ),
            child(
                [3, 0, 1, 1],
                2,
                &[
                    ("fire hydrant", &[("bird", 0.9), ("kite", 0.1)]),
                    ("dog", &[("kite", 0.5), ("bird", 0.3), ("frisbee", 0.2)]),
                    ("bird", &[("kite", 0.6), ("bird", 0.4)]),
                ],
            ),
            child(
                [2, 0, 1, 1],
                1,
                &[
                    ("stop sign", &[("clock", 0.85), ("bird", 0.15)]),
                    ("traffic light", &[("bird", 0.5), ("clock", 0.3), ("kite", 0.2)]),
                ],
            ),
        ],
    },
    Setting {
        name: "park",
        upper: [150, 195, 240],
        lower: [100, 170, 80],
        slots: &[
            root([0, 2, 2, 1], &[("", &[("bench", 0.55), ("bicycle", 0.45)])]),
            root([2, 1, 1, 2], &[("", &[("person", 0.6), ("umbrella", 0.4)])]),
            child(
                [3, 3, 1, 1],
                1,
                &[
                    ("person", &[("dog", 0.9), ("bird", 0.1)]),
                    ("umbrella", &[("bird", 0.5), ("cat", 0.3), ("dog", 0.2)]),
                ],
            ),
            child(
                [3, 0, 1, 1],
                2,
                &[
                    ("dog", &[("frisbee", 0.85), ("kite", 0.15)]),
                    ("bird", &[("kite", 0.55), ("bird", 0.45)]),
                    ("cat", &[("kite", 0.6), ("frisbee", 0.4)]),
                ],
            ),
            child(
                [0, 0, 1, 1],
                3,
                &[
                    ("frisbee", &[("bird", 0.55), ("kite", 0.45)]),
                    ("kite", &[("bird", 0.85), ("kite", 0.15)]),
                    ("bird", &[("kite", 0.85), ("bird", 0.15)]),
                ],
            ),
            child(
                [0, 3, 1, 1],
                0,
                &[("bench", &[("bird", 0.5), ("cat", 0.3), ("cup", 0.2)]), ("bicycle", &[("dog", 0.6), ("cup", 0.4)])],
            ),
        ],
    },
    Setting {
        name: "beach",
        upper: [140, 215, 250],
        lower: [240, 215, 145],
        slots: &[
            root([0, 1, 2, 1], &[("", &[("boat", 0.55), ("surfboard", 0.45)])]),
            child(
                [3, 1, 1, 2],
                0,
                &[
                    ("boat", &[("umbrella", 0.85), ("person", 0.15)]),
                    ("surfboard", &[("person", 0.85), ("umbrella", 0.15)]),
                ],
            ),
            child(
                [2, 3, 1, 1],
                1,
                &[
                    ("umbrella", &[("book", 0.5), ("cup", 0.3), ("bowl", 0.2)]),
                    ("person", &[("dog", 0.6), ("frisbee", 0.4)]),
                ],
            ),
            child(
                [0, 3, 2, 1],
                1,
                &[
                    ("umbrella", &[("bench", 0.85), ("surfboard", 0.15)]),
                    ("person", &[("surfboard", 0.55), ("bench", 0.45)]),
                ],
            ),
            child(
                [2, 0, 1, 1],
                2,
                &[
                    ("book", &[("bird", 0.85), ("kite", 0.15)]),
                    ("cup", &[("bird", 0.55), ("kite", 0.45)]),
                    ("bowl", &[("kite", 0.6), ("bird", 0.4)]),
                    ("dog", &[("kite", 0.55), ("frisbee", 0.45)]),
                    ("frisbee", &[("kite", 0.9), ("bird", 0.1)]),
                ],
            ),
            child(
                [0, 0, 1, 1],
                0,
                &[("boat", &[("bird", 0.9), ("kite", 0.1)]), ("surfboard", &[("kite", 0.55), ("bird", 0.45)])],
            ),
        ],
    },
];

/// The categories of a setting's slots, in the order of the slots.
pub type Filling = Vec<&'static str>;

/// The odds of slot `slot` when the slots hold `filling`.
pub fn odds(setting: &Setting, slot: usize, filling: &[&str]) -> Odds {
    let slot = &setting.slots[slot];
    let given = slot.parent.map_or("", |parent| filling[parent]);
    slot.odds.iter().find(|(name, _)| *name == given).map_or(&[], |(_, odds)| odds)
}

fn chance(odds: Odds, category: &str) -> f64 {
    odds.iter().find(|(name, _)| *name == category).map_or(0.0, |(_, p)| *p)
}

/// Draws the categories of a setting, parents first.
pub fn draw(setting: &Setting, rng: &mut ChaCha8Rng) -> Filling {
    let mut filling = Filling::with_capacity(setting.slots.len());
    for slot in 0..setting.slots.len() {
        filling.push(pick(odds(setting, slot, &filling), rng));
    }
    filling
}

fn pick(odds: Odds, rng: &mut ChaCha8Rng) -> &'static str {
    let mut left: f64 = rng.random();
    for (name, p) in odds {
        left -= p;
        if left < 0.0 {
            return name;
        }
    }
    odds.last().expect("a slot has odds for every category of its parent").0
}

/// The probability of every possible category of `slot`, given the setting and the categories of all other slots.
pub fn posterior(setting: &Setting, filling: &[&'static str], slot: usize) -> BTreeMap<&'static str, f64> {
    let mut with = filling.to_vec();
    let mut found = BTreeMap::new();
    for (category, prior) in odds(setting, slot, filling) {
        with[slot] = category;
        let below = (0..setting.slots.len()).filter(|&other| setting.slots[other].parent == Some(slot));
        let likelihood: f64 = below.map(|other| chance(odds(setting, other, &with), with[other])).product();
        if prior * likelihood > 0.0 {
            found.insert(*category, prior * likelihood);
        }
    }
    let total: f64 = found.values().sum();
    found.values_mut().for_each(|p| *p /= total);
    found
}

/// Which draw of the 15 %: of 20,000, the one whose share and whose certainty are nearest to the whole's in every setting.
const DRAW: u32 = 8496;

/// Whether this configuration is kept out of everything a model trains on: about 15 % are.
pub fn kept_out(setting: &Setting, filling: &[&str]) -> bool {
    let mut hasher = blake3::Hasher::new_derive_key("mpcc 2026 embedded world configurations kept out");
    hasher.update(&DRAW.to_le_bytes());
    for name in std::iter::once(&setting.name).chain(filling) {
        hasher.update(name.as_bytes());
        hasher.update(b"|");
    }
    let bytes = *hasher.finalize().as_bytes();
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) % 100 < 15
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::catalog;
    use crate::world::random::stream;

    #[test]
    fn slots_lie_apart_inside_the_grid() {
        for setting in &SETTINGS {
            let mut taken = [[false; 4]; 4];
            for slot in setting.slots {
                let [x, y, w, h] = slot.cells.map(usize::from);
                for row in &mut taken[y..y + h] {
                    for cell in &mut row[x..x + w] {
                        assert!(!*cell, "{} overlaps at {:?}", setting.name, slot.cells);
                        *cell = true;
                    }
                }
            }
        }
    }

    #[test]
    fn odds_sum_to_one_and_cover_every_category_of_the_parent() {
        for setting in &SETTINGS {
            for (index, slot) in setting.slots.iter().enumerate() {
                let mut given: Vec<&str> = slot.odds.iter().map(|(name, _)| *name).collect();
                given.sort_unstable();
                let mut wanted = match slot.parent {
                    None => vec![""],
                    Some(parent) => {
                        assert!(parent < index, "{}: slot {index} comes before its parent", setting.name);
                        setting.slots[parent]
                            .odds
                            .iter()
                            .flat_map(|(_, odds)| odds.iter().map(|(name, _)| *name))
                            .collect()
                    }
                };
                wanted.sort_unstable();
                wanted.dedup();
                assert_eq!(given, wanted, "{} slot {index}", setting.name);
                for (name, odds) in slot.odds {
                    let total: f64 = odds.iter().map(|(_, p)| p).sum();
                    assert!((total - 1.0).abs() < 1e-9, "{} slot {index} under `{name}`: {total}", setting.name);
                    assert!(odds.iter().all(|(c, p)| *p > 0.0 && catalog::by_name(c).is_some()));
                }
            }
        }
    }

    /// Every filling of a setting with its probability.
    fn all(setting: &Setting) -> Vec<(Filling, f64)> {
        let mut found = vec![(Filling::new(), 1.0)];
        for slot in 0..setting.slots.len() {
            found = found
                .into_iter()
                .flat_map(|(filling, p)| {
                    odds(setting, slot, &filling).iter().map(move |(name, q)| {
                        let mut next = filling.clone();
                        next.push(name);
                        (next, p * q)
                    })
                })
                .collect();
        }
        found
    }

    #[test]
    fn the_posterior_equals_that_of_enumeration() {
        for setting in &SETTINGS {
            let all = all(setting);
            for (filling, _) in all.iter().step_by(7) {
                for slot in 0..filling.len() {
                    let same = |other: &Filling| (0..filling.len()).all(|s| s == slot || other[s] == filling[s]);
                    let rivals: Vec<_> = all.iter().filter(|(other, _)| same(other)).collect();
                    let total: f64 = rivals.iter().map(|(_, p)| p).sum();
                    let posterior = posterior(setting, filling, slot);
                    assert_eq!(posterior.len(), rivals.len());
                    for (other, p) in rivals {
                        assert!((posterior[other[slot]] - p / total).abs() < 1e-12);
                    }
                }
            }
        }
    }

    #[test]
    fn about_fifteen_percent_of_every_setting_are_kept_out() {
        let mut configurations = 0;
        for setting in &SETTINGS {
            let all = all(setting);
            let share: f64 = all.iter().filter(|(filling, _)| kept_out(setting, filling)).map(|(_, p)| p).sum();
            configurations += all.len();
            assert!((0.12..0.20).contains(&share), "{}: {share:.3} of {}", setting.name, all.len());
        }
        assert!(configurations > 900, "{configurations}");
    }

    #[test]
    fn draws_follow_the_odds() {
        let mut rng = stream(3, "test", 0);
        let setting = &SETTINGS[0];
        let n = 4000;
        let ovens = (0..n).filter(|_| draw(setting, &mut rng)[0] == "oven").count();
        assert!((1850..2150).contains(&ovens), "{ovens}");
    }
}
