//! Slurm's states, and what they come to.

use rustix::process::Signal;

use crate::job::Outcome;
use crate::worker::BROKEN;

/// A job's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Waits in the queue, for the first time or again.
    Pending,
    /// Has hosts and runs, or will in a moment.
    Running,
    /// No host could start it, and Slurm holds it back.
    Held,
    /// Its processes are gone; Slurm tidies up.
    Completing,
    /// Ended with exit code 0.
    Completed,
    /// Ended otherwise.
    Failed,
    /// Its time was up.
    TimedOut,
    /// The kernel ended it for its memory.
    OutOfMemory,
    /// Its host was lost.
    NodeFailed,
    /// Its host did not come up.
    BootFailed,
    /// Something more important took its place.
    Preempted,
    /// `scancel`.
    Cancelled,
    /// Another cluster of a federation took it.
    Revoked,
    /// Anything else. No word of an end, so it lives.
    Other(String),
}

impl State {
    /// `RUNNING`, `CANCELLED by 1000`, `CANCELLED+`.
    pub(super) fn read(text: &str) -> Self {
        let word = text.split([' ', '+']).next().unwrap_or_default();
        match word {
            "PENDING" | "REQUEUED" | "REQUEUE_FED" | "REQUEUE_HOLD" | "RESV_DEL_HOLD" | "SPECIAL_EXIT" => Self::Pending,
            "RUNNING" | "CONFIGURING" | "SIGNALING" | "STAGE_OUT" => Self::Running,
            "COMPLETING" => Self::Completing,
            "COMPLETED" => Self::Completed,
            "FAILED" | "LAUNCH_FAILED" | "RECONFIG_FAIL" => Self::Failed,
            "TIMEOUT" | "DEADLINE" => Self::TimedOut,
            "OUT_OF_MEMORY" => Self::OutOfMemory,
            "NODE_FAIL" => Self::NodeFailed,
            "BOOT_FAIL" => Self::BootFailed,
            "PREEMPTED" => Self::Preempted,
            "CANCELLED" => Self::Cancelled,
            "REVOKED" => Self::Revoked,
            other => Self::Other(other.to_owned()),
        }
    }

    /// Whether it may still do something.
    pub(super) fn is_alive(&self) -> bool {
        matches!(self, Self::Pending | Self::Running | Self::Completing | Self::Other(_))
    }

    /// Whether Slurm has stopped it, rather than its script ended.
    fn is_stopped(&self) -> bool {
        matches!(self, Self::TimedOut | Self::NodeFailed | Self::Preempted | Self::Cancelled)
    }

    /// One word for people.
    pub(super) fn describe(&self) -> &str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Held => "held",
            Self::Completing => "completing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::TimedOut => "out of time",
            Self::OutOfMemory => "out of memory",
            Self::NodeFailed => "its host was lost",
            Self::BootFailed => "its host did not boot",
            Self::Preempted => "preempted",
            Self::Cancelled => "cancelled",
            Self::Revoked => "revoked",
            Self::Other(word) => word,
        }
    }
}

/// How the job's script ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Exit {
    /// Exit code.
    pub(super) code: i32,
    /// Signal, 0 for none.
    pub(super) signal: i32,
}

/// Why mpcc told the job to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The run is being stopped.
    Cancelled,
    /// The stage's own time limit.
    TimedOut,
}

/// What is known of an attempt that is over.
#[derive(Debug)]
pub(super) struct Ended<'a> {
    /// `12`, for messages.
    pub(super) job: String,
    /// Its hosts, for messages.
    pub(super) hosts: &'a str,
    /// What Slurm says; nothing when it knows the job no more.
    pub(super) slurm: Option<(State, Exit)>,
    /// What its newest start said.
    pub(super) said: Option<Outcome>,
    /// Whether mpcc told it to stop.
    pub(super) stop: Option<Stop>,
}

/// How an attempt ended. The table of [`super`].
pub(super) fn outcome(ended: Ended<'_>) -> Outcome {
    let kill = Signal::KILL.as_raw();
    let memory = matches!(ended.slurm, Some((State::OutOfMemory, _)));
    let stopped = ended.slurm.as_ref().is_some_and(|(state, _)| state.is_stopped());
    match (ended.said.clone(), ended.stop) {
        (Some(outcome @ (Outcome::Done | Outcome::Waiting { .. })), _) => outcome,
        (_, Some(Stop::Cancelled)) => Outcome::Cancelled,
        (_, Some(Stop::TimedOut)) => Outcome::TimedOut,
        (Some(Outcome::Killed { .. }) | None, None) if memory => Outcome::Killed { signal: kill, out_of_memory: true },
        // What a stage says of a signal that Slurm sent it tells less than Slurm does.
        (Some(Outcome::Cancelled) | None, None) => unsaid(&ended),
        (Some(_), None) if stopped => unsaid(&ended),
        (Some(said), None) => said,
    }
}

/// Slurm's word alone.
fn unsaid(ended: &Ended<'_>) -> Outcome {
    let Ended { job, hosts, slurm, .. } = ended;
    let place = if hosts.is_empty() { String::new() } else { format!(" on {hosts}") };
    let Some((state, exit)) = slurm else {
        return Outcome::machine(format!("Slurm knows nothing of job {job} any more, and the stage left no end"));
    };
    match state {
        State::Failed => failed(job, &place, *exit),
        State::TimedOut => Outcome::TimedOut,
        State::NodeFailed => Outcome::machine(format!("Slurm lost the host of job {job}{place} (NODE_FAIL)")),
        State::BootFailed => Outcome::machine(format!("the host of job {job}{place} did not boot (BOOT_FAIL)")),
        State::Preempted => Outcome::machine(format!("Slurm job {job}{place} was preempted")),
        State::Revoked => Outcome::machine(format!("Slurm job {job} was revoked")),
        State::Held => Outcome::machine(format!("no host could launch Slurm job {job}, and Slurm held it back")),
        State::Cancelled => Outcome::machine(format!("somebody cancelled Slurm job {job}{place}")),
        State::Completed => Outcome::machine(format!(
            "Slurm job {job}{place} completed, but no end of its stage is in the store: is the store on a file system that the \
             hosts share?"
        )),
        other => Outcome::machine(format!("Slurm job {job}{place} ended: {}", other.describe())),
    }
}

fn failed(job: &str, place: &str, exit: Exit) -> Outcome {
    match exit {
        // Not a signal: Slurm's mark for a log that cannot be opened.
        Exit { signal: 53, .. } => {
            Outcome::machine(format!("Slurm job {job}{place} cannot write its log below the store"))
        }
        Exit { signal: signal @ 1.., .. } => Outcome::Killed { signal, out_of_memory: false },
        Exit { code: 126 | 127, .. } => Outcome::machine(format!(
            "Slurm job {job}{place} cannot start mpcc: the program must have the same path on every host; see the log"
        )),
        Exit { code: BROKEN, .. } => {
            Outcome::machine(format!("the worker of Slurm job {job}{place} could not do its part; see the log"))
        }
        Exit { code, .. } => {
            Outcome::failed(format!("Slurm job {job}{place} ended with exit code {code} before its stage did"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(slurm: Option<(State, Exit)>, said: Option<Outcome>, stop: Option<Stop>) -> Outcome {
        outcome(Ended { job: "12".into(), hosts: "n3", slurm, said, stop })
    }

    fn says(word: &str, code: i32, signal: i32) -> Outcome {
        ends(Some((State::read(word), Exit { code, signal })), None, None)
    }

    #[test]
    fn slurms_word_decides_when_the_stage_said_none() {
        let killed = |signal, out_of_memory| Outcome::Killed { signal, out_of_memory };
        assert_eq!(says("FAILED", 0, 11), killed(11, false));
        assert_eq!(says("FAILED", 0, 9), killed(9, false));
        assert_eq!(says("OUT_OF_MEMORY", 0, 125), killed(9, true));
        assert_eq!(says("TIMEOUT", 0, 0), Outcome::TimedOut);
        for (word, code, signal, hint) in [
            ("FAILED", 127, 0, "same path"),
            ("FAILED", 0, 53, "log"),
            ("FAILED", BROKEN, 0, "worker"),
            ("NODE_FAIL", 0, 0, "NODE_FAIL"),
            ("BOOT_FAIL", 0, 0, "BOOT_FAIL"),
            ("PREEMPTED", 0, 15, "preempted"),
            ("CANCELLED by 1000", 0, 15, "cancelled"),
            ("COMPLETED", 0, 0, "share"),
        ] {
            let outcome = says(word, code, signal);
            assert!(outcome.is_machine() && outcome.describe().contains(hint), "{word} {code}:{signal}: {outcome:?}");
            assert!(outcome.describe().contains("12"), "{outcome:?}");
        }
        let failed = says("FAILED", 3, 0).describe();
        assert!(says("FAILED", 4, 0).describe().contains("exit code 4") && !failed.contains("exit code"), "{failed}");
        assert!(ends(None, None, None).is_machine());
        let held = ends(Some((State::Held, Exit::default())), None, None);
        assert!(held.is_machine() && held.describe().contains("held"));
    }

    #[test]
    fn the_stages_word_comes_first() {
        let completed = || Some((State::Completed, Exit::default()));
        let cancelled = || Some((State::Cancelled, Exit { code: 0, signal: 15 }));
        let failed = Outcome::failed("no luck");
        assert_eq!(ends(cancelled(), Some(Outcome::Done), Some(Stop::Cancelled)), Outcome::Done);
        assert_eq!(ends(None, Some(Outcome::Done), None), Outcome::Done);
        assert_eq!(ends(completed(), Some(failed.clone()), None), failed);
        assert_eq!(ends(cancelled(), Some(failed), Some(Stop::TimedOut)), Outcome::TimedOut);
        assert_eq!(ends(cancelled(), None, Some(Stop::Cancelled)), Outcome::Cancelled);
        let preempted = ends(Some((State::Preempted, Exit::default())), Some(Outcome::Cancelled), None);
        assert!(preempted.describe().contains("preempted"));
        let terminated = Outcome::Killed { signal: 15, out_of_memory: false };
        assert!(ends(cancelled(), Some(terminated), None).describe().contains("somebody"));
        let killed = Outcome::Killed { signal: 9, out_of_memory: false };
        let memory = ends(Some((State::OutOfMemory, Exit::default())), Some(killed), None);
        assert_eq!(memory, Outcome::Killed { signal: 9, out_of_memory: true });
    }

    #[test]
    fn states_that_nobody_knows_are_alive() {
        for word in ["PENDING", "RUNNING", "SUSPENDED", "REQUEUED", "COMPLETING", "SOMETHING_NEW"] {
            assert!(State::read(word).is_alive(), "{word}");
        }
        for word in ["COMPLETED", "FAILED", "CANCELLED+", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"] {
            assert!(!State::read(word).is_alive(), "{word}");
        }
    }
}
