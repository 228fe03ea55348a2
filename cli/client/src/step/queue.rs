//! What is to be sent to one node: written as its connection takes it, so that a node that takes nothing holds up nobody else, and kept
//! until it is heard where a connection goes on where the last one was.

use berth_stream::{DISPLAY_WINDOW, Frame, NotKept, Outbox, encode};
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::Semaphore;

/// Bytes that PMIx servers of other nodes may have on their way to one: whoever reads from them waits for more.
pub(super) const PEER_WINDOW: usize = 1 << 20;
/// For the connections to our display that a node may have, each with a window of its own: twice that, as small frames cost more than their bytes.
const DISPLAY_MOST: usize = 2 * 128 * DISPLAY_WINDOW;
/// Most bytes that wait for one node. Input, display and PMIx servers have windows, and two fences may be on their way at most (64 MiB each):
/// an honest one never meets this.
const MOST: usize = 256 << 20;
/// What a frame costs beside its bytes.
const BESIDE: usize = 48;
/// Most bytes that one node takes before it is the next one's turn.
const TURN: usize = 1 << 20;

/// What a frame on its way is, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// So many bytes of input.
    Input(usize),
    /// So many bytes of another node's PMIx server.
    Peer(usize),
    Display,
    /// How much we have heard: a later one says it all.
    Heard,
    Other,
}

/// A frame on its way. One that is for many nodes is there once.
#[derive(Clone, Debug)]
pub(super) struct Item {
    bytes: Arc<[u8]>,
    what: What,
}

impl AsRef<[u8]> for Item {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Item {
    /// None where the frame is too long, which none is that we send.
    pub(super) fn new(frame: &Frame) -> Option<Item> {
        let mut bytes = Vec::new();
        encode(frame, &mut bytes).ok()?;
        let what = match frame {
            Frame::Stdin { data, .. } => What::Input(data.len()),
            Frame::Peer { data, .. } => What::Peer(data.len()),
            Frame::DisplayData { .. } | Frame::DisplayCredit { .. } | Frame::DisplayEnd { .. } => {
                What::Display
            }
            Frame::Heard(_) => What::Heard,
            _ => What::Other,
        };
        Some(Item { bytes: bytes.into(), what })
    }

    /// What it takes while it waits.
    fn cost(&self) -> usize {
        self.bytes.len() + BESIDE
    }

    /// Bytes of input in it.
    pub(super) fn input(&self) -> usize {
        match self.what {
            What::Input(bytes) => bytes,
            _ => 0,
        }
    }
}

/// What is to be sent to a node.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// What waits for a connection; of one that goes on where the last one was, also what was not heard yet.
    outbox: Outbox<Item>,
    /// What the connection has not taken yet, in order.
    unwritten: VecDeque<Item>,
    /// How much it has of the first of these.
    written: usize,
    waiting: usize,
    of_display: usize,
    /// Bytes of other nodes' PMIx servers that were not written since the last time that nothing waited.
    of_peers: usize,
    open: bool,
    resumed: bool,
}

impl Queue {
    /// There is a connection. `taken`: how many of our frames were heard, where it goes on where the last one was.
    ///
    /// # Errors
    /// They cannot have been.
    pub(super) fn opened(&mut self, taken: Option<u64>) -> Result<(), NotKept> {
        self.closed();
        if let Some(taken) = taken {
            self.outbox.heard(taken)?;
        }
        (self.open, self.resumed) = (true, taken.is_some());
        let again: Vec<Item> = self.outbox.frames().cloned().collect();
        if !self.resumed {
            self.outbox = Outbox::default();
        }
        again.into_iter().for_each(|item| self.wait(item));
        Ok(())
    }

    /// The connection is gone: what it did not take whole is for the next one.
    pub(super) fn closed(&mut self) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        (self.written, self.waiting, self.of_display) = (0, 0, 0);
        let rest = std::mem::take(&mut self.unwritten);
        if !self.resumed {
            rest.into_iter().filter(|item| item.what != What::Heard).for_each(|item| self.outbox.push(item));
        }
    }

    /// Whether the connection goes on where the last one was.
    pub(super) fn resumed(&self) -> bool {
        self.resumed
    }

    /// Whether something waits for a connection that is there.
    pub(super) fn is_waiting(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// Bytes of input that wait.
    pub(super) fn input(&self) -> usize {
        self.unwritten.iter().map(Item::input).sum()
    }

    fn wait(&mut self, item: Item) {
        self.waiting += item.cost();
        if item.what == What::Display {
            self.of_display += item.cost();
        }
        self.unwritten.push_back(item);
    }

    /// One more.
    pub(super) fn push(&mut self, item: Item) {
        if let What::Peer(bytes) = item.what {
            self.of_peers += bytes;
        }
        if !self.open || self.resumed {
            self.outbox.push(item.clone());
        }
        if self.open {
            self.wait(item);
        }
    }

    /// Says how much was heard. It is not counted, and not said again.
    pub(super) fn say_heard(&mut self, count: u64) {
        let Some(item) = Item::new(&Frame::Heard(count)).filter(|_| self.open) else { return };
        let begun = self.written > 0 && self.unwritten.len() == 1;
        match self.unwritten.back_mut() {
            Some(last) if last.what == What::Heard && !begun => *last = item,
            _ => self.wait(item),
        }
    }

    /// The other side has heard so many.
    ///
    /// # Errors
    /// It cannot have.
    pub(super) fn heard(&mut self, count: u64) -> Result<(), NotKept> {
        self.outbox.heard(count)
    }

    /// Why a node gets nothing more, where so much waits for it as for none that takes what is its own.
    pub(super) fn overfull(&self) -> Option<String> {
        let end = "look there for what its berth-step does, or end the step (scancel)";
        if self.of_display > DISPLAY_MOST {
            return Some(format!(
                "the node takes nothing of what the display answers (--x11), and {DISPLAY_MOST} bytes of it wait: {end}"
            ));
        }
        (self.waiting.max(self.outbox.bytes()) > MOST).then(|| {
            format!("the node takes nothing of what it is told, and {MOST} bytes wait for it: {end}")
        })
    }

    /// Bytes of other nodes' PMIx servers for which there is room again: when all was written.
    pub(super) fn freed(&mut self) -> usize {
        if self.open && self.unwritten.is_empty() { std::mem::take(&mut self.of_peers) } else { 0 }
    }

    /// Writes what the connection takes at once.
    pub(super) fn write_now(&mut self, writer: &OwnedWriteHalf) {
        let _ = self.write(|bytes| match writer.try_write(bytes) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => Poll::Pending, // it is waited for with all others
            done => Poll::Ready(done),
        });
    }

    /// Writes what the connection takes; ready when that was something, or when the connection is gone.
    pub(super) fn poll_write(&mut self, writer: &mut OwnedWriteHalf, cx: &mut Context<'_>) -> Poll<()> {
        self.write(|bytes| Pin::new(&mut *writer).poll_write(cx, bytes))
    }

    fn write(&mut self, mut write: impl FnMut(&[u8]) -> Poll<io::Result<usize>>) -> Poll<()> {
        let mut turn = 0;
        while turn < TURN
            && let Some(first) = self.unwritten.front()
        {
            match write(first.bytes.get(self.written..).unwrap_or_default()) {
                Poll::Ready(Ok(n)) if n > 0 => {
                    turn += n;
                    self.took(n);
                }
                // Its reader tells.
                Poll::Ready(_) => {
                    self.closed();
                    return Poll::Ready(());
                }
                Poll::Pending if turn == 0 => return Poll::Pending,
                Poll::Pending => return Poll::Ready(()),
            }
        }
        Poll::Ready(())
    }

    fn took(&mut self, bytes: usize) {
        self.written += bytes;
        let whole = self.unwritten.front().is_some_and(|first| first.bytes.len() <= self.written);
        if whole && let Some(first) = self.unwritten.pop_front() {
            self.written = 0;
            self.waiting -= first.cost();
            if first.what == What::Display {
                self.of_display -= first.cost();
            }
        }
    }

    /// The node's part is over: what waits is still said as far as it is taken, so that its supervisor knows what we heard.
    pub(super) fn finish(&mut self, mut writer: OwnedWriteHalf) {
        let (rest, mut from) = (std::mem::take(&mut self.unwritten), self.written);
        *self = Queue { resumed: self.resumed, ..Queue::default() };
        if rest.is_empty() {
            return;
        }
        tokio::spawn(async move {
            for item in rest {
                let bytes = item.bytes.get(from..).unwrap_or_default();
                if writer.write_all(bytes).await.is_err() {
                    return;
                }
                from = 0;
            }
        });
    }
}

/// Room at each node for what other nodes' PMIx servers say to it.
#[derive(Clone, Debug)]
pub struct Rooms(Arc<[Semaphore]>);

impl Rooms {
    /// All of it, at so many nodes.
    pub fn new(nodes: usize) -> Rooms {
        Rooms((0..nodes).map(|_| Semaphore::new(PEER_WINDOW)).collect())
    }

    /// Waits for room for so many bytes, and takes it. At a node of which nothing is kept there is always some.
    pub async fn take(&self, node: u32, bytes: usize) {
        let Some(room) = usize::try_from(node).ok().and_then(|node| self.0.get(node)) else { return };
        let bytes = u32::try_from(bytes.min(PEER_WINDOW)).unwrap_or(u32::MAX);
        if let Ok(taken) = room.acquire_many(bytes).await {
            taken.forget();
        }
    }

    pub(super) fn give(&self, at: usize, bytes: usize) {
        if let Some(room) = self.0.get(at).filter(|room| bytes > 0 && !room.is_closed()) {
            room.add_permits(bytes);
        }
    }

    /// Nobody waits for this node any more.
    pub(super) fn close(&self, at: usize) {
        if let Some(room) = self.0.get(at) {
            room.close();
        }
    }

    /// Nobody waits for any node any more.
    pub(super) fn close_all(&self) {
        self.0.iter().for_each(Semaphore::close);
    }
}
