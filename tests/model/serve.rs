//! `mpcc model serve` over plain HTTP, from OpenAI's own client, and behind a pipeline.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{family, fixtures, picture};
use crate::cli::bench::{Bench, signal};
use crate::cli::python::python_with;

const TOKEN: &str = "a-token-for-tests";

/// A served tiny model, gone with its value.
struct Served {
    bench: Bench,
    child: Child,
    port: u16,
}

impl Served {
    fn start(dir: &str) -> Self {
        let mut bench = Bench::new("");
        bench.variables.push(("TOKEN".into(), TOKEN.into()));
        let words = ["serve", dir, "--port", "0", "--name", "tiny", "--token-env", "TOKEN", "--json"];
        let mut command = bench.command("model");
        let mut child = command.args(words).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let told: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&told["model"], &told["token"]),
            (&json!("tiny"), &Value::Null),
            "the caller's token is not repeated"
        );
        let base = told["base_url"].as_str().unwrap();
        let port = base.strip_prefix("http://127.0.0.1:").unwrap().strip_suffix("/v1").unwrap().parse().unwrap();
        Self { bench, child, port }
    }

    fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    /// Sends a request; status and body, its chunks joined.
    fn send(&self, first: &str, headers: &str, body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let length = body.len();
        let head = format!("{first} HTTP/1.1\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        // A server that refuses early may not read all of it.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        (status, if chunked { unchunked(body) } else { body.to_owned() })
    }

    fn chat(&self, body: &Value) -> (u16, Value) {
        let (status, body) = self.send("POST /v1/chat/completions", &headers(), body.to_string().as_bytes());
        (status, serde_json::from_str(&body).unwrap_or_else(|_| panic!("no JSON: {body}")))
    }

    /// A refused request: its status, and the error's message.
    fn refused(&self, first: &str, headers: &str, body: &[u8]) -> (u16, String) {
        let (status, body) = self.send(first, headers, body);
        let error: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("no JSON: {body}"));
        assert!(error["error"]["type"].is_string() && error["error"].get("param").is_some(), "{error}");
        (status, error["error"]["message"].as_str().unwrap().to_owned())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn headers() -> String {
    format!("host: localhost\r\ncontent-type: application/json\r\nauthorization: Bearer {TOKEN}\r\n")
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        whole.push_str(&rest[..size]);
        body = rest[size..].strip_prefix("\r\n").unwrap();
    }
    whole
}

fn image_url(bytes: &[u8]) -> Value {
    json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{}", STANDARD.encode(bytes))}})
}

/// A question about pictures.
fn question(pictures: &[&str]) -> Value {
    let mut parts: Vec<Value> = pictures.iter().map(|name| image_url(&std::fs::read(picture(name)).unwrap())).collect();
    parts.push(json!({"type": "text", "text": "What is this?"}));
    json!({"model": "tiny", "messages": [{"role": "user", "content": parts}], "max_tokens": 16, "temperature": 0})
}

fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn a_question_is_answered_whole_and_in_pieces_alike() {
    let served = Served::start(&family("qwen2_vl"));
    let body = question(&["wide.png", "small.png"]);
    let (status, whole) = served.chat(&body);
    assert_eq!((status, &whole["object"]), (200, &json!("chat.completion")), "{whole}");
    let (choice, usage) = (&whole["choices"][0], &whole["usage"]);
    let text = choice["message"]["content"].as_str().unwrap();
    assert!(usage["prompt_tokens"].as_u64().unwrap() > 30 && usage["completion_tokens"].as_u64().unwrap() <= 16);
    // What `mpcc model ask` says to the same.
    let images = [picture("wide.png"), picture("small.png")];
    let words = ["ask", &family("qwen2_vl"), "--image", &images[0], "--image", &images[1], "What is this?"];
    let asked = super::model(&served.bench, &[&words[..], &["--max-new-tokens", "16", "--json"]].concat()).code(0);
    assert_eq!(super::told(&asked)["text"].as_str(), Some(text));

    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    let (status, body) = served.send("POST /v1/chat/completions", &headers(), with(body, more).to_string().as_bytes());
    let events: Vec<&str> = body.split_terminator("\n\n").map(|line| line.strip_prefix("data: ").unwrap()).collect();
    let (done, events) = events.split_last().unwrap();
    assert_eq!((status, *done), (200, "[DONE]"));
    let events: Vec<Value> = events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let (counts, pieces) = events.split_last().unwrap();
    assert_eq!((&counts["usage"], counts["choices"].as_array().unwrap().len()), (usage, 0));
    let deltas: String = pieces.iter().filter_map(|piece| piece["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!((deltas.as_str(), pieces[0]["choices"][0]["delta"]["role"].as_str()), (text, Some("assistant")));
    assert!(pieces.len() > 4, "it came in {} pieces", pieces.len());
    assert_eq!(pieces.last().unwrap()["choices"][0]["finish_reason"], choice["finish_reason"]);
}

#[test]
fn seeds_stops_and_lengths_hold() {
    let served = Served::start(&family("qwen2_vl"));
    let text = |more: Value| {
        let (status, answer) = served.chat(&with(question(&["tall.png"]), more));
        assert_eq!(status, 200, "{answer}");
        let choice = answer["choices"][0].clone();
        (
            choice["message"]["content"].as_str().unwrap().to_owned(),
            choice["finish_reason"].as_str().unwrap().to_owned(),
        )
    };
    let drawn = |seed: u64| text(json!({"temperature": 1, "top_p": 0.95, "seed": seed, "max_tokens": 24}));
    assert_eq!(drawn(4), drawn(4));
    assert!((5..9).any(|seed| drawn(seed) != drawn(4)));
    let (whole, _) = text(json!({}));
    let stop: String = whole.chars().skip(3).take(2).collect();
    let (cut, reason) = text(json!({"stop": [stop]}));
    assert_eq!((cut.as_str(), reason.as_str()), (whole.split(&stop).next().unwrap(), "stop"));
    assert_eq!(text(json!({"max_tokens": 1, "max_completion_tokens": 2})).1, "length");
    // Many at once: each gets what it gets alone.
    let alone: Vec<_> = (0..6).map(drawn).collect();
    let together: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|seed| scope.spawn(move || drawn(seed))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
    let (_, several) = served.chat(&with(question(&[]), json!({"n": 3, "temperature": 1, "seed": 1})));
    assert_eq!(several["choices"].as_array().unwrap().len(), 3);
}

#[test]
fn strangers_and_nonsense_are_refused_with_what_to_do() {
    let served = Served::start(&family("internvl"));
    let get = |path: &str, headers: &str| served.send(&format!("GET {path}"), headers, b"");
    assert_eq!(get("/health", "host: 127.0.0.1:1\r\n").0, 200);
    assert!(get("/v1/models", &headers()).1.contains("\"tiny\""));
    assert_eq!(get("/v1/models/tiny", &headers()).0, 200);
    let refused = |first: &str, headers: &str, body: &[u8]| served.refused(first, headers, body);
    let evil = headers().replace("localhost", "evil.example");
    for (first, headers, status, message) in [
        ("GET /health", "host: evil.example\r\n", 403, "--allow-host"),
        ("GET /v1/models", evil.as_str(), 403, "evil.example"),
        ("GET /v1/models", "host: localhost\r\n", 401, "Authorization: Bearer"),
        ("GET /v1/models", "host: localhost\r\nauthorization: Bearer a-token-for-test5\r\n", 401, "wrong"),
        ("GET /v1/models/other", &headers(), 404, "no model `other`"),
        ("GET /v2", &headers(), 404, "/v1/chat/completions"),
        ("GET /v1/chat/completions", &headers(), 405, "POST"),
    ] {
        let (found, told) = refused(first, headers, b"");
        assert!(found == status && told.contains(message), "{first}: {found} {told}");
    }
    let chat = |body: &[u8]| refused("POST /v1/chat/completions", &headers(), body);
    let mut huge = std::fs::read(picture("small.png")).unwrap();
    // Width and height in the head of a PNG, and its checksum.
    huge[16..24].copy_from_slice(&[0, 0, 0xC3, 0x50, 0, 0, 0xC3, 0x50]);
    let crc = crc32(&huge[12..29]);
    huge[29..33].copy_from_slice(&crc.to_be_bytes());
    let shown = |part: Value| with(question(&[]), json!({"messages": [{"role": "user", "content": [part]}]}));
    let far = json!({"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/a.png"}});
    for (body, status, message) in [
        (b"{\"messages\": [".to_vec(), 400, "no JSON"),
        (b"\xff\xfe".to_vec(), 400, "no JSON"),
        (shown(image_url(&huge)).to_string().into_bytes(), 400, "50000 x 50000 pixels; scale it"),
        (shown(image_url(b"no picture")).to_string().into_bytes(), 400, "no PNG, JPEG"),
        (shown(far).to_string().into_bytes(), 400, "not fetched here"),
        (shown(json!({"type": "text", "text": "<IMG_CONTEXT>"})).to_string().into_bytes(), 400, "placeholder"),
        (
            with(question(&[]), json!({"max_tokens": 100_000})).to_string().into_bytes(),
            400,
            "the model sees 2048 at most",
        ),
        (with(question(&[]), json!({"model": "gpt"})).to_string().into_bytes(), 404, "no model `gpt`"),
        (vec![b' '; (64 << 20) + 1], 413, "send smaller pictures"),
    ] {
        let (found, told) = chat(&body);
        assert!(found == status && told.contains(message), "{found} {told}, expected {message}");
    }
    assert_eq!(served.chat(&question(&["tall.png"])).0, 200, "it still serves");
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[test]
fn a_signal_ends_answers_and_server_in_good_order() {
    let mut served = Served::start(&family("qwen2_vl"));
    let body =
        with(question(&[]), json!({"max_tokens": 1900, "stream": true, "n": 16, "temperature": 2, "stop": null}));
    let port = served.port;
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let body = body.to_string();
    let head = format!("POST /v1/chat/completions HTTP/1.1\r\ncontent-length: {}\r\n{}\r\n", body.len(), headers());
    stream.write_all((head + &body).as_bytes()).unwrap();
    let mut first = [0; 64];
    stream.read_exact(&mut first).unwrap();
    signal(&served.child, "INT");
    let started = Instant::now();
    let mut rest = String::new();
    let _ = stream.read_to_string(&mut rest);
    let status = served.child.wait().unwrap();
    assert!(status.success() && started.elapsed() < Duration::from_secs(10), "{status} after {:?}", started.elapsed());
    assert!(rest.contains("being stopped") || rest.contains("[DONE]"), "{rest}");
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn a_token_is_made_and_a_taken_port_is_told() {
    let served = Served::start(&family("qwen2_vl"));
    let port = served.port.to_string();
    let run = super::model(&served.bench, &["serve", &family("qwen2_vl"), "--port", &port]).code(3);
    assert!(run.err.contains("cannot listen at 127.0.0.1"), "{}", run.err);
    let run = super::model(&served.bench, &["serve", &family("qwen2_vl"), "--token-env", "NONE"]).code(2);
    assert!(run.err.contains("NONE is not set"), "{}", run.err);
    let mut command = served.bench.command("model");
    command.args(["serve", &family("qwen2_vl"), "--port", "0", "--json"]).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let told: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(told["token"].as_str().unwrap().len(), 48, "{told}");
}

/// The same client that people use.
const CLIENT: &str = r#"
import base64, json, sys
from openai import OpenAI, AuthenticationError, BadRequestError
base, token, picture = sys.argv[1:]
client = OpenAI(base_url=base, api_key=token, max_retries=0)
url = "data:image/png;base64," + base64.b64encode(open(picture, "rb").read()).decode()
messages = [{"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]}]
settings = dict(model="tiny", messages=messages, max_tokens=16, temperature=0)
whole = client.chat.completions.create(**settings)
text, counts = "", None
for piece in client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **settings):
    counts = piece.usage or counts
    text += "".join(choice.delta.content or "" for choice in piece.choices)
def error(call, kind):
    try: call()
    except kind as e: return e.body["message"]
print(json.dumps({
    "models": [model.id for model in client.models.list()], "equal": text == whole.choices[0].message.content,
    "usage": counts == whole.usage, "tokens": whole.usage.completion_tokens,
    "key": error(lambda: OpenAI(base_url=base, api_key="no", max_retries=0).models.list(), AuthenticationError),
    "bad": error(lambda: client.chat.completions.create(**{**settings, "temperature": 7}), BadRequestError)}))
"#;

#[test]
fn the_openai_client_is_served() {
    let Some(python) = python_with("openai", "openai") else { return };
    let served = Served::start(&family("llava_next_mistral"));
    let output =
        Command::new(python).args(["-c", CLIENT, &served.base_url(), TOKEN, &picture("wide.png")]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&told["models"], &told["equal"], &told["usage"]),
        (&json!(["tiny"]), &json!(true), &json!(true)),
        "{told}"
    );
    assert!(told["tokens"].as_u64().unwrap() > 0);
    assert!(told["key"].as_str().unwrap().contains("bearer token is wrong"), "{told}");
    assert!(told["bad"].as_str().unwrap().contains("`temperature` is 7"), "{told}");
}

const PIPELINE: &str = r#"
mpcc: 1
name: served
models:
  api: { provider: openai, model: tiny, base_url: "BASE", api_key_env: TOKEN, max_concurrency: 4, timeout: 60 }
stages:
  world: { uses: scenes.generate, with: { part: test, scenes: 8, tasks: 2 } }
  one: { uses: eval.answer, inputs: { model: api, dataset: world.dataset, questions: world.tasks }, with: { decoding: { max_new_tokens: 8, temperature: 0 } } }
"#;

#[test]
fn a_pipeline_asks_a_served_model_once() {
    let served = Served::start(&fixtures().join("tiny").display().to_string());
    let mut bench = Bench::new(&PIPELINE.replace("BASE", &served.base_url()));
    bench.variables.push(("TOKEN".into(), TOKEN.into()));
    assert_eq!(bench.mpcc("run pipeline.yaml --json").code(0).counts(), [2, 0, 0, 0]);
    let path = bench.mpcc("show one.answers").code(0).out;
    let answers = std::fs::read_to_string(path.trim()).unwrap();
    assert!(answers.lines().count() >= 8, "{answers}");
    drop(served);
    // Nobody serves any more; everything is in the cache, and the requests in the memo.
    assert_eq!(bench.mpcc("run pipeline.yaml --json").code(0).counts(), [0, 2, 0, 0]);
    assert_eq!(bench.mpcc("run pipeline.yaml --json --force one").code(0).counts(), [1, 1, 0, 0]);
    let again = bench.mpcc("show one.answers").code(0).out;
    assert_eq!(std::fs::read_to_string(again.trim()).unwrap(), answers);
}
