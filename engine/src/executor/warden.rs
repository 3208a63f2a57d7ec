//! The warden: one small process a run that starts its commands, so that a command costs one process and not two.
//!
//! What a worker guarantees for its stage, the warden guarantees for all the commands of a run:
//!
//! | guarantee | how |
//! |---|---|
//! | nothing outlives its stage | when a command ends, its process group dies, and so does every orphan that carries its mark |
//! | nothing outlives the engine | the warden's standard input closes, and everything below the warden dies |
//! | an orphan is found, wherever it moved | the warden is the sub-reaper: whoever loses its parent becomes its child |
//! | usage is told | CPU time and peak memory come with the process's end (`wait4`), those of orphans that it leaves too |
//!
//! The mark is the variable [`MARK`] in a command's environment. A process that leaves its group *and* clears its environment
//! cannot be told from those of other stages; it dies with the run at the latest.
//!
//! Two threads: one obeys the engine's lines, one waits for processes. Both hold the lock while they look at or change which
//! commands are alive, and a process is reaped under it, so no signal ever reaches a stranger that got an old number.
//!
//! Secrets do not pass here: a stage that is given some runs under a worker, which keeps them out of its log.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use rustix::process::{Pid, Signal, getpid, kill_process, kill_process_group, set_child_subreaper};
use serde::{Deserialize, Serialize};

use super::tree::{children, descendants, is_running, kill_descendants};

/// The variable by which a stray process is known to belong to a stage.
pub const MARK: &str = "MPCC_ATTEMPT";

/// How often an empty environment is looked at, a millisecond apart.
const LOOKS: u32 = 20;

/// What the engine asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ask {
    /// Start a command.
    Start(Start),
    /// Send SIGTERM to everything that a command started.
    Stop(u64),
    /// Kill everything that a command started.
    Kill(u64),
}

/// A command to start.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    /// The attempt.
    pub(crate) id: u64,
    /// The program's file, or its name to be looked for.
    pub(crate) program: PathBuf,
    /// The program as it is called, and its arguments.
    pub(crate) words: Vec<String>,
    /// Working directory.
    pub(crate) cwd: PathBuf,
    /// Variables beside those of the warden.
    pub(crate) env: Vec<(String, String)>,
    /// Where standard output and error go, appended.
    pub(crate) log: PathBuf,
}

/// What the warden answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Told {
    /// A command runs as this process, leader of its own group.
    Started {
        /// The attempt.
        id: u64,
        /// The process.
        pid: i32,
    },
    /// A command could not be started.
    Refused {
        /// The attempt.
        id: u64,
        /// Whether there is no such program or folder.
        absent: bool,
        /// Why.
        message: String,
    },
    /// A command is over, and everything that it started.
    Ended {
        /// The attempt.
        id: u64,
        /// Its raw wait status.
        status: i32,
        /// CPU time in seconds, of all it waited for too.
        cpu_s: f64,
        /// Largest resident set of any of them in bytes.
        peak_rss_bytes: u64,
    },
}

/// The commands that are alive: process -> attempt.
#[derive(Default)]
struct Live {
    commands: BTreeMap<i32, u64>,
    closing: bool,
}

struct Warden {
    live: Mutex<Live>,
    /// Told when there is something to wait for.
    busy: Condvar,
}

/// Obeys the lines of standard input until it closes, then kills everything and returns the process's exit code.
pub fn warden_main() -> i32 {
    // Without it an orphan would only be harder to find.
    let _ = set_child_subreaper(Some(getpid()));
    let warden = Warden { live: Mutex::default(), busy: Condvar::new() };
    std::thread::scope(|scope| {
        scope.spawn(|| warden.reap());
        for line in io::stdin().lock().lines() {
            // A line that is no request comes from no engine; its end is the end.
            let Some(ask) = line.ok().and_then(|line| serde_json::from_str(&line).ok()) else { break };
            warden.obey(ask);
        }
        kill_descendants(getpid());
        warden.lock().closing = true;
        warden.busy.notify_all();
    });
    0
}

/// Says a line to the engine. One that is gone does not miss it.
fn say(told: &Told) {
    let line = serde_json::to_string(told).expect("plain data") + "\n";
    let _ = io::stdout().lock().write_all(line.as_bytes());
}

impl Warden {
    fn lock(&self) -> std::sync::MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn obey(&self, ask: Ask) {
        match ask {
            Ask::Start(start) => self.start(&start),
            Ask::Stop(id) => self.signal(id, Signal::TERM),
            Ask::Kill(id) => self.signal(id, Signal::KILL),
        }
    }

    fn start(&self, start: &Start) {
        let id = start.id;
        let mut live = self.lock();
        match spawn(start) {
            Ok(pid) => {
                live.commands.insert(pid, id);
                say(&Told::Started { id, pid });
                self.busy.notify_all();
            }
            Err(error) => {
                let absent = error.kind() == io::ErrorKind::NotFound;
                say(&Told::Refused { id, absent, message: error.to_string() });
            }
        }
    }

    /// Signals everything below a command, and the command.
    fn signal(&self, id: u64, signal: Signal) {
        let live = self.lock();
        let Some(leader) =
            live.commands.iter().find(|(_, other)| **other == id).and_then(|(pid, _)| Pid::from_raw(*pid))
        else {
            return;
        };
        for pid in descendants(leader).into_iter().chain([leader]).chain(strays(&live, id)) {
            // Gone already: nothing to tell.
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits for processes until the warden closes.
    fn reap(&self) {
        loop {
            match wait_for_any() {
                Ok(pid) => self.ended(pid),
                Err(Errno::ECHILD) => {
                    let live = self.lock();
                    if live.closing {
                        return;
                    }
                    if live.commands.is_empty() {
                        drop(self.busy.wait(live).unwrap_or_else(PoisonError::into_inner));
                    }
                }
                // Interrupted.
                Err(_) => {}
            }
        }
    }

    /// Reaps a process that has ended; if it was a command, sweeps up behind it.
    fn ended(&self, pid: i32) {
        let mut live = self.lock();
        if live.commands.contains_key(&pid)
            && let Some(group) = Pid::from_raw(pid)
        {
            // Before it is reaped: until then its number is nobody else's. An empty group is what is wanted.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let (status, mut cpu_s, mut peak_rss_bytes) = reap_one(pid);
        let Some(id) = live.commands.remove(&pid) else { return };
        loop {
            let left = strays(&live, id);
            if left.is_empty() {
                break;
            }
            for stray in left {
                let _ = kill_process(stray, Signal::KILL);
                let (_, cpu, peak) = reap_one(stray.as_raw_nonzero().get());
                cpu_s += cpu;
                peak_rss_bytes = peak_rss_bytes.max(peak);
            }
        }
        say(&Told::Ended { id, status, cpu_s, peak_rss_bytes });
    }
}

fn spawn(start: &Start) -> io::Result<i32> {
    let log = OpenOptions::new().create(true).append(true).open(&start.log)?;
    let mut command = Command::new(&start.program);
    command.arg0(&start.words[0]).args(&start.words[1..]).current_dir(&start.cwd).process_group(0);
    command.envs(start.env.iter().map(|(name, value)| (name, value))).env(MARK, start.id.to_string());
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(command.spawn()?.id().cast_signed())
}

/// The warden's own children that are no commands but carry the mark of attempt `id`: they lost their parents.
fn strays(live: &Live, id: u64) -> Vec<Pid> {
    let mark = format!("{MARK}={id}");
    let orphans = children("self").into_iter().filter(|pid| !live.commands.contains_key(pid));
    orphans.filter(|pid| carries(*pid, mark.as_bytes())).filter_map(Pid::from_raw).collect()
}

/// Whether a process carries the mark. While it replaces its program its environment reads empty for a moment, so an empty one
/// is looked at again.
fn carries(pid: i32, mark: &[u8]) -> bool {
    for _ in 0..LOOKS {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        if !environment.is_empty() {
            return environment.split(|byte| *byte == 0).any(|variable| variable == mark);
        }
        if !is_running(pid) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

/// Waits until any child is dead, and leaves it to be reaped.
#[allow(
    unsafe_code,
    reason = "safe wrappers refuse processes that died of a real-time signal, which would block all others"
)]
fn wait_for_any() -> nix::Result<i32> {
    // SAFETY: all zeros is a valid siginfo.
    let mut told: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer leads to a live value of the right type.
    Errno::result(unsafe { libc::waitid(libc::P_ALL, 0, &raw mut told, libc::WEXITED | libc::WNOWAIT) })?;
    // SAFETY: waitid has filled in the part of a child's end.
    Ok(unsafe { told.si_pid() })
}

/// Takes a process that is dead or dying off the kernel's list: raw wait status, CPU seconds, peak bytes.
#[allow(
    unsafe_code,
    reason = "wait4 is the one call that tells what a single process used, and no safe wrapper has it"
)]
fn reap_one(pid: i32) -> (i32, f64, u64) {
    let mut status = 0;
    // SAFETY: all zeros is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers lead to live values of the right types.
        let reaped = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
        if reaped == pid || Errno::last() != Errno::EINTR {
            break;
        }
    }
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 * 1e-6;
    // Linux counts kibibytes.
    let peak = u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024;
    (status, seconds(usage.ru_utime) + seconds(usage.ru_stime), peak)
}
