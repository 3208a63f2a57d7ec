//! The store from outside: what it keeps, what it notices, what a crash leaves.

mod crash;
mod external;
mod gc;
mod model;
mod objects;
mod processes;
mod publication;
#[cfg(feature = "remote")]
mod remote;
mod support;
mod torn;

#[test]
fn every_file_here_is_part_of_the_binary() {
    let this = include_str!("main.rs");
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests")).unwrap() {
        let name = entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned();
        assert!(name == "main" || this.contains(&format!("mod {name};")), "tests/{name}.rs is not in tests/main.rs");
    }
}
