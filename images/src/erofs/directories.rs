//! The end of an image: directories, of which every inode must have its place before the first content is written; then
//! the numbers of names, and the superblock.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::disk::{self, BLOCK, FileType, INODE, Inode, Name};
use super::{Directory, Image, Node, ROOT, What};

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
        let directories = self.place_directories();
        for (number, parent) in &directories {
            self.write_directory(*number, *parent)?;
        }
        let mut inodes = 0;
        for node in &self.nodes {
            inodes += u64::from(node.names > 0);
            if node.names > 1 && !matches!(node.what, What::Directory(_)) {
                self.out.put(node.at + disk::LINKS, &node.names.to_le_bytes())?;
            }
        }
        self.out.close();
        let superblock = disk::superblock(inodes, self.out.next_block()?, self.id);
        self.out.put(disk::SUPERBLOCK, &superblock)?;
        self.out.finish()
    }

    /// Gives every directory its place. Gives their numbers and those of their parents, in an order that follows the
    /// names.
    fn place_directories(&mut self) -> Vec<(u32, u32)> {
        let mut all = Vec::new();
        let mut todo = vec![(ROOT, ROOT)];
        while let Some((number, parent)) = todo.pop() {
            all.push((number, parent));
            let Some(Node { what: What::Directory(directory), .. }) = self.node(number) else { continue };
            let size = size(directory);
            let below = directory.names.values().rev().copied();
            todo.extend(below.filter(|n| self.is_directory(*n)).map(|below| (below, number)));
            if number == ROOT {
                continue;
            }
            let xattrs = directory.xattrs.len();
            let tail = if has_tail(number, xattrs, size) { size % BLOCK as u64 } else { 0 };
            let bytes = INODE + xattrs + usize::try_from(tail).unwrap_or_default();
            let at = self.out.reserve(bytes);
            if let Some(node) = usize::try_from(number).ok().and_then(|n| self.nodes.get_mut(n)) {
                node.at = at;
            }
        }
        all
    }

    fn is_directory(&self, number: u32) -> bool {
        self.node(number).is_some_and(|node| matches!(node.what, What::Directory(_)))
    }

    fn write_directory(&mut self, number: u32, parent: u32) -> Result<()> {
        let place = |number| self.node(number).map_or(0, |node: &Node| node.at);
        let Some(Node { what: What::Directory(directory), at, .. }) = self.node(number) else {
            return Ok(());
        };
        let at = *at;
        let mut names = vec![
            Name { name: b".", at, kind: FileType::Directory },
            Name { name: b"..", at: place(parent), kind: FileType::Directory },
        ];
        names.extend(directory.names.iter().filter_map(|(name, number)| {
            let node = self.node(*number)?;
            Some(Name { name, at: node.at, kind: node.what.kind() })
        }));
        names.sort_unstable_by(|a, b| a.name.cmp(b.name));
        let below = names.iter().filter(|name| name.kind == FileType::Directory).count();
        let content = disk::directory(&names);
        let size = content.len() as u64;
        let tail = has_tail(number, directory.xattrs.len(), size);
        let (blocks, rest) = content.split_at(content.len() - content.len() % BLOCK);
        let inode = Inode {
            kind: FileType::Directory,
            mode: directory.mode,
            size,
            start: self.out.next_block()?,
            tail,
            number: number + 1,
            owner: self.owner,
            mtime: directory.mtime,
            // Its own name, `.`, and `..` of each directory below: the list has `.` and `..` instead of the first two.
            links: u32::try_from(below).map_err(|_| Errno::MLINK)?,
        };
        let mut bytes = inode.encode(&directory.xattrs);
        if tail {
            bytes.extend(rest);
        }
        self.out.append(blocks)?;
        if !tail {
            self.out.append_part(rest)?;
        }
        self.out.put(at, &bytes)
    }
}

fn size(directory: &Directory) -> u64 {
    let mut names: Vec<&[u8]> = directory.names.keys().map(AsRef::as_ref).chain([&b"."[..], b".."]).collect();
    names.sort_unstable();
    disk::directory_size(names.iter().map(|name| name.len()))
}
