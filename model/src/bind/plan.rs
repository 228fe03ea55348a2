//! What each task on a node is bound to: from the node's cores, the step's CPUs there and the options. Pure.

use super::{CpuBind, CpuHow, MemBind, MemHow, Runs};
use crate::hardware::Core;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// How tasks are laid out over the sockets of a node: the second word of `--distribution`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sockets {
    /// One task here and the next on the next socket, each with all its CPUs on one where that is possible.
    #[default]
    Cyclic,
    /// A socket is filled before the next.
    Block,
    /// One CPU here and the next on the next socket, within a task, too.
    Fcyclic,
}

impl std::fmt::Display for Sockets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Sockets::Cyclic => "cyclic",
            Sockets::Block => "block",
            Sockets::Fcyclic => "fcyclic",
        })
    }
}

/// What a step has on a node.
#[derive(Clone, Copy, Debug)]
pub struct Here<'a> {
    /// The node's cores.
    pub cores: &'a [Core],
    /// The step's CPUs there, by the kernel's numbers.
    pub cpus: &'a [u32],
    /// NUMA nodes that have memory.
    pub memory: &'a [u32],
    /// Tasks of the step there.
    pub tasks: u32,
    /// CPUs for each.
    pub per_task: u32,
    /// Their layout over sockets.
    pub sockets: Sockets,
}

/// A task that cannot be bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CannotBind {
    /// Its number among the node's tasks, from 0.
    pub local: u32,
    /// Why, and what to do.
    pub why: String,
}

/// From where a task has its memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryNodes {
    /// NUMA nodes, ascending.
    pub nodes: Vec<u32>,
    /// The first of them is tried first, and others when it is full. Otherwise there is no memory but theirs.
    pub prefer: bool,
}

/// The CPUs of each task, ascending. Never one that the step does not have.
pub fn cpus(bind: &CpuBind, here: Here<'_>) -> Result<Vec<Vec<u32>>, CannotBind> {
    let all = sorted(here.cpus.iter().copied());
    let in_nodes = |nodes: &[u32]| {
        let of = here.cores.iter().filter(|core| nodes.contains(&core.numa));
        sorted(of.flat_map(|core| core.cpus.iter().copied()).filter(|cpu| all.binary_search(cpu).is_ok()))
    };
    let each = |task: fn(&Here<'_>, &[u32], u32) -> Vec<u32>| {
        (0..here.tasks).map(|local| task(&here, &all, local)).collect::<Vec<_>>()
    };
    match &bind.how {
        CpuHow::None | CpuHow::Boards => Ok(each(|_, all, _| all.to_vec())),
        CpuHow::Rank => Ok(each(|here, all, local| {
            let (each, from) =
                (here.per_task.max(1) as usize, local as usize * here.per_task.max(1) as usize);
            sorted((from..from + each).take(all.len()).filter_map(|n| all.get(n % all.len()).copied()))
        })),
        CpuHow::Map(list) => listed(here.tasks, list, |cpu| has(&all, std::slice::from_ref(cpu))),
        CpuHow::Mask(list) => listed(here.tasks, list, |cpus| has(&all, cpus)),
        CpuHow::MapLdom(list) => listed(here.tasks, list, |node| {
            domain(&here, &all, std::slice::from_ref(node)).map(|()| in_nodes(&[*node]))
        }),
        CpuHow::MaskLdom(list) => {
            listed(here.tasks, list, |nodes| domain(&here, &all, nodes).map(|()| in_nodes(nodes)))
        }
        CpuHow::RankLdom => {
            let nodes = domains(&here, &all);
            let nth = |local: u32| nodes.get(local as usize % nodes.len().max(1)).copied();
            Ok((0..here.tasks)
                .map(|local| nth(local).map_or(all.clone(), |node| in_nodes(&[node])))
                .collect())
        }
        CpuHow::Threads => Ok(spread(&here, &all)),
        CpuHow::Cores => Ok(widen(&here, &all, |a, b| std::ptr::eq(a, b))),
        CpuHow::Sockets => Ok(widen(&here, &all, |a, b| a.socket == b.socket)),
        CpuHow::Ldoms => Ok(widen(&here, &all, |a, b| a.numa == b.numa)),
    }
}

/// From where each task has its memory; `None` of a task whose memory is not bound. `bound`: the CPUs of each.
pub fn memory(
    bind: &MemBind,
    here: Here<'_>,
    bound: &[Vec<u32>],
) -> Result<Vec<Option<MemoryNodes>>, CannotBind> {
    let nodes = match &bind.how {
        MemHow::None => return Ok(vec![None; here.tasks as usize]),
        MemHow::Local => bound.iter().map(|cpus| domains(&here, cpus)).collect(),
        MemHow::Rank => {
            let nth = |local: u32| here.memory.get(local as usize % here.memory.len().max(1)).copied();
            (0..here.tasks).map(|local| nth(local).into_iter().collect()).collect()
        }
        MemHow::Map(list) => listed(here.tasks, list, |node| has_memory(&here, std::slice::from_ref(node)))?,
        MemHow::Mask(list) => listed(here.tasks, list, |nodes| has_memory(&here, nodes))?,
    };
    // Where nothing is known of NUMA there is nothing to choose from.
    let policy = |nodes: Vec<u32>| (!nodes.is_empty()).then_some(MemoryNodes { nodes, prefer: bind.prefer });
    Ok(nodes.into_iter().map(policy).collect())
}

fn sorted(numbers: impl Iterator<Item = u32>) -> Vec<u32> {
    numbers.collect::<BTreeSet<u32>>().into_iter().collect()
}

/// Numbers in the kernel's way of writing: `0-3,8`.
fn ranges(numbers: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for n in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*n) => *last = *n,
            _ => runs.push((*n, *n)),
        }
    }
    let text = |(first, last): &(u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    runs.iter().map(text).collect::<Vec<_>>().join(",")
}

fn listed<T, R>(
    tasks: u32,
    list: &Runs<T>,
    of: impl Fn(&T) -> Result<R, String>,
) -> Result<Vec<R>, CannotBind> {
    let task = |local| {
        let element = list.at(local).ok_or_else(|| "the list is empty".to_string());
        element.and_then(&of).map_err(|why| CannotBind { local, why })
    };
    (0..tasks).map(task).collect()
}

/// These CPUs, if the step has all of them.
fn has(all: &[u32], cpus: &[u32]) -> Result<Vec<u32>, String> {
    match cpus.iter().find(|cpu| all.binary_search(cpu).is_err()) {
        None => Ok(cpus.to_vec()),
        Some(cpu) => Err(format!(
            "CPU {cpu} is not the step's, which has CPUs {} there: name some of those, or ask for all with --exclusive",
            ranges(all)
        )),
    }
}

/// NUMA nodes of these CPUs.
fn domains(here: &Here<'_>, cpus: &[u32]) -> Vec<u32> {
    let of = here.cores.iter().filter(|core| core.cpus.iter().any(|cpu| cpus.contains(cpu)));
    sorted(of.map(|core| core.numa))
}

/// Whether the step has CPUs in each of these NUMA nodes.
fn domain(here: &Here<'_>, all: &[u32], nodes: &[u32]) -> Result<(), String> {
    let own = domains(here, all);
    match nodes.iter().find(|node| !own.contains(node)) {
        None => Ok(()),
        Some(node) => Err(format!(
            "the step has no CPU in NUMA node {node}; its CPUs there are in {}: name some of those, or ask for all \
             with --exclusive",
            ranges(&own)
        )),
    }
}

fn has_memory(here: &Here<'_>, nodes: &[u32]) -> Result<Vec<u32>, String> {
    match nodes.iter().find(|node| !here.memory.contains(node)) {
        None => Ok(nodes.to_vec()),
        Some(node) => Err(format!(
            "NUMA node {node} has no memory there; {} have some: name one of those",
            ranges(here.memory)
        )),
    }
}

/// Gives each task the CPUs of all cores that are alike to one in which it has a thread.
fn widen(here: &Here<'_>, all: &[u32], alike: impl Fn(&Core, &Core) -> bool) -> Vec<Vec<u32>> {
    let wide = |cpus: Vec<u32>| {
        let touched: Vec<&Core> =
            here.cores.iter().filter(|core| core.cpus.iter().any(|cpu| cpus.contains(cpu))).collect();
        let wide = here.cores.iter().filter(|core| touched.iter().any(|touched| alike(core, touched)));
        let wide =
            sorted(wide.flat_map(|core| core.cpus.iter().copied()).filter(|c| all.binary_search(c).is_ok()));
        if wide.is_empty() { cpus } else { wide }
    };
    spread(here, all).into_iter().map(wide).collect()
}

/// What is still to be given of one core.
struct Left {
    cpus: Vec<u32>,
    fresh: bool,
}

/// Gives each task as many of the step's CPUs as it asked for. Where there are too few, tasks begin to share.
fn spread(here: &Here<'_>, all: &[u32]) -> Vec<Vec<u32>> {
    let numbers: BTreeSet<u32> = here.cores.iter().map(|core| core.socket).collect();
    let anew = || -> Vec<Vec<Left>> {
        let own = |core: &Core| Left {
            cpus: core.cpus.iter().copied().filter(|cpu| all.binary_search(cpu).is_ok()).collect(),
            fresh: true,
        };
        let socket = |n: &u32| {
            let cores = here.cores.iter().filter(|core| core.socket == *n).map(own);
            cores.filter(|left| !left.cpus.is_empty()).collect::<Vec<_>>()
        };
        numbers.iter().map(socket).filter(|socket| !socket.is_empty()).collect()
    };
    let mut left = anew();
    let free = |left: &[Vec<Left>]| left.iter().flatten().map(|core| core.cpus.len()).sum::<usize>();
    let total = free(&left);
    let want = (here.per_task.max(1) as usize).min(total);
    let mut next = 0;
    let mut given = Vec::with_capacity(here.tasks as usize);
    for _ in 0..here.tasks {
        if want == 0 {
            // Nothing is known of these CPUs: they are what there is.
            given.push(all.to_vec());
            continue;
        }
        if free(&left) < want {
            left = anew();
        }
        let mut cpus = Vec::with_capacity(want);
        match here.sockets {
            Sockets::Block => left.iter_mut().for_each(|socket| take(socket, want, false, &mut cpus)),
            Sockets::Cyclic => {
                let n = left.len();
                let whole = (0..n).map(|i| (next + i) % n).find(|i| free(&left[*i..=*i]) >= want);
                let first = whole.unwrap_or(next % n);
                (0..n).for_each(|i| take(&mut left[(first + i) % n], want, true, &mut cpus));
                next = first + 1;
            }
            Sockets::Fcyclic => {
                while cpus.len() < want {
                    let so_far = cpus.len();
                    let n = left.len();
                    take(&mut left[next % n], so_far + 1, true, &mut cpus);
                    next += 1;
                }
            }
        }
        cpus.sort_unstable();
        given.push(cpus);
    }
    given
}

/// Takes CPUs of a socket until there are `want`: cores in order, those of which nothing was taken first where asked.
fn take(socket: &mut [Left], want: usize, fresh_first: bool, cpus: &mut Vec<u32>) {
    for only_fresh in [true, false] {
        for core in socket.iter_mut().filter(|core| core.fresh || !only_fresh || !fresh_first) {
            let n = core.cpus.len().min(want.saturating_sub(cpus.len()));
            if n > 0 {
                cpus.extend(core.cpus.drain(..n));
                core.fresh = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Two sockets of two cores of two threads, a NUMA node each; numbered as Linux does.
    fn machine() -> Vec<Core> {
        let core = |socket, a, b| Core { socket, numa: socket, cpus: vec![a, b] };
        vec![core(0, 0, 4), core(0, 1, 5), core(1, 2, 6), core(1, 3, 7)]
    }

    const ALL: &[u32] = &[0, 1, 2, 3, 4, 5, 6, 7];

    fn bound(
        text: &str,
        cpus: &[u32],
        tasks: u32,
        per_task: u32,
        sockets: Sockets,
    ) -> Result<String, CannotBind> {
        let cores = machine();
        let here = Here { cores: &cores, cpus, memory: &[0, 1], tasks, per_task, sockets };
        let masks = super::cpus(&text.parse().unwrap(), here)?;
        Ok(masks.iter().map(|cpus| ranges(cpus)).collect::<Vec<_>>().join(" "))
    }

    /// Each row was worked out by hand from Slurm's description of the options.
    #[test]
    fn tasks_are_bound_as_worked_out_by_hand() {
        use Sockets::{Block, Cyclic, Fcyclic};
        for (text, cpus, tasks, per_task, sockets, expected) in [
            ("none", ALL, 2, 1, Cyclic, "0-7 0-7"),
            ("boards", ALL, 1, 1, Cyclic, "0-7"),
            ("rank", ALL, 3, 1, Cyclic, "0 1 2"),
            ("rank", ALL, 2, 2, Cyclic, "0-1 2-3"),
            ("rank", &[2, 6], 3, 1, Cyclic, "2 6 2"),
            ("map_cpu:0,2", ALL, 3, 1, Cyclic, "0 2 0"),
            ("map_cpu:0*2,7", ALL, 4, 1, Cyclic, "0 0 7 0"),
            ("mask_cpu:0x11,0x22", ALL, 3, 1, Cyclic, "0,4 1,5 0,4"),
            ("threads", ALL, 4, 1, Cyclic, "0 2 1 3"),
            ("threads", ALL, 8, 1, Cyclic, "0 2 1 3 4 6 5 7"),
            ("threads", ALL, 4, 1, Block, "0 4 1 5"),
            ("threads", ALL, 2, 2, Cyclic, "0,4 2,6"),
            ("threads", ALL, 2, 2, Fcyclic, "0,2 1,3"),
            ("threads", ALL, 2, 3, Cyclic, "0-1,4 2-3,6"),
            ("cores", ALL, 4, 1, Cyclic, "0,4 2,6 1,5 3,7"),
            ("cores", ALL, 4, 2, Block, "0,4 1,5 2,6 3,7"),
            ("cores", ALL, 2, 4, Cyclic, "0-1,4-5 2-3,6-7"),
            ("cores", ALL, 2, 4, Fcyclic, "0-7 0-7"),
            ("cores", ALL, 5, 2, Block, "0,4 1,5 2,6 3,7 0,4"),
            // Half a socket and half of the other: nothing else may be used.
            ("cores", &[1, 5, 2], 2, 1, Cyclic, "1,5 2"),
            ("sockets", ALL, 2, 1, Cyclic, "0-1,4-5 2-3,6-7"),
            ("sockets", ALL, 2, 1, Block, "0-1,4-5 0-1,4-5"),
            ("sockets", &[0, 4, 3, 7], 2, 2, Cyclic, "0,4 3,7"),
            ("sockets", ALL, 1, 6, Cyclic, "0-7"),
            ("ldoms", ALL, 3, 1, Cyclic, "0-1,4-5 2-3,6-7 0-1,4-5"),
            ("rank_ldom", ALL, 3, 1, Cyclic, "0-1,4-5 2-3,6-7 0-1,4-5"),
            ("rank_ldom", &[2, 6], 2, 1, Cyclic, "2,6 2,6"),
            ("map_ldom:1,0", ALL, 2, 1, Cyclic, "2-3,6-7 0-1,4-5"),
            ("mask_ldom:0x3,0x2", &[0, 4, 3, 7], 2, 1, Cyclic, "0,3-4,7 3,7"),
        ] {
            assert_eq!(
                bound(text, cpus, tasks, per_task, sockets).as_deref(),
                Ok(expected),
                "{text} {tasks}×{per_task} {sockets:?}"
            );
        }
    }

    #[test]
    fn a_task_that_cannot_be_bound_is_named_with_what_there_is() {
        for (text, local, part) in [
            ("map_cpu:0,9", 1, "CPU 9 is not the step's, which has CPUs 0,4 there"),
            ("mask_cpu:0x1,0x10,0x3", 2, "CPU 1 is not the step's"),
            ("map_ldom:0,1", 1, "no CPU in NUMA node 1; its CPUs there are in 0"),
            ("mask_ldom:0x3", 0, "no CPU in NUMA node 1"),
        ] {
            let error = bound(text, &[0, 4], 3, 1, Sockets::Cyclic).unwrap_err();
            assert_eq!(error.local, local, "{text}");
            assert!(error.why.contains(part), "{text}: {}", error.why);
        }
    }

    #[test]
    fn memory_is_where_it_was_asked_for() {
        let cores = machine();
        let here = Here {
            cores: &cores,
            cpus: ALL,
            memory: &[0, 1],
            tasks: 3,
            per_task: 1,
            sockets: Sockets::Cyclic,
        };
        let of = |text: &str| {
            let masks = cpus(&"sockets".parse().unwrap(), here).unwrap();
            memory(&text.parse().unwrap(), here, &masks).map(|all| {
                all.into_iter().map(|m| m.map(|m| (ranges(&m.nodes), m.prefer))).collect::<Vec<_>>()
            })
        };
        let on = |nodes: [&str; 3], prefer| nodes.map(|n| Some((n.to_string(), prefer))).to_vec();
        assert_eq!(of("none").unwrap(), [None, None, None]);
        assert_eq!(of("local").unwrap(), on(["0", "1", "0"], false));
        assert_eq!(of("prefer,rank").unwrap(), on(["0", "1", "0"], true));
        assert_eq!(of("map_mem:1,0").unwrap(), on(["1", "0", "1"], false));
        assert_eq!(of("mask_mem:0x3,0x1*2").unwrap(), on(["0-1", "0", "0"], false));
        let error = of("map_mem:0,4").unwrap_err();
        assert!(error.local == 1 && error.why.contains("NUMA node 4 has no memory there; 0-1"), "{error:?}");
    }

    proptest! {
        /// Whatever is asked for: every task has CPUs, and none that the step does not have.
        #[test]
        fn nothing_is_bound_to_what_is_not_the_steps(
            own in proptest::sample::subsequence(ALL.to_vec(), 1..=8),
            how in proptest::sample::select(vec![
                "none", "rank", "threads", "cores", "sockets", "ldoms", "rank_ldom", "map_cpu:0,3", "mask_cpu:f0",
                "map_ldom:0,1", "mask_ldom:2",
            ]),
            tasks in 1..20_u32,
            per_task in 0..10_u32,
            order in proptest::sample::select(vec![Sockets::Block, Sockets::Cyclic, Sockets::Fcyclic]),
        ) {
            let cores = machine();
            let here = Here { cores: &cores, cpus: &own, memory: &[0, 1], tasks, per_task, sockets: order };
            if let Ok(masks) = cpus(&how.parse().unwrap(), here) {
                prop_assert_eq!(masks.len(), tasks as usize);
                for cpus in masks {
                    prop_assert!(!cpus.is_empty() && cpus.iter().all(|cpu| own.contains(cpu)), "{:?}", cpus);
                }
            }
        }
    }
}
