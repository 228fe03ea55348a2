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
/// Bytes of memory and processes that one process which brings an image has, with what it starts, and bytes that all of a user have
/// together: what is common to users, one of them could take from the others.
const BRING_MEMORY: u64 = 1 << 30;
const BRING_PIDS: u64 = 1024;
const BRING_MEMORY_OF_A_USER: u64 = 2 << 30;
/// With more than this a user's group stays when nothing is fetched: files in memory are the user's as long as they are there.
const FETCH_LEFT: u64 = 4 << 20;
/// What brings images: each kind has a group, with a group for each user in it, in which each process has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Brings {
    /// What fetches them, as the user.
    Fetch,
    /// What unpacks them, as the store's identity.
    Unpack,
}

impl Brings {
    const ALL: [Brings; 2] = [Brings::Fetch, Brings::Unpack];

    /// Name of the kind's group.
    fn name(self) -> &'static str {
        match self {
            Brings::Fetch => "fetch",
            Brings::Unpack => "unpack",
        }
    }

    /// Name of the group of those of a user.
    fn of(self, user: Uid) -> String {
        format!("{}/user_{user}", self.name())
    }
}

/// For whom something brings an image, and what it may have.
pub(crate) struct Bringing<'a> {
    pub(crate) what: Brings,
    pub(crate) user: Uid,
    /// The name of its group begins with it.
    pub(crate) whose: &'a str,
    pub(crate) cpus: &'a [u32],
    /// Device files that it may open of those that are allocated.
    pub(crate) given: &'a [String],
    pub(crate) written: Written,
}

/// Where it stays what something writes that brings an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// On a disk.
    Disk,
    /// In memory, as in a store that is in a tmpfs, which may come to take so many bytes of it; `None` without a bound. The kernel counts
    /// each page for whoever wrote it first, and to the groups above that one also when it is gone: so there is room for all of them.
    Memory(Option<u64>),
}

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
    /// How many of each kind users have under way: their groups stay.
    bringing: Mutex<BTreeMap<(Brings, Uid), usize>>,
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
            bringing: Mutex::default(),
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
        let bringing = Mutex::default();
        Some(Cgroups { facts, root, usable: true, allocated, knows_devices, channels, bringing })
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

    fn bringing(&self) -> MutexGuard<'_, BTreeMap<(Brings, Uid), usize>> {
        self.bringing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What all of a kind may have that bring images for a user, and what one of them may.
    fn bounds(&self, of: &Bringing<'_>) -> [CgroupLimits; 2] {
        let bound = |bytes: u64| match of.written {
            Written::Disk => Some(bytes),
            Written::Memory(most) => most.map(|most| bytes.saturating_add(most)),
        };
        // A page of the store keeps what its group said of swap.
        let swaps = of.written != Written::Disk;
        let all = CgroupLimits { memory: bound(BRING_MEMORY_OF_A_USER), swaps, ..CgroupLimits::default() };
        let one = CgroupLimits {
            memory: bound(BRING_MEMORY),
            swaps,
            cpus: of.cpus.to_vec(),
            pids: Some(BRING_PIDS),
            devices: Some(self.denials(of.given)),
            ..CgroupLimits::default()
        };
        [all, one]
    }

    /// A group for what brings an image for a user, with what it starts: on its cores, if any, and without the device files that are
    /// allocated but for those that are given to it. [`Cgroups::brought`] takes it away.
    pub(crate) fn bring(&self, of: &Bringing<'_>) -> Result<Option<Cgroup>, CgroupError> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let &Bringing { what, user, whose, .. } = of;
        let above = what.of(user);
        let [of_user, limits] = self.bounds(of);
        // Held until it is counted: a group in which nothing is yet is taken away like one that is left.
        let mut bringing = self.bringing();
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
            *bringing.entry((what, user)).or_default() += 1;
        }
        Ok(made)
    }

    /// Ends what is left of something that brought an image for a user, and removes its group; with the last one the user's, unless a
    /// fetch left files in memory, of which the user could make ever more otherwise.
    pub(crate) fn brought(
        &self,
        what: Brings,
        user: Uid,
        group: &Cgroup,
        patience: Duration,
    ) -> Result<(), CgroupError> {
        let removed = group.kill_and_remove(patience);
        let mut bringing = self.bringing();
        if let Some(count) = bringing.get_mut(&(what, user)) {
            *count -= 1;
            if *count > 0 {
                return removed;
            }
        }
        bringing.remove(&(what, user));
        let of_user = Cgroup::named(&self.facts, &format!("{}/{}", self.root, what.of(user)));
        let goes = || of_user.usage().memory.is_none_or(|bytes| bytes <= FETCH_LEFT);
        if (what == Brings::Unpack || goes())
            && let Err(e) = of_user.remove()
        {
            tracing::debug!("{e}");
        }
        removed
    }

    /// Removes what is left of what brought images and is empty.
    fn sweep_bringing(&self, what: Brings) {
        let bringing = self.bringing();
        for owner in self.below(what.name()).iter().map(|owner| format!("{}/{owner}", what.name())) {
            if bringing.keys().any(|(of, user)| *of == what && of.of(*user) == owner) {
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
            } else if let Some(what) = Brings::ALL.into_iter().find(|what| what.name() == name) {
                // An import goes on without its agent; what is left of one is empty, or is taken away with the tree.
                self.sweep_bringing(what);
            } else if name != SUPERVISORS {
                self.drop_group(&name);
            }
        }
    }

    /// Takes the tree away, but for what these jobs have.
    pub fn leave(&self, jobs: &[JobId], patience: Duration) {
        if jobs.is_empty() {
            // Nobody waits for what is still being fetched.
            Brings::ALL.iter().for_each(|what| self.drop_group(what.name()));
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
        assert!(cgroups.bring(&of(Brings::Fetch, 1)).unwrap().is_none());
    }

    fn of(what: Brings, user: u32) -> Bringing<'static> {
        Bringing { what, user: Uid(user), whose: "job_1", cpus: &[], given: &[], written: Written::Disk }
    }

    #[test]
    fn what_unpacks_is_bounded_beside_what_fetches_and_beside_files_that_are_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let v1 = BTreeMap::from([(Controller::Cpuset, dir.path().to_path_buf())]);
        let facts = CgroupFacts { v1, ..CgroupFacts::default() };
        let state = Path::new("/nonexistent");
        let cgroups = Cgroups::detect(state, &[], facts, false).unwrap();
        let memory = |of: &Bringing<'_>| cgroups.bounds(of).map(|bounds| bounds.memory);
        for what in Brings::ALL {
            assert_eq!(memory(&of(what, 1)), [Some(2 << 30), Some(1 << 30)]);
        }
        let into = |written| Bringing { written, ..of(Brings::Unpack, 1) };
        let most = 5 << 20;
        let bounds = [Some((2 << 30) + most), Some((1 << 30) + most)];
        assert_eq!(memory(&into(Written::Memory(Some(most)))), bounds);
        assert_eq!(memory(&into(Written::Memory(Some(u64::MAX)))), [Some(u64::MAX); 2]);
        assert_eq!(memory(&into(Written::Memory(None))), [None, None]);
        // What is in memory for good may be swapped out, as elsewhere on the node.
        let swaps = |written| cgroups.bounds(&into(written)).map(|bounds| bounds.swaps);
        assert_eq!((swaps(Written::Disk), swaps(Written::Memory(None))), ([false; 2], [true; 2]));
        let begun = Brings::ALL.map(|what| (what, cgroups.bring(&of(what, 1)).unwrap().unwrap()));
        let tree = dir.path().join(tree_name(state));
        let groups = ["fetch/user_1", "unpack/user_1"].map(|group| tree.join(group));
        assert!(groups.iter().all(|group| group.is_dir()));
        // One says nothing of the other.
        let [(fetch, fetches), (unpack, unpacks)] = &begun;
        cgroups.brought(*unpack, Uid(1), unpacks, Duration::ZERO).unwrap();
        assert_eq!(groups.each_ref().map(|group| group.exists()), [true, false]);
        cgroups.brought(*fetch, Uid(1), fetches, Duration::ZERO).unwrap();
        assert_eq!(groups.map(|group| group.exists()), [false, false]);
    }

    #[test]
    fn fetches_of_a_user_are_in_a_group_of_the_users_which_goes_with_the_last() {
        let dir = tempfile::tempdir().unwrap();
        // A hierarchy in which nothing is written but what is made.
        let v1 = BTreeMap::from([(Controller::Cpuset, dir.path().to_path_buf())]);
        let facts = CgroupFacts { v1, ..CgroupFacts::default() };
        let state = Path::new("/nonexistent");
        let cgroups = Cgroups::detect(state, &[], facts, false).unwrap();
        let fetch = dir.path().join(tree_name(state)).join(Brings::Fetch.name());
        let begin = |user: u32| cgroups.bring(&of(Brings::Fetch, user)).unwrap().unwrap();
        let end = |user: u32, group: &Cgroup| {
            cgroups.brought(Brings::Fetch, Uid(user), group, Duration::ZERO).unwrap();
        };
        let has = |user: u32| cgroups.below(&Brings::Fetch.of(Uid(user))).len();
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
