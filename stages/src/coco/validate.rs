//! Checks an instances file and turns it into the form that the stages use.

use std::collections::{BTreeMap, BTreeSet};

use super::raw::{RawAnnotation, RawCategory, RawFile, RawPicture};
use crate::dataset::format::{Annotation, Category, CocoFile, Counts, Picture, Segmentation};
use crate::dataset::segment;

/// COCO boxes stick out of their pictures by rounding; more than this many pixels is an error.
const OVERHANG: f64 = 1.0;

/// What a file holds and what is wrong with it.
pub(super) struct Report {
    /// What can be used.
    pub(super) file: CocoFile,
    /// Problems that make the file ambiguous: duplicates, dangling references, missing fields.
    pub(super) fatal: Vec<String>,
    /// Annotations that cannot be used and are not in `file`.
    pub(super) invalid: Vec<String>,
}

/// Checks `raw`.
pub(super) fn check(raw: RawFile) -> Report {
    let mut fatal = Vec::new();
    let mut invalid = Vec::new();
    let categories = categories(raw.categories, &mut fatal);
    let images = pictures(raw.images, &mut fatal);
    let names: BTreeMap<u64, &str> = categories.iter().map(|category| (category.id, category.name.as_str())).collect();
    let sizes: BTreeMap<u64, &Picture> = images.iter().map(|picture| (picture.id, picture)).collect();
    let mut seen = BTreeSet::new();
    let mut annotations = Vec::with_capacity(raw.annotations.len());
    for (index, raw) in raw.annotations.into_iter().enumerate() {
        let who = raw.id.map_or_else(|| format!("annotation number {}", index + 1), |id| format!("annotation {id}"));
        if raw.id.is_some_and(|id| !seen.insert(id)) {
            fatal.push(format!("{who}: the id occurs twice"));
            continue;
        }
        match annotation(raw, &names, &sizes) {
            Ok(annotation) => annotations.push(annotation),
            Err(Problem::Fatal(what)) => fatal.push(format!("{who}: {what}")),
            Err(Problem::Invalid(what)) => invalid.push(format!("{who}: {what}")),
        }
    }
    Report { file: CocoFile { images, annotations, categories }, fatal, invalid }
}

enum Problem {
    Fatal(String),
    Invalid(String),
}

fn need<T>(value: Option<T>, field: &str) -> Result<T, Problem> {
    value.ok_or_else(|| Problem::Fatal(format!("`{field}` is missing")))
}

fn annotation(
    raw: RawAnnotation,
    names: &BTreeMap<u64, &str>,
    sizes: &BTreeMap<u64, &Picture>,
) -> Result<Annotation, Problem> {
    let (id, image_id) = (need(raw.id, "id")?, need(raw.image_id, "image_id")?);
    let category_id = need(raw.category_id, "category_id")?;
    let picture = sizes
        .get(&image_id)
        .ok_or_else(|| Problem::Fatal(format!("`image_id: {image_id}` is no image of this file")))?;
    if !names.contains_key(&category_id) {
        return Err(Problem::Fatal(format!(
            "`category_id: {category_id}` is no category of this file ({})",
            range(names)
        )));
    }
    let iscrowd = raw.iscrowd.unwrap_or(0);
    if iscrowd > 1 {
        return Err(Problem::Fatal(format!("`iscrowd: {iscrowd}` is neither 0 nor 1")));
    }
    let bbox = bbox(raw.bbox, picture)?;
    let segmentation = raw.segmentation.map_or(Ok(None), |outline| outline.known().map_err(Problem::Invalid))?;
    let segmentation = segmentation.map(|outline| plain(outline, picture)).transpose()?;
    Ok(Annotation {
        id,
        image_id,
        category_id,
        bbox,
        area: raw.area.unwrap_or(bbox[2] * bbox[3]),
        iscrowd,
        segmentation,
    })
}

fn range(names: &BTreeMap<u64, &str>) -> String {
    match (names.first_key_value(), names.last_key_value()) {
        (Some((first, _)), Some((last, _))) => format!("{} categories, ids {first} to {last}", names.len()),
        _ => "it has none".to_owned(),
    }
}

fn bbox(value: Option<serde_json::Value>, picture: &Picture) -> Result<[f64; 4], Problem> {
    let value = need(value, "bbox")?;
    let numbers: [f64; 4] = serde_json::from_value(value.clone())
        .map_err(|_| Problem::Invalid(format!("`bbox: {value}` is not four numbers (x, y, width, height)")))?;
    let [x, y, width, height] = numbers;
    if width <= 0.0 || height <= 0.0 {
        return Err(Problem::Invalid(format!("the box {value} is empty")));
    }
    let (right, bottom) = (f64::from(picture.width) + OVERHANG, f64::from(picture.height) + OVERHANG);
    if x < -OVERHANG || y < -OVERHANG || x + width > right || y + height > bottom {
        let (file, w, h) = (&picture.file_name, picture.width, picture.height);
        return Err(Problem::Invalid(format!("the box {value} leaves its picture {file} of {w} x {h} pixels")));
    }
    Ok(numbers)
}

/// The outline, checked, with compressed run lengths written out.
fn plain(outline: Segmentation, picture: &Picture) -> Result<Segmentation, Problem> {
    let broken = |error: segment::SegmentError| Problem::Invalid(format!("`segmentation`: {error}"));
    segment::check(&outline, picture.width, picture.height).map_err(broken)?;
    match outline {
        Segmentation::Rle(mut rle) => {
            rle.counts = Counts::Plain(segment::runs(&rle).map_err(broken)?);
            Ok(Segmentation::Rle(rle))
        }
        polygons => Ok(polygons),
    }
}

fn pictures(raw: Vec<RawPicture>, fatal: &mut Vec<String>) -> Vec<Picture> {
    let (mut ids, mut names) = (BTreeSet::new(), BTreeSet::new());
    let mut pictures = Vec::with_capacity(raw.len());
    for (index, raw) in raw.into_iter().enumerate() {
        let (Some(id), Some(file_name), Some(width), Some(height)) = (raw.id, raw.file_name, raw.width, raw.height)
        else {
            fatal.push(format!("image number {}: needs `id`, `file_name`, `width` and `height`", index + 1));
            continue;
        };
        if !ids.insert(id) {
            fatal.push(format!("image {id}: the id occurs twice"));
        } else if !names.insert(file_name.clone()) {
            fatal.push(format!("image {id}: another image has the same `file_name: {file_name}`"));
        } else if file_name.starts_with('/') || file_name.split('/').any(|part| part == "..") {
            fatal.push(format!("image {id}: `file_name: {file_name}` leaves the pictures' folder"));
        } else {
            pictures.push(Picture { id, file_name, width, height });
        }
    }
    pictures
}

fn categories(raw: Vec<RawCategory>, fatal: &mut Vec<String>) -> Vec<Category> {
    let (mut ids, mut names) = (BTreeSet::new(), BTreeSet::new());
    let mut categories = Vec::with_capacity(raw.len());
    for (index, raw) in raw.into_iter().enumerate() {
        let (Some(id), Some(name)) = (raw.id, raw.name) else {
            fatal.push(format!("category number {}: needs `id` and `name`", index + 1));
            continue;
        };
        match (ids.insert(id), names.insert(name.clone())) {
            (true, true) => {
                categories.push(Category { id, name, supercategory: raw.supercategory.unwrap_or_default() })
            }
            (false, _) => fatal.push(format!("category {id}: the id occurs twice")),
            (true, false) => fatal.push(format!("category {id}: the name `{name}` occurs twice")),
        }
    }
    categories
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report(annotations: serde_json::Value) -> Report {
        let file = json!({
            "images": [{ "id": 5, "file_name": "a.png", "width": 40, "height": 30 }],
            "categories": [{ "id": 1, "name": "cup", "supercategory": "kitchen" }],
            "annotations": annotations,
        });
        check(serde_json::from_value(file).unwrap())
    }

    fn one(mut extra: serde_json::Value) -> Report {
        let mut base = json!({ "id": 9, "image_id": 5, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0, "segmentation": [] });
        base.as_object_mut().unwrap().append(extra.as_object_mut().unwrap());
        report(json!([base]))
    }

    #[test]
    fn sound_annotations_pass_and_run_lengths_are_written_out() {
        assert_eq!(one(json!({})).file.annotations.len(), 1);
        let rle = one(json!({ "iscrowd": 1, "segmentation": { "size": [30, 40], "counts": "`U1" } }));
        assert!(rle.invalid.is_empty() && rle.fatal.is_empty(), "{:?}", rle.invalid);
        let Some(Segmentation::Rle(rle)) = &rle.file.annotations[0].segmentation else { panic!("an RLE") };
        assert_eq!(rle.counts, Counts::Plain(vec![1200]));
    }

    #[test]
    fn messages_name_the_annotation() {
        let cases = [
            (json!({ "image_id": 6 }), "annotation 9: `image_id: 6` is no image of this file"),
            (
                json!({ "category_id": 91 }),
                "annotation 9: `category_id: 91` is no category of this file (1 categories, ids 1 to 1)",
            ),
            (json!({ "bbox": [1, 2, 0, 4] }), "annotation 9: the box [1,2,0,4] is empty"),
            (json!({ "bbox": [1, 2, 3] }), "annotation 9: `bbox: [1,2,3]` is not four numbers (x, y, width, height)"),
            (
                json!({ "bbox": [30, 2, 20, 4] }),
                "annotation 9: the box [30,2,20,4] leaves its picture a.png of 40 x 30 pixels",
            ),
            (
                json!({ "segmentation": [[1.0, 2.0, 3.0, 4.0]] }),
                "annotation 9: `segmentation`: polygon 0 has 4 numbers; it takes an even count of 6 or more",
            ),
            (
                json!({ "segmentation": "x" }),
                "annotation 9: `segmentation` is neither a list of polygons nor run lengths with `size` and `counts`: \"x\"",
            ),
            (
                json!({ "segmentation": { "size": [30, 40], "counts": [5] } }),
                "annotation 9: `segmentation`: the run lengths cover 5 pixels of 1200",
            ),
            (json!({ "iscrowd": 2 }), "annotation 9: `iscrowd: 2` is neither 0 nor 1"),
            (json!({ "id": null }), "annotation number 1: `id` is missing"),
        ];
        for (extra, message) in cases {
            let report = one(extra);
            let found: Vec<&String> = report.fatal.iter().chain(&report.invalid).collect();
            assert_eq!(found, [message]);
            assert!(report.file.annotations.is_empty());
        }
    }

    #[test]
    fn duplicates_are_found() {
        let same = json!({ "id": 9, "image_id": 5, "category_id": 1, "bbox": [1, 2, 3, 4] });
        assert_eq!(report(json!([same, same])).fatal, ["annotation 9: the id occurs twice"]);
    }
}
