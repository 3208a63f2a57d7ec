//! Runs that stand on the seal of an earlier one: nothing is looked at twice, and nothing that changed is missed.

use std::fs::{File, FileTimes};
use std::io::Write;
use std::time::Duration;

use super::bench::Bench;

/// Two columns of three stages, each published, each noting what it ran.
const COLUMNS: &str = r#"
mpcc: 1
name: columns
params: { word: a }
stages:
  first: { matrix: { n: [1, 2] }, run: "echo first${matrix.n} >> ran; cat ${inputs.x} > ${outputs.y}", inputs: { x: { file: "in/${matrix.n}.txt" } }, outputs: { y: { type: file, path: "out/first${matrix.n}.txt" } } }
  second: { matrix: { n: [1, 2] }, run: "echo second${matrix.n} >> ran; cat ${inputs.x} > ${outputs.y}", inputs: { x: "first[n=${matrix.n}]" }, outputs: { y: { type: file, path: "out/second${matrix.n}.txt" } } }
  all: { run: "echo all >> ran; cat ${inputs.x} > ${outputs.y}/all.txt; echo ${params.word} >> ${outputs.y}/all.txt", inputs: { x: "second[*]" }, outputs: { y: dir } }
  listed: { run: "echo listed >> ran; cat ${inputs.x} > ${outputs.y}", inputs: { x: { glob: "more/*.txt" } }, outputs: { y: file } }
"#;

fn rest() {
    std::thread::sleep(Duration::from_millis(40));
}

/// A bench whose pipeline has run and stands.
fn standing() -> Bench {
    let bench = Bench::new(COLUMNS);
    for name in ["in/1.txt", "in/2.txt", "more/a.txt"] {
        bench.write(name, &format!("{name}\n"));
    }
    rest();
    for _ in 0..3 {
        bench.mpcc("run pipeline.yaml").code(0);
        rest();
    }
    assert_eq!(bench.ran().len(), 6);
    bench
}

/// What the next run executes, sorted; the one after it executes nothing.
fn next(bench: &Bench) -> Vec<String> {
    rest();
    bench.mpcc("run pipeline.yaml").code(0);
    let mut ran = bench.ran();
    ran.sort();
    rest();
    assert!(bench.mpcc("run pipeline.yaml").code(0).out.contains("6 up to date"));
    assert!(bench.ran().is_empty());
    ran
}

#[test]
fn a_run_that_finds_everything_as_it_was_says_so_and_can_be_looked_at() {
    let bench = standing();
    let digests = bench.mpcc("runs show --digests").code(0).out;
    let out = bench.mpcc("run pipeline.yaml").code(0).out;
    assert!(out.contains("columns, 6 nodes") && out.contains("6 up to date in"), "{out}");
    assert!(!out.contains("first"), "no node is named: {out}");
    assert_eq!(bench.mpcc("runs show --digests").code(0).out, digests);
    assert!(bench.mpcc("status").code(0).out.contains("6 up to date"));
    let shown = bench.mpcc("show second[n=1]").code(0).out;
    assert_eq!(std::fs::read_to_string(shown.trim()).unwrap(), "in/1.txt\n");
    assert_eq!(bench.mpcc("run pipeline.yaml --json").code(0).counts(), [0, 6, 0, 0]);
    assert!(bench.mpcc("plan pipeline.yaml").code(0).out.contains("6 up to date, 0 to run"));
    assert!(bench.mpcc("why all").code(0).out.contains("up to date"));
}

#[test]
fn every_change_is_seen() {
    let bench = standing();
    assert_eq!(next(&bench), Vec::<String>::new());

    let input = File::options().append(true).open(bench.path("in/1.txt")).unwrap();
    input.set_times(FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH)).unwrap();
    assert_eq!(next(&bench), Vec::<String>::new(), "a stamp is no content");

    bench.write("in/1.txt", "IN/1.txt\n");
    input.set_times(FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH)).unwrap();
    assert_eq!(next(&bench), ["all", "first1", "second1"], "same size, same mtime");

    bench.write("more/b.txt", "b\n");
    assert_eq!(next(&bench), ["listed"], "a pattern matches more");
    std::fs::remove_file(bench.path("more/b.txt")).unwrap();
    assert_eq!(next(&bench), Vec::<String>::new(), "what it was before is still known");

    let edited =
        bench.read("pipeline.yaml").replace("echo second${matrix.n} >> ran; ", "echo second${matrix.n}  >> ran; ");
    bench.write("pipeline.yaml", &edited);
    assert_eq!(next(&bench), ["second1", "second2"], "another command, the same number of nodes, the same bytes");

    let swapped: Vec<String> = edited.lines().map(str::to_owned).collect();
    let at = |name: &str| swapped.iter().position(|line| line.trim_start().starts_with(name)).unwrap();
    let (mut lines, first, listed) = (swapped.clone(), at("first:"), at("listed:"));
    lines.swap(first, listed);
    bench.write("pipeline.yaml", &(lines.join("\n") + "\n"));
    assert_eq!(next(&bench), Vec::<String>::new(), "nodes have other numbers and the same recipes");
}

#[test]
fn copies_and_objects_are_watched() {
    let bench = standing();
    let mut copy = File::options().append(true).open(bench.path("out/first1.txt")).unwrap();
    copy.write_all(b"junk").unwrap();
    std::fs::remove_file(bench.path("out/second2.txt")).unwrap();
    assert_eq!(next(&bench), Vec::<String>::new());
    assert_eq!(
        (bench.read("out/first1.txt"), bench.read("out/second2.txt")),
        ("in/1.txt\n".into(), "in/2.txt\n".into())
    );

    let object = bench.mpcc("show listed").code(0).out;
    std::fs::remove_file(object.trim()).unwrap();
    assert_eq!(next(&bench), ["listed"], "what is gone from the store is made again");
}

#[test]
fn a_seal_of_other_values_is_not_taken() {
    let bench = standing();
    bench.mpcc("run pipeline.yaml --set word=b").code(0);
    assert_eq!(bench.ran(), ["all"]);
    let back = bench.mpcc("run pipeline.yaml --json").code(0);
    assert_eq!(back.counts(), [0, 6, 0, 0]);
    let why = bench.mpcc("why all --json").code(0).json();
    assert_eq!(why[0]["state"], "hit");
    assert!(why[0].to_string().contains("echo b") && why[0].to_string().contains("echo a"), "{}", why[0]);
    rest();
    assert_eq!(bench.mpcc("run pipeline.yaml --force first --json").code(0).counts()[0], 2);
    let mut ran = bench.ran();
    ran.sort();
    assert_eq!(ran, ["first1", "first2"], "forced nodes run, and equal bytes cut off what is below");
}

#[test]
fn a_run_that_fails_leaves_no_seal_of_what_was_before() {
    let bench = Bench::new(
        r#"
mpcc: 1
name: torn
stages:
  first: { run: "echo first >> ran; date +%N > ${outputs.y}", outputs: { y: file } }
  second: { run: "echo second >> ran; test ! -e broken && cat ${inputs.x} > ${outputs.y}", inputs: { x: first }, outputs: { y: file } }
"#,
    );
    for _ in 0..2 {
        bench.mpcc("run pipeline.yaml").code(0);
        rest();
    }
    bench.ran();
    bench.write("broken", "");
    bench.mpcc("run pipeline.yaml --force first").code(1);
    assert_eq!(bench.ran(), ["first", "second"]);
    bench.mpcc("run pipeline.yaml").code(1);
    assert_eq!(bench.ran(), ["second"], "what failed is tried again");
    std::fs::remove_file(bench.path("broken")).unwrap();
    bench.mpcc("run pipeline.yaml").code(0);
    let shown = |name: &str| std::fs::read_to_string(bench.mpcc(&format!("show {name}")).code(0).out.trim()).unwrap();
    assert_eq!(shown("first"), shown("second"));
}

#[test]
fn folders_are_watched_whatever_is_in_them() {
    let bench = Bench::new(
        r#"
mpcc: 1
name: folders
stages:
  all: { run: "echo all >> ran; find ${inputs.x} -type f | wc -l > ${outputs.y}", inputs: { x: { dir: data } }, outputs: { y: file } }
  some: { run: "echo some >> ran; sleep 0.2; cat ${inputs.x} > ${outputs.y}", inputs: { x: { glob: "data/*.txt" } }, outputs: { y: file } }
"#,
    );
    bench.write("data/a.txt", "a\n");
    std::fs::create_dir(bench.path("data/empty")).unwrap();
    rest();
    let run = |expected: &[&str]| {
        bench.mpcc("run pipeline.yaml").code(0);
        let mut ran = bench.ran();
        ran.sort();
        assert_eq!(ran, expected);
        rest();
    };
    run(&["all", "some"]);
    run(&[]);
    run(&[]);
    bench.write("data/empty/b.dat", "b\n");
    rest();
    run(&["all"]);
    run(&[]);

    bench.write("data/a.txt", "A\n");
    rest();
    let going = bench.start("run pipeline.yaml");
    bench.wait_for_lines("ran", 2);
    bench.write("data/c.txt", "c\n");
    going.wait_with_output().unwrap();
    bench.ran();
    rest();
    bench.mpcc("run pipeline.yaml").code(0);
    assert!(bench.ran().contains(&"some".to_owned()), "a file that came while the run went on is seen by the next one");
    run(&[]);
}

#[test]
fn a_seal_without_its_journal_is_not_enough() {
    let bench = standing();
    std::fs::remove_dir_all(bench.path(".mpcc/runs")).unwrap();
    for _ in 0..2 {
        assert!(bench.mpcc("run pipeline.yaml").code(0).out.contains("6 up to date"));
        assert!(bench.mpcc("status").code(0).out.contains("6 up to date"));
    }
    bench.mpcc("run pipeline.yaml first").code(0);
    for _ in 0..2 {
        assert!(bench.mpcc("run pipeline.yaml").code(0).out.contains("6 up to date"));
    }
    assert!(bench.ran().is_empty());
}
