//! What supervisor and init say to each other: frames of JSON over a stream socket, with descriptors.

use crate::around::WireProgram;
use crate::exec::ExecError;
use crate::hooks::HookFailure;
use crate::join::Entered;
use crate::setup::SetupFailure;
use crate::sys::{Errno, SysResult};
use berth_model::ByteStr;
use berth_model::bind::plan::MemoryNodes;
use berth_model::spec::TermSize;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// To init.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    Spawn(Box<SpawnRequest>),
    Signal {
        target: SignalTarget,
        signal: i32,
    },
    /// Hooks in the node's namespaces have run; go on. The pid is init's own, as the node sees it.
    Go {
        pid: i32,
    },
    /// Give the root's files as an archive to the first descriptor, and what goes wrong to the second.
    Export,
}

/// A task, without its descriptors, which travel beside it: those of stdio, the extra ones, that of its group, and those of programs.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SpawnRequest {
    pub task: u32,
    pub argv: Vec<ByteStr>,
    pub env: Vec<ByteStr>,
    pub cwd: Option<ByteStr>,
    pub cwd_origin: String,
    pub stdio: WireStdio,
    pub cpus: Vec<u32>,
    pub memory: Option<MemoryNodes>,
    pub says: Vec<[String; 2]>,
    pub umask: Option<u32>,
    pub pid_env: Option<String>,
    pub name: Option<String>,
    pub extra: Vec<i32>,
    /// It has a control group to enter.
    pub group: bool,
    pub before: Vec<WireProgram>,
    pub after: Vec<WireProgram>,
    /// The container ends with this task.
    pub last: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WireStdio {
    /// Which of the three a descriptor was sent for; the others are `/dev/null`.
    Fds([bool; 3]),
    Pty(TermSize),
}

/// Which processes a signal goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignalTarget {
    /// One task's first process alone.
    Process(u32),
    /// One task's process group.
    Task(u32),
    /// The process groups of all tasks.
    AllTasks,
    /// Every process of the container. Where it has no pid namespace of its own, every descendant of init.
    Everything,
}

/// From init.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Message {
    /// Namespaces that were asked for travel beside it.
    Ready {
        notes: Vec<String>,
        opened: Vec<Entered>,
    },
    Failed(SetupFailure),
    /// All is mounted and the root not yet changed: hooks may run.
    Mounted,
    HookFailed(HookFailure),
    /// A pty's master travels beside it.
    Started {
        task: u32,
        pid: i32,
        pty: bool,
    },
    ExecFailed {
        task: u32,
        error: ExecError,
    },
    Note(String),
    Exited {
        task: u32,
        status: i32,
        user_us: u64,
        system_us: u64,
        max_rss_kib: u64,
    },
}

const MAX_FRAME: usize = 64 << 20;
/// Below what the kernel passes at once (`SCM_MAX_FD` is 253): mounts of layers are many.
const MAX_FDS: usize = 240;
const HEADER: usize = 5;

/// Sends one frame: length, number of descriptors, JSON.
pub(crate) fn send<T: Serialize>(sock: BorrowedFd<'_>, value: &T, fds: &[BorrowedFd<'_>]) -> SysResult<()> {
    transmit(sock, value, fds, None)
}

/// As [`send`], and collects what comes meanwhile: two sides that only send would wait for each other once
/// both buffers are full.
pub(crate) fn send_and_collect<T: Serialize>(
    sock: BorrowedFd<'_>,
    value: &T,
    fds: &[BorrowedFd<'_>],
    receiver: &mut Receiver,
) -> SysResult<()> {
    transmit(sock, value, fds, Some(receiver))
}

fn transmit<T: Serialize>(
    sock: BorrowedFd<'_>,
    value: &T,
    fds: &[BorrowedFd<'_>],
    mut receiver: Option<&mut Receiver>,
) -> SysResult<()> {
    let json = serde_json::to_vec(value).map_err(|_| Errno::INVAL)?;
    if json.len() > MAX_FRAME || fds.len() > MAX_FDS {
        return Err(Errno::MSGSIZE);
    }
    let mut frame = Vec::with_capacity(HEADER + json.len());
    frame.extend_from_slice(&u32::try_from(json.len()).map_err(|_| Errno::MSGSIZE)?.to_le_bytes());
    frame.push(u8::try_from(fds.len()).map_err(|_| Errno::MSGSIZE)?);
    frame.extend_from_slice(&json);
    let mut flags = SendFlags::NOSIGNAL;
    if receiver.is_some() {
        flags |= SendFlags::DONTWAIT;
    }
    let mut rest: &[u8] = &frame;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut first = true;
    while !rest.is_empty() {
        let mut control = SendAncillaryBuffer::new(&mut space);
        if first && !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        match rustix::net::sendmsg(sock, &[IoSlice::new(rest)], &mut control, flags) {
            Ok(n) => {
                rest = &rest[n..];
                first = false;
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut polled = [PollFd::from_borrowed_fd(sock, PollFlags::IN | PollFlags::OUT)];
                match poll(&mut polled, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(e) => return Err(e),
                }
                if let Some(receiver) = &mut receiver {
                    receiver.fill(sock, false)?;
                    if receiver.ended {
                        return Err(Errno::PIPE);
                    }
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Collects frames from a stream.
#[derive(Debug, Default)]
pub(crate) struct Receiver {
    bytes: Vec<u8>,
    fds: VecDeque<OwnedFd>,
    /// The other side is gone.
    pub ended: bool,
}

impl Receiver {
    /// Reads what is there. With `wait`, waits for something; else a quiet socket is no error.
    pub fn fill<S: AsFd>(&mut self, sock: S, wait: bool) -> SysResult<()> {
        let mut buffer = [0u8; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut flags = RecvFlags::CMSG_CLOEXEC;
        if !wait {
            flags |= RecvFlags::DONTWAIT;
        }
        let result = rustix::net::recvmsg(sock, &mut [IoSliceMut::new(&mut buffer)], &mut control, flags);
        let got = match result {
            Ok(got) => got,
            Err(Errno::INTR) => return Ok(()),
            Err(Errno::AGAIN) if !wait => return Ok(()),
            Err(Errno::CONNRESET) => {
                self.ended = true;
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        if got.flags.contains(ReturnFlags::CTRUNC) {
            return Err(Errno::MSGSIZE);
        }
        if got.bytes == 0 {
            self.ended = true;
        }
        self.bytes.extend_from_slice(&buffer[..got.bytes]);
        Ok(())
    }

    /// The next complete frame, if there is one.
    pub fn next<T: DeserializeOwned>(&mut self) -> SysResult<Option<(T, Vec<OwnedFd>)>> {
        let Some((header, rest)) = self.bytes.split_at_checked(HEADER) else { return Ok(None) };
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let length = usize::try_from(length).map_err(|_| Errno::MSGSIZE)?;
        let count = usize::from(header[4]);
        if length > MAX_FRAME {
            return Err(Errno::MSGSIZE);
        }
        if rest.len() < length {
            return Ok(None);
        }
        let value = serde_json::from_slice(&rest[..length]).map_err(|_| Errno::BADMSG)?;
        if self.fds.len() < count {
            return Err(Errno::BADMSG);
        }
        let fds = self.fds.drain(..count).collect();
        self.bytes.drain(..HEADER + length);
        Ok(Some((value, fds)))
    }
}
