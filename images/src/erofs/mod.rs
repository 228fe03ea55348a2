//! A layer as one read-only EROFS image, written while its archive is read.
//!
//! Making a directory of tens of thousands of small files takes a filesystem seconds; one file takes it none. Content
//! goes straight into the image, and so do inodes of files and targets of links, which are read there again where they are
//! asked for. Only names, and what directories say of themselves, wait in memory for the end: a later entry may replace
//! an earlier one, which then leaves unused blocks behind. A file's last incomplete block follows its inode. Holes of
//! sparse files are holes of the image.
//!
//! The same archive gives the same bytes: order and numbers follow the archive and the names.

mod directories;
mod disk;
mod inodes;
mod names;
mod out;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;

use rustix::fs::FileType as Kind;
use rustix::io::Errno;

use crate::error::Result;
use crate::unpack::{CleanPath, EachContent, Form, Meta, Whiteout};
use disk::{BLOCK, FileType, INODE, Inode};
use inodes::{Inodes, ROOT};
use out::Out;

/// Raised with every change by which an archive makes other bytes than before, of the image, of the skeleton beside it, or of the head of what
/// travels, which has a layer's report: nodes take each other's images only where the same version wrote them, and say so where these differ.
/// `tests` has what this one makes.
pub(crate) const VERSION: u32 = 1;

/// By which a directory hides all of its namesakes in lower layers.
const MARK: (&[u8], &[u8]) = (b"user.overlay.opaque", b"y");

/// An image being written.
pub(crate) struct Image {
    out: Out,
    inodes: Inodes,
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
        let (out, inodes) = (Out::new(file), Inodes::new(disk::ROOT));
        Self { out, inodes, cached: (Vec::new(), ROOT), replaced: 0, owner, id }
    }

    /// Bytes of it in holes, so far.
    pub(crate) fn holes(&self) -> u64 {
        self.out.holes()
    }

    /// The number of the directory at `path`, or why there is none.
    fn walk(&self, path: &[u8]) -> std::result::Result<u32, Errno> {
        let mut here = ROOT;
        for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            here = self.inodes.named(here, name).ok_or(Errno::NOENT)?;
            match self.inodes.kind(here) {
                Some(FileType::Directory) => {}
                Some(FileType::Symlink) => return Err(Errno::LOOP),
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
        Ok(self.inodes.named(parent, name))
    }

    /// The directory at a path that is placed or the root.
    fn finished(&mut self, placed: &CleanPath) -> Result<Option<u32>> {
        match self.walk(placed.as_bytes()) {
            Ok(number) => Ok(Some(number)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(placed.io(errno)),
        }
    }

    /// The content of the file or link with this number.
    fn stored(&self, number: u32) -> std::result::Result<Stored<'_>, Errno> {
        let at = self.inodes.at(number);
        let mut inode = [0; INODE];
        self.out.read(at, &mut inode)?;
        Ok(Stored { out: &self.out, stored: disk::Stored::of(at, &inode), position: 0 })
    }

    /// Tells of the file with this number, at `path`.
    fn content(&self, path: &CleanPath, number: u32, each: &mut EachContent<'_>) -> Result<()> {
        if self.inodes.kind(number) != Some(FileType::File) {
            return Ok(());
        }
        let mut stored = self.stored(number).map_err(|e| path.io(e))?;
        let disk::Stored { size, mode, .. } = stored.stored;
        if size > 0 && mode & 0o400 != 0 { each(path.as_bytes(), size, &mut stored) } else { Ok(()) }
    }

    /// Adds a name for something new, with its inode and the content that follows it.
    fn special(
        &mut self,
        placed: &CleanPath,
        kind: FileType,
        meta: (u32, (i64, u32)),
        content: &[u8],
    ) -> Result<()> {
        let directory = self.parent(placed)?;
        let (_, name) = placed.split_bytes();
        self.write_special(kind, meta, content)
            .and_then(|at| self.inodes.add(directory, name, kind, at))
            .map_err(|e| placed.io(e))
    }

    fn write_special(
        &mut self,
        kind: FileType,
        (mode, mtime): (u32, (i64, u32)),
        content: &[u8],
    ) -> std::result::Result<u64, Errno> {
        let tail = !content.is_empty() && INODE + content.len() <= BLOCK;
        let start = if content.is_empty() || tail { 0 } else { self.out.next_block()? };
        if start > 0 {
            self.out.append_part(content)?;
        }
        let inode = Inode {
            kind,
            mode,
            size: content.len() as u64,
            start,
            tail,
            number: self.inodes.next_number()? + 1,
            owner: self.owner,
            mtime,
            links: 1,
        };
        let mut bytes = inode.encode(&[]);
        if tail {
            bytes.extend(content);
        }
        let at = self.out.reserve(bytes.len())?;
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
    const ENTRY: usize = inodes::ENTRY;
    const DIRECTORY: usize = inodes::DIRECTORY;

    /// Inodes with their last bytes share a block where two of them fit into one.
    fn charged(size: u64) -> u64 {
        let (all, block) = (size.saturating_add(INODE as u64), BLOCK as u64);
        match all % block {
            rest if rest > block / 2 => all.saturating_add(block - rest),
            _ => all,
        }
    }

    fn enter(&mut self, path: &[u8]) -> std::result::Result<(), Errno> {
        if self.cached.0 != path {
            self.cached = (path.to_vec(), self.walk(path)?);
        }
        Ok(())
    }

    fn kind_at(&mut self, placed: &CleanPath) -> Result<Option<Kind>> {
        let kind = self.at(placed)?.and_then(|number| self.inodes.kind(number));
        Ok(kind.map(|kind| Kind::from_raw_mode(kind.mode().into())))
    }

    /// It is nowhere but in the image.
    fn target_at(&mut self, placed: &CleanPath) -> Result<Vec<u8>> {
        let number = self.at(placed)?;
        let link = |number: &u32| self.inodes.kind(*number) == Some(FileType::Symlink);
        let number = number.filter(link).ok_or_else(|| placed.io(Errno::INVAL))?;
        let mut target = Vec::new();
        let mut stored = self.stored(number).map_err(|e| placed.io(e))?;
        std::io::Read::read_to_end(&mut stored, &mut target)
            .map_err(|e| placed.io(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
        Ok(target)
    }

    fn clear(&mut self, placed: &CleanPath) -> Result<()> {
        let parent = self.parent(placed)?;
        let (_, name) = placed.split_bytes();
        let gone = self.inodes.remove(parent, name);
        self.replaced += u64::from(gone.is_some());
        if gone == Some(FileType::Directory) {
            // The cached directory may be the removed one.
            self.cached = (Vec::new(), ROOT);
        }
        Ok(())
    }

    fn contents(&mut self, placed: &CleanPath, each: &mut EachContent<'_>) -> Result<()> {
        let Some(number) = self.at(placed)? else { return Ok(()) };
        if self.inodes.kind(number) != Some(FileType::Directory) {
            return self.content(placed, number, each);
        }
        let mut path = placed.clone();
        let mut levels = vec![self.inodes.first(number)];
        while let Some(place) = levels.last_mut() {
            let Some((name, number)) = self.inodes.next(place) else {
                levels.pop();
                path.pop();
                continue;
            };
            path.push(name);
            if self.inodes.kind(number) == Some(FileType::Directory) {
                levels.push(self.inodes.first(number));
            } else {
                self.content(&path, number, each)?;
                path.pop();
            }
        }
        Ok(())
    }

    fn empty(&mut self, directory: &CleanPath) -> Result<()> {
        if let Some(number) = self.finished(directory)? {
            self.inodes.empty(number);
            self.cached = (Vec::new(), ROOT);
        }
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
        self.inodes.add_directory(parent, name).map_err(|e| placed.io(e))
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
            number: self.inodes.next_number()? + 1,
            owner: self.owner,
            mtime: meta.mtime,
            links: 1,
        };
        let mut bytes = inode.encode(&xattrs);
        if tail {
            bytes.extend(&file.tail);
        }
        let at = self.out.reserve(bytes.len())?;
        self.out.put(at, &bytes)?;
        self.inodes.add(file.directory, &file.name, FileType::File, at)?;
        Ok(left_out)
    }

    fn symlink(&mut self, placed: &CleanPath, target: &[u8], mtime: (i64, u32)) -> Result<()> {
        self.special(placed, FileType::Symlink, (0o777, mtime), target)
    }

    fn hard_link(&mut self, target: &CleanPath, placed: &CleanPath) -> Result<()> {
        let number = self.at(target)?.ok_or_else(|| target.io(Errno::NOENT))?;
        let parent = self.parent(placed)?;
        let (_, name) = placed.split_bytes();
        self.inodes.link(number, parent, name).map_err(|e| placed.io(e))
    }

    fn fifo(&mut self, placed: &CleanPath, mode: u32, mtime: (i64, u32)) -> Result<()> {
        self.special(placed, FileType::Fifo, (mode, mtime), &[])
    }

    fn whiteout(&mut self, placed: &CleanPath) -> Result<Whiteout> {
        self.special(placed, FileType::CharacterDevice, (0, (0, 0)), &[])?;
        Ok(Whiteout::Device)
    }

    fn mark(&mut self, placed: &CleanPath, _: &[u8]) -> Result<()> {
        let number = self.finished(placed)?;
        if let Some(directory) = number.and_then(|number| self.inodes.directory_mut(number)) {
            directory.opaque = true;
            directory.xattrs = disk::xattrs(Some(MARK), &[], BLOCK).0.into();
        }
        Ok(())
    }

    fn describe(&mut self, placed: &CleanPath, meta: &Meta) -> Result<u64> {
        let number = self.finished(placed)?;
        let room = if number == Some(ROOT) { disk::ROOT_ROOM - INODE } else { usize::MAX };
        let Some(directory) = number.and_then(|number| self.inodes.directory_mut(number)) else {
            return Ok(0);
        };
        let (xattrs, left_out) = disk::xattrs(directory.opaque.then_some(MARK), &meta.xattrs, room);
        directory.xattrs = xattrs.into();
        directory.mode = meta.mode;
        (directory.seconds, directory.nanoseconds) = meta.mtime;
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
    image.mark(&CleanPath::default(), b"y").map_err(|_| Errno::IO)?;
    image.seal()
}
