//! The table of `sinfo`: nodes of a partition that show the same values share a line.

use super::cells::{self, Cell, Format, NONE};
use super::{View, node, time};
use berth_model::config::PartitionState;
use berth_model::record::{NodeInfo, PartitionInfo};
use berth_model::spec::TimeLimit;

/// The default view.
pub const DEFAULT: &str = "%9P %.5a %.10l %.6D %.6t %N";
/// `-l`.
pub const LONG: &str = "%9P %.5a %.10l %.10s %.4r %.8h %.10g %.6D %.11T %.11i %N";
/// `-N`.
pub const NODES: &str = "%9N %.6D %.9P %6t";
/// `-N -l`.
pub const NODES_LONG: &str = "%9N %.6D %.9P %.11T %4c %.8z %.6m %.8d %.6w %.8f %20E";
/// `-s`.
pub const SUMMARY: &str = "%9P %.5a %.10l %.16F %N";
/// `-R`.
pub const REASONS: &str = "%20E %9u %19H %N";
/// `-R -l`.
pub const REASONS_LONG: &str = "%20E %12U %19H %6t %N";

/// Nodes that share a line: some nodes of one partition.
pub struct Group<'a> {
    /// The partition; absent in listings over all partitions (`-R`).
    pub partition: Option<&'a PartitionInfo>,
    /// Its nodes; empty when no node of the partition matches.
    pub nodes: Vec<&'a NodeInfo>,
}

/// How values of several nodes become one.
enum Value {
    /// Of the partition: the same for all its lines.
    Partition(fn(&PartitionInfo, &View) -> String),
    /// Nodes that differ in it are listed apart.
    Same(fn(&NodeInfo, &View) -> String),
    /// The smallest, with `+` when they differ.
    Least(fn(&NodeInfo) -> u64),
    /// Socket, core and thread counts.
    Shape,
    /// Smallest and largest, joined by `-`.
    Range(fn(&NodeInfo) -> u64, fn(u64) -> String),
    /// Over the group.
    Sum(fn(&[&NodeInfo]) -> String),
}

/// A field.
pub struct Field {
    letter: char,
    name: &'static str,
    header: &'static str,
    value: Value,
}

fn slashes(parts: &[u64]) -> String {
    parts.iter().map(u64::to_string).collect::<Vec<_>>().join("/")
}

fn sum(nodes: &[&NodeInfo], of: fn(&NodeInfo) -> [u64; 4]) -> [u64; 4] {
    nodes.iter().fold([0; 4], |acc, n| {
        let v = of(n);
        [acc[0] + v[0], acc[1] + v[1], acc[2] + v[2], acc[3] + v[3]]
    })
}

fn reason_time(n: &NodeInfo, v: &View) -> String {
    n.condition.reason_time.map_or("Unknown".into(), |t| v.time(t))
}

fn reason_user(n: &NodeInfo) -> String {
    n.condition.reason_user.clone().unwrap_or_else(|| "Unknown".into())
}

/// A node as `-R` lists it for devices that are given to nobody: what is wrong with them is the reason. It is a line of its own, whatever
/// else there is to say of the node.
pub fn fenced(n: &NodeInfo) -> Option<NodeInfo> {
    let mut faults: Vec<(&str, &str, Vec<String>)> = Vec::new();
    for device in &n.hardware.gres {
        let Some(why) = device.fault.as_deref() else { continue };
        let index = device.index.to_string();
        match faults.iter_mut().find(|(name, known, _)| *name == device.name && *known == why) {
            Some((.., indices)) => indices.push(index),
            None => faults.push((device.name.as_str(), why, vec![index])),
        }
    }
    let texts =
        faults.iter().map(|(name, why, indices)| format!("fenced {name}:{}: {why}", indices.join(",")));
    let reason = texts.collect::<Vec<_>>().join("; ");
    (!reason.is_empty()).then(|| {
        let mut node = n.clone();
        node.condition.reason = Some(reason);
        // Since when it is so nobody says.
        (node.condition.reason_user, node.condition.reason_time) = (Some("berth".into()), None);
        node
    })
}

fn sorted_hosts(nodes: &[&NodeInfo]) -> String {
    let names: Vec<&str> = nodes.iter().map(|n| n.name.0.as_str()).collect();
    berth_model::hostlist::compress_sorted(&names)
}

fn shape(n: &NodeInfo) -> [u64; 3] {
    let (sockets, threads) = (n.hardware.sockets().max(1), n.hardware.threads_per_core());
    [sockets, (n.hardware.cores.len() as u64 / sockets).max(1), threads]
}

/// A limit as `sinfo` writes it.
pub fn limit(text: &str) -> String {
    match text.parse::<TimeLimit>() {
        Ok(limit) => limit.span().map_or("infinite".into(), time::short),
        Err(_) => text.to_string(),
    }
}

fn size(p: &PartitionInfo) -> String {
    match p.config.max_nodes {
        0 => "1-infinite".into(),
        1 => "1".into(),
        n => format!("1-{n}"),
    }
}

fn avail(p: &PartitionInfo) -> &'static str {
    match p.config.state {
        PartitionState::Up => "up",
        PartitionState::Down => "down",
        PartitionState::Drain => "drain",
        PartitionState::Inactive => "inact",
    }
}

fn starred(p: &PartitionInfo) -> String {
    format!("{}{}", p.config.name, if p.config.default { "*" } else { "" })
}

macro_rules! fields {
    ($($letter:expr, $name:literal, $header:literal, $value:expr;)*) => {
        &[$(Field { letter: $letter, name: $name, header: $header, value: $value }),*]
    };
}

use Value::{Least, Partition, Range, Same, Sum};

/// Every field.
pub const FIELDS: &[Field] = fields![
    'a', "available", "AVAIL", Partition(|p, _| avail(p).into());
    'A', "nodeai", "NODES(A/I)", Sum(|n| slashes(&sum(n, node::counts)[..2]));
    'b', "features_act", "ACTIVE_FEATURES", Same(|_, _| "(null)".into());
    'B', "maxcpuspernode", "MAX_CPUS_PER_NODE", Partition(|_, _| "UNLIMITED".into());
    'c', "cpus", "CPUS", Least(|n| n.total.cpu);
    'C', "cpusstate", "CPUS(A/I/O/T)", Sum(|n| slashes(&sum(n, node::cpus)));
    'd', "disk", "TMP_DISK", Least(|n| n.hardware.tmp_disk);
    'D', "nodes", "NODES", Sum(|n| n.len().to_string());
    'e', "freemem", "FREE_MEM", Range(|n| n.free_memory, |m| m.to_string());
    'E', "reason", "REASON", Same(|n, _| n.condition.reason.clone().unwrap_or_else(|| "none".into()));
    'f', "features", "AVAIL_FEATURES", Same(|_, _| "(null)".into());
    'F', "nodeaiot", "NODES(A/I/O/T)", Sum(|n| slashes(&sum(n, node::counts)));
    'g', "groups", "GROUPS", Partition(|_, _| "all".into());
    'G', "gres", "GRES", Same(|n, _| node::gres(n));
    'h', "oversubscribe", "OVERSUBSCRIBE", Partition(|_, _| "NO".into());
    'H', "timestamp", "TIMESTAMP", Same(reason_time);
    'i', "reservation", "RESERVATION", Same(|_, _| String::new());
    'I', "priorityjobfactor", "PRIO_JOB_FACTOR", Partition(|_, _| "1".into());
    'l', "time", "TIMELIMIT", Partition(|p, _| limit(&p.config.max_time));
    'L', "defaulttime", "DEFAULTTIME", Partition(|p, _| match p.config.default_time.as_str() {
        "" => "n/a".into(), text => limit(text) });
    'm', "memory", "MEMORY", Least(|n| n.total.mem);
    'M', "preemptmode", "PREEMPT_MODE", Partition(|_, _| "OFF".into());
    'n', "nodehost", "HOSTNAMES", Same(|n, _| n.name.to_string());
    'N', "nodelist", "NODELIST", Sum(sorted_hosts);
    'o', "nodeaddr", "NODE_ADDR", Same(|n, _| n.name.to_string());
    'O', "cpusload", "CPU_LOAD", Range(|n| u64::from(n.load), |l| format!("{}.{:02}", l / 100, l % 100));
    'p', "prioritytier", "PRIO_TIER", Partition(|_, _| "1".into());
    'P', "partition", "PARTITION", Partition(|p, _| starred(p));
    'r', "root", "ROOT", Partition(|_, _| "no".into());
    'R', "partitionname", "PARTITION", Partition(|p, _| p.config.name.clone());
    's', "size", "JOB_SIZE", Partition(|p, _| size(p));
    'S', "allocnodes", "ALLOCNODES", Partition(|_, _| "all".into());
    't', "statecompact", "STATE", Same(|n, _| node::short(n));
    'T', "statelong", "STATE", Same(|n, _| node::long(n));
    'u', "user", "USER", Same(|n, _| reason_user(n));
    'U', "userlong", "USER", Same(|n, _| n.condition.reason_user.as_ref().map_or("Unknown".into(), |u| {
        let uid = crate::users::uid(u).map_or("?".into(), |u| u.to_string());
        format!("{u}({uid})") }));
    'v', "version", "VERSION", Same(|n, _| n.version.clone());
    'V', "cluster", "CLUSTER", Partition(|_, v| v.cluster.clone());
    'w', "weight", "WEIGHT", Least(|_| 1);
    'X', "sockets", "SOCKETS", Least(|n| shape(n)[0]);
    'Y', "cores", "CORES", Least(|n| shape(n)[1]);
    'z', "socketcorethread", "S:C:T", Value::Shape;
    'Z', "threads", "THREADS", Least(|n| shape(n)[2]);
    NONE, "comment", "COMMENT", Same(|_, _| "(null)".into());
    NONE, "extra", "EXTRA", Same(|_, _| "(null)".into());
    NONE, "allocmem", "ALLOCMEM", Same(|n, _| n.allocated.mem.to_string());
    NONE, "gresused", "GRES_USED", Same(|n, _| node::gres_used(n));
    NONE, "statecomplete", "STATECOMPLETE", Same(|n, _| node::flags(n).join("+").to_lowercase());
];

/// Reads a `-o` format.
pub fn by_letters(format: &str) -> Format<&'static Field> {
    cells::by_letters(format, FIELDS, |f| f.letter)
}

/// Reads a `-O` format.
pub fn by_names(format: &str) -> Format<&'static Field> {
    cells::by_names(format, FIELDS, |f, name| f.name == name)
}

/// Lets the partition (or, with `-N`, the node) column grow to its longest value.
pub fn grow(cells: &mut [Cell<&'static Field>], letter: char, longest: usize) {
    for cell in cells.iter_mut().filter(|c| c.field.is_some_and(|f| f.letter == letter)) {
        match cell.width {
            Some(width) if !cell.right => cell.width = Some(width.max(longest)),
            _ => {}
        }
    }
}

/// The nodes of a partition in groups whose shown values are the same, in the default order.
pub fn group<'a>(
    partition: Option<&'a PartitionInfo>,
    mut nodes: Vec<&'a NodeInfo>,
    cells: &[Cell<&'static Field>],
    each: bool,
    exact: bool,
    view: &View,
) -> Vec<Group<'a>> {
    nodes.sort_by_key(|n| (std::cmp::Reverse(node::rank(n)), &n.name));
    let key = |n: &NodeInfo| -> Vec<String> {
        cells
            .iter()
            .filter_map(|c| c.field)
            .filter_map(|f| match &f.value {
                Same(get) => Some(get(n, view)),
                Least(get) if exact => Some(get(n).to_string()),
                Range(get, _) if exact => Some(get(n).to_string()),
                Value::Shape if exact => Some(format!("{:?}", shape(n))),
                _ => None,
            })
            .collect()
    };
    let mut groups: Vec<(Vec<String>, Group<'a>)> = Vec::new();
    for n in nodes {
        let k = key(n);
        match groups.iter_mut().find(|(other, _)| !each && *other == k) {
            Some((_, group)) => group.nodes.push(n),
            None => groups.push((k, Group { partition, nodes: vec![n] })),
        }
    }
    groups.into_iter().map(|(_, g)| g).collect()
}

/// The header line.
pub fn header(cells: &[Cell<&'static Field>]) -> String {
    cells::line(cells, |f| f.header.to_string())
}

/// A group's line.
pub fn row(cells: &[Cell<&'static Field>], group: &Group<'_>, view: &View) -> String {
    cells::line(cells, |f| value(f, group, view))
}

/// One field of a group.
pub fn value(field: &Field, group: &Group<'_>, view: &View) -> String {
    let nodes = &group.nodes;
    match &field.value {
        Partition(get) => group.partition.map_or_else(|| "n/a".to_string(), |p| get(p, view)),
        Sum(get) => get(nodes),
        Same(get) => match nodes.first() {
            Some(n) => get(n, view),
            None if matches!(field.letter, 't' | 'T') => "n/a".to_string(),
            None => String::new(),
        },
        Least(get) => least(nodes.iter().map(|n| get(n))),
        Value::Shape => {
            let at = |i: usize| least(nodes.iter().map(|n| shape(n)[i]));
            format!("{}:{}:{}", at(0), at(1), at(2))
        }
        Range(get, show) => {
            let (low, high) =
                nodes.iter().map(|n| get(n)).fold((u64::MAX, 0), |(l, h), v| (l.min(v), h.max(v)));
            match (nodes.is_empty(), low == high) {
                (true, _) => "0".to_string(),
                (_, true) => show(low),
                _ => format!("{}-{}", show(low), show(high)),
            }
        }
    }
}

fn least(values: impl Iterator<Item = u64>) -> String {
    let all: Vec<u64> = values.collect();
    let low = all.iter().min().copied().unwrap_or(0);
    if all.iter().any(|v| *v != low) { format!("{low}+") } else { low.to_string() }
}

/// Reads `--sort`; lines compare by the text of the fields, numbers as numbers.
pub fn sort_keys(spec: &str) -> Result<Vec<(&'static Field, bool)>, String> {
    cells::sort_keys(spec, FIELDS, |f| f.letter, |word| word.strip_prefix('#').unwrap_or(word))
}

/// Sorts groups by the keys; equal ones keep their order.
pub fn sort(groups: &mut [Group<'_>], keys: &[(&'static Field, bool)], view: &View) {
    groups.sort_by(|a, b| {
        for (field, descending) in keys {
            let order = match field.letter {
                't' | 'T' => {
                    a.nodes.first().map(|n| node::rank(n)).cmp(&b.nodes.first().map(|n| node::rank(n)))
                }
                _ => {
                    let (x, y) = (value(field, a, view), value(field, b, view));
                    match (x.parse::<i64>(), y.parse::<i64>()) {
                        (Ok(x), Ok(y)) => x.cmp(&y),
                        _ => x.cmp(&y),
                    }
                }
            };
            if order.is_ne() {
                return if *descending { order.reverse() } else { order };
            }
        }
        std::cmp::Ordering::Equal
    });
}

#[cfg(test)]
mod tests {
    use super::super::samples::{drained, node, partition, view};
    use super::*;
    use berth_model::hardware::GresDevice;
    use berth_model::state::NodeCondition;

    fn nodes() -> Vec<NodeInfo> {
        let fine = NodeCondition::default;
        let down = NodeCondition { down: true, drain: false, ..drained("power supply failed") };
        vec![
            node("n1", 3, fine()),
            node("n2", 2, fine()),
            node("n3", 4, drained("planned maintenance")),
            node("n7", 0, down),
            node("n8", 0, drained("bad disk")),
        ]
    }

    fn table(format: &str, each: bool) -> String {
        let all = nodes();
        let p = partition("debug", true, "1-00:00:00", &["n1", "n2", "n3", "n7", "n8"]);
        let cells = by_letters(format).cells;
        let groups = group(Some(&p), all.iter().collect(), &cells, each, false, &view(0));
        header(&cells) + &groups.iter().map(|g| row(&cells, g, &view(0))).collect::<String>()
    }

    #[test]
    fn the_default_view() {
        assert_eq!(
            table(DEFAULT, false),
            "PARTITION AVAIL  TIMELIMIT  NODES  STATE NODELIST\n\
             debug*       up 1-00:00:00      1   drng n3\n\
             debug*       up 1-00:00:00      1  drain n8\n\
             debug*       up 1-00:00:00      2    mix n[1-2]\n\
             debug*       up 1-00:00:00      1   down n7\n"
        );
    }

    #[test]
    fn the_node_view_and_the_summary() {
        assert_eq!(
            table(NODES, true).lines().take(2).collect::<Vec<_>>(),
            ["NODELIST   NODES PARTITION STATE ", "n3             1    debug* drng  "]
        );
        assert_eq!(
            table(SUMMARY, false),
            "PARTITION AVAIL  TIMELIMIT   NODES(A/I/O/T) NODELIST\n\
             debug*       up 1-00:00:00          3/0/2/5 n[1-3,7-8]\n"
        );
    }

    #[test]
    fn reasons() {
        let all = nodes();
        let with_reason: Vec<&NodeInfo> = all.iter().filter(|n| n.condition.reason.is_some()).collect();
        let cells = by_letters(REASONS).cells;
        let groups = group(None, with_reason, &cells, false, true, &view(0));
        assert_eq!(
            header(&cells) + &groups.iter().map(|g| row(&cells, g, &view(0))).collect::<String>(),
            "REASON               USER      TIMESTAMP           NODELIST\n\
             planned maintenance  root      2026-11-20T22:44:10 n3\n\
             bad disk             root      2026-11-20T22:44:10 n8\n\
             power supply failed  root      2026-11-20T22:44:10 n7\n"
        );
    }

    #[test]
    fn fenced_devices_are_reasons() {
        let device = |name: &str, index, fault: Option<&str>| GresDevice {
            name: name.into(),
            index,
            fault: fault.map(str::to_string),
            ..GresDevice::default()
        };
        let mut all = nodes();
        assert!(all.iter().all(|n| fenced(n).is_none()));
        for one in all.iter_mut().take(2) {
            one.hardware.gres = vec![
                device("gpu", 0, Some("lost")),
                device("gpu", 1, None),
                device("gpu", 2, Some("lost")),
                device("fpga", 0, Some("gone")),
            ];
        }
        let listed: Vec<NodeInfo> = all.iter().filter_map(fenced).collect();
        let cells = by_letters("%E|%u|%H|%N|%t").cells;
        let groups = group(None, listed.iter().collect(), &cells, false, true, &view(0));
        let rows: String = groups.iter().map(|g| row(&cells, g, &view(0))).collect();
        assert_eq!(rows, "fenced gpu:0,2: lost; fenced fpga:0: gone|berth|Unknown|n[1-2]|mix\n");
    }

    #[test]
    fn figures_of_many_nodes() {
        assert_eq!(
            table("%C|%c|%e|%O|%z|%m", false).lines().nth(1),
            Some("9/3/8/20|4|21202|0.84|1:4:1|4000")
        );
        assert_eq!(table("%P|%l|%s|%A", false).lines().nth(1), Some("debug*|1-00:00:00|1-infinite|3/0"));
    }

    #[test]
    fn a_partition_without_matching_nodes_has_a_line() {
        let p = partition("gpu", false, "UNLIMITED", &["n9"]);
        let cells = by_letters(DEFAULT).cells;
        let empty = Group { partition: Some(&p), nodes: Vec::new() };
        assert_eq!(row(&cells, &empty, &view(0)), "gpu          up   infinite      0    n/a \n");
    }

    #[test]
    fn the_first_column_grows() {
        let mut cells = by_letters(DEFAULT).cells;
        grow(&mut cells, 'P', 12);
        assert!(header(&cells).starts_with("PARTITION    AVAIL"));
    }
}
