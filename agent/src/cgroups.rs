//! The node's control groups as Berth lays them out: one tree for each state directory, a group for each
//! job, one below it for each step, and a leaf outside of all limits for the supervisors.

use crate::fabrics::Fabric;
use berth_gpus::imex::Imex;
use berth_model::ByteStr;
use berth_model::hardware::Vendor;
use berth_model::ids::{JobId, Uid};
use berth_model::launch::{NodeShare, StepLaunch};
use berth_model::spec::ResolvedImage;
use berth_runtime::cgroup::{
    Cgroup, CgroupError, CgroupFacts, CgroupLimits, Controller, DevicePolicy, DeviceRule, Family, device_of,
    standard_devices, vacate,
};
use berth_step::spool::{read_json, write_json};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Name of the group, within a job's, in which a process is parked for the job's next step.
const NEXT: &str = "next";
/// Name of the group, within a job's, of logins to the node by the job's user.
const VISITORS: &str = "extern";
/// Name of the group of what fetches images, with a group for each user in it, in which each fetch has its own.
const FETCH: &str = "fetch";
/// Bytes of memory and processes that one fetch has, and bytes that all of a user have together: what is common to users, one of them
/// could take from the others.
const FETCH_MEMORY: u64 = 1 << 30;
const FETCH_PIDS: u64 = 1024;
const FETCH_MEMORY_OF_A_USER: u64 = 2 << 30;
/// With more than this a user's group stays when nothing is fetched: files in memory are the user's as long as they are there.
const FETCH_LEFT: u64 = 4 << 20;
/// Name of the device program by which a group that is there is kept from devices that came after it.
const LATER: &str = "berth_later";
/// Name of the group of zygote and supervisors.
const SUPERVISORS: &str = "supervisors";

/// What an agent writes down of the tree for those who come without it.
#[derive(Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    facts: CgroupFacts,
    /// Device files that are allocated; agents of earlier versions wrote none.
    devices: Option<Vec<String>>,
    /// IMEX channels of the node.
    #[serde(default)]
    channels: Option<Imex>,
}

/// The tree of one state directory.
pub struct Cgroups {
    facts: CgroupFacts,
    root: String,
    /// Something can be limited.
    usable: bool,
    /// Devices that are allocated to steps: refused to those that were not given them.
    allocated: Vec<(String, DeviceRule)>,
    /// Which those are is known: an agent of an earlier version did not write it down.
    knows_devices: bool,
    /// IMEX channels, of which a job has one at most.
    channels: Option<Imex>,
    /// How many fetches users have under way: their groups stay.
    fetching: Mutex<BTreeMap<Uid, usize>>,
}

impl Cgroups {
    /// What can be done with the groups of `facts`. `devices`: device files of the node's generic resources. `own`: they are
    /// those of this process, which gets out of their way.
    pub fn detect(
        state: &Path,
        devices: &[String],
        facts: CgroupFacts,
        own: bool,
    ) -> Result<Cgroups, CgroupError> {
        let usable = [Controller::Memory, Controller::Cpuset, Controller::Pids].iter().any(|c| facts.has(*c));
        let allocated = allocated(devices);
        if usable && own {
            vacate(&facts)?;
        }
        Ok(Cgroups {
            facts,
            root: tree_name(state),
            usable,
            allocated,
            knows_devices: true,
            channels: None,
            fetching: Mutex::default(),
        })
    }

    /// With the IMEX channels that the node has.
    #[must_use]
    pub fn with_channels(self, channels: Option<Imex>) -> Cgroups {
        Cgroups { channels, ..self }
    }

    /// The tree that an earlier agent wrote down by [`Cgroups::record`]; it may have been started elsewhere.
    pub fn recorded(state: &Path, record: &Path) -> Option<Cgroups> {
        let Record { facts, devices, channels } = read_json(record).ok()?;
        let root = tree_name(state);
        let knows_devices = devices.is_some();
        let allocated = allocated(&devices.unwrap_or_default());
        let fetching = Mutex::default();
        Some(Cgroups { facts, root, usable: true, allocated, knows_devices, channels, fetching })
    }

    /// Writes down where the tree is, for whoever has to take it away.
    pub fn record(&self, record: &Path) -> io::Result<()> {
        if !self.usable {
            return Ok(());
        }
        let devices = self.allocated.iter().map(|(file, _)| file.clone()).collect();
        let (facts, channels) = (self.facts.clone(), self.channels);
        write_json(record, &Record { facts, devices: Some(devices), channels })
    }

    /// Whether a job has processes.
    pub fn lives(&self, job: JobId) -> bool {
        !Cgroup::named(&self.facts, &format!("{}/job_{job}", self.root)).processes().is_empty()
    }

    /// Whether the limits that a job's share of the node has are enforced: memory and cores.
    pub fn enforces(&self) -> bool {
        self.facts.has(Controller::Memory) && self.facts.has(Controller::Cpuset)
    }

    /// The device files that are allocated.
    pub fn device_files(&self) -> impl Iterator<Item = &String> {
        self.allocated.iter().map(|(file, _)| file)
    }

    /// The numbers of device files that are allocated.
    pub fn device_rules(&self) -> impl Iterator<Item = DeviceRule> + '_ {
        self.allocated.iter().map(|(_, rule)| *rule)
    }

    /// The groups of this process.
    pub fn facts(&self) -> &CgroupFacts {
        &self.facts
    }

    /// Whether it is known which device files are allocated.
    pub fn knows_devices(&self) -> bool {
        self.knows_devices
    }

    /// Whether anything can be limited.
    pub fn usable(&self) -> bool {
        self.usable
    }

    /// What cannot be limited, and why.
    pub fn missing(&self) -> Vec<String> {
        self.facts.missing.iter().map(|(controller, why)| format!("{}: {why}", controller.name())).collect()
    }

    /// The leaf for zygote and supervisors.
    pub fn supervisors(&self) -> Result<Option<Cgroup>, CgroupError> {
        self.create(SUPERVISORS, &CgroupLimits::default())
    }

    /// Whether processes must be parked in groups, because writing to `cgroup.procs` takes milliseconds and the
    /// kernel does not let them be born there.
    pub fn parks(&self) -> bool {
        self.usable && !self.facts.v1.is_empty()
    }

    /// The place for the next step of a job, by the name of the job's group or of one that stands by: the group
    /// and the leaf in it.
    pub fn next_step(&self, name: &str) -> Result<Option<(Cgroup, Cgroup)>, CgroupError> {
        if !self.usable {
            return Ok(None);
        }
        let above = Cgroup::parking(&self.facts, &format!("{}/{name}", self.root))?;
        let leaf = Cgroup::parking(&self.facts, &format!("{}/{name}/{NEXT}", self.root))?;
        Ok(above.zip(leaf))
    }

    /// A group that stood by becomes a job's.
    pub fn give(&self, group: &mut Cgroup, job: JobId) -> Result<(), CgroupError> {
        group.rename(&format!("{}/job_{job}", self.root))
    }

    /// Ends what is in a group and removes it.
    pub fn drop_group(&self, name: &str) {
        let group = Cgroup::named(&self.facts, &format!("{}/{name}", self.root));
        if let Err(e) = group.kill_and_remove(Duration::from_secs(2)) {
            tracing::warn!("{e}; processes left: {:?}", group.processes());
        }
    }

    /// The group of a job, with the job's limits. `standing`: the place for its next step is there already.
    pub fn job(&self, job: JobId, share: &NodeShare, standing: bool) -> Result<Option<Cgroup>, CgroupError> {
        let name = format!("{}/job_{job}", self.root);
        if standing && let Some(next) = self.next(job) {
            // A group of the first version has no CPU that the one above it lacks: it is narrowed first.
            next.apply(&CgroupLimits { cpus: share.cpus.clone(), ..CgroupLimits::default() })?;
            return Cgroup::complete(&self.facts, &name, &limits(share, None)).map(Some);
        }
        self.create(&format!("job_{job}"), &limits(share, None))
    }

    fn next(&self, job: JobId) -> Option<Cgroup> {
        Cgroup::parked(&self.facts, &format!("{}/job_{job}/{NEXT}", self.root))
    }

    /// Whether device files can be kept from a step.
    pub(crate) fn limit_devices(&self) -> bool {
        self.usable && self.facts.has(Controller::Devices)
    }

    /// The group of a step, within its job's. `standing`: the job's place for its next step becomes it.
    pub(crate) fn step(
        &self,
        launch: &StepLaunch,
        fabric: &Fabric,
        standing: bool,
    ) -> Result<Option<Cgroup>, CgroupError> {
        let name = format!("job_{}/step_{}", launch.key.job, launch.key.step);
        let limits = limits(&launch.share, Some(self.devices(launch, fabric)));
        if standing && let Some(mut next) = self.next(launch.key.job) {
            let name = format!("{}/{name}", self.root);
            next.rename(&name)?;
            return Cgroup::complete(&self.facts, &name, &limits).map(Some);
        }
        self.create(&name, &limits)
    }

    /// The group of logins by a job's user, within the job's, without the device files that others are given. `given`: those of
    /// the job. Only by one process at a time.
    pub fn visitors(&self, job: JobId, given: &[String]) -> Result<Cgroup, CgroupError> {
        let name = format!("{}/job_{job}", self.root);
        let own = format!("{name}/{VISITORS}");
        if Cgroup::below(&self.facts, &name).iter().any(|n| n == VISITORS) {
            // What has come since is kept from it when an agent finds it.
            return Ok(Cgroup::named(&self.facts, &own));
        }
        let limits = CgroupLimits { devices: Some(self.denials(given)), ..CgroupLimits::default() };
        Cgroup::create(&self.facts, &own, &limits).inspect_err(|_| self.drop_visitors(job))
    }

    /// Keeps from a step that runs, and from its tasks, what others have by now: devices may have come, or come back, since it began. In a
    /// container it has its own alone, whatever comes.
    pub fn keep_from_step(&self, launch: &StepLaunch, group: &Cgroup) -> Result<(), CgroupError> {
        match self.devices(launch, &Fabric::default()) {
            DevicePolicy::AllowOnly(_) => Ok(()),
            _ if !self.limit_devices() => Ok(()),
            denied => group.narrow(&denied, LATER),
        }
    }

    /// The same for logins by a job's user, where there are any.
    pub fn keep_from_visitors(&self, job: JobId, given: &[String]) -> Result<(), CgroupError> {
        let name = format!("{}/job_{job}", self.root);
        if !self.limit_devices() || !Cgroup::below(&self.facts, &name).iter().any(|n| n == VISITORS) {
            return Ok(());
        }
        let group = Cgroup::named(&self.facts, &format!("{name}/{VISITORS}"));
        group.narrow(&self.denials(given), LATER)
    }

    fn fetching(&self) -> MutexGuard<'_, BTreeMap<Uid, usize>> {
        self.fetching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A group for what fetches an image for a user, with what it starts: on these cores, if any, and without the device files that are
    /// allocated but for those `given`. [`Cgroups::fetched`] takes it away.
    pub(crate) fn fetcher(
        &self,
        user: Uid,
        whose: &str,
        cpus: &[u32],
        given: &[String],
    ) -> Result<Option<Cgroup>, CgroupError> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let above = fetches_of(user);
        let of_user = CgroupLimits { memory: Some(FETCH_MEMORY_OF_A_USER), ..CgroupLimits::default() };
        let limits = CgroupLimits {
            memory: Some(FETCH_MEMORY),
            cpus: cpus.to_vec(),
            pids: Some(FETCH_PIDS),
            devices: Some(self.denials(given)),
            ..CgroupLimits::default()
        };
        // Held until it is counted: a group in which nothing is yet is taken away like one that is left.
        let mut fetching = self.fetching();
        self.create(&above, &of_user)?;
        // Each has its own, since a device policy is set once; what an earlier agent began may still have one.
        let there = self.below(&above);
        let name = loop {
            let name = format!("{whose}.{}", LAST.fetch_add(1, Ordering::Relaxed));
            if !there.contains(&name) {
                break format!("{above}/{name}");
            }
        };
        let made = self.create(&name, &limits).inspect_err(|_| self.drop_group(&name))?;
        if made.is_some() {
            *fetching.entry(user).or_default() += 1;
        }
        Ok(made)
    }

    /// Ends what a fetch of a user left, and removes its group; with the last one the user's, unless files are left in memory, of which
    /// the user could make ever more otherwise.
    pub(crate) fn fetched(&self, user: Uid, group: &Cgroup, patience: Duration) -> Result<(), CgroupError> {
        let removed = group.kill_and_remove(patience);
        let mut fetching = self.fetching();
        if let Some(count) = fetching.get_mut(&user) {
            *count -= 1;
            if *count > 0 {
                return removed;
            }
        }
        fetching.remove(&user);
        let of_user = Cgroup::named(&self.facts, &format!("{}/{}", self.root, fetches_of(user)));
        if of_user.usage().memory.is_none_or(|bytes| bytes <= FETCH_LEFT)
            && let Err(e) = of_user.remove()
        {
            tracing::debug!("{e}");
        }
        removed
    }

    /// Removes what is left of fetches and empty.
    fn sweep_fetches(&self) {
        let fetching = self.fetching();
        for owner in self.below(FETCH).iter().map(|owner| format!("{FETCH}/{owner}")) {
            if fetching.keys().any(|user| fetches_of(*user) == owner) {
                continue;
            }
            let within = self.below(&owner).into_iter().map(|name| format!("{owner}/{name}"));
            for name in within.chain([owner.clone()]) {
                if let Err(e) = Cgroup::named(&self.facts, &format!("{}/{name}", self.root)).remove() {
                    tracing::debug!("{e}");
                }
            }
        }
    }

    /// Names of the groups in one of the tree.
    fn below(&self, name: &str) -> Vec<String> {
        Cgroup::below(&self.facts, &format!("{}/{name}", self.root))
    }

    /// What keeps somebody with these device files from all others.
    fn denials(&self, given: &[String]) -> DevicePolicy {
        self.deny(self.denied(given), given.iter().find_map(|file| Imex::of(file)))
    }

    /// What somebody with these device files may not open: all others that are allocated, and channels of other jobs.
    fn denied(&self, given: &[String]) -> Vec<DeviceRule> {
        let others = self.others(|file| given.iter().any(|name| name == file));
        let is_given = |file: &ByteStr| given.iter().any(|name| name.as_bytes() == file.0);
        let channels: Vec<ByteStr> =
            crate::imex::files().into_iter().filter(|file| !is_given(file)).collect();
        others.into_iter().chain(rules(&channels)).collect()
    }

    /// Ends logins into a job that is there.
    pub fn evict(&self, job: JobId) {
        self.drop_group(&format!("job_{job}/{VISITORS}"));
    }

    /// Ends logins into a job that is gone, and removes what they made.
    pub fn drop_visitors(&self, job: JobId) {
        self.drop_group(&format!("job_{job}/{VISITORS}"));
        // Only what is empty goes.
        if let Err(e) = Cgroup::named(&self.facts, &format!("{}/job_{job}", self.root)).remove() {
            tracing::debug!("{e}");
        }
    }

    /// Takes away what no living job has: what an agent that was killed left, above all.
    pub fn sweep(&self, jobs: &[JobId]) {
        let kept: Vec<String> = jobs.iter().map(|job| format!("job_{job}")).collect();
        for name in Cgroup::below(&self.facts, &self.root) {
            if kept.contains(&name) {
                // Whoever stood by for the next step went with the agent.
                let next = Cgroup::below(&self.facts, &format!("{}/{name}", self.root));
                if next.iter().any(|n| n == NEXT) {
                    self.drop_group(&format!("{name}/{NEXT}"));
                }
            } else if name == FETCH {
                // An import goes on without its agent; what is left of one is empty, or is taken away with the tree.
                self.sweep_fetches();
            } else if name != SUPERVISORS {
                self.drop_group(&name);
            }
        }
    }

    /// Takes the tree away, but for what these jobs have.
    pub fn leave(&self, jobs: &[JobId], patience: Duration) {
        if jobs.is_empty() {
            // Nobody waits for what is still being fetched.
            self.drop_group(FETCH);
        }
        self.sweep(jobs);
        let end = Instant::now() + patience;
        for name in [format!("{}/{SUPERVISORS}", self.root), self.root.clone()] {
            let group = Cgroup::named(&self.facts, &name);
            // Supervisors that have nothing more to do are on their way out.
            while let Err(e) = group.remove() {
                if e.errno != nix::libc::EBUSY || !jobs.is_empty() || Instant::now() > end {
                    tracing::debug!("{e}");
                    return;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    fn create(&self, name: &str, limits: &CgroupLimits) -> Result<Option<Cgroup>, CgroupError> {
        if !self.usable {
            return Ok(None);
        }
        Cgroup::create(&self.facts, &format!("{}/{name}", self.root), limits).map(Some)
    }

    /// The devices that somebody without these files has not: by another name one may be in both.
    fn others(&self, given: impl Fn(&str) -> bool) -> Vec<DeviceRule> {
        let (own, others): (Vec<_>, Vec<_>) = self.allocated.iter().partition(|(file, _)| given(file));
        let is_own = |rule: &DeviceRule| own.iter().any(|(_, own)| own == rule);
        others.iter().map(|(_, rule)| *rule).filter(|rule| !is_own(rule)).collect()
    }

    /// Everything but these devices, and but all IMEX channels that are not the own one: those of other jobs are made later, too.
    fn deny(&self, denied: Vec<DeviceRule>, own: Option<u32>) -> DevicePolicy {
        match self.channels {
            Some(Imex { major, count }) => {
                DevicePolicy::DenyOthers { denied, family: Family { major, count, own } }
            }
            None => DevicePolicy::DenyOnly(denied),
        }
    }

    fn devices(&self, launch: &StepLaunch, fabric: &Fabric) -> DevicePolicy {
        let given =
            |file: &str| launch.share.gres.iter().flat_map(|g| &g.files).any(|f| f.0 == file.as_bytes());
        let host = launch.container.as_ref().is_none_or(|c| c.image.resolved == Some(ResolvedImage::Host));
        if host {
            let denied = self.others(given).into_iter().chain(rules(&fabric.denied));
            let has_gpu = launch.share.gres.iter().any(|device| device.vendor == Vendor::Nvidia);
            return self.deny(denied.collect(), launch.job.imex_channel.filter(|_| has_gpu));
        }
        let mut allowed = standard_devices();
        allowed.extend(rules(&fabric.files));
        allowed.extend(self.allocated.iter().filter(|(file, _)| given(file)).map(|(_, rule)| *rule));
        DevicePolicy::AllowOnly(allowed)
    }
}

/// Name of the group of what fetches images for a user.
fn fetches_of(user: Uid) -> String {
    format!("{FETCH}/user_{user}")
}

/// Those that are device files, with their numbers.
fn allocated(files: &[String]) -> Vec<(String, DeviceRule)> {
    let known = files.iter().filter_map(|file| match device_of(Path::new(file)) {
        Ok(rule) => Some((file.clone(), rule)),
        Err(e) => {
            tracing::warn!("{file} is configured as a device and cannot be used: {e}");
            None
        }
    });
    known.collect()
}

fn rules(files: &[ByteStr]) -> impl Iterator<Item = DeviceRule> {
    files.iter().filter_map(|file| device_of(Path::new(file.as_os())).ok())
}

fn limits(share: &NodeShare, devices: Option<DevicePolicy>) -> CgroupLimits {
    CgroupLimits {
        memory: (share.memory > 0).then_some(share.memory << 20),
        cpus: share.cpus.clone(),
        devices,
        ..CgroupLimits::default()
    }
}

/// Name of the tree of a state directory.
pub fn tree_name(state: &Path) -> String {
    format!("berth-{:08x}", hash(state))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // what fails here fails the test

    use super::*;

    #[test]
    fn what_fetches_an_image_has_its_jobs_devices_and_without_a_job_none() {
        let files = ["/dev/null", "/dev/zero"].map(str::to_owned);
        let [null, zero] = files.each_ref().map(|file| device_of(Path::new(file)).unwrap());
        let state = Path::new("/nonexistent");
        let cgroups = Cgroups::detect(state, &files, CgroupFacts::default(), false).unwrap();
        let denied = |given: &[String]| -> Vec<bool> {
            let rules = cgroups.denied(given);
            [null, zero].iter().map(|rule| rules.contains(rule)).collect()
        };
        assert_eq!(denied(&[]), [true, true]);
        assert_eq!(denied(&files[..1]), [false, true]);
        assert_eq!(denied(&files), [false, false]);
        // Where nothing can be limited there is no group either.
        assert!(cgroups.fetcher(Uid(1), "job_1", &[], &[]).unwrap().is_none());
    }

    #[test]
    fn fetches_of_a_user_are_in_a_group_of_the_users_which_goes_with_the_last() {
        let dir = tempfile::tempdir().unwrap();
        // A hierarchy in which nothing is written but what is made.
        let v1 = BTreeMap::from([(Controller::Cpuset, dir.path().to_path_buf())]);
        let facts = CgroupFacts { v1, ..CgroupFacts::default() };
        let state = Path::new("/nonexistent");
        let cgroups = Cgroups::detect(state, &[], facts, false).unwrap();
        let fetch = dir.path().join(tree_name(state)).join(FETCH);
        let begin = |user: u32| cgroups.fetcher(Uid(user), "job_1", &[], &[]).unwrap().unwrap();
        let end = |user: u32, group: &Cgroup| cgroups.fetched(Uid(user), group, Duration::ZERO).unwrap();
        let has = |user: u32| cgroups.below(&fetches_of(Uid(user))).len();
        let (first, second, other) = (begin(1), begin(1), begin(2));
        assert_eq!((has(1), has(2)), (2, 1));
        // What an earlier agent's fetch left, of which nothing lives.
        std::fs::create_dir_all(fetch.join("user_3/job_2.0")).unwrap();
        cgroups.sweep(&[]);
        assert!(!fetch.join("user_3").exists());
        assert_eq!((has(1), has(2)), (2, 1), "those have begun, and are not in their groups yet");
        end(1, &first);
        assert_eq!((has(1), has(2)), (1, 1));
        end(1, &second);
        assert!(!fetch.join("user_1").exists() && has(2) == 1);
        end(2, &other);
        assert!(!fetch.join("user_2").exists());
    }
}
