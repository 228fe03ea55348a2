//! Control groups, version 1: one directory in each controller's own hierarchy.

use super::files::{cpu_list, keyed, make_dir, number, read, write, write_each};
use super::{Backend, CgroupError, CgroupFacts, CgroupLimits, CgroupUsage, Controller, DevicePolicy, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A group's directory by controller, with the caller's own group above it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct V1 {
    name: String,
    bases: BTreeMap<Controller, PathBuf>,
    dirs: BTreeMap<Controller, PathBuf>,
}

impl V1 {
    pub fn new(facts: &CgroupFacts, name: &str) -> Option<V1> {
        if facts.v1.is_empty() {
            return None;
        }
        let dirs = facts.v1.iter().map(|(c, base)| (*c, base.join(name))).collect();
        Some(V1 { name: name.into(), bases: facts.v1.clone(), dirs })
    }

    /// Gives the group another name beside its own, in every hierarchy.
    pub fn rename(&mut self, name: &str) -> Result<()> {
        let last = name.rsplit('/').next().unwrap_or(name);
        for dir in self.places() {
            std::fs::rename(dir, dir.with_file_name(last))
                .map_err(|e| CgroupError::new("rename the group", dir, &e))?;
        }
        self.dirs = self.bases.iter().map(|(c, base)| (*c, base.join(name))).collect();
        self.name = name.into();
        Ok(())
    }

    /// The group's directories, each once: controllers can share a hierarchy.
    fn places(&self) -> BTreeSet<&Path> {
        self.dirs.values().map(PathBuf::as_path).collect()
    }

    /// Where devices are limited.
    pub fn of_devices(&self) -> Option<&Path> {
        self.dir(Controller::Devices)
    }

    fn dir(&self, controller: Controller) -> Option<&Path> {
        self.dirs.get(&controller).map(PathBuf::as_path)
    }
}

/// A new v1 cpuset is empty and takes no process: it starts with what is above it.
pub(crate) fn inherit_cpuset(parent: &Path, dir: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if read(dir, file).is_none_or(|v| v.is_empty())
            && let Some(value) = read(parent, file)
        {
            write(dir, file, &value)?;
        }
    }
    Ok(())
}

/// Makes `name` below `base`, and only where they are missing the groups above it: most often they are there.
fn make_below(base: &Path, name: &str, cpuset: bool) -> Result<()> {
    let dir = base.join(name);
    let above = name.rsplit_once('/').map(|(above, _)| above);
    match (make_dir(&dir), above) {
        (Err(e), Some(above)) if e.errno == libc::ENOENT => {
            make_below(base, above, cpuset)?;
            make_dir(&dir)?;
        }
        (made, _) => made?,
    }
    let Some(parent) = dir.parent().filter(|_| cpuset) else { return Ok(()) };
    if let Some(above) = above
        && read(parent, "cpuset.mems").is_some_and(|v| v.is_empty())
    {
        // Whoever made it did not live long enough to fill it.
        make_below(base, above, cpuset)?;
    }
    inherit_cpuset(parent, &dir)
}

impl Backend for V1 {
    fn create(&self) -> Result<()> {
        self.bases.iter().try_for_each(|(controller, base)| {
            make_below(base, &self.name, *controller == Controller::Cpuset)
        })
    }

    fn apply(&self, limits: &CgroupLimits) -> Result<()> {
        if let (Some(dir), Some(bytes)) = (self.dir(Controller::Memory), limits.memory) {
            memory(dir, bytes, limits.swaps)?;
        }
        if let Some(dir) = self.dir(Controller::Cpuset)
            && !limits.cpus.is_empty()
        {
            write(dir, "cpuset.cpus", &cpu_list(&limits.cpus))?;
        }
        if let (Some(dir), Some(millis)) = (self.dir(Controller::Cpu), limits.cpu_millis) {
            write(dir, "cpu.cfs_period_us", "100000")?;
            write(dir, "cpu.cfs_quota_us", &millis.saturating_mul(100).max(1000).to_string())?;
        }
        if let (Some(dir), Some(n)) = (self.dir(Controller::Pids), limits.pids) {
            write(dir, "pids.max", &n.to_string())?;
        }
        if let (Some(dir), Some(policy)) = (self.dir(Controller::Devices), &limits.devices) {
            devices(dir, policy)?;
        }
        Ok(())
    }

    fn usage(&self) -> CgroupUsage {
        let mut usage = CgroupUsage::default();
        if let Some(dir) = self.dir(Controller::Memory) {
            usage.peak_memory = number(dir, "memory.max_usage_in_bytes");
            usage.memory = number(dir, "memory.usage_in_bytes");
            usage.oom_kills = read(dir, "memory.oom_control").and_then(|t| keyed(&t, "oom_kill"));
        }
        if let Some(dir) = self.dir(Controller::Cpuacct) {
            let nanos = |file| number(dir, file).map(|n| n / 1000);
            usage.user_us = nanos("cpuacct.usage_user");
            usage.system_us = nanos("cpuacct.usage_sys");
        }
        usage
    }

    fn join(&self, pid: i32) -> Result<()> {
        self.places().into_iter().try_for_each(|dir| write(dir, "cgroup.procs", &pid.to_string()))
    }

    fn dirs(&self) -> Vec<&Path> {
        self.places().into_iter().collect()
    }

    fn kill_at_once(&self) -> bool {
        false
    }
}

fn memory(dir: &Path, bytes: u64, swaps: bool) -> Result<()> {
    // The limit with swap may never be below the one without: the order depends on the direction.
    let (plain, swap) = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes");
    let bytes = bytes.to_string();
    if !dir.join(swap).exists() {
        return write(dir, plain, &bytes);
    }
    if swaps {
        write(dir, swap, "-1")?;
        return write(dir, plain, &bytes);
    }
    match write(dir, plain, &bytes) {
        Ok(()) => write(dir, swap, &bytes),
        Err(CgroupError { errno: libc::EINVAL, .. }) => {
            write(dir, swap, &bytes)?;
            write(dir, plain, &bytes)
        }
        Err(e) => Err(e),
    }
}

pub(super) fn devices(dir: &Path, policy: &DevicePolicy) -> Result<()> {
    match policy {
        DevicePolicy::AllowOnly(rules) => {
            write(dir, "devices.deny", "a")?;
            write_each(dir, "devices.allow", rules.iter().map(ToString::to_string))
        }
        DevicePolicy::DenyOnly(rules) => {
            write_each(dir, "devices.deny", rules.iter().map(ToString::to_string))
        }
        DevicePolicy::DenyOthers { denied, family } => {
            let others = family.others();
            write_each(dir, "devices.deny", denied.iter().map(ToString::to_string).chain(others))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_given_where_it_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, swap) = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes");
        let read = |file| std::fs::read_to_string(dir.path().join(file)).unwrap();
        for (swaps, said) in [(false, "4096"), (true, "-1")] {
            for file in [plain, swap] {
                std::fs::write(dir.path().join(file), "").unwrap();
            }
            memory(dir.path(), 4096, swaps).unwrap();
            assert_eq!((read(plain).as_str(), read(swap).as_str()), ("4096", said));
        }
    }
}
