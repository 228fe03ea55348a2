//! Nodes that come back with less than they were registered with: a module of memory, a processor or a GPU that is gone is work for
//! somebody's hands, and nothing else shows it, since jobs go where there is room.

use crate::rows::{NodeRow, NodeSize};
use berth_model::devices::GPU;
use berth_model::hardware::Hardware;
use berth_model::time::{Span, Time};
use std::collections::BTreeSet;

/// The part of its memory by which a node's figure may fall unnoticed: what firmware and kernel take for themselves differs from boot to boot.
const MEMORY: u64 = 64;
/// So many entries may one node make in the log within this time; what is left over comes with a later word of it.
const MOST: usize = 4;
const WITHIN: Span = Span::from_mins(60);

fn size(hardware: &Hardware) -> NodeSize {
    let gpus = || hardware.gres.iter().filter(|device| device.name == GPU);
    // Into how many parts one is divided is set by people: all of them are at its place.
    let places: BTreeSet<&str> = gpus().filter_map(|device| device.bus.as_deref()).collect();
    let placeless = gpus().filter(|device| device.bus.is_none()).count();
    NodeSize {
        cores: hardware.cores.len() as u64,
        cpus: hardware.cpus(),
        memory: hardware.memory,
        gpus: (places.len() + placeless) as u64,
    }
}

/// What a node without work was registered with, where that is more than it has now. `before`: where it was more already; what it had more
/// of since counts as well.
pub(crate) fn registered(before: Option<NodeSize>, known: &Hardware, now: &Hardware) -> Option<NodeSize> {
    let known = size(known);
    let before = before.map_or(known, |before| NodeSize {
        cores: before.cores.max(known.cores),
        cpus: before.cpus.max(known.cpus),
        memory: before.memory.max(known.memory),
        gpus: before.gpus.max(known.gpus),
    });
    (!missing(Some(before), now).is_empty()).then_some(before)
}

/// What a node has less of than it was registered with, a line each.
pub(crate) fn missing(registered: Option<NodeSize>, now: &Hardware) -> Vec<String> {
    registered.map_or_else(Vec::new, |before| lines(before, size(now)))
}

/// Whether a node lacks something, and not what it lacked when it was last seen: memory varies a little from boot to boot.
pub(crate) fn is_news(last: &NodeRow, now: &NodeRow) -> bool {
    let Some(registered) = now.registered else { return false };
    let (was, mut is) = (size(&last.hardware), size(&now.hardware));
    if lines(registered, is).is_empty() {
        return false;
    }
    if was.memory.abs_diff(is.memory) <= registered.memory / MEMORY {
        is.memory = was.memory;
    }
    lines(registered, is) != missing(last.registered, &last.hardware)
}

/// What was entered into the log of one node lately: one that has something else each time it comes fills no log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entered {
    at: Vec<Time>,
    /// Something is not in it yet.
    due: bool,
}

impl Entered {
    /// Whether it is to be entered now what a node `lacks`, because that is `news` or was not entered before.
    pub(crate) fn is_due(&mut self, news: bool, lacks: bool, now: Time) -> bool {
        self.at.retain(|at| now < *at + WITHIN);
        self.due = lacks && (news || self.due);
        if !self.due || self.at.len() >= MOST {
            return false;
        }
        self.at.push(now);
        self.due = false;
        true
    }
}

fn lines(before: NodeSize, now: NodeSize) -> Vec<String> {
    let mut lines = Vec::new();
    if now.cores < before.cores {
        lines.push(format!("registered with {} cores, now {}", before.cores, now.cores));
    } else if now.cpus < before.cpus {
        lines.push(format!("registered with {} CPUs, now {}", before.cpus, now.cpus));
    }
    if now.memory < before.memory - before.memory / MEMORY {
        lines.push(format!("registered with {} MiB of memory, now {}", before.memory, now.memory));
    }
    if now.gpus < before.gpus {
        lines.push(format!("registered with {} GPUs, now {}", before.gpus, now.gpus));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::hardware::{Core, GresDevice};

    fn node(cores: u32, threads: u32, memory: u64, gpus: u32) -> Hardware {
        let core = |n| Core { socket: 0, numa: 0, cpus: (0..threads).map(|t| n * threads + t).collect() };
        let gpu = |index| GresDevice { name: "gpu".into(), index, ..GresDevice::default() };
        Hardware {
            cores: (0..cores).map(core).collect(),
            memory,
            gres: (0..gpus).map(gpu).collect(),
            ..Hardware::default()
        }
    }

    #[test]
    fn what_is_less_is_named_until_it_is_there_again() {
        let whole = node(8, 2, 64_000, 4);
        assert_eq!(registered(None, &whole, &whole), None);
        // What another kernel keeps for itself is no module of memory; more is no less.
        assert_eq!(registered(None, &whole, &node(8, 2, 63_500, 4)), None);
        assert_eq!(registered(None, &whole, &node(16, 2, 128_000, 8)), None);
        let less = node(4, 2, 32_000, 3);
        let before = registered(None, &whole, &less);
        let expected = [
            "registered with 8 cores, now 4",
            "registered with 64000 MiB of memory, now 32000",
            "registered with 4 GPUs, now 3",
        ];
        assert_eq!(missing(before, &less), expected);
        // Of what it was registered with it has nothing new by coming again.
        assert_eq!(registered(before, &less, &less), before);
        assert_eq!(registered(before, &less, &node(8, 2, 64_000, 3)), before);
        assert_eq!(registered(before, &less, &whole), None);
        assert_eq!(missing(before, &node(8, 1, 64_000, 4)), ["registered with 16 CPUs, now 8"]);
        assert!(missing(None, &less).is_empty());
    }

    #[test]
    fn what_came_while_something_was_missing_is_missed_as_well() {
        let before = registered(None, &node(8, 2, 64_000, 4), &node(8, 2, 32_000, 4));
        let grown = node(8, 2, 32_000, 8);
        assert_eq!(registered(before, &node(8, 2, 32_000, 4), &grown), before);
        let more = registered(before, &grown, &node(8, 2, 32_000, 4));
        let expected = ["registered with 64000 MiB of memory, now 32000", "registered with 8 GPUs, now 4"];
        assert_eq!(missing(more, &node(8, 2, 32_000, 4)), expected);
    }

    #[test]
    fn one_node_makes_few_entries_and_the_last_is_not_lost() {
        let (start, mut entered) = (Time::from_secs(1000), Entered::default());
        let after = |minutes| start + Span::from_mins(minutes);
        let made = (0..30).filter(|n| entered.is_due(true, true, after(*n))).count();
        assert_eq!(made, MOST);
        assert!(!entered.is_due(false, true, after(59)), "as long as there are as many");
        assert!(entered.is_due(false, true, after(60)), "what was left over");
        assert!(!entered.is_due(false, true, after(61)), "once");
        // What is whole again lacks nothing.
        entered.due = true;
        assert!(!entered.is_due(false, false, after(600)) && !entered.is_due(false, true, after(601)));
    }

    #[test]
    fn parts_of_a_gpu_are_at_one_place() {
        let mut divided = node(8, 2, 64_000, 8);
        for device in &mut divided.gres {
            device.bus = Some(if device.index < 7 { "0000:3b:00.0" } else { "0000:86:00.0" }.to_string());
        }
        assert_eq!(registered(None, &divided, &node(8, 2, 64_000, 2)), None);
        let one = registered(None, &divided, &node(8, 2, 64_000, 1));
        assert_eq!(missing(one, &node(8, 2, 64_000, 1)), ["registered with 2 GPUs, now 1"]);
    }
}
