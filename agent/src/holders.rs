//! Processes that wait for jobs: each becomes the first of a job's processes on this node and holds the job's
//! namespaces. They are forked beforehand, so that a job's start waits for none of it.

use crate::images::STORE_ID;
use crate::zygote::Zygote;
use berth_model::launch::StepLaunch;
use berth_runtime::plan::Mode;
use berth_runtime::subids::SubIds;
use berth_runtime::{HolderLink, JobNamespaces, JobRequest, StoreOwner};
use berth_step::spool::shm_size;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// How many wait for jobs that are not known yet.
const READY: usize = 4;

const EACH_ITS_OWN: &str = "the job's steps have namespaces of their own each";

/// One that waits, or that makes what its job needs. It ends when this is dropped before it was told to stay.
pub struct Holding {
    /// What is written down of it.
    pub namespaces: JobNamespaces,
    link: HolderLink,
    pidfd: OwnedFd,
}

impl Holding {
    fn new(zygote: &Zygote, system: bool) -> io::Result<Holding> {
        let kind = SocketType::STREAM;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        let (pid, pidfd) = zygote.hold(system, theirs.as_fd())?;
        let namespaces = JobNamespaces::of(pid).map_err(io::Error::other)?;
        Ok(Holding { namespaces, link: HolderLink::new(ours), pidfd })
    }

    fn lives(&self) -> bool {
        let mut set = [PollFd::new(&self.pidfd, PollFlags::IN)];
        poll(&mut set, Some(&rustix::time::Timespec::default())) == Ok(0)
    }
}

/// Those that wait.
pub struct Holders {
    zygote: Arc<Zygote>,
    system: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Holding>,
    closed: bool,
}

impl Holders {
    /// Without any yet: see [`Holders::fill`].
    pub fn new(zygote: Arc<Zygote>) -> Holders {
        // As containers are planned, whatever the agent was asked to be.
        let system = berth_runtime::facts::is_privileged();
        Holders { zygote, system, state: Mutex::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes as many as are to wait.
    pub fn fill(&self) {
        while self.state().ready.len() < READY {
            match Holding::new(&self.zygote, self.system) {
                Ok(holding) => {
                    let mut state = self.state();
                    if state.closed {
                        return;
                    }
                    state.ready.push_back(holding);
                }
                Err(e) => {
                    // In user mode a site may forbid them; each container says so that needs one.
                    tracing::debug!("no process can hold a job's namespaces: {e}");
                    return;
                }
            }
        }
    }

    /// Has the namespaces of a job made. Absent where an ordinary user may make none: jobs on the node's own
    /// filesystem need none there.
    ///
    /// # Errors
    /// In system mode, and where the job is to have subordinate ids: why there are none.
    pub fn begin(&self, launch: &StepLaunch) -> Result<Option<Holding>, String> {
        let waiting = self.state().ready.pop_front().filter(Holding::lives);
        let made = waiting.map_or_else(|| Holding::new(&self.zygote, self.system), Ok);
        let mode = if self.system { Mode::System } else { Mode::User };
        let shm = shm_size(self.system, &launch.job.share);
        let owner = StoreOwner { uid: STORE_ID.0, gid: STORE_ID.1 };
        // In system mode each container that wants them has a user namespace beside the job's.
        let subids = (launch.job.subids && !self.system).then(|| SubIds::of(&launch.identity)).transpose();
        let subids = subids.map_err(|e| format!("--container-subids: {e}"))?;
        let request = JobRequest::new(&launch.identity, mode, Some(owner), shm, subids.as_ref());
        let begun = made.map_err(|e| e.to_string()).and_then(|mut holding| {
            holding.link.begin(holding.namespaces.pid, request).map_err(|e| e.to_string())?;
            Ok(holding)
        });
        match begun {
            Ok(holding) => Ok(Some(holding)),
            Err(e) if subids.is_some() => Err(e),
            Err(e) if self.system => Err(format!("cannot make the job's namespaces: {e}")),
            Err(e) => {
                tracing::warn!("{EACH_ITS_OWN}: {e}");
                Ok(None)
            }
        }
    }

    /// Waits until everything is made; from then on the holder lives as long as the job. To be called when it is
    /// written down which job it belongs to. Whether the job has namespaces: see [`Holders::begin`].
    ///
    /// # Errors
    /// In system mode: what could not be made, and why.
    pub fn stay(&self, holding: Option<Holding>) -> Result<bool, String> {
        let Some(mut holding) = holding else { return Ok(false) };
        match holding.link.ready().and_then(|()| holding.link.stay()) {
            Ok(()) => Ok(true),
            Err(e) if self.system => Err(e.to_string()),
            Err(e) => {
                tracing::warn!("{EACH_ITS_OWN}: {e}");
                Ok(false)
            }
        }
    }

    /// Ends those that wait.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.ready.clear();
    }
}
