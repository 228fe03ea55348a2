//! Control groups of what fetches images. A fetcher runs as its user and starts what that user's settings name: podman with its own
//! programs, and those that keep logins. It is in none of the job's groups, whose memory may be less than a fetch takes and is the tasks' own;
//! but it has the cores and devices of its job, and no others. What unpacks runs as the store's own identity, for the user none the less: the
//! memory that it takes is bounded as that of what fetches is.

use crate::cgroups::{Bringing, Brings, Cgroups, Written};
use crate::jobs;
use berth_images::{Confine, Confined, Error, ErrorKind, in_memory};
use berth_model::ids::Uid;
use berth_model::launch::StepLaunch;
use berth_runtime::cgroup::Cgroup;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long what is left may take to end.
const REMOVAL: Duration = Duration::from_secs(2);
/// Bytes of memory that a process may have for itself where the files that it writes are memory, too, and its group's bound leaves room
/// for all of these. More than a group has on a disk (1 GiB): stacks count, and what was asked for and never touched.
const OWN_MEMORY: u64 = 3 << 29;

/// Places of fetchers, of one job or of a user without one.
pub(crate) struct Fetchers {
    cgroups: Arc<Cgroups>,
    user: Uid,
    whose: String,
    cpus: Vec<u32>,
    /// Device files that they may open of those that the node allocates.
    devices: Vec<String>,
}

impl Fetchers {
    /// Of a job that is on this node.
    pub(crate) fn of_job(cgroups: &Arc<Cgroups>, launch: &StepLaunch) -> Fetchers {
        Fetchers {
            cgroups: Arc::clone(cgroups),
            user: launch.identity.uid,
            whose: format!("job_{}", launch.key.job),
            cpus: launch.job.share.cpus.clone(),
            devices: jobs::devices(launch),
        }
    }

    /// Without a job: it has no device that is allocated.
    pub(crate) fn of_user(cgroups: &Arc<Cgroups>, user: Uid) -> Fetchers {
        let (cgroups, whose) = (Arc::clone(cgroups), "no_job".to_owned());
        Fetchers { cgroups, user, whose, cpus: Vec::new(), devices: Vec::new() }
    }
}

impl fmt::Debug for Fetchers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fetchers { cgroups: _, user, whose, cpus, devices } = self;
        let mut all = f.debug_struct("Fetchers");
        all.field("user", user).field("whose", whose);
        all.field("cpus", cpus).field("devices", devices).finish_non_exhaustive()
    }
}

impl Confine for Fetchers {
    fn place(&self) -> berth_images::Result<Box<dyn Confined>> {
        place(
            &self.cgroups,
            &Bringing {
                what: Brings::Fetch,
                user: self.user,
                whose: &self.whose,
                cpus: &self.cpus,
                given: &self.devices,
                written: Written::Disk,
            },
        )
    }
}

/// Places of what unpacks images for a user.
pub(crate) struct Unpackers {
    cgroups: Arc<Cgroups>,
    user: Uid,
    /// Where the store is.
    store: PathBuf,
}

impl Unpackers {
    pub(crate) fn new(cgroups: &Arc<Cgroups>, user: Uid, store: &Path) -> Unpackers {
        Unpackers { cgroups: Arc::clone(cgroups), user, store: store.to_path_buf() }
    }
}

impl fmt::Debug for Unpackers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unpackers { cgroups: _, user, store } = self;
        f.debug_struct("Unpackers").field("user", user).field("store", store).finish_non_exhaustive()
    }
}

impl Confine for Unpackers {
    fn place(&self) -> berth_images::Result<Box<dyn Confined>> {
        // What is written there is the store's for good, and has its bound.
        let written = in_memory(&self.store).map_or(Written::Disk, |memory| Written::Memory(memory.memory()));
        let (what, user) = (Brings::Unpack, self.user);
        place(&self.cgroups, &Bringing { what, user, whose: "image", cpus: &[], given: &[], written })
    }
}

fn place(cgroups: &Arc<Cgroups>, of: &Bringing<'_>) -> berth_images::Result<Box<dyn Confined>> {
    let group = cgroups.bring(of).map_err(|e| {
        let what = "control group of what brings the image";
        Error::new(ErrorKind::Io, what, e.to_string()).next("look at the node's control groups")
    })?;
    let own = (of.written != Written::Disk).then_some(OWN_MEMORY);
    Ok(Box::new(Place { cgroups: Arc::clone(cgroups), what: of.what, user: of.user, group, own }))
}

/// That of one process, with what it starts.
struct Place {
    cgroups: Arc<Cgroups>,
    what: Brings,
    user: Uid,
    /// `None` where nothing can be limited.
    group: Option<Cgroup>,
    /// Bytes of memory that are no files'.
    own: Option<u64>,
}

impl Confined for Place {
    fn lists(&self) -> Vec<PathBuf> {
        self.group.as_ref().map(Cgroup::lists).unwrap_or_default()
    }

    fn own_memory(&self) -> Option<u64> {
        self.own
    }

    fn ran_out(&self) -> bool {
        self.group.as_ref().is_some_and(|group| group.usage().oom_kills.is_some_and(|kills| kills > 0))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(group) = &self.group
            && let Err(e) = self.cgroups.brought(self.what, self.user, group, REMOVAL)
        {
            // The next agent takes it away.
            tracing::warn!("{e}; processes that were left: {:?}", group.processes());
        }
    }
}
