//! Where tensors live: the CPU unless a GPU is asked for.
//!
//! The feature `cuda` brings candle's kernels. A binary built with it must still start and explain itself on a machine without a
//! driver, so the library is looked for before candle touches it, and candle's own start-up, which panics when it fails, is guarded.
//! Who demands a GPU gets it or an error; who would like one ([`DeviceChoice::preferred`]) gets the processor and the reason.

use candle_core::Device;

use crate::error::{ModelError, Result};

/// The device wanted by a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The processor.
    #[default]
    Cpu,
    /// The GPU with this index among those that the process may see.
    Cuda(usize),
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// When a GPU is asked for and the build, the driver or the GPU is missing; says what to do.
    pub fn open(self) -> Result<Device> {
        match self {
            DeviceChoice::Cpu => Ok(Device::Cpu),
            DeviceChoice::Cuda(index) => cuda(index),
        }
    }

    /// The first GPU where there is one, else the processor and the reason; none where the build knows no GPU.
    pub fn preferred() -> (DeviceChoice, Option<String>) {
        match DeviceChoice::Cuda(0).open() {
            Ok(_) => (DeviceChoice::Cuda(0), None),
            Err(error) => (DeviceChoice::Cpu, BUILT.then(|| error.to_string())),
        }
    }
}

/// Whether this build has candle's CUDA kernels.
pub const BUILT: bool = cfg!(feature = "cuda");

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Result<Device> {
    if !driver() {
        let message = "there is no CUDA driver on this machine (libcuda.so.1 is not found): install NVIDIA's driver, or use the CPU";
        return Err(ModelError::Device(message.into()));
    }
    let failed = |why: String| {
        ModelError::Device(format!(
            "CUDA device {index} could not be started: {why}\n`nvidia-smi -L` lists the devices; CUDA_VISIBLE_DEVICES may hide \
             some; libcublas and libcurand must be findable (LD_LIBRARY_PATH); or use the CPU"
        ))
    };
    let started = std::panic::catch_unwind(|| Device::new_cuda(index)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        failed(text.unwrap_or("its library panicked").lines().next().unwrap_or_default().to_owned())
    })?;
    started.map_err(|error| failed(error.to_string()))
}

/// Whether the driver's library is there. A build that was linked with it starts nowhere else; in one that loads it, candle panics
/// where it is missing.
#[cfg(feature = "cuda")]
#[allow(unsafe_code, reason = "asks the dynamic loader whether the driver's library exists before anything calls it")]
fn driver() -> bool {
    [c"libcuda.so.1", c"libcuda.so"].iter().any(|name| {
        // SAFETY: the name is a C string; what loading runs is the driver's own initialisation, which using it would run too.
        !unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY) }.is_null()
    })
}

#[cfg(not(feature = "cuda"))]
fn cuda(index: usize) -> Result<Device> {
    Err(ModelError::Device(format!(
        "CUDA device {index} was asked for, but this build computes on the CPU alone: build with the feature `cuda` \
         (docs/cuda.md), or use the CPU"
    )))
}

/// Bytes of keys and values that sequences in work may take together: an eighth of what the GPU has free (padding may double it, and a
/// copy while lanes close up once more), and 1 GiB elsewhere.
pub(crate) fn room(device: &Device) -> usize {
    free(device).map_or(1 << 30, |free| free / 8)
}

/// Bytes that a GPU has free.
#[cfg(feature = "cuda")]
pub fn free(device: &Device) -> Option<usize> {
    let Device::Cuda(device) = device else { return None };
    device.cuda_stream().context().mem_get_info().ok().map(|(free, _)| free)
}

/// Bytes that a GPU has free.
#[cfg(not(feature = "cuda"))]
pub fn free(_: &Device) -> Option<usize> {
    None
}

/// The most bytes of a GPU that this process held at once.
#[cfg(feature = "cuda")]
#[allow(unsafe_code, reason = "the driver's counter has no safe form")]
pub fn peak(device: &Device) -> Option<u64> {
    use candle_core::cuda_backend::cudarc::driver::sys;
    let Device::Cuda(device) = device else { return None };
    let (stream, mut pool, mut bytes) = (device.cuda_stream(), std::ptr::null_mut(), 0u64);
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    // SAFETY: the device is open, and both calls write to places of the types that they take.
    let told = unsafe {
        sys::cuDeviceGetDefaultMemPool(&mut pool, stream.context().cu_device()).result().is_ok()
            && sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast()).result().is_ok()
    };
    (told && bytes > 0).then_some(bytes)
}

/// The most bytes of a GPU that this process held at once.
#[cfg(not(feature = "cuda"))]
pub fn peak(_: &Device) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_always_there() {
        assert!(DeviceChoice::default().open().unwrap().is_cpu());
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_so() {
        let told = DeviceChoice::Cuda(3).open().unwrap_err().to_string();
        assert!(told.contains("CUDA device 3") && told.contains("docs/cuda.md"), "{told}");
        assert_eq!(DeviceChoice::preferred(), (DeviceChoice::Cpu, None));
    }
}
