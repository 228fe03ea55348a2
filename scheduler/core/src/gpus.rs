//! Words about GPUs of jobs that run.

use berth_model::devices::GPU;
use berth_model::env::gpus::is_gpu;
use berth_model::hardware::{GresDevice, Hardware};
use berth_model::ids::NodeName;
use berth_model::launch::NodeShare;

/// Whether any of it is a GPU, or a share of one.
pub(crate) fn some(share: &NodeShare) -> bool {
    share.gres.iter().any(is_gpu)
}

/// The GPUs of a share that are fenced now.
pub(crate) fn faulty<'a>(
    share: &'a NodeShare,
    hardware: &'a Hardware,
) -> impl Iterator<Item = &'a GresDevice> {
    let fenced = hardware.gres.iter().filter(|device| device.name == GPU && device.fault.is_some());
    fenced.filter(|device| share.gres.iter().any(|own| is_gpu(own) && own.index == device.index))
}

/// What the user of one is told.
pub(crate) fn fenced(node: &NodeName, device: &GresDevice) -> String {
    let bus = device.bus.as_ref().map(|bus| format!(" ({bus})")).unwrap_or_default();
    let why = device.fault.as_deref().unwrap_or_default();
    format!("GPU {}{bus} of {node} is fenced: {why}", device.index)
}
