//! PMI for the step's tasks: a connected socket each, whose one end is inherited by the task, and the other polled with
//! everything else of the step. No task's silence or flood holds up another: nothing is read from one that does not take its
//! answers.

use berth_model::ByteStr;
use berth_model::launch::StepLaunch;
use berth_model::mpi::MpiType;
use berth_pmi::{Effect, Limits, Server, Setup, Versions};
use berth_stream::{Frame, fence_frames};
use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use std::io;

/// Number of the socket in its task, which `PMI_FD` says.
pub const PMI_FD: i32 = 62;
/// Read at once. Every command of this much has an answer, and the longest answers are a kibibyte.
const PIECE: usize = 4096;
/// What a task that ended left unread is read up to this.
const LEFT: usize = 1 << 20;
/// Most of what all nodes tell at a fence: what is new and what replaces something.
const TOLD: usize = 64 << 20;

/// Variables that belong to another step, or to a launcher in which the client runs.
const VARIABLES: &[&[u8]] = &[
    b"PMI_FD",
    b"PMI_RANK",
    b"PMI_SIZE",
    b"PMI_JOBID",
    b"PMI_ID",
    b"PMI_PORT",
    b"PMI_SPAWNED",
    b"PMI_APPNUM",
];

/// Whether a variable belongs to another step, or to a launcher in which the client runs. What the user sets for the library
/// (`PMIX_MCA_…`) does not.
pub fn foreign(name: &[u8]) -> bool {
    VARIABLES.contains(&name) || (name.starts_with(b"PMIX_") && !name.starts_with(b"PMIX_MCA_"))
}

/// What is to be done for the tasks.
#[derive(Debug)]
pub enum PmiEvent {
    /// For the client.
    Tell(Frame),
    /// A task ends the step, with this exit code.
    Abort(u8, String),
    /// The step cannot go on.
    Stuck(String),
    /// A line for the user.
    Say(String),
}

struct Line {
    rank: u32,
    ours: Option<OwnedFd>,
    theirs: Option<OwnedFd>,
    out: Vec<u8>,
    sent: usize,
}

/// The server of the step's tasks on this node, and their connections.
pub struct Pmi {
    server: Server,
    lines: Vec<Line>,
    /// What this node told at the fence at which its tasks are.
    told: Option<(u32, Vec<u8>)>,
    /// What came of the answer.
    heard: Vec<u8>,
    stuck: bool,
}

/// What a task has of it in its environment.
pub fn variables(launch: &StepLaunch, local: u32) -> Vec<ByteStr> {
    if matches!(launch.mpi_served(), MpiType::None | MpiType::Pmix) {
        return Vec::new();
    }
    let tasks = &launch.layout.tasks;
    let rank =
        tasks.get(launch.node_index as usize).and_then(|here| here.get(local as usize)).unwrap_or(&local);
    let size: usize = tasks.iter().map(Vec::len).sum();
    [
        format!("PMI_FD={PMI_FD}"),
        format!("PMI_RANK={rank}"),
        format!("PMI_SIZE={size}"),
        format!("PMI_JOBID={}", name(launch)),
    ]
    .map(ByteStr::from)
    .to_vec()
}

/// Name of the step as its tasks have it: the same for those of all components of a job, or they would be no one world.
pub(super) fn name(launch: &StepLaunch) -> String {
    let job = launch.job.het.as_ref().map_or(launch.key.job, |het| het.leader);
    format!("{job}.{}", launch.key.step)
}

impl Pmi {
    /// The server for a step, where its tasks are to have one.
    pub fn of(launch: &StepLaunch) -> io::Result<Option<Pmi>> {
        let versions = match launch.mpi_served() {
            MpiType::None | MpiType::Pmix => return Ok(None),
            MpiType::Pmi1 => Versions::One,
            MpiType::Pmi2 => Versions::Both,
        };
        let tasks = launch.layout.tasks.clone();
        let universe = tasks.iter().map(Vec::len).sum::<usize>();
        let here = tasks.get(launch.node_index as usize).cloned().unwrap_or_default();
        let line = |rank: u32| -> io::Result<Line> {
            let kind = SocketType::STREAM;
            let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
            Ok(Line { rank, ours: Some(ours), theirs: Some(theirs), out: Vec::new(), sent: 0 })
        };
        let lines = here.into_iter().map(line).collect::<io::Result<Vec<Line>>>()?;
        let server = Server::new(&Setup {
            name: name(launch),
            node: launch.node_index as usize,
            tasks,
            universe: u32::try_from(universe).unwrap_or(u32::MAX),
            versions,
            limits: Limits::default(),
        });
        Ok(Some(Pmi { server, lines, told: None, heard: Vec::new(), stuck: false }))
    }

    /// The tasks' ends, in the order of the tasks.
    pub fn take_ends(&mut self) -> Vec<OwnedFd> {
        self.lines.iter_mut().filter_map(|line| line.theirs.take()).collect()
    }

    /// Descriptors to wait for, and for what.
    pub fn interests(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>, PollFlags)> {
        self.lines.iter().enumerate().filter_map(|(at, line)| {
            let flags = if line.out.is_empty() { PollFlags::IN } else { PollFlags::OUT };
            Some((at, line.ours.as_ref()?.as_fd(), flags))
        })
    }

    /// Acts on a descriptor that is ready.
    pub fn ready(&mut self, at: usize, flags: PollFlags) -> Vec<PmiEvent> {
        let mut events = Vec::new();
        if let Some(line) = self.lines.get_mut(at)
            && !line.out.is_empty()
        {
            if flags.intersects(PollFlags::ERR | PollFlags::HUP) {
                // It takes no answers any more.
                line.out.clear();
            } else {
                line.flush();
            }
            if !line.out.is_empty() {
                return events;
            }
        }
        self.read(at, &mut events);
        self.find_stuck(&mut events);
        events
    }

    /// Reads once; whether there may be more.
    fn read(&mut self, at: usize, events: &mut Vec<PmiEvent>) -> bool {
        let Some(line) = self.lines.get_mut(at) else { return false };
        let Some(fd) = &line.ours else { return false };
        let mut buffer = [0u8; PIECE];
        // Descriptors that a task sends along are dropped by the kernel, as there is no room for them.
        match recv(fd, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((_, n)) if n > 0 => {
                let effects = self.server.read(at, &buffer[..n.min(PIECE)]);
                self.act(effects, events);
                true
            }
            Err(Errno::INTR | Errno::AGAIN) => false,
            Ok(_) | Err(_) => {
                line.ours = None;
                line.out = Vec::new();
                self.server.gone(at);
                false
            }
        }
    }

    /// A task ended: what it said last is heard, and it will come to no fence.
    pub fn exited(&mut self, at: usize) -> Vec<PmiEvent> {
        let mut events = Vec::new();
        for _ in 0..LEFT / PIECE {
            // It reads no answers any more.
            if let Some(line) = self.lines.get_mut(at) {
                line.out = Vec::new();
            }
            if !self.read(at, &mut events) {
                break;
            }
        }
        self.server.gone(at);
        if let Some(line) = self.lines.get_mut(at) {
            line.ours = None;
            line.out = Vec::new();
        }
        self.find_stuck(&mut events);
        events
    }

    /// The client came, or came again: what it is to be told once more.
    pub fn attached(&mut self) -> Vec<Frame> {
        self.heard = Vec::new();
        self.told.iter().flat_map(|(number, keys)| fence_frames(*number, keys)).collect()
    }

    /// A piece of what all nodes told at a fence.
    pub fn hear(&mut self, number: u32, last: bool, data: &[u8]) -> Vec<PmiEvent> {
        let mut events = Vec::new();
        if self.told.as_ref().is_none_or(|(of, _)| *of != number) {
            return events;
        }
        if self.heard.len() + data.len() > TOLD {
            events.push(PmiEvent::Stuck(format!("the keys of all nodes take more than {TOLD} bytes")));
            return events;
        }
        self.heard.extend_from_slice(data);
        if last {
            self.told = None;
            match self.server.fenced(number, &std::mem::take(&mut self.heard)) {
                Ok(effects) => self.act(effects, &mut events),
                Err(e) => events.push(PmiEvent::Stuck(e.to_string())),
            }
        }
        events
    }

    fn act(&mut self, effects: Vec<Effect>, events: &mut Vec<PmiEvent>) {
        for effect in effects {
            match effect {
                Effect::Send { task, bytes } => {
                    if let Some(line) = self.lines.get_mut(task).filter(|line| line.ours.is_some()) {
                        line.out.extend_from_slice(&bytes);
                        line.flush();
                    }
                }
                Effect::Fence { number, keys } => {
                    events.extend(fence_frames(number, &keys).map(PmiEvent::Tell));
                    self.told = Some((number, keys));
                }
                Effect::Abort { task, code, message } => {
                    let rank = self.rank(task);
                    let why = if message.is_empty() { String::new() } else { format!(": {message}") };
                    let text =
                        format!("task {rank} called MPI_Abort with exit code {code}{why}: ending the step");
                    events.push(PmiEvent::Abort(code, text));
                }
                Effect::Fault { task, why } => {
                    let rank = self.rank(task);
                    if let Some(line) = self.lines.get_mut(task) {
                        line.ours = None;
                        line.out = Vec::new();
                    }
                    events.push(PmiEvent::Say(format!("PMI: task {rank} is heard no more: {why}")));
                }
                Effect::Note { task, text } => {
                    events.push(PmiEvent::Say(format!("task {}: {text}", self.rank(task))));
                }
            }
        }
    }

    fn rank(&self, task: usize) -> u32 {
        self.lines.get(task).map_or(0, |line| line.rank)
    }

    /// A fence to which a task that is gone cannot come.
    fn find_stuck(&mut self, events: &mut Vec<PmiEvent>) {
        if self.stuck {
            return;
        }
        if let Some(stuck) = self.server.stuck() {
            self.stuck = true;
            events.push(PmiEvent::Stuck(format!(
                "the PMI barrier at which {} will not be reached by {}, which ended before it or spoke no PMI",
                waiting(&stuck.waiting),
                tasks(&stuck.gone),
            )));
        }
    }
}

/// `task 3 waits`.
fn waiting(ranks: &[u32]) -> String {
    format!("{} {}", tasks(ranks), if ranks.len() == 1 { "waits" } else { "wait" })
}

/// What a shell sees of an exit code; an abort is no success.
pub fn exit_code(code: i64) -> u8 {
    u8::try_from(code & 0xff).ok().filter(|code| *code != 0).unwrap_or(1)
}

/// `tasks 0-2,5`; of many separate ones the first.
pub fn tasks(ranks: &[u32]) -> String {
    const SHOWN: usize = 8;
    let mut sorted = ranks.to_vec();
    sorted.sort_unstable();
    let runs: Vec<&[u32]> = sorted.chunk_by(|a, b| a.checked_add(1) == Some(*b)).collect();
    let mut words: Vec<String> = runs
        .iter()
        .take(SHOWN)
        .map(|run| match run {
            [first, .., last] => format!("{first}-{last}"),
            _ => run.iter().map(u32::to_string).collect(),
        })
        .collect();
    if runs.len() > SHOWN {
        words.push("…".to_string());
    }
    format!("{} {}", if ranks.len() == 1 { "task" } else { "tasks" }, words.join(","))
}

impl Line {
    /// Sends what waits, as far as the task takes it.
    fn flush(&mut self) {
        if let Some(fd) = &self.ours {
            flush(fd, &mut self.out, &mut self.sent);
        }
    }
}

/// Sends what waits, as far as it is taken; `sent` bytes of it were.
pub(super) fn flush(to: &OwnedFd, out: &mut Vec<u8>, sent: &mut usize) {
    while *sent < out.len() {
        match send(to, &out[*sent..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(n) => *sent += n,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return,
            // The reading side tells that the other one is gone.
            Err(_) => break,
        }
    }
    out.clear();
    *sent = 0;
}
