//! The connections of one step: one for each of its nodes, tried again until the node's part of the step has ended.

use super::queue::{Item, Queue, Rooms};
use super::stream::{self, Event, NotAttached};
use crate::error::{Failure, Kind};
use berth_model::launch::{Layout, StepExit};
use berth_stream::{ALL_TASKS, Attach, Frame, MAX_PAYLOAD, Resume, STDIN_WINDOW, Watch};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// Descriptors for everything that is no connection to a node.
const OTHERS: u64 = 256;

/// As many connections any agent lets a user have.
const FEW: u32 = 64;
/// What a user needs there beside a step's.
const BESIDE: u64 = 8;
/// How long an agent may take to say how many.
const SAYS: Duration = Duration::from_secs(2);

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

/// Has room for a connection to each node, and gives for how many there is. What tasks get of our limits was said before.
pub(super) fn make_room(nodes: usize) -> usize {
    let wanted = u64::try_from(nodes).unwrap_or(u64::MAX).saturating_add(OTHERS);
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|now| now < wanted) {
        let current = Some(limit.maximum.map_or(wanted, |most| most.min(wanted)));
        let _ = setrlimit(Resource::Nofile, Rlimit { current, ..limit });
    }
    let room = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).saturating_sub(OTHERS);
    usize::try_from(room).unwrap_or(usize::MAX).max(1)
}

/// Whether there could be room for a connection to each of so many nodes: asked before there is a step.
///
/// # Errors
/// Why there could not.
pub fn could_have_room(nodes: u32) -> Result<(), Failure> {
    let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX).saturating_sub(OTHERS);
    if u64::from(nodes) <= most.max(1) {
        return Ok(());
    }
    let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    Err(Failure::new(Kind::User, too_many(count(nodes.into()), count(most.max(1)))))
}

/// Whether this machine's agent, which carries them, lets us have so many: asked before there is a step. An agent of a version that does not say so,
/// and one that is away, are found out about later.
///
/// # Errors
/// Why it does not.
pub async fn could_be_carried(socket: &Path, nodes: u32) -> Result<(), Failure> {
    if nodes <= FEW {
        return Ok(());
    }
    let told = tokio::time::timeout(SAYS, stream::places(socket)).await.ok().flatten();
    match told.filter(|most| u64::from(nodes).saturating_add(BESIDE) > *most) {
        None => Ok(()),
        Some(most) => Err(Failure::new(
            Kind::User,
            format!(
                "a step over {nodes} nodes needs a connection to each through this machine's agent, which lets one user have {most}, an eighth of its \
                 limit on open files (LimitNOFILE= of its service), and {BESIDE} of these are for commands beside it: take fewer nodes, or have the limit raised"
            ),
        )),
    }
}

/// Why there are no connections to so many nodes.
fn too_many(nodes: usize, room: usize) -> String {
    format!(
        "a step over {nodes} nodes needs a connection to each, and there is room for {room} by this process's limit on open files (ulimit -Hn): \
         raise it to {} at least, take fewer nodes, or run the step from a batch script on a node whose limit is higher",
        u64::try_from(nodes).unwrap_or(u64::MAX).saturating_add(OTHERS)
    )
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

    /// Whether a node's tasks do not run yet, as far as we know, and there is no connection to it: nothing would tell us if it were gone.
    pub fn is_unheard(&self, at: usize) -> bool {
        self.parts
            .get(at)
            .is_some_and(|part| part.ended.is_none() && !part.started && matches!(part.link, Link::Trying(_)))
    }

    /// The nodes of which that is so.
    pub fn unheard(&self) -> Vec<usize> {
        (0..self.parts.len()).filter(|at| self.is_unheard(*at)).collect()
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
mod tests {
    use super::*;
    use crate::step::queue::PEER_WINDOW;
    use berth_model::ids::NodeName;
    use berth_stream::FENCE_PART;
    use berth_stream::asynchronous::{read_frame, write_frame};
    use tokio::io::AsyncReadExt;

    fn in_runtime(work: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
    }

    fn limit(most: u64) {
        let all = Some(most);
        setrlimit(Resource::Nofile, Rlimit { current: all, maximum: all }).unwrap();
    }

    #[test]
    fn more_nodes_than_open_files_are_refused_before_anything_is_made() {
        limit(OTHERS + 3);
        assert!(could_have_room(3).is_ok());
        let why = could_have_room(4).unwrap_err().to_string();
        assert!(why.contains("ulimit -Hn") && why.contains("4 nodes") && why.contains("260"), "{why}");
    }

    /// An agent that is asked once, and gives this answer.
    async fn asked(nodes: u32, answer: Option<Frame>) -> Result<(), Failure> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let agent = tokio::spawn(async move {
            let mut stream = listener.accept().await.unwrap().0;
            assert_eq!(read_frame(&mut stream).await.unwrap(), Some(Frame::Places(None)));
            if let Some(frame) = answer {
                write_frame(&mut stream, &frame).await.unwrap();
            }
        });
        let said = could_be_carried(&socket, nodes).await;
        agent.abort();
        said
    }

    #[test]
    fn more_nodes_than_the_agent_carries_for_one_user_are_refused_before_anything_is_made() {
        in_runtime(async {
            let places = |most| Some(Frame::Places(Some(most)));
            assert!(asked(92, places(100)).await.is_ok());
            let why = asked(93, places(100)).await.unwrap_err().to_string();
            assert!(
                why.contains("93 nodes") && why.contains("one user have 100") && why.contains("LimitNOFILE"),
                "{why}"
            );
            // Root, and agents that do not know the question.
            assert!(asked(u32::MAX, places(u64::MAX)).await.is_ok());
            assert!(asked(5000, None).await.is_ok());
            assert!(asked(5000, Some(Frame::Refused("expected Attach".into()))).await.is_ok());
            // Of few nothing is asked.
            assert!(could_be_carried(Path::new("/nowhere/agent.sock"), FEW).await.is_ok());
        });
    }

    /// Where it shows only when the step is there, none of its nodes is left to wait for a connection that cannot come.
    #[test]
    fn a_step_over_more_nodes_than_open_files_is_given_up_whole() {
        in_runtime(async {
            limit(OTHERS + 3);
            let layout = |count: u32| Layout {
                nodes: (0..count).map(|n| NodeName(format!("n{n}"))).collect(),
                tasks: (0..count).map(|n| vec![n]).collect(),
                cpus: vec![1; count as usize],
            };
            let (events, _held) = mpsc::channel(1);
            let connect = |count| {
                Nodes::connect(
                    "/nowhere/agent.sock".into(),
                    vec![Frame::Controller],
                    layout(count),
                    events.clone(),
                )
            };
            let few = connect(3);
            assert!(few.refusal().is_none() && !few.have_room(ALL_TASKS) && few.any_trying());
            few.abort();
            let many = connect(4);
            let (at, why) = many.refusal().unwrap();
            assert!(at == 0 && why.contains("ulimit -Hn"), "{why}");
            assert!(!many.any_trying() && many.have_room(ALL_TASKS));
        });
    }

    /// The connections of a step over two nodes, of one task each, and the nodes' ends of them.
    fn two(resumes: bool) -> (Nodes, [tokio::net::UnixStream; 2], mpsc::Receiver<(usize, Event)>) {
        let layout =
            Layout { nodes: vec!["n0".into(), "n1".into()], tasks: vec![vec![0], vec![1]], cpus: vec![1, 1] };
        let (events, held) = mpsc::channel(1);
        let mut nodes = Nodes::connect("/nowhere/agent.sock".into(), vec![Frame::Controller], layout, events);
        let mut open = |at| {
            let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
            nodes.opened(at, ours.into_split().1, resumes.then_some(0));
            theirs
        };
        let theirs = [open(0), open(1)];
        (nodes, theirs, held)
    }

    /// The next frames of a node, while what is for it is written.
    async fn told(nodes: &mut Nodes, theirs: &mut tokio::net::UnixStream, count: usize) -> Vec<Frame> {
        let mut frames = Vec::new();
        for _ in 0..count {
            let mut read = std::pin::pin!(read_frame(&mut *theirs));
            frames.push(loop {
                tokio::select! {
                    frame = &mut read => break frame.unwrap().unwrap(),
                    () = nodes.flush(), if nodes.is_waiting() => {}
                }
            });
        }
        frames
    }

    fn piece(byte: u8) -> Frame {
        Frame::Fence { number: 1, last: false, data: vec![byte; FENCE_PART] }
    }

    #[test]
    fn a_node_that_takes_nothing_holds_up_no_other_and_loses_nothing() {
        in_runtime(async {
            for resumes in [false, true] {
                let (mut nodes, [mut stopped, mut well], _held) = two(resumes);
                // As much as a fence may have. The other node takes it meanwhile.
                let pieces = 64 * 16;
                for n in 0..pieces {
                    nodes.send(To::All, &piece(u8::try_from(n % 251).unwrap()));
                    let frames = told(&mut nodes, &mut well, 1).await;
                    assert_eq!(frames, [piece(u8::try_from(n % 251).unwrap())]);
                }
                nodes.send(To::All, &Frame::Signal(15));
                assert_eq!(told(&mut nodes, &mut well, 1).await, [Frame::Signal(15)]);
                assert!(nodes.is_waiting() && !nodes.refuses(0));
                let frames = told(&mut nodes, &mut stopped, pieces + 1).await;
                for (n, frame) in frames.iter().take(pieces).enumerate() {
                    assert!(*frame == piece(u8::try_from(n % 251).unwrap()), "{n}");
                }
                assert_eq!(frames.last(), Some(&Frame::Signal(15)));
                assert!(!nodes.is_waiting());
            }
        });
    }

    /// What was not taken whole comes whole on the next connection.
    #[test]
    fn what_a_connection_did_not_take_is_for_the_next_one() {
        in_runtime(async {
            let (mut nodes, [mut lost, _well], _held) = two(false);
            for n in 0..40 {
                nodes.send(To::Node(0), &piece(n));
            }
            assert_eq!(told(&mut nodes, &mut lost, 1).await, [piece(0)]);
            while tokio::time::timeout(Duration::ZERO, nodes.flush()).await.is_ok() {}
            drop(lost);
            nodes.closed(0);
            nodes.send(To::Node(0), &Frame::Signal(2));
            let (ours, mut theirs) = tokio::net::UnixStream::pair().unwrap();
            nodes.opened(0, ours.into_split().1, None);
            let Frame::Fence { data, .. } = told(&mut nodes, &mut theirs, 1).await.remove(0) else {
                panic!()
            };
            let first = data[0];
            assert!(first > 0 && first < 40, "{first}");
            for n in first + 1..40 {
                assert_eq!(told(&mut nodes, &mut theirs, 1).await, [piece(n)]);
            }
            assert_eq!(told(&mut nodes, &mut theirs, 1).await, [Frame::Signal(2)]);
        });
    }

    #[test]
    fn whoever_speaks_to_a_node_that_takes_nothing_waits_and_nobody_else() {
        in_runtime(async {
            let (mut nodes, [mut stopped, _well], _held) = two(true);
            let rooms = nodes.rooms();
            let data = vec![1; FENCE_PART];
            let mut sent = 0;
            let takes = |to| {
                let rooms = rooms.clone();
                async move { tokio::time::timeout(Duration::ZERO, rooms.take(to, FENCE_PART)).await.is_ok() }
            };
            while takes(0).await {
                nodes.send(To::Node(0), &Frame::Peer { node: 1, last: true, data: data.clone() });
                sent += 1;
                assert!(sent < 1000, "without bound");
            }
            assert!(sent >= PEER_WINDOW / FENCE_PART && takes(1).await);
            told(&mut nodes, &mut stopped, sent).await;
            assert!(!nodes.is_waiting() && takes(0).await, "it took all");
            while takes(0).await {}
            nodes.let_go();
            assert!(takes(0).await, "a step that ends waits for no room");
        });
    }

    #[test]
    fn a_node_that_takes_nothing_of_a_display_is_given_up_and_holds_nothing_up() {
        in_runtime(async {
            let (mut nodes, [_silent, mut well], _held) = two(false);
            let frame = Frame::DisplayData { channel: 1, data: vec![0; MAX_PAYLOAD / 2] };
            let mut sent = 0;
            while !nodes.refuses(0) {
                nodes.send(To::Node(0), &frame);
                sent += 1;
                assert!(sent < 2000, "without bound");
            }
            assert!(sent > 1000, "an honest one has so much on its way");
            assert!(!nodes.is_open(0) && !nodes.is_waiting(), "nothing of it stays");
            // It is told nothing more, and holds up nothing that is for others.
            nodes.send(To::Node(0), &frame);
            nodes.send(To::All, &Frame::Signal(15));
            assert_eq!(told(&mut nodes, &mut well, 1).await, [Frame::Signal(15)]);
            assert_eq!(nodes.refusal(), None, "the other one goes on");
            nodes.refused(1, "no".into());
            let (at, why) = nodes.refusal().unwrap();
            assert!(at == 0 && why.contains("--x11"), "{at}: {why}");
        });
    }

    #[test]
    fn a_node_that_is_lost_before_its_tasks_run_is_looked_for_again() {
        in_runtime(async {
            let (mut nodes, [lost, _well], _held) = two(true);
            assert!(nodes.unheard().is_empty() && nodes.never_met().is_empty());
            drop(lost);
            nodes.closed(0);
            assert_eq!(nodes.unheard(), [0]);
            assert!(nodes.was_met(0) && nodes.never_met().is_empty());
            let (ours, _theirs) = tokio::net::UnixStream::pair().unwrap();
            nodes.opened(0, ours.into_split().1, Some(0));
            assert!(!nodes.is_unheard(0), "it is back");
            nodes.started(0);
            nodes.closed(0);
            assert!(nodes.unheard().is_empty(), "its tasks run, whatever becomes of the connection");
            nodes.closed(1);
            nodes.ended(1, crate::step::hung::given_up(true));
            assert!(nodes.unheard().is_empty(), "it is over");
        });
    }

    #[test]
    fn parts_are_counted_as_they_change() {
        in_runtime(async {
            let layout = Layout {
                nodes: ["n0", "n1"].map(NodeName::from).to_vec(),
                tasks: vec![vec![0], vec![1]],
                cpus: vec![1, 1],
            };
            let (events, _held) = mpsc::channel(1);
            let mut nodes =
                Nodes::connect("/nowhere/agent.sock".into(), vec![Frame::Controller], layout, events);
            for at in 0..2 {
                assert!(!nodes.have_room(ALL_TASKS));
                let (ours, mut other) = tokio::net::UnixStream::pair().unwrap();
                nodes.opened(at, ours.into_split().1, None);
                tokio::spawn(async move {
                    let mut sink = vec![0; MAX_PAYLOAD];
                    while other.read(&mut sink).await.is_ok_and(|n| n > 0) {}
                });
            }
            assert!(nodes.have_room(ALL_TASKS));
            let data = vec![0; MAX_PAYLOAD / 2];
            for _ in 0..STDIN_WINDOW / data.len() {
                nodes.send(To::Task(1), &Frame::Stdin { task: 1, data: data.clone() });
            }
            assert!(!nodes.have_room(ALL_TASKS) && !nodes.have_room(1) && nodes.have_room(0));
            nodes.credit(1, u32::try_from(STDIN_WINDOW).unwrap());
            assert!(nodes.have_room(ALL_TASKS));
            nodes.refused(0, "no".into());
            assert_eq!(nodes.refusal(), None, "the other one goes on");
            nodes.refused(1, "nor here".into());
            assert_eq!(nodes.refusal(), Some((0, "no")));
            assert!(!nodes.all_ended());
        });
    }
}
