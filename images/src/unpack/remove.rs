//! Removing a tree whose directories may forbid it to their owner, by descriptor, following nothing.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, chmodat, fchmod, fstat, openat, unlinkat};
use rustix::io::Errno;

use super::names::Names;

type Result<T> = std::result::Result<T, Errno>;

/// Removes whatever `name` is in `parent`, with everything below it. Something missing is no error.
pub(crate) fn remove_tree(parent: impl AsFd, name: &[u8]) -> Result<()> {
    let parent = parent.as_fd();
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // Linux says EISDIR; POSIX allows EPERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    // An open directory on the way down, with the names of directories in it that are still to be removed.
    struct Level {
        fd: OwnedFd,
        name: Vec<u8>,
        todo: Names,
    }
    let enter = |fd: OwnedFd, name: Vec<u8>| -> Result<Level> {
        let todo = empty(&fd)?;
        Ok(Level { fd, name, todo })
    };
    let mut levels = vec![enter(open_for_removal(parent, name)?, name.to_vec())?];
    while let Some(top) = levels.last_mut() {
        if let Some(child) = top.todo.pop() {
            let fd = open_for_removal(&top.fd, &child)?;
            levels.push(enter(fd, child)?);
            continue;
        }
        let Some(done) = levels.pop() else { break };
        let above = levels.last().map_or(parent, |level| level.fd.as_fd());
        match unlinkat(above, done.name.as_slice(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Removes all that is in a directory.
pub(super) fn empty_tree(directory: &OwnedFd) -> Result<()> {
    let mut directories = empty(directory)?;
    while let Some(name) = directories.pop() {
        remove_tree(directory, &name)?;
    }
    Ok(())
}

/// Opens a directory and gives its owner the right to change it.
fn open_for_removal(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let open = || {
        openat(
            &parent,
            name,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
    };
    let fd = match open() {
        // Only an unprivileged owner gets here, and only the owner of the store changes names in it, so that the
        // name still means the directory that could not be opened.
        Err(Errno::ACCESS) => {
            chmodat(&parent, name, Mode::RWXU, AtFlags::empty())?;
            open()?
        }
        other => other?,
    };
    if fstat(&fd)?.st_mode & 0o700 != 0o700 {
        fchmod(&fd, Mode::RWXU)?;
    }
    Ok(fd)
}

/// Removes all that is not a directory; gives the names of the directories.
fn empty(fd: &OwnedFd) -> Result<Names> {
    Names::of(fd, |entry| {
        if entry.file_type() == FileType::Directory {
            return Ok(true);
        }
        match unlinkat(fd, entry.file_name(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(false),
            Err(Errno::ISDIR) => Ok(true),
            Err(errno) => Err(errno),
        }
    })
}
