//! Pipelines that do not compile: one small file each, and the text a user sees.
//!
//! A first line `# profile: NAME` or `# set: KEY=VALUE` gives the options.

use std::path::Path;

use mpcc_engine::plan::{CompileOptions, compile};

use crate::{fixtures, kinds, options};

fn options_of(text: &str) -> CompileOptions {
    let mut options = options();
    for line in text.lines() {
        if let Some(profile) = line.strip_prefix("# profile: ") {
            options.profile = Some(profile.to_owned());
        } else if let Some((key, value)) = line.strip_prefix("# set: ").and_then(|set| set.split_once('=')) {
            options.sets.push((key.to_owned(), value.to_owned()));
        }
    }
    options
}

/// What is wrong with `file`, as a user sees it from its folder.
fn problems(file: &Path) -> String {
    let text = std::fs::read_to_string(file).expect("a fixture");
    match compile(file, &kinds::registry(), &options_of(&text)) {
        Ok(_) => panic!("{} compiles", file.display()),
        Err(found) => {
            assert!(found.iter().all(|d| d.line > 0 || d.file == Path::new("command line")), "{found}");
            found.to_string().replace(&format!("{}/", file.parent().expect("a folder").display()), "")
        }
    }
}

#[test]
fn every_broken_pipeline_says_what_is_wrong() {
    let folder = fixtures().join("bad");
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).expect("the folder").map(|f| f.expect("a file").path()).collect();
    files.sort();
    assert!(files.len() >= 25, "{}", files.len());
    for file in files {
        let name = file.file_stem().expect("a name").to_string_lossy().into_owned();
        insta::assert_snapshot!(format!("bad-{name}"), problems(&file));
    }
}

#[test]
fn a_file_that_is_not_there() {
    let found = compile(Path::new("/nowhere/p.yaml"), &kinds::registry(), &options()).unwrap_err();
    assert_eq!(found.iter().map(|d| d.code).collect::<Vec<_>>(), ["unreadable"]);
}
