//! Resizing and cutting pixel by pixel, as one would write them down, and pictures of awkward sizes that must come out the same.

use image::{Rgb, RgbImage};

use super::curve::Curve;
use super::resize::Resized;
use super::{AnyRes, Filter, ImageProcessor, Patches, Processor, Tiles, merge_order};
use crate::kernel::lanes::Level;

const CLIP: ([f64; 3], [f64; 3]) =
    ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_58, 0.275_777_11]);
const IMAGENET: ([f64; 3], [f64; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

/// Hard contrasts, so that sums leave the range of a byte on both sides.
fn picture(width: usize, height: usize) -> RgbImage {
    let value = |x: u32, y: u32, c: u32| match (x / 3 + y / 2 + c) % 4 {
        0 => 0,
        1 => 255,
        _ => ((x * 73 + y * 151 + c * 59).wrapping_pow(2) / 7 % 256) as u8,
    };
    RgbImage::from_fn(width as u32, height as u32, |x, y| Rgb([0, 1, 2].map(|c| value(x, y, c))))
}

fn cubic(x: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        (1.5 * x - 2.5) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    } else {
        0.0
    }
}

/// One line of values of another length.
fn stretch(line: &[u8], target: usize, filter: Filter) -> Vec<u8> {
    if line.len() == target {
        return line.to_vec();
    }
    let scale = line.len() as f64 / target as f64;
    let support = 2.0 * scale.max(1.0);
    let weights = |index: usize| -> (usize, Vec<f64>) {
        let centre = (index as f64 + 0.5) * scale;
        let start = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(line.len());
        let raw: Vec<f64> = (start..end).map(|x| cubic((x as f64 - centre + 0.5) * (1.0 / scale.max(1.0)))).collect();
        let total: f64 = raw.iter().sum();
        (start, raw.iter().map(|weight| weight / total).collect())
    };
    let largest = (0..target).flat_map(|index| weights(index).1).fold(0.0, f64::max);
    let fits = |bits: u32| 0.5 + largest * f64::from(1 << bits) < 32_768.0;
    let precision = match filter {
        Filter::Pillow => 22,
        Filter::Torchvision => (1..=22).rev().find(|bits| fits(*bits)).unwrap(),
    };
    let value = |index: usize| {
        let (start, weights) = weights(index);
        let fixed = weights.iter().map(|weight| (weight * f64::from(1 << precision)).round() as i64);
        let sum: i64 = fixed.zip(&line[start..]).map(|(weight, value)| weight * i64::from(*value)).sum();
        ((sum + (1 << (precision - 1))) >> precision).clamp(0, 255) as u8
    };
    (0..target).map(value).collect()
}

fn resize_across(image: &RgbImage, width: usize, filter: Filter) -> RgbImage {
    let mut out = RgbImage::new(width as u32, image.height());
    for (y, row) in image.rows().enumerate() {
        let row: Vec<[u8; 3]> = row.map(|pixel| pixel.0).collect();
        for channel in 0..3 {
            let line: Vec<u8> = row.iter().map(|pixel| pixel[channel]).collect();
            for (x, value) in stretch(&line, width, filter).into_iter().enumerate() {
                out.get_pixel_mut(x as u32, y as u32).0[channel] = value;
            }
        }
    }
    out
}

fn on_its_side(image: &RgbImage) -> RgbImage {
    RgbImage::from_fn(image.height(), image.width(), |x, y| *image.get_pixel(y, x))
}

fn resize_down(image: &RgbImage, height: usize, filter: Filter) -> RgbImage {
    on_its_side(&resize_across(&on_its_side(image), height, filter))
}

fn resize(image: &RgbImage, [width, height]: [usize; 2], filter: Filter) -> RgbImage {
    let shrinks = [image.width() as i64 - width as i64, image.height() as i64 - height as i64];
    if filter == Filter::Pillow && shrinks[1] > 0 && shrinks[1] > 2 * shrinks[0] {
        return resize_across(&resize_down(image, height, filter), width, filter);
    }
    resize_down(&resize_across(image, width, filter), height, filter)
}

/// Lines of parted channels as a picture.
fn joined(lines: &[u8], width: usize) -> RgbImage {
    let value = |x: u32, y: u32, c: usize| lines[(3 * y as usize + c) * width + x as usize];
    let height = lines.len() / 3 / width;
    RgbImage::from_fn(width as u32, height as u32, |x, y| Rgb([0, 1, 2].map(|c| value(x, y, c))))
}

#[test]
fn pictures_of_awkward_sizes_are_resized_to_the_bit_at_every_level() {
    let sizes = [[1, 1], [1, 90], [200, 1], [5, 17], [6, 16], [15, 33], [16, 7], [17, 40], [47, 31], [130, 12]];
    let targets = [[1, 1], [3, 70], [15, 15], [16, 48], [17, 5], [33, 47], [112, 2]];
    let mut compared = 0;
    for size in sizes {
        let image = picture(size[0], size[1]);
        for (target, filter) in
            targets.iter().flat_map(|target| [Filter::Pillow, Filter::Torchvision].map(|filter| (*target, filter)))
        {
            let expected = resize(&image, target, filter);
            let ours = || joined(&Resized::new(&image, target, filter).lines(0..target[1]), target[0]);
            for (level, found) in Level::each(ours) {
                assert!(found == expected, "{size:?} to {target:?}, {filter:?}, {level:?}");
                compared += 1;
            }
        }
    }
    assert!(compared >= sizes.len() * targets.len() * 2);
}

#[test]
fn any_lines_of_a_resized_picture_are_those_of_the_whole() {
    for (size, target) in [([40, 90], [28, 31]), ([40, 31], [28, 90]), ([9, 120], [30, 30]), ([28, 31], [28, 31])] {
        let image = picture(size[0], size[1]);
        for filter in [Filter::Pillow, Filter::Torchvision] {
            let resized = Resized::new(&image, target, filter);
            let whole = resized.lines(0..target[1]);
            for (first, last) in (0..target[1]).flat_map(|first| (first + 1..=target[1]).map(move |last| (first, last)))
            {
                let expected = &whole[3 * target[0] * first..3 * target[0] * last];
                assert!(resized.lines(first..last) == expected, "{size:?} to {target:?}, {filter:?}, {first}..{last}");
            }
        }
    }
}

/// The values of patches at some places, each channel `repeat` times.
fn cut(
    image: &RgbImage,
    patch: usize,
    repeat: usize,
    places: impl Iterator<Item = (usize, usize)>,
    norm: ([f64; 3], [f64; 3]),
) -> Vec<u32> {
    let mut values = Vec::new();
    for (row, column) in places {
        for channel in (0..3).flat_map(|channel| std::iter::repeat_n(channel, repeat)) {
            for (y, x) in (0..patch * patch).map(|place| (row * patch + place / patch, column * patch + place % patch))
            {
                let byte = image.get_pixel(x as u32, y as u32).0[channel];
                let scaled = (f64::from(byte) * (1.0 / 255.0)) as f32;
                values.push(((scaled - norm.0[channel] as f32) / norm.1[channel] as f32).to_bits());
            }
        }
    }
    values
}

fn bits(patches: &Patches) -> Vec<u32> {
    let values = patches.pixels.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

/// At every level, and by three threads.
fn assert_all(processor: &Processor, image: &RgbImage, filter: Filter, expected: &[u32]) {
    let ours = || bits(&processor.process_with(image, filter).unwrap());
    for (level, found) in Level::each(ours) {
        assert!(found == expected, "{:?}, {filter:?}, {level:?}: {processor:?}", image.dimensions());
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    assert!(pool.install(ours) == expected, "{:?}, {filter:?}, three threads: {processor:?}", image.dimensions());
}

#[test]
fn patches_of_one_picture_are_cut_to_the_bit_at_every_level() {
    for (patch_size, temporal_patch_size) in [(14, 2), (16, 2), (18, 1), (2, 3), (1, 1)] {
        let unit = 2 * patch_size;
        let processor =
            ImageProcessor { patch_size, temporal_patch_size, do_resize: false, ..ImageProcessor::default() };
        for [columns, rows] in [[1, 1], [1, 5], [3, 2], [8, 9]] {
            let image = picture(columns * unit, rows * unit);
            let expected = cut(&image, patch_size, temporal_patch_size, merge_order(2 * rows, 2 * columns, 2), CLIP);
            assert_all(&processor.clone().into(), &image, Filter::Pillow, &expected);
        }
    }
}

#[test]
fn pictures_of_all_families_are_processed_to_the_bit_by_any_number_of_threads() {
    for (size, filter) in [
        ([333, 250], Filter::Pillow),
        ([90, 400], Filter::Torchvision),
        ([1, 1], Filter::Pillow),
        ([1200, 7], Filter::Pillow),
    ] {
        let image = picture(size[0], size[1]);
        let qwen = ImageProcessor { min_pixels: 56 * 56, max_pixels: 1 << 17, ..ImageProcessor::default() };
        let (height, width) = super::smart_size(size[1], size[0], 28, qwen.min_pixels, qwen.max_pixels);
        if size[0] < 200 * size[1] {
            let resized = resize(&image, [width, height], filter);
            assert_all(
                &qwen.into(),
                &image,
                filter,
                &cut(&resized, 14, 2, merge_order(height / 14, width / 14, 2), CLIP),
            );
        }
        let one = resize(&image, [224, 224], filter);
        let whole = cut(&one, 14, 1, merge_order(16, 16, 1), IMAGENET);
        let tiles = Tiles {
            tile: 224,
            patch_size: 14,
            merge: 2,
            split: true,
            min_tiles: 2,
            max_tiles: 2,
            rescale: Some(1.0 / 255.0),
            normalise: Some(IMAGENET),
        };
        let grid = if size[0] > size[1] { [2, 1] } else { [1, 2] };
        let canvas = resize(&image, grid.map(|count| 224 * count), filter);
        let mut expected = cut(&canvas, 14, 1, merge_order(16 * grid[1], 16 * grid[0], 16), IMAGENET);
        expected.extend(&whole);
        assert_all(&Processor::Tiles(tiles), &image, filter, &expected);
        let any = AnyRes {
            tile: 224,
            patch_size: 14,
            pinpoints: vec![[448, 448]],
            rescale: Some(1.0 / 255.0),
            normalise: Some(IMAGENET),
        };
        let long = 448.0 / size[0].max(size[1]) as f64;
        let [width, height] = size.map(|side| ((side as f64 * long).ceil() as usize).min(448));
        let mut canvas = RgbImage::new(448, 448);
        let at = [(448 - width) / 2, (448 - height) / 2].map(|side| side as i64);
        image::imageops::replace(&mut canvas, &resize(&image, [width, height], filter), at[0], at[1]);
        let mut expected = whole;
        expected.extend(cut(&canvas, 14, 1, merge_order(32, 32, 16), IMAGENET));
        assert_all(&Processor::AnyRes(any), &image, filter, &expected);
    }
}

#[test]
fn published_settings_need_no_table_and_odd_ones_get_the_same_values_from_it() {
    for (mean, std) in
        [CLIP, IMAGENET, ([0.5; 3], [0.5; 3]), ([0.0; 3], [1.0; 3])].iter().flat_map(|(mean, std)| mean.iter().zip(std))
    {
        assert!(Level::detect() == Level::Plain || Curve::new(1.0 / 255.0, *mean, *std).computes(), "{mean} {std}");
    }
    for (factor, mean, std) in
        [(1.0 / 255.0, 0.48, 0.27), (0.7e-3, 0.1, 1e-30), (1.0, 127.5, 127.5), (1e30, 0.0, 1e-20), (-0.1, 3.0, -0.7)]
    {
        let draw = || {
            let bytes: Vec<u8> = (0..=255).collect();
            let mut values = vec![std::mem::MaybeUninit::new(0.0); 15 * 15 + 20];
            Curve::new(factor, mean, std).draw(&bytes, 15, 15, &mut values);
            // SAFETY: all were written when they were made.
            #[allow(unsafe_code, reason = "reads what was written")]
            values[..225].iter().map(|value| unsafe { value.assume_init() }.to_bits()).collect::<Vec<u32>>()
        };
        let value = |byte: usize| ((byte as f64 * factor) as f32 - mean as f32) / std as f32;
        let expected: Vec<u32> = (0..225).map(|byte| value(byte).to_bits()).collect();
        for (level, found) in Level::each(draw) {
            assert_eq!(found, expected, "{factor} {mean} {std}, {level:?}");
        }
    }
}
