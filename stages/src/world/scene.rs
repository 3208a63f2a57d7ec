//! A scene: one picture's things before it is painted.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::grammar::{self, Filling};
use super::settings::{SETTINGS, Setting};
use crate::place;

/// Side of a cell in pixels: two patches of the vision tower merged into one token.
pub const CELL: u32 = 28;
/// Side of a picture in pixels.
pub const SIDE: u32 = 4 * CELL;

/// A thing in a scene.
#[derive(Clone, Debug, PartialEq)]
pub struct Thing {
    /// Category name.
    pub category: &'static str,
    /// x, y, width, height in cells, as the picture shows it.
    pub cells: [u8; 4],
    /// x, y, width, height in pixels, in hundredths.
    pub bbox: [f64; 4],
}

/// Which configurations a part of the world may show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// Those that models may train on.
    Shown,
    /// Those kept out of all training.
    KeptOut,
    /// All, as often as the grammar gives them.
    Any,
}

impl Pool {
    fn holds(self, setting: &Setting, filling: &[&str]) -> bool {
        match self {
            Self::Shown => !grammar::kept_out(setting, filling),
            Self::KeptOut => grammar::kept_out(setting, filling),
            Self::Any => true,
        }
    }
}

/// A scene.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// What kind of place it is.
    pub setting: &'static Setting,
    /// The category of each slot.
    pub filling: Filling,
    /// Whether left and right are swapped.
    pub mirrored: bool,
    /// The things, in the order of the slots.
    pub things: Vec<Thing>,
}

impl PartialEq for Setting {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Scene {
    /// Draws a scene of `pool`: every kind of place is equally likely, in every pool.
    pub fn draw(pool: Pool, rng: &mut ChaCha8Rng) -> Self {
        let setting = &SETTINGS[rng.random_range(0..SETTINGS.len())];
        let filling = loop {
            let filling = grammar::draw(setting, rng);
            if pool.holds(setting, &filling) {
                break filling;
            }
        };
        let mirrored = rng.random_bool(0.5);
        let slots = setting.slots.iter().zip(&filling);
        let things = slots.map(|(slot, category)| Thing::draw(category, slot.cells, mirrored, rng)).collect();
        Self { setting, filling, mirrored, things }
    }

    /// The probability of every possible category of thing `index`, were it hidden.
    pub fn posterior(&self, index: usize) -> std::collections::BTreeMap<&'static str, f64> {
        grammar::posterior(self.setting, &self.filling, index)
    }

    /// How probable the true category of thing `index` is, were it hidden.
    pub fn certainty(&self, index: usize) -> f64 {
        self.posterior(index).get(self.things[index].category).copied().unwrap_or(0.0)
    }

    /// The things nearest to thing `index`, nearest first; ties in reading order.
    pub fn nearest(&self, index: usize) -> Vec<usize> {
        let from = self.things[index].centre();
        let mut others: Vec<usize> = (0..self.things.len()).filter(|&other| other != index).collect();
        others.sort_by_key(|&other| {
            let thing = &self.things[other];
            let [x, y] = thing.centre();
            ((x - from[0]).pow(2) + (y - from[1]).pow(2), thing.cells[1], thing.cells[0])
        });
        others
    }

    /// Whether no other thing has the category of thing `index`.
    pub fn is_unique(&self, index: usize) -> bool {
        self.things.iter().filter(|thing| thing.category == self.things[index].category).count() == 1
    }
}

impl Thing {
    fn draw(category: &'static str, cells: [u8; 4], mirrored: bool, rng: &mut ChaCha8Rng) -> Self {
        let [x, y, w, h] = cells;
        let x = if mirrored { 4 - x - w } else { x };
        let scale = 0.80 + 0.12 * rng.random::<f64>();
        let mut side = |offset: u8, cells: u8| {
            let room = f64::from(u32::from(cells) * CELL);
            let start = f64::from(u32::from(offset) * CELL) + (room - room * scale) * rng.random::<f64>();
            [hundredths(start), hundredths(room * scale)]
        };
        let ([left, width], [top, height]) = (side(x, w), side(y, h));
        Self { category, cells: [x, y, w, h], bbox: [left, top, width, height] }
    }

    /// The centre in half cells.
    fn centre(&self) -> [i32; 2] {
        let [x, y, w, h] = self.cells.map(i32::from);
        [2 * x + w, 2 * y + h]
    }

    /// Row and column word of its top left corner.
    pub fn place(&self) -> String {
        place::place(self.bbox, [SIDE, SIDE])
    }

    /// How big it is, in a word.
    pub fn size(&self) -> &'static str {
        place::size_word(self.bbox, [SIDE, SIDE])
    }

    /// The row of cells in which it stands.
    pub fn base(&self) -> u8 {
        self.cells[1] + self.cells[3]
    }

    /// Where it is, seen from `other`: `left`, `right`, `above` or `below`, by the larger distance of the centres; none
    /// when that is not clear.
    pub fn seen_from(&self, other: &Thing) -> Option<&'static str> {
        let ([x, y], [a, b]) = (self.centre(), other.centre());
        let (across, down) = (x - a, y - b);
        match across.abs().cmp(&down.abs()) {
            std::cmp::Ordering::Greater => Some(if across > 0 { "right" } else { "left" }),
            std::cmp::Ordering::Less => Some(if down > 0 { "below" } else { "above" }),
            std::cmp::Ordering::Equal => None,
        }
    }
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::random::stream;

    fn scenes(pool: Pool) -> impl Iterator<Item = Scene> {
        (0..300).map(move |index| Scene::draw(pool, &mut stream(1, "test", index)))
    }

    #[test]
    fn boxes_stay_in_their_cells_and_words_follow_cells() {
        for scene in scenes(Pool::Shown) {
            for thing in &scene.things {
                let [x, y, w, h] = thing.cells.map(f64::from);
                let cell = f64::from(CELL);
                assert!(
                    thing.bbox[0] >= x * cell && thing.bbox[0] + thing.bbox[2] <= (x + w) * cell + 0.02,
                    "{thing:?}"
                );
                assert!(
                    thing.bbox[1] >= y * cell && thing.bbox[1] + thing.bbox[3] <= (y + h) * cell + 0.02,
                    "{thing:?}"
                );
                let place = format!("{} {}", place::ROWS[y as usize], place::COLUMNS[x as usize]);
                assert_eq!(thing.place(), place);
                let size = match (thing.cells[2], thing.cells[3]) {
                    (1, 1) => "small",
                    (1, 2) => "tall",
                    (2, 1) => "wide",
                    _ => "large",
                };
                assert_eq!(thing.size(), size);
            }
        }
    }

    #[test]
    fn the_pools_share_no_configuration() {
        for (pool, kept) in [(Pool::Shown, false), (Pool::KeptOut, true)] {
            assert!(scenes(pool).all(|scene| grammar::kept_out(scene.setting, &scene.filling) == kept));
        }
    }

    #[test]
    fn the_nearest_come_first() {
        let scene = scenes(Pool::Shown).find(|scene| scene.setting.name == "kitchen" && !scene.mirrored).unwrap();
        assert_eq!(scene.nearest(2)[..2], [0, 1], "above the stove: the stove, then what stands left of it");
    }

    #[test]
    fn directions_are_opposite() {
        for scene in scenes(Pool::Shown).take(50) {
            let (a, b) = (&scene.things[0], &scene.things[1]);
            let opposite = a.seen_from(b).map(|word| match word {
                "left" => "right",
                "right" => "left",
                "above" => "below",
                _ => "above",
            });
            assert_eq!(b.seen_from(a), opposite);
        }
    }
}
