//! From what people name (`12`, `12_3`, `12_[1-5]`, a SLUID) to records, splitting ranges where a part is meant.

use super::Cluster;
use crate::job::Job;
use crate::tasks::{TaskSet, Tasks};
use berth_model::ids::JobId;
use berth_model::request::{Actor, Refusal, RefusalCode};
use berth_model::spec::JobSelector;
use std::sync::Arc;

/// As long as so many ids are left nobody counts who needs them.
const MANY: u64 = 1 << 30;

/// What a selector selects, as text.
pub(super) fn text(selector: &JobSelector) -> String {
    match selector {
        JobSelector::Job(id) => id.to_string(),
        JobSelector::Task(id, task) => format!("{id}_{task}"),
        JobSelector::Component(id, offset) => format!("{id}+{offset}"),
        JobSelector::Sluid(sluid) => sluid.to_string(),
        JobSelector::Tasks(id, spec) => {
            let ranges: Vec<String> = spec
                .ranges
                .iter()
                .map(|(a, b, step)| match (a == b, step) {
                    (true, _) => a.to_string(),
                    (false, 0 | 1) => format!("{a}-{b}"),
                    (false, step) => format!("{a}-{b}:{step}"),
                })
                .collect();
            format!("{id}_[{}]", ranges.join(","))
        }
    }
}

pub(super) fn unknown(what: &str) -> Refusal {
    Refusal::new(
        RefusalCode::NotFound,
        format!("Invalid job id specified: {what} is not known, or ended long ago (sacct may know it)"),
    )
}

impl Cluster {
    /// The records that the selector names, each to be acted on as a whole. Where only some tasks of a waiting
    /// range are named, they get a record of their own first.
    pub(super) fn select(&mut self, actor: &Actor, selector: &JobSelector) -> Result<Vec<JobId>, Refusal> {
        let what = text(selector);
        let (id, wanted) = match selector {
            JobSelector::Job(id) => (*id, None),
            JobSelector::Component(id, offset) => return self.component(actor, *id, *offset),
            JobSelector::Sluid(sluid) => {
                let id = self.sluids.record(*sluid).ok_or_else(|| unknown(&what))?;
                self.managed(actor, id)?;
                return Ok(vec![id]);
            }
            JobSelector::Task(id, task) => (*id, Some(TaskSet::from_sorted([*task]))),
            JobSelector::Tasks(id, spec) => (*id, Some(self.bounded_set(spec, &what)?)),
        };
        let array = self.managed(actor, id)?.row.spec_of;
        let Some(wanted) = wanted else {
            return Ok(match self.arrays.get(&id) {
                Some(state) => state.members.iter().copied().collect(),
                None => vec![id],
            });
        };
        let Some(state) = self.arrays.get(&array).filter(|_| array == id) else {
            return Err(unknown(&what));
        };
        let members: Vec<JobId> = state.members.iter().copied().collect();
        let mut found = Vec::new();
        for member in members {
            let Some(job) = self.job(member) else { continue };
            match &job.row.tasks {
                Tasks::One(task) if wanted.contains(*task) => found.push(member),
                Tasks::Range(set) if job.is_pending() => {
                    let (inside, outside) = set.split(&wanted);
                    if outside.is_empty() && !inside.is_empty() {
                        found.push(member);
                    } else if !inside.is_empty() {
                        found.extend(self.split(member, inside, outside));
                    }
                }
                Tasks::Range(set) if set.iter().any(|t| wanted.contains(t)) => found.push(member),
                _ => {}
            }
        }
        if found.is_empty() { Err(unknown(&what)) } else { Ok(found) }
    }

    /// A set whose size is bounded before it is looked at.
    fn bounded_set(&self, spec: &berth_model::spec::ArraySpec, what: &str) -> Result<TaskSet, Refusal> {
        let max = self.config.max_array_size;
        if spec.ranges.iter().any(|r| r.1 >= max || r.0 > r.1) {
            return Err(Refusal::new(
                RefusalCode::Invalid,
                format!("{what}: array indices are 0 to {}", max.saturating_sub(1)),
            ));
        }
        Ok(TaskSet::new(spec))
    }

    /// Takes `inside` out of a waiting range; returns the new record.
    fn split(&mut self, range: JobId, inside: TaskSet, outside: TaskSet) -> Option<JobId> {
        let job = self.job_mut(range)?;
        job.row.tasks = Tasks::Range(outside);
        let spec = job.spec.clone();
        let mut row = job.row.clone();
        let id = self.new_job_id();
        row.job = id;
        row.sluid = Some(self.new_sluid());
        row.tasks = match (inside.len(), inside.first()) {
            (1, Some(task)) => Tasks::One(task),
            _ => Tasks::Range(inside),
        };
        self.adopt(Job::new(spec, row));
        self.enqueue(id);
        Some(id)
    }

    /// Enters a new record into all books.
    pub(super) fn adopt(&mut self, job: Job) {
        let id = job.row.job;
        self.sluids.enter(&job.row);
        self.jobs.insert(id, Arc::new(job));
        self.out.jobs.insert(id);
        self.out.changed.insert(id);
        self.active += 1;
        self.join_array(id);
    }

    /// Refuses a submission of so many records and tasks of arrays where the ids do not suffice for it and for what waits: a node of a restored
    /// cluster, and an administrator who confirms it, may have had them go on far above those that were given out.
    pub(super) fn ids_suffice(&self, records: u64, tasks: u64) -> Result<(), Refusal> {
        let left = u64::from(u32::MAX - self.next_job);
        if left > MANY {
            return Ok(());
        }
        let of_range = |job: &Arc<Job>| match &job.row.tasks {
            Tasks::Range(set) => set.len() as u64,
            _ => 0,
        };
        let waiting: u64 = self.jobs.values().map(of_range).sum();
        // A task has its own when it starts, and a part of a range that somebody names before.
        if records + 2 * (tasks + waiting) <= left {
            return Ok(());
        }
        Err(Refusal::new(
            RefusalCode::Unavailable,
            format!(
                "no new jobs are taken: the ids of jobs are used up, as job {} would be next and {} is the last; an administrator has to \
                 begin another cluster, in another state directory",
                self.next_job,
                u32::MAX - 1
            ),
        ))
    }

    pub(super) fn new_job_id(&mut self) -> JobId {
        let id = JobId(self.next_job);
        assert!(self.next_job < u32::MAX, "all job ids are used up");
        self.next_job += 1;
        self.out.meta = true;
        id
    }
}
