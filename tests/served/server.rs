//! A server that speaks OpenAI's chat completions and misbehaves on demand.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// What to do with a request.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// A completion with this text: 100 tokens of prompt, 10 of answer.
    Say(String),
    /// A status with further headers and a body.
    Status(u16, &'static str, &'static str),
    /// The head and half of a body, then the end.
    Cut,
    /// Nothing for this long.
    Hang(Duration),
}

type Decide = dyn Fn(&Asked) -> Act + Send + Sync;

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// The JSON body.
    pub(crate) body: Value,
    /// The `authorization` header.
    pub(crate) key: String,
    /// How often this very body came before.
    pub(crate) before: usize,
}

impl Asked {
    /// The text of the user's turn.
    pub(crate) fn text(&self) -> String {
        let parts = self.body["messages"].as_array().unwrap().last().unwrap()["content"].as_array().unwrap();
        parts.last().unwrap()["text"].as_str().unwrap().to_owned()
    }
}

#[derive(Default)]
struct Seen {
    asked: Mutex<Vec<Asked>>,
    times: Mutex<BTreeMap<String, usize>>,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
}

/// A server on the loopback, gone with its value.
pub(crate) struct Server {
    port: u16,
    seen: Arc<Seen>,
}

impl Server {
    /// Answers each request after `pause` as `decide` says.
    pub(crate) fn start(pause: Duration, decide: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (seen, decide): (Arc<Seen>, Arc<Decide>) = (Arc::default(), Arc::new(decide));
        let shared = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, decide) = (shared.clone(), decide.clone());
                std::thread::spawn(move || serve(stream, pause, &seen, decide.as_ref()));
            }
        });
        Self { port, seen }
    }

    /// What a model's `base_url` is.
    pub(crate) fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    /// All requests so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.seen.asked.lock().unwrap().clone()
    }

    /// The most requests that were under way at once.
    pub(crate) fn most_at_once(&self) -> usize {
        self.seen.most_at_once.load(Ordering::SeqCst)
    }
}

fn serve(stream: TcpStream, pause: Duration, seen: &Seen, decide: &Decide) {
    let Some(asked) = read(&stream, seen) else { return };
    let now = seen.at_once.fetch_add(1, Ordering::SeqCst) + 1;
    seen.most_at_once.fetch_max(now, Ordering::SeqCst);
    std::thread::sleep(pause);
    let act = decide(&asked);
    seen.asked.lock().unwrap().push(asked);
    // Before the answer: whoever has it may ask the next at once.
    seen.at_once.fetch_sub(1, Ordering::SeqCst);
    // A client that has gone away is its own business.
    let _ = write(stream, act);
}

fn read(stream: &TcpStream, seen: &Seen) -> Option<Asked> {
    let mut reader = BufReader::new(stream);
    let (mut length, mut key) = (0, String::new());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|&read| read > 0)?;
        let Some((name, value)) = line.split_once(':') else {
            if line.trim().is_empty() {
                break;
            }
            assert_eq!(line.trim_end(), "POST /v1/chat/completions HTTP/1.1");
            continue;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap(),
            "authorization" => key = value.trim().to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let mut times = seen.times.lock().unwrap();
    let before = times.entry(String::from_utf8(body.clone()).unwrap()).or_default();
    *before += 1;
    Some(Asked { body: serde_json::from_slice(&body).unwrap(), key, before: *before - 1 })
}

fn write(mut stream: TcpStream, act: Act) -> std::io::Result<()> {
    let mut answer = |status: u16, headers: &str, body: &str, sent: usize| {
        let head =
            format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
        stream.write_all(head.as_bytes())?;
        stream.write_all(&body.as_bytes()[..sent])
    };
    match act {
        Act::Say(text) => {
            let body = completion(&text);
            answer(200, "content-type: application/json\r\n", &body, body.len())
        }
        Act::Status(status, headers, body) => answer(status, headers, body, body.len()),
        Act::Cut => {
            let body = completion("half");
            answer(200, "", &body, body.len() / 2)
        }
        Act::Hang(pause) => {
            std::thread::sleep(pause);
            Ok(())
        }
    }
}

fn completion(text: &str) -> String {
    let choice = json!({ "index": 0, "finish_reason": "stop", "message": { "role": "assistant", "content": text } });
    let usage = json!({ "prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110 });
    json!({ "id": "c", "object": "chat.completion", "model": "gpt-2026", "choices": [choice], "usage": usage })
        .to_string()
}
