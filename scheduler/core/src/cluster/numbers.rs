//! Numbers of jobs, runs and steps after a restore: above all that a node knows to have been given out, be it over or not.

use super::Cluster;
use super::awaiting::UNASKED;
use crate::job::Job;
use crate::rows::{Phase, Restored};
use berth_model::ids::{Attempt, JobId, NodeName};
use berth_model::link::Highest;
use std::sync::Arc;

/// By how much a node may raise the numbers of runs and steps.
const FAR: u32 = 1_000_000;
/// How far they go on above those of the backup once more where a node does not know its own any more.
const LOST: u32 = 1_000;

impl Cluster {
    /// Numbers go on above what a node reports on its first word, be it of what it has or of what is over there. The highest of the jobs that are
    /// far above those of the backup: of them an administrator has to say whether the node is right. `late`: it comes when it is not waited for any more.
    pub(super) fn pass_over(
        &mut self,
        node: &NodeName,
        jobs: impl Iterator<Item = JobId>,
        highest: Highest,
        late: bool,
    ) -> Option<JobId> {
        let first = self.first_word(node);
        if !first && !late {
            return None;
        }
        let beyond = self.beyond();
        let told = jobs.chain([highest.job]);
        let (near, far): (Vec<JobId>, Vec<JobId>) = told.partition(|id| *id < beyond);
        let id = near.into_iter().max().unwrap_or_default();
        // Where it does not know any more, it may be any of which it would be believed.
        let id = if highest.lost { JobId(beyond.0 - 1) } else { id };
        let far = far.into_iter().max();
        if let Some(job) = far {
            let then = if first {
                "no job starts before an administrator says whether it is right"
            } else {
                "no notice is taken of it, since nothing waited for the node any more"
            };
            let what = format!(
                "node {node} tells of job {job}, more than {UNASKED} above those of the backup: {then}"
            );
            self.note_own(what);
        }
        if !first {
            // What has been given out since is nobody else's any more.
            self.next_above(id);
            return None;
        }
        self.go_on_above(id);
        self.number_above(highest);
        far
    }

    /// Runs and steps are numbered above these, unless nobody can have come so far.
    fn number_above(&mut self, highest: Highest) {
        let above = |bound: u32, told: u32| {
            let told = if highest.lost { told.max(bound.saturating_add(LOST)) } else { told };
            let near = told >= bound && told - bound < FAR;
            if near { told + 1 } else { bound }
        };
        let Restored { attempts, steps, .. } = self.restored;
        let (runs, numbers) = (above(attempts, highest.attempt.0), above(steps, highest.step));
        if (runs, numbers) != (attempts, steps) {
            (self.restored.attempts, self.restored.steps) = (runs, numbers);
            self.out.meta = true;
            self.number_anew();
        }
    }

    /// What waits is numbered above what may have run under its id.
    pub(super) fn number_anew(&mut self) {
        let anew = |job: &Job| {
            Some(self.restored.attempt(job.row.job, job.row.attempt)).filter(|to| *to != job.row.attempt)
        };
        let waiting = self.jobs.values().filter(|job| job.is_pending());
        let anew: Vec<(JobId, Attempt)> = waiting.filter_map(|job| Some((job.row.job, anew(job)?))).collect();
        for (id, attempt) in anew {
            if let Some(job) = self.job_mut(id) {
                job.row.attempt = attempt;
            }
        }
    }

    /// A node says that a run is over of which we think that it is there: one of this number was there before the restore, and the node begins none again. It
    /// counts as lost, and what runs again has another number.
    pub(super) fn was_there_before(&mut self, node: &NodeName, id: JobId, attempt: Attempt) {
        let there = |job: &Arc<Job>| {
            job.row.attempt == attempt && matches!(&job.row.phase, Phase::Running(run) if run.on(node))
        };
        if self.job(id).is_some_and(there) {
            let what =
                format!("{node} knows run {attempt} of job {id} as over: another one had that number before");
            self.note_lost_by(node, what);
            self.lose_run(node, id, attempt);
        }
    }
}
