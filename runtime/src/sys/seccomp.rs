//! Loading a seccomp filter.

use super::{SysResult, check};
use std::os::fd::{FromRawFd, OwnedFd};

/// One classic BPF instruction (`struct sock_filter`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when the comparison holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

#[repr(C)]
struct Program {
    len: u16,
    filter: *const Instruction,
}

const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;

/// Installs the filter on the calling thread. Needs `no_new_privs` or CAP_SYS_ADMIN.
pub fn load(filter: &[Instruction]) -> SysResult<()> {
    load_with(filter, 0).map(drop)
}

const SECCOMP_FILTER_FLAG_NEW_LISTENER: u32 = 1 << 3;

/// As [`load`], with `SECCOMP_FILTER_FLAG_*`; the listener's descriptor where one is asked for.
pub fn load_with(filter: &[Instruction], flags: u32) -> SysResult<Option<OwnedFd>> {
    let len = u16::try_from(filter.len()).map_err(|_| super::Errno::INVAL)?;
    let program = Program { len, filter: filter.as_ptr() };
    // SAFETY: `program` has the layout of struct sock_fprog and points at `len` instructions that live
    // across the call; the kernel copies and verifies them.
    let ret = check(unsafe {
        libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, std::ptr::from_ref(&program))
    })?;
    if flags & SECCOMP_FILTER_FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    let fd = libc::c_int::try_from(ret).map_err(|_| super::Errno::OVERFLOW)?;
    // SAFETY: with this flag the kernel returned a fresh descriptor that nothing else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}
