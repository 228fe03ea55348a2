//! The stream of entries: extended headers joined to the entry they describe, data handed out without copies.

use std::io::{BufRead, Read};

use super::header::{Dialect, Header};
use super::pax::Pax;
use super::{BLOCK, Entry, EntryKind, MAX_EXTENSION, refused, sparse};
use crate::error::{Error, ErrorKind, Result, recover};

/// Largest size that an octal field of eleven digits holds.
const OCTAL_LIMIT: u64 = 0o77_777_777_777;

/// Reads entries one after another. Data of an entry that is not read is skipped.
pub(crate) struct Reader<R> {
    input: R,
    /// Bytes of the current entry's data that were not taken yet.
    remaining: u64,
    /// Padding that follows them.
    padding: u64,
    ended: bool,
}

/// Extensions seen in front of an entry.
#[derive(Default)]
struct Extensions {
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: BufRead> Reader<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, remaining: 0, padding: 0, ended: false }
    }

    /// The input behind the archive, once [`Reader::next`] gave `None`.
    pub(crate) fn into_inner(self) -> R {
        self.input
    }

    /// The underlying input, to learn its position.
    pub(crate) fn inner(&self) -> &R {
        &self.input
    }

    /// The next entry, or `None` at the end marker or at the end of the stream.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_data()?;
            if self.ended {
                return Ok(None);
            }
            let mut block = [0; BLOCK];
            let found = read_block(&mut self.input, &mut block)?;
            if !found || block.iter().all(|b| *b == 0) {
                self.ended = true;
                if extensions.pax.is_some()
                    || extensions.long_name.is_some()
                    || extensions.long_link.is_some()
                {
                    return Err(refused(&[], "the archive ends after an extended header"));
                }
                // The end marker is two zero blocks. One followed by data ends the archive for some readers only.
                if found && read_block(&mut self.input, &mut block)? && block.iter().any(|b| *b != 0) {
                    return Err(refused(&[], "a single zero block stands within the archive"));
                }
                return Ok(None);
            }
            let header = Header::new(&block)?;
            let stored = header.size()?;
            match header.type_flag() {
                b'x' => {
                    if extensions.pax.is_some() {
                        return Err(refused(
                            &header.path(),
                            "two extended headers stand in front of one entry",
                        ));
                    }
                    extensions.pax = Some(Pax::parse(&self.extension(stored)?)?);
                }
                b'g' => Pax::check_global(&self.extension(stored)?)?,
                b'L' => set_once(&mut extensions.long_name, self.long_text(stored)?)?,
                b'K' => set_once(&mut extensions.long_link, self.long_text(stored)?)?,
                // A volume label describes the archive and makes nothing.
                b'V' => self.expect(stored),
                _ => return self.entry(&header, stored, extensions).map(Some),
            }
        }
    }

    /// The next bytes of the entry's data; empty at its end. Say with [`Reader::consume`] how many were used.
    pub(crate) fn data(&mut self) -> Result<&[u8]> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        let buffer = self.input.fill_buf().map_err(|e| recover("archive", e))?;
        if buffer.is_empty() {
            return Err(truncated());
        }
        let length = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(buffer.len());
        Ok(&buffer[..length])
    }

    /// Marks bytes of [`Reader::data`] as used.
    pub(crate) fn consume(&mut self, bytes: usize) {
        self.input.consume(bytes);
        self.remaining -= bytes as u64;
    }

    /// Skips the current entry's data with a function that is faster than reading it.
    pub(crate) fn skip_by(&mut self, skip: impl FnOnce(&mut R, u64) -> std::io::Result<()>) -> Result<()> {
        let remaining = std::mem::take(&mut self.remaining);
        skip(&mut self.input, remaining).map_err(|e| recover("archive", e))
    }

    fn entry(&mut self, header: &Header<'_>, stored: u64, extensions: Extensions) -> Result<Entry> {
        let Extensions { pax, long_name, long_link } = extensions;
        let pax = pax.unwrap_or_default();
        let path = one_of(pax.path, long_name, "name")?.unwrap_or_else(|| header.path());
        let link = one_of(pax.link, long_link, "link target")?.unwrap_or_else(|| header.link());
        let stored = match pax.size {
            // A size that the header could have held must be in the header too: two readers that trust
            // different fields would see different archives.
            Some(size)
                if size != stored && (size <= OCTAL_LIMIT || !header.size_is_octal() || stored > 0) =>
            {
                return Err(refused(&path, "its extended header and its header disagree about the size"));
            }
            Some(size) => size,
            None => stored,
        };
        let slash = path.ends_with(b"/");
        let kind = match header.type_flag() {
            0 if slash => EntryKind::Directory,
            b'0' | b'7' if slash => {
                return Err(refused(&path, "it is a file whose name ends in a slash"));
            }
            0 | b'0' | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::CharDevice,
            b'4' => EntryKind::BlockDevice,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => {
                let name = char::from(other);
                return Err(refused(&path, format!("its type {name:?} is not supported")));
            }
        };
        if kind != EntryKind::File && stored > 0 {
            return Err(refused(&path, "it is not a file and has data, which readers treat differently"));
        }
        let mut entry = Entry {
            path,
            kind,
            link,
            mode: header.mode()?,
            mtime: match pax.mtime {
                Some(time) => time,
                None => (header.mtime()?, 0),
            },
            size: stored,
            sparse: None,
            xattrs: pax.xattrs,
        };
        self.expect(stored);
        if header.type_flag() == b'S' {
            if pax.sparse.is_some() || header.dialect() != Dialect::Gnu {
                return Err(refused(&entry.path, "it is sparse in two ways at once"));
            }
            let (map, real) = sparse::old_gnu(header, stored, &mut self.input)?;
            entry.sparse = Some(map);
            entry.size = real;
        } else if let Some(sparse) = pax.sparse {
            let (Some(1), Some(0), Some(real)) = (sparse.major, sparse.minor, sparse.real_size) else {
                return Err(refused(&entry.path, "its sparse format is not 1.0"));
            };
            if kind != EntryKind::File {
                return Err(refused(&entry.path, "it is sparse and not a file"));
            }
            if let Some(name) = sparse.name {
                entry.path = name;
            }
            let (map, taken) = sparse::pax_1_0(&entry.path, stored, real, &mut self.input)?;
            self.remaining -= taken;
            entry.sparse = Some(map);
            entry.size = real;
        }
        Ok(entry)
    }

    fn expect(&mut self, stored: u64) {
        self.remaining = stored;
        self.padding = stored.wrapping_neg() % BLOCK as u64;
    }

    fn skip_data(&mut self) -> Result<()> {
        let remaining = std::mem::take(&mut self.remaining);
        discard(&mut self.input, remaining)?;
        let padding = std::mem::take(&mut self.padding);
        // The last entry's padding may be missing together with the end marker.
        match discard(&mut self.input, padding) {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                self.ended = true;
                Ok(())
            }
            other => other,
        }
    }

    fn extension(&mut self, stored: u64) -> Result<Vec<u8>> {
        if stored > MAX_EXTENSION {
            return Err(refused(
                &[],
                format!("an extended header of {stored} bytes is over the limit of {MAX_EXTENSION}"),
            ));
        }
        let mut bytes = Vec::new();
        (&mut self.input).take(stored).read_to_end(&mut bytes).map_err(|e| recover("archive", e))?;
        if bytes.len() as u64 != stored {
            return Err(truncated());
        }
        self.remaining = 0;
        self.padding = stored.wrapping_neg() % BLOCK as u64;
        Ok(bytes)
    }

    /// A GNU long name: text that ends with one NUL.
    fn long_text(&mut self, stored: u64) -> Result<Vec<u8>> {
        let mut bytes = self.extension(stored)?;
        if bytes.last() == Some(&0) {
            bytes.pop();
        }
        if bytes.contains(&0) {
            return Err(refused(&[], "a long name holds a NUL"));
        }
        Ok(bytes)
    }
}

fn set_once(slot: &mut Option<Vec<u8>>, value: Vec<u8>) -> Result<()> {
    match slot {
        Some(_) => Err(refused(&value, "two long names stand in front of one entry")),
        None => {
            *slot = Some(value);
            Ok(())
        }
    }
}

/// A value that PAX and GNU extensions may both give, if they agree.
fn one_of(pax: Option<Vec<u8>>, gnu: Option<Vec<u8>>, what: &str) -> Result<Option<Vec<u8>>> {
    match (pax, gnu) {
        (Some(pax), Some(gnu)) if pax != gnu => {
            Err(refused(&pax, format!("two extensions disagree about its {what}")))
        }
        (Some(value), _) | (None, Some(value)) => Ok(Some(value)),
        (None, None) => Ok(None),
    }
}

/// Fills one block; `false` at the very end of the stream.
pub(super) fn read_block(input: &mut impl BufRead, block: &mut [u8; BLOCK]) -> Result<bool> {
    let mut filled = 0;
    while filled < BLOCK {
        let buffer = input.fill_buf().map_err(|e| recover("archive", e))?;
        if buffer.is_empty() {
            return if filled == 0 { Ok(false) } else { Err(truncated()) };
        }
        let length = buffer.len().min(BLOCK - filled);
        block[filled..filled + length].copy_from_slice(&buffer[..length]);
        input.consume(length);
        filled += length;
    }
    Ok(true)
}

/// Drops `bytes` bytes of the input.
fn discard(input: &mut impl BufRead, mut bytes: u64) -> Result<()> {
    while bytes > 0 {
        let buffer = input.fill_buf().map_err(|e| recover("archive", e))?;
        if buffer.is_empty() {
            return Err(truncated());
        }
        let length = usize::try_from(bytes).unwrap_or(usize::MAX).min(buffer.len());
        input.consume(length);
        bytes -= length as u64;
    }
    Ok(())
}

fn truncated() -> Error {
    Error::new(ErrorKind::Corrupt, "archive", "it ends in the middle of an entry")
        .next("the image is damaged; build or push it again")
}
