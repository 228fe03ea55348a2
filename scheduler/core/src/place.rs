//! Placement: which nodes, cores, memory and devices a request gets. Pure functions of a request and nodes.

pub(crate) mod pool;
pub(crate) mod totals;

use crate::config::PartitionRules;
use crate::exchange::Holders;
use crate::node::{Node, usable_memory};
use crate::rows::Allocation;
use berth_model::devices::{GPU, Nearness, gpus, is_share, near, sum};
use berth_model::distribution::Distribution;
use berth_model::gres::Wanted;
use berth_model::hardware::GresDevice;
use berth_model::ids::NodeName;
use berth_model::launch::NodeShare;
use berth_model::spec::{MemoryRequest, ResourceRequest};
use pool::{Chosen, Pool};
use std::collections::BTreeSet;

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

/// A node that can take part, and how much it could take.
struct Room<'a> {
    node: &'a Node,
    tasks: u32,
    /// Of devices that the whole job counts, as many as there are here.
    devices: Wanted,
    cpus: u64,
    gpus: u64,
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

/// GPUs of a node that nobody has.
fn gpus_of(node: &Node, against: Against) -> u64 {
    let free = |at: usize| against == Against::Empty || node.free_gres.get(at).is_some_and(|free| *free > 0);
    node.hardware.gres.iter().enumerate().filter(|(at, d)| d.name == GPU && free(*at)).count() as u64
}

/// What of a node's GPUs others could still want: jobs go where that is least. Those without GPUs only keep away from nodes that
/// have some.
fn spared(need: &Need<'_>, node: &Node, against: Against) -> u64 {
    match need.request.asks_for_gpus() {
        true => gpus_of(node, against),
        false => u64::from(node.hardware.gres.iter().any(|device| device.name == GPU)),
    }
}

fn pool_of(node: &Node, against: Against) -> Pool<'_> {
    Pool::of_node(&node.hardware.gres, (against == Against::Free).then_some(node.free_gres.as_slice()))
}

/// Of these cores the first ones that have so many CPUs together.
fn fill(node: &Node, cores: impl IntoIterator<Item = usize>, cpus: u64) -> Option<Vec<usize>> {
    let (mut some, mut got) = (Vec::new(), 0);
    for core in cores {
        if got >= cpus {
            break;
        }
        got += size(node, core);
        some.push(core);
    }
    some.sort_unstable();
    (got >= cpus).then_some(some)
}

/// CPUs of a core.
fn size(node: &Node, core: usize) -> u64 {
    node.hardware.cores[core].cpus.len() as u64
}

fn free_cores(node: &Node, against: Against) -> impl Iterator<Item = usize> {
    (0..node.hardware.cores.len()).filter(move |core| core_is_free(node, *core, against))
}

/// Whether a core is near a device.
fn is_beside(node: &Node, core: usize, device: &GresDevice) -> bool {
    near(device).is_empty() || node.hardware.cores[core].cpus.iter().any(|cpu| near(device).contains(cpu))
}

/// How many of the CPUs near a device are free.
fn free_beside(node: &Node, device: &GresDevice, against: Against) -> u64 {
    let cpus = free_cores(node, against).flat_map(|core| &node.hardware.cores[core].cpus);
    cpus.filter(|cpu| near(device).contains(cpu)).count() as u64
}

/// How near to each other devices and cores are to be. Who has the whole node has all of both.
fn nearness(need: &Need<'_>) -> Nearness {
    match need.request.devices.nearness {
        Nearness::Enforced if need.request.exclusive => Nearness::Preferred,
        own => own,
    }
}

/// Cores for `cpus` CPUs, whole: those near the devices, to each device its part, and then the lowest free ones.
fn choose_cores(
    need: &Need<'_>,
    node: &Node,
    cpus: u64,
    given: &[GresDevice],
    against: Against,
) -> Option<Vec<usize>> {
    let mut free: Vec<usize> = free_cores(node, against).collect();
    let nearness = nearness(need);
    let local = given.iter().any(|device| !near(device).is_empty()) && nearness != Nearness::Ignored;
    let mut first = Vec::new();
    if local {
        let mut got = 0;
        let parts = given.len() as u64;
        for (device, part) in given.iter().zip(1..) {
            let goal = cpus * part / parts;
            free.retain(|core| {
                let take = got < goal && is_beside(node, *core, device);
                if take {
                    got += size(node, *core);
                    first.push(*core);
                }
                !take
            });
        }
        let any = |core: usize| given.iter().any(|device| is_beside(node, core, device));
        if nearness == Nearness::Enforced {
            free.retain(|core| any(*core));
        }
        free.sort_by_key(|core| (!any(*core), *core));
    }
    fill(node, first.into_iter().chain(free), cpus)
}

/// Devices of the node, as they are given. Near ones have `each` free CPUs beside them. `without`: not these of the node's.
fn choose_devices(
    need: &Need<'_>,
    node: &Node,
    wanted: &Wanted,
    (each, without): (u64, &BTreeSet<usize>),
    against: Against,
) -> Option<Vec<GresDevice>> {
    let mut pool = pool_of(node, against);
    if need.request.exclusive {
        let all = pool.all();
        pool.take(wanted, &|_| true, false)?;
        return Some(pool.given(&all));
    }
    if wanted.is_empty() {
        return Some(Vec::new());
    }
    let beside = |device: &GresDevice| {
        let cpus = near(device).is_empty() || free_beside(node, device, against) >= each;
        let leaves = || place_of(node, device).is_some_and(|at| without.contains(&at));
        cpus && (without.is_empty() || !leaves())
    };
    let nearness = nearness(need);
    let any = |_: &GresDevice| true;
    let near: &dyn Fn(&GresDevice) -> bool = if nearness == Nearness::Ignored { &any } else { &beside };
    let chosen = pool.take(wanted, near, nearness == Nearness::Enforced)?;
    Some(pool.given(&chosen))
}

/// Which of the node's devices one is, or has shares of.
fn place_of(node: &Node, device: &GresDevice) -> Option<usize> {
    let name = if is_share(&device.name) { GPU } else { device.name.as_str() };
    node.hardware.gres.iter().position(|own| own.name == name && own.index == device.index)
}

/// Devices, and cores beside them.
fn by_devices(
    need: &Need<'_>,
    node: &Node,
    wanted: &Wanted,
    cpus: u64,
    against: Against,
) -> Option<(Vec<usize>, Vec<GresDevice>)> {
    let each = cpus.div_ceil(wanted.values().sum::<u64>().max(1));
    let mut without = BTreeSet::new();
    loop {
        let gres = choose_devices(need, node, wanted, (each, &without), against)?;
        if let Some(cores) = choose_cores(need, node, cpus, &gres, against) {
            return Some((cores, gres));
        }
        if nearness(need) != Nearness::Enforced {
            return None;
        }
        // Devices for which there are too few CPUs together: one of them makes way for one that has CPUs of its own.
        let crowded = gres.iter().rev().find(|device| {
            let same = gres.iter().filter(|other| near(other) == near(device)).count() as u64;
            !near(device).is_empty() && same.saturating_mul(each) > free_beside(node, device, against)
        })?;
        if !without.insert(place_of(node, crowded)?) {
            return None;
        }
    }
}

/// With devices for each socket of which there are cores: those, and cores of sockets that have such devices; of one socket where one
/// has them all. The devices may bring more CPUs than the tasks take.
fn by_sockets(
    need: &Need<'_>,
    node: &Node,
    wanted: &Wanted,
    tasks: u32,
    against: Against,
) -> Option<(Vec<usize>, Vec<GresDevice>)> {
    let each = &need.request.devices.per_socket;
    let beside = |socket: u32| {
        let own = node.hardware.cores.iter().filter(move |core| core.socket == socket);
        let own: BTreeSet<u32> = own.flat_map(|core| core.cpus.iter().copied()).collect();
        move |device: &GresDevice| near(device).is_empty() || near(device).iter().any(|cpu| own.contains(cpu))
    };
    let mut pool = pool_of(node, against);
    let all = pool.all();
    let others: Chosen = pool.take(wanted, &|_| true, false)?;
    let sockets: BTreeSet<u32> = node.hardware.cores.iter().map(|core| core.socket).collect();
    let free_of: Vec<Vec<usize>> = sockets
        .into_iter()
        .filter(|socket| pool.clone().take(each, &beside(*socket), true).is_some())
        .map(|socket| {
            free_cores(node, against).filter(|core| node.hardware.cores[*core].socket == socket).collect()
        })
        .collect();
    let mut count = gpus(wanted);
    loop {
        let cpus = cpus_of_share(need, node, tasks, count);
        let alone =
            free_of.iter().find(|cores| cores.iter().map(|core| size(node, *core)).sum::<u64>() >= cpus);
        let cores = fill(node, alone.cloned().unwrap_or_else(|| free_of.concat()), cpus)?;
        let (mut pool, mut chosen) = (pool.clone(), others.clone());
        let sockets: BTreeSet<u32> = cores.iter().map(|core| node.hardware.cores[*core].socket).collect();
        for socket in sockets {
            for (at, part) in pool.take(each, &beside(socket), true)? {
                *chosen.entry(at).or_default() += part;
            }
        }
        let gres = pool.given(&chosen);
        let given = gres.iter().filter(|device| device.name == GPU).count() as u64;
        if given <= count {
            return Some((cores, if need.request.exclusive { pool.given(&all) } else { gres }));
        }
        count = given;
    }
}

/// CPUs that a share of the node has: all of them, or what tasks and GPUs take.
fn cpus_of_share(need: &Need<'_>, node: &Node, tasks: u32, gpus: u64) -> u64 {
    let asked = cpus_with(need, node, tasks, gpus);
    if need.request.exclusive { cpus_of(node, Against::Empty).max(asked) } else { asked }
}

/// CPUs that so many tasks and GPUs take. Without a word about CPUs a GPU brings its share of the node's cores.
fn cpus_with(need: &Need<'_>, node: &Node, tasks: u32, gpus: u64) -> u64 {
    let by_tasks = need.cpus_for(tasks);
    let r = need.request;
    let by_gpus = match (r.devices.cpus_per_gpu, r.cpus_per_task) {
        (Some(each), _) => u64::from(each).saturating_mul(gpus),
        (None, None) if !r.overcommit => {
            let there = node.hardware.gres.iter().filter(|d| d.name == GPU).count() as u64;
            let cores = share_of(node.hardware.cores.len() as u64, gpus.min(there), there);
            cores.saturating_mul(node.hardware.threads_per_core())
        }
        (None, _) => 0,
    };
    by_tasks.max(by_gpus)
}

/// Memory in MiB for that many CPUs, cores and GPUs of the node.
fn memory_for(need: &Need<'_>, node: &Node, cpus: u64, cores: usize, gpus: u64) -> u64 {
    let usable = usable_memory(&node.hardware);
    match need.request.memory {
        MemoryRequest::PerNode(0) => usable,
        MemoryRequest::PerNode(mib) => mib,
        MemoryRequest::PerCpu(mib) => mib.saturating_mul(cpus),
        MemoryRequest::PerGpu(mib) => mib.saturating_mul(gpus),
        MemoryRequest::Default if need.request.exclusive => usable,
        MemoryRequest::Default => {
            let by_cores = share_of(usable, cores as u64, node.hardware.cores.len() as u64);
            let there = node.hardware.gres.iter().filter(|d| d.name == GPU).count() as u64;
            by_cores.max(share_of(usable, gpus.min(there), there))
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

/// What `tasks` tasks of the request take on the node with `part` of what the whole job counts, if they fit.
fn share(need: &Need<'_>, node: &Node, tasks: u32, part: &Wanted, against: Against) -> Option<NodeShare> {
    let wanted = sum(&sum(&need.request.gres, &need.request.devices.for_tasks(tasks)), part);
    let (cores, gres) = if need.request.devices.per_socket.is_empty() {
        let cpus = cpus_of_share(need, node, tasks, gpus(&wanted));
        by_devices(need, node, &wanted, cpus, against)?
    } else {
        by_sockets(need, node, &wanted, tasks, against)?
    };
    let mut numbers: Vec<u32> =
        cores.iter().flat_map(|c| node.hardware.cores[*c].cpus.iter().copied()).collect();
    numbers.sort_unstable();
    let count = gres.iter().filter(|device| device.name == GPU).count() as u64;
    let memory = memory_for(need, node, numbers.len() as u64, cores.len(), count);
    (memory <= memory_of(node, against)).then_some(NodeShare { cpus: numbers, memory, gres })
}

/// The most tasks of the request that the node can take, with `part` of what the whole job counts; 0 when it is of no use.
fn room(need: &Need<'_>, node: &Node, part: &Wanted, against: Against) -> u32 {
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
    tasks = tasks.min(totals::most_tasks(need, &pool_of(node, against)));
    // Whole cores and shares of memory make the bounds above a little generous: step down to what fits.
    while tasks >= least {
        if share(need, node, tasks, part, against).is_some() {
            return tasks;
        }
        if need.request.overcommit && need.request.devices.is_empty() {
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
        let gpus = spared(need, node, against);
        let better =
            |best: &Room<'_>| (gpus, cpus_of(node, against), !warm) < (best.gpus, best.cpus, !best.warm);
        if !best.as_ref().is_none_or(better) {
            continue; // no better than what was found, and not worth a closer look
        }
        let Some(devices) = totals::most(need, node, against) else { continue };
        let tasks = room(need, node, &devices, against);
        if tasks == 0 {
            continue;
        }
        let required = need.request.node_list.contains(&node.row.name);
        let found = Room { node, tasks, devices, cpus: cpus_of(node, against), gpus, required, warm };
        if single
            && tasks >= whole
            && found.devices == need.request.devices.total
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
    let parts = totals::spread(&need.request.devices.total, &chosen)?;
    let mut allocation = Allocation::default();
    for ((room, tasks), part) in chosen.iter().zip(counts).zip(parts) {
        allocation.shares.push(share(need, room.node, tasks, &part, against)?);
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
    if !need.request.devices.total.is_empty() {
        return totals::choose(need, rooms, least, most);
    }
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
            rooms.sort_by_key(|r| (!r.required, r.gpus, r.cpus, !r.warm));
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
        MemoryRequest::PerGpu(mib) => mib.saturating_mul(gpus(&r.gres).max(1)),
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
    if let Some(why) = totals::why_never(need, partition, &usable) {
        return why;
    }
    if let Some(n) = r.tasks {
        let sum: u64 =
            usable.iter().map(|node| u64::from(room(need, node, &Wanted::new(), Against::Empty))).sum();
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

#[cfg(test)]
mod fragments;
#[cfg(test)]
mod tests;
