//! PMIx for the step's tasks: the process with the system's libpmix, and what it and other nodes have to say to one another. A step
//! that asked for it has that process from the start, and others when the first of their tasks comes to the address that they were told.
//!
//! The process is the user's, within the step's limits. What it says is bounded, and only its own step suffers from it.

use super::environment::is_host;
use super::files::errno_text;
use super::pmi::{PmiEvent, exit_code, flush, name, tasks};
use super::step::LaunchFailure;
use crate::pmix_server::{Setup, callers};
use crate::spool::LaunchFile;
use berth_model::ByteStr;
use berth_model::spec::Unshared;
use berth_model::state::ExitStatus;
use berth_pmi::pmix::{Pattern, Place, WORD_MAX, Word, Words, is_of_tasks};
use berth_stream::{Frame, fence_frames, peer_frames};
use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

/// How long the library may take to begin.
pub const BEGINS: Duration = Duration::from_secs(30);
/// Read at once.
const PIECE: usize = 65536;

/// What is known of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Task {
    /// It spoke no PMIx so far.
    #[default]
    Silent,
    /// It came, and is not done.
    Under,
    /// It came, and is done.
    Done,
    /// It ended without having been done, or without having come.
    Gone,
}

/// What tasks came to, or will: the process is started for the first of them.
struct Waiting {
    gate: TcpListener,
    file: Rc<LaunchFile>,
    /// What the first task was told.
    told: Vec<String>,
}

impl Waiting {
    /// Whether one of those who came is the step's user.
    fn has_task(&self) -> bool {
        let uid = self.file.launch.identity.uid.0;
        matches!(self.gate.local_addr(), Ok(SocketAddr::V4(here)) if callers::any_of(here, uid))
    }
}

/// The process, and what goes to and fro.
pub struct Pmix {
    child: Option<Child>,
    waiting: Option<Waiting>,
    /// Tasks run, and why it cannot be is news for them.
    late: bool,
    channel: Option<OwnedFd>,
    out: Vec<u8>,
    sent: usize,
    words: Words,
    begun: Option<Result<(), String>>,
    environments: Vec<Vec<ByteStr>>,
    ranks: Vec<u32>,
    states: Vec<Task>,
    /// The step has one task, for which nobody waits.
    alone: bool,
    /// What this node told at the fence at which its tasks are.
    told: Option<(u32, Vec<u8>)>,
    /// What came of the answer, and of what other nodes say.
    heard: Vec<u8>,
    parts: BTreeMap<u32, Vec<u8>>,
    ended: bool,
}

/// What keeps a step from having PMIx on this node.
fn refused(file: &LaunchFile) -> Option<String> {
    let container = file.launch.container.as_ref();
    let unshared = match file.node.joined() {
        Some(member) => Some(&member.started.unshare),
        None => container.map(|c| &c.unshare),
    };
    unshared.is_some_and(|all| all.contains(&Unshared::Net)).then(|| {
        "--mpi=pmix is reached by the node's network, which --container-unshare=net takes away: leave one of them out".into()
    })
}

/// As whom tasks see themselves.
fn ids_inside(file: &LaunchFile) -> (u32, u32) {
    let id = &file.launch.identity;
    let mapped = match (file.node.joined(), &file.launch.container) {
        _ if is_host(&file.launch) => false,
        (Some(member), _) => member.started.remap_root,
        (None, Some(container)) => {
            container.subids == Some(true)
                || file.node.kept.as_ref().is_some_and(|kept| kept.subids)
                || container.remap_root.unwrap_or(file.node.container.remap_root)
        }
        (None, None) => false,
    };
    if mapped { (0, 0) } else { (id.uid.0, id.gid.0) }
}

impl Pmix {
    /// Starts the process. It has begun when [`Pmix::begun`] says so.
    pub fn start(file: &LaunchFile) -> Result<Pmix, LaunchFailure> {
        if let Some(why) = refused(file) {
            return Err(LaunchFailure::new(why));
        }
        let mut pmix = Pmix::of(file);
        pmix.spawn(file, None)?;
        Ok(pmix)
    }

    /// Lets tasks come without the process, which the first that comes starts. `None` where the node has no libpmix, or tasks could not
    /// reach it.
    pub fn lazily(file: &Rc<LaunchFile>) -> Option<Pmix> {
        if file.node.pmix.is_empty() || file.node.program.is_none() || refused(file).is_some() {
            return None;
        }
        let Ok(pattern) = Pattern::of(&file.node.pmix) else { return None };
        // Nobody asked for it: where there is no port, or no loopback, who does ask is told.
        let Ok(gate) = TcpListener::bind((pattern.address(), 0)) else { return None };
        let port = gate.local_addr().ok()?.port();
        let mut pmix = Pmix::of(file);
        let (step, host) = (name(&file.launch), &file.launch.node.0);
        let fill =
            |rank| pattern.fill(&Place { step: &step, node: file.launch.node_index, host, rank, port });
        let told = pmix.ranks.first().map(|rank| fill(*rank)).unwrap_or_default();
        for (environment, rank) in pmix.environments.iter_mut().zip(&pmix.ranks) {
            *environment = fill(*rank).into_iter().map(ByteStr::from).collect();
        }
        pmix.waiting = Some(Waiting { gate, file: Rc::clone(file), told });
        pmix.late = true;
        Some(pmix)
    }

    fn of(file: &LaunchFile) -> Pmix {
        let launch = &file.launch;
        let here = launch.layout.tasks.get(launch.node_index as usize).cloned().unwrap_or_default();
        Pmix {
            child: None,
            waiting: None,
            late: false,
            channel: None,
            out: Vec::new(),
            sent: 0,
            words: Words::default(),
            begun: None,
            environments: vec![Vec::new(); here.len()],
            states: vec![Task::Silent; here.len()],
            ranks: here,
            alone: launch.layout.tasks.iter().map(Vec::len).sum::<usize>() == 1,
            told: None,
            heard: Vec::new(),
            parts: BTreeMap::new(),
            ended: false,
        }
    }

    /// Somebody has come, from here or from another node: now there has to be a process.
    fn wake(&mut self, events: &mut Vec<PmiEvent>) {
        let Some(Waiting { gate, file, told }) = self.waiting.take() else { return };
        if let Err(failure) = self.spawn(&file, Some((gate, told))) {
            events.push(PmiEvent::Stuck(failure.text));
        }
    }

    fn spawn(
        &mut self,
        file: &LaunchFile,
        gate: Option<(TcpListener, Vec<String>)>,
    ) -> Result<(), LaunchFailure> {
        let launch = &file.launch;
        let failed = |what: &str, why: String| LaunchFailure::new(format!("--mpi=pmix: {what}: {why}"));
        let Some(program) = &file.node.program else {
            return Err(LaunchFailure::new("--mpi=pmix: the agent of this node is older than this option"));
        };
        let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let (ours, theirs) = pair.map_err(|e| failed("cannot make a socket", errno_text(e)))?;
        let mut command = Command::new(program.as_path());
        command.arg("internal-pmix");
        if file.node.system {
            let id = &launch.identity;
            let groups: Vec<String> = id.groups.iter().map(|g| g.0.to_string()).collect();
            command.arg("--as").arg(format!("{}:{}:{}", id.uid, id.gid, groups.join(",")));
        }
        command
            .env_clear()
            // What the library tells tasks goes through its sockets: no file has to be in sight of both, and no task that
            // dies while it holds a lock in shared memory keeps the others waiting.
            .env("PMIX_MCA_gds", "hash")
            // The maps stay texts.
            .env("PMIX_MCA_preg", "^compress")
            .env("TMPDIR", temporary(file).as_os())
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stderr(Stdio::null());
        let told = match gate {
            Some((gate, told)) => {
                command.stdout(Stdio::from(OwnedFd::from(gate)));
                told
            }
            None => {
                command.stdout(Stdio::null());
                Vec::new()
            }
        };
        let child = command.spawn().map_err(|e| failed(&program.display(), e.to_string()))?;
        let pid = child.id();
        (self.child, self.channel) = (Some(child), Some(ours));
        if file.node.system {
            // The supervisor is what the kernel kills last; what works for the user is not.
            std::fs::write(format!("/proc/{pid}/oom_score_adj"), "0").map_err(|e| {
                failed("cannot give up its process's protection from the kernel", e.to_string())
            })?;
        }
        if let Some(group) = &file.node.cgroup {
            group.join(pid.cast_signed()).map_err(|e| failed("the step's limits", e.to_string()))?;
        }
        let (uid, gid) = ids_inside(file);
        let setup = Setup {
            name: name(launch),
            node: launch.node_index as usize,
            nodes: launch.layout.nodes.iter().map(|node| node.0.clone()).collect(),
            tasks: launch.layout.tasks.clone(),
            uid,
            gid,
            tmp: temporary(file).display().into_owned(),
            told,
        };
        let setup = serde_json::to_vec(&setup).map_err(|e| failed("the step's layout", e.to_string()))?;
        self.say(&Word::Setup(setup));
        Ok(())
    }

    /// Whether tasks may come, or why they cannot.
    pub fn begun(&self) -> Option<Result<(), String>> {
        self.begun.clone()
    }

    /// What a task, by its place, has of it in its environment.
    pub fn environment(&mut self, task: usize) -> Vec<ByteStr> {
        self.environments.get_mut(task).map(std::mem::take).unwrap_or_default()
    }

    /// The descriptor to wait for, and for what.
    pub fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        if let Some(waiting) = &self.waiting {
            return Some((waiting.gate.as_fd(), PollFlags::IN));
        }
        let flags = if self.out.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        Some((self.channel.as_ref()?.as_fd(), flags))
    }

    /// Acts on the descriptor that is ready.
    pub fn ready(&mut self, flags: PollFlags) -> Vec<PmiEvent> {
        let mut events = Vec::new();
        if let Some(waiting) = &self.waiting {
            if waiting.has_task() {
                self.wake(&mut events);
            } else {
                // Somebody else on the node starts nothing of the step's: they are sent away.
                drop(waiting.gate.accept());
            }
            return events;
        }
        if flags.contains(PollFlags::OUT) {
            self.flush();
        }
        if flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            self.read(&mut events);
        }
        events
    }

    /// Reads once; whether there may be more.
    fn read(&mut self, events: &mut Vec<PmiEvent>) -> bool {
        let Some(fd) = &self.channel else { return false };
        let mut buffer = vec![0u8; PIECE];
        match recv(fd, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((_, n)) if n > 0 => {
                self.words.push(&buffer[..n.min(PIECE)]);
                loop {
                    match self.words.next_word() {
                        Ok(Some(word)) => self.hear_word(word, events),
                        Ok(None) => return true,
                        Err(e) => {
                            self.lost(&e.to_string(), events);
                            return false;
                        }
                    }
                }
            }
            Err(Errno::INTR | Errno::AGAIN) => false,
            Ok(_) | Err(_) => {
                let how = match self.child.as_mut().map(Child::wait) {
                    Some(Ok(status)) => format!("its process ended ({status})"),
                    Some(Err(e)) => format!("its process cannot be waited for: {e}"),
                    None => "it has no process".to_string(),
                };
                self.lost(&how, events);
                false
            }
        }
    }

    fn lost(&mut self, why: &str, events: &mut Vec<PmiEvent>) {
        self.channel = None;
        self.out = Vec::new();
        let why = format!("the PMIx server of this node is gone: {why}");
        match self.begun {
            None if !self.late => self.begun = Some(Err(why)),
            None | Some(Ok(())) if !self.ended => events.push(PmiEvent::Stuck(why)),
            None | Some(_) => {}
        }
    }

    fn hear_word(&mut self, word: Word, events: &mut Vec<PmiEvent>) {
        match word {
            Word::Environment(task, bytes) => {
                let entries = bytes.split(|b| *b == 0).filter(|e| e.contains(&b'='));
                if let Some(environment) = self.environments.get_mut(task as usize) {
                    *environment = entries.filter(|entry| of_tasks(entry)).map(ByteStr::from).collect();
                }
            }
            Word::Ready => {
                self.begun.get_or_insert(Ok(()));
            }
            Word::Failed(why) => {
                let why = line(&why);
                if self.begun.is_none() && !self.late {
                    self.begun = Some(Err(why));
                } else {
                    // What follows from it is no news.
                    self.ended = true;
                    events.push(PmiEvent::Stuck(format!("the PMIx server of this node: {why}")));
                }
            }
            Word::Fence(number, data) => {
                events.extend(fence_frames(number, &data).map(PmiEvent::Tell));
                self.told = Some((number, data));
            }
            Word::Peer(node, data) => events.extend(peer_frames(node, &data).map(PmiEvent::Tell)),
            Word::Came(task) => self.set(task, Task::Under, events),
            Word::Done(task) => self.set(task, Task::Done, events),
            Word::Abort(task, code, message) => {
                if let Some(rank) = self.ranks.get(task as usize) {
                    let code = exit_code(code.into());
                    // What Open MPI says where it has nothing to say.
                    let said = Some(line(&message)).filter(|said| said != "N/A").unwrap_or_default();
                    let why = if said.is_empty() { String::new() } else { format!(": {said}") };
                    let text =
                        format!("task {rank} called MPI_Abort with exit code {code}{why}: ending the step");
                    events.push(PmiEvent::Abort(code, text));
                }
            }
            Word::Setup(_) | Word::Again(_) => {}
        }
    }

    fn set(&mut self, task: u32, now: Task, events: &mut Vec<PmiEvent>) {
        if let Some(state) = self.states.get_mut(task as usize).filter(|state| **state != Task::Gone) {
            *state = now;
        }
        self.find_stuck(events);
    }

    /// A task ended: what it said last is heard. One that came and was not done takes the whole step along: the others wait
    /// for it, or will.
    pub fn exited(&mut self, task: usize, status: ExitStatus) -> Vec<PmiEvent> {
        let mut events = Vec::new();
        while self.read(&mut events) {}
        let Some(state) = self.states.get_mut(task) else { return events };
        let was = *state;
        if matches!(was, Task::Under | Task::Silent) {
            *state = Task::Gone;
        }
        if was == Task::Under && !self.alone {
            let rank = self.ranks.get(task).copied().unwrap_or_default();
            let code = exit_code(status.shell_code().into());
            let text = format!(
                "task {rank} ended without MPI_Finalize, and the others would wait for it: ending the step"
            );
            events.push(PmiEvent::Abort(code, text));
        }
        self.find_stuck(&mut events);
        events
    }

    /// A task that came waits for all that are to come; one that ended before will not.
    fn find_stuck(&mut self, events: &mut Vec<PmiEvent>) {
        let of = |wanted: Task| -> Vec<u32> {
            let pairs = self.ranks.iter().zip(&self.states);
            pairs.filter(|(_, state)| **state == wanted).map(|(rank, _)| *rank).collect()
        };
        let (under, gone) = (of(Task::Under), of(Task::Gone));
        if !self.ended && !under.is_empty() && !gone.is_empty() {
            self.ended = true;
            let came = tasks(&under);
            let wait = if under.len() == 1 { "waits" } else { "wait" };
            events.push(PmiEvent::Stuck(format!(
                "{came} came to PMIx and {wait} for {}, which ended before it did so or spoke no PMIx",
                tasks(&gone),
            )));
        }
    }

    /// The client came, or came again: what it is to be told once more.
    pub fn attached(&mut self) -> Vec<Frame> {
        self.heard = Vec::new();
        self.parts.clear();
        self.say(&Word::Again(Word::ALL));
        self.told.iter().flat_map(|(number, data)| fence_frames(*number, data)).collect()
    }

    /// A piece of what all nodes told at a fence.
    pub fn hear(&mut self, number: u32, last: bool, data: &[u8]) -> Vec<PmiEvent> {
        if self.told.as_ref().is_none_or(|(of, _)| *of != number) {
            return Vec::new();
        }
        if self.heard.len() + data.len() > WORD_MAX {
            return vec![PmiEvent::Stuck(format!("what all nodes tell takes more than {WORD_MAX} bytes"))];
        }
        self.heard.extend_from_slice(data);
        if last {
            self.told = None;
            let whole = std::mem::take(&mut self.heard);
            self.say(&Word::Fence(number, whole));
        }
        Vec::new()
    }

    /// A piece of what another node says; nothing at all where its connection is a new one.
    pub fn hear_peer(&mut self, node: u32, last: bool, data: &[u8]) -> Vec<PmiEvent> {
        let mut events = Vec::new();
        // Of another node that has only come again nothing is wanted here yet.
        if self.waiting.is_some() && data.is_empty() {
            return events;
        }
        self.wake(&mut events);
        if !events.is_empty() {
            return events;
        }
        if last && data.is_empty() && !self.parts.contains_key(&node) {
            self.say(&Word::Again(node));
            return Vec::new();
        }
        let held: usize = self.parts.values().map(Vec::len).sum();
        if held + data.len() > WORD_MAX {
            return vec![PmiEvent::Stuck(format!("what other nodes say takes more than {WORD_MAX} bytes"))];
        }
        self.parts.entry(node).or_default().extend_from_slice(data);
        if last && let Some(whole) = self.parts.remove(&node) {
            self.say(&Word::Peer(node, whole));
        }
        Vec::new()
    }

    fn say(&mut self, word: &Word) {
        if self.channel.is_some() {
            word.encode(&mut self.out);
            self.flush();
        }
    }

    /// Sends what waits, as far as it is taken.
    fn flush(&mut self) {
        if let Some(channel) = &self.channel {
            flush(channel, &mut self.out, &mut self.sent);
        }
    }
}

impl Drop for Pmix {
    fn drop(&mut self) {
        // It has nothing to put in order.
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Where the library may have files.
fn temporary(file: &LaunchFile) -> ByteStr {
    match &file.node.scratch {
        Some(dir) => ByteStr([dir.0.as_slice(), b"/tmp"].concat()),
        None => "/tmp".into(),
    }
}

fn of_tasks(entry: &[u8]) -> bool {
    is_of_tasks(&String::from_utf8_lossy(entry))
}

/// Foreign bytes as they may stand in a message.
fn line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().filter(|c| !c.is_control()).take(2000).collect()
}
