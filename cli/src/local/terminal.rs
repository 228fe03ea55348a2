//! A terminal of a container's task, shown on the caller's own: what is typed goes in, what is written comes out.

use berth_client::error::{Failure, Kind};
use berth_client::step::terminal::{self, Raw};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Signals, to be read.
pub fn signals(all: &[Signal]) -> Result<SignalFd, Failure> {
    let fault = |e: nix::errno::Errno| Failure::new(Kind::Internal, format!("cannot handle signals: {e}"));
    let mut set = SigSet::empty();
    for signal in all {
        set.add(*signal);
    }
    set.thread_block().map_err(fault)?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(fault)
}

/// A terminal that is shown; the caller's is raw as long as it is.
pub struct Shown {
    master: OwnedFd,
    raw: Option<Raw>,
    signals: SignalFd,
    input: bool,
}

impl Shown {
    /// Shows it.
    pub fn new(master: OwnedFd) -> Result<Shown, Failure> {
        // Whoever ends us gets the terminal back as it was; the command sees its own hang up.
        let signals = signals(&[Signal::SIGWINCH, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT])?;
        Ok(Shown { master, raw: Raw::enter(), signals, input: true })
    }

    /// Until something can be read from there.
    pub fn until(&mut self, from: BorrowedFd<'_>) -> Result<(), Failure> {
        let mut hung_up = false;
        loop {
            let stdin = rustix::stdio::stdin();
            let mut fds = vec![PollFd::from_borrowed_fd(from, PollFlags::IN)];
            fds.push(PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN));
            let output = (!hung_up).then(|| {
                fds.push(PollFd::new(&self.master, PollFlags::IN));
                fds.len() - 1
            });
            let input = self.input.then(|| {
                fds.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
                fds.len() - 1
            });
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => {
                    return Err(Failure::new(Kind::Internal, format!("cannot wait for the command: {e}")));
                }
            }
            let ready: Vec<bool> = fds.iter().map(|f| !f.revents().is_empty()).collect();
            let is = |at: Option<usize>| at.is_some_and(|at| ready[at]);
            while let Ok(Some(info)) = self.signals.read_signal() {
                let number = i32::try_from(info.ssi_signo).unwrap_or(0);
                if number != Signal::SIGWINCH as i32 {
                    self.raw = None;
                    return Err(Failure::exit(u8::try_from(128 + number).unwrap_or(u8::MAX)));
                }
                resize(&self.master);
            }
            if is(output) {
                // A command that closed its terminal may still run.
                hung_up = !copy_some(&self.master, rustix::stdio::stdout());
            }
            if is(input) {
                self.input = copy_some(stdin, &self.master);
            }
            if ready[0] {
                return Ok(());
            }
        }
    }

    /// Shows what is left, and gives the caller's terminal back.
    pub fn close(self) {
        drain(&self.master);
    }
}

/// Gives a terminal the size of the caller's.
pub fn resize(master: &OwnedFd) {
    if let Some(size) = terminal::size() {
        let size =
            rustix::termios::Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
        // A terminal that is gone has no size.
        let _ = rustix::termios::tcsetwinsize(master, size);
    }
}

/// Copies what is there; false at the end of the source.
pub fn copy_some(from: impl AsFd, to: impl AsFd) -> bool {
    let mut buffer = [0_u8; 16 * 1024];
    match rustix::io::read(&from, &mut buffer) {
        Ok(0) => false,
        Ok(n) => {
            let mut rest = &buffer[..n];
            while !rest.is_empty() {
                match rustix::io::write(&to, rest) {
                    Ok(n) => rest = &rest[n..],
                    Err(rustix::io::Errno::INTR) => {}
                    Err(_) => return false,
                }
            }
            true
        }
        Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => true,
        Err(_) => false,
    }
}

/// What the task wrote last is still in its terminal.
pub fn drain(master: &OwnedFd) {
    loop {
        let mut fds = [PollFd::new(master, PollFlags::IN)];
        let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut fds, Some(&zero)) {
            Ok(n) if n > 0 && fds[0].revents().contains(PollFlags::IN) => {
                if !copy_some(master, rustix::stdio::stdout()) {
                    return;
                }
            }
            _ => return,
        }
    }
}
