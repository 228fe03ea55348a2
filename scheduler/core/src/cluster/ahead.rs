//! Images fetched ahead: what the first waiting jobs will probably run on, and which images those nodes are told to fetch.

use super::Cluster;
use super::timers::Timer;
use crate::config::PartitionRules;
use crate::event::{Effect, LoginOf};
use crate::job::Job;
use crate::launch;
use crate::node::Node;
use crate::place::{Against, Need, place};
use crate::rows::{Allocation, Phase};
use crate::store::PayloadKey;
use berth_model::ids::{Attempt, JobId, NodeName};
use berth_model::link::ToAgent;
use berth_model::spec::{JobSpec, StepSpec};
use berth_model::time::{Span, Time};
use imbl::OrdMap;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How long a change may wait: those that come together are looked at once.
const SOON: Span = Span::from_secs(1);
/// Waiting jobs of a partition that are looked at.
const LOOK: usize = 16;
/// Placement attempts in one look.
const ATTEMPTS: usize = 64;
/// So many runs end one by one in a look; from then on ever more at once.
const ONE_BY_ONE: usize = 16;

/// Whether it has to be looked again what waiting jobs will run on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Looking {
    /// The queue or what is free changed.
    pub(super) stale: bool,
    /// A timer is set.
    armed: bool,
    /// Its time has come.
    pub(super) due: bool,
}

/// The cluster as it will be: nodes on which runs end, in the order of their limits, and then what waits, in its own.
struct Later {
    nodes: OrdMap<NodeName, Arc<Node>>,
    ends: BTreeSet<(Time, JobId, Attempt)>,
    /// What waiting jobs got.
    taken: BTreeMap<(JobId, Attempt), Vec<NodeName>>,
    ended: usize,
    attempts: usize,
}

impl Cluster {
    /// After each event, when all is placed that can be: looks, or will look in a moment, where something changed and somebody
    /// waits.
    pub(super) fn look_soon(&mut self) {
        if std::mem::take(&mut self.looking.due) {
            self.looking = Looking::default();
            return self.look_ahead();
        }
        let stale = std::mem::take(&mut self.looking.stale);
        let matters = !self.blocked.is_empty() || !self.ahead.is_empty();
        if self.config.images.prefetch > 0 && stale && matters && !self.looking.armed {
            self.looking.armed = true;
            self.timers.insert((self.clock + SOON, Timer::Ahead));
        }
    }

    /// Tells nodes what changed of the plan.
    fn look_ahead(&mut self) {
        let plan = self.plan_ahead();
        let over: Vec<_> = self.ahead.difference(&plan).cloned().collect();
        for told in over {
            self.ahead.remove(&told);
            let (node, job, attempt) = told;
            // Where it has started, or a task of its array, what was begun is for that.
            if !self.has_come(&node, job) {
                self.send(&node, ToAgent::EndPrefetch { term: self.term, job, attempt });
            }
        }
        let new: Vec<_> = plan.difference(&self.ahead).cloned().collect();
        for told in new {
            if self.send_prefetch(&told.0, told.1) {
                self.ahead.insert(told);
            }
        }
    }

    fn has_come(&self, node: &NodeName, id: JobId) -> bool {
        let Some(of) = self.job(id).map(|job| job.row.spec_of) else { return false };
        let held = self.nodes.get(node).into_iter().flat_map(|n| n.held.keys());
        held.into_iter().any(|(other, _)| self.job(*other).is_some_and(|job| job.row.spec_of == of))
    }

    /// Which images of waiting jobs are wanted where: of the first jobs of each partition that waits for room, as if what runs
    /// ran to its limit.
    fn plan_ahead(&self) -> BTreeSet<(NodeName, JobId, Attempt)> {
        let mut plan = BTreeSet::new();
        let mut images: BTreeMap<NodeName, BTreeSet<&str>> = BTreeMap::new();
        let mut later = self.later();
        for (partition, first) in &self.blocked {
            let Some(rules) = self.config.partition(partition) else { continue };
            let Some(queue) = self.queue.get(partition) else { continue };
            for key in queue.range(*first..).take(LOOK) {
                let Some(job) = self.job(key.job).filter(|_| !self.array_is_full(key.job)) else { continue };
                if job.spec.partition != *partition {
                    continue; // a job of several components is in the queue of each one's partition
                }
                // Of a job of several components each one's image, where that component will be.
                let members = self.whole(key.job);
                let Some(allocations) = self.place_later(&mut later, &members, rules) else { break };
                for (member, allocation) in members.into_iter().zip(&allocations) {
                    let Some(job) = self.job(member) else { continue };
                    let run = (member, job.row.attempt);
                    later.take(run, allocation);
                    let Some(digest) = image(job) else { continue };
                    for node in &allocation.nodes {
                        let there = images.entry(node.clone()).or_default();
                        let most = usize::try_from(self.config.images.prefetch).unwrap_or(usize::MAX);
                        if there.len() < most && !self.is_used(node, digest) && there.insert(digest) {
                            plan.insert((node.clone(), run.0, run.1));
                        }
                    }
                }
            }
        }
        plan
    }

    /// Whether a job that has the node has the image.
    fn is_used(&self, node: &NodeName, digest: &str) -> bool {
        let held = self.nodes.get(node).into_iter().flat_map(|n| n.held.keys());
        held.into_iter().any(|(id, _)| self.job(*id).is_some_and(|job| image(job) == Some(digest)))
    }

    fn later(&self) -> Later {
        let mut ends = BTreeSet::new();
        for (id, attempt) in self.nodes.values().flat_map(|node| node.held.keys()) {
            let at = match self.job(*id).map(|job| &job.row.phase) {
                Some(Phase::Running(run)) => self.reached(run).unwrap_or(Time(i64::MAX)),
                _ => self.clock,
            };
            ends.insert((at, *id, *attempt));
        }
        Later { nodes: self.nodes.clone(), ends, taken: BTreeMap::new(), ended: 0, attempts: ATTEMPTS }
    }

    /// What a job would get on these nodes, each of its components in order.
    fn place_on(
        &self,
        nodes: &OrdMap<NodeName, Arc<Node>>,
        members: &[JobId],
        rules: &PartitionRules,
    ) -> Option<Vec<Allocation>> {
        let [one] = members else { return self.place_whole(members, nodes, is_connected) };
        let job = self.job(*one)?;
        let warm = image(job).and_then(|digest| self.exchange.holders(digest));
        let need = Need { warm, ..Need::new(&job.spec.spec.resources, rules) };
        let there = nodes.values().map(|n| &**n).filter(|n| rules.has(&n.row.name) && is_connected(n));
        place(&need, there, Against::Free).map(|found| vec![found])
    }

    /// What a job gets as soon as enough runs have ended.
    fn place_later(
        &self,
        later: &mut Later,
        members: &[JobId],
        rules: &PartitionRules,
    ) -> Option<Vec<Allocation>> {
        while later.attempts > 0 {
            later.attempts = later.attempts.saturating_sub(members.len());
            let found = self.place_on(&later.nodes, members, rules);
            if found.is_some() {
                return found;
            }
            if later.ends.is_empty() {
                return None;
            }
            let count = 1 << later.ended.saturating_sub(ONE_BY_ONE).min(20);
            later.ended += 1;
            for _ in 0..count {
                let Some((_, id, attempt)) = later.ends.pop_first() else { break };
                let runs = || Some(self.job(id)?.run()?.allocation.nodes.clone());
                let nodes = later.taken.remove(&(id, attempt)).or_else(runs);
                for name in nodes.iter().flatten() {
                    if let Some(node) = later.nodes.get_mut(name) {
                        Arc::make_mut(node).release((id, attempt));
                    }
                }
            }
        }
        None
    }

    /// Tells a node; whether there was somebody to tell, and an image.
    fn send_prefetch(&mut self, node: &NodeName, id: JobId) -> bool {
        let Some(job) = self.jobs.get(&id) else { return false };
        let Some((start, payload)) = launch::ahead(&self.common_of_others(), job, node) else { return false };
        let login = job.spec.login.then_some(PayloadKey::Login(job.row.spec_of));
        let Some(link) = self.nodes.get(node).and_then(|n| n.link) else { return false };
        self.out.effects.push(Effect::Send {
            connection: link.connection,
            message: ToAgent::Prefetch(Box::new(start)),
            payload: Some(payload),
            login: login.map(LoginOf::Stored),
        });
        true
    }

    /// Checks that a node may be told to fetch a job's image now.
    ///
    /// # Errors
    /// Says why not.
    pub fn audit_prefetch(&self, id: JobId, node: &NodeName) -> Result<(), String> {
        let Some(job) = self.job(id) else { return Err(format!("job {id} is not there")) };
        if !job.is_pending() || job.row.hold.is_some() || job.row.eligible > self.clock {
            return Err(format!("an image is fetched ahead for job {id}, which cannot start"));
        }
        let told = self.ahead.iter().filter(|(at, ..)| at == node).count();
        if told > usize::try_from(self.config.images.prefetch).unwrap_or(usize::MAX) {
            return Err(format!("{told} images are fetched ahead on {node}"));
        }
        Ok(())
    }
}

impl Later {
    /// A waiting job has what it got; those behind it get that when all that runs now, and was taken before, has ended.
    fn take(&mut self, run: (JobId, Attempt), allocation: &Allocation) {
        self.ends.insert((Time(i64::MAX), run.0, run.1));
        self.taken.insert(run, allocation.nodes.clone());
        for (name, share) in allocation.nodes.iter().zip(&allocation.shares) {
            if let Some(node) = self.nodes.get_mut(name) {
                // It was placed on what is free.
                let _ = Arc::make_mut(node).take(run, &Arc::new(share.clone()));
            }
        }
    }
}

/// Whether a job could run there at some time.
fn is_connected(node: &Node) -> bool {
    node.in_service() && node.link.is_some()
}

/// The image of a job's first step.
pub(super) fn image(job: &Job) -> Option<&str> {
    image_of(&job.spec.spec, job.spec.first_step.as_deref())
}

/// The same of what is no job yet.
pub(super) fn image_of<'a>(spec: &'a JobSpec, first: Option<&'a StepSpec>) -> Option<&'a str> {
    let first = first.and_then(|step| step.container.as_ref());
    first.or(spec.container.as_ref())?.image.digest()
}
