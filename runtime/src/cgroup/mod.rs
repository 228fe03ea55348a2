//! Control groups: limits, usage, out-of-memory detection and killing, on v2, v1 and hybrid nodes.
//!
//! A [`Cgroup`] is made before its processes, so that nothing slow lies on the start path: with v2 a process
//! is cloned into it ([`Cgroup::v2_dir`] and [`crate::StartOptions::cgroup`]); with v1 it is forked by a
//! process that was moved there beforehand ([`crate::Parked`] and [`Cgroup::join`]). On a hybrid node the
//! limits are v1's, and the v2 group beside them kills everything at once.
//!
//! ```no_run
//! use berth_runtime::cgroup::{Cgroup, CgroupFacts, CgroupLimits};
//! # fn main() -> Result<(), berth_runtime::cgroup::CgroupError> {
//! let facts = CgroupFacts::detect();
//! let job = Cgroup::create(&facts, "berth/job_12", &CgroupLimits::default())?;
//! let limits = CgroupLimits { memory: Some(1 << 30), cpus: vec![0], ..CgroupLimits::default() };
//! let step = Cgroup::create(&facts, "berth/job_12/step_0", &limits)?;
//! // ... start, run ...
//! step.kill()?;
//! let usage = step.usage();
//! step.remove()?;
//! job.remove()?;
//! # Ok(())
//! # }
//! ```

mod devices;
pub(crate) mod facts;
pub(crate) mod files;
mod foreign;
pub(crate) mod v1;
mod v2;

#[cfg(feature = "oci")]
pub(crate) use devices::access_program;
pub use devices::{DeviceAccess, DeviceKind, DevicePolicy, DeviceRule, Family, device_of, standard_devices};
pub use facts::{CgroupFacts, Controller, Unified};
pub use foreign::Foreign;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a group may use. What is absent is not limited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CgroupLimits {
    /// Memory in bytes; swap is not given beside it, unless [`CgroupLimits::swaps`].
    pub memory: Option<u64>,
    /// Where memory is limited: what is in it may be swapped out, as elsewhere on the node.
    pub swaps: bool,
    /// CPU numbers; empty does not limit.
    pub cpus: Vec<u32>,
    /// CPU time in thousandths of a CPU.
    pub cpu_millis: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Devices.
    pub devices: Option<DevicePolicy>,
}

/// What a group has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupUsage {
    /// User CPU time in microseconds.
    pub user_us: Option<u64>,
    /// System CPU time in microseconds.
    pub system_us: Option<u64>,
    /// Peak memory in bytes.
    pub peak_memory: Option<u64>,
    /// Memory now, in bytes.
    pub memory: Option<u64>,
    /// Processes that the memory limit killed.
    pub oom_kills: Option<u64>,
}

impl CgroupUsage {
    fn or(self, other: CgroupUsage) -> CgroupUsage {
        CgroupUsage {
            user_us: self.user_us.or(other.user_us),
            system_us: self.system_us.or(other.system_us),
            peak_memory: self.peak_memory.or(other.peak_memory),
            memory: self.memory.or(other.memory),
            oom_kills: self.oom_kills.or(other.oom_kills),
        }
    }
}

/// What went wrong, on which file, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {}{}{}", .path.display(), crate::setup::errno_text(*.errno),
    if .hint.is_empty() { "" } else { "; " }, .hint)]
pub struct CgroupError {
    /// What was tried.
    pub action: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// The kernel's error number.
    pub errno: i32,
    /// What to do; may be empty.
    pub hint: &'static str,
}

impl CgroupError {
    pub(crate) fn new(action: &'static str, path: &Path, error: &io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        CgroupError { action, path: path.into(), errno, hint: "" }
    }
}

pub(crate) type Result<T> = std::result::Result<T, CgroupError>;

/// One version of control groups, for one group.
trait Backend {
    /// Makes the directories, with everything above them prepared.
    fn create(&self) -> Result<()>;
    /// Writes the limits it has controllers for.
    fn apply(&self, limits: &CgroupLimits) -> Result<()>;
    /// Reads what it knows.
    fn usage(&self) -> CgroupUsage;
    /// Moves a process in.
    fn join(&self, pid: i32) -> Result<()>;
    /// Directories, each of which has its own list of processes.
    fn dirs(&self) -> Vec<&Path>;
    /// Kills everything at once where the kernel can; `false` where it cannot.
    fn kill_at_once(&self) -> bool;
}

/// A group in every hierarchy that the node has. Can be stored, and used again by a later process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    v1: Option<v1::V1>,
    v2: Option<v2::V2>,
}

impl Cgroup {
    /// Makes a group below the caller's own and limits it. `name` is relative, such as `berth/job_1`; the
    /// groups above it are made, without limits, where they do not exist. An existing group is taken over.
    ///
    /// # Errors
    /// A controller that the node has and that refuses the limit. What the node does not have
    /// ([`CgroupFacts::missing`]) is not limited and is no error here: the caller decides what it must have.
    pub fn create(facts: &CgroupFacts, name: &str, limits: &CgroupLimits) -> Result<Cgroup> {
        let plain = |part: &str| part.is_empty() || part == "." || part == "..";
        if name.split('/').any(plain) {
            return Err(CgroupError {
                action: "make the group",
                path: name.into(),
                errno: libc::EINVAL,
                hint: "a group's name is a relative path without '.' and '..'",
            });
        }
        let group = Cgroup::named(facts, name);
        for backend in group.backends() {
            backend.create()?;
        }
        group.apply(limits)?;
        Ok(group)
    }

    /// Makes a group, without limits, in the hierarchies of v1 alone: a place for a process that is parked until
    /// the group's purpose, and with it its name, is known. `None` on a node without v1 controllers, where
    /// nothing has to be parked.
    ///
    /// # Errors
    /// As [`Cgroup::create`].
    pub fn parking(facts: &CgroupFacts, name: &str) -> Result<Option<Cgroup>> {
        let Some(v1) = v1::V1::new(facts, name) else { return Ok(None) };
        v1.create()?;
        Ok(Some(Cgroup { v1: Some(v1), v2: None }))
    }

    /// The group of [`Cgroup::parking`] that was made under this name.
    pub fn parked(facts: &CgroupFacts, name: &str) -> Option<Cgroup> {
        Some(Cgroup { v1: Some(v1::V1::new(facts, name)?), v2: None })
    }

    /// Makes of a group of [`Cgroup::parking`] what [`Cgroup::create`] would have made.
    ///
    /// # Errors
    /// As [`Cgroup::create`].
    pub fn complete(facts: &CgroupFacts, name: &str, limits: &CgroupLimits) -> Result<Cgroup> {
        let group = Cgroup::named(facts, name);
        if let Some(v2) = &group.v2 {
            v2.create()?;
        }
        group.apply(limits)?;
        Ok(group)
    }

    /// Gives a group of [`Cgroup::parking`] its name, beside the one that it had.
    ///
    /// # Errors
    /// A group of that name exists, or the kernel refuses.
    pub fn rename(&mut self, name: &str) -> Result<()> {
        self.v1.iter_mut().try_for_each(|v1| v1.rename(name))
    }

    /// Names of the groups directly below one, in whichever hierarchy they are.
    pub fn below(facts: &CgroupFacts, name: &str) -> Vec<String> {
        let bases = facts.v1.values().chain(&facts.v2);
        let mut names: Vec<String> = bases
            .flat_map(|base| files::children(&base.join(name)))
            .filter_map(|dir| Some(dir.file_name()?.to_str()?.to_string()))
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// A group by its name, whether it exists or not.
    pub fn named(facts: &CgroupFacts, name: &str) -> Cgroup {
        Cgroup { v1: v1::V1::new(facts, name), v2: v2::V2::new(facts, name) }
    }

    fn backends(&self) -> impl Iterator<Item = &dyn Backend> {
        let v1 = self.v1.iter().map(|b| b as &dyn Backend);
        v1.chain(self.v2.iter().map(|b| b as &dyn Backend))
    }

    /// Changes the limits. A device policy can only be set once on v2, where each one narrows the last.
    ///
    /// # Errors
    /// The file that refused.
    pub fn apply(&self, limits: &CgroupLimits) -> Result<()> {
        self.backends().try_for_each(|b| b.apply(limits))
    }

    /// The v2 directory, for [`crate::StartOptions::cgroup`]. Absent on a node without v2.
    pub fn v2_dir(&self) -> Option<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let v2 = self.v2.as_ref()?;
        rustix::fs::open(&v2.dir, flags, Mode::empty()).ok()
    }

    /// Whether a process must be moved in by [`Cgroup::join`], because v1 controllers hold the limits.
    pub fn needs_join(&self) -> bool {
        self.v1.is_some()
    }

    /// Its lists of processes, one in each hierarchy: who writes `0` there is in it.
    pub fn lists(&self) -> Vec<PathBuf> {
        self.backends().flat_map(Backend::dirs).map(|dir| dir.join("cgroup.procs")).collect()
    }

    /// Moves a process in. Slow after idle (milliseconds): not on the start path.
    ///
    /// # Errors
    /// The file that refused.
    pub fn join(&self, pid: i32) -> Result<()> {
        self.backends().try_for_each(|b| b.join(pid))
    }

    /// Makes a group below it, `name`, whose processes do without these devices, and gives its list of processes: who writes `0`
    /// there is in it. Nothing else is limited by it. `None` where devices are not limited here, or none are named.
    ///
    /// # Errors
    /// As [`Cgroup::create`].
    pub fn without(&self, name: &str, denied: Vec<DeviceRule>) -> Result<Option<OwnedFd>> {
        let dirs =
            [self.v1.as_ref().and_then(v1::V1::of_devices), self.v2.as_ref().and_then(v2::V2::of_devices)];
        let Some(above) = dirs.into_iter().flatten().next().filter(|_| !denied.is_empty()) else {
            return Ok(None);
        };
        let dir = above.join(name);
        files::make_dir(&dir)?;
        let policy = DevicePolicy::DenyOnly(denied);
        if self.v1.as_ref().and_then(v1::V1::of_devices) == Some(above) {
            // Where the controllers share a hierarchy it takes no process before it has cores and memory.
            v1::inherit_cpuset(above, &dir)?;
            v1::devices(&dir, &policy)?;
        } else {
            v2::limit_devices(&dir, &policy)?;
        }
        let list = dir.join("cgroup.procs");
        let open = rustix::fs::open(&list, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        open.map(Some).map_err(|e| CgroupError::new("open", &list, &e.into()))
    }

    /// Keeps further devices from its processes and from those of the groups below it: `policy` is one that denies. What was refused before
    /// stays so, but for what an earlier call refused under the same `name` (letters, digits and `_`, 15 at most) on v2. Nothing where
    /// devices are not limited here.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn narrow(&self, policy: &DevicePolicy, name: &str) -> Result<()> {
        if let Some(dir) = self.v1.as_ref().and_then(v1::V1::of_devices) {
            return v1::devices(dir, policy);
        }
        let Some(dir) = self.v2.as_ref().and_then(v2::V2::of_devices) else { return Ok(()) };
        v2::replace_program(dir, &devices::program(policy), name)
    }

    /// CPU time, memory and out-of-memory kills so far.
    pub fn usage(&self) -> CgroupUsage {
        self.backends().fold(CgroupUsage::default(), |u, b| u.or(b.usage()))
    }

    /// What the files of its limits hold, by path.
    pub fn values(&self) -> Vec<(String, String)> {
        const FILES: [&str; 10] = [
            "memory.limit_in_bytes",
            "memory.memsw.limit_in_bytes",
            "memory.max",
            "memory.swap.max",
            "cpuset.cpus",
            "cpuset.mems",
            "cpu.cfs_quota_us",
            "cpu.max",
            "pids.max",
            "devices.list",
        ];
        let dirs = self.backends().flat_map(Backend::dirs);
        let held = |dir: &Path, file: &str| {
            let value = files::read(dir, file)?.replace('\n', ";");
            Some((dir.join(file).display().to_string(), value))
        };
        dirs.flat_map(|dir| FILES.iter().filter_map(move |file| held(dir, file))).collect()
    }

    /// Whether a process is in it or below.
    pub fn is_populated(&self) -> bool {
        !self.in_one_hierarchy().is_empty()
    }

    /// Whether this process is in it or below.
    pub fn has(&self, pid: i32) -> bool {
        self.in_one_hierarchy().contains(&pid)
    }

    /// Processes in it and below: a process is in the same group of every hierarchy, so one of them is asked.
    fn in_one_hierarchy(&self) -> Vec<i32> {
        let mut found = Vec::new();
        if let Some(dir) = self.backends().next().and_then(|backend| backend.dirs().first().copied()) {
            files::processes(dir, &mut found);
        }
        found
    }

    /// Processes in it and below.
    pub fn processes(&self) -> Vec<i32> {
        let mut all = Vec::new();
        for backend in self.backends() {
            for dir in backend.dirs() {
                files::processes(dir, &mut all);
            }
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Sends SIGKILL to everything in it and below, without freezing. Returns before they are gone.
    ///
    /// # Errors
    /// Processes that cannot be signalled.
    pub fn kill(&self) -> Result<()> {
        let mut refused = None;
        for backend in self.backends() {
            if backend.kill_at_once() {
                continue;
            }
            for dir in backend.dirs() {
                // A fork that ran meanwhile is found by the next round; a fork bomb meets the pids limit.
                for _ in 0..KILL_ROUNDS {
                    let mut found = Vec::new();
                    files::processes(dir, &mut found);
                    if found.is_empty() {
                        break;
                    }
                    for pid in found {
                        match crate::sys::signals::kill(pid, libc::SIGKILL) {
                            Err(e) if e != crate::sys::Errno::SRCH => refused = Some((dir.to_path_buf(), e)),
                            _ => {}
                        }
                    }
                    if refused.is_some() {
                        break;
                    }
                }
            }
        }
        match refused {
            None => Ok(()),
            Some((path, e)) => {
                Err(CgroupError { action: "kill the processes in", path, errno: e.raw_os_error(), hint: "" })
            }
        }
    }

    /// Kills everything and removes the group and those below it, for at most `patience`. What is still
    /// there then (a process in state D) is named by [`Cgroup::processes`].
    ///
    /// # Errors
    /// The directory that could not be removed.
    pub fn kill_and_remove(&self, patience: Duration) -> Result<()> {
        let start = Instant::now();
        let mut pause = Duration::from_micros(200);
        loop {
            // Most often nothing lives any more, and what does keeps the kernel from removing the group.
            match self.remove() {
                Err(e) if e.errno == libc::EBUSY && start.elapsed() < patience => {}
                done => return done,
            }
            self.kill()?;
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Removes the group and the groups below it. One that is gone is no error.
    ///
    /// # Errors
    /// `EBUSY` while a process is in it.
    pub fn remove(&self) -> Result<()> {
        for backend in self.backends() {
            for dir in backend.dirs() {
                files::remove(dir)?;
            }
        }
        Ok(())
    }
}

const KILL_ROUNDS: usize = 100;

/// Name of the leaf of [`vacate`].
pub const LEAF: &str = "berth-agent";

/// Moves one process into the leaf of the group that is divided.
///
/// # Errors
/// The file that refused.
pub fn into_leaf(facts: &CgroupFacts, pid: u32) -> Result<()> {
    let Some(base) = &facts.v2 else { return Ok(()) };
    let dir = base.join(LEAF);
    files::make_dir(&dir)?;
    files::write(&dir, "cgroup.procs", &pid.to_string())
}

/// Moves the processes of this process's own v2 group into a leaf below it, so that the groups beside the leaf
/// can have controllers: v2 gives them to no group whose parent holds processes. Where the group is not ours to
/// divide, only the calling process goes. Without v2, and in the root group, where that rule does not hold,
/// there is nothing to do.
///
/// # Errors
/// The file that refused.
pub fn vacate(facts: &CgroupFacts) -> Result<()> {
    let Some(base) = &facts.v2 else { return Ok(()) };
    if facts.v2_controllers.is_empty() || !base.join("cgroup.type").exists() {
        return Ok(());
    }
    let dir = base.join(LEAF);
    files::make_dir(&dir)?;
    files::write(&dir, "cgroup.procs", "0")?;
    let systemd = Path::new("/run/systemd/system").exists();
    if systemd && !Unified::detect().is_some_and(|own| own.is_delegated()) {
        return Ok(());
    }
    // A fork that ran meanwhile is found by the next round.
    for _ in 0..KILL_ROUNDS {
        let listed = files::read(base, "cgroup.procs").unwrap_or_default();
        // 0 is a process of another pid namespace.
        let pids: Vec<&str> = listed.lines().filter(|pid| *pid != "0").collect();
        if pids.is_empty() {
            break;
        }
        for pid in pids {
            match files::write(&dir, "cgroup.procs", pid) {
                Err(e) if e.errno != libc::ESRCH => return Err(e),
                _ => {}
            }
        }
    }
    Ok(())
}
