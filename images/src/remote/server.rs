//! The serving side: opens blobs of a source as they are asked for.

use std::collections::HashMap;
use std::io::{Cursor, Read, Write};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::{ALIVE, Kind, MAX_PAYLOAD, MAX_STREAMS, Open, WINDOW, read_frame, write_frame};
use crate::error::{Error, ErrorKind, Result};
use crate::source::BlobSource;

/// Bytes that a stream may still send.
struct Credit {
    state: Mutex<CreditState>,
    changed: Condvar,
}

struct CreditState {
    bytes: u64,
    closed: bool,
    done: bool,
}

impl Credit {
    fn with(&self, change: impl FnOnce(&mut CreditState)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Waits for credit; gives it without using it, or 0 when nothing more is wanted.
    fn wait(&self) -> u64 {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self
            .changed
            .wait_while(state, |s| s.bytes == 0 && !s.closed)
            .unwrap_or_else(PoisonError::into_inner);
        if state.closed { 0 } else { state.bytes }
    }
}

/// Serves `source` until the reader closes its side.
///
/// # Errors
/// The reader breaks the protocol, or the pipe breaks.
pub fn serve_fetcher(source: &dyn BlobSource, read: impl Read, write: impl Write + Send) -> Result<()> {
    serve_telling(source, channel().1, read, write)
}

/// The same, and tells the reader what comes as `notes`, for people.
pub(crate) fn serve_telling(
    source: &dyn BlobSource,
    notes: Receiver<String>,
    mut read: impl Read,
    write: impl Write + Send,
) -> Result<()> {
    let write = Mutex::new(write);
    let broken = |reason: String| Error::new(ErrorKind::Unreachable, "link to the unpacking process", reason);
    let over = (Mutex::new(false), Condvar::new());
    std::thread::scope(|scope| {
        let start = |e: std::io::Error| broken(format!("no thread can be started: {e}"));
        let (writing, ended) = (&write, &over);
        std::thread::Builder::new()
            .spawn_scoped(scope, move || be_alive(writing, ended, &notes))
            .map_err(start)?;
        let mut streams: HashMap<u32, Arc<Credit>> = HashMap::new();
        let result = loop {
            let frame = match read_frame(&mut read) {
                Ok(Some(frame)) => frame,
                Ok(None) => break Ok(()),
                Err(e) => break Err(broken(e.to_string())),
            };
            match frame.kind {
                Kind::Open => {
                    streams.retain(|_, c| !c.state.lock().unwrap_or_else(PoisonError::into_inner).done);
                    let Ok(open) = serde_json::from_slice::<Open>(&frame.payload) else {
                        break Err(broken("a malformed request".to_owned()));
                    };
                    if streams.len() >= MAX_STREAMS || streams.contains_key(&frame.stream) {
                        break Err(broken("too many requests at once".to_owned()));
                    }
                    let state = CreditState { bytes: WINDOW, closed: false, done: false };
                    let credit = Arc::new(Credit { state: Mutex::new(state), changed: Condvar::new() });
                    streams.insert(frame.stream, Arc::clone(&credit));
                    let write = &write;
                    let begun = std::thread::Builder::new().spawn_scoped(scope, move || {
                        serve_stream(source, &open, frame.stream, &credit, write);
                        credit.with(|c| c.done = true);
                    });
                    if let Err(e) = begun {
                        break Err(start(e));
                    }
                }
                Kind::Credit => {
                    let Ok(bytes) = <[u8; 4]>::try_from(frame.payload.as_slice()) else {
                        break Err(broken("a malformed credit".to_owned()));
                    };
                    if let Some(credit) = streams.get(&frame.stream) {
                        credit
                            .with(|c| c.bytes = c.bytes.saturating_add(u64::from(u32::from_le_bytes(bytes))));
                    }
                }
                Kind::Close => {
                    if let Some(credit) = streams.get(&frame.stream) {
                        credit.with(|c| c.closed = true);
                    }
                }
                Kind::Data | Kind::End | Kind::Fail | Kind::Alive | Kind::Note => {
                    break Err(broken("an answer where a request was expected".to_owned()));
                }
            }
        };
        for credit in streams.values() {
            credit.with(|c| c.closed = true);
        }
        *over.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        over.1.notify_all();
        result
    })
}

/// Says so again and again, with the notes that came, until it is over or nobody hears it.
fn be_alive(write: &Mutex<impl Write>, (over, changed): &(Mutex<bool>, Condvar), notes: &Receiver<String>) {
    loop {
        let waiting = over.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_timeout_while(waiting, ALIVE, |over| !*over);
        let (is_over, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *is_over {
            return;
        }
        drop(is_over);
        let mut write = write.lock().unwrap_or_else(PoisonError::into_inner);
        let told = |note: String| write_frame(&mut *write, Kind::Note, 0, note.as_bytes());
        if notes.try_iter().try_for_each(told).is_err() {
            return;
        }
        if write_frame(&mut *write, Kind::Alive, 0, &[]).is_err() {
            return;
        }
    }
}

fn serve_stream(
    source: &dyn BlobSource,
    open: &Open,
    stream: u32,
    credit: &Credit,
    write: &Mutex<impl Write>,
) {
    let send = |kind: Kind, payload: &[u8]| {
        let mut write = write.lock().unwrap_or_else(PoisonError::into_inner);
        write_frame(&mut *write, kind, stream, payload).is_ok()
    };
    let fail = |error: &Error| {
        let text = serde_json::to_vec(&error.sanitised()).unwrap_or_default();
        send(Kind::Fail, &text);
    };
    let opened: Result<Box<dyn Read + Send>> = match open.file {
        true => match source.read_through() {
            Some(words) => Ok(Box::new(Cursor::new(words.into_bytes()))),
            None => Err(Error::new(ErrorKind::NotFound, source.describe(), "is not read through one file")),
        },
        false => source.open(open.kind, &open.digest, open.offset),
    };
    let mut blob = match opened {
        Ok(blob) => blob,
        Err(error) => return fail(&error),
    };
    let mut buffer = vec![0; MAX_PAYLOAD];
    loop {
        let allowed = usize::try_from(credit.wait()).unwrap_or(usize::MAX).min(MAX_PAYLOAD);
        if allowed == 0 {
            return;
        }
        match blob.read(&mut buffer[..allowed]) {
            Ok(0) => {
                send(Kind::End, &[]);
                return;
            }
            Ok(read) => {
                credit.with(|c| c.bytes -= read as u64);
                if !send(Kind::Data, &buffer[..read]) {
                    return;
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return fail(&crate::error::recover(&source.describe(), e)),
        }
    }
}
