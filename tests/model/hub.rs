//! `mpcc model download` from a hub that cuts, stalls, lies and refuses; and what transformers makes of the cache folder.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::hub_server::{Act, COMMIT, HubServer, Seen, etag};
use super::{family, model, told};
use crate::cli::bench::{Bench, Ended};
use crate::cli::python::python_with;

const WEIGHTS: &str = "model.safetensors";

fn tiny() -> PathBuf {
    family("qwen2_vl").into()
}

/// A folder whose cache is `hub`, and a key.
fn bench(server: &HubServer) -> Bench {
    let mut bench = Bench::new("");
    let hub = bench.path("hub").display().to_string();
    for (name, value) in [("HF_ENDPOINT", server.endpoint()), ("HF_HUB_CACHE", hub), ("HF_TOKEN", "hf_key".into())] {
        bench.variables.push((name.into(), value));
    }
    bench
}

fn download(bench: &Bench) -> Ended {
    model(bench, &["download", "org/tiny@v1", "--json"])
}

/// The blob of a file, whole or not.
fn blob(bench: &Bench, server: &HubServer, file: &str) -> PathBuf {
    bench.path("hub/models--org--tiny/blobs").join(etag(file, server.file(file)))
}

fn incomplete(bench: &Bench, server: &HubServer, file: &str) -> PathBuf {
    blob(bench, server, file).with_extension("incomplete")
}

/// Whether it is weights that are asked for.
fn weights(seen: &Seen) -> bool {
    seen.far
}

/// From where the weights were asked for, each time.
fn starts(server: &HubServer) -> Vec<usize> {
    server.seen().iter().filter(|seen| weights(seen)).map(|seen| seen.from.unwrap_or(0)).collect()
}

fn assert_complete(bench: &Bench, server: &HubServer) {
    assert_eq!(bench.read("hub/models--org--tiny/refs/v1"), COMMIT);
    let snapshot = bench.path("hub/models--org--tiny/snapshots").join(COMMIT);
    for file in ["config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja", WEIGHTS] {
        let link = std::fs::read_link(snapshot.join(file)).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(etag(file, server.file(file))), "{file}");
        assert!(std::fs::read(snapshot.join(file)).unwrap() == server.file(file), "{file}");
    }
    assert!(!incomplete(bench, server, WEIGHTS).exists());
}

#[test]
fn a_model_comes_once_and_is_found_by_its_name() {
    let server = HubServer::start(&tiny(), |_| Act::Serve);
    let bench = bench(&server);
    model(&bench, &["check", "org/tiny@v1"]).code(2);
    let run = download(&bench).code(0);
    let found = told(&run);
    assert_complete(&bench, &server);
    assert_eq!((&found["commit"], &found["bytes"]), (&json!(COMMIT), &found["downloaded_bytes"]));
    assert_eq!(
        found["dir"].as_str().map(Path::new),
        Some(&*bench.path("hub/models--org--tiny/snapshots").join(COMMIT))
    );
    // Only what a model needs, `config.json` last.
    let files: Vec<&str> = found["files"].as_array().unwrap().iter().map(|file| file.as_str().unwrap()).collect();
    assert!(
        files.contains(&WEIGHTS) && files.last() == Some(&"config.json") && !files.contains(&"cases.json"),
        "{files:?}"
    );
    // The key goes to the hub and not to where it redirects to.
    for seen in server.seen() {
        assert_eq!(seen.key.as_deref(), (!seen.far).then_some("Bearer hf_key"), "{seen:?}");
    }
    for id in ["org/tiny@v1", &format!("org/tiny@{COMMIT}")] {
        assert_eq!(told(&model(&bench, &["check", id, "--json"]).code(0))["family"], "qwen2_vl");
    }
    let again = told(&model(&bench, &["download", &format!("org/tiny@{COMMIT}"), "--json"]).code(0));
    assert_eq!((&again["downloaded_bytes"], &again["bytes"]), (&json!(0), &found["bytes"]));
    assert_eq!(starts(&server), [0]);
    let refs: Vec<_> = std::fs::read_dir(bench.path("hub/models--org--tiny/refs")).unwrap().collect();
    assert_eq!(refs.len(), 1, "a commit is no ref: {refs:?}");
    let lines = model(&bench, &["download", "org/tiny@v1"]).code(0);
    assert!(lines.out.starts_with(&format!("org/tiny@{COMMIT}\n")) && lines.err.contains(WEIGHTS), "{lines:?}");
}

#[test]
fn a_cut_connection_is_gone_on_with_where_it_ended() {
    let size = std::fs::metadata(tiny().join(WEIGHTS)).unwrap().len() as usize;
    let server = HubServer::start(&tiny(), move |seen| match seen.before {
        0..4 if weights(seen) => Act::Cut(size / 5),
        4 if weights(seen) => Act::Status(503, "retry-after: 0\r\n"),
        0 if seen.what.contains("tokenizer.json") => Act::Cut(0),
        0 if seen.what.contains("/api/") => Act::Status(502, ""),
        _ => Act::Serve,
    });
    let bench = bench(&server);
    let found = told(&download(&bench).code(0));
    assert_complete(&bench, &server);
    assert_eq!(starts(&server), [0, 1, 2, 3, 4, 4].map(|part| part * (size / 5)));
    assert_eq!(found["downloaded_bytes"], found["bytes"], "nothing came twice");
}

#[test]
fn a_killed_download_leaves_a_miss_and_the_next_goes_on() {
    let server = HubServer::start(&tiny(), |seen| match seen.before {
        0 if weights(seen) => Act::Stall(100_000),
        _ => Act::Serve,
    });
    let bench = bench(&server);
    let mut child = bench.command("model").args(["download", "org/tiny@v1", "--json"]).spawn().unwrap();
    let (part, started) = (incomplete(&bench, &server, WEIGHTS), Instant::now());
    while std::fs::metadata(&part).map_or(0, |meta| meta.len()) < 100_000 {
        assert!(started.elapsed() < Duration::from_secs(20), "nothing came");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(model(&bench, &["check", "org/tiny@v1"]).code(2).err.contains("is not in the Hugging Face cache"));
    assert!(model(&bench, &["check", &format!("org/tiny@{COMMIT}")]).code(2).err.contains("is not in"));
    // Two at once: one brings it, the other waits.
    let other = bench.start("model download org/tiny@v1 --json");
    let found = told(&download(&bench).code(0));
    let other = told(&Ended::from(other.wait_with_output().unwrap()).code(0));
    assert_complete(&bench, &server);
    assert_eq!(starts(&server), [0, 100_000]);
    let came: u64 = [&found, &other].iter().map(|one| one["downloaded_bytes"].as_u64().unwrap()).sum();
    let missing = server.file(WEIGHTS).len() - 100_000 + server.file("config.json").len();
    assert_eq!(came, missing as u64, "nothing came twice");
}

#[test]
fn what_differs_from_its_digest_is_no_file() {
    // Rubbish of an earlier try is thrown away, and the file comes whole.
    let server = HubServer::start(&tiny(), |_| Act::Serve);
    let place = bench(&server);
    let part = incomplete(&place, &server, WEIGHTS);
    for (rubbish, expected) in [(vec![7; 1000], vec![1000, 0]), (vec![7; 1 << 20], vec![1000, 0, 0])] {
        std::fs::create_dir_all(part.parent().unwrap()).unwrap();
        std::fs::write(&part, rubbish).unwrap();
        let _ = std::fs::remove_file(blob(&place, &server, WEIGHTS));
        download(&place).code(0);
        assert_complete(&place, &server);
        assert_eq!(starts(&server), expected);
    }
    // A server that sends other bytes than it named, again and again.
    for lies in [WEIGHTS, "tokenizer.json"] {
        let server = HubServer::start(&tiny(), move |seen| {
            if seen.what.starts_with("GET") && seen.what.ends_with(lies) { Act::Damage } else { Act::Serve }
        });
        let bench = bench(&server);
        let run = download(&bench).code(3);
        assert!(run.err.contains(lies) && run.err.contains("thrown away"), "{}", run.err);
        assert!(!blob(&bench, &server, lies).exists() && !incomplete(&bench, &server, lies).exists());
        model(&bench, &["check", "org/tiny@v1"]).code(2);
    }
}

#[test]
fn another_length_than_the_named_one_is_asked_for_twice() {
    for (by, says) in [(7, "sent more than the"), (-7, "ended after")] {
        for file in [WEIGHTS, "tokenizer.json"] {
            let server = HubServer::start(&tiny(), move |seen| {
                let lies = seen.what.starts_with("GET") && seen.what.ends_with(file);
                if lies { Act::Resized(by) } else { Act::Serve }
            });
            let bench = bench(&server);
            let run = download(&bench).code(3);
            assert!(run.err.contains(says) && run.err.contains("twice; what came was thrown away"), "{}", run.err);
            let holds = |seen: &Seen| seen.what.starts_with("GET") && seen.what.ends_with(file);
            let sent = server.seen().iter().filter(|seen| holds(seen) && (seen.far || file != WEIGHTS)).count();
            assert_eq!(sent, 2, "{by} {file}");
            assert!(!blob(&bench, &server, file).exists() && !incomplete(&bench, &server, file).exists());
        }
    }
}

#[test]
fn the_same_bytes_again_are_no_progress() {
    let server = HubServer::start(&tiny(), |seen| match seen.before % 2 {
        0 if weights(seen) => Act::Cut(5000),
        1 if weights(seen) => Act::Status(416, ""),
        _ => Act::Serve,
    });
    let run = download(&bench(&server)).code(3);
    assert!(run.err.contains("sent no bytes from where the last try ended"), "{}", run.err);
    assert_eq!(starts(&server), [0, 5000, 0, 5000, 0, 5000]);
}

#[test]
fn servers_without_ranges_and_with_other_commits_are_coped_with() {
    let server = HubServer::start(&tiny(), |seen| match seen.before {
        0 if weights(seen) => Act::Cut(5000),
        1 if weights(seen) => Act::Status(416, ""),
        2 if weights(seen) => Act::Cut(7000),
        _ => Act::Whole,
    });
    let bench = bench(&server);
    download(&bench).code(0);
    assert_complete(&bench, &server);
    assert_eq!(starts(&server), [0, 5000, 0, 7000]);
    let moved = HubServer::start(&tiny(), |seen| {
        let other = "x-repo-commit: 1111111111111111111111111111111111111111\r\n";
        if seen.what.starts_with("HEAD") { Act::Status(200, other) } else { Act::Serve }
    });
    let run = download(&self::bench(&moved)).code(3);
    assert!(run.err.contains("answers for 1111111"), "{}", run.err);
}

#[test]
fn a_pause_that_the_server_asks_for_is_kept_and_told() {
    let server = HubServer::start(&tiny(), |seen| match seen.before {
        0 if weights(seen) => Act::Status(429, "retry-after: 2\r\n"),
        _ => Act::Serve,
    });
    let (bench, started) = (bench(&server), Instant::now());
    let run = download(&bench).code(0);
    assert!(started.elapsed() >= Duration::from_secs(2));
    assert!(run.err.contains("answered 429") && run.err.contains("asked again in 2 s"), "{}", run.err);
    assert_complete(&bench, &server);
}

#[test]
fn a_hub_on_the_loopback_is_asked_without_a_proxy() {
    let server = HubServer::start(&tiny(), |_| Act::Serve);
    let mut bench = bench(&server);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for name in ["http_proxy", "HTTP_PROXY", "ALL_PROXY"] {
        bench.variables.push((name.into(), format!("http://{nobody}")));
    }
    bench.variables.extend(["no_proxy", "NO_PROXY"].map(|name| (name.into(), String::new())));
    download(&bench).code(0);
    assert_complete(&bench, &server);
}

#[test]
fn what_nobody_vouches_for_is_no_file() {
    for (status, headers, message) in [
        (
            302,
            "location: http://127.0.0.1:1/blob\r\netag: \"of-the-redirect\"\r\n",
            "redirects elsewhere without naming",
        ),
        (200, "etag: \"of-nothing\"\r\n", "names no digest and a size of 0"),
    ] {
        let server = HubServer::start(&tiny(), move |seen| {
            if seen.what.starts_with("HEAD") { Act::Status(status, headers) } else { Act::Serve }
        });
        let bench = bench(&server);
        let run = download(&bench).code(3);
        assert!(run.err.contains(message), "{}", run.err);
        assert!(!bench.path("hub").exists());
    }
}

#[test]
fn refusals_say_what_to_do() {
    for (status, headers, code, message) in [
        (404, "x-error-code: RevisionNotFound\r\n", 2, "RevisionNotFound. Are name and revision right"),
        (401, "x-error-message: Invalid username or password.\r\n", 2, "Invalid username or password."),
        (403, "x-error-code: GatedRepo\r\n", 2, "have you agreed to its terms"),
        (418, "", 3, "is HF_ENDPOINT a hub?"),
    ] {
        let server = HubServer::start(&tiny(), move |_| Act::Status(status, headers));
        let mut bench = bench(&server);
        let run = download(&bench).code(code);
        assert!(run.err.contains(message), "{}", run.err);
        assert!(!run.err.contains("hf_key") && server.seen().len() == 1, "{}", run.err);
        bench.variables.retain(|(name, _)| name != "HF_TOKEN");
        let run = download(&bench).code(code);
        assert!(status == 418 || run.err.contains("HF_TOKEN holds the key"), "{}", run.err);
        assert!(!bench.path("hub").exists());
    }
    let run = download(&bench(&HubServer::of([("config.json".into(), b"{}".to_vec())].into(), |_| Act::Serve))).code(2);
    assert!(run.err.contains("neither model.safetensors nor"), "{}", run.err);
    let mut offline = Bench::new("");
    assert!(model(&offline, &["download", "tiny"]).code(2).err.contains("write org/name"));
    assert!(model(&offline, &["download", "a/b@../../c"]).code(2).err.contains("no name of a revision"));
    offline.variables.push(("HF_HUB_OFFLINE".into(), "1".into()));
    let run = model(&offline, &["download", "org/tiny"]).code(2);
    assert!(
        run.err.contains("HF_HUB_OFFLINE is set") && run.err.contains("copy the folder models--org--tiny"),
        "{}",
        run.err
    );
}

#[test]
fn without_a_network_it_says_what_to_put_where() {
    let server = HubServer::start(&tiny(), |_| Act::Cut(0));
    let mut bench = bench(&server);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    bench.variables[0].1 = format!("http://{nobody}");
    let run = download(&bench).code(3);
    let place = bench.path("hub/models--org--tiny").display().to_string();
    for part in ["cannot be reached", "the same command goes on", "copy the folder models--org--tiny", &place] {
        assert!(run.err.contains(part), "{part}: {}", run.err);
    }
    // A pipeline says the same, and fetches nothing.
    let pipeline = "mpcc: 1\nname: p\nmodels: { base: { from: { hub: org/tiny, revision: v1 } } }\nstages:\n  \
                    world: { uses: scenes.generate, with: { part: test, scenes: 4, tasks: 1 } }\n  \
                    answer: { uses: eval.answer, inputs: { model: base, dataset: world.dataset, questions: world.tasks } }\n";
    bench.write("pipeline.yaml", pipeline);
    bench.variables[0].1 = server.endpoint();
    let run = bench.mpcc("run pipeline.yaml").code(2);
    let told = run.out + &run.err;
    assert!(
        told.contains("`mpcc model download org/tiny@v1` brings it") && told.contains("models--org--tiny"),
        "{told}"
    );
    assert!(server.seen().is_empty());
}

#[test]
fn weights_in_several_files_come_by_their_index() {
    let bench = Bench::new("");
    model(&bench, &["convert", &family("qwen2_vl"), "many", "--shard", "40KB"]).code(0);
    let server = HubServer::start(&bench.path("many"), |_| Act::Serve);
    let bench = self::bench(&server);
    let found = told(&download(&bench).code(0));
    let shards =
        found["files"].as_array().unwrap().iter().filter(|file| file.as_str().unwrap().ends_with(".safetensors"));
    assert!(shards.count() > 3, "{found}");
    assert_eq!(told(&model(&bench, &["check", "org/tiny@v1", "--json"]).code(0))["ok"], true);
}

/// Names are looked up as people do it, without a network.
const LOADS: &str = r#"
import json, sys, torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
config = AutoConfig.from_pretrained("org/tiny", revision=sys.argv[1])
processor = AutoProcessor.from_pretrained("org/tiny", revision="v1")
model, info = AutoModelForImageTextToText.from_pretrained("org/tiny", revision="v1", output_loading_info=True)
wrong = sum(len(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
from huggingface_hub import scan_cache_dir
repo, = scan_cache_dir().repos
print(json.dumps({"type": config.model_type, "wrong": wrong, "parts": type(processor).__name__, "size": repo.size_on_disk,
    "refs": sorted(repo.refs), "files": repo.nb_files, "warnings": len(scan_cache_dir().warnings)}))
"#;

#[test]
fn transformers_loads_what_was_downloaded() {
    let Some(python) = python_with("torch, torchvision, transformers", "transformers") else { return };
    let server = HubServer::start(&tiny(), |_| Act::Serve);
    let mut bench = bench(&server);
    bench.variables[1] = ("HF_HOME".into(), bench.path("home").display().to_string());
    let found = told(&download(&bench).code(0));
    let mut command = Command::new(python);
    command.args(["-c", LOADS, COMMIT]).env("HF_HOME", bench.path("home")).env("HF_HUB_OFFLINE", "1");
    let output = command.env_remove("HF_HUB_CACHE").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let theirs: Value = serde_json::from_slice(&output.stdout).unwrap();
    let files = found["files"].as_array().unwrap().len();
    assert_eq!(
        theirs,
        json!({"type": "qwen2_vl", "wrong": 0, "parts": "Qwen2VLProcessor", "size": found["bytes"], "refs": ["v1"],
               "files": files, "warnings": 0})
    );
}
