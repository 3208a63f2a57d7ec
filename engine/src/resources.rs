//! Resources: what a node asks for and what a host has.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a node holds while it runs. Not part of any recipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// CPU cores; the stage gets that many threads.
    pub cpus: u32,
    /// Main memory in bytes; 0 means not stated. In YAML: `4GiB`.
    pub memory: u64,
    /// Whole GPU devices.
    pub gpus: u32,
    /// Memory on each device in bytes; 0 means the whole device. In YAML: `70GiB`.
    pub gpu_memory: u64,
}

impl Default for Resources {
    fn default() -> Self {
        Self { cpus: 1, memory: 0, gpus: 0, gpu_memory: 0 }
    }
}
