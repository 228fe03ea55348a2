//! NVIDIA's GPUs: what the kernel module says in `/proc/driver/nvidia`, what the library says, and what follows.

use crate::drm;
use crate::kind;
use crate::nvml::{Answer, Gpu, Part, Trouble};
use crate::tree::{Tree, cpu_list};
use crate::xid::{self, Fatal};
use berth_model::ByteStr;
use berth_model::hardware::{GresDevice, Vendor};
use std::collections::BTreeMap;

/// Where the kernel module says what it is.
const VERSION: &str = "/proc/driver/nvidia/version";
const GPUS: &str = "/proc/driver/nvidia/gpus";
const CAPABILITIES: &str = "/proc/driver/nvidia/capabilities";
/// What programs need besides a GPU's own file. Those that are there are given with each GPU.
const SHARED: [&str; 4] = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", drm::MODESET];

/// Whether the kernel module is loaded.
pub fn is_loaded(tree: &Tree) -> bool {
    tree.has(VERSION)
}

/// Version of the loaded kernel module: `535.54.03`.
pub fn kernel_version(tree: &Tree) -> Option<String> {
    version_in(&tree.text(VERSION)?)
}

/// The version in the file's first line; the open module words it otherwise than the closed one.
pub fn version_in(text: &str) -> Option<String> {
    let line = text.lines().find(|l| l.starts_with("NVRM version:"))?;
    line.split_whitespace().find(|word| is_version(word)).map(str::to_string)
}

/// `535.54.03` and `470.256`, and no date or time.
pub fn is_version(word: &str) -> bool {
    let parts: Vec<&str> = word.split('.').collect();
    (2..=3).contains(&parts.len())
        && parts.iter().all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
        && parts[0].len() >= 3
}

/// The devices, in the order of their PCI addresses. `answer`: what the library says, or why it could not be asked; `fatal`: what
/// the kernel's log told; `library`: the version of the library's file.
pub fn devices(
    tree: &Tree,
    answer: &Result<Answer, String>,
    library: Option<&str>,
    fatal: &Fatal,
) -> Vec<GresDevice> {
    if !is_loaded(tree) {
        return Vec::new();
    }
    let of_node = node_fault(tree, answer, library);
    let empty = Answer::default();
    let heard = answer.as_ref().unwrap_or(&empty);
    let mut gpus: BTreeMap<String, Gpu> = known(tree);
    for gpu in &heard.gpus {
        if gpu.bus.is_empty() {
            continue;
        }
        let kernel = gpus.entry(gpu.bus.clone()).or_default();
        // Where the library cannot say it, the kernel module can.
        let (name, uuid, minor) = (kernel.name.clone(), kernel.uuid.clone(), kernel.minor);
        *kernel = gpu.clone();
        if kernel.name.is_empty() {
            kernel.name = name;
        }
        if kernel.uuid.is_empty() {
            kernel.uuid = uuid;
        }
        kernel.minor = kernel.minor.or(minor);
    }
    let no_cuda = without_cuda(tree);
    let lost = heard.gpus.iter().find(|g| g.bus.is_empty()).and_then(|g| g.fault.clone());
    for (bus, gpu) in &mut gpus {
        let unheard = !heard.gpus.iter().any(|g| g.bus == *bus);
        let fault = of_node
            .clone()
            .or_else(|| gpu.fault.clone())
            .or_else(|| off_the_bus(tree, bus))
            .or_else(|| fatal.get(bus).map(|code| xid::reason(*code)))
            .or_else(|| {
                unheard.then(|| lost.clone().unwrap_or_else(|| "the driver does not list it any more".into()))
            })
            .or_else(|| no_cuda.clone());
        gpu.fault = fault;
    }
    let islands = links(&gpus);
    let mut found = Vec::new();
    for (bus, gpu) in &gpus {
        let files = files(tree, gpu);
        let numa = tree.text(&format!("/sys/bus/pci/devices/{bus}/numa_node"));
        let near = tree.text(&format!("/sys/bus/pci/devices/{bus}/local_cpulist")).unwrap_or_default();
        let whole = GresDevice {
            name: "gpu".into(),
            kind: (!gpu.name.is_empty()).then(|| kind::of_product(&gpu.name)),
            files,
            uuid: (!gpu.uuid.is_empty()).then(|| gpu.uuid.clone()),
            memory: gpu.memory,
            bus: Some(bus.clone()),
            // -1: the machine does not say.
            numa: numa.and_then(|n| n.parse().ok()),
            cpus: cpu_list(&near),
            vendor: Vendor::Nvidia,
            fault: gpu.fault.clone(),
            ..GresDevice::default()
        };
        if gpu.divided && gpu.parts.is_empty() {
            // Nobody can use it so: an administrator has to see it.
            let mut whole = whole;
            whole.fault.get_or_insert_with(|| {
                "it is to be divided (MIG) and has no parts: make some (nvidia-smi mig -cgi PROFILE -C), or switch MIG off (nvidia-smi -mig 0)".into()
            });
            found.push((None, whole));
        } else if gpu.divided {
            found.extend(gpu.parts.iter().map(|part| (None, self::part(tree, gpu, &whole, part))));
        } else {
            found.push((Some(bus.clone()), whole));
        }
    }
    number(found, &islands)
}

/// What makes every GPU of the node unusable.
fn node_fault(tree: &Tree, answer: &Result<Answer, String>, library: Option<&str>) -> Option<String> {
    mismatch(tree, answer, library).or_else(|| match answer {
        Err(why) | Ok(Answer { trouble: Some(Trouble::Other(why)), .. }) => {
            Some(format!("the driver cannot be asked: {why}"))
        }
        Ok(Answer { trouble: Some(Trouble::Absent), .. }) => Some(format!(
            "libnvidia-ml.so.1 is not on the node: install the driver's libraries, version {}",
            kernel_version(tree).as_deref().unwrap_or("of the kernel module")
        )),
        Ok(Answer { trouble: Some(Trouble::NoDriver), .. }) => {
            Some("the library says that no driver is loaded: look at the kernel's log".into())
        }
        Ok(_) => None,
    })
}

/// That the kernel module and the library are of different versions, as after an upgrade without a reboot. `library`: the version of the
/// library's file.
pub(crate) fn mismatch(
    tree: &Tree,
    answer: &Result<Answer, String>,
    library: Option<&str>,
) -> Option<String> {
    let kernel = kernel_version(tree);
    let library = match answer {
        Ok(Answer { trouble: Some(Trouble::Mismatch), .. }) => library.unwrap_or("another one"),
        // The library may answer although its file has been replaced: containers would get the new one.
        Ok(Answer { trouble: None, .. }) => {
            library.filter(|library| kernel.as_deref().is_some_and(|kernel| kernel != *library))?
        }
        _ => return None,
    };
    Some(format!(
        "driver and library are of different versions: the kernel module is {}, libnvidia-ml is {library}; reboot the node, or unload and load the module",
        kernel.as_deref().unwrap_or("unknown")
    ))
}

/// Why no program computes on any GPU of the node: the driver has its own file, and CUDA has none, although it was asked for.
fn without_cuda(tree: &Tree) -> Option<String> {
    let lacks = tree.has("/dev/nvidiactl") && !tree.has("/dev/nvidia-uvm");
    lacks.then(|| {
        "/dev/nvidia-uvm is not there, without which no CUDA program runs: load the module (modprobe nvidia-uvm), and install nvidia-modprobe or \
         have the file made at boot"
            .into()
    })
}

/// GPUs that the kernel module knows, by address.
fn known(tree: &Tree) -> BTreeMap<String, Gpu> {
    let mut gpus = BTreeMap::new();
    for name in tree.names(GPUS) {
        let text = tree.text(&format!("{GPUS}/{name}/information")).unwrap_or_default();
        let field = |key: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(key)?.trim_start().strip_prefix(':'));
            line.map(|value| value.trim().to_string()).filter(|v| !v.is_empty())
        };
        if field("GPU Excluded").as_deref() == Some("Yes") {
            continue;
        }
        let gpu = Gpu {
            name: field("Model").unwrap_or_default(),
            uuid: field("GPU UUID").filter(|u| !u.contains('?')).unwrap_or_default(),
            minor: field("Device Minor").and_then(|n| n.parse().ok()),
            bus: kind::bus(&name),
            ..Gpu::default()
        };
        gpus.insert(gpu.bus.clone(), gpu);
    }
    gpus
}

/// A device that does not answer reads as ones.
pub(crate) fn off_the_bus(tree: &Tree, bus: &str) -> Option<String> {
    let dir = format!("/sys/bus/pci/devices/{bus}");
    // One that sleeps would be woken up by that, every minute.
    if tree.text(&format!("{dir}/power/runtime_status")).as_deref() == Some("suspended") {
        return None;
    }
    let head = tree.path(&format!("{dir}/config"));
    let config = std::fs::File::open(head).ok().and_then(|mut file| {
        let mut four = [0; 4];
        std::io::Read::read_exact(&mut file, &mut four).ok().map(|()| four)
    });
    (config == Some([0xff; 4])).then(|| "it fell off the bus: reboot the node, or power it off and on".into())
}

/// Where GPUs are that the kernel module knows, those that it leaves out among them.
pub(crate) fn addresses(tree: &Tree) -> Vec<String> {
    tree.names(GPUS).iter().map(|name| kind::bus(name)).collect()
}

/// N of `/dev/nvidiaN` of each GPU that the kernel module knows, by its address.
pub(crate) fn minors(tree: &Tree) -> Vec<(String, u32)> {
    known(tree).into_iter().filter_map(|(bus, gpu)| Some((bus, gpu.minor?))).collect()
}

fn files(tree: &Tree, gpu: &Gpu) -> Vec<ByteStr> {
    let own = gpu.minor.map(|n| format!("/dev/nvidia{n}"));
    let shared = SHARED.iter().map(ToString::to_string);
    // Parts of a GPU cannot draw.
    let draws = if gpu.divided { Vec::new() } else { drm::files(tree, &gpu.bus) };
    own.into_iter().chain(shared).filter(|f| tree.has(f)).chain(draws).map(ByteStr::from).collect()
}

/// A part is used through the GPU's file and two of its own, by which the driver knows who may use which part.
fn part(tree: &Tree, gpu: &Gpu, whole: &GresDevice, part: &Part) -> GresDevice {
    let mut device = GresDevice {
        kind: Some(kind::of_part(&gpu.name, &part.name)),
        uuid: Some(part.uuid.clone()),
        memory: part.memory,
        ..whole.clone()
    };
    match capabilities(tree, gpu, part) {
        Ok(files) => device.files.extend(files.map(ByteStr::from)),
        Err(why) => {
            device.fault.get_or_insert(why);
        }
    }
    device
}

/// The files of a part, or what is missing of all that leads to them.
fn capabilities(tree: &Tree, gpu: &Gpu, part: &Part) -> Result<[String; 2], String> {
    let Some((of_gpu, of_compute)) = part.instance else {
        return Err(
            "neither the driver's library nor nvidia-smi says which instance of its GPU this part is: update the driver, or install \
             nvidia-smi (it comes with the driver's programs) in the PATH of the node's agent"
                .into(),
        );
    };
    let minor =
        gpu.minor.ok_or("the driver does not say which /dev/nvidia file its GPU has: reboot the node")?;
    let dir = format!("{CAPABILITIES}/gpu{minor}/mig/gi{of_gpu}");
    let of_gpu = capability(tree, &format!("{dir}/access"))?;
    Ok([of_gpu, capability(tree, &format!("{dir}/ci{of_compute}/access"))?])
}

/// The device file of a capability: `DeviceFileMinor: 12` in its file.
fn capability(tree: &Tree, access: &str) -> Result<String, String> {
    let minor = tree.text(access).and_then(|text| {
        text.lines().find_map(|line| line.strip_prefix("DeviceFileMinor:"))?.trim().parse::<u32>().ok()
    });
    let minor = minor.ok_or_else(|| {
        format!("{access} does not say which file of /dev/nvidia-caps belongs to this part: update the driver, or make the part anew")
    })?;
    let file = format!("/dev/nvidia-caps/nvidia-cap{minor}");
    match tree.has(&file) {
        true => Ok(file),
        false => Err(format!(
            "{file}, which belongs to this part, is not there: have it made (nvidia-modprobe -f {access}), at each boot"
        )),
    }
}

/// For each address, those that a fast link reaches: directly, or over switches, which join all that have links to any.
fn links(gpus: &BTreeMap<String, Gpu>) -> BTreeMap<String, Vec<String>> {
    let switched = |gpu: &Gpu| gpu.links.iter().any(|to| !gpus.contains_key(to));
    let mut all = BTreeMap::new();
    for (bus, gpu) in gpus {
        let mut reached: Vec<String> =
            gpu.links.iter().filter(|to| gpus.contains_key(*to)).cloned().collect();
        if switched(gpu) {
            reached.extend(gpus.iter().filter(|(_, other)| switched(other)).map(|(bus, _)| bus.clone()));
        }
        reached.retain(|to| to != bus);
        reached.sort();
        reached.dedup();
        all.insert(bus.clone(), reached);
    }
    all
}

/// Gives indices, and links by them.
fn number(
    found: Vec<(Option<String>, GresDevice)>,
    islands: &BTreeMap<String, Vec<String>>,
) -> Vec<GresDevice> {
    let at: BTreeMap<String, u32> =
        (0..).zip(&found).filter_map(|(n, (bus, _))| Some((bus.clone()?, n))).collect();
    let mut devices = Vec::new();
    for (index, (bus, mut device)) in (0..).zip(found) {
        device.index = index;
        let reached = bus.as_ref().and_then(|bus| islands.get(bus)).into_iter().flatten();
        device.links = reached.filter_map(|bus| at.get(bus).copied()).collect();
        devices.push(device);
    }
    devices
}
