//! What the runtime and the processes that become the container say to each other.

use super::cgroup::Group;
use super::error::{Naming, OciError, Result, invalid};
use crate::protocol::{Receiver, send};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, OwnedFd};

/// From the runtime.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToChild {
    /// The process is in its control group; which that is, where it was not known before.
    Go(Option<Box<Group>>),
    /// The id maps are written.
    Mapped {
        /// Supplementary groups can be set.
        groups: bool,
    },
    /// The first process's pid as the runtime sees it.
    Pid(i32),
    /// The hooks of the runtime's side have run.
    HooksDone,
    /// `start` was called.
    Start,
}

/// To the runtime.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromChild {
    /// A user namespace was made and needs its maps.
    NeedMaps,
    /// The first process was made.
    Child(i32),
    /// Everything is mounted; the root has not been changed.
    Mounted,
    /// All is ready for the program.
    Ready,
    /// What was tried failed.
    Failed(OciError),
}

/// One end.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    receiver: Receiver,
}

impl Channel {
    /// Both ends.
    pub fn pair() -> Result<(Channel, Channel)> {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .named("make a socket")?;
        Ok((Channel::new(a), Channel::new(b)))
    }

    /// Over a connected socket.
    pub fn new(socket: OwnedFd) -> Channel {
        Channel { socket, receiver: Receiver::default() }
    }

    /// Sends.
    pub fn tell<T: Serialize>(&self, message: &T) -> Result<()> {
        send(self.socket.as_fd(), message, &[]).named("speak to the container's first process")
    }

    /// Waits for a message; `None` at the end.
    pub fn hear<T: serde::de::DeserializeOwned>(&mut self) -> Result<Option<T>> {
        let action = "hear from the container's first process";
        loop {
            if let Some((message, _)) = self.receiver.next().named(action)? {
                return Ok(Some(message));
            }
            if self.receiver.ended {
                return Ok(None);
            }
            self.receiver.fill(&self.socket, true).named(action)?;
        }
    }

    /// What the runtime says; its end is the child's end.
    pub fn told(&mut self) -> Result<ToChild> {
        self.hear()?.ok_or_else(|| invalid("the runtime went away", "create the container again"))
    }

    /// What the child says; a failure is this side's failure.
    pub fn answer(&mut self) -> Result<FromChild> {
        match self.hear()? {
            Some(FromChild::Failed(e)) => Err(e),
            Some(message) => Ok(message),
            None => Err(invalid(
                "the container's first process ended while it was made",
                "look at its memory limit and at the kernel's log",
            )),
        }
    }
}
