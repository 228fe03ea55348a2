//! Those who hear a step beside the client that started it (`sattach`): what its tasks say from now on goes to them as well, and
//! their input to the tasks. They end nothing and signal nothing; that one leaves is nobody else's matter.
//!
//! Nothing is lost on the way to them: tasks wait for them as for the client. So that one who has stopped reading does not hold
//! a step up, whoever takes nothing for [`PATIENCE`] is let go.

use super::client::Client;
use berth_stream::{Frame, Kind, STDIN_WINDOW};
use rustix::event::PollFlags;
use rustix::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Most of them at once.
const MOST: usize = 16;
/// How long one may take nothing of what is there for it.
const PATIENCE: Duration = Duration::from_secs(20);

struct Watcher {
    id: u32,
    client: Client,
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

/// All of a step's on this node.
#[derive(Default)]
pub struct Watchers {
    all: Vec<Watcher>,
    last: u32,
}

impl Watchers {
    /// One more, with the tasks whose output it wants where those are not all; or why not, and its connection.
    pub fn admit(
        &mut self,
        fd: OwnedFd,
        (stdout, stderr): (Option<u32>, Option<u32>),
    ) -> Result<u32, (OwnedFd, String)> {
        if self.all.len() >= MOST {
            return Err((fd, format!("{MOST} others hear the step already: end one of them")));
        }
        self.last = self.last.wrapping_add(1);
        let mut client = Client::new(fd);
        client.push(&Frame::Accepted);
        let (id, held) = (self.last, 0);
        let new = Watcher { id, client, stdout, stderr, held, took: false, behind: None, told: false };
        self.all.push(new);
        Ok(id)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether nothing waits for one of them.
    pub fn flushed(&self) -> bool {
        self.all.iter().all(|w| w.client.flushed())
    }

    /// Tells all of them.
    pub fn tell(&mut self, frame: &Frame) {
        self.all.iter_mut().for_each(|w| w.client.push(frame));
    }

    /// Tells one of them.
    pub fn tell_one(&mut self, id: u32, frame: &Frame) {
        self.all.iter_mut().filter(|w| w.id == id).for_each(|w| w.client.push(frame));
    }

    /// Tells those who do not know it yet that the step is over.
    pub fn end(&mut self, frame: &Frame) {
        for watcher in self.all.iter_mut().filter(|w| !w.told) {
            watcher.client.push(frame);
            watcher.told = true;
        }
    }

    /// What a task said, as an encoded frame, goes to those who want it.
    pub fn output(&mut self, kind: Kind, task: u32, frame: &[u8]) {
        for watcher in &mut self.all {
            let only = if kind == Kind::Stderr { watcher.stderr } else { watcher.stdout };
            if only.is_none_or(|wanted| wanted == task) {
                watcher.client.push_bytes(frame);
            }
        }
    }

    /// Tasks took input of one of them, which may send as much again.
    pub fn credit(&mut self, id: u32, bytes: u32) {
        for watcher in self.all.iter_mut().filter(|w| w.id == id) {
            watcher.held = watcher.held.saturating_sub(usize::try_from(bytes).unwrap_or(usize::MAX));
            watcher.client.push(&Frame::Credit(bytes));
        }
    }

    /// Descriptors to wait for, and for what.
    pub fn interests(&self) -> impl Iterator<Item = (u32, BorrowedFd<'_>, PollFlags)> {
        self.all.iter().map(|w| {
            let mut flags = PollFlags::empty();
            if w.held < 2 * STDIN_WINDOW {
                flags |= PollFlags::IN;
            }
            if !w.client.flushed() {
                flags |= PollFlags::OUT;
            }
            (w.id, w.client.fd(), flags)
        })
    }

    /// Acts on a connection that is ready; the input that came, with the tasks that it is for.
    pub fn serve(&mut self, id: u32, flags: PollFlags, buffer: &mut [u8]) -> Vec<(u32, Vec<u8>)> {
        let Some(at) = self.all.iter().position(|w| w.id == id) else { return Vec::new() };
        let watcher = &mut self.all[at];
        if flags.intersects(PollFlags::OUT | PollFlags::ERR) && watcher.client.flush() {
            watcher.took = true;
        }
        let frames = match flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            true => watcher.client.read(buffer),
            false => Vec::new(),
        };
        let mut given = Vec::new();
        let mut leaves = watcher.client.lost().is_some();
        for frame in frames {
            match frame {
                Frame::Stdin { task, data } => {
                    watcher.held += data.len();
                    given.push((task, data));
                }
                // Its own input has ended, and not that of the tasks: the step's client may have more.
                Frame::StdinEof { .. } => {}
                // It leaves; or it wants what only the step's client may have.
                _ => leaves = true,
            }
        }
        if leaves {
            self.all.remove(at);
        }
        given
    }

    /// Lets those go who have heard the end, and those who took nothing for too long.
    pub fn let_go(&mut self, now: Instant) {
        self.all.retain_mut(|w| {
            if w.client.flushed() {
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
        watchers.admit(ours, (None, None)).unwrap();
        let (ours, one) = pair();
        watchers.admit(ours, (Some(1), Some(0))).unwrap();
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
        let id = watchers.admit(ours, (None, None)).unwrap();
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
            let id = watchers.admit(ours, (None, None)).unwrap();
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
        let id = watchers.admit(ours, (None, None)).unwrap();
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
                watchers.admit(ours, (None, None)).unwrap();
                theirs
            })
            .collect();
        assert!(watchers.admit(pair().0, (None, None)).unwrap_err().1.contains("16 others"));
        drop(ends);
    }
}
