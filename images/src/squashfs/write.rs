//! Writes an image: data blocks as files come, and at the end the tables.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};

use super::{
    DIRECTORY, EXTENDED, FIFO, FILE, MAGIC, METADATA, NO_TABLE, NO_XATTRS, NONE, PLAIN_DATA, PLAIN_METADATA,
    SUPERBLOCK, SYMLINK, ZSTD,
};

/// Bytes of a data block, and its logarithm.
const BLOCK: usize = 1 << BLOCK_LOG;
const BLOCK_LOG: u16 = 17;
/// Fast enough for a node's disk, and half as large as no compression.
const LEVEL: i32 = 3;
/// Images are padded to whole pages, for loop devices.
const PAGE: u64 = 4096;
/// Entries behind one header of a directory listing.
const RUN: usize = 256;

type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

enum Body {
    Directory(BTreeMap<Vec<u8>, usize>),
    File { start: u64, size: u64, sizes: Vec<u32>, fragment: u32, offset: u32, holes: u64 },
    Symlink(Vec<u8>),
    Fifo,
}

struct Node {
    body: Body,
    mode: u32,
    /// Places of user and group in the table of ids.
    owner: (u16, u16),
    mtime: u32,
    xattr: u32,
    /// Names that it has.
    links: u32,
    /// Assigned when it is written: its number and its place.
    written: Option<(u32, u64)>,
}

/// A metadata table that grows.
struct Table {
    out: Vec<u8>,
    block: Vec<u8>,
    /// Where each block begins.
    starts: Vec<u64>,
}

impl Table {
    fn new() -> Table {
        Table { out: Vec::new(), block: Vec::with_capacity(METADATA), starts: Vec::new() }
    }

    /// The place of what is written next: the block's offset in the table, and the offset in the block.
    fn place(&self) -> (u64, u16) {
        (self.out.len() as u64, u16::try_from(self.block.len()).unwrap_or(0))
    }

    fn put(&mut self, packer: &mut Packer, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = (METADATA - self.block.len()).min(bytes.len());
            self.block.extend_from_slice(&bytes[..room]);
            bytes = &bytes[room..];
            if self.block.len() == METADATA {
                self.flush(packer)?;
            }
        }
        Ok(())
    }

    fn flush(&mut self, packer: &mut Packer) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        self.starts.push(self.out.len() as u64);
        let packed = packer.pack(&self.block)?;
        let (bytes, plain) = match &packed {
            Some(packed) => (packed, 0),
            None => (&self.block, PLAIN_METADATA),
        };
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        self.out.extend_from_slice(&(length | plain).to_le_bytes());
        self.out.extend_from_slice(bytes);
        self.block.clear();
        Ok(())
    }
}

/// Compresses blocks one by one.
struct Packer(zstd::bulk::Compressor<'static>);

impl Packer {
    /// The compressed block, unless that is no smaller.
    fn pack(&mut self, block: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(Some(self.0.compress(block)?).filter(|packed| packed.len() < block.len()))
    }
}

/// An image being written.
pub(crate) struct Writer {
    file: BufWriter<File>,
    at: u64,
    packer: Packer,
    nodes: Vec<Node>,
    /// Places of fragment blocks, and their lengths.
    fragments: Vec<(u64, u32)>,
    fragment: Vec<u8>,
    xattrs: Vec<Attributes>,
    xattr_ids: HashMap<Attributes, u32>,
    /// Users and groups, root first.
    ids: Vec<u32>,
    id_places: HashMap<u32, u16>,
}

/// What every file has.
pub(crate) struct Meta {
    pub(crate) mode: u32,
    /// User and group.
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: i64,
    pub(crate) xattrs: Attributes,
}

const ROOT: usize = 0;

impl Writer {
    /// Begins an image in an empty file. `mtime`: of the root directory.
    pub(crate) fn new(file: File, mtime: i64) -> io::Result<Writer> {
        let mut writer = Writer {
            file: BufWriter::with_capacity(1 << 20, file),
            at: SUPERBLOCK as u64,
            packer: Packer(zstd::bulk::Compressor::new(LEVEL)?),
            nodes: Vec::new(),
            fragments: Vec::new(),
            fragment: Vec::with_capacity(BLOCK),
            xattrs: Vec::new(),
            xattr_ids: HashMap::new(),
            ids: vec![0],
            id_places: HashMap::from([(0, 0)]),
        };
        writer.file.write_all(&[0; SUPERBLOCK])?;
        writer.node(
            Body::Directory(BTreeMap::new()),
            Meta { mode: 0o755, owner: (0, 0), mtime, xattrs: Vec::new() },
        );
        Ok(writer)
    }

    fn node(&mut self, body: Body, meta: Meta) -> usize {
        let xattr = if meta.xattrs.is_empty() {
            NONE
        } else {
            let next = u32::try_from(self.xattrs.len()).unwrap_or(NONE);
            *self.xattr_ids.entry(meta.xattrs).or_insert_with_key(|list| {
                self.xattrs.push(list.clone());
                next
            })
        };
        // What is before 1970 becomes 1970. mksquashfs keeps the lower 32 bits, which the kernel reads without a sign: then a file
        // of 1969 is from 2106, and programs that compare times take it for newer than all others.
        let mtime = u32::try_from(meta.mtime.clamp(0, i64::from(u32::MAX))).unwrap_or(0);
        let owner = (self.id(meta.owner.0), self.id(meta.owner.1));
        self.nodes.push(Node {
            body,
            mode: meta.mode & 0o7777,
            owner,
            mtime,
            xattr,
            links: 0,
            written: None,
        });
        self.nodes.len() - 1
    }

    /// Where an id stands in the table. The superblock counts 65535: whoever comes after them is root.
    fn id(&mut self, id: u32) -> u16 {
        if let Some(place) = self.id_places.get(&id) {
            return *place;
        }
        match u16::try_from(self.ids.len()) {
            Ok(place) if place < u16::MAX => {
                self.ids.push(id);
                self.id_places.insert(id, place);
                place
            }
            _ => 0,
        }
    }

    /// The directory in which a path's last name stands, made where it is missing, and that name.
    fn parent<'a>(&mut self, path: &'a [u8]) -> io::Result<(usize, &'a [u8])> {
        let mut at = ROOT;
        let mut parts = path.split(|b| *b == b'/').filter(|p| !p.is_empty()).peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return Ok((at, part));
            }
            at = match self.child(at, part) {
                Some(found) => found,
                None => {
                    let meta = Meta { mode: 0o755, owner: (0, 0), mtime: 0, xattrs: Vec::new() };
                    let made = self.node(Body::Directory(BTreeMap::new()), meta);
                    self.attach(at, part, made)?;
                    made
                }
            };
        }
        Err(io::Error::other("a file without a name"))
    }

    fn child(&self, dir: usize, name: &[u8]) -> Option<usize> {
        match &self.nodes[dir].body {
            Body::Directory(names) => names.get(name).copied(),
            _ => None,
        }
    }

    fn attach(&mut self, dir: usize, name: &[u8], node: usize) -> io::Result<()> {
        if name.len() > 256 || matches!(name, b"." | b"..") {
            return Err(io::Error::other("a name that cannot be one"));
        }
        let Body::Directory(names) = &mut self.nodes[dir].body else {
            return Err(io::Error::other("a file where a directory is needed"));
        };
        // The last one of a name counts.
        let before = names.insert(name.to_vec(), node);
        self.nodes[node].links += 1;
        if let Some(before) = before {
            self.nodes[before].links -= 1;
        }
        Ok(())
    }

    fn find(&self, path: &[u8]) -> Option<usize> {
        path.split(|b| *b == b'/').filter(|p| !p.is_empty()).try_fold(ROOT, |at, part| self.child(at, part))
    }

    /// A directory; one that is there gets these attributes.
    pub(crate) fn directory(&mut self, path: &[u8], meta: Meta) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        let known = self.child(dir, name).filter(|n| matches!(self.nodes[*n].body, Body::Directory(_)));
        let made = self.node(Body::Directory(BTreeMap::new()), meta);
        match known {
            Some(known) => {
                let described = self.nodes.pop().ok_or_else(|| io::Error::other("lost"))?;
                let node = &mut self.nodes[known];
                (node.mode, node.owner) = (described.mode, described.owner);
                (node.mtime, node.xattr) = (described.mtime, described.xattr);
                Ok(())
            }
            None => self.attach(dir, name, made),
        }
    }

    /// A symbolic link.
    pub(crate) fn symlink(&mut self, path: &[u8], target: &[u8], meta: Meta) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        let made = self.node(Body::Symlink(target.to_vec()), Meta { xattrs: Vec::new(), ..meta });
        self.attach(dir, name, made)
    }

    /// A named pipe.
    pub(crate) fn fifo(&mut self, path: &[u8], meta: Meta) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        let made = self.node(Body::Fifo, Meta { xattrs: Vec::new(), ..meta });
        self.attach(dir, name, made)
    }

    /// Another name of a file that is there.
    pub(crate) fn hard_link(&mut self, path: &[u8], target: &[u8]) -> io::Result<()> {
        let found = self.find(target).filter(|n| !matches!(self.nodes[*n].body, Body::Directory(_)));
        let node = found.ok_or_else(|| io::Error::other("a hard link to what is not there"))?;
        let (dir, name) = self.parent(path)?;
        self.attach(dir, name, node)
    }

    /// A file with the bytes that `next` gives until there are none.
    pub(crate) fn file(
        &mut self,
        path: &[u8],
        meta: Meta,
        mut next: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<()> {
        let (start, mut sizes, mut size, mut holes) = (self.at, Vec::new(), 0_u64, 0_u64);
        let (mut fragment, mut offset) = (NONE, 0);
        let mut block = vec![0; BLOCK];
        loop {
            let mut filled = 0;
            while filled < BLOCK {
                match next(&mut block[filled..])? {
                    0 => break,
                    n => filled += n,
                }
            }
            size += filled as u64;
            if filled == BLOCK {
                let length = self.block(&block)?;
                if length == 0 {
                    holes += filled as u64;
                }
                sizes.push(length);
                continue;
            }
            if filled > 0 {
                if self.fragment.len() + filled > BLOCK {
                    self.flush_fragment()?;
                }
                fragment = u32::try_from(self.fragments.len()).map_err(io::Error::other)?;
                offset = u32::try_from(self.fragment.len()).map_err(io::Error::other)?;
                self.fragment.extend_from_slice(&block[..filled]);
            }
            break;
        }
        let (dir, name) = self.parent(path)?;
        let made = self.node(Body::File { start, size, sizes, fragment, offset, holes }, meta);
        self.attach(dir, name, made)
    }

    /// Writes a block; its length with its mark, and 0 for one that is all zeros and takes no place.
    fn block(&mut self, block: &[u8]) -> io::Result<u32> {
        if block.iter().all(|b| *b == 0) {
            return Ok(0);
        }
        let packed = self.packer.pack(block)?;
        let (bytes, plain) = match &packed {
            Some(packed) => (packed.as_slice(), 0),
            None => (block, PLAIN_DATA),
        };
        self.file.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(u32::try_from(bytes.len()).map_err(io::Error::other)? | plain)
    }

    fn flush_fragment(&mut self) -> io::Result<()> {
        if self.fragment.is_empty() {
            return Ok(());
        }
        let fragment = std::mem::take(&mut self.fragment);
        let start = self.at;
        let packed = self.packer.pack(&fragment)?;
        let (bytes, plain) = match &packed {
            Some(packed) => (packed.as_slice(), 0),
            None => (fragment.as_slice(), PLAIN_DATA),
        };
        self.file.write_all(bytes)?;
        self.at += bytes.len() as u64;
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)? | plain;
        self.fragments.push((start, length));
        self.fragment.reserve(BLOCK);
        Ok(())
    }

    /// Writes the tables and the superblock, and gives the file back.
    pub(crate) fn finish(mut self) -> io::Result<File> {
        self.flush_fragment()?;
        let (mut inodes, mut directories) = (Table::new(), Table::new());
        let mut count = 0;
        let root = self.write_directory(ROOT, None, &mut count, &mut inodes, &mut directories)?;
        inodes.flush(&mut self.packer)?;
        directories.flush(&mut self.packer)?;
        let inode_table = self.at;
        self.append(&inodes.out)?;
        let directory_table = self.at;
        self.append(&directories.out)?;
        let mut fragments = Table::new();
        for (start, length) in std::mem::take(&mut self.fragments) {
            let entry = [start.to_le_bytes().as_slice(), &length.to_le_bytes(), &[0; 4]].concat();
            fragments.put(&mut self.packer, &entry)?;
        }
        let fragment_count = fragments_in(&fragments);
        let fragment_table = self.indexed(fragments)?;
        let mut ids = Table::new();
        for id in &self.ids {
            ids.put(&mut self.packer, &id.to_le_bytes())?;
        }
        let id_count = u16::try_from(self.ids.len()).map_err(io::Error::other)?;
        let id_table = self.indexed(ids)?;
        let xattr_table = self.write_attributes()?;
        let bytes_used = self.at;
        let padding = usize::try_from(bytes_used.wrapping_neg() % PAGE).unwrap_or(0);
        self.file.write_all(&vec![0; padding])?;
        let mut head = Vec::with_capacity(SUPERBLOCK);
        head.extend_from_slice(&MAGIC.to_le_bytes());
        head.extend_from_slice(&count.to_le_bytes());
        head.extend_from_slice(&self.nodes[ROOT].mtime.to_le_bytes());
        head.extend_from_slice(&u32::try_from(BLOCK).map_err(io::Error::other)?.to_le_bytes());
        head.extend_from_slice(&fragment_count.to_le_bytes());
        let flags = if xattr_table == NO_TABLE { NO_XATTRS } else { 0 };
        for number in [ZSTD, BLOCK_LOG, flags, id_count, 4, 0] {
            head.extend_from_slice(&number.to_le_bytes());
        }
        for number in
            [root, bytes_used, id_table, xattr_table, inode_table, directory_table, fragment_table, NO_TABLE]
        {
            head.extend_from_slice(&number.to_le_bytes());
        }
        let mut file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&head)?;
        Ok(file)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Writes a table and, behind it, where its blocks are; the place of the latter.
    fn indexed(&mut self, mut table: Table) -> io::Result<u64> {
        table.flush(&mut self.packer)?;
        let base = self.at;
        self.append(&table.out)?;
        let index = self.at;
        for start in &table.starts {
            self.append(&(base + start).to_le_bytes())?;
        }
        Ok(index)
    }

    fn write_attributes(&mut self) -> io::Result<u64> {
        if self.xattrs.is_empty() {
            return Ok(NO_TABLE);
        }
        let (mut values, mut ids) = (Table::new(), Table::new());
        let lists = std::mem::take(&mut self.xattrs);
        for list in &lists {
            let (block, offset) = values.place();
            let mut size = 0;
            for (name, value) in list {
                // Only attributes of users come here: prefix 0 is `user.`.
                let short = name.strip_prefix(b"user.").unwrap_or(name);
                let length = u16::try_from(short.len()).map_err(io::Error::other)?;
                let value_length = u32::try_from(value.len()).map_err(io::Error::other)?;
                let entry = [
                    0_u16.to_le_bytes().as_slice(),
                    &length.to_le_bytes(),
                    short,
                    &value_length.to_le_bytes(),
                    value,
                ]
                .concat();
                size += u32::try_from(name.len() + value.len() + 1).map_err(io::Error::other)?;
                values.put(&mut self.packer, &entry)?;
            }
            let count = u32::try_from(list.len()).map_err(io::Error::other)?;
            let place = (block << 16) | u64::from(offset);
            ids.put(
                &mut self.packer,
                &[place.to_le_bytes().as_slice(), &count.to_le_bytes(), &size.to_le_bytes()].concat(),
            )?;
        }
        values.flush(&mut self.packer)?;
        ids.flush(&mut self.packer)?;
        let values_at = self.at;
        self.append(&values.out)?;
        let ids_at = self.at;
        self.append(&ids.out)?;
        let table = self.at;
        let count = u32::try_from(lists.len()).map_err(io::Error::other)?;
        self.append(&[values_at.to_le_bytes().as_slice(), &count.to_le_bytes(), &[0; 4]].concat())?;
        for start in &ids.starts {
            self.append(&(ids_at + start).to_le_bytes())?;
        }
        Ok(table)
    }

    /// Writes what is in a directory, its listing, and it; its place. Numbers are given from the top, so that a
    /// directory knows its parent's.
    fn write_directory(
        &mut self,
        node: usize,
        parent: Option<u32>,
        count: &mut u32,
        inodes: &mut Table,
        directories: &mut Table,
    ) -> io::Result<u64> {
        *count += 1;
        let own = *count;
        let Body::Directory(names) = &mut self.nodes[node].body else {
            return Err(io::Error::other("no directory"));
        };
        let names = std::mem::take(names);
        let mut listing = Vec::with_capacity(names.len());
        let mut below = 0;
        for (name, child) in names {
            let kind = match &self.nodes[child].body {
                Body::Directory(_) => {
                    below += 1;
                    let place = self.write_directory(child, Some(own), count, inodes, directories)?;
                    // Its number was given on the way.
                    let number = self.nodes[child].written.map_or(0, |(number, _)| number);
                    self.nodes[child].written = Some((number, place));
                    DIRECTORY
                }
                Body::File { .. } => FILE,
                Body::Symlink(_) => SYMLINK,
                Body::Fifo => FIFO,
            };
            let (number, place) = match self.nodes[child].written {
                Some(written) => written,
                None => {
                    *count += 1;
                    let place = self.write_inode(child, *count, inodes)?;
                    self.nodes[child].written = Some((*count, place));
                    (*count, place)
                }
            };
            listing.push((name, number, place, kind));
        }
        let (block, offset) = directories.place();
        let size = self.write_listing(&listing, directories)?;
        let (at, within) = inodes.place();
        let node_ref = &mut self.nodes[node];
        let mut bytes = inode(DIRECTORY + EXTENDED, node_ref, own);
        bytes.extend_from_slice(&(below + 2_u32).to_le_bytes());
        bytes.extend_from_slice(&(size + 3).to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(block).map_err(io::Error::other)?.to_le_bytes());
        // The root's parent is a number that no inode has; by now all others have theirs.
        bytes.extend_from_slice(&parent.unwrap_or(*count + 1).to_le_bytes());
        bytes.extend_from_slice(&0_u16.to_le_bytes());
        bytes.extend_from_slice(&offset.to_le_bytes());
        bytes.extend_from_slice(&node_ref.xattr.to_le_bytes());
        node_ref.written = Some((own, 0));
        inodes.put(&mut self.packer, &bytes)?;
        Ok((at << 16) | u64::from(within))
    }

    /// Runs of entries whose inodes stand in one metadata block, each behind a header.
    fn write_listing(&mut self, listing: &[(Vec<u8>, u32, u64, u16)], out: &mut Table) -> io::Result<u32> {
        let mut size = 0;
        let mut rest = listing;
        while let Some((_, base, place, _)) = rest.first() {
            let (base, block) = (*base, place >> 16);
            let fits = |(_, number, place, _): &&(Vec<u8>, u32, u64, u16)| {
                place >> 16 == block && i16::try_from(i64::from(*number) - i64::from(base)).is_ok()
            };
            let run = rest.iter().take(RUN).take_while(fits).count();
            let mut bytes = Vec::new();
            bytes.extend_from_slice(&u32::try_from(run - 1).map_err(io::Error::other)?.to_le_bytes());
            bytes.extend_from_slice(&u32::try_from(block).map_err(io::Error::other)?.to_le_bytes());
            bytes.extend_from_slice(&base.to_le_bytes());
            for (name, number, place, kind) in &rest[..run] {
                let offset = u16::try_from(place & 0xffff).map_err(io::Error::other)?;
                let difference =
                    i16::try_from(i64::from(*number) - i64::from(base)).map_err(io::Error::other)?;
                let length = u16::try_from(name.len() - 1).map_err(io::Error::other)?;
                bytes.extend_from_slice(&offset.to_le_bytes());
                bytes.extend_from_slice(&difference.to_le_bytes());
                bytes.extend_from_slice(&kind.to_le_bytes());
                bytes.extend_from_slice(&length.to_le_bytes());
                bytes.extend_from_slice(name);
            }
            size += u32::try_from(bytes.len()).map_err(io::Error::other)?;
            out.put(&mut self.packer, &bytes)?;
            rest = &rest[run..];
        }
        Ok(size)
    }

    fn write_inode(&mut self, node: usize, number: u32, inodes: &mut Table) -> io::Result<u64> {
        let (at, within) = inodes.place();
        let node = &self.nodes[node];
        let bytes = match &node.body {
            Body::File { start, size, sizes, fragment, offset, holes } => {
                let mut bytes = inode(FILE + EXTENDED, node, number);
                bytes.extend_from_slice(&start.to_le_bytes());
                bytes.extend_from_slice(&size.to_le_bytes());
                bytes.extend_from_slice(&holes.to_le_bytes());
                for value in [node.links, *fragment, *offset, node.xattr] {
                    bytes.extend_from_slice(&value.to_le_bytes());
                }
                sizes.iter().for_each(|size| bytes.extend_from_slice(&size.to_le_bytes()));
                bytes
            }
            Body::Symlink(target) => {
                let mut bytes = inode(SYMLINK, node, number);
                bytes.extend_from_slice(&node.links.to_le_bytes());
                bytes
                    .extend_from_slice(&u32::try_from(target.len()).map_err(io::Error::other)?.to_le_bytes());
                bytes.extend_from_slice(target);
                bytes
            }
            Body::Fifo => {
                let mut bytes = inode(FIFO, node, number);
                bytes.extend_from_slice(&node.links.to_le_bytes());
                bytes
            }
            Body::Directory(_) => return Err(io::Error::other("a directory among files")),
        };
        inodes.put(&mut self.packer, &bytes)?;
        Ok((at << 16) | u64::from(within))
    }
}

/// What every inode begins with.
fn inode(kind: u16, node: &Node, number: u32) -> Vec<u8> {
    let mode = u16::try_from(node.mode).unwrap_or(0);
    let mut bytes = Vec::with_capacity(64);
    for value in [kind, mode, node.owner.0, node.owner.1] {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes.extend_from_slice(&node.mtime.to_le_bytes());
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes
}

/// Entries of a table of fragments that was not flushed yet.
fn fragments_in(table: &Table) -> u32 {
    let whole = table.starts.len() * METADATA + table.block.len();
    u32::try_from(whole / 16).unwrap_or(0)
}
