//! After the faults: everything ends, and the records say what really happened.

use crate::world::World;
use berth_model::ids::{JobId, NodeName, StepId, StepKey};
use berth_model::link::EndCause;
use berth_model::state::{ExitStatus, JobState};
use berth_sched_core::{Phase, StepRow, TaskSet, Tasks};
use std::collections::{BTreeMap, BTreeSet};

impl World {
    /// Whether every job has ended and every machine is empty.
    pub(crate) fn all_quiet(&self) -> bool {
        let Some(core) = &self.core else { return false };
        core.snapshot().jobs().all(|j| j.state.is_terminal())
            && self.machines.values().all(|m| m.up && m.jobs.is_empty() && m.spool.is_empty())
    }

    /// What still goes on, for the message.
    pub(crate) fn what_is_left(&self) -> String {
        let jobs: Vec<String> = self
            .core
            .iter()
            .flat_map(|c| c.snapshot().jobs().collect::<Vec<_>>())
            .filter(|j| !j.state.is_terminal())
            .map(|j| format!("{} {} {}", j.id, j.state, j.reason))
            .collect();
        let machines: Vec<String> = self
            .machines
            .values()
            .map(|m| format!("{} up={} jobs={:?} spool={:?}", m.name, m.up, m.jobs.keys(), m.spool.keys()))
            .collect();
        format!("jobs: {}; machines: {}", jobs.join(", "), machines.join("; "))
    }

    /// Compares all records with what ran.
    pub(crate) fn compare_records(&self) -> Result<(), String> {
        match self.store.gaps_in_log() {
            0 => {}
            n => return Err(format!("{n} entries of the audit log are missing between others")),
        }
        let rows = self.store.every_job()?;
        let steps: BTreeMap<StepKey, StepRow> =
            self.store.every_step()?.into_iter().map(|s| (s.key, s)).collect();
        for step in steps.values() {
            self.compare_step(step)?;
        }
        for ((key, node), ran) in &self.ran {
            let lost =
                self.restored.as_ref().is_some_and(|r| key.job < r.before && key.attempt.0 < r.attempts);
            if ran.status.is_some() && !steps.contains_key(key) && !lost {
                return Err(format!("step {key} ran on {node} and has no record"));
            }
        }
        let mut arrays: BTreeMap<JobId, Vec<u32>> = BTreeMap::new();
        for row in &rows {
            match &row.tasks {
                Tasks::None => {}
                Tasks::One(task) => arrays.entry(row.spec_of).or_default().push(*task),
                Tasks::Range(set) => arrays.entry(row.spec_of).or_default().extend(set.iter()),
            }
            if row.is_empty_array() {
                continue;
            }
            let Phase::Ended { run, result } = &row.phase else {
                return Err(format!("job {} has not ended: {:?}", row.job, row.phase));
            };
            let key = StepKey { job: row.job, attempt: row.attempt, step: StepId::Batch };
            if let (Some(batch), Some(_)) = (steps.get(&key), run)
                && result.state == JobState::Completed
                && batch.nodes.iter().any(|p| self.truth(key, &p.node) != Some(ExitStatus::OK))
            {
                return Err(format!("job {} is COMPLETED, and its script was not", row.job));
            }
        }
        for (array, mut tasks) in arrays {
            let spec =
                self.store.spec(array)?.ok_or_else(|| format!("array {array} has no specification"))?;
            let want: BTreeSet<u32> =
                spec.spec.array.iter().flat_map(|a| TaskSet::new(a).iter().collect::<Vec<_>>()).collect();
            tasks.sort_unstable();
            if tasks != want.into_iter().collect::<Vec<_>>() {
                return Err(format!("array {array} has the tasks {tasks:?}"));
            }
        }
        Ok(())
    }

    fn truth(&self, key: StepKey, node: &NodeName) -> Option<ExitStatus> {
        self.ran.get(&(key, node.clone())).and_then(|r| r.status)
    }

    fn compare_step(&self, step: &StepRow) -> Result<(), String> {
        for part in &step.nodes {
            let Some(exit) = &part.exit else { continue };
            let truth = self.truth(step.key, &part.node);
            // Lost with its node, or never started: nobody can know how it ended.
            let unknown = exit.ended_by == Some(EndCause::NodeFailed) || exit.launch_error.is_some();
            let never = exit.ended_by.is_some() && truth.is_none();
            if !unknown && !never && truth != Some(exit.status) {
                return Err(format!(
                    "step {} ended on {} with {truth:?}, the record says {}",
                    step.key, part.node, exit.status
                ));
            }
        }
        Ok(())
    }
}
