//! A node's state in the words of `sinfo` and `scontrol`.

use berth_model::devices::{is_share, shares};
use berth_model::hardware::GresDevice;
use berth_model::record::NodeInfo;
use std::collections::BTreeMap;

/// What a node does, derived from its condition and its allocations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Takes nothing; what was there is lost.
    Down,
    /// Nothing is allocated.
    Idle,
    /// All CPUs are allocated.
    Allocated,
    /// Some CPUs are allocated.
    Mixed,
}

/// The base state. One that does not answer is down, as far as anybody can say, unless there is work that may go on.
pub fn base(node: &NodeInfo) -> Base {
    let free = node.allocated.cpu == 0 && node.allocated.is_zero();
    if node.condition.down || (free && node.condition.not_responding) {
        Base::Down
    } else if free {
        Base::Idle
    } else if node.allocated.cpu >= node.total.cpu {
        Base::Allocated
    } else {
        Base::Mixed
    }
}

/// What its machine is called, with its domain where a name service there says one.
pub fn host(node: &NodeInfo) -> &str {
    node.host_name.as_deref().unwrap_or(&node.name.0)
}

fn busy(node: &NodeInfo) -> bool {
    matches!(base(node), Base::Allocated | Base::Mixed) || node.completing
}

/// Short and long name without a suffix.
fn names(node: &NodeInfo) -> (&'static str, &'static str) {
    let c = &node.condition;
    let works = matches!(base(node), Base::Allocated | Base::Mixed);
    match base(node) {
        // As in Slurm, whatever else it is.
        _ if c.reboot.is_some() && !works && !node.completing => ("boot", "reboot"),
        Base::Down => ("down", "down"),
        _ if c.drain && busy(node) => ("drng", "draining"),
        _ if c.drain => ("drain", "drained"),
        _ if c.fail && busy(node) => ("failg", "failing"),
        _ if c.fail => ("fail", "fail"),
        _ if node.completing => ("comp", "completing"),
        Base::Idle => ("idle", "idle"),
        Base::Allocated => ("alloc", "allocated"),
        Base::Mixed => ("mix", "mixed"),
    }
}

fn star(node: &NodeInfo) -> &'static str {
    match &node.condition.reboot {
        Some(reboot) if reboot.issued.is_some() => "^",
        // That one is to be rebooted is said by its name already.
        Some(_) if matches!(names(node).0, "boot") && node.condition.not_responding => "*",
        Some(_) if matches!(names(node).0, "boot") => "",
        Some(_) => "@",
        None if node.condition.not_responding => "*",
        None => "",
    }
}

/// `idle`, `mix`, `drng`, with `*` for no response, `@` for a reboot that is wanted and `^` for one that is under way.
pub fn short(node: &NodeInfo) -> String {
    format!("{}{}", names(node).0, star(node))
}

/// `idle`, `mixed`, `draining`, with `*` for no response.
pub fn long(node: &NodeInfo) -> String {
    format!("{}{}", names(node).1, star(node))
}

/// Base state and flags, as `scontrol` writes them: `IDLE+DRAIN`.
pub fn flags(node: &NodeInfo) -> Vec<&'static str> {
    let mut parts = vec![match base(node) {
        Base::Down => "DOWN",
        Base::Idle => "IDLE",
        Base::Allocated => "ALLOCATED",
        Base::Mixed => "MIXED",
    }];
    let c = &node.condition;
    for (set, name) in [
        (c.drain, "DRAIN"),
        (node.completing, "COMPLETING"),
        (c.fail, "FAIL"),
        (c.not_responding, "NOT_RESPONDING"),
        (c.reboot.as_ref().is_some_and(|reboot| reboot.issued.is_none()), "REBOOT_REQUESTED"),
        (c.reboot.as_ref().is_some_and(|reboot| reboot.issued.is_some()), "REBOOT_ISSUED"),
    ] {
        if set {
            parts.push(name);
        }
    }
    parts
}

/// Order of states in `sinfo`: the largest comes first.
pub fn rank(node: &NodeInfo) -> u32 {
    let base = match base(node) {
        Base::Down => 1,
        Base::Idle => 2,
        Base::Allocated => 3,
        Base::Mixed => 5,
    };
    let c = &node.condition;
    base | u32::from(c.drain) << 9
        | u32::from(node.completing) << 10
        | u32::from(c.not_responding) << 11
        | u32::from(c.fail) << 13
}

/// CPUs allocated, idle, otherwise unusable, and in all.
pub fn cpus(node: &NodeInfo) -> [u64; 4] {
    let (alloc, total) = (node.allocated.cpu, node.total.cpu);
    let rest = total.saturating_sub(alloc);
    if usable(node) { [alloc, rest, 0, total] } else { [alloc, 0, rest, total] }
}

/// Nodes allocated, idle, otherwise unusable, and in all: one of them is 1, and the last.
pub fn counts(node: &NodeInfo) -> [u64; 4] {
    if base(node) != Base::Down && busy(node) {
        [1, 0, 0, 1]
    } else if usable(node) {
        [0, 1, 0, 1]
    } else {
        [0, 0, 1, 1]
    }
}

/// Whether new work may start there.
pub fn usable(node: &NodeInfo) -> bool {
    let c = &node.condition;
    let reboots = c.reboot.as_ref().is_some_and(|reboot| reboot.issued.is_some());
    !(c.down || c.drain || c.fail || c.not_responding || reboots)
}

/// Generic resources as configured: `gpu:test:2,nic:1`.
pub fn gres(node: &NodeInfo) -> String {
    let parts = super::gres_apart(&node.total);
    if parts.is_empty() { "(null)".to_string() } else { parts.join(",") }
}

/// Generic resources that jobs have, with their indices: `gpu:test:1(IDX:0),nic:0(IDX:N/A)`; of shares, on which devices they are. A
/// controller of an earlier version tells the amounts alone.
pub fn gres_used(node: &NodeInfo) -> String {
    if node.used.is_empty() && !node.allocated.gres.is_empty() {
        return super::gres_apart(&node.allocated).join(",");
    }
    let mut all = BTreeMap::new();
    for device in &node.hardware.gres {
        all.entry(title(device)).or_insert((0, Vec::new()));
    }
    indexed(all, &mut node.used.iter())
}

/// Generic resources that are given to nobody, likewise; `N/A` where there are none.
pub fn gres_drained(node: &NodeInfo) -> String {
    let fenced = indexed(BTreeMap::new(), &mut node.hardware.gres.iter().filter(|d| d.fault.is_some()));
    if fenced == "(null)" { "N/A".to_string() } else { fenced }
}

fn title(device: &GresDevice) -> String {
    device.kind.as_ref().map_or_else(|| device.name.clone(), |kind| format!("{}:{kind}", device.name))
}

fn indexed(
    mut all: BTreeMap<String, (u64, Vec<u32>)>,
    devices: &mut dyn Iterator<Item = &GresDevice>,
) -> String {
    for device in devices {
        let (count, indices) = all.entry(title(device)).or_default();
        *count += if is_share(&device.name) { u64::from(shares(device)) } else { 1 };
        indices.push(device.index);
    }
    let part = |(title, (count, indices)): (String, (u64, Vec<u32>))| {
        let each: Vec<(u32, u32, u32)> = indices.into_iter().map(|index| (index, index, 1)).collect();
        let listed = if each.is_empty() { "N/A".to_string() } else { super::job::indices(&each) };
        format!("{title}:{count}(IDX:{listed})")
    };
    let parts: Vec<String> = all.into_iter().map(part).collect();
    if parts.is_empty() { "(null)".to_string() } else { parts.join(",") }
}

/// A test for nodes.
pub type Test = fn(&NodeInfo) -> bool;

/// The test that a state's name in `sinfo -t` stands for.
pub fn test(state: &str) -> Option<Test> {
    Some(match state {
        "alloc" | "allocated" => |n| matches!(base(n), Base::Allocated | Base::Mixed),
        "mix" | "mixed" => |n| base(n) == Base::Mixed,
        "idle" => |n| base(n) == Base::Idle,
        "down" => |n| base(n) == Base::Down,
        "drain" => |n| n.condition.drain,
        "draining" | "drng" => |n| n.condition.drain && busy(n),
        "drained" => |n| n.condition.drain && !busy(n),
        "fail" => |n| n.condition.fail,
        "failing" | "failg" => |n| n.condition.fail && busy(n),
        "comp" | "completing" => |n| n.completing,
        "no_respond" => |n| n.condition.not_responding,
        "reboot" => |n| n.condition.reboot.is_some(),
        "reboot_requested" => |n| n.condition.reboot.as_ref().is_some_and(|reboot| reboot.issued.is_none()),
        "reboot_issued" | "boot" => {
            |n| n.condition.reboot.as_ref().is_some_and(|reboot| reboot.issued.is_some())
        }
        // States that no node here can be in.
        "unk" | "unknown" | "maint" | "planned" | "plnd" | "reserved" | "resv" | "future" | "power_down"
        | "powering_down" | "powered_down" | "power_up" | "powering_up" => |_| false,
        _ => return None,
    })
}

/// The names that [`test`] knows, for messages.
pub const STATES: &str = "allocated,mixed,idle,down,drain,draining,drained,fail,failing,completing,no_respond,unknown,\
     maint,planned,reserved,future,reboot,power_down,powering_down,powered_down,power_up,powering_up";
