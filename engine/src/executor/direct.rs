//! The engine's side of the [warden](super::warden): which jobs go to it, and what becomes of them.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::Pid;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::attempt::Handle;
use super::memory::LogWatch;
use super::meter::{Meter, Watching};
use super::process::{ProcessOptions, Stop, granted, stronger, until};
use super::warden::{Ask, Start, Told};
use super::{Order, OutOfMemoryWatch, tree};
use crate::command::{self, Ports};
use crate::job::{Job, Outcome, Usage, ensure_dir};
use crate::plan::{Action, Command as Planned};

/// What the warden said of a command.
enum End {
    /// It is over: its raw wait status and what it used.
    Over(i32, Usage),
    /// It could not be started.
    Refused(io::Error),
}

/// A command that was handed to the warden.
struct Waiting {
    end: oneshot::Sender<End>,
    pid: Option<i32>,
    devices: Vec<usize>,
    watching: Option<Watching>,
}

/// The commands that are waited for; none once the warden is gone.
type Board = Arc<Mutex<Option<BTreeMap<u64, Waiting>>>>;

/// A warden under way.
#[derive(Clone)]
pub(super) struct Direct {
    asks: mpsc::UnboundedSender<Ask>,
    board: Board,
    /// Where programs were found.
    programs: Arc<Mutex<BTreeMap<String, PathBuf>>>,
}

/// The command of a job that the warden may start: no secrets, no records.
pub(super) fn command_of(job: &Job) -> Option<&Planned> {
    match &job.action {
        Action::Command(command) if command.each.is_none() && job.secret_names().is_empty() => Some(command),
        _ => None,
    }
}

impl Direct {
    /// Starts a warden. It lives as long as the last clone of this value.
    pub(super) fn launch(options: &ProcessOptions, meter: Meter) -> io::Result<Self> {
        let mut warden = Command::new(&options.program);
        warden.args(&options.warden).env_clear().envs(options.environment.iter().cloned()).process_group(0);
        let mut child = warden.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (asks, asked) = mpsc::unbounded_channel();
        let board = Arc::new(Mutex::new(Some(BTreeMap::new())));
        let input = child.stdin.take().expect("its input is piped");
        let output = child.stdout.take().expect("its output is piped");
        tokio::spawn(pass_on(asked, input));
        let listener = board.clone();
        tokio::spawn(async move {
            listen(output, &listener, &meter).await;
            let _ = child.wait().await;
            abandon(&listener);
        });
        Ok(Self { asks, board, programs: Arc::default() })
    }

    /// Whether the warden still lives.
    pub(super) fn is_alive(&self) -> bool {
        self.board.lock().expect("no panic while it is held").is_some()
    }

    /// Carries out the command of a job.
    pub(super) async fn attend(self, options: Arc<ProcessOptions>, job: Job, mut handle: Handle) {
        let started = Instant::now();
        let (outcome, usage) = self.carry_out(&options, &job, &mut handle).await;
        job.settle_log(outcome == Outcome::Done);
        let usage = Usage { wall_s: started.elapsed().as_secs_f64(), ..usage };
        // Nobody listens when the attempt was dropped.
        let _ = handle.end.send((outcome, usage));
    }

    async fn carry_out(&self, options: &ProcessOptions, job: &Job, handle: &mut Handle) -> (Outcome, Usage) {
        let command = command_of(job).expect("the executor has asked");
        let start = match self.start(options, command, job) {
            Ok(start) => start,
            Err(outcome) => return (outcome, Usage::default()),
        };
        let (memory, words) = (OutOfMemoryWatch::start(), start.words.clone());
        let log = LogWatch::start(job);
        let (end, mut ended) = oneshot::channel();
        match &mut *self.board.lock().expect("no panic while it is held") {
            Some(board) => {
                drop(board.insert(start.id, Waiting { end, pid: None, devices: job.devices.clone(), watching: None }))
            }
            // The warden died a moment ago: the attempt ends at once.
            None => drop(end),
        }
        self.ask(Ask::Start(start));
        let (end, stop) = self.until_end(options, job, &mut ended, &mut handle.orders).await;
        match end {
            None => (Outcome::machine("the process that starts commands was lost"), Usage::default()),
            Some(End::Refused(error)) => (command::cannot_start(&words, &error), Usage::default()),
            Some(End::Over(status, usage)) => {
                let told = command::ended(command, &words, ExitStatus::from_raw(status), memory);
                let outcome = match (told.map_or_else(|outcome| outcome, |()| job.outputs_written()), stop) {
                    // What it finished counts, even when it was told to stop meanwhile.
                    (outcome @ Outcome::Done, _) => outcome,
                    (outcome, None) => log.judge(outcome),
                    (_, Some(Stop::Cancelled)) => Outcome::Cancelled,
                    (_, Some(Stop::TimedOut)) => Outcome::TimedOut,
                };
                (outcome, usage)
            }
        }
    }

    /// Makes the folders that the command needs, and the request.
    fn start(&self, options: &ProcessOptions, command: &Planned, job: &Job) -> Result<Start, Outcome> {
        let places = job.log.parent().map_or(Ok(()), ensure_dir).and_then(|()| job.prepare_outputs());
        places.map_err(|error| Outcome::machine(format!("cannot prepare the stage: {error}")))?;
        job.lay_log();
        let words = command::words(command, &Ports::of_job(job))?;
        let granted = granted(job, options).into_iter().map(|(name, value)| (name.to_owned(), value));
        let env = granted.chain(command.env.clone()).collect();
        let program = match command.env.contains_key("PATH") {
            true => words[0].clone().into(),
            false => self.find(options, &words[0]),
        };
        if [&command.cwd, &job.log].iter().any(|path| path.to_str().is_none()) {
            return Err(Outcome::invalid("a command cannot run in a folder whose name is not UTF-8; rename it"));
        }
        Ok(Start { id: job.attempt.0, program, words, cwd: command.cwd.clone(), env, log: job.log.clone() })
    }

    /// The file of a program that is called by a plain name, found once a run: trying every folder of a long PATH for each
    /// of ten thousand stages costs as much as the stages. What is not found keeps its name, and the start says so.
    fn find(&self, options: &ProcessOptions, name: &str) -> PathBuf {
        if name.contains('/') {
            return name.into();
        }
        let mut programs = self.programs.lock().expect("no panic while it is held");
        if let Some(known) = programs.get(name).filter(|path| path.is_file()) {
            return known.clone();
        }
        let path = options.environment.iter().find(|(variable, _)| variable == "PATH").map(|(_, path)| path);
        // A request is text.
        let usable = |folder: &PathBuf| folder.is_absolute() && folder.to_str().is_some();
        let folders = path.into_iter().flat_map(std::env::split_paths).filter(usable);
        let found = folders.map(|folder| folder.join(name)).find(|file| is_executable(file));
        if let Some(found) = &found {
            programs.insert(name.to_owned(), found.clone());
        }
        found.unwrap_or_else(|| name.into())
    }

    fn ask(&self, ask: Ask) {
        // A warden that is gone has ended every attempt.
        let _ = self.asks.send(ask);
    }

    async fn until_end(
        &self,
        options: &ProcessOptions,
        job: &Job,
        ended: &mut oneshot::Receiver<End>,
        orders: &mut tokio::sync::watch::Receiver<Order>,
    ) -> (Option<End>, Option<Stop>) {
        let limit = Some(std::time::Duration::from_secs(job.timeout_s)).filter(|limit| !limit.is_zero());
        let mut due = limit.map(|limit| Instant::now() + limit);
        let (mut stop, mut obeyed) = (None, Order::Run);
        loop {
            let kill = tokio::select! {
                end = &mut *ended => return (end.ok(), stop),
                order = stronger(orders, obeyed) => {
                    obeyed = order;
                    stop.get_or_insert(Stop::Cancelled);
                    order == Order::Kill
                }
                () = until(due) => {
                    let stopping = stop.is_some();
                    stop.get_or_insert(Stop::TimedOut);
                    stopping
                }
            };
            due = (!kill).then(|| Instant::now() + options.grace);
            self.ask(if kill { Ask::Kill(job.attempt.0) } else { Ask::Stop(job.attempt.0) });
        }
    }
}

fn is_executable(path: &std::path::Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

async fn pass_on(mut asked: mpsc::UnboundedReceiver<Ask>, mut input: ChildStdin) {
    let mut lines = Vec::new();
    while let Some(ask) = asked.recv().await {
        lines.clear();
        let mut next = Some(ask);
        while let Some(ask) = next {
            serde_json::to_writer(&mut lines, &ask).expect("plain data");
            lines.push(b'\n');
            next = asked.try_recv().ok();
        }
        if input.write_all(&lines).await.is_err() {
            return; // It is dead; its listener tells everybody.
        }
    }
}

async fn listen(output: ChildStdout, board: &Board, meter: &Meter) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(told) = serde_json::from_str(&line) else { continue };
        let mut board = board.lock().expect("no panic while it is held");
        let Some(board) = &mut *board else { return };
        let (id, end) = match told {
            Told::Started { id, pid } => {
                if let Some(waiting) = board.get_mut(&id) {
                    waiting.pid = Some(pid);
                    waiting.watching = Some(meter.watch(pid, waiting.devices.clone()));
                }
                continue;
            }
            Told::Refused { id, absent, message } => {
                let kind = if absent { io::ErrorKind::NotFound } else { io::ErrorKind::Other };
                (id, End::Refused(io::Error::new(kind, message)))
            }
            Told::Ended { id, status, cpu_s, peak_rss_bytes } => {
                let watching = board.get(&id).and_then(|waiting| waiting.watching.as_ref());
                let peaks = watching.map(Watching::peaks).unwrap_or_default();
                (id, End::Over(status, peaks.add_to(Usage { cpu_s, peak_rss_bytes, ..Usage::default() })))
            }
        };
        if let Some(waiting) = board.remove(&id) {
            // The attempt may have been dropped.
            let _ = waiting.end.send(end);
        }
    }
}

/// The warden is gone: what it told of is killed, and whoever waits learns of it. A command that it had started and not yet told of, a
/// matter of microseconds, is not known here.
fn abandon(board: &Board) {
    let left = board.lock().expect("no panic while it is held").take();
    for Waiting { pid, .. } in left.into_iter().flat_map(BTreeMap::into_values) {
        if let Some(leader) = pid.and_then(Pid::from_raw) {
            tree::kill_tree(leader);
        }
    }
}
