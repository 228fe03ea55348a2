//! Output formats, as pure functions from records to text.

pub mod cells;
pub mod item;
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
pub mod usage;

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
    amounts(tres, true).join(",")
}

/// Amounts of a step, which is not billed on its own, in the order of their names.
pub fn step_tres(tres: &Tres) -> String {
    let mut parts = amounts(tres, false);
    parts.sort_unstable();
    parts.join(",")
}

fn amounts(tres: &Tres, billing: bool) -> Vec<String> {
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
    parts
}

/// Generic resources as `gpu:a100:2`, each device under its type alone. The amount without a type is the sum of all.
pub fn gres_apart(tres: &Tres) -> Vec<String> {
    let typed = |name: &str| -> u64 {
        tres.gres.iter().filter(|(key, _)| key.kind.is_some() && key.name == name).map(|(_, n)| *n).sum()
    };
    let rest = tres.gres.iter().map(|(key, n)| match key.kind {
        Some(_) => (key, *n),
        None => (key, n.saturating_sub(typed(&key.name))),
    });
    rest.filter(|(_, n)| *n > 0).map(|(key, n)| format!("{key}:{n}")).collect()
}

/// Generic resources as `gres/gpu=2,gres/gpu:a100=2`: the sum over types first. Amounts of hardware and of
/// allocations have the sum already, as the amount without a type.
pub fn gres_amounts(tres: &Tres) -> Vec<String> {
    let mut typed: std::collections::BTreeMap<&str, u64> = std::collections::BTreeMap::new();
    for (key, n) in &tres.gres {
        *typed.entry(&key.name).or_default() += if key.kind.is_some() { *n } else { 0 };
    }
    let mut sums = typed;
    for (key, n) in tres.gres.iter().filter(|(key, _)| key.kind.is_none()) {
        sums.entry(&key.name).and_modify(|sum| *sum = (*sum).max(*n));
    }
    let mut parts: Vec<String> = sums.iter().map(|(name, n)| format!("gres/{name}={n}")).collect();
    parts.extend(tres.gres.iter().filter(|(k, _)| k.kind.is_some()).map(|(k, n)| format!("gres/{k}={n}")));
    parts
}

/// A size in MiB with the largest suffix that keeps it whole: `500M`, `1G`, `1500M`.
pub fn mebibytes(mib: u64) -> String {
    berth_model::memory::print(mib)
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::tres::GresKey;

    #[test]
    fn each_device_is_counted_once() {
        let key = |kind: Option<&str>| GresKey { name: "gpu".into(), kind: kind.map(str::to_string) };
        let amounts = |list: &[(Option<&str>, u64)]| Tres {
            gres: list.iter().map(|(kind, n)| (key(*kind), *n)).collect(),
            ..Tres::default()
        };
        // What a node has and what a job got: the amount without a type is the sum.
        let typed = amounts(&[(None, 2), (Some("test"), 2)]);
        assert_eq!(gres_apart(&typed), ["gpu:test:2"]);
        assert_eq!(gres_amounts(&typed), ["gres/gpu=2", "gres/gpu:test=2"]);
        let mixed = amounts(&[(None, 3), (Some("test"), 2)]);
        assert_eq!(gres_apart(&mixed), ["gpu:1", "gpu:test:2"]);
        assert_eq!(gres_amounts(&mixed), ["gres/gpu=3", "gres/gpu:test=2"]);
        let whole = Tres { cpu: 2, mem: 1000, node: 1, ..typed.clone() };
        assert_eq!(super::tres(&whole), "cpu=2,mem=1000M,node=1,billing=2,gres/gpu=2,gres/gpu:test=2");
        assert_eq!(step_tres(&whole), "cpu=2,gres/gpu:test=2,gres/gpu=2,mem=1000M,node=1");
        // A wish may name a type alone.
        assert_eq!(gres_amounts(&amounts(&[(Some("test"), 1)])), ["gres/gpu=1", "gres/gpu:test=1"]);
    }
}
