//! System calls that no safe library offers: the only place with unsafe code in the workspace.
//!
//! Everything here is a thin, safe function over one call. What can be done through `rustix` or `nix` is
//! done there and is not repeated here.

pub mod bpf;
pub mod exec;
pub mod fork;
pub mod identity;
pub mod limits;
pub mod loopdev;
pub mod mountattr;
#[cfg(feature = "nvml")]
pub mod nvml;
pub mod pmix;
pub mod process;
pub mod schedule;
pub mod seccomp;
pub mod share;
pub mod signals;
pub mod userns;
pub mod wait;

pub use rustix::io::Errno;

/// What a system call gives.
pub type SysResult<T> = Result<T, Errno>;

/// Turns the result of `libc::syscall` into a number or an error.
fn check(ret: libc::c_long) -> SysResult<libc::c_long> {
    if ret < 0 { Err(last_errno()) } else { Ok(ret) }
}

/// The calling thread's `errno`.
fn last_errno() -> Errno {
    let raw = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    Errno::from_raw_os_error(raw)
}
