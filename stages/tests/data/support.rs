//! Paths and skips.

use std::path::{Path, PathBuf};

use mpcc_stages::record::{Difficulty, Distractors, Item, Region};

/// A file of `stages/tests/fixtures`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A path below `../shared/data`, or `None` with a line that says what was skipped.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data").join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: needs ../shared/data/{name}");
    None
}

/// A region of a made-up picture.
pub(crate) fn region(annotation: u64, image: &str, category: &str) -> Region {
    let bbox = [10.0 * annotation as f64, 20.0, 30.0, 40.0];
    Region {
        id: Region::identify(image, bbox, category),
        image: image.to_owned(),
        image_digest: image.to_owned(),
        annotation,
        size: [640, 480],
        bbox,
        category: category.to_owned(),
        supercategory: "thing".to_owned(),
        area: 1200.0,
        crowd: false,
        scene: vec![(category.to_owned(), 1), ("sink".to_owned(), 1)],
    }
}

/// An item with six wrong options.
pub(crate) fn item(annotation: u64, category: &str, wrong: [&str; 6]) -> Item {
    let region = region(annotation, "a.jpg", category);
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let distractors = Distractors {
        choose: names(&wrong[..2]),
        judgement: names(&wrong[2..4]),
        irrelevant: names(&wrong[4..]),
        guesses: wrong[..4].iter().map(|name| ((*name).to_owned(), 2)).collect(),
        filled: Vec::new(),
    };
    let id = region.id.clone();
    Item { id, rev: String::new(), region, difficulty: Difficulty::Easy, curators: vec!["me".to_owned()], distractors }
        .sealed()
}
