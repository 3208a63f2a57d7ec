//! Letters for captions inside a picture: capitals, digits and some signs, 3 x 5 pixels each.

use image::{Rgb, RgbImage};

/// Width of a letter with the gap after it, in pixels before scaling.
const ADVANCE: u32 = 4;

/// Rows of three bits, top first.
const LETTERS: [(char, [u8; 5]); 46] = [
    ('A', [0b010, 0b101, 0b111, 0b101, 0b101]),
    ('B', [0b110, 0b101, 0b110, 0b101, 0b110]),
    ('C', [0b011, 0b100, 0b100, 0b100, 0b011]),
    ('D', [0b110, 0b101, 0b101, 0b101, 0b110]),
    ('E', [0b111, 0b100, 0b110, 0b100, 0b111]),
    ('F', [0b111, 0b100, 0b110, 0b100, 0b100]),
    ('G', [0b011, 0b100, 0b101, 0b101, 0b011]),
    ('H', [0b101, 0b101, 0b111, 0b101, 0b101]),
    ('I', [0b111, 0b010, 0b010, 0b010, 0b111]),
    ('J', [0b001, 0b001, 0b001, 0b101, 0b010]),
    ('K', [0b101, 0b101, 0b110, 0b101, 0b101]),
    ('L', [0b100, 0b100, 0b100, 0b100, 0b111]),
    ('M', [0b101, 0b111, 0b111, 0b101, 0b101]),
    ('N', [0b110, 0b101, 0b101, 0b101, 0b101]),
    ('O', [0b010, 0b101, 0b101, 0b101, 0b010]),
    ('P', [0b110, 0b101, 0b110, 0b100, 0b100]),
    ('Q', [0b010, 0b101, 0b101, 0b111, 0b011]),
    ('R', [0b110, 0b101, 0b110, 0b101, 0b101]),
    ('S', [0b011, 0b100, 0b010, 0b001, 0b110]),
    ('T', [0b111, 0b010, 0b010, 0b010, 0b010]),
    ('U', [0b101, 0b101, 0b101, 0b101, 0b111]),
    ('V', [0b101, 0b101, 0b101, 0b101, 0b010]),
    ('W', [0b101, 0b101, 0b111, 0b111, 0b101]),
    ('X', [0b101, 0b101, 0b010, 0b101, 0b101]),
    ('Y', [0b101, 0b101, 0b010, 0b010, 0b010]),
    ('Z', [0b111, 0b001, 0b010, 0b100, 0b111]),
    ('0', [0b111, 0b101, 0b101, 0b101, 0b111]),
    ('1', [0b010, 0b110, 0b010, 0b010, 0b111]),
    ('2', [0b111, 0b001, 0b111, 0b100, 0b111]),
    ('3', [0b111, 0b001, 0b111, 0b001, 0b111]),
    ('4', [0b101, 0b101, 0b111, 0b001, 0b001]),
    ('5', [0b111, 0b100, 0b111, 0b001, 0b111]),
    ('6', [0b111, 0b100, 0b111, 0b101, 0b111]),
    ('7', [0b111, 0b001, 0b001, 0b001, 0b001]),
    ('8', [0b111, 0b101, 0b111, 0b101, 0b111]),
    ('9', [0b111, 0b101, 0b111, 0b001, 0b111]),
    ('.', [0b000, 0b000, 0b000, 0b000, 0b010]),
    (',', [0b000, 0b000, 0b000, 0b010, 0b100]),
    (':', [0b000, 0b010, 0b000, 0b010, 0b000]),
    ('-', [0b000, 0b000, 0b111, 0b000, 0b000]),
    ('_', [0b000, 0b000, 0b000, 0b000, 0b111]),
    ('/', [0b001, 0b001, 0b010, 0b100, 0b100]),
    ('%', [0b101, 0b001, 0b010, 0b100, 0b101]),
    ('#', [0b101, 0b111, 0b101, 0b111, 0b101]),
    ('(', [0b001, 0b010, 0b010, 0b010, 0b001]),
    (')', [0b100, 0b010, 0b010, 0b010, 0b100]),
];

/// How many letters fit into `width` pixels.
pub(super) fn fitting(width: u32, scale: u32) -> usize {
    (width / (ADVANCE * scale)) as usize
}

/// Writes `text` with its top left corner at (x, y). Small letters become capitals; what has no letter leaves a gap.
pub(super) fn write(picture: &mut RgbImage, (x, y): (u32, u32), scale: u32, colour: Rgb<u8>, text: &str) {
    for (position, character) in text.chars().enumerate() {
        let rows = LETTERS.iter().find(|(letter, _)| *letter == character.to_ascii_uppercase()).map(|(_, rows)| *rows);
        let left = x + position as u32 * ADVANCE * scale;
        for (row, bits) in rows.iter().flatten().enumerate() {
            for column in (0..3_u32).filter(|column| bits & (0b100 >> column) != 0) {
                block(picture, left + column * scale, y + row as u32 * scale, scale, colour);
            }
        }
    }
}

fn block(picture: &mut RgbImage, x: u32, y: u32, scale: u32, colour: Rgb<u8>) {
    for (dx, dy) in (0..scale).flat_map(|dx| (0..scale).map(move |dy| (dx, dy))) {
        if x + dx < picture.width() && y + dy < picture.height() {
            picture.put_pixel(x + dx, y + dy, colour);
        }
    }
}
