//! A plan on a virtual clock: what a run would take on hosts that one may not have.
//!
//! The real scheduler is stepped; only time is made up. A node takes its expected duration; nodes that share a device slow each
//! other down by a stated factor. Keying, hashing and publishing take no time.
//!
//! | reported | is |
//! |---|---|
//! | makespan | when the last node ended |
//! | lower bound | the larger of the longest chain and the work divided by the capacity; sharing devices may beat the second |
//! | spans | who ran where and when, for a picture |

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use crate::allocator::Grant;
use crate::plan::NodeId;
use crate::resources::Inventory;
use crate::scheduler::{Command, End, Input, Keyed, Scheduler, State, Task, Verdict, priorities};

/// One node's time on its devices.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// The node.
    pub node: NodeId,
    /// The host, by its place in the list.
    pub host: usize,
    /// Ordinals of its devices there; none for a node without.
    pub devices: Vec<usize>,
    /// CPU cores it held.
    pub cpus: u32,
    /// When it began, in seconds.
    pub start_s: f64,
    /// When it ended.
    pub end_s: f64,
}

/// What a simulated run came to.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// When the last node ended, in seconds.
    pub makespan_s: f64,
    /// The longest chain in seconds.
    pub critical_path_s: f64,
    /// Device-seconds asked for, divided by the devices there are; 0 without devices.
    pub gpu_work_s: f64,
    /// Core-seconds asked for, divided by the cores there are.
    pub cpu_work_s: f64,
    /// Who ran where and when, in the order of their ends.
    pub spans: Vec<Span>,
    /// Nodes that no host can ever run, and those below them.
    pub impossible: Vec<NodeId>,
}

impl Timeline {
    /// No schedule that gives each device to one node at a time is shorter.
    pub fn lower_bound_s(&self) -> f64 {
        self.critical_path_s.max(self.gpu_work_s).max(self.cpu_work_s)
    }

    /// The share of device time in which somebody held the device.
    pub fn gpu_utilisation(&self, devices: usize) -> f64 {
        let mut held: BTreeMap<(usize, usize), Vec<(f64, f64)>> = BTreeMap::new();
        for span in &self.spans {
            for device in &span.devices {
                held.entry((span.host, *device)).or_default().push((span.start_s, span.end_s));
            }
        }
        let busy: f64 = held.into_values().map(covered).sum();
        let all = devices as f64 * self.makespan_s;
        if all > 0.0 { busy / all } else { 0.0 }
    }
}

/// The length of a union of intervals.
fn covered(mut intervals: Vec<(f64, f64)>) -> f64 {
    intervals.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut total, mut until) = (0.0, 0.0f64);
    for (start, end) in intervals {
        total += (end - start.max(until)).max(0.0);
        until = until.max(end);
    }
    total
}

/// A node that runs.
struct Running {
    grant: Grant,
    start_s: f64,
    /// Work left in seconds at full speed, as of `since_s`.
    left_s: f64,
    since_s: f64,
    speed: f64,
    /// Only the newest of its ends in the queue counts.
    version: u32,
}

/// An end to come: time as the bits of a non-negative number, which sort like it.
type Due = Reverse<(u64, NodeId, u32)>;

struct World {
    now_s: f64,
    interference: f64,
    durations: BTreeMap<NodeId, f64>,
    running: BTreeMap<NodeId, Running>,
    holders: BTreeMap<(usize, usize), BTreeSet<NodeId>>,
    ends: BinaryHeap<Due>,
    spans: Vec<Span>,
}

/// Runs `tasks` on `hosts`; nodes that share a device each run at `1 / (1 + interference * (k - 1))` of their speed.
pub fn simulate(tasks: &BTreeMap<NodeId, Task>, hosts: &[Inventory], interference: f64) -> Timeline {
    let mut scheduler = Scheduler::new(tasks.clone(), hosts.to_vec(), None, true);
    let mut world = World {
        now_s: 0.0,
        interference,
        durations: tasks.iter().map(|(id, task)| (*id, task.duration.as_secs_f64())).collect(),
        running: BTreeMap::new(),
        holders: BTreeMap::new(),
        ends: BinaryHeap::new(),
        spans: Vec::new(),
    };
    let mut open = scheduler.step(Input::Begin);
    loop {
        while let Some(command) = open.pop() {
            match command {
                Command::Key(id) => open.extend(scheduler.step(Input::Keyed(id, Keyed::Miss))),
                Command::Start { node, grant, .. } => world.start(node, grant),
                _ => {}
            }
        }
        let Some((id, grant)) = world.next() else { break };
        open.extend(scheduler.step(Input::Ended(id, Some(grant), End::Done)));
    }
    let executed = State::Ended(Verdict::Executed);
    let impossible = tasks.keys().copied().filter(|id| scheduler.state(*id) != Some(executed)).collect();
    world.timeline(tasks, hosts, impossible)
}

impl World {
    fn start(&mut self, node: NodeId, grant: Grant) {
        let devices: Vec<(usize, usize)> = grant.devices.iter().map(|device| (grant.host, device.ordinal)).collect();
        let (left_s, now_s) = (self.durations[&node], self.now_s);
        let running = Running { grant, start_s: now_s, left_s, since_s: now_s, speed: 1.0, version: 0 };
        self.running.insert(node, running);
        for device in &devices {
            self.holders.entry(*device).or_default().insert(node);
        }
        self.adjust(&devices, Some(node));
    }

    /// Everybody on these devices, and `also`, goes on at the speed that is right now.
    fn adjust(&mut self, devices: &[(usize, usize)], also: Option<NodeId>) {
        let sharing = devices.iter().filter_map(|device| self.holders.get(device)).flatten().copied();
        let nodes: BTreeSet<NodeId> = sharing.chain(also).collect();
        for node in nodes {
            let Some(running) = self.running.get_mut(&node) else { continue };
            running.left_s -= (self.now_s - running.since_s) * running.speed;
            running.since_s = self.now_s;
            let others =
                |ordinal| self.holders.get(&(running.grant.host, ordinal)).map_or(0, |holders| holders.len() - 1);
            let most = running.grant.devices.iter().map(|device| others(device.ordinal)).max().unwrap_or(0);
            running.speed = 1.0 / (1.0 + self.interference * most as f64);
            running.version += 1;
            let end_s = self.now_s + running.left_s.max(0.0) / running.speed;
            self.ends.push(Reverse((end_s.to_bits(), node, running.version)));
        }
    }

    /// Moves on to the next end.
    fn next(&mut self) -> Option<(NodeId, Grant)> {
        while let Some(Reverse((bits, node, version))) = self.ends.pop() {
            if self.running.get(&node).is_none_or(|running| running.version != version) {
                continue;
            }
            self.now_s = f64::from_bits(bits);
            let Running { grant, start_s, .. } = self.running.remove(&node).expect("it was looked at");
            let devices: Vec<(usize, usize)> =
                grant.devices.iter().map(|device| (grant.host, device.ordinal)).collect();
            for device in &devices {
                if let Some(holders) = self.holders.get_mut(device) {
                    holders.remove(&node);
                }
            }
            self.adjust(&devices, None);
            let (host, cpus) = (grant.host, grant.cpus);
            let devices = devices.into_iter().map(|(_, ordinal)| ordinal).collect();
            self.spans.push(Span { node, host, devices, cpus, start_s, end_s: self.now_s });
            return Some((node, grant));
        }
        None
    }

    fn timeline(self, tasks: &BTreeMap<NodeId, Task>, hosts: &[Inventory], impossible: Vec<NodeId>) -> Timeline {
        let seconds = |duration: Duration| duration.as_secs_f64();
        let gpus: usize = hosts.iter().map(|host| host.gpus.len()).sum();
        let cpus: u32 = hosts.iter().map(|host| host.cpus).sum();
        let most = hosts.iter().map(|host| host.cpus).max().unwrap_or(1);
        let gpu_work: f64 = tasks.values().map(|task| seconds(task.duration) * f64::from(task.request.gpus)).sum();
        let cpu_work: f64 =
            tasks.values().map(|task| seconds(task.duration) * f64::from(task.request.cpus.clamp(1, most))).sum();
        Timeline {
            makespan_s: self.now_s,
            critical_path_s: priorities(tasks).values().copied().max().map(seconds).unwrap_or(0.0),
            gpu_work_s: if gpus > 0 { gpu_work / gpus as f64 } else { 0.0 },
            cpu_work_s: cpu_work / f64::from(cpus.max(1)),
            spans: self.spans,
            impossible,
        }
    }
}
