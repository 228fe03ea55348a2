//! The caller's display for programs on other machines (`--x11`): each of their connections comes in frames of its node's, and is one to the X
//! server from here. The cookie that they have is the step's, and good for nothing else; the display's own takes its place here.

use super::stream::Event;
use crate::x11::Carrier;
use berth_model::x11::setup::{MOST as LONGEST_SETUP, Setup};
use berth_stream::{DISPLAY_WINDOW, Frame, MAX_PAYLOAD};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

/// Connections of a node at once. Its supervisor has fewer.
const MOST: usize = 128;
/// Most bytes that are read at once.
const PIECE: usize = MAX_PAYLOAD / 2;
/// How long the X server may take to answer the connection itself.
const CONNECTS: Duration = Duration::from_secs(20);

/// A connection of a program.
struct Channel {
    /// To the task that writes to the X server; absent where nothing more comes.
    program: Option<DuplexStream>,
    /// How many bytes of the program's wait there.
    unwritten: usize,
    /// How many more bytes the node takes.
    room: Arc<Semaphore>,
    task: JoinHandle<()>,
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// All connections of a step's programs, by node and number.
pub struct Display {
    carriers: Vec<Carrier>,
    channels: BTreeMap<(usize, u32), Channel>,
    /// Nodes that did what no supervisor does: of theirs no connection is opened any more, and nothing is answered to that.
    false_ones: BTreeSet<usize>,
    events: mpsc::Sender<(usize, Event)>,
}

impl Display {
    /// None yet. `carriers`: to where connections are carried, and by which cookie; none where none are.
    pub fn new(carriers: Vec<Carrier>, events: mpsc::Sender<(usize, Event)>) -> Display {
        Display { carriers, channels: BTreeMap::new(), false_ones: BTreeSet::new(), events }
    }

    /// What a node says of a connection; gives what it is to be told at once.
    pub async fn hear(&mut self, at: usize, frame: Frame) -> Option<Frame> {
        match frame {
            Frame::DisplayOpen { channel } => {
                if self.false_ones.contains(&at) {
                    return None;
                }
                let there = self.channels.range((at, 0)..=(at, u32::MAX));
                let (open, ending): (Vec<_>, Vec<_>) = there.partition(|(_, known)| known.program.is_some());
                let (open, ending) = (open.len(), ending.len());
                if self.carriers.is_empty() || open >= MOST || self.channels.contains_key(&(at, channel)) {
                    return Some(self.violated(at, channel));
                }
                // Those that ended there may still be ending here.
                if open + ending >= MOST {
                    return Some(self.end(at, channel));
                }
                let (program, theirs) = duplex(DISPLAY_WINDOW);
                let room = Arc::new(Semaphore::new(DISPLAY_WINDOW));
                let line = Line { at, channel, room: Arc::clone(&room), events: self.events.clone() };
                let carriers = self.carriers.clone();
                let task = tokio::spawn(async move {
                    line.carry(theirs, &carriers).await;
                    line.tell(Frame::DisplayEnd { channel }).await;
                });
                let channel = (at, channel);
                self.channels.insert(channel, Channel { program: Some(program), unwritten: 0, room, task });
                None
            }
            Frame::DisplayData { channel, data } => {
                // Of one that is over here something may still be on its way.
                let known = self.channels.get_mut(&(at, channel))?;
                known.unwritten += data.len();
                if known.unwritten > DISPLAY_WINDOW {
                    return Some(self.violated(at, channel));
                }
                // There is room for all that may be unwritten: nothing waits here. Whoever is to take it may be gone, and says so.
                if let Some(program) = &mut known.program {
                    let _ = program.write_all(&data).await;
                }
                None
            }
            Frame::DisplayCredit { channel, bytes } => {
                let known = self.channels.get(&(at, channel))?;
                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                if bytes > DISPLAY_WINDOW.saturating_sub(known.room.available_permits()) {
                    return Some(self.violated(at, channel));
                }
                known.room.add_permits(bytes);
                None
            }
            Frame::DisplayEnd { channel } => {
                // The task writes what it has, and ends the connection.
                if let Some(known) = self.channels.get_mut(&(at, channel)) {
                    known.program = None;
                }
                None
            }
            _ => None,
        }
    }

    /// What a connection's task says; gives what the node is to be told.
    pub fn said(&mut self, at: usize, frame: Frame) -> Option<Frame> {
        match &frame {
            Frame::DisplayEnd { channel } => {
                self.channels.remove(&(at, *channel))?;
            }
            Frame::DisplayCredit { channel, bytes } => {
                let known = self.channels.get_mut(&(at, *channel))?;
                known.unwritten =
                    known.unwritten.saturating_sub(usize::try_from(*bytes).unwrap_or(usize::MAX));
            }
            Frame::DisplayData { channel, .. } => {
                self.channels.get(&(at, *channel))?;
            }
            _ => return None,
        }
        Some(frame)
    }

    /// A node's connection is a new one, which knows nothing of what was carried by the last.
    pub fn reopened(&mut self, at: usize) {
        self.channels.retain(|(node, _), _| *node != at);
    }

    /// A node's part of the step is over: what it said is still written.
    pub fn ended(&mut self, at: usize) {
        for (_, channel) in self.channels.range_mut((at, 0)..=(at, u32::MAX)) {
            channel.program = None;
        }
    }

    /// A node did what no supervisor does: the connection is over, and gets no successor.
    fn violated(&mut self, at: usize, channel: u32) -> Frame {
        self.false_ones.insert(at);
        self.end(at, channel)
    }

    fn end(&mut self, at: usize, channel: u32) -> Frame {
        self.channels.remove(&(at, channel));
        Frame::DisplayEnd { channel }
    }
}

/// One connection, as its task has it.
struct Line {
    at: usize,
    channel: u32,
    room: Arc<Semaphore>,
    events: mpsc::Sender<(usize, Event)>,
}

impl Line {
    async fn tell(&self, frame: Frame) {
        let _ = self.events.send((self.at, Event::Display(frame))).await; // the command is ending
    }

    /// So many bytes of the program's went on.
    async fn credit(&self, bytes: usize) {
        if let Some(bytes) = u32::try_from(bytes).ok().filter(|bytes| *bytes > 0) {
            self.tell(Frame::DisplayCredit { channel: self.channel, bytes }).await;
        }
    }

    /// Lets the program in, and carries what it and the X server say until one of them has ended.
    async fn carry(&self, mut program: DuplexStream, carriers: &[Carrier]) {
        let mut said = Vec::with_capacity(LONGEST_SETUP);
        let (carrier, words, len) = loop {
            match Setup::parse(&said) {
                Err(_) => return,
                Ok(Some(setup)) => match carriers.iter().find(|carrier| setup.proves(&carrier.made)) {
                    Some(carrier) => break (carrier, setup.with(&carrier.own), setup.len),
                    None => return self.answer(&setup.refusal("Invalid MIT-MAGIC-COOKIE-1 key")).await,
                },
                Ok(None) if said.len() >= LONGEST_SETUP => return,
                Ok(None) => {}
            }
            match program.read_buf(&mut said).await {
                Ok(n) if n > 0 => self.credit(n).await,
                Ok(_) | Err(_) => return,
            }
        };
        let connected = tokio::time::timeout(CONNECTS, carrier.connect()).await;
        let (mut from, mut to) = match connected.unwrap_or_else(|e| Err(e.to_string())) {
            Ok(both) => both,
            Err(why) => {
                if let Ok(Some(setup)) = Setup::parse(&said) {
                    let text = format!("srun cannot reach its display {}: {why}", carrier.display);
                    self.answer(&setup.refusal(&text)).await;
                }
                return;
            }
        };
        let first = [words.as_slice(), said.get(len..).unwrap_or_default()].concat();
        if to.write_all(&first).await.is_err() {
            return;
        }
        tokio::select! {
            () = self.hear_program(&mut program, &mut to) => {}
            () = self.hear_server(&mut from) => {}
        }
    }

    /// Says something in the place of the X server.
    async fn answer(&self, bytes: &[u8]) {
        // A few bytes, and the first: there is room. The node gives it back as for the server's own.
        self.room.forget_permits(bytes.len());
        self.tell(Frame::DisplayData { channel: self.channel, data: bytes.to_vec() }).await;
    }

    async fn hear_program(&self, program: &mut DuplexStream, to: &mut Writer) {
        let mut buffer = vec![0; PIECE];
        while let Ok(n) = program.read(&mut buffer).await {
            if n == 0 || to.write_all(&buffer[..n]).await.is_err() || to.flush().await.is_err() {
                return;
            }
            self.credit(n).await;
        }
    }

    async fn hear_server(&self, from: &mut Reader) {
        let mut buffer = vec![0; PIECE];
        // Whoever reads has one byte of room at least, and no other takes any.
        while let Ok(one) = self.room.acquire().await {
            one.forget();
            let most = PIECE.min(self.room.available_permits() + 1);
            let n = match from.read(&mut buffer[..most]).await {
                Ok(n) if n > 0 => n,
                Ok(_) | Err(_) => return,
            };
            self.room.forget_permits(n - 1);
            self.tell(Frame::DisplayData { channel: self.channel, data: buffer[..n].to_vec() }).await;
        }
    }
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

impl Carrier {
    /// A connection to the X server.
    async fn connect(&self) -> Result<(Reader, Writer), String> {
        let failed = |e: std::io::Error| e.to_string();
        Ok(match &self.socket {
            Some(socket) => {
                let (from, to) = UnixStream::connect(socket).await.map_err(failed)?.into_split();
                (Box::new(from) as Reader, Box::new(to) as Writer)
            }
            None => {
                let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(failed)?;
                stream.set_nodelay(true).map_err(failed)?;
                let (from, to) = stream.into_split();
                (Box::new(from) as Reader, Box::new(to) as Writer)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    const MADE: &[u8] = &[7; 16];
    const OWN: &[u8] = &[9; 16];

    fn words(cookie: &[u8]) -> Vec<u8> {
        Setup::parse(b"l\0\x0b\0\0\0\0\0\0\0\0\0").unwrap().unwrap().with(cookie)
    }

    /// A display at a socket of a test, and the X server's end of it.
    fn display() -> (Display, mpsc::Receiver<(usize, Event)>, UnixListener, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("X");
        let server = UnixListener::bind(&socket).unwrap();
        let carrier = Carrier {
            display: ":0".into(),
            socket: Some(socket),
            host: String::new(),
            port: 0,
            made: MADE.to_vec(),
            own: OWN.to_vec(),
        };
        let (events, queue) = mpsc::channel(256);
        (Display::new(vec![carrier], events), queue, server, directory)
    }

    /// The next that a task says, as the node is told it.
    async fn told(display: &mut Display, queue: &mut mpsc::Receiver<(usize, Event)>) -> Frame {
        loop {
            match queue.recv().await.unwrap() {
                (at, Event::Display(frame)) => {
                    if let Some(frame) = display.said(at, frame) {
                        return frame;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn in_runtime(work: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let limit = Duration::from_secs(60);
        runtime.block_on(async { tokio::time::timeout(limit, work).await.unwrap() });
    }

    async fn open(display: &mut Display, channel: u32, first: Vec<u8>) {
        assert_eq!(display.hear(3, Frame::DisplayOpen { channel }).await, None);
        assert_eq!(display.hear(3, Frame::DisplayData { channel, data: first }).await, None);
    }

    #[test]
    fn a_program_is_let_in_by_the_steps_cookie_and_the_server_sees_its_own() {
        in_runtime(async {
            let (mut display, mut queue, server, _directory) = display();
            open(&mut display, 1, [words(MADE), b"more".to_vec()].concat()).await;
            let mut program = server.accept().await.unwrap().0;
            let mut heard = vec![0; words(OWN).len() + 4];
            program.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard, [words(OWN), b"more".to_vec()].concat());
            let bytes = u32::try_from(words(MADE).len() + 4).unwrap();
            assert_eq!(told(&mut display, &mut queue).await, Frame::DisplayCredit { channel: 1, bytes });
            program.write_all(b"answer").await.unwrap();
            let answer = Frame::DisplayData { channel: 1, data: b"answer".to_vec() };
            assert_eq!(told(&mut display, &mut queue).await, answer);
            // What the program said before its end is written before the end.
            display.hear(3, Frame::DisplayData { channel: 1, data: b"last".to_vec() }).await;
            assert_eq!(display.hear(3, Frame::DisplayEnd { channel: 1 }).await, None);
            let mut rest = Vec::new();
            program.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"last");
            assert_eq!(told(&mut display, &mut queue).await, Frame::DisplayCredit { channel: 1, bytes: 4 });
            assert_eq!(told(&mut display, &mut queue).await, Frame::DisplayEnd { channel: 1 });
            assert!(display.channels.is_empty());
        });
    }

    #[test]
    fn what_a_node_sends_without_the_cookie_never_reaches_the_server() {
        in_runtime(async {
            let (mut display, mut queue, server, _directory) = display();
            // Not even the display's own: it is not known on other machines.
            for (channel, cookie) in [(1, OWN), (2, &[][..])] {
                open(&mut display, channel, words(cookie)).await;
                assert!(matches!(told(&mut display, &mut queue).await, Frame::DisplayCredit { .. }));
                let Frame::DisplayData { data, .. } = told(&mut display, &mut queue).await else { panic!() };
                assert!(data.starts_with(&[0]) && data.windows(7).any(|part| part == b"Invalid"));
                assert_eq!(told(&mut display, &mut queue).await, Frame::DisplayEnd { channel });
            }
            let soon = Duration::from_millis(50);
            assert!(tokio::time::timeout(soon, server.accept()).await.is_err(), "nobody came");
            // More than was given back is not taken, and credit for what was not sent is not believed.
            open(&mut display, 3, words(MADE)).await;
            let much = Frame::DisplayData { channel: 3, data: vec![0; DISPLAY_WINDOW] };
            assert_eq!(display.hear(3, much).await, Some(Frame::DisplayEnd { channel: 3 }));
            // Whoever does that opens no other, and is told nothing.
            for channel in 4..10 {
                assert_eq!(display.hear(3, Frame::DisplayOpen { channel }).await, None);
            }
            assert!(display.channels.is_empty());
            assert_eq!(display.hear(4, Frame::DisplayOpen { channel: 4 }).await, None);
            assert_eq!(display.channels.len(), 1);
            let credit = Frame::DisplayCredit { channel: 4, bytes: u32::MAX };
            assert_eq!(display.hear(4, credit).await, Some(Frame::DisplayEnd { channel: 4 }));
            // A step that was not asked for it carries nothing.
            display.carriers.clear();
            let open = Frame::DisplayOpen { channel: 5 };
            assert_eq!(display.hear(5, open.clone()).await, Some(Frame::DisplayEnd { channel: 5 }));
            assert_eq!(display.hear(5, open).await, None);
        });
    }

    #[test]
    fn what_a_node_said_before_its_end_is_written_and_nothing_of_it_stays() {
        in_runtime(async {
            let (mut display, mut queue, server, _directory) = display();
            open(&mut display, 1, [words(MADE), b"last".to_vec()].concat()).await;
            display.ended(3);
            let mut program = server.accept().await.unwrap().0;
            let mut heard = Vec::new();
            program.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, [words(OWN), b"last".to_vec()].concat());
            while told(&mut display, &mut queue).await != (Frame::DisplayEnd { channel: 1 }) {}
            assert!(display.channels.is_empty());
        });
    }

    #[test]
    fn a_server_that_says_much_waits_for_the_program() {
        in_runtime(async {
            let (mut display, mut queue, server, _directory) = display();
            open(&mut display, 1, words(MADE)).await;
            let mut program = server.accept().await.unwrap().0;
            tokio::spawn(async move {
                let much = vec![1; 4 * DISPLAY_WINDOW];
                let _ = program.write_all(&much).await;
                // It stays.
                std::future::pending::<()>().await;
            });
            assert!(matches!(told(&mut display, &mut queue).await, Frame::DisplayCredit { .. }));
            let mut bytes = 0;
            while bytes < DISPLAY_WINDOW {
                let frame = told(&mut display, &mut queue).await;
                let Frame::DisplayData { data, .. } = frame else { panic!("{frame:?}") };
                bytes += data.len();
            }
            assert_eq!(bytes, DISPLAY_WINDOW);
            let soon = Duration::from_millis(300);
            let more = tokio::time::timeout(soon, told(&mut display, &mut queue)).await;
            assert!(more.is_err(), "{more:?}");
            assert_eq!(display.hear(3, Frame::DisplayCredit { channel: 1, bytes: 5 }).await, None);
            let frame = told(&mut display, &mut queue).await;
            assert!(matches!(frame, Frame::DisplayData { data, .. } if data.len() == 5));
            display.reopened(3);
            assert!(display.channels.is_empty());
        });
    }
}
