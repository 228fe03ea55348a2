//! Directories of the state directory whose files need not outlive the machine: in system mode they are kept in memory; and
//! the store of images, where the configuration has it there.
//!
//! A step that runs has a dozen files that are made, read once and removed, and a filesystem on a disk does for each of them
//! what a file needs that stays. Nothing that is mounted for this has to be found: it is at the directory's own path, goes on
//! when the agent ends, and is the next agent's. An ordinary user mounts nothing, and has no other memory that stays when the
//! last session ends: `$XDG_RUNTIME_DIR` is removed then, and so is what is the user's own in `/dev/shm`.

use rustix::fs::{AtFlags, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Of tmpfs, from `statfs(2)`.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Has a directory's files kept in memory from here on; it is made if it is not there. Where that is not possible they are
/// kept on the disk, with a word about it. To be called by whoever holds the agent's lock.
pub fn take(dir: &Path, mode: u32) {
    let kept = match try_take(dir, mode) {
        Ok(kept) => kept,
        Err(e) => {
            tracing::warn!(
                "{} is kept on the disk, because no tmpfs can be mounted there: {e}",
                dir.display()
            );
            return;
        }
    };
    if !kept {
        tracing::info!(
            "{} stays on the disk until the agent starts while no step of this node is left there",
            dir.display()
        );
    }
}

/// Whether they are kept in memory now.
fn try_take(dir: &Path, mode: u32) -> io::Result<bool> {
    DirBuilder::new().mode(0o700).recursive(true).create(dir)?;
    let held = open(dir)?;
    if in_memory(&held)? || is_mounted(&held)? {
        // An earlier agent's, an administrator's, or the state directory is in memory as a whole.
        return Ok(true);
    }
    if fs::read_dir(reached(&held))?.next().is_some() {
        // Of steps that run: an earlier agent kept them on the disk.
        return Ok(false);
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = CString::new(format!("mode={mode:o}"))?;
    rustix::mount::mount("berth-steps", reached(&held), "tmpfs", flags, options.as_c_str())?;
    Ok(true)
}

/// Undoes [`take`] where nothing is left in the directory; else it stays for the next agent.
pub fn give_back(dir: &Path) -> io::Result<()> {
    let held = match open(dir) {
        Ok(held) => held,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    if !is_mounted(&held)? || !in_memory(&held)? || fs::read_dir(reached(&held))?.next().is_some() {
        return Ok(());
    }
    drop(held);
    Ok(rustix::mount::unmount(dir, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)?)
}

/// Bytes of the store for each file that there may be: what files have beside their content takes memory, too, and is not
/// counted. Layers of small files have 5 KiB for each.
const BYTES_PER_FILE: u64 = 4096;

/// Has the store of images kept in memory, with so many MiB at most and for this owner. One that is there is the next agent's,
/// with all images, and gets the size that is wanted now.
///
/// # Errors
/// What is wrong and what to do.
pub fn take_store(dir: &Path, mib: u64, owner: (u32, u32)) -> Result<(), String> {
    let failed = |e: io::Error| format!("images.memory: {}: no tmpfs can be mounted: {e}", dir.display());
    DirBuilder::new().mode(0o700).recursive(true).create(dir).map_err(failed)?;
    let held = open(dir).map_err(failed)?;
    let bytes = mib << 20;
    let size = format!("size={bytes},nr_inodes={}", bytes / BYTES_PER_FILE);
    if is_mounted(&held).map_err(failed)? {
        if !in_memory(&held).map_err(failed)? {
            return Err(format!(
                "images.memory: something else is mounted at {}: unmount it, or leave images.memory out",
                dir.display()
            ));
        }
        let options = CString::new(size).map_err(|e| failed(e.into()))?;
        return rustix::mount::mount_remount(reached(&held), STORE_FLAGS, options.as_c_str()).map_err(|e| {
            format!(
                "images.memory: {} holds more than {mib} MiB, or cannot be given that size ({}): 'berth down' empties it, \
                 'berth image rm' makes it smaller",
                dir.display(),
                io::Error::from(e)
            )
        });
    }
    if fs::read_dir(reached(&held)).map_err(failed)?.next().is_some() {
        return Err(format!(
            "images.memory: there are files at {}, which a tmpfs would hide: remove them",
            dir.display()
        ));
    }
    let (uid, gid) = owner;
    let options =
        CString::new(format!("{size},mode=700,uid={uid},gid={gid}")).map_err(|e| failed(e.into()))?;
    rustix::mount::mount("berth-images", reached(&held), "tmpfs", STORE_FLAGS, options.as_c_str())
        .map_err(|e| failed(e.into()))
}

/// Programs in images run, as from a disk.
const STORE_FLAGS: MountFlags = MountFlags::NODEV;

/// Undoes [`take_store`]. Containers that run keep what they have of it, until they end.
pub fn give_back_store(dir: &Path) -> io::Result<()> {
    let held = match open(dir) {
        Ok(held) => held,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    if is_mounted(&held)? && in_memory(&held)? {
        drop(held);
        rustix::mount::unmount(dir, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)?;
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn open(dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(dir, flags, Mode::empty())?)
}

/// The directory itself, whatever its name leads to by now.
fn reached(held: &OwnedFd) -> PathBuf {
    Path::new("/proc/self/fd").join(held.as_raw_fd().to_string())
}

fn in_memory(held: &OwnedFd) -> io::Result<bool> {
    Ok(rustix::fs::fstatfs(held)?.f_type == TMPFS_MAGIC)
}

/// Whether something is mounted at this very directory.
fn is_mounted(held: &OwnedFd) -> io::Result<bool> {
    let found = rustix::fs::statx(held.as_fd(), c"", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_in_memory_until_it_is_given_back_empty_as_root() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let state = tempfile::tempdir_in("/var/tmp").unwrap();
        let dir = state.path().join("spool");
        let device = || rustix::fs::stat(&dir).unwrap().st_dev;
        take(&dir, 0o711);
        let taken = device();
        assert_ne!(taken, rustix::fs::stat(state.path()).unwrap().st_dev);
        assert_eq!(rustix::fs::stat(&dir).unwrap().st_mode & 0o7777, 0o711);
        fs::write(dir.join("file"), b"x").unwrap();
        // The next agent's, with all that is in it; and a file keeps it.
        take(&dir, 0o711);
        give_back(&dir).unwrap();
        assert_eq!(device(), taken);
        fs::remove_file(dir.join("file")).unwrap();
        give_back(&dir).unwrap();
        assert_ne!(device(), taken);
        give_back(&dir).unwrap();
    }

    #[test]
    fn a_store_in_memory_has_its_size_and_stays_for_the_next_agent_as_root() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let state = tempfile::tempdir_in("/var/tmp").unwrap();
        let dir = state.path().join("images");
        let bytes = || {
            let found = rustix::fs::statvfs(&dir).unwrap();
            found.f_blocks * found.f_frsize
        };
        take_store(&dir, 4, (12_345, 12_346)).unwrap();
        assert_eq!(bytes(), 4 << 20);
        let found = rustix::fs::stat(&dir).unwrap();
        assert_eq!((found.st_mode & 0o7777, found.st_uid, found.st_gid), (0o700, 12_345, 12_346));
        fs::write(dir.join("file"), vec![1; 2 << 20]).unwrap();
        take_store(&dir, 8, (12_345, 12_346)).unwrap();
        assert_eq!((bytes(), fs::metadata(dir.join("file")).unwrap().len()), (8 << 20, 2 << 20));
        // Jobs were promised the rest of the memory.
        let small = take_store(&dir, 1, (12_345, 12_346)).unwrap_err();
        assert!(small.contains("images.memory") && small.contains("berth down"), "{small}");
        assert_eq!(bytes(), 8 << 20);
        give_back_store(&dir).unwrap();
        assert!(!dir.exists());
        give_back_store(&dir).unwrap();
        // What lies there on the disk is not hidden, and not lost.
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("file"), b"x").unwrap();
        assert!(take_store(&dir, 4, (0, 0)).unwrap_err().contains("would hide"));
        assert!(give_back_store(&dir).is_err());
        assert!(dir.join("file").exists());
    }

    #[test]
    fn what_is_on_the_disk_already_is_not_hidden_as_root() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let state = tempfile::tempdir_in("/var/tmp").unwrap();
        let dir = state.path().join("spool");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("file"), b"x").unwrap();
        take(&dir, 0o700);
        assert!(dir.join("file").exists());
        // No link is followed to what somebody else owns.
        let link = state.path().join("link");
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        assert!(try_take(&link, 0o700).is_err());
        give_back(&dir).unwrap();
    }
}
