//! The grammar: which things stand where in which kind of place, and how sure one can be of a thing that is hidden.
//!
//! A place ([`Setting`]; all are in [`super::settings`]) has six slots. A slot has a box of cells on the 4 x 4 grid and, for
//! each category that its parent slot may hold, the odds of its own category. Slots form a forest, so the probability of a
//! hidden category given everything visible is exact and cheap: its own odds times those of its children ([`posterior`]). The
//! posterior gives an item's difficulty, the confusing names, and the ceiling that no reader of the picture can pass on average.
//!
//! 15 % of the configurations (a place with its categories) are kept out of everything a model trains on ([`kept_out`]):
//! a model that only remembers scenes has no use for that on a test part.
//!
//! Limits: the odds are invented; a scene's left-right mirror image is equally likely and tells nothing; the posterior is
//! that of the grammar, before the 15 % are set apart.

use std::collections::BTreeMap;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::settings::{Odds, Setting};

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
    use crate::world::settings::SETTINGS;

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
