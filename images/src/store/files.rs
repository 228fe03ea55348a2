//! Small files of the store: read whole and bounded, written so that a reader sees the old or the new one.

use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, fchown, fsync, openat, renameat, statat, unlinkat};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::error::{Error, ErrorKind, Result};

/// Largest record.
const MAX_RECORD: u64 = 64 << 20;

/// Reads a file; `None` where there is none.
pub(super) fn read(directory: BorrowedFd<'_>, name: &str) -> Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(directory, name, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(Error::io(format!("image store: {name}"), errno)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_RECORD + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io(format!("image store: {name}"), e))?;
    if bytes.len() as u64 > MAX_RECORD {
        return Err(Error::new(ErrorKind::Corrupt, format!("image store: {name}"), "is far too large")
            .next("remove the image and pull it again"));
    }
    Ok(Some(bytes))
}

/// Writes `bytes` under `name`: to a temporary name, fsync, rename, fsync of the directory.
pub(super) fn write(
    directory: BorrowedFd<'_>,
    name: &str,
    bytes: &[u8],
    owner: Option<(Uid, Gid)>,
) -> Result<()> {
    put(directory, name, bytes, owner, true)
}

/// As [`write`], for what may be lost or torn by a power cut: who reads it takes that for nothing.
pub(super) fn write_lightly(
    directory: BorrowedFd<'_>,
    name: &str,
    bytes: &[u8],
    owner: Option<(Uid, Gid)>,
) -> Result<()> {
    put(directory, name, bytes, owner, false)
}

fn put(
    directory: BorrowedFd<'_>,
    name: &str,
    bytes: &[u8],
    owner: Option<(Uid, Gid)>,
    safely: bool,
) -> Result<()> {
    let what = |e: std::io::Error| Error::io(format!("image store: {name}"), e);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let (temporary, fd) = loop {
        // By chance: each PID namespace counts its processes from one, and several may have the store.
        let temporary = format!(".{name}.{:016x}", RandomState::new().build_hasher().finish());
        match openat(directory, temporary.as_str(), flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => break (temporary, fd),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(what(errno.into())),
        }
    };
    let result = (|| {
        if let Some((uid, gid)) = owner {
            fchown(&fd, Some(uid), Some(gid))?;
        }
        let mut file = File::from(fd);
        file.write_all(bytes)?;
        if safely {
            file.sync_all()?;
        }
        renameat(directory, temporary.as_str(), directory, name)?;
        if safely {
            fsync(directory)?;
        }
        Ok(())
    })();
    result.map_err(|e| {
        let _ = unlinkat(directory, temporary.as_str(), AtFlags::empty());
        what(e)
    })
}

/// Removes temporary files that killed processes left: nobody writes one file for this long.
pub(super) fn sweep(directory: BorrowedFd<'_>) -> Result<()> {
    const OLD: i64 = 600;
    let io = |e: Errno| Error::io("image store: temporary files", e);
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
    for entry in Dir::read_from(directory).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name();
        if !name.to_bytes().starts_with(b".") || matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let old = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|s| now.saturating_sub(s.st_mtime) > OLD);
        if old {
            match unlinkat(directory, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(io(errno)),
            }
        }
    }
    Ok(())
}

/// Removes a file; something missing is no error.
pub(super) fn remove(directory: BorrowedFd<'_>, name: &str) -> Result<()> {
    match unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(Error::io(format!("image store: {name}"), errno)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_a_process_of_the_same_number_writes_elsewhere_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let directory = File::open(dir.path()).unwrap();
        // What one in another PID namespace is writing, where files are called by numbers of processes.
        let of_other = |n: u32| dir.path().join(format!(".record.{}.{n}", std::process::id()));
        (0..1000).for_each(|n| std::fs::write(of_other(n), "other").unwrap());
        for bytes in [b"one", b"two"] {
            write(directory.as_fd(), "record", bytes, None).unwrap();
            assert_eq!(read(directory.as_fd(), "record").unwrap().as_deref(), Some(&bytes[..]));
        }
        assert!((0..1000).all(|n| of_other(n).exists()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1001, "nothing of ours is left");
    }
}
