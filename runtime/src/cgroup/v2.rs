//! Control groups, version 2: one directory for everything.

use super::files::{cpu_list, keyed, make_dir, number, read, write};
use super::{
    Backend, CgroupError, CgroupFacts, CgroupLimits, CgroupUsage, Controller, DevicePolicy, Result, devices,
};
use crate::sys::Errno;
use crate::sys::bpf::{self, Insn};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A group's directory, with the caller's own group above it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct V2 {
    base: PathBuf,
    name: String,
    pub dir: PathBuf,
    controllers: Vec<Controller>,
}

const BUSY_HINT: &str = "processes in this group keep its controllers from the groups below: start the agent as a \
    service with Delegate=yes, or in a group of its own";

impl V2 {
    pub fn new(facts: &CgroupFacts, name: &str) -> Option<V2> {
        let base = facts.v2.clone()?;
        Some(V2 { dir: base.join(name), base, name: name.into(), controllers: facts.v2_controllers.clone() })
    }

    /// Where devices are limited.
    pub fn of_devices(&self) -> Option<&Path> {
        Some(self.dir.as_path()).filter(|_| self.has(Controller::Devices))
    }

    fn has(&self, controller: Controller) -> bool {
        self.controllers.contains(&controller)
    }

    /// Gives the controllers to the groups below `dir`.
    fn enable(&self, dir: &Path) -> Result<()> {
        let enabled = read(dir, "cgroup.subtree_control").unwrap_or_default();
        for controller in &self.controllers {
            // Devices have no controller but a program; accounting comes with cpu.
            if matches!(controller, Controller::Devices | Controller::Cpuacct) {
                continue;
            }
            let name = controller.name();
            if enabled.split_whitespace().any(|n| n == name) {
                continue;
            }
            write(dir, "cgroup.subtree_control", &format!("+{name}")).map_err(|e| match e.errno {
                libc::EBUSY => CgroupError { hint: BUSY_HINT, ..e },
                _ => e,
            })?;
        }
        Ok(())
    }
}

/// The group, for what is attached to it.
pub(super) fn open(dir: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(dir, flags, Mode::empty()).map_err(|e| refused("open the group", dir, e))
}

/// What the kernel did not do with a group's device program.
pub(super) fn refused(action: &'static str, dir: &Path, errno: Errno) -> CgroupError {
    CgroupError { action, path: dir.into(), errno: errno.raw_os_error(), hint: "" }
}

/// Gives a group its device program. It is asked beside those of the groups above.
pub(super) fn limit_devices(dir: &Path, policy: &DevicePolicy) -> Result<()> {
    let program = bpf::load_device_program(&devices::program(policy))
        .map_err(|e| refused("load the device program of", dir, e))?;
    let group = open(dir)?;
    bpf::attach_device_program(group.as_fd(), program.as_fd())
        .map_err(|e| refused("attach the device program to", dir, e))
}

/// Gives a group a further device program of that name, and takes away those that it had under it: at no time is it without one.
pub(super) fn replace_program(dir: &Path, program: &[Insn], name: &str) -> Result<()> {
    let group = open(dir)?;
    let earlier = programs(dir, name)?;
    let program = bpf::load_named_device_program(program, name)
        .map_err(|e| refused("load the device program of", dir, e))?;
    bpf::attach_device_program(group.as_fd(), program.as_fd())
        .map_err(|e| refused("attach the device program to", dir, e))?;
    detach(dir, &earlier)
}

/// A group's own device programs of that name.
pub(super) fn programs(dir: &Path, name: &str) -> Result<Vec<OwnedFd>> {
    let group = open(dir)?;
    bpf::device_programs(group.as_fd(), name).map_err(|e| refused("list the device programs of", dir, e))
}

/// Takes device programs from a group.
pub(super) fn detach(dir: &Path, programs: &[OwnedFd]) -> Result<()> {
    let group = open(dir)?;
    programs.iter().try_for_each(|program| {
        bpf::detach_device_program(group.as_fd(), program.as_fd())
            .map_err(|e| refused("take a device program from", dir, e))
    })
}

impl Backend for V2 {
    fn create(&self) -> Result<()> {
        // Where the groups above have nothing to pass on, only a missing one is worth a look.
        if self.controllers.is_empty() {
            match make_dir(&self.dir) {
                Err(e) if e.errno == libc::ENOENT => {}
                done => return done,
            }
        }
        let mut dir = self.base.clone();
        for part in self.name.split('/') {
            self.enable(&dir)?;
            dir.push(part);
            make_dir(&dir)?;
        }
        Ok(())
    }

    fn apply(&self, limits: &CgroupLimits) -> Result<()> {
        let dir = &self.dir;
        if let Some(bytes) = limits.memory.filter(|_| self.has(Controller::Memory)) {
            write(dir, "memory.max", &bytes.to_string())?;
            if dir.join("memory.swap.max").exists() {
                write(dir, "memory.swap.max", if limits.swaps { "max" } else { "0" })?;
            }
        }
        if self.has(Controller::Cpuset) && !limits.cpus.is_empty() {
            write(dir, "cpuset.cpus", &cpu_list(&limits.cpus))?;
        }
        if let Some(millis) = limits.cpu_millis.filter(|_| self.has(Controller::Cpu)) {
            write(dir, "cpu.max", &format!("{} 100000", millis.saturating_mul(100).max(1000)))?;
        }
        if let Some(n) = limits.pids.filter(|_| self.has(Controller::Pids)) {
            write(dir, "pids.max", &n.to_string())?;
        }
        if let Some(policy) = limits.devices.as_ref().filter(|_| self.has(Controller::Devices)) {
            limit_devices(dir, policy)?;
        }
        Ok(())
    }

    fn usage(&self) -> CgroupUsage {
        let mut usage = CgroupUsage::default();
        if self.has(Controller::Memory) {
            usage.peak_memory = number(&self.dir, "memory.peak");
            usage.memory = number(&self.dir, "memory.current");
            usage.oom_kills = read(&self.dir, "memory.events").and_then(|t| keyed(&t, "oom_kill"));
        }
        // cpu.stat has the times in every group, with the controller or without.
        if let Some(stat) = read(&self.dir, "cpu.stat") {
            usage.user_us = keyed(&stat, "user_usec");
            usage.system_us = keyed(&stat, "system_usec");
        }
        usage
    }

    fn join(&self, pid: i32) -> Result<()> {
        write(&self.dir, "cgroup.procs", &pid.to_string())
    }

    fn dirs(&self) -> Vec<&Path> {
        vec![&self.dir]
    }

    fn kill_at_once(&self) -> bool {
        // From kernel 5.14.
        write(&self.dir, "cgroup.kill", "1").is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_given_where_it_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().to_path_buf();
        let group =
            V2 { dir: base.clone(), base, name: "group".into(), controllers: vec![Controller::Memory] };
        for (swaps, said) in [(false, "0"), (true, "max")] {
            for file in ["memory.max", "memory.swap.max"] {
                std::fs::write(dir.path().join(file), "").unwrap();
            }
            group.apply(&CgroupLimits { memory: Some(4096), swaps, ..CgroupLimits::default() }).unwrap();
            let read = |file| read(dir.path(), file).unwrap();
            assert_eq!((read("memory.max"), read("memory.swap.max")), ("4096".into(), said.into()));
        }
    }
}
