//! The end of an image: directories, of which every inode must have its place before the first content is written; then
//! the numbers of names, and the superblock.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::Image;
use super::disk::{self, BLOCK, DirectoryBlock, FileType, INODE, Inode};
use super::inodes::ROOT;

type Result<T> = std::result::Result<T, Errno>;

/// Whether the last block of a directory of so many bytes follows its inode.
fn has_tail(number: u32, xattrs: usize, size: u64) -> bool {
    let room = if number == ROOT { disk::ROOT_ROOM } else { BLOCK };
    let tail = usize::try_from(size % BLOCK as u64).unwrap_or_default();
    tail > 0 && INODE + xattrs + tail <= room
}

impl Image {
    /// Ends the image; gives its file.
    pub(crate) fn seal(mut self) -> Result<OwnedFd> {
        self.inodes.close();
        let directories = self.place_directories()?;
        for (number, parent) in directories {
            self.write_directory(number, parent)?;
        }
        for (at, names) in self.inodes.linked() {
            self.out.put(at + disk::LINKS, &names.to_le_bytes())?;
        }
        self.out.close();
        let superblock = disk::superblock(self.inodes.count(), self.out.next_block()?, self.id);
        self.out.put(disk::SUPERBLOCK, &superblock)?;
        self.out.finish()
    }

    /// Gives every directory its place. Gives their numbers and those of their parents, in an order that follows the
    /// names.
    fn place_directories(&mut self) -> Result<Vec<(u32, u32)>> {
        let mut all = Vec::new();
        let mut todo = vec![(ROOT, ROOT)];
        while let Some((number, parent)) = todo.pop() {
            all.push((number, parent));
            self.inodes.sort(number);
            let size = disk::directory_size(self.inodes.listed(number, parent).map(|name| name.name.len()));
            todo.extend(self.inodes.below(number).into_iter().rev().map(|below| (below, number)));
            let Some(directory) = self.inodes.directory_mut(number).filter(|_| number != ROOT) else {
                continue;
            };
            let xattrs = directory.xattrs.len();
            let tail = if has_tail(number, xattrs, size) { size % BLOCK as u64 } else { 0 };
            directory.at = self.out.reserve(INODE + xattrs + usize::try_from(tail).unwrap_or_default())?;
        }
        Ok(all)
    }

    /// Writes a directory block by block: it may have millions of names.
    fn write_directory(&mut self, number: u32, parent: u32) -> Result<()> {
        let Self { out, inodes, owner, .. } = self;
        let Some(directory) = inodes.directory(number) else { return Ok(()) };
        let start = out.next_block()?;
        let (mut block, mut size, mut below) = (DirectoryBlock::default(), 0, 0);
        for name in inodes.listed(number, parent) {
            if !block.has_room(&name) {
                out.append_part(&block.take())?;
                size += BLOCK as u64;
            }
            block.push(&name);
            below += u32::from(name.kind == FileType::Directory);
        }
        let rest = block.take();
        size += rest.len() as u64;
        let tail = has_tail(number, directory.xattrs.len(), size);
        let inode = Inode {
            kind: FileType::Directory,
            mode: directory.mode,
            size,
            start,
            tail,
            number: number + 1,
            owner: *owner,
            mtime: (directory.seconds, directory.nanoseconds),
            // Its own name, `.`, and `..` of each directory below: the list has `.` and `..` instead of the first two.
            links: below,
        };
        let mut bytes = inode.encode(&directory.xattrs);
        if tail {
            bytes.extend(rest);
        } else {
            out.append_part(&rest)?;
        }
        out.put(directory.at, &bytes)
    }
}
