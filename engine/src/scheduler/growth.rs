//! What an attempt that ran out of memory asks for next: twice as much, up to all there is.
//!
//! | memory | asked for before | asks for next | all there is |
//! |---|---|---|---|
//! | main | stated | twice that, or twice what it was seen to hold, if that is more | the memory of the largest host that has the rest |
//! | main | not stated | twice what it was seen to hold; all, if nothing was seen | likewise |
//! | GPU | stated | as above, on each device | the device, or the smallest of as many as it holds |
//! | GPU | whole devices | - | it had all |
//!
//! Of a node that runs elsewhere only stated or seen main memory grows, without a limit: the cluster refuses what it has not.
//! Its devices are always whole.

use serde::{Deserialize, Serialize};

use super::queue::Task;
use crate::resources::{Inventory, Memory, Resources};

/// A node's reservation before and after it ran out of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Growth {
    /// Which memory.
    pub memory: Memory,
    /// Bytes before; 0 when none were counted. Of GPU memory: on each device.
    pub from: u64,
    /// Bytes from now on.
    pub to: u64,
}

impl Growth {
    /// The next reservation of `task`, which ran out of `memory` and was seen to hold `used` bytes (0: not known). Nothing when
    /// it had all there is.
    pub(super) fn of(task: &Task, memory: Memory, used: u64, hosts: &[Inventory]) -> Option<Self> {
        let request = &task.request;
        let (from, all) = match memory {
            Memory::Main => (request.memory, most_memory(task, hosts)?),
            Memory::Gpu if request.gpus == 0 || request.gpu_memory == 0 || task.remote => return None,
            Memory::Gpu => (request.gpu_memory, most_gpu_memory(request, hosts)?),
        };
        let to = match from.max(used).saturating_mul(2) {
            0 if task.remote => return None,
            0 => all,
            twice => twice.min(all),
        };
        (to > from).then_some(Self { memory, from, to })
    }

    /// `request` with the new reservation.
    pub(super) fn apply(self, request: &mut Resources) {
        match self.memory {
            Memory::Main => request.memory = self.to,
            Memory::Gpu => request.gpu_memory = self.to,
        }
    }
}

fn most_memory(task: &Task, hosts: &[Inventory]) -> Option<u64> {
    if task.remote {
        return Some(u64::MAX);
    }
    let rest = Resources { memory: 0, ..task.request.clone() };
    hosts.iter().filter(|host| host.fits(&rest).is_ok()).map(|host| host.memory).max()
}

fn most_gpu_memory(request: &Resources, hosts: &[Inventory]) -> Option<u64> {
    let rest = Resources { gpu_memory: 0, ..request.clone() };
    let most = |host: &Inventory| host.most_gpu_memory(request.gpus);
    hosts.iter().filter(|host| host.fits(&rest).is_ok()).filter_map(most).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::{CpuLevel, Gpu};

    fn host(memory: u64, gpus: &[u64]) -> Inventory {
        let gpu =
            |(ordinal, memory): (usize, &u64)| Gpu { ordinal, name: "g".into(), memory: *memory, capability: (9, 0) };
        Inventory { cpus: 8, level: CpuLevel::Base, memory, gpus: gpus.iter().enumerate().map(gpu).collect() }
    }

    fn grown(
        remote: bool,
        request: (u64, u32, u64),
        memory: Memory,
        used: u64,
        hosts: &[Inventory],
    ) -> Option<(u64, u64)> {
        let (main, gpus, gpu_memory) = request;
        let request = Resources { cpus: 1, memory: main, gpus, gpu_memory };
        let task = Task { request, remote, ..Task::default() };
        Growth::of(&task, memory, used, hosts).map(|growth| (growth.from, growth.to))
    }

    #[test]
    fn main_memory_doubles_up_to_the_largest_host() {
        let hosts = [host(100, &[]), host(60, &[80])];
        let main = |memory, used| grown(false, (memory, 0, 0), Memory::Main, used, &hosts);
        assert_eq!(main(10, 0), Some((10, 20)));
        assert_eq!(main(10, 30), Some((10, 60)), "it was seen to hold more than it stated");
        assert_eq!(main(60, 0), Some((60, 100)));
        assert_eq!(main(100, 0), None, "it had all");
        assert_eq!(main(0, 7), Some((0, 14)));
        assert_eq!(main(0, 0), Some((0, 100)), "nothing is known: alone among those that state some");
        assert_eq!(grown(false, (50, 1, 0), Memory::Main, 0, &hosts), Some((50, 60)), "only one host has a GPU");
    }

    #[test]
    fn gpu_memory_doubles_up_to_the_devices_that_a_gang_needs() {
        let hosts = [host(100, &[80, 40]), host(100, &[24])];
        let gpu = |gpus, memory, used| grown(false, (0, gpus, memory), Memory::Gpu, used, &hosts);
        assert_eq!(gpu(1, 30, 0), Some((30, 60)));
        assert_eq!(gpu(1, 60, 0), Some((60, 80)));
        assert_eq!(gpu(2, 30, 0), Some((30, 40)), "the smaller device limits both");
        assert_eq!(gpu(2, 40, 90), None);
        assert_eq!(gpu(1, 0, 0), None, "a whole device is all there is");
        assert_eq!(gpu(0, 0, 0), None, "it holds none");
    }

    #[test]
    fn elsewhere_only_what_is_known_grows() {
        let hosts = [host(1, &[])];
        assert_eq!(grown(true, (10, 0, 0), Memory::Main, 0, &hosts), Some((10, 20)));
        assert_eq!(grown(true, (0, 0, 0), Memory::Main, 6, &hosts), Some((0, 12)));
        assert_eq!(grown(true, (0, 0, 0), Memory::Main, 0, &hosts), None);
        assert_eq!(grown(true, (0, 1, 9), Memory::Gpu, 0, &hosts), None, "it is granted whole devices");
    }
}
