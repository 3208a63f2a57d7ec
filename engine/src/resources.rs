//! Resources: what a node asks for, what a host has, and who holds what.
//!
//! | type | is |
//! |---|---|
//! | [`Resources`] | what a node asks for, as written in the pipeline or by its kind |
//! | [`Inventory`] | what a host has; found out once, or stated for tests (`fake:2x80GiB`) |
//!
//! Who holds what is [`crate::allocator`]'s to say. CPUs are a share of threads: a node that asks for more than the host has
//! gets all of them, because results do not depend on the number of threads. Memory and GPUs cannot be shrunk: asking for
//! more than there is, is an error before the run starts ([`Inventory::fits`]). Memory that is not stated is not counted.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// What a node holds while it runs. Not part of any recipe.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// CPU cores; the stage gets that many threads.
    pub cpus: u32,
    /// Main memory in bytes; 0 means not stated. In YAML: `4GiB`.
    #[serde(deserialize_with = "size")]
    #[schemars(with = "Size")]
    pub memory: u64,
    /// Whole GPU devices.
    pub gpus: u32,
    /// Memory on each device in bytes; 0 means the whole device. In YAML: `70GiB`.
    #[serde(deserialize_with = "size")]
    #[schemars(with = "Size")]
    pub gpu_memory: u64,
}

impl Default for Resources {
    fn default() -> Self {
        Self { cpus: 1, memory: 0, gpus: 0, gpu_memory: 0 }
    }
}

/// A size as written: a number of bytes, or a text such as `4GiB`.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum Size {
    Bytes(u64),
    Text(String),
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match Size::deserialize(deserializer).map_err(|_| serde::de::Error::custom("expected a size such as 4GiB"))? {
        Size::Bytes(bytes) => Ok(bytes),
        Size::Text(text) => parse_size(&text).map_err(serde::de::Error::custom),
    }
}

/// A text that is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a size: write bytes, or a number with B, KB, MB, GB, TB, KiB, MiB, GiB or TiB, such as 4GiB")]
pub struct SizeError(pub String);

/// Bytes of `4GiB`, `1.5 GB`, `4096`.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let wrong = || SizeError(text.to_owned());
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024f64.powi(2),
        "g" | "gib" => 1024f64.powi(3),
        "t" | "tib" => 1024f64.powi(4),
        _ => return Err(wrong()),
    };
    let bytes = number.parse::<f64>().map_err(|_| wrong())? * factor;
    if bytes < 2f64.powi(63) { Ok(bytes.round() as u64) } else { Err(wrong()) }
}

/// `1.5 GiB`: bytes for people.
pub fn format_size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// A kind of memory that a stage may run out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// The host's.
    Main,
    /// That of a GPU.
    Gpu,
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Main => "memory",
            Self::Gpu => "GPU memory",
        })
    }
}

/// The widest vector instructions that numeric kernels may use on this CPU. Results are equal bit for bit within a level,
/// not across levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuLevel {
    /// Whatever the architecture guarantees.
    Base,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F.
    Avx512,
}

impl CpuLevel {
    /// The level of the CPU this process runs on.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx512f") {
                return Self::Avx512;
            }
            if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
        }
        Self::Base
    }
}

impl fmt::Display for CpuLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Base => "base",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        })
    }
}

/// A GPU of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// The number the driver gives it.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Its memory in bytes.
    pub memory: u64,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
}

/// What a host has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// CPU cores that this process may use.
    pub cpus: u32,
    /// Their vector level.
    pub level: CpuLevel,
    /// Main memory in bytes, or the limit of the control group when that is lower.
    pub memory: u64,
    /// GPUs in the driver's order.
    pub gpus: Vec<Gpu>,
}

/// A text that describes no inventory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an inventory: write fake:COUNTxMEMORY, such as fake:2x80GiB")]
pub struct InventoryError(pub String);

impl Inventory {
    /// What this host has.
    pub fn detect() -> Self {
        Self { gpus: crate::gpu::gpus(), ..Self::without_gpus() }
    }

    /// What this host has beside GPUs; asking a driver for those takes a while.
    pub fn without_gpus() -> Self {
        Self { cpus: cpu_count(), level: CpuLevel::detect(), memory: memory_total(), gpus: Vec::new() }
    }

    /// This host, with GPUs that are only said to be there: `fake:2x80GiB`.
    pub fn fake(text: &str) -> Result<Self, InventoryError> {
        let wrong = || InventoryError(text.to_owned());
        let (count, memory) = text.strip_prefix("fake:").and_then(|rest| rest.split_once('x')).ok_or_else(wrong)?;
        let count: usize = count.parse().map_err(|_| wrong())?;
        let memory = parse_size(memory).map_err(|_| wrong())?;
        let gpu = |ordinal| Gpu { ordinal, name: "fake".to_owned(), memory, capability: (9, 0) };
        Ok(Self { gpus: (0..count).map(gpu).collect(), ..Self::without_gpus() })
    }

    /// Whether a node that asks for `wanted` could ever run here. CPUs always fit: fewer threads give the same result.
    pub fn fits(&self, wanted: &Resources) -> Result<(), Unfit> {
        if wanted.gpus as usize > self.gpus.len() {
            return Err(Unfit::Gpus { asked: wanted.gpus, has: self.gpus.len() });
        }
        if wanted.memory > self.memory {
            return Err(Unfit::Memory { asked: wanted.memory, has: self.memory });
        }
        let large = self.gpus.iter().filter(|gpu| gpu.memory >= wanted.gpu_memory).count();
        if wanted.gpus as usize > large {
            let has = self.gpus.iter().map(|gpu| gpu.memory).max().unwrap_or(0);
            return Err(Unfit::GpuMemory { asked: wanted.gpu_memory, has });
        }
        Ok(())
    }

    /// The most that a node which asks for `gpus` devices can have on each of them; none when there are not so many.
    pub fn most_gpu_memory(&self, gpus: u32) -> Option<u64> {
        let mut sizes: Vec<u64> = self.gpus.iter().map(|gpu| gpu.memory).collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        sizes.get(usize::try_from(gpus).ok()?.checked_sub(1)?).copied()
    }

    /// The numerics class of training and generation here: `cpu/f32/avx512`, `cuda/bf16/sm90`.
    pub fn numerics_class(&self, dtype: &str, on_gpu: bool) -> String {
        match self.gpus.first().filter(|_| on_gpu) {
            Some(Gpu { capability: (major, minor), .. }) => format!("cuda/{dtype}/sm{major}{minor}"),
            None => format!("cpu/{dtype}/{}", self.level),
        }
    }
}

impl FromStr for Inventory {
    type Err = InventoryError;

    fn from_str(text: &str) -> Result<Self, InventoryError> {
        Self::fake(text)
    }
}

/// Why a node can never run on a host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Too few devices.
    #[error("asks for {asked} GPU(s), this host has {has}")]
    Gpus {
        /// Devices asked for.
        asked: u32,
        /// Devices there are.
        has: usize,
    },
    /// Too little memory on the devices.
    #[error("asks for {} of GPU memory on each device, the largest here has {}", format_size(*asked), format_size(*has))]
    GpuMemory {
        /// Bytes asked for.
        asked: u64,
        /// Bytes of the largest device.
        has: u64,
    },
    /// Too little main memory.
    #[error("asks for {} of memory, this host has {}", format_size(*asked), format_size(*has))]
    Memory {
        /// Bytes asked for.
        asked: u64,
        /// Bytes there are.
        has: u64,
    },
}

fn cpu_count() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX))
}

/// Main memory; nearly unlimited when the system does not say.
fn memory_total() -> u64 {
    let Ok(mut system) = sysinfo::System::new() else { return u64::MAX };
    system.refresh_memory();
    let limit = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory);
    system.total_memory().min(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(cpus: u32, gpus: &[u64]) -> Inventory {
        let gpu =
            |(ordinal, memory): (usize, &u64)| Gpu { ordinal, name: "g".into(), memory: *memory, capability: (9, 0) };
        let gpus = gpus.iter().enumerate().map(gpu).collect();
        Inventory { cpus, level: CpuLevel::Avx2, memory: 100, gpus }
    }

    fn ask(cpus: u32, memory: u64, gpus: u32, gpu_memory: u64) -> Resources {
        Resources { cpus, memory, gpus, gpu_memory }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("4GiB", 4 << 30), ("1.5 GB", 1_500_000_000), ("4096", 4096), ("2k", 2048), ("70 gib", 70 << 30), ("0", 0)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "4XB", "-1", "1.2.3GiB", "9999999999TiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert_eq!(format_size(1536), "1.5 KiB");
        assert_eq!(format_size(12), "12 B");
    }

    #[test]
    fn resources_are_read_with_units() {
        let read: Resources = serde_json::from_str(r#"{"cpus": 2, "memory": "4GiB", "gpu_memory": 5}"#).unwrap();
        assert_eq!(read, ask(2, 4 << 30, 0, 5));
        assert_eq!(serde_json::from_value::<Resources>(serde_json::to_value(&read).unwrap()).unwrap(), read);
        let error = serde_json::from_str::<Resources>(r#"{"memory": "4 apples"}"#).unwrap_err().to_string();
        assert!(error.contains("4 apples"), "{error}");
    }

    #[test]
    fn a_fake_inventory_has_gpus() {
        let inventory = Inventory::fake("fake:2x80GiB").unwrap();
        assert_eq!(inventory.gpus.len(), 2);
        assert_eq!(inventory.gpus[1].memory, 80 << 30);
        assert_eq!(inventory.numerics_class("bf16", true), "cuda/bf16/sm90");
        for text in ["2x80GiB", "fake:x80GiB", "fake:2x", "fake:2"] {
            assert!(Inventory::fake(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numerics_class_names_the_level() {
        assert_eq!(host(2, &[]).numerics_class("f32", false), "cpu/f32/avx2");
        assert_eq!(host(2, &[]).numerics_class("f32", true), "cpu/f32/avx2");
    }

    #[test]
    fn what_can_never_fit_is_named() {
        let inventory = host(2, &[10, 40]);
        assert_eq!(inventory.fits(&ask(64, 100, 2, 10)), Ok(()));
        assert_eq!(inventory.fits(&ask(1, 0, 3, 0)), Err(Unfit::Gpus { asked: 3, has: 2 }));
        assert_eq!(inventory.fits(&ask(1, 101, 0, 0)), Err(Unfit::Memory { asked: 101, has: 100 }));
        assert_eq!(inventory.fits(&ask(1, 0, 2, 20)), Err(Unfit::GpuMemory { asked: 20, has: 40 }));
        assert_eq!(inventory.fits(&ask(1, 0, 1, 20)), Ok(()));
    }

    #[test]
    fn this_host_has_cpus_and_memory() {
        let inventory = Inventory::detect();
        assert!(inventory.cpus >= 1 && inventory.memory > 1 << 20, "{inventory:?}");
    }
}
