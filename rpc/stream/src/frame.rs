//! The frames themselves: bytes to meaning and back, for bytes from anyone.

use crate::images::ImagesQuery;
use crate::kept::{KeptContainer, KeptQuery};
use crate::resume::Resume;
use berth_model::effective::Effective;
use berth_model::ids::{Attempt, JobId, NodeName, StepId, StepKey};
use berth_model::launch::StepExit;
use berth_model::spec::TermSize;
use berth_model::state::ExitStatus;
use serde::{Deserialize, Serialize};

/// Bytes before the payload.
pub const HEADER_LEN: usize = 9;
/// Largest payload; a longer one is an error, so that no peer can make us hold more.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// How many bytes of standard input a client may send beyond what [`Frame::Credit`] gave back. With it, a task
/// that reads nothing never keeps a signal from passing on the same connection.
pub const STDIN_WINDOW: usize = 256 * 1024;
/// How many bytes of one connection to a display may be on their way: one that takes nothing keeps no other from going on.
pub const DISPLAY_WINDOW: usize = 256 * 1024;
/// Largest piece of what is told at a fence.
pub const FENCE_PART: usize = MAX_PAYLOAD - 1;
/// The task number that stands for every task (Stdin, StdinEof) or for none in particular.
pub const ALL_TASKS: u32 = u32::MAX;

/// Which step a client wants to be connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The job.
    pub job: JobId,
    /// Which run of it.
    pub attempt: Attempt,
    /// Which step of the run.
    pub step: StepId,
    /// The client goes on where it was when its connection breaks, where the supervisor can; answered by [`Frame::Resumed`] then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Resume>,
}

impl Attach {
    /// The step's key.
    pub fn key(self) -> StepKey {
        StepKey { job: self.job, attempt: self.attempt, step: self.step }
    }
}

/// Which step somebody wants to hear beside whoever started it (`sattach`), and what of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// The step.
    pub step: Attach,
    /// The one task whose standard output is wanted; absent: of all.
    #[serde(default)]
    pub stdout: Option<u32>,
    /// The same for standard error.
    #[serde(default)]
    pub stderr: Option<u32>,
    /// Input is keys of a terminal, and is of use only where a task has one.
    #[serde(default)]
    pub terminal: bool,
}

impl From<StepKey> for Attach {
    fn from(key: StepKey) -> Attach {
        Attach { job: key.job, attempt: key.attempt, step: key.step, resume: None }
    }
}

/// The type byte of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Client to agent: connect me to this step.
    Attach = 1,
    /// Client to agent: the rest of this connection is for the controller.
    Controller = 2,
    /// Supervisor to client: attached.
    Accepted = 3,
    /// To client: not attached, and why.
    Refused = 4,
    /// Client to supervisor: bytes for standard input.
    Stdin = 5,
    /// Client to supervisor: end of standard input.
    StdinEof = 6,
    /// Supervisor to client: bytes from standard output.
    Stdout = 7,
    /// Supervisor to client: bytes from standard error.
    Stderr = 8,
    /// Supervisor to client: all tasks of this node run.
    Started = 9,
    /// Supervisor to client: a task ended.
    TaskExit = 10,
    /// Supervisor to client: the step ended on this node.
    StepExit = 11,
    /// Client to supervisor: a signal for all tasks.
    Signal = 12,
    /// Client to supervisor: the terminal's new size.
    Winch = 13,
    /// Supervisor to client: a line for the user's standard error.
    Message = 14,
    /// Client to supervisor: I leave; the step goes on.
    Detach = 15,
    /// Supervisor to client: this many bytes of standard input went on to the tasks.
    Credit = 16,
    /// Client to agent: what of the containers that are kept there.
    Kept = 17,
    /// Agent to client: one of them.
    KeptContainer = 18,
    /// Client to agent: what does this step have?
    Describe = 19,
    /// Agent to client: what it has.
    Description = 20,
    /// Client to agent: what of the images that I have there.
    Images = 21,
    /// Agent to client: bytes of the answer.
    Part = 22,
    /// Client to agent: what follows is for this node.
    Node = 23,
    /// Supervisor to client: what this node's tasks tell those of all nodes at a fence. Client to supervisor: what all told.
    Fence = 24,
    /// Either way: a task ended the whole step, with this exit code.
    Aborted = 25,
    /// Client to agent: connect me to this step, beside whoever started it.
    Watch = 30,
    /// Client to agent: how many connections may I have here? Agent to client: so many.
    Places = 33,
    /// Supervisor to client: what this node's PMIx server says to that of another. Client to supervisor: what another's says.
    Peer = 140,
    /// Supervisor to client: attached, and the frames go on where they were.
    Resumed = 31,
    /// Either way: so many frames were heard.
    Heard = 32,
    /// Client to supervisor: the tasks may begin.
    Begin = 220,
    /// Supervisor to client: a program came to the display that is carried.
    DisplayOpen = 250,
    /// Either way: bytes of such a program, or for it.
    DisplayData = 251,
    /// Either way: this many of them went on.
    DisplayCredit = 252,
    /// Either way: nothing more comes.
    DisplayEnd = 253,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        const ALL: [Kind; 35] = [
            Kind::Attach,
            Kind::Controller,
            Kind::Accepted,
            Kind::Refused,
            Kind::Stdin,
            Kind::StdinEof,
            Kind::Stdout,
            Kind::Stderr,
            Kind::Started,
            Kind::TaskExit,
            Kind::StepExit,
            Kind::Signal,
            Kind::Winch,
            Kind::Message,
            Kind::Detach,
            Kind::Credit,
            Kind::Kept,
            Kind::KeptContainer,
            Kind::Describe,
            Kind::Description,
            Kind::Images,
            Kind::Part,
            Kind::Node,
            Kind::Fence,
            Kind::Aborted,
            Kind::Watch,
            Kind::Peer,
            Kind::Resumed,
            Kind::Heard,
            Kind::Places,
            Kind::Begin,
            Kind::DisplayOpen,
            Kind::DisplayData,
            Kind::DisplayCredit,
            Kind::DisplayEnd,
        ];
        ALL.into_iter().find(|k| *k as u8 == byte)
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Connect me to this step.
    Attach(Attach),
    /// The rest of this connection is for the controller.
    Controller,
    /// Attached.
    Accepted,
    /// Not attached, and why.
    Refused(String),
    /// Bytes for the standard input of one task, or of all ([`ALL_TASKS`]).
    Stdin {
        /// Global task number.
        task: u32,
        /// The bytes.
        data: Vec<u8>,
    },
    /// No more standard input.
    StdinEof {
        /// Global task number, or [`ALL_TASKS`].
        task: u32,
    },
    /// Bytes from a task's standard output.
    Stdout {
        /// Global task number.
        task: u32,
        /// The bytes.
        data: Vec<u8>,
    },
    /// Bytes from a task's standard error.
    Stderr {
        /// Global task number.
        task: u32,
        /// The bytes.
        data: Vec<u8>,
    },
    /// All tasks of this node run.
    Started,
    /// A task ended.
    TaskExit {
        /// Global task number.
        task: u32,
        /// How.
        status: ExitStatus,
    },
    /// The step ended on this node; nothing follows. Its list of tasks is empty where it would not fit:
    /// each was told by a TaskExit before.
    StepExit(Box<StepExit>),
    /// Send this signal to the tasks.
    Signal(i32),
    /// The terminal's new size.
    Winch(TermSize),
    /// A line for the user's standard error.
    Message(String),
    /// The client leaves; the step goes on.
    Detach,
    /// This many bytes of standard input went on to the tasks: the client may send as many more.
    Credit(u32),
    /// What of the containers that are kept on the node; answered by them, or by names, and Accepted.
    Kept(KeptQuery),
    /// A container that is kept.
    KeptContainer(Box<KeptContainer>),
    /// What does this step have on the node?
    Describe(Attach),
    /// What a step has on the node.
    Description(Box<Effective>),
    /// What of the images that the caller has on the node; answered by parts of a document, and Accepted.
    Images(ImagesQuery),
    /// The next bytes of an answer that may be longer than a frame.
    Part(Vec<u8>),
    /// What follows is for the agent of this node.
    Node(NodeName),
    /// The next bytes of what is told at a fence.
    Fence {
        /// The how manieth of the step.
        number: u32,
        /// Nothing follows.
        last: bool,
        /// The bytes, at most [`FENCE_PART`].
        data: Vec<u8>,
    },
    /// A task ended the whole step (`MPI_Abort`): what is left of it is to end, and its exit code is this one.
    Aborted(u8),
    /// Connect me to this step, beside whoever started it.
    Watch(Watch),
    /// The next bytes of what one node's PMIx server says to another's. Nothing at all, from a client: what that node said, or
    /// was told, may be lost.
    Peer {
        /// The other node, by its place in the step: for whom from a supervisor, and of whom from a client.
        node: u32,
        /// Nothing follows.
        last: bool,
        /// The bytes, at most [`FENCE_PART`].
        data: Vec<u8>,
    },
    /// Attached in place of [`Frame::Accepted`]: so many frames of this client were heard, and what it has not heard follows.
    Resumed(u64),
    /// So many frames were heard since the first connection, this one and its like not counted. After a StepExit the supervisor says it once:
    /// it knows that the client has heard the end.
    Heard(u64),
    /// How many connections the caller may have on this machine: the question, and the answer. One that has no bound is told the largest number.
    Places(Option<u64>),
    /// What the client runs before the tasks has ended: they may begin.
    Begin,
    /// A program came to the display that the client carries to this node (`--x11`), and has shown the cookie of the step.
    DisplayOpen {
        /// Names the connection from now on; never one that was named before.
        channel: u32,
    },
    /// The next bytes of a connection. Each side sends at most [`DISPLAY_WINDOW`] of them beyond what the other gave back.
    DisplayData {
        /// Which connection.
        channel: u32,
        /// The bytes.
        data: Vec<u8>,
    },
    /// This many bytes of a connection went on: as many more may come.
    DisplayCredit {
        /// Which connection.
        channel: u32,
        /// How many.
        bytes: u32,
    },
    /// Nothing more comes of a connection, and what still comes for it is for nobody. It is over when both sides have said so.
    DisplayEnd {
        /// Which connection.
        channel: u32,
    },
}

/// The bytes are no frame. The connection is of no further use.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// No such type.
    #[error("unknown frame type {0}: the other side is no part of Berth, or of another version")]
    UnknownKind(u8),
    /// Longer than any frame may be.
    #[error("a frame of {0} bytes: at most {MAX_PAYLOAD} are allowed")]
    TooLong(usize),
    /// The payload is not what its type asks for.
    #[error("malformed {0:?} frame: {1}")]
    Malformed(Kind, String),
    /// The connection ended within a frame.
    #[error("the connection ended within a frame")]
    Truncated,
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// A frame's first nine bytes, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What follows.
    pub kind: Kind,
    /// Global task number.
    pub task: u32,
    /// Payload's length, at most [`MAX_PAYLOAD`].
    pub len: usize,
}

impl Header {
    /// Checks and reads a header.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Header, FrameError> {
        let [kind, t0, t1, t2, t3, l0, l1, l2, l3] = *bytes;
        let kind = Kind::from_byte(kind).ok_or(FrameError::UnknownKind(kind))?;
        let task = u32::from_le_bytes([t0, t1, t2, t3]);
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if len > MAX_PAYLOAD {
            return Err(FrameError::TooLong(len));
        }
        Ok(Header { kind, task, len })
    }
}

/// The header of a Stdin, Stdout or Stderr frame, for callers that have the bytes in a buffer of their own.
pub fn data_header(kind: Kind, task: u32, len: usize) -> Result<[u8; HEADER_LEN], FrameError> {
    let size = u32::try_from(len).ok().filter(|_| len <= MAX_PAYLOAD).ok_or(FrameError::TooLong(len))?;
    let mut out = [kind as u8; HEADER_LEN];
    out[1..5].copy_from_slice(&task.to_le_bytes());
    out[5..].copy_from_slice(&size.to_le_bytes());
    Ok(out)
}

/// Appends a frame to `out`. Texts that are too long are cut at a character's border.
pub fn encode(frame: &Frame, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let mut put = |kind: Kind, task: u32, payload: &[u8]| -> Result<(), FrameError> {
        out.extend_from_slice(&data_header(kind, task, payload.len())?);
        out.extend_from_slice(payload);
        Ok(())
    };
    match frame {
        Frame::Attach(attach) => put(Kind::Attach, ALL_TASKS, &json(Kind::Attach, attach)?),
        Frame::Controller => put(Kind::Controller, ALL_TASKS, &[]),
        Frame::Accepted => put(Kind::Accepted, ALL_TASKS, &[]),
        Frame::Refused(text) => put(Kind::Refused, ALL_TASKS, cut(text)),
        Frame::Stdin { task, data } => put(Kind::Stdin, *task, data),
        Frame::StdinEof { task } => put(Kind::StdinEof, *task, &[]),
        Frame::Stdout { task, data } => put(Kind::Stdout, *task, data),
        Frame::Stderr { task, data } => put(Kind::Stderr, *task, data),
        Frame::Started => put(Kind::Started, ALL_TASKS, &[]),
        Frame::TaskExit { task, status } => put(Kind::TaskExit, *task, &[status.code, status.signal]),
        Frame::StepExit(exit) => put(Kind::StepExit, ALL_TASKS, &exit_json(exit)?),
        Frame::Signal(n) => put(Kind::Signal, ALL_TASKS, &n.to_le_bytes()),
        Frame::Winch(size) => {
            let [r0, r1] = size.rows.to_le_bytes();
            let [c0, c1] = size.cols.to_le_bytes();
            put(Kind::Winch, ALL_TASKS, &[r0, r1, c0, c1])
        }
        Frame::Message(text) => put(Kind::Message, ALL_TASKS, cut(text)),
        Frame::Detach => put(Kind::Detach, ALL_TASKS, &[]),
        Frame::Credit(n) => put(Kind::Credit, ALL_TASKS, &n.to_le_bytes()),
        Frame::Kept(query) => put(Kind::Kept, ALL_TASKS, &json(Kind::Kept, query)?),
        Frame::KeptContainer(one) => put(Kind::KeptContainer, ALL_TASKS, &json(Kind::KeptContainer, one)?),
        Frame::Describe(step) => put(Kind::Describe, ALL_TASKS, &json(Kind::Describe, step)?),
        Frame::Description(what) => put(Kind::Description, ALL_TASKS, &json(Kind::Description, what)?),
        Frame::Images(query) => put(Kind::Images, ALL_TASKS, &json(Kind::Images, query)?),
        Frame::Part(bytes) => put(Kind::Part, ALL_TASKS, bytes),
        Frame::Node(name) => put(Kind::Node, ALL_TASKS, cut(&name.0)),
        Frame::Fence { number, last, data } => part(Kind::Fence, *number, *last, data, out),
        Frame::Peer { node, last, data } => part(Kind::Peer, *node, *last, data, out),
        Frame::Aborted(code) => put(Kind::Aborted, ALL_TASKS, &[*code]),
        Frame::Watch(watch) => put(Kind::Watch, ALL_TASKS, &json(Kind::Watch, watch)?),
        Frame::Resumed(count) => put(Kind::Resumed, ALL_TASKS, &count.to_le_bytes()),
        Frame::Heard(count) => put(Kind::Heard, ALL_TASKS, &count.to_le_bytes()),
        Frame::Places(None) => put(Kind::Places, ALL_TASKS, &[]),
        Frame::Places(Some(count)) => put(Kind::Places, ALL_TASKS, &count.to_le_bytes()),
        Frame::Begin => put(Kind::Begin, ALL_TASKS, &[]),
        Frame::DisplayOpen { channel } => put(Kind::DisplayOpen, *channel, &[]),
        Frame::DisplayData { channel, data } => put(Kind::DisplayData, *channel, data),
        Frame::DisplayCredit { channel, bytes } => put(Kind::DisplayCredit, *channel, &bytes.to_le_bytes()),
        Frame::DisplayEnd { channel } => put(Kind::DisplayEnd, *channel, &[]),
    }
}

fn part(kind: Kind, number: u32, last: bool, data: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
    out.extend_from_slice(&data_header(kind, number, data.len() + 1)?);
    out.push(u8::from(last));
    out.extend_from_slice(data);
    Ok(())
}

/// The frames by which bytes go to the PMIx server of another node.
pub fn peer_frames(node: u32, bytes: &[u8]) -> impl Iterator<Item = Frame> + '_ {
    fence_frames(node, bytes).map(move |frame| match frame {
        Frame::Fence { last, data, .. } => Frame::Peer { node, last, data },
        other => other,
    })
}

/// The frames by which bytes are told at a fence.
pub fn fence_frames(number: u32, bytes: &[u8]) -> impl Iterator<Item = Frame> + '_ {
    let parts = bytes.len().div_ceil(FENCE_PART).max(1);
    (0..parts).map(move |at| {
        let from = at * FENCE_PART;
        let data = bytes[from..bytes.len().min(from + FENCE_PART)].to_vec();
        Frame::Fence { number, last: at + 1 == parts, data }
    })
}

fn json<T: Serialize>(kind: Kind, value: &T) -> Result<Vec<u8>, FrameError> {
    serde_json::to_vec(value).map_err(|e| FrameError::Malformed(kind, e.to_string()))
}

fn exit_json(exit: &StepExit) -> Result<Vec<u8>, FrameError> {
    let whole = json(Kind::StepExit, exit)?;
    if whole.len() <= MAX_PAYLOAD {
        return Ok(whole);
    }
    let mut short = StepExit { tasks: Vec::new(), ..exit.clone() };
    if let Some(text) = &mut short.launch_error {
        // JSON may need six bytes for one of the text's.
        let keep = text.floor_boundary(MAX_PAYLOAD / 8);
        text.truncate(keep);
    }
    json(Kind::StepExit, &short)
}

/// The longest start of `text` that fits a frame.
fn cut(text: &str) -> &[u8] {
    &text.as_bytes()[..text.floor_boundary(MAX_PAYLOAD)]
}

trait FloorBoundary {
    /// The largest character border at or below `at`.
    fn floor_boundary(&self, at: usize) -> usize;
}

impl FloorBoundary for str {
    fn floor_boundary(&self, at: usize) -> usize {
        let mut end = at.min(self.len());
        while !self.is_char_boundary(end) {
            end -= 1;
        }
        end
    }
}

impl Frame {
    /// The frame of a header and its payload.
    pub fn from_parts(header: Header, payload: Vec<u8>) -> Result<Frame, FrameError> {
        let Header { kind, task, .. } = header;
        let bad = |why: &str| FrameError::Malformed(kind, why.to_string());
        let none = |frame: Frame| {
            if payload.is_empty() { Ok(frame) } else { Err(bad("it has no payload")) }
        };
        match kind {
            Kind::Attach => Ok(Frame::Attach(parse(kind, &payload)?)),
            Kind::Controller => none(Frame::Controller),
            Kind::Accepted => none(Frame::Accepted),
            Kind::Refused => Ok(Frame::Refused(text(payload))),
            Kind::Stdin => Ok(Frame::Stdin { task, data: payload }),
            Kind::StdinEof => none(Frame::StdinEof { task }),
            Kind::Stdout => Ok(Frame::Stdout { task, data: payload }),
            Kind::Stderr => Ok(Frame::Stderr { task, data: payload }),
            Kind::Started => none(Frame::Started),
            Kind::TaskExit => match payload[..] {
                [code, signal] => Ok(Frame::TaskExit { task, status: ExitStatus { code, signal } }),
                _ => Err(bad("expected a code and a signal")),
            },
            Kind::StepExit => Ok(Frame::StepExit(Box::new(parse(kind, &payload)?))),
            Kind::Signal => match <[u8; 4]>::try_from(&payload[..]) {
                Ok(bytes) => Ok(Frame::Signal(i32::from_le_bytes(bytes))),
                Err(_) => Err(bad("expected a signal's number")),
            },
            Kind::Winch => match payload[..] {
                [r0, r1, c0, c1] => Ok(Frame::Winch(TermSize {
                    rows: u16::from_le_bytes([r0, r1]),
                    cols: u16::from_le_bytes([c0, c1]),
                })),
                _ => Err(bad("expected rows and columns")),
            },
            Kind::Message => Ok(Frame::Message(text(payload))),
            Kind::Detach => none(Frame::Detach),
            Kind::Places => match <[u8; 8]>::try_from(payload.as_slice()) {
                Ok(count) => Ok(Frame::Places(Some(u64::from_le_bytes(count)))),
                Err(_) if payload.is_empty() => Ok(Frame::Places(None)),
                Err(_) => Err(bad("expected nothing, or a number of eight bytes")),
            },
            Kind::Begin => none(Frame::Begin),
            Kind::DisplayOpen => none(Frame::DisplayOpen { channel: task }),
            Kind::DisplayData => Ok(Frame::DisplayData { channel: task, data: payload }),
            Kind::DisplayCredit => match <[u8; 4]>::try_from(&payload[..]) {
                Ok(bytes) => Ok(Frame::DisplayCredit { channel: task, bytes: u32::from_le_bytes(bytes) }),
                Err(_) => Err(bad("expected a number of bytes")),
            },
            Kind::DisplayEnd => none(Frame::DisplayEnd { channel: task }),
            Kind::Kept => Ok(Frame::Kept(parse(kind, &payload)?)),
            Kind::KeptContainer => Ok(Frame::KeptContainer(Box::new(parse(kind, &payload)?))),
            Kind::Credit => match <[u8; 4]>::try_from(&payload[..]) {
                Ok(bytes) => Ok(Frame::Credit(u32::from_le_bytes(bytes))),
                Err(_) => Err(bad("expected a number of bytes")),
            },
            Kind::Describe => Ok(Frame::Describe(parse(kind, &payload)?)),
            Kind::Description => Ok(Frame::Description(Box::new(parse(kind, &payload)?))),
            Kind::Images => Ok(Frame::Images(parse(kind, &payload)?)),
            Kind::Part => Ok(Frame::Part(payload)),
            Kind::Node => Ok(Frame::Node(NodeName(text(payload)))),
            Kind::Fence | Kind::Peer => match (payload.split_first(), kind) {
                (Some((last @ 0..=1, data)), Kind::Fence) => {
                    Ok(Frame::Fence { number: task, last: *last == 1, data: data.to_vec() })
                }
                (Some((last @ 0..=1, data)), _) => {
                    Ok(Frame::Peer { node: task, last: *last == 1, data: data.to_vec() })
                }
                _ => Err(bad("expected whether it is the last, and bytes")),
            },
            Kind::Aborted => match payload[..] {
                [code] => Ok(Frame::Aborted(code)),
                _ => Err(bad("expected an exit code")),
            },
            Kind::Watch => Ok(Frame::Watch(parse(kind, &payload)?)),
            Kind::Resumed | Kind::Heard => match <[u8; 8]>::try_from(payload.as_slice()) {
                Ok(count) if kind == Kind::Heard => Ok(Frame::Heard(u64::from_le_bytes(count))),
                Ok(count) => Ok(Frame::Resumed(u64::from_le_bytes(count))),
                Err(_) => Err(bad("expected a number of eight bytes")),
            },
        }
    }
}

fn parse<T: serde::de::DeserializeOwned>(kind: Kind, payload: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(payload).map_err(|e| FrameError::Malformed(kind, e.to_string()))
}

fn text(payload: Vec<u8>) -> String {
    String::from_utf8(payload).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// Takes bytes as they come from a non-blocking socket and gives frames. Holds at most one frame and what
/// was fed after it.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Adds bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one. After an error the connection is of no further use.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let rest = &self.bytes[self.start..];
        let Some((head, body)) = rest.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let header = Header::parse(head)?;
        if body.len() < header.len {
            return Ok(None);
        }
        let payload = body[..header.len].to_vec();
        self.start += HEADER_LEN + header.len;
        Frame::from_parts(header, payload).map(Some)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }
}
