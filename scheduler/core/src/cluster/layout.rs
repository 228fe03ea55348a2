//! Where the tasks of a step go: which of the job's nodes it has, and how many tasks are on each.

use super::steps::NoRoom;
use berth_model::distribution::Distribution;
use berth_model::hostlist;
use berth_model::ids::NodeName;
use berth_model::spec::StepSpec;
use std::collections::{BTreeMap, BTreeSet};

/// One of the job's nodes, as a step sees it.
pub(super) struct Place<'a> {
    pub(super) name: &'a NodeName,
    /// Tasks of the job's own layout.
    pub(super) job: u32,
    /// Tasks of the step that it takes when no other step runs there.
    pub(super) most: u32,
    /// Tasks of the step that it takes now.
    pub(super) now: u32,
}

/// The step's nodes as indices of `places`, in the step's order, with their tasks; and how these are laid out.
pub(super) fn choose(
    spec: &StepSpec,
    of_job: &Distribution,
    places: &[Place<'_>],
) -> Result<(Vec<(usize, u32)>, Distribution), NoRoom> {
    let asked = Asked::new(spec, of_job, places)?;
    if let Some(found) = asked.place(places, |p| p.now) {
        return Ok((found, asked.layout.clone()));
    }
    match asked.place(places, |p| p.most) {
        Some(_) => Err(NoRoom::Busy),
        None => Err(NoRoom::Never(asked.why_never(spec, places))),
    }
}

/// What a step asks for, against the nodes that it may have.
struct Asked<'a> {
    /// Nodes that it may have, ascending.
    allowed: Vec<usize>,
    /// Those of them that it must have, ascending.
    listed: Vec<usize>,
    tasks: u32,
    /// On so many nodes at least, and at most.
    nodes: usize,
    most: usize,
    layout: &'a Distribution,
    /// On all of its nodes it is the job's whole, laid out like the job.
    as_job: bool,
    /// Nodes take any number of tasks: each gets as many as the others.
    even: bool,
}

impl Asked<'_> {
    fn new<'a>(
        spec: &'a StepSpec,
        of_job: &'a Distribution,
        places: &[Place<'_>],
    ) -> Result<Asked<'a>, NoRoom> {
        let never = |why: String| Err(NoRoom::Never(why));
        let numbers: BTreeMap<&NodeName, usize> = places.iter().map(|p| p.name).zip(0..).collect();
        let own = |name: &NodeName| numbers.get(name).copied();
        let excluded: BTreeSet<&NodeName> = spec.exclude.iter().collect();
        if let Some(name) = spec.node_list.iter().find(|name| own(name).is_none()) {
            let all: Vec<&str> = places.iter().map(|p| p.name.0.as_str()).collect();
            return never(format!("{name} is none of the job's nodes ({})", hostlist::compress(&all)));
        }
        let first = spec.relative.unwrap_or(0) as usize;
        if first >= places.len() {
            return never(format!(
                "--relative={first}: the job has {} nodes, the last of which is {}",
                places.len(),
                places.len().saturating_sub(1)
            ));
        }
        let allowed: Vec<usize> =
            (first..places.len()).filter(|i| !excluded.contains(places[*i].name)).collect();
        if allowed.is_empty() {
            return never("none of the job's nodes is left".to_string());
        }
        let mut listed: Vec<usize> = spec.node_list.iter().filter_map(own).collect();
        listed.sort_unstable();
        listed.dedup();
        let asked = spec.nodes.map(|n| n as usize);
        if let Some(n) = asked.filter(|n| *n > allowed.len() || *n == 0) {
            return never(format!("{n} nodes were asked for, the job has {}", allowed.len()));
        }
        let open = if listed.is_empty() { allowed.len() } else { listed.len() };
        let of = |nodes: usize| u32::try_from(nodes).unwrap_or(u32::MAX);
        let of_the_job: u32 = allowed.iter().map(|i| places[*i].job).sum();
        let tasks = match (spec.tasks, spec.tasks_per_node) {
            (Some(0), _) => return never("0 tasks were asked for; a step has at least 1".to_string()),
            (Some(n), _) => n,
            (None, Some(each)) => each.max(1).saturating_mul(of(asked.unwrap_or(open))),
            (None, None) => match asked {
                Some(n) if n < allowed.len() => of(n),
                None if !listed.is_empty() => of(open),
                _ => of_the_job,
            },
        };
        let nodes = asked.unwrap_or(open).max(listed.len()).min(tasks as usize);
        // More than the fewest are taken where the tasks need them.
        let most =
            spec.max_nodes.map_or(nodes, |n| n as usize).min(allowed.len()).min(tasks as usize).max(nodes);
        let by_list = matches!(spec.distribution, Some(Distribution::Arbitrary(_)));
        if nodes < listed.len() && !by_list {
            return never(format!("{tasks} tasks cannot be on the {} nodes that were named", listed.len()));
        }
        // A list of the job's is one of all its tasks.
        let inherited = match of_job {
            Distribution::Arbitrary(list) if list.len() != tasks as usize => &Distribution::Block,
            other => other,
        };
        let layout = spec.distribution.as_ref().unwrap_or(inherited);
        let as_job = layout == of_job
            && !matches!(layout, Distribution::Arbitrary(_))
            && tasks == places.iter().map(|p| p.job).sum::<u32>()
            && spec.tasks_per_node.is_none();
        let even = spec.overcommit && *layout == Distribution::Block;
        Ok(Asked { allowed, listed, tasks, nodes, most, layout, as_job, even })
    }

    /// Nodes and tasks, where each node takes as many as `room` says.
    fn place(&self, places: &[Place<'_>], room: impl Fn(&Place<'_>) -> u32) -> Option<Vec<(usize, u32)>> {
        let room = |at: usize| places.get(at).map_or(0, &room);
        let nodes = self.fewest(room);
        if self.as_job
            && nodes == places.len()
            && places.iter().enumerate().all(|(at, p)| p.job <= room(at) && p.job > 0)
        {
            return Some(places.iter().map(|p| p.job).enumerate().collect());
        }
        let chosen: Vec<usize> = if let Distribution::Arbitrary(list) = self.layout {
            let allowed: BTreeMap<&NodeName, usize> =
                self.allowed.iter().map(|at| (places[*at].name, *at)).collect();
            let (mut order, mut seen) = (Vec::new(), BTreeSet::new());
            for name in list.get(..self.tasks as usize)? {
                let at = *allowed.get(name)?;
                if seen.insert(at) {
                    order.push(at);
                }
            }
            order
        } else {
            let other = |at: &usize| self.listed.binary_search(at).is_err() && room(*at) > 0;
            let mut others: Vec<usize> = self.allowed.iter().copied().filter(other).collect();
            let with = |others: &[usize]| -> Vec<usize> {
                self.listed.iter().chain(others).copied().take(nodes).collect()
            };
            let mut some = with(&others);
            if some.len() < nodes {
                return None;
            }
            if some.iter().map(|at| u64::from(room(*at))).sum::<u64>() < u64::from(self.tasks) {
                // Those that take more stand in for the first ones.
                others.sort_by_key(|at| std::cmp::Reverse(room(*at)));
                some = with(&others);
            }
            some.sort_unstable();
            some
        };
        let names: Vec<NodeName> = chosen.iter().map(|at| places[*at].name.clone()).collect();
        let even = match u32::try_from(chosen.len()) {
            Ok(nodes @ 1..) if self.even => self.tasks.div_ceil(nodes),
            _ => u32::MAX,
        };
        let most: Vec<u32> = chosen.iter().map(|at| room(*at).min(even)).collect();
        let counts = self.layout.spread(self.tasks, &names, &most)?;
        Some(chosen.into_iter().zip(counts).filter(|(_, tasks)| *tasks > 0).collect())
    }

    /// The fewest nodes, from those that were asked for on, that take all tasks; the most, where none do.
    fn fewest(&self, room: impl Fn(usize) -> u32) -> usize {
        if self.nodes == self.most {
            return self.nodes;
        }
        let (listed, others): (Vec<usize>, Vec<usize>) =
            self.allowed.iter().partition(|at| self.listed.binary_search(at).is_ok());
        let mut taken: u64 = listed.iter().map(|at| u64::from(room(*at))).sum();
        let mut rooms: Vec<u32> = others.into_iter().map(&room).filter(|room| *room > 0).collect();
        rooms.sort_unstable_by_key(|room| std::cmp::Reverse(*room));
        let (mut rooms, mut nodes) = (rooms.into_iter(), listed.len());
        while (nodes < self.nodes || taken < u64::from(self.tasks))
            && let Some(more) = rooms.next()
        {
            taken += u64::from(more);
            nodes += 1;
        }
        nodes.clamp(self.nodes, self.most)
    }

    fn why_never(&self, spec: &StepSpec, places: &[Place<'_>]) -> String {
        if let Distribution::Arbitrary(list) = self.layout {
            let allowed: BTreeSet<&NodeName> = self.allowed.iter().map(|at| places[*at].name).collect();
            if let Some(name) = list.iter().find(|name| !allowed.contains(name)) {
                return format!("{name} is none of the nodes that the step may have");
            }
        }
        let each = spec.cpus_per_task.unwrap_or(1).max(1);
        let room: u64 = self.allowed.iter().map(|at| u64::from(places[*at].most)).sum();
        let nodes = if self.most > self.nodes {
            format!("{}-{}", self.nodes, self.most)
        } else {
            self.nodes.to_string()
        };
        format!(
            "{} tasks of {each} CPUs on {nodes} nodes were asked for, the job's nodes have room for {room}",
            self.tasks
        )
    }
}
