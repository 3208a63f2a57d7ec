//! Tells whether the kernel killed a process because memory ran out.

use std::fs;

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
