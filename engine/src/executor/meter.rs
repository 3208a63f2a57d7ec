//! What attempts hold while they run: a thread looks at their processes once a second, and at the GPUs every other time and
//! whenever an attempt is new.
//!
//! What the kernel tells at the end of a process (`wait4`) is exact but knows only the largest one; a stage of many processes
//! holds more. And nobody tells at the end what a process held of a GPU. Peaks between two looks are missed, and of an attempt
//! that is over before the first look nothing is seen.
//!
//! The thread ends when it finds nothing to look at.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::tree;
use crate::gpu::{GpuMeter, GpuUse};
use crate::job::Usage;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// Of so many looks one goes to the GPUs: asking about them starts a process.
const GPU_EVERY: u64 = 2;

/// The most that an attempt was seen to hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peaks {
    /// Bytes of main memory, all its processes together.
    memory: u64,
    /// Bytes on one of its devices.
    gpu: u64,
}

impl Peaks {
    /// `usage` with what was seen.
    pub(crate) fn add_to(self, usage: Usage) -> Usage {
        Usage {
            peak_rss_bytes: usage.peak_rss_bytes.max(self.memory),
            gpu_peak_bytes: usage.gpu_peak_bytes.max(self.gpu),
            ..usage
        }
    }
}

/// An attempt that is looked at.
#[derive(Clone)]
struct Watched {
    root: i32,
    devices: Vec<usize>,
    /// Its devices have not been looked at yet.
    fresh: bool,
    peaks: Peaks,
}

#[derive(Default)]
struct State {
    watched: BTreeMap<u64, Watched>,
    next: u64,
    looking: bool,
}

struct Shared {
    gpu: Option<Arc<dyn GpuMeter>>,
    every: Duration,
    state: Mutex<State>,
}

/// Looks at the attempts of one executor.
#[derive(Clone)]
pub(crate) struct Meter(Arc<Shared>);

/// An attempt that is looked at until this is dropped.
pub(crate) struct Watching {
    meter: Meter,
    number: u64,
}

impl Meter {
    /// A meter that asks `gpu` about devices.
    pub(crate) fn new(gpu: Option<Arc<dyn GpuMeter>>) -> Self {
        Self::with_interval(gpu, EVERY)
    }

    fn with_interval(gpu: Option<Arc<dyn GpuMeter>>, every: Duration) -> Self {
        Self(Arc::new(Shared { gpu, every, state: Mutex::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the process `root` and everything below it, which hold `devices`.
    pub(crate) fn watch(&self, root: i32, devices: Vec<usize>) -> Watching {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.watched.insert(number, Watched { root, fresh: !devices.is_empty(), devices, peaks: Peaks::default() });
        if !state.looking {
            let meter = self.clone();
            // Without a thread nothing is seen, which costs numbers and no results.
            state.looking = std::thread::Builder::new().name("meter".to_owned()).spawn(move || meter.run()).is_ok();
        }
        Watching { meter: self.clone(), number }
    }

    fn run(&self) {
        for look in 0.. {
            std::thread::sleep(self.0.every);
            let watched = {
                let mut state = self.lock();
                if state.watched.is_empty() {
                    state.looking = false;
                    return;
                }
                state.watched.clone()
            };
            let held = watched.values().any(|watched| !watched.devices.is_empty());
            let due = held && (look % GPU_EVERY == 0 || watched.values().any(|watched| watched.fresh));
            let gpu = self.0.gpu.as_ref().filter(|_| due).map(|gpu| gpu.look());
            let seen: Vec<_> =
                watched.iter().map(|(number, one)| (*number, look_at(one, &watched, gpu.as_ref()))).collect();
            let mut state = self.lock();
            for (number, Peaks { memory, gpu }) in seen {
                if let Some(Watched { peaks, fresh, .. }) = state.watched.get_mut(&number) {
                    *peaks = Peaks { memory: peaks.memory.max(memory), gpu: peaks.gpu.max(gpu) };
                    *fresh &= !due;
                }
            }
        }
    }
}

impl Watching {
    /// What was seen so far.
    pub(crate) fn peaks(&self) -> Peaks {
        self.meter.lock().watched.get(&self.number).map(|watched| watched.peaks).unwrap_or_default()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.meter.lock().watched.remove(&self.number);
    }
}

fn look_at(one: &Watched, all: &BTreeMap<u64, Watched>, gpu: Option<&GpuUse>) -> Peaks {
    let family = tree::family(one.root);
    let alone = |device: usize| all.values().filter(|other| other.devices.contains(&device)).count() == 1;
    let held = |gpu: &GpuUse| one.devices.iter().map(|&device| gpu.of(device, &family, alone(device))).max();
    Peaks { memory: resident(&family), gpu: gpu.and_then(held).unwrap_or(0) }
}

/// Bytes that processes hold together: what is each one's own, and once the largest part that may be shared.
fn resident(processes: &[i32]) -> u64 {
    let (mut own, mut shared) = (0, 0);
    for process in processes {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name));
            value.and_then(|value| value.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) << 10
        };
        own += field("RssAnon:");
        shared = shared.max(field("RssFile:") + field("RssShmem:"));
    }
    own + shared
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Instant;

    struct Fake(AtomicU64);

    impl GpuMeter for Fake {
        fn look(&self) -> GpuUse {
            let bytes = self.0.load(Ordering::Relaxed);
            GpuUse { processes: Vec::new(), devices: BTreeMap::from([(0, bytes), (1, 3 * bytes)]) }
        }
    }

    fn sleeper() -> Child {
        Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap()
    }

    fn wait(what: impl Fn() -> bool) {
        let began = Instant::now();
        while !what() {
            assert!(began.elapsed() < Duration::from_secs(20), "it never happened");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn peaks_are_kept_and_the_thread_ends() {
        let gpu = Arc::new(Fake(AtomicU64::new(100)));
        let meter = Meter::with_interval(Some(gpu.clone()), Duration::from_millis(5));
        let mut child = sleeper();
        let watching = meter.watch(child.id().cast_signed(), vec![0, 1]);
        wait(|| watching.peaks().gpu == 300 && watching.peaks().memory > 0);
        gpu.0.store(50, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(30));
        let usage = watching.peaks().add_to(Usage { peak_rss_bytes: 1 << 40, ..Usage::default() });
        assert_eq!((usage.gpu_peak_bytes, usage.peak_rss_bytes), (300, 1 << 40), "the most counts");
        drop(watching);
        wait(|| !meter.lock().looking);
        let other = meter.watch(child.id().cast_signed(), Vec::new());
        wait(|| other.peaks().memory > 0);
        assert_eq!(other.peaks().gpu, 0, "it holds no device");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn what_nobody_owns_of_a_shared_device_is_nobodys() {
        let gpu = Some(Arc::new(Fake(AtomicU64::new(100))) as Arc<dyn GpuMeter>);
        let meter = Meter::with_interval(gpu, Duration::from_millis(5));
        let mut child = sleeper();
        let first = meter.watch(child.id().cast_signed(), vec![0]);
        let second = meter.watch(child.id().cast_signed(), vec![0]);
        wait(|| first.peaks().memory > 0 && second.peaks().memory > 0);
        assert_eq!((first.peaks().gpu, second.peaks().gpu), (0, 0));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
