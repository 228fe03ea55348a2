//! Work in progress: directories that no reader sees, swept when the process that made them is gone.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Dir, Mode, OFlags, fchown, mkdirat, openat, renameat};
use rustix::io::Errno;

use super::Store;
use super::form::empty_image;
use super::lock::{Hold, Lock};
use crate::error::{Error, Result};
use crate::unpack::remove_tree;

/// A directory in `tmp/`, removed when dropped unless it was published.
pub(super) struct WorkDir<'a> {
    store: &'a Store,
    name: String,
    lock: Option<Lock>,
    published: bool,
}

impl<'a> WorkDir<'a> {
    pub(super) fn new(store: &'a Store) -> Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        loop {
            let name = format!("{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
            // The lock comes first: a directory without one has no living owner.
            let lock_name = format!("{name}.lock");
            let lock =
                Lock::try_take(store.tmp.as_fd(), &lock_name, Hold::Exclusive, store.give_to).map_err(io)?;
            let Some(lock) = lock else { continue };
            match mkdirat(&store.tmp, name.as_str(), Mode::RWXU) {
                Ok(()) => {
                    // Made before it is given away, so that it is removed again where that fails.
                    let work = Self { store, name, lock: Some(lock), published: false };
                    if let Some((uid, gid)) = store.give_to {
                        // Root may be killed, and the store's own identity sweeps.
                        fchown(work.open()?, Some(uid), Some(gid)).map_err(io)?;
                    }
                    return Ok(work);
                }
                // A killed process of the same number left it, and its lock is now ours.
                Err(Errno::EXIST) => {
                    remove_tree(&store.tmp, name.as_bytes()).map_err(io)?;
                    lock.remove(store.tmp.as_fd(), &lock_name).map_err(io)?;
                }
                Err(errno) => return Err(io(errno)),
            }
        }
    }

    pub(super) fn open(&self) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.store.tmp, self.name.as_str(), flags, Mode::empty()).map_err(io)
    }

    /// Makes the directory visible as a layer.
    pub(super) fn publish(mut self, name: &str) -> Result<()> {
        renameat(&self.store.tmp, self.name.as_str(), &self.store.layers, name).map_err(io)?;
        self.published = true;
        Ok(())
    }

    /// As [`WorkDir::swallow`], for a layer that nobody uses. The space of its image comes back at once, also where an
    /// agent still has it mounted, and not before it is out of sight: whoever is killed between leaves no empty layer.
    pub(super) fn swallow_unused(&self, name: &str) -> Result<()> {
        self.swallow(name)?;
        empty_image(&self.open()?, name);
        Ok(())
    }

    /// Takes a layer out of sight into this (so far empty) directory, to be removed with it.
    pub(super) fn swallow(&self, name: &str) -> Result<()> {
        let own = self.open()?;
        match renameat(&self.store.layers, name, &own, name) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(io(errno)),
        }
    }
}

impl Drop for WorkDir<'_> {
    fn drop(&mut self) {
        // What cannot be removed now is swept by the next import.
        let gone = self.published || remove_tree(&self.store.tmp, self.name.as_bytes()).is_ok();
        if let (Some(lock), true) = (self.lock.take(), gone) {
            let _ = lock.remove(self.store.tmp.as_fd(), &format!("{}.lock", self.name));
        }
    }
}

impl Store {
    /// Removes work of processes that are gone.
    pub(super) fn sweep(&self) -> Result<()> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.tmp).map_err(io)? {
            let entry = entry.map_err(io)?;
            if let Ok(name) = entry.file_name().to_str()
                && !name.starts_with('.')
            {
                names.push(name.trim_end_matches(".lock").to_owned());
            }
        }
        names.sort();
        names.dedup();
        for name in names {
            let lock_name = format!("{name}.lock");
            let Some(lock) =
                Lock::try_take(self.tmp.as_fd(), &lock_name, Hold::Exclusive, self.give_to).map_err(io)?
            else {
                continue;
            };
            remove_tree(&self.tmp, name.as_bytes()).map_err(io)?;
            lock.remove(self.tmp.as_fd(), &lock_name).map_err(io)?;
        }
        Ok(())
    }
}

fn io(errno: Errno) -> Error {
    Error::io("image store: work in progress", errno)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn what_root_was_killed_over_can_be_swept_by_the_stores_own_identity_as_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        let store = Store::open_for(&root, Some((12345, 12345))).unwrap();
        let work = WorkDir::new(&store).unwrap();
        let made = std::fs::metadata(root.join("tmp").join(&work.name)).unwrap();
        assert_eq!((made.uid(), made.gid()), (12345, 12345));
    }
}
