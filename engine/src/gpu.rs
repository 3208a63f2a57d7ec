//! GPUs: which ones a host has, and who holds how much of their memory.
//!
//! The inventory asks the driver without making a context on any device: a context takes hundreds of MiB of each and a second
//! of start. Memory in use is told by `nvidia-smi`, which comes with the driver, because only the driver knows what other
//! processes hold. Both number devices differently (CUDA may sort by speed, `nvidia-smi` sorts by bus), so they are brought
//! together by UUID.
//!
//! Inside a container `nvidia-smi` may know none of the processes by the numbers they have there. Then what is used of a whole
//! device is all that can be told; see [`GpuUse::of`].

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::resources::Gpu;

/// Tells who holds how much GPU memory.
pub trait GpuMeter: Send + Sync {
    /// The memory in use now. It may take a while; nothing when it cannot be told.
    fn look(&self) -> GpuUse;
}

/// GPU memory in use at one moment. Devices are told apart by the ordinals of the inventory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuUse {
    /// Device, process, bytes. A process may hold memory on several devices.
    pub processes: Vec<(usize, i32, u64)>,
    /// Bytes in use on each device, whoever holds them.
    pub devices: BTreeMap<usize, u64>,
}

impl GpuUse {
    /// Bytes that `processes` hold together on `device`. When none of them is known there and they are `alone`, all that is in
    /// use of the device, which may be too much and is never too little.
    pub fn of(&self, device: usize, processes: &[i32], alone: bool) -> u64 {
        let held = self.processes.iter().filter(|(at, process, _)| *at == device && processes.contains(process));
        match held.map(|(.., bytes)| *bytes).sum() {
            0 if alone => self.devices.get(&device).copied().unwrap_or(0),
            bytes => bytes,
        }
    }
}

/// Asks `nvidia-smi`. Where there is none, nothing is told.
#[derive(Debug, Default)]
pub struct NvidiaSmi {
    /// Ordinals by UUID as CUDA numbers them; empty when CUDA cannot be asked.
    ordinals: OnceLock<BTreeMap<String, usize>>,
}

impl GpuMeter for NvidiaSmi {
    fn look(&self) -> GpuUse {
        let cuda = self.ordinals.get_or_init(ordinals);
        let Some(devices) = ask("--query-gpu=index,uuid,memory.used") else { return GpuUse::default() };
        let processes = ask("--query-compute-apps=pid,used_memory,gpu_uuid").unwrap_or_default();
        read(&devices, &processes, cuda)
    }
}

fn ask(query: &str) -> Option<String> {
    let mut smi = Command::new("nvidia-smi");
    smi.args([query, "--format=csv,noheader,nounits"]).stdin(Stdio::null()).stderr(Stdio::null());
    let answer = smi.output().ok()?;
    answer.status.success().then(|| String::from_utf8_lossy(&answer.stdout).into_owned())
}

/// Reads the two answers. Sizes are MiB; what is no number (`[N/A]`) tells nothing. Without CUDA's numbers those of
/// `nvidia-smi` count.
fn read(devices: &str, processes: &str, cuda: &BTreeMap<String, usize>) -> GpuUse {
    let bytes = |text: &str| text.parse::<u64>().ok().map(|mib| mib << 20);
    let fields = |line: &'_ str| line.split(',').map(|field| field.trim().to_owned()).collect::<Vec<_>>();
    let mut own = BTreeMap::new();
    let mut used = GpuUse::default();
    for line in devices.lines().map(fields) {
        let [index, uuid, memory] = &line[..] else { continue };
        let ordinal = if cuda.is_empty() { index.parse().ok() } else { cuda.get(uuid).copied() };
        let Some(ordinal) = ordinal else { continue };
        own.insert(uuid.clone(), ordinal);
        used.devices.extend(bytes(memory).map(|bytes| (ordinal, bytes)));
    }
    for line in processes.lines().map(fields) {
        let [process, memory, uuid] = &line[..] else { continue };
        if let (Some(ordinal), Ok(process), Some(bytes)) = (own.get(uuid), process.parse(), bytes(memory)) {
            used.processes.push((*ordinal, process, bytes));
        }
    }
    used
}

#[cfg(not(feature = "gpu-inventory"))]
fn described() -> Vec<(Gpu, String)> {
    Vec::new()
}

/// The GPUs that the driver shows, with their UUIDs; none without a driver.
#[cfg(feature = "gpu-inventory")]
#[allow(
    unsafe_code,
    reason = "cudarc panics when it is called without the driver library, and its calls that need no context are unsafe"
)]
fn described() -> Vec<(Gpu, String)> {
    use cudarc::driver::result::{device, init};
    use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};
    // SAFETY: loads libcuda if it is there and touches nothing else.
    if !unsafe { sys::is_culib_present() } {
        return Vec::new();
    }
    // The library may be there without a working driver (containers): then the first call fails or panics.
    let count = std::panic::catch_unwind(|| init().and_then(|()| device::get_count()));
    let describe = |ordinal: i32| {
        let handle = device::get(ordinal).ok()?;
        // SAFETY: the driver has just given this handle.
        let memory = unsafe { device::total_mem(handle) }.ok()? as u64;
        // SAFETY: likewise.
        let attribute = |which| unsafe { device::get_attribute(handle, which) }.ok();
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        let name = device::get_name(handle).ok()?;
        let uuid = device::get_uuid(handle).ok()?.bytes.map(|byte| byte as u8);
        Some((Gpu { ordinal: usize::try_from(ordinal).ok()?, name, memory, capability }, uuid_text(uuid)))
    };
    (0..count.ok().and_then(Result::ok).unwrap_or(0)).filter_map(describe).collect()
}

/// `GPU-8c1f1d8e-...`, as `nvidia-smi` writes it.
#[cfg(any(test, feature = "gpu-inventory"))]
fn uuid_text(bytes: [u8; 16]) -> String {
    let hex = |range: std::ops::Range<usize>| bytes[range].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("GPU-{}-{}-{}-{}-{}", hex(0..4), hex(4..6), hex(6..8), hex(8..10), hex(10..16))
}

/// The GPUs of this host, in the driver's order.
pub(crate) fn gpus() -> Vec<Gpu> {
    described().into_iter().map(|(gpu, _)| gpu).collect()
}

fn ordinals() -> BTreeMap<String, usize> {
    described().into_iter().map(|(gpu, uuid)| (uuid, gpu.ordinal)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn nvidia_smi_is_read() {
        let devices = "0, GPU-a, 3000\n1, GPU-b, 17\nUnable to determine\n2, GPU-c, [N/A]\n";
        let processes = "41, 1000, GPU-a\n42, 2000, GPU-a\n42, 10, GPU-b\n43, [N/A], GPU-b\n44, 5, GPU-gone\n";
        let used = read(devices, processes, &BTreeMap::new());
        assert_eq!(used.processes, [(0, 41, 1000 * MIB), (0, 42, 2000 * MIB), (1, 42, 10 * MIB)]);
        assert_eq!(used.devices, BTreeMap::from([(0, 3000 * MIB), (1, 17 * MIB)]));
        let cuda = BTreeMap::from([("GPU-b".to_owned(), 0)]);
        let used = read(devices, processes, &cuda);
        assert_eq!(used.processes, [(0, 42, 10 * MIB)], "CUDA sees one device and gives it another number");
        assert_eq!(used.devices, BTreeMap::from([(0, 17 * MIB)]));
        assert_eq!(read("", "", &cuda), GpuUse::default());
    }

    #[test]
    fn whose_memory_it_is() {
        let used = GpuUse { processes: vec![(0, 1, 10), (0, 2, 5), (1, 1, 7)], devices: BTreeMap::from([(0, 20)]) };
        assert_eq!(used.of(0, &[1, 2, 3], false), 15);
        assert_eq!(used.of(1, &[1], true), 7);
        assert_eq!(used.of(0, &[9], false), 0);
        assert_eq!(used.of(0, &[9], true), 20, "in a container processes may have other numbers");
    }

    #[test]
    fn uuids_are_written_as_nvidia_smi_does() {
        let bytes = std::array::from_fn(|at| u8::try_from(at * 16).unwrap());
        assert_eq!(uuid_text(bytes), "GPU-00102030-4050-6070-8090-a0b0c0d0e0f0");
    }
}
