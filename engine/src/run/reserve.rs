//! What is reserved for a node: what it states, corrected by what earlier runs have seen it hold.
//!
//! | memory | stated | earlier runs saw a peak of p | reserved |
//! |---|---|---|---|
//! | GPU, of a node with `gpus` | anything | yes | 1.1 p, rounded up to 256 MiB; the whole device when that is more than it has |
//! | GPU | m, or nothing | no | m, or the whole device |
//! | main | m, or nothing | yes | the larger of m and 1.1 p, rounded up to 16 MiB, at most all |
//! | main | m, or nothing | no | m, or nothing |
//!
//! The peak is that of the node's latest execution. A node that never ran here takes the largest GPU peak of its stage's other
//! nodes, or what it states where that is more. Stated main memory is never lowered: it may be stated for what the kernel keeps in its cache. What a node states stays
//! what `mpcc plan` shows and what a cluster is asked for; a reservation decides only who runs beside whom. One that turns out
//! too small grows ([`Growth`](crate::scheduler::Growth)).

use crate::journal::Measured;
use crate::resources::{Inventory, Resources};

/// A peak may be this much higher next time, in tenths.
const MARGIN_TENTHS: u64 = 11;

/// GPU memory is reserved in steps of so many bytes.
const GPU_STEP: u64 = 256 << 20;

/// Main memory is reserved in steps of so many bytes.
const MAIN_STEP: u64 = 16 << 20;

/// What to reserve on `host` for a node that states `stated` and was `seen` to hold something.
pub fn reserve(stated: &Resources, seen: &Measured, host: &Inventory) -> Resources {
    let mut reserved = stated.clone();
    if stated.gpus > 0 && seen.gpu_peak_bytes > 0 {
        let wanted = with_margin(seen.gpu_peak_bytes, GPU_STEP);
        // What another node of its stage held is only a hint: models of a matrix differ in size.
        let wanted = if seen.of_sibling { wanted.max(stated.gpu_memory) } else { wanted };
        let fits = host.most_gpu_memory(stated.gpus).is_some_and(|most| wanted <= most);
        reserved.gpu_memory = if fits { wanted } else { 0 };
    }
    if seen.peak_rss_bytes > 0 {
        let wanted = with_margin(seen.peak_rss_bytes, MAIN_STEP).min(host.memory);
        reserved.memory = stated.memory.max(wanted);
    }
    reserved
}

fn with_margin(bytes: u64, step: u64) -> u64 {
    (bytes.saturating_mul(MARGIN_TENTHS) / 10).div_ceil(step).saturating_mul(step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::{CpuLevel, Gpu};
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    fn host(memory: u64, gpus: &[u64]) -> Inventory {
        let gpu =
            |(ordinal, memory): (usize, &u64)| Gpu { ordinal, name: "g".into(), memory: *memory, capability: (9, 0) };
        Inventory { cpus: 8, level: CpuLevel::Base, memory, gpus: gpus.iter().enumerate().map(gpu).collect() }
    }

    fn reserved(memory: u64, gpus: u32, gpu_memory: u64, main: u64, gpu: u64) -> (u64, u64) {
        let host = host(64 * GIB, &[80 * GIB, 24 * GIB]);
        let seen = Measured { wall_s: 1.0, peak_rss_bytes: main, gpu_peak_bytes: gpu, of_sibling: false };
        let reserved = reserve(&Resources { cpus: 1, memory, gpus, gpu_memory }, &seen, &host);
        (reserved.memory, reserved.gpu_memory)
    }

    #[test]
    fn a_siblings_peak_lowers_nothing() {
        let seen = Measured { gpu_peak_bytes: 8 * GIB, of_sibling: true, ..Measured::default() };
        let reserved = |gpu_memory| {
            let stated = Resources { cpus: 1, memory: 0, gpus: 1, gpu_memory };
            reserve(&stated, &seen, &host(64 * GIB, &[80 * GIB])).gpu_memory
        };
        assert_eq!((reserved(70 * GIB), reserved(0)), (70 * GIB, 9 * GIB));
    }

    #[test]
    fn a_measured_peak_replaces_what_is_stated_of_a_gpu() {
        let expected = 11 * GIB; // 10 GiB and a tenth.
        assert_eq!(reserved(0, 1, 0, 0, 10 * GIB), (0, expected), "none stated");
        assert_eq!(reserved(0, 1, 70 * GIB, 0, 10 * GIB), (0, expected), "too much stated");
        assert_eq!(reserved(0, 1, GIB, 0, 10 * GIB), (0, expected), "too little stated");
        assert_eq!(reserved(0, 1, GIB, 0, 1), (0, 256 << 20), "rounded up");
        assert_eq!(reserved(0, 1, 7 * GIB, 0, 0), (0, 7 * GIB), "nothing measured");
        assert_eq!(reserved(0, 1, 70 * GIB, 0, 75 * GIB), (0, 0), "more than the device with the margin: all of it");
        assert_eq!(reserved(0, 2, 0, 0, 23 * GIB), (0, 0), "the smaller of two devices");
        assert_eq!(reserved(0, 0, 0, 0, 10 * GIB), (0, 0), "it asks for no device");
    }

    #[test]
    fn a_measured_peak_raises_main_memory() {
        assert_eq!(reserved(0, 0, 0, 10 * GIB, 0), (11 * GIB, 0));
        assert_eq!(reserved(20 * GIB, 0, 0, 10 * GIB, 0), (20 * GIB, 0));
        assert_eq!(reserved(GIB, 0, 0, 63 * GIB, 0), (64 * GIB, 0), "at most all");
    }

    proptest! {
        #[test]
        fn never_less_than_was_measured_and_never_more_than_there_is(
            memory in 0u64..64, gpus in 0u32..3, gpu_memory in 0u64..24, main in 0u64..60 * GIB, gpu in 0u64..100 * GIB,
        ) {
            let host = host(64 * GIB, &[80 * GIB, 24 * GIB]);
            let stated = Resources { cpus: 1, memory: memory * GIB, gpus, gpu_memory: gpu_memory * GIB };
            let seen = Measured { wall_s: 1.0, peak_rss_bytes: main, gpu_peak_bytes: gpu, of_sibling: false };
            let reserved = reserve(&stated, &seen, &host);
            prop_assert!(host.fits(&reserved).is_ok(), "{reserved:?}");
            prop_assert!(reserved.memory >= main);
            if gpus > 0 {
                prop_assert!(reserved.gpu_memory == 0 || reserved.gpu_memory >= gpu);
            }
            prop_assert_eq!((reserved.cpus, reserved.gpus), (stated.cpus, stated.gpus));
        }
    }
}
