//! Locks between processes: flock(2) on files that may be removed by their holder.
//!
//! A lock file is removed only while its exclusive lock is held, and whoever gets a lock checks that the name still
//! means the file that it locked. So a killed process leaves nothing that has to be cleaned before others go on.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, fchown, flock, fstat, openat, statat, unlinkat};
use rustix::io::{Errno, pwrite};
use rustix::process::{Gid, Uid};

type Result<T> = std::result::Result<T, Errno>;

/// Shared or alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    Shared,
    Exclusive,
}

/// A lock held until dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    fd: OwnedFd,
}

impl Lock {
    /// Takes the lock `name` in `directory`, waiting for it.
    pub(super) fn wait(
        directory: BorrowedFd<'_>,
        name: &str,
        hold: Hold,
        owner: Option<(Uid, Gid)>,
    ) -> Result<Self> {
        loop {
            if let Some(lock) = take(directory, name, hold, true, owner)? {
                return Ok(lock);
            }
        }
    }

    /// Takes the lock unless that would have to wait.
    pub(super) fn try_take(
        directory: BorrowedFd<'_>,
        name: &str,
        hold: Hold,
        owner: Option<(Uid, Gid)>,
    ) -> Result<Option<Self>> {
        for _ in 0..100 {
            match take(directory, name, hold, false, owner) {
                Ok(Some(lock)) => return Ok(Some(lock)),
                Ok(None) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(errno) => return Err(errno),
            }
        }
        Ok(None)
    }

    /// Removes the lock's file; only for the holder of an exclusive lock.
    pub(super) fn remove(self, directory: BorrowedFd<'_>, name: &str) -> Result<()> {
        unlinkat(directory, name, AtFlags::empty())
    }

    /// Writes into the lock's file, over what is there; whoever does not hold the lock may read it.
    pub(super) fn say(&self, text: &[u8]) {
        // Nothing depends on it but how long others wait.
        let _ = pwrite(&self.fd, text, 0);
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

/// `None` when the file was removed between opening and locking.
fn take(
    directory: BorrowedFd<'_>,
    name: &str,
    hold: Hold,
    wait: bool,
    owner: Option<(Uid, Gid)>,
) -> Result<Option<Lock>> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat(directory, name, flags, Mode::RUSR | Mode::WUSR)?;
    if let Some((uid, gid)) = owner {
        // Root made it in the store of another identity, which has to be able to lock it.
        fchown(&fd, Some(uid), Some(gid))?;
    }
    let operation = match (hold, wait) {
        (Hold::Shared, true) => FlockOperation::LockShared,
        (Hold::Shared, false) => FlockOperation::NonBlockingLockShared,
        (Hold::Exclusive, true) => FlockOperation::LockExclusive,
        (Hold::Exclusive, false) => FlockOperation::NonBlockingLockExclusive,
    };
    loop {
        match flock(&fd, operation) {
            Ok(()) => break,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    let ours = fstat(&fd)?;
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) if named.st_ino == ours.st_ino && named.st_dev == ours.st_dev => Ok(Some(Lock { fd })),
        Ok(_) | Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let fd = rustix::fs::open(dir.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        (dir, fd)
    }

    #[test]
    fn exclusive_excludes_and_shared_shares() {
        let (_dir, fd) = directory();
        let try_take = |hold| Lock::try_take(fd.as_fd(), "x", hold, None).unwrap();
        let one = try_take(Hold::Shared).unwrap();
        let two = try_take(Hold::Shared).unwrap();
        assert!(try_take(Hold::Exclusive).is_none());
        drop((one, two));
        let alone = try_take(Hold::Exclusive).unwrap();
        assert!(try_take(Hold::Shared).is_none());
        alone.remove(fd.as_fd(), "x").unwrap();
        assert!(try_take(Hold::Exclusive).is_some());
    }

    #[test]
    fn a_lock_on_a_removed_file_does_not_count() {
        let (_dir, fd) = directory();
        let counter = std::sync::atomic::AtomicU32::new(0);
        let inside = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let lock = Lock::wait(fd.as_fd(), "x", Hold::Exclusive, None).unwrap();
                        assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                        lock.remove(fd.as_fd(), "x").unwrap();
                    }
                });
            }
        });
        assert_eq!(counter.into_inner(), 800);
    }
}
