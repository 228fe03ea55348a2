//! The reading side: a blob source whose blobs come from another process.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::{Kind, MAX_STREAMS, Open, WINDOW, read_frame, write_frame};
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, ErrorKind, Result, printable};
use crate::source::{BlobKind, BlobSource};

/// How long a blob may keep us waiting for so much more of it. Whoever waits holds the layer's lock, and the other side belongs to a
/// user, who may stop it, or name a registry that gives a byte a minute; registries that are only slow bring more.
const PATIENCE: Duration = Duration::from_secs(600);
const ENOUGH: u64 = 64 << 10;
/// How often somebody who waits looks whether anything was heard of the other side, and after how many looks in vain it counts as
/// stopped. Looks are counted, and not time: where this machine stood still, so did the other side.
const LOOK: Duration = Duration::from_secs(1);
const SILENT: u32 = 10;
/// Bytes of what it says of the file that it reads.
const MOST_WORDS: u64 = 4096;
/// Notes that are passed on, and characters of each: they are a user's.
const MOST_NOTES: u64 = 64;
const MOST_OF_NOTE: usize = 400;

/// A source behind a pair of pipes, which [`super::serve_fetcher`] answers.
pub struct RemoteSource {
    description: String,
    link: Arc<Link>,
    patience: Duration,
    look: Duration,
    peers: bool,
}

struct Link {
    /// Frames that came.
    heard: AtomicU64,
    /// Notes that came, and who hears them.
    notes: AtomicU64,
    tell: OnceLock<Box<dyn Fn(String) + Send + Sync>>,
    write: Mutex<Box<dyn Write + Send>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u32,
    streams: HashMap<u32, Stream>,
    /// Why the link is of no use any more.
    broken: Option<Error>,
}

struct Stream {
    queue: Sender<Message>,
    /// Bytes that the other side may still send.
    credit: u64,
}

enum Message {
    Data(Vec<u8>),
    End,
    Failed(Error),
}

impl RemoteSource {
    /// A source that is described as `description` and speaks over `read` and `write`.
    pub fn new(
        description: impl Into<String>,
        read: impl Read + Send + 'static,
        write: impl Write + Send + 'static,
    ) -> Self {
        let link = Arc::new(Link::new(write));
        let receiving = Arc::downgrade(&link);
        let mut read = read;
        // Ends when the other side closes, which it does when it sees our side closed.
        let begun = std::thread::Builder::new().spawn(move || {
            loop {
                let frame = read_frame(&mut read);
                let Some(link) = receiving.upgrade() else { return };
                let result = match frame {
                    Ok(Some(frame)) => link.take(frame),
                    Ok(None) => Err(broken("it ended before everything was fetched")),
                    Err(e) => Err(broken(&e.to_string())),
                };
                if let Err(error) = result {
                    link.break_off(error);
                    return;
                }
            }
        });
        if let Err(e) = begun {
            link.break_off(broken(&format!("nobody hears it: no thread can be started: {e}")));
        }
        Self { description: description.into(), link, patience: PATIENCE, look: LOOK, peers: false }
    }

    /// The same, where other nodes of the cluster are behind it.
    #[must_use]
    pub fn of_peers(self) -> Self {
        Self { peers: true, ..self }
    }

    /// The same, with somebody who hears what the other side says that it waits for.
    #[must_use]
    pub fn telling(self, tell: impl Fn(String) + Send + Sync + 'static) -> Self {
        // Who heard it before goes on to.
        let _ = self.link.tell.set(Box::new(tell));
        self
    }
}

impl BlobSource for RemoteSource {
    fn describe(&self) -> String {
        self.description.clone()
    }

    fn is_peers(&self) -> bool {
        self.peers
    }

    fn read_through(&self) -> Option<String> {
        let digest = Digest::of(Algorithm::Sha256, b"");
        let words = self.ask(&Open { kind: BlobKind::Blob, digest, offset: 0, file: true }).ok()?;
        let mut text = String::new();
        words.take(MOST_WORDS).read_to_string(&mut text).ok()?;
        Some(text)
    }

    fn open(&self, kind: BlobKind, digest: &Digest, offset: u64) -> Result<Box<dyn Read + Send>> {
        self.ask(&Open { kind, digest: digest.clone(), offset, file: false })
    }
}

impl RemoteSource {
    fn ask(&self, wanted: &Open) -> Result<Box<dyn Read + Send>> {
        let (queue, receiver) = channel();
        let stream = {
            let mut state = self.link.state();
            if let Some(error) = &state.broken {
                return Err(error.clone());
            }
            if state.streams.len() >= MAX_STREAMS {
                return Err(broken("too many blobs are open at once"));
            }
            let stream = state.next;
            state.next = state.next.wrapping_add(1);
            state.streams.insert(stream, Stream { queue, credit: WINDOW });
            stream
        };
        let mut reader = RemoteBlob {
            link: Arc::clone(&self.link),
            stream,
            queue: receiver,
            current: Vec::new(),
            at: 0,
            ended: false,
            patience: self.patience,
            look: self.look,
            waited: Duration::ZERO,
            got: 0,
        };
        let request = serde_json::to_vec(wanted).map_err(|e| broken(&e.to_string()))?;
        self.link.send(Kind::Open, stream, &request).map_err(|e| broken(&e.to_string()))?;
        // A refusal is an error of opening, not of reading.
        match reader.fill() {
            Ok(()) => Ok(Box::new(reader)),
            Err(error) => Err(error),
        }
    }
}

impl Link {
    fn new(write: impl Write + Send + 'static) -> Self {
        Self {
            heard: AtomicU64::new(0),
            notes: AtomicU64::new(0),
            tell: OnceLock::new(),
            write: Mutex::new(Box::new(write)),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, kind: Kind, stream: u32, payload: &[u8]) -> io::Result<()> {
        write_frame(&mut *self.write.lock().unwrap_or_else(PoisonError::into_inner), kind, stream, payload)
    }

    fn take(&self, frame: super::Frame) -> Result<()> {
        self.heard.fetch_add(1, Ordering::Relaxed);
        if frame.kind == Kind::Alive {
            return Ok(());
        }
        if frame.kind == Kind::Note {
            if let Some(tell) = self.tell.get()
                && self.notes.fetch_add(1, Ordering::Relaxed) < MOST_NOTES
            {
                tell(printable(&String::from_utf8_lossy(&frame.payload), MOST_OF_NOTE));
            }
            return Ok(());
        }
        let mut state = self.state();
        // Frames of a stream that we closed may still be on their way.
        let message = match frame.kind {
            Kind::Data if frame.payload.is_empty() => return Err(broken("it sent an empty piece")),
            Kind::Data => {
                let Some(stream) = state.streams.get_mut(&frame.stream) else { return Ok(()) };
                stream.credit = stream
                    .credit
                    .checked_sub(frame.payload.len() as u64)
                    .ok_or_else(|| broken("it sent more than was asked for"))?;
                Message::Data(frame.payload)
            }
            Kind::End => Message::End,
            Kind::Fail => {
                let error: Option<Error> = serde_json::from_slice(&frame.payload).ok();
                Message::Failed(error.map_or_else(|| broken("it failed without a reason"), |e| e.sanitised()))
            }
            Kind::Open | Kind::Credit | Kind::Close | Kind::Alive | Kind::Note => {
                return Err(broken("it sent a request where an answer was expected"));
            }
        };
        // A reader that is gone needs nothing.
        if matches!(message, Message::Data(_)) {
            if let Some(stream) = state.streams.get(&frame.stream) {
                let _ = stream.queue.send(message);
            }
        } else if let Some(stream) = state.streams.remove(&frame.stream) {
            // The last word of a stream. These need no credit, so that any number of them would wait for a reader.
            let _ = stream.queue.send(message);
        }
        Ok(())
    }

    fn break_off(&self, error: Error) {
        let mut state = self.state();
        for (_, stream) in state.streams.drain() {
            let _ = stream.queue.send(Message::Failed(error.clone()));
        }
        state.broken.get_or_insert(error);
    }
}

struct RemoteBlob {
    link: Arc<Link>,
    stream: u32,
    queue: Receiver<Message>,
    current: Vec<u8>,
    at: usize,
    ended: bool,
    patience: Duration,
    look: Duration,
    /// Time spent waiting, and bytes that came in it, since it was last enough.
    waited: Duration,
    got: u64,
}

impl RemoteBlob {
    fn next(&mut self) -> Result<Message> {
        let (mut silent, mut heard) = (0, self.link.heard.load(Ordering::Relaxed));
        let message = loop {
            let begun = Instant::now();
            let message = self.queue.recv_timeout(self.look.min(self.patience.saturating_sub(self.waited)));
            self.waited += begun.elapsed();
            if !matches!(message, Err(RecvTimeoutError::Timeout)) || self.waited >= self.patience {
                break message;
            }
            let now = self.link.heard.load(Ordering::Relaxed);
            (silent, heard) = if now == heard { (silent + 1, now) } else { (0, now) };
            if silent >= SILENT {
                return Err(broken("it gives no sign of life: somebody has stopped it, or it hangs"));
            }
        };
        match message {
            Ok(Message::Data(data)) => {
                self.got += data.len() as u64;
                if self.got >= ENOUGH {
                    (self.waited, self.got) = (Duration::ZERO, 0);
                }
                Ok(Message::Data(data))
            }
            Ok(message) => Ok(message),
            Err(RecvTimeoutError::Disconnected) => Err(broken("it ended before everything was fetched")),
            Err(RecvTimeoutError::Timeout) => {
                let reason = format!(
                    "it brought {} bytes while {} s were waited for it",
                    self.got,
                    self.patience.as_secs()
                );
                Err(broken(&reason)
                    .next("its source hardly answers: see whether it does for other tools, and try again"))
            }
        }
    }

    /// Waits for the next piece when the current one is used up, and asks for as much more.
    fn fill(&mut self) -> Result<()> {
        if self.ended || self.at < self.current.len() {
            return Ok(());
        }
        match self.next()? {
            Message::Data(data) => {
                let bytes = data.len();
                self.current = data;
                self.at = 0;
                if let Some(stream) = self.link.state().streams.get_mut(&self.stream) {
                    stream.credit += bytes as u64;
                }
                let credit = u32::try_from(bytes).unwrap_or(0).to_le_bytes();
                // A broken link is noticed by the next receive, with its reason.
                let _ = self.link.send(Kind::Credit, self.stream, &credit);
                Ok(())
            }
            Message::End => {
                self.ended = true;
                Ok(())
            }
            Message::Failed(error) => Err(error),
        }
    }
}

impl Read for RemoteBlob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.fill()?;
        let length = buffer.len().min(self.current.len() - self.at);
        buffer[..length].copy_from_slice(&self.current[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

impl Drop for RemoteBlob {
    fn drop(&mut self) {
        self.link.state().streams.remove(&self.stream);
        if !self.ended {
            let _ = self.link.send(Kind::Close, self.stream, &[]);
        }
    }
}

fn broken(reason: &str) -> Error {
    Error::new(ErrorKind::Unreachable, "fetching process", reason)
        .next("try again; if it happens again, look into the agent's log")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::super::serve_fetcher;
    use super::*;
    use crate::source::read_verified;

    struct Memory(HashMap<Digest, Vec<u8>>);

    impl Memory {
        fn of(blobs: &[&[u8]]) -> Self {
            Self(blobs.iter().map(|b| (Digest::of(Algorithm::Sha256, b), b.to_vec())).collect())
        }
    }

    impl BlobSource for Memory {
        fn describe(&self) -> String {
            "memory".to_owned()
        }

        fn open(&self, _: BlobKind, digest: &Digest, offset: u64) -> Result<Box<dyn Read + Send>> {
            let bytes = self
                .0
                .get(digest)
                .ok_or_else(|| Error::new(ErrorKind::NotFound, "memory", "no such blob\x1b[31m"))?;
            Ok(Box::new(io::Cursor::new(bytes[usize::try_from(offset).unwrap()..].to_vec())))
        }
    }

    fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().unwrap()
    }

    /// The other side belongs to a user: it may be stopped, or have a source that gives next to nothing.
    #[test]
    fn who_brings_next_to_nothing_is_not_waited_for() {
        struct Drips;
        impl Read for Drips {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                std::thread::sleep(Duration::from_millis(20));
                buffer[0] = 0;
                Ok(1)
            }
        }
        struct Slow;
        impl BlobSource for Slow {
            fn describe(&self) -> String {
                "slow".to_owned()
            }
            fn open(&self, _: BlobKind, _: &Digest, _: u64) -> Result<Box<dyn Read + Send>> {
                Ok(Box::new(Drips))
            }
        }
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let patience = Duration::from_millis(400);
        let blames = |e: String| assert!(e.contains("it brought") && e.contains("hardly answers"), "{e}");
        // Nobody answers at all.
        let (ours, _theirs) = pair();
        let silent = RemoteSource::new("remote", ours.try_clone().unwrap(), ours);
        let silent = RemoteSource { patience, ..silent };
        blames(silent.open(BlobKind::Blob, &digest, 0).err().unwrap().to_string());
        let (ours, theirs) = pair();
        std::thread::spawn(move || serve_fetcher(&Slow, theirs.try_clone().unwrap(), &theirs));
        let slow = RemoteSource::new("remote", ours.try_clone().unwrap(), ours);
        let slow = RemoteSource { patience, ..slow };
        let read = slow.open(BlobKind::Blob, &digest, 0).and_then(|mut blob| {
            blob.read_to_end(&mut Vec::new()).map_err(|e| e.downcast::<Error>().unwrap())
        });
        blames(read.unwrap_err().to_string());
    }

    #[test]
    fn one_that_is_stopped_is_told_from_one_that_waits() {
        struct Late(Duration);
        impl BlobSource for Late {
            fn describe(&self) -> String {
                "late".to_owned()
            }
            fn open(&self, _: BlobKind, _: &Digest, _: u64) -> Result<Box<dyn Read + Send>> {
                std::thread::sleep(self.0);
                Ok(Box::new(io::Cursor::new(b"x".to_vec())))
            }
        }
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let look = super::super::ALIVE / 4;
        let (ours, theirs) = pair();
        std::thread::spawn(move || {
            serve_fetcher(&Late(look * SILENT * 2), theirs.try_clone().unwrap(), &theirs)
        });
        let waits = RemoteSource::new("remote", ours.try_clone().unwrap(), ours);
        let waits = RemoteSource { look, ..waits };
        assert_eq!(read_verified(&waits, BlobKind::Blob, &digest, 9).unwrap(), b"x");
        let (ours, _theirs) = pair();
        let stopped = RemoteSource::new("remote", ours.try_clone().unwrap(), ours);
        let stopped = RemoteSource { look, ..stopped };
        let why = stopped.open(BlobKind::Blob, &digest, 0).err().unwrap().to_string();
        assert!(why.contains("no sign of life"), "{why}");
    }

    #[test]
    fn blobs_arrive_whole_many_at_once() {
        let blobs: Vec<Vec<u8>> = (0..6u32)
            .map(|n| (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761 + n) >> 24) as u8).collect())
            .collect();
        let memory = Memory::of(&blobs.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let (ours, theirs) = pair();
        std::thread::scope(|scope| {
            let server = scope.spawn(|| serve_fetcher(&memory, theirs.try_clone().unwrap(), &theirs));
            let source = RemoteSource::new("remote", ours.try_clone().unwrap(), ours.try_clone().unwrap());
            std::thread::scope(|scope| {
                for blob in &blobs {
                    let source = &source;
                    scope.spawn(move || {
                        let digest = Digest::of(Algorithm::Sha256, blob);
                        assert_eq!(&read_verified(source, BlobKind::Blob, &digest, 1 << 30).unwrap(), blob);
                        let mut tail = Vec::new();
                        source
                            .open(BlobKind::Blob, &digest, 2_999_990)
                            .unwrap()
                            .read_to_end(&mut tail)
                            .unwrap();
                        assert_eq!(tail, blob[2_999_990..]);
                    });
                }
            });
            let missing = Digest::of(Algorithm::Sha256, b"missing");
            let error = source.open(BlobKind::Blob, &missing, 0).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            assert!(!error.to_string().contains('\x1b'), "{error:?}");
            // A stream that nobody reads on does not stop the others.
            let digest = Digest::of(Algorithm::Sha256, &blobs[0]);
            let _idle = source.open(BlobKind::Blob, &digest, 0).unwrap();
            read_verified(&source, BlobKind::Blob, &digest, 1 << 30).unwrap();
            ours.shutdown(std::net::Shutdown::Both).unwrap();
            assert!(server.join().unwrap().is_ok());
        });
    }

    /// Answers the first request with raw bytes.
    fn hostile(answer: &[u8]) -> String {
        let (ours, mut theirs) = pair();
        let answer = answer.to_vec();
        let server = std::thread::spawn(move || {
            let frame = read_frame(&mut theirs).unwrap().unwrap();
            assert_eq!(frame.kind, Kind::Open);
            let _ = theirs.write_all(&answer);
        });
        let source = RemoteSource::new("remote", ours.try_clone().unwrap(), ours);
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let error = read_verified(&source, BlobKind::Blob, &digest, 1 << 30).unwrap_err();
        server.join().unwrap();
        error.to_string()
    }

    fn frame(kind: u8, length: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind, 0, 0, 0, 0];
        bytes.extend(length.to_le_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn a_hostile_server_is_contained() {
        assert!(hostile(b"").contains("ended"));
        assert!(hostile(&frame(9, 0, b"")).contains("unknown frame"));
        assert!(hostile(&frame(4, u32::MAX, b"")).contains("a frame of"));
        assert!(hostile(&frame(4, 0, b"")).contains("empty"));
        assert!(hostile(&frame(1, 0, b"")).contains("request"));
        assert!(hostile(&frame(6, 1, b"x")).contains("without a reason"));
        let wrong = [frame(4, 1, b"y"), frame(5, 0, b"")].concat();
        assert!(hostile(&wrong).contains("sha256:"));
        let short = frame(4, 100, b"abc");
        assert!(hostile(&short).contains("fetching process"));
    }

    #[test]
    fn only_one_last_word_of_a_stream_waits_for_its_reader() {
        use super::super::Frame;
        let (ours, _theirs) = pair();
        let link = Link::new(ours);
        for kind in [Kind::End, Kind::Fail] {
            let (queue, receiver) = channel();
            link.state().streams.insert(7, Stream { queue, credit: WINDOW });
            link.take(Frame { kind: Kind::Data, stream: 7, payload: vec![1] }).unwrap();
            for _ in 0..1000 {
                link.take(Frame { kind, stream: 7, payload: Vec::new() }).unwrap();
            }
            link.take(Frame { kind: Kind::Data, stream: 7, payload: vec![2] }).unwrap();
            let waiting: Vec<Message> = receiver.try_iter().collect();
            assert!(matches!(waiting[..], [Message::Data(_), Message::End | Message::Failed(_)]), "{kind:?}");
            assert!(link.state().streams.is_empty());
        }
    }

    #[test]
    fn notes_of_the_other_side_are_few_short_and_printable() {
        use super::super::Frame;
        let (ours, _theirs) = pair();
        let link = Link::new(ours);
        let (told, notes) = channel();
        let note = |payload: &[u8]| Frame { kind: Kind::Note, stream: 0, payload: payload.to_vec() };
        // Nobody hears it, and nothing comes of it.
        link.take(note(b"early")).unwrap();
        let _ = link.tell.set(Box::new(move |text: String| told.send(text).unwrap()));
        link.take(note(b"red \x1b[31m")).unwrap();
        for _ in 0..1000 {
            link.take(note(&[b'x'; 10_000])).unwrap();
        }
        let heard: Vec<String> = notes.try_iter().collect();
        assert_eq!(heard.len() as u64, MOST_NOTES);
        assert_eq!(heard[0], "red \u{fffd}[31m");
        assert!(heard.iter().all(|text| text.chars().count() <= MOST_OF_NOTE));
    }

    #[test]
    fn more_than_the_window_breaks_the_link() {
        let (ours, mut theirs) = pair();
        let server = std::thread::spawn(move || {
            read_frame(&mut theirs).unwrap().unwrap();
            let piece = vec![0; super::super::MAX_PAYLOAD];
            // Nobody reads this stream beyond its first piece, so that no more credit is given.
            while write_frame(&mut theirs, Kind::Data, 0, &piece).is_ok() {}
        });
        let source = RemoteSource::new("remote", ours.try_clone().unwrap(), ours.try_clone().unwrap());
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let mut idle = source.open(BlobKind::Blob, &digest, 0).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let error = loop {
            match source.open(BlobKind::Blob, &digest, 0) {
                Err(error) => break error,
                Ok(_) => assert!(std::time::Instant::now() < deadline),
            }
        };
        assert!(error.to_string().contains("more than was asked for"), "{error}");
        assert!(io::copy(&mut idle, &mut io::sink()).is_err());
        ours.shutdown(std::net::Shutdown::Both).unwrap();
        server.join().unwrap();
    }
}
