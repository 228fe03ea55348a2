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

/// A soft limit: a number in the resource's own unit, or none at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LimitValue {
    /// At most this much.
    At(u64),
    /// RLIM_INFINITY.
    Unlimited,
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
