//! Where tasks are, on the wire. Each node of a step is told of all nodes: of very many that is what a Start is made of, so it is then
//! said by ranges, and put together once for all of them.

use super::{Field, Malformed, required_member};
use crate::pb;
use berth_model::hostlist::{self, MOST_NAMES};
use berth_model::launch::Layout;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Nodes from which on it is said by ranges. Agents of versions that do not know ranges have steps over fewer.
const MANY: usize = 256;
/// Tasks that ranges may stand for.
const MOST_TASKS: u64 = 1 << 24;
/// Layouts that are kept as they go over the wire, for as long as somebody has them.
const KEPT: usize = 8;

/// What was put together last.
static PACKED: Mutex<Vec<(Weak<Layout>, pb::Layout)>> = Mutex::new(Vec::new());

required_member!(Layout => pb::Layout);

impl Field<pb::Layout> for Layout {
    fn put(&self) -> pb::Layout {
        pb::Layout {
            nodes: self.nodes.put(),
            tasks: self.tasks.put(),
            cpus: self.cpus.put(),
            ..Default::default()
        }
    }

    fn get(wire: pb::Layout) -> Result<Self, Malformed> {
        let nodes = if wire.node_ranges.is_empty() {
            Field::get(wire.nodes)?
        } else {
            let names = hostlist::expand(&wire.node_ranges);
            let names = names.map_err(|_| Malformed::new("no list of nodes").within("node_ranges"))?;
            names.into_iter().map(berth_model::NodeName).collect()
        };
        let tasks =
            if wire.task_runs.is_empty() { Field::get(wire.tasks)? } else { tasks_of(&wire.task_runs)? };
        let cpus = if wire.cpu_runs.is_empty() { wire.cpus } else { cpus_of(&wire.cpu_runs)? };
        Ok(Layout { nodes, tasks, cpus })
    }
}

impl Field<Option<pb::Layout>> for Arc<Layout> {
    fn put(&self) -> Option<pb::Layout> {
        if self.nodes.len() < MANY {
            return (**self).put();
        }
        let mut packed = PACKED.lock().unwrap_or_else(PoisonError::into_inner);
        let known = |kept: &&(Weak<Layout>, pb::Layout)| Weak::as_ptr(&kept.0) == Arc::as_ptr(self);
        // What nobody has any more may have left its place to another one.
        packed.retain(|(of, _)| of.strong_count() > 0);
        if let Some((_, wire)) = packed.iter().find(known) {
            return Some(wire.clone());
        }
        let wire = pack(self);
        if packed.len() >= KEPT {
            packed.remove(0);
        }
        packed.push((Arc::downgrade(self), wire.clone()));
        Some(wire)
    }

    fn get(wire: Option<pb::Layout>) -> Result<Self, Malformed> {
        <Layout as Field<Option<pb::Layout>>>::get(wire).map(Arc::new)
    }
}

/// By ranges, where they say the same.
fn pack(layout: &Layout) -> pb::Layout {
    let mut wire: pb::Layout = layout.put();
    let ranges = hostlist::compress(&layout.nodes.iter().map(|node| &node.0).collect::<Vec<_>>());
    let same = |names: Vec<String>| names.iter().eq(layout.nodes.iter().map(|node| &node.0));
    if hostlist::expand(&ranges).is_ok_and(same) {
        (wire.node_ranges, wire.nodes) = (ranges, Vec::new());
    }
    let runs = task_runs(&layout.tasks);
    if tasks_of(&runs).is_ok_and(|tasks| tasks == layout.tasks) {
        (wire.task_runs, wire.tasks) = (runs, Vec::new());
    }
    let runs = layout
        .cpus
        .chunk_by(|a, b| a == b)
        .filter_map(|same| Some(pb::CpuRun { nodes: u32::try_from(same.len()).ok()?, cpus: *same.first()? }));
    let runs: Vec<pb::CpuRun> = runs.collect();
    if cpus_of(&runs).is_ok_and(|cpus| cpus == layout.cpus) {
        (wire.cpu_runs, wire.cpus) = (runs, Vec::new());
    }
    wire
}

/// Nodes that have equally many tasks, in equal distances, are one run. What fits no run is seen when they are taken apart.
fn task_runs(tasks: &[Vec<u32>]) -> Vec<pb::TaskRun> {
    let mut runs: Vec<pb::TaskRun> = Vec::new();
    for own in tasks {
        let count = u32::try_from(own.len()).unwrap_or(u32::MAX);
        let first = own.first().copied().unwrap_or(0);
        let task_step = own.get(1).map_or(0, |second| second.wrapping_sub(first));
        if let Some(run) = runs.last_mut().filter(|run| run.count == count && run.task_step == task_step) {
            let step = first.wrapping_sub(run.first);
            if run.nodes == 1 {
                run.node_step = step;
            }
            if step == run.node_step.wrapping_mul(run.nodes) {
                run.nodes += 1;
                continue;
            }
            if run.nodes == 1 {
                run.node_step = 0;
            }
        }
        runs.push(pb::TaskRun { nodes: 1, count, first, node_step: 0, task_step });
    }
    runs
}

fn tasks_of(runs: &[pb::TaskRun]) -> Result<Vec<Vec<u32>>, Malformed> {
    let nodes: u64 = runs.iter().map(|run| u64::from(run.nodes)).sum();
    let all: u64 = runs
        .iter()
        .map(|run| u64::from(run.nodes).saturating_mul(run.count.into()))
        .fold(0, u64::saturating_add);
    if nodes > MOST_NAMES as u64 || all > MOST_TASKS {
        return Err(Malformed::new("too many tasks").within("task_runs"));
    }
    let mut tasks = Vec::new();
    for run in runs {
        for node in 0..run.nodes {
            let first = run.first.wrapping_add(node.wrapping_mul(run.node_step));
            tasks.push(
                (0..run.count).map(|task| first.wrapping_add(task.wrapping_mul(run.task_step))).collect(),
            );
        }
    }
    Ok(tasks)
}

fn cpus_of(runs: &[pb::CpuRun]) -> Result<Vec<u32>, Malformed> {
    let nodes: u64 = runs.iter().map(|run| u64::from(run.nodes)).sum();
    if nodes > MOST_NAMES as u64 {
        return Err(Malformed::new("too many nodes").within("cpu_runs"));
    }
    Ok(runs.iter().flat_map(|run| (0..run.nodes).map(|_| run.cpus)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::NodeName;
    use berth_model::distribution::Distribution;
    use prost::Message;

    fn layout(count: usize, rule: &Distribution, tasks: impl Fn(usize) -> u32) -> Arc<Layout> {
        let nodes: Vec<NodeName> = (1..=count).map(|n| NodeName(format!("n{n}"))).collect();
        let counts: Vec<u32> = (0..count).map(tasks).collect();
        let cpus = (0..count).map(|n| if n < 10 { 4 } else { 64 }).collect();
        Arc::new(Layout { tasks: rule.number(&nodes, &counts), nodes, cpus })
    }

    fn goes(layout: &Arc<Layout>) -> usize {
        let wire = layout.put();
        let bytes = wire.as_ref().unwrap().encode_to_vec();
        let back =
            <Arc<Layout> as Field<Option<pb::Layout>>>::get(Some(pb::Layout::decode(&*bytes).unwrap()))
                .unwrap();
        assert_eq!(back, *layout);
        // The second one is the first one's.
        assert_eq!(layout.put(), wire);
        bytes.len()
    }

    #[test]
    fn a_layout_of_very_many_nodes_is_said_in_few_words() {
        let block: Distribution = "block".parse().unwrap();
        let cyclic: Distribution = "cyclic".parse().unwrap();
        for rule in [&block, &cyclic] {
            assert!(goes(&layout(10_000, rule, |_| 1)) < 100);
            assert!(goes(&layout(10_000, rule, |n| if n < 3_000 { 2 } else { 1 })) < 200);
        }
        // Whatever is not regular is said as it is.
        let plane: Distribution = "plane=3".parse().unwrap();
        goes(&layout(1_000, &plane, |_| 7));
        goes(&layout(1_000, &block, |n| u32::try_from(n * n % 13).unwrap()));
        let mut odd = (*layout(300, &block, |_| 1)).clone();
        odd.nodes[7] = NodeName("a,b[1-3]".into());
        odd.tasks[8] = vec![5, 3, 900];
        goes(&Arc::new(odd));
        // Agents of earlier versions know no ranges.
        let few = layout(MANY - 1, &block, |_| 1).put().unwrap();
        assert!(few.nodes.len() == MANY - 1 && few.node_ranges.is_empty() && few.task_runs.is_empty());
    }

    #[test]
    fn ranges_that_stand_for_too_much_are_refused() {
        let get = |wire: pb::Layout| <Layout as Field<pb::Layout>>::get(wire);
        let run =
            |nodes, count| pb::TaskRun { nodes, count, first: u32::MAX, node_step: 7, task_step: u32::MAX };
        let tasks = |task_runs| get(pb::Layout { task_runs, ..Default::default() });
        assert!(tasks(vec![run(u32::MAX, 1)]).is_err() && tasks(vec![run(1, u32::MAX)]).is_err());
        assert!(tasks(vec![run(60_000, 60_000); 9]).is_err());
        assert!(tasks(vec![run(3, 3)]).is_ok());
        let cpus =
            |nodes| get(pb::Layout { cpu_runs: vec![pb::CpuRun { nodes, cpus: 1 }], ..Default::default() });
        assert!(cpus(u32::MAX).is_err() && cpus(5).is_ok());
        let names = |ranges: &str| get(pb::Layout { node_ranges: ranges.into(), ..Default::default() });
        assert!(names("n[1-99999999]").is_err() && names("n[1-").is_err() && names("n[1-3]").is_ok());
    }
}
