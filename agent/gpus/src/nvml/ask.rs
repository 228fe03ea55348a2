//! Asks the library. Only ever in a process of its own: a call may hang in the kernel, or bring the process down.

use super::{Answer, Gpu, InstanceOf, Part, Trouble, smi, uvm};
use crate::{Tree, driver, kind, others};
use nvml_wrapper::enum_wrappers::device::{Brand, EccCounter, MemoryError};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use std::io::Write;

/// First word of the line that carries the answer.
pub const WORD: &str = "gpus ";

/// Links that a GPU has at most (`NVML_NVLINK_MAX_LINKS`).
const MOST_LINKS: u32 = 18;

/// What the process does: asks NVIDIA's library and AMD's driver, and writes one line. `instance_of`: asks the library of one part.
///
/// # Errors
/// Nobody reads.
pub fn main(tree: &Tree, instance_of: InstanceOf, mut out: impl Write) -> std::io::Result<()> {
    let answer = Answer { errors: others::all_uncorrected(tree), ..ask(tree, instance_of) };
    let answer = serde_json::to_string(&answer)?;
    writeln!(out, "{WORD}{answer}")?;
    out.flush()
}

fn ask(tree: &Tree, instance_of: InstanceOf) -> Answer {
    let nvml = match open(tree) {
        Ok(nvml) => nvml,
        Err(e) => return Answer { trouble: Some(trouble(&e)), ..Answer::default() },
    };
    let mut answer = Answer {
        driver: nvml.sys_driver_version().ok(),
        cuda: nvml.sys_cuda_driver_version().ok().and_then(|v| {
            let version = u32::try_from(v).ok()?;
            Some((version / 1000, version % 1000 / 10))
        }),
        ..Answer::default()
    };
    let count = match nvml.device_count() {
        Ok(count) => count,
        Err(e) => {
            answer.trouble = Some(trouble(&e));
            return answer;
        }
    };
    answer.gpus = (0..count)
        .map(|index| match nvml.device_by_index(index) {
            Ok(device) => one(&device, instance_of),
            Err(e) => Gpu { fault: Some(fault(&e)), ..Gpu::default() },
        })
        .collect();
    uvm::make();
    // What the process has is the kernel's to clear up; a library that hangs in its own end is not waited for.
    std::mem::forget(nvml);
    answer
}

/// Opens the library as the loader finds it, or else where the driver's other libraries are found: a machine may have them in a place that only
/// a variable names which services do not have.
pub(super) fn open(tree: &Tree) -> Result<Nvml, NvmlError> {
    let absent = match Nvml::init() {
        Err(e) if trouble(&e) == Trouble::Absent => e,
        opened => return opened,
    };
    let Some(file) = driver::management(tree) else { return Err(absent) };
    let file = tree.path(&file);
    match Nvml::builder().lib_path(file.as_os_str()).init() {
        Err(e) if trouble(&e) == Trouble::Absent => Err(absent),
        opened => opened,
    }
}

fn one(device: &Device<'_>, instance_of: InstanceOf) -> Gpu {
    let mut gpu = Gpu {
        name: device.name().unwrap_or_default(),
        uuid: device.uuid().unwrap_or_default(),
        bus: whole_bus(device),
        minor: device.minor_number().ok(),
        brand: device.brand().ok().and_then(brand),
        arch: device
            .cuda_compute_capability()
            .ok()
            .and_then(|c| Some((u32::try_from(c.major).ok()?, u32::try_from(c.minor).ok()?))),
        busy: device.utilization_rates().ok().map(|u| u.gpu),
        ..Gpu::default()
    };
    match device.memory_info() {
        Ok(memory) => {
            gpu.memory = memory.total >> 20;
            gpu.used = Some(memory.used >> 20);
        }
        // Drivers before 510 do not have it. For all others it is the first call that reaches the device itself.
        Err(NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_)) => {}
        Err(e) => gpu.fault = Some(fault(&e)),
    }
    if gpu.fault.is_none() {
        gpu.fault = memory_fault(device);
    }
    gpu.links = (0..MOST_LINKS)
        .map(|link| device.link_wrapper_for(link))
        .filter(|link| link.is_active().unwrap_or(false))
        .filter_map(|link| link.remote_pci_info().ok().map(|p| kind::bus(&p.bus_id)))
        .collect();
    gpu.divided = device.mig_mode().is_ok_and(|mode| mode.current == 1);
    if gpu.divided {
        let most = device.mig_device_count().unwrap_or(0);
        let instances = smi::instances(device, &gpu.bus, instance_of);
        let parts = (0..most).filter_map(|n| Some((n, device.mig_device_by_index(n).ok()?)));
        gpu.parts = parts
            .map(|(n, device)| {
                let instance = instances.iter().find(|(index, _)| *index == n).map(|(_, ids)| *ids);
                part(&device, instance)
            })
            .collect();
    }
    gpu
}

/// The address of a GPU; nothing where the driver does not say it.
pub(super) fn whole_bus(device: &Device<'_>) -> String {
    device.pci_info().map(|p| kind::bus(&p.bus_id)).unwrap_or_default()
}

fn part(device: &Device<'_>, instance: Option<(u32, u32)>) -> Part {
    Part {
        name: device.name().unwrap_or_default(),
        uuid: device.uuid().unwrap_or_default(),
        memory: device.memory_info().map(|m| m.total >> 20).unwrap_or(0),
        instance,
    }
}

/// Memory that cannot be trusted until the GPU is reset.
fn memory_fault(device: &Device<'_>) -> Option<String> {
    if device.are_pages_pending_retired().unwrap_or(false) {
        return Some(
            "memory pages wait to be retired: reset the GPU (nvidia-smi --gpu-reset), or reboot".into(),
        );
    }
    let errors = device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile).unwrap_or(0);
    (errors > 0).then(|| {
        format!("{errors} uncorrected memory errors since the driver was loaded: reset the GPU (nvidia-smi --gpu-reset), or reboot")
    })
}

fn trouble(e: &NvmlError) -> Trouble {
    match e {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => Trouble::Absent,
        NvmlError::DriverNotLoaded => Trouble::NoDriver,
        NvmlError::LibRmVersionMismatch => Trouble::Mismatch,
        other => Trouble::Other(fault(other)),
    }
}

fn fault(e: &NvmlError) -> String {
    match e {
        NvmlError::GpuLost => "it fell off the bus: reboot the node, or power it off and on".into(),
        NvmlError::ResetRequired => "it must be reset before it can be used (nvidia-smi --gpu-reset)".into(),
        NvmlError::InsufficientPower => "its power cables are not attached".into(),
        other => format!("the driver says: {other}"),
    }
}

/// The names that images use in their requirements.
fn brand(brand: Brand) -> Option<String> {
    let word = match brand {
        Brand::Unknown => return None,
        Brand::Quadro => "quadro",
        Brand::Tesla => "tesla",
        Brand::NVS => "nvs",
        Brand::GRID => "grid",
        Brand::GeForce => "geforce",
        Brand::Titan => "titan",
        other => return Some(format!("{other:?}").to_lowercase()),
    };
    Some(word.into())
}
