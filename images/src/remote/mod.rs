//! Blobs over a pair of pipes: the process that may read a person's logins serves them to the process that may
//! write the store.
//!
//! Frames are `kind u8 · stream u32 · length u32 · payload`, little endian, with payloads of at most 128 KiB. The
//! reading side opens streams and grants credit in bytes; the serving side never sends more than was granted, so
//! that both need bounded memory and one slow stream does not stop the others. The serving side says twice a second that it is
//! there, whatever it waits for: one that somebody has stopped is told from one whose source is slow. Nothing that arrives is believed:
//! the reader checks every length, and what it reads is checked against its digest like any other source.

mod client;
mod server;

use std::io::{self, Read, Write};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use client::RemoteSource;
pub use server::serve_fetcher;
pub(crate) use server::serve_telling;

use crate::digest::Digest;
use crate::source::BlobKind;

const MAX_PAYLOAD: usize = 128 << 10;
/// Bytes that may be on their way in one stream.
const WINDOW: u64 = 1 << 20;
/// Streams open at once.
const MAX_STREAMS: usize = 64;

/// How often the serving side says that it is there.
const ALIVE: Duration = Duration::from_millis(500);

/// What a frame means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Reader: open a blob; payload is [`Open`] as JSON.
    Open = 1,
    /// Reader: so many more bytes may come; payload is a u32.
    Credit = 2,
    /// Reader: no more of this stream is wanted.
    Close = 3,
    /// Server: bytes.
    Data = 4,
    /// Server: the blob ended.
    End = 5,
    /// Server: the blob failed; payload is an error as JSON.
    Fail = 6,
    /// Server: it is there.
    Alive = 7,
    /// Server: what it waits for, for people; payload is text.
    Note = 8,
}

#[derive(Serialize, Deserialize)]
struct Open {
    kind: BlobKind,
    digest: Digest,
    offset: u64,
    /// No blob is wanted, but what [`crate::BlobSource::read_through`] says.
    #[serde(default)]
    file: bool,
}

struct Frame {
    kind: Kind,
    stream: u32,
    payload: Vec<u8>,
}

fn write_frame(out: &mut impl Write, kind: Kind, stream: u32, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    let mut head = [0u8; 9];
    head[0] = kind as u8;
    head[1..5].copy_from_slice(&stream.to_le_bytes());
    head[5..].copy_from_slice(&length.to_le_bytes());
    out.write_all(&head)?;
    out.write_all(payload)?;
    out.flush()
}

/// The next frame; `None` when the other side closed.
fn read_frame(input: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut head = [0u8; 9];
    loop {
        match input.read(&mut head[..1]) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    input.read_exact(&mut head[1..])?;
    let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
    let kind = match head[0] {
        1 => Kind::Open,
        2 => Kind::Credit,
        3 => Kind::Close,
        4 => Kind::Data,
        5 => Kind::End,
        6 => Kind::Fail,
        7 => Kind::Alive,
        8 => Kind::Note,
        other => return Err(invalid(&format!("unknown frame {other}"))),
    };
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let length = usize::try_from(word(5)).map_err(io::Error::other)?;
    if length > MAX_PAYLOAD {
        return Err(invalid(&format!("a frame of {length} bytes")));
    }
    let mut payload = vec![0; length];
    input.read_exact(&mut payload)?;
    Ok(Some(Frame { kind, stream: word(1), payload }))
}
