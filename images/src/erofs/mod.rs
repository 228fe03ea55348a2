//! A layer as one read-only EROFS image, written while its archive is read.
//!
//! Making a directory of tens of thousands of small files takes a filesystem seconds; one file takes it none. Content
//! goes straight into the image, and so do inodes of files, whose last incomplete block follows its inode. Only names,
//! link targets and what directories say of themselves wait in memory for the end: a later entry may replace an
//! earlier one, which then leaves unused blocks behind. Holes of sparse files are holes of the image.
//!
//! The same archive gives the same bytes: order and numbers follow the archive and the names.

mod directories;
mod disk;
mod out;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use rustix::fs::FileType as Kind;
use rustix::io::Errno;

use crate::error::Result;
use crate::unpack::{CleanPath, EachContent, Form, Meta, Whiteout};
use disk::{BLOCK, FileType, INODE, Inode};
use out::Out;

/// What a name stands for.
struct Node {
    what: What,
    /// Where its inode stands; directories learn it at the end.
    at: u64,
    /// How many names it has; of a removed one none.
    names: u32,
}

enum What {
    File,
    Fifo,
    Whiteout,
    Symlink(Box<[u8]>),
    Directory(Box<Directory>),
}

impl What {
    fn kind(&self) -> FileType {
        match self {
            What::File => FileType::File,
            What::Fifo => FileType::Fifo,
            What::Whiteout => FileType::CharacterDevice,
            What::Symlink(_) => FileType::Symlink,
            What::Directory(_) => FileType::Directory,
        }
    }
}

#[derive(Default)]
struct Directory {
    names: BTreeMap<Box<[u8]>, u32>,
    mode: u32,
    mtime: (i64, u32),
    /// Encoded.
    xattrs: Vec<u8>,
    opaque: bool,
}

const ROOT: u32 = 0;
/// By which a directory hides all of its namesakes in lower layers.
const MARK: (&[u8], &[u8]) = (b"user.overlay.opaque", b"y");

/// An image being written.
pub(crate) struct Image {
    out: Out,
    nodes: Vec<Node>,
    /// The directory used last: archives list a directory's entries together.
    cached: (Vec<u8>, u32),
    replaced: u64,
    owner: (u32, u32),
    id: [u8; 16],
}

/// A file whose content is being written.
pub(crate) struct Content {
    directory: u32,
    name: Box<[u8]>,
    start: u32,
    end: u64,
    /// The incomplete last block.
    tail: Vec<u8>,
}

impl Image {
    /// Starts in an empty file. Everything in the image belongs to `owner`; `id` tells the filesystem from others, and
    /// none but zeros will do for overlayfs.
    pub(crate) fn new(file: OwnedFd, owner: (u32, u32), id: [u8; 16]) -> Self {
        let root = Node { what: What::Directory(Box::default()), at: disk::ROOT, names: 1 };
        Self { out: Out::new(file), nodes: vec![root], cached: (Vec::new(), ROOT), replaced: 0, owner, id }
    }

    fn node(&self, number: u32) -> Option<&Node> {
        self.nodes.get(usize::try_from(number).ok()?)
    }

    fn directory(&mut self, number: u32) -> Option<&mut Directory> {
        match &mut self.nodes.get_mut(usize::try_from(number).ok()?)?.what {
            What::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// The number of the directory at `path`, or why there is none.
    fn walk(&self, path: &[u8]) -> std::result::Result<u32, Errno> {
        let mut here = ROOT;
        for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            let Some(Node { what: What::Directory(directory), .. }) = self.node(here) else {
                return Err(Errno::NOTDIR);
            };
            here = *directory.names.get(name).ok_or(Errno::NOENT)?;
            match self.node(here).map(|node| &node.what) {
                Some(What::Directory(_)) => {}
                Some(What::Symlink(_)) => return Err(Errno::LOOP),
                _ => return Err(Errno::NOTDIR),
            }
        }
        Ok(here)
    }

    /// The number of the directory that a placed path is in.
    fn parent(&mut self, placed: &CleanPath) -> Result<u32> {
        let (parent, _) = placed.split_bytes();
        self.enter(parent).map_err(|e| placed.io(e))?;
        Ok(self.cached.1)
    }

    /// The number of what stands at a placed path.
    fn at(&mut self, placed: &CleanPath) -> Result<Option<u32>> {
        let parent = self.parent(placed)?;
        let (_, name) = placed.split_bytes();
        Ok(self.directory(parent).and_then(|directory| directory.names.get(name).copied()))
    }

    /// The directory at a path that is placed or the root.
    fn finished(&mut self, placed: &CleanPath) -> Result<Option<u32>> {
        match self.walk(placed.as_bytes()) {
            Ok(number) => Ok(Some(number)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(placed.io(errno)),
        }
    }

    /// Adds a name for something new.
    fn add(
        &mut self,
        directory: u32,
        name: Box<[u8]>,
        what: What,
        at: u64,
    ) -> std::result::Result<(), Errno> {
        let number = self.next_number()?;
        self.nodes.push(Node { what, at, names: 1 });
        self.directory(directory).ok_or(Errno::NOTDIR)?.names.insert(name, number);
        Ok(())
    }

    /// What has these numbers has a name less, and so has what is in it.
    fn drop_names(&mut self, mut gone: Vec<u32>) {
        while let Some(number) = gone.pop() {
            if let Some(directory) = self.directory(number) {
                gone.extend(std::mem::take(&mut directory.names).into_values());
                // The cached directory may be the removed one.
                self.cached = (Vec::new(), ROOT);
            }
            if let Some(node) = usize::try_from(number).ok().and_then(|n| self.nodes.get_mut(n)) {
                node.names -= 1;
            }
        }
    }

    fn next_number(&self) -> std::result::Result<u32, Errno> {
        u32::try_from(self.nodes.len()).map_err(|_| Errno::NOSPC)
    }

    /// Adds a name for something new, with its inode and the content that follows it.
    fn special(
        &mut self,
        placed: &CleanPath,
        what: What,
        meta: (u32, (i64, u32)),
        content: &[u8],
    ) -> Result<()> {
        let directory = self.parent(placed)?;
        let (_, name) = placed.split_bytes();
        self.write_special(&what, meta, content)
            .and_then(|at| self.add(directory, name.into(), what, at))
            .map_err(|e| placed.io(e))
    }

    fn write_special(
        &mut self,
        what: &What,
        (mode, mtime): (u32, (i64, u32)),
        content: &[u8],
    ) -> std::result::Result<u64, Errno> {
        let tail = !content.is_empty() && INODE + content.len() <= BLOCK;
        let start = if content.is_empty() || tail { 0 } else { self.out.next_block()? };
        if start > 0 {
            self.out.append_part(content)?;
        }
        let inode = Inode {
            kind: what.kind(),
            mode,
            size: content.len() as u64,
            start,
            tail,
            number: self.next_number()? + 1,
            owner: self.owner,
            mtime,
            links: 1,
        };
        let mut bytes = inode.encode(&[]);
        if tail {
            bytes.extend(content);
        }
        let at = self.out.reserve(bytes.len());
        self.out.put(at, &bytes)?;
        Ok(at)
    }

    /// Appends zeros to a file: what fills its block, a hole of whole blocks, and the start of the next one.
    fn zeros(&mut self, file: &mut Content, mut count: u64) -> std::result::Result<(), Errno> {
        file.end += count;
        if !file.tail.is_empty() {
            let fill = usize::try_from(count).unwrap_or(usize::MAX).min(BLOCK - file.tail.len());
            file.tail.resize(file.tail.len() + fill, 0);
            count -= fill as u64;
            if file.tail.len() < BLOCK {
                return Ok(());
            }
            self.out.append(&file.tail)?;
            file.tail.clear();
        }
        let rest = usize::try_from(count % BLOCK as u64).unwrap_or_default();
        if count >= BLOCK as u64 {
            self.out.skip(count - rest as u64)?;
        }
        file.tail.resize(rest, 0);
        Ok(())
    }
}

impl Form for Image {
    type File = Content;
    /// A node, its place in the directory, and the allocation of its name.
    const ENTRY: usize = 96;

    fn enter(&mut self, path: &[u8]) -> std::result::Result<(), Errno> {
        if self.cached.0 != path {
            self.cached = (path.to_vec(), self.walk(path)?);
        }
        Ok(())
    }

    fn kind_at(&mut self, placed: &CleanPath) -> Result<Option<Kind>> {
        let number = self.at(placed)?;
        let node = number.and_then(|number| self.node(number));
        Ok(node.map(|node| Kind::from_raw_mode(node.what.kind().mode().into())))
    }

    fn target_at(&mut self, placed: &CleanPath) -> Result<Vec<u8>> {
        match self.at(placed)?.and_then(|number| self.node(number)).map(|node| &node.what) {
            Some(What::Symlink(target)) => Ok(target.to_vec()),
            _ => Err(placed.io(Errno::INVAL)),
        }
    }

    fn clear(&mut self, placed: &CleanPath) -> Result<()> {
        let parent = self.parent(placed)?;
        let (_, name) = placed.split_bytes();
        let gone: Vec<u32> =
            self.directory(parent).and_then(|directory| directory.names.remove(name)).into_iter().collect();
        self.replaced += gone.len() as u64;
        self.drop_names(gone);
        Ok(())
    }

    fn contents(&mut self, placed: &CleanPath, each: &mut EachContent<'_>) -> Result<()> {
        let mut todo: Vec<_> = self.at(placed)?.map(|number| (placed.clone(), number)).into_iter().collect();
        while let Some((path, number)) = todo.pop() {
            match self.node(number) {
                Some(Node { what: What::Directory(directory), .. }) => {
                    for (name, number) in &directory.names {
                        let mut below = path.clone();
                        below.push(name);
                        todo.push((below, *number));
                    }
                }
                Some(Node { what: What::File, at, .. }) => {
                    let mut inode = [0; INODE];
                    self.out.read(*at, &mut inode).map_err(|e| path.io(e))?;
                    let stored = disk::Stored::of(*at, &inode);
                    if stored.size > 0 && stored.mode & 0o400 != 0 {
                        let size = stored.size;
                        each(path.as_bytes(), size, &mut Stored { out: &self.out, stored, position: 0 })?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn empty(&mut self, directory: &CleanPath) -> Result<()> {
        let number = self.finished(directory)?;
        let gone = number.and_then(|number| self.directory(number)).map(|d| std::mem::take(&mut d.names));
        self.drop_names(gone.unwrap_or_default().into_values().collect());
        Ok(())
    }

    fn replaced(&self) -> u64 {
        self.replaced
    }

    fn make_dir(&mut self, placed: &CleanPath) -> Result<()> {
        if self.kind_at(placed)? == Some(Kind::Directory) {
            return Ok(());
        }
        self.clear(placed)?;
        let parent = self.parent(placed)?;
        let (_, name) = placed.split_bytes();
        self.add(parent, name.into(), What::Directory(Box::default()), 0).map_err(|e| placed.io(e))
    }

    fn create(&mut self, placed: &CleanPath, _: u32) -> Result<Content> {
        self.clear(placed)?;
        let directory = self.parent(placed)?;
        let (_, name) = placed.split_bytes();
        let start = self.out.next_block().map_err(|e| placed.io(e))?;
        Ok(Content { directory, name: name.into(), start, end: 0, tail: Vec::new() })
    }

    fn write(&mut self, file: &mut Content, mut data: &[u8], offset: u64) -> std::result::Result<(), Errno> {
        if offset > file.end {
            self.zeros(file, offset - file.end)?;
        }
        file.end += data.len() as u64;
        if !file.tail.is_empty() {
            let (fill, rest) = data.split_at(data.len().min(BLOCK - file.tail.len()));
            file.tail.extend_from_slice(fill);
            data = rest;
            if file.tail.len() < BLOCK {
                return Ok(());
            }
            self.out.append(&file.tail)?;
            file.tail.clear();
        }
        let (blocks, rest) = data.split_at(data.len() - data.len() % BLOCK);
        self.out.append(blocks)?;
        file.tail.extend_from_slice(rest);
        Ok(())
    }

    fn complete(&mut self, mut file: Content, size: u64, meta: &Meta) -> std::result::Result<u64, Errno> {
        if size > file.end {
            let hole = size - file.end;
            self.zeros(&mut file, hole)?;
        }
        let (xattrs, left_out) = disk::xattrs(None, &meta.xattrs, usize::MAX);
        let tail = !file.tail.is_empty() && INODE + xattrs.len() + file.tail.len() <= BLOCK;
        if !file.tail.is_empty() && !tail {
            self.out.append_part(&file.tail)?;
        }
        let inode = Inode {
            kind: FileType::File,
            mode: meta.mode,
            size,
            start: if size == 0 { 0 } else { file.start },
            tail,
            number: self.next_number()? + 1,
            owner: self.owner,
            mtime: meta.mtime,
            links: 1,
        };
        let mut bytes = inode.encode(&xattrs);
        if tail {
            bytes.extend(&file.tail);
        }
        let at = self.out.reserve(bytes.len());
        self.out.put(at, &bytes)?;
        self.add(file.directory, file.name, What::File, at)?;
        Ok(left_out)
    }

    fn symlink(&mut self, placed: &CleanPath, target: &[u8], mtime: (i64, u32)) -> Result<()> {
        self.special(placed, What::Symlink(target.into()), (0o777, mtime), target)
    }

    fn hard_link(&mut self, target: &CleanPath, placed: &CleanPath) -> Result<()> {
        let number = self.at(target)?.ok_or_else(|| target.io(Errno::NOENT))?;
        let parent = self.parent(placed)?;
        let (_, name) = placed.split_bytes();
        if let Some(directory) = self.directory(parent) {
            directory.names.insert(name.into(), number);
        }
        if let Some(node) = usize::try_from(number).ok().and_then(|n| self.nodes.get_mut(n)) {
            node.names += 1;
        }
        Ok(())
    }

    fn fifo(&mut self, placed: &CleanPath, mode: u32, mtime: (i64, u32)) -> Result<()> {
        self.special(placed, What::Fifo, (mode, mtime), &[])
    }

    fn whiteout(&mut self, placed: &CleanPath) -> Result<Whiteout> {
        self.special(placed, What::Whiteout, (0, (0, 0)), &[])?;
        Ok(Whiteout::Device)
    }

    fn mark(&mut self, placed: &CleanPath, _: &[u8]) -> Result<()> {
        let number = self.finished(placed)?;
        if let Some(directory) = number.and_then(|number| self.directory(number)) {
            directory.opaque = true;
        }
        Ok(())
    }

    fn describe(&mut self, placed: &CleanPath, meta: &Meta) -> Result<u64> {
        let number = self.finished(placed)?;
        let room = if number == Some(ROOT) { disk::ROOT_ROOM - INODE } else { usize::MAX };
        let Some(directory) = number.and_then(|number| self.directory(number)) else { return Ok(0) };
        let (xattrs, left_out) = disk::xattrs(directory.opaque.then_some(MARK), &meta.xattrs, room);
        directory.xattrs = xattrs;
        directory.mode = meta.mode;
        directory.mtime = meta.mtime;
        Ok(left_out)
    }
}

/// The content of a file that was written.
struct Stored<'a> {
    out: &'a Out,
    stored: disk::Stored,
    position: u64,
}

impl std::io::Read for Stored<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let (at, together) = self.stored.place(self.position);
        let most = usize::try_from(together).unwrap_or(usize::MAX).min(buffer.len());
        self.out.read(at, &mut buffer[..most])?;
        self.position += most as u64;
        Ok(most)
    }
}

/// Writes a small image, by which can be tried whether the kernel mounts images and shows what layers need of them: its
/// root is marked as opaque.
pub(crate) fn trial(file: OwnedFd) -> std::result::Result<OwnedFd, Errno> {
    let mut image = Image::new(file, (0, 0), *b"berth-trial-\0\0\0\0");
    if let Some(root) = image.directory(ROOT) {
        (root.mode, root.opaque) = (0o755, true);
        (root.xattrs, _) = disk::xattrs(Some(MARK), &[], BLOCK);
    }
    image.seal()
}
