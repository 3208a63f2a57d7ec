//! Where tensors live: the CPU unless a GPU is asked for.
//!
//! The feature `cuda` brings candle's kernels. A binary built with it must still start and explain itself on a machine without a
//! driver, so the library is looked for before candle touches it, and candle's own start-up, which panics when it fails, is guarded.

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
    /// When a GPU is asked for and the build, the driver or the GPU is missing.
    pub fn open(self) -> Result<Device> {
        match self {
            DeviceChoice::Cpu => Ok(Device::Cpu),
            DeviceChoice::Cuda(index) => cuda(index),
        }
    }
}

#[cfg(feature = "cuda")]
#[allow(unsafe_code, reason = "asks the dynamic loader whether the driver library exists before anything calls it")]
fn cuda(index: usize) -> Result<Device> {
    // SAFETY: the call only tries to open the driver's library.
    if !unsafe { candle_core::cuda_backend::cudarc::driver::sys::is_culib_present() } {
        return Err(ModelError::Device("no CUDA driver on this machine; use the CPU or install the driver".into()));
    }
    std::panic::catch_unwind(|| Device::new_cuda(index))
        .map_err(|_| ModelError::Device(format!("CUDA device {index} could not be started")))?
        .map_err(|error| ModelError::Device(format!("CUDA device {index}: {error}")))
}

#[cfg(not(feature = "cuda"))]
fn cuda(index: usize) -> Result<Device> {
    Err(ModelError::Device(format!("CUDA device {index} was asked for, but this build has no `cuda` feature")))
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
        assert!(DeviceChoice::Cuda(0).open().unwrap_err().to_string().contains("`cuda` feature"));
    }
}
