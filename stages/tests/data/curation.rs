//! Decisions in every format: genuine exports, and what goes wrong.

use std::collections::BTreeMap;
use std::path::PathBuf;

use mpcc_engine::harness::Harness;
use mpcc_engine::stage::StageError;
use mpcc_stages::curation::ballot::{Target, Vote};
use mpcc_stages::curation::{CurationImport, Stale, Ties};
use mpcc_stages::record::{Difficulty, Item};
use mpcc_stages::records;
use mpcc_stages::report::Table;

use crate::support::{region, shared};

/// Imports decision files (name, text) about three boxes of a.jpg and b.jpg.
fn import(
    stage: &CurationImport,
    files: &[(&str, &str)],
    overrides: Option<&str>,
) -> Result<(Vec<Item>, Table), StageError> {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let regions = [region(1, "a.jpg", "cup"), region(2, "a.jpg", "sink"), region(3, "b.jpg", "bed")];
    records::write(&path("regions.jsonl"), &regions).unwrap();
    let mut harness = Harness::new(&path("run")).input("regions", &path("regions.jsonl"));
    for (name, text) in files {
        std::fs::write(path(name), text).unwrap();
        harness = harness.input("decisions", &path(name));
    }
    if let Some(text) = overrides {
        std::fs::write(path("overrides.csv"), text).unwrap();
        harness = harness.input("overrides", &path("overrides.csv"));
    }
    let outputs: BTreeMap<String, PathBuf> = harness.run(stage)?;
    Ok((records::read(&outputs["items"])?, Table::read(&outputs["agreement"])?))
}

fn error(text: &str) -> String {
    import(&CurationImport::default(), &[("d.csv", text)], None).unwrap_err().to_string()
}

const HEAD: &str = "image,annotation,decision,difficulty,curator\n";

#[test]
fn accepted_regions_become_items() {
    let text = format!("{HEAD}a.jpg,1,accept,hard,ann\na.jpg,2,reject,,ann\n");
    let (items, table) = import(&CurationImport::default(), &[("d.csv", &text)], None).unwrap();
    assert_eq!(items.len(), 1);
    assert_eq!(
        (items[0].region.annotation, items[0].difficulty, items[0].curators.as_slice()),
        (1, Difficulty::Hard, &["ann".to_owned()][..])
    );
    assert_eq!(items[0], items[0].clone().sealed());
    assert!(table.notes.contains(&"1 regions without a decision".to_owned()), "{:?}", table.notes);
}

#[test]
fn curators_decide_by_majority_and_their_agreement_is_measured() {
    let ann = format!("{HEAD}a.jpg,1,accept,easy,\na.jpg,2,accept,easy,\nb.jpg,3,accept,hard,\n");
    let bob = format!("{HEAD}a.jpg,1,accept,easy,\na.jpg,2,reject,,\nb.jpg,3,reject,,\n");
    let eve = "{\"image\":\"a.jpg\",\"annotation\":1,\"difficulty\":\"moderate\"}\n{\"image\":\"a.jpg\",\"annotation\":2,\"decision\":\"reject\"}\n";
    let files = [("ann.csv", ann.as_str()), ("bob.csv", &bob), ("eve.jsonl", eve)];
    let (items, table) = import(&CurationImport::default(), &files, None).unwrap();
    assert_eq!(
        items.iter().map(|item| (item.region.annotation, item.difficulty)).collect::<Vec<_>>(),
        [(1, Difficulty::Easy)]
    );
    assert_eq!(items[0].curators, ["ann", "bob", "eve"]);
    let agreement = &table.sections[0];
    assert_eq!(agreement.rows.len(), 4);
    assert_eq!(agreement.cell("ann, bob (Cohen)", "boxes of both").unwrap().text, "3");
    assert_eq!(agreement.cell("bob, eve (Cohen)", "kappa (accept or reject)").unwrap().text, "1.00");
    let (items, _) = import(&CurationImport { ties: Ties::Accept, ..CurationImport::default() }, &files, None).unwrap();
    assert_eq!(items.iter().map(|item| item.region.annotation).collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn an_override_wins() {
    let text = format!("{HEAD}a.jpg,1,accept,hard,ann\na.jpg,2,reject,,ann\n");
    let overrides = format!("{HEAD}a.jpg,1,reject,,boss\na.jpg,2,accept,easy,boss\n");
    let (items, table) = import(&CurationImport::default(), &[("d.csv", &text)], Some(&overrides)).unwrap();
    assert_eq!(
        items.iter().map(|item| (item.region.annotation, item.difficulty)).collect::<Vec<_>>(),
        [(2, Difficulty::Easy)]
    );
    assert!(table.notes.contains(&"2 regions decided by the overrides".to_owned()), "{:?}", table.notes);
}

#[test]
fn decisions_about_dropped_regions_are_counted() {
    let text = format!("{HEAD}a.jpg,1,accept,hard,ann\nc.jpg,9,accept,hard,ann\n");
    let (items, table) = import(&CurationImport::default(), &[("d.csv", &text)], None).unwrap();
    assert_eq!(items.len(), 1);
    assert!(
        table.notes.iter().any(|note| note.starts_with("1 decisions about boxes that are not among the regions")),
        "{:?}",
        table.notes
    );
}

#[test]
fn a_stale_decision_is_found() {
    let head = "image,annotation,difficulty,rev\n";
    let current = region(1, "a.jpg", "cup").rev();
    let text = format!("{head}a.jpg,1,hard,{current}\na.jpg,2,hard,0123\n");
    let message = error(&text);
    assert!(message.contains("another state of their region") && message.contains("d.csv:3"), "{message}");
    let kept = |stale| {
        import(&CurationImport { stale, ..CurationImport::default() }, &[("d.csv", &text)], None).unwrap().0.len()
    };
    assert_eq!((kept(Stale::Drop), kept(Stale::Use)), (1, 2));
}

#[test]
fn errors_name_file_and_line() {
    for (text, message) in [
        (
            format!("{HEAD}a.jpg,1,accept,hrad,ann\n"),
            "d.csv:2: `hrad` is none of accept, reject, easy, moderate, hard; did you mean `hard`?",
        ),
        (format!("{HEAD}a.jpg,1,accept,,ann\n"), "d.csv:2: accepted without a difficulty"),
        (format!("{HEAD}a.jpg,one,accept,hard,ann\n"), "d.csv:2: column `annotation`: invalid digit"),
        (
            format!("{HEAD}a.jpg,1,accept,hard,ann\na.jpg,1,reject,,ann\n"),
            "d.csv:3: `ann` decided otherwise about the same box at ",
        ),
        (format!("{HEAD}b.jpg,1,accept,hard,ann\n"), "d.csv:2: annotation 1 belongs to `a.jpg`, not to `b.jpg`"),
        (
            "image,anotation,difficulty\na.jpg,1,hard\n".to_owned(),
            "d.csv:1: no column `annotation` (is `anotation` meant?)",
        ),
        ("{\"image\":\"a.jpg\",\"annotation\":\"x\"}\n".to_owned(), "d.csv:1: invalid type: string \"x\""),
        (format!("{HEAD}z.jpg,77,accept,hard,ann\n"), "none of the 1 decisions is about a region"),
    ] {
        let found = error(&text);
        assert!(found.contains(message), "{text}\n{found}");
    }
}

#[test]
fn without_any_decision_the_stage_waits() {
    for text in ["", HEAD, "[]"] {
        let waiting = import(&CurationImport::default(), &[("d.csv", text)], None).unwrap_err();
        assert!(
            matches!(&waiting, StageError::Waiting(what) if what.contains("3 regions") && what.contains("a.jpg,1,accept,easy,me")),
            "{waiting}"
        );
    }
}

#[test]
fn drawn_boxes_find_their_annotation() {
    // Region 1 is at 10,20 with 30 x 40 pixels in a picture of 640 x 480.
    let studio = r#"[{"id":5,"data":{"image":"/data/upload/1/0a1b2c3d-a.jpg"},"annotations":[{"id":6,"completed_by":{"email":"ann@x.org"},"result":[
        {"id":"r1","type":"rectanglelabels","original_width":640,"original_height":480,"value":{"x":1.5625,"y":4.1667,"width":4.6875,"height":8.3333,"rotation":0,"rectanglelabels":["moderate"]}}]}]}]"#;
    let (items, _) = import(&CurationImport::default(), &[("s.json", studio)], None).unwrap();
    assert_eq!(
        (items[0].region.annotation, items[0].difficulty, items[0].curators[0].as_str()),
        (1, Difficulty::Moderate, "ann@x.org")
    );
    let cvat = r#"<annotations><version>1.1</version><image id="0" name="a.jpg" width="640" height="480">
        <box label="cup" xtl="11.0" ytl="21.0" xbr="39.0" ybr="61.0"><attribute name="difficulty">easy</attribute></box></image></annotations>"#;
    let (items, _) = import(&CurationImport::default(), &[("c.xml", cvat)], None).unwrap();
    assert_eq!((items[0].region.annotation, items[0].difficulty), (1, Difficulty::Easy));
}

fn labelled(labels: &[(&str, &str)]) -> CurationImport {
    let labels = labels.iter().map(|(word, meaning)| ((*word).to_owned(), (*meaning).to_owned())).collect();
    CurationImport { labels, ..CurationImport::default() }
}

#[test]
fn genuine_label_studio_exports_are_read() {
    let Some(path) = shared("label_studio/sdk_test_export_yolo__data.json") else { return };
    let text = std::fs::read_to_string(path).unwrap();
    let ballots = labelled(&[("parasites", "hard"), ("white", "reject")]).read(&text, "data.json").unwrap();
    assert_eq!(ballots.len(), text.matches("\"type\": \"rectanglelabels\"").count());
    assert_eq!(
        (ballots[0].curator.as_str(), ballots[0].vote, ballots[0].image.as_str()),
        ("user 2", Vote::Accept(Difficulty::Hard), "/image1")
    );
    let Target::Box([x, y, width, height]) = ballots[0].target else { panic!("a box") };
    assert!(
        (x - 1040.437).abs() < 0.01
            && (y - 1978.871).abs() < 0.01
            && (width - 117.304).abs() < 0.01
            && (height - 132.605).abs() < 0.01
    );
    let message = CurationImport::default().read(&text, "data.json").unwrap_err();
    assert!(
        message.starts_with("data.json: task 1, annotation 1, mark C7oHaRDVVC: `parasites` is none of"),
        "{message}"
    );
}

#[test]
fn genuine_cvat_dumps_are_read() {
    let Some(path) = shared("cvat/images_attributes.xml") else { return };
    let text = std::fs::read_to_string(path).unwrap();
    let stage = labelled(&[("head", "hard"), ("hand", "reject"), ("clothing", "easy")]);
    match stage.read(&text, "dump.xml") {
        Ok(ballots) => {
            assert_eq!(ballots.len(), text.matches("<box ").count());
            let Target::Box([x, y, width, height]) = ballots[0].target else { panic!("a box") };
            assert_eq!((x, y, (width * 100.0).round(), (height * 100.0).round()), (331.37, 117.98, 13993.0, 16472.0));
            assert_eq!(ballots[0].place, "dump.xml:92");
        }
        Err(message) => panic!("{message}"),
    }
    let Some(path) = shared("cvat/datumaro_for_images_train.xml") else { return };
    let text = std::fs::read_to_string(path).unwrap();
    let ballots = labelled(&[("label1", "easy"), ("label2", "hard")]).read(&text, "train.xml").unwrap();
    assert_eq!(ballots.len(), text.matches("<box ").count());
}
