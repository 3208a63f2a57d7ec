//! A hub on the loopback that speaks the three calls of a download, sends weights from another address as hubs do, and misbehaves on
//! demand.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ring::digest::{Algorithm, Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use serde_json::json;

/// The commit of the one revision.
pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What to do with a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Act {
    /// As the protocol has it.
    Serve,
    /// The head and so many bytes, then the end.
    Cut(usize),
    /// The head and so many bytes, then nothing for a minute.
    Stall(usize),
    /// Bytes that are not those of the file.
    Damage,
    /// So many bytes more than the file has, or fewer, and headers to match.
    Resized(isize),
    /// All bytes, whatever range was asked for.
    Whole,
    /// A status with further headers.
    Status(u16, &'static str),
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// `GET` or `HEAD`, a blank, the path without its query.
    pub(super) what: String,
    /// The first byte that was asked for.
    pub(super) from: Option<usize>,
    /// The `authorization` header.
    pub(super) key: Option<String>,
    /// Whether it came to the address that holds the weights.
    pub(super) far: bool,
    /// How often it came before.
    pub(super) before: usize,
}

type Decide = dyn Fn(&Seen) -> Act + Send + Sync;

struct State {
    files: BTreeMap<String, Vec<u8>>,
    decide: Box<Decide>,
    seen: Mutex<Vec<Seen>>,
    far: u16,
}

/// A hub with one model, `org/tiny`.
pub(super) struct HubServer {
    near: u16,
    state: Arc<State>,
}

impl HubServer {
    /// Serves the files of a folder.
    pub(super) fn start(folder: &Path, decide: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Self {
        let entries =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
        let read = |path: std::path::PathBuf| {
            (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap())
        };
        Self::of(entries.map(read).collect(), decide)
    }

    /// Serves these files.
    pub(super) fn of(files: BTreeMap<String, Vec<u8>>, decide: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Self {
        let [near, far] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [near_port, far_port] = [&near, &far].map(|listener| listener.local_addr().unwrap().port());
        let state = Arc::new(State { files, decide: Box::new(decide), seen: Mutex::default(), far: far_port });
        for (listener, is_far) in [(near, false), (far, true)] {
            let state = state.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = state.clone();
                    std::thread::spawn(move || state.serve(stream, is_far));
                }
            });
        }
        Self { near: near_port, state }
    }

    /// What HF_ENDPOINT is.
    pub(super) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.near)
    }

    /// All requests so far.
    pub(super) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    /// A file that it serves.
    pub(super) fn file(&self, name: &str) -> &[u8] {
        &self.state.files[name]
    }
}

/// A digest as it stands in an etag: SHA-256 of weights, Git's of the rest.
pub(super) fn etag(name: &str, bytes: &[u8]) -> String {
    let of = |algorithm: &'static Algorithm, head: &str| {
        let mut context = Context::new(algorithm);
        context.update(head.as_bytes());
        context.update(bytes);
        context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    };
    match is_large(name) {
        true => of(&SHA256, ""),
        false => of(&SHA1_FOR_LEGACY_USE_ONLY, &format!("blob {}\0", bytes.len())),
    }
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors")
}

impl State {
    fn serve(&self, stream: TcpStream, far: bool) {
        let Some(seen) = self.read(&stream, far) else { return };
        self.seen.lock().unwrap().push(seen.clone());
        let act = (self.decide)(&seen);
        // A client that has gone away is its own business.
        let _ = self.answer(stream, &seen, act);
    }

    fn read(&self, stream: &TcpStream, far: bool) -> Option<Seen> {
        let mut lines = BufReader::new(stream).lines();
        let first = lines.next()?.ok()?;
        let what = first.strip_suffix(" HTTP/1.1")?.split('?').next()?.to_owned();
        let (mut from, mut key) = (None, None);
        for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':')?;
            match name.to_ascii_lowercase().as_str() {
                "range" => from = value.trim().strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok(),
                "authorization" => key = Some(value.trim().to_owned()),
                _ => {}
            }
        }
        let before = self.seen.lock().unwrap().iter().filter(|seen| (&seen.what, seen.far) == (&what, far)).count();
        Some(Seen { what, from, key, far, before })
    }

    fn answer(&self, mut stream: TcpStream, seen: &Seen, act: Act) -> std::io::Result<()> {
        if let Act::Status(status, headers) = act {
            return write!(stream, "HTTP/1.1 {status} X\r\n{headers}connection: close\r\ncontent-length: 0\r\n\r\n");
        }
        if seen.what.starts_with("GET /api/models/org/tiny/revision/") {
            let names: Vec<_> = self.files.keys().map(|name| json!({ "rfilename": name })).collect();
            let body = json!({ "id": "org/tiny", "sha": COMMIT, "siblings": names }).to_string();
            return write!(
                stream,
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
        }
        let prefix = if seen.far { "/blob/".to_owned() } else { format!("/org/tiny/resolve/{COMMIT}/") };
        let (method, path) = seen.what.split_once(' ').unwrap();
        let Some((name, bytes)) = path.strip_prefix(&prefix).and_then(|name| self.files.get_key_value(name)) else {
            return write!(stream, "HTTP/1.1 404 X\r\nx-error-code: EntryNotFound\r\ncontent-length: 0\r\n\r\n");
        };
        let (etag, mut bytes) = (etag(name, bytes), bytes.clone());
        if let Act::Resized(by) = act {
            bytes.resize(bytes.len().saturating_add_signed(by), 0);
        }
        let size = bytes.len();
        if is_large(name) && !seen.far {
            let place = format!("http://127.0.0.1:{}/blob/{name}", self.far);
            return write!(
                stream,
                "HTTP/1.1 302 X\r\nlocation: {place}\r\nx-linked-etag: \"{etag}\"\r\nx-linked-size: {size}\r\n\
                 x-repo-commit: {COMMIT}\r\netag: \"of-the-pointer\"\r\nconnection: close\r\ncontent-length: 9\r\n\r\nElsewhere"
            );
        }
        let from = if matches!(act, Act::Whole) { 0 } else { seen.from.unwrap_or(0) };
        if from > 0 && from >= size {
            return write!(stream, "HTTP/1.1 416 X\r\ncontent-range: bytes */{size}\r\ncontent-length: 0\r\n\r\n");
        }
        let (status, range) = match from {
            0 => (200, String::new()),
            _ => (206, format!("content-range: bytes {from}-{}/{size}\r\n", size - 1)),
        };
        let commit = if seen.far { String::new() } else { format!("x-repo-commit: {COMMIT}\r\n") };
        write!(
            stream,
            "HTTP/1.1 {status} X\r\netag: \"{etag}\"\r\n{commit}{range}connection: close\r\ncontent-length: {}\r\n\r\n",
            size - from
        )?;
        if method == "HEAD" {
            return Ok(());
        }
        let body = &bytes[from..];
        match act {
            Act::Cut(count) => stream.write_all(&body[..count.min(body.len())]),
            Act::Stall(count) => {
                stream.write_all(&body[..count.min(body.len())])?;
                std::thread::sleep(Duration::from_secs(60));
                Ok(())
            }
            Act::Damage => stream.write_all(&body.iter().map(|byte| byte ^ 1).collect::<Vec<_>>()),
            _ => stream.write_all(body),
        }
    }
}
