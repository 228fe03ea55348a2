//! Loading a seccomp filter.

use super::{SysResult, check};

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
    let len = u16::try_from(filter.len()).map_err(|_| super::Errno::INVAL)?;
    let program = Program { len, filter: filter.as_ptr() };
    // SAFETY: `program` has the layout of struct sock_fprog and points at `len` instructions that live
    // across the call; the kernel copies and verifies them.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, std::ptr::from_ref(&program))
    })
    .map(drop)
}
