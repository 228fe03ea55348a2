//! The attached client's connection: frames in, frames out, without ever blocking the supervisor.

use berth_model::spec::TermSize;
use berth_stream::{Decoder, Frame, encode};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// What a client wants, or that it is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientEvent {
    /// A signal for the tasks.
    Signal(i32),
    /// The terminal's size.
    Winch(TermSize),
    /// What all nodes told at a fence, or a piece of it.
    Fence {
        /// The how manieth of the step.
        number: u32,
        /// Nothing follows.
        last: bool,
        /// The bytes.
        data: Vec<u8>,
    },
    /// What another node's PMIx server says, or a piece of it.
    Peer {
        /// Its place in the step.
        node: u32,
        /// Nothing follows.
        last: bool,
        /// The bytes.
        data: Vec<u8>,
    },
    /// A task of another node ended the whole step, with this exit code.
    Aborted(u8),
    /// What it runs before the tasks has ended.
    Begin,
    /// Something of a connection to the display that it carries.
    Display(Frame),
    /// It leaves; the step goes on.
    Detached,
    /// It is gone without a word, or sent what no client sends.
    Lost(String),
}

/// A client's connection.
pub struct Client {
    fd: OwnedFd,
    decoder: Decoder,
    out: Vec<u8>,
    sent: usize,
    lost: Option<String>,
}

impl Client {
    /// Takes the connection over; its Attach frame was read by the agent.
    pub fn new(fd: OwnedFd) -> Client {
        Client { fd, decoder: Decoder::default(), out: Vec::new(), sent: 0, lost: None }
    }

    /// The connection.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether nothing waits to be sent.
    pub fn flushed(&self) -> bool {
        self.out.is_empty()
    }

    /// Why the connection is of no further use; told once.
    pub fn lost(&mut self) -> Option<String> {
        self.lost.take()
    }

    /// Sends a frame, or queues what the kernel does not take now.
    pub fn push(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        match encode(frame, &mut bytes) {
            Ok(()) => self.push_bytes(&bytes),
            Err(e) => self.lost = Some(e.to_string()),
        }
    }

    /// Sends an encoded frame, or queues what the kernel does not take now.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        if !self.out.is_empty() {
            self.out.extend_from_slice(bytes);
            return;
        }
        let mut done = 0;
        while done < bytes.len() {
            match self.send(&bytes[done..]) {
                Some(0) => break,
                Some(n) => done += n,
                None => return,
            }
        }
        self.out.extend_from_slice(&bytes[done..]);
    }

    /// Sends what is queued, as far as the kernel takes it. Whether it took anything.
    pub fn flush(&mut self) -> bool {
        let mut took = false;
        while self.sent < self.out.len() {
            match self.send(&self.out[self.sent..]) {
                Some(0) => return took,
                Some(n) => self.sent += n,
                None => break,
            }
            took = true;
        }
        self.out.clear();
        self.sent = 0;
        true
    }

    /// `Some(0)`: not now. `None`: never again.
    fn send(&self, bytes: &[u8]) -> Option<usize> {
        loop {
            match send(&self.fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(n) => return Some(n),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Some(0),
                // The reading side tells that the client is gone.
                Err(_) => return None,
            }
        }
    }

    /// Reads once; the frames that are whole by now.
    pub fn read(&mut self, buffer: &mut [u8]) -> Vec<Frame> {
        let mut frames = Vec::new();
        match recv(&self.fd, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => self.lost = Some("the client closed the connection".to_string()),
            Ok((_, n)) => {
                self.decoder.feed(&buffer[..n.min(buffer.len())]);
                loop {
                    match self.decoder.next_frame() {
                        Ok(Some(frame)) => frames.push(frame),
                        Ok(None) => break,
                        Err(e) => {
                            self.lost = Some(e.to_string());
                            break;
                        }
                    }
                }
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(e) => self.lost = Some(e.to_string()),
        }
        frames
    }
}
