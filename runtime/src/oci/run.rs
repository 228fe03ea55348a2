//! A process in the foreground: its exit code, the caller's signals, and a terminal of its own.

use super::error::{Naming, Result};
use crate::sys::{Errno, signals};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, socketpair,
};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// The caller's side of a terminal that is not passed to anyone else.
#[derive(Debug)]
pub struct Foreground {
    here: OwnedFd,
    /// The end that the new process sends its terminal to.
    pub there: Arc<OwnedFd>,
}

impl Foreground {
    /// Both ends.
    pub fn new() -> Result<Foreground> {
        let (here, there) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .named("make a socket for the terminal")?;
        Ok(Foreground { here, there: Arc::new(there) })
    }

    /// The size of the caller's own terminal.
    pub fn size() -> Option<(u16, u16)> {
        tcgetwinsize(rustix::stdio::stdin()).ok().map(|s| (s.ws_row, s.ws_col))
    }

    fn master(&self) -> Result<OwnedFd> {
        let action = "receive the terminal";
        let mut byte = [0u8; 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        rustix::net::recvmsg(
            &self.here,
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
        .named(action)?;
        let mut found = None;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                found = fds.next();
            }
        }
        found.ok_or(Errno::BADF).named(action)
    }
}

/// Puts a terminal back to what it was.
struct Raw(Termios);

impl Raw {
    fn set() -> Option<Raw> {
        let old = tcgetattr(rustix::stdio::stdin()).ok()?;
        let mut raw = old.clone();
        raw.make_raw();
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Raw(old))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Waits for a process, passing signals on; its exit code, or 128 and the signal.
pub fn wait(pidfd: &OwnedFd, pid: i32) -> Result<i32> {
    relay(pidfd, pid, None)
}

/// As [`wait`], and connects the caller's standard streams with the process's terminal.
pub fn attach(foreground: &Foreground, pidfd: &OwnedFd, pid: i32) -> Result<i32> {
    let master = foreground.master()?;
    let _raw = Raw::set();
    relay(pidfd, pid, Some(&master))
}

/// Signals that the process gets in the caller's place: all but those that mean the caller itself.
fn forwarded() -> u64 {
    let own = [
        libc::SIGKILL,
        libc::SIGSTOP,
        libc::SIGCHLD,
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGFPE,
        libc::SIGILL,
        libc::SIGPIPE,
        libc::SIGURG,
    ];
    own.iter().fold(u64::MAX, |mask, signal| mask & !signals::bit(*signal))
}

fn relay(pidfd: &OwnedFd, pid: i32, master: Option<&OwnedFd>) -> Result<i32> {
    let action = "wait for the process";
    signals::set_mask(forwarded());
    let asked = signals::signalfd(forwarded()).named(action)?;
    if let Some(master) = master {
        resize(master);
    }
    let mut input = master.is_some();
    loop {
        let stdin = rustix::stdio::stdin();
        let mut polled = vec![PollFd::new(pidfd, PollFlags::IN), PollFd::new(&asked, PollFlags::IN)];
        if let Some(master) = master {
            polled.push(PollFd::new(master, PollFlags::IN));
            if input {
                polled.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
            }
        }
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e).named(action),
        }
        let ready: Vec<bool> = polled.iter().map(|p| !p.revents().is_empty()).collect();
        drop(polled);
        if ready[1] {
            forward(&asked, pid, master);
        }
        if let Some(master) = master {
            let open = !ready[2] || pump(master.as_fd(), rustix::stdio::stdout());
            if ready.get(3) == Some(&true) {
                input = pump(stdin, master.as_fd());
            }
            if ready[0] {
                // What the process wrote last is still in the terminal.
                while pending(master) && pump(master.as_fd(), rustix::stdio::stdout()) {}
            } else if !open {
                break;
            }
        }
        if ready[0] {
            break;
        }
    }
    crate::sys::wait::wait_pidfd(pidfd).named(action)
}

fn pending(fd: &OwnedFd) -> bool {
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut polled = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut polled, Some(&now)).is_ok_and(|n| n > 0) && polled[0].revents().contains(PollFlags::IN)
}

fn forward(asked: &OwnedFd, pid: i32, master: Option<&OwnedFd>) {
    // struct signalfd_siginfo: 128 bytes, the number first.
    let mut info = [0u8; 128];
    while let Ok(128) = rustix::io::read(asked, &mut info) {
        let number = i32::from_le_bytes([info[0], info[1], info[2], info[3]]);
        match (number, master) {
            (libc::SIGWINCH, Some(master)) => resize(master),
            (number, _) => {
                let _ = signals::kill(pid, number);
            }
        }
    }
}

fn resize(master: &OwnedFd) {
    if let Ok(size) = tcgetwinsize(rustix::stdio::stdin()) {
        let _ = tcsetwinsize(master, size);
    }
}

/// Copies what is there; whether more can come.
fn pump(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
    let mut buffer = [0u8; 8192];
    match rustix::io::read(from, &mut buffer) {
        Ok(0) => false,
        Ok(n) => {
            let mut rest = &buffer[..n];
            while !rest.is_empty() {
                match rustix::io::write(to, rest) {
                    Ok(n) => rest = &rest[n..],
                    Err(Errno::INTR) => {}
                    Err(_) => return false,
                }
            }
            true
        }
        Err(Errno::INTR | Errno::AGAIN) => true,
        Err(_) => false,
    }
}
