//! The default seccomp filter: a deny-list, and pretended success for calls that change ids or owners.
//!
//! User namespaces, mounts, ptrace, process_vm, perf and NUMA calls stay allowed: nested engines,
//! debuggers, profilers and numactl work. Programs for another architecture are ended: their call numbers
//! would pass a filter made for this one.

mod compile;

pub use crate::sys::seccomp::Instruction;
use compile::{Action, Rule, assemble};

/// Kernel interfaces that act on the whole node, and that no job needs: keyrings, kexec, modules, bpf,
/// file handles (which name files outside every mount), clock, swap, quota, port access.
#[rustfmt::skip]
const DENIED: &[libc::c_long] = &[
    libc::SYS_add_key, libc::SYS_keyctl, libc::SYS_request_key,
    libc::SYS_kexec_load, libc::SYS_kexec_file_load,
    libc::SYS_init_module, libc::SYS_finit_module, libc::SYS_delete_module,
    libc::SYS_bpf,
    libc::SYS_open_by_handle_at,
    libc::SYS_reboot, libc::SYS_swapon, libc::SYS_swapoff, libc::SYS_acct,
    libc::SYS_quotactl, SYS_QUOTACTL_FD,
    libc::SYS_settimeofday, libc::SYS_clock_settime,
    libc::SYS_syslog, libc::SYS_vhangup, libc::SYS_nfsservctl,
    #[cfg(target_arch = "x86_64")] libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")] libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")] libc::SYS_uselib,
    #[cfg(target_arch = "x86_64")] libc::SYS__sysctl,
];

/// Not named by every C library's headers; the same number on every architecture.
const SYS_QUOTACTL_FD: libc::c_long = 443;

/// Ids and owners, as package managers change them: with one mapped id each would fail.
#[rustfmt::skip]
const PRETENDED: &[libc::c_long] = &[
    libc::SYS_fchown, libc::SYS_fchownat,
    libc::SYS_setuid, libc::SYS_setgid, libc::SYS_setreuid, libc::SYS_setregid,
    libc::SYS_setresuid, libc::SYS_setresgid, libc::SYS_setgroups,
    libc::SYS_setfsuid, libc::SYS_setfsgid,
    libc::SYS_capset,
    #[cfg(target_arch = "x86_64")] libc::SYS_chown,
    #[cfg(target_arch = "x86_64")] libc::SYS_lchown,
];

/// Terminal requests that push characters into the input of whoever shares the terminal.
const TERMINAL_INJECTION: [u32; 2] = [0x5412 /* TIOCSTI */, 0x541C /* TIOCLINUX */];

/// The filter. `deny` is the deny-list; `pretend` answers id and owner calls with success.
pub fn compile(deny: bool, pretend: bool) -> Vec<Instruction> {
    let mut rules = Vec::new();
    if pretend {
        rules.extend(PRETENDED.iter().map(|nr| Rule::always(*nr, Action::Pretend)));
        // mknod of devices: the mode is the second argument of mknod, the third of mknodat.
        for kind in [libc::S_IFCHR, libc::S_IFBLK] {
            let masked = |nr, argument| Rule {
                argument: Some((argument, libc::S_IFMT, kind)),
                ..Rule::always(nr, Action::Pretend)
            };
            #[cfg(target_arch = "x86_64")]
            rules.push(masked(libc::SYS_mknod, 1));
            rules.push(masked(libc::SYS_mknodat, 2));
        }
    }
    if deny {
        rules.extend(DENIED.iter().map(|nr| Rule::always(*nr, Action::Errno(libc::EPERM))));
        for request in TERMINAL_INJECTION {
            rules.push(Rule {
                argument: Some((1, u32::MAX, request)),
                ..Rule::always(libc::SYS_ioctl, Action::Errno(libc::EPERM))
            });
        }
    }
    assemble(&rules)
}
