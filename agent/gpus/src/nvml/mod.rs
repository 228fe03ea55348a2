//! What NVIDIA's management library says, as one line of JSON between a short-lived process, which asks the driver, and the agent,
//! which must not hang or die when the driver does.

pub mod ask;
mod counters;
mod group;
pub mod helper;
pub mod sampler;
mod smi;
mod uvm;
pub mod watch;

use nvml_wrapper::Device;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Says of a part of a divided GPU which GPU instance and compute instance it is, where the library says it. The binding has no safe call for
/// that: who starts the process brings one.
pub type InstanceOf = fn(&Device<'_>) -> Option<(u32, u32)>;

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Answer {
    /// The kernel module's version, as the library was told.
    pub driver: Option<String>,
    /// The newest CUDA that the driver runs: major and minor.
    pub cuda: Option<(u32, u32)>,
    /// By NVML's index.
    pub gpus: Vec<Gpu>,
    /// Why there is nothing, or less.
    pub trouble: Option<Trouble>,
    /// Of AMD's GPUs by their addresses: errors that were not corrected.
    pub errors: BTreeMap<String, String>,
}

/// Why the library does not answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// There is no such library on the node.
    Absent,
    /// There is one, and no driver.
    NoDriver,
    /// Library and kernel module are of different versions.
    Mismatch,
    /// In words.
    Other(String),
}

/// One GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gpu {
    /// The product.
    pub name: String,
    /// `GPU-…`.
    pub uuid: String,
    /// MiB.
    pub memory: u64,
    /// As the kernel writes it.
    pub bus: String,
    /// N of `/dev/nvidiaN`.
    pub minor: Option<u32>,
    /// Addresses of what its NVLinks lead to.
    pub links: Vec<String>,
    /// It is divided; then only its parts can be used.
    pub divided: bool,
    /// Its parts.
    pub parts: Vec<Part>,
    /// What is wrong with it.
    pub fault: Option<String>,
    /// `tesla`, `geforce`, …; as `NVIDIA_REQUIRE_CUDA` names them.
    pub brand: Option<String>,
    /// Compute capability.
    pub arch: Option<(u32, u32)>,
    /// Per cent of the last period in which a kernel ran on it.
    pub busy: Option<u32>,
    /// Memory in use, MiB.
    pub used: Option<u64>,
}

/// A part of a divided GPU (MIG).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Part {
    /// `NVIDIA A100-SXM4-40GB MIG 1g.5gb`.
    pub name: String,
    /// `MIG-…`.
    pub uuid: String,
    /// MiB.
    pub memory: u64,
    /// GPU instance and compute instance; absent where the driver does not say.
    pub instance: Option<(u32, u32)>,
}
