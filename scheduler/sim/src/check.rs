//! After the faults: everything ends, and the records say what really happened.

use crate::world::World;
use berth_model::ids::{JobId, NodeName, StepId, StepKey};
use berth_model::link::EndCause;
use berth_model::state::{ExitStatus, JobState, Reason};
use berth_sched_core::{Phase, StepRow, TaskSet, Tasks};
use std::collections::{BTreeMap, BTreeSet};

impl World {
    /// Whether every job has ended and every machine is empty.
    pub(crate) fn all_quiet(&self) -> bool {
        let Some(core) = &self.controller.core else { return false };
        let snapshot = core.snapshot();
        // The records of jobs are put together only when the machines are empty.
        let well = snapshot.nodes().all(|n| !n.condition.drain && n.condition.reboot.is_none());
        let empty = well
            && self.machines.values().all(|m| {
                m.agent.is_some() && m.connection.is_some() && m.jobs.is_empty() && m.spool.is_empty()
            });
        // What waited for the end of a partition still comes: an old Start begins a run that was given up.
        let nothing_waits = self.now > self.held_until;
        empty && nothing_waits && snapshot.jobs().all(|j| j.state.is_terminal()) && !self.programs_are_out()
    }

    /// When all is over, controller and agents must say the same: nothing is left, and every node takes work.
    pub(crate) fn compare_views(&self) -> Result<(), String> {
        let Some(core) = &self.controller.core else { return Err("the controller is down".into()) };
        core.audit()?;
        for node in core.snapshot().nodes() {
            let c = &node.condition;
            if node.allocated.cpu > 0 || node.allocated.mem > 0 || node.completing {
                return Err(format!("{} holds {:?} when all is over", node.name, node.allocated));
            }
            if c.down || c.drain || c.fail || c.not_responding {
                return Err(format!("{} is not in service when all is over: {c:?}", node.name));
            }
        }
        self.compare_members()?;
        self.compare_settings()?;
        if let Some(node) = self.machines.keys().find(|n| !self.looked.iter().any(|seen| seen.contains(*n))) {
            return Err(format!("{node} did not register once more"));
        }
        if let Some(login) = self.store.logins().next() {
            return Err(format!("the login {login:?} is still there when all is over"));
        }
        self.client.check_known(core, &self.store)
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
        let specs: BTreeMap<JobId, JobId> = rows.iter().map(|row| (row.job, row.spec_of)).collect();
        for step in steps.values() {
            self.compare_step(step, self.has_deadline(specs.get(&step.key.job))?)?;
        }
        for (key, node) in self.truth.ran.keys() {
            let known = steps.get(key).is_some_and(|step| step.nodes.iter().any(|part| part.node == *node));
            if !known && !self.is_forgotten(*key) {
                return Err(format!("step {key} ran on {node} and has no record"));
            }
        }
        for ((key, node), promised) in &self.truth.promised {
            if self.is_forgotten(*key) {
                continue;
            }
            let parts = steps.get(key).into_iter().flat_map(|step| &step.nodes);
            let found = parts.filter(|part| part.node == *node).find_map(|part| part.exit.as_ref());
            if found.map(|exit| exit.status) != Some(*promised) {
                return Err(format!("the exit of {key} on {node} was acknowledged as {promised}: {found:?}"));
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
            let failed = result.state == JobState::Failed && matches!(result.reason, Reason::NonZeroExitCode);
            if let (true, Some(batch)) = (failed, steps.get(&key))
                && !batch.nodes.iter().any(|p| self.truth(key, &p.node) == Some(result.exit))
            {
                return Err(format!(
                    "job {} is FAILED with {}, and its script was not",
                    row.job, result.exit
                ));
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
        self.truth.ran.get(&(key, node.clone())).and_then(|r| r.status)
    }

    /// Whether runs of a job may have had a deadline out of touch: the site's, or their own.
    fn has_deadline(&self, spec: Option<&JobId>) -> Result<bool, String> {
        if self.chaos.config.lost_after_seconds > 0 || !self.chaos.deadlines {
            return Ok(self.chaos.deadlines);
        }
        let spec = spec.map(|id| self.store.spec(*id)).transpose()?.flatten();
        Ok(spec.is_some_and(|row| row.spec.lost_after.is_some()))
    }

    /// Each exit on record is the true one, but for those that nobody can know, and of these there is evidence. `leased`: it may have
    /// had a deadline.
    fn compare_step(&self, step: &StepRow, leased: bool) -> Result<(), String> {
        let run = (step.key.job, step.key.attempt);
        // That it was not alive any more when its deadline was over is looked at when the record is made.
        for part in &step.nodes {
            let Some(exit) = &part.exit else {
                return Err(format!("step {} has no exit on {} when all is over", step.key, part.node));
            };
            let lost = self.truth.is_lost(run, &part.node) || self.is_forgotten(step.key);
            let at = (step.key, part.node.clone());
            let (ran, cleared) = (self.truth.ran.get(&at), self.truth.cleared.contains_key(&at));
            let told = exit.ended_by.is_some() || exit.launch_error.is_some();
            let good = match ran {
                // It never ran: because of an error, or because it was ended before.
                None => told,
                Some(ran) => {
                    let same = ran.status == Some(exit.status) && !ran.untold;
                    same || (ran.untold && exit.launch_error.is_some())
                        || ((lost || leased) && exit.ended_by == Some(EndCause::NodeFailed))
                        || (cleared && told)
                }
            };
            if !good {
                return Err(format!(
                    "step {} ended on {} as {ran:?} (evidence of its loss: {lost}), the record says {exit:?}",
                    step.key, part.node
                ));
            }
        }
        Ok(())
    }
}
