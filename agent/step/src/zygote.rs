//! The zygote: a small process, started once by the agent, from which every supervisor is forked. Forking
//! costs time in proportion to the parent's memory, and the agent's grows; the zygote's does not.

use crate::control::{Begin, ForkAnswer, ForkRequest, StandingBy, receive, send};
use crate::deadlines;
use crate::spool::StepDir;
use crate::supervisor;
use berth_runtime::plan::Mode;
use berth_runtime::sys::exec;
use berth_runtime::sys::fork::{CloneOptions, Forked, exit_now, fork};
use berth_runtime::{Parked, fork_holder};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use std::io;
use std::path::Path;

/// Serves the agent on `socket` until the agent closes it; the supervisors live on.
pub fn run(socket: OwnedFd) -> i32 {
    // A terminal's signals, or its end, are for the agent and not for us or any supervisor.
    let _ = rustix::process::setsid();
    // The agent's protection from the OOM killer is not for what is started from here.
    let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    let mut children: Vec<OwnedFd> = Vec::new();
    loop {
        let ready = match wait(&socket, &children) {
            Ok(ready) => ready,
            Err(e) => return failed("poll", &e),
        };
        let mut position = 0;
        children.retain(|pidfd| {
            let ended = ready.children.get(position).copied().unwrap_or(false);
            position += 1;
            if ended {
                let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
            }
            !ended
        });
        if !ready.socket {
            continue;
        }
        let (request, fds) = match receive::<ForkRequest>(socket.as_fd()) {
            Ok(Some(received)) => received,
            Ok(None) => return 0,
            Err(e) => return failed("the agent's request", &e),
        };
        let answer = match request {
            ForkRequest::Supervise(begin) => start(&begin, fds),
            ForkRequest::StandBy { system } => start_waiting(system, fds),
            ForkRequest::Hold { system } => hold(system, fds),
            ForkRequest::Deadlines { jobs, lock } => keep_deadlines(jobs.as_path(), lock.as_path(), fds),
        };
        let sent = match answer {
            Ok((pid, pidfd)) => {
                let sent = send(socket.as_fd(), &ForkAnswer::Forked(pid), &[pidfd.as_fd()]);
                children.push(pidfd);
                sent
            }
            Err(e) => send(socket.as_fd(), &ForkAnswer::Failed(e.to_string()), &[]),
        };
        if sent.is_err() {
            return 0;
        }
    }
}

struct Ready {
    socket: bool,
    children: Vec<bool>,
}

fn wait(socket: &OwnedFd, children: &[OwnedFd]) -> io::Result<Ready> {
    let mut set: Vec<PollFd<'_>> =
        std::iter::once(socket).chain(children).map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    loop {
        match poll(&mut set, None) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let mut flags = set.iter().map(|p| !p.revents().is_empty());
    Ok(Ready { socket: flags.next().unwrap_or(false), children: flags.collect() })
}

/// Forks the supervisor of a step.
fn start(begin: &Begin, fds: Vec<OwnedFd>) -> io::Result<(i32, OwnedFd)> {
    match fork(CloneOptions::default())? {
        Forked::Parent { pid, pidfd } => Ok((pid, pidfd)),
        Forked::Child => exit_now(ended(leave_zygote(&fds).and_then(|()| supervise(begin, fds, None)))),
    }
}

/// Forks a supervisor that waits for its step.
fn start_waiting(system: bool, fds: Vec<OwnedFd>) -> io::Result<(i32, OwnedFd)> {
    match fork(CloneOptions::default())? {
        Forked::Parent { pid, pidfd } => Ok((pid, pidfd)),
        Forked::Child => exit_now(ended(leave_zygote(&fds).and_then(|()| stand_by(system, fds)))),
    }
}

fn ended(result: io::Result<i32>) -> i32 {
    result.unwrap_or_else(|e| failed("a supervisor's start", &e))
}

/// Forks the process that holds a job's namespaces.
fn hold(system: bool, fds: Vec<OwnedFd>) -> io::Result<(i32, OwnedFd)> {
    let socket = fds.into_iter().next().ok_or_else(no_descriptors)?;
    let mode = if system { Mode::System } else { Mode::User };
    fork_holder(mode, socket).map_err(io::Error::other)
}

/// Forks the process that keeps deadlines. What it does is for the agent's log.
fn keep_deadlines(jobs: &Path, lock: &Path, fds: Vec<OwnedFd>) -> io::Result<(i32, OwnedFd)> {
    match fork(CloneOptions::default())? {
        Forked::Parent { pid, pidfd } => Ok((pid, pidfd)),
        Forked::Child => {
            let log = rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), 3);
            let keep: Vec<OwnedFd> = fds.into_iter().chain(log).collect();
            let run = || -> io::Result<i32> {
                leave_zygote(&keep)?;
                let mut keep = keep.into_iter();
                let agent = keep.next().ok_or_else(no_descriptors)?;
                if let Some(log) = keep.next() {
                    exec::place_at(log.as_fd(), 2)?;
                }
                // As a supervisor; where this is not allowed, it is small.
                let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
                let _ = rustix::thread::set_name(c"berth-deadlines");
                deadlines::keep(agent, jobs, lock).map(|()| 0)
            };
            exit_now(ended(run()))
        }
    }
}

/// Waits for a step. The agent's end is this one's end too.
fn stand_by(system: bool, fds: Vec<OwnedFd>) -> io::Result<i32> {
    let agent = fds.into_iter().next().ok_or_else(no_descriptors)?;
    if system {
        supervisor::hide()?;
    }
    let parked = Parked::new().map_err(io::Error::other)?;
    send(agent.as_fd(), &StandingBy { parked: parked.pid() }, &[])?;
    match receive::<Begin>(agent.as_fd())? {
        Some((begin, fds)) => {
            drop(agent);
            supervise(&begin, fds, Some(parked))
        }
        None => Ok(0),
    }
}

/// The descriptors after those that [`Begin`] speaks of stay open while the supervisor lives, such as the use of an image.
fn supervise(begin: &Begin, fds: Vec<OwnedFd>, parked: Option<Parked>) -> io::Result<i32> {
    let mut fds = fds.into_iter();
    let (Some(listener), Some(log)) = (fds.next(), fds.next()) else { return Err(no_descriptors()) };
    exec::place_at(log.as_fd(), 2)?;
    drop(log);
    let images = if begin.images { fds.next() } else { None };
    let held: Vec<OwnedFd> = fds.collect();
    let code = supervisor::run(&StepDir::at(begin.spool.as_path()), listener, parked, images);
    drop(held);
    Ok(code)
}

fn no_descriptors() -> io::Error {
    io::Error::other("the request came without its descriptors")
}

/// Leaves everything of the zygote's behind: its session and its descriptors.
fn leave_zygote(keep: &[OwnedFd]) -> io::Result<()> {
    rustix::process::setsid()?;
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty())?;
    for n in 0..3 {
        exec::place_at(null.as_fd(), n)?;
    }
    let keep: Vec<i32> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    exec::close_all_from(3, &keep)?;
    // Closed above with everything else.
    std::mem::forget(null);
    // Signals stay as the standard library left them: a task that closed its standard input must not end
    // its supervisor by SIGPIPE. The container's init puts them back for the tasks.
    Ok(())
}

fn failed(what: &str, error: &io::Error) -> i32 {
    crate::log::say(&format!("{what}: {error}"));
    1
}
