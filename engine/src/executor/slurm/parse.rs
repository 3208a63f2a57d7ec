//! What Slurm's commands print, read. Pure.

use std::time::Duration;

use super::state::{Exit, State};

/// The format that [`rows`] reads, for `squeue`.
pub(super) const FORMAT: &str = "%i|%T|%r|%M|%N|%j";

/// Why a job waits that no host could start: until an operator releases it, which may be never.
const HELD: &str = "launch failed requeued held";

/// One job as `squeue` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// Its number.
    pub(super) id: u64,
    /// Its state.
    pub(super) state: State,
    /// Why it waits, or `None`.
    pub(super) reason: String,
    /// How long its present start has been running.
    pub(super) elapsed: Duration,
    /// The hosts it has.
    pub(super) hosts: String,
    /// Its name.
    pub(super) name: String,
}

/// The lines of `squeue --noheader --format=FORMAT`. What is no such line (a warning of a plugin) is skipped.
pub(super) fn rows(text: &str) -> Vec<Row> {
    text.lines().filter_map(row).collect()
}

fn row(line: &str) -> Option<Row> {
    let fields: Vec<&str> = line.trim().splitn(6, '|').collect();
    let [id, state, reason, elapsed, hosts, name] = fields[..] else { return None };
    Some(Row {
        id: id.parse().ok()?,
        state: if reason.contains(HELD) { State::Held } else { State::read(state) },
        reason: reason.to_owned(),
        elapsed: self::elapsed(elapsed).unwrap_or_default(),
        hosts: hosts.to_owned(),
        name: name.to_owned(),
    })
}

/// `days-hours:minutes:seconds`, the left parts missing when they are 0.
pub(super) fn elapsed(text: &str) -> Option<Duration> {
    let (days, clock) = text.split_once('-').unwrap_or(("0", text));
    let mut seconds = 0;
    for part in clock.split(':') {
        seconds = seconds * 60 + part.parse::<u64>().ok()?;
    }
    Some(Duration::from_secs(days.parse::<u64>().ok()? * 86_400 + seconds))
}

/// The job's number from `sbatch --parsable`: `12`, or `12;cluster`, perhaps after lines of a submit plugin.
pub(super) fn submitted(text: &str) -> Option<u64> {
    text.lines().rev().find_map(|line| line.trim().split(';').next()?.parse().ok())
}

/// State and exit code from `scontrol --oneliner show job`.
pub(super) fn shown(text: &str) -> Option<(State, Exit)> {
    let field = |name: &str| text.split_ascii_whitespace().find_map(|word| word.strip_prefix(name));
    Some((State::read(field("JobState=")?), exit(field("ExitCode=")?)?))
}

/// State and exit code from `sacct --noheader --parsable2 --allocations --format=State,ExitCode`; the last line counts: a job that
/// was requeued has one for each start.
pub(super) fn accounted(text: &str) -> Option<(State, Exit)> {
    let (state, code) = text.lines().rfind(|line| !line.trim().is_empty())?.split_once('|')?;
    Some((State::read(state), exit(code.trim())?))
}

/// `code:signal`.
fn exit(text: &str) -> Option<Exit> {
    let (code, signal) = text.split_once(':')?;
    Some(Exit { code: code.parse().ok()?, signal: signal.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_read() {
        let text = "12|RUNNING|None|1:02:03|n[1-2]|mpcc-a\nslurm: warning\n13|PENDING|Resources|0:00||mpcc-b|c\n";
        let rows = rows(text);
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].id, &rows[0].state, rows[0].elapsed), (12, &State::Running, Duration::from_secs(3723)));
        assert_eq!(rows[0].hosts, "n[1-2]");
        assert_eq!((rows[1].reason.as_str(), rows[1].name.as_str()), ("Resources", "mpcc-b|c"));
        let held = super::rows("2|PENDING|launch failed requeued held|0:00||mpcc-a\n");
        assert_eq!(held[0].state, State::Held);
        assert_eq!(super::rows(""), []);
    }

    #[test]
    fn times_are_read() {
        for (text, seconds) in [("0:00", 0), ("1:37", 97), ("10:00:00", 36_000), ("2-03:04:05", 183_845)] {
            assert_eq!(elapsed(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(elapsed("INVALID"), None);
    }

    #[test]
    fn numbers_of_jobs_are_read() {
        assert_eq!(submitted("42\n"), Some(42));
        assert_eq!(submitted("sbatch: your quota is low\n42;alpha\n"), Some(42));
        assert_eq!(submitted(""), None);
    }

    #[test]
    fn ends_are_read() {
        let shown_text = "JobId=1 JobName=k1 UserId=root(0) JobState=FAILED Reason=JobLaunchFailure Requeue=1 ExitCode=0:9 RunTime=00:00:01";
        assert_eq!(shown(shown_text), Some((State::Failed, Exit { code: 0, signal: 9 })));
        assert_eq!(shown("slurm_load_jobs error: Invalid job id specified"), None);
        let accounted_text = "NODE_FAIL|0:0\nCANCELLED by 1000|0:15\n";
        assert_eq!(accounted(accounted_text), Some((State::Cancelled, Exit { code: 0, signal: 15 })));
        assert_eq!(accounted("\n"), None);
    }
}
