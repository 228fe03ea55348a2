//! `clone3` as a fork: new namespaces, into a cgroup, with a pidfd.

use super::{Errno, SysResult, check};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// How a child is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct CloneOptions<'a> {
    /// `CLONE_NEW*` bits.
    pub namespaces: u64,
    /// A cgroup v2 directory that the child starts in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Make the child a sibling: its parent becomes the caller's parent.
    pub sibling: bool,
}

/// Which side of a fork the caller is on.
#[derive(Debug)]
pub enum Forked {
    /// The new process.
    Child,
    /// The caller: the child's pid as the caller sees it, and its pidfd.
    Parent {
        /// Process id.
        pid: i32,
        /// A descriptor of the process that cannot be confused with a later one of the same number.
        pidfd: OwnedFd,
    },
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_PIDFD: u64 = 0x1000;
const CLONE_PARENT: u64 = 0x8000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Whether the calling process has exactly one thread.
///
/// Asked of the kernel itself: in a container `/proc` is what its user made of it.
pub fn single_threaded() -> bool {
    // SAFETY: unshare(2): with CLONE_THREAD the call changes nothing in a process of one thread, and fails in others.
    unsafe { libc::unshare(libc::CLONE_THREAD) == 0 }
}

/// Forks by `clone3`.
///
/// # Errors
/// `EBUSY` when the process has more than one thread: a lock held by another thread (the allocator's, for
/// one) would stay held for ever in the child. Otherwise the kernel's error.
pub fn fork(options: CloneOptions<'_>) -> SysResult<Forked> {
    if !single_threaded() {
        return Err(Errno::BUSY);
    }
    let mut pidfd: libc::c_int = -1;
    let mut args = CloneArgs {
        flags: options.namespaces | CLONE_PIDFD,
        pidfd: std::ptr::from_mut(&mut pidfd) as u64,
        exit_signal: if options.sibling { 0 } else { libc::SIGCHLD as u64 },
        ..CloneArgs::default()
    };
    if options.sibling {
        args.flags |= CLONE_PARENT;
    }
    if let Some(fd) = options.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(fd.as_raw_fd()).unwrap_or(u64::MAX);
    }
    // SAFETY: `args` and `pidfd` live across the call and have the layout and size the kernel is told. No
    // CLONE_VM and no stack is given, so the child runs on its own copy of this stack. The caller has one
    // thread (checked above), so no lock is held by a thread that the child lacks: allocation and the
    // standard library stay usable in the child, as after fork(2) in a single-threaded program.
    let ret = unsafe {
        libc::syscall(libc::SYS_clone3, std::ptr::from_mut(&mut args), std::mem::size_of::<CloneArgs>())
    };
    match check(ret)? {
        0 => Ok(Forked::Child),
        pid => {
            // SAFETY: the kernel stored a fresh descriptor that nothing else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Forked::Parent { pid: i32::try_from(pid).map_err(|_| Errno::OVERFLOW)?, pidfd })
        }
    }
}

/// Ends the process at once, without running destructors or exit handlers of the parent's copy.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` takes any number and does not return.
    unsafe { libc::_exit(code) }
}

/// Moves the calling process into new namespaces (`CLONE_NEW*` bits).
pub fn unshare(namespaces: libc::c_int) -> SysResult<()> {
    // SAFETY: only namespaces are unshared, never the descriptor table or memory, so no OwnedFd and no
    // reference changes its meaning.
    check(libc::c_long::from(unsafe { libc::unshare(namespaces) })).map(drop)
}
