//! What to make of what is seen: pure.

use std::time::Duration;

use super::place::Starts;
use super::poll::Seen;
use super::state::State;

/// What is known of a job at one moment.
pub(super) struct View<'a> {
    /// What Slurm says.
    pub(super) seen: &'a Seen,
    /// What its starts said.
    pub(super) starts: &'a Starts,
    /// Since when a start has been done.
    pub(super) done_for: Duration,
    /// Since when Slurm has said that the job is over.
    pub(super) over_for: Duration,
    /// The job was submitted by another engine, and this one has not seen it alive.
    pub(super) stale: bool,
}

/// How long things may take.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// For a job to leave after its stage is done.
    pub(super) leave: Duration,
    /// For an end file to appear after its job has left.
    pub(super) settle: Duration,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Look again later.
    Wait,
    /// Take the outputs of this start.
    Accept(u32),
    /// It ended, but not with outputs.
    Over,
    /// It ended badly before this engine looked: the stage deserves another try.
    Anew,
}

/// The next step.
pub(super) fn decide(view: &View<'_>, limits: Limits) -> Step {
    if let Some((number, _)) = &view.starts.done {
        let leaving = match view.seen {
            Seen::Job(row, _) => row.state.is_alive() && row.state != State::Completing,
            Seen::NotYet => true,
            Seen::Unknown(_) | Seen::Gone => false,
        };
        return if leaving && view.done_for < limits.leave { Step::Wait } else { Step::Accept(*number) };
    }
    match view.seen {
        Seen::NotYet | Seen::Unknown(_) => Step::Wait,
        Seen::Job(row, _) if row.state.is_alive() => Step::Wait,
        _ if view.starts.said.is_none() && view.over_for < limits.settle => Step::Wait,
        _ if view.stale => Step::Anew,
        _ => Step::Over,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::slurm::parse::rows;
    use crate::executor::slurm::place::Said;
    use crate::job::{Outcome, Usage};
    use tokio::time::Instant;

    const LIMITS: Limits = Limits { leave: Duration::from_secs(5), settle: Duration::from_secs(10) };

    fn job(state: &str) -> Seen {
        Seen::Job(rows(&format!("1|{state}|None|0:01|n1|a")).remove(0), Instant::now())
    }

    fn starts(newest: u32, said: Option<Outcome>, done: Option<u32>) -> Starts {
        let end = |outcome| Said { outcome, usage: Usage::default() };
        Starts { newest, said: said.map(end), done: done.map(|number| (number, end(Outcome::Done))) }
    }

    fn step(seen: &Seen, starts: &Starts, seconds: u64, stale: bool) -> Step {
        let since = Duration::from_secs(seconds);
        decide(&View { seen, starts, done_for: since, over_for: since, stale }, LIMITS)
    }

    #[test]
    fn a_controller_that_is_down_ends_nothing() {
        let unknown = Seen::Unknown("down".into());
        assert_eq!(step(&unknown, &starts(1, None, None), 100_000, false), Step::Wait);
        assert_eq!(step(&unknown, &starts(1, Some(Outcome::Cancelled), None), 100_000, false), Step::Wait);
        assert_eq!(step(&unknown, &starts(1, None, Some(1)), 0, false), Step::Accept(1), "files are enough to be done");
    }

    #[test]
    fn a_done_start_is_taken_when_its_job_has_left_or_stays_too_long() {
        let done = starts(2, None, Some(1));
        assert_eq!(step(&job("RUNNING"), &done, 0, false), Step::Wait);
        assert_eq!(step(&job("RUNNING"), &done, 6, false), Step::Accept(1), "a second copy runs on");
        for state in ["COMPLETING", "COMPLETED", "NODE_FAIL"] {
            assert_eq!(step(&job(state), &done, 0, true), Step::Accept(1), "{state}");
        }
        assert_eq!(step(&Seen::Gone, &done, 0, true), Step::Accept(1), "it ended while no engine looked");
    }

    #[test]
    fn a_requeued_job_is_waited_for() {
        let preempted = starts(1, Some(Outcome::Cancelled), None);
        for state in ["PENDING", "REQUEUED", "RUNNING", "SUSPENDED", "COMPLETING"] {
            assert_eq!(step(&job(state), &preempted, 100, false), Step::Wait, "{state}");
        }
    }

    #[test]
    fn an_end_without_a_word_is_believed_after_a_while() {
        let silent = starts(1, None, None);
        for seen in [job("COMPLETED"), job("FAILED"), Seen::Gone] {
            assert_eq!(step(&seen, &silent, 9, false), Step::Wait);
            assert_eq!(step(&seen, &silent, 10, false), Step::Over);
            assert_eq!(step(&seen, &silent, 10, true), Step::Anew);
        }
        let failed = starts(1, Some(Outcome::failed("no luck")), None);
        assert_eq!(step(&job("FAILED"), &failed, 0, false), Step::Over);
        assert_eq!(step(&job("FAILED"), &failed, 0, true), Step::Anew);
    }
}
