//! A folder to run `mpcc` in.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Three stages in a row that note every execution in `ran`.
pub(crate) const CHAIN: &str = r#"
mpcc: 1
name: chain
params: { word: a, seed: 1 }
stages:
  numbers: { run: "echo numbers >> ran; cat ${inputs.given} > ${outputs.numbers}", inputs: { given: { file: given.txt } }, outputs: { numbers: file } }
  count: { run: "echo count >> ran; grep -c ${params.word} ${inputs.numbers} > ${outputs.count}; true", inputs: { numbers: numbers }, outputs: { count: file } }
  report: { run: "echo report >> ran; cat ${inputs.count} > ${outputs.report}", inputs: { count: count }, outputs: { report: file } }
"#;

/// A folder with a pipeline.
pub(crate) struct Bench {
    folder: tempfile::TempDir,
    /// Variables beside PATH and HOME.
    pub(crate) variables: Vec<(String, String)>,
}

/// How a call ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The exit code; -1 when a signal ended it.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Ended {
    /// Asserts the exit code; shows everything when it is another.
    pub(crate) fn code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "\n--- out\n{}\n--- err\n{}", self.out, self.err);
        self
    }

    /// The lines of standard output as JSON.
    pub(crate) fn json(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"))).collect()
    }

    /// The last line as JSON: the counts of a run.
    pub(crate) fn finished(&self) -> Value {
        let last = self.json().pop().unwrap();
        assert_eq!(last["event"], "run.finished");
        last
    }

    /// executed, cached, failed, skipped of a run with `--json`.
    pub(crate) fn counts(&self) -> [u64; 4] {
        let last = self.finished();
        ["executed", "cached", "failed", "skipped"].map(|name| last[name].as_u64().unwrap())
    }
}

impl Bench {
    /// A folder with copies of the files of some of the repository's folders, in folders of the same names.
    pub(crate) fn with_copies(folders: &[&str]) -> Bench {
        let bench = Bench::new("");
        for folder in folders {
            for entry in std::fs::read_dir(root().join(folder)).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    let name = format!("{folder}/{}", path.file_name().unwrap().to_str().unwrap());
                    bench.write(&name, &std::fs::read_to_string(&path).unwrap());
                }
            }
        }
        bench
    }

    /// A folder whose `pipeline.yaml` holds `yaml`.
    pub(crate) fn new(yaml: &str) -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap(), variables: Vec::new() };
        bench.write("pipeline.yaml", yaml);
        bench
    }

    /// The [`CHAIN`] with its input.
    pub(crate) fn chain() -> Self {
        let bench = Self::new(CHAIN);
        bench.write("given.txt", "a\na\nb\n");
        bench
    }

    /// A path in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file.
    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        std::fs::write(self.path(name), text).unwrap();
    }

    /// A file's text; empty when there is none.
    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The lines of `ran` since the last call.
    pub(crate) fn ran(&self) -> Vec<String> {
        let text = self.read("ran");
        let _ = std::fs::remove_file(self.path("ran"));
        text.lines().map(str::to_owned).collect()
    }

    /// `mpcc` with these words, not yet started.
    pub(crate) fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mpcc"));
        command.args(words.split_whitespace()).current_dir(self.folder.path()).env_clear();
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", self.folder.path());
        command.envs(self.variables.iter().cloned()).stdin(Stdio::null());
        command
    }

    /// Runs `mpcc` to its end.
    pub(crate) fn mpcc(&self, words: &str) -> Ended {
        self.command(words).output().unwrap().into()
    }

    /// Starts `mpcc`.
    pub(crate) fn start(&self, words: &str) -> Child {
        self.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Waits until the file has this many lines; returns them.
    pub(crate) fn wait_for_lines(&self, name: &str, count: usize) -> Vec<String> {
        let started = Instant::now();
        loop {
            let lines: Vec<String> = self.read(name).lines().map(str::to_owned).collect();
            if lines.len() >= count {
                return lines;
            }
            assert!(started.elapsed() < Duration::from_secs(30), "{name} never got {count} lines");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the processes that the file lists are gone.
    pub(crate) fn assert_gone(&self, name: &str, count: usize) {
        for pid in self.wait_for_lines(name, count) {
            let started = Instant::now();
            while is_alive(&pid) {
                assert!(started.elapsed() < Duration::from_secs(10), "process {pid} lives on");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Sends a signal by name.
pub(crate) fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

/// The repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
