//! The one test binary of the root package.

mod cli;
mod house;
mod model;
mod mutations;
mod pipelines;
mod remote;
mod served;
mod slurm;

/// A test file that nobody declares would silently not run.
#[test]
fn every_file_is_declared() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for (folder, list) in [
        (root.clone(), "main.rs"),
        (root.join("cli"), "mod.rs"),
        (root.join("model"), "mod.rs"),
        (root.join("served"), "mod.rs"),
        (root.join("slurm"), "mod.rs"),
    ] {
        let declared = std::fs::read_to_string(folder.join(list)).unwrap();
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let is_module = path.extension().is_some_and(|extension| extension == "rs") || path.join("mod.rs").exists();
            let is_list = path.file_name().unwrap() == list;
            assert!(
                !is_module || is_list || declared.contains(&format!("mod {name};")),
                "{} is forgotten",
                path.display()
            );
        }
    }
}
