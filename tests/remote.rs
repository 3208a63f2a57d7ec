//! The remote cache from outside: a folder, and a real S3 server (moto) that is killed mid-way.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cli::bench::{Bench, Ended};

/// One file, one folder of many files, one file of more than two parts; each notes that it ran.
const WIDE: &str = r#"
mpcc: 1
name: wide
stages:
  first: { run: "echo first >> ran; cat ${inputs.given} > ${outputs.y}", inputs: { given: { file: given.txt } }, outputs: { y: file } }
  many: { run: "echo many >> ran; for i in $(seq 120); do echo $i > ${outputs.y}/$i; done; cp ${inputs.x} ${outputs.y}/x", inputs: { x: first }, outputs: { y: dir } }
  large: { run: "echo large >> ran; seq 3000000 > ${outputs.y}; cat ${inputs.x}/7 >> ${outputs.y}", inputs: { x: many }, outputs: { y: file } }
"#;

/// 3 recipes, 3 lists of outputs, a file (it is in the folder too), 120 more and their manifest, the large one.
const OBJECTS: u64 = 3 + 3 + 1 + 120 + 1 + 1;

fn wide() -> Bench {
    let bench = Bench::new(WIDE);
    bench.write("given.txt", "given\n");
    bench
}

/// The one JSON line of a push or pull, and some of its counts.
fn counts<const N: usize>(ended: &Ended, names: [&str; N]) -> [u64; N] {
    let line: Value = ended.json().pop().unwrap();
    names.map(|name| line[name].as_u64().unwrap_or_else(|| panic!("{name} in {line}")))
}

fn digests(bench: &Bench, store: &str) -> String {
    bench.mpcc(&format!("runs show --digests --store {store}")).code(0).out
}

/// Runs with the remote behind an empty store: nothing is executed and everything is the same.
fn reads_through(bench: &Bench, store: &str, url: &str) {
    bench.ran();
    let run = bench.mpcc(&format!("run pipeline.yaml --store {store} --remote {url} --json")).code(0);
    assert_eq!(run.counts(), [0, 3, 0, 0], "{}", run.err);
    assert_eq!(run.err, "");
    assert!(bench.ran().is_empty());
    assert_eq!(digests(bench, store), digests(bench, ".mpcc"));
    bench.mpcc(&format!("cache verify --store {store}")).code(0);
}

#[test]
fn a_folder_serves_as_remote() {
    let bench = wide();
    std::fs::create_dir(bench.path("shared")).unwrap();
    let url = format!("file://{}", bench.path("shared").display());
    bench.mpcc("run pipeline.yaml").code(0);
    let sent = bench.mpcc(&format!("cache push --remote {url} --json")).code(0);
    assert_eq!(sent.json()[0]["event"], "cache.pushed");
    assert_eq!(counts(&sent, ["entries", "objects", "skipped"]), [3, OBJECTS, 0]);
    let again = bench.mpcc("cache push --all --remote shared --json").code(0);
    assert_eq!(counts(&again, ["entries", "objects", "bytes", "skipped"]), [0, 0, 0, OBJECTS]);
    reads_through(&bench, "through", &url);
    let one = bench.mpcc(&format!("cache pull first --remote {url} --store through --json")).code(0);
    assert_eq!(counts(&one, ["entries", "entries_skipped"]), [0, 1]);
    let pulled = bench.mpcc(&format!("cache pull --remote {url} --store pulled --json")).code(0);
    assert_eq!(pulled.json()[0]["event"], "cache.pulled");
    assert_eq!(counts(&pulled, ["entries", "objects"]), [3, OBJECTS]);
    bench.ran();
    assert_eq!(bench.mpcc("run pipeline.yaml --store pulled --json").code(0).counts(), [0, 3, 0, 0]);
    let said = bench.mpcc("run pipeline.yaml --store again --remote shared").code(0).out;
    assert!(said.contains("fetched 3 entries"), "{said}");
    let part = bench.mpcc("cache push many --remote shared --json").code(0);
    assert_eq!(counts(&part, ["entries", "entries_skipped"]), [0, 1]);
}

#[test]
fn what_is_typed_or_set_wrong_is_said_and_nothing_runs() {
    let mut bench = wide();
    bench.mpcc("run pipeline.yaml first").code(0);
    let cases = [
        ("cache push", 2, "MPCC_REMOTE"),
        ("cache push --remote ftp://host/x", 2, "s3://BUCKET/PREFIX"),
        ("cache push --remote s3://lab/x", 2, "AWS_SECRET_ACCESS_KEY"),
        ("cache push --remote s3://key:secret@lab/x", 2, "variables"),
        ("cache pull --remote gone", 3, "create it"),
        ("cache push firts --remote gone", 2, "did you mean `first`?"),
        ("cache push first --all --remote gone", 2, "cannot be used with"),
        ("run pipeline.yaml --remote s3://lab/x", 2, "AWS_ACCESS_KEY_ID"),
        ("run pipeline.yaml --remote gone", 3, "there is no folder"),
    ];
    bench.ran();
    for (words, code, expected) in cases {
        let ended = bench.mpcc(words).code(code);
        assert!(ended.err.contains(expected), "{words}: {}", ended.err);
    }
    bench.variables.push(("MPCC_REMOTE".to_owned(), "gone".to_owned()));
    assert!(bench.mpcc("run pipeline.yaml").code(3).err.contains("gone"));
    assert!(bench.mpcc("cache push").code(3).err.contains("gone"));
    assert!(bench.ran().is_empty());
}

/// An S3 server that keeps everything in memory.
struct Moto {
    program: PathBuf,
    port: u16,
    server: Child,
}

/// `None`, and a word about it, where there is no moto_server.
fn moto(variables: &[(&str, &str)]) -> Option<Moto> {
    #[allow(clippy::disallowed_methods, reason = "tests look for the server where the caller has it")]
    let (path, required) = (std::env::var_os("PATH").unwrap_or_default(), std::env::var_os("MPCC_TEST_ALL").is_some());
    let programs = std::env::split_paths(&path).map(|folder| folder.join("moto_server"));
    let Some(program) = programs.into_iter().find(|program| program.is_file()) else {
        assert!(!required, "moto_server is needed: pip install 'moto[server]'");
        println!("skipped: needs moto_server");
        return None;
    };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = start(&program, port, variables);
    Some(Moto { program, port, server })
}

fn start(program: &PathBuf, port: u16, variables: &[(&str, &str)]) -> Child {
    let mut command = Command::new(program);
    command.args(["-H", "127.0.0.1", "-p", &port.to_string()]).envs(variables.iter().copied());
    let server = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(began.elapsed() < Duration::from_secs(60), "moto_server does not come up");
        std::thread::sleep(Duration::from_millis(20));
    }
    server
}

impl Drop for Moto {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Moto {
    /// SIGKILL.
    fn kill(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }

    fn restart(&mut self) {
        self.server = start(&self.program, self.port, &[]);
    }

    /// One request; the whole answer.
    fn ask(&self, method: &str, target: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let head = format!("{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n");
        // The signature is not checked, but without one nobody may write over what is there.
        let login = "Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
        let about = format!("Authorization: AWS4-HMAC-SHA256 {login}\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{about}{body}").as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn make_bucket(&self) {
        let answer = self.ask("PUT", "/lab", "");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// The keys of objects in the bucket.
    fn objects(&self) -> Vec<String> {
        let answer = self.ask("GET", "/lab?list-type=2&prefix=mpcc/objects/", "");
        let keys = answer.split("<Key>").skip(1);
        keys.map(|rest| rest.split("</Key>").next().unwrap().to_owned()).collect()
    }

    fn wait_for_objects(&self, count: usize) {
        let began = Instant::now();
        while self.objects().len() < count {
            assert!(began.elapsed() < Duration::from_secs(60), "never {count} objects");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn variables(&self, port: u16) -> Vec<(String, String)> {
        let endpoint = format!("http://127.0.0.1:{port}");
        [
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "secret-word"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL", &endpoint),
            ("MPCC_REMOTE", "s3://lab/mpcc"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// A bench whose remote this is, with everything executed.
    fn bench(&self) -> Bench {
        let mut bench = wide();
        bench.mpcc("run pipeline.yaml").code(0);
        bench.variables = self.variables(self.port);
        bench
    }
}

#[test]
fn s3_pushes_pulls_and_is_read_through() {
    let Some(moto) = moto(&[]) else { return };
    let bench = moto.bench();
    for words in ["cache push", "cache pull", "run pipeline.yaml --store other"] {
        let ended = bench.mpcc(words).code(3);
        assert!(ended.err.contains("there is no bucket `lab`") && ended.err.contains("create it"), "{}", ended.err);
    }
    moto.make_bucket();
    let empty = bench.mpcc("cache pull --json --store other").code(0);
    assert_eq!(counts(&empty, ["entries", "objects"]), [0, 0], "an empty bucket is a miss");
    let sent = bench.mpcc("cache push --json").code(0);
    assert_eq!(counts(&sent, ["entries", "objects", "skipped"]), [3, OBJECTS, 0]);
    assert_eq!(sent.err, "", "moto creates only what is absent");
    assert_eq!(moto.objects().len() as u64, OBJECTS);
    let again = bench.mpcc("cache push --json").code(0);
    assert_eq!(counts(&again, ["entries", "objects", "skipped"]), [0, 0, OBJECTS]);
    reads_through(&bench, "through", "s3://lab/mpcc");
    let pulled = bench.mpcc("cache pull --json --store pulled").code(0);
    assert_eq!(counts(&pulled, ["entries", "objects", "bytes"]), counts(&sent, ["entries", "objects", "bytes"]));
    bench.mpcc("cache verify --store pulled").code(0);

    let victim = moto.objects().into_iter().next().unwrap();
    let answer = moto.ask("PUT", &format!("/lab/{victim}"), "other bytes");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let damaged = bench.mpcc("cache pull --json --store third").code(3);
    assert!(damaged.err.contains("is damaged") && damaged.err.contains(&victim["mpcc/".len()..]), "{}", damaged.err);
    let [entries, ..] = counts(&damaged, ["entries", "objects"]);
    assert!(entries < 3);
    bench.mpcc("cache verify --store third").code(0);
    let repaired = bench.mpcc("cache push --json").code(0);
    assert_eq!(counts(&repaired, ["objects", "skipped"]), [1, OBJECTS - 1], "it had another size");
    assert_eq!(counts(&bench.mpcc("cache pull --json --store third").code(0), ["entries"]), [3 - entries]);
}

#[test]
fn a_server_killed_under_a_push_or_a_run_is_told_and_the_next_push_makes_it_good() {
    let Some(mut moto) = moto(&[]) else { return };
    let bench = moto.bench();
    moto.make_bucket();
    let push = bench.start("cache push --patience 1 --transfers 2");
    moto.wait_for_objects(10);
    moto.kill();
    let ended = Ended::from(push.wait_with_output().unwrap()).code(3);
    for expected in ["s3://lab/mpcc", "AWS_ENDPOINT_URL", "run the same command again"] {
        assert!(ended.err.contains(expected), "{expected} in {}", ended.err);
    }
    assert!(!format!("{}{}", ended.out, ended.err).contains("secret-word"));
    let away = bench.mpcc("cache pull --patience 1").code(3);
    assert!(away.err.contains("s3://lab/mpcc"), "{}", away.err);

    moto.restart();
    assert!(bench.mpcc("cache push").code(3).err.contains("there is no bucket `lab`"), "it kept all in memory");
    moto.make_bucket();
    let sent = bench.mpcc("cache push --json").code(0);
    assert_eq!(counts(&sent, ["entries", "objects"]), [3, OBJECTS]);
    reads_through(&bench, "through", "s3://lab/mpcc");

    // Under a run: what has come is used, the rest is executed.
    bench.ran();
    let run = bench.start("run pipeline.yaml --store under --json");
    let began = Instant::now();
    while !bench.path("under/objects").is_dir() && began.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(2));
    }
    moto.kill();
    let ended = Ended::from(run.wait_with_output().unwrap()).code(0);
    let [executed, cached, failed, _] = ended.counts();
    assert_eq!((executed + cached, failed), (3, 0));
    assert!(ended.err.matches("goes on without the remote cache").count() <= 1, "{}", ended.err);
    assert_eq!(executed as usize, bench.ran().len());
    let alone = bench.mpcc("run pipeline.yaml --store alone --json").code(0);
    assert_eq!(alone.counts(), [3, 0, 0, 0]);
    assert_eq!(alone.err.matches("goes on without the remote cache").count(), 1, "{}", alone.err);
    assert_eq!(digests(&bench, "under"), digests(&bench, "alone"));
}

#[test]
fn a_killed_push_goes_on_where_it_was() {
    let Some(moto) = moto(&[]) else { return };
    let bench = moto.bench();
    moto.make_bucket();
    let mut push = bench.start("cache push --transfers 2");
    moto.wait_for_objects(25);
    push.kill().unwrap();
    push.wait().unwrap();
    // What the server had taken in full it still finishes.
    std::thread::sleep(Duration::from_millis(300));
    let there = moto.objects().len() as u64;
    assert!((25..OBJECTS).contains(&there), "{there}");
    let early = bench.mpcc("cache pull --json --store early").code(0);
    assert_eq!(early.json()[0]["problems"], Value::Array(vec![]));
    let rest = bench.mpcc("cache push --json").code(0);
    assert_eq!(counts(&rest, ["objects", "skipped"]), [OBJECTS - there, there]);
    reads_through(&bench, "through", "s3://lab/mpcc");
}

/// What a proxy does to those who speak through it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Harm {
    /// Cuts every fourth connection after a few bytes of its answers.
    Cut,
    /// Hides the condition of conditional requests, so that the server ignores it.
    Blind,
}

/// Passes bytes on to a server.
struct Proxy {
    port: u16,
    cut: Arc<AtomicU64>,
    closed: Arc<AtomicBool>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        // Wakes the listener.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Proxy {
    fn before(server: u16, harm: Harm) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let proxy = Self { port, cut: Arc::default(), closed: Arc::default() };
        let (cut, closed) = (proxy.cut.clone(), proxy.closed.clone());
        std::thread::spawn(move || {
            for (number, client) in listener.incoming().enumerate() {
                if closed.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(("127.0.0.1", server))) else { continue };
                let cutting = harm == Harm::Cut && number % 4 == 0;
                let limit = if cutting { 60 + 500 * (number as u64 % 5) } else { u64::MAX };
                pass(client.try_clone().unwrap(), server.try_clone().unwrap(), u64::MAX, None, harm == Harm::Blind);
                pass(server, client, limit, Some(cut.clone()), false);
            }
        });
        proxy
    }
}

/// Passes up to `limit` bytes on, then cuts both ends.
fn pass(mut from: TcpStream, mut to: TcpStream, limit: u64, cut: Option<Arc<AtomicU64>>, blind: bool) {
    std::thread::spawn(move || {
        let (mut buffer, mut left) = (vec![0; 1 << 16], limit);
        while left > 0 {
            let Ok(read) = from.read(&mut buffer) else { break };
            // A request begins with a read of its own, since the client waits for the answer to the one before.
            let condition = b"if-none-match";
            if let Some(at) = buffer[..read].windows(condition.len()).position(|word| word == condition && blind) {
                buffer[at..at + condition.len()].copy_from_slice(b"x-unknown-one");
            }
            let passed = (read as u64).min(left) as usize;
            if read == 0 || to.write_all(&buffer[..passed]).is_err() {
                break;
            }
            left -= passed as u64;
        }
        if left == 0 {
            cut.iter().for_each(|cut| _ = cut.fetch_add(1, Ordering::SeqCst));
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    });
}

#[test]
fn connections_that_are_cut_are_tried_again() {
    let Some(moto) = moto(&[]) else { return };
    let mut bench = moto.bench();
    moto.make_bucket();
    let proxy = Proxy::before(moto.port, Harm::Cut);
    bench.variables = moto.variables(proxy.port);
    let sent = bench.mpcc("cache push --json").code(0);
    // What was sent though its answer was cut counts as there.
    let [entries, entries_skipped, objects, skipped] =
        counts(&sent, ["entries", "entries_skipped", "objects", "skipped"]);
    assert_eq!((entries + entries_skipped, objects + skipped), (3, OBJECTS));
    reads_through(&bench, "through", "s3://lab/mpcc");
    assert!(proxy.cut.load(Ordering::SeqCst) >= 3, "the proxy cut nothing");
}

/// Two pushes at once, from stores of their own; objects sent and objects found there by each.
fn push_twice(bench: &Bench, url: &str) -> [[u64; 2]; 2] {
    let pushes = [
        bench.start(&format!("cache push --json --remote {url}")),
        bench.start(&format!("cache push --json --remote {url}")),
    ];
    pushes.map(|push| {
        let ended = Ended::from(push.wait_with_output().unwrap()).code(0);
        counts(&ended, ["objects", "skipped"])
    })
}

#[test]
fn of_two_pushes_at_once_one_sends_each_object_and_a_server_that_ignores_conditions_is_harmless() {
    let Some(moto) = moto(&[]) else { return };
    let mut bench = moto.bench();
    moto.make_bucket();
    let [[sent, there], [also_sent, also_there]] = push_twice(&bench, "s3://lab/two");
    assert_eq!([sent + there, also_sent + also_there], [OBJECTS, OBJECTS]);
    // The large object goes in parts, which no condition guards.
    assert!((OBJECTS..=OBJECTS + 1).contains(&(sent + also_sent)), "{sent} and {also_sent}");
    reads_through(&bench, "through", "s3://lab/two");

    let proxy = Proxy::before(moto.port, Harm::Blind);
    bench.variables = moto.variables(proxy.port);
    let blind = bench.mpcc("cache push first").code(0);
    assert!(blind.err.contains("ignores If-None-Match"), "{}", blind.err);
    for [sent, there] in push_twice(&bench, "s3://lab/blind") {
        assert_eq!(sent + there, OBJECTS);
    }
    reads_through(&bench, "blind", "s3://lab/blind");
}

#[test]
fn refused_credentials_are_told_apart() {
    let Some(moto) = moto(&[("INITIAL_NO_AUTH_ACTION_COUNT", "1")]) else { return };
    let bench = moto.bench();
    moto.make_bucket();
    for words in ["cache push", "cache pull", "run pipeline.yaml --store other"] {
        let ended = bench.mpcc(words).code(3);
        assert!(ended.err.contains("refuses these credentials"), "{}", ended.err);
        assert!(ended.err.contains("AWS_SECRET_ACCESS_KEY") && !ended.err.contains("secret-word"), "{}", ended.err);
    }
}
