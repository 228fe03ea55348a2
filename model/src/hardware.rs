//! What a node is made of, as its agent detected it and as the scheduler counts it.

use crate::bytes::ByteStr;
use crate::fabric::FabricDevice;
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

/// Who made a device, as far as what a container needs for it depends on that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vendor {
    /// Device files alone.
    #[default]
    Generic,
    /// NVIDIA: the driver's libraries come with it.
    Nvidia,
    /// AMD: `/dev/kfd` and render nodes.
    Amd,
    /// Intel: render nodes.
    Intel,
}

/// A device that can be allocated, such as one GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GresDevice {
    /// `gpu`.
    pub name: String,
    /// `a100`, if it has a type.
    pub kind: Option<String>,
    /// Its index among the node's devices of that name.
    pub index: u32,
    /// Its device files; empty for a pure count.
    pub files: Vec<ByteStr>,
    /// The maker's own name of this one: `GPU-…` or `MIG-…`.
    pub uuid: Option<String>,
    /// Memory of its own in MiB; 0: unknown.
    pub memory: u64,
    /// Its PCI address, such as `0000:3b:00.0`.
    pub bus: Option<String>,
    /// NUMA node.
    pub numa: Option<u32>,
    /// CPUs near to it, by the kernel's numbers, ascending; empty: all.
    pub cpus: Vec<u32>,
    /// Indices of devices of the same name that a fast link joins to it, such as NVLink; those that reach each other by such
    /// links are an island.
    pub links: Vec<u32>,
    /// Who made it.
    pub vendor: Vendor,
    /// Its name in the administrator's CDI files, which say what a container needs for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cdi: Option<String>,
    /// Why it is fenced: it is shown and never allocated.
    pub fault: Option<String>,
    /// How many may share it by MPS or slices of time; 1: nobody.
    pub shares: u32,
    /// Its shares are hundredths of what it computes, which MPS keeps apart.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub mps: bool,
    /// Its place among its maker's on the node by their PCI addresses, as that maker's libraries count where they see all; parts of one
    /// have the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<u32>,
}

impl Default for GresDevice {
    fn default() -> Self {
        GresDevice {
            name: String::new(),
            kind: None,
            index: 0,
            files: Vec::new(),
            uuid: None,
            memory: 0,
            bus: None,
            numa: None,
            cpus: Vec::new(),
            links: Vec::new(),
            vendor: Vendor::Generic,
            cdi: None,
            fault: None,
            shares: 1,
            mps: false,
            place: None,
        }
    }
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
    /// Devices of fast networks, ordered by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fabrics: Vec<FabricDevice>,
    /// Channels by which jobs on several nodes may share the memory of NVIDIA's GPUs (IMEX); 0 where there are none.
    #[serde(skip_serializing_if = "is_none")]
    pub imex_channels: u32,
    /// Whether the node enforces limits by cgroups (system mode), or says in `doctor` that it cannot.
    pub enforces: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
fn is_none(count: &u32) -> bool {
    *count == 0
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_an_earlier_version_wrote_is_read() {
        let row = r#"{"name":"gpu","kind":"a100","index":1,"files":["/dev/nvidia1"]}"#;
        let device: GresDevice = serde_json::from_str(row).unwrap();
        let files = vec!["/dev/nvidia1".into()];
        let kind = Some("a100".to_string());
        let same = GresDevice { name: "gpu".into(), kind, index: 1, files, ..GresDevice::default() };
        assert_eq!(device, same);
        assert_eq!((device.shares, device.vendor, device.fault), (1, Vendor::Generic, None));
    }
}
