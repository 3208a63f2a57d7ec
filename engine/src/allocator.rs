//! The allocator: what is free on the hosts, and who holds what. Pure: no clock, no I/O.
//!
//! A [`Grant`] is what one node holds; it can be moved but not copied, and goes back with [`Allocator::release`]. All devices of
//! a grant are on one host, so a gang of one process a device gets them together or not at all.
//!
//! | asked for | gets |
//! |---|---|
//! | `gpus: n` | n devices that nobody holds, for itself |
//! | `gpus: n, gpu_memory: m` | n devices with m bytes free each, shared with others that state what they need |
//!
//! Sharing spreads: a device with fewer holders is taken first, of equals the one with the least free memory that suffices,
//! so that whole devices stay whole. At most [`SHARERS`] hold one device: nodes on a device slow each other down (by
//! [`INTERFERENCE`] for each other one, which is what [`crate::simulate`] reckons with), and beyond a few nothing is gained.
//! Devices are told apart by their ordinals; memory is counted as stated, not as used.

use serde::Serialize;

use crate::resources::{Inventory, Resources};

/// Nodes that hold one device at most.
pub const SHARERS: usize = 4;

/// How much slower each other holder of a device makes a node: k holders each run at `1 / (1 + INTERFERENCE * (k - 1))`.
pub const INTERFERENCE: f64 = 0.15;

/// A device in a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// The number the driver gives it.
    pub ordinal: usize,
    /// Bytes granted on it: what the node asked for, or all of it.
    pub memory: u64,
}

/// What one node holds. Neither `Clone` nor `Copy`: it goes back to its allocator exactly once.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[must_use = "a grant that is dropped never goes back to the allocator"]
pub struct Grant {
    /// The host, by its place in the list that the allocator was made of.
    pub host: usize,
    /// CPU cores.
    pub cpus: u32,
    /// Bytes of main memory.
    pub memory: u64,
    /// Devices, all on the host.
    pub devices: Vec<Device>,
}

impl Grant {
    /// What a node holds that runs elsewhere.
    pub fn nothing() -> Self {
        Self { host: 0, cpus: 0, memory: 0, devices: Vec::new() }
    }
}

/// A device and what is free on it.
#[derive(Debug)]
struct Slot {
    ordinal: usize,
    total: u64,
    free: u64,
    holders: usize,
}

impl Slot {
    /// Bytes that a node which asks for `memory` would hold here now; none when it does not fit.
    fn room(&self, memory: u64) -> Option<u64> {
        match memory {
            0 => (self.holders == 0).then_some(self.total),
            _ => (self.free >= memory && self.holders < SHARERS).then_some(memory),
        }
    }
}

#[derive(Debug)]
struct Host {
    cpus: u32,
    free_cpus: u32,
    free_memory: u64,
    slots: Vec<Slot>,
}

/// How good a place is; less is better: holders of its devices, memory left free on them, CPUs taken on the host.
type Score = (usize, u64, u32);

impl Host {
    fn new(inventory: &Inventory, cpus: Option<u32>) -> Self {
        let cpus = cpus.unwrap_or(inventory.cpus).max(1);
        let slot = |gpu: &crate::resources::Gpu| Slot {
            ordinal: gpu.ordinal,
            total: gpu.memory,
            free: gpu.memory,
            holders: 0,
        };
        let slots = inventory.gpus.iter().map(slot).collect();
        Self { cpus, free_cpus: cpus, free_memory: inventory.memory, slots }
    }

    /// The devices that a node would get here, by place, and how good that is.
    fn place(&self, wanted: &Resources) -> Option<(Score, Vec<usize>)> {
        let cpus = wanted.cpus.clamp(1, self.cpus);
        if cpus > self.free_cpus || wanted.memory > self.free_memory {
            return None;
        }
        let count = wanted.gpus as usize;
        let mut fitting: Vec<(usize, u64, usize)> = match count {
            0 => Vec::new(),
            _ => (0..self.slots.len())
                .filter(|&at| self.slots[at].room(wanted.gpu_memory).is_some())
                .map(|at| (self.slots[at].holders, self.slots[at].free, at))
                .collect(),
        };
        if fitting.len() < count {
            return None;
        }
        fitting.sort_unstable();
        fitting.truncate(count);
        let holders = fitting.iter().map(|(holders, ..)| holders).sum();
        let free = fitting.iter().map(|(_, free, _)| free).sum();
        Some(((holders, free, self.cpus - self.free_cpus), fitting.into_iter().map(|(.., at)| at).collect()))
    }

    fn take(&mut self, host: usize, wanted: &Resources, places: &[usize]) -> Grant {
        let cpus = wanted.cpus.clamp(1, self.cpus);
        self.free_cpus -= cpus;
        self.free_memory -= wanted.memory;
        let devices = places.iter().map(|&at| {
            let slot = &mut self.slots[at];
            let memory = slot.room(wanted.gpu_memory).expect("the place was chosen because it has room");
            slot.free -= memory;
            slot.holders += 1;
            Device { ordinal: slot.ordinal, memory }
        });
        Grant { host, cpus, memory: wanted.memory, devices: devices.collect() }
    }

    fn take_back(&mut self, grant: Grant) {
        self.free_cpus += grant.cpus;
        self.free_memory += grant.memory;
        for device in grant.devices {
            if let Some(slot) = self.slots.iter_mut().find(|slot| slot.ordinal == device.ordinal) {
                slot.free += device.memory;
                slot.holders -= 1;
            }
        }
    }
}

/// What is still free.
#[derive(Debug)]
pub struct Allocator {
    hosts: Vec<Host>,
}

impl Allocator {
    /// Everything on the hosts is free; at most `cpus` CPUs of each are used (`--jobs`).
    pub fn new(hosts: &[Inventory], cpus: Option<u32>) -> Self {
        Self { hosts: hosts.iter().map(|host| Host::new(host, cpus)).collect() }
    }

    /// What a node that asks for `wanted` would hold, or nothing when too little is free now.
    pub fn grant(&mut self, wanted: &Resources) -> Option<Grant> {
        let places = self.hosts.iter().enumerate().filter_map(|(at, host)| Some((host.place(wanted)?, at)));
        let ((_, devices), at) = places.min_by_key(|((score, _), at)| (*score, *at))?;
        Some(self.hosts[at].take(at, wanted, &devices))
    }

    /// Takes a grant back.
    pub fn release(&mut self, grant: Grant) {
        if let Some(host) = self.hosts.get_mut(grant.host) {
            host.take_back(grant);
        }
    }

    /// CPUs that nobody holds, on all hosts.
    pub fn free_cpus(&self) -> u32 {
        self.hosts.iter().map(|host| host.free_cpus).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::{CpuLevel, Gpu};

    fn host(cpus: u32, gpus: &[u64]) -> Inventory {
        let gpu =
            |(ordinal, memory): (usize, &u64)| Gpu { ordinal, name: "g".into(), memory: *memory, capability: (9, 0) };
        let gpus = gpus.iter().enumerate().map(gpu).collect();
        Inventory { cpus, level: CpuLevel::Avx2, memory: 100, gpus }
    }

    fn ask(cpus: u32, memory: u64, gpus: u32, gpu_memory: u64) -> Resources {
        Resources { cpus, memory, gpus, gpu_memory }
    }

    fn one(host: &Inventory, cpus: Option<u32>) -> Allocator {
        Allocator::new(std::slice::from_ref(host), cpus)
    }

    #[test]
    fn grants_come_and_go() {
        let mut allocator = one(&host(4, &[10, 40]), None);
        let first = allocator.grant(&ask(3, 60, 1, 20)).unwrap();
        assert_eq!(first.devices, [Device { ordinal: 1, memory: 20 }]);
        assert!(allocator.grant(&ask(2, 0, 0, 0)).is_none(), "one CPU is left");
        assert!(allocator.grant(&ask(1, 60, 0, 0)).is_none(), "40 bytes are left");
        assert!(allocator.grant(&ask(1, 0, 1, 21)).is_none(), "20 bytes are left on the large device");
        let second = allocator.grant(&ask(1, 40, 1, 0)).unwrap();
        assert_eq!(second.devices, [Device { ordinal: 0, memory: 10 }], "a whole device is one that nobody holds");
        assert_eq!(allocator.free_cpus(), 0);
        allocator.release(first);
        allocator.release(second);
        let all = allocator.grant(&ask(64, 100, 2, 0)).unwrap();
        assert_eq!((all.cpus, all.devices.len()), (4, 2));
        allocator.release(all);
    }

    #[test]
    fn shared_devices_are_spread_and_never_too_full() {
        let mut allocator = one(&host(64, &[80, 80]), None);
        let mut take = |memory| allocator.grant(&ask(1, 0, 1, memory)).map(|grant| grant.devices[0].ordinal);
        assert_eq!([take(30), take(10), take(10), take(40)], [Some(0), Some(1), Some(0), Some(1)]);
        assert_eq!(take(41), None, "40 and 30 are left");
        assert_eq!(take(0), None, "no device is free");
        assert_eq!([take(5), take(5), take(5), take(5)], [Some(1), Some(0), Some(1), Some(0)]);
        assert_eq!(take(1), None, "four hold each");
    }

    #[test]
    fn a_gang_gets_its_devices_on_one_host_or_waits() {
        let mut allocator = Allocator::new(&[host(8, &[80, 80]), host(8, &[80, 80])], None);
        let first = allocator.grant(&ask(1, 0, 1, 0)).unwrap();
        let gang = allocator.grant(&ask(1, 0, 2, 0)).unwrap();
        assert_ne!(first.host, gang.host);
        assert!(allocator.grant(&ask(1, 0, 2, 0)).is_none(), "one device is left, on a host of its own");
        allocator.release(first);
        assert_eq!(allocator.grant(&ask(1, 0, 2, 70)).unwrap().devices.len(), 2);
        allocator.release(gang);
    }

    #[test]
    fn jobs_caps_the_cpus() {
        let mut allocator = one(&host(8, &[]), Some(2));
        let grant = allocator.grant(&ask(8, 0, 0, 0)).unwrap();
        assert_eq!(grant.cpus, 2);
        allocator.release(grant);
        assert_eq!(one(&host(8, &[]), Some(0)).free_cpus(), 1);
    }
}
