//! Scheduling policy, I/O priority and memory policy of the calling process, by the kernel's numbers.

use super::{SysResult, check};

/// What `struct sched_attr` has in its first version behind its size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For the policies that share time.
    pub nice: i32,
    /// For the real-time policies.
    pub priority: u32,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub runtime: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub deadline: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub period: u64,
}

/// `struct sched_attr` of `SCHED_ATTR_SIZE_VER0`.
#[repr(C)]
struct Raw {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

const SIZE: u32 = 48;
const _: () = assert!(size_of::<Raw>() == 48);

/// Sets the scheduling policy.
pub fn set_scheduler(a: &Attributes) -> SysResult<()> {
    let raw = Raw {
        size: SIZE,
        policy: a.policy,
        flags: a.flags,
        nice: a.nice,
        priority: a.priority,
        runtime: a.runtime,
        deadline: a.deadline,
        period: a.period,
    };
    // SAFETY: `raw` has the layout and the size of the first struct sched_attr and lives across the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, std::ptr::from_ref(&raw), 0) }).map(drop)
}

/// Sets class and level of I/O.
pub fn set_io_priority(class: u32, level: u32) -> SysResult<()> {
    const WHO_PROCESS: libc::c_int = 1;
    // SAFETY: ioprio_set takes numbers and touches no memory.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, class << 13 | level) }).map(drop)
}

/// Sets from which nodes memory comes: bit n of the words is node n.
pub fn set_memory_policy(mode: u32, nodes: &[u64]) -> SysResult<()> {
    // The kernel looks at one bit less than it is told.
    let bits = if nodes.is_empty() { 0 } else { nodes.len() * 64 + 1 };
    let mask = if nodes.is_empty() { std::ptr::null() } else { nodes.as_ptr() };
    // SAFETY: `mask` is null, or points to as many words as hold the bits, and lives across the call.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) }).map(drop)
}
