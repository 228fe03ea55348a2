//! Calls that shape one process: session keyring, execution domain, and the loopback device of its network.

use super::{Errno, SysResult, check};
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;

/// Gives the process a session keyring of its own.
pub fn join_session_keyring(name: &CStr) -> SysResult<()> {
    // SAFETY: `name` is a C string that lives across the call.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) }).map(drop)
}

/// Sets the execution domain.
pub fn personality(domain: u32) -> SysResult<()> {
    // SAFETY: personality takes a number and touches no memory.
    check(libc::c_long::from(unsafe { libc::personality(libc::c_ulong::from(domain)) })).map(drop)
}

/// `SIOCSIFFLAGS`, in the type that this C library's ioctl takes.
const SET_FLAGS: libc::Ioctl = 0x8914;

/// Brings the loopback device up; `socket` is any socket of the network namespace.
pub fn loopback_up(socket: BorrowedFd<'_>) -> SysResult<()> {
    // SAFETY: ifreq is plain data, for which all-zero bytes are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::try_from(*from).map_err(|_| Errno::INVAL)?;
    }
    let flags = libc::IFF_UP | libc::IFF_LOOPBACK | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(|_| Errno::INVAL)?;
    // SAFETY: `request` is a whole ifreq with a name and flags, and lives across the call.
    let ret = unsafe { libc::ioctl(socket.as_raw_fd(), SET_FLAGS, std::ptr::from_mut(&mut request)) };
    check(libc::c_long::from(ret)).map(drop)
}
