//! The places of the world: what may stand where, and with which odds. The numbers are invented; [`super::grammar`] says what they mean.

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
