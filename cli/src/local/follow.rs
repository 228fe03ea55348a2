//! A container that runs on this machine, followed to its end: streams, terminal, signals, exit code.

use super::listing::Listing;
use super::terminal::{copy_some, drain, resize, signals};
use berth_client::error::{Failure, Kind, Outcome};
use berth_client::out;
use berth_client::step::terminal::{self, Raw};
use berth_runtime::{Event, InitHandle, LaunchError, SignalTarget, TaskSpec, TaskStdio};
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, poll};
use std::os::fd::{AsFd, OwnedFd};

/// What is connected to the container's one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streams {
    /// A terminal of its own.
    pub terminal: bool,
    /// Standard input; without it the task reads nothing.
    pub input: bool,
}

/// A failure to make a container, or to keep in touch with it.
pub fn launch(e: &LaunchError) -> Failure {
    Failure::user(format!("the container did not start: {e}"))
}

/// The container's own task, with which the container ends.
pub fn own_task(streams: Streams) -> TaskSpec {
    let copy = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().ok();
    let stdio = if streams.terminal {
        TaskStdio::Pty(terminal::size().unwrap_or(berth_model::spec::TermSize { rows: 24, cols: 80 }))
    } else {
        TaskStdio::Fds {
            stdin: if streams.input { copy(rustix::stdio::stdin()) } else { None },
            stdout: copy(rustix::stdio::stdout()),
            stderr: copy(rustix::stdio::stderr()),
        }
    };
    TaskSpec { id: OWN, stdio, umask: Some(own_umask()), last: true, ..TaskSpec::default() }
}

fn own_umask() -> u32 {
    let umask = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(umask);
    umask.bits()
}

/// Follows the container and its one task to their end.
pub fn follow(mut init: InitHandle, mut listing: Listing, door: &str, streams: Streams) -> Outcome {
    let umask = own_umask();
    let signals = signals(&[FORWARDED, &[Signal::SIGWINCH]].concat())?;
    let mut pty: Option<OwnedFd> = None;
    let mut raw: Option<Raw> = None;
    let mut input = streams.input;
    let status = loop {
        while let Some(event) = init.next_event(false).map_err(|e| launch(&e))? {
            match event {
                Event::Started { task, pty, .. } if task != OWN => {
                    if let Some(entrance) = listing.entrance() {
                        entrance.started(task, pty);
                    }
                }
                Event::ExecFailed { task, error } if task != OWN => {
                    let code = u8::try_from(error.exit_code()).unwrap_or(1);
                    ended(&mut listing, task, code, Some(error.to_string()));
                }
                Event::Exited { task, status, .. } if task != OWN => {
                    let code = u8::try_from(status.shell_code()).unwrap_or(u8::MAX);
                    ended(&mut listing, task, code, None);
                }
                Event::Started { pty: master, .. } => {
                    raw = if master.is_some() { Raw::enter() } else { None };
                    pty = master;
                }
                Event::ExecFailed { error, .. } => {
                    out::complain(&format!("{door}: error: {error}"));
                    return Ok(u8::try_from(error.exit_code()).unwrap_or(1));
                }
                Event::Note(text) => out::complain(&format!("{door}: note: {text}")),
                Event::Exited { status, .. } => {
                    if let Some(master) = &pty {
                        drain(master);
                    }
                    drop(raw.take());
                    // What is left of the container goes with it; the task's exit code is known.
                    let _ = init.finish();
                    return Ok(u8::try_from(status.shell_code()).unwrap_or(u8::MAX));
                }
            }
        }
        let stdin = rustix::stdio::stdin();
        let mut fds = vec![PollFd::from_borrowed_fd(init.fd(), PollFlags::IN)];
        fds.push(PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN));
        let pty_at = fds.len();
        if let Some(master) = &pty {
            fds.push(PollFd::new(master, PollFlags::IN));
            if input {
                fds.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
            }
        }
        let patience = listing.patience();
        let entrance_at = fds.len();
        if let Some(entrance) = listing.entrance() {
            fds.push(PollFd::from_borrowed_fd(entrance.fd(), PollFlags::IN));
        }
        match poll(&mut fds, patience.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => break e,
        }
        let ready: Vec<bool> = fds.iter().map(|f| !f.revents().is_empty()).collect();
        if listing.is_due()
            && let Err(e) = listing.enter()
        {
            // It runs; only the list lacks it.
            out::complain(&format!(
                "{door}: warning: the container is not in the list of those that run: {e}"
            ));
        }
        if ready[1] {
            while let Ok(Some(info)) = signals.read_signal() {
                pass_on(&mut init, i32::try_from(info.ssi_signo).unwrap_or(0), pty.as_ref())?;
            }
        }
        if ready.get(entrance_at) == Some(&true)
            && let Some(entrance) = listing.entrance()
        {
            entrance.answer(&mut init, umask);
        }
        if let Some(master) = &pty {
            if ready[pty_at] {
                copy_some(master.as_fd(), rustix::stdio::stdout());
            }
            if input && ready[pty_at + 1] {
                input = copy_some(stdin, master.as_fd());
            }
        }
    };
    Err(Failure::new(Kind::Internal, format!("cannot wait for the container: {status}")))
}

/// Tells who asked for a further command how it ended.
fn ended(listing: &mut Listing, task: u32, code: u8, error: Option<String>) {
    if let Some(entrance) = listing.entrance() {
        entrance.ended(task, code, error);
    }
}

/// The container's own command among its tasks.
const OWN: u32 = 0;

const FORWARDED: &[Signal] =
    &[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

fn pass_on(init: &mut InitHandle, number: i32, pty: Option<&OwnedFd>) -> Result<(), Failure> {
    if number == Signal::SIGWINCH as i32 {
        pty.into_iter().for_each(resize);
        return Ok(());
    }
    init.signal(SignalTarget::AllTasks, number).map_err(|e| launch(&e))
}
