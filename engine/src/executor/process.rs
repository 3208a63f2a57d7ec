//! The process executor: one child process per stage, on this host.
//!
//! The child is `mpcc worker JOB.json`. It leads its own process group, so a Ctrl-C at the terminal reaches the engine
//! alone, which then decides.
//!
//! | descriptor | carries |
//! |---|---|
//! | standard input | the lifeline: nothing is ever written; when it closes, the engine is dead and the worker kills everything below it and itself |
//! | standard output | notes and the end, as JSON lines ([`super::speech`]); the worker moves it away before the stage runs |
//! | standard error | the log |
//!
//! Every way to stop is the same two steps: SIGTERM to the worker, which passes it on in the way that its stage
//! understands; after the grace period SIGKILL to everything below it, then to it.
//!
//! ```text
//! Running --drain, time limit--> Stopping --grace over--> Killing --exit--> Over
//!    |  \------- kill ---------------------------------->    ^               ^
//!    \--exit---------------------------------------------------------------/
//! ```
//!
//! The child starts with the environment that the caller states and nothing else: the base, the thread counts, the
//! devices, and the secrets that the job names.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::Instant;

use crate::executor::attempt::Handle;
use crate::executor::direct::{Direct, command_of};
use crate::executor::memory::{LogWatch, OutOfMemoryWatch};
use crate::executor::meter::Meter;
use crate::executor::speech::Said;
use crate::executor::{Attempt, Executor, Notes, Order, tree};
use crate::gpu::GpuMeter;
use crate::job::{AttemptId, Job, Outcome, Usage};
use crate::worker::BROKEN;

/// How children are started.
#[derive(Clone, Debug)]
pub struct ProcessOptions {
    /// The executable.
    pub program: PathBuf,
    /// Arguments before the job file: `worker`.
    pub arguments: Vec<OsString>,
    /// Arguments that make it a [warden](super::warden); none when every command gets a worker of its own.
    pub warden: Vec<OsString>,
    /// The environment of every child, secrets excluded.
    pub environment: Vec<(OsString, OsString)>,
    /// Values of secrets by name. A child gets those that its job names.
    pub secrets: BTreeMap<String, String>,
    /// How long a stage may take to end in good order before it is killed.
    pub grace: Duration,
}

/// Starts a child process for every job.
pub struct ProcessExecutor {
    options: Arc<ProcessOptions>,
    /// Started with the first command.
    direct: Mutex<Option<Direct>>,
    meter: Meter,
}

impl ProcessExecutor {
    /// An executor with these options.
    pub fn new(options: ProcessOptions) -> Self {
        Self { options: Arc::new(options), direct: Mutex::default(), meter: Meter::new(None) }
    }

    /// The same with GPU memory measured by `gpu`.
    #[must_use]
    pub fn with_gpu_meter(self, gpu: Arc<dyn GpuMeter>) -> Self {
        Self { meter: Meter::new(Some(gpu)), ..self }
    }

    /// The warden, if this job may go to it and it can be started; else the job gets a worker.
    fn direct_for(&self, job: &Job) -> Option<Direct> {
        if self.options.warden.is_empty() {
            return None;
        }
        command_of(job)?;
        let mut direct = self.direct.lock().expect("no panic while it is held");
        if !direct.as_ref().is_some_and(Direct::is_alive) {
            *direct = Direct::launch(&self.options, self.meter.clone()).ok();
        }
        direct.clone()
    }
}

impl Executor for ProcessExecutor {
    fn start(&self, job: Job, notes: Notes) -> Attempt {
        let (attempt, handle) = Attempt::new();
        match self.direct_for(&job) {
            Some(direct) => tokio::spawn(direct.attend(self.options.clone(), job, handle)),
            None => tokio::spawn(attend(self.options.clone(), self.meter.clone(), job, notes, handle)),
        };
        attempt
    }
}

async fn attend(options: Arc<ProcessOptions>, meter: Meter, job: Job, notes: Notes, mut handle: Handle) {
    let started = Instant::now();
    let (outcome, usage) = match launch(&options, &job).await {
        Ok(child) => {
            let process = child.id().expect("the child is not reaped yet").cast_signed();
            let watching = meter.watch(process, job.devices.clone());
            let (outcome, usage) = Watch::new(&options, &job).follow(child, notes, &mut handle).await;
            (outcome, watching.peaks().add_to(usage))
        }
        Err(error) => (Outcome::machine(format!("cannot start the stage: {error}")), Usage::default()),
    };
    let usage = Usage { wall_s: started.elapsed().as_secs_f64(), ..usage };
    // Nobody listens when the attempt was dropped.
    let _ = handle.end.send((outcome, usage));
}

async fn launch(options: &ProcessOptions, job: &Job) -> io::Result<Child> {
    let prepared = job.clone();
    tokio::task::spawn_blocking(move || prepared.prepare()).await.map_err(io::Error::other)??;
    let log = OpenOptions::new().create(true).append(true).open(&job.log)?;
    let mut command = Command::new(&options.program);
    command.args(&options.arguments).arg(job.file());
    command.env_clear().envs(options.environment.iter().cloned()).envs(granted(job, options));
    command.envs(job.secret_names().iter().filter_map(|name| Some((name, options.secrets.get(name)?))));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).process_group(0);
    let name = options.program.display();
    command.spawn().map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))
}

/// Variables that keep a stage inside its grant.
pub(super) fn granted(job: &Job, options: &ProcessOptions) -> Vec<(&'static str, String)> {
    // Where this process sees some devices only, it numbers those from 0 and a child must be told their own names.
    let visible = options.environment.iter().find(|(name, _)| name == "CUDA_VISIBLE_DEVICES");
    let visible: Vec<&str> = visible
        .and_then(|(_, list)| list.to_str())
        .map(|list| list.split(',').map(str::trim).collect())
        .unwrap_or_default();
    let name = |&ordinal: &usize| visible.get(ordinal).map_or_else(|| ordinal.to_string(), ToString::to_string);
    let devices: Vec<String> = job.devices.iter().map(name).collect();
    let mut variables = thread_variables(job.threads);
    variables.push(("CUDA_VISIBLE_DEVICES", devices.join(",")));
    variables
}

/// Variables that tell libraries how many threads to use.
pub(super) fn thread_variables(threads: usize) -> Vec<(&'static str, String)> {
    let names = ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"];
    names.map(|name| (name, threads.to_string())).into()
}

/// Why a child was told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    Cancelled,
    TimedOut,
}

/// Follows one child to its end.
struct Watch {
    attempt: AttemptId,
    log: PathBuf,
    grace: Duration,
    /// When the next step of stopping is due: the time limit, then the end of the grace period.
    due: Option<Instant>,
    memory: OutOfMemoryWatch,
    words: LogWatch,
    stop: Option<Stop>,
}

impl Watch {
    fn new(options: &ProcessOptions, job: &Job) -> Self {
        let limit = Some(Duration::from_secs(job.timeout_s)).filter(|limit| !limit.is_zero());
        let due = limit.map(|limit| Instant::now() + limit);
        let memory = OutOfMemoryWatch::start();
        Self {
            attempt: job.attempt,
            log: job.log.clone(),
            grace: options.grace,
            due,
            memory,
            words: LogWatch::start(job),
            stop: None,
        }
    }

    async fn follow(mut self, mut child: Child, notes: Notes, handle: &mut Handle) -> (Outcome, Usage) {
        let leader = child.id().and_then(|id| Pid::from_raw(id.cast_signed())).expect("the child is not reaped yet");
        // Waiting would close it, and the worker would take that for the engine's death.
        let lifeline = child.stdin.take();
        let pipe = child.stdout.take().expect("the child's output is piped");
        let listening = tokio::spawn(listen(pipe, self.attempt, notes));
        let status = self.until_exit(&mut child, leader, &mut handle.orders).await;
        drop(lifeline);
        // A worker that ended in good order has swept up; one that was killed leaves its group behind.
        if !status.as_ref().is_ok_and(ExitStatus::success) {
            let _ = kill_process_group(leader, Signal::KILL);
        }
        let end = listening.await.ok().flatten();
        let (said, usage) = end.map_or((None, Usage::default()), |(outcome, usage)| (Some(outcome), usage));
        (self.outcome(status, said), usage)
    }

    async fn until_exit(&mut self, child: &mut Child, leader: Pid, orders: &mut Orders) -> io::Result<ExitStatus> {
        let mut obeyed = Order::Run;
        loop {
            tokio::select! {
                status = child.wait() => return status,
                order = stronger(orders, obeyed) => {
                    obeyed = order;
                    self.stop.get_or_insert(Stop::Cancelled);
                    self.advance(leader, order == Order::Kill).await;
                }
                () = until(self.due) => {
                    let stopping = self.stop.is_some();
                    self.stop.get_or_insert(Stop::TimedOut);
                    self.advance(leader, stopping).await;
                }
            }
        }
    }

    /// One step of stopping: ask and set the grace period, or kill.
    async fn advance(&mut self, leader: Pid, kill: bool) {
        if kill {
            self.due = None;
            // Listing processes takes a while. A panic there leaves the group's kill to the caller.
            let _ = tokio::task::spawn_blocking(move || tree::kill_tree(leader)).await;
        } else {
            self.due = Some(Instant::now() + self.grace);
            // A worker that has just ended needs no signal.
            let _ = kill_process(leader, Signal::TERM);
        }
    }

    /// How the attempt ended. What the stage finished counts, even when it was told to stop meanwhile.
    fn outcome(&self, status: io::Result<ExitStatus>, said: Option<Outcome>) -> Outcome {
        match (self.stop, said) {
            (_, Some(outcome @ (Outcome::Done | Outcome::Waiting { .. }))) => outcome,
            (Some(Stop::Cancelled), _) => Outcome::Cancelled,
            (Some(Stop::TimedOut), _) => Outcome::TimedOut,
            (None, Some(outcome)) => self.words.judge(outcome),
            (None, None) => self.died(status),
        }
    }

    /// The worker ended without a word.
    fn died(&self, status: io::Result<ExitStatus>) -> Outcome {
        let status = match status {
            Ok(status) => status,
            Err(error) => return Outcome::machine(format!("its worker process was lost: {error}")),
        };
        match (status.signal(), status.code()) {
            (Some(signal), _) => Outcome::Killed { signal, out_of_memory: self.out_of_memory(signal) },
            (None, Some(BROKEN)) => Outcome::machine("its worker process could not do its part; see the log"),
            (None, code) => {
                let code = code.unwrap_or_default();
                Outcome::failed(format!("its worker process ended with exit code {code} before the stage did"))
            }
        }
    }

    fn out_of_memory(&self, signal: i32) -> bool {
        let killed = signal == Signal::KILL.as_raw() && self.memory.fired();
        killed || signal == Signal::ABORT.as_raw() && log_tail(&self.log, 4096).contains("memory allocation of")
    }
}

/// Passes notes on until the pipe closes; returns what the worker said about its end.
async fn listen(pipe: ChildStdout, attempt: AttemptId, notes: Notes) -> Option<(Outcome, Usage)> {
    let mut lines = BufReader::new(pipe).lines();
    let mut end = None;
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str(&line) {
            // A receiver that is gone wants no notes.
            Ok(Said::Note(note)) => drop(notes.send((attempt, note))),
            Ok(Said::End { outcome, usage }) => end = Some((outcome, usage)),
            // The last line of a worker that was killed while it spoke.
            Err(_) => {}
        }
    }
    end
}

/// The orders to one attempt.
pub(super) type Orders = tokio::sync::watch::Receiver<Order>;

/// The next order stronger than `obeyed`; never, when nobody is left to give one.
pub(super) async fn stronger(orders: &mut Orders, obeyed: Order) -> Order {
    let order = orders.wait_for(|order| *order > obeyed).await.map(|order| *order);
    match order {
        Ok(order) => order,
        Err(_) => std::future::pending().await,
    }
}

/// Waits for `due`; for ever without one.
pub(super) async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// The last `bytes` bytes of a log; empty when it cannot be read.
pub fn log_tail(path: &Path, bytes: u64) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        Ok(tail)
    };
    read().map(|tail| String::from_utf8_lossy(&tail).into_owned()).unwrap_or_default()
}
