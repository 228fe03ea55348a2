//! Full checks of all invariants: too slow for every event, made for the simulator and for tests.

use super::Cluster;
use crate::rows::Phase;
use crate::tasks::Tasks;
use berth_model::devices::{GPU, is_share, shares};
use std::collections::{BTreeMap, BTreeSet};

impl Cluster {
    /// Checks everything that must hold between events.
    ///
    /// # Errors
    /// Says what does not hold.
    pub fn audit(&self) -> Result<(), String> {
        self.audit_nodes()?;
        self.audit_arrays()?;
        self.audit_queue()?;
        self.audit_members()?;
        self.audit_components()?;
        self.audit_sluids()?;
        let active = self.jobs.values().filter(|j| super::ending::is_active(j)).count();
        if active != self.active {
            return Err(format!("{active} jobs are active, {} are counted", self.active));
        }
        Ok(())
    }

    fn audit_sluids(&self) -> Result<(), String> {
        let have = self.jobs.values().filter(|job| job.row.sluid.is_some()).count();
        let entered = self.sluids.records();
        if have != entered.len() {
            return Err(format!("{have} jobs have a SLUID, {} are entered", entered.len()));
        }
        for (sluid, id) in &entered {
            if self.jobs.get(id).and_then(|job| job.row.sluid) != Some(*sluid) {
                return Err(format!("{sluid} is entered as that of job {id}, which does not have it"));
            }
        }
        Ok(())
    }

    fn audit_nodes(&self) -> Result<(), String> {
        let mut expected: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (id, job) in &self.jobs {
            let nodes = match &job.row.phase {
                Phase::Running(run) => run.allocation.nodes.clone(),
                Phase::Ending { left, .. } => left.iter().cloned().collect(),
                Phase::Pending | Phase::Ended { .. } => continue,
            };
            for node in nodes {
                expected.entry(node).or_default().insert((*id, job.row.attempt));
            }
        }
        for (name, node) in &self.nodes {
            let held: BTreeSet<_> = node.held.keys().copied().collect();
            let want = expected.remove(name).unwrap_or_default();
            if held != want {
                return Err(format!("node {name} is held by {held:?}, jobs say {want:?}"));
            }
            let mut cpus = BTreeSet::new();
            let mut devices: BTreeMap<(&str, u32), u32> = BTreeMap::new();
            let mut memory = 0;
            for share in node.held.values() {
                memory += share.memory;
                if let Some(cpu) = share.cpus.iter().find(|c| !cpus.insert(**c)) {
                    return Err(format!("CPU {cpu} of {name} is given twice"));
                }
                for d in &share.gres {
                    // Shares of a device are counted beside who has it whole.
                    let (of, part) =
                        if is_share(&d.name) { (GPU, shares(d)) } else { (d.name.as_str(), u32::MAX) };
                    let given = devices.entry((of, d.index)).or_default();
                    let found = node.hardware.gres.iter().find(|own| own.name == of && own.index == d.index);
                    let most = if is_share(&d.name) { found.map_or(0, shares) } else { u32::MAX };
                    match given.checked_add(part).filter(|sum| *sum <= most) {
                        Some(sum) => *given = sum,
                        None => return Err(format!("{} {} of {name} is given twice", d.name, d.index)),
                    }
                }
            }
            let usable = crate::node::usable_memory(&node.hardware);
            if memory + node.free_memory != usable {
                return Err(format!(
                    "memory of {name}: {memory} given, {} free of {usable}",
                    node.free_memory
                ));
            }
            if cpus.len() as u64 + node.free_cpus != node.hardware.cpus() {
                return Err(format!("CPUs of {name}: {} given, {} free", cpus.len(), node.free_cpus));
            }
        }
        match expected.first_key_value() {
            Some((name, _)) => Err(format!("jobs hold something on the unknown node {name}")),
            None => Ok(()),
        }
    }

    fn audit_arrays(&self) -> Result<(), String> {
        for (id, array) in &self.arrays {
            let mut seen = BTreeSet::new();
            let mut running = 0;
            for member in &array.members {
                let Some(job) = self.jobs.get(member) else {
                    return Err(format!("array {id} has the member {member}, which is gone"));
                };
                let holds = matches!(job.row.phase, Phase::Running(_) | Phase::Ending { .. });
                running += u32::from(holds);
                let own = self.jobs.get(id).map(|own| &own.spec.spec.container);
                if own.is_some_and(|own| *own != job.spec.spec.container) {
                    return Err(format!("member {member} of array {id} has another image than the array"));
                }
                let tasks: Vec<u32> = match &job.row.tasks {
                    Tasks::None => return Err(format!("member {member} of array {id} has no task")),
                    Tasks::One(task) => vec![*task],
                    Tasks::Range(set) => set.iter().collect(),
                };
                if let Some(task) = tasks.iter().find(|t| !seen.insert(**t)) {
                    return Err(format!("task {task} of array {id} is in two records"));
                }
            }
            if running != array.running {
                return Err(format!("array {id}: {running} tasks run, {} are counted", array.running));
            }
            if array.max_running.is_some_and(|max| running > max) {
                return Err(format!("array {id}: {running} tasks run, more than its limit"));
            }
        }
        Ok(())
    }

    fn audit_queue(&self) -> Result<(), String> {
        let queued: BTreeSet<_> = self.queue.values().flatten().map(|k| k.job).collect();
        for (id, job) in &self.jobs {
            let in_queue = queued.contains(id);
            if in_queue && !job.is_pending() {
                return Err(format!("job {id} is in the queue and does not wait"));
            }
            if self.het(*id).is_some() {
                continue; // see audit_components
            }
            let idle = job.row.hold.is_some() || job.row.eligible > self.clock || job.row.is_empty_array();
            let throttled = self.array_is_full(*id);
            if job.is_pending() && !idle && !throttled && !in_queue && !self.aside.contains(id) {
                return Err(format!("job {id} waits and is in no queue"));
            }
        }
        Ok(())
    }
}
