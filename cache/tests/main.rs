//! The store from outside: what it keeps, what it notices, what a crash leaves.

mod crash;
mod external;
mod failing;
mod formats;
mod gc;
mod heartbeat;
mod hostile;
mod kills;
mod model;
mod objects;
mod power;
mod processes;
mod publication;
#[cfg(feature = "remote")]
mod remote;
mod support;
mod torn;
mod workload;

#[test]
fn every_file_here_is_part_of_the_binary() {
    let this = include_str!("main.rs");
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(
            path.is_dir() || name == "main" || this.contains(&format!("mod {name};")),
            "tests/{name}.rs is not in tests/main.rs"
        );
    }
}
