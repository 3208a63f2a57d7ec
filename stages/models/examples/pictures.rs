//! One side of `benches/pictures.py`: seconds that a picture takes from its file to pixels, and from pixels to patches.
//!
//! `cargo run --release -p mpcc-models --example pictures -- THREADS TIMES PICTURE...` prints one line of JSON: each figure is the
//! least of so many repetitions, over the picture processors of three families in their usual settings.

mod timing;

use std::path::Path;

use mimalloc::MiMalloc;
use mpcc_models::image::{AnyRes, Filter, ImageProcessor, Patches, Processor, Tiles, decode};
use serde_json::{Map, Value, json};
use timing::least;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// CLIP's mean and standard deviation, then ImageNet's.
const CLIP: [[f64; 3]; 2] = [[0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_58, 0.275_777_11]];
const IMAGENET: [[f64; 3]; 2] = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [threads, times, pictures @ ..] = arguments.as_slice() else {
        panic!("usage: pictures THREADS TIMES PICTURE...")
    };
    let threads = threads.parse().expect("a number of threads");
    let times: usize = times.parse().expect("a number of repetitions");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    let figures: Map<String, Value> = pictures.iter().flat_map(|path| measure(&pool, Path::new(path), times)).collect();
    println!("{}", Value::Object(figures));
}

/// Seconds of each step of one picture, by the picture's name and the step's.
fn measure(pool: &rayon::ThreadPool, path: &Path, times: usize) -> Vec<(String, Value)> {
    let name = path.file_name().expect("a file's name").to_string_lossy();
    let bytes = std::fs::read(path).expect("a picture");
    let picture = decode(&bytes).expect("a picture");
    let mut figures =
        vec![(format!("{name} decode"), json!(least(times, || drop(decode(&bytes).expect("a picture")))))];
    for (family, processor) in processors() {
        for (by, filter) in [("pillow", Filter::Pillow), ("torchvision", Filter::Torchvision)] {
            let process = || processor.process_with(&picture, filter).expect("a processed picture");
            let seconds = pool.install(|| least(times, || drop(process())));
            figures.push((format!("{name} {family} {by}"), json!(seconds)));
            figures.push((format!("{name} {family} {by} sum"), json!(checksum(&pool.install(process)))));
        }
    }
    figures
}

/// The published settings of each family, Qwen's with a limit of 448 x 448 pixels.
fn processors() -> [(&'static str, Processor); 3] {
    let tall = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]];
    let side = |side: usize| json!({ "height": side, "width": side });
    let next = json!({ "size": { "shortest_edge": 336 }, "crop_size": side(336), "image_grid_pinpoints": tall,
        "image_mean": CLIP[0], "image_std": CLIP[1] });
    let intern = json!({ "size": side(448), "crop_to_patches": true, "min_patches": 1, "max_patches": 12,
        "image_mean": IMAGENET[0], "image_std": IMAGENET[1] });
    let qwen = ImageProcessor { max_pixels: 448 * 448, ..ImageProcessor::default() };
    [
        ("qwen2_5_vl", qwen.into()),
        ("llava_next", Processor::AnyRes(AnyRes::from_json(&next, 14).expect("settings"))),
        ("internvl", Processor::Tiles(Tiles::from_json(&intern, 14, 2).expect("settings"))),
    ]
}

/// The bits of all values, each weighted by its place.
fn checksum(patches: &Patches) -> u64 {
    let values = patches.pixels.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).expect("values");
    values
        .iter()
        .zip(1u64..)
        .fold(0, |sum, (value, place)| sum.wrapping_add(place.wrapping_mul(value.to_bits().into())))
}
