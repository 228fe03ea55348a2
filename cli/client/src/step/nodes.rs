//! The connections of one step: one for each of its nodes, tried again until the node's part of the step has ended.

use super::queue::{Item, Queue, Rooms};
use super::reach::{make_room, too_many};
use super::stream::{self, Event, NotAttached};
use berth_model::launch::{Layout, StepExit};
use berth_stream::{ALL_TASKS, Attach, Frame, MAX_PAYLOAD, Resume, STDIN_WINDOW, Watch};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// Where we are with one connection.
#[derive(Debug)]
enum Link {
    /// Trying; the task tells when it is there.
    Trying(JoinHandle<()>),
    /// There.
    Open(OwnedWriteHalf),
    /// The other side will not have us: why.
    Refused(String),
    /// The part is over.
    Over,
}

/// What a step is on one node, as far as we have heard.
#[derive(Debug)]
struct Part {
    link: Link,
    /// There was a connection once.
    met: bool,
    started: bool,
    /// Bytes of input that its tasks have not taken yet.
    outstanding: usize,
    /// What is to be sent.
    queue: Queue,
    /// Frames of a connection that goes on where the last one was, that were heard.
    heard: Arc<AtomicU64>,
    ended: Option<StepExit>,
    /// Its supervisor knows that we have heard the end, as far as we can tell.
    left: bool,
    /// As what it is counted.
    counted: Counts,
}

/// Of how many parts something is so: what is asked at every turn must not go through thousands of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// Told their end.
    ended: usize,
    /// Are told to be heard to the end.
    left: usize,
    /// Refuse us.
    refused: usize,
    /// Take no more input now, or are not there yet.
    full: usize,
}

impl Part {
    fn counts(&self) -> Counts {
        let refused = matches!(self.link, Link::Refused(_));
        let open = matches!(self.link, Link::Open(_));
        let full =
            self.ended.is_none() && !refused && (!open || self.outstanding + MAX_PAYLOAD > STDIN_WINDOW);
        let ended = self.ended.is_some();
        Counts { ended: ended.into(), left: self.left.into(), refused: refused.into(), full: full.into() }
    }
}

/// Whom a frame is for.
#[derive(Clone, Copy, Debug)]
pub enum To {
    /// Every node that still has a part.
    All,
    /// The node of this task.
    Task(u32),
    /// The node of this index.
    Node(usize),
}

/// All connections of a step.
#[derive(Debug)]
pub struct Nodes {
    socket: PathBuf,
    /// How the connection to each node begins; the first one says it for those that are not named.
    first: Vec<Frame>,
    layout: Layout,
    parts: Vec<Part>,
    counts: Counts,
    /// Those for which something waits that their connections do not take just now.
    unflushed: BTreeSet<usize>,
    rooms: Rooms,
    events: mpsc::Sender<(usize, Event)>,
}

impl Nodes {
    /// Starts to connect to all nodes at once. `first`: what is said to each, and says to what; one for all, or one for each node
    /// where they are parts of several jobs. What comes of it, and of the
    /// connections, goes to `events` with the node's index.
    pub fn connect(
        socket: PathBuf,
        first: Vec<Frame>,
        layout: Layout,
        events: mpsc::Sender<(usize, Event)>,
    ) -> Nodes {
        let count = layout.nodes.len().max(1);
        let room = make_room(count);
        let (counts, unflushed, rooms) = (Counts::default(), BTreeSet::new(), Rooms::new(count));
        let mut nodes = Nodes { socket, first, layout, parts: Vec::new(), counts, unflushed, rooms, events };
        for at in 0..count {
            let heard = Arc::default();
            nodes.parts.push(Part {
                link: match count <= room {
                    true => Link::Trying(nodes.try_one(at, &heard)),
                    // Some of it without the rest would be no step.
                    false => Link::Refused(too_many(count, room)),
                },
                met: false,
                started: false,
                outstanding: 0,
                queue: Queue::default(),
                heard,
                ended: None,
                left: false,
                counted: Counts::default(),
            });
            nodes.count(at);
        }
        nodes
    }

    /// Counts a part anew, after anything about it has changed.
    fn count(&mut self, at: usize) {
        let Some(part) = self.parts.get_mut(at) else { return };
        let (before, now) = (part.counted, part.counts());
        part.counted = now;
        self.counts = Counts {
            ended: self.counts.ended + now.ended - before.ended,
            left: self.counts.left + now.left - before.left,
            refused: self.counts.refused + now.refused - before.refused,
            full: self.counts.full + now.full - before.full,
        };
    }

    /// Where the step's tasks are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The name of a node.
    pub fn name(&self, at: usize) -> &str {
        self.layout.nodes.get(at).map_or("", |n| n.0.as_str())
    }

    /// Tries to attach until the node's part takes us or refuses.
    fn try_one(&self, at: usize, heard: &AtomicU64) -> JoinHandle<()> {
        let (socket, events) = (self.socket.clone(), self.events.clone());
        let heard = heard.load(Ordering::Relaxed);
        let first = match self.first.get(at).or(self.first.first()).cloned().unwrap_or(Frame::Controller) {
            Frame::Attach(attach) => {
                let resume = attach.resume.map(|resume| Resume { heard, ..resume });
                Frame::Attach(Attach { resume, ..attach })
            }
            Frame::Watch(watch) => {
                let resume = watch.step.resume.map(|resume| Resume { heard, ..resume });
                Frame::Watch(Watch { step: Attach { resume, ..watch.step }, ..watch })
            }
            other => other,
        };
        let node = self.layout.nodes.get(at).cloned();
        tokio::spawn(async move {
            let mut pause = Duration::from_millis(20);
            let event = loop {
                match stream::attach(&socket, node.as_ref(), &first).await {
                    Ok((stream, taken)) => break Event::Attached(stream, taken),
                    Err(NotAttached::Refused(why)) => break Event::Refused(why),
                    Err(NotAttached::Away(_)) => sleep(pause).await,
                }
                pause = (pause * 2).min(Duration::from_secs(1));
            };
            let _ = events.send((at, event)).await; // the command is ending
        })
    }

    /// A connection is there: sends what waited for it. `taken`: how many of our frames were heard, where it goes on where the last one
    /// was. Gives the count of its own frames to keep, in that case.
    pub fn opened(
        &mut self,
        at: usize,
        writer: OwnedWriteHalf,
        taken: Option<u64>,
    ) -> Option<Arc<AtomicU64>> {
        let part = self.parts.get_mut(at).filter(|part| !matches!(part.link, Link::Refused(_)))?;
        if let Err(e) = part.queue.opened(taken) {
            self.give_up(at, format!("the step cannot go on with this command: {e}"));
            return None;
        }
        if taken.is_none() {
            part.heard.store(0, Ordering::Relaxed);
            // Credit that was on its way to a connection that was lost does not come.
            part.outstanding = part.queue.input();
        }
        part.met = true;
        part.link = Link::Open(writer);
        let heard = taken.map(|_| Arc::clone(&part.heard));
        self.write(at);
        heard
    }

    /// Writes to a node what it takes now.
    fn write(&mut self, at: usize) {
        if let Some(Part { link: Link::Open(writer), queue, .. }) = self.parts.get_mut(at) {
            queue.write_now(writer);
        }
        self.written(at);
    }

    /// What follows from a node's having taken something.
    fn written(&mut self, at: usize) {
        if let Some(part) = self.parts.get_mut(at) {
            self.rooms.give(at, part.queue.freed());
            if matches!(part.link, Link::Open(_)) && part.queue.is_waiting() {
                self.unflushed.insert(at);
            } else {
                self.unflushed.remove(&at);
            }
        }
        self.count(at);
    }

    /// Whether something waits for a node that does not take it just now.
    pub fn is_waiting(&self) -> bool {
        !self.unflushed.is_empty()
    }

    /// Waits until a node takes something, and writes it. May be dropped and called again; nothing ends here while nothing waits.
    pub async fn flush(&mut self) {
        std::future::poll_fn(|cx| self.poll_flush(cx)).await;
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut any = false;
        for at in self.unflushed.iter().copied().collect::<Vec<_>>() {
            let taken = match self.parts.get_mut(at) {
                Some(Part { link: Link::Open(writer), queue, .. }) => queue.poll_write(writer, cx).is_ready(),
                _ => true,
            };
            if taken {
                any = true;
                self.written(at);
            }
        }
        if any { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Room at the nodes for what others' PMIx servers say to them.
    pub fn rooms(&self) -> Rooms {
        self.rooms.clone()
    }

    /// The step ends: nobody waits for room at a node any more, as none that waits would tell its end.
    pub fn let_go(&self) {
        self.rooms.close_all();
    }

    /// A node gets nothing more.
    fn give_up(&mut self, at: usize, why: String) {
        if let Some(part) = self.parts.get_mut(at) {
            if let Link::Trying(task) = std::mem::replace(&mut part.link, Link::Refused(why)) {
                task.abort();
            }
            part.queue = Queue::default();
            self.rooms.close(at);
        }
        self.written(at);
    }

    /// A part has ended, and nobody waits for us there: its supervisor says so, is gone, or heard of us when we came back.
    pub fn left(&mut self, at: usize) {
        if let Some(part) = self.parts.get_mut(at) {
            part.link = Link::Over;
            part.left = true;
        }
        self.count(at);
    }

    /// Whether a part has told its end.
    pub fn has_ended(&self, at: usize) -> bool {
        self.parts.get(at).is_some_and(|part| part.ended.is_some())
    }

    /// Whether frames of a node were heard that it will not send again.
    pub fn goes_on(&self, at: usize) -> bool {
        self.parts.get(at).is_some_and(|part| part.queue.resumed() && part.heard.load(Ordering::Relaxed) > 0)
    }

    /// Says how many frames of a node were heard.
    pub fn say_heard(&mut self, at: usize) {
        if let Some(part) = self.parts.get_mut(at).filter(|part| part.queue.resumed()) {
            part.queue.say_heard(part.heard.load(Ordering::Relaxed));
            self.write(at);
        }
    }

    /// A node has heard so many of our frames.
    pub fn was_heard(&mut self, at: usize, count: u64) {
        if self.has_ended(at) {
            self.left(at);
        } else if let Some(part) = self.parts.get_mut(at).filter(|part| part.queue.resumed())
            && let Err(e) = part.queue.heard(count)
        {
            self.give_up(at, format!("the step does not count our frames as we do: {e}"));
        }
        self.count(at);
    }

    /// A node will not have us.
    pub fn refused(&mut self, at: usize, why: String) {
        if self.has_ended(at) {
            self.left(at);
        } else {
            self.give_up(at, why);
        }
    }

    /// A connection is gone: another one is tried, unless the part has ended and its supervisor knows that we heard so.
    pub fn closed(&mut self, at: usize) {
        let Some(part) = self.parts.get(at).filter(|p| !matches!(p.link, Link::Refused(_))) else { return };
        let link = match part.left {
            false => Link::Trying(self.try_one(at, &part.heard)),
            true => Link::Over,
        };
        if let Some(part) = self.parts.get_mut(at) {
            part.queue.closed();
            part.link = link;
        }
        self.written(at);
    }

    /// All tasks of a node run.
    pub fn started(&mut self, at: usize) {
        if let Some(part) = self.parts.get_mut(at) {
            part.started = true;
        }
    }

    /// The step ended on a node. Whoever keeps for us what we have not heard is to know that we heard this; who listens beside the client
    /// leaves without a word.
    pub fn ended(&mut self, at: usize, exit: StepExit) {
        let watches = matches!(self.first.first(), Some(Frame::Watch(_)));
        if let Some(part) = self.parts.get_mut(at) {
            part.left = watches || !part.queue.resumed() || !matches!(part.link, Link::Open(_));
            part.ended = Some(exit);
            match std::mem::replace(&mut part.link, Link::Over) {
                Link::Trying(task) => task.abort(),
                Link::Open(writer) => part.queue.finish(writer),
                Link::Refused(_) | Link::Over => {}
            }
            self.rooms.close(at);
        }
        self.written(at);
    }

    /// A node's tasks took this much of their input.
    pub fn credit(&mut self, at: usize, bytes: u32) {
        if let Some(part) = self.parts.get_mut(at) {
            part.outstanding = part.outstanding.saturating_sub(usize::try_from(bytes).unwrap_or(usize::MAX));
        }
        self.count(at);
    }

    /// The parts that have not ended, of those that a frame is for.
    fn at(&self, to: To) -> impl Iterator<Item = usize> + use<> {
        let only = match to {
            To::All | To::Task(ALL_TASKS) => None,
            To::Task(task) => Some(super::exits::node_of(&self.layout, task)),
            To::Node(at) => Some(at),
        };
        // One that refuses us hears nothing any more.
        let open = self.parts.iter().map(|p| p.ended.is_none() && !matches!(p.link, Link::Refused(_)));
        let open = open.collect::<Vec<_>>();
        (0..open.len()).filter(move |at| open[*at] && only.is_none_or(|o| o == *at))
    }

    /// Sends a frame: what a node does not take now waits for it ([`flush`](Nodes::flush)), or for a connection. A node that takes nothing is
    /// given up when more waits than an honest one has others send.
    pub fn send(&mut self, to: To, frame: &Frame) {
        let Some(item) = Item::new(frame) else { return };
        for at in self.at(to) {
            let Some(part) = self.parts.get_mut(at) else { continue };
            part.outstanding += item.input();
            part.queue.push(item.clone());
            match part.queue.overfull() {
                Some(why) => self.give_up(at, why),
                None => self.write(at),
            }
        }
    }

    /// Whether every node that is to read it takes one more chunk of input.
    pub fn have_room(&self, task: u32) -> bool {
        match task {
            ALL_TASKS => self.counts.full == 0,
            task => {
                self.parts.get(super::exits::node_of(&self.layout, task)).is_none_or(|p| p.counts().full == 0)
            }
        }
    }

    /// Whether every part has told its end.
    pub fn all_ended(&self) -> bool {
        self.counts.ended == self.parts.len()
    }

    /// Whether no part waits for us.
    pub fn all_left(&self) -> bool {
        self.counts.left == self.parts.len()
    }

    /// The first node that refuses us although its part has not ended, and why; where every other part has ended, or
    /// it never took us.
    pub fn refusal(&self) -> Option<(usize, &str)> {
        if self.counts.refused == 0 {
            return None;
        }
        let others_live = self.parts.iter().any(|p| p.ended.is_none() && !matches!(p.link, Link::Refused(_)));
        self.parts.iter().enumerate().find_map(|(at, part)| match &part.link {
            Link::Refused(why) if !(part.met && others_live) => Some((at, why.as_str())),
            _ => None,
        })
    }

    /// Whether a part that has not ended may still speak to us.
    pub fn any_open(&self) -> bool {
        self.parts.iter().any(|p| matches!(p.link, Link::Open(_)))
    }

    /// Whether there is a connection to a node's part.
    pub fn is_open(&self, at: usize) -> bool {
        self.parts.get(at).is_some_and(|p| matches!(p.link, Link::Open(_)))
    }

    /// Whether a node will not have us.
    pub fn refuses(&self, at: usize) -> bool {
        self.parts.get(at).is_some_and(|p| matches!(p.link, Link::Refused(_)))
    }

    /// Whether there is no connection to a part that has not ended.
    pub fn any_trying(&self) -> bool {
        self.parts.iter().any(|p| matches!(p.link, Link::Trying(_)))
    }

    /// Nodes whose part never took us, and has not told its end.
    pub fn never_met(&self) -> Vec<&str> {
        let parts = self.parts.iter().enumerate();
        parts.filter(|(_, p)| !p.met && p.ended.is_none()).map(|(at, _)| self.name(at)).collect()
    }

    /// Whether a node's tasks do not run yet, as far as we know. A connection to it says nothing of that: it may stand for ever on a machine
    /// that hangs.
    pub fn is_unheard(&self, at: usize) -> bool {
        self.parts.get(at).is_some_and(|part| {
            let may_speak = matches!(part.link, Link::Trying(_) | Link::Open(_));
            part.ended.is_none() && !part.started && may_speak
        })
    }

    /// The nodes of which that is so.
    pub fn unheard(&self) -> Vec<usize> {
        (0..self.parts.len()).filter(|at| self.is_unheard(*at)).collect()
    }

    /// Whether there is such a node to which there is no connection: it hears nothing of us.
    pub fn any_out_of_reach(&self) -> bool {
        let trying = |at: usize| matches!(self.parts.get(at), Some(Part { link: Link::Trying(_), .. }));
        (0..self.parts.len()).any(|at| trying(at) && self.is_unheard(at))
    }

    /// Whether there was a connection to a node once.
    pub fn was_met(&self, at: usize) -> bool {
        self.parts.get(at).is_some_and(|part| part.met)
    }

    /// Nodes that keep for us what we have not heard, to which the connection is lost.
    pub fn lost(&self) -> Vec<&str> {
        let lost = |p: &Part| p.queue.resumed() && p.ended.is_none() && matches!(p.link, Link::Trying(_));
        self.parts.iter().enumerate().filter(|(_, p)| lost(p)).map(|(at, _)| self.name(at)).collect()
    }

    /// Whether a task's node is past its start.
    pub fn running(&self, task: u32) -> bool {
        let at = super::exits::node_of(&self.layout, task);
        self.parts.get(at).is_some_and(|p| p.started || matches!(p.link, Link::Open(_)))
    }

    /// The ends that were told, with their nodes.
    pub fn ends(&self) -> impl Iterator<Item = (usize, &StepExit)> {
        self.parts.iter().enumerate().filter_map(|(at, p)| p.ended.as_ref().map(|exit| (at, exit)))
    }

    /// Gives up what is not there yet.
    pub fn abort(&self) {
        for part in &self.parts {
            if let Link::Trying(task) = &part.link {
                task.abort();
            }
        }
    }
}

#[cfg(test)]
mod tests;
