//! `execve`, and closing everything a new program must not have.

use super::{Errno, SysResult, check, last_errno};
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// Argument and environment vectors in the form `execve` wants.
pub struct ExecVectors {
    _args: Vec<CString>,
    env: Vec<CString>,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
}

impl ExecVectors {
    /// Keeps the strings and the pointers to them.
    pub fn new(args: Vec<CString>, env: Vec<CString>) -> Self {
        let point = |v: &[CString]| {
            v.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect::<Vec<_>>()
        };
        let (argv, envp) = (point(&args), point(&env));
        ExecVectors { _args: args, env, argv, envp }
    }

    /// Adds a variable.
    pub fn add(&mut self, var: CString) {
        let end = self.envp.len() - 1;
        self.envp.insert(end, var.as_ptr());
        self.env.push(var);
    }
}

/// Replaces the program; returns only to say why not.
pub fn execve(path: &CStr, vectors: &ExecVectors) -> Errno {
    // SAFETY: `path` is a C string; both vectors end in a null pointer and every other pointer in them
    // points into a CString that `vectors` owns and never changes.
    unsafe { libc::execve(path.as_ptr(), vectors.argv.as_ptr(), vectors.envp.as_ptr()) };
    last_errno()
}

/// Closes every descriptor from `first` on, except those in `keep`.
///
/// Owned descriptors elsewhere in the process become invalid: only for a process that from here on uses
/// nothing but `keep`, and ends by `exec` or `exit_now`.
pub fn close_all_from(first: RawFd, keep: &[RawFd]) -> SysResult<()> {
    let mut kept: Vec<RawFd> = keep.iter().copied().filter(|fd| *fd >= first).collect();
    kept.sort_unstable();
    kept.dedup();
    let mut from = first;
    for fd in kept {
        if fd > from {
            close_range(from, fd - 1)?;
        }
        from = fd + 1;
    }
    close_range(from, RawFd::MAX)
}

fn close_range(from: RawFd, to: RawFd) -> SysResult<()> {
    // SAFETY: closing descriptors touches no memory. That no live OwnedFd in the process is used afterwards
    // is the documented duty of `close_all_from`'s caller.
    check(unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) }).map(drop)
}

/// Marks every descriptor from `first` on to be closed by `execve`.
pub fn close_on_exec_from(first: RawFd) -> SysResult<()> {
    // SAFETY: this changes a flag of descriptors and touches no memory.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, RawFd::MAX, libc::CLOSE_RANGE_CLOEXEC) })
        .map(drop)
}

/// Whether something is open under this number.
pub fn is_open(number: RawFd) -> bool {
    // SAFETY: this reads a flag of a descriptor and touches no memory.
    unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
}

/// Lets the program have a descriptor that the caller left open under this number.
///
/// # Errors
/// `EBADF` when nothing is open there.
pub fn keep_open(number: RawFd) -> SysResult<()> {
    // SAFETY: this changes a flag of a descriptor and touches no memory.
    check(libc::c_long::from(unsafe { libc::fcntl(number, libc::F_SETFD, 0) })).map(drop)
}

/// Makes `fd` also be number `target`, without close-on-exec.
pub fn place_at(fd: BorrowedFd<'_>, target: RawFd) -> SysResult<()> {
    if fd.as_raw_fd() == target {
        return rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty());
    }
    // SAFETY: dup2 touches no memory; `target` is a number the caller chose in a process about to exec.
    let ret = unsafe { libc::dup2(fd.as_raw_fd(), target) };
    check(libc::c_long::from(ret)).map(drop)
}
