//! Tells whether a process ended because memory ran out: the kernel counts whom it kills for that, and a command says in its log
//! that a GPU is full.

use std::fs;
use std::path::{Path, PathBuf};

use super::process::log_tail;
use crate::job::{Job, Outcome};
use crate::plan::Action;

/// Where the kernel counts the processes it killed: the whole host, and the control group of a container.
const COUNTERS: [&str; 2] = ["/proc/vmstat", "/sys/fs/cgroup/memory.events"];

/// The kernel's count of such kills when it was made.
#[derive(Clone, Copy, Debug)]
pub struct OutOfMemoryWatch(u64);

impl OutOfMemoryWatch {
    /// Starts watching.
    pub fn start() -> Self {
        Self(kills())
    }

    /// Whether the kernel has killed any process for memory since. With several stages at once it may have been another
    /// one, so ask only about a process that died of SIGKILL.
    pub fn fired(&self) -> bool {
        kills() > self.0
    }
}

/// How much of the end of a log is looked at.
const LOOKED_AT: u64 = 64 << 10;

/// The log of a command from where an attempt began to write it. What a built-in kind says comes as its error.
pub(super) struct LogWatch(Option<(PathBuf, u64)>);

impl LogWatch {
    /// Begins where the log ends now.
    pub(super) fn start(job: &Job) -> Self {
        let end = |path: &Path| path.metadata().map_or(0, |meta| meta.len());
        Self(matches!(job.action, Action::Command(_)).then(|| (job.log.clone(), end(&job.log))))
    }

    /// A failure of a command whose log says that a GPU is full, as what it is.
    pub(super) fn judge(&self, outcome: Outcome) -> Outcome {
        let (Some((path, begin)), Outcome::Failed { .. }) = (&self.0, &outcome) else { return outcome };
        let written = path.metadata().map_or(0, |meta| meta.len()).saturating_sub(*begin);
        outcome.recognised(&log_tail(path, written.min(LOOKED_AT)))
    }
}

fn kills() -> u64 {
    COUNTERS.iter().filter_map(|path| fs::read_to_string(path).ok()).map(|text| count(&text)).sum()
}

fn count(text: &str) -> u64 {
    let values = text.lines().filter_map(|line| line.strip_prefix("oom_kill "));
    values.filter_map(|value| value.trim().parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_kernels_kills() {
        assert_eq!(count("nr_free_pages 17\noom_kill 3\npgfault 9\n"), 3);
        assert_eq!(count("low 0\nhigh 0\noom 4\noom_kill 2\noom_group_kill 1\n"), 2);
        assert_eq!(count(""), 0);
        let watch = OutOfMemoryWatch(kills() + 1);
        assert!(!watch.fired());
    }
}
