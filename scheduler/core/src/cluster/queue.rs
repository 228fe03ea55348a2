//! Who may start, in which order: the queue of each partition, and the books of arrays.

use super::Cluster;
use super::timers::Timer;
use crate::rows::Phase;
use crate::tasks::Tasks;
use berth_model::ids::JobId;
use berth_model::state::Reason;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Place in the queue: larger priority first, then the older job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct QueueKey {
    priority: Reverse<u32>,
    pub(super) job: JobId,
}

/// The records of one array.
#[derive(Clone, Debug, Default)]
pub(super) struct ArrayState {
    /// All of them that are in memory, the array's own included.
    pub(super) members: BTreeSet<JobId>,
    /// Tasks that have an allocation.
    pub(super) running: u32,
    /// `%N`.
    pub(super) max_running: Option<u32>,
}

impl ArrayState {
    fn full(&self) -> bool {
        self.max_running.is_some_and(|max| self.running >= max)
    }
}

impl Cluster {
    /// In which queues a job waits, and where: one of several components in that of each, under the first one's place, so that
    /// nobody behind it takes what any of them waits for.
    fn places(&self, id: JobId) -> Vec<(Arc<str>, QueueKey)> {
        let Some(job) = self.job(id) else { return Vec::new() };
        let key = QueueKey { priority: Reverse(job.row.priority), job: id };
        let all: BTreeSet<Arc<str>> =
            self.led_by(id).into_iter().filter_map(|m| Some(self.job(m)?.spec.partition.clone())).collect();
        all.into_iter().map(|partition| (partition, key)).collect()
    }

    /// Whether nobody is before the job in any queue in which it waits.
    pub(super) fn is_first(&self, key: QueueKey) -> bool {
        let first = |name: &Arc<str>| self.queue.get(name).and_then(|queue| queue.first()) == Some(&key);
        self.places(key.job).iter().all(|(name, _)| first(name))
    }

    /// Puts a waiting job where it belongs: into the queue, or behind the timer of its begin.
    pub(super) fn enqueue(&mut self, id: JobId) {
        let Some((id, eligible)) = self.ready(id) else { return };
        let Some(job) = self.job(id) else { return };
        if !matches!(job.row.phase, Phase::Pending) || job.row.hold.is_some() || job.row.is_empty_array() {
            return;
        }
        if eligible > self.clock {
            self.timers.insert((eligible, Timer::Begin(id)));
            return self.set_wait_of_all(id, Some(Reason::BeginTime));
        }
        let array = job.row.spec_of;
        if self.arrays.get(&array).is_some_and(ArrayState::full) {
            return self.set_wait(id, Some(Reason::JobArrayTaskLimit));
        }
        let places = self.places(id);
        let closed = places.iter().any(|(name, _)| self.config.partition(name).is_none_or(|p| !p.starts()));
        let wait = match (closed, self.on_hold()) {
            (true, _) => Some(Reason::PartitionDown),
            (false, true) => Some(Reason::Restored),
            (false, false) => None,
        };
        self.set_wait_of_all(id, wait);
        self.looking.stale = true;
        for (partition, key) in places {
            if self.blocked.get(&partition).is_none_or(|first| key < *first) {
                self.dirty.insert(partition.clone());
            }
            self.queue.entry(partition).or_default().insert(key);
        }
    }

    /// Takes a job out of the queue: it starts, ends, is held or waits for something else.
    pub(super) fn dequeue(&mut self, id: JobId) {
        let id = self.het(id).map_or(id, |het| het.leader);
        self.aside.remove(&id);
        self.looking.stale = true;
        for (partition, key) in self.places(id) {
            let Some(queue) = self.queue.get_mut(&partition) else { continue };
            queue.remove(&key);
            if self.blocked.get(&partition) == Some(&key) {
                self.blocked.remove(&partition);
                self.dirty.insert(partition);
            }
        }
    }

    pub(super) fn set_wait(&mut self, id: JobId, wait: Option<Reason>) {
        if self.job(id).is_some_and(|j| j.wait != wait)
            && let Some(job) = self.job_live(id)
        {
            job.wait = wait;
        }
    }

    /// Something became free on a node: its partitions are gone through again.
    pub(super) fn room_on(&mut self, node: &berth_model::NodeName) {
        let partitions = self.config.partitions.clone();
        for p in partitions.iter().filter(|p| p.has(node)) {
            self.blocked.remove(&p.name);
            if self.queue.get(&p.name).is_some_and(|q| !q.is_empty()) {
                self.dirty.insert(p.name.clone());
            }
        }
    }

    /// A node came into service: jobs that no set of nodes could take are tried again.
    pub(super) fn node_is_back(&mut self, node: &berth_model::NodeName) {
        for id in std::mem::take(&mut self.aside) {
            self.enqueue(id);
        }
        self.room_on(node);
    }

    /// Enters a record into the books of its array.
    pub(super) fn join_array(&mut self, id: JobId) {
        let Some(job) = self.job(id) else { return };
        if matches!(job.row.tasks, Tasks::None) {
            return;
        }
        let array = job.row.spec_of;
        let max_running = job.spec.spec.array.as_ref().and_then(|a| a.max_running).filter(|n| *n > 0);
        let holds = matches!(job.row.phase, Phase::Running(_) | Phase::Ending { .. });
        let state = self.arrays.entry(array).or_default();
        state.max_running = max_running;
        if state.members.insert(id) && holds {
            state.running += 1;
        }
    }

    /// A task has an allocation now.
    pub(super) fn array_task_started(&mut self, id: JobId) {
        if let Some(state) = self.job(id).map(|j| j.row.spec_of).and_then(|a| self.arrays.get_mut(&a)) {
            state.running += 1;
        }
    }

    /// A task's allocation is gone: records that waited for `%N` may go on.
    pub(super) fn array_task_ended(&mut self, id: JobId) {
        let Some(array) = self.job(id).map(|j| j.row.spec_of) else { return };
        let Some(state) = self.arrays.get_mut(&array) else { return };
        assert!(state.running > 0, "array {array} has no running task that could end");
        state.running -= 1;
        if state.max_running.is_some() {
            let waiting: Vec<JobId> = state.members.iter().copied().collect();
            for member in waiting {
                if self.job(member).is_some_and(|j| j.wait == Some(Reason::JobArrayTaskLimit)) {
                    self.enqueue(member);
                }
            }
        }
    }

    pub(super) fn array_is_full(&self, id: JobId) -> bool {
        self.job(id).and_then(|j| self.arrays.get(&j.row.spec_of)).is_some_and(ArrayState::full)
    }
}
