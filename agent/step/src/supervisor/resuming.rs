//! A client on another machine, which goes on where it was when its connection breaks: what it has not heard is kept for it.

use crate::control::ToSupervisor;
use berth_stream::{NotKept, Outbox, Resume};

/// How a client comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// On this machine.
    Local,
    /// By connections that may break; what is on its way then is lost.
    Remote,
    /// By connections that may break, and nothing is lost.
    Resuming(Resume),
}

impl Arrival {
    /// How the agent says that one comes.
    pub fn of(packet: &ToSupervisor) -> Option<Arrival> {
        match packet {
            ToSupervisor::Attach => Some(Arrival::Local),
            ToSupervisor::AttachRemote => Some(Arrival::Remote),
            ToSupervisor::AttachResuming(resume) => Some(Arrival::Resuming(*resume)),
            _ => None,
        }
    }
}

/// What is between the supervisor and such a client.
#[derive(Debug)]
pub struct Resuming {
    client: u64,
    /// What it may not have heard.
    pub outbox: Outbox,
    /// How many frames of its were heard.
    pub taken: u64,
}

impl Resuming {
    /// With one that comes for the first time.
    pub fn new(client: u64) -> Resuming {
        Resuming { client, outbox: Outbox::default(), taken: 0 }
    }

    /// Whether it is this one.
    pub fn is(&self, resume: Resume) -> bool {
        self.client == resume.client
    }

    /// It comes back and has heard so much.
    pub fn again(&mut self, resume: Resume) -> Result<(), NotKept> {
        self.outbox.heard(resume.heard)
    }
}
