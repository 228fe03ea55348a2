//! The agent's side of the supervisors: has them forked, speaks with them, notices their end, and finds
//! them again after a restart.

use crate::registry::SupervisorCommand;
use crate::standby::Standby;
use crate::zygote::Zygote;
use berth_agent_core::SupervisorEvent;
use berth_model::ByteStr;
use berth_model::ids::StepKey;
use berth_model::launch::StepPhase;
use berth_step::control::{Begin, FromSupervisor, receive, send};
use berth_step::spool::{StateFile, StepDir};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use rustix::process::{PidfdFlags, pidfd_open};
use std::io;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// How long a supervisor that was found by its socket may take until it says who it is.
const INTRODUCTION: Duration = Duration::from_secs(10);

/// A supervisor's control connection and process.
pub struct Link {
    control: OwnedFd,
    pidfd: OwnedFd,
}

/// Starts the supervisor of a step whose directory holds `launch.json`. Blocks for about a millisecond.
/// `images`: those of layers that are mounted. `held`: what it is to keep open while it lives. `standby`: one that waits in
/// the step's cgroups.
pub fn spawn(
    zygote: &Zygote,
    dir: &StepDir,
    images: Option<BorrowedFd<'_>>,
    held: &[BorrowedFd<'_>],
    standby: Option<Standby>,
) -> io::Result<Link> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let (_hold, address) = address(dir)?;
    match std::fs::remove_file(dir.socket()) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    bind(&listener, &address)?;
    listen(&listener, 64)?;
    // What can fail comes before there is a supervisor: none lives whose step counts as not started.
    let control = dial(dir)?;
    let log = rustix::fs::open(
        dir.log(),
        OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC,
        Mode::RUSR | Mode::WUSR,
    )?;
    let fds: Vec<BorrowedFd<'_>> =
        [listener.as_fd(), log.as_fd()].into_iter().chain(images).chain(held.iter().copied()).collect();
    let begin = Begin { spool: ByteStr::from(dir.path()), images: images.is_some() };
    let pidfd = match standby.map(|s| s.begin(&begin, &fds)) {
        Some(Ok(pidfd)) => pidfd,
        Some(Err(e)) => {
            tracing::warn!("{e}: forking another");
            zygote.fork(&begin, &fds)?
        }
        None => zygote.fork(&begin, &fds)?,
    };
    Ok(Link { control, pidfd })
}

/// The directory's socket by a short name, however long the directory's own is: a socket's address holds
/// 108 bytes. The descriptor must live as long as the address is used.
fn address(dir: &StepDir) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    use rustix::fd::AsRawFd;
    let hold =
        rustix::fs::open(dir.path(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/control.sock", hold.as_raw_fd()))?;
    Ok((hold, address))
}

fn dial(dir: &StepDir) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let control = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let (_hold, address) = address(dir)?;
    connect(&control, &address)?;
    Ok(control)
}

/// Finds the living supervisor of a step in the spool; `None` when there is none.
pub async fn find(dir: &StepDir, boot_id: &str) -> io::Result<Option<(Link, StateFile)>> {
    if dir.read_state()?.is_some_and(|s| s.boot_id != boot_id) {
        return Ok(None);
    }
    let control = match dial(dir) {
        Ok(control) => watch(control)?,
        Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    // A supervisor that was forked just before the agent ended may not have written its state yet: what it
    // says first comes after that.
    let word = tokio::time::timeout(INTRODUCTION, packet(&control)).await;
    if !matches!(word, Ok(Ok(Some(_)))) {
        return Ok(None);
    }
    let Some(state) = dir.read_state()? else { return Ok(None) };
    let Some(pid) = rustix::process::Pid::from_raw(state.pid) else { return Ok(None) };
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(None) };
    // Only now that the descriptor is held can the pid not become another's.
    if !state.supervisor_alive(boot_id) {
        return Ok(None);
    }
    Ok(Some((Link { control: control.into_inner(), pidfd }, state)))
}

async fn packet(control: &AsyncFd<OwnedFd>) -> io::Result<Option<FromSupervisor>> {
    control
        .async_io(Interest::READABLE, |fd| receive::<FromSupervisor>(fd.as_fd()))
        .await
        .map(|received| received.map(|(packet, _)| packet))
}

/// Attends to a supervisor until its process is gone: passes commands on and tells what happens. The last
/// event is `Exited` or `Gone`, unless `Exited` was told before.
pub async fn attend(
    key: StepKey,
    dir: StepDir,
    link: Link,
    mut commands: mpsc::UnboundedReceiver<SupervisorCommand>,
    events: mpsc::UnboundedSender<(StepKey, SupervisorEvent)>,
) -> io::Result<()> {
    let control = watch(link.control)?;
    let pidfd = watch(link.pidfd)?;
    let mut told = Told::default();
    let mut open = true;
    loop {
        tokio::select! {
            received = packet(&control), if open => match received {
                Ok(Some(FromSupervisor::Starting)) => {}
                Ok(Some(FromSupervisor::Running)) => told.running(key, &events),
                Ok(Some(FromSupervisor::Exited)) => told.exited(key, &dir, &events),
                ended => {
                    if let Err(e) = ended {
                        tracing::warn!("step {key}: its supervisor's connection: {e}");
                    }
                    open = false;
                    // What it would have said is on the disk: a step that runs is not to be taken for one that does not start.
                    let state = dir.read_state().ok().flatten();
                    if state.is_some_and(|state| state.phase == StepPhase::Running) {
                        told.running(key, &events);
                    }
                }
            },
            Some((command, fd)) = commands.recv() => {
                let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
                if let Err(e) = send(control.get_ref().as_fd(), &command, &fds) {
                    tracing::warn!("step {key}: its supervisor did not take {command:?}: {e}");
                }
            }
            _ = pidfd.readable() => {
                told.exited(key, &dir, &events);
                if !told.exited {
                    let _ = events.send((key, SupervisorEvent::Gone));
                }
                return Ok(());
            }
        }
    }
}

#[derive(Default)]
struct Told {
    running: bool,
    exited: bool,
}

impl Told {
    fn running(&mut self, key: StepKey, events: &mpsc::UnboundedSender<(StepKey, SupervisorEvent)>) {
        if !std::mem::replace(&mut self.running, true) {
            let _ = events.send((key, SupervisorEvent::Started));
        }
    }

    /// Tells the exit if the spool has one and it was not told.
    fn exited(
        &mut self,
        key: StepKey,
        dir: &StepDir,
        events: &mpsc::UnboundedSender<(StepKey, SupervisorEvent)>,
    ) {
        if self.exited {
            return;
        }
        match dir.read_exit() {
            Ok(Some(exit)) => {
                self.exited = true;
                let _ = events.send((key, SupervisorEvent::Exited(exit)));
            }
            Ok(None) => {}
            Err(e) => tracing::error!("step {key}: {e}"),
        }
    }
}

#[allow(deprecated)] // the replacement is unsafe, for types whose descriptor may change: an OwnedFd's does not
fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}
