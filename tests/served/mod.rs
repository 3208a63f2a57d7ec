//! Served models, from outside: `mpcc` against a server on the loopback that counts, dawdles and misbehaves.

mod server;
mod transformers;

use std::collections::BTreeSet;
use std::time::Duration;

use self::server::{Act, Asked, Server};
use crate::cli::bench::{Bench, Ended};

/// 32 questions of four tasks about open pictures, asked by two nodes whose recipes differ and whose requests are the same.
const PIPELINE: &str = r#"
mpcc: 1
name: served
params: { temperature: 0, system: none.txt }
models:
  api: { provider: openai, model: gpt, base_url: "BASE", api_key_env: KEY, max_concurrency: 3, timeout: 2, LIMITS }
stages:
  world: { uses: scenes.generate, with: { part: test, scenes: 30, tasks: 8 } }
  one: { uses: eval.answer, inputs: { model: api, dataset: world.dataset, questions: world.tasks }, with: { decoding: { max_new_tokens: 32, temperature: "${params.temperature}" } } }
  two: { uses: eval.answer, inputs: { model: api, dataset: world.dataset, questions: world.tasks }, with: { decoding: { max_new_tokens: 32, temperature: "${params.temperature}" }, mask: { feather: 9 } } }
"#;
const QUESTIONS: usize = 32;
const KEY: &str = "sk-0123456789abcdef";

fn bench(server: &Server, limits: &str) -> Bench {
    let mut bench = Bench::new(&PIPELINE.replace("BASE", &server.base_url()).replace("LIMITS", limits));
    bench.variables.push(("KEY".into(), KEY.into()));
    bench
}

fn polite(asked: &Asked) -> Act {
    Act::Say(format!("<answer>{}</answer>", asked.text().len()))
}

fn answers(bench: &Bench, node: &str) -> String {
    std::fs::read_to_string(bench.mpcc(&format!("show {node}.answers")).code(0).out.trim()).unwrap()
}

/// Executed and cached nodes.
fn done(run: &Ended) -> [u64; 2] {
    let [executed, cached, ..] = run.counts();
    [executed, cached]
}

#[test]
fn a_question_is_asked_once_by_whichever_node_and_the_key_stays_where_it_is() {
    let server = Server::start(Duration::from_millis(30), polite);
    let bench = bench(&server, "");
    let run = bench.mpcc("run pipeline.yaml --json --jobs 2").code(0);
    assert_eq!(done(&run), [3, 0]);
    assert_eq!(server.asked().len(), QUESTIONS, "32 questions, two nodes at once");
    assert!(server.asked().iter().map(Asked::text).collect::<BTreeSet<_>>().len() > 4);
    assert!((2..=3).contains(&server.most_at_once()), "{} at once", server.most_at_once());
    assert!(server.asked().iter().all(|asked| asked.key == format!("Bearer {KEY}")));
    assert_eq!(answers(&bench, "one"), answers(&bench, "two"));
    let last = run.finished();
    assert_eq!(last["spent"]["requests"], QUESTIONS, "{last}");
    for path in below(&bench.path(".mpcc")) {
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(KEY.len()).any(|window| window == KEY.as_bytes()), "{} holds the key", path.display());
    }
}

fn below(path: &std::path::Path) -> Vec<std::path::PathBuf> {
    let (mut open, mut files) = (vec![path.to_owned()], Vec::new());
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.is_file() {
            files.push(path);
        }
    }
    files
}

#[test]
fn what_is_known_needs_no_server_and_no_slot() {
    let server = Server::start(Duration::ZERO, polite);
    let bench = bench(&server, "rpm: 40");
    bench.mpcc("run pipeline.yaml one").code(0);
    let asked = server.asked().len();
    drop(server);
    // 40 a minute are nearly used up, and nobody listens; the second node's answers are all there.
    let run = bench.mpcc("run pipeline.yaml --json").code(0);
    assert_eq!((done(&run), asked), ([1, 2], QUESTIONS));
}

#[test]
fn a_server_that_fails_in_every_way_gets_every_question_answered() {
    let server = Server::start(Duration::ZERO, |asked| match (asked.before, asked.text().len() % 6) {
        (0, 0) => Act::Status(500, "", "oops"),
        (0, 1) => Act::Status(429, "retry-after-ms: 200\r\n", "{\"error\":{\"message\":\"slow down\"}}"),
        (0, 2) => Act::Status(200, "content-type: text/html\r\n", "<html>we are back soon</html>"),
        (0, 3) => Act::Cut,
        (0, 4) => Act::Hang(Duration::from_secs(4)),
        _ => polite(asked),
    });
    let bench = bench(&server, "");
    bench.mpcc("run pipeline.yaml one").code(0);
    assert_eq!(answers(&bench, "one").lines().count(), QUESTIONS);
    let texts: BTreeSet<usize> = server.asked().iter().map(|asked| asked.text().len() % 6).collect();
    assert!(texts.len() > 2, "the questions differ in length, so that several failures were met: {texts:?}");
}

#[test]
fn the_plan_tells_the_price_and_the_budget_holds() {
    let server = Server::start(Duration::ZERO, polite);
    // 100 and 10 tokens cost 0.002 dollars; before that is known, 1500 a picture and 32 are expected.
    let mut bench = bench(&server, "price: { prompt: 10, completion: 100 }, budget: 0.05");
    let plan = |bench: &Bench| bench.mpcc("plan pipeline.yaml one").code(0).out;
    bench.mpcc("run pipeline.yaml world").code(0);
    assert!(plan(&bench).contains("32 of 32 requests, at most about $"), "{}", plan(&bench));
    assert_eq!(server.asked().len(), 0, "a plan asks nothing");

    let run = bench.mpcc("run pipeline.yaml one").code(1);
    assert!(run.out.contains("the budget of model `api` is used up"), "{}", run.out);
    let first = server.asked().len();
    // The last one may cost twice the mean of a prompt, 0.002, and 32 tokens, 0.0032.
    assert!((20..=25).contains(&first), "{first} requests for 0.05 dollars at 0.002 each");
    let left = QUESTIONS - first;
    let expected = format!("{left} of 32 requests, about ${:.2}", left as f64 * 0.002);
    assert!(plan(&bench).contains(&expected), "{expected}: {}", plan(&bench));
    bench.mpcc("run pipeline.yaml one").code(1);
    assert!(server.asked().len() <= 25);

    let raised = bench.read("pipeline.yaml").replace("budget: 0.05", "budget: 5");
    bench.write("pipeline.yaml", &raised);
    let run = bench.mpcc("run pipeline.yaml one --json").code(0);
    assert_eq!(server.asked().len(), QUESTIONS, "nothing is paid for twice");
    assert!(run.finished()["spent"]["cost"].as_f64().unwrap() < 0.064);
    assert!(!plan(&bench).contains("requests"), "{}", plan(&bench));
    // Without its key a plan can still count.
    bench.variables.clear();
    assert!(bench.mpcc("plan pipeline.yaml two").code(0).out.contains("KEY"));
}

#[test]
fn a_wrong_key_ends_the_stage_at_once() {
    let server = Server::start(Duration::ZERO, |_| Act::Status(401, "", "{\"error\":{\"message\":\"no such key\"}}"));
    let run = bench(&server, "").mpcc("run pipeline.yaml one").code(1);
    assert!(run.out.contains("no such key. Is the key in KEY right?"), "{}", run.out);
    assert!(server.asked().len() <= 3);
}

#[test]
fn a_refused_question_fails_alone() {
    let server = Server::start(Duration::ZERO, |asked| match asked.text().len() % 4 {
        0 => Act::Status(400, "", "{\"error\":{\"message\":\"too rude\"}}"),
        _ => polite(asked),
    });
    let bench = bench(&server, "");
    let run = bench.mpcc("run pipeline.yaml one").code(1);
    assert!(
        run.out.contains("of 32 requests failed; the first, about ") && run.out.contains("too rude"),
        "{}",
        run.out
    );
    let refused = server.asked().iter().filter(|asked| asked.text().len() % 4 == 0).count();
    assert!(refused > 0 && server.asked().len() == QUESTIONS);
    bench.mpcc("run pipeline.yaml one").code(1);
    // Only they are asked again, and as nothing else is, not all of them.
    assert!((QUESTIONS + 4..=QUESTIONS + refused).contains(&server.asked().len()));
}

#[test]
fn a_killed_run_loses_only_what_was_under_way() {
    let server = Server::start(Duration::from_millis(40), polite);
    let bench = bench(&server, "");
    bench.mpcc("run pipeline.yaml world").code(0);
    let mut run = bench.start("run pipeline.yaml one");
    while server.asked().len() < QUESTIONS / 2 {
        std::thread::sleep(Duration::from_millis(2));
    }
    run.kill().unwrap();
    run.wait().unwrap();
    bench.mpcc("run pipeline.yaml one").code(0);
    let asked = server.asked().len();
    assert!((QUESTIONS..=QUESTIONS + 3).contains(&asked), "{asked} requests for {QUESTIONS} answers");
}

#[test]
fn recorded_answers_stand_in_for_a_model() {
    let server = Server::start(Duration::ZERO, polite);
    let bench = bench(&server, "");
    bench.mpcc("run pipeline.yaml one").code(0);
    let recorded = answers(&bench, "one");
    bench.write("answers.jsonl", &recorded);
    let replay = bench
        .read("pipeline.yaml")
        .replace("stages:\n", "  human: { provider: replay, from: { file: answers.jsonl } }\nstages:\n");
    bench.write(
        "pipeline.yaml",
        &replay.replace(
            "two: { uses: eval.answer, inputs: { model: api",
            "two: { uses: eval.answer, inputs: { model: human",
        ),
    );
    bench.mpcc("run pipeline.yaml two").code(0);
    assert_eq!(server.asked().len(), QUESTIONS);
    let texts = |jsonl: &str| -> Vec<String> {
        jsonl.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["text"].to_string()).collect()
    };
    assert_eq!(texts(&answers(&bench, "two")), texts(&recorded));
    // One answer short: the question is named, the others are in the memo.
    bench.write("answers.jsonl", &recorded.lines().skip(1).map(|line| format!("{line}\n")).collect::<String>());
    let run = bench.mpcc("run pipeline.yaml two").code(1);
    assert!(run.out.contains("model `human` has 0 recorded answers about "), "{}", run.out);
}
