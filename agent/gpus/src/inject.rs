//! What a container gets with its GPUs, as a CDI specification of one step: made anew for each, from what is on the node.

use crate::cdi::{Device, DeviceNode, Edits, Mount, Spec};
use crate::driver::Driver;
use crate::drm;
use berth_model::hardware::{GresDevice, Vendor};
use std::collections::BTreeSet;

/// Directory of a container in which the driver's libraries are. NVIDIA's images have it in their search path since the first.
pub const LIBRARIES: &str = "/usr/local/nvidia/lib64";
/// Those for programs of 32 bits, likewise.
pub const LIBRARIES_32: &str = "/usr/local/nvidia/lib";
/// And of its programs.
pub const PROGRAMS: &str = "/usr/local/nvidia/bin";

/// What of a driver a container wants (`NVIDIA_DRIVER_CAPABILITIES`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    /// CUDA and OpenCL.
    Compute,
    /// `nvidia-smi`, and the library behind it.
    Utility,
    /// OpenGL, Vulkan.
    Graphics,
    /// Encoders and decoders.
    Video,
    /// Screens.
    Display,
    /// Deep learning for graphics.
    Ngx,
    /// Libraries for programs of 32 bits, beside whatever else is wanted.
    Compat32,
}

/// Reads `NVIDIA_DRIVER_CAPABILITIES`: of what is unknown nothing comes. Without a word, or without the variable: compute and
/// utility.
pub fn capabilities(text: Option<&str>) -> BTreeSet<Capability> {
    use Capability::{Compat32, Compute, Display, Graphics, Ngx, Utility, Video};
    let text = text.unwrap_or_default();
    if text.trim().is_empty() {
        return [Compute, Utility].into();
    }
    let mut found = BTreeSet::new();
    for word in text.split(',').map(str::trim) {
        match word {
            "all" => found.extend([Compute, Utility, Graphics, Video, Display, Ngx, Compat32]),
            "compute" => found.extend([Compute]),
            "utility" => found.extend([Utility]),
            "graphics" => found.extend([Graphics]),
            "video" => found.extend([Video]),
            "display" => found.extend([Display]),
            "ngx" => found.extend([Ngx]),
            "compat32" => found.extend([Compat32]),
            _ => {}
        }
    }
    found
}

/// What is to be said of a wish that this driver cannot fulfil; `text`: as for [`capabilities`].
pub fn missing(text: Option<&str>, driver: &Driver) -> Option<String> {
    // All there is says nothing of what has to be there.
    let asks = text.unwrap_or_default().split(',').any(|word| word.trim() == "compat32");
    (asks && driver.libraries_32.is_empty()).then(|| {
        format!(
            "NVIDIA_DRIVER_CAPABILITIES asks for compat32, and the node has no library of 32 bits of its driver {}: programs of 32 bits \
             cannot use its GPUs, others can",
            driver.version
        )
    })
}

/// What becomes of a container with NVIDIA's devices where the node has not the libraries of its driver, for `why`: a note, for those
/// who want no more than to look at GPUs (`wanted`) or try whatever is missing.
///
/// # Errors
/// It is not started: programs would fail in ways that nobody understands.
pub fn without_driver(why: &str, wanted: &BTreeSet<Capability>, tries: bool) -> Result<String, String> {
    let less = format!("the container gets its GPUs without the driver's libraries and programs: {why}");
    match tries || wanted.iter().all(|of| *of == Capability::Utility) {
        true => Ok(less),
        false => Err(format!(
            "the step has GPUs that its container could not use: {why}; until then another node runs it (--exclude), and an image that \
             brings the libraries itself starts with --export=ALL,NVIDIA_DISABLE_REQUIRE=1"
        )),
    }
}

/// The specification for these devices. `driver`: NVIDIA's, which comes with NVIDIA's devices alone; `wanted`: which of it.
/// `path`: what the image's LD_LIBRARY_PATH is; `compat`: its newer libraries of the driver come first.
pub fn specification(
    devices: &[GresDevice],
    driver: Option<&Driver>,
    wanted: &BTreeSet<Capability>,
    path: &str,
    compat: bool,
) -> Spec {
    let mut edits = Edits::default();
    let nvidia = devices.iter().any(|d| d.vendor == Vendor::Nvidia);
    if let Some(driver) = driver.filter(|_| nvidia) {
        of_driver(driver, wanted, &mut edits);
        let first = if compat { "/usr/local/cuda/compat:" } else { "" };
        let rest = if path.is_empty() { String::new() } else { format!(":{path}") };
        let narrow = match wanted.contains(&Capability::Compat32) && !driver.libraries_32.is_empty() {
            true => format!(":{LIBRARIES_32}"),
            false => String::new(),
        };
        edits.env.push(format!("LD_LIBRARY_PATH={first}{LIBRARIES}{narrow}{rest}"));
    }
    let node = |file: &berth_model::ByteStr| DeviceNode {
        path: file.display().into_owned(),
        ..DeviceNode::default()
    };
    let device = |d: &GresDevice| Device {
        name: d.uuid.clone().unwrap_or_else(|| format!("{}{}", d.name, d.index)),
        edits: Edits {
            device_nodes: d.files.iter().filter(|f| !drm::is_left_out(d, f, wanted)).map(node).collect(),
            ..Edits::default()
        },
        ..Device::default()
    };
    Spec {
        version: "0.6.0".into(),
        kind: "berth.local/gpu".into(),
        devices: devices.iter().map(device).collect(),
        edits,
        ..Spec::default()
    }
}

fn of_driver(driver: &Driver, wanted: &BTreeSet<Capability>, edits: &mut Edits) {
    let mount = |from: &str, to: String| Mount {
        host_path: from.to_string(),
        container_path: to,
        options: ["ro", "nosuid", "nodev", "rbind", "rprivate"].map(String::from).into(),
        ..Mount::default()
    };
    let narrow = driver.libraries_32.iter().filter(|_| wanted.contains(&Capability::Compat32));
    let all = driver.libraries.iter().map(|l| (LIBRARIES, l)).chain(narrow.map(|l| (LIBRARIES_32, l)));
    for (dir, library) in all.filter(|(_, l)| wanted.contains(&l.of)) {
        edits.mounts.extend(library.names.iter().map(|n| mount(&library.path, format!("{dir}/{n}"))));
    }
    for (path, _) in driver.programs.iter().filter(|(_, of)| wanted.contains(of)) {
        let name = path.rsplit('/').next().unwrap_or(path);
        // Where the image's own path finds it, whatever that is.
        edits.mounts.push(mount(path, format!("/usr/bin/{name}")));
    }
    let files = driver.files.iter().filter(|(_, of)| wanted.contains(of));
    edits.mounts.extend(files.map(|(path, _)| mount(path, path.clone())));
    edits.mounts.extend(driver.firmware.iter().map(|dir| mount(dir, dir.clone())));
    let sockets = driver.sockets.iter().filter(|(_, of)| wanted.contains(of));
    edits.mounts.extend(sockets.map(|(path, _)| mount(path, path.clone())));
    if wanted.contains(&Capability::Compute) {
        edits.mounts.extend(driver.mps.iter().map(|dir| mount(dir, dir.clone())));
    }
}
