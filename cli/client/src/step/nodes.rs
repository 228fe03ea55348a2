//! The connections of one step: one for each of its nodes, tried again until the node's part of the step has ended.

use super::stream::{self, Event, NotAttached};
use berth_model::launch::{Layout, StepExit};
use berth_stream::{ALL_TASKS, Attach, Frame, MAX_PAYLOAD, Outbox, Resume, STDIN_WINDOW, encode};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// Descriptors for everything that is no connection to a node.
const OTHERS: u64 = 256;

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
    /// What is to be sent when there is a connection; of one that goes on where the last one was, also what was not heard yet.
    outbox: Outbox,
    /// The connection goes on where the last one was.
    resumed: bool,
    /// Frames of such a connection that were heard.
    heard: Arc<AtomicU64>,
    ended: Option<StepExit>,
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
    events: mpsc::Sender<(usize, Event)>,
}

/// Has room for a connection to each node. What tasks get of our limits was said before.
fn make_room(nodes: usize) {
    let wanted = u64::try_from(nodes).unwrap_or(u64::MAX).saturating_add(OTHERS);
    let limit = getrlimit(Resource::Nofile);
    // Where it cannot be raised, connections wait until others are over.
    if limit.current.is_some_and(|now| now < wanted) {
        let current = Some(limit.maximum.map_or(wanted, |most| most.min(wanted)));
        let _ = setrlimit(Resource::Nofile, Rlimit { current, ..limit });
    }
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
        make_room(layout.nodes.len());
        let mut nodes = Nodes { socket, first, layout, parts: Vec::new(), events };
        for at in 0..nodes.layout.nodes.len().max(1) {
            let heard = Arc::default();
            nodes.parts.push(Part {
                link: Link::Trying(nodes.try_one(at, &heard)),
                met: false,
                started: false,
                outstanding: 0,
                outbox: Outbox::default(),
                resumed: false,
                heard,
                ended: None,
            });
        }
        nodes
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
    pub async fn opened(
        &mut self,
        at: usize,
        mut writer: OwnedWriteHalf,
        taken: Option<u64>,
    ) -> Option<Arc<AtomicU64>> {
        let part = self.parts.get_mut(at)?;
        part.resumed = taken.is_some();
        if let Some(taken) = taken
            && let Err(e) = part.outbox.heard(taken)
        {
            part.link = Link::Refused(format!("the step cannot go on with this command: {e}"));
            return None;
        }
        for frame in part.outbox.rest() {
            let _ = writer.write_all(frame).await; // a connection that is gone is told by its reader
        }
        if taken.is_none() {
            part.outbox = Outbox::default();
            part.heard.store(0, Ordering::Relaxed);
            // Credit that was on its way to a connection that was lost does not come.
            part.outstanding = 0;
        }
        part.met = true;
        part.link = Link::Open(writer);
        taken.map(|_| Arc::clone(&part.heard))
    }

    /// Whether frames of a node were heard that it will not send again.
    pub fn goes_on(&self, at: usize) -> bool {
        self.parts.get(at).is_some_and(|part| part.resumed && part.heard.load(Ordering::Relaxed) > 0)
    }

    /// Says how many frames of a node were heard.
    pub async fn say_heard(&mut self, at: usize) {
        let Some(part) = self.parts.get_mut(at).filter(|part| part.resumed) else { return };
        if let Link::Open(writer) = &mut part.link {
            stream::send(writer, &Frame::Heard(part.heard.load(Ordering::Relaxed))).await;
        }
    }

    /// A node has heard so many of our frames.
    pub fn was_heard(&mut self, at: usize, count: u64) {
        if let Some(part) = self.parts.get_mut(at).filter(|part| part.resumed)
            && let Err(e) = part.outbox.heard(count)
        {
            part.link = Link::Refused(format!("the step does not count our frames as we do: {e}"));
        }
    }

    /// A node will not have us.
    pub fn refused(&mut self, at: usize, why: String) {
        if let Some(part) = self.parts.get_mut(at) {
            part.link = Link::Refused(why);
        }
    }

    /// A connection is gone: another one is tried, unless the part has ended.
    pub fn closed(&mut self, at: usize) {
        let Some(part) = self.parts.get(at).filter(|p| !matches!(p.link, Link::Refused(_))) else { return };
        let link = match part.ended {
            None => Link::Trying(self.try_one(at, &part.heard)),
            Some(_) => Link::Over,
        };
        if let Some(part) = self.parts.get_mut(at) {
            part.link = link;
        }
    }

    /// All tasks of a node run.
    pub fn started(&mut self, at: usize) {
        if let Some(part) = self.parts.get_mut(at) {
            part.started = true;
        }
    }

    /// The step ended on a node.
    pub fn ended(&mut self, at: usize, exit: StepExit) {
        if let Some(part) = self.parts.get_mut(at) {
            part.ended = Some(exit);
            if let Link::Trying(task) = &part.link {
                task.abort();
            }
            part.link = Link::Over;
        }
    }

    /// A node's tasks took this much of their input.
    pub fn credit(&mut self, at: usize, bytes: u32) {
        if let Some(part) = self.parts.get_mut(at) {
            part.outstanding = part.outstanding.saturating_sub(usize::try_from(bytes).unwrap_or(usize::MAX));
        }
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

    /// Sends a frame, now or when the node's part is there.
    pub async fn send(&mut self, to: To, frame: Frame) {
        let mut bytes = Vec::new();
        if encode(&frame, &mut bytes).is_err() {
            return; // none that we send is too long
        }
        for at in self.at(to) {
            let Some(part) = self.parts.get_mut(at) else { continue };
            if let Frame::Stdin { data, .. } = &frame {
                part.outstanding += data.len();
            }
            let open = if let Link::Open(writer) = &mut part.link {
                let _ = writer.write_all(&bytes).await; // a connection that is gone is told by its reader
                true
            } else {
                false
            };
            if !open || part.resumed {
                part.outbox.push(bytes.clone());
            }
        }
    }

    /// Whether every node that is to read it takes one more chunk of input.
    pub fn have_room(&self, task: u32) -> bool {
        let full = |at: usize| {
            self.parts.get(at).is_none_or(|part| {
                part.outstanding + MAX_PAYLOAD > STDIN_WINDOW || !matches!(part.link, Link::Open(_))
            })
        };
        !self.at(To::Task(task)).any(full)
    }

    /// Whether every part has told its end.
    pub fn all_ended(&self) -> bool {
        self.parts.iter().all(|p| p.ended.is_some())
    }

    /// The first node that refuses us although its part has not ended, and why; where every other part has ended, or
    /// it never took us.
    pub fn refusal(&self) -> Option<(usize, &str)> {
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

    /// Whether there is no connection to a part that has not ended.
    pub fn any_trying(&self) -> bool {
        self.parts.iter().any(|p| matches!(p.link, Link::Trying(_)))
    }

    /// Nodes whose part never took us, and has not told its end.
    pub fn never_met(&self) -> Vec<&str> {
        let parts = self.parts.iter().enumerate();
        parts.filter(|(_, p)| !p.met && p.ended.is_none()).map(|(at, _)| self.name(at)).collect()
    }

    /// Nodes that keep for us what we have not heard, to which the connection is lost.
    pub fn lost(&self) -> Vec<&str> {
        let lost = |p: &Part| p.resumed && p.ended.is_none() && matches!(p.link, Link::Trying(_));
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
