//! Reads an image and gives its files as a POSIX archive, always in the same order. Nothing in the image is believed:
//! places, lengths, depths and counts are bounded before memory is taken.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, Metadata};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use berth_tar::{BLOCK, END, Kind, Member, padding};

use super::compressor::Compressor;
use super::{
    CONFIG, DIRECTORY, EXTENDED, FIFO, FILE, MAGIC, METADATA, NO_TABLE, NONE, PLAIN_DATA, PLAIN_METADATA,
    SUPERBLOCK, SYMLINK,
};
use crate::error::{Error, ErrorKind, Result};
use crate::sif::inside;
use crate::unpack::{Limits, over};

/// Metadata blocks that are kept unpacked.
const CACHED: usize = 256;
/// Fragment blocks that are kept unpacked: the ends of many files stand in one, one after another.
const FRAGMENTS: usize = 4;
/// Bytes of an entry of a table to which an index leads, and how many of them a metadata block has.
const ENTRY: usize = 16;
const ENTRIES: u32 = 512;
/// Bytes of attributes of one file, and of the configuration.
const SMALL: usize = 256 << 10;

/// Why an image is refused.
fn bad(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::Refused, "squashfs image", reason)
        .next("it is damaged or hostile; make or copy it again from a source you trust")
}

/// Gives bytes on.
pub(super) type Give<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

/// Numbers of a structure, one after another.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (head, rest) =
            self.0.split_at_checked(length).ok_or_else(|| bad("a structure ends too early"))?;
        self.0 = rest;
        Ok(head)
    }
    fn u16(&mut self) -> Result<u16> {
        self.take(2).map(|b| u16::from_le_bytes([b[0], b[1]]))
    }
    fn u32(&mut self) -> Result<u32> {
        self.take(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }
    fn u64(&mut self) -> Result<u64> {
        let (low, high) = (self.u32()?, self.u32()?);
        Ok(u64::from(high) << 32 | u64::from(low))
    }
}

/// Attributes of root's, and the one by which a directory hides its namesakes in lower layers.
const TRUSTED: u16 = 1;
const OPAQUE: &[u8] = b"overlay.opaque";

/// An opened image.
pub(super) struct Image {
    file: File,
    /// Where it begins in the file.
    base: u64,
    block: usize,
    compressor: Compressor,
    root: u64,
    inode_table: u64,
    directory_table: u64,
    /// For each fragment block where it is, and its length.
    fragments: Table,
    /// Where values of attributes begin, and for each list where in there it is and how many it has.
    xattrs: Option<(u64, Table)>,
    length: u64,
    /// Whether character devices 0/0 and attributes of overlayfs hide what lower layers have.
    hides: bool,
}

/// A table that an index finds. Its entries are read when they are needed: an image may count what it does not have.
#[derive(Clone, Copy)]
struct Table {
    index: u64,
    count: u32,
}

/// Files that say how the image is to be run: the configuration that Berth wrote, enroot's variables, and what Apptainer has.
const TELLING: [&str; 7] = [
    CONFIG,
    ENVIRONMENT,
    inside::VARIABLES[0],
    inside::VARIABLES[1],
    inside::VARIABLES[2],
    inside::LABELS,
    inside::RUNSCRIPT,
];
pub(super) const ENVIRONMENT: &str = "etc/environment";

/// Those that are in the image, by name.
pub(super) type Found = HashMap<&'static str, Vec<u8>>;

enum Inode {
    Directory {
        size: u32,
        block: u32,
        offset: u16,
    },
    File {
        start: u64,
        size: u64,
        fragment: u32,
        offset: u32,
        sizes: Vec<u32>,
    },
    Symlink(Vec<u8>),
    Fifo,
    /// Character device 0/0: overlayfs's mark that a name is not there.
    Whiteout,
    /// Other devices and sockets, which no layer has.
    Other,
}

struct Head {
    mode: u32,
    mtime: i64,
    number: u32,
    links: u32,
    xattr: u32,
}

impl Image {
    /// Opens the image that takes so many bytes of a file from a place on, and may be a layer that hides what others have.
    pub(super) fn open(file: File, (base, length): (u64, u64), hides: bool) -> Result<Image> {
        let mut head = [0; SUPERBLOCK];
        file.read_exact_at(&mut head, base).map_err(|_| bad("it is shorter than its head"))?;
        let mut f = Fields(&head);
        let (magic, _inodes, _time, block, fragments) = (f.u32()?, f.u32()?, f.u32()?, f.u32()?, f.u32()?);
        let (compressor, log, _flags, _ids) = (f.u16()?, f.u16()?, f.u16()?, f.u16()?);
        let version = (f.u16()?, f.u16()?);
        let (root, used, _ids, xattr_table) = (f.u64()?, f.u64()?, f.u64()?, f.u64()?);
        let (inode_table, directory_table, fragment_table) = (f.u64()?, f.u64()?, f.u64()?);
        if magic != MAGIC || version != (4, 0) {
            return Err(bad(format!("it is of version {}.{}, and only 4.0 is read", version.0, version.1)));
        }
        if !(12..=20).contains(&log) || block != 1 << log {
            return Err(bad("its block size is none"));
        }
        if used > length {
            return Err(bad("it is cut off"));
        }
        let mut image = Image {
            file,
            base,
            block: usize::try_from(block).map_err(|_| bad("its block size is none"))?,
            compressor: Compressor::of(compressor)?,
            root,
            inode_table,
            directory_table,
            fragments: Table { index: fragment_table, count: fragments },
            xattrs: None,
            length,
            hides,
        };
        if xattr_table != NO_TABLE {
            let head = image.bytes(xattr_table, ENTRY)?;
            let mut fields = Fields(&head);
            let (values, count) = (fields.u64()?, fields.u32()?);
            image.xattrs = Some((values, Table { index: xattr_table + ENTRY as u64, count }));
        }
        Ok(image)
    }

    /// The file that it is read from.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// The file, as it is now.
    pub(super) fn file_metadata(&self) -> Result<Metadata> {
        self.file.metadata().map_err(|e| Error::io("squashfs image", e))
    }

    fn bytes(&self, at: u64, length: usize) -> Result<Vec<u8>> {
        if at.checked_add(length as u64).is_none_or(|end| end > self.length) {
            return Err(bad("a place lies outside of the file"));
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, self.base + at).map_err(|e| Error::io("squashfs image", e))?;
        Ok(bytes)
    }

    /// Unpacks what becomes at most `most` bytes.
    fn unpack(&self, packed: &[u8], most: usize) -> Result<Vec<u8>> {
        let out = self
            .compressor
            .unpack(packed, most)
            .map_err(|e| bad(format!("a block cannot be decompressed: {e}")))?;
        if out.len() > most { Err(bad("a block is larger than it may be")) } else { Ok(out) }
    }

    /// A metadata block, and where the next one begins.
    fn metadata(&self, at: u64) -> Result<(Vec<u8>, u64)> {
        let head = self.bytes(at, 2)?;
        let mark = u16::from_le_bytes([head[0], head[1]]);
        let length = usize::from(mark & !PLAIN_METADATA);
        if length == 0 || length > METADATA {
            return Err(bad("a metadata block is empty or too large"));
        }
        let bytes = self.bytes(at + 2, length)?;
        let block = if mark & PLAIN_METADATA != 0 { bytes } else { self.unpack(&bytes, METADATA)? };
        if block.is_empty() {
            return Err(bad("a metadata block is empty or too large"));
        }
        Ok((block, at + 2 + length as u64))
    }

    /// Gives the archive to `out`, and what is of interest in it.
    pub(super) fn archive(&self, limits: &Limits, out: &mut Give<'_>) -> Result<Found> {
        let mut walk = Walk {
            image: self,
            limits,
            out,
            cache: HashMap::new(),
            fragments: VecDeque::new(),
            links: HashMap::new(),
            open: Vec::new(),
            entries: 0,
            names: 0,
            bytes: 0,
            work: 0,
            found: Found::default(),
        };
        let (head, inode) = walk.inode(self.root)?;
        let Inode::Directory { .. } = inode else { return Err(bad("its root is no directory")) };
        walk.directory(&head, &inode, &mut Vec::new())?;
        (walk.out)(&END)?;
        Ok(walk.found)
    }
}

struct Walk<'a> {
    image: &'a Image,
    limits: &'a Limits,
    out: &'a mut Give<'a>,
    /// Metadata blocks by place, and where the next begins.
    cache: HashMap<u64, (Vec<u8>, u64)>,
    /// Fragment blocks by number, the one that was used last first.
    fragments: VecDeque<(u32, Rc<Vec<u8>>)>,
    /// First names of files that have several, by number.
    links: HashMap<u32, Vec<u8>>,
    /// Numbers of the directories above.
    open: Vec<u32>,
    entries: u64,
    /// Bytes of names, and of what was given on.
    names: u64,
    bytes: u64,
    /// Bytes that were unpacked for several entries, and of attributes: nothing else bounds how often.
    work: u64,
    found: Found,
}

/// Reads on in a metadata table, across blocks.
struct Cursor {
    at: u64,
    offset: usize,
}

impl Walk<'_> {
    fn read(&mut self, cursor: &mut Cursor, length: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(length.min(METADATA));
        while bytes.len() < length {
            if !self.cache.contains_key(&cursor.at) {
                if self.cache.len() >= CACHED {
                    self.cache.clear();
                }
                let block = self.image.metadata(cursor.at)?;
                self.toil(block.0.len())?;
                self.cache.insert(cursor.at, block);
            }
            let Some((block, next)) = self.cache.get(&cursor.at) else { return Err(bad("a block is lost")) };
            let rest =
                block.get(cursor.offset..).ok_or_else(|| bad("an offset lies outside of its block"))?;
            let take = rest.len().min(length - bytes.len());
            bytes.extend_from_slice(&rest[..take]);
            cursor.offset += take;
            if take == rest.len() {
                *cursor = Cursor { at: *next, offset: 0 };
            }
        }
        Ok(bytes)
    }

    /// An entry of a table, if it has so many.
    fn entry_of(&mut self, table: Table, number: u32) -> Result<Option<(u64, u32)>> {
        if number >= table.count {
            return Ok(None);
        }
        let at = table.index.checked_add(u64::from(number / ENTRIES) * 8);
        let place = self.image.bytes(at.ok_or_else(|| bad("a place overflows"))?, 8)?;
        let at = Fields(&place).u64()?;
        let offset = usize::try_from(number % ENTRIES).unwrap_or(0) * ENTRY;
        let entry = self.read(&mut Cursor { at, offset }, ENTRY)?;
        let mut fields = Fields(&entry);
        Ok(Some((fields.u64()?, fields.u32()?)))
    }

    /// Counts what is given on.
    fn grow(&mut self, bytes: u64) -> Result<()> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.limits.bytes {
            return Err(over(format!("its files have more than {} bytes", self.limits.bytes)));
        }
        self.limits.check_ratio(self.image.length, self.bytes)
    }

    /// Counts what is read again and again without being given on.
    fn toil(&mut self, bytes: usize) -> Result<()> {
        self.work = self.work.saturating_add(bytes as u64);
        self.limits.check_ratio(self.image.length, self.work)
    }

    /// Counts names that are held in memory.
    fn remember(&mut self, name: &[u8]) -> Result<()> {
        self.names += name.len() as u64;
        if self.names > self.limits.name_bytes {
            return Err(over(format!("its names have more than {} bytes", self.limits.name_bytes)));
        }
        Ok(())
    }

    fn inode(&mut self, place: u64) -> Result<(Head, Inode)> {
        let at = self.image.inode_table.checked_add(place >> 16).ok_or_else(|| bad("a place overflows"))?;
        let mut cursor = Cursor { at, offset: usize::try_from(place & 0xffff).unwrap_or(0) };
        let common = self.read(&mut cursor, 16)?;
        let mut f = Fields(&common);
        let (kind, mode) = (f.u16()?, f.u16()?);
        f.u32()?;
        let (mtime, number) = (f.u32()?, f.u32()?);
        let mut head =
            Head { mode: u32::from(mode) & 0o7777, mtime: mtime.into(), number, links: 1, xattr: NONE };
        let mut more = |walk: &mut Self, length| walk.read(&mut cursor, length);
        let inode = match kind {
            DIRECTORY => {
                let bytes = more(self, 16)?;
                let mut f = Fields(&bytes);
                let (block, _links, size, offset) = (f.u32()?, f.u32()?, f.u16()?, f.u16()?);
                Inode::Directory { size: size.into(), block, offset }
            }
            8 => {
                let bytes = more(self, 24)?;
                let mut f = Fields(&bytes);
                let (_links, size, block, _parent) = (f.u32()?, f.u32()?, f.u32()?, f.u32()?);
                let (_index, offset, xattr) = (f.u16()?, f.u16()?, f.u32()?);
                head.xattr = xattr;
                Inode::Directory { size, block, offset }
            }
            FILE => {
                let bytes = more(self, 16)?;
                let mut f = Fields(&bytes);
                let (start, fragment, offset, size) = (f.u32()?, f.u32()?, f.u32()?, f.u32()?);
                let sizes = self.sizes(&mut cursor, size.into(), fragment)?;
                Inode::File { start: start.into(), size: size.into(), fragment, offset, sizes }
            }
            9 => {
                let bytes = more(self, 40)?;
                let mut f = Fields(&bytes);
                let (start, size, _holes) = (f.u64()?, f.u64()?, f.u64()?);
                let (links, fragment, offset, xattr) = (f.u32()?, f.u32()?, f.u32()?, f.u32()?);
                (head.links, head.xattr) = (links, xattr);
                let sizes = self.sizes(&mut cursor, size, fragment)?;
                Inode::File { start, size, fragment, offset, sizes }
            }
            SYMLINK | 10 => {
                let bytes = more(self, 8)?;
                let mut f = Fields(&bytes);
                let (links, length) = (f.u32()?, f.u32()?);
                head.links = links;
                if length == 0 || length > 4095 {
                    return Err(bad("a symbolic link is empty or too long"));
                }
                Inode::Symlink(more(self, usize::try_from(length).unwrap_or(0))?)
            }
            FIFO | 13 => {
                let bytes = more(self, 4)?;
                head.links = Fields(&bytes).u32()?;
                Inode::Fifo
            }
            5 | 12 if self.image.hides => {
                let bytes = more(self, 8)?;
                let mut f = Fields(&bytes);
                let (_links, device) = (f.u32()?, f.u32()?);
                if device == 0 { Inode::Whiteout } else { Inode::Other }
            }
            4 | 5 | 7 | 11 | 12 | 14 => Inode::Other,
            other => return Err(bad(format!("an inode is of the unknown kind {other}"))),
        };
        Ok((head, inode))
    }

    /// Lengths of a file's blocks; of one whose end is in a fragment there are only the whole ones.
    fn sizes(&mut self, cursor: &mut Cursor, size: u64, fragment: u32) -> Result<Vec<u32>> {
        if size > self.limits.bytes {
            return Err(over(format!("its files have more than {} bytes", self.limits.bytes)));
        }
        let block = self.image.block as u64;
        let count = if fragment == NONE { size.div_ceil(block) } else { size / block };
        self.limits.check_ratio(self.image.length, self.bytes.saturating_add(size))?;
        let mut sizes = Vec::new();
        let mut left = count;
        while left > 0 {
            let some = left.min(1024);
            let bytes = self.read(cursor, usize::try_from(some * 4).unwrap_or(0))?;
            let mut f = Fields(&bytes);
            for _ in 0..some {
                sizes.push(f.u32()?);
            }
            left -= some;
        }
        Ok(sizes)
    }

    fn attributes(&mut self, list: u32) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        if list == NONE {
            return Ok(Vec::new());
        }
        let missing = || bad("a list of attributes is not there");
        let (base, lists) = self.image.xattrs.ok_or_else(missing)?;
        let (place, count) = self.entry_of(lists, list)?.ok_or_else(missing)?;
        let at = base.checked_add(place >> 16).ok_or_else(|| bad("a place overflows"))?;
        let mut cursor = Cursor { at, offset: usize::try_from(place & 0xffff).unwrap_or(0) };
        let (mut found, mut total) = (Vec::new(), 0);
        for _ in 0..count {
            let head = self.read(&mut cursor, 4)?;
            let mut f = Fields(&head);
            let (kind, length) = (f.u16()?, usize::from(f.u16()?));
            let name = self.read(&mut cursor, length)?;
            let head = self.read(&mut cursor, 4)?;
            let length = usize::try_from(Fields(&head).u32()?).unwrap_or(usize::MAX);
            total += 8 + name.len() + length.min(SMALL + 1);
            if total > SMALL {
                return Err(bad("the attributes of a file are too large"));
            }
            let mut value = self.read(&mut cursor, length)?;
            if kind & 0x100 != 0 {
                // The value stands elsewhere, and here is where.
                let place = Fields(&value).u64()?;
                let at = base.checked_add(place >> 16).ok_or_else(|| bad("a place overflows"))?;
                let mut there = Cursor { at, offset: usize::try_from(place & 0xffff).unwrap_or(0) };
                let head = self.read(&mut there, 4)?;
                let length = usize::try_from(Fields(&head).u32()?).unwrap_or(usize::MAX);
                total = total.saturating_add(length);
                if total > SMALL {
                    return Err(bad("the attributes of a file are too large"));
                }
                value = self.read(&mut there, length)?;
            }
            // Those of users alone reach a layer; the others are root's.
            let opaque = self.image.hides && kind & 0xff == TRUSTED && name == OPAQUE;
            if (kind & 0xff == 0 || opaque) && !name.contains(&0) && !name.is_empty() {
                found.push(([b"user.".as_slice(), &name].concat(), value));
            }
        }
        self.toil(total)?;
        found.sort();
        found.dedup_by(|a, b| a.0 == b.0);
        Ok(found)
    }

    fn listing(&mut self, inode: &Inode) -> Result<Vec<(Vec<u8>, u64)>> {
        let Inode::Directory { size, block, offset } = inode else { return Ok(Vec::new()) };
        let mut left = usize::try_from(size.saturating_sub(3)).unwrap_or(0);
        let at = self.image.directory_table.checked_add((*block).into());
        let at = at.ok_or_else(|| bad("a place overflows"))?;
        let mut cursor = Cursor { at, offset: (*offset).into() };
        let mut names = Vec::new();
        while left > 0 {
            let head = self.read(&mut cursor, 12)?;
            let mut f = Fields(&head);
            let (count, start, _number) = (f.u32()?, f.u32()?, f.u32()?);
            if count >= 256 {
                return Err(bad("a directory has too many entries behind one header"));
            }
            left = left.checked_sub(12).ok_or_else(|| bad("a directory ends too early"))?;
            for _ in 0..=count {
                let head = self.read(&mut cursor, 8)?;
                let mut f = Fields(&head);
                let (offset, _difference, _kind, length) = (f.u16()?, f.u16()?, f.u16()?, f.u16()?);
                let length = usize::from(length) + 1;
                let name = self.read(&mut cursor, length)?;
                left = left.checked_sub(8 + length).ok_or_else(|| bad("a directory ends too early"))?;
                if length > 256
                    || matches!(name.as_slice(), b"." | b"..")
                    || name.iter().any(|b| matches!(b, 0 | b'/'))
                {
                    return Err(bad("a name leads elsewhere"));
                }
                self.entries += 1;
                if self.entries > self.limits.entries {
                    return Err(over(format!("it has more than {} entries", self.limits.entries)));
                }
                self.remember(&name)?;
                names.push((name, u64::from(start) << 16 | u64::from(offset)));
            }
        }
        names.sort();
        if names.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(bad("a directory has a name twice"));
        }
        Ok(names)
    }

    fn directory(&mut self, head: &Head, inode: &Inode, path: &mut Vec<u8>) -> Result<()> {
        if self.open.contains(&head.number) {
            return Err(bad("a directory is below itself"));
        }
        if self.open.len() >= self.limits.depth {
            return Err(over(format!("it is deeper than {} directories", self.limits.depth)));
        }
        self.open.push(head.number);
        for (name, place) in self.listing(inode)? {
            let length = path.len();
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            self.entry(place, path)?;
            path.truncate(length);
        }
        self.open.pop();
        Ok(())
    }

    fn entry(&mut self, place: u64, path: &mut Vec<u8>) -> Result<()> {
        let (head, inode) = self.inode(place)?;
        let several =
            head.links > 1 && !matches!(inode, Inode::Directory { .. } | Inode::Whiteout | Inode::Other);
        if several && let Some(first) = self.links.get(&head.number).cloned() {
            return self.header(path, Kind::HardLink, &head, 0, &first, &[]);
        }
        let bears = matches!(inode, Inode::Directory { .. } | Inode::File { .. });
        let xattrs = if bears { self.attributes(head.xattr)? } else { Vec::new() };
        match &inode {
            Inode::Directory { .. } => {
                self.header(path, Kind::Directory, &head, 0, b"", &xattrs)?;
                let opaque = |(name, value): &(Vec<u8>, Vec<u8>)| {
                    name.strip_prefix(b"user.") == Some(OPAQUE) && value == b"y"
                };
                if self.image.hides && xattrs.iter().any(opaque) {
                    let mark = [path, b"/.wh..wh..opq".as_slice()].concat();
                    self.header(&mark, Kind::File, &head, 0, b"", &[])?;
                }
                return self.directory(&head, &inode, path);
            }
            Inode::File { size, .. } => {
                let telling = TELLING.into_iter().find(|name| path.as_slice() == name.as_bytes());
                let hidden = telling == Some(CONFIG);
                let wanted = telling.filter(|_| *size <= SMALL as u64);
                let mut kept = Vec::new();
                if !hidden {
                    self.header(path, Kind::File, &head, *size, b"", &xattrs)?;
                }
                self.content(&inode, &mut |walk, bytes| {
                    if wanted.is_some() {
                        kept.extend_from_slice(bytes);
                    }
                    if hidden { Ok(()) } else { (walk.out)(bytes) }
                })?;
                if !hidden {
                    (self.out)(&[0; BLOCK][..padding(*size)])?;
                }
                if let Some(name) = wanted {
                    self.found.insert(name, kept);
                }
            }
            Inode::Symlink(target) => self.header(path, Kind::Symlink, &head, 0, target, &[])?,
            Inode::Fifo => self.header(path, Kind::Fifo, &head, 0, b"", &[])?,
            Inode::Whiteout => {
                let at = path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
                let mark = [&path[..at], b".wh.", &path[at..]].concat();
                self.header(&mark, Kind::File, &head, 0, b"", &[])?;
            }
            Inode::Other => return Ok(()),
        }
        if several {
            self.remember(path)?;
            self.links.insert(head.number, path.clone());
        }
        Ok(())
    }

    fn header(
        &mut self,
        path: &[u8],
        kind: Kind,
        head: &Head,
        size: u64,
        link: &[u8],
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<()> {
        let member =
            Member { path, kind, mode: head.mode, owner: (0, 0), size, mtime: (head.mtime, 0), link, xattrs };
        let bytes = member.header();
        self.grow(bytes.len() as u64)?;
        (self.out)(&bytes)
    }

    /// The bytes of a file, block by block.
    fn content(&mut self, inode: &Inode, give: &mut dyn FnMut(&mut Self, &[u8]) -> Result<()>) -> Result<()> {
        let Inode::File { start, size, fragment, offset, sizes } = inode else { return Ok(()) };
        let block = self.image.block;
        self.grow(*size)?;
        let (mut at, mut left) = (*start, *size);
        for mark in sizes {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(block);
            let length = usize::try_from(mark & !PLAIN_DATA).unwrap_or(usize::MAX);
            let bytes = if *mark == 0 {
                vec![0; most]
            } else {
                if length > block {
                    return Err(bad("a block is larger than it may be"));
                }
                let stored = self.image.bytes(at, length)?;
                at += length as u64;
                if mark & PLAIN_DATA != 0 { stored } else { self.image.unpack(&stored, block)? }
            };
            if bytes.len() != most {
                return Err(bad("a block has not the length that its file needs"));
            }
            give(self, &bytes)?;
            left -= most as u64;
        }
        if left > 0 {
            let whole = self.fragment(*fragment)?;
            let from = usize::try_from(*offset).unwrap_or(usize::MAX);
            let end = from.checked_add(usize::try_from(left).unwrap_or(usize::MAX));
            let part = end.and_then(|end| whole.get(from..end));
            give(self, part.ok_or_else(|| bad("the end of a file lies outside of its fragment"))?)?;
        }
        Ok(())
    }

    /// A fragment block, unpacked.
    fn fragment(&mut self, number: u32) -> Result<Rc<Vec<u8>>> {
        let known = self.fragments.iter().position(|(of, _)| *of == number);
        let found = match known.and_then(|at| self.fragments.remove(at)) {
            Some(found) => found,
            None => {
                let entry = self.entry_of(self.image.fragments, number)?;
                let (place, mark) = entry.ok_or_else(|| bad("a fragment is not there"))?;
                let length = usize::try_from(mark & !PLAIN_DATA).unwrap_or(usize::MAX);
                if length > self.image.block {
                    return Err(bad("a fragment is larger than it may be"));
                }
                let stored = self.image.bytes(place, length)?;
                let plain = mark & PLAIN_DATA != 0;
                let whole = if plain { stored } else { self.image.unpack(&stored, self.image.block)? };
                self.toil(whole.len())?;
                self.fragments.truncate(FRAGMENTS - 1);
                (number, Rc::new(whole))
            }
        };
        let whole = Rc::clone(&found.1);
        self.fragments.push_front(found);
        Ok(whole)
    }
}

/// The extended kinds are named by number in [`Walk::inode`].
const _: () = assert!(
    DIRECTORY + EXTENDED == 8 && FILE + EXTENDED == 9 && SYMLINK + EXTENDED == 10 && FIFO + EXTENDED == 13
);
