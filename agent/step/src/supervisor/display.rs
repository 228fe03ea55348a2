//! The display of another machine, as a step's tasks reach it on their node: a port of the loopback device or, for a container of its own network,
//! a socket in it. Who connects has to show the step's cookie; what they say then goes to the step's client, and what the display
//! answers comes back, in frames of the step's own connection. Each connection has a window in both directions, so that none grows and one that
//! takes nothing holds no other up.

use super::step::LaunchFailure;
use super::x11;
use crate::spool::{CarriedDisplay, LaunchFile};
use berth_model::x11::setup::{self, Setup};
use berth_stream::{DISPLAY_WINDOW, Frame, MAX_PAYLOAD};
use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, accept_with, bind, recv, send,
    shutdown, socket_with,
};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV6, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The first number that is tried, as `ssh` has it: lower ones are those of X servers.
const FIRST: u16 = 10;
/// And how many.
const TRIED: u16 = 1000;
/// Connections at once. An X server itself takes 256.
const MOST: usize = 64;
/// Of those that have not shown a cookie yet. With one more the oldest is closed: whoever is on the node may come.
const UNPROVEN: usize = 16;
/// How long nobody is let in where there is no descriptor for one.
const REST: Duration = Duration::from_millis(100);
/// Most bytes that are read at once.
const PIECE: usize = MAX_PAYLOAD / 2;

/// The listener, and what keeps its port of the loopback device's other address from everybody else.
type Listening = (OwnedFd, Option<OwnedFd>);

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DisplayToken {
    /// Somebody who comes.
    Listener,
    /// Somebody who has not shown a cookie.
    Unproven(u32),
    /// A connection that is carried.
    Channel(u32),
}

/// A program that was let in.
struct Channel {
    fd: OwnedFd,
    /// How many bytes more the client takes of it.
    room: usize,
    /// What it has not taken yet.
    queue: VecDeque<u8>,
    /// The client has said that nothing more comes for it.
    ends: bool,
}

/// A display that is carried here.
pub struct Display {
    listener: OwnedFd,
    /// Keeps the same port of `::1` from everybody else.
    _held: Option<OwnedFd>,
    /// Connections are TCP's, whose short words are not to wait for one another.
    tcp: bool,
    /// The listener's file, which goes with it.
    file: Option<PathBuf>,
    cookie: Vec<u8>,
    unproven: BTreeMap<u32, (OwnedFd, Vec<u8>)>,
    channels: BTreeMap<u32, Channel>,
    next: u32,
    /// Until when nobody is let in.
    rests: Option<Instant>,
    buffer: Vec<u8>,
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            // The job's directory goes with the job, whatever is left.
            let _ = std::fs::remove_file(file);
        }
    }
}

/// How tasks would find a display that is carried, by the first name that is tried: what is planned need not be on this machine.
pub fn foreseen(file: &LaunchFile) -> Result<Option<CarriedDisplay>, LaunchFailure> {
    if x11::carried(file, &file.launch.node.0)?.is_none() {
        return Ok(None);
    }
    Ok(Some(match socket_path(file) {
        Some(path) => in_container(&path),
        None => CarriedDisplay { name: format!("localhost:{FIRST}.0"), socket: None },
    }))
}

/// Where the socket of a container with its own network is; `None` for all that the node's loopback device serves.
fn socket_path(file: &LaunchFile) -> Option<PathBuf> {
    let dir = file.node.client_dir.as_ref().filter(|_| x11::has_own_network(file))?;
    Some(dir.as_path().join(format!("display-{}", file.launch.key.step)))
}

fn in_container(path: &Path) -> CarriedDisplay {
    CarriedDisplay { name: format!(":{FIRST}"), socket: Some(path.into()) }
}

impl Display {
    /// Listens for the step's programs, where its client is to carry a display here.
    pub fn of(file: &LaunchFile) -> Result<Option<(Display, CarriedDisplay)>, LaunchFailure> {
        let Some(cookie) = x11::carried(file, &x11::host_name())? else { return Ok(None) };
        let (listener, carried, path) = match socket_path(file) {
            Some(path) => {
                let listener = listen_at(&path, file).map(|fd| (fd, None));
                (listener, in_container(&path), Some(path))
            }
            None => {
                let (listener, number) = listen();
                (listener, CarriedDisplay { name: format!("localhost:{number}.0"), socket: None }, None)
            }
        };
        let listening = listener.map_err(|e| {
            let at = path.as_ref().map_or_else(
                || format!("a port of the loopback device from {}", 6000 + FIRST),
                |path| path.display().to_string(),
            );
            LaunchFailure::new(format!(
                "--x11: {}: cannot listen for the step's programs at {at}: {e}",
                file.launch.node
            ))
        })?;
        let tcp = path.is_none();
        Ok(Some((Display::new(listening, cookie, tcp, path), carried)))
    }

    fn new((listener, held): Listening, cookie: Vec<u8>, tcp: bool, file: Option<PathBuf>) -> Display {
        Display {
            listener,
            _held: held,
            tcp,
            file,
            cookie,
            unproven: BTreeMap::new(),
            channels: BTreeMap::new(),
            next: 0,
            rests: None,
            buffer: vec![0; PIECE],
        }
    }

    /// Descriptors to wait for, and for what. `flows`: there is a client, and more may be said to it now.
    pub fn interests(&self, flows: bool, now: Instant) -> Vec<(DisplayToken, BorrowedFd<'_>, PollFlags)> {
        let mut set = Vec::new();
        if flows {
            if self.until(now).is_none() {
                set.push((DisplayToken::Listener, self.listener.as_fd(), PollFlags::IN));
            }
            let unproven = self.unproven.iter();
            set.extend(
                unproven.map(|(id, (fd, _))| (DisplayToken::Unproven(*id), fd.as_fd(), PollFlags::IN)),
            );
        }
        for (id, channel) in &self.channels {
            let mut flags = PollFlags::empty();
            if flows && channel.room > 0 && !channel.ends {
                flags |= PollFlags::IN;
            }
            if !channel.queue.is_empty() {
                flags |= PollFlags::OUT;
            }
            // One of which nothing is wanted now would report its end again and again.
            if !flags.is_empty() {
                set.push((DisplayToken::Channel(*id), channel.fd.as_fd(), flags));
            }
        }
        set
    }

    /// How long from now until somebody is let in again, where that is later.
    pub fn until(&self, now: Instant) -> Option<Duration> {
        self.rests.filter(|until| *until > now).map(|until| until.saturating_duration_since(now))
    }

    /// Acts on a descriptor that is ready; gives what the client is to be told.
    pub fn ready(&mut self, token: DisplayToken, flags: PollFlags) -> Vec<Frame> {
        let mut out = Vec::new();
        match token {
            DisplayToken::Listener => self.welcome(&mut out),
            DisplayToken::Unproven(id) => self.prove(id, &mut out),
            DisplayToken::Channel(id) => {
                // An end that comes while nothing may be read is met by the writing, or by the reading later.
                if flags.intersects(PollFlags::OUT | PollFlags::ERR) {
                    self.flush(id, &mut out);
                }
                if flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                    self.read(id, &mut out);
                }
            }
        }
        out
    }

    /// What the client says of a connection; gives what it is to be told.
    pub fn hear(&mut self, frame: Frame) -> Vec<Frame> {
        let mut out = Vec::new();
        match frame {
            Frame::DisplayData { channel: id, data } => {
                // Of one that is over here something may still be on its way.
                let Some(channel) = self.channels.get_mut(&id).filter(|channel| !channel.ends) else {
                    return out;
                };
                if channel.queue.len() + data.len() > DISPLAY_WINDOW {
                    // No client of ours sends more than it was given back.
                    self.end(id, &mut out);
                    return out;
                }
                channel.queue.extend(data);
                self.flush(id, &mut out);
            }
            Frame::DisplayCredit { channel, bytes } => {
                if let Some(channel) = self.channels.get_mut(&channel) {
                    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                    channel.room = channel.room.saturating_add(bytes).min(DISPLAY_WINDOW);
                }
            }
            Frame::DisplayEnd { channel: id } => {
                if let Some(channel) = self.channels.get_mut(&id) {
                    channel.ends = true;
                    self.flush(id, &mut out);
                }
            }
            _ => {}
        }
        out
    }

    /// The client is another one, or none: of what was carried for the last one nothing goes on.
    pub fn forget(&mut self) {
        self.channels.clear();
    }

    fn number(&mut self) -> u32 {
        self.next = self.next.wrapping_add(1);
        self.next
    }

    fn welcome(&mut self, out: &mut Vec<Frame>) {
        let fd = match accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(fd) => fd,
            Err(Errno::INTR | Errno::AGAIN | Errno::CONNABORTED) => return,
            // No descriptor is left, most likely: the listener stays ready, and would be asked again and again.
            Err(_) => {
                if self.unproven.pop_first().is_none() {
                    self.rests = Some(Instant::now() + REST);
                }
                return;
            }
        };
        if self.tcp {
            // Slower otherwise, and nothing else.
            let _ = rustix::net::sockopt::set_tcp_nodelay(&fd, true);
        }
        if self.unproven.len() >= UNPROVEN {
            self.unproven.pop_first();
        }
        let id = self.number();
        self.unproven.insert(id, (fd, Vec::new()));
        // A program speaks first, and has most likely spoken.
        self.prove(id, out);
    }

    /// Reads the first words of a program, and lets it in or not.
    fn prove(&mut self, id: u32, out: &mut Vec<Frame>) {
        let Some((fd, mut said)) = self.unproven.remove(&id) else { return };
        // No further than that: what follows is read when the client may be told of it.
        let most = setup::MOST - said.len().min(setup::MOST);
        match recv(&fd, &mut self.buffer[..most], RecvFlags::DONTWAIT) {
            Ok((_, n)) if n > 0 => said.extend_from_slice(&self.buffer[..n.min(most)]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Ok(_) | Err(_) => return,
        }
        let refusal = match Setup::parse(&said) {
            Err(_) => return,
            Ok(None) => {
                self.unproven.insert(id, (fd, said));
                return;
            }
            Ok(Some(words)) if !words.proves(&self.cookie) => words.refusal("Invalid MIT-MAGIC-COOKIE-1 key"),
            Ok(Some(words)) if self.channels.len() >= MOST => {
                words.refusal("Maximum number of clients reached (srun --x11)")
            }
            Ok(Some(_)) => {
                let room = DISPLAY_WINDOW - said.len().min(DISPLAY_WINDOW);
                self.channels.insert(id, Channel { fd, room, queue: VecDeque::new(), ends: false });
                out.push(Frame::DisplayOpen { channel: id });
                out.push(Frame::DisplayData { channel: id, data: said });
                return;
            }
        };
        // A few bytes, which a new connection always takes.
        let _ = send(&fd, &refusal, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        let _ = shutdown(&fd, Shutdown::Write);
    }

    /// Reads once what a program says.
    fn read(&mut self, id: u32, out: &mut Vec<Frame>) {
        let Some(channel) = self.channels.get_mut(&id).filter(|channel| channel.room > 0 && !channel.ends)
        else {
            return;
        };
        let most = channel.room.min(PIECE);
        match recv(&channel.fd, &mut self.buffer[..most], RecvFlags::DONTWAIT) {
            Ok((_, n)) if n > 0 => {
                let data = self.buffer[..n.min(most)].to_vec();
                channel.room -= data.len();
                out.push(Frame::DisplayData { channel: id, data });
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Ok(_) | Err(_) => self.end(id, out),
        }
    }

    /// Writes what waits for a program, as far as it takes it.
    fn flush(&mut self, id: u32, out: &mut Vec<Frame>) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        let mut done = 0;
        let lost = loop {
            let (first, _) = channel.queue.as_slices();
            if first.is_empty() {
                break false;
            }
            match send(&channel.fd, first, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(n) => {
                    channel.queue.drain(..n);
                    done += n;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break false,
                Err(_) => break true,
            }
        };
        if let Some(bytes) = u32::try_from(done).ok().filter(|bytes| *bytes > 0) {
            out.push(Frame::DisplayCredit { channel: id, bytes });
        }
        if lost || (channel.ends && channel.queue.is_empty()) {
            self.end(id, out);
        }
    }

    /// A connection is over here.
    fn end(&mut self, id: u32, out: &mut Vec<Frame>) {
        if self.channels.remove(&id).is_some() {
            out.push(Frame::DisplayEnd { channel: id });
        }
    }
}

/// The first port of the loopback device that is free, and the number of the display that has it.
fn listen() -> (io::Result<Listening>, u16) {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for number in FIRST..FIRST + TRIED {
        match listen_on(6000 + number) {
            Ok(listening) => return (Ok(listening), number),
            Err(e) => last = e,
        }
    }
    (Err(last), FIRST)
}

/// Programs are told `localhost`, which may be `::1` first: whoever listened there would be shown their cookie. It is taken before ours.
fn listen_on(port: u16) -> io::Result<Listening> {
    let held = hold(port)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    listener.set_nonblocking(true)?;
    Ok((listener.into(), held))
}

/// Takes a port of `::1` at which nobody is to listen: who tries it is turned away at once, and goes on to the next address. Nothing on a
/// machine that has no such address.
fn hold(port: u16) -> io::Result<Option<OwnedFd>> {
    let made = socket_with(AddressFamily::INET6, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    // Without SO_REUSEADDR, with which others could have it, too.
    let at = SocketAddrV6::new(Ipv6Addr::LOCALHOST, port, 0, 0);
    match made.and_then(|fd| bind(&fd, &at).map(|()| fd)) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Listens at a path of any length, for the step's user alone.
fn listen_at(path: &Path, file: &LaunchFile) -> io::Result<OwnedFd> {
    use rustix::fd::AsRawFd;
    use rustix::fs::{Mode, OFlags};
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let hold = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(hold.as_raw_fd().to_string()).join(name);
    let listener = UnixListener::bind(&short)?;
    // The directory is the cluster's: nobody else makes anything in it.
    std::fs::set_permissions(&short, std::fs::Permissions::from_mode(0o600))?;
    if file.node.system {
        let id = &file.launch.identity;
        std::os::unix::fs::chown(&short, Some(id.uid.0), Some(id.gid.0))?;
    }
    listener.set_nonblocking(true)?;
    Ok(listener.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};

    const COOKIE: &[u8] = &[7; 16];

    fn display() -> (Display, SocketAddr) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        (Display::new((listener.into(), None), COOKIE.to_vec(), true, None), at)
    }

    fn words(cookie: &[u8]) -> Vec<u8> {
        let without = b"l\0\x0b\0\0\0\0\0\0\0\0\0";
        Setup::parse(without).unwrap().unwrap().with(cookie)
    }

    /// What the client is told until nothing is ready any more: a machine that has much to do may take its time for the next.
    fn turn(display: &mut Display) -> Vec<Frame> {
        turn_within(display, Duration::from_millis(100))
    }

    /// What the client is told until nothing was ready for so long.
    fn turn_within(display: &mut Display, pause: Duration) -> Vec<Frame> {
        let mut told = Vec::new();
        loop {
            let interests = display.interests(true, Instant::now());
            let mut set: Vec<_> = interests
                .iter()
                .map(|(_, fd, flags)| rustix::event::PollFd::from_borrowed_fd(*fd, *flags))
                .collect();
            let pause = rustix::event::Timespec::try_from(pause).unwrap();
            rustix::event::poll(&mut set, Some(&pause)).unwrap();
            let ready: Vec<_> = interests
                .iter()
                .zip(&set)
                .map(|((token, ..), found)| (*token, found.revents()))
                .filter(|(_, flags)| !flags.is_empty())
                .collect();
            drop(set);
            drop(interests);
            if ready.is_empty() {
                return told;
            }
            for (token, flags) in ready {
                told.extend(display.ready(token, flags));
            }
        }
    }

    /// A program that was let in, and its number.
    fn program(display: &mut Display, at: SocketAddr) -> (TcpStream, u32) {
        let mut program = TcpStream::connect(at).unwrap();
        program.write_all(&words(COOKIE)).unwrap();
        let mut told = Vec::new();
        for _ in 0..1000 {
            told = turn_within(display, Duration::from_millis(10));
            if !told.is_empty() {
                break;
            }
        }
        let [Frame::DisplayOpen { channel }, Frame::DisplayData { data, .. }] = told.as_slice() else {
            panic!("{told:?}")
        };
        assert_eq!(data, &words(COOKIE));
        (program, *channel)
    }

    #[test]
    fn nobody_is_let_in_without_the_cookie() {
        let (mut display, at) = display();
        for wrong in [&[8; 16][..], &[7; 15], &[]] {
            let mut other = TcpStream::connect(at).unwrap();
            other.write_all(&words(wrong)).unwrap();
            assert!(turn(&mut display).is_empty());
            let mut answer = Vec::new();
            other.read_to_end(&mut answer).unwrap();
            assert!(answer.starts_with(&[0]) && answer.windows(7).any(|part| part == b"Invalid"));
        }
        let mut other = TcpStream::connect(at).unwrap();
        other.write_all(b"GET / HTTP/1.1\r\n").unwrap();
        assert!(turn(&mut display).is_empty());
        assert!(display.unproven.is_empty());
        // Those who say nothing take no place from those who do.
        let silent: Vec<TcpStream> = (0..3 * UNPROVEN).map(|_| TcpStream::connect(at).unwrap()).collect();
        turn(&mut display);
        let (_program, channel) = program(&mut display, at);
        assert!(display.unproven.len() <= UNPROVEN && display.channels.contains_key(&channel));
        drop(silent);
        turn(&mut display);
        assert!(display.unproven.is_empty());
    }

    #[test]
    fn nobody_else_listens_at_the_port_of_the_other_loopback_address() {
        let v6 = |port: u16| TcpListener::bind((Ipv6Addr::LOCALHOST, port));
        if v6(0).is_err() {
            return; // the machine has no such address
        }
        // Whoever was there first keeps it, and the number is another one.
        let other = (FIRST..FIRST + TRIED).find_map(|number| v6(6000 + number).ok()).unwrap();
        let port = other.local_addr().unwrap().port();
        assert_eq!(listen_on(port).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let (listening, number) = listen();
        let (_listener, held) = listening.unwrap();
        assert!(held.is_some());
        assert_ne!(6000 + number, port);
        // And nobody comes later: who connects there is turned away.
        assert_eq!(v6(6000 + number).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let refused = TcpStream::connect((Ipv6Addr::LOCALHOST, 6000 + number)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, 6000 + number)).is_ok());
    }

    #[test]
    fn first_words_in_pieces_are_put_together() {
        let (mut display, at) = display();
        let mut program = TcpStream::connect(at).unwrap();
        let all = words(COOKIE);
        program.write_all(&all[..20]).unwrap();
        assert!(turn(&mut display).is_empty());
        program.write_all(&all[20..]).unwrap();
        let told = turn(&mut display);
        assert!(
            matches!(told.as_slice(), [Frame::DisplayOpen { .. }, Frame::DisplayData { data, .. }] if *data == all)
        );
    }

    #[test]
    fn one_that_takes_nothing_is_bounded_and_holds_no_other_up() {
        let (mut display, at) = display();
        let (mut stalled, slow) = program(&mut display, at);
        let (mut other, quick) = program(&mut display, at);
        // What it says beyond the window waits in its own socket.
        stalled.set_nonblocking(true).unwrap();
        let mut said = 0;
        let mut told: Vec<Frame> = Vec::new();
        for _ in 0..16 {
            said += stalled.write(&[1; 64 << 10]).unwrap_or(0);
            told.extend(turn(&mut display));
        }
        let bytes: usize = told
            .iter()
            .map(|frame| match frame {
                Frame::DisplayData { channel, data } if *channel == slow => data.len(),
                other => panic!("{other:?}"),
            })
            .sum();
        assert_eq!(bytes + words(COOKIE).len(), DISPLAY_WINDOW);
        assert!(said > bytes);
        other.write_all(b"here").unwrap();
        assert_eq!(turn(&mut display), [Frame::DisplayData { channel: quick, data: b"here".to_vec() }]);
        // It goes on when the client has taken something.
        assert!(display.hear(Frame::DisplayCredit { channel: slow, bytes: 10 }).is_empty());
        assert_eq!(turn(&mut display), [Frame::DisplayData { channel: slow, data: vec![1; 10] }]);
        // A client that sends more than it was given back is not believed.
        let much = vec![0; DISPLAY_WINDOW / 4];
        let mut told = Vec::new();
        for _ in 0..400 {
            told = display.hear(Frame::DisplayData { channel: slow, data: much.clone() });
            if told == [Frame::DisplayEnd { channel: slow }] {
                break;
            }
        }
        assert_eq!(told, [Frame::DisplayEnd { channel: slow }]);
        assert!(display.channels.contains_key(&quick));
    }

    #[test]
    fn without_a_descriptor_the_oldest_that_said_nothing_goes_and_then_nobody_is_asked_for_a_moment() {
        let (mut display, at) = display();
        let silent = TcpStream::connect(at).unwrap();
        turn(&mut display);
        assert_eq!(display.unproven.len(), 1);
        // Of a socket that does not listen nobody is accepted, as of one for which there is no descriptor.
        display.listener =
            socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        assert!(display.ready(DisplayToken::Listener, PollFlags::IN).is_empty());
        assert!(display.unproven.is_empty() && display.until(Instant::now()).is_none());
        assert!(display.ready(DisplayToken::Listener, PollFlags::IN).is_empty());
        let now = Instant::now();
        assert!(display.until(now).is_some() && display.interests(true, now).is_empty());
        let later = now + REST;
        assert!(display.until(later).is_none() && display.interests(true, later).len() == 1);
        drop(silent);
    }

    #[test]
    fn both_sides_end_a_connection() {
        let (mut display, at) = display();
        let (mut first, one) = program(&mut display, at);
        assert_eq!(
            display.hear(Frame::DisplayData { channel: one, data: b"answer".to_vec() }),
            [Frame::DisplayCredit { channel: one, bytes: 6 }]
        );
        assert_eq!(display.hear(Frame::DisplayEnd { channel: one }), [Frame::DisplayEnd { channel: one }]);
        let mut answer = String::new();
        first.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer");
        let (second, two) = program(&mut display, at);
        drop(second);
        assert_eq!(turn(&mut display), [Frame::DisplayEnd { channel: two }]);
        // What is still on its way for it is for nobody.
        assert!(display.hear(Frame::DisplayData { channel: two, data: vec![0] }).is_empty());
        assert!(display.hear(Frame::DisplayEnd { channel: two }).is_empty());
        let (third, _) = program(&mut display, at);
        display.forget();
        assert!(display.channels.is_empty());
        drop(third);
    }

    #[test]
    fn no_more_than_so_many_are_carried() {
        let (mut display, at) = display();
        let all: Vec<TcpStream> = (0..MOST).map(|_| program(&mut display, at).0).collect();
        let mut more = TcpStream::connect(at).unwrap();
        more.write_all(&words(COOKIE)).unwrap();
        assert!(turn(&mut display).is_empty());
        let mut answer = Vec::new();
        more.read_to_end(&mut answer).unwrap();
        assert!(answer.windows(7).any(|part| part == b"Maximum"));
        drop(all);
    }
}
