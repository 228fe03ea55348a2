//! Those who hear a step beside the client that started it (`sattach`): what its tasks say from now on goes to them as well, and
//! their input to the tasks. They end nothing and signal nothing; that one leaves is nobody else's matter.
//!
//! Nothing is lost on the way to them: tasks wait for them as for the client, and what one on another machine has not heard when its
//! connection breaks is kept for it. So that one who has stopped reading, or is gone, does not hold a step up, whoever takes nothing for
//! [`PATIENCE`] is let go.

use super::client::Client;
use super::resuming::Resuming;
use berth_stream::{Frame, Kind, Resume, STDIN_WINDOW, encode};
use rustix::event::PollFlags;
use rustix::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Most of them at once.
const MOST: usize = 16;
/// How long one may take nothing of what is there for it, or be away.
const PATIENCE: Duration = Duration::from_secs(20);

/// How one was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// For the first time, under this number: it knows nothing of the step yet.
    New(u32),
    /// It is back, and goes on where it was.
    Again,
}

struct Watcher {
    id: u32,
    /// Absent while it is away.
    client: Option<Client>,
    /// Of one that comes back when its connection breaks.
    resuming: Option<Resuming>,
    stdout: Option<u32>,
    stderr: Option<u32>,
    /// Bytes of its input held for tasks.
    held: usize,
    /// It took something since it was looked at last.
    took: bool,
    /// Since when it takes nothing.
    behind: Option<Instant>,
    /// It was told the step's end.
    told: bool,
}

impl Watcher {
    fn push(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        // None that is for a watcher is too long.
        if encode(frame, &mut bytes).is_ok() {
            self.push_bytes(&bytes);
        }
    }

    fn push_bytes(&mut self, frame: &[u8]) {
        // It reads nothing after the end, and what came after would wait for it in vain.
        if self.told {
            return;
        }
        if let Some(client) = &mut self.client {
            client.push_bytes(frame);
        }
        if let Some(resuming) = &mut self.resuming {
            resuming.outbox.push(frame.to_vec());
        }
    }

    /// Whether more may come for it.
    fn flushed(&self) -> bool {
        let full = self.resuming.as_ref().is_some_and(|r| r.outbox.is_full());
        !full && self.client.as_ref().is_none_or(Client::flushed)
    }

    /// Whether it has yet to take something, or is away.
    fn awaited(&self) -> bool {
        let unheard = self.told && self.resuming.as_ref().is_some_and(|r| !r.outbox.is_empty());
        self.client.is_none() || !self.flushed() || unheard
    }

    /// Takes what came; whether it is to go.
    fn hear(&mut self, frames: Vec<Frame>, given: &mut Vec<(u32, Vec<u8>)>) -> bool {
        let mut counted = false;
        for frame in frames {
            if let Some(resuming) = &mut self.resuming {
                if let Frame::Heard(count) = frame {
                    if resuming.outbox.heard(count).is_err() {
                        return true;
                    }
                    self.took = true;
                    continue;
                }
                resuming.taken += 1;
                counted = true;
            }
            match frame {
                Frame::Stdin { task, data } => {
                    self.held += data.len();
                    given.push((task, data));
                }
                // Its own input has ended, and not that of the tasks: the step's client may have more.
                Frame::StdinEof { .. } => {}
                // It leaves; or it wants what only the step's client may have.
                _ => return true,
            }
        }
        if let (true, Some(resuming), Some(client)) = (counted, &self.resuming, &mut self.client) {
            client.push(&Frame::Heard(resuming.taken));
        }
        false
    }
}

/// All of a step's on this node.
#[derive(Default)]
pub struct Watchers {
    all: Vec<Watcher>,
    last: u32,
}

impl Watchers {
    /// One more, with the tasks whose output it wants where those are not all; or one that is back. Or why not, and its connection.
    /// One that was away for so long that it was let go hears from now on what there is, as those do who cannot come back.
    pub fn admit(
        &mut self,
        fd: OwnedFd,
        (stdout, stderr): (Option<u32>, Option<u32>),
        resume: Option<Resume>,
    ) -> Result<Admitted, (OwnedFd, String)> {
        let known = |w: &&mut Watcher| match (&w.resuming, resume) {
            (Some(known), Some(resume)) => known.is(resume),
            _ => false,
        };
        if let Some(watcher) = self.all.iter_mut().find(known)
            && let (Some(resuming), Some(resume)) = (&mut watcher.resuming, resume)
        {
            if let Err(e) = resuming.again(resume) {
                return Err((fd, format!("this command cannot go on where it was: {e}")));
            }
            let mut client = Client::new(fd);
            client.push(&Frame::Resumed(resuming.taken));
            resuming.outbox.rest().for_each(|frame| client.push_bytes(frame));
            watcher.client = Some(client);
            watcher.took = true;
            return Ok(Admitted::Again);
        }
        if self.all.len() >= MOST {
            return Err((fd, format!("{MOST} others hear the step already: end one of them")));
        }
        self.last = self.last.wrapping_add(1);
        let resuming = resume.filter(|resume| resume.heard == 0).map(|resume| Resuming::new(resume.client));
        let mut client = Client::new(fd);
        client.push(&if resuming.is_some() { Frame::Resumed(0) } else { Frame::Accepted });
        let (id, client) = (self.last, Some(client));
        self.all.push(Watcher {
            id,
            client,
            resuming,
            stdout,
            stderr,
            held: 0,
            took: false,
            behind: None,
            told: false,
        });
        Ok(Admitted::New(id))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether nothing waits for one of them.
    pub fn flushed(&self) -> bool {
        self.all.iter().all(Watcher::flushed)
    }

    /// Tells all of them.
    pub fn tell(&mut self, frame: &Frame) {
        self.all.iter_mut().for_each(|w| w.push(frame));
    }

    /// Tells one of them.
    pub fn tell_one(&mut self, id: u32, frame: &Frame) {
        self.all.iter_mut().filter(|w| w.id == id).for_each(|w| w.push(frame));
    }

    /// Tells those who do not know it yet that the step is over.
    pub fn end(&mut self, frame: &Frame) {
        for watcher in self.all.iter_mut().filter(|w| !w.told) {
            watcher.push(frame);
            watcher.told = true;
        }
    }

    /// What a task said, as an encoded frame, goes to those who want it.
    pub fn output(&mut self, kind: Kind, task: u32, frame: &[u8]) {
        for watcher in &mut self.all {
            let only = if kind == Kind::Stderr { watcher.stderr } else { watcher.stdout };
            if only.is_none_or(|wanted| wanted == task) {
                watcher.push_bytes(frame);
            }
        }
    }

    /// Tasks took input of one of them, which may send as much again.
    pub fn credit(&mut self, id: u32, bytes: u32) {
        for watcher in self.all.iter_mut().filter(|w| w.id == id) {
            watcher.held = watcher.held.saturating_sub(usize::try_from(bytes).unwrap_or(usize::MAX));
            watcher.push(&Frame::Credit(bytes));
        }
    }

    /// Descriptors to wait for, and for what.
    pub fn interests(&self) -> impl Iterator<Item = (u32, BorrowedFd<'_>, PollFlags)> {
        self.all.iter().filter_map(|w| {
            let client = w.client.as_ref()?;
            let mut flags = PollFlags::empty();
            if w.held < 2 * STDIN_WINDOW {
                flags |= PollFlags::IN;
            }
            if !client.flushed() {
                flags |= PollFlags::OUT;
            }
            Some((w.id, client.fd(), flags))
        })
    }

    /// Acts on a connection that is ready; the input that came, with the tasks that it is for.
    pub fn serve(&mut self, id: u32, flags: PollFlags, buffer: &mut [u8]) -> Vec<(u32, Vec<u8>)> {
        let mut given = Vec::new();
        let Some(at) = self.all.iter().position(|w| w.id == id) else { return given };
        let watcher = &mut self.all[at];
        let Some(client) = &mut watcher.client else { return given };
        if flags.intersects(PollFlags::OUT | PollFlags::ERR) && client.flush() {
            watcher.took = true;
        }
        let frames = match flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            true => client.read(buffer),
            false => Vec::new(),
        };
        let lost = client.lost().is_some();
        let leaves = watcher.hear(frames, &mut given);
        // One that has heard all has nothing to come back for.
        let returns = watcher.resuming.as_ref().is_some_and(|r| !watcher.told || !r.outbox.is_empty());
        match lost && returns && !leaves {
            true => watcher.client = None,
            false if lost || leaves => drop(self.all.remove(at)),
            false => {}
        }
        given
    }

    /// Lets those go who have heard the end, and those who took nothing for too long.
    pub fn let_go(&mut self, now: Instant) {
        self.all.retain_mut(|w| {
            if !w.awaited() {
                w.behind = None;
                return !w.told;
            }
            let since = w.behind.filter(|_| !std::mem::take(&mut w.took)).unwrap_or(now);
            w.behind = Some(since);
            now.saturating_duration_since(since) < PATIENCE
        });
    }

    /// Time until one of them is to be let go.
    pub fn until(&self, now: Instant) -> Option<Duration> {
        let first = self.all.iter().filter_map(|w| w.behind).min()?;
        Some((first + PATIENCE).saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_stream::{Decoder, HEADER_LEN, MAX_PAYLOAD, data_header, encode};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap()
    }

    fn new(admitted: Result<Admitted, (OwnedFd, String)>) -> u32 {
        match admitted {
            Ok(Admitted::New(id)) => id,
            other => panic!("{other:?}"),
        }
    }

    fn heard(fd: &OwnedFd) -> Vec<Frame> {
        let (mut decoder, mut frames) = (Decoder::default(), Vec::new());
        let mut bytes = vec![0; 1 << 20];
        while let Ok((_, n @ 1..)) = rustix::net::recv(fd, &mut *bytes, rustix::net::RecvFlags::DONTWAIT) {
            decoder.feed(&bytes[..n]);
        }
        while let Some(frame) = decoder.next_frame().unwrap() {
            frames.push(frame);
        }
        frames
    }

    fn say(watchers: &mut Watchers, kind: Kind, task: u32, text: &[u8]) {
        let mut frame = data_header(kind, task, text.len()).unwrap().to_vec();
        frame.extend_from_slice(text);
        watchers.output(kind, task, &frame);
    }

    fn send(fd: &OwnedFd, frame: &Frame) {
        let mut bytes = Vec::new();
        encode(frame, &mut bytes).unwrap();
        rustix::io::write(fd, &bytes).unwrap();
    }

    #[test]
    fn each_hears_what_it_asked_for_and_the_end_once() {
        let mut watchers = Watchers::default();
        let (ours, all) = pair();
        watchers.admit(ours, (None, None), None).unwrap();
        let (ours, one) = pair();
        watchers.admit(ours, (Some(1), Some(0)), None).unwrap();
        say(&mut watchers, Kind::Stdout, 0, b"a");
        say(&mut watchers, Kind::Stdout, 1, b"b");
        say(&mut watchers, Kind::Stderr, 0, b"c");
        watchers.end(&Frame::Started);
        watchers.end(&Frame::Started);
        let out = |task, data: &[u8]| Frame::Stdout { task, data: data.to_vec() };
        let err = Frame::Stderr { task: 0, data: b"c".to_vec() };
        assert_eq!(heard(&all), [Frame::Accepted, out(0, b"a"), out(1, b"b"), err.clone(), Frame::Started]);
        assert_eq!(heard(&one), [Frame::Accepted, out(1, b"b"), err, Frame::Started]);
        watchers.let_go(Instant::now());
        assert!(watchers.is_empty());
    }

    #[test]
    fn input_is_passed_on_and_credited_and_nothing_else_is_taken() {
        let mut watchers = Watchers::default();
        let mut buffer = vec![0; HEADER_LEN + MAX_PAYLOAD];
        let (ours, theirs) = pair();
        let id = new(watchers.admit(ours, (None, None), None));
        send(&theirs, &Frame::Stdin { task: 3, data: b"word".to_vec() });
        send(&theirs, &Frame::StdinEof { task: 3 });
        assert_eq!(watchers.serve(id, PollFlags::IN, &mut buffer), [(3, b"word".to_vec())]);
        assert!(!watchers.is_empty(), "its end of input is its own");
        watchers.credit(id, 4);
        assert_eq!(heard(&theirs), [Frame::Accepted, Frame::Credit(4)]);
        for forbidden in
            [Frame::Signal(9), Frame::Aborted(1), Frame::Fence { number: 1, last: true, data: vec![] }]
        {
            let (ours, theirs) = pair();
            let id = new(watchers.admit(ours, (None, None), None));
            send(&theirs, &forbidden);
            assert!(watchers.serve(id, PollFlags::IN, &mut buffer).is_empty());
            assert_eq!(watchers.interests().count(), 1, "{forbidden:?}");
        }
    }

    #[test]
    fn one_that_stops_reading_is_let_go_and_one_that_is_slow_is_not() {
        let mut watchers = Watchers::default();
        let mut buffer = vec![0; HEADER_LEN + MAX_PAYLOAD];
        let (ours, theirs) = pair();
        let id = new(watchers.admit(ours, (None, None), None));
        while watchers.flushed() {
            say(&mut watchers, Kind::Stdout, 0, &vec![b'x'; MAX_PAYLOAD]);
        }
        let begin = Instant::now();
        watchers.let_go(begin);
        assert_eq!(watchers.until(begin), Some(PATIENCE));
        let later = begin + PATIENCE / 2;
        heard(&theirs);
        watchers.serve(id, PollFlags::OUT, &mut buffer);
        while watchers.flushed() {
            say(&mut watchers, Kind::Stdout, 0, &vec![b'x'; MAX_PAYLOAD]);
        }
        watchers.let_go(later);
        watchers.let_go(begin + PATIENCE);
        assert!(!watchers.is_empty(), "it took something in between");
        watchers.let_go(later + PATIENCE);
        assert!(watchers.is_empty());
    }

    #[test]
    fn there_is_a_bound_on_their_number() {
        let mut watchers = Watchers::default();
        let ends: Vec<OwnedFd> = (0..MOST)
            .map(|_| {
                let (ours, theirs) = pair();
                watchers.admit(ours, (None, None), None).unwrap();
                theirs
            })
            .collect();
        assert!(watchers.admit(pair().0, (None, None), None).unwrap_err().1.contains("16 others"));
        drop(ends);
    }

    fn resume(heard: u64) -> Option<Resume> {
        Some(Resume { client: 7, heard })
    }

    #[test]
    fn one_whose_connection_breaks_goes_on_where_it_was() {
        let mut watchers = Watchers::default();
        let mut buffer = vec![0; HEADER_LEN + MAX_PAYLOAD];
        let out = |data: &[u8]| Frame::Stdout { task: 0, data: data.to_vec() };
        let (ours, theirs) = pair();
        let id = new(watchers.admit(ours, (None, None), resume(0)));
        say(&mut watchers, Kind::Stdout, 0, b"a");
        say(&mut watchers, Kind::Stdout, 0, b"b");
        assert_eq!(heard(&theirs), [Frame::Resumed(0), out(b"a"), out(b"b")]);
        send(&theirs, &Frame::Stdin { task: 0, data: b"one".to_vec() });
        assert_eq!(watchers.serve(id, PollFlags::IN, &mut buffer), [(0, b"one".to_vec())]);
        assert_eq!(heard(&theirs), [Frame::Heard(1)]);
        // It breaks when only the first was heard; what is said meanwhile is kept as well.
        drop(theirs);
        watchers.serve(id, PollFlags::HUP, &mut buffer);
        assert_eq!(watchers.interests().count(), 0);
        assert!(!watchers.is_empty() && watchers.flushed());
        say(&mut watchers, Kind::Stdout, 0, b"c");
        watchers.credit(id, 3);
        let (ours, theirs) = pair();
        let said = watchers.admit(ours, (None, None), resume(9)).unwrap_err().1;
        assert!(said.contains("cannot go on"), "{said}");
        drop(theirs);
        let (ours, theirs) = pair();
        assert_eq!(watchers.admit(ours, (None, None), resume(1)).unwrap(), Admitted::Again);
        assert_eq!(heard(&theirs), [Frame::Resumed(1), out(b"b"), out(b"c"), Frame::Credit(3)]);
        // The end is kept until it is heard.
        watchers.end(&Frame::Started);
        let now = Instant::now();
        watchers.let_go(now);
        assert!(!watchers.is_empty());
        send(&theirs, &Frame::Heard(5));
        watchers.serve(id, PollFlags::IN, &mut buffer);
        watchers.let_go(now);
        assert!(watchers.is_empty());
    }

    #[test]
    fn one_that_does_not_come_back_is_let_go_and_hears_from_then_on_when_it_does() {
        let mut watchers = Watchers::default();
        let mut buffer = vec![0; HEADER_LEN + MAX_PAYLOAD];
        let (ours, theirs) = pair();
        let id = new(watchers.admit(ours, (None, None), resume(0)));
        drop(theirs);
        watchers.serve(id, PollFlags::HUP, &mut buffer);
        let begin = Instant::now();
        watchers.let_go(begin);
        // No more is kept for it than a window.
        while watchers.flushed() {
            say(&mut watchers, Kind::Stdout, 0, &vec![b'x'; MAX_PAYLOAD]);
        }
        assert_eq!(watchers.until(begin), Some(PATIENCE));
        watchers.let_go(begin + PATIENCE / 2);
        assert!(!watchers.is_empty());
        watchers.let_go(begin + PATIENCE);
        assert!(watchers.is_empty() && watchers.flushed());
        let (ours, theirs) = pair();
        new(watchers.admit(ours, (None, None), resume(4)));
        assert_eq!(heard(&theirs), [Frame::Accepted]);
        // One that leaves by its own word does not come back.
        let (ours, theirs) = pair();
        let id = new(watchers.admit(ours, (None, None), resume(0)));
        send(&theirs, &Frame::Detach);
        watchers.serve(id, PollFlags::IN, &mut buffer);
        assert_eq!(watchers.interests().count(), 1);
    }
}
