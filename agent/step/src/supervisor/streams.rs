//! The tasks' streams between their pipes and the attached client: every byte as it comes, none held back,
//! and no more in memory than a window while either side is slow.

use super::client::{Client, ClientEvent};
use super::resuming::{Arrival, Resuming};
use super::watchers::Watchers;
use berth_stream::{ALL_TASKS, Frame, HEADER_LEN, Kind, MAX_PAYLOAD, STDIN_WINDOW, data_header, encode};
use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// A descriptor to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamToken {
    /// The client's connection.
    Client,
    /// That of one who hears the step beside it.
    Watcher(u32),
    /// The standard input of a task.
    Input(usize),
    /// An output of a task.
    Output(usize),
}

/// Bytes for tasks, and who sent them: a watcher, or the client.
struct Given {
    data: Vec<u8>,
    by: Option<u32>,
}

struct Input {
    task: u32,
    fd: Option<OwnedFd>,
    queue: VecDeque<(Rc<Given>, usize)>,
    ends: bool,
    terminal: bool,
}

struct Output {
    task: u32,
    kind: Kind,
    fd: Option<OwnedFd>,
}

/// What becomes of output while no client is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absent {
    /// A client will come: the tasks wait for it when their pipes are full.
    Expected,
    /// None will come: output is read and dropped, so that no task hangs.
    Gone,
}

/// All streams of a step on this node that do not go to files.
pub struct Streams {
    inputs: Vec<Input>,
    outputs: Vec<Output>,
    client: Option<Client>,
    watchers: Watchers,
    /// The client is on another machine, and comes back when its connection is lost.
    remote: bool,
    /// And what it has not heard then is kept for it.
    resuming: Option<Resuming>,
    absent: Absent,
    /// The client was told the end. It reads nothing after that, and what came after would wait for it in vain.
    ended: bool,
    /// The tasks run: until the client was told so, none of their output is read.
    running: bool,
    /// Bytes of the client's input held for tasks.
    held: usize,
    buffer: Vec<u8>,
}

impl Streams {
    /// No streams yet. `expected`: a client will attach.
    pub fn new(expected: bool) -> Streams {
        Streams {
            inputs: Vec::new(),
            outputs: Vec::new(),
            client: None,
            watchers: Watchers::default(),
            remote: false,
            resuming: None,
            absent: if expected { Absent::Expected } else { Absent::Gone },
            ended: false,
            running: false,
            held: 0,
            buffer: vec![0; HEADER_LEN + MAX_PAYLOAD],
        }
    }

    /// Adds the writing end of a task's standard input; it must not block.
    pub fn add_input(&mut self, task: u32, fd: OwnedFd) {
        self.inputs.push(Input { task, fd: Some(fd), queue: VecDeque::new(), ends: false, terminal: false });
    }

    /// Adds the reading end of a task's output; it must not block.
    pub fn add_output(&mut self, task: u32, kind: Kind, fd: OwnedFd) {
        self.outputs.push(Output { task, kind, fd: Some(fd) });
    }

    /// Adds a terminal's master: input and output of a task in one; it must not block.
    pub fn add_terminal(&mut self, task: u32, master: OwnedFd) -> std::io::Result<()> {
        let copy = rustix::io::fcntl_dupfd_cloexec(&master, 3)?;
        self.inputs.push(Input { task, fd: Some(copy), queue: VecDeque::new(), ends: false, terminal: true });
        self.add_output(task, Kind::Stdout, master);
        Ok(())
    }

    /// Attaches a client, or says why not and gives its connection back. Whether it had been here before and goes on where it was.
    pub fn attach(&mut self, fd: OwnedFd, how: Arrival) -> Result<bool, (OwnedFd, String)> {
        let again = match (&mut self.resuming, how) {
            (Some(known), Arrival::Resuming(resume)) if known.is(resume) => match known.again(resume) {
                Ok(()) => true,
                Err(e) => return Err((fd, format!("the client cannot go on where it was: {e}"))),
            },
            _ => false,
        };
        // A new connection of a client whose old one is dead, and not yet known to be.
        let returns = again
            || match how {
                Arrival::Local => false,
                Arrival::Remote => self.remote,
                Arrival::Resuming(_) => self.remote && self.resuming.is_none(),
            };
        let expected = self.client.is_some() || self.awaits_return();
        if expected && !returns {
            return Err((fd, "another client is attached to the step".to_string()));
        }
        let mut client = Client::new(fd);
        match how {
            Arrival::Local | Arrival::Remote => {
                self.resuming = None;
                client.push(&Frame::Accepted);
            }
            Arrival::Resuming(resume) => {
                if !again {
                    self.resuming = Some(Resuming::new(resume.client));
                }
                let known = self.resuming.get_or_insert_with(|| Resuming::new(resume.client));
                client.push(&Frame::Resumed(known.taken));
                known.outbox.rest().for_each(|frame| client.push_bytes(frame));
            }
        }
        self.client = Some(client);
        self.remote = how != Arrival::Local;
        self.absent = Absent::Expected;
        // Who was told the end before may have been a connection that nobody heard any more.
        self.ended &= again;
        Ok(again)
    }

    /// Whether the client is away, and what it is told is kept for it.
    fn awaits_return(&self) -> bool {
        self.client.is_none() && self.resuming.is_some() && self.absent == Absent::Expected
    }

    /// Whether there is a client that hears, now or when it is back.
    pub fn is_heard(&self) -> bool {
        self.client.is_some() || self.awaits_return()
    }

    /// Whether a client that may come back has not heard everything.
    pub fn unheard(&self) -> bool {
        self.absent == Absent::Expected && self.resuming.as_ref().is_some_and(|r| !r.outbox.is_empty())
    }

    /// Whether a client may still come.
    pub fn expects_client(&self) -> bool {
        self.absent == Absent::Expected
    }

    /// Whether a client is attached.
    pub fn attached(&self) -> bool {
        self.client.is_some()
    }

    /// All tasks were started: what they say is passed on from now on.
    pub fn run(&mut self) {
        self.running = true;
    }

    /// Those who hear the step beside its client.
    pub fn watchers(&mut self) -> &mut Watchers {
        &mut self.watchers
    }

    /// Whether nobody hears the step beside its client any more.
    pub fn watchers_gone(&self) -> bool {
        self.watchers.is_empty()
    }

    /// Time until something is to be done although nothing is ready.
    pub fn until(&self, now: Instant) -> Option<Duration> {
        self.watchers.until(now)
    }

    /// Tells the client and all who hear the step beside it.
    pub fn tell_all(&mut self, frame: &Frame) {
        self.tell(frame);
        self.watchers.tell(frame);
    }

    /// Tells the client the end of the step, after which it is told nothing.
    pub fn tell_end(&mut self, frame: &Frame) {
        self.tell(frame);
        self.ended = true;
    }

    /// Whether the client was told the end.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Tells the client, if there is one.
    pub fn tell(&mut self, frame: &Frame) {
        if self.ended {
            return;
        }
        let mut bytes = Vec::new();
        if self.absent == Absent::Expected
            && let Some(resuming) = &mut self.resuming
            && encode(frame, &mut bytes).is_ok()
        {
            if let Some(client) = &mut self.client {
                client.push_bytes(&bytes);
            }
            resuming.outbox.push(bytes);
        } else if let Some(client) = &mut self.client {
            client.push(frame);
        }
    }

    /// Whether every output came to its end.
    pub fn drained(&self) -> bool {
        self.outputs.iter().all(|o| o.fd.is_none())
    }

    /// The connection is lost: whether its client may come back. Output waits for it meanwhile.
    pub fn lose_client(&mut self) -> bool {
        if self.remote {
            self.client = None;
        }
        self.remote
    }

    /// A client that is away, or will be, does not come back.
    pub fn nobody_returns(&mut self) {
        self.remote = false;
        if self.client.is_none() {
            self.give_up_client();
        }
    }

    /// The client is given up: it will get nothing more, and output from now on is dropped.
    pub fn give_up_client(&mut self) {
        self.client = None;
        self.absent = Absent::Gone;
        if let Some(resuming) = &mut self.resuming {
            resuming.outbox.drop_rest();
        }
        for input in &mut self.inputs {
            input.queue.clear();
            input.ends = true;
            if !input.terminal {
                input.fd = None;
            }
        }
        self.held = 0;
    }

    /// Whether there is a client to which more may be said now.
    pub fn client_takes_more(&self) -> bool {
        let full = self.resuming.as_ref().is_some_and(|resuming| resuming.outbox.is_full());
        !full && self.client.as_ref().is_some_and(Client::flushed)
    }

    /// Descriptors to wait for, and for what. What must wait for a slow side is not among them: a pipe's
    /// end would else be reported again and again.
    pub fn interests(&self) -> Vec<(StreamToken, BorrowedFd<'_>, PollFlags)> {
        let mut set = Vec::new();
        if let Some(client) = &self.client {
            let mut flags = PollFlags::empty();
            // A client that minds its window never meets this bound.
            if self.held < 2 * STDIN_WINDOW {
                flags |= PollFlags::IN;
            }
            if !client.flushed() {
                flags |= PollFlags::OUT;
            }
            set.push((StreamToken::Client, client.fd(), flags));
        }
        for (id, fd, flags) in self.watchers.interests() {
            set.push((StreamToken::Watcher(id), fd, flags));
        }
        for (i, input) in self.inputs.iter().enumerate() {
            if let (Some(fd), false) = (&input.fd, input.queue.is_empty()) {
                set.push((StreamToken::Input(i), fd.as_fd(), PollFlags::OUT));
            }
        }
        let read = self.running
            && self.watchers.flushed()
            && match self.client {
                Some(_) => self.client_takes_more(),
                None => self.absent == Absent::Gone,
            };
        for (i, output) in self.outputs.iter().enumerate() {
            if let (Some(fd), true) = (&output.fd, read) {
                set.push((StreamToken::Output(i), fd.as_fd(), PollFlags::IN));
            }
        }
        set
    }

    /// Acts on a descriptor that is ready.
    pub fn ready(&mut self, token: StreamToken, flags: PollFlags) -> Vec<ClientEvent> {
        match token {
            StreamToken::Client => return self.serve_client(flags),
            StreamToken::Watcher(id) => {
                for (task, data) in self.watchers.serve(id, flags, &mut self.buffer) {
                    self.input(task, Given { data, by: Some(id) });
                }
            }
            StreamToken::Input(i) => self.fill(i),
            StreamToken::Output(i) => self.drain(i),
        }
        Vec::new()
    }

    fn serve_client(&mut self, flags: PollFlags) -> Vec<ClientEvent> {
        let Some(client) = &mut self.client else { return Vec::new() };
        if flags.intersects(PollFlags::OUT | PollFlags::ERR) {
            client.flush();
        }
        let mut events = Vec::new();
        let mut frames = Vec::new();
        if flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            frames = client.read(&mut self.buffer);
        }
        if let Some(why) = client.lost() {
            events.push(ClientEvent::Lost(why));
        }
        let (mut counted, mut told) = (false, false);
        for frame in frames {
            if let Some(resuming) = &mut self.resuming {
                if let Frame::Heard(count) = frame {
                    told = true;
                    if let Err(e) = resuming.outbox.heard(count) {
                        events.push(ClientEvent::Lost(e.to_string()));
                    }
                    continue;
                }
                resuming.taken += 1;
                counted = true;
            }
            match frame {
                Frame::Stdin { task, data } => {
                    self.held += data.len();
                    self.input(task, Given { data, by: None });
                }
                Frame::StdinEof { task } => self.end_input(task),
                Frame::Signal(n) => events.push(ClientEvent::Signal(n)),
                Frame::Winch(size) => events.push(ClientEvent::Winch(size)),
                Frame::Fence { number, last, data } => {
                    events.push(ClientEvent::Fence { number, last, data });
                }
                Frame::Peer { node, last, data } => events.push(ClientEvent::Peer { node, last, data }),
                Frame::Aborted(code) => events.push(ClientEvent::Aborted(code)),
                Frame::Begin => events.push(ClientEvent::Begin),
                frame @ (Frame::DisplayData { .. }
                | Frame::DisplayCredit { .. }
                | Frame::DisplayEnd { .. }) => events.push(ClientEvent::Display(frame)),
                Frame::Detach => events.push(ClientEvent::Detached),
                other => events.push(ClientEvent::Lost(format!("a client does not send {other:?}"))),
            }
        }
        if let (Some(resuming), Some(client)) = (&self.resuming, &mut self.client) {
            // After the end it says one thing: that we know of the client's having heard it, and that it needs not come back.
            let say = if self.ended { told && resuming.outbox.is_empty() } else { counted };
            if say {
                client.push(&Frame::Heard(resuming.taken));
            }
        }
        events
    }

    fn input(&mut self, task: u32, given: Given) {
        let (given, len) = (Rc::new(given), 0);
        for i in 0..self.inputs.len() {
            let input = &mut self.inputs[i];
            if (task == ALL_TASKS || input.task == task) && input.fd.is_some() && !input.ends {
                input.queue.push_back((Rc::clone(&given), len));
                self.fill(i);
            }
        }
        self.release(given);
    }

    /// Drops one hold of a piece of input; with the last one whoever sent it may send as much again.
    fn release(&mut self, given: Rc<Given>) {
        let Some(Given { data, by }) = Rc::into_inner(given) else { return };
        let Ok(bytes) = u32::try_from(data.len()) else { return };
        match by {
            _ if bytes == 0 => {}
            Some(watcher) => self.watchers.credit(watcher, bytes),
            None => {
                self.held = self.held.saturating_sub(data.len());
                self.tell(&Frame::Credit(bytes));
            }
        }
    }

    fn end_input(&mut self, task: u32) {
        for i in 0..self.inputs.len() {
            let input = &mut self.inputs[i];
            if (task == ALL_TASKS || input.task == task) && !input.ends {
                input.ends = true;
                if input.terminal {
                    // A terminal has no end: what ends its input is the character that means so.
                    input.queue.push_back((Rc::new(Given { data: vec![4], by: None }), 0));
                }
                self.fill(i);
            }
        }
    }

    /// Writes what waits for a task's standard input, as far as the pipe takes it.
    fn fill(&mut self, i: usize) {
        loop {
            let input = &mut self.inputs[i];
            let Some(fd) = &input.fd else { break };
            let Some((given, done)) = input.queue.front_mut() else { break };
            match rustix::io::write(fd, &given.data[*done..]) {
                Ok(n) => {
                    *done += n;
                    if *done == given.data.len()
                        && let Some((given, _)) = input.queue.pop_front()
                    {
                        self.release(given);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // The task closed its standard input or ended: what comes for it now is for nobody.
                Err(_) => {
                    input.fd = None;
                    for (given, _) in std::mem::take(&mut input.queue) {
                        self.release(given);
                    }
                    break;
                }
            }
        }
        let input = &mut self.inputs[i];
        if input.ends && input.queue.is_empty() && !input.terminal {
            input.fd = None;
        }
    }

    /// Reads once from a task's output and sends it at once.
    fn drain(&mut self, i: usize) {
        let output = &mut self.outputs[i];
        let Some(fd) = &output.fd else { return };
        let n = match rustix::io::read(fd, &mut self.buffer[HEADER_LEN..]) {
            Ok(0) => {
                output.fd = None;
                return;
            }
            Ok(n) => n,
            Err(Errno::INTR | Errno::AGAIN) => return,
            // EIO is how a terminal's end is told.
            Err(_) => {
                output.fd = None;
                return;
            }
        };
        if let Ok(header) = data_header(output.kind, output.task, n) {
            self.buffer[..HEADER_LEN].copy_from_slice(&header);
            let frame = &self.buffer[..HEADER_LEN + n];
            self.watchers.output(output.kind, output.task, frame);
            if let Some(resuming) = self.resuming.as_mut().filter(|_| self.absent == Absent::Expected) {
                resuming.outbox.push(frame.to_vec());
            }
            if let Some(client) = &mut self.client {
                client.push_bytes(frame);
            }
        }
    }
}
