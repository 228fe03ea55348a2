//! The sum of a layer's image, by which is told whether it has other bytes than those that were written.
//!
//! It is a digest of the digests of parts, so that several threads can make it; and of what is in the image, and not of how
//! the filesystem keeps it: blocks of zeros do not count, so that holes, which may be far larger than a disk, are not read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::hashing::Hashing;

/// Bytes that count as one: they are all zeros or not.
pub(super) const BLOCK: usize = 4096;
/// Bytes that one thread takes at a time.
const PART: u64 = 1 << 20;
/// Bytes that are read at a time: few enough to be in the processor's cache when they are hashed, and many times as many as it
/// hashes at once.
const PIECE: usize = 256 << 10;
/// Below this many bytes one thread does it.
const LARGE: u64 = 16 << 20;
/// Layers are made several at a time.
const MAX_THREADS: usize = 4;

/// The sum of a file, made with `H`.
pub(super) fn summed<H: Hashing>(image: &File) -> io::Result<H::Sum> {
    let length = image.metadata()?.len();
    // How many cores there are is asked of files, which for a small one would take longer than the rest.
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = if length < LARGE { 1 } else { cores().clamp(1, MAX_THREADS) };
    let summer = Summer { image, next: Mutex::default(), sums: Mutex::new(Ok(Vec::new())) };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Fewer do it as well, be it this thread alone.
            if std::thread::Builder::new().spawn_scoped(scope, || summer.work::<H>()).is_err() {
                break;
            }
        }
        summer.work::<H>();
    });
    let mut sums = summer.sums.into_inner().unwrap_or_else(PoisonError::into_inner)?;
    sums.sort_unstable_by_key(|(part, _)| *part);
    Ok(H::whole(&sums, length))
}

/// Tells of blocks that are not all zeros, of those that follow each other at once, with where in `bytes` they begin.
pub(super) fn runs(bytes: &[u8], mut tell: impl FnMut(usize, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut begun = None;
    for (block, from) in bytes.chunks(BLOCK).zip((0..).step_by(BLOCK)) {
        let something = block.iter().any(|byte| *byte != 0);
        match begun {
            None if something => begun = Some(from),
            Some(first) if !something => {
                tell(first, &bytes[first..from])?;
                begun = None;
            }
            _ => {}
        }
    }
    match begun {
        Some(first) => tell(first, &bytes[first..]),
        None => Ok(()),
    }
}

/// Parts by where they begin, with their sums.
type Parts = Vec<(u64, Vec<u8>)>;

/// What the threads share.
struct Summer<'a> {
    image: &'a File,
    /// Where the next part is looked for; the holder also has the file's position.
    next: Mutex<u64>,
    sums: Mutex<io::Result<Parts>>,
}

impl Summer<'_> {
    /// Sums up parts until there are no more.
    fn work<H: Hashing>(&self) {
        let mut made = Vec::new();
        let result = self.parts::<H>(&mut made);
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        match (&mut *sums, result) {
            (Ok(sums), Ok(())) => sums.append(&mut made),
            (Ok(_), Err(e)) => *sums = Err(e),
            (Err(_), _) => {}
        }
    }

    fn parts<H: Hashing>(&self, made: &mut Parts) -> io::Result<()> {
        let mut buffer = vec![0; PIECE];
        while let Some(part) = self.next_part()? {
            let mut hashing = H::new();
            let mut something = false;
            let end = part + PART;
            let mut at = part;
            while let Some((data, hole)) = self.data(at)?.filter(|(data, _)| *data < end) {
                let mut from = data - data % BLOCK as u64;
                at = hole.next_multiple_of(BLOCK as u64).min(end);
                while from < at {
                    let wanted = usize::try_from(at - from).unwrap_or(usize::MAX).min(PIECE);
                    let read = read_full(self.image, &mut buffer[..wanted], from)?;
                    runs(&buffer[..read], |first, blocks| {
                        something = true;
                        hashing.add(from + first as u64, blocks);
                        Ok(())
                    })?;
                    if read < wanted {
                        break;
                    }
                    from += read as u64;
                }
            }
            if something {
                made.push((part, hashing.finish()));
            }
        }
        Ok(())
    }

    /// The next part that has data.
    fn next_part(&self) -> io::Result<Option<u64>> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(data) = found(seek(self.image, SeekFrom::Data(*next)))? else { return Ok(None) };
        let part = data - data % PART;
        *next = part + PART;
        Ok(Some(part))
    }

    /// From where to where the next data is that is not before `at`.
    fn data(&self, at: u64) -> io::Result<Option<(u64, u64)>> {
        let _position = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(data) = found(seek(self.image, SeekFrom::Data(at)))? else { return Ok(None) };
        // A file that is cut off meanwhile has no hole either.
        let hole = found(seek(self.image, SeekFrom::Hole(data)))?.unwrap_or(data);
        Ok(Some((data, hole.max(data + 1))))
    }
}

/// `None` behind the last data.
fn found(place: std::result::Result<u64, Errno>) -> io::Result<Option<u64>> {
    match place {
        Err(Errno::NXIO) => Ok(None),
        other => Ok(Some(other?)),
    }
}

/// Reads as much as there is.
fn read_full(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Debug;

    use crate::store::hashing::{Blake3, Sha256};

    #[test]
    fn a_sum_says_what_is_where_and_not_how_holes_are_kept() {
        says_what_is_where_and_not_how_holes_are_kept::<Blake3>();
        says_what_is_where_and_not_how_holes_are_kept::<Sha256>();
    }

    fn says_what_is_where_and_not_how_holes_are_kept<H: Hashing<Sum: PartialEq + Debug>>() {
        let with = |length: u64, data: &[(u64, &[u8])]| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(length).unwrap();
            for (at, bytes) in data {
                file.write_all_at(bytes, *at).unwrap();
            }
            summed::<H>(&file).unwrap()
        };
        let large = vec![7; 600_000];
        // More than can be read while somebody waits.
        let far = (1 << 41) - 5 * 4096;
        let one = with(1 << 41, &[(0, b"start"), (10_000, &large), (far, b"end")]);
        assert_eq!(one, with(1 << 41, &[(0, b"start"), (4096, &[0; 4096]), (10_000, &large), (far, b"end")]));
        assert_eq!(
            one,
            with(1 << 41, &[(0, b"start"), (10_000, &large), (far, b"end"), (far - 70_000, &[0; 70_000])])
        );
        let others = [
            with(1 << 41, &[(0, b"start"), (10_000, &large), (far + 1, b"end")]),
            with(1 << 41, &[(0, b"start"), (10_000, &large), (far - 4096, b"end")]),
            with(1 << 41, &[(0, b"stars"), (10_000, &large), (far, b"end")]),
            with((1 << 41) - 4096, &[(0, b"start"), (10_000, &large), (far, b"end")]),
            with(1 << 41, &[(0, b"start"), (10_000, &large[1..]), (far, b"end")]),
        ];
        assert!(others.iter().all(|other| *other != one));
        // As two parts, and as one and a hole.
        let (two, one) = (vec![1; 2 << 20], vec![1; 1 << 20]);
        assert_ne!(with(1 << 25, &[(0, &two)]), with(1 << 25, &[(0, &one)]));
        assert_eq!(with(1 << 25, &[(0, &two)]), with(1 << 25, &[(1 << 20, &one), (0, &one)]));
        assert_ne!(with(0, &[]), with(1, &[]));
        assert_ne!(with(100, &[(99, b"x")]), with(101, &[(99, b"x")]));
    }
}
