//! What a node is made of, as its agent detected it and as the scheduler counts it.

use crate::bytes::ByteStr;
use serde::{Deserialize, Serialize};

/// One processor core and the CPUs (hardware threads) of it, by the kernel's numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Core {
    /// Socket (physical package).
    pub socket: u32,
    /// NUMA node.
    pub numa: u32,
    /// CPU numbers, ascending; more than one with simultaneous multithreading.
    pub cpus: Vec<u32>,
}

/// A device that can be allocated, such as one GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GresDevice {
    /// `gpu`.
    pub name: String,
    /// `a100`, if it has a type.
    #[serde(default)]
    pub kind: Option<String>,
    /// Its index among the node's devices of that name.
    pub index: u32,
    /// Its device files; empty for a pure count.
    #[serde(default)]
    pub files: Vec<ByteStr>,
}

/// A node's hardware and software.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hardware {
    /// `x86_64`.
    pub arch: String,
    /// Kernel name, release and version, as `uname` gives them.
    pub os: String,
    /// Cores in the order in which they are allocated.
    pub cores: Vec<Core>,
    /// Memory of the node in MiB.
    pub memory: u64,
    /// Memory held back for the system and the agent, in MiB.
    pub memory_reserved: u64,
    /// Space for temporary files in MiB.
    pub tmp_disk: u64,
    /// Devices, ordered by name and index.
    pub gres: Vec<GresDevice>,
    /// Whether the node enforces limits by cgroups (system mode), or says in `doctor` that it cannot.
    pub enforces: bool,
}

impl Hardware {
    /// CPUs in all.
    pub fn cpus(&self) -> u64 {
        self.cores.iter().map(|c| c.cpus.len() as u64).sum()
    }
    /// Sockets.
    pub fn sockets(&self) -> u64 {
        let mut seen: Vec<u32> = self.cores.iter().map(|c| c.socket).collect();
        seen.sort_unstable();
        seen.dedup();
        seen.len() as u64
    }
    /// Hardware threads of the first core; at least 1.
    pub fn threads_per_core(&self) -> u64 {
        self.cores.first().map_or(1, |c| c.cpus.len().max(1) as u64)
    }
}
