//! The image file: data and metadata one behind the other, in whole blocks, with holes where files have holes.

use std::os::fd::OwnedFd;

use rustix::fs::ftruncate;
use rustix::io::{Errno, pread, pwrite};

use super::disk::{BLOCK, SLOT};

/// Bytes that are gathered before they are written.
const BUFFER: usize = 1 << 20;
/// Metadata blocks that have room left and wait for something that fits. A file's tail seldom fills one.
const OPEN_BLOCKS: usize = 8;

/// Room in a block of metadata.
struct Room {
    at: u64,
    end: u64,
}

/// A file that grows by blocks.
pub(super) struct Out {
    file: OwnedFd,
    /// What stands at `start` and was not written yet; in front of it all is in the file.
    buffer: Vec<u8>,
    start: u64,
    rooms: Vec<Room>,
    /// Where the metadata that lies last ends.
    metadata: u64,
    /// Bytes in holes.
    holes: u64,
}

type Result<T> = std::result::Result<T, Errno>;

impl Out {
    /// Starts with one empty block.
    pub(super) fn new(file: OwnedFd) -> Self {
        Self { file, buffer: vec![0; BLOCK], start: 0, rooms: Vec::new(), metadata: 0, holes: 0 }
    }

    /// The block that comes next.
    pub(super) fn next_block(&self) -> Result<u32> {
        u32::try_from(self.end() / BLOCK as u64).map_err(|_| Errno::FBIG)
    }

    fn end(&self) -> u64 {
        self.start + self.buffer.len() as u64
    }

    /// Appends whole blocks.
    pub(super) fn append(&mut self, blocks: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(blocks);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// Appends a block whose end is empty.
    pub(super) fn append_part(&mut self, part: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(part);
        self.buffer.resize(self.buffer.len().next_multiple_of(BLOCK), 0);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// Leaves a hole of so many bytes, which are whole blocks.
    pub(super) fn skip(&mut self, bytes: u64) -> Result<()> {
        self.flush()?;
        self.start = self.start.checked_add(bytes).ok_or(Errno::FBIG)?;
        self.holes = self.holes.saturating_add(bytes);
        Ok(())
    }

    /// Bytes in holes so far.
    pub(super) fn holes(&self) -> u64 {
        self.holes
    }

    /// Finds room for metadata, which lies in one block if it is not larger than that; gives its place.
    pub(super) fn reserve(&mut self, bytes: usize) -> Result<u64> {
        let at = self.find(bytes);
        self.metadata = self.metadata.max(at + bytes as u64);
        // All directories have their room before the first one is put there.
        if self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        Ok(at)
    }

    fn find(&mut self, bytes: usize) -> u64 {
        let size = bytes as u64;
        let fitting = self.rooms.iter_mut().filter(|room| room.end - room.at >= size);
        if let Some(room) = fitting.min_by_key(|room| room.end - room.at) {
            let at = room.at;
            room.at = (at + size).next_multiple_of(SLOT);
            return at;
        }
        let at = self.end();
        self.buffer.resize(self.buffer.len() + bytes.next_multiple_of(BLOCK), 0);
        self.rooms.push(Room { at: (at + size).next_multiple_of(SLOT), end: self.end() });
        if self.rooms.len() > OPEN_BLOCKS
            && let Some(fullest) =
                (0..self.rooms.len()).min_by_key(|n| self.rooms[*n].end - self.rooms[*n].at)
        {
            self.rooms.remove(fullest);
        }
        at
    }

    /// Ends what there is to read: some readers look for attributes behind an inode that has none (fsck.erofs 1.5), and
    /// fail where the image ends there.
    pub(super) fn close(&mut self) {
        if self.metadata == self.end() {
            self.buffer.resize(self.buffer.len() + BLOCK, 0);
        }
    }

    /// Writes over what stands at `at`.
    pub(super) fn put(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let Some(place) = at.checked_sub(self.start).and_then(|n| usize::try_from(n).ok()) else {
            return write_at(&self.file, bytes, at);
        };
        self.buffer[place..place + bytes.len()].copy_from_slice(bytes);
        // Metadata alone fills it, too, where files have no blocks of their own.
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// Reads what was written at `at`; holes are zeros.
    pub(super) fn read(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        let written = usize::try_from(self.start.saturating_sub(at)).unwrap_or(usize::MAX).min(bytes.len());
        let (mut before, after) = bytes.split_at_mut(written);
        let mut from = at;
        while !before.is_empty() {
            match pread(&self.file, &mut *before, from) {
                Ok(0) => {
                    before.fill(0);
                    break;
                }
                Ok(read) => {
                    before = &mut before[read..];
                    from += read as u64;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        if after.is_empty() {
            return Ok(());
        }
        let place = usize::try_from(at + written as u64 - self.start).unwrap_or(usize::MAX);
        let there = self.buffer.get(place..).and_then(|there| there.get(..after.len())).ok_or(Errno::IO)?;
        after.copy_from_slice(there);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        write_at(&self.file, &self.buffer, self.start)?;
        self.start += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Writes what is left; gives the file, whose last block may be in a hole.
    pub(super) fn finish(mut self) -> Result<OwnedFd> {
        self.flush()?;
        ftruncate(&self.file, self.start)?;
        Ok(self.file)
    }
}

fn write_at(file: &OwnedFd, mut bytes: &[u8], mut at: u64) -> Result<()> {
    while !bytes.is_empty() {
        match pwrite(file, bytes, at) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => {
                bytes = &bytes[written..];
                at += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_to_be_written_is_bounded_also_where_all_is_metadata() {
        let mut out = Out::new(tempfile::tempfile().unwrap().into());
        let mut places = Vec::new();
        for n in 0..2000 {
            let at = out.reserve(4000).unwrap();
            if n < 1000 {
                out.put(at, &[7; 4000]).unwrap()
            } else {
                places.push(at)
            }
            assert!(out.buffer.len() <= BUFFER, "{} bytes wait after {n}", out.buffer.len());
        }
        places.iter().for_each(|at| out.put(*at, &[7; 4000]).unwrap());
        for at in places {
            let mut read = [0; 4000];
            out.read(at, &mut read).unwrap();
            assert_eq!(read, [7; 4000]);
        }
        assert_eq!(std::fs::File::from(out.finish().unwrap()).metadata().unwrap().len(), 2001 * BLOCK as u64);
    }
}
