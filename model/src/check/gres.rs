//! Devices in a configuration: what is wrong with what is said of them, and what lists of them mean.

use super::{Problems, is_word};
use crate::config::GresConfig;
use crate::devices::GPU;
use crate::hostlist;
use std::path::Component;

/// Most devices of one entry without files.
const MOST_DEVICES: u32 = 4096;
/// Most shares of one device.
const MOST_SHARES: u32 = 4096;
/// Numbers of cores are below that.
const MOST_CORES: u32 = 1 << 16;

/// One entry of `[[node.gres]]`.
pub(super) fn check(key: &str, gres: &GresConfig, out: &mut Problems) {
    if !is_gres_word(&gres.name) {
        out.add(format!("{key}.name"), format!("'{}' is not a resource's name, such as gpu", gres.name));
    }
    if let Some(kind) = gres.kind.as_ref().filter(|kind| !is_gres_kind(kind)) {
        out.add(format!("{key}.type"), format!("'{kind}' is not a type, such as a100"));
    }
    check_sharing(key, gres, out);
    if !gres.cdi.is_empty() {
        check_cdi(key, gres, out);
        return;
    }
    match gres.device_files() {
        Err(why) => out.add(format!("{key}.files"), why),
        Ok(files) => match (files.len(), gres.count) {
            (0, Some(count)) if count > MOST_DEVICES => {
                out.add(format!("{key}.count"), format!("it is more than {MOST_DEVICES}"));
            }
            // Of devices that the node finds it says what it does not find.
            (0, None) if gres.name == GPU && gres.describes() => {}
            (0, None | Some(0)) => {
                out.add(key, "write 'files' for its devices, or 'count' for a resource without")
            }
            (1.., Some(count)) if files.len() as u64 != u64::from(count) => out.add(
                format!("{key}.count"),
                format!("it is {count}, but 'files' names {} devices; leave it out", files.len()),
            ),
            _ => {}
        },
    }
}

/// Devices by their names in CDI files, which say what else there is to them.
fn check_cdi(key: &str, gres: &GresConfig, out: &mut Problems) {
    match gres.cdi_names() {
        Err(why) => out.add(format!("{key}.cdi"), why),
        Ok(names) if names.len() as u64 > u64::from(MOST_DEVICES) => {
            out.add(format!("{key}.cdi"), format!("it names more than {MOST_DEVICES} devices"));
        }
        Ok(_) => {}
    }
    if !gres.files.is_empty() {
        out.add(format!("{key}.files"), "device files are those that the CDI file names: leave it out");
    }
    if gres.count.is_some() {
        out.add(format!("{key}.count"), "each name of 'cdi' is one device: leave it out");
    }
}

/// What is said of devices beside which they are.
fn check_sharing(key: &str, gres: &GresConfig, out: &mut Problems) {
    if let Some(cores) = &gres.cores
        && let Err(why) = gres.near_cores()
    {
        out.add(format!("{key}.cores"), format!("'{cores}': {why}"));
    }
    let shared = gres.mps || gres.shards.is_some();
    if shared && gres.name != GPU {
        out.add(
            format!("{key}.name"),
            format!("only devices named '{GPU}' are shared: leave shards and mps out"),
        );
    }
    if gres.mps && gres.shards.is_some() {
        out.add(
            format!("{key}.mps"),
            "a device is shared by MPS or by slices of time (shards): leave one out",
        );
    }
    if gres.shards.is_some_and(|n| !(1..=MOST_SHARES).contains(&n)) {
        out.add(format!("{key}.shards"), format!("write how many may share one: 1 to {MOST_SHARES}"));
    }
    for flag in &gres.flags {
        let why = match flag.to_ascii_lowercase().as_str() {
            // Shares are of one device here in any case.
            "one_sharing" => continue,
            "countonly" if gres.files.is_empty() && gres.cdi.is_empty() => continue,
            "countonly" => {
                "a resource that is only counted has no devices: leave 'files' and 'cdi' out and write 'count'"
            }
            "all_sharing" => {
                "shares of several devices for one job are not done: a job has shares of one, or whole devices"
            }
            "explicit" => {
                "devices that --exclusive leaves out are not done: put the node's others into a partition of their own"
            }
            "nvidia_gpu_env" | "amd_gpu_env" | "intel_gpu_env" | "opencl_env" | "no_gpu_env" => {
                "which variables a task has follows from the device's maker, which the node finds: leave it out"
            }
            _ => "it is no flag of gres.conf; known are CountOnly and one_sharing",
        };
        out.add(format!("{key}.flags"), format!("'{flag}': {why}"));
    }
}

impl GresConfig {
    /// The device files, with brackets expanded: one device each.
    ///
    /// # Errors
    /// A sentence about a path that is not below `/dev` or does not expand.
    pub fn device_files(&self) -> Result<Vec<crate::ByteStr>, String> {
        let mut files = Vec::new();
        for pattern in &self.files {
            // Where containers have their devices.
            let leads_up = pattern.as_path().components().any(|part| part == Component::ParentDir);
            if !pattern.0.starts_with(b"/dev/") || leads_up {
                return Err(format!(
                    "'{}' is not a path below /dev, as a device of containers has to be",
                    pattern.display()
                ));
            }
            match std::str::from_utf8(&pattern.0) {
                Ok(text) if text.contains(['[', ']']) => {
                    let names = hostlist::expand(text).map_err(|e| e.to_string())?;
                    files.extend(names.into_iter().map(crate::ByteStr::from));
                }
                _ => files.push(pattern.clone()),
            }
        }
        Ok(files)
    }

    /// The names in CDI files, with brackets expanded: one device each.
    ///
    /// # Errors
    /// A sentence about one that is no such name, or that is there twice.
    pub fn cdi_names(&self) -> Result<Vec<String>, String> {
        let mut names: Vec<String> = Vec::new();
        for pattern in &self.cdi {
            for name in hostlist::expand(pattern).map_err(|e| e.to_string())? {
                let parts =
                    name.split_once('=').and_then(|(kind, device)| Some((kind.split_once('/')?, device)));
                let is_name = |((vendor, class), device): ((&str, &str), &str)| {
                    [vendor, class, device].iter().all(|part| !part.is_empty()) && !class.contains('/')
                };
                if !parts.is_some_and(is_name) {
                    return Err(format!("'{name}' is not of the form vendor.com/class=name"));
                }
                if names.contains(&name) {
                    return Err(format!("'{name}' is there twice"));
                }
                names.push(name);
            }
        }
        if names.is_empty() && !self.cdi.is_empty() {
            return Err("it names no device; write names such as vendor.com/class=name".to_string());
        }
        Ok(names)
    }

    /// Whether it says something of devices that are there without it.
    pub fn describes(&self) -> bool {
        self.mps || self.shards.is_some() || self.cores.is_some()
    }

    /// Numbers of the cores near to its devices; none where nothing was said.
    ///
    /// # Errors
    /// A sentence about a list that is none.
    pub fn near_cores(&self) -> Result<Vec<u32>, String> {
        let Some(text) = &self.cores else { return Ok(Vec::new()) };
        let mut cores = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (first.trim().parse::<u32>(), last.trim().parse::<u32>()) {
                (Ok(first), Ok(last)) if first <= last && last < MOST_CORES => cores.extend(first..=last),
                _ => return Err("write numbers of cores, such as 0-7,16".to_string()),
            }
        }
        cores.sort_unstable();
        cores.dedup();
        Ok(cores)
    }
}

fn is_gres_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic()) && is_word(text)
}

fn is_gres_kind(text: &str) -> bool {
    is_word(text)
        && crate::gres::parse(&format!("x:{text}:1")).is_ok_and(|w| w.keys().all(|k| k.kind.is_some()))
}
