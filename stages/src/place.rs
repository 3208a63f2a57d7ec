//! Where a box lies and how big it is, in words that a picture of a 4 x 4 grid would use.
//!
//! Prompts fill `{{place}}` with [`place`]; the embedded world writes its captions with the same two functions, so what a
//! model learned from captions is what a prompt asks for. Everything is computed from the annotated box and the size of the
//! picture alone.
//!
//! | words | meaning |
//! |---|---|
//! | `top upper lower bottom` | the quarter of the height that holds the box's top edge |
//! | `leftmost left right rightmost` | the quarter of the width that holds the box's left edge |
//! | `small tall wide large` | whether the box spans more than [`BROAD`] of the height and of the width |

/// Words for the quarters of the height, from the top.
pub const ROWS: [&str; 4] = ["top", "upper", "lower", "bottom"];
/// Words for the quarters of the width, from the left.
pub const COLUMNS: [&str; 4] = ["leftmost", "left", "right", "rightmost"];
/// The share of a side above which a box counts as broad along it: between one quarter and two.
pub const BROAD: f64 = 0.32;

/// Row and column word of the quarter that holds the box's top left corner: `upper right`.
///
/// `bbox` is x, y, width, height in pixels, `size` width and height of the picture.
pub fn place(bbox: [f64; 4], size: [u32; 2]) -> String {
    format!("{} {}", ROWS[quarter(bbox[1], size[1])], COLUMNS[quarter(bbox[0], size[0])])
}

/// `small`, `tall`, `wide` or `large`; arguments as for [`place`].
pub fn size_word(bbox: [f64; 4], size: [u32; 2]) -> &'static str {
    let broad = |length: f64, side: u32| length > BROAD * f64::from(side);
    match (broad(bbox[2], size[0]), broad(bbox[3], size[1])) {
        (false, false) => "small",
        (false, true) => "tall",
        (true, false) => "wide",
        (true, true) => "large",
    }
}

fn quarter(offset: f64, side: u32) -> usize {
    let share = offset / f64::from(side.max(1));
    ((share * 4.0).floor().max(0.0) as usize).min(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_follow_the_top_left_corner() {
        let size = [112, 112];
        let cases = [
            ([0.0, 0.0, 10.0, 10.0], "top leftmost"),
            ([27.9, 28.0, 10.0, 10.0], "upper leftmost"),
            ([56.0, 83.9, 10.0, 10.0], "lower right"),
            ([111.9, 111.9, 1.0, 1.0], "bottom rightmost"),
            ([-3.0, 140.0, 1.0, 1.0], "bottom leftmost"),
        ];
        for (bbox, words) in cases {
            assert_eq!(place(bbox, size), words, "{bbox:?}");
        }
        assert_eq!(place([320.0, 10.0, 5.0, 5.0], [640, 480]), "top right");
    }

    #[test]
    fn sizes_follow_both_sides() {
        let size = [112, 112];
        assert_eq!(size_word([0.0, 0.0, 25.8, 25.8], size), "small");
        assert_eq!(size_word([0.0, 0.0, 25.8, 44.8], size), "tall");
        assert_eq!(size_word([0.0, 0.0, 51.5, 22.4], size), "wide");
        assert_eq!(size_word([0.0, 0.0, 44.8, 44.8], size), "large");
    }
}
