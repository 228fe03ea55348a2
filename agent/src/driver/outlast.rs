//! Until when a job goes on without a renewal, for whoever sees to it where this agent does not: the next one, and the process that
//! keeps deadlines ([`berth_step::deadlines`]).

use super::{Driver, KEPT, Kept};
use crate::paths::Paths;
use crate::zygote::Zygote;
use berth_model::ids::{Attempt, JobId, StepKey};
use berth_model::time::Time;
use berth_step::control::ToSupervisor;
use berth_step::deadlines::Deadline;
use berth_step::spool::{StepDir, read_json, write_json};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use std::collections::BTreeSet;
use std::io::{self, PipeWriter};
use std::os::fd::AsFd;
use std::sync::Arc;

/// What is known of it.
#[derive(Default)]
pub(super) struct Outlast {
    keeper: Option<Keeper>,
    /// Jobs whose deadline could not be written down: what goes by it goes no further.
    unkept: BTreeSet<JobId>,
}

/// The process that keeps deadlines. It ends after this is dropped, when nobody needs it.
struct Keeper {
    told: PipeWriter,
    process: OwnedFd,
}

impl Keeper {
    fn start(zygote: &Zygote, paths: &Paths) -> io::Result<Keeper> {
        let (reader, told) = io::pipe()?;
        // One that is stopped itself must not stop the agent.
        rustix::io::ioctl_fionbio(&told, true)?;
        let process = zygote.keep_deadlines(&paths.jobs(), &paths.lock(), reader.as_fd())?;
        Ok(Keeper { told, process })
    }

    fn lives(&self) -> bool {
        let mut set = [PollFd::new(&self.process, PollFlags::IN)];
        poll(&mut set, Some(&rustix::time::Timespec::default())) == Ok(0)
    }
}

impl Outlast {
    /// Whether what goes by a job's deadline may go on.
    pub(super) fn is_kept(&self, job: JobId) -> bool {
        !self.unkept.contains(&job)
    }

    /// Sees to it that the process is there; it looks at once at what is new.
    pub(super) fn see_to_keeper(&mut self, zygote: &Zygote, paths: &Paths, new: bool) {
        match self.keeper.as_ref().filter(|keeper| keeper.lives()) {
            Some(keeper) if new => {
                // A full pipe is one that it has yet to read.
                let _ = rustix::io::write(&keeper.told, &[0]);
            }
            Some(_) => {}
            None => match Keeper::start(zygote, paths) {
                Ok(keeper) => self.keeper = Some(keeper),
                // Supervisors and the agent keep to it all the same.
                Err(e) => tracing::warn!("no process keeps deadlines beside supervisors and agent: {e}"),
            },
        }
    }
}

impl Driver {
    /// Writes down until when a run goes on.
    pub(super) fn keep_deadline(&mut self, job: JobId, attempt: Attempt, until: Time) {
        let Some(record) = self.jobs.get(&job).map(|j| &j.record).filter(|record| record.attempt == attempt)
        else {
            return;
        };
        // Where there is none, nothing can be killed from outside.
        let Some(group) = record.cgroup.clone() else { return };
        let dir = self.node.paths.job(job);
        let new = matches!(Deadline::of(&dir), Ok(None));
        match (Deadline { boot_id: record.boot_id.clone(), until, group }).keep(&dir) {
            Ok(()) => {
                self.outlast.unkept.remove(&job);
                self.outlast.see_to_keeper(&self.node.zygote, &self.node.paths, new);
            }
            Err(e) => {
                tracing::warn!(
                    "job {job}: its deadline cannot be kept, and nothing of it goes on for longer: {e}"
                );
                self.outlast.unkept.insert(job);
            }
        }
    }

    /// Tells a supervisor, when the next agent would know of it.
    pub(super) fn renew(&self, key: StepKey, until: Time) {
        if !self.outlast.is_kept(key.job) {
            return;
        }
        if let Err(e) = self.keep_renewal(key, until) {
            // The supervisor would go on for longer than the next agent knows.
            tracing::warn!("step {key}: its renewal cannot be kept, and is not passed on: {e}");
            return;
        }
        self.command(key, ToSupervisor::Renew { until });
    }

    /// For the next agent: no supervisor goes on for longer than what it finds.
    fn keep_renewal(&self, key: StepKey, until: Time) -> io::Result<()> {
        let file = StepDir::of(&self.node.paths.spool(), key).path().join(KEPT);
        let mut kept: Kept = read_json(&file)?;
        kept.timers.lease = Some(until);
        write_json(&file, &kept)
    }

    /// Nobody's login outlives the run of whose job it is.
    pub(super) fn end_logins(&self, job: JobId) {
        let cgroups = Arc::clone(&self.node.cgroups);
        tokio::task::spawn_blocking(move || cgroups.evict(job));
    }

    /// A job is removed.
    pub(super) fn forget_deadline(&mut self, job: JobId) {
        self.outlast.unkept.remove(&job);
    }
}
