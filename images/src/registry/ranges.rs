//! The rest of a large blob by several connections, each a range at a time, handed on in order.
//!
//! Registries and the storage behind them give a single connection less than the network carries. At most [`AHEAD`] pieces are
//! in memory for a blob, and at most [`EXTRA`] connections more than one a blob are open for an image.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::span::Span;
use super::ways::Ways;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result, recover};

/// Bytes that are fetched by one request.
const PIECE: u64 = 4 << 20;
/// Connections for one blob, and pieces of it that are in memory.
pub(super) const AHEAD: usize = 4;
/// Connections beyond one a blob, for all blobs of an image: two blobs have as many as they take, and their pieces are 40 MiB. Where
/// more blobs are fetched at once, these are several connections by themselves.
pub(super) const EXTRA: usize = 2 * (AHEAD - 1);

pub(super) struct Ranges {
    shared: Arc<Shared>,
    current: io::Cursor<Vec<u8>>,
}

struct Shared {
    ways: Arc<Ways>,
    /// Who gave the first part.
    way: usize,
    digest: Digest,
    start: u64,
    total: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The next piece that nobody fetches yet.
    next: u64,
    /// The next piece that the reader wants.
    wanted: u64,
    fetched: BTreeMap<u64, Vec<u8>>,
    /// Why no more comes.
    failed: Option<Error>,
    /// They are not given as ranges: whoever reads goes on from there by one connection.
    unranged: bool,
    /// Nothing more is wanted: something failed, or the reader went away.
    stopped: bool,
    /// Threads that fetch.
    working: usize,
}

/// A thread at work; whatever ends it, the reader does not wait for it any more.
struct Working {
    shared: Arc<Shared>,
    /// Its connection is one of those that blobs share.
    extra: bool,
}

impl Drop for Working {
    fn drop(&mut self) {
        self.shared.state().working -= 1;
        self.shared.changed.notify_all();
        if self.extra {
            self.shared.ways.give_back_connection();
        }
    }
}

impl Ranges {
    /// Fetches the bytes from `start` to `total`; `None` where no more connections may be opened.
    pub(super) fn start(
        ways: &Arc<Ways>,
        way: usize,
        digest: &Digest,
        start: u64,
        total: u64,
    ) -> Option<Ranges> {
        let extra = ways.borrow_connections(AHEAD - 1);
        if extra == 0 {
            return None;
        }
        let shared = Arc::new(Shared {
            ways: Arc::clone(ways),
            way,
            digest: digest.clone(),
            start,
            total,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        for worker in 0..=extra {
            shared.state().working += 1;
            let working = Working { shared: Arc::clone(&shared), extra: worker > 0 };
            // Where there may be no more threads, those that there are do it.
            let _ = std::thread::Builder::new().spawn(move || {
                let working = working;
                working.shared.work();
            });
        }
        let ranges = Ranges { shared, current: io::Cursor::default() };
        let any = ranges.shared.state().working > 0;
        any.then_some(ranges)
    }
}

impl Ranges {
    /// Who gave the first part.
    pub(super) fn way(&self) -> usize {
        self.shared.way
    }

    /// Where to go on by one connection, and to where, after the last byte that was read.
    pub(super) fn left(&self) -> Option<(u64, u64)> {
        let state = self.shared.state();
        let at = self.shared.start + state.wanted * PIECE;
        (state.unranged && at < self.shared.total).then_some((at, self.shared.total))
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn pieces(&self) -> u64 {
        (self.total - self.start).div_ceil(PIECE)
    }

    /// Fetches one piece after the other, none too far ahead of the reader.
    fn work(&self) {
        loop {
            let piece = {
                let mut state = self.state();
                while !state.stopped
                    && state.next < self.pieces()
                    && state.next >= state.wanted + AHEAD as u64
                {
                    state = self.wait(state);
                }
                if state.stopped || state.next >= self.pieces() {
                    return;
                }
                state.next += 1;
                state.next - 1
            };
            let fetched = self.fetch(piece);
            let mut state = self.state();
            match fetched {
                Ok(Some(bytes)) => {
                    state.fetched.insert(piece, bytes);
                }
                Ok(None) => (state.unranged, state.stopped) = (true, true),
                Err(error) => {
                    state.failed.get_or_insert(error);
                    state.stopped = true;
                }
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    /// The bytes of a piece; `None` where they are not given alone.
    fn fetch(&self, piece: u64) -> Result<Option<Vec<u8>>> {
        let from = self.start + piece * PIECE;
        let end = self.total.min(from + PIECE);
        let mut bytes = vec![0; usize::try_from(end - from).unwrap_or(0)];
        let what = || format!("{} of {}", self.digest, self.ways.describe());
        let mut filled = 0;
        let Some(mut span) = Span::open_range(&self.ways, &self.digest, (from, end), self.way)? else {
            return Ok(None);
        };
        loop {
            let before = filled;
            while filled < bytes.len() {
                if self.state().stopped {
                    return Err(Error::new(ErrorKind::Unreachable, what(), "nobody reads it any more"));
                }
                match span.read(&mut bytes[filled..]).map_err(|e| recover(&what(), e))? {
                    // Perhaps it gave less than was asked for, which it may (RFC 9110, section 15.3.7).
                    0 => break,
                    read => filled += read,
                }
            }
            if filled == bytes.len() {
                return Ok(Some(bytes));
            }
            if filled == before {
                return Err(Error::new(ErrorKind::Corrupt, what(), "it ends before its end")
                    .next("the copy there is damaged; nothing was kept. Push the image again"));
            }
            if !span.go_on(end, true)? {
                return Ok(None);
            }
        }
    }
}

impl Read for Ranges {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.current.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            // Room for another piece only when this one is used up.
            self.current = io::Cursor::default();
            let mut state = self.shared.state();
            if state.wanted >= self.shared.pieces() {
                return Ok(0);
            }
            let wanted = state.wanted;
            let fetched = loop {
                if let Some(fetched) = state.fetched.remove(&wanted) {
                    break fetched;
                }
                if state.unranged {
                    return Ok(0);
                }
                if let Some(error) = &state.failed {
                    return Err(error.clone().into());
                }
                if state.working == 0 {
                    return Err(io::Error::other("the threads that fetch it have ended"));
                }
                state = self.shared.wait(state);
            };
            state.wanted += 1;
            drop(state);
            self.shared.changed.notify_all();
            self.current = io::Cursor::new(fetched);
        }
    }
}

impl Drop for Ranges {
    fn drop(&mut self) {
        self.shared.state().stopped = true;
        self.shared.changed.notify_all();
    }
}
