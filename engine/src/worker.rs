//! The worker: the child side of a stage. It reads the job, runs the stage, and says how it ended.
//!
//! In order: move the pipes away so that the stage's own output goes to the log ([`Pipes`]); become the reaper of
//! everything the stage will start; watch the lifeline and SIGTERM; run; end what the stage left behind; say the end.
//!
//! | event | a built-in kind | a command | a record stage |
//! |---|---|---|---|
//! | SIGTERM | its cancel flag is set | the flag, and SIGTERM to all it started | the flag: the record at hand is finished |
//! | the engine dies | everything below is killed, then this process | likewise | likewise |
//!
//! A job file also runs by hand: then standard input is no pipe and there is no lifeline, and notes go to standard output.
//! Under a batch system several processes may be given one job file; each [claims](start_main) a folder of its own, and files there
//! take the place of the pipes.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use mpcc_cache::{Digest, MemoStore, Store, StoreOptions};
use nix::sys::resource::{UsageWho, getrusage};
use rustix::fs::{FileType, fstat};
use rustix::process::{Signal, WaitOptions, getpgrp, getpid, kill_process_group, set_child_subreaper};

use crate::asking::{Asking, Secrets};
use crate::command;
use crate::executor::meter::Meter;
use crate::executor::redact::Redactor;
use crate::executor::slurm::{Start, foreign};
use crate::executor::speech::Speech;
use crate::executor::tree::{kill_descendants, signal_descendants};
use crate::gpu::NvidiaSmi;
use crate::job::{Job, Outcome, Usage, names_full_gpu};
use crate::plan::Action;
use crate::registry::Registry;
use crate::resources::Memory;
use crate::stage::{Context, Memo, MemoryMemo, NoteSink, StageError};

/// Exit code of a worker that could not read its job or say how it ended.
pub(crate) const BROKEN: i32 = 3;

/// Stack of the thread a stage runs on: differentiating a deep graph recurses. Untouched pages cost nothing.
const STACK: usize = 512 << 20;

impl Memo for MemoStore {
    fn get(&self, namespace: &str, key: &Digest) -> Option<Vec<u8>> {
        Self::get(self, namespace, key)
    }

    fn contains(&self, namespace: &str, key: &Digest) -> bool {
        Self::contains(self, namespace, key)
    }

    fn put(&self, namespace: &str, key: &Digest, value: &[u8]) -> io::Result<()> {
        Self::put(self, namespace, key, value)
    }
}

/// Carries out the job in file `job` and returns the process's exit code: 0 when the end was said, whatever it was.
/// `secrets` gives the keys that the stage asks with, and what is to be kept out of the log.
pub fn worker_main(job: &Path, registry: &Registry, secrets: &Secrets) -> i32 {
    let job = Job::read(job).map_err(io::Error::other);
    match job.and_then(|job| attempt(&job, None, registry, secrets)) {
        Ok(_) => 0,
        Err(error) => broken(&error),
    }
}

/// One start of the batch job whose file is `job`: like [`worker_main`], in a folder of its own below the job's. Returns 0 when
/// the stage is done, 1 when its end was said and is another.
pub fn start_main(job: &Path, registry: &Registry, secrets: &Secrets) -> i32 {
    let start = Start::claim(job);
    match start.and_then(|(start, job)| attempt(&job, Some(&start), registry, secrets)) {
        Ok(Outcome::Done) => 0,
        Ok(_) => 1,
        Err(error) => broken(&error),
    }
}

fn broken(error: &io::Error) -> i32 {
    // Standard error is the log.
    let _ = io::Write::write_all(&mut io::stderr(), format!("worker: {error}\n").as_bytes());
    BROKEN
}

fn attempt(job: &Job, start: Option<&Start>, registry: &Registry, secrets: &Secrets) -> io::Result<Outcome> {
    let redactor = Redactor::new(job.secret_names().iter().filter_map(|name| secrets(name)).collect());
    let pipes = Pipes::take(&redactor)?;
    let notes = start.map_or(Ok(pipes.notes), Start::notes)?;
    let speech = Arc::new(Speech::new(notes, redactor.clone()));
    // Without it a stray grandchild would only be harder to find.
    let _ = set_child_subreaper(Some(getpid()));
    if let Some(lifeline) = pipes.lifeline {
        watch_lifeline(lifeline);
    }
    if let Some(start) = start {
        start.watch(kill_everything);
    }
    // Under a batch system nobody else looks at its processes and devices.
    let watching = start.map(|_| {
        let meter = Meter::new(Some(Arc::new(NvidiaSmi::default())));
        meter.watch(getpid().as_raw_pid(), (0..job.devices.len()).collect())
    });
    let cancel = Arc::new(AtomicBool::new(false));
    let passes_on = matches!(&job.action, Action::Command(command) if command.each.is_none());
    watch_termination(cancel.clone(), passes_on)?;

    let refused = start.and_then(|_| foreign(job));
    let outcome = refused
        .unwrap_or_else(|| on_large_stack(|| carry_out(job, registry, (secrets, &redactor), speech.clone(), cancel)));
    kill_descendants(getpid());
    reap();
    let usage = watching.map(|watching| watching.peaks()).unwrap_or_default().add_to(usage());
    if let Some(log) = pipes.log {
        log.close();
    }
    speech.end(outcome.clone(), usage)?;
    if let Some(start) = start {
        start.end(&outcome, usage, &redactor)?;
    }
    Ok(outcome)
}

/// The worker's three descriptors, out of the stage's reach.
struct Pipes {
    notes: File,
    lifeline: Option<File>,
    log: Option<Log>,
}

impl Pipes {
    /// From here on standard input is empty, and standard output and error are the log, by way of `redactor` when there
    /// are secrets.
    fn take(redactor: &Redactor) -> io::Result<Self> {
        let (input, output, error) = (io::stdin(), io::stdout(), io::stderr());
        let lifeline = FileType::from_raw_mode(fstat(&input)?.st_mode) == FileType::Fifo;
        let lifeline = lifeline.then(|| keep(&input)).transpose()?;
        let notes = keep(&output)?;
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        let log = if redactor.is_empty() {
            rustix::stdio::dup2_stdout(&error)?;
            None
        } else {
            Some(Log::open(keep(&error)?, redactor.clone())?)
        };
        Ok(Self { notes, lifeline, log })
    }
}

/// A copy of a descriptor that no child inherits.
fn keep(descriptor: impl AsFd) -> io::Result<File> {
    Ok(File::from(descriptor.as_fd().try_clone_to_owned()?))
}

/// A thread that takes the secrets out of what the stage prints.
struct Log(JoinHandle<io::Result<()>>);

impl Log {
    fn open(log: File, redactor: Redactor) -> io::Result<Self> {
        let (read, write): (OwnedFd, OwnedFd) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        rustix::stdio::dup2_stdout(&write)?;
        rustix::stdio::dup2_stderr(&write)?;
        let copy = move || redactor.copy(File::from(read), log);
        Ok(Self(std::thread::Builder::new().name("log".to_owned()).spawn(copy)?))
    }

    /// Closes this process's ends of the pipe and waits for the rest. Everything the stage started is gone by now.
    fn close(self) {
        let Ok(null) = File::options().write(true).open("/dev/null") else { return };
        if rustix::stdio::dup2_stdout(&null).is_ok() && rustix::stdio::dup2_stderr(&null).is_ok() {
            // What could not be written to the log is lost with it.
            let _ = self.0.join();
        }
    }
}

/// Kills everything below, and this process, when the engine dies.
fn watch_lifeline(mut lifeline: File) {
    std::thread::spawn(move || {
        // Nothing is ever written to it: any return is the end.
        let _ = lifeline.read(&mut [0]);
        kill_everything();
    });
}

/// Kills all that the stage has started, and this process.
fn kill_everything() {
    kill_descendants(getpid());
    // It cannot fail for one's own group.
    let _ = kill_process_group(getpgrp(), Signal::KILL);
}

/// Sets `cancel` at SIGTERM, and passes the signal on when `passes_on`.
fn watch_termination(cancel: Arc<AtomicBool>, passes_on: bool) -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut terminations = runtime.block_on(async { signal(SignalKind::terminate()) })?;
    std::thread::spawn(move || {
        while runtime.block_on(terminations.recv()).is_some() {
            cancel.store(true, Ordering::Relaxed);
            if passes_on {
                signal_descendants(getpid(), Signal::TERM);
            }
        }
    });
    Ok(())
}

fn on_large_stack(work: impl FnOnce() -> Outcome + Send) -> Outcome {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("stage".to_owned()).stack_size(STACK);
        match thread.spawn_scoped(scope, work) {
            Ok(thread) => thread.join().unwrap_or_else(|_| Outcome::failed("the stage panicked")),
            Err(error) => Outcome::machine(format!("no thread for the stage: {error}")),
        }
    })
}

fn carry_out(
    job: &Job,
    registry: &Registry,
    (secrets, redactor): (&Secrets, &Redactor),
    notes: Arc<dyn NoteSink>,
    cancel: Arc<AtomicBool>,
) -> Outcome {
    let store = match Store::open(&job.store, StoreOptions { sync: false, ..StoreOptions::default() }) {
        Ok(store) => store,
        Err(error) => return Outcome::machine(format!("the store cannot be opened: {error}")),
    };
    let asking = Asking::new(store.clone(), own_secrets(job, secrets), redactor.clone());
    let memo: Arc<dyn Memo> = if job.fresh { Arc::new(MemoryMemo::default()) } else { Arc::new(store.memo()) };
    let ctx = context(job, memo, asking, notes, cancel);
    let outcome = match &job.action {
        Action::Command(command) => command::carry_out(command, &ctx, &job.failed_records()),
        Action::Builtin { kind, version, params, .. } => builtin(registry, kind, *version, params, &ctx),
    };
    if outcome == Outcome::Done { job.outputs_written() } else { outcome }
}

/// Only the secrets that the job names.
fn own_secrets(job: &Job, secrets: &Secrets) -> Secrets {
    let (names, secrets) = (job.secret_names(), secrets.clone());
    Arc::new(move |name| names.contains(name).then(|| secrets(name)).flatten())
}

fn context(
    job: &Job,
    memo: Arc<dyn Memo>,
    asking: Asking,
    notes: Arc<dyn NoteSink>,
    cancel: Arc<AtomicBool>,
) -> Context {
    Context {
        node: job.node.clone(),
        matrix: job.matrix.clone(),
        seed: job.seed,
        threads: job.threads,
        // CUDA_VISIBLE_DEVICES hides the others, so this process counts from 0.
        devices: (0..job.devices.len()).collect(),
        inputs: job.inputs.clone(),
        outputs: job.outputs.iter().map(|(port, output)| (port.clone(), output.path.clone())).collect(),
        scratch: job.scratch(),
        partial: job.partial.clone(),
        memo,
        asking,
        notes,
        cancel,
    }
}

/// Runs a built-in kind.
pub(crate) fn builtin(
    registry: &Registry,
    kind: &str,
    version: u32,
    params: &serde_json::Value,
    ctx: &Context,
) -> Outcome {
    let Some(found) = registry.get(kind).filter(|found| found.version == version) else {
        return Outcome::invalid(format!("this mpcc has no kind `{kind}` of version {version}"));
    };
    let stage = match found.parse(params.clone()) {
        Ok(stage) => stage,
        Err(error) => return Outcome::invalid(format!("parameters of `{kind}`: {error}")),
    };
    match catch_unwind(AssertUnwindSafe(|| stage.run(ctx))) {
        Ok(Ok(())) => Outcome::Done,
        // Libraries tell of a full GPU in words only, and they reach us as any error. Without a device they are a server's
        // words about its own.
        Ok(Err(StageError::Invalid(message) | StageError::Machine(message)))
            if !ctx.devices.is_empty() && names_full_gpu(&message) =>
        {
            Outcome::OutOfMemory { memory: Memory::Gpu, message }
        }
        Ok(Err(error)) => error.into(),
        Err(panic) => {
            let text = panic_text(panic.as_ref());
            Outcome::failed(format!("the stage panicked: {text}")).recognised(text)
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("see the log")
}

/// Takes what it has left behind, dead by now, off the kernel's list: only then it counts.
fn reap() {
    // An error says that there is none left.
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
}

/// CPU time of this process and all it waited for, and the largest resident set of any of them.
fn usage() -> Usage {
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 * 1e-6;
    let used = [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN].map(|who| getrusage(who).ok());
    let used: Vec<_> = used.into_iter().flatten().collect();
    let cpu_s = used.iter().map(|used| seconds(used.user_time()) + seconds(used.system_time())).sum();
    // Linux counts kibibytes.
    let peak = used.iter().map(|used| u64::try_from(used.max_rss()).unwrap_or(0) * 1024).max();
    Usage { cpu_s, peak_rss_bytes: peak.unwrap_or(0), ..Usage::default() }
}
