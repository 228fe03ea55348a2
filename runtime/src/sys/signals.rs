//! Signal dispositions and masks of a process about to run another program.

use super::{SysResult, check, last_errno};
use std::os::fd::{FromRawFd, OwnedFd};

/// The kernel's own `struct sigaction`: the C library's refuses the real-time signals it keeps for itself.
#[repr(C)]
#[derive(Default)]
struct KernelSigaction {
    handler: usize,
    flags: libc::c_ulong,
    #[cfg(target_arch = "x86_64")]
    restorer: usize,
    mask: u64,
}

/// Puts every signal back to its default and blocks none.
pub fn reset() {
    let default = KernelSigaction::default();
    for signal in 1..=64 {
        // SAFETY: `default` is a zeroed kernel sigaction (SIG_DFL, no flags), the mask size is the
        // kernel's. It fails for SIGKILL and SIGSTOP, which have no other disposition.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                std::ptr::from_ref(&default),
                std::ptr::null_mut::<KernelSigaction>(),
                8usize,
            );
        }
    }
    set_mask(0);
}

/// Ignores a signal. With SIGCHLD ignored, children that end are reaped by the kernel.
pub fn ignore(signal: i32) {
    let ignore = KernelSigaction { handler: libc::SIG_IGN, ..KernelSigaction::default() };
    // SAFETY: `ignore` is a kernel sigaction without a handler to call; the mask size is the kernel's.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            std::ptr::from_ref(&ignore),
            std::ptr::null_mut::<KernelSigaction>(),
            8usize,
        );
    }
}

/// Sets the calling thread's mask of blocked signals (bit 0 is signal 1).
pub fn set_mask(mask: u64) {
    // SAFETY: `mask` lives across the call and its size is given; SIG_SETMASK cannot fail with it.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            std::ptr::from_ref(&mask),
            std::ptr::null_mut::<u64>(),
            8usize,
        );
    }
}

/// Blocks every signal that can be blocked, and gives the mask as it was.
pub fn block_all() -> u64 {
    let (all, mut before) = (u64::MAX, 0u64);
    // SAFETY: both masks live across the call and their size is given; SIG_SETMASK cannot fail with them.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            std::ptr::from_ref(&all),
            std::ptr::from_mut(&mut before),
            8usize,
        );
    }
    before
}

/// A descriptor that becomes readable when one of the signals in `mask`, which must be blocked, arrives.
pub fn signalfd(mask: u64) -> SysResult<OwnedFd> {
    // SAFETY: `mask` lives across the call and its size is given.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_signalfd4,
            -1,
            std::ptr::from_ref(&mask),
            8usize,
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        )
    })?;
    let fd = libc::c_int::try_from(fd).map_err(|_| super::Errno::OVERFLOW)?;
    // SAFETY: the kernel returned a fresh descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The mask bit of a signal.
pub fn bit(signal: i32) -> u64 {
    1u64 << (signal - 1)
}

/// Sends any signal, real-time ones included, to a process (or, negative, to a process group).
pub fn kill(pid: i32, signal: i32) -> SysResult<()> {
    // SAFETY: kill touches no memory.
    if unsafe { libc::kill(pid, signal) } < 0 { Err(last_errno()) } else { Ok(()) }
}
