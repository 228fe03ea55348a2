//! Jobs of several components: submitted, placed, ended and brought back as one, and steps that are in several of them.
//!
//! Each component is a job with rows of its own; the ids follow one another. The first one, the leader, stands for all: it alone
//! is in the queues, under its own place in that of each component's partition.

use super::queue::QueueKey;
use super::select::unknown;
use super::steps::{NoRoom, Plan, cannot, takes_steps};
use super::submit::{complete, gone, refuse};
use super::timers::Timer;
use super::{Cluster, texts};
use crate::config::PartitionRules;
use crate::event::RequestId;
use crate::job::Job;
use crate::node::Node;
use crate::place::{Against, Need, place};
use crate::rows::{Allocation, Phase, StepRow};
use berth_model::feature::{Feature, needed_by_job};
use berth_model::het::{HetFacts, HetGroup, HetPlace, HetStep, MOST, join};
use berth_model::ids::{Attempt, JobId, NodeName, StepId, StepKey, SubmissionId};
use berth_model::launch::Layout;
use berth_model::request::{Actor, Payload, Refusal, RefusalCode, Response};
use berth_model::spec::{JobKind, JobSpec, MemoryRequest, ResourceRequest, StepSpec};
use berth_model::state::Reason;
use berth_model::time::{Span, Time};
use imbl::OrdMap;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

type Nodes = OrdMap<NodeName, Arc<Node>>;

/// What a component needs: of nodes, of which partition, and what their agents must know.
struct Wish<'a> {
    need: Need<'a>,
    rules: &'a PartitionRules,
    asked: Vec<Feature>,
}

/// The refusal of what can be done to all components alone.
pub(super) fn not_alone(id: JobId) -> Refusal {
    Refusal::new(
        RefusalCode::Invalid,
        format!(
            "Operation not permitted on individual component of heterogeneous job: {id} is one of several that start \
             together; name the whole job by its first component"
        ),
    )
}

/// What goes first where not every order of placing does: named nodes, devices, much memory, many CPUs.
fn demand(request: &ResourceRequest) -> Reverse<(usize, u64, u64, u64)> {
    let cpus = u64::from(request.cpus_per_task.unwrap_or(1));
    let devices: u64 = request.gres.values().chain(request.devices.total.values()).sum();
    let memory = match request.memory {
        MemoryRequest::Default => 0,
        MemoryRequest::PerNode(mib) => mib,
        MemoryRequest::PerCpu(mib) => mib.saturating_mul(cpus),
        MemoryRequest::PerGpu(mib) => mib.saturating_mul(devices),
    };
    Reverse((request.node_list.len(), devices, memory, cpus))
}

/// Every component's allocation on `nodes`, side by side; `None` where they do not fit together. They are placed in their own order,
/// and if that fails those with the greatest demands first, or the other way round.
fn place_all(wishes: &[Wish<'_>], nodes: &Nodes, usable: fn(&Node) -> bool) -> Option<Vec<Allocation>> {
    let given: Vec<usize> = (0..wishes.len()).collect();
    let mut demanding = given.clone();
    demanding.sort_by_key(|at| wishes.get(*at).map(|wish| demand(wish.need.request)));
    let backwards: Vec<usize> = given.iter().rev().copied().collect();
    let mut orders = vec![given, demanding, backwards];
    orders.dedup();
    orders.into_iter().find_map(|order| place_in_order(wishes, &order, nodes, usable))
}

fn place_in_order(
    wishes: &[Wish<'_>],
    order: &[usize],
    nodes: &Nodes,
    usable: fn(&Node) -> bool,
) -> Option<Vec<Allocation>> {
    let mut nodes = nodes.clone();
    let mut placed: Vec<(usize, Allocation)> = Vec::with_capacity(order.len());
    for at in order {
        let wish = wishes.get(*at)?;
        let able = |n: &&Node| wish.rules.has(&n.row.name) && usable(n) && n.lacks(&wish.asked).is_none();
        let there = nodes.values().map(|n| &**n).filter(able);
        let found = place(&wish.need, there, Against::Free)?;
        // No job has such a number.
        let run = (JobId(u32::MAX), Attempt(u32::try_from(*at).ok()?));
        for (name, share) in found.nodes.iter().zip(&found.shares) {
            let node = Arc::make_mut(nodes.get_mut(name)?);
            node.take(run, &Arc::new(share.clone())).ok()?;
        }
        placed.push((*at, found));
    }
    placed.sort_by_key(|(at, _)| *at);
    Some(placed.into_iter().map(|(_, allocation)| allocation).collect())
}

impl Cluster {
    /// The job's place among several components, if it is one.
    pub(super) fn het(&self, id: JobId) -> Option<HetPlace> {
        self.job(id)?.spec.spec.het
    }

    /// All components of the job to which this one belongs, in order; itself where it has no others.
    pub(super) fn whole(&self, id: JobId) -> Vec<JobId> {
        let Some(het) = self.het(id) else { return vec![id] };
        let ours = |member: &JobId| self.het(*member).is_some_and(|other| other.leader == het.leader);
        het.members().filter(ours).collect()
    }

    /// What the id names: all components where it is the leader's, one job otherwise.
    pub(super) fn led_by(&self, id: JobId) -> Vec<JobId> {
        match self.het(id) {
            Some(het) if het.leads() => self.whole(id),
            _ => vec![id],
        }
    }

    /// One component by its number. The first one stands for all.
    pub(super) fn component(&self, actor: &Actor, leader: JobId, offset: u32) -> Result<Vec<JobId>, Refusal> {
        self.managed(actor, leader)?;
        let id = JobId(leader.0.saturating_add(offset));
        match self.het(id) {
            Some(het) if het.leader == leader && het.offset == offset => Ok(vec![id]),
            _ => Err(unknown(&format!("{leader}+{offset}"))),
        }
    }

    /// Under which id a job may be put into the queues, and from when on; `None` while one of its components does not wait, or
    /// is held.
    pub(super) fn ready(&mut self, id: JobId) -> Option<(JobId, Time)> {
        let job = self.job(id)?;
        let Some(het) = job.spec.spec.het else { return Some((id, job.row.eligible)) };
        let members = self.whole(id);
        let rows = || members.iter().filter_map(|member| self.job(*member)).map(|job| &job.row);
        if !rows().all(|row| matches!(row.phase, Phase::Pending)) {
            return None;
        }
        let eligible = rows().map(|row| row.eligible).max()?;
        if let Some(held) = rows().find(|row| row.hold.is_some()).map(|row| row.job) {
            let why = self.job(held).map(|job| job.waits_for());
            self.set_wait_of_all(het.leader, why);
            return None;
        }
        Some((het.leader, eligible))
    }

    pub(super) fn set_wait_of_all(&mut self, id: JobId, wait: Option<Reason>) {
        for member in self.led_by(id) {
            self.set_wait(member, wait.clone());
        }
    }

    /// What placing the job costs of the attempts of one event.
    pub(super) fn attempts_for(&self, id: JobId) -> usize {
        self.het(id).map_or(1, |het| (het.size as usize).saturating_mul(3))
    }

    /// Starts all components, or none; false when they have to be waited for.
    pub(super) fn try_start_all(&mut self, key: QueueKey) -> bool {
        if !self.is_first(key) {
            // Others come first in another component's partition; they are gone through there.
            return false;
        }
        let members = self.whole(key.job);
        let partitions = self.config.partitions.clone();
        let mut wishes = Vec::with_capacity(members.len());
        for member in &members {
            let Some(job) = self.job(*member) else { continue };
            let Some(rules) = partitions.iter().find(|p| p.name == job.spec.partition && p.starts()) else {
                self.put_aside(key.job, Reason::PartitionDown);
                return true;
            };
            let warm = super::ahead::image(job).and_then(|digest| self.exchange.holders(digest));
            let need = Need { warm, ..Need::new(&job.spec.spec.resources, rules) };
            let asked = needed_by_job(&job.spec.spec, job.spec.first_step.as_deref());
            wishes.push(Wish { need, rules, asked });
        }
        let placed = place_all(&wishes, &self.nodes, Node::available).filter(|placed| {
            let parts = members.iter().zip(placed);
            // Where all channels are in use they wait for one.
            parts.into_iter().all(|(member, allocation)| self.imex_channel(*member, allocation).is_some())
        });
        if let Some(placed) = placed {
            self.dequeue(key.job);
            for (member, allocation) in members.iter().zip(placed) {
                self.give(*member, allocation);
            }
            // Each is told where the others are.
            for member in members {
                self.begin_run(member);
            }
            return true;
        }
        if place_all(&wishes, &self.emptied(), Node::in_service).is_some() {
            self.set_wait_of_all(key.job, Some(Reason::Resources));
            return false;
        }
        let early = wishes.iter().find_map(|wish| self.agents_too_early(wish.rules, &wish.need, &wish.asked));
        if let Some(why) = early {
            self.put_aside(key.job, Reason::ReqNodeNotAvail(why));
            return true;
        }
        let wanted = wishes.iter().flat_map(|wish| &wish.need.request.node_list);
        let missing: BTreeSet<&NodeName> =
            wanted.filter(|n| !self.nodes.get(*n).is_some_and(|n| n.in_service())).collect();
        let why = Reason::ReqNodeNotAvail(crate::node::names(missing));
        self.put_aside(key.job, why);
        true
    }

    /// Where all components would be on these nodes; `None` where they do not fit together.
    pub(super) fn place_whole(
        &self,
        members: &[JobId],
        nodes: &Nodes,
        usable: fn(&Node) -> bool,
    ) -> Option<Vec<Allocation>> {
        let wish = |member: &JobId| {
            let job = self.job(*member)?;
            let rules = self.config.partition(&job.spec.partition).filter(|p| p.starts())?;
            let warm = super::ahead::image(job).and_then(|digest| self.exchange.holders(digest));
            let need = Need { warm, ..Need::new(&job.spec.spec.resources, rules) };
            let asked = needed_by_job(&job.spec.spec, job.spec.first_step.as_deref());
            Some(Wish { need, rules, asked })
        };
        let wishes: Vec<Wish<'_>> = members.iter().map(wish).collect::<Option<_>>()?;
        place_all(&wishes, nodes, usable)
    }

    fn put_aside(&mut self, leader: JobId, why: Reason) {
        self.dequeue(leader);
        self.aside.insert(leader);
        self.set_wait_of_all(leader, Some(why));
    }

    /// The nodes as they would be if nothing ran.
    fn emptied(&self) -> Nodes {
        let mut nodes = self.nodes.clone();
        for (name, node) in self.nodes.iter().filter(|(_, node)| !node.held.is_empty()) {
            let Some(empty) = nodes.get_mut(name).map(Arc::make_mut) else { continue };
            for run in node.held.keys() {
                empty.release(*run);
            }
        }
        nodes
    }

    /// Has every component that is not waiting go back to the queue, now or when its nodes are clean.
    pub(super) fn bring_back(&mut self, id: JobId) {
        for member in self.whole(id) {
            let Some(job) = self.job(member) else { continue };
            match job.row.phase {
                Phase::Ending { requeue: false, .. } => {
                    if let Some(Phase::Ending { requeue, .. }) =
                        self.job_mut(member).map(|job| &mut job.row.phase)
                    {
                        *requeue = true;
                    }
                }
                Phase::Ended { run: Some(_), .. } => {
                    self.active += 1;
                    self.next_attempt(member);
                }
                _ => {}
            }
        }
    }

    /// `sbatch` and `salloc` of several components: all are recorded, or none.
    pub(super) fn submit_het(
        &mut self,
        actor: &Actor,
        components: Vec<(JobSpec, Payload)>,
        test_only: bool,
    ) -> Result<Response, Refusal> {
        let Some((first, first_payload)) = components.first() else {
            return refuse(RefusalCode::Invalid, "a job without a component");
        };
        if components.len() > MOST {
            let text = format!("{} components were asked for, a job has at most {MOST}", components.len());
            return refuse(RefusalCode::Invalid, text);
        }
        if let Some(job) = self.submitted_before(actor.identity.uid, &first.submission) {
            return Ok(self.submitted(job, Vec::new()));
        }
        if let Some(why) = self.store_full.as_ref().filter(|_| !test_only) {
            return refuse(
                RefusalCode::Unavailable,
                format!("the controller takes no new jobs until its disk has room again: {why}"),
            );
        }
        let (kind, immediate, submission) = (first.kind, first.immediate, first.submission.clone());
        if kind == JobKind::Run {
            return refuse(
                RefusalCode::Invalid,
                "components are made by sbatch or salloc, and steps in them by srun",
            );
        }
        let payload = Payload { login: None, ..first_payload.clone() };
        let (leader, size) = (JobId(self.next_job), u32::try_from(components.len()).unwrap_or(u32::MAX));
        let partitions = self.config.partitions.clone();
        let mut notes = Vec::new();
        let mut checked = Vec::with_capacity(components.len());
        for (at, (mut spec, own)) in components.into_iter().enumerate() {
            let offset = u32::try_from(at).unwrap_or(u32::MAX);
            let here = |refusal: Refusal| Refusal {
                message: named(&refusal.message, offset, size),
                code: refusal.code,
            };
            if spec.kind != kind || spec.array.is_some() {
                let text = "components are of one kind, and none of them is an array (--array)";
                return refuse(RefusalCode::Invalid, text);
            }
            let name = self.check(actor, &spec, &payload, None).map_err(here)?;
            let rules = partitions.iter().find(|p| p.name == name).ok_or_else(|| gone(&name))?;
            complete(&mut spec, rules);
            spec.het = Some(HetPlace { leader, offset, size });
            spec.immediate = immediate.filter(|_| at == 0);
            if at > 0 {
                // Only the first one is found by the client's id when it asks again.
                spec.submission = SubmissionId(format!("{}+{at}", submission.0));
            }
            let limit = self.check_limits(&spec, rules).map_err(here)?;
            let said = self.check_possible(&spec, rules).map_err(here)?;
            notes.extend(said.into_iter().map(|note| named(&note, offset, size)));
            checked.push((spec, own.login, rules, limit));
        }
        // Agents that do not know something yet are waited for.
        let wish = |spec, rules| Wish { need: Need::new(spec, rules), rules, asked: Vec::new() };
        let wishes: Vec<Wish<'_>> =
            checked.iter().map(|(spec, _, rules, _)| wish(&spec.resources, *rules)).collect();
        let known = wishes.iter().all(|Wish { rules, .. }| {
            self.unknown_nodes(rules).next().is_none() && self.nodes_of(rules, |_| true).next().is_some()
        });
        if known && place_all(&wishes, &self.emptied(), |_| true).is_none() {
            return refuse(
                RefusalCode::Impossible,
                "Requested node configuration is not available: each component fits, and all of them together do not; ask \
                 for less",
            );
        }
        if test_only {
            return self.estimate_all(&wishes);
        }
        if self.active.saturating_add(checked.len()) > self.config.max_jobs as usize {
            return refuse(
                RefusalCode::Unavailable,
                format!(
                    "{} jobs wait or run, and {size} more would be above max_jobs; submit again later",
                    self.active
                ),
            );
        }
        self.ids_suffice(checked.len() as u64, 0)?;
        let mut first = Some(payload);
        let mut members = Vec::with_capacity(checked.len());
        for (spec, login, rules, limit) in checked {
            let payload = Payload { login, ..first.take().unwrap_or_default() };
            members.push(self.record(actor, spec, payload, None, rules, limit));
        }
        self.enqueue(leader);
        if let Some(patience) = immediate {
            self.pass();
            if patience == Span(0) && self.job(leader).is_some_and(|j| j.is_pending()) {
                members.into_iter().for_each(|member| self.forget(member));
                return refuse(
                    RefusalCode::Busy,
                    "Unable to allocate resources: Requested nodes are busy (--immediate)",
                );
            }
            self.timers.insert((self.clock + patience, Timer::Immediate(leader)));
        }
        Ok(self.submitted(leader, notes))
    }

    /// When and where all components would start, if nothing else were submitted.
    fn estimate_all(&self, wishes: &[Wish<'_>]) -> Result<Response, Refusal> {
        let answer = |at: Time, all: &[Allocation]| Response::WouldStart {
            job: JobId(self.next_job),
            at,
            cpus: all.iter().flat_map(|a| &a.shares).map(|s| s.cpus.len() as u64).sum(),
            nodes: all.iter().flat_map(|a| a.nodes.clone()).collect(),
            partition: wishes.first().map(|wish| wish.rules.name.to_string()).unwrap_or_default(),
            shares: all.iter().flat_map(|a| a.shares.clone()).collect(),
        };
        let mut nodes = self.nodes.clone();
        if let Some(found) = place_all(wishes, &nodes, Node::available) {
            return Ok(answer(self.clock, &found));
        }
        let mut ends: Vec<(Time, (JobId, Attempt))> = self
            .jobs
            .iter()
            .filter_map(|(id, j)| Some((self.reached(j.run()?)?, (*id, j.row.attempt))))
            .collect();
        ends.sort_unstable();
        for (at, run) in ends {
            let names: Vec<NodeName> = self
                .nodes
                .iter()
                .filter(|(_, n)| n.held.contains_key(&run))
                .map(|(name, _)| name.clone())
                .collect();
            for name in &names {
                if let Some(node) = nodes.get_mut(name) {
                    Arc::make_mut(node).release(run);
                }
            }
            if !names.is_empty()
                && let Some(found) = place_all(wishes, &nodes, Node::available)
            {
                return Ok(answer(at.max(self.clock), &found));
            }
        }
        match place_all(wishes, &self.emptied(), |_| true) {
            Some(found) => Ok(answer(self.clock, &found)),
            None => refuse(
                RefusalCode::Impossible,
                "the partitions have no node that is known yet; start an agent first",
            ),
        }
    }

    /// What the steps of a component are told of all of them.
    pub(super) fn het_facts(&self, job: &Job) -> Option<HetFacts> {
        let het = job.spec.spec.het?;
        let group = |member: JobId| {
            let job = self.job(member)?;
            let run = job.run()?;
            let memory = run.allocation.shares.first().map(|share| share.memory);
            let partition = job.spec.partition.to_string();
            Some(HetGroup::new(member, partition, run.layout(), &job.spec.spec.resources, memory))
        };
        let groups = het.members().map(group).collect::<Option<Vec<_>>>()?;
        Some(HetFacts { leader: het.leader, offset: het.offset, groups })
    }

    /// `srun` over several components. An `Ok` means that the answer was given or will be given later.
    pub(super) fn create_het_step(
        &mut self,
        request: RequestId,
        actor: &Actor,
        parts: Vec<(JobId, StepSpec)>,
    ) -> Result<(), Refusal> {
        let Some((first, first_spec)) = parts.first() else {
            return refuse(RefusalCode::Invalid, "a step without a component");
        };
        let first = *first;
        let members = self.whole(first);
        let mut seen = BTreeSet::new();
        for (job, spec) in &parts {
            let record = self.driven(actor, *job)?;
            self.may_make_steps(actor, *job)?;
            if !members.contains(job) || self.het(*job).is_none() || !seen.insert(*job) {
                let text =
                    format!("job {job} is no component of one job with job {first}, or is named twice");
                return refuse(RefusalCode::Invalid, text);
            }
            texts::check_step(spec)?;
            if spec.enter.is_some() || spec.receive.is_some() {
                return refuse(
                    RefusalCode::Invalid,
                    "a step enters another one, or receives a file, in one component",
                );
            }
            self.check_step_images(&record.spec.spec, spec)?;
        }
        let same = |s: &&Arc<StepRow>| s.spec.as_ref().is_some_and(|o| o.submission == first_spec.submission);
        let before =
            self.job(first).and_then(|job| job.steps.values().find(same)).and_then(|s| s.het.clone());
        if let Some(het) = before {
            self.tell_het_step(request, &het, Span::default());
            return Ok(());
        }
        for (job, _) in &parts {
            if let Some(record) = self.job(*job) {
                takes_steps(record)?;
            }
        }
        for (_, spec) in &parts {
            self.keep_image_of_step(spec);
        }
        if self.waits_already(first, first_spec, request, actor) {
            return Ok(());
        }
        let jobs: Vec<JobId> = parts.iter().map(|(job, _)| *job).collect();
        match self.plan_het(&parts) {
            Ok(_) if self.room_is_kept(&jobs, self.clock) => {}
            Ok(plans) => {
                self.begin_het_step(request, actor, plans, self.clock);
                return Ok(());
            }
            Err(NoRoom::Never(why)) => return Err(cannot(first, &why)),
            Err(NoRoom::Busy) => {}
        }
        let mut parts = parts;
        let (first, spec) = parts.remove(0);
        self.wait_for_room(request, actor, first, spec, parts);
        Ok(())
    }

    /// Where each part of the step would be, if all of them can begin now.
    pub(super) fn plan_het(&self, parts: &[(JobId, StepSpec)]) -> Result<Vec<(JobId, Plan)>, NoRoom> {
        let of = |(job, spec): &(JobId, StepSpec)| self.plan_step(*job, spec).map(|plan| (*job, plan));
        // What can never be is said also where something else is to be waited for.
        let all: Vec<Result<(JobId, Plan), NoRoom>> = parts.iter().map(of).collect();
        if let Some(why) = all.iter().find_map(|plan| match plan {
            Err(NoRoom::Never(why)) => Some(why.clone()),
            _ => None,
        }) {
            return Err(NoRoom::Never(why));
        }
        all.into_iter().collect()
    }

    /// Records and starts all parts of a step.
    pub(super) fn begin_het_step(
        &mut self,
        request: RequestId,
        actor: &Actor,
        plans: Vec<(JobId, Plan)>,
        since: Time,
    ) {
        let number = plans.iter().map(|(job, _)| self.next_step(*job)).max().unwrap_or(0);
        let id = StepId::Number(number);
        let layouts: Vec<Layout> = plans.iter().map(|(_, plan)| plan.layout()).collect();
        let (layout, begins) = join(&layouts);
        let parts: Vec<StepKey> = plans
            .iter()
            .filter_map(|(job, _)| Some(StepKey { job: *job, attempt: self.attempt_of(*job)?, step: id }))
            .collect();
        let whole = HetStep { parts, layout, first_node: 0, begins: begins.clone() };
        for ((job, plan), first_node) in plans.into_iter().zip(begins) {
            let het = Some(Arc::new(HetStep { first_node, ..whole.clone() }));
            self.begin_step(job, id, Plan { het, ..plan });
        }
        let theirs = |key: &StepKey| Some(format!("{} of {}", key.job, self.foreign(actor, key.job)?));
        let theirs: Vec<String> = whole.parts.iter().filter_map(theirs).collect();
        self.note_jobs(actor, "made a step in", theirs);
        let waited = self.clock.since(since);
        self.tell_het_step(request, &whole, waited);
    }

    fn tell_het_step(&mut self, request: RequestId, het: &HetStep, waited: Span) {
        let begin = |key: &StepKey| {
            let row = self.step(*key)?;
            Some((*key, row.het.as_ref()?.first_node))
        };
        let parts = het.parts.iter().filter_map(begin).collect();
        let layout = het.layout.clone();
        self.reply(request, Ok(Response::HetStepCreated { parts, layout, waited }));
    }

    /// Checks what is true of components at any time.
    pub(super) fn audit_components(&self) -> Result<(), String> {
        let queued: BTreeSet<JobId> = self.queue.values().flatten().map(|key| key.job).collect();
        for (id, job) in &self.jobs {
            let Some(het) = job.spec.spec.het else { continue };
            if het.leader.0.checked_add(het.offset) != Some(id.0) || het.offset >= het.size {
                return Err(format!("job {id} says of itself that it is {}+{}", het.leader, het.offset));
            }
            let rows: Vec<_> = het.members().filter_map(|m| self.job(m)).map(|job| &job.row).collect();
            if rows.len() != het.size as usize {
                return Err(format!(
                    "of job {}, {} of {} components are there",
                    het.leader,
                    rows.len(),
                    het.size
                ));
            }
            if !het.leads() {
                if queued.contains(id) || self.aside.contains(id) {
                    return Err(format!("component {id} is in a queue of its own"));
                }
                continue;
            }
            let pending = rows.iter().filter(|row| matches!(row.phase, Phase::Pending)).count();
            if pending > 0 && rows.iter().any(|row| matches!(row.phase, Phase::Running(_))) {
                return Err(format!("of job {id} some components run and others wait"));
            }
            let runs: BTreeSet<Attempt> = rows
                .iter()
                .filter(|row| matches!(row.phase, Phase::Running(_)))
                .map(|row| row.attempt)
                .collect();
            if runs.len() > 1 {
                return Err(format!("the components of job {id} are in different runs"));
            }
            let idle = rows.iter().any(|row| row.hold.is_some() || row.eligible > self.clock);
            let there = queued.contains(id) || self.aside.contains(id);
            let wanted = pending == rows.len() && !idle;
            if wanted != there && !(there && rows.iter().any(|row| row.eligible > self.clock)) {
                return Err(format!("job {id} waits: {wanted}, and is in the queues: {there}"));
            }
        }
        Ok(())
    }
}

/// A text about one component of several.
fn named(text: &str, offset: u32, size: u32) -> String {
    if size < 2 { text.to_string() } else { format!("{text} (component {offset})") }
}
