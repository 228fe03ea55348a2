//! User namespaces with a mapping of our choice, held by a descriptor alone.

use super::fork::{CloneOptions, Forked, exit_now, fork};
use super::{Errno, SysResult};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use std::os::fd::{AsRawFd, OwnedFd};

/// The helper that was born in a namespace; reaped when dropped. It ends by itself.
#[derive(Debug)]
pub struct Helper(OwnedFd);

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = super::wait::wait_pidfd(&self.0);
    }
}

/// Makes a user namespace with these maps (`inside outside count` lines) and returns its descriptor.
///
/// A child is cloned into the namespace, the maps are written from here, and the child ends: the namespace
/// lives on through the descriptor. Dropping the helper waits for the child, so it is best dropped later.
pub fn create(uid_map: &str, gid_map: &str) -> SysResult<(OwnedFd, Helper)> {
    make(uid_map, gid_map, |pid, _| Some(pid))
}

/// As [`create`], for a caller in a pid namespace below that of `/proc`, where the child has another pid.
pub fn create_seen_from_above(uid_map: &str, gid_map: &str) -> SysResult<(OwnedFd, Helper)> {
    make(uid_map, gid_map, |_, pidfd| {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
        info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
    })
}

fn make(
    uid_map: &str,
    gid_map: &str,
    seen: impl Fn(i32, &OwnedFd) -> Option<i32>,
) -> SysResult<(OwnedFd, Helper)> {
    let (rx, tx) = pipe_with(PipeFlags::CLOEXEC)?;
    match fork(CloneOptions { namespaces: libc::CLONE_NEWUSER as u64, ..CloneOptions::default() })? {
        Forked::Child => {
            drop(tx);
            let mut byte = [0u8; 1];
            // Ends at end of file: when the parent closes its end, or dies.
            let _ = rustix::io::read(&rx, &mut byte);
            exit_now(0)
        }
        Forked::Parent { pid, pidfd } => {
            let helper = Helper(pidfd);
            drop(rx);
            let pid = seen(pid, &helper.0).ok_or(Errno::SRCH);
            let result = pid.and_then(|pid| adopt_namespace(pid, uid_map, gid_map));
            drop(tx);
            result.map(|ns| (ns, helper))
        }
    }
}

fn adopt_namespace(pid: i32, uid_map: &str, gid_map: &str) -> SysResult<OwnedFd> {
    write_file(&format!("/proc/{pid}/uid_map"), uid_map)?;
    write_file(&format!("/proc/{pid}/gid_map"), gid_map)?;
    rustix::fs::open(format!("/proc/{pid}/ns/user"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Writes a file of `/proc` in one call, as the kernel wants its maps.
pub fn write_file(path: &str, text: &str) -> SysResult<()> {
    let fd = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    match rustix::io::write(&fd, text.as_bytes())? {
        n if n == text.len() => Ok(()),
        _ => Err(Errno::IO),
    }
}
