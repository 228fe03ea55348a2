//! A process parked in cgroups before it is needed, from which init is forked.
//!
//! Moving a process into a cgroup of the first version costs 6 to 19 ms after idle. So a child is forked
//! early, its pid is written to the `cgroup.procs` of groups made beforehand, and when the container starts
//! it forks init, which is born in those groups.

use crate::join::Entered;
use crate::launch::{LaunchError, fork_init};
use crate::plan::Plan;
use crate::protocol::{Receiver, send};
use crate::setup::{SetupFailure, SetupFds, map_text};
use crate::sys::fork::{CloneOptions, Forked, exit_now, fork};
use crate::sys::{Errno, exec, signals, userns, wait};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// A parked process. Dropping it ends it.
#[derive(Debug)]
pub struct Parked {
    pid: i32,
    pidfd: OwnedFd,
    sock: OwnedFd,
}

#[derive(Serialize, Deserialize)]
struct Order {
    plan: Plan,
    user_ns: bool,
    idmap_ns: bool,
    layer: bool,
    images: bool,
    holder: bool,
    join: Vec<Entered>,
    loops: Vec<usize>,
    cgroup: bool,
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Pid(i32),
    Failed(SetupFailure),
    Threads,
}

fn system(action: &'static str) -> impl Fn(Errno) -> LaunchError {
    move |e| LaunchError::System { action, errno: e.raw_os_error() }
}

impl Parked {
    /// Forks a process that waits. The caller must have one thread.
    ///
    /// # Errors
    /// The kernel's, or [`LaunchError::Threads`].
    pub fn new() -> Result<Parked, LaunchError> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(system("make a socket"))?;
        match fork(CloneOptions::default()) {
            Ok(Forked::Child) => {
                let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| parked(&theirs)));
                exit_now(code.unwrap_or(70))
            }
            Ok(Forked::Parent { pid, pidfd }) => Ok(Parked { pid, pidfd, sock: ours }),
            Err(Errno::BUSY) => Err(LaunchError::Threads),
            Err(e) => Err(system("park a process")(e)),
        }
    }

    /// Its pid, for `cgroup.procs`.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it still waits.
    pub fn waits(&self) -> bool {
        let mut set = [rustix::event::PollFd::new(&self.pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut set, Some(&rustix::time::Timespec::default())) == Ok(0)
    }

    /// Has it fork init, as a child of the caller.
    pub(crate) fn launch(
        self,
        plan: &Plan,
        sock: OwnedFd,
        fds: SetupFds,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<(i32, OwnedFd), LaunchError> {
        let order = Order {
            plan: plan.clone(),
            user_ns: fds.user_ns.is_some(),
            idmap_ns: fds.idmap_ns.is_some(),
            layer: fds.layer.is_some(),
            images: fds.images.is_some(),
            holder: fds.holder.is_some(),
            join: fds.join.iter().map(|(ns, _)| *ns).collect(),
            loops: fds.loops.iter().map(|(number, _)| *number).collect(),
            cgroup: cgroup.is_some(),
        };
        let mut sent = vec![sock.as_fd()];
        sent.extend(fds.all().map(AsFd::as_fd));
        sent.extend(cgroup);
        send(self.sock.as_fd(), &order, &sent).map_err(system("wake the parked process"))?;
        let mut receiver = Receiver::default();
        let answer = loop {
            if let Some((answer, _)) = receiver.next().map_err(system("understand the parked process"))? {
                break answer;
            }
            if receiver.ended {
                return Err(LaunchError::InitLost("the parked process ended".into()));
            }
            receiver.fill(&self.sock, true).map_err(system("hear from the parked process"))?;
        };
        match answer {
            Answer::Pid(raw) => {
                let pid = Pid::from_raw(raw).ok_or(LaunchError::InitLost("no pid".into()))?;
                // Init is the caller's own child and not yet reaped, so the number can be nobody else's.
                let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
                    .map_err(system("hold the container's init"))?;
                Ok((raw, pidfd))
            }
            Answer::Failed(failure) => Err(LaunchError::Setup(failure)),
            Answer::Threads => Err(LaunchError::Threads),
        }
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = wait::wait_pidfd(&self.pidfd);
    }
}

/// The parked process: one order, then the end.
fn parked(sock: &OwnedFd) -> i32 {
    if exec::close_all_from(3, &[sock.as_raw_fd()]).is_err() {
        return 1;
    }
    signals::reset();
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let mut receiver = Receiver::default();
    let (order, fds) = loop {
        match receiver.next::<Order>() {
            Ok(Some(found)) => break found,
            Ok(None) if !receiver.ended => {}
            _ => return 0,
        }
        if receiver.fill(sock, true).is_err() {
            return 1;
        }
    };
    let mut fds = fds.into_iter();
    let Some(init_sock) = fds.next() else { return 1 };
    let mut setup = SetupFds {
        user_ns: if order.user_ns { fds.next() } else { None },
        idmap_ns: if order.idmap_ns { fds.next() } else { None },
        layer: if order.layer { fds.next() } else { None },
        images: if order.images { fds.next() } else { None },
        holder: if order.holder { fds.next() } else { None },
        join: order.join.iter().copied().zip(fds.by_ref()).collect(),
        loops: order.loops.iter().copied().zip(fds.by_ref()).collect(),
    };
    let cgroup = if order.cgroup { fds.next() } else { None };
    let entered = crate::job::enter(&order.plan, &setup).and_then(|()| own_user(&order.plan, &mut setup));
    let forked = match entered {
        Ok(()) => fork_init(&order.plan, init_sock, setup, cgroup.as_ref().map(AsFd::as_fd), true),
        Err(failure) => Err(LaunchError::Setup(failure)),
    };
    let answer = match forked {
        Ok((pid, _)) => Answer::Pid(pid),
        Err(LaunchError::Setup(failure)) => Answer::Failed(failure),
        Err(LaunchError::Threads) => Answer::Threads,
        Err(e) => Answer::Failed(SetupFailure { action: e.to_string(), path: None, errno: 0, hint: None }),
    };
    i32::from(send(sock.as_fd(), &answer, &[]).is_err())
}

/// User mode, with subordinate ids: enters the container's user namespace, so that init is born in it; within a job's makes
/// it, with the rights over the job's, and leaves it to init to enter, when all is mounted.
fn own_user(plan: &Plan, setup: &mut SetupFds) -> Result<(), SetupFailure> {
    if !crate::launch::enters_own(plan) {
        return Ok(());
    }
    let failed = |e: Errno| SetupFailure::new("make the container's user namespace", e);
    if plan.namespaces.in_job() {
        let made = userns::create(&map_text(&plan.uid_map), &map_text(&plan.gid_map));
        setup.user_ns = Some(
            made.map_err(|e| failed(e).hint("the job's own was made without the user's subordinate ids"))?,
        );
        return Ok(());
    }
    let ns = setup.user_ns.take().ok_or_else(|| failed(Errno::INVAL))?;
    rustix::thread::move_into_link_name_space(ns.as_fd(), Some(rustix::thread::LinkNameSpaceType::User))
        .map_err(failed)
}
