//! Painting a scene.
//!
//! Sky or wall above the horizon, floor below, then each thing's shapes. A gentle light runs from left to right (red) and
//! from top to bottom (blue), so that where something is can be seen in its colour by a vision tower that knows only
//! relative positions. Horizon, brightness and pixel noise vary from picture to picture.

use image::codecs::jpeg::JpegEncoder;
use image::{Rgb, RgbImage};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::glyphs::{Form, Shape, glyph};
use super::scene::{SIDE, Scene, Thing};

/// How much the light changes from the middle to an edge.
const LIGHT: f32 = 0.3;
/// Standard deviation of the pixel noise in grey levels.
const NOISE: f32 = 2.0;
/// JPEG quality of the pictures.
const QUALITY: u8 = 90;

type Canvas = Vec<[f32; 3]>;

/// Paints a scene.
pub fn paint(scene: &Scene, rng: &mut ChaCha8Rng) -> RgbImage {
    let mut canvas = background(scene, rng);
    for thing in &scene.things {
        let gain = 1.0 + 0.06 * bell(rng);
        for shape in glyph(thing.category) {
            fill(&mut canvas, thing, mirror(*shape, scene.mirrored), gain);
        }
    }
    finish(&canvas, rng)
}

/// Encodes a picture as JPEG.
pub fn jpeg(picture: &RgbImage) -> image::ImageResult<Vec<u8>> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, QUALITY).encode_image(picture)?;
    Ok(bytes)
}

fn background(scene: &Scene, rng: &mut ChaCha8Rng) -> Canvas {
    let horizon = SIDE / 2 - 4 + rng.random_range(0..9u32);
    let gain = 1.0 + 0.05 * bell(rng);
    let colour = |y| if y < horizon { scene.setting.upper } else { scene.setting.lower };
    (0..SIDE * SIDE).map(|pixel| colour(pixel / SIDE).map(|level| f32::from(level) * gain)).collect()
}

fn mirror(shape: Shape, mirrored: bool) -> Shape {
    let (form, [left, top, right, bottom], colour) = shape;
    if mirrored { (form, [1.0 - right, top, 1.0 - left, bottom], colour) } else { shape }
}

fn fill(canvas: &mut Canvas, thing: &Thing, (form, part, colour): Shape, gain: f32) {
    let [x, y, w, h] = thing.bbox.map(|value| value as f32);
    let [left, right] = [x + part[0] * w, x + part[2] * w];
    let [top, bottom] = [y + part[1] * h, y + part[3] * h];
    let colour = colour.map(|level| f32::from(level) * gain);
    for row in span(top, bottom.min(y + h)) {
        for column in span(left, right) {
            let u = (column as f32 + 0.5 - left) / (right - left);
            let v = (row as f32 + 0.5 - top) / (bottom - top);
            if covers(form, u, v) {
                canvas[row * SIDE as usize + column] = colour;
            }
        }
    }
}

/// The pixels that `from..to` touches, inside the picture.
fn span(from: f32, to: f32) -> std::ops::Range<usize> {
    (from.floor().max(0.0) as usize)..(to.ceil().clamp(0.0, SIDE as f32) as usize)
}

fn covers(form: Form, u: f32, v: f32) -> bool {
    let across = (u - 0.5).abs();
    match form {
        Form::Rect => true,
        Form::Oval => across * across + (v - 0.5) * (v - 0.5) <= 0.25,
        Form::Peak => across <= 0.5 * v,
        Form::Point => across <= 0.5 * (1.0 - v),
    }
}

fn finish(canvas: &Canvas, rng: &mut ChaCha8Rng) -> RgbImage {
    let light = |offset: u32| 1.0 + LIGHT * ((offset as f32 + 0.5) / SIDE as f32 * 2.0 - 1.0);
    RgbImage::from_fn(SIDE, SIDE, |x, y| {
        let [red, green, blue] = canvas[(y * SIDE + x) as usize];
        let noise = NOISE * bell(rng);
        Rgb([red * light(x), green, blue * light(y)].map(|level| (level + noise).clamp(0.0, 255.0) as u8))
    })
}

/// A bell-shaped number of mean 0 and standard deviation 1: the sum of four bytes, so no library's logarithm can differ.
fn bell(rng: &mut ChaCha8Rng) -> f32 {
    let sum: u32 = rng.random::<u32>().to_le_bytes().into_iter().map(u32::from).sum();
    (sum as f32 - 510.0) / 147.8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::random::stream;
    use crate::world::scene::Pool;

    #[test]
    fn noise_has_mean_zero_and_deviation_one() {
        let mut rng = stream(5, "test", 0);
        let values: Vec<f32> = (0..20_000).map(|_| bell(&mut rng)).collect();
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let variance = values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
    }

    #[test]
    fn things_are_painted_inside_their_boxes() {
        let mut rng = stream(6, "test", 0);
        let scene = Scene::draw(Pool::Shown, &mut rng);
        let full = paint(&scene, &mut stream(7, "paint", 0));
        let mut bare = scene.clone();
        bare.things[0].category = "";
        let bare = paint(&bare, &mut stream(7, "paint", 0));
        let [x, y, w, h] = scene.things[0].bbox;
        let changed: Vec<_> =
            full.enumerate_pixels().filter(|(a, b, pixel)| bare.get_pixel(*a, *b) != *pixel).collect();
        assert!(changed.len() > 50);
        for (a, b, _) in changed {
            let (a, b) = (f64::from(a), f64::from(b));
            assert!(
                a + 1.0 >= x && a <= x + w && b + 1.0 >= y && b <= y + h,
                "{a} {b} outside {:?}",
                scene.things[0].bbox
            );
        }
    }

    #[test]
    fn a_picture_is_small_and_repeats() {
        let mut rng = stream(8, "test", 0);
        let scene = Scene::draw(Pool::KeptOut, &mut rng);
        let bytes = jpeg(&paint(&scene, &mut rng.clone())).unwrap();
        assert_eq!(bytes, jpeg(&paint(&scene, &mut rng)).unwrap());
        assert!(bytes.len() < 7_000, "{}", bytes.len());
    }
}
