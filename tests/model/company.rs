//! `mpcc model serve` when several ask at once: who comes later joins, who is short ends first, who leaves frees the room.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::family;
use super::serve::{Served, headers, question, unchunked, with};

/// Requests of 16 answers that fill the 256 answers in work.
const FULL: usize = 16;

/// A streamed answer, and what of it is here.
struct Stream {
    socket: TcpStream,
    read: Vec<u8>,
}

impl Stream {
    fn open(served: &Served, body: &Value) -> Self {
        let mut socket = TcpStream::connect(("127.0.0.1", served.port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let body = with(body.clone(), json!({"stream": true})).to_string();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n{}\r\n",
            body.len(),
            headers()
        );
        socket.write_all((head + &body).as_bytes()).unwrap();
        Self { socket, read: vec![] }
    }

    /// The status, as soon as it is an error or a first token is here.
    fn status(&mut self) -> u16 {
        let token = |part: &[u8]| part.starts_with(b"\"content\":\"") && part[11] != b'"';
        while !self.read.windows(12).any(|part| part.starts_with(b"\r\n\r\n{\"error") || token(part)) {
            let mut piece = [0; 512];
            let count = self.socket.read(&mut piece).unwrap();
            assert!(count > 0, "{}", String::from_utf8_lossy(&self.read));
            self.read.extend(&piece[..count]);
        }
        String::from_utf8_lossy(&self.read).split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// Text and tokens of each choice, to the end.
    fn rest(mut self) -> Vec<(String, Option<String>)> {
        self.socket.read_to_end(&mut self.read).unwrap();
        let answer = String::from_utf8(self.read).unwrap();
        let body = unchunked(answer.split_once("\r\n\r\n").unwrap().1);
        let mut choices: Vec<(String, Option<String>)> = vec![];
        for line in body.split("\n\n").filter_map(|line| line.strip_prefix("data: ")) {
            let event: Value = serde_json::from_str(line).unwrap_or_default();
            for choice in event["choices"].as_array().into_iter().flatten() {
                let index = choice["index"].as_u64().unwrap() as usize;
                choices.resize(choices.len().max(index + 1), Default::default());
                choices[index].0 += choice["delta"]["content"].as_str().unwrap_or_default();
                choices[index].1 = choice["finish_reason"].as_str().map(str::to_owned).or(choices[index].1.take());
            }
        }
        assert!(body.contains("[DONE]"), "{body}");
        choices
    }
}

/// Answers that take long: random weights seldom end by themselves at this temperature.
fn long(seed: u64, choices: usize) -> Value {
    with(question(&["wide.png"]), json!({"max_tokens": 1500, "n": choices, "temperature": 2, "seed": seed}))
}

fn short(served: &Served, seed: u64) -> String {
    let (status, answer) =
        served.chat(&with(question(&["tall.png"]), json!({"max_tokens": 6, "temperature": 1, "seed": seed})));
    assert_eq!(status, 200, "{answer}");
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

#[test]
fn who_comes_later_joins_and_may_end_first() {
    let served = Served::start(&family("qwen2_vl"));
    let mut stream = Stream::open(&served, &long(1, 16));
    assert_eq!(stream.status(), 200);
    let reader = std::thread::spawn(move || (stream.rest(), Instant::now()));
    let meanwhile: Vec<String> = (0..4).map(|seed| short(&served, seed)).collect();
    let ended = Instant::now();
    let (answers, long_ended) = reader.join().unwrap();
    assert!(ended < long_ended, "the short ones waited for the long one");
    assert_eq!(answers.len(), 16);
    // Alone, all say the same.
    assert_eq!(Stream::open(&served, &long(1, 16)).rest(), answers);
    assert_eq!((0..4).map(|seed| short(&served, seed)).collect::<Vec<_>>(), meanwhile);
}

#[test]
fn whole_answers_keep_company_too() {
    let served = Served::start(&family("qwen2_vl"));
    let body = |seed| with(long(seed, 1), json!({"max_tokens": 1900, "temperature": 0}));
    let ended = std::thread::scope(|scope| {
        let ask = |seed| {
            let (status, answer) = served.chat(&body(seed));
            assert_eq!(status, 200, "{answer}");
            assert_eq!(answer["usage"]["completion_tokens"], json!(1900), "too short to tell");
            Instant::now()
        };
        let long: Vec<_> = (0..4).map(|seed| scope.spawn(move || ask(seed))).collect();
        // By then all four are here, and two of them would be enough to bar the way.
        std::thread::sleep(Duration::from_millis(100));
        short(&served, 1);
        let short_ended = Instant::now();
        (short_ended, long.into_iter().map(|thread| thread.join().unwrap()).min().unwrap())
    });
    assert!(ended.0 < ended.1, "the short one waited for a long one");
}

#[test]
fn who_leaves_frees_the_room_and_who_is_too_many_is_told() {
    let served = Served::start_with(&family("qwen2_vl"), &["--queue", "1"]);
    // Greedily this model never comes to an end.
    let endless = with(question(&["wide.png"]), json!({"max_tokens": 1900, "n": 16}));
    let open = || loop {
        let mut stream = Stream::open(&served, &endless);
        match stream.status() {
            200 => break stream,
            // They come faster than they are taken up.
            status => assert_eq!(status, 429),
        }
    };
    // All at once, so that none has ended when the last is taken up.
    let in_work: Vec<Stream> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..FULL).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let waits = Stream::open(&served, &with(question(&[]), json!({"max_tokens": 2})));
    std::thread::sleep(Duration::from_millis(300));
    let (status, told) = served.chat(&question(&[]));
    assert_eq!((status, &told["error"]["code"]), (429, &json!("busy")), "{told}");
    let started = Instant::now();
    drop(in_work);
    assert_eq!(waits.rest().len(), 1);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(served.chat(&question(&["small.png"])).0, 200);
}
