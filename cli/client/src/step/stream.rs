//! The connection to a step's supervisor, and the two threads that keep a slow terminal or a slow producer from
//! holding up anything else: one reads stdin, one writes stdout and stderr.

use super::labels::Labels;
use super::queue::Rooms;
use super::sinks::{Lost, Sinks};
use berth_model::effective::Effective;
use berth_model::{NodeName, StepKey};
use berth_stream::asynchronous::{read_frame, write_frame};
use berth_stream::{Attach, Frame, Hearing, MAX_PAYLOAD};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{mpsc, oneshot};

/// Chunks of output that may wait for a slow reader: 64 of 64 KiB at most.
const WAITING: usize = 64;
/// Bytes that all connections of a step may have read and not yet taken apart, and the most of one. One that is full waits at its node.
const READ_AHEAD: usize = 64 << 20;
const READ_AHEAD_OF_ONE: usize = 4 * MAX_PAYLOAD;

/// Why there is no connection to the step yet.
#[derive(Debug)]
pub enum NotAttached {
    /// The other side says why; trying again does not help.
    Refused(String),
    /// The agent is away or went away: to be tried again.
    Away(String),
}

/// Connects to a step's part on a node; `first` says to which, and how. Comes back when the step's supervisor has taken the connection, with how
/// many of our frames it has heard where it goes on where we were.
pub async fn attach(
    socket: &Path,
    node: Option<&NodeName>,
    first: &Frame,
) -> Result<(UnixStream, Option<u64>), NotAttached> {
    let away = |e: String| NotAttached::Away(format!("{}: {e}", socket.display()));
    let mut stream = UnixStream::connect(socket).await.map_err(|e| away(e.to_string()))?;
    if let Some(node) = node {
        write_frame(&mut stream, &Frame::Node(node.clone())).await.map_err(|e| away(e.to_string()))?;
    }
    write_frame(&mut stream, first).await.map_err(|e| away(e.to_string()))?;
    match read_frame(&mut stream).await {
        Ok(Some(Frame::Accepted)) => Ok((stream, None)),
        Ok(Some(Frame::Resumed(taken))) => Ok((stream, Some(taken))),
        Ok(Some(Frame::Refused(why))) => Err(NotAttached::Refused(why)),
        Ok(Some(_)) => {
            Err(away("unexpected answer; use the same version of berth on both sides".to_string()))
        }
        Ok(None) => Err(away("the connection was closed before the step answered".to_string())),
        Err(e) => Err(away(e.to_string())),
    }
}

/// Asks a node's agent what a step has there. The error is in the agent's words.
pub async fn describe(socket: &Path, node: Option<&NodeName>, key: StepKey) -> Result<Effective, String> {
    let away = |e: String| format!("{}: {e}", socket.display());
    let mut stream = UnixStream::connect(socket).await.map_err(|e| away(e.to_string()))?;
    if let Some(node) = node {
        write_frame(&mut stream, &Frame::Node(node.clone())).await.map_err(|e| away(e.to_string()))?;
    }
    write_frame(&mut stream, &Frame::Describe(Attach::from(key))).await.map_err(|e| away(e.to_string()))?;
    match read_frame(&mut stream).await {
        Ok(Some(Frame::Description(what))) => Ok(*what),
        Ok(Some(Frame::Refused(why))) => Err(why),
        Ok(Some(_)) => {
            Err(away("unexpected answer; use the same version of berth on both sides".to_string()))
        }
        Ok(None) => Err(away("the connection was closed without an answer".to_string())),
        Err(e) => Err(away(e.to_string())),
    }
}

/// Asks this machine's agent how many connections we may have; none where it is of a version that does not say so, or away.
pub async fn places(socket: &Path) -> Option<u64> {
    let mut stream = UnixStream::connect(socket).await.ok()?;
    write_frame(&mut stream, &Frame::Places(None)).await.ok()?;
    match read_frame(&mut stream).await {
        Ok(Some(Frame::Places(most))) => most,
        Ok(_) | Err(_) => None,
    }
}

/// What comes from a node's part of a step besides its output, and from the writer of that output.
#[derive(Debug)]
pub enum Event {
    /// There is a connection; with how many of our frames were heard, where it goes on where the last one was.
    Attached(UnixStream, Option<u64>),
    /// There will be none: why.
    Refused(String),
    /// A frame other than output.
    Frame(Frame),
    /// So many frames were heard, which is to be said.
    Heard(u64),
    /// The connection is gone.
    Closed,
    /// Nobody reads our stdout any more, or a file of ours takes no more.
    OutputGone,
    /// What a program's connection to our display says, for its node.
    Display(Frame),
}

/// Output on its way.
#[derive(Debug)]
struct Piece {
    stderr: bool,
    task: u32,
    data: Vec<u8>,
}

/// Tasks whose output is wanted, where not all are (`--output=2`).
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// Of standard output.
    pub stdout: Option<u32>,
    /// Of standard error.
    pub stderr: Option<u32>,
}

/// Where output goes, and when all of it is written.
#[derive(Debug)]
pub struct Output {
    pieces: mpsc::Sender<Piece>,
    wanted: Wanted,
    /// Resolves when the writer has written everything it was given, and its senders are gone; with what kept
    /// output from being written.
    pub done: oneshot::Receiver<Option<Lost>>,
}

impl Output {
    /// Starts the writer. With `labels`, lines carry the number of their task.
    pub fn start(
        labels: Option<Labels>,
        wanted: Wanted,
        sinks: Sinks,
        events: mpsc::Sender<(usize, Event)>,
    ) -> io::Result<Output> {
        let (pieces, queue) = mpsc::channel(WAITING);
        let (finished, done) = oneshot::channel();
        std::thread::Builder::new().name("output".to_string()).spawn(move || {
            let lost = write_all(queue, labels, sinks, &events);
            let _ = finished.send(lost); // nobody waits: the command is ending
        })?;
        Ok(Output { pieces, wanted, done })
    }

    /// Follows the connection to a node until its end; output goes to the writer, the rest becomes events of that node.
    /// `among`: how many connections there are. `heard`: counts the frames, where the supervisor does. `rooms`: what it has for another node
    /// waits until there is room for it; what is behind that waits at the node.
    pub fn pump(
        &self,
        (node, among): (usize, usize),
        reader: OwnedReadHalf,
        events: mpsc::Sender<(usize, Event)>,
        heard: Option<Arc<AtomicU64>>,
        rooms: Rooms,
    ) {
        let (pieces, wanted) = (self.pieces.clone(), self.wanted);
        let ahead = (READ_AHEAD / among.max(1)).clamp(4096, READ_AHEAD_OF_ONE);
        tokio::spawn(async move {
            let mut reader = BufReader::with_capacity(ahead, reader);
            let mut hearing = Hearing::default();
            loop {
                let read = tokio::select! {
                    read = read_frame(&mut reader) => read,
                    // Nobody follows the step any more: whoever waits for its output to be written waits for no connection.
                    () = events.closed() => return,
                };
                let frame = match read {
                    Ok(Some(frame)) => frame,
                    Ok(None) | Err(_) => {
                        let _ = events.send((node, Event::Closed)).await; // the command is ending
                        return;
                    }
                };
                if let Frame::Peer { node: to, data, .. } = &frame {
                    tokio::select! {
                        () = rooms.take(*to, data.len()) => {}
                        () = events.closed() => return,
                        // Whoever has the node's other side would wait for us to come back. This frame was not heard: it comes again.
                        () = gone(reader.get_ref()), if heard.is_some() => {
                            let _ = events.send((node, Event::Closed)).await; // the command is ending
                            return;
                        }
                    }
                }
                let mut say = None;
                if let Some(heard) = heard.as_ref().filter(|_| !matches!(frame, Frame::Heard(_))) {
                    let now = heard.fetch_add(1, Ordering::Relaxed) + 1;
                    let bytes = match &frame {
                        Frame::Stdout { data, .. }
                        | Frame::Stderr { data, .. }
                        | Frame::DisplayData { data, .. } => data.len(),
                        _ => 0,
                    };
                    say = hearing.came(bytes, now).then_some(now);
                }
                let piece = match frame {
                    Frame::Stdout { task, data } => Some(Piece { stderr: false, task, data }),
                    Frame::Stderr { task, data } => Some(Piece { stderr: true, task, data }),
                    frame => {
                        // What goes on where it broke has an answer to our having heard it.
                        let last = heard.is_none() && matches!(frame, Frame::StepExit(_));
                        if events.send((node, Event::Frame(frame))).await.is_err() || last {
                            return;
                        }
                        None
                    }
                };
                if let Some(piece) = piece {
                    let only = if piece.stderr { wanted.stderr } else { wanted.stdout };
                    if only.is_none_or(|task| task == piece.task) && pieces.send(piece).await.is_err() {
                        return;
                    }
                }
                if let Some(count) = say
                    && events.send((node, Event::Heard(count))).await.is_err()
                {
                    return;
                }
            }
        });
    }

    /// No more connections: the writer ends when what is under way is written.
    pub fn close(self) -> oneshot::Receiver<Option<Lost>> {
        self.done
    }
}

/// Returns when the other side is gone, whatever of it was not read yet.
async fn gone(reader: &OwnedReadHalf) {
    loop {
        match reader.ready(Interest::READABLE).await {
            Ok(ready) if ready.is_read_closed() => return,
            // There is something to be read, which is to wait: look again from time to time, for the end alone.
            Ok(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            Err(_) => return,
        }
    }
}

/// Writes until there is nothing more to come. Gives what kept output from being written, unless its reader left on purpose.
fn write_all(
    mut queue: mpsc::Receiver<Piece>,
    mut labels: Option<Labels>,
    mut sinks: Sinks,
    events: &mpsc::Sender<(usize, Event)>,
) -> Option<Lost> {
    let mut failure = None;
    let mut put = |stderr: bool, bytes: &[u8]| {
        if let Some(lost) = sinks.write(stderr, bytes) {
            let _ = events.blocking_send((0, Event::OutputGone)); // the command is ending
            failure = failure.take().or(Some(lost).filter(|lost| !lost.left));
        }
    };
    while let Some(piece) = queue.blocking_recv() {
        match &mut labels {
            Some(labels) => put(piece.stderr, &labels.feed(piece.task, piece.stderr, &piece.data)),
            None => put(piece.stderr, &piece.data),
        }
    }
    for (stderr, line) in labels.as_mut().map(Labels::finish).unwrap_or_default() {
        put(stderr, &line);
    }
    failure.or(sinks.close())
}

/// Starts reading stdin; `None` in the channel's end is the end of input.
pub fn read_stdin() -> io::Result<mpsc::Receiver<Vec<u8>>> {
    let (chunks, queue) = mpsc::channel(1);
    std::thread::Builder::new().name("input".to_string()).spawn(move || {
        let mut stdin = io::stdin().lock();
        loop {
            let mut chunk = vec![0; MAX_PAYLOAD];
            match stdin.read(&mut chunk) {
                Ok(0) => return,
                Ok(n) => {
                    chunk.truncate(n);
                    if chunks.blocking_send(chunk).is_err() {
                        return;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(5))
                }
                Err(_) => return,
            }
        }
    })?;
    Ok(queue)
}

/// Prints a line to stderr, past the writer: messages are not output of tasks.
pub fn message(text: &str) {
    // By one call: tasks' own words come in between otherwise.
    let _ = io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::queue::PEER_WINDOW;

    #[tokio::test]
    async fn a_connection_that_breaks_while_it_waits_for_room_is_told_and_goes_on_with_what_waited() {
        let (events, mut queue) = mpsc::channel(4);
        let output = Output::start(None, Wanted::default(), Sinks::default(), events.clone()).unwrap();
        let (rooms, heard) = (Rooms::new(2), Arc::<AtomicU64>::default());
        rooms.take(1, PEER_WINDOW).await;
        let mut next = async || {
            tokio::time::timeout(Duration::from_secs(10), queue.recv())
                .await
                .expect("nothing is told")
                .unwrap()
        };
        let frame = Frame::Peer { node: 1, last: true, data: vec![7; 100] };
        let connect = || {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let heard = Some(Arc::clone(&heard));
            output.pump((0, 2), ours.into_split().0, events.clone(), heard, rooms.clone());
            theirs
        };
        let mut theirs = connect();
        write_frame(&mut theirs, &frame).await.unwrap();
        write_frame(&mut theirs, &frame).await.unwrap();
        drop(theirs);
        assert!(matches!(next().await, (0, Event::Closed)));
        assert_eq!(heard.load(Ordering::Relaxed), 0, "it is to come again");
        // The next connection begins with it.
        let mut theirs = connect();
        write_frame(&mut theirs, &frame).await.unwrap();
        rooms.give(1, PEER_WINDOW);
        let (_, told) = next().await;
        assert!(matches!(told, Event::Frame(told) if told == frame));
        assert_eq!(heard.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_connection_that_stays_open_holds_up_nobody_who_has_heard_all() {
        let (events, queue) = mpsc::channel(1);
        let output = Output::start(None, Wanted::default(), Sinks::default(), events.clone()).unwrap();
        let mut theirs = Vec::new();
        for node in 0..3 {
            let (ours, other) = UnixStream::pair().unwrap();
            theirs.push(other);
            output.pump((node, 3), ours.into_split().0, events.clone(), Some(Arc::default()), Rooms::new(3));
        }
        // Two of them are closed, and there is room to tell of one.
        theirs.truncate(1);
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop((events, queue));
        let lost = tokio::time::timeout(Duration::from_secs(10), output.close()).await;
        assert!(lost.unwrap().unwrap().is_none());
    }
}
