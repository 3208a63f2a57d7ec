//! Genuine COCO photos through import, selection and the contact sheet.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mpcc_engine::harness::Harness;
use mpcc_stages::coco::CocoImport;
use mpcc_stages::contact::ExportContact;
use mpcc_stages::dataset::Dataset;
use mpcc_stages::mask::{Mask, MaskedImage, Shape};
use mpcc_stages::record::Region;
use mpcc_stages::records;
use mpcc_stages::regions::RegionsSelect;

use crate::support::shared;

fn import(annotations: &Path, images: &Path, folder: &Path) -> Result<PathBuf, String> {
    let harness = Harness::new(folder).input("annotations", annotations).input("images", images);
    harness
        .run(&CocoImport::default())
        .map(|mut outputs| outputs.remove("dataset").unwrap())
        .map_err(|error| error.to_string())
}

/// Two pictures and three boxes in `folder`.
fn tiny(folder: &Path) -> (PathBuf, PathBuf) {
    let images = folder.join("pictures");
    std::fs::create_dir_all(&images).unwrap();
    for (name, side) in [("a.png", 40), ("b.png", 60)] {
        image::RgbImage::from_pixel(side, 30, image::Rgb([90, 120, 200])).save(images.join(name)).unwrap();
    }
    let annotations = folder.join("instances.json");
    let text = r#"{"images":[{"id":1,"file_name":"a.png","width":40,"height":30},{"id":2,"file_name":"b.png","width":60,"height":30}],
        "categories":[{"id":3,"name":"cup","supercategory":"kitchen"},{"id":4,"name":"sink","supercategory":"kitchen"}],
        "annotations":[{"id":10,"image_id":1,"category_id":3,"bbox":[5,5,10,12],"area":120,"iscrowd":0,"segmentation":[[5,5,15,5,15,17]]},
        {"id":11,"image_id":1,"category_id":4,"bbox":[20,5,10,12],"area":120,"iscrowd":0},
        {"id":12,"image_id":2,"category_id":3,"bbox":[0,0,60,30],"area":1800,"iscrowd":1}]}"#;
    std::fs::write(&annotations, text).unwrap();
    (annotations, images)
}

#[test]
fn pictures_are_pointed_to_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let (annotations, images) = tiny(folder.path());
    let dataset = Dataset::open(&import(&annotations, &images, &folder.path().join("run")).unwrap()).unwrap();
    assert!(!dataset.folder().join("a.png").exists());
    let regions = dataset.regions().unwrap();
    assert_eq!(regions[0].scene, [("cup".to_owned(), 1), ("sink".to_owned(), 1)]);
    assert_eq!(dataset.cooccurrence().together("cup", "sink"), 1);
    assert_eq!(dataset.open_rgb("a.png").unwrap().dimensions(), (40, 30));

    image::RgbImage::from_pixel(40, 30, image::Rgb([1, 2, 3])).save(images.join("a.png")).unwrap();
    let error = dataset.open_rgb("a.png").unwrap_err().to_string();
    assert!(error.contains("a.png: the picture changed since it was imported"), "{error}");
    std::fs::remove_file(images.join("a.png")).unwrap();
    let error = dataset.open_rgb("a.png").unwrap_err().to_string();
    assert!(error.contains("no picture `a.png`; looked for"), "{error}");
}

#[test]
fn a_missing_or_other_picture_stops_the_import() {
    let folder = tempfile::tempdir().unwrap();
    let (annotations, images) = tiny(folder.path());
    image::RgbImage::new(7, 7).save(images.join("a.png")).unwrap();
    std::fs::remove_file(images.join("b.png")).unwrap();
    let error = import(&annotations, &images, &folder.path().join("run")).unwrap_err();
    assert!(error.contains("image 1: ") && error.contains("has 7 x 7 pixels, annotated as 40 x 30"), "{error}");
    assert!(error.contains("image 2: "), "{error}");
}

#[test]
fn a_segment_hides_the_outline_only() {
    let folder = tempfile::tempdir().unwrap();
    let (annotations, images) = tiny(folder.path());
    let dataset = Dataset::open(&import(&annotations, &images, &folder.path().join("run")).unwrap()).unwrap();
    let regions = dataset.regions().unwrap();
    let mask = Mask { shape: Shape::Segment, ..Mask::default() };
    let leak = MaskedImage::open(&dataset, &regions[0], &mask).unwrap().leak();
    assert!(leak.visible == 0 && (50..70).contains(&leak.inside), "{leak:?}");
    let error = MaskedImage::open(&dataset, &regions[1], &mask).unwrap_err().to_string();
    assert!(error.contains("annotation 11 has no outline"), "{error}");
}

#[test]
fn selection_filters_and_limits() {
    let folder = tempfile::tempdir().unwrap();
    let (annotations, images) = tiny(folder.path());
    let dataset = Dataset::open(&import(&annotations, &images, &folder.path().join("run")).unwrap()).unwrap();
    let ids = |stage: RegionsSelect| {
        stage.select(&dataset, 5).unwrap().iter().map(|region| region.annotation).collect::<Vec<_>>()
    };
    assert_eq!(ids(RegionsSelect::default()), [10, 11]);
    assert_eq!(ids(RegionsSelect { crowd: true, ..RegionsSelect::default() }), [10, 11, 12]);
    assert_eq!(ids(RegionsSelect { crowd: true, min_area: 0.5, ..RegionsSelect::default() }), [12]);
    assert_eq!(ids(RegionsSelect { categories: vec!["sink".to_owned()], ..RegionsSelect::default() }), [11]);
    assert_eq!(ids(RegionsSelect { max_per_image: 1, crowd: true, ..RegionsSelect::default() }).len(), 2);
}

#[test]
fn genuine_photos_pass_through() {
    let Some(coco) = shared("coco") else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = import(&coco.join("instances.json"), &coco.join("images"), &folder.path().join("import")).unwrap();
    let dataset = Dataset::open(&path).unwrap();
    assert_eq!((dataset.pictures().len(), dataset.annotations().len(), dataset.categories().len()), (64, 647, 80));
    assert!(dataset.annotations().iter().any(|annotation| annotation.iscrowd == 1));

    let run = |name: &str, harness: fn(Harness) -> Harness| harness(Harness::new(&folder.path().join(name)));
    let select =
        RegionsSelect { min_area: 0.01, max_area: 0.3, min_side: 28.0, max_per_image: 1, ..RegionsSelect::default() };
    let outputs: BTreeMap<String, PathBuf> =
        run("select", |harness| harness).input("dataset", &path).run(&select).unwrap();
    let regions: Vec<Region> = records::read(&outputs["regions"]).unwrap();
    assert!(regions.len() > 40, "{}", regions.len());
    for region in regions.iter().take(8) {
        assert_eq!(MaskedImage::open(&dataset, region, &Mask::default()).unwrap().leak().visible, 0);
        assert!(MaskedImage::open(&dataset, region, &Mask::authors()).unwrap().leak().visible > 0);
    }
    let sheet = ExportContact { limit: 6, side: 120, ..ExportContact::default() };
    let outputs = run("sheet", |harness| harness)
        .input("dataset", &path)
        .input("regions", &outputs["regions"])
        .run(&sheet)
        .unwrap();
    let (width, height) = image::image_dimensions(outputs["dir"].join("sheet.png")).unwrap();
    assert!(width > 700 && height > 250, "{width} x {height}");
    assert!(std::fs::read_to_string(outputs["dir"].join("sheet.html")).unwrap().matches("<figure>").count() == 6);
}
