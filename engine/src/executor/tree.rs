//! Process trees: everything a stage has started, however deep, and how to end it.
//!
//! A worker is the leader of its own process group and the sub-reaper of what it starts: a grandchild that outlives its
//! parent, or leaves the group with `setsid`, still hangs below the worker in `/proc`. So killing the descendants of a
//! worker first and the worker last leaves nothing behind. Where there is no `/proc`, the process group is all that is
//! reached.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// Rounds of listing and killing before giving up on a process that the kernel does not let go (waiting for a disk).
const ROUNDS: u32 = 200;

/// Kills everything below `root`, and waits until it is gone.
pub fn kill_descendants(root: Pid) {
    for _ in 0..ROUNDS {
        let alive = descendants(root);
        if alive.is_empty() {
            return;
        }
        for pid in alive {
            // Gone already, which is what is wanted.
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sends `signal` to everything below `root`.
pub fn signal_descendants(root: Pid, signal: Signal) {
    for pid in descendants(root) {
        // Gone already: nothing to tell.
        let _ = kill_process(pid, signal);
    }
}

/// Kills everything below the group leader `leader`, then its group.
pub fn kill_tree(leader: Pid) {
    kill_descendants(leader);
    // An empty group is what is wanted.
    let _ = kill_process_group(leader, Signal::KILL);
}

/// Every live process below `root`.
pub fn descendants(root: Pid) -> Vec<Pid> {
    let root = root.as_raw_pid();
    let parents = parents();
    let mut found = BTreeSet::from([root]);
    // Children may have lower numbers than their parents, so repeat until nothing is added.
    loop {
        let below = parents.iter().filter(|(_, parent)| found.contains(parent)).map(|(number, _)| *number);
        let below: BTreeSet<i32> = below.filter(|number| !found.contains(number)).collect();
        if below.is_empty() {
            break;
        }
        found.extend(below);
    }
    found.into_iter().filter(|number| *number != root).filter_map(Pid::from_raw).collect()
}

/// `root` and every process below it, zombies included. Cheaper than [`descendants`] where few of the host's processes are
/// meant; empty but for `root` on kernels that do not list children.
pub fn family(root: i32) -> Vec<i32> {
    let mut found = vec![root];
    let mut at = 0;
    while let Some(process) = found.get(at) {
        found.extend(children(&process.to_string()));
        at += 1;
    }
    found
}

/// The direct children of a process (`self` for this one), dead ones included.
pub fn children(process: &str) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// (process, its parent) of every process that is not a zombie.
fn parents() -> Vec<(i32, i32)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers.filter_map(|number| Some((number, parent(number)?))).collect()
}

/// Whether process `number` is there and no zombie.
pub fn is_running(number: i32) -> bool {
    parent(number).is_some()
}

/// The parent of process `number`; none when it is gone or a zombie.
fn parent(number: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
    // pid (name) state ppid: the name may hold spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    Some(parent).filter(|_| state != "Z" && state != "X")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn grandchildren_are_found_and_killed() {
        let mut child =
            Command::new("sh").args(["-c", "sleep 60 & sleep 60 & wait"]).stdin(Stdio::null()).spawn().unwrap();
        let pid = Pid::from_child(&child);
        let mut rounds = 0;
        while descendants(pid).len() < 2 {
            rounds += 1;
            assert!(rounds < 1000, "the shell never started its children");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(family(pid.as_raw_pid()).len(), 3);
        kill_descendants(pid);
        assert!(descendants(pid).is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
