//! The node's control groups as Berth lays them out: one tree for each state directory, a group for each
//! job, one below it for each step, and a leaf outside of all limits for the supervisors.

use berth_model::ids::JobId;
use berth_model::launch::{NodeShare, StepLaunch};
use berth_model::spec::ResolvedImage;
use berth_runtime::cgroup::{
    Cgroup, CgroupError, CgroupFacts, CgroupLimits, Controller, DevicePolicy, DeviceRule, device_of,
    standard_devices, vacate,
};
use std::path::Path;

/// The tree of one state directory.
pub struct Cgroups {
    facts: CgroupFacts,
    root: String,
    usable: bool,
    /// Devices that are allocated to steps: refused to those that were not given them.
    allocated: Vec<(String, DeviceRule)>,
}

impl Cgroups {
    /// Looks at what this process may do. `devices`: device files of the node's generic resources.
    pub fn detect(state: &Path, devices: &[String]) -> Result<Cgroups, CgroupError> {
        let facts = CgroupFacts::detect();
        let usable = facts.has(Controller::Memory) && facts.has(Controller::Cpuset);
        let allocated = devices.iter().filter_map(|file| match device_of(Path::new(file)) {
            Ok(rule) => Some((file.clone(), rule)),
            Err(e) => {
                tracing::warn!("{file} is configured as a device and cannot be used: {e}");
                None
            }
        });
        let allocated = allocated.collect();
        if usable {
            vacate(&facts, "berth-agent")?;
        }
        Ok(Cgroups { facts, root: format!("berth-{:08x}", hash(state)), usable, allocated })
    }

    /// Whether limits are enforced.
    pub fn enforces(&self) -> bool {
        self.usable
    }

    /// What cannot be limited, and why.
    pub fn missing(&self) -> Vec<String> {
        self.facts.missing.iter().map(|(controller, why)| format!("{}: {why}", controller.name())).collect()
    }

    /// The leaf for zygote and supervisors.
    pub fn supervisors(&self) -> Result<Option<Cgroup>, CgroupError> {
        self.create("supervisors", &CgroupLimits::default())
    }

    /// The group of a job, with the job's limits.
    pub fn job(&self, job: JobId, share: &NodeShare) -> Result<Option<Cgroup>, CgroupError> {
        self.create(&format!("job_{job}"), &limits(share, None))
    }

    /// The group of a step, within its job's.
    pub fn step(&self, launch: &StepLaunch) -> Result<Option<Cgroup>, CgroupError> {
        let name = format!("job_{}/step_{}", launch.key.job, launch.key.step);
        self.create(&name, &limits(&launch.share, Some(self.devices(launch))))
    }

    /// Takes the tree away where nothing is in it; what still runs keeps it for the next agent.
    pub fn leave(&self) {
        if !self.usable {
            return;
        }
        let names = [format!("{}/supervisors", self.root), self.root.clone()];
        for name in names {
            let gone = Cgroup::create(&self.facts, &name, &CgroupLimits::default()).and_then(|g| g.remove());
            if let Err(e) = gone {
                tracing::debug!("{e}");
                return;
            }
        }
    }

    fn create(&self, name: &str, limits: &CgroupLimits) -> Result<Option<Cgroup>, CgroupError> {
        if !self.usable {
            return Ok(None);
        }
        Cgroup::create(&self.facts, &format!("{}/{name}", self.root), limits).map(Some)
    }

    fn devices(&self, launch: &StepLaunch) -> DevicePolicy {
        let given =
            |file: &str| launch.share.gres.iter().flat_map(|g| &g.files).any(|f| f.0 == file.as_bytes());
        let host = launch.container.as_ref().is_none_or(|c| c.image.resolved == Some(ResolvedImage::Host));
        if host {
            let denied = self.allocated.iter().filter(|(file, _)| !given(file));
            return DevicePolicy::DenyOnly(denied.map(|(_, rule)| *rule).collect());
        }
        let mut allowed = standard_devices();
        allowed.extend(self.allocated.iter().filter(|(file, _)| given(file)).map(|(_, rule)| *rule));
        DevicePolicy::AllowOnly(allowed)
    }
}

fn limits(share: &NodeShare, devices: Option<DevicePolicy>) -> CgroupLimits {
    CgroupLimits {
        memory: (share.memory > 0).then_some(share.memory << 20),
        cpus: share.cpus.clone(),
        devices,
        ..CgroupLimits::default()
    }
}

/// FNV-1a: the same directory has the same tree after a restart, another one has another.
fn hash(state: &Path) -> u32 {
    use std::os::unix::ffi::OsStrExt;
    state
        .as_os_str()
        .as_bytes()
        .iter()
        .fold(0x811c_9dc5, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193))
}
