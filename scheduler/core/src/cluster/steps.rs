//! Steps: made in a running allocation when their resources are free, waiting until then.

use super::busy::Patience;
use super::layout::{self, Place};
use super::timers::Timer;
use super::{Cluster, texts};
use crate::event::RequestId;
use crate::job::{Job, Progress};
use crate::place::pool::Pool;
use crate::place::totals::evenly;
use crate::rows::{ROW_VERSION, Run, StepNode, StepRow};
use crate::store::{PayloadKey, Write};
use berth_model::devices::{GPU, add, sum};
use berth_model::distribution::Distribution;
use berth_model::feature::needed_by_step;
use berth_model::gres::Wanted;
use berth_model::hardware::{GresDevice, Hardware};
use berth_model::het::HetStep;
use berth_model::ids::{JobId, NodeName, StepId, StepKey};
use berth_model::launch::{Layout, NodeShare};
use berth_model::request::{Actor, Payload, Refusal, RefusalCode, Response};
use berth_model::spec::{MemoryRequest, SrunProlog, StepSpec, TimeLimit};
use berth_model::time::{Span, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A step that waits for resources of its job, and the request to be answered then. Not durable: the client
/// asks again after a restart, with the same submission id.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) request: RequestId,
    /// The request was answered with what it waits for; its client asks again, or does not.
    pub(super) answered: bool,
    /// Who asked.
    actor: Actor,
    spec: StepSpec,
    /// What it is in further components of the job.
    others: Vec<(JobId, StepSpec)>,
    since: Time,
    pub(super) patience: Patience,
}

impl Waiting {
    /// What it is in each component, beginning with the job in which it waits.
    pub(super) fn parts(&self, job: JobId) -> impl Iterator<Item = (JobId, &StepSpec)> {
        std::iter::once((job, &self.spec)).chain(self.others.iter().map(|(other, spec)| (*other, spec)))
    }
}

/// For how long a step keeps its place whose client, which waits for others, was told that they run.
const KEPT: Span = Span::from_secs(5);

/// Whether a part of a step counts as in use on a node.
type InUse<'a> = &'a dyn Fn(&StepRow, &NodeName) -> bool;

/// A step about to begin.
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) spec: Option<StepSpec>,
    pub(super) nodes: Vec<StepNode>,
    pub(super) distribution: Distribution,
    pub(super) consumes: bool,
    pub(super) started: Time,
    pub(super) time_limit: Option<TimeLimit>,
    pub(super) het: Option<Arc<HetStep>>,
}

impl Plan {
    /// The batch script: one task with all that the job has on its first node, counted against nobody.
    pub(super) fn batch(node: NodeName, now: Time) -> Plan {
        Plan {
            name: "batch".to_string(),
            spec: None,
            nodes: vec![StepNode { node, tasks: 1, share: None, pull: None, exit: None }],
            distribution: Distribution::Block,
            consumes: false,
            started: now,
            time_limit: None,
            het: None,
        }
    }
}

impl Plan {
    /// Nodes, tasks and CPUs of it.
    pub(super) fn layout(&self) -> Layout {
        let nodes: Vec<NodeName> = self.nodes.iter().map(|n| n.node.clone()).collect();
        let counts: Vec<u32> = self.nodes.iter().map(|n| n.tasks).collect();
        let cpus = |n: &StepNode| n.share.as_ref().map_or(0, |share| cap(share.cpus.len()));
        Layout {
            tasks: self.distribution.number(&nodes, &counts),
            cpus: self.nodes.iter().map(cpus).collect(),
            nodes,
        }
    }
}

fn cap(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Why a step cannot begin now.
pub(super) enum NoRoom {
    /// Other steps use what it needs.
    Busy,
    /// The job does not have it.
    Never(String),
}

/// What the steps of a job have in use on one node.
#[derive(Default)]
struct Used {
    cpus: BTreeSet<u32>,
    memory: u64,
    gres: Vec<GresDevice>,
}

/// What they have in use on each node that they are on.
fn used<'a>(job: &'a Job, run: &Run, in_use: InUse<'_>) -> BTreeMap<&'a NodeName, Used> {
    let shares: BTreeMap<&NodeName, &NodeShare> =
        run.allocation.nodes.iter().zip(&run.allocation.shares).collect();
    let mut all: BTreeMap<&NodeName, Used> = BTreeMap::new();
    for step in job.steps.values().filter(|s| s.result.is_none() && s.consumes) {
        for (_, part) in step.nodes.unended().filter(|(_, part)| in_use(step, &part.node)) {
            let Some(share) = part.share.as_ref().or_else(|| shares.get(&part.node).copied()) else {
                continue;
            };
            let used = all.entry(&part.node).or_default();
            used.cpus.extend(share.cpus.iter().copied());
            // Memory and devices that a step did not ask for are the job's, shared by all of its steps.
            let asked = step.spec.as_ref();
            if asked.is_some_and(|s| s.memory != MemoryRequest::Default) {
                used.memory = used.memory.saturating_add(share.memory);
            }
            if asked.is_some_and(|s| asks_for_devices(s)) {
                used.gres.extend(share.gres.iter().cloned());
            }
        }
    }
    all
}

/// What `tasks` tasks of the step take on one node of its job.
struct Part<'a> {
    have: &'a NodeShare,
    used: Used,
    hardware: &'a Hardware,
}

impl Part<'_> {
    /// Free CPUs in whole cores, in order.
    fn free(&self, overlap: bool) -> Vec<Vec<u32>> {
        let mine = |cpus: &Vec<u32>| cpus.iter().all(|c| self.have.cpus.contains(c));
        let free = |cpus: &Vec<u32>| overlap || !cpus.iter().any(|c| self.used.cpus.contains(c));
        self.hardware.cores.iter().map(|c| c.cpus.clone()).filter(|c| mine(c) && free(c)).collect()
    }

    /// With `part` of the devices that the whole step counts.
    fn share(&self, spec: &StepSpec, tasks: u32, part: &Wanted) -> Result<NodeShare, NoRoom> {
        let gres = self.devices(spec, tasks, part)?;
        let cpus_each = spec.cpus_per_task.unwrap_or(1).max(1);
        let have = self.have.cpus.len() as u64;
        let of_gpus = spec.devices.cpus_per_gpu.filter(|_| exact(spec)).unwrap_or(0);
        let count = gres.iter().filter(|device| device.name == GPU).count() as u64;
        let by_gpus = count.saturating_mul(u64::from(of_gpus));
        let wanted = match (u64::from(tasks) * u64::from(cpus_each)).max(by_gpus) {
            wanted if spec.overcommit => wanted.min(have),
            wanted => wanted,
        };
        if wanted > have {
            return Err(NoRoom::Never(format!(
                "{wanted} CPUs were asked for on a node where the job has {have}"
            )));
        }
        let mut cpus = Vec::new();
        if exact(spec) {
            for core in self.free(spec.overlap) {
                if cpus.len() as u64 >= wanted {
                    break;
                }
                cpus.extend(core);
            }
            if (cpus.len() as u64) < wanted {
                return Err(NoRoom::Busy);
            }
            cpus.sort_unstable();
        } else if spec.overlap || self.used.cpus.is_empty() {
            cpus.clone_from(&self.have.cpus);
        } else {
            return Err(NoRoom::Busy);
        }
        let memory = match spec.memory {
            MemoryRequest::Default | MemoryRequest::PerNode(0) => self.have.memory,
            MemoryRequest::PerNode(mib) => mib,
            MemoryRequest::PerCpu(mib) => mib.saturating_mul(cpus.len() as u64),
            MemoryRequest::PerGpu(mib) => mib.saturating_mul(count),
        };
        if memory > self.have.memory {
            return Err(NoRoom::Never(format!(
                "{memory} MiB were asked for on a node where the job has {}",
                self.have.memory
            )));
        }
        let counts = spec.memory != MemoryRequest::Default && !spec.overlap;
        if counts && memory > self.have.memory.saturating_sub(self.used.memory) {
            return Err(NoRoom::Busy);
        }
        Ok(NodeShare { cpus, memory, gres })
    }

    /// Devices of the step here: all of the job's where it asks for none.
    fn devices(&self, spec: &StepSpec, tasks: u32, part: &Wanted) -> Result<Vec<GresDevice>, NoRoom> {
        if !asks_for_devices(spec) {
            return Ok(self.have.gres.clone());
        }
        let mut wanted =
            sum(&sum(spec.gres.as_ref().unwrap_or(&Wanted::new()), &spec.devices.for_tasks(tasks)), part);
        let sockets: BTreeSet<u32> = self
            .hardware
            .cores
            .iter()
            .filter(|core| core.cpus.iter().any(|cpu| self.have.cpus.contains(cpu)))
            .map(|core| core.socket)
            .collect();
        for (key, n) in &spec.devices.per_socket {
            add(&mut wanted, key.clone(), n.saturating_mul(sockets.len() as u64));
        }
        // One that does not work any more stays with the steps that have it, and goes to no others.
        let broken = |d: &&GresDevice| {
            let own = |of_node: &&GresDevice| of_node.name == d.name && of_node.index == d.index;
            // Where a job is only thought of, one that is fenced now may be well when it starts.
            d.fault.is_none()
                && self.hardware.gres.iter().find(own).is_some_and(|of_node| of_node.fault.is_some())
        };
        let broken: Vec<GresDevice> = self.have.gres.iter().filter(broken).cloned().collect();
        let take = |used: &[GresDevice]| {
            let mut pool = Pool::of_job(&self.have.gres, used);
            let chosen = pool.take(&wanted, &|_| true, false)?;
            Some(pool.given(&chosen))
        };
        match take(&broken) {
            None if take(&[]).is_some() => {
                let names: Vec<String> = broken.iter().map(|d| format!("{} {}", d.name, d.index)).collect();
                Err(NoRoom::Never(format!(
                    "{} of the job's devices does not work any more",
                    names.join(", ")
                )))
            }
            // What it can never have.
            None => {
                let why = "the job has fewer generic resources than the step asks for";
                Err(NoRoom::Never(format!("{why}: {}", berth_model::gres::print(&wanted))))
            }
            Some(given) if spec.overlap => Ok(given),
            Some(_) => take(&[broken, self.used.gres.clone()].concat()).ok_or(NoRoom::Busy),
        }
    }

    /// Tasks for which there are devices, free ones or all of the job's.
    fn tasks_by_devices(&self, spec: &StepSpec, free: bool) -> u32 {
        let used: &[GresDevice] = if free && !spec.overlap { &self.used.gres } else { &[] };
        crate::place::totals::most_tasks_of(&spec.devices, &Pool::of_job(&self.have.gres, used))
    }
}

/// Whether the step says which devices it has; otherwise it shares all of the job's.
fn asks_for_devices(spec: &StepSpec) -> bool {
    spec.gres.is_some() || spec.devices.names_devices()
}

/// What each node of a step has of the devices that the whole step counts, out of what is free there, or of what the job has.
fn parts_of(spec: &StepSpec, chosen: &[(usize, u32)], parts: &[Part<'_>]) -> Result<Vec<Wanted>, NoRoom> {
    let mut all = vec![Wanted::new(); chosen.len()];
    for (key, n) in &spec.devices.total {
        let nodes = chosen.len() as u64;
        if *n < nodes {
            let why =
                format!("{n} x {key} cannot be on {nodes} nodes, with one at least on each: give --nodes");
            return Err(NoRoom::Never(why));
        }
        let room = |free: bool| -> Vec<u64> {
            let count = |part: &Part<'_>| {
                let used: &[GresDevice] = if free && !spec.overlap { &part.used.gres } else { &[] };
                Pool::of_job(&part.have.gres, used).count(key)
            };
            chosen.iter().map(|(at, _)| parts.get(*at).map_or(0, count)).collect()
        };
        if evenly(*n, &room(false)).is_none() {
            let have: u64 = room(false).iter().sum();
            return Err(NoRoom::Never(format!(
                "{n} x {key} were asked for, the job has {have} on these nodes"
            )));
        }
        let each = evenly(*n, &room(true)).filter(|each| !each.contains(&0)).ok_or(NoRoom::Busy)?;
        for (wanted, n) in all.iter_mut().zip(each) {
            add(wanted, key.clone(), n);
        }
    }
    Ok(all)
}

/// Whether the step gets only the CPUs that it asked for; otherwise it gets all that the job has on its nodes.
fn exact(spec: &StepSpec) -> bool {
    spec.exact || spec.cpus_per_task.is_some()
}

impl Cluster {
    /// The step as it is asked for here: its tasks wait for the site's program of `srun` where there is one, and for none where they
    /// have no client; and they are told where that is.
    pub(super) fn as_asked(&self, actor: &Actor, mut spec: StepSpec) -> StepSpec {
        spec.client_address = match &actor.via {
            _ if !spec.attached => None,
            // On the controller's own machine, of which every node knows an address.
            None => Some(String::new()),
            Some(machine) => self.address_of(machine),
        };
        spec.prolog = match spec.prolog.filter(|_| spec.attached) {
            Some(SrunProlog::Site) => self.config.srun_prolog.then_some(SrunProlog::Own),
            settled => settled,
        };
        spec
    }

    /// `srun` in an allocation. An `Ok` means that the answer was given or will be given later.
    pub(super) fn create_step(
        &mut self,
        request: RequestId,
        actor: &Actor,
        job: JobId,
        spec: StepSpec,
    ) -> Result<(), Refusal> {
        texts::check_step(&spec)?;
        let record = self.driven(actor, job)?;
        self.may_make_steps(actor, job)?;
        let same = |s: &&Arc<StepRow>| s.spec.as_ref().is_some_and(|o| o.submission == spec.submission);
        if let Some(step) = record.steps.values().find(same) {
            let layout = step.layout(record.run());
            let waited = Span::default();
            let key = step.key;
            self.reply(request, Ok(Response::StepCreated { key, layout, waited }));
            return Ok(());
        }
        takes_steps(record)?;
        if let Some(enter) = &spec.enter {
            let plan = self.plan_entering(record, &spec, enter)?;
            self.begin_asked_step(request, actor, job, plan, self.clock);
            return Ok(());
        }
        self.check_step_images(&record.spec.spec, &spec)?;
        self.keep_image_of_step(&spec);
        if self.waits_already(job, &spec, request, actor) {
            return Ok(());
        }
        match self.plan_step(job, &spec) {
            Ok(_) if self.room_is_kept(&[job], self.clock) => {}
            Ok(plan) => {
                self.begin_asked_step(request, actor, job, plan, self.clock);
                return Ok(());
            }
            Err(NoRoom::Never(why)) => return Err(cannot(job, &why)),
            Err(NoRoom::Busy) => {}
        }
        self.wait_for_room(request, actor, job, spec, Vec::new());
        Ok(())
    }

    /// A step of a job is made outside of jobs, or in the job, or in another component of it.
    pub(super) fn may_make_steps(&self, actor: &Actor, job: JobId) -> Result<(), Refusal> {
        if actor.inside.is_none_or(|inside| self.whole(inside).contains(&job)) {
            return Ok(());
        }
        Err(Refusal::new(
            RefusalCode::Denied,
            format!(
                "Access/permission denied: a step of job {job} can be made outside of jobs, or in job {job}"
            ),
        ))
    }

    /// Whether the step waits already: its client asks again, perhaps with another patience, and is answered under this request.
    pub(super) fn waits_already(
        &mut self,
        job: JobId,
        spec: &StepSpec,
        request: RequestId,
        actor: &Actor,
    ) -> bool {
        let mut queue = self.waiting.get_mut(&job).into_iter().flatten();
        let Some(old) = queue.find(|w| w.spec.submission == spec.submission) else { return false };
        (old.request, old.patience) = (request, Patience::Waits);
        old.actor.clone_from(actor);
        if std::mem::take(&mut old.answered) {
            // There may be room for it since; and then for those in other components from whom it kept some.
            self.retry_waiting_in(job);
            self.retry_waiting(job);
        }
        self.wait_as_asked(job, request, spec.immediate);
        true
    }

    /// Has the step wait until there is room for it, as long as its client has patience.
    pub(super) fn wait_for_room(
        &mut self,
        request: RequestId,
        actor: &Actor,
        job: JobId,
        spec: StepSpec,
        others: Vec<(JobId, StepSpec)>,
    ) {
        let (since, patience, immediate) = (self.clock, Patience::Waits, spec.immediate);
        let (actor, answered) = (actor.clone(), false);
        let waiting = Waiting { request, answered, actor, spec, others, since, patience };
        self.waiting.entry(job).or_default().push(waiting);
        self.wait_as_asked(job, request, immediate);
    }

    /// Refuses it when its client's patience is over, be that now.
    fn wait_as_asked(&mut self, job: JobId, request: RequestId, immediate: Option<Span>) {
        match immediate {
            None => {}
            Some(Span(0)) => self.has_waited(job, request),
            Some(patience) => {
                self.timers.insert((self.clock + patience, Timer::StepImmediate(job, request)));
            }
        }
    }

    fn begin_asked_step(&mut self, request: RequestId, actor: &Actor, job: JobId, plan: Plan, since: Time) {
        let id = StepId::Number(self.next_step(job));
        self.begin_step(job, id, plan);
        self.note_job(actor, "made a step in", job);
        let Some(record) = self.job(job) else { return };
        let Some(step) = record.steps.get(&id) else { return };
        let (key, layout) = (step.key, step.layout(record.run()));
        let waited = self.clock.since(since);
        self.reply(request, Ok(Response::StepCreated { key, layout, waited }));
    }

    pub(super) fn next_step(&self, job: JobId) -> u32 {
        let Some(record) = self.job(job) else { return 0 };
        let numbers = record.steps.keys();
        let next = numbers.filter_map(|id| if let StepId::Number(n) = id { Some(n + 1) } else { None }).max();
        self.restored.step(job, record.row.attempt, next.unwrap_or(0))
    }

    /// Where a step would be, if it can begin now.
    pub(super) fn plan_step(&self, job: JobId, spec: &StepSpec) -> Result<Plan, NoRoom> {
        self.plan_beside(job, spec, &|_, _| true)
    }

    /// Where it would be, if only these parts of other steps were in use.
    pub(super) fn plan_beside(&self, job: JobId, spec: &StepSpec, in_use: InUse<'_>) -> Result<Plan, NoRoom> {
        let gone = || NoRoom::Never("the job is gone".into());
        let record = self.job(job).ok_or_else(gone)?;
        let run = record.run().ok_or_else(gone)?;
        self.plan_in(record, run, spec, in_use)
    }

    pub(super) fn plan_in(
        &self,
        record: &Job,
        run: &Run,
        spec: &StepSpec,
        in_use: InUse<'_>,
    ) -> Result<Plan, NoRoom> {
        let of_job;
        let spec = match record.spec.spec.resources.overcommit && !spec.overcommit {
            // Its tasks have no CPUs, in whatever step they are.
            true => {
                of_job = StepSpec { overcommit: true, ..spec.clone() };
                &of_job
            }
            false => spec,
        };
        let each = u64::from(spec.cpus_per_task.unwrap_or(1).max(1));
        let cap = |cpus: usize| {
            let by_cpus = match u32::try_from(cpus as u64 / each).unwrap_or(u32::MAX) {
                _ if spec.overcommit && cpus > 0 => u32::MAX,
                by_cpus => by_cpus,
            };
            spec.tasks_per_node.map_or(by_cpus, |p| by_cpus.min(p.max(1)))
        };
        let mut taken = used(record, run, in_use);
        let mut parts = Vec::with_capacity(run.allocation.nodes.len());
        for (name, have) in run.allocation.nodes.iter().zip(&run.allocation.shares) {
            let Some(node) = self.nodes.get(name) else {
                return Err(NoRoom::Never(format!("node {name} is not known")));
            };
            parts.push(Part { have, used: taken.remove(name).unwrap_or_default(), hardware: &node.hardware });
        }
        let places: Vec<Place<'_>> = parts
            .iter()
            .zip(&run.allocation.nodes)
            .zip(&run.allocation.tasks)
            .map(|((part, name), job)| {
                let most = cap(part.have.cpus.len()).min(part.tasks_by_devices(spec, false));
                let now = match part.share(spec, 1, &Wanted::new()) {
                    Ok(_) if exact(spec) => cap(part.free(spec.overlap).iter().map(Vec::len).sum())
                        .min(part.tasks_by_devices(spec, true)),
                    // What it can never have is said below, of the node where it is.
                    Ok(_) | Err(NoRoom::Never(_)) => most.min(part.tasks_by_devices(spec, true)),
                    Err(NoRoom::Busy) => 0,
                };
                Place { name, job: *job, most, now }
            })
            .collect();
        let (chosen, distribution) = layout::choose(spec, &record.spec.spec.resources.distribution, &places)?;
        let mut nodes = Vec::with_capacity(chosen.len());
        let devices = parts_of(spec, &chosen, &parts)?;
        for ((at, tasks), part) in chosen.into_iter().zip(devices) {
            let share = parts[at].share(spec, tasks, &part)?;
            let node = places[at].name.clone();
            self.check_agent_knows(&node, spec)?;
            nodes.push(StepNode { node, tasks, share: Some(share), pull: None, exit: None });
        }
        Ok(Plan {
            name: spec.name.clone(),
            consumes: !spec.overlap,
            started: self.clock,
            time_limit: spec.time_limit,
            nodes,
            distribution,
            spec: Some(spec.clone()),
            het: None,
        })
    }

    /// An agent of an earlier version would run it without what it does not know.
    fn check_agent_knows(&self, name: &NodeName, spec: &StepSpec) -> Result<(), NoRoom> {
        let Some(node) = self.nodes.get(name) else { return Ok(()) };
        let Some(feature) = node.lacks(&needed_by_step(spec)) else { return Ok(()) };
        let (option, version) = (feature.option(), &node.row.agent_version);
        Err(NoRoom::Never(format!(
            "the agent of {name} (version {version}) does not know {option}: upgrade it, or leave that out"
        )))
    }

    /// The step of an `srun` that made the job.
    pub(super) fn begin_first_step(&mut self, id: JobId) {
        let Some(spec) = self.job(id).and_then(|j| j.spec.first_step.clone()) else { return };
        match self.plan_step(id, &spec) {
            Ok(plan) => self.begin_step(id, StepId::Number(0), plan),
            Err(NoRoom::Never(why)) => self.fail_launch(id, why),
            Err(NoRoom::Busy) => self.fail_launch(id, "the step does not fit into its own allocation".into()),
        }
    }

    /// Records a step and sends it to its nodes.
    pub(super) fn begin_step(&mut self, job: JobId, id: StepId, plan: Plan) {
        let Some(attempt) = self.attempt_of(job) else { return };
        let key = StepKey { job, attempt, step: id };
        let now = self.clock;
        let mut sealed = None;
        let spec = plan.spec.map(|mut spec| {
            sealed = spec.login.take();
            let env = std::mem::take(&mut spec.env);
            let at = PayloadKey::Step(job, id);
            if !env.is_empty() || !self.first_step_env_is_stored(job, id) {
                let payload = Arc::new(Payload { env, ..Payload::default() });
                self.out.first.push(Write::PutPayload { key: at, payload: payload.clone() });
                self.out.payloads.insert(at, payload);
            }
            Arc::new(spec)
        });
        let login = sealed.is_some();
        if login {
            let payload = Payload { login: sealed, ..Payload::default() };
            let key = PayloadKey::StepLogin(job, id);
            self.out.first.push(Write::PutPayload { key, payload: Arc::new(payload) });
        }
        let parts = plan.nodes.len();
        let row = StepRow {
            version: ROW_VERSION,
            key,
            name: plan.name,
            spec,
            nodes: plan.nodes.into(),
            distribution: plan.distribution,
            consumes: plan.consumes,
            started: plan.started,
            time_limit: plan.time_limit,
            ending: None,
            cancelled_by: None,
            result: None,
            login,
            het: plan.het,
        };
        let Some(record) = self.job_live(job) else { return };
        record.steps.insert(id, Arc::new(row));
        record.progress.insert(id, std::iter::repeat_n(Progress::Sent(now), parts).collect());
        self.out.steps.insert(key);
        self.send_starts(key, parts);
        self.arm_resend(job);
    }

    /// The environment of a job's first step was stored with the job, at its submission.
    fn first_step_env_is_stored(&self, job: JobId, id: StepId) -> bool {
        id == StepId::Number(0) && self.job(job).is_some_and(|j| j.spec.first_step.is_some())
    }

    /// Steps that wait in a job, now that something became free: in order, each that fits.
    pub(super) fn retry_waiting(&mut self, job: JobId) {
        if self.waiting.is_empty() {
            return;
        }
        for member in self.whole(job) {
            self.retry_waiting_in(member);
        }
    }

    fn retry_waiting_in(&mut self, job: JobId) {
        let Some(queue) = self.waiting.remove(&job) else { return };
        let (mut left, mut kept) = (Vec::new(), false);
        for waiting in queue {
            if kept {
                left.push(waiting);
                continue;
            }
            match self.plan_waiting(job, &waiting) {
                // Its client asks again in a moment: what comes behind it does not take its room.
                Ok(_) if waiting.answered => {
                    kept = true;
                    left.push(waiting);
                }
                // Nor does what waits in another component of the job.
                Ok(_) if self.is_kept_from(job, &waiting) => left.push(waiting),
                Ok(plans) if !waiting.others.is_empty() => {
                    self.begin_het_step(waiting.request, &waiting.actor, plans, waiting.since);
                }
                Ok(plans) => {
                    for (job, plan) in plans {
                        self.begin_asked_step(waiting.request, &waiting.actor, job, plan, waiting.since);
                    }
                }
                Err(NoRoom::Busy) => left.push(waiting),
                Err(NoRoom::Never(why)) => self.refuse_one(&waiting, cannot(job, &why)),
            }
        }
        if !left.is_empty() {
            self.waiting.insert(job, left);
        }
    }

    /// Where a step that waits would be, if it can begin now.
    fn plan_waiting(&self, job: JobId, waiting: &Waiting) -> Result<Vec<(JobId, Plan)>, NoRoom> {
        if waiting.others.is_empty() {
            return Ok(vec![(job, self.plan_step(job, &waiting.spec)?)]);
        }
        let parts: Vec<(JobId, StepSpec)> =
            waiting.parts(job).map(|(part, spec)| (part, spec.clone())).collect();
        self.plan_het(&parts)
    }

    /// Whether there is room in one of these components of a job that a step is to have whose client asks again in a moment: in whichever component
    /// it waits, and not longer than `since`.
    pub(super) fn room_is_kept(&self, jobs: &[JobId], since: Time) -> bool {
        let whole = jobs.first().map(|job| self.whole(*job)).unwrap_or_default();
        whole.into_iter().any(|job| {
            let mut queue = self.waiting.get(&job).into_iter().flatten();
            queue.any(|w| {
                w.answered
                    && w.since <= since
                    && w.parts(job).any(|(part, _)| jobs.contains(&part))
                    && self.plan_waiting(job, w).is_ok()
            })
        })
    }

    /// The same for one that waits, of what waits elsewhere for longer.
    fn is_kept_from(&self, job: JobId, waiting: &Waiting) -> bool {
        let jobs: Vec<JobId> = waiting.parts(job).map(|(part, _)| part).collect();
        self.room_is_kept(&jobs, waiting.since)
    }

    fn refuse_one(&mut self, waiting: &Waiting, why: Refusal) {
        if !waiting.answered {
            self.reply(waiting.request, Err(why));
        }
    }

    /// The job is over: nothing that waits in it can begin.
    pub(super) fn refuse_waiting(&mut self, job: JobId) {
        self.looks.remove(&job);
        let mut over = self.waiting.remove(&job).unwrap_or_default();
        for member in self.whole(job) {
            let Some(queue) = self.waiting.get_mut(&member) else { continue };
            over.extend(queue.extract_if(.., |w| w.others.iter().any(|(other, _)| *other == job)));
            if queue.is_empty() {
                self.waiting.remove(&member);
            }
        }
        for waiting in over {
            let over =
                Refusal::new(RefusalCode::WrongState, format!("Job {job} is over; the step cannot start"));
            self.refuse_one(&waiting, over);
        }
    }

    /// The client of a waiting step is gone, or its patience. A step whose client wanted to wait at first keeps its place for a moment when that
    /// is told what it waits for: it asks again, to wait on.
    pub(super) fn give_up_waiting(&mut self, job: JobId, request: RequestId, tell: bool) {
        let Some(queue) = self.waiting.get_mut(&job) else { return };
        let Some(at) = queue.iter().position(|w| w.request == request && !w.answered) else { return };
        match queue.get_mut(at).filter(|w| tell && w.spec.immediate.is_none()) {
            Some(waiting) => {
                (waiting.answered, waiting.patience) = (true, Patience::Waits);
                self.timers.insert((self.clock + KEPT, Timer::StepKept(job, request)));
            }
            None => self.forget_waiting(job, at),
        }
        if tell {
            let busy =
                format!("Unable to create step for job {job}: Requested nodes are busy with other steps");
            self.reply(request, Err(Refusal::new(RefusalCode::Busy, busy)));
        }
    }

    fn forget_waiting(&mut self, job: JobId, at: usize) {
        let Some(queue) = self.waiting.get_mut(&job) else { return };
        queue.remove(at);
        if queue.is_empty() {
            self.waiting.remove(&job);
        }
    }

    /// The client of a step that kept its place was to ask again by now.
    pub(super) fn no_longer_kept(&mut self, job: JobId, request: RequestId) {
        let mut queue = self.waiting.get(&job).into_iter().flatten();
        let Some(at) = queue.position(|w| w.request == request && w.answered) else { return };
        self.forget_waiting(job, at);
        self.retry_waiting(job);
    }

    pub(super) fn abandoned(&mut self, request: RequestId) {
        let job =
            self.waiting.iter().find(|(_, q)| q.iter().any(|w| w.request == request)).map(|(id, _)| *id);
        if let Some(job) = job {
            self.give_up_waiting(job, request, false);
        }
    }
}

/// Refuses a job that has no allocation.
pub(super) fn takes_steps(record: &Job) -> Result<(), Refusal> {
    if matches!(record.row.phase, crate::rows::Phase::Running(_)) {
        return Ok(());
    }
    let text = if record.is_pending() { "has no allocation yet" } else { "is over" };
    let text = format!("Job {} {text}; no step can start in it", record.row.job);
    Err(Refusal::new(RefusalCode::WrongState, text))
}

pub(super) fn cannot(job: JobId, why: &str) -> Refusal {
    Refusal::new(
        RefusalCode::Impossible,
        format!("Unable to create step for job {job}: more was asked for than the job has: {why}"),
    )
}
