//! What a worker says to its executor: JSON lines on a pipe of their own.
//!
//! The pipe comes as the worker's standard output and the worker moves it away before the stage starts, so nothing that a
//! stage prints can be taken for a note. The last line is the end; a worker that dies says none.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::executor::redact::Redactor;
use crate::job::{Outcome, Usage};
use crate::stage::{Note, NoteSink};

/// One line on the pipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// A note of the stage.
    Note(Note),
    /// The attempt is over.
    End {
        /// How.
        outcome: Outcome,
        /// What it used; the wall time is the executor's to fill in.
        usage: Usage,
    },
}

/// Progress, memo counts and usage are said at most this often; the last ones are always said.
const EVERY: Duration = Duration::from_millis(100);

/// The worker's end of the pipe.
pub struct Speech {
    pipe: Mutex<Pipe>,
    redactor: Redactor,
}

struct Pipe {
    file: File,
    progress: Throttle,
    memo: Throttle,
    usage: Throttle,
}

/// Holds back notes that come too fast; each replaces the one before it.
#[derive(Default)]
struct Throttle {
    said: Option<Instant>,
    held: Option<Note>,
}

impl Throttle {
    /// The note, when it is due; else it is held.
    fn pass(&mut self, note: Note) -> Option<Note> {
        let now = Instant::now();
        if self.said.is_some_and(|said| now - said < EVERY) {
            self.held = Some(note);
            return None;
        }
        self.said = Some(now);
        self.held = None;
        Some(note)
    }
}

impl Speech {
    /// Speaks into `file`; secrets that `redactor` knows never pass.
    pub fn new(file: File, redactor: Redactor) -> Self {
        let pipe = Pipe { file, progress: Throttle::default(), memo: Throttle::default(), usage: Throttle::default() };
        Self { pipe: Mutex::new(pipe), redactor }
    }

    /// Says how the attempt ended.
    pub fn end(&self, outcome: Outcome, usage: Usage) -> io::Result<()> {
        let mut pipe = self.pipe.lock().expect("no speaker panics");
        let held = [pipe.progress.held.take(), pipe.memo.held.take(), pipe.usage.held.take()];
        for held in held.into_iter().flatten() {
            self.say(&mut pipe, &Said::Note(held))?;
        }
        self.say(&mut pipe, &Said::End { outcome, usage })
    }

    fn say(&self, pipe: &mut Pipe, said: &Said) -> io::Result<()> {
        let line = serde_json::to_string(said).expect("plain data") + "\n";
        pipe.file.write_all(&self.redactor.clean(line.as_bytes()))
    }
}

impl NoteSink for Speech {
    fn note(&self, note: Note) {
        let mut pipe = self.pipe.lock().expect("no speaker panics");
        let due = match &note {
            Note::Progress { .. } => pipe.progress.pass(note),
            Note::Memo { .. } => pipe.memo.pass(note),
            Note::Usage { .. } => pipe.usage.pass(note),
            _ => Some(note),
        };
        if let Some(note) = due {
            // An executor that is gone will not miss the note; the lifeline ends this process.
            let _ = self.say(&mut pipe, &Said::Note(note));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(requests: u64) -> Note {
        Note::Usage { requests, prompt_tokens: 10 * requests, completion_tokens: requests, cost: 0.5 }
    }

    #[test]
    fn fast_progress_is_thinned_but_its_end_is_said() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let secrets = vec!["hunter2".to_owned()];
        let speech = Speech::new(path.reopen().unwrap(), Redactor::new(secrets));
        for done in 0..1000 {
            speech.note(Note::Progress { done, total: 1000, unit: "steps".into() });
            speech.note(Note::Memo { hits: done, misses: 0 });
            speech.note(usage(done));
        }
        speech.note(Note::Warning { message: "the key is hunter2".into() });
        speech.end(Outcome::Done, Usage::default()).unwrap();
        let text = std::fs::read_to_string(path.path()).unwrap();
        let said: Vec<Said> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(said.len() < 100, "{}", said.len());
        assert!(said.contains(&Said::Note(Note::Progress { done: 999, total: 1000, unit: "steps".into() })));
        assert!(said.contains(&Said::Note(Note::Memo { hits: 999, misses: 0 })));
        assert!(said.contains(&Said::Note(usage(999))));
        assert!(said.contains(&Said::Note(Note::Warning { message: "the key is ***".into() })));
        assert!(matches!(said.last(), Some(Said::End { outcome: Outcome::Done, .. })));
    }
}
