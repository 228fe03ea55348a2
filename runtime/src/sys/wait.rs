//! Reaping with resource usage.

use super::{Errno, SysResult, check, last_errno};
use std::os::fd::{AsRawFd, OwnedFd};

/// A child that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaped {
    /// Its pid.
    pub pid: i32,
    /// Raw wait status.
    pub status: i32,
    /// User CPU time in microseconds, with that of the descendants it waited for.
    pub user_us: u64,
    /// System CPU time in microseconds.
    pub system_us: u64,
    /// Largest resident size in KiB.
    pub max_rss_kib: u64,
}

/// Reaps one child that has ended, if any. `Ok(None)`: children live, none has ended. `ECHILD`: no child.
pub fn reap_any() -> SysResult<Option<Reaped>> {
    let mut status: libc::c_int = 0;
    // SAFETY: rusage is plain numbers, for which all-zero bytes are a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both out pointers live across the call.
    let pid = unsafe {
        libc::wait4(-1, std::ptr::from_mut(&mut status), libc::WNOHANG, std::ptr::from_mut(&mut usage))
    };
    match pid {
        0 => Ok(None),
        p if p < 0 => Err(last_errno()),
        pid => Ok(Some(Reaped {
            pid,
            status,
            user_us: micros(usage.ru_utime),
            system_us: micros(usage.ru_stime),
            max_rss_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0),
        })),
    }
}

fn micros(t: libc::timeval) -> u64 {
    let secs = u64::try_from(t.tv_sec).unwrap_or(0);
    secs.saturating_mul(1_000_000).saturating_add(u64::try_from(t.tv_usec).unwrap_or(0))
}

/// Waits for the child behind a pidfd and reaps it; its code, or 128 and the signal.
pub fn wait_pidfd(pidfd: &OwnedFd) -> SysResult<i32> {
    loop {
        // SAFETY: siginfo_t is plain data, for which all-zero bytes are a value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: `info` lives across the call; the rusage pointer is null, which the kernel allows.
        let ret = check(unsafe {
            libc::syscall(
                libc::SYS_waitid,
                libc::P_PIDFD,
                pidfd.as_raw_fd(),
                std::ptr::from_mut(&mut info),
                libc::WEXITED,
                std::ptr::null_mut::<libc::rusage>(),
            )
        });
        match ret {
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
            Ok(_) => {
                // SAFETY: waitid succeeded for a child, so the SIGCHLD fields are the ones filled in.
                let status = unsafe { info.si_status() };
                return Ok(if info.si_code == libc::CLD_EXITED { status } else { 128 + status });
            }
        }
    }
}
