//! What GPUs do at one moment: as it goes, one line of JSON each, from the process that asks drivers to the agent.

use berth_model::hardware::GresDevice;
use serde::{Deserialize, Serialize};

/// All GPUs that could be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// In no order that means anything.
    pub devices: Vec<DeviceSample>,
    /// Why some are not there.
    pub trouble: Option<String>,
}

/// One GPU, or a part of one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceSample {
    /// Its maker's name of it.
    pub uuid: Option<String>,
    /// Its PCI address; that of the whole for a part.
    pub bus: String,
    /// Per cent of the last period in which something ran on it; absent where the driver does not say. Of a part: of the time since the
    /// sample before.
    pub busy: Option<u32>,
    /// Why that is not measured of a part.
    pub unmeasured: Option<String>,
    /// Memory in use, in bytes.
    pub used: Option<u64>,
    /// Processes that compute on it; absent where the driver does not say.
    pub processes: Option<Vec<ProcessSample>>,
    /// The driver keeps account of processes.
    pub accounting: bool,
    /// Processes that have ended and of which the driver kept account, each in one sample alone; the newest first.
    pub ended: Vec<Account>,
}

/// A process on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessSample {
    /// As the machine numbers it.
    pub pid: u32,
    /// Memory of its own there, in bytes; absent where the driver does not say.
    pub memory: Option<u64>,
    /// Per cent of the time since the last sample in which it ran there; absent where the driver does not say.
    pub busy: Option<u32>,
}

/// What the driver counted of a process (NVML's accounting), from its begin to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Account {
    /// As the machine numbered it.
    pub pid: u32,
    /// When it began, in microseconds since 1970.
    pub began_us: u64,
    /// How long it was, in microseconds.
    pub took_us: u64,
    /// Per cent of that in which it ran on the GPU.
    pub busy: u32,
    /// Its peak memory in bytes.
    pub memory: u64,
}

impl DeviceSample {
    /// Whether it is of this device.
    pub fn is_of(&self, device: &GresDevice) -> bool {
        match (&self.uuid, &device.uuid) {
            (Some(own), Some(other)) => own == other,
            _ => device.bus.as_ref().is_some_and(|bus| *bus == self.bus),
        }
    }
}

impl Sample {
    /// What was seen of a device.
    pub fn of(&self, device: &GresDevice) -> Option<&DeviceSample> {
        self.devices.iter().find(|seen| seen.is_of(device))
    }
}
