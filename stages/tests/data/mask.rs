//! The authors' mask against Pillow, on fixtures made by `fixtures/mask_pillow.py`.

use image::{Rgb, RgbImage};
use mpcc_stages::mask::{Mask, MaskedImage};

use crate::support::fixture;

const CASES: [(&str, [f64; 4]); 5] = [
    ("inner", [31.7, 20.2, 50.9, 40.6]),
    ("small", [60.0, 40.0, 12.5, 9.4]),
    ("corner", [-3.5, -2.0, 40.2, 30.9]),
    ("edge", [80.3, 50.5, 60.0, 60.0]),
    ("line", [10.0, 5.0, 0.6, 80.0]),
];

fn picture() -> RgbImage {
    RgbImage::from_fn(120, 90, |x, y| {
        Rgb([((7 * x + 3 * y) % 256) as u8, (x * y % 251) as u8, ((x * x + 5 * y) % 253) as u8])
    })
}

fn largest_difference(ours: &[u8], theirs: &[u8]) -> u8 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn coverage_is_pillows() {
    for (name, bbox) in CASES {
        let theirs = image::open(fixture(&format!("mask_{name}.png"))).unwrap().into_luma8();
        let ours = Mask::authors().coverage(120, 90, bbox, None);
        assert_eq!(largest_difference(ours.values(), theirs.as_raw()), 0, "{name}");
    }
}

#[test]
fn the_masked_picture_is_pillows() {
    for (name, bbox) in CASES {
        let theirs = image::open(fixture(&format!("masked_{name}.png"))).unwrap().into_rgb8();
        let ours = MaskedImage::hide(picture(), bbox, None, &Mask::authors());
        assert_eq!(largest_difference(ours.pixels().as_raw(), theirs.as_raw()), 0, "{name}");
    }
}
