//! Placement: which nodes, cores, memory and devices a request gets. Pure functions of a request and nodes.

use crate::config::PartitionRules;
use crate::exchange::Holders;
use crate::node::{Node, usable_memory};
use crate::rows::Allocation;
use berth_model::distribution::Distribution;
use berth_model::hardware::GresDevice;
use berth_model::ids::NodeName;
use berth_model::launch::NodeShare;
use berth_model::spec::{MemoryRequest, ResourceRequest};
use berth_model::tres::GresKey;
use std::collections::BTreeMap;

/// Whether a request is held against what is free, or against nodes as if nothing ran on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Against {
    Free,
    Empty,
}

/// A request within the bounds of its partition.
pub(crate) struct Need<'a> {
    pub(crate) request: &'a ResourceRequest,
    pub(crate) max_nodes: u32,
    /// Nodes that have the image already: they come first where nothing else tells nodes apart.
    pub(crate) warm: Option<&'a Holders>,
}

impl<'a> Need<'a> {
    pub(crate) fn new(request: &'a ResourceRequest, partition: &PartitionRules) -> Need<'a> {
        Need { request, max_nodes: partition.config.max_nodes, warm: None }
    }

    fn cpus_per_task(&self) -> u64 {
        u64::from(self.request.cpus_per_task.unwrap_or(1).max(1))
    }

    /// CPUs that so many tasks on a node take.
    fn cpus_for(&self, tasks: u32) -> u64 {
        let tasks = if self.request.overcommit { 1 } else { tasks };
        u64::from(tasks).saturating_mul(self.cpus_per_task())
    }

    /// How many tasks there are CPUs for.
    fn tasks_on(&self, cpus: u64) -> u32 {
        match u32::try_from(cpus / self.cpus_per_task()).unwrap_or(u32::MAX) {
            1.. if self.request.overcommit => u32::MAX,
            tasks => tasks,
        }
    }

    /// Tasks that a node must take at least to be of use.
    fn least_tasks(&self) -> u32 {
        match self.request.tasks {
            Some(_) => 1,
            None => self.request.tasks_per_node.unwrap_or(1).max(1),
        }
    }

    fn most_tasks(&self) -> u32 {
        match (self.request.tasks, self.request.tasks_per_node) {
            (Some(n), Some(per_node)) => n.min(per_node).max(1),
            (Some(n), None) => n.max(1),
            (None, per_node) => per_node.unwrap_or(1).max(1),
        }
    }

    /// Fewest nodes: never more than there are tasks for.
    pub(crate) fn min_nodes(&self) -> u32 {
        let min = self.request.min_nodes.max(1);
        self.request.tasks.map_or(min, |n| min.min(n.max(1)))
    }

    fn node_limit(&self) -> u32 {
        let own = self.request.max_nodes.unwrap_or(u32::MAX).max(self.min_nodes());
        if self.max_nodes == 0 { own } else { own.min(self.max_nodes) }
    }

    fn is_warm(&self, node: &Node) -> bool {
        self.warm.is_some_and(|warm| warm.contains_key(&node.row.name))
    }

    /// Whether the request lets the node be used at all.
    pub(crate) fn admits(&self, node: &NodeName) -> bool {
        !self.request.exclude.contains(node)
    }
}

/// A node that can take part, and how many tasks it could take.
struct Room<'a> {
    node: &'a Node,
    tasks: u32,
    cpus: u64,
    required: bool,
    warm: bool,
}

/// What is free, or all that there is.
fn cpus_of(node: &Node, against: Against) -> u64 {
    match against {
        Against::Free => node.free_cpus,
        Against::Empty => node.hardware.cpus(),
    }
}

fn memory_of(node: &Node, against: Against) -> u64 {
    match against {
        Against::Free => node.free_memory,
        Against::Empty => usable_memory(&node.hardware),
    }
}

fn core_is_free(node: &Node, core: usize, against: Against) -> bool {
    against == Against::Empty || node.free_cores[core]
}

/// Cores for `cpus` CPUs: the lowest free ones, whole.
fn choose_cores(node: &Node, cpus: u64, against: Against) -> Option<Vec<usize>> {
    let mut got = 0u64;
    let mut cores = Vec::new();
    for (i, core) in node.hardware.cores.iter().enumerate() {
        if got >= cpus {
            break;
        }
        if core_is_free(node, i, against) {
            got += core.cpus.len() as u64;
            cores.push(i);
        }
    }
    (got >= cpus).then_some(cores)
}

/// Devices for every key: typed ones first, so that an untyped wish does not take what a typed one needs.
fn choose_devices(node: &Node, wanted: &BTreeMap<GresKey, u64>, against: Against) -> Option<Vec<usize>> {
    let mut taken: Vec<usize> = Vec::new();
    let typed_first = wanted.iter().filter(|(k, _)| k.kind.is_some());
    for (key, count) in typed_first.chain(wanted.iter().filter(|(k, _)| k.kind.is_none())) {
        let mut left = *count;
        for (i, d) in node.hardware.gres.iter().enumerate() {
            if left == 0 {
                break;
            }
            let free = against == Against::Empty || node.free_gres[i];
            let fits = d.name == key.name && (key.kind.is_none() || d.kind == key.kind);
            if free && fits && !taken.contains(&i) {
                taken.push(i);
                left -= 1;
            }
        }
        if left > 0 {
            return None;
        }
    }
    taken.sort_unstable();
    Some(taken)
}

/// Memory in MiB for that many CPUs and cores of the node.
fn memory_for(need: &Need<'_>, node: &Node, cpus: u64, cores: usize) -> u64 {
    let usable = usable_memory(&node.hardware);
    match need.request.memory {
        MemoryRequest::PerNode(0) => usable,
        MemoryRequest::PerNode(mib) => mib,
        MemoryRequest::PerCpu(mib) => mib.saturating_mul(cpus),
        MemoryRequest::Default if need.request.exclusive => usable,
        MemoryRequest::Default => {
            let by_cores = share_of(usable, cores as u64, node.hardware.cores.len() as u64);
            let gpus = |name: &str| name == "gpu";
            let asked: u64 = need.request.gres.iter().filter(|(k, _)| gpus(&k.name)).map(|(_, n)| *n).sum();
            let there = node.hardware.gres.iter().filter(|d| gpus(&d.name)).count() as u64;
            by_cores.max(share_of(usable, asked.min(there), there))
        }
    }
}

/// What the node lacks of the fabric that was asked for.
fn lacks_fabric(need: &Need<'_>, node: &Node) -> Option<String> {
    need.request.fabric.and_then(|choice| choice.lacks(&node.hardware.fabrics))
}

fn share_of(amount: u64, part: u64, whole: u64) -> u64 {
    // Divided first, so that nothing overflows.
    let (Some(each), Some(rest)) = (amount.checked_div(whole), amount.checked_rem(whole)) else { return 0 };
    each * part + rest * part / whole
}

/// What `tasks` tasks of the request take on the node, if they fit.
fn share(need: &Need<'_>, node: &Node, tasks: u32, against: Against) -> Option<NodeShare> {
    let asked = need.cpus_for(tasks);
    let cpus = if need.request.exclusive { cpus_of(node, Against::Empty).max(asked) } else { asked };
    let cores = choose_cores(node, cpus, against)?;
    let devices = choose_devices(node, &need.request.gres, against)?;
    let mut numbers: Vec<u32> =
        cores.iter().flat_map(|c| node.hardware.cores[*c].cpus.iter().copied()).collect();
    numbers.sort_unstable();
    let memory = memory_for(need, node, numbers.len() as u64, cores.len());
    (memory <= memory_of(node, against)).then(|| NodeShare {
        cpus: numbers,
        memory,
        gres: devices.iter().map(|d| node.hardware.gres[*d].clone()).collect(),
    })
}

/// The most tasks of the request that the node can take; 0 when it is of no use.
fn room(need: &Need<'_>, node: &Node, against: Against) -> u32 {
    if !need.admits(&node.row.name) || lacks_fabric(need, node).is_some() {
        return 0;
    }
    if need.request.exclusive && against == Against::Free && !node.held.is_empty() {
        return 0;
    }
    let cpus = cpus_of(node, against);
    let least = need.least_tasks();
    let mut tasks = need.most_tasks().min(need.tasks_on(cpus));
    if tasks < least {
        return 0;
    }
    let memory = memory_of(node, against);
    let per_cpu = match need.request.memory {
        MemoryRequest::PerCpu(mib) => mib,
        _ => 0,
    };
    if let Some(by_memory) = memory.checked_div(per_cpu) {
        tasks = tasks.min(need.tasks_on(by_memory));
    }
    // Whole cores and shares of memory make the bounds above a little generous: step down to what fits.
    while tasks >= least {
        if share(need, node, tasks, against).is_some() {
            return tasks;
        }
        if need.request.overcommit {
            // Fewer of them take as much.
            return 0;
        }
        tasks -= 1;
    }
    0
}

/// Places the request on some of `nodes` (in the order in which they are listed), or says that it does not fit.
pub(crate) fn place<'a>(
    need: &Need<'_>,
    nodes: impl Iterator<Item = &'a Node>,
    against: Against,
) -> Option<Allocation> {
    let single = need.min_nodes() == 1 && need.request.node_list.is_empty();
    let whole = need.request.tasks.unwrap_or(need.least_tasks());
    let mut rooms: Vec<Room<'_>> = Vec::new();
    let mut best: Option<Room<'_>> = None;
    for node in nodes {
        let warm = need.is_warm(node);
        let better = |best: &Room<'_>| (cpus_of(node, against), !warm) < (best.cpus, !best.warm);
        if !best.as_ref().is_none_or(better) {
            continue; // no better than what was found, and not worth a closer look
        }
        let tasks = room(need, node, against);
        if tasks == 0 {
            continue;
        }
        let required = need.request.node_list.contains(&node.row.name);
        let found = Room { node, tasks, cpus: cpus_of(node, against), required, warm };
        if single
            && tasks >= whole
            && need.request.max_nodes.is_none_or(|m| m == 1 || need.request.tasks.is_some())
        {
            // The tightest node keeps the roomy ones for those who need them.
            best = Some(found);
            if against == Against::Empty {
                break;
            }
        } else {
            rooms.push(found);
        }
    }
    let chosen = match best {
        Some(room) => vec![room],
        None => choose_nodes(need, rooms)?,
    };
    let counts = spread(need, &chosen)?;
    let mut allocation = Allocation::default();
    for (room, tasks) in chosen.iter().zip(counts) {
        allocation.shares.push(share(need, room.node, tasks, against)?);
        allocation.nodes.push(room.node.row.name.clone());
        allocation.tasks.push(tasks);
    }
    Some(allocation)
}

/// The fewest nodes that do: required ones, then those with most room for a number of tasks, or the tightest
/// ones where each node does the same.
fn choose_nodes<'a>(need: &Need<'_>, mut rooms: Vec<Room<'a>>) -> Option<Vec<Room<'a>>> {
    let required = rooms.iter().filter(|r| r.required).count();
    if required < need.request.node_list.len() {
        return None;
    }
    let least = (need.min_nodes() as usize).max(required);
    let most = need.node_limit() as usize;
    let take = match need.request.tasks {
        Some(n) => {
            rooms.sort_by_key(|r| std::cmp::Reverse((r.required, r.tasks, r.warm)));
            let mut sum = 0u64;
            let enough = rooms.iter().position(|r| {
                sum += u64::from(r.tasks);
                sum >= u64::from(n)
            })?;
            (enough + 1).max(least)
        }
        None => {
            rooms.sort_by_key(|r| (!r.required, r.cpus, !r.warm));
            match need.request.max_nodes {
                Some(_) => rooms.len().min(most).max(least),
                None => least,
            }
        }
    };
    if take > most || take > rooms.len() {
        return None;
    }
    rooms.truncate(take);
    rooms.sort_by(|a, b| a.node.row.name.cmp(&b.node.row.name));
    Some(rooms)
}

/// Tasks on each chosen node, as they are to be laid out.
fn spread(need: &Need<'_>, chosen: &[Room<'_>]) -> Option<Vec<u32>> {
    let Some(n) = need.request.tasks else {
        return Some(vec![need.least_tasks(); chosen.len()]);
    };
    // Where tasks take no CPUs, nodes have room for any number: each gets as many as the others.
    let even = match u32::try_from(chosen.len()) {
        Ok(nodes @ 1..) if need.request.overcommit => n.div_ceil(nodes),
        _ => u32::MAX,
    };
    let room: Vec<u32> = chosen.iter().map(|r| r.tasks.min(even)).collect();
    let names: Vec<NodeName> = chosen.iter().map(|r| r.node.row.name.clone()).collect();
    let counts = need.request.distribution.spread(n, &names, &room)?;
    // A node without a task would be of no use: planes are for the steps.
    if counts.contains(&0) { Distribution::Block.spread(n, &names, &room) } else { Some(counts) }
}

/// Why the request can never run on `nodes`, for the person who made it.
pub(crate) fn explain_never(need: &Need<'_>, partition: &str, nodes: &[&Node]) -> String {
    let (kind, why) = why_never(need, partition, nodes);
    let lead = kind.map_or_else(String::new, |kind| format!("{kind}\n"));
    format!("{lead}Requested node configuration is not available: {why}")
}

/// What cannot be satisfied, where that has a name of its own, and the figures.
fn why_never(need: &Need<'_>, partition: &str, nodes: &[&Node]) -> (Option<&'static str>, String) {
    let r = need.request;
    let usable: Vec<&&Node> = nodes.iter().filter(|n| need.admits(&n.row.name)).collect();
    let what = if usable.len() as u64 != nodes.len() as u64 { " that the request allows" } else { "" };
    let min = need.min_nodes() as usize;
    if min > usable.len() {
        return (
            None,
            format!("{min} nodes were asked for, partition {partition} has {}{what}", usable.len()),
        );
    }
    if need.max_nodes > 0 && need.min_nodes() > need.max_nodes {
        let why =
            format!("{min} nodes were asked for, partition {partition} gives at most {}", need.max_nodes);
        return (None, why);
    }
    let largest = usable.iter().max_by_key(|n| n.hardware.cpus());
    let per_node = need.cpus_for(need.least_tasks());
    if let Some(node) = largest.filter(|n| n.hardware.cpus() < per_node) {
        let why = format!(
            "{per_node} CPUs on one node were asked for, the largest of partition {partition} ({}) has {}",
            node.row.name,
            node.hardware.cpus()
        );
        return (Some("CPU count per node can not be satisfied"), why);
    }
    let roomy = usable.iter().max_by_key(|n| usable_memory(&n.hardware));
    let memory = match r.memory {
        MemoryRequest::PerNode(mib) => mib,
        MemoryRequest::PerCpu(mib) => mib.saturating_mul(per_node),
        MemoryRequest::Default => 0,
    };
    if let Some(node) = roomy.filter(|n| usable_memory(&n.hardware) < memory) {
        let why = format!(
            "{memory} MiB of memory on one node were asked for, the largest of partition {partition} ({}) gives {}",
            node.row.name,
            usable_memory(&node.hardware)
        );
        return (Some("Memory specification can not be satisfied"), why);
    }
    if let Some(choice) = r.fabric
        && let Some((node, lacking)) = usable.iter().find_map(|node| Some((node, lacks_fabric(need, node)?)))
        && usable.iter().filter(|node| lacks_fabric(need, node).is_none()).count() < min
    {
        let why = format!(
            "--fabric={choice} asks for {min} nodes with such a device, and partition {partition} has fewer ({} has {lacking})",
            node.row.name
        );
        return (None, why);
    }
    for (key, n) in &r.gres {
        let wish = BTreeMap::from([(key.clone(), *n)]);
        if !usable.iter().any(|node| choose_devices(node, &wish, Against::Empty).is_some()) {
            let why =
                format!("{n} x {key} on one node was asked for, no node of partition {partition} has that");
            let known = usable.iter().any(|node| node.hardware.gres.iter().any(|d| d.name == key.name));
            return ((!known).then_some("Invalid generic resource (gres) specification"), why);
        }
    }
    if let Some(n) = r.tasks {
        let sum: u64 = usable.iter().map(|node| u64::from(room(need, node, Against::Empty))).sum();
        if sum < u64::from(n) {
            let why = format!(
                "{n} tasks of {} CPUs were asked for, the nodes of partition {partition} can take {sum} of them",
                need.cpus_per_task()
            );
            return (None, why);
        }
    }
    (
        None,
        format!(
            "no set of nodes of partition {partition} has all of what was asked for at once; ask for less"
        ),
    )
}

/// Devices of `have` for the wish, without those in `taken`; `None` when there are too few.
pub(crate) fn pick_devices(
    have: &[GresDevice],
    wanted: &BTreeMap<GresKey, u64>,
    taken: &[GresDevice],
) -> Option<Vec<GresDevice>> {
    let mut got: Vec<GresDevice> = Vec::new();
    let typed_first = wanted.iter().filter(|(k, _)| k.kind.is_some());
    for (key, count) in typed_first.chain(wanted.iter().filter(|(k, _)| k.kind.is_none())) {
        let mut left = *count;
        for d in have {
            let fits = d.name == key.name && (key.kind.is_none() || d.kind == key.kind);
            if left > 0 && fits && !taken.contains(d) && !got.contains(d) {
                got.push(d.clone());
                left -= 1;
            }
        }
        if left > 0 {
            return None;
        }
    }
    Some(got)
}

#[cfg(test)]
mod tests;
