//! A strict reader of tar streams: ustar, PAX and GNU, where every reading that parsers dispute is refused.
//!
//! Formats: POSIX.1-2017 `pax` (ustar and extended headers), and the GNU tar manual, "Basic Tar Format" and
//! "Storing Sparse Files". Layers come from strangers, so that sizes and names are bounded before memory is taken.

mod header;
mod pax;
mod reader;
mod sparse;

pub(crate) use reader::Reader;

use crate::error::{Error, ErrorKind};

/// Bytes of a tar block.
pub(crate) const BLOCK: usize = 512;
/// Most bytes of one extended header or long name.
pub(crate) const MAX_EXTENSION: u64 = 1 << 20;

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry, with everything that its extended headers say about it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: EntryKind,
    /// Target of a link.
    pub(crate) link: Vec<u8>,
    /// Permission bits, set-id and sticky bits.
    pub(crate) mode: u32,
    /// Numbers of the user and of the group; no layer is unpacked with them.
    pub(crate) owner: (u32, u32),
    /// Seconds and nanoseconds of the last change.
    pub(crate) mtime: (i64, u32),
    /// Bytes of the file as seen after unpacking.
    pub(crate) size: u64,
    /// Where data lies in a sparse file; `None` for an ordinary file.
    pub(crate) sparse: Option<Vec<Segment>>,
    /// Extended attributes in the order of the archive.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A piece of a sparse file that has data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// The archive is ambiguous, malformed or beyond a limit.
pub(crate) fn refused(path: &[u8], reason: impl Into<String>) -> Error {
    let what = if path.is_empty() { "archive".to_owned() } else { format!("entry {}", show(path)) };
    Error::new(ErrorKind::Refused, what, reason)
        .next("the image is damaged or hostile; build or pull it again from a source you trust")
}

/// A name of the archive, for a message.
pub(crate) fn show(path: &[u8]) -> String {
    format!("{:?}", crate::error::printable(&String::from_utf8_lossy(path), 200))
}

/// [`std::io::Read::read`] of what has a buffer of its own.
pub(crate) fn read_buffered(from: &mut impl std::io::BufRead, buffer: &mut [u8]) -> std::io::Result<usize> {
    let available = from.fill_buf()?;
    let length = available.len().min(buffer.len());
    buffer[..length].copy_from_slice(&available[..length]);
    from.consume(length);
    Ok(length)
}
