//! Whatever is asked for and whatever is taken already: a placement is within what is free and what was asked.

use super::*;
use crate::config::CoreConfig;
use crate::rows::{NodeRow, ROW_VERSION};
use berth_model::config::Config;
use berth_model::hardware::{Core, Hardware};
use berth_model::ids::{Attempt, JobId};
use berth_model::state::NodeCondition;
use berth_model::time::Time;
use proptest::prelude::*;
use std::sync::Arc;

fn node(i: usize, threads: &[u32], memory: u64, gpus: u32) -> Node {
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
                    exclusive,
                    node_list: named(with),
                    exclude: named(without),
                    distribution: layout,
                    overcommit,
                    sockets: None,
                    fabric: None,
                }
            },
        )
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
                prop_assert_eq!(share.gres.len() as u64, request.gres.values().sum::<u64>());
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
                Some(_) if allocation.nodes.len() > 1 => (0, room(&need, of(name), Against::Free)),
                _ => (cpus_of(of(name), Against::Free), 0),
            };
            let mut all: Vec<(u64, u32)> = allocation.nodes.iter().map(each).collect();
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
