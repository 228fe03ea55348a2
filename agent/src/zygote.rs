//! The agent's side of the zygote: starts it, asks it for supervisors, starts another when it is gone.

use berth_model::ByteStr;
use berth_step::control::{Begin, ForkAnswer, ForkRequest, receive, send};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

struct Running {
    socket: OwnedFd,
    child: Child,
}

/// What is done to a new zygote before it is used, such as putting it into its cgroup.
pub type Settle = Box<dyn Fn(u32) -> io::Result<()> + Send + Sync>;

/// The zygote's handle.
pub struct Zygote {
    program: PathBuf,
    settle: Settle,
    running: Mutex<Option<Running>>,
}

impl Zygote {
    /// Starts it.
    pub fn start(program: PathBuf, settle: Settle) -> io::Result<Zygote> {
        let running = spawn(&program, &settle)?;
        Ok(Zygote { program, settle, running: Mutex::new(Some(running)) })
    }

    /// Has a supervisor forked for a step. Blocks for about a millisecond. The supervisor gets what [`Begin`] says; the
    /// answer is a descriptor of its process.
    pub fn fork(&self, begin: &Begin, fds: &[BorrowedFd<'_>]) -> io::Result<OwnedFd> {
        self.request(&ForkRequest::Supervise(begin.clone()), fds)
    }

    /// Has a supervisor forked that waits for its step and speaks on `socket` until then.
    pub fn stand_by(&self, system: bool, socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        self.request(&ForkRequest::StandBy { system }, &[socket])
    }

    /// Has the first process of a job forked, which takes orders on `socket`.
    pub fn hold(&self, system: bool, socket: BorrowedFd<'_>) -> io::Result<(i32, OwnedFd)> {
        self.ask_for(&ForkRequest::Hold { system }, &[socket])
    }

    /// Has the process forked that keeps the deadlines of runs where nobody else does; a descriptor of it.
    pub fn keep_deadlines(&self, jobs: &Path, lock: &Path, agent: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let (jobs, lock) = (ByteStr::from(jobs), ByteStr::from(lock));
        self.request(&ForkRequest::Deadlines { jobs, lock }, &[agent])
    }

    fn request(&self, request: &ForkRequest, fds: &[BorrowedFd<'_>]) -> io::Result<OwnedFd> {
        self.ask_for(request, fds).map(|(_, pidfd)| pidfd)
    }

    fn ask_for(&self, request: &ForkRequest, fds: &[BorrowedFd<'_>]) -> io::Result<(i32, OwnedFd)> {
        let mut slot = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let first = match slot.as_ref() {
            Some(running) => ask(running, request, fds),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        match first {
            Ok(Ok(forked)) => return Ok(forked),
            Ok(Err(refused)) => return Err(refused),
            Err(e) => tracing::warn!("the zygote is gone ({e}): starting another"),
        }
        if let Some(mut old) = slot.take() {
            drop(old.socket);
            let _ = old.child.wait();
        }
        let running = spawn(&self.program, &self.settle)?;
        let answer = ask(&running, request, fds)?;
        *slot = Some(running);
        answer
    }
}

impl Zygote {
    /// Ends it; the supervisors live on.
    pub fn end(&self) {
        let mut slot = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut running) = slot.take() {
            drop(running.socket);
            let _ = running.child.wait();
        }
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        self.end();
    }
}

fn spawn(program: &PathBuf, settle: &Settle) -> io::Result<Running> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let child = Command::new(program)
        .arg("zygote")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("cannot start {}: {e}", program.display())))?;
    settle(child.id())?;
    Ok(Running { socket: ours, child })
}

type Forked = (i32, OwnedFd);

/// The outer error means that the zygote is of no further use, the inner one that it could not fork.
fn ask(running: &Running, request: &ForkRequest, fds: &[BorrowedFd<'_>]) -> io::Result<io::Result<Forked>> {
    send(running.socket.as_fd(), request, fds)?;
    let (answer, fds) = receive::<ForkAnswer>(running.socket.as_fd())?.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(match (answer, fds.into_iter().next()) {
        (ForkAnswer::Forked(pid), Some(pidfd)) => Ok((pid, pidfd)),
        (ForkAnswer::Forked(_), None) => Err(io::Error::other("the zygote sent no pidfd")),
        (ForkAnswer::Failed(why), _) => Err(io::Error::other(why)),
    })
}
