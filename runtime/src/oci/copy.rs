//! Copies what an image has at a place into the tmpfs that will cover it (`tmpcopyup`).

use super::error::errno;
use crate::sys::SysResult;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::process::{Gid, Uid};
use std::os::fd::{AsFd, OwnedFd};

/// Directories nested deeper than this are no image's.
const MAX_DEPTH: usize = 64;

/// Copies directories, regular files and links with owner and mode; through no link, and nothing else.
pub fn tree(from: &OwnedFd, to: &OwnedFd) -> SysResult<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let from = rustix::fs::openat(from, ".", flags, Mode::empty())?;
    directory(&from, to, 0)
}

/// An owner that this user namespace does not have cannot be given: the copy stays its maker's.
fn owned(done: SysResult<()>) -> SysResult<()> {
    match done {
        Err(rustix::io::Errno::INVAL) => Ok(()),
        other => other,
    }
}

fn directory<T: AsFd>(from: &OwnedFd, to: T, depth: usize) -> SysResult<()> {
    if depth > MAX_DEPTH {
        return Err(rustix::io::Errno::LOOP);
    }
    let stat = rustix::fs::fstat(from)?;
    let no_follow = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                rustix::fs::mkdirat(&to, name, Mode::from_raw_mode(0o700))?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | no_follow;
                let inner = rustix::fs::openat(from, name, flags, Mode::empty())?;
                let made = rustix::fs::openat(&to, name, flags, Mode::empty())?;
                directory(&inner, &made, depth + 1)?;
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | no_follow;
                let source = rustix::fs::openat(from, name, flags, Mode::empty())?;
                if !FileType::from_raw_mode(rustix::fs::fstat(&source)?.st_mode).is_file() {
                    continue;
                }
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | no_follow;
                let made = rustix::fs::openat(&to, name, flags, Mode::from_raw_mode(0o600))?;
                owned(rustix::fs::fchown(&made, owner.0, owner.1))?;
                rustix::fs::fchmod(&made, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
                std::io::copy(&mut std::fs::File::from(source), &mut std::fs::File::from(made))
                    .map_err(errno)?;
            }
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(&link, &to, name)?;
                owned(rustix::fs::chownat(&to, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW))?;
            }
            _ => {}
        }
    }
    let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    owned(rustix::fs::chownat(&to, "", owner.0, owner.1, AtFlags::EMPTY_PATH))?;
    let top =
        rustix::fs::openat(&to, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::fchmod(&top, Mode::from_raw_mode(stat.st_mode & 0o7777))
}
