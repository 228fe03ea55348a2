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
    /// Bytes of data that all entries had until now, the current one with all of its.
    content: u64,
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
        Self { input, remaining: 0, padding: 0, content: 0, ended: false }
    }

    /// The input behind the archive, once [`Reader::next`] gave `None`.
    pub(crate) fn into_inner(self) -> R {
        self.input
    }

    /// The underlying input, to learn its position.
    pub(crate) fn inner(&self) -> &R {
        &self.input
    }

    /// The underlying input, to tell it what is read.
    pub(crate) fn inner_mut(&mut self) -> &mut R {
        &mut self.input
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

    /// Bytes of data that all entries had until now.
    pub(crate) fn content(&self) -> u64 {
        self.content
    }

    /// Goes on to the end without using anything, or until all data is more than `most`; the bytes of data that were passed by.
    pub(crate) fn rest(&mut self, most: u64) -> Result<u64> {
        let mut rest = self.remaining;
        while self.content <= most && self.next()?.is_some() {
            rest = rest.saturating_add(self.remaining);
        }
        Ok(rest)
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
            owner: (pax.uid.unwrap_or_else(|| header.id(108)), pax.gid.unwrap_or_else(|| header.id(116))),
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
        self.content = self.content.saturating_add(stored);
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seal(block: &mut [u8]) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }

    /// Two files, a link and both kinds of extension.
    fn sample() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut add = |name: &[u8], kind: u8, data: &[u8]| {
            let mut block = [0u8; BLOCK];
            block[..name.len()].copy_from_slice(name);
            block[100..107].copy_from_slice(b"0000644");
            block[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
            block[136..147].copy_from_slice(b"14000000000");
            block[156] = kind;
            block[157] = b'l';
            block[257..265].copy_from_slice(b"ustar\x0000");
            seal(&mut block);
            bytes.extend_from_slice(&block);
            bytes.extend_from_slice(data);
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        };
        add(b"one", b'0', &[1; 700]);
        add(b"PaxHeader", b'x', b"19 path=some/thing\n");
        add(b"two", b'0', b"two");
        add(b"long", b'L', b"a/long/name\0");
        add(b"three", b'2', b"");
        bytes.resize(bytes.len() + 2 * BLOCK, 0);
        bytes
    }

    fn walk(bytes: &[u8]) -> Result<(Vec<Vec<u8>>, u64)> {
        let mut reader = Reader::new(bytes);
        let (mut names, mut data) = (Vec::new(), 0);
        while let Some(entry) = reader.next()? {
            names.push(entry.path);
            loop {
                let length = reader.data()?.len();
                if length == 0 {
                    break;
                }
                reader.consume(length);
                data += length as u64;
            }
        }
        Ok((names, data))
    }

    #[test]
    fn a_plain_archive() {
        let (names, data) = walk(&sample()).unwrap();
        assert_eq!(names, [&b"one"[..], b"some/thing", b"a/long/name"]);
        assert_eq!(data, 703);
    }

    #[test]
    fn what_is_still_to_come_is_counted_from_anywhere() {
        let archive = sample();
        assert_eq!(Reader::new(&archive[..]).rest(u64::MAX).unwrap(), 703);
        let mut reader = Reader::new(&archive[..]);
        reader.next().unwrap();
        reader.data().unwrap();
        reader.consume(100);
        assert_eq!((reader.rest(u64::MAX).unwrap(), reader.content()), (603, 703));
        // More than anybody wants to know.
        let mut reader = Reader::new(&archive[..]);
        assert_eq!((reader.rest(699).unwrap(), reader.content()), (700, 700));
        assert!(Reader::new(&archive[..600]).rest(u64::MAX).is_err());
    }

    proptest! {
        /// Whatever is changed, reading ends, hands out no more than there is, and does not panic.
        #[test]
        fn changed_archives_end(
            changes in proptest::collection::vec((0usize..6144, any::<u8>()), 0..8),
            cut in 0usize..1024,
            sealed in any::<bool>(),
        ) {
            let mut bytes = sample();
            for (at, value) in changes {
                let length = bytes.len();
                bytes[at % length] = value;
            }
            if sealed {
                bytes.chunks_exact_mut(BLOCK).for_each(seal);
            }
            bytes.truncate(bytes.len() - cut);
            if let Ok((_, data)) = walk(&bytes) {
                prop_assert!(data <= bytes.len() as u64);
            }
        }

        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let _ = walk(&bytes);
        }
    }
}
