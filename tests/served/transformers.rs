//! Our provider against `transformers serve`, over tiny models that both sides have.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cli::bench::{Bench, root};
use crate::cli::python::python_with;

/// How long the server may take to import its packages.
const STARTING: Duration = Duration::from_secs(120);
/// The `transformers` command, with whichever Python has it.
const COMMAND: &str =
    "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()";

/// A `transformers serve`, gone with its value and with all that it started.
struct Theirs {
    child: Child,
    port: u16,
}

impl Theirs {
    /// Starts in `bench`, whose folder is its home: no cache, settings or key of the caller's.
    fn start(bench: &Bench, python: &OsStr) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        // Without it the list of models is an error.
        std::fs::create_dir_all(bench.path("hf/hub")).unwrap();
        let log = File::create(bench.path("serve.log")).unwrap();
        let mut command = Command::new(python);
        command.args(["-c", COMMAND, "serve", "--host", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--device", "cpu", "--dtype", "float32", "--default-seed", "0"]);
        command.env("HOME", bench.path("")).env("HF_HOME", bench.path("hf")).env("HF_HUB_OFFLINE", "1");
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let theirs = Self { child: command.spawn().unwrap(), port };
        let started = Instant::now();
        while !theirs.get("/v1/models").is_some_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            assert!(started.elapsed() < STARTING, "no answer: {}", bench.read("serve.log"));
            std::thread::sleep(Duration::from_millis(100));
        }
        theirs
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = self.child.wait();
    }
}

/// Questions of [`PIPELINE`].
const QUESTIONS: usize = 12;
/// Pictures of 112 by 112 pixels, asked about by the same weights on both sides.
const PIPELINE: &str = r#"
mpcc: 1
name: transformers
models:
  theirs: { provider: openai, model: "DIR", base_url: "http://127.0.0.1:PORT/v1", max_concurrency: 3, timeout: 60 }
  ours: { from: { dir: "DIR" } }
stages:
  world: { uses: scenes.generate, with: { part: test, scenes: 12, tasks: 3 } }
  answer: { matrix: { model: [theirs, ours] }, uses: eval.answer, inputs: { model: "${matrix.model}", dataset: world.dataset, questions: world.tasks }, with: { decoding: { max_new_tokens: 12, temperature: 0 } } }
"#;

/// Each question's answer.
fn answers(bench: &Bench, model: &str) -> BTreeMap<String, Value> {
    let path = bench.mpcc(&format!("show answer[model={model}].answers")).code(0).out;
    let lines = std::fs::read_to_string(path.trim()).unwrap();
    let answer = |line| {
        let answer: Value = serde_json::from_str(line).unwrap();
        (answer["question"].as_str().unwrap().to_owned(), answer)
    };
    lines.lines().map(answer).collect()
}

/// As the server sends it: blanks around an answer are cut, Python's notion of them.
fn trimmed(answer: &Value) -> &str {
    answer["text"].as_str().unwrap().trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}

/// Qwen shows a picture of 112 pixels as it is, so that every answer must be the same. The others resize it, the server by another
/// filter than ours: few answers may differ.
const FAMILIES: [(&str, bool); 5] = [
    ("tiny", true),
    ("families/qwen2_vl", true),
    ("families/llava_next_vicuna", false),
    ("families/llava_next_mistral", false),
    ("families/internvl", false),
];

#[test]
fn transformers_serve_says_what_the_same_weights_say_here() {
    let what = "transformers serve";
    let Some(python) = python_with("torch, torchvision, transformers, fastapi, uvicorn, openai", what) else { return };
    let home = Bench::new("");
    let theirs = Theirs::start(&home, &python);
    let each = FAMILIES.map(|(family, as_it_is)| {
        let dir = root().join("stages/models/tests/fixtures").join(family).display().to_string();
        let bench = Bench::new(&PIPELINE.replace("DIR", &dir).replace("PORT", &theirs.port.to_string()));
        let run = bench.mpcc("run pipeline.yaml --json").code(0);
        assert_eq!(run.counts(), [3, 0, 0, 0], "{}", home.read("serve.log"));
        let (said, own) = (answers(&bench, "theirs"), answers(&bench, "ours"));
        assert!(said.len() == QUESTIONS && said.keys().eq(own.keys()), "{family}: {} answers", said.len());
        let differing = own.iter().filter(|(question, own)| trimmed(own) != trimmed(&said[*question])).count();
        println!("{family}: {differing} of {QUESTIONS} answers differ");
        assert!(differing <= if as_it_is { 0 } else { QUESTIONS / 4 }, "{family}: {said:#?} and here {own:#?}");
        for (question, own) in &own {
            let [ours, theirs] = [own, &said[question]].map(|answer| &answer["usage"]);
            assert_eq!(ours["prompt"], theirs["prompt"], "{family}: {question}");
            assert!(ours["completion"] == theirs["completion"] || !as_it_is, "{family}: {question}");
        }
        let (spent, sum) = (&run.finished()["spent"], |what: &str| -> u64 {
            said.values().map(|answer| answer["usage"][what].as_u64().unwrap()).sum()
        });
        let tokens = [spent["prompt_tokens"].as_u64(), spent["completion_tokens"].as_u64()];
        assert_eq!(tokens, [Some(sum("prompt")), Some(sum("completion"))], "{spent}");
        assert_eq!(spent["requests"], QUESTIONS, "{spent}");
        (bench, said)
    });
    // Every answer is in the memo: nobody serves any more.
    drop(theirs);
    for (bench, said) in each {
        let again = bench.mpcc("run pipeline.yaml --json --force answer[model=theirs]").code(0);
        assert_eq!((again.counts(), &again.finished()["spent"]), ([1, 2, 0, 0], &Value::Null));
        assert_eq!(answers(&bench, "theirs"), said);
    }
}
