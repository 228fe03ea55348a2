//! From a process of config.json, or of `exec --process`, to what it becomes.

use super::schedule::{self, Affinity, MemoryPolicy};
use super::seccomp::{self, SeccompPlan};
use crate::oci::error::{Result, invalid, unsupported};
use crate::sys::limits::Pair;
use crate::sys::schedule::Attributes;
use oci_spec::runtime::{Capabilities, Linux, LinuxPersonalityDomain, PosixRlimitType, Process};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The five capability sets, as bits by the kernel's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caps {
    /// Ceiling of what a program can gain.
    pub bounding: u64,
    /// In force.
    pub effective: u64,
    /// Kept across a program with file capabilities.
    pub inheritable: u64,
    /// May be put in force.
    pub permitted: u64,
    /// Kept across a program without.
    pub ambient: u64,
}

/// A resource limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rlimit {
    /// The kernel's number.
    pub number: u32,
    /// As config.json has it.
    pub name: String,
    /// The values.
    pub pair: Pair,
}

/// What the container's process is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessPlan {
    /// Program and arguments; empty where the configuration names none.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Absolute.
    pub cwd: PathBuf,
    /// User in the container.
    pub uid: u32,
    /// Group in the container.
    pub gid: u32,
    /// Other groups.
    pub groups: Vec<u32>,
    /// File mode mask.
    pub umask: Option<u32>,
    /// Capability sets; without them the process has none.
    pub caps: Caps,
    /// Limits.
    pub rlimits: Vec<Rlimit>,
    /// Nothing can be gained by a program file.
    pub no_new_privs: bool,
    /// Preference of the out-of-memory killer.
    pub oom_score_adj: Option<i32>,
    /// A terminal of its own.
    pub terminal: bool,
    /// Rows and columns.
    pub size: Option<(u16, u16)>,
    /// The filter.
    pub seccomp: Option<SeccompPlan>,
    /// The AppArmor profile of its program.
    pub apparmor: Option<String>,
    /// Execution domain, as personality(2) has it.
    pub personality: Option<u32>,
    /// From which nodes its memory comes.
    pub memory: Option<MemoryPolicy>,
    /// Scheduling policy.
    pub scheduler: Option<Attributes>,
    /// Class and level of its I/O.
    pub io_priority: Option<(u32, u32)>,
    /// Its CPUs, where it is added to a running container.
    pub affinity: Affinity,
}

/// Capability names by the kernel's numbers (`linux/capability.h`).
pub const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The number of a capability by its name, with `CAP_` in front or without. Exactly the kernel's names.
pub fn capability(name: &str) -> Option<u32> {
    let name = name.strip_prefix("CAP_").unwrap_or(name);
    CAPABILITIES.iter().position(|c| *c == name).and_then(|n| u32::try_from(n).ok())
}

fn bits(set: Option<&Capabilities>) -> u64 {
    let numbers = set.into_iter().flatten().filter_map(|c| capability(&c.to_string()));
    numbers.fold(0, |bits, n| bits | 1 << n)
}

const RLIMITS: [(PosixRlimitType, u32, &str); 16] = [
    (PosixRlimitType::RlimitCpu, 0, "RLIMIT_CPU"),
    (PosixRlimitType::RlimitFsize, 1, "RLIMIT_FSIZE"),
    (PosixRlimitType::RlimitData, 2, "RLIMIT_DATA"),
    (PosixRlimitType::RlimitStack, 3, "RLIMIT_STACK"),
    (PosixRlimitType::RlimitCore, 4, "RLIMIT_CORE"),
    (PosixRlimitType::RlimitRss, 5, "RLIMIT_RSS"),
    (PosixRlimitType::RlimitNproc, 6, "RLIMIT_NPROC"),
    (PosixRlimitType::RlimitNofile, 7, "RLIMIT_NOFILE"),
    (PosixRlimitType::RlimitMemlock, 8, "RLIMIT_MEMLOCK"),
    (PosixRlimitType::RlimitAs, 9, "RLIMIT_AS"),
    (PosixRlimitType::RlimitLocks, 10, "RLIMIT_LOCKS"),
    (PosixRlimitType::RlimitSigpending, 11, "RLIMIT_SIGPENDING"),
    (PosixRlimitType::RlimitMsgqueue, 12, "RLIMIT_MSGQUEUE"),
    (PosixRlimitType::RlimitNice, 13, "RLIMIT_NICE"),
    (PosixRlimitType::RlimitRtprio, 14, "RLIMIT_RTPRIO"),
    (PosixRlimitType::RlimitRttime, 15, "RLIMIT_RTTIME"),
];

/// Plans a process. `apparmor`: it is in force on the node.
///
/// # Errors
/// What cannot be honoured, by name.
pub fn plan(p: &Process, linux: Option<&Linux>, apparmor: bool) -> Result<ProcessPlan> {
    if p.selinux_label().as_ref().is_some_and(|s| !s.is_empty()) {
        return Err(unsupported("process.selinuxLabel", "leave it out: Berth confines without SELinux"));
    }
    let cwd = p.cwd().clone();
    if !cwd.is_absolute() {
        return Err(invalid(
            format!("process.cwd {} is not absolute", cwd.display()),
            "start it with a slash",
        ));
    }
    let env = p.env().clone().unwrap_or_default();
    if let Some(wrong) = env.iter().find(|v| v.find('=').is_none_or(|at| at == 0)) {
        return Err(invalid(format!("process.env has {wrong:?}"), "each is NAME=value"));
    }
    let args = p.args().clone().unwrap_or_default();
    if args.iter().chain(&env).any(|s| s.contains('\0')) {
        return Err(invalid("process.args or process.env has a zero byte in it", "take it out"));
    }
    let user = p.user();
    let caps = p.capabilities().as_ref().map(|c| Caps {
        bounding: bits(c.bounding().as_ref()),
        effective: bits(c.effective().as_ref()),
        inheritable: bits(c.inheritable().as_ref()),
        permitted: bits(c.permitted().as_ref()),
        ambient: bits(c.ambient().as_ref()),
    });
    if user.umask().is_some_and(|mask| mask > 0o777) {
        return Err(invalid("process.user.umask is above 0777", "give permission bits alone"));
    }
    let clamp = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
    Ok(ProcessPlan {
        args,
        env,
        cwd,
        uid: id(user.uid(), "process.user.uid")?,
        gid: id(user.gid(), "process.user.gid")?,
        groups: user
            .additional_gids()
            .iter()
            .flatten()
            .map(|g| id(*g, "process.user.additionalGids"))
            .collect::<Result<_>>()?,
        umask: user.umask(),
        caps: caps.unwrap_or_default(),
        rlimits: rlimits(p)?,
        no_new_privs: p.no_new_privileges().unwrap_or(false),
        oom_score_adj: p.oom_score_adj(),
        terminal: p.terminal().unwrap_or(false),
        size: p
            .console_size()
            .filter(|_| p.terminal() == Some(true))
            .map(|s| (clamp(s.height()), clamp(s.width()))),
        seccomp: linux.and_then(|l| l.seccomp().as_ref()).map(seccomp::plan).transpose()?,
        apparmor: profile(p, apparmor)?,
        personality: linux.map(personality).transpose()?.flatten(),
        memory: linux.and_then(|l| l.memory_policy().as_ref()).map(schedule::memory).transpose()?,
        scheduler: p.scheduler().as_ref().map(schedule::scheduler).transpose()?,
        io_priority: p.io_priority().as_ref().map(schedule::io_priority).transpose()?,
        affinity: p.exec_cpu_affinity().as_ref().map(schedule::affinity).transpose()?.unwrap_or_default(),
    })
}

/// The last id means "no change" to the kernel, and must never be taken for one.
fn id(n: u32, what: &str) -> Result<u32> {
    if n == u32::MAX {
        return Err(invalid(format!("{what} is {n}"), "ids are from 0 to 4294967294"));
    }
    Ok(n)
}

/// What is not confined by AppArmor is unconfined already.
fn profile(p: &Process, apparmor: bool) -> Result<Option<String>> {
    match p.apparmor_profile().as_deref().filter(|name| !name.is_empty()) {
        Some(name) if apparmor => Ok(Some(name.to_string())),
        None | Some("unconfined") => Ok(None),
        Some(name) => Err(unsupported(
            format!("process.apparmorProfile {name}"),
            "this node runs without AppArmor: leave it out",
        )),
    }
}

fn personality(linux: &Linux) -> Result<Option<u32>> {
    let Some(personality) = linux.personality() else { return Ok(None) };
    if personality.flags().as_ref().is_some_and(|f| !f.is_empty()) {
        return Err(unsupported("linux.personality.flags", "leave them out"));
    }
    Ok(Some(match personality.domain() {
        LinuxPersonalityDomain::PerLinux32 => 0x0008,
        LinuxPersonalityDomain::PerLinux => 0,
    }))
}

fn rlimits(p: &Process) -> Result<Vec<Rlimit>> {
    let mut out: Vec<Rlimit> = Vec::new();
    for limit in p.rlimits().iter().flatten() {
        let found = RLIMITS.iter().find(|(kind, ..)| *kind == limit.typ());
        let Some((_, number, name)) = found else {
            return Err(unsupported("a kind of process.rlimits", "leave it out"));
        };
        if out.iter().any(|l| l.number == *number) {
            return Err(invalid(format!("process.rlimits has {name} twice"), "give it once"));
        }
        if limit.soft() > limit.hard() {
            return Err(invalid(
                format!("process.rlimits has {name} with a soft limit above the hard one"),
                "lower the soft limit",
            ));
        }
        out.push(Rlimit {
            number: *number,
            name: (*name).into(),
            pair: Pair { soft: limit.soft(), hard: limit.hard() },
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(json: &str) -> Result<ProcessPlan> {
        plan(&serde_json::from_str(json).unwrap(), None, false)
    }

    #[test]
    fn capabilities_by_the_kernels_numbers() {
        assert_eq!(
            (capability("CAP_CHOWN"), capability("SYS_ADMIN"), capability("CAP_CHECKPOINT_RESTORE")),
            (Some(0), Some(21), Some(40))
        );
        assert_eq!(
            (capability("cap_chown"), capability("CAP_CAP_CHOWN"), capability("")),
            (None, None, None)
        );
        let p = process(
            r#"{"user":{"uid":0,"gid":0},"cwd":"/","capabilities":{"bounding":["CAP_KILL"],"ambient":["CAP_CHOWN","CAP_BPF"]}}"#,
        );
        let caps = p.unwrap().caps;
        assert_eq!((caps.bounding, caps.ambient, caps.effective), (1 << 5, 1 | 1 << 39, 0));
    }

    #[test]
    fn wrong_processes_are_refused_by_name() {
        let user = r#""user":{"uid":0,"gid":0}"#;
        for (json, word) in [
            (format!(r#"{{{user},"cwd":"tmp"}}"#), "cwd"),
            (format!(r#"{{{user},"cwd":"/","env":["=x"]}}"#), "env"),
            (format!(r#"{{{user},"cwd":"/","apparmorProfile":"x"}}"#), "apparmorProfile x"),
            (format!(r#"{{{user},"cwd":"/","selinuxLabel":"x"}}"#), "selinuxLabel"),
            (r#"{"user":{"uid":4294967295,"gid":0},"cwd":"/"}"#.into(), "uid"),
            (
                format!(
                    r#"{{{user},"cwd":"/","rlimits":[{{"type":"RLIMIT_CORE","soft":1,"hard":1}},{{"type":"RLIMIT_CORE","soft":1,"hard":1}}]}}"#
                ),
                "RLIMIT_CORE",
            ),
        ] {
            let error = process(&json).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_profile_is_applied_where_there_are_any() {
        let of = |profile: &str, apparmor: bool| {
            let json = format!(r#"{{"user":{{"uid":0,"gid":0}},"cwd":"/","apparmorProfile":"{profile}"}}"#);
            plan(&serde_json::from_str(&json).unwrap(), None, apparmor).map(|p| p.apparmor)
        };
        assert_eq!((of("", true).unwrap(), of("", false).unwrap()), (None, None));
        assert_eq!(of("x", true).unwrap().as_deref(), Some("x"));
        // A program that a profile is attached to would have it, if nobody asked for none.
        assert_eq!(of("unconfined", true).unwrap().as_deref(), Some("unconfined"));
        assert_eq!(of("unconfined", false).unwrap(), None);
        assert!(of("x", false).is_err());
    }
}
