//! Packets between an agent and a supervisor, and between the agent and the zygote: one JSON object each
//! over a sequenced-packet socket, with at most a few descriptors beside it.

use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recv, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;

/// Largest packet.
const MAX_PACKET: usize = 64 * 1024;
/// Most descriptors beside a packet: socket, log, images of layers, the use of an image, and of a container that is kept.
const MAX_FDS: usize = 5;

/// From the agent to the zygote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForkRequest {
    /// A supervisor for a step.
    Supervise(Begin),
    /// The first process of a job, which holds the job's namespaces. Beside the packet: the socket on which it
    /// takes orders ([`berth_runtime::HolderLink`]).
    Hold {
        /// The agent is root and acts for users.
        system: bool,
    },
    /// The process that keeps the deadlines of runs where nobody else does ([`crate::deadlines`]). Beside the packet: the end of a pipe to
    /// read from.
    Deadlines {
        /// The jobs' directories.
        jobs: berth_model::ByteStr,
        /// What an agent holds while it runs.
        lock: berth_model::ByteStr,
    },
    /// A supervisor that waits until there is a step for it, with a process parked from which it will fork the
    /// step's init. Beside the packet: a socket on which it says [`StandingBy`] and gets [`Begin`].
    StandBy {
        /// The agent is root and acts for users.
        system: bool,
    },
}

/// A step for a supervisor; with the step's listening control socket, its log file, images of layers that are mounted,
/// and what the supervisor is to keep open while it lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// The step's spool directory.
    pub spool: berth_model::ByteStr,
    /// Whether there are images of layers among the descriptors.
    #[serde(default)]
    pub images: bool,
}

/// From a supervisor that waits for a step: it is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandingBy {
    /// Its parked process, which the agent puts into the cgroups that the step will have.
    pub parked: i32,
}

/// The zygote's answer; with a pidfd of the supervisor when it was forked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForkAnswer {
    /// The supervisor's pid.
    Forked(i32),
    /// Why there is none.
    Failed(String),
}

/// From the agent to a supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToSupervisor {
    /// A client for the step; its connection comes beside the packet, its Attach frame already read.
    Attach,
    /// The same for a client on another machine. The agent copies what comes and goes: the connection may end because the agent
    /// or the network did, and its client comes back.
    AttachRemote,
    /// The same for one that goes on where it was when its connection breaks. Only for a supervisor whose state says that it knows this.
    AttachResuming(berth_stream::Resume),
    /// Somebody who hears the step beside its client, on whatever machine; the Watch frame is read already. Only for a supervisor
    /// whose state says that it knows this.
    Watch {
        /// The one task whose standard output is wanted.
        stdout: Option<u32>,
        /// The same for standard error.
        stderr: Option<u32>,
        /// Input is keys of a terminal.
        terminal: bool,
        /// It goes on where it was when its connection breaks. A supervisor of an earlier version does not know this, and answers as to one
        /// that does not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resume: Option<berth_stream::Resume>,
    },
    /// The step goes on until then, by the clock since boot, without another renewal.
    Renew {
        /// Never earlier than what was said before.
        until: berth_model::Time,
    },
    /// Send a signal.
    Signal {
        /// The signal.
        signal: i32,
        /// Only to the tasks themselves and not to what they started (`scancel -b`).
        leaders_only: bool,
        /// Later ones have higher numbers, if they have one, and one that was heard is not heard again. A supervisor of an earlier version does
        /// not know this.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        number: Option<u64>,
    },
    /// SIGKILL for everything, now. Where nothing is left of the step but what its client has not heard: that does not come back.
    Kill,
    /// A line for the user's standard error.
    Note(String),
}

/// From a supervisor to the agent: `state.json` has changed. Sent on connecting too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromSupervisor {
    /// The state's phase is Starting.
    Starting,
    /// The tasks run.
    Running,
    /// The exit is in `state.json`.
    Exited,
}

/// Sends a packet with descriptors.
pub fn send<T: Serialize>(socket: BorrowedFd<'_>, packet: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(packet).map_err(io::Error::other)?;
    if bytes.len() > MAX_PACKET || fds.len() > MAX_FDS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the packet is too large"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Receives a packet with its descriptors; `None` when the other side closed.
pub fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0u8; next_length(socket)?];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        match recvmsg(socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => break message.bytes,
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
    };
    let fds: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|m| match m {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if received == 0 && fds.is_empty() {
        return Ok(None);
    }
    let packet = serde_json::from_slice(&bytes[..received]).map_err(io::Error::other)?;
    Ok(Some((packet, fds)))
}

/// Bytes of the packet that comes next: a buffer for the largest would be mapped and unmapped for each.
fn next_length(socket: BorrowedFd<'_>) -> io::Result<usize> {
    loop {
        match recv(socket, &mut [0u8; 0], RecvFlags::PEEK | RecvFlags::TRUNC) {
            Ok((_, length)) => return Ok(length.min(MAX_PACKET)),
            Err(Errno::INTR) => {}
            // Told by the reading itself.
            Err(Errno::CONNRESET) => return Ok(0),
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::AsFd;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[test]
    fn a_packet_brings_its_descriptors_and_an_end_is_told() {
        let (a, b) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let (r, w) = rustix::pipe::pipe().unwrap();
        send(a.as_fd(), &ToSupervisor::Attach, &[w.as_fd()]).unwrap();
        drop(w);
        let (packet, fds) = receive::<ToSupervisor>(b.as_fd()).unwrap().unwrap();
        assert_eq!(packet, ToSupervisor::Attach);
        assert_eq!(rustix::io::write(&fds[0], b"x").unwrap(), 1);
        let mut byte = [0u8; 1];
        assert_eq!(rustix::io::read(&r, &mut byte).unwrap(), 1);
        drop(a);
        assert!(receive::<ToSupervisor>(b.as_fd()).unwrap().is_none());
    }

    /// Supervisors of version 0.1 may live for months: these are the words that they know, and more may come beside them.
    #[test]
    fn packets_are_what_they_were_in_version_0_1() {
        use serde::de::DeserializeOwned;
        use std::fmt::Debug;
        fn is<T: Serialize + DeserializeOwned + PartialEq + Debug>(packet: T, text: &str) {
            assert_eq!(serde_json::to_string(&packet).unwrap(), text);
            assert_eq!(serde_json::from_str::<T>(text).unwrap(), packet);
        }
        is(ToSupervisor::Attach, r#""attach""#);
        is(ToSupervisor::AttachRemote, r#""attach_remote""#);
        is(
            ToSupervisor::AttachResuming(berth_stream::Resume { client: u64::MAX, heard: 2 }),
            r#"{"attach_resuming":{"client":18446744073709551615,"heard":2}}"#,
        );
        is(
            ToSupervisor::Signal { signal: 15, leaders_only: false, number: None },
            r#"{"signal":{"signal":15,"leaders_only":false}}"#,
        );
        is(
            ToSupervisor::Signal { signal: 10, leaders_only: false, number: Some(u64::MAX) },
            r#"{"signal":{"signal":10,"leaders_only":false,"number":18446744073709551615}}"#,
        );
        is(ToSupervisor::Kill, r#""kill""#);
        is(ToSupervisor::Note("x".into()), r#"{"note":"x"}"#);
        is(FromSupervisor::Starting, r#""starting""#);
        is(FromSupervisor::Running, r#""running""#);
        is(FromSupervisor::Exited, r#""exited""#);
    }

    #[test]
    fn a_packet_that_is_no_packet_is_an_error() {
        let (a, b) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        rustix::io::write(&a, b"{\"format\":").unwrap();
        assert!(receive::<ToSupervisor>(b.as_fd()).is_err());
    }
}
