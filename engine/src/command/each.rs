//! Record stages: `each: PORT` hands the records of one input to long-lived processes, one record at a time.
//!
//! Every result is stored as it comes, under a key of all that decides it: the record, the command with its parameters and
//! declared environment, the content of its `code`, and the other inputs. So a stage that was killed, or failed, or got
//! three new records, asks only for what is missing. As many processes run as CPUs are granted; the order of the output is
//! that of the input, whoever answers first.
//!
//! | happens | then |
//! |---|---|
//! | `{"error": ..}` | the record is set aside with its error, the rest goes on |
//! | the process dies or loses step | the record is tried once more on a fresh process, then set aside |
//! | [`DEATHS`] breaks in a row without an answer between | the stage ends: the command itself is broken |
//! | another process is at the very same record | its result is waited for while other records are asked |
//! | two records are equal | one is asked |
//! | any record was set aside | the stage fails at the end; the results of the others stay in the memo |
//!
//! The limit: all records of the input are held in memory.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use mpcc_cache::Digest;
use mpcc_cache::digest::Prefix;
use serde_json::{Value, json};

use crate::asking::{Asks, Claim};
use crate::command::record_process::{Answer, RecordProcess};
use crate::command::{Ports, program};
use crate::job::Outcome;
use crate::plan::Command;
use crate::stage::{Bound, Context, Note};

/// The memo's namespace of record stages.
const NAMESPACE: &str = "each";

/// Breaks in a row after which the command is given up.
const DEATHS: u32 = 4;

/// How soon to look again at records that other processes are at.
const ELSEWHERE_POLL: Duration = Duration::from_millis(20);

/// Raised when keys or stored values change their meaning.
const VERSION: u32 = 1;

/// Runs a record stage over the records of input `port`.
pub(super) fn run(command: &Command, port: &str, ctx: &Context, failed_records: &Path) -> Result<(), Outcome> {
    let output = sole_output(ctx)?;
    let records = read(port, ctx)?;
    let base = base_key(command, port, ctx)?;
    let keys = keys(&records, &base);
    ctx.asking.announce(|| census(&keys, ctx))?;
    let batch = Batch::new(records, keys, ctx);
    if batch.is_open() {
        let words = program::words(command, &Ports::of(ctx))?;
        let workers = ctx.threads.max(1).min(batch.open_count());
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| batch.work(|| RecordProcess::start(program::child(command, &words)), &words));
            }
        });
    }
    batch.close(output, failed_records)
}

/// Where the results go: a record stage has one output.
fn sole_output(ctx: &Context) -> Result<&Path, Outcome> {
    let mut outputs = ctx.outputs.values();
    match (outputs.next(), outputs.next()) {
        (Some(path), None) => Ok(path),
        _ => Err(Outcome::invalid("a stage with `each` has exactly one output, the records it answers".to_owned())),
    }
}

/// The lines of every artifact of `port`, each checked to be JSON.
fn read(port: &str, ctx: &Context) -> Result<Vec<String>, Outcome> {
    let mut records = Vec::new();
    for input in ctx.artifacts(port)? {
        let text = fs::read_to_string(&input.path)
            .map_err(|error| Outcome::invalid(format!("input `{port}`: {}: {error}", input.path.display())))?;
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            serde_json::from_str::<serde::de::IgnoredAny>(line).map_err(|error| {
                let shown: String = line.chars().take(80).collect();
                Outcome::invalid(format!(
                    "input `{port}` from {}, line {}: `{shown}` is no record: {error}",
                    input.node,
                    number + 1
                ))
            })?;
            records.push(line.trim().to_owned());
        }
    }
    Ok(records)
}

/// All that decides a result apart from the record.
fn base_key(command: &Command, port: &str, ctx: &Context) -> Result<Vec<u8>, Outcome> {
    let mut code = Vec::new();
    for path in &command.code {
        let path = command.cwd.join(path);
        let content = fs::read(&path).map_err(|error| Outcome::invalid(format!("{}: {error}", path.display())))?;
        let name = path.strip_prefix(&command.cwd).unwrap_or(&path);
        code.push(json!([name, Digest::of(&content)]));
    }
    let others: BTreeMap<&String, Vec<Value>> = ctx
        .inputs
        .iter()
        .filter(|(name, _)| *name != port)
        .map(|(name, bound)| (name, bound.iter().map(identity).collect()))
        .collect();
    let key = json!({
        "version": VERSION, "kind": command.kind, "argv": command.argv, "shell": command.shell, "params": command.params,
        "env": command.env, "code": code, "inputs": others,
    });
    Ok(serde_json::to_vec(&key).expect("plain data"))
}

fn identity(bound: &Bound) -> Value {
    match bound {
        Bound::Artifact(input) => json!({"digest": input.artifact.digest, "matrix": input.matrix}),
        Bound::Model(model) => json!({"model": model.identity, "matrix": model.matrix}),
    }
}

/// The key of every record.
fn keys(records: &[String], base: &[u8]) -> Vec<Digest> {
    let prefix = Prefix::of(&[base, b"\n"].concat());
    records.iter().map(|record| prefix.digest(record.as_bytes())).collect()
}

/// How many records would be handed to the command.
fn census(keys: &[Digest], ctx: &Context) -> Asks {
    let missing: BTreeSet<&Digest> = keys.iter().filter(|key| !ctx.memo.contains(NAMESPACE, key)).collect();
    Asks { total: keys.len() as u64, missing: missing.len() as u64, records: true, ..Asks::default() }
}

/// How one record stands.
#[derive(Clone, Debug, PartialEq)]
enum Standing {
    Open,
    Result(Vec<u8>),
    Failed(String),
}

/// The records of one stage, shared by the threads that drive its processes.
struct Batch<'a> {
    records: Vec<String>,
    keys: Vec<Digest>,
    /// The records of each key that the memo did not have.
    open: BTreeMap<Digest, Vec<usize>>,
    ctx: &'a Context,
    state: Mutex<State>,
}

struct State {
    standing: Vec<Standing>,
    queue: VecDeque<usize>,
    /// Records put back in a row, because other processes are at them.
    put_off: usize,
    hits: u64,
    misses: u64,
    /// Breaks since the last answer.
    breaks: u32,
    /// Why the stage ends early.
    over: Option<Outcome>,
}

impl<'a> Batch<'a> {
    /// Takes what the memo has; the rest is open, of equal records the first.
    fn new(records: Vec<String>, keys: Vec<Digest>, ctx: &'a Context) -> Self {
        let mut standing = Vec::with_capacity(records.len());
        let mut open: BTreeMap<Digest, Vec<usize>> = BTreeMap::new();
        let mut queue = VecDeque::new();
        for (index, key) in keys.iter().enumerate() {
            let stored = ctx.memo.get(NAMESPACE, key).map(Standing::Result);
            if stored.is_none() {
                let equal = open.entry(*key).or_default();
                equal.push(index);
                queue.extend((equal.len() == 1).then_some(index));
            }
            standing.push(stored.unwrap_or(Standing::Open));
        }
        let hits = standing.iter().filter(|standing| **standing != Standing::Open).count() as u64;
        let state = State { standing, queue, put_off: 0, hits, misses: 0, breaks: 0, over: None };
        let batch = Self { records, keys, open, ctx, state: Mutex::new(state) };
        batch.report(&batch.state());
        batch
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics")
    }

    fn open_count(&self) -> usize {
        self.state().queue.len()
    }

    fn is_open(&self) -> bool {
        self.open_count() > 0
    }

    fn report(&self, state: &State) {
        self.ctx.notes.note(Note::Memo { hits: state.hits, misses: state.misses });
        self.ctx.progress(state.hits + state.misses, self.records.len() as u64, "records");
    }

    /// Drives one process after the other until nothing is left.
    fn work(&self, start: impl Fn() -> std::io::Result<RecordProcess>, words: &[String]) {
        let mut process = None;
        while let Some((index, _claim)) = self.next() {
            let answer = self.answer(&mut process, &start, words, index);
            self.settle(index, answer);
        }
        let finished = process.map_or(Ok(()), RecordProcess::finish);
        if let Err(message) = finished {
            self.end(Outcome::invalid(message));
        }
    }

    /// The next record to ask for; none when the stage is over or is being cancelled.
    fn next(&self) -> Option<(usize, Claim)> {
        loop {
            let index = self.pop()?;
            let Some(claim) = self.ctx.asking.claim(&self.keys[index]) else {
                self.put_off(index);
                continue;
            };
            // Somebody may have answered between our look and the claim.
            match self.ctx.memo.get(NAMESPACE, &self.keys[index]) {
                Some(result) => self.answered_elsewhere(index, result),
                None => return Some((index, claim)),
            }
        }
    }

    fn pop(&self) -> Option<usize> {
        if self.ctx.cancel.load(Ordering::Relaxed) {
            self.end(Outcome::Cancelled);
        }
        let mut state = self.state();
        if state.over.is_some() { None } else { state.queue.pop_front() }
    }

    /// Puts a record behind all others; sleeps once all that are left were put off.
    fn put_off(&self, index: usize) {
        let all = {
            let mut state = self.state();
            state.queue.push_back(index);
            state.put_off += 1;
            state.put_off >= state.queue.len()
        };
        if all {
            std::thread::sleep(ELSEWHERE_POLL);
            self.state().put_off = 0;
        }
    }

    fn answered_elsewhere(&self, index: usize, result: Vec<u8>) {
        let mut state = self.state();
        state.put_off = 0;
        state.hits += self.stand(&mut state, index, &Standing::Result(result));
        self.report(&state);
    }

    /// Notes how a record and its equals stand; how many these are.
    fn stand(&self, state: &mut State, index: usize, standing: &Standing) -> u64 {
        let equal = &self.open[&self.keys[index]];
        equal.iter().for_each(|&index| state.standing[index] = standing.clone());
        equal.len() as u64
    }

    fn end(&self, outcome: Outcome) {
        self.state().over.get_or_insert(outcome);
    }

    /// Asks twice at most: a process that breaks is replaced once.
    fn answer(
        &self,
        process: &mut Option<RecordProcess>,
        start: impl Fn() -> std::io::Result<RecordProcess>,
        words: &[String],
        index: usize,
    ) -> Answer {
        let mut answer = Answer::Broken(String::new());
        for _ in 0..2 {
            if process.is_none() {
                match start() {
                    Ok(started) => *process = Some(started),
                    Err(error) => {
                        self.end(program::cannot_start(words, &error));
                        return Answer::Broken(error.to_string());
                    }
                }
            }
            answer = process.as_mut().map_or(answer, |process| process.ask(&self.records[index]));
            let Answer::Broken(why) = &answer else { return answer };
            *process = None;
            if self.broke(why) {
                break;
            }
        }
        answer
    }

    /// Counts a break; whether the command is to be given up, or the stage is over anyway.
    fn broke(&self, why: &str) -> bool {
        let cancelled = self.ctx.cancel.load(Ordering::Relaxed);
        let mut state = self.state();
        state.breaks += 1;
        if cancelled {
            state.over.get_or_insert(Outcome::Cancelled);
        } else if state.breaks >= DEATHS {
            let message =
                format!("the command broke {DEATHS} times in a row without an answer between; the last time {why}");
            state.over.get_or_insert(Outcome::failed(message));
        }
        state.over.is_some()
    }

    fn settle(&self, index: usize, answer: Answer) {
        let standing = match answer {
            Answer::Result(line) => self.keep(index, line.into_bytes()),
            Answer::Dropped => self.keep(index, Vec::new()),
            Answer::Failed(error) | Answer::Broken(error) => Standing::Failed(error),
        };
        let mut state = self.state();
        if !matches!(&standing, Standing::Failed(_)) {
            state.breaks = 0;
        }
        state.put_off = 0;
        state.misses += 1;
        state.hits += self.stand(&mut state, index, &standing) - 1;
        self.report(&state);
    }

    /// Stores a result: the empty value is a dropped record.
    fn keep(&self, index: usize, result: Vec<u8>) -> Standing {
        if let Err(error) = self.ctx.memo.put(NAMESPACE, &self.keys[index], &result) {
            self.end(Outcome::machine(format!("a result cannot be stored: {error}")));
        }
        Standing::Result(result)
    }

    /// Writes the output, or says what failed.
    fn close(self, output: &Path, failed_records: &Path) -> Result<(), Outcome> {
        let state = self.state.into_inner().expect("no thread panics");
        if let Some(outcome) = state.over {
            return Err(outcome);
        }
        let failed = failures(&self.records, &state.standing);
        write_lines(
            failed_records,
            failed.iter().map(|failed| self.ctx.asking.clean(failed.to_string().as_bytes())),
            failed.is_empty(),
        )
        .map_err(|error| Outcome::machine(format!("{}: {error}", failed_records.display())))?;
        if let Some(first) = failed.first() {
            let (count, total) = (failed.len(), self.records.len());
            let (index, error) = (&first["index"], first["error"].as_str().unwrap_or_default());
            let path = failed_records.display();
            let message =
                format!("{count} of {total} records failed; the first is record {index}: {error}; all are in {path}");
            return Err(Outcome::failed(message));
        }
        let results = state.standing.into_iter().filter_map(|standing| match standing {
            Standing::Result(line) if !line.is_empty() => Some(line),
            _ => None,
        });
        write_lines(output, results, false).map_err(|error| Outcome::machine(format!("{}: {error}", output.display())))
    }
}

fn failures(records: &[String], standing: &[Standing]) -> Vec<Value> {
    let failed = |(index, standing): (usize, &Standing)| match standing {
        Standing::Failed(error) => Some(json!({"index": index + 1, "error": error, "record": records[index]})),
        _ => None,
    };
    standing.iter().enumerate().filter_map(failed).collect()
}

/// Writes lines to `path`, or removes it when it is `absent`.
fn write_lines(path: &Path, lines: impl Iterator<Item = Vec<u8>>, absent: bool) -> std::io::Result<()> {
    if absent {
        return fs::remove_file(path).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        });
    }
    let mut file = BufWriter::new(fs::File::create(path)?);
    for line in lines {
        file.write_all(&line)?;
        file.write_all(b"\n")?;
    }
    file.flush()
}
