//! User namespaces with a mapping of our choice, held by a descriptor alone.

use super::share::Waiting;
use super::{Errno, SysResult};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::os::fd::{AsRawFd, OwnedFd};

/// Makes a user namespace with these maps (`inside outside count` lines) and returns its descriptor.
///
/// A child is cloned into the namespace, the maps are written from here, and the child ends: the namespace
/// lives on through the descriptor.
pub fn create(uid_map: &str, gid_map: &str) -> SysResult<OwnedFd> {
    make(uid_map, gid_map, |child| Some(child.pid))
}

/// As [`create`], for a caller that has more to do meanwhile: the child may end later than this. It is waited for when the
/// second value is dropped.
pub fn begin(uid_map: &str, gid_map: &str) -> SysResult<(OwnedFd, Waiting)> {
    let mut child = Waiting::new(libc::CLONE_NEWUSER)?;
    let namespace = adopt_namespace(child.pid, uid_map, gid_map)?;
    child.release();
    Ok((namespace, child))
}

/// As [`create`], for a caller in a pid namespace below that of `/proc`, where the child has another pid.
pub fn create_seen_from_above(uid_map: &str, gid_map: &str) -> SysResult<OwnedFd> {
    make(uid_map, gid_map, |child| {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", child.pidfd.as_raw_fd())).ok()?;
        info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
    })
}

fn make(uid_map: &str, gid_map: &str, seen: impl Fn(&Waiting) -> Option<i32>) -> SysResult<OwnedFd> {
    let child = Waiting::new(libc::CLONE_NEWUSER)?;
    let pid = seen(&child).ok_or(Errno::SRCH)?;
    adopt_namespace(pid, uid_map, gid_map)
}

fn adopt_namespace(pid: i32, uid_map: &str, gid_map: &str) -> SysResult<OwnedFd> {
    write_file(&format!("/proc/{pid}/uid_map"), uid_map)?;
    write_file(&format!("/proc/{pid}/gid_map"), gid_map)?;
    of(pid)
}

/// The user namespace of a process.
pub fn of(pid: i32) -> SysResult<OwnedFd> {
    rustix::fs::open(format!("/proc/{pid}/ns/user"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

// linux/magic.h
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// Opens `/proc`, to be written through later, when a name in `/proc` may be anybody's. `ENODEV`: it is no procfs.
pub fn open_procfs() -> SysResult<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let proc = rustix::fs::open("/proc", flags, Mode::empty())?;
    if rustix::fs::fstatfs(&proc)?.f_type == PROC_SUPER_MAGIC { Ok(proc) } else { Err(Errno::NODEV) }
}

/// Writes a file of the calling process through a procfs that was opened before; no link and no mount is followed.
pub fn write_own(proc: &OwnedFd, file: &str, text: &str) -> SysResult<()> {
    let pid = rustix::fs::readlinkat(proc, "self", Vec::new())?;
    let path = format!("{}/{file}", pid.to_str().map_err(|_| Errno::INVAL)?);
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    whole(&rustix::fs::openat2(proc, path, flags, Mode::empty(), resolve)?, text)
}

/// Writes a file of `/proc` in one call, as the kernel wants its maps.
fn write_file(path: &str, text: &str) -> SysResult<()> {
    let fd = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    whole(&fd, text)
}

fn whole(fd: &OwnedFd, text: &str) -> SysResult<()> {
    match rustix::io::write(fd, text.as_bytes())? {
        n if n == text.len() => Ok(()),
        _ => Err(Errno::IO),
    }
}
