//! `prlimit` by the kernel's numbers.

use super::{SysResult, check};

/// A pair of limits; `u64::MAX` is unlimited.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Enforced now.
    pub soft: u64,
    /// Ceiling of the soft limit.
    pub hard: u64,
}

/// Reads a limit of the calling process.
pub fn get(resource: u32) -> SysResult<Pair> {
    let mut old = Pair { soft: 0, hard: 0 };
    // SAFETY: `old` has the layout of struct rlimit64 and lives across the call; no new value is given.
    check(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            std::ptr::null::<Pair>(),
            std::ptr::from_mut(&mut old),
        )
    })?;
    Ok(old)
}

/// Sets a limit of the calling process.
pub fn set(resource: u32, new: Pair) -> SysResult<()> {
    // SAFETY: `new` has the layout of struct rlimit64 and lives across the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            std::ptr::from_ref(&new),
            std::ptr::null_mut::<Pair>(),
        )
    })
    .map(drop)
}
