//! Control groups of what fetches images. A fetcher runs as its user and starts what that user's settings name: podman with its own
//! programs, and those that keep logins. It is in none of the job's groups, whose memory may be less than a fetch takes and is the tasks' own;
//! but it has the cores and devices of its job, and no others.

use crate::cgroups::Cgroups;
use crate::jobs;
use berth_images::{Confine, Confined, Error, ErrorKind};
use berth_model::ids::Uid;
use berth_model::launch::StepLaunch;
use berth_runtime::cgroup::Cgroup;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long what a fetcher left may take to end.
const REMOVAL: Duration = Duration::from_secs(2);

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
        let made = self.cgroups.fetcher(self.user, &self.whose, &self.cpus, &self.devices);
        let group = made.map_err(|e| {
            let what = "control group of what fetches the image";
            Error::new(ErrorKind::Io, what, e.to_string()).next("look at the node's control groups")
        })?;
        Ok(Box::new(Place { cgroups: Arc::clone(&self.cgroups), user: self.user, group }))
    }
}

/// A fetcher's.
struct Place {
    cgroups: Arc<Cgroups>,
    user: Uid,
    /// `None` where nothing can be limited.
    group: Option<Cgroup>,
}

impl Confined for Place {
    fn lists(&self) -> Vec<PathBuf> {
        self.group.as_ref().map(Cgroup::lists).unwrap_or_default()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(group) = &self.group
            && let Err(e) = self.cgroups.fetched(self.user, group, REMOVAL)
        {
            // The next agent takes it away.
            tracing::warn!("{e}; processes that a fetch left: {:?}", group.processes());
        }
    }
}
