//! What stands on disk in an EROFS image: superblock, inodes, attributes, directory entries (Linux,
//! `fs/erofs/erofs_fs.h` and Documentation/filesystems/erofs.rst). All numbers are little-endian.

use std::collections::BTreeMap;

/// Bytes of a block.
pub(super) const BLOCK: usize = 4096;
/// Where the superblock stands.
pub(super) const SUPERBLOCK: u64 = 1024;
/// Where the root's inode stands, behind the superblock: the superblock names it by 16 bits, so that it cannot come
/// last as other directories do.
pub(super) const ROOT: u64 = SUPERBLOCK + 128;
/// Bytes that the root's inode, its attributes and the content that follows it may have: the rest of that block.
pub(super) const ROOT_ROOM: usize = BLOCK - 1024 - 128;
/// Bytes of an inode that has 32-bit owners and nanoseconds.
pub(super) const INODE: usize = 64;
/// Where an inode says how many names it has.
pub(super) const LINKS: u64 = 44;
/// Bytes of a directory entry without its name.
const ENTRY: usize = 12;
/// Inodes are numbered by the place where they stand, in units of this size.
pub(super) const SLOT: u64 = 32;
/// Most bytes of attributes that a file is given: as much as a name list or one value may have in Linux.
const MOST_XATTRS: usize = 64 << 10;

/// File types of directory entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum FileType {
    File = 1,
    Directory = 2,
    CharacterDevice = 3,
    Fifo = 5,
    Symlink = 7,
}

impl FileType {
    /// As in `st_mode`.
    pub(super) fn mode(self) -> u16 {
        match self {
            FileType::File => 0o100_000,
            FileType::Directory => 0o040_000,
            FileType::CharacterDevice => 0o020_000,
            FileType::Fifo => 0o010_000,
            FileType::Symlink => 0o120_000,
        }
    }
}

/// An inode, without its attributes and what may follow them.
pub(super) struct Inode {
    pub(super) kind: FileType,
    /// Permission bits, set-id and sticky bits.
    pub(super) mode: u32,
    /// Bytes of content.
    pub(super) size: u64,
    /// First block of the content.
    pub(super) start: u32,
    /// Whether the content's last, incomplete block follows the inode and its attributes.
    pub(super) tail: bool,
    pub(super) number: u32,
    pub(super) owner: (u32, u32),
    pub(super) mtime: (i64, u32),
    pub(super) links: u32,
}

impl Inode {
    /// The inode and its attributes, as [`xattrs`] gives them.
    pub(super) fn encode(&self, xattrs: &[u8]) -> Vec<u8> {
        /// The form with 64 bytes.
        const EXTENDED: u16 = 1;
        /// The last block follows the inode.
        const TAIL: u16 = 2 << 1;
        let format = if self.tail { EXTENDED | TAIL } else { EXTENDED };
        let permissions = u16::try_from(self.mode & 0o7777).unwrap_or_default();
        // One for the header of twelve bytes, one for each four bytes behind it.
        let count = if xattrs.is_empty() { 0 } else { (xattrs.len() - XATTR_HEADER) / 4 + 1 };
        let mut bytes = Vec::with_capacity(INODE + xattrs.len());
        bytes.extend(format.to_le_bytes());
        bytes.extend(u16::try_from(count).unwrap_or_default().to_le_bytes());
        bytes.extend((self.kind.mode() | permissions).to_le_bytes());
        bytes.extend([0; 2]);
        bytes.extend(self.size.to_le_bytes());
        bytes.extend(self.start.to_le_bytes());
        bytes.extend(self.number.to_le_bytes());
        bytes.extend(self.owner.0.to_le_bytes());
        bytes.extend(self.owner.1.to_le_bytes());
        bytes.extend(self.mtime.0.to_le_bytes());
        bytes.extend(self.mtime.1.to_le_bytes());
        bytes.extend(self.links.to_le_bytes());
        bytes.extend([0; 16]);
        bytes.extend(xattrs);
        bytes
    }
}

/// Where the content of a file that was written stands.
pub(super) struct Stored {
    pub(super) mode: u32,
    pub(super) size: u64,
    start: u64,
    /// Bytes of it that are in blocks of their own; the others stand at `tail`.
    in_blocks: u64,
    tail: u64,
}

impl Stored {
    /// Reads the inode at this place.
    pub(super) fn of(at: u64, inode: &[u8; INODE]) -> Stored {
        let number = |from: usize, bytes: usize| {
            inode[from..from + bytes].iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let (format, count, size) = (number(0, 2), number(2, 2), number(8, 8));
        let xattrs = if count == 0 { 0 } else { XATTR_HEADER as u64 + (count - 1) * 4 };
        let in_blocks = if format & TAIL > 0 { size - size % BLOCK as u64 } else { size };
        let mode = u32::try_from(number(4, 2)).unwrap_or_default();
        Stored {
            mode,
            size,
            start: number(16, 4) * BLOCK as u64,
            in_blocks,
            tail: at + INODE as u64 + xattrs,
        }
    }

    /// Where the content from an offset on stands, and how many bytes of it stand together.
    pub(super) fn place(&self, offset: u64) -> (u64, u64) {
        match self.in_blocks.checked_sub(offset) {
            Some(left) if left > 0 => (self.start + offset, left),
            _ => (self.tail + offset - self.in_blocks, self.size.saturating_sub(offset)),
        }
    }
}

/// In an inode's format: its content's last block follows it.
const TAIL: u64 = 2 << 1;
const XATTR_HEADER: usize = 12;

/// Attributes of one file as they follow its inode, in at most `room` bytes, and how many found no place. All are of
/// the namespace `user.`; of two with one name the last counts, and `first` comes before them all.
pub(super) fn xattrs(
    first: Option<(&[u8], &[u8])>,
    all: &[(Vec<u8>, Vec<u8>)],
    room: usize,
) -> (Vec<u8>, u64) {
    const USER: u8 = 1;
    let room = room.min(MOST_XATTRS);
    let by_name: BTreeMap<&[u8], &[u8]> = all.iter().map(|(n, v)| (n.as_slice(), v.as_slice())).collect();
    let mut bytes = Vec::new();
    let mut left_out = 0;
    for (name, value) in first.into_iter().chain(by_name) {
        let short = name.strip_prefix(b"user.").unwrap_or(name);
        let size = (4 + short.len() + value.len()).next_multiple_of(4);
        let start = if bytes.is_empty() { XATTR_HEADER } else { bytes.len() };
        let (Ok(name_length), Ok(value_length)) = (u8::try_from(short.len()), u16::try_from(value.len()))
        else {
            left_out += 1;
            continue;
        };
        // The kernel takes names of 255 bytes with their namespace.
        if name.len() > 255 || start + size > room {
            left_out += 1;
            continue;
        }
        bytes.resize(start, 0);
        bytes.extend([name_length, USER]);
        bytes.extend(value_length.to_le_bytes());
        bytes.extend(short);
        bytes.extend(value);
        bytes.resize(start + size, 0);
    }
    (bytes, left_out)
}

/// One name in a directory.
pub(super) struct Name<'a> {
    pub(super) name: &'a [u8],
    /// Where its inode stands.
    pub(super) at: u64,
    pub(super) kind: FileType,
}

/// How many bytes a directory has whose names, in order, have these lengths.
pub(super) fn directory_size(lengths: impl Iterator<Item = usize>) -> u64 {
    let mut full = 0;
    let mut used = 0;
    for length in lengths {
        if used + ENTRY + length > BLOCK {
            full += 1;
            used = 0;
        }
        used += ENTRY + length;
    }
    full * BLOCK as u64 + used as u64
}

/// A block of a directory being filled. Names come in the order of their bytes, `.` and `..` among them; no entry and no
/// name lies in two blocks.
#[derive(Default)]
pub(super) struct DirectoryBlock {
    entries: Vec<u8>,
    names: Vec<u8>,
}

impl DirectoryBlock {
    /// Where an entry says where its name stands.
    const PLACE: usize = 8;

    pub(super) fn has_room(&self, name: &Name<'_>) -> bool {
        self.entries.len() + self.names.len() + ENTRY + name.name.len() <= BLOCK
    }

    pub(super) fn push(&mut self, name: &Name<'_>) {
        self.entries.extend((name.at / SLOT).to_le_bytes());
        self.entries.extend(u16::try_from(self.names.len()).unwrap_or_default().to_le_bytes());
        self.entries.extend([name.kind as u8, 0]);
        self.names.extend(name.name);
    }

    /// Gives the block, and begins the next one.
    pub(super) fn take(&mut self) -> Vec<u8> {
        let mut block = std::mem::take(&mut self.entries);
        // Names stand behind all entries.
        let before = u16::try_from(block.len()).unwrap_or_default();
        for entry in block.chunks_exact_mut(ENTRY) {
            let place = u16::from_le_bytes([entry[Self::PLACE], entry[Self::PLACE + 1]]) + before;
            entry[Self::PLACE..Self::PLACE + 2].copy_from_slice(&place.to_le_bytes());
        }
        block.append(&mut self.names);
        block
    }
}

/// The superblock of an image with this many inodes and blocks.
pub(super) fn superblock(inodes: u64, blocks: u32, id: [u8; 16]) -> [u8; 128] {
    const MAGIC: u32 = 0xe0f5_e1e2;
    /// Times are those of the last change of content.
    const MTIME: u32 = 2;
    let mut bytes = [0; 128];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &MAGIC.to_le_bytes());
    put(8, &MTIME.to_le_bytes());
    put(12, &[12]); // blocks of 2^12 bytes
    put(14, &u16::try_from(ROOT / SLOT).unwrap_or_default().to_le_bytes());
    put(16, &inodes.to_le_bytes());
    put(36, &blocks.to_le_bytes());
    put(48, &id);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_directory_is_that_of_its_blocks() {
        for count in [0, 1, 2, 40, 300, 341, 342, 5000] {
            for length in [1, 3, 100, 255] {
                let text = vec![b'x'; length];
                let names: Vec<Name<'_>> =
                    (0..count).map(|_| Name { name: &text, at: 4096, kind: FileType::File }).collect();
                let (mut block, mut size) = (DirectoryBlock::default(), 0);
                for name in &names {
                    if !block.has_room(name) {
                        assert!(block.take().len() <= BLOCK);
                        size += BLOCK;
                    }
                    block.push(name);
                }
                size += block.take().len();
                assert_eq!(directory_size(names.iter().map(|n| n.name.len())), size as u64);
            }
        }
    }

    #[test]
    fn attributes_that_do_not_fit_are_counted() {
        let all = [(b"user.a".to_vec(), vec![1; 100]), (b"user.b".to_vec(), vec![2; 70_000])];
        let (bytes, left_out) = xattrs(Some((b"user.overlay.opaque", b"y")), &all, BLOCK);
        assert_eq!(left_out, 1);
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[XATTR_HEADER..XATTR_HEADER + 18], b"\x0e\x01\x01\0overlay.opaque");
        assert_eq!(xattrs(None, &all, 50), (Vec::new(), 2));
    }
}
