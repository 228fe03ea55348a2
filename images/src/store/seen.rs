//! Through which files all of an image was read on this machine: who opens one of them, and it is as it was then, has the image, and need
//! not read it again to show it.
//!
//! What a user can forge is inode, size and time: on a filesystem of their own. So a file is the one that was read only on the very mount
//! through which it was read, which the kernel calls by a number that it gives to no other one while the machine runs (Linux 6.8; an
//! older kernel tells none, and nothing is believed). On that mount nobody but whoever serves it sets the time of change, which is compared
//! to the nanosecond; and who serves it had the content. The descriptor is the user's, opened for reading: one that shows no right to read
//! counts for nothing. That it is the file that was read says the fetcher, of the descriptor through which it read: a path may lead
//! elsewhere for a moment.

use std::os::fd::AsFd;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags, fcntl_getfl, statx};
use serde::{Deserialize, Serialize};

use super::lock::Hold;
use super::record::{VERSION, parse, print};
use super::{Store, boot_id, files};
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};

/// `STATX_MNT_ID_UNIQUE` of statx(2).
const MOUNT_UNIQUE: u32 = 0x4000;
/// Files that are remembered of one image; the oldest goes.
const MOST_FILES: usize = 16;
/// How long a file must have been as it is: one that was changed just now may change again without its times showing it.
const SETTLED: Duration = Duration::from_secs(2);

/// A file as it was when it was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SeenFile {
    boot: String,
    mount: u64,
    device: (u32, u32),
    inode: u64,
    size: u64,
    modified: (i64, u32),
    changed: (i64, u32),
}

impl SeenFile {
    /// Of a file that somebody opened: nothing, where it cannot be read by that descriptor, or the kernel does not tell which mount it is on.
    /// For a process that may have to wait for what serves the file.
    pub(crate) fn of(file: impl AsFd) -> Option<SeenFile> {
        let flags = fcntl_getfl(&file).ok()?;
        let access = flags & OFlags::RWMODE;
        if flags.contains(OFlags::PATH) || !(access == OFlags::RDONLY || access == OFlags::RDWR) {
            return None;
        }
        let wanted = StatxFlags::TYPE
            | StatxFlags::INO
            | StatxFlags::SIZE
            | StatxFlags::MTIME
            | StatxFlags::CTIME
            | StatxFlags::from_bits_retain(MOUNT_UNIQUE);
        let found = statx(&file, "", AtFlags::EMPTY_PATH, wanted).ok()?;
        if found.stx_mask & wanted.bits() != wanted.bits()
            || FileType::from_raw_mode(u32::from(found.stx_mode)) != FileType::RegularFile
        {
            return None;
        }
        Some(SeenFile {
            boot: boot_id(),
            mount: found.stx_mnt_id,
            device: (found.stx_dev_major, found.stx_dev_minor),
            inode: found.stx_ino,
            size: found.stx_size,
            modified: (found.stx_mtime.tv_sec, found.stx_mtime.tv_nsec),
            changed: (found.stx_ctime.tv_sec, found.stx_ctime.tv_nsec),
        })
    }

    /// Whether it had been as it is for long enough `now`, which is before it was read.
    pub(crate) fn is_settled(&self, now: SystemTime) -> bool {
        let changed = Duration::from_secs(u64::try_from(self.changed.0).unwrap_or(0));
        now.duration_since(SystemTime::UNIX_EPOCH + changed).is_ok_and(|age| age >= SETTLED)
    }
}

/// The files of one image.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Seen {
    version: u32,
    files: Vec<SeenFile>,
}

impl Store {
    /// Whether all of the image was read through any file, as that was.
    pub(crate) fn has_seen(&self, digest: &Digest) -> Result<bool> {
        Ok(!self.seen(digest)?.files.is_empty())
    }

    /// Whether all of the image was read through this file, as it is.
    pub(crate) fn is_seen(&self, digest: &Digest, file: &SeenFile) -> Result<bool> {
        Ok(self.seen(digest)?.files.contains(file))
    }

    /// Notes that all of the image was read through this file, which its path led to before and after, and which was settled before.
    pub(crate) fn note_seen(&self, digest: &Digest, file: SeenFile) -> Result<()> {
        let _store = self.lock("store", Hold::Exclusive)?;
        let mut seen = self.seen(digest)?;
        // Of an image that was removed meanwhile nothing is to be left.
        if seen.files.contains(&file) || self.whole_record(digest)?.is_none() {
            return Ok(());
        }
        // What another boot noted is of no use any more.
        seen.files.retain(|known| known.boot == file.boot);
        seen.files.push(file);
        let old = seen.files.len().saturating_sub(MOST_FILES);
        seen.files.drain(..old);
        seen.version = VERSION;
        files::write_lightly(self.images.as_fd(), &seen_name(digest), &print(&seen)?, self.give_to)
    }

    /// What is known of an image; nothing, where that is damaged.
    fn seen(&self, digest: &Digest) -> Result<Seen> {
        let name = seen_name(digest);
        let Some(bytes) = files::read(self.images.as_fd(), &name)? else { return Ok(Seen::default()) };
        match parse(&name, &bytes) {
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(Seen::default()),
            other => other,
        }
    }
}

pub(super) fn seen_name(digest: &Digest) -> String {
    format!("{}.seen", digest.file_name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::OwnedFd;

    #[test]
    fn what_shows_no_right_to_read_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, "x").unwrap();
        let open = |flags: OFlags| rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).unwrap();
        for flags in [OFlags::PATH, OFlags::WRONLY] {
            assert_eq!(SeenFile::of(open(flags)), None, "{flags:?}");
        }
        assert_eq!(SeenFile::of(OwnedFd::from(File::open(dir.path()).unwrap())), None, "a directory");
        assert_eq!(SeenFile::of(std::io::pipe().unwrap().0), None, "a pipe");
        let read = SeenFile::of(open(OFlags::RDONLY));
        assert_eq!(SeenFile::of(open(OFlags::RDWR)), read);
        // The same bytes in another file, with the same times: the inode, and when it was changed, are others.
        let copy = dir.path().join("copy");
        std::fs::copy(&path, &copy).unwrap();
        let copied = File::options().write(true).open(&copy).unwrap();
        copied.set_modified(std::fs::metadata(&path).unwrap().modified().unwrap()).unwrap();
        let copied = SeenFile::of(File::open(&copy).unwrap());
        // An older kernel tells no mount, and nothing is believed there.
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let mut parts = release.split(['.', '-']).map(|n| n.parse::<u32>().unwrap_or(0));
        let tells = (parts.next(), parts.next()) >= (Some(6), Some(8));
        assert_eq!((read.is_some(), copied.is_some()), (tells, tells), "{release}");
        if let (Some(read), Some(copied)) = (read, copied) {
            assert_eq!((copied.size, copied.modified), (read.size, read.modified));
            assert_ne!(copied, read);
        }
    }

    #[test]
    fn a_file_that_was_changed_just_now_is_not_remembered() {
        let file = SeenFile {
            boot: String::new(),
            mount: 1,
            device: (8, 1),
            inode: 2,
            size: 3,
            modified: (0, 0),
            changed: (1000, 999_999_999),
        };
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert!(!file.is_settled(at(900)) && !file.is_settled(at(1001)) && file.is_settled(at(1002)));
    }
}
