//! Devices that the whole job counts (`--gpus`): how many there could be on each node, on which nodes they are, and how they are
//! spread over these.

use super::{Against, Need, Pool, Room, pool_of, share};
use crate::node::Node;
use berth_model::devices::DeviceRequest;
use berth_model::gres::Wanted;
use berth_model::tres::GresKey;
use std::cmp::Reverse;
use std::collections::BTreeSet;

/// The most of it that the node could have; `None` where it is of no use. Without such a wish: nothing.
pub(super) fn most(need: &Need<'_>, node: &Node, against: Against) -> Option<Wanted> {
    let total = &need.request.devices.total;
    let pool = pool_of(node, against);
    let mut part: Wanted = total
        .iter()
        .map(|(key, n)| (key.clone(), (*n).min(pool.count(key))))
        .filter(|(_, n)| *n > 0)
        .collect();
    if total.is_empty() {
        return Some(part);
    }
    // CPUs and memory come with them: fewer may fit.
    while !part.is_empty() {
        if share(need, node, need.least_tasks(), &part, against).is_some() {
            return Some(part);
        }
        let key = part.iter().max_by_key(|(_, n)| **n).map(|(key, _)| key.clone())?;
        match part.get_mut(&key) {
            Some(n) if *n > 1 => *n -= 1,
            _ => drop(part.remove(&key)),
        }
    }
    None
}

/// Tasks for which there are devices.
pub(super) fn most_tasks(need: &Need<'_>, pool: &Pool<'_>) -> u32 {
    most_tasks_of(&need.request.devices, pool)
}

/// Tasks of a request for which a pool has devices.
pub(crate) fn most_tasks_of(devices: &DeviceRequest, pool: &Pool<'_>) -> u32 {
    let of_tasks = devices.per_task.iter().filter_map(|(key, n)| pool.count(key).checked_div(*n));
    let gpu = GresKey { name: berth_model::devices::GPU.to_string(), kind: None };
    let of_gpus = devices.tasks_per_gpu.map(|each| pool.count(&gpu).saturating_mul(u64::from(each)));
    of_tasks.chain(of_gpus).min().map_or(u32::MAX, |n| u32::try_from(n).unwrap_or(u32::MAX))
}

fn amount(wanted: &Wanted) -> u64 {
    wanted.values().fold(0, |sum, n| sum.saturating_add(*n))
}

/// Whether the rooms have all of it, and room for all tasks.
fn enough<'a>(need: &Need<'_>, rooms: impl Iterator<Item = &'a Room<'a>> + Clone) -> bool {
    let has = |key: &GresKey| rooms.clone().filter_map(|r| r.devices.get(key)).sum::<u64>();
    let tasks: u64 = rooms.clone().map(|r| u64::from(r.tasks)).sum();
    need.request.devices.total.iter().all(|(key, n)| has(key) >= *n)
        && tasks >= u64::from(need.request.tasks.unwrap_or(0))
}

/// The fewest nodes that have it: as many on each of them where that is possible, on the tightest; else on those that have most,
/// and the rest on the tightest.
pub(super) fn choose<'a>(
    need: &Need<'_>,
    mut rooms: Vec<Room<'a>>,
    least: usize,
    most: usize,
) -> Option<Vec<Room<'a>>> {
    let total = amount(&need.request.devices.total);
    rooms.sort_by_key(|r| (Reverse((r.required, amount(&r.devices), r.tasks)), !r.warm));
    let count = (least.max(1)..=rooms.len().min(most)).find(|n| enough(need, rooms.iter().take(*n)))?;
    if count as u64 > total {
        return None; // one at least on each
    }
    let each = total.div_ceil(count as u64);
    rooms.sort_by_key(|r| (!r.required, amount(&r.devices) < each, r.gpus, r.cpus, !r.warm));
    if enough(need, rooms.iter().take(count)) {
        rooms.truncate(count);
    } else {
        rooms.sort_by_key(|r| (Reverse((r.required, amount(&r.devices), r.tasks)), !r.warm));
        let last = (count - 1..rooms.len())
            .filter(|last| !rooms.get(count - 1).is_some_and(|r| r.required) || *last == count - 1)
            .filter(|last| enough(need, rooms.iter().take(count - 1).chain(rooms.get(*last))))
            .min_by_key(|last| rooms.get(*last).map(|r| (r.gpus, r.cpus)))?;
        let last = rooms.swap_remove(last);
        rooms.truncate(count - 1);
        rooms.push(last);
    }
    rooms.sort_by(|a, b| a.node.row.name.cmp(&b.node.row.name));
    Some(rooms)
}

/// What each of the chosen nodes has of it: as many as the others where that is possible.
pub(super) fn spread(total: &Wanted, chosen: &[Room<'_>]) -> Option<Vec<Wanted>> {
    let mut parts = vec![Wanted::new(); chosen.len()];
    for (key, n) in total {
        let room: Vec<u64> = chosen.iter().map(|r| r.devices.get(key).copied().unwrap_or(0)).collect();
        for (part, n) in parts.iter_mut().zip(evenly(*n, &room)?) {
            if n > 0 {
                part.insert(key.clone(), n);
            }
        }
    }
    Some(parts)
}

/// `total` over places with that much room, as evenly as that goes, the first ones first.
pub(crate) fn evenly(total: u64, room: &[u64]) -> Option<Vec<u64>> {
    let mut parts = vec![0; room.len()];
    let mut left = total;
    while left > 0 {
        let open: Vec<usize> = (0..room.len()).filter(|at| parts[*at] < room[*at]).collect();
        if open.is_empty() {
            return None;
        }
        let each = (left / open.len() as u64).max(1);
        for at in open {
            let more = each.min(room[at] - parts[at]).min(left);
            parts[at] += more;
            left -= more;
        }
    }
    Some(parts)
}

/// What of devices no nodes have.
pub(super) fn why_never(
    need: &Need<'_>,
    partition: &str,
    usable: &[&&Node],
) -> Option<(Option<&'static str>, String)> {
    const INVALID: &str = "Invalid generic resource (gres) specification";
    let r = need.request;
    let known = |key: &GresKey| usable.iter().any(|node| pool_of(node, Against::Empty).knows(&key.name));
    let on_node = |wanted: &Wanted| wanted.iter().map(|(key, n)| (key.clone(), *n)).collect::<Vec<_>>();
    let tasks = r.devices.for_tasks(need.least_tasks());
    let each = [&r.gres, &tasks, &r.devices.per_socket].map(on_node).concat();
    for (key, n) in each {
        if !usable.iter().any(|node| pool_of(node, Against::Empty).count(&key) >= n) {
            let why = format!(
                "{n} x {key} on one node was asked for, no node of partition {partition} has that{}",
                types(&key, usable)
            );
            return Some(((!known(&key)).then_some(INVALID), why));
        }
    }
    for (key, n) in &r.devices.total {
        let sum: u64 = usable.iter().map(|node| pool_of(node, Against::Empty).count(key)).sum();
        if sum < *n {
            let why = format!(
                "{n} x {key} were asked for, the nodes of partition {partition} have {sum}{}",
                types(key, usable)
            );
            return Some(((!known(key)).then_some(INVALID), why));
        }
    }
    None
}

/// What types there are, for who asked for one.
fn types(key: &GresKey, usable: &[&&Node]) -> String {
    let of = |node: &&&Node| {
        pool_of(node, Against::Empty).types(&key.name).map(str::to_string).collect::<Vec<String>>()
    };
    let there: BTreeSet<String> = match key.kind {
        Some(_) => usable.iter().flat_map(of).collect(),
        None => BTreeSet::new(),
    };
    match there.is_empty() {
        true => String::new(),
        false => {
            format!("; types of {} there: {}", key.name, there.into_iter().collect::<Vec<_>>().join(", "))
        }
    }
}
