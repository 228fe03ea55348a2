//! The files in `/dev/dri` of NVIDIA's GPUs, by which programs draw on a screen, and without one: a GPU can be used by them as by its other
//! files. They belong to it as those do; containers have them where they ask for graphics, and only then the one by which screens are set up.

use crate::inject::Capability;
use crate::nvidia;
use crate::tree::Tree;
use berth_model::ByteStr;
use berth_model::hardware::{GresDevice, Vendor};
use std::collections::BTreeSet;

/// Where they are.
const DIRECTORY: &str = "/dev/dri/";
/// By which the screens of all GPUs are set up: it is there once.
pub(crate) const MODESET: &str = "/dev/nvidia-modeset";

/// Those of the device at an address.
pub fn files(tree: &Tree, bus: &str) -> Vec<String> {
    let numbered = |name: &String| {
        let number = ["card", "renderD"].iter().find_map(|kind| name.strip_prefix(kind));
        number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let names = tree.names(&format!("/sys/bus/pci/devices/{bus}/drm")).into_iter().filter(numbered);
    names.map(|name| format!("{DIRECTORY}{name}")).filter(|file| tree.has(file)).collect()
}

/// Those that no device has, and so nobody is given: of GPUs that are divided, whose parts cannot draw, or are left out.
pub fn withheld(tree: &Tree, devices: &[GresDevice]) -> Vec<String> {
    let all = nvidia::addresses(tree).into_iter().flat_map(|bus| files(tree, &bus));
    let given = |file: &String| devices.iter().any(|d| d.files.iter().any(|own| own.0 == file.as_bytes()));
    all.filter(|file| !given(file)).collect()
}

/// Whether somebody with these capabilities draws.
fn draws(wanted: &BTreeSet<Capability>) -> bool {
    [Capability::Graphics, Capability::Display].iter().any(|of| wanted.contains(of))
}

/// Whether a device has such a file, and it is none for those who want these capabilities.
pub fn is_left_out(device: &GresDevice, file: &ByteStr, wanted: &BTreeSet<Capability>) -> bool {
    let is_one = file.0.starts_with(DIRECTORY.as_bytes()) || file.0 == MODESET.as_bytes();
    is_one && device.vendor == Vendor::Nvidia && !draws(wanted)
}

/// Takes from devices the files that a container with these capabilities does without.
pub fn narrow(devices: &mut [GresDevice], wanted: &BTreeSet<Capability>) {
    for device in devices {
        let mut files = std::mem::take(&mut device.files);
        files.retain(|file| !is_left_out(device, file, wanted));
        device.files = files;
    }
}

/// Those of the GPUs whose own files are among these, for a container with these capabilities. A part of a GPU has none.
pub fn beside(tree: &Tree, devices: &[ByteStr], wanted: &BTreeSet<Capability>) -> Vec<ByteStr> {
    let is_part = devices.iter().any(|file| file.0.starts_with(b"/dev/nvidia-caps/"));
    if is_part || !draws(wanted) {
        return Vec::new();
    }
    let has = |minor: u32| devices.iter().any(|file| file.0 == format!("/dev/nvidia{minor}").into_bytes());
    let own: Vec<String> =
        nvidia::minors(tree).into_iter().filter(|(_, minor)| has(*minor)).map(|(bus, _)| bus).collect();
    let screens = (!own.is_empty() && tree.has(MODESET)).then(|| MODESET.to_string());
    let files = own.iter().flat_map(|bus| files(tree, bus)).chain(screens).map(ByteStr::from);
    files.filter(|file| !devices.contains(file)).collect()
}
