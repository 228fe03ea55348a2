//! GPUs of a node: what is there, what is wrong with it, and what a container needs to use it.
//!
//! What is read and what is made of it are apart: everything but [`Tree`], [`nvml::ask`], [`nvml::watch`] and the two that run these, [`nvml::helper`] and [`nvml::sampler`], is a function of
//! what it is given, and a [`Tree`] may be a recorded one. What a container needs is a CDI specification ([`inject`]).
#![forbid(unsafe_code)]

pub mod cdi;
mod driver;
pub mod drm;
pub mod imex;
pub mod inject;
mod kind;
pub mod mps;
pub mod nvidia;
pub mod nvml;
mod others;
pub mod require;
pub mod sample;
pub mod share;
mod tree;
pub mod xid;

pub use driver::{Driver, Library};
pub use tree::Tree;

use imex::Imex;

use berth_model::hardware::{GresDevice, Vendor};
use xid::Fatal;

/// All that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Devices, numbered through.
    pub devices: Vec<GresDevice>,
    /// NVIDIA's driver, where it can be injected.
    pub driver: Option<Driver>,
    /// Why it cannot, where its kernel module is loaded.
    pub lacking: Option<String>,
    /// That NVIDIA's kernel module and library are of different versions.
    pub mismatch: Option<String>,
    /// What containers are to be told of the driver: the newest CUDA, and of each GPU by its address what it is.
    pub answer: nvml::Answer,
    /// The channels by which jobs share GPUs' memory over several nodes.
    pub imex: Option<Imex>,
    /// Files of NVIDIA's GPUs that no job is given.
    pub withheld: Vec<String>,
    /// What is wrong, for the log.
    pub wrong: Vec<String>,
}

/// Looks at a node. `ask`: asks the drivers, by NVIDIA's library and for AMD's counts of errors; called only where
/// there is something to ask. `fatal`: what the kernel's log told of NVIDIA's.
pub fn look(tree: &Tree, fatal: &Fatal, ask: impl FnOnce() -> Result<nvml::Answer, String>) -> Found {
    let mut found = Found::default();
    let mut amd = others::amd(tree);
    let is_loaded = nvidia::is_loaded(tree);
    let asked = (is_loaded || amd.iter().any(|device| others::counts_errors(tree, device))).then(ask);
    if let Some(answer) = &asked {
        others::fence(tree, &mut amd, answer);
    }
    if let Some(answer) = asked.filter(|_| is_loaded) {
        let version = nvidia::kernel_version(tree);
        match version.as_deref().map(|version| Driver::find(tree, version)) {
            Some(Ok(driver)) => found.driver = Some(driver),
            Some(Err(why)) => found.lacking = Some(why),
            None => {
                found.lacking = Some("/proc/driver/nvidia/version names no version of the driver".into());
            }
        }
        let lacking = found.lacking.iter();
        found.wrong.extend(lacking.map(|why| format!("containers cannot use NVIDIA's GPUs: {why}")));
        let library = driver::library_version(tree);
        found.devices = nvidia::devices(tree, &answer, library.as_deref(), fatal);
        found.mismatch = nvidia::mismatch(tree, &answer, library.as_deref());
        found.answer = answer.unwrap_or_default();
        found.imex = Imex::look(tree);
        found.withheld = drm::withheld(tree, &found.devices);
    }
    found.devices.extend(amd);
    found.devices.extend(others::intel(tree));
    renumber(&mut found.devices);
    for device in found.devices.iter().filter(|d| d.fault.is_some()) {
        let bus = device.bus.as_deref().unwrap_or("of unknown address");
        let fault = device.fault.as_deref().unwrap_or_default();
        found.wrong.push(format!("GPU {} ({bus}) is fenced: {fault}", device.index));
    }
    found
}

/// What is wrong with the GPU at an address, by the kernel's word alone: its driver, which may take seconds, is not asked.
pub fn by_kernel(tree: &Tree, fatal: &Fatal, bus: &str) -> Option<String> {
    let xid = || fatal.get(bus).map(|code| xid::reason(*code));
    nvidia::off_the_bus(tree, bus).or_else(xid)
}

/// Indices go through all makers' devices; links and places are among those of one.
fn renumber(devices: &mut [GresDevice]) {
    let mut next = 0u32;
    let mut first = (Vendor::Generic, 0u32);
    let mut last: Option<(Option<String>, u32)> = None;
    for device in devices {
        if device.vendor != first.0 {
            first = (device.vendor, next);
            last = None;
        }
        let place = match last {
            None => 0,
            Some((bus, place)) if bus == device.bus => place,
            Some((_, place)) => place.saturating_add(1),
        };
        last = Some((device.bus.clone(), place));
        device.place.get_or_insert(place);
        device.index = next;
        device.links.iter_mut().for_each(|link| *link = link.saturating_add(first.1));
        next = next.saturating_add(1);
    }
}
