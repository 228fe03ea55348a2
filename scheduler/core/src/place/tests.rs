//! Whatever is asked for and whatever is taken already: a placement is within what is free and what was asked.

use super::*;
use crate::config::CoreConfig;
use crate::rows::{NodeRow, ROW_VERSION};
use berth_model::config::Config;
use berth_model::devices::DeviceRequest;
use berth_model::hardware::{Core, Hardware};
use berth_model::ids::{Attempt, JobId};
use berth_model::state::NodeCondition;
use berth_model::time::Time;
use berth_model::tres::GresKey;
use proptest::prelude::*;
use std::sync::Arc;

pub(super) fn node(i: usize, threads: &[u32], memory: u64, gpus: u32) -> Node {
    let mut next = 0;
    let cores = threads.iter().map(|t| {
        let cpus = (next..next + t).collect();
        next += t;
        Core { socket: 0, numa: 0, cpus }
    });
    let hardware = Hardware {
        cores: cores.collect(),
        memory,
        gres: (0..gpus)
            .map(|index| GresDevice {
                name: "gpu".into(),
                kind: Some(if index % 2 == 0 { "a".into() } else { "b".into() }),
                index,
                ..GresDevice::default()
            })
            .collect(),
        ..Hardware::default()
    };
    let row = NodeRow {
        version: ROW_VERSION,
        name: NodeName(format!("n{i}")),
        hardware,
        boot_id: String::new(),
        boot_time: Time(0),
        agent_start: Time(0),
        agent_version: String::new(),
        condition: NodeCondition::default(),
        causes: Default::default(),
        registered: None,
        resumed: false,
        host_name: None,
    };
    Node::new(row, &CoreConfig::new(&Config::default()).unwrap(), Time(0))
}

fn nodes() -> impl Strategy<Value = Vec<Node>> {
    let one = (proptest::collection::vec(1..3u32, 1..8), 0..5000u64, 0..4u32);
    proptest::collection::vec(one, 1..6).prop_map(|specs| {
        specs
            .into_iter()
            .enumerate()
            .map(|(i, (threads, memory, gpus))| node(i, &threads, memory, gpus))
            .collect()
    })
}

fn request() -> impl Strategy<Value = ResourceRequest> {
    let memory = prop_oneof![
        3 => Just(MemoryRequest::Default),
        1 => (0..3000u64).prop_map(MemoryRequest::PerNode),
        1 => (0..800u64).prop_map(MemoryRequest::PerCpu),
    ];
    let gres = proptest::collection::btree_map(
        prop_oneof![Just(None), Just(Some("a".to_string())), Just(Some("b".to_string()))]
            .prop_map(|kind| GresKey { name: "gpu".into(), kind }),
        0..3u64,
        0..3,
    );
    let option = |n: u32| proptest::option::of(1..n);
    let names = || proptest::collection::btree_set(0..6usize, 0..2);
    (
        (1..4u32, option(4), option(10), option(4), option(4)),
        memory,
        gres,
        proptest::bool::weighted(0.1),
        names(),
        names(),
        prop_oneof![
            3 => Just(Distribution::Block),
            1 => Just(Distribution::Cyclic),
            1 => (1..4u32).prop_map(Distribution::Plane),
        ],
        proptest::bool::weighted(0.2),
    )
        .prop_map(
            |(
                (min, more, tasks, per_node, cpus),
                memory,
                gres,
                exclusive,
                with,
                without,
                layout,
                overcommit,
            )| {
                let named = |set: std::collections::BTreeSet<usize>| {
                    set.into_iter().map(|i| NodeName(format!("n{i}"))).collect()
                };
                ResourceRequest {
                    min_nodes: min,
                    max_nodes: more.map(|m| min + m - 1),
                    tasks,
                    tasks_per_node: per_node,
                    cpus_per_task: cpus,
                    memory,
                    gres,
                    devices: Default::default(),
                    exclusive,
                    node_list: named(with),
                    exclude: named(without),
                    distribution: layout,
                    overcommit,
                    sockets: None,
                    fabric: None,
                    gpu_bind: None,
                    ntasks_per_gpu: None,
                }
            },
        )
}

/// Devices of a node.
fn of_all(all: &[Node], name: &NodeName) -> u64 {
    all.iter().find(|node| node.row.name == *name).map_or(0, |node| node.hardware.gres.len() as u64)
}

fn need(request: &ResourceRequest) -> Need<'_> {
    Need { request, max_nodes: 0, warm: None }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn placements_fill_nodes_and_never_overfill_them(mut all in nodes(), asked in proptest::collection::vec(request(), 1..12)) {
        for (i, request) in asked.iter().enumerate() {
            let need = need(request);
            let Some(found) = place(&need, all.iter(), Against::Free) else { continue };
            let count = u32::try_from(found.nodes.len()).unwrap();
            prop_assert!(count >= need.min_nodes() && count <= need.node_limit());
            prop_assert!(request.node_list.iter().all(|n| found.nodes.contains(n)));
            prop_assert!(!request.exclude.iter().any(|n| found.nodes.contains(n)));
            if let Some(tasks) = request.tasks {
                prop_assert_eq!(found.tasks.iter().sum::<u32>(), tasks);
            }
            for ((name, share), tasks) in found.nodes.iter().zip(&found.shares).zip(&found.tasks) {
                prop_assert!(*tasks >= 1);
                prop_assert!(request.tasks_per_node.is_none_or(|most| *tasks <= most));
                let cpus = share.cpus.len() as u64;
                prop_assert!(cpus >= need.cpus_for(*tasks));
                let asked = if request.exclusive {
                    of_all(&all, name)
                } else {
                    request.gres.values().sum::<u64>()
                };
                prop_assert_eq!(share.gres.len() as u64, asked);
                for (key, n) in request.gres.iter().filter(|(k, _)| k.kind.is_some()) {
                    let typed = share.gres.iter().filter(|d| d.kind == key.kind).count() as u64;
                    prop_assert!(typed >= *n);
                }
                match request.memory {
                    MemoryRequest::PerNode(mib) if mib > 0 => prop_assert_eq!(share.memory, mib),
                    MemoryRequest::PerCpu(mib) => prop_assert_eq!(share.memory, mib * cpus),
                    _ => {}
                }
                let node = all.iter_mut().find(|n| n.row.name == *name).unwrap();
                if request.exclusive {
                    prop_assert!(node.held.is_empty());
                    prop_assert_eq!(cpus, node.hardware.cpus());
                }
                // `take` refuses whatever is not free.
                let run = (JobId(u32::try_from(i).unwrap()), Attempt(0));
                prop_assert!(node.take(run, &Arc::new(share.clone())).is_ok());
            }
        }
        // All of it goes back, and every node is as it was.
        for node in &mut all {
            for run in node.held.keys().copied().collect::<Vec<_>>() {
                prop_assert!(node.release(run));
            }
            prop_assert_eq!(node.free_cpus, node.hardware.cpus());
            prop_assert_eq!(node.free_memory, usable_memory(&node.hardware));
        }
    }

    /// A node that has the image changes nothing but which of several equal nodes it is, and of those one that has it comes first.
    #[test]
    fn warm_nodes_are_preferred_among_equals_alone(
        all in nodes(),
        request in request(),
        warm in proptest::collection::btree_set(0..6usize, 0..4),
    ) {
        let warm: Holders = warm.into_iter().map(|n| (NodeName(format!("n{n}")), Default::default())).collect();
        let cold = place(&need(&request), all.iter(), Against::Free);
        let found = place(&Need { warm: Some(&warm), ..need(&request) }, all.iter(), Against::Free);
        prop_assert_eq!(cold.is_some(), found.is_some());
        let (Some(cold), Some(found)) = (cold, found) else { return Ok(()) };
        let of = |name: &NodeName| all.iter().find(|node| node.row.name == *name).unwrap();
        // What tells nodes apart: all that are free, or how many tasks there is room for.
        let worth = |allocation: &Allocation| {
            let need = need(&request);
            let each = |name| match request.tasks {
                Some(_) if allocation.nodes.len() > 1 => (0, 0, room(&need, of(name), &Wanted::new(), Against::Free)),
                _ => (spared(&need, of(name), Against::Free), cpus_of(of(name), Against::Free), 0),
            };
            let mut all: Vec<(u64, u64, u32)> = allocation.nodes.iter().map(each).collect();
            all.sort_unstable();
            all
        };
        prop_assert_eq!(worth(&cold), worth(&found));
        let count = |allocation: &Allocation| allocation.nodes.iter().filter(|n| warm.contains_key(*n)).count();
        prop_assert!(count(&found) >= count(&cold));
        // None of them, or all: nothing is told apart by it.
        let every: Holders = all.iter().map(|node| (node.row.name.clone(), Default::default())).collect();
        let same = place(&Need { warm: Some(&every), ..need(&request) }, all.iter(), Against::Free);
        prop_assert_eq!(same.map(|a| (a.nodes, a.tasks)), Some((cold.nodes, cold.tasks)));
    }

    #[test]
    fn what_fits_now_fits_empty_nodes_and_what_never_fits_has_a_reason(all in nodes(), request in request()) {
        let need = need(&request);
        let free = place(&need, all.iter(), Against::Free);
        let empty = place(&need, all.iter(), Against::Empty);
        prop_assert!(free.is_none() || empty.is_some());
        if empty.is_none() {
            let nodes: Vec<&Node> = all.iter().collect();
            prop_assert!(!explain_never(&need, "main", &nodes).is_empty());
        }
    }
}

pub(super) fn gpu(kind: Option<&str>) -> GresKey {
    GresKey { name: "gpu".into(), kind: kind.map(str::to_string) }
}

/// Requests of devices in all the ways there are.
fn with_devices() -> impl Strategy<Value = ResourceRequest> {
    let wanted = |most: u64| {
        let kind = prop_oneof![3 => Just(None), 1 => Just(Some("a"))];
        (kind, 1..most).prop_map(|(kind, n)| Wanted::from([(gpu(kind), n)]))
    };
    let none = || Just(Wanted::new());
    (
        request(),
        prop_oneof![1 => none(), 2 => wanted(9)],
        prop_oneof![2 => none(), 1 => wanted(3)],
        proptest::option::weighted(0.3, 1..3u32),
        proptest::option::weighted(0.2, 1..3u32),
    )
        .prop_map(|(mut r, total, per_task, cpus_per_gpu, tasks_per_gpu)| {
            r.devices =
                DeviceRequest { total, per_task, cpus_per_gpu, tasks_per_gpu, ..DeviceRequest::default() };
            r.gres.clear();
            r.exclusive = false;
            r
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn devices_are_as_many_as_the_job_and_its_tasks_count(mut all in nodes(), asked in proptest::collection::vec(with_devices(), 1..8)) {
        for (i, request) in asked.iter().enumerate() {
            let need = need(request);
            let Some(found) = place(&need, all.iter(), Against::Free) else { continue };
            let of_tasks: u64 = found.tasks.iter().map(|tasks| gpus(&request.devices.for_tasks(*tasks))).sum();
            let given: u64 = found.shares.iter().map(|share| share.gres.len() as u64).sum();
            prop_assert_eq!(given, of_tasks + gpus(&request.devices.total));
            if !request.devices.total.is_empty() {
                prop_assert!(found.shares.iter().all(|share| !share.gres.is_empty()));
            }
            for ((name, share), tasks) in found.nodes.iter().zip(&found.shares).zip(&found.tasks) {
                let by_gpus = u64::from(request.devices.cpus_per_gpu.unwrap_or(0)) * share.gres.len() as u64;
                prop_assert!(share.cpus.len() as u64 >= by_gpus.max(need.cpus_for(*tasks)));
                let node = all.iter_mut().find(|n| n.row.name == *name).unwrap();
                let run = (JobId(u32::try_from(i).unwrap()), Attempt(0));
                prop_assert!(node.take(run, &Arc::new(share.clone())).is_ok());
            }
        }
    }

    #[test]
    fn what_never_fits_of_devices_has_a_reason(all in nodes(), request in with_devices()) {
        let need = need(&request);
        let empty = place(&need, all.iter(), Against::Empty);
        prop_assert!(place(&need, all.iter(), Against::Free).is_none() || empty.is_some());
        if empty.is_none() {
            let nodes: Vec<&Node> = all.iter().collect();
            prop_assert!(!explain_never(&need, "main", &nodes).is_empty());
        }
    }

    #[test]
    fn what_is_spread_is_all_of_it_and_as_even_as_it_can_be(total in 0..40u64, room in proptest::collection::vec(0..12u64, 1..6)) {
        let parts = totals::evenly(total, &room);
        prop_assert_eq!(parts.is_some(), room.iter().sum::<u64>() >= total);
        if let Some(parts) = parts {
            prop_assert_eq!(parts.iter().sum::<u64>(), total);
            let most = parts.iter().max().copied().unwrap_or(0);
            for (part, room) in parts.iter().zip(&room) {
                prop_assert!(part <= room && (part == room || most - part <= 1));
            }
        }
    }
}

#[test]
fn sixteen_gpus_are_eight_on_each_of_two_nodes_and_the_rest_goes_to_the_tightest() {
    let all = [node(0, &[1; 8], 4000, 8), node(1, &[1; 8], 4000, 4), node(2, &[1; 8], 4000, 8)];
    let total = |n: u64, min: u32, max: Option<u32>| ResourceRequest {
        min_nodes: min,
        max_nodes: max,
        devices: DeviceRequest { total: Wanted::from([(gpu(None), n)]), ..DeviceRequest::default() },
        ..ResourceRequest::default()
    };
    let placed = |r: &ResourceRequest| {
        let found = place(&need(r), all.iter(), Against::Free)?;
        let counts = found.shares.iter().map(|share| share.gres.len());
        Some(found.nodes.iter().map(|n| n.0.clone()).zip(counts).collect::<Vec<_>>())
    };
    let on = |list: &[(&str, usize)]| Some(list.iter().map(|(n, c)| (n.to_string(), *c)).collect::<Vec<_>>());
    assert_eq!(placed(&total(16, 2, Some(2))), on(&[("n0", 8), ("n2", 8)]));
    assert_eq!(placed(&total(3, 1, None)), on(&[("n1", 3)]), "the node with the fewest");
    assert_eq!(placed(&total(8, 1, None)), on(&[("n0", 8)]));
    assert_eq!(placed(&total(12, 1, None)), on(&[("n0", 6), ("n2", 6)]), "as many on each");
    assert_eq!(placed(&total(20, 1, None)), on(&[("n0", 8), ("n1", 4), ("n2", 8)]));
    assert_eq!(placed(&total(3, 3, Some(3))), on(&[("n0", 1), ("n1", 1), ("n2", 1)]));
    assert_eq!(placed(&total(2, 3, Some(3))), None, "one at least on each");
    assert_eq!(placed(&total(21, 1, None)), None);
}

/// Two sockets of four cores with a CPU each, and two GPUs near each of them.
fn two_sockets() -> Node {
    let mut all = node(0, &[1; 8], 8000, 4);
    for (core, at) in all.row.hardware.cores.iter_mut().zip(0u32..) {
        core.socket = at / 4;
    }
    for device in &mut all.row.hardware.gres {
        device.cpus = if device.index < 2 { vec![0, 1, 2, 3] } else { vec![4, 5, 6, 7] };
    }
    all.refit(&CoreConfig::new(&Config::default()).unwrap());
    all
}

/// Another job has these CPUs and GPUs of the node.
fn hold(node: &mut Node, job: u32, cpus: &[u32], gpus: &[u32]) {
    let gres = node.hardware.gres.iter().filter(|d| gpus.contains(&d.index)).cloned().collect();
    let share = NodeShare { cpus: cpus.to_vec(), memory: 0, gres };
    node.take((JobId(job), Attempt(0)), &Arc::new(share)).unwrap();
}

/// The CPUs and GPUs that a request gets on the node.
fn got(node: &Node, request: &ResourceRequest, against: Against) -> Option<(Vec<u32>, Vec<u32>)> {
    let found = place(&need(request), std::iter::once(node), against)?;
    let share = found.shares.first()?;
    Some((share.cpus.clone(), share.gres.iter().map(|d| d.index).collect()))
}

fn free(node: &Node, request: &ResourceRequest) -> Option<(Vec<u32>, Vec<u32>)> {
    got(node, request, Against::Free)
}

/// So many GPUs with so many tasks of a CPU each, and no memory to speak of.
fn near_gpus(gpus: u64, tasks: u32, nearness: Nearness) -> ResourceRequest {
    let total = Wanted::from([(gpu(None), gpus)]);
    ResourceRequest {
        tasks: Some(tasks),
        cpus_per_task: Some(1),
        memory: MemoryRequest::PerNode(1),
        devices: DeviceRequest { total, nearness, ..DeviceRequest::default() },
        ..ResourceRequest::default()
    }
}

#[test]
fn cores_beside_the_gpus_are_preferred_and_gpus_beside_free_cores() {
    let preferred = |gpus, tasks| near_gpus(gpus, tasks, Nearness::Preferred);
    let ignored = |gpus, tasks| near_gpus(gpus, tasks, Nearness::Ignored);
    let empty = two_sockets();
    assert_eq!(free(&empty, &preferred(1, 2)), Some((vec![0, 1], vec![0])));
    assert_eq!(free(&empty, &preferred(2, 4)), Some((vec![0, 1, 2, 3], vec![0, 1])));
    // To each GPU its part of the cores: two of the third's own socket.
    assert_eq!(free(&empty, &preferred(3, 6)), Some((vec![0, 1, 2, 3, 4, 5], vec![0, 1, 2])));
    assert_eq!(free(&empty, &preferred(4, 4)), Some((vec![0, 1, 4, 5], vec![0, 1, 2, 3])));
    // The GPUs of the first socket are in use, its cores are not.
    let mut node = two_sockets();
    hold(&mut node, 1, &[7], &[0, 1]);
    assert_eq!(free(&node, &preferred(1, 2)), Some((vec![4, 5], vec![2])));
    assert_eq!(free(&node, &ignored(1, 2)), Some((vec![0, 1], vec![2])), "the lowest that are free");
    assert_eq!(free(&node, &preferred(1, 5)), Some((vec![0, 1, 4, 5, 6], vec![2])), "and then others");
    // Its cores are in use, its GPUs are not.
    let mut node = two_sockets();
    hold(&mut node, 1, &[0, 1, 2, 3], &[]);
    assert_eq!(free(&node, &preferred(1, 2)), Some((vec![4, 5], vec![2])));
    assert_eq!(free(&node, &ignored(1, 2)), Some((vec![4, 5], vec![0])));
    // Without a word about CPUs a GPU brings its quarter of the cores, near it.
    let plain = |gpus| ResourceRequest { tasks: None, cpus_per_task: None, ..preferred(gpus, 1) };
    assert_eq!(free(&empty, &plain(1)), Some((vec![0, 1], vec![0])));
    assert_eq!(free(&node, &plain(2)), Some((vec![4, 5, 6, 7], vec![2, 3])));
}

#[test]
fn enforced_nearness_waits_where_the_default_takes_far_ones() {
    let of = |nearness| near_gpus(1, 1, nearness);
    let mut node = two_sockets();
    // Of the first socket all cores are in use, and of the second both GPUs.
    hold(&mut node, 1, &[0, 1, 2, 3], &[]);
    hold(&mut node, 2, &[4], &[2, 3]);
    assert_eq!(free(&node, &of(Nearness::Preferred)), Some((vec![5], vec![0])));
    assert_eq!(free(&node, &of(Nearness::Ignored)), Some((vec![5], vec![0])));
    assert_eq!(free(&node, &of(Nearness::Enforced)), None);
    // It waits, and is not refused.
    assert_eq!(got(&node, &of(Nearness::Enforced), Against::Empty), Some((vec![0], vec![0])));
    assert!(node.release((JobId(2), Attempt(0))));
    assert_eq!(free(&node, &of(Nearness::Enforced)), Some((vec![4], vec![2])));
    assert!(node.release((JobId(1), Attempt(0))));
    hold(&mut node, 3, &[0, 1, 2], &[]);
    let four = |nearness| near_gpus(1, 4, nearness);
    assert_eq!(free(&node, &four(Nearness::Enforced)), Some((vec![4, 5, 6, 7], vec![2])));
    hold(&mut node, 4, &[4], &[]);
    assert_eq!(free(&node, &four(Nearness::Enforced)), None, "no socket has four free cores");
    assert_eq!(free(&node, &four(Nearness::Preferred)), Some((vec![3, 5, 6, 7], vec![0])));
    // More CPUs than are near one GPU can never be had with one.
    let five = near_gpus(1, 5, Nearness::Enforced);
    assert_eq!(got(&node, &five, Against::Empty), None);
    assert!(!explain_never(&need(&five), "main", &[&node]).is_empty());
}

#[test]
fn enforced_nearness_takes_gpus_of_both_sockets_where_one_has_too_few_cores() {
    let node = two_sockets();
    let all: Vec<u32> = (0..8).collect();
    assert_eq!(free(&node, &near_gpus(2, 8, Nearness::Enforced)), Some((all.clone(), vec![0, 2])));
    assert_eq!(free(&node, &near_gpus(2, 8, Nearness::Preferred)), Some((all.clone(), vec![0, 1])));
    assert_eq!(free(&node, &near_gpus(2, 4, Nearness::Enforced)), Some((vec![0, 1, 2, 3], vec![0, 1])));
    assert_eq!(free(&node, &near_gpus(4, 8, Nearness::Enforced)), Some((all.clone(), vec![0, 1, 2, 3])));
    // Linked pairs are broken up for it, too.
    let mut node = two_sockets();
    for device in &mut node.row.hardware.gres {
        device.links = vec![device.index ^ 1];
    }
    node.refit(&CoreConfig::new(&Config::default()).unwrap());
    assert_eq!(free(&node, &near_gpus(2, 8, Nearness::Enforced)), Some((all.clone(), vec![0, 2])));
    assert_eq!(free(&node, &near_gpus(2, 2, Nearness::Enforced)), Some((vec![0, 1], vec![0, 1])));
    // A whole node has what is near and what is not.
    let mut node = two_sockets();
    node.row.hardware.gres.truncate(2);
    node.refit(&CoreConfig::new(&Config::default()).unwrap());
    let whole = ResourceRequest { exclusive: true, ..near_gpus(1, 1, Nearness::Enforced) };
    assert_eq!(free(&node, &whole), Some((all, vec![0, 1])));
}

#[test]
fn gpus_per_socket_are_those_of_each_socket_of_which_there_are_cores() {
    let of = |tasks: u32| ResourceRequest {
        tasks: Some(tasks),
        cpus_per_task: Some(1),
        memory: MemoryRequest::PerNode(1),
        devices: DeviceRequest { per_socket: Wanted::from([(gpu(None), 1)]), ..DeviceRequest::default() },
        ..ResourceRequest::default()
    };
    let (empty, all) = (two_sockets(), (0..8).collect::<Vec<u32>>());
    assert_eq!(free(&empty, &of(1)), Some((vec![0], vec![0])));
    assert_eq!(free(&empty, &of(4)), Some((vec![0, 1, 2, 3], vec![0])), "one socket has them all");
    assert_eq!(free(&empty, &of(5)), Some((vec![0, 1, 2, 3, 4], vec![0, 2])), "one of each of two");
    assert_eq!(free(&empty, &of(8)), Some((all.clone(), vec![0, 2])));
    let mut two = of(5);
    two.devices.per_socket = Wanted::from([(gpu(None), 2)]);
    assert_eq!(free(&empty, &two), Some((vec![0, 1, 2, 3, 4], vec![0, 1, 2, 3])));
    two.devices.per_socket = Wanted::from([(gpu(None), 3)]);
    assert_eq!(got(&empty, &two, Against::Empty), None, "a socket has two");
    // With others that are the node's.
    let mut typed = of(1);
    typed.gres = Wanted::from([(gpu(Some("b")), 1)]);
    assert_eq!(free(&empty, &typed), Some((vec![0], vec![0, 1])));
    // What they bring of CPUs counts: their share of the cores, or what was said.
    let share = ResourceRequest { cpus_per_task: None, ..of(1) };
    assert_eq!(free(&empty, &share), Some((vec![0, 1], vec![0])));
    let mut each = share.clone();
    each.devices.cpus_per_gpu = Some(3);
    assert_eq!(free(&empty, &each), Some((vec![0, 1, 2], vec![0])));
    each.devices.cpus_per_gpu = Some(5);
    assert_eq!(free(&empty, &each), None, "five for each of two are ten");
    let whole = ResourceRequest { exclusive: true, ..of(1) };
    assert_eq!(free(&empty, &whole), Some((all, vec![0, 1, 2, 3])));
    // The first socket has cores and no GPU, then it has too few cores.
    let mut node = two_sockets();
    hold(&mut node, 1, &[3], &[0, 1]);
    assert_eq!(free(&node, &of(1)), Some((vec![4], vec![2])));
    assert_eq!(free(&node, &of(5)), None, "it waits for those of the other socket");
    assert_eq!(got(&node, &of(5), Against::Empty), Some((vec![0, 1, 2, 3, 4], vec![0, 2])));
    let mut node = two_sockets();
    hold(&mut node, 1, &[0, 1, 2], &[]);
    assert_eq!(free(&node, &of(2)), Some((vec![4, 5], vec![2])), "one socket and one GPU do");
    assert_eq!(free(&node, &of(5)), Some((vec![3, 4, 5, 6, 7], vec![0, 2])));
}

#[test]
fn memory_for_each_gpu_is_that_of_all_that_are_given() {
    let node = two_sockets();
    let memory = |request: &ResourceRequest| {
        place(&need(request), std::iter::once(&node), Against::Free).map(|found| found.shares[0].memory)
    };
    let of = |gpus: u64, mib: u64| ResourceRequest {
        memory: MemoryRequest::PerGpu(mib),
        ..near_gpus(gpus, 1, Nearness::Preferred)
    };
    assert_eq!(memory(&of(1, 1000)), Some(1000));
    assert_eq!(memory(&of(3, 1000)), Some(3000));
    assert_eq!(memory(&of(4, 2000)), Some(8000));
    assert_eq!(memory(&of(3, 3000)), None, "9000 of 8000");
    let mut sockets = of(1, 1500);
    sockets.tasks = Some(5);
    sockets.devices =
        DeviceRequest { per_socket: Wanted::from([(gpu(None), 1)]), ..DeviceRequest::default() };
    assert_eq!(memory(&sockets), Some(3000), "one of each of two sockets");
    // Without a word a GPU brings its quarter.
    let plain = ResourceRequest { memory: MemoryRequest::Default, ..of(1, 0) };
    assert_eq!(memory(&plain), Some(2000));
}
