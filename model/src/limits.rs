//! Resource limits (`ulimit`) that travel from the submitter to the tasks.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One of the kernel's per-process limits, by its name in `setrlimit(2)` without `RLIMIT_`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the names are the kernel's
pub enum Resource {
    As,
    Core,
    Cpu,
    Data,
    Fsize,
    Locks,
    Memlock,
    Msgqueue,
    Nice,
    Nofile,
    Nproc,
    Rss,
    Rtprio,
    Rttime,
    Sigpending,
    Stack,
}

impl Resource {
    /// All of them.
    pub const ALL: [Resource; 16] = [
        Resource::As,
        Resource::Core,
        Resource::Cpu,
        Resource::Data,
        Resource::Fsize,
        Resource::Locks,
        Resource::Memlock,
        Resource::Msgqueue,
        Resource::Nice,
        Resource::Nofile,
        Resource::Nproc,
        Resource::Rss,
        Resource::Rtprio,
        Resource::Rttime,
        Resource::Sigpending,
        Resource::Stack,
    ];

    /// The name in `setrlimit(2)` without `RLIMIT_`.
    pub fn name(self) -> &'static str {
        match self {
            Resource::As => "AS",
            Resource::Core => "CORE",
            Resource::Cpu => "CPU",
            Resource::Data => "DATA",
            Resource::Fsize => "FSIZE",
            Resource::Locks => "LOCKS",
            Resource::Memlock => "MEMLOCK",
            Resource::Msgqueue => "MSGQUEUE",
            Resource::Nice => "NICE",
            Resource::Nofile => "NOFILE",
            Resource::Nproc => "NPROC",
            Resource::Rss => "RSS",
            Resource::Rtprio => "RTPRIO",
            Resource::Rttime => "RTTIME",
            Resource::Sigpending => "SIGPENDING",
            Resource::Stack => "STACK",
        }
    }
}

/// Limits of a login shell that say something of the login node and not of the job: they travel only when an explicit
/// `--propagate` names them, or from inside a job, whose own they are.
pub const OF_A_LOGIN: [Resource; 5] =
    [Resource::As, Resource::Cpu, Resource::Memlock, Resource::Nofile, Resource::Rss];

/// A soft limit: a number in the resource's own unit, or none at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LimitValue {
    /// At most this much.
    At(u64),
    /// RLIM_INFINITY.
    Unlimited,
}

impl std::fmt::Display for LimitValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LimitValue::At(n) => write!(f, "{n}"),
            LimitValue::Unlimited => f.write_str("unlimited"),
        }
    }
}

/// The submitter's soft limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Soft limits by resource; what is absent is the node's own.
    pub soft: BTreeMap<Resource, LimitValue>,
    /// Resources named in an explicit `--propagate`: refused, not clamped, where a node cannot give them.
    pub required: Vec<Resource>,
}
