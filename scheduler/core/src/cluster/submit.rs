//! Submissions: refused when they can never run, recorded once, started at once where there is room.

use super::steps::NoRoom;
use super::timers::Timer;
use super::{Cluster, texts};
use crate::config::PartitionRules;
use crate::job::Job;
use crate::node::Node;
use crate::place::{Against, Need, explain_never, place};
use crate::rows::{Hold, JobRow, Phase, ROW_VERSION, Run, SpecRow};
use crate::spec::Spec;
use crate::store::{PayloadKey, Write};
use crate::tasks::{TaskSet, Tasks};
use berth_model::ids::{Attempt, JobId, NodeName, StepId, StepKey, SubmissionId, Uid};
use berth_model::request::{Actor, Payload, Refusal, RefusalCode, Response};
use berth_model::spec::{Identity, JobKind, JobSpec, MemoryRequest, StepSpec, TimeLimit};
use berth_model::time::{Span, Time};
use std::sync::Arc;

/// The priority number of the job before the first; each later job is one less, as in Slurm's FIFO order.
const FIRST_PRIORITY: u32 = 4_294_901_760;

pub(super) fn refuse<T>(code: RefusalCode, text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(code, text))
}

/// FNV-1a of a submission's id: what the core keeps of it for finding retries.
pub(super) fn digest(id: &str) -> u64 {
    id.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

impl Cluster {
    pub(super) fn submit(
        &mut self,
        actor: &Actor,
        mut spec: JobSpec,
        payload: Payload,
        first_step: Option<StepSpec>,
        test_only: bool,
    ) -> Result<Response, Refusal> {
        let uid = actor.identity.uid;
        spec.het = None;
        if let Some(job) = self.submitted_before(uid, &spec.submission) {
            return Ok(self.submitted(job, Vec::new()));
        }
        if let Some(why) = self.store_full.as_ref().filter(|_| !test_only) {
            return refuse(
                RefusalCode::Unavailable,
                format!("the controller takes no new jobs until its disk has room again: {why}"),
            );
        }
        let partitions = self.config.partitions.clone();
        let rules = self.check(actor, &spec, &payload, first_step.as_ref())?;
        let rules = partitions.iter().find(|p| p.name == rules).ok_or_else(|| gone(&rules))?;
        complete(&mut spec, rules);
        let time_limit = self.check_limits(&spec, rules)?;
        let notes = self.check_possible(&spec, rules)?;
        if test_only {
            return self.estimate(&spec, first_step.as_ref(), rules);
        }
        if self.active >= self.config.max_jobs as usize {
            return refuse(
                RefusalCode::Unavailable,
                format!("{} jobs wait or run, as many as max_jobs allows; submit again later", self.active),
            );
        }
        self.ids_suffice(1, spec.array.as_ref().map_or(0, berth_model::spec::ArraySpec::len))?;
        let immediate = spec.immediate;
        let first_env = first_step.is_some();
        let id = self.record(actor, spec, payload, first_step, rules, time_limit);
        if first_env && let Err(refusal) = self.check_first_step(id, rules) {
            self.forget(id);
            return Err(refusal);
        }
        self.enqueue(id);
        if let Some(patience) = immediate {
            self.pass();
            if patience == Span(0) && self.job(id).is_some_and(|j| j.is_pending()) {
                self.forget(id);
                return refuse(
                    RefusalCode::Busy,
                    "Unable to allocate resources: Requested nodes are busy (--immediate)",
                );
            }
            self.timers.insert((self.clock + patience, Timer::Immediate(id)));
        }
        if first_env {
            // Its client is to know at once where the step runs.
            self.pass();
        }
        Ok(self.submitted(id, notes))
    }

    pub(super) fn submitted_before(&self, uid: Uid, id: &SubmissionId) -> Option<JobId> {
        let d = digest(&id.0);
        let near = self.submissions.range((uid, d, JobId(0))..=(uid, d, JobId(u32::MAX)));
        near.map(|(_, _, job)| *job).find(|job| self.job(*job).is_some_and(|j| *j.spec.submission() == *id.0))
    }

    pub(super) fn submitted(&self, job: JobId, notes: Vec<String>) -> Response {
        let record = self.job(job).filter(|j| j.spec.first_step.is_some());
        let step = record.map(|j| StepKey { job, attempt: j.row.attempt, step: StepId::Number(0) });
        let running = record.filter(|j| matches!(j.row.phase, Phase::Running(_)));
        let started = running.and_then(|j| Some(j.steps.get(&StepId::Number(0))?.layout(j.run())));
        Response::Submitted { job, step, notes, started }
    }

    /// What can be said without looking at nodes; returns the partition.
    pub(super) fn check(
        &self,
        actor: &Actor,
        spec: &JobSpec,
        payload: &Payload,
        first_step: Option<&StepSpec>,
    ) -> Result<Arc<str>, Refusal> {
        if actor.identity.uid == Uid(0) && !self.config.root_jobs.unwrap_or(self.members.is_empty()) {
            return refuse(
                RefusalCode::Denied,
                match self.config.root_jobs {
                    Some(_) => {
                        "root may not run jobs on this cluster (root_jobs = false in berth.toml): submit as another user"
                    }
                    None => {
                        "root may not run jobs on this cluster since another machine joined it: submit as another user, \
                         or write 'root_jobs = true' in the controller's berth.toml"
                    }
                },
            );
        }
        if spec.nice < 0 && !actor.is_operator() {
            return refuse(
                RefusalCode::Denied,
                format!(
                    "Invalid --nice value: {} moves the job forward, which only an operator or an administrator may",
                    spec.nice
                ),
            );
        }
        self.check_lost_after(spec)?;
        texts::check_job(spec)?;
        self.check_account(actor, spec.account.as_deref())?;
        if let Some(step) = first_step {
            texts::check_step(step)?;
            if step.enter.is_some() {
                return refuse(
                    RefusalCode::Invalid,
                    "a job's first step can enter no other: there is none yet",
                );
            }
        }
        self.check_job_images(spec, first_step)?;
        let r = &spec.resources;
        let zero = [
            (Some(r.min_nodes), "--nodes"),
            (r.tasks, "--ntasks"),
            (r.tasks_per_node, "--ntasks-per-node"),
            (r.cpus_per_task, "--cpus-per-task"),
        ];
        if let Some((_, option)) = zero.iter().find(|(n, _)| *n == Some(0)) {
            return refuse(RefusalCode::Invalid, format!("{option}=0: at least 1 is needed"));
        }
        if r.max_nodes.is_some_and(|max| max < r.min_nodes) {
            return refuse(RefusalCode::Invalid, "--nodes: the largest number is below the smallest");
        }
        if r.max_nodes.is_some_and(|max| r.node_list.len() > max as usize) {
            return refuse(RefusalCode::Invalid, "--nodelist names more nodes than --nodes allows");
        }
        if let Some(node) = r.node_list.iter().find(|n| r.exclude.contains(n)) {
            return refuse(RefusalCode::Invalid, format!("node {node} is in --nodelist and in --exclude"));
        }
        match spec.kind {
            JobKind::Batch if payload.script.is_none() => {
                return refuse(RefusalCode::Invalid, "a batch job needs a script");
            }
            JobKind::Run if first_step.is_none() => {
                return refuse(RefusalCode::Invalid, "a job of srun needs its step");
            }
            JobKind::Batch | JobKind::Run if spec.clientless => {
                return refuse(RefusalCode::Invalid, "--no-shell is for allocations of salloc");
            }
            JobKind::Batch | JobKind::Run | JobKind::Alloc => {}
        }
        if let Some(array) = &spec.array {
            let max = self.config.max_array_size;
            if spec.kind != JobKind::Batch {
                return refuse(RefusalCode::Invalid, "--array is for batch jobs only");
            }
            if array.ranges.is_empty() {
                return refuse(RefusalCode::Invalid, "Invalid job array specification: it names no index");
            }
            if array.ranges.iter().any(|range| range.0 > range.1) {
                return refuse(
                    RefusalCode::Invalid,
                    "Invalid job array specification: a range runs backwards",
                );
            }
            if let Some(range) = array.ranges.iter().find(|range| range.1 >= max) {
                return refuse(
                    RefusalCode::Invalid,
                    format!(
                        "Invalid job array specification: index {} is above {}, the largest that max_array_size allows",
                        range.1,
                        max.saturating_sub(1)
                    ),
                );
            }
        }
        let rules = match &spec.partition {
            Some(name) => self.config.partition(name).ok_or_else(|| {
                let names: Vec<&str> = self.config.partitions.iter().map(|p| &*p.name).collect();
                Refusal::new(
                    RefusalCode::NotFound,
                    format!(
                        "invalid partition specified: {name} (there is {})\nInvalid partition name specified",
                        names.join(", ")
                    ),
                )
            })?,
            None => self.config.default_partition().ok_or_else(|| {
                Refusal::new(
                    RefusalCode::Invalid,
                    "No partition specified or system default partition: name one with --partition",
                )
            })?,
        };
        if !rules.takes() {
            return refuse(
                RefusalCode::WrongState,
                format!("Required partition not available (inactive or drain): {}", rules.name),
            );
        }
        Ok(rules.name.clone())
    }

    pub(super) fn check_limits(&self, spec: &JobSpec, rules: &PartitionRules) -> Result<TimeLimit, Refusal> {
        let limit = spec.time_limit.unwrap_or(rules.default_time);
        if limit > rules.max_time {
            return refuse(
                RefusalCode::Impossible,
                format!(
                    "Requested time limit is invalid (missing or exceeds some limit): partition {} allows {}",
                    rules.name, rules.config.max_time
                ),
            );
        }
        let min = Need::new(&spec.resources, rules).min_nodes();
        if rules.config.max_nodes > 0 && min > rules.config.max_nodes {
            return refuse(
                RefusalCode::Impossible,
                format!(
                    "Node count specification invalid: {min} nodes were asked for, partition {} allows {}",
                    rules.name, rules.config.max_nodes
                ),
            );
        }
        Ok(limit)
    }

    /// Whether nodes of the partition could ever run it. Nodes that never registered might.
    pub(super) fn check_possible(
        &self,
        spec: &JobSpec,
        rules: &PartitionRules,
    ) -> Result<Vec<String>, Refusal> {
        let unknown: Vec<&NodeName> = self.unknown_nodes(rules).collect();
        let named = spec.resources.node_list.iter().chain(&spec.resources.exclude);
        if let Some(name) = named.into_iter().find(|n| !self.nodes.contains_key(*n) && !unknown.contains(n)) {
            return refuse(
                RefusalCode::NotFound,
                format!("Invalid node name specified: {name} is not a node of this cluster (see sinfo -N)"),
            );
        }
        for name in &spec.resources.node_list {
            if !rules.has(name) {
                return refuse(
                    RefusalCode::Impossible,
                    format!(
                        "Requested node configuration is not available: node {name} is not in partition {}",
                        rules.name
                    ),
                );
            }
        }
        let mut notes = Vec::new();
        let need = Need::new(&spec.resources, rules);
        if need.min_nodes() < spec.resources.min_nodes {
            notes.push(format!(
                "can't run {0} processes on {1} nodes, setting nnodes to {0}",
                need.min_nodes(),
                spec.resources.min_nodes
            ));
        }
        let none = self.nodes_of(rules, |_| true).next().is_none();
        if none || !unknown.is_empty() || self.could_ever(&need, rules) {
            return Ok(notes);
        }
        let nodes: Vec<&Node> = self.nodes_of(rules, |_| true).collect();
        refuse(RefusalCode::Impossible, explain_never(&need, &rules.name, &nodes))
    }

    /// Puts the job into the books; it is not in the queue yet.
    pub(super) fn record(
        &mut self,
        actor: &Actor,
        mut spec: JobSpec,
        mut payload: Payload,
        first_step: Option<StepSpec>,
        rules: &PartitionRules,
        time_limit: TimeLimit,
    ) -> JobId {
        let now = self.clock;
        let uid = actor.identity.uid;
        let id = self.new_job_id();
        spec.partition = Some(rules.name.to_string());
        spec.time_limit = Some(time_limit);
        let tasks = spec.array.as_ref().map_or(Tasks::None, |a| Tasks::Range(TaskSet::new(a)));
        let hold = if spec.hold { Some(Hold::User) } else { None };
        let eligible = spec.begin.map_or(now, |b| b.max(now));
        let base = i64::from(FIRST_PRIORITY) - i64::from(id.0) - i64::from(spec.nice);
        let priority = u32::try_from(base.max(1)).unwrap_or(u32::MAX);
        let mut login = payload.login.take();
        let first_step = first_step.map(|mut step| {
            // It lives as long as the job does.
            login = step.login.take().or(login.take());
            let env = std::mem::take(&mut step.env);
            self.put_payload(PayloadKey::Step(id, StepId::Number(0)), Payload { env, ..Payload::default() });
            Arc::new(step)
        });
        // Of several components the first one has the script.
        if spec.kind == JobKind::Batch && payload.script.is_some() {
            self.put_payload(PayloadKey::Job(id), payload);
        }
        let has_login = login.is_some();
        if has_login {
            self.put_payload(PayloadKey::Login(id), Payload { login, ..Payload::default() });
        }
        self.submissions.insert((uid, digest(&spec.submission.0), id));
        let identity = self.identity(&actor.identity);
        let spec = SpecRow {
            version: ROW_VERSION,
            job: id,
            spec,
            identity,
            partition: rules.name.clone(),
            time_limit,
            submitted: now,
            first_step,
            login: has_login,
        };
        self.out.first.push(Write::PutSpec(Arc::new(spec.clone())));
        let spec = Arc::new(Spec::new(spec, &mut self.common));
        let row = JobRow {
            version: ROW_VERSION,
            job: id,
            spec_of: id,
            tasks,
            attempt: Attempt(0),
            priority,
            hold,
            eligible,
            refusals: 0,
            sluid: Some(self.new_sluid()),
            phase: Phase::Pending,
        };
        self.adopt(Job::new(spec, row));
        self.keep_images_of(id);
        id
    }

    fn put_payload(&mut self, key: PayloadKey, payload: Payload) {
        let payload = Arc::new(payload);
        self.out.first.push(Write::PutPayload { key, payload: payload.clone() });
        self.out.payloads.insert(key, payload);
    }

    /// One copy of each user's identity, however many jobs have it.
    pub(super) fn identity(&mut self, identity: &Identity) -> Arc<Identity> {
        if let Some(known) = self.identities.get(&identity.uid).filter(|k| ***k == *identity) {
            return known.clone();
        }
        let shared = Arc::new(identity.clone());
        self.identities.insert(identity.uid, shared.clone());
        shared
    }

    /// Whether the step of an `srun` fits into the allocation that its job asks for.
    fn check_first_step(&self, id: JobId, rules: &PartitionRules) -> Result<(), Refusal> {
        let Some(job) = self.job(id) else { return Ok(()) };
        let Some(step) = &job.spec.first_step else { return Ok(()) };
        let need = Need::new(&job.spec.spec.resources, rules);
        let Some(allocation) = place(&need, self.nodes_of(rules, |_| true), Against::Empty) else {
            return Ok(()); // nodes that are not known yet may have room
        };
        let run = Run {
            allocation: Arc::new(allocation),
            started: self.clock,
            limit: None,
            lease: None,
            imex_channel: None,
        };
        match self.plan_in(job, &run, step, &|_, _| true) {
            Err(NoRoom::Never(why)) => refuse(
                RefusalCode::Impossible,
                format!("the step asks for more than its job: {why}; ask for it on the job too"),
            ),
            _ => Ok(()),
        }
    }

    /// Undoes a submission of the same event: nothing of it is written.
    pub(super) fn forget(&mut self, id: JobId) {
        self.dequeue(id);
        let Some(job) = self.jobs.remove(&id) else { return };
        self.active -= 1;
        self.sluids.leave(&job.row);
        self.arrays.remove(&id);
        self.submissions.remove(&(job.spec.identity.uid, digest(job.spec.submission()), id));
        self.out.jobs.remove(&id);
        self.out.changed.remove(&id);
        self.out.first.retain(|w| match w {
            Write::PutSpec(spec) => spec.job != id,
            Write::PutPayload { key, .. } => key.job() != id,
            _ => true,
        });
        self.out.payloads.retain(|key, _| key.job() != id);
    }

    /// When and where a job would start, if nothing else were submitted: now, or when enough jobs have ended.
    fn estimate(
        &self,
        spec: &JobSpec,
        first_step: Option<&StepSpec>,
        rules: &PartitionRules,
    ) -> Result<Response, Refusal> {
        let warm = super::ahead::image_of(spec, first_step).and_then(|digest| self.exchange.holders(digest));
        let need = Need { warm, ..Need::new(&spec.resources, rules) };
        let answer = |at: Time, a: &crate::rows::Allocation| Response::WouldStart {
            job: JobId(self.next_job),
            at,
            cpus: a.shares.iter().map(|s| s.cpus.len() as u64).sum(),
            nodes: a.nodes.clone(),
            partition: rules.name.to_string(),
            shares: a.shares.clone(),
        };
        let now = spec.begin.map_or(self.clock, |b| b.max(self.clock));
        let mut nodes: Vec<Node> = self.nodes_of(rules, Node::available).cloned().collect();
        if let Some(found) = place(&need, nodes.iter(), Against::Free) {
            return Ok(answer(now, &found));
        }
        let mut ends: Vec<(Time, (JobId, Attempt))> = self
            .jobs
            .iter()
            .filter_map(|(id, j)| Some((self.reached(j.run()?)?, (*id, j.row.attempt))))
            .collect();
        ends.sort_unstable();
        for (at, run) in ends {
            let freed = nodes.iter_mut().filter_map(|n| n.release(run).then_some(())).count();
            if freed > 0
                && let Some(found) = place(&need, nodes.iter(), Against::Free)
            {
                return Ok(answer(at.max(now), &found));
            }
        }
        match place(&need, self.nodes_of(rules, |_| true), Against::Empty) {
            Some(found) => Ok(answer(now, &found)),
            None => refuse(
                RefusalCode::Impossible,
                format!("partition {} has no node that is known yet; start an agent first", rules.name),
            ),
        }
    }
}

/// Puts the partition's defaults in, as if they had been typed: every check, records, steps and the job's environment go by them.
pub(super) fn complete(spec: &mut JobSpec, rules: &PartitionRules) {
    spec.resources.memory = memory(spec, rules);
    spec.resources.devices.cpus_per_gpu = cpus_per_gpu(spec, rules);
}

/// The memory that is asked for with the partition's default. A job that has its nodes to itself has all their memory.
fn memory(spec: &JobSpec, rules: &PartitionRules) -> MemoryRequest {
    let config = &rules.config;
    match spec.resources.memory {
        MemoryRequest::Default if spec.resources.exclusive => MemoryRequest::Default,
        MemoryRequest::Default if config.default_mem_per_gpu > 0 && spec.resources.asks_for_gpus() => {
            MemoryRequest::PerGpu(config.default_mem_per_gpu)
        }
        MemoryRequest::Default if config.default_mem_per_cpu > 0 => {
            MemoryRequest::PerCpu(config.default_mem_per_cpu)
        }
        asked => asked,
    }
}

/// The CPUs that come with each GPU, likewise.
fn cpus_per_gpu(spec: &JobSpec, rules: &PartitionRules) -> Option<u32> {
    let (r, each) = (&spec.resources, rules.config.default_cpus_per_gpu);
    let default = || (each > 0 && r.cpus_per_task.is_none() && r.asks_for_gpus()).then_some(each);
    r.devices.cpus_per_gpu.or_else(default)
}

pub(super) fn gone(name: &str) -> Refusal {
    Refusal::new(RefusalCode::Internal, format!("partition {name} is not configured"))
}
