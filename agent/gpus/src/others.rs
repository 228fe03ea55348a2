//! AMD's and Intel's GPUs, by what the kernel says of them; no library is asked. What their drivers ask the GPU itself for is read where a
//! library's answer is, in a process of its own.

use crate::kind;
use crate::nvidia::off_the_bus;
use crate::nvml::Answer;
use crate::sample::{DeviceSample, ProcessSample};
use crate::tree::{Tree, cpu_list, number};
use berth_model::ByteStr;
use berth_model::hardware::{GresDevice, Vendor};
use std::collections::BTreeMap;

const KFD: &str = "/sys/class/kfd/kfd/topology/nodes";
/// Programs that have opened AMD's GPUs, by their numbers.
const PROCESSES: &str = "/sys/class/kfd/kfd/proc";
const DRM: &str = "/sys/class/drm";
/// Links of the type `CRAT_IOLINK_TYPE_XGMI`.
const XGMI: u64 = 11;
/// Where integrated graphics of Intel's processors are, which nobody computes on.
const INTEGRATED: &str = "0000:00:02.0";

/// AMD's, which the compute driver (`amdkfd`) lists.
pub fn amd(tree: &Tree) -> Vec<GresDevice> {
    let mut found = Vec::new();
    let mut nodes: Vec<u64> = tree.names(KFD).iter().filter_map(|n| n.parse().ok()).collect();
    nodes.sort_unstable();
    for node in nodes {
        let dir = format!("{KFD}/{node}");
        let of = properties(tree, &format!("{dir}/properties"));
        let get = |key: &str| of.get(key).copied().unwrap_or(0);
        // Processors are nodes, too; they have no such units.
        if get("simd_count") == 0 || tree.number(&format!("{dir}/gpu_id")).unwrap_or(0) == 0 {
            continue;
        }
        let place = get("location_id");
        let bus = kind::address(get("domain"), place >> 8 & 0xff, place >> 3 & 0x1f, place & 7);
        let render = format!("renderD{}", get("drm_render_minor"));
        let banks = tree.names(&format!("{dir}/mem_banks"));
        let memory: u64 = banks
            .iter()
            .map(|bank| properties(tree, &format!("{dir}/mem_banks/{bank}/properties")))
            .filter_map(|bank| bank.get("size_in_bytes").copied())
            .sum();
        let links = tree.names(&format!("{dir}/io_links"));
        let reached: Vec<u64> = links
            .iter()
            .map(|link| properties(tree, &format!("{dir}/io_links/{link}/properties")))
            .filter(|link| link.get("type") == Some(&XGMI))
            .filter_map(|link| link.get("node_to").copied())
            .collect();
        let product = tree
            .text(&format!("{DRM}/{render}/device/product_name"))
            .or_else(|| tree.text(&format!("{dir}/name")))
            .filter(|n| !n.is_empty());
        let device = GresDevice {
            kind: product.map(|n| kind::of_product(&n)),
            uuid: (get("unique_id") != 0).then(|| format!("GPU-{:016x}", get("unique_id"))),
            memory: memory >> 20,
            vendor: Vendor::Amd,
            ..common(tree, &render, &bus)
        };
        found.push((node, reached, device));
    }
    found.sort_by(|(_, _, a), (_, _, b)| a.bus.cmp(&b.bus));
    let at: BTreeMap<u64, u32> = (0..).zip(&found).map(|(n, (node, ..))| (*node, n)).collect();
    let mut devices = Vec::new();
    for (index, (_, reached, mut device)) in (0..).zip(found) {
        device.index = index;
        device.links = reached.iter().filter_map(|node| at.get(node).copied()).collect();
        device.links.sort_unstable();
        if tree.has("/dev/kfd") {
            device.files.insert(0, "/dev/kfd".into());
        } else {
            let why = "/dev/kfd is not there: load the amdgpu module with its compute part";
            device.fault.get_or_insert_with(|| why.into());
        }
        devices.push(device);
    }
    devices
}

const PCI: &str = "/sys/bus/pci/devices";

/// Whether the driver counts errors of a GPU (RAS).
pub(crate) fn counts_errors(tree: &Tree, device: &GresDevice) -> bool {
    device.bus.as_deref().is_some_and(|bus| tree.has(&format!("{PCI}/{bus}/ras")))
}

/// Fences AMD's GPUs by their drivers' answer, those that have no other fault.
pub(crate) fn fence(tree: &Tree, devices: &mut [GresDevice], answer: &Result<Answer, String>) {
    for device in devices.iter_mut().filter(|device| device.fault.is_none() && counts_errors(tree, device)) {
        device.fault = match answer {
            Ok(answer) => device.bus.as_ref().and_then(|bus| answer.errors.get(bus).cloned()),
            Err(why) => Some(format!("its errors (ras/*_err_count) cannot be read: {why}")),
        };
    }
}

/// Errors of GPUs that nothing corrected, by their addresses. Asks the driver, which may hang with its GPU.
pub(crate) fn all_uncorrected(tree: &Tree) -> BTreeMap<String, String> {
    tree.names(PCI).into_iter().filter_map(|bus| uncorrected(tree, &bus).map(|why| (bus, why))).collect()
}

/// Errors of an AMD's memory and blocks that nothing corrected, by the driver's counters (RAS), which begin anew when it is loaded or has reset
/// the GPU. Others have no such files.
fn uncorrected(tree: &Tree, bus: &str) -> Option<String> {
    let dir = format!("{PCI}/{bus}/ras");
    let counted = tree.names(&dir).into_iter().filter_map(|name| {
        let block = name.strip_suffix("_err_count")?;
        let text = tree.text(&format!("{dir}/{name}"))?;
        let errors = text.lines().find_map(|line| line.strip_prefix("ue:"))?.trim().parse::<u64>().ok()?;
        (errors > 0).then(|| format!("{errors} in {block}"))
    });
    let all: Vec<String> = counted.collect();
    (!all.is_empty()).then(|| {
        format!(
            "errors that were not corrected since the driver was loaded: {}; reset the GPU (amd-smi reset --gpureset), or reboot the node",
            all.join(", ")
        )
    })
}

/// What AMD's do, by what the kernel says.
pub fn amd_samples(tree: &Tree) -> Vec<DeviceSample> {
    let processes = tree.names(PROCESSES);
    let nodes = tree.names(KFD).into_iter().map(|node| format!("{KFD}/{node}"));
    nodes
        .filter_map(|dir| {
            let of = properties(tree, &format!("{dir}/properties"));
            let get = |key: &str| of.get(key).copied().unwrap_or(0);
            let gpu = tree.number(&format!("{dir}/gpu_id")).filter(|id| *id > 0 && get("simd_count") > 0)?;
            let place = get("location_id");
            let device = format!("{DRM}/renderD{}/device", get("drm_render_minor"));
            // Kernels before 5.9 do not list them.
            let processes = tree.has(PROCESSES).then(|| {
                let on_it = |name: &String| {
                    let memory = tree.number(&format!("{PROCESSES}/{name}/vram_{gpu}"))?;
                    let pid = name.parse().ok().filter(|_| memory > 0)?;
                    Some(ProcessSample { pid, memory: Some(memory), busy: None })
                };
                processes.iter().filter_map(on_it).collect()
            });
            Some(DeviceSample {
                uuid: (get("unique_id") != 0).then(|| format!("GPU-{:016x}", get("unique_id"))),
                bus: kind::address(get("domain"), place >> 8 & 0xff, place >> 3 & 0x1f, place & 7),
                busy: tree
                    .number(&format!("{device}/gpu_busy_percent"))
                    .and_then(|n| u32::try_from(n.min(100)).ok()),
                used: tree.number(&format!("{device}/mem_info_vram_used")),
                processes,
                ..DeviceSample::default()
            })
        })
        .collect()
}

/// Intel's, by their render nodes.
pub fn intel(tree: &Tree) -> Vec<GresDevice> {
    let mut devices: Vec<GresDevice> = Vec::new();
    // Its own library counts it, the lowest address of all.
    let mut before = 0u32;
    for render in tree.names(DRM).iter().filter(|n| n.starts_with("renderD")) {
        let dir = format!("{DRM}/{render}/device");
        if tree.number(&format!("{dir}/vendor")) != Some(0x8086) {
            continue;
        }
        let Some(bus) = uevent(tree, &dir) else { continue };
        if bus == INTEGRATED {
            before = 1;
            continue;
        }
        let id = tree.number(&format!("{dir}/device")).unwrap_or(0);
        let card = card(tree, &bus);
        let memory =
            card.and_then(|card| tree.number(&format!("{DRM}/{card}/lmem_total_bytes"))).unwrap_or(0);
        devices.push(GresDevice {
            kind: Some(intel_kind(id)),
            memory: memory >> 20,
            vendor: Vendor::Intel,
            ..common(tree, render, &bus)
        });
    }
    devices.sort_by(|a, b| a.bus.cmp(&b.bus));
    for (index, device) in (0..).zip(&mut devices) {
        device.index = index;
        device.place = Some(index.saturating_add(before));
    }
    devices
}

/// By the device's number in Intel's list of PCI ids; unknown ones have the number.
fn intel_kind(id: u64) -> String {
    match id {
        0x0bd5..=0x0bd9 => "intel_max_1550".into(),
        0x0bda | 0x0bdb => "intel_max_1100".into(),
        0x56c0 => "intel_flex_170".into(),
        0x56c1 => "intel_flex_140".into(),
        0x56a0 => "intel_arc_a770".into(),
        0x56a1 => "intel_arc_a750".into(),
        0xe20b => "intel_arc_b580".into(),
        other => format!("intel_{other:04x}"),
    }
}

fn common(tree: &Tree, render: &str, bus: &str) -> GresDevice {
    let pci = format!("/sys/bus/pci/devices/{bus}");
    let card = card(tree, bus).map(|card| format!("/dev/dri/{card}"));
    let files = std::iter::once(format!("/dev/dri/{render}")).chain(card).filter(|f| tree.has(f));
    GresDevice {
        name: "gpu".into(),
        files: files.map(ByteStr::from).collect(),
        bus: Some(bus.to_string()),
        numa: tree.text(&format!("{pci}/numa_node")).and_then(|n| n.parse().ok()),
        cpus: cpu_list(&tree.text(&format!("{pci}/local_cpulist")).unwrap_or_default()),
        fault: off_the_bus(tree, bus),
        ..GresDevice::default()
    }
}

/// `card0` of a device.
fn card(tree: &Tree, bus: &str) -> Option<String> {
    let whole = |n: &String| n.strip_prefix("card").is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
    let is_it = |n: &String| uevent(tree, &format!("{DRM}/{n}/device")).as_deref() == Some(bus);
    tree.names(DRM).into_iter().filter(whole).find(is_it)
}

/// The address of a device, by what the kernel tells of it.
fn uevent(tree: &Tree, dir: &str) -> Option<String> {
    let text = tree.text(&format!("{dir}/uevent"))?;
    text.lines().find_map(|l| l.strip_prefix("PCI_SLOT_NAME=")).map(kind::bus)
}

/// Lines of a name and a number.
fn properties(tree: &Tree, path: &str) -> BTreeMap<String, u64> {
    let text = tree.text(path).unwrap_or_default();
    let pair = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_string(), number(value.trim())?))
    };
    text.lines().filter_map(pair).collect()
}
