//! The first pass: starts jobs in order until one does not fit, with a bounded number of tries.

use super::Cluster;
use super::queue::QueueKey;
use crate::config::PartitionRules;
use crate::job::Job;
use crate::node::Node;
use crate::place::{Against, Need, place};
use crate::rows::{Allocation, Phase, Run};
use crate::tasks::Tasks;
use berth_model::feature::{self, Feature};
use berth_model::ids::{JobId, NodeName, StepId};
use berth_model::spec::{JobKind, TimeLimit};
use berth_model::state::Reason;
use berth_model::time::Span;
use std::sync::Arc;

/// Placement attempts in one event. What is left is done at the next, which is asked for at once.
const ATTEMPTS: usize = 256;

/// Whether a request can have its allocation.
enum Verdict {
    Fits(Allocation),
    /// Enough nodes are in service; others use them.
    Busy,
    /// Not with the nodes in service.
    OutOfService(String),
}

impl Cluster {
    /// Goes through every partition in which something changed.
    pub(super) fn pass(&mut self) {
        if self.on_hold() {
            // Who waits is entered anew when it is over.
            self.dirty.clear();
            return;
        }
        let mut attempts = ATTEMPTS;
        while let Some(name) = self.dirty.pop_first() {
            let partitions = self.config.partitions.clone();
            let Some(rules) = partitions.iter().find(|p| p.name == name).filter(|p| p.starts()) else {
                continue;
            };
            self.blocked.remove(&name);
            self.looking.stale = true;
            while let Some(key) = self.queue.get(&name).and_then(|q| q.first()).copied() {
                if attempts == 0 {
                    self.dirty.insert(name);
                    return;
                }
                attempts = attempts.saturating_sub(self.attempts_for(key.job));
                if !self.try_start(rules, key) {
                    self.blocked.insert(name, key);
                    break;
                }
            }
        }
    }

    /// Starts the first job of a partition, or puts it aside; false when it has to be waited for.
    fn try_start(&mut self, rules: &PartitionRules, key: QueueKey) -> bool {
        if self.array_is_full(key.job) {
            self.dequeue(key.job);
            self.set_wait(key.job, Some(Reason::JobArrayTaskLimit));
            return true;
        }
        if self.het(key.job).is_some() {
            return self.try_start_all(key);
        }
        match self.verdict(rules, key.job) {
            Verdict::Fits(allocation) => self.start(key.job, allocation),
            Verdict::Busy => {
                self.set_wait(key.job, Some(Reason::Resources));
                return false;
            }
            Verdict::OutOfService(nodes) => {
                self.dequeue(key.job);
                self.aside.insert(key.job);
                self.set_wait(key.job, Some(Reason::ReqNodeNotAvail(nodes)));
            }
        }
        true
    }

    fn verdict(&self, rules: &PartitionRules, id: JobId) -> Verdict {
        let Some(job) = self.job(id) else { return Verdict::Busy };
        let warm = super::ahead::image(job).and_then(|digest| self.exchange.holders(digest));
        let need = Need { warm, ..Need::new(&job.spec.spec.resources, rules) };
        let asked = feature::needed_by_job(&job.spec.spec, job.spec.first_step.as_deref());
        let able = |n: &Node| n.lacks(&asked).is_none();
        if let Some(allocation) =
            place(&need, self.nodes_of(rules, |n| n.available() && able(n)), Against::Free)
        {
            // Where all channels are in use the job waits for one.
            return self.imex_channel(id, &allocation).map_or(Verdict::Busy, |_| Verdict::Fits(allocation));
        }
        if place(&need, self.nodes_of(rules, |n| n.in_service() && able(n)), Against::Empty).is_some() {
            return Verdict::Busy;
        }
        if let Some(why) = self.agents_too_early(rules, &need, &asked) {
            return Verdict::OutOfService(why);
        }
        let missing =
            need.request.node_list.iter().filter(|n| !self.nodes.get(*n).is_some_and(|n| n.in_service()));
        Verdict::OutOfService(crate::node::names(missing))
    }

    /// Whose agents do not know what is asked for, where they are what it fails of.
    pub(super) fn agents_too_early(
        &self,
        rules: &PartitionRules,
        need: &Need<'_>,
        asked: &[Feature],
    ) -> Option<String> {
        let lacking = |n: &Node| n.in_service() && n.lacks(asked).is_some();
        let feature = self.nodes_of(rules, lacking).find_map(|n| n.lacks(asked))?;
        place(need, self.nodes_of(rules, Node::in_service), Against::Empty)?;
        let names = self.nodes_of(rules, lacking).map(|n| &n.row.name);
        Some(format!("{} (their agents do not know {})", crate::node::names(names), feature.option()))
    }

    /// Nodes of a partition that pass `wanted`.
    pub(super) fn nodes_of<'a>(
        &'a self,
        rules: &'a PartitionRules,
        wanted: impl Fn(&Node) -> bool + 'a,
    ) -> impl Iterator<Item = &'a Node> + 'a {
        self.nodes.values().map(|n| &**n).filter(move |n| rules.has(&n.row.name) && wanted(n))
    }

    /// Gives a job its allocation and starts what runs first in it.
    fn start(&mut self, id: JobId, allocation: Allocation) {
        let range = self.job(id).is_some_and(|j| matches!(j.row.tasks, Tasks::Range(_)));
        let id = if range {
            match self.split_first(id) {
                Some(split) => split,
                None => return self.dequeue(id),
            }
        } else {
            self.dequeue(id);
            id
        };
        self.give(id, allocation);
        self.begin_run(id);
    }

    /// Gives a job its allocation.
    pub(super) fn give(&mut self, id: JobId, allocation: Allocation) {
        let now = self.clock;
        let imex_channel = self.imex_channel(id, &allocation).flatten();
        let allocation = Arc::new(allocation);
        // An agent of an earlier version does not ask, and its supervisors end nothing by themselves.
        let asks = |name| self.nodes.get(name).is_some_and(|node| node.asked.is_some());
        let lease = self.lease_of(id).filter(|_| allocation.nodes.iter().all(asks));
        let Some(job) = self.job_mut(id) else { return };
        let limit = match job.spec.time_limit {
            TimeLimit::Minutes(m) => Some(now + Span::from_mins(i64::from(m))),
            TimeLimit::Unlimited => None,
        };
        job.row.phase =
            Phase::Running(Run { allocation: allocation.clone(), started: now, limit, lease, imex_channel });
        job.wait = None;
        let run = (id, job.row.attempt);
        for (name, share) in allocation.nodes.iter().zip(&allocation.shares) {
            if let Some(node) = self.node_mut(name) {
                if let Err(why) = node.take(run, &Arc::new(share.clone())) {
                    unreachable!("the placement of job {id} does not hold: {why}");
                }
                node.last_busy = Some(now);
            }
        }
        self.array_task_started(id);
        self.arm_limit(id);
    }

    /// Starts what runs first in a job that has its allocation.
    pub(super) fn begin_run(&mut self, id: JobId) {
        let Some(job) = self.job(id) else { return };
        match job.spec.spec.kind {
            // Of several components the first one has the script.
            JobKind::Batch if self.het(id).is_some_and(|het| !het.leads()) => {}
            JobKind::Batch => self.begin_batch(id),
            JobKind::Run => self.begin_first_step(id),
            JobKind::Alloc => {}
        }
    }

    /// Makes a record of its own for the first waiting task of a range.
    fn split_first(&mut self, range: JobId) -> Option<JobId> {
        let job = self.job_mut(range)?;
        let Tasks::Range(set) = &mut job.row.tasks else { return None };
        let index = set.take_first()?;
        let emptied = set.is_empty();
        // The last one has what was its range's, as in Slurm: who was told that one still finds something.
        let left = if emptied { job.row.sluid.take() } else { None };
        let mut row = job.row.clone();
        let spec = job.spec.clone();
        let id = self.new_job_id();
        row.job = id;
        row.sluid = left.or_else(|| Some(self.new_sluid()));
        row.tasks = Tasks::One(index);
        self.adopt(Job::new(spec, row));
        if emptied {
            self.dequeue(range);
            self.range_is_empty(range);
        }
        Some(id)
    }

    /// What a job could get on nodes as they would be if nothing ran: whether it can ever run.
    pub(super) fn could_ever(&self, need: &Need<'_>, rules: &PartitionRules) -> bool {
        place(need, self.nodes_of(rules, |_| true), Against::Empty).is_some()
    }

    /// Names of a partition's nodes that never registered.
    pub(super) fn unknown_nodes<'a>(
        &'a self,
        rules: &'a PartitionRules,
    ) -> impl Iterator<Item = &'a NodeName> {
        rules.nodes.iter().flatten().filter(|n| !self.nodes.contains_key(*n))
    }

    fn begin_batch(&mut self, id: JobId) {
        let Some(job) = self.job(id) else { return };
        let Some(run) = job.run() else { return };
        let Some(first) = run.allocation.nodes.first().cloned() else { return };
        self.begin_step(id, StepId::Batch, super::steps::Plan::batch(first, self.clock));
    }
}
