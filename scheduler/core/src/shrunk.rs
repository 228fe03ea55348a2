//! Nodes that come back with less than they were registered with: a module of memory, a processor or a GPU that is gone is work for
//! somebody's hands, and nothing else shows it, since jobs go where there is room.

use crate::rows::NodeSize;
use berth_model::hardware::Hardware;

/// The part of its memory by which a node's figure may fall unnoticed: what firmware and kernel take for themselves differs from boot to boot.
const MEMORY: u64 = 64;

fn size(hardware: &Hardware) -> NodeSize {
    NodeSize {
        cores: hardware.cores.len() as u64,
        cpus: hardware.cpus(),
        memory: hardware.memory,
        gpus: hardware.gres.iter().filter(|device| device.name == "gpu").count() as u64,
    }
}

/// What a node without work was registered with, where that is more than it has now. `before`: where it was more already.
pub(crate) fn registered(before: Option<NodeSize>, known: &Hardware, now: &Hardware) -> Option<NodeSize> {
    let before = before.unwrap_or_else(|| size(known));
    (!missing(Some(before), now).is_empty()).then_some(before)
}

/// What a node has less of than it was registered with, a line each.
pub(crate) fn missing(registered: Option<NodeSize>, now: &Hardware) -> Vec<String> {
    let Some(before) = registered else { return Vec::new() };
    let now = size(now);
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
}
