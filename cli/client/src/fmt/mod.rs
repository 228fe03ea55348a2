//! Output formats, as pure functions from records to text.

pub mod cells;
pub mod job;
pub mod json;
pub mod node;
pub mod sacct;
#[cfg(test)]
pub(crate) mod samples;
pub mod scontrol;
pub mod sinfo;
pub mod squeue;
pub mod time;

use berth_model::stamp::TimeFormat;
use berth_model::{NodeName, Tres};
use jiff::tz::TimeZone;

/// What a printed record depends on besides itself.
#[derive(Clone, Debug)]
pub struct View {
    /// The moment shown.
    pub now: berth_model::Time,
    /// The reader's time zone.
    pub zone: TimeZone,
    /// How points in time are written.
    pub format: TimeFormat,
    /// Name of the cluster.
    pub cluster: String,
}

/// Nodes as a compressed hostlist: `n[1-3,7]`.
pub fn hosts(nodes: &[NodeName]) -> String {
    let names: Vec<&str> = nodes.iter().map(|n| n.0.as_str()).collect();
    berth_model::hostlist::compress(&names)
}

/// Amounts as `scontrol` writes them for jobs and nodes: `cpu=3,mem=1500M,node=2,billing=3,gres/gpu=1`.
pub fn tres(tres: &Tres) -> String {
    amounts(tres, true)
}

/// Amounts of a step, which is not billed on its own.
pub fn step_tres(tres: &Tres) -> String {
    amounts(tres, false)
}

fn amounts(tres: &Tres, billing: bool) -> String {
    let mut parts = Vec::new();
    if tres.cpu > 0 {
        parts.push(format!("cpu={}", tres.cpu));
    }
    if tres.mem > 0 {
        parts.push(format!("mem={}", mebibytes(tres.mem)));
    }
    if tres.node > 0 {
        parts.push(format!("node={}", tres.node));
    }
    if tres.cpu > 0 && billing {
        parts.push(format!("billing={}", tres.cpu));
    }
    parts.extend(gres_amounts(tres));
    parts.join(",")
}

/// Generic resources as `gres/gpu=2,gres/gpu:a100=2`: the sum over types first.
pub fn gres_amounts(tres: &Tres) -> Vec<String> {
    let mut sums: std::collections::BTreeMap<&str, u64> = std::collections::BTreeMap::new();
    for (key, n) in &tres.gres {
        *sums.entry(&key.name).or_default() += n;
    }
    let mut parts: Vec<String> = sums.iter().map(|(name, n)| format!("gres/{name}={n}")).collect();
    parts.extend(tres.gres.iter().filter(|(k, _)| k.kind.is_some()).map(|(k, n)| format!("gres/{k}={n}")));
    parts
}

/// A size in MiB with the largest suffix that keeps it whole: `500M`, `1G`, `1500M`.
pub fn mebibytes(mib: u64) -> String {
    berth_model::memory::print(mib)
}
