//! Custom stages: commands, record stages, secrets, published outputs.

use super::bench::Bench;

#[test]
fn secrets_reach_the_stage_and_nothing_else() {
    let mut bench = Bench::new(
        r#"
mpcc: 1
name: secret
stages:
  with: { run: "echo using $KEY; test $(printf %s $KEY | wc -c) = 11 && echo yes > ${outputs.y}", outputs: { y: file }, secrets: [KEY] }
  without: { run: "test -z \"$KEY\" && echo none > ${outputs.y}", outputs: { y: file } }
"#,
    );
    bench.variables.push(("KEY".into(), "sk-12345678".into()));
    bench.mpcc("run pipeline.yaml --keep-going").code(0);
    assert_eq!(bench.mpcc("logs with").code(0).out, "using ***\n");
    let mut open = vec![bench.path(".mpcc")];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            assert!(!bytes.windows(11).any(|window| window == b"sk-12345678"), "{} holds the secret", path.display());
        }
    }
}

#[test]
fn a_published_copy_is_restored() {
    let bench = Bench::new(
        r#"
mpcc: 1
name: published
stages:
  make: { run: "echo ran >> ran; echo text > ${outputs.y}", outputs: { y: { type: file, path: results/y.txt } } }
"#,
    );
    bench.mpcc("run pipeline.yaml").code(0);
    assert_eq!(bench.read("results/y.txt"), "text\n");
    bench.write("results/y.txt", "changed\n");
    bench.mpcc("run pipeline.yaml").code(0);
    assert_eq!(bench.read("results/y.txt"), "text\n");
    std::fs::remove_file(bench.path("results/y.txt")).unwrap();
    bench.mpcc("run pipeline.yaml").code(0);
    assert_eq!(bench.read("results/y.txt"), "text\n");
    assert_eq!(bench.ran().len(), 1);
}

#[test]
fn a_failing_record_is_kept_apart() {
    let bench = Bench::new(
        r#"
mpcc: 1
name: records
stages:
  echo:
    each: records
    run: "while read -r line; do echo \"$line\" >> asked; case \"$line\" in *2*) echo '{\"error\": \"two\"}';; *) echo \"$line\";; esac; done"
    inputs: { records: { file: records.jsonl } }
    outputs: { y: records }
"#,
    );
    bench.write("records.jsonl", "{\"id\":1}\n{\"id\":2}\n{\"id\":3}\n");
    let run = bench.mpcc("run pipeline.yaml").code(1);
    assert!(run.out.contains("1 of 3 records failed; the first is record 2: two"), "{}", run.out);
    bench.write("records.jsonl", "{\"id\":1}\n{\"id\":3}\n{\"id\":4}\n");
    bench.mpcc("run pipeline.yaml").code(0);
    assert_eq!(bench.read("asked").lines().count(), 4, "1, 2, 3 once, then 4");
}

#[test]
fn a_record_is_answered_once_whichever_stage_has_it() {
    let stage = r#"{ uses: slow, inputs: { records: { file: FILE } } }"#;
    let bench = Bench::new(&format!(
        r#"
mpcc: 1
name: records
kinds:
  slow:
    each: records
    run: "while read -r line; do echo \"$line\" >> asked; sleep 0.02; echo \"$line\"; done"
    inputs: {{ records: records }}
    outputs: {{ y: records }}
stages:
  a: {}
  b: {}
"#,
        stage.replace("FILE", "a.jsonl"),
        stage.replace("FILE", "b.jsonl"),
    ));
    let lines = |ids: &mut dyn Iterator<Item = u32>| ids.map(|id| format!("{{\"id\":{id}}}\n")).collect::<String>();
    bench.write("a.jsonl", &lines(&mut (0..30).chain(0..30)));
    bench.write("b.jsonl", &lines(&mut (10..40).rev()));
    bench.mpcc("run pipeline.yaml --jobs 2").code(0);
    let asked = bench.read("asked");
    let different: std::collections::BTreeSet<&str> = asked.lines().collect();
    assert_eq!((asked.lines().count(), different.len()), (40, 40), "{asked}");
    let show = |node: &str| std::fs::read_to_string(bench.mpcc(&format!("show {node}")).code(0).out.trim()).unwrap();
    assert_eq!(show("a"), bench.read("a.jsonl"));
    assert_eq!(show("b"), bench.read("b.jsonl"));
    // Three more: a plan tells, and only they are asked.
    bench.write("a.jsonl", &lines(&mut (0..33)));
    bench.write("b.jsonl", &lines(&mut (50..53)));
    let plan = bench.mpcc("plan pipeline.yaml").code(0).out;
    assert!(
        plan.contains("0 of 33 records") && plan.contains("3 of 3 records") && plan.contains("; 3 of 36 records"),
        "{plan}"
    );
    bench.mpcc("run pipeline.yaml").code(0);
    assert_eq!(bench.read("asked").lines().count(), 43);
}

#[test]
fn a_list_input_arrives_in_order_with_its_coordinates() {
    let bench = Bench::new(
        r#"
mpcc: 1
name: lists
stages:
  part: { matrix: { n: [2, 1] }, run: "echo ${matrix.n} > ${outputs.y}", outputs: { y: file } }
  all: { run: [sh, -c, 'out=$1; shift; cat "$@" > $out', sh, "${outputs.y}", "${inputs.parts}"], inputs: { parts: "part[*]" }, outputs: { y: file } }
  list: { run: "cat ${inputs.parts.json} > ${outputs.y}", inputs: { parts: "part[*]" }, outputs: { y: file } }
"#,
    );
    bench.mpcc("run pipeline.yaml").code(0);
    let show = |node: &str| std::fs::read_to_string(bench.mpcc(&format!("show {node}")).code(0).out.trim()).unwrap();
    assert_eq!(show("all"), "2\n1\n");
    let list: serde_json::Value = serde_json::from_str(&show("list")).unwrap();
    assert_eq!((&list[0]["node"], &list[1]["matrix"]["n"]), (&"part[n=2]".into(), &1.into()));
}
