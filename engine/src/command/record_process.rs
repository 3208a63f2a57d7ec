//! One long-lived worker process of a record stage: a record in, an answer out.
//!
//! The protocol: the process reads one JSON record a line on standard input and writes exactly one line on standard output
//! for each, in order, flushed.
//!
//! | answer | means |
//! |---|---|
//! | a JSON value | the result |
//! | `null` | the record has no result and is dropped |
//! | `{"error": ...}` | this record failed; the process goes on |
//! | anything that is not JSON, or a second line | the process has lost step and is replaced |
//! | end of output | the process died |
//!
//! Whatever it prints for people goes to standard error, which is the log. When its input closes, it ends.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a process may take to end once its input is closed.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a process said about a record.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    /// A result, as written.
    Result(String),
    /// No result.
    Dropped,
    /// The record failed, the process is well.
    Failed(String),
    /// The process is of no use any more: it died or lost step.
    Broken(String),
}

/// A running process.
pub(super) struct RecordProcess {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl RecordProcess {
    /// Starts `command`.
    pub(super) fn start(mut command: Command) -> std::io::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("its output is piped"));
        Ok(Self { child, input, output })
    }

    /// Hands over `record` and waits for the answer.
    pub(super) fn ask(&mut self, record: &str) -> Answer {
        if !self.output.buffer().is_empty() {
            return Answer::Broken("it printed more than one line for the record before this one".to_owned());
        }
        if self.send(record).is_err() {
            return self.died();
        }
        let mut line = String::new();
        match self.output.read_line(&mut line) {
            Ok(0) => self.died(),
            Ok(_) => understand(line.trim_end_matches(['\n', '\r'])),
            Err(error) => Answer::Broken(format!("its answer cannot be read: {error}")),
        }
    }

    fn send(&mut self, record: &str) -> std::io::Result<()> {
        let input = self.input.as_mut().expect("open until the process is finished");
        input.write_all(record.as_bytes())?;
        input.write_all(b"\n")?;
        input.flush()
    }

    fn died(&mut self) -> Answer {
        let _ = self.child.kill();
        let how = self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        Answer::Broken(format!("the worker process died ({how})"))
    }

    /// Closes its input and waits for its end. An error says that it printed lines nobody asked for.
    pub(super) fn finish(mut self) -> Result<(), String> {
        drop(self.input.take());
        let asked = Instant::now();
        while self.child.try_wait().is_ok_and(|status| status.is_none()) {
            if asked.elapsed() > PATIENCE {
                return Err("the worker process does not end although its input is closed".to_owned());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut extra = String::new();
        match self.output.read_line(&mut extra) {
            Ok(0) => Ok(()),
            Ok(_) => Err(format!("the worker process printed a line too many: `{}`", extra.trim_end())),
            Err(error) => Err(format!("the worker process's output cannot be read: {error}")),
        }
    }
}

impl Drop for RecordProcess {
    fn drop(&mut self) {
        // Finished already, or abandoned with a record in hand.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn understand(line: &str) -> Answer {
    let Ok(value) = serde_json::from_str::<Value>(line) else {
        let shown: String = line.chars().take(80).collect();
        return Answer::Broken(format!(
            "it answered `{shown}`, which is not JSON (print for people to standard error)"
        ));
    };
    match value.get("error") {
        Some(Value::String(error)) => Answer::Failed(error.clone()),
        Some(error) if !error.is_null() => Answer::Failed(error.to_string()),
        _ if value.is_null() => Answer::Dropped,
        _ => Answer::Result(line.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_understood() {
        assert_eq!(understand(r#"{"a": 1.50}"#), Answer::Result(r#"{"a": 1.50}"#.to_owned()));
        assert_eq!(understand("null"), Answer::Dropped);
        assert_eq!(understand(r#"{"error": "bad"}"#), Answer::Failed("bad".to_owned()));
        assert_eq!(understand(r#"{"error": {"code": 3}}"#), Answer::Failed(r#"{"code":3}"#.to_owned()));
        assert_eq!(understand(r#"{"error": null, "a": 1}"#), Answer::Result(r#"{"error": null, "a": 1}"#.to_owned()));
        assert!(matches!(understand("loading model"), Answer::Broken(_)));
        assert!(matches!(understand(""), Answer::Broken(_)));
    }

    fn shell(script: &str) -> RecordProcess {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        RecordProcess::start(command).unwrap()
    }

    #[test]
    fn a_process_answers_line_by_line() {
        let mut cat = shell("cat");
        assert_eq!(cat.ask(r#"{"id":1}"#), Answer::Result(r#"{"id":1}"#.to_owned()));
        assert_eq!(cat.ask(r#"{"id":2}"#), Answer::Result(r#"{"id":2}"#.to_owned()));
        assert_eq!(cat.finish(), Ok(()));
    }

    #[test]
    fn a_process_that_breaks_says_how() {
        let Answer::Broken(how) = shell("read line; exit 3").ask("{}") else { panic!("it died") };
        assert!(how.contains("exit status: 3"), "{how}");
        let mut chatty = shell(r#"while read line; do printf '1\n2\n'; done"#);
        assert_eq!(chatty.ask("{}"), Answer::Result("1".to_owned()));
        assert!(matches!(chatty.ask("{}"), Answer::Broken(_)));
        assert!(shell("echo 1").finish().is_err());
    }
}
