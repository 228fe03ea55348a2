//! Clients: they submit, make steps, cancel, hold, requeue and drain, repeat what was not answered, and
//! remember every promise they were given.

use crate::store::ModelStore;
use crate::world::{Happening, World};
use berth_model::distribution::Distribution;
use berth_model::ids::{Gid, JobId, NodeName, StepId, StepKey, SubmissionId, Uid};
use berth_model::login::SealedLogin;
use berth_model::record::NodeInfo;
use berth_model::request::{Actor, CancelRequest, NodeStateChange, Payload, Refusal, Request, Response};
use berth_model::rights::Rank;
use berth_model::spec::{
    ArraySpec, BatchScript, ContainerSpec, EnterSpec, Identity, ImageRef, IoSpec, JobKind, JobSelector,
    JobSpec, MemoryRequest, ResolvedImage, ResourceRequest, StepSpec, TimeLimit, WarnSignal,
};
use berth_model::state::{ExitStatus, NextState};
use berth_model::time::Span;
use berth_model::tres::GresKey;
use berth_sched_core::{Cluster, Event, RequestId};
use std::collections::{BTreeMap, BTreeSet};

/// Something that a client does, or is told.
#[derive(Clone, Debug)]
pub(crate) enum ClientAct {
    /// Does something new.
    New,
    /// Sends a request, again if it was not answered.
    Send(u64),
    /// Does not wait any longer, and goes.
    Leaves(u64),
    /// Looks whether a job that was taken while the cluster had no node can run at all.
    Looks(u64),
    /// Gets an answer.
    Answer(RequestId, Box<Result<Response, Refusal>>),
}

/// A request and what became of it.
struct Wish {
    actor: Actor,
    body: Request,
    request: RequestId,
    tries: u32,
    done: bool,
}

#[derive(Default)]
pub(crate) struct Client {
    wishes: BTreeMap<u64, Wish>,
    requests: BTreeMap<RequestId, u64>,
    next: u64,
    /// Jobs that were promised, by submission.
    pub(crate) promised: BTreeMap<SubmissionId, JobId>,
    /// Steps that were promised, by submission.
    steps: BTreeMap<SubmissionId, StepKey>,
    /// Promised jobs and their kinds.
    kinds: BTreeMap<JobId, JobKind>,
    /// Submissions sent while the cluster had no node: whether one can ever run them nobody could say.
    pub(crate) unsure: BTreeSet<u64>,
    /// Those asked about once more, and the jobs that came of them.
    pub(crate) asked: BTreeMap<u64, JobId>,
}

pub(crate) fn actor(uid: u32) -> Actor {
    Actor {
        identity: Identity {
            uid: Uid(uid),
            gid: Gid(uid),
            groups: Vec::new(),
            user: format!("user{uid}"),
            group: format!("group{uid}"),
            home: "/home".into(),
            shell: "/bin/sh".into(),
        },
        rank: if uid == 0 { Rank::Administrator } else { Rank::User },
        accounts: Vec::new(),
        inside: None,
        via: None,
    }
}

impl Client {
    /// A request that is nobody's wish.
    pub(crate) fn new_request(&mut self) -> RequestId {
        self.next += 1;
        RequestId(self.next - 1)
    }

    /// A request, for the log.
    pub(crate) fn words(&self, wish: u64) -> String {
        let Some(wish) = self.wishes.get(&wish) else { return "?".into() };
        let uid = wish.actor.identity.uid;
        match &wish.body {
            Request::Submit { spec, payload, .. } => {
                let script = payload.script.as_ref().map(|s| s.text.display().into_owned());
                let r = &spec.resources;
                format!(
                    "user {uid} submits {} {:?} script {script:?} nodes {} tasks {:?} limit {:?} array {:?}",
                    spec.submission.0, spec.kind, r.min_nodes, r.tasks, spec.time_limit, spec.array
                )
            }
            Request::CreateStep { job, spec } => {
                format!("user {uid} makes step {} in job {job}: {:?}", spec.submission.0, spec.argv)
            }
            other => format!("user {uid}: {other:?}"),
        }
    }

    /// Who sent a submission, what, and the job that came of it.
    pub(crate) fn submission(&self, wish: u64) -> Option<(&Actor, &Request, Option<JobId>)> {
        let wish = self.wishes.get(&wish)?;
        let spec = crate::components::submitted(&wish.body)?;
        Some((&wish.actor, &wish.body, self.promised.get(&spec.submission).copied()))
    }

    /// Every promised job must be in the store, and known to the core unless it ended long ago.
    pub(crate) fn check_known(&self, core: &Cluster, store: &ModelStore) -> Result<(), String> {
        let snapshot = core.snapshot();
        for job in self.promised.values() {
            let Some(row) = store.job(*job)? else {
                return Err(format!("job {job} was acknowledged and is lost"));
            };
            if !row.base_state().is_terminal() && !row.is_empty_array() && !snapshot.knows(*job) {
                return Err(format!(
                    "job {job} was acknowledged, has not ended, and is not known after a restart"
                ));
            }
        }
        Ok(())
    }

    /// Forgets the promises that were lost with a store.
    pub(crate) fn forget_lost(&mut self, store: &ModelStore) -> Result<(), String> {
        let mut kept = BTreeMap::new();
        for (submission, job) in std::mem::take(&mut self.promised) {
            if store.job(job)?.is_some() {
                kept.insert(submission, job);
            }
        }
        self.promised = kept;
        self.steps.clear();
        Ok(())
    }

    fn promise(&mut self, submission: &SubmissionId, job: JobId) -> Result<(), String> {
        match self.promised.insert(submission.clone(), job) {
            Some(other) if other != job => {
                Err(format!("submission {} became job {other} and job {job}", submission.0))
            }
            _ => Ok(()),
        }
    }

    fn promise_step(&mut self, submission: &SubmissionId, key: StepKey) -> Result<(), String> {
        match self.steps.insert(submission.clone(), key) {
            // A requeued job's next attempt knows nothing of the steps of the one before.
            Some(other) if other != key && other.attempt == key.attempt => {
                Err(format!("step {} became {other} and {key}", submission.0))
            }
            _ => Ok(()),
        }
    }
}

impl World {
    pub(crate) fn plan_clients(&mut self) {
        for _ in 0..self.chaos.operations {
            let at = Span(self.rng.between(crate::world::FIRST.0, self.chaos.busy.0));
            self.plan(at, Happening::Client(ClientAct::New));
        }
    }

    pub(crate) fn client_acts(&mut self, act: ClientAct) -> Result<(), String> {
        match act {
            ClientAct::New => {
                if let Some((actor, body)) = self.new_wish() {
                    self.wish(actor, body);
                }
                Ok(())
            }
            ClientAct::Send(wish) => self.send_wish(wish),
            ClientAct::Leaves(wish) => self.leaves(wish),
            ClientAct::Looks(wish) => {
                self.looks_whether_it_can_run(wish);
                Ok(())
            }
            ClientAct::Answer(request, result) => self.answered(request, *result),
        }
    }

    pub(crate) fn wish(&mut self, actor: Actor, body: Request) -> u64 {
        self.wish_after(Span(0), actor, body)
    }

    /// The same after a while.
    pub(crate) fn wish_after(&mut self, after: Span, actor: Actor, body: Request) -> u64 {
        let id = self.client.next;
        self.client.next += 1;
        let wish = Wish { actor, body, request: RequestId(u64::MAX), tries: 0, done: false };
        self.client.wishes.insert(id, wish);
        self.plan(after, Happening::Client(ClientAct::Send(id)));
        id
    }

    fn send_wish(&mut self, id: u64) -> Result<(), String> {
        let request = RequestId(self.client.next);
        let Some(wish) = self.client.wishes.get_mut(&id).filter(|w| !w.done) else { return Ok(()) };
        let keeps_trying = matches!(
            wish.body,
            Request::Submit { .. }
                | Request::SubmitHet { .. }
                | Request::CreateStep { .. }
                | Request::CreateHetStep { .. }
                | Request::EndAllocation { .. }
                | Request::ClientLost { .. }
        );
        wish.tries += 1;
        if wish.tries > 1 && !keeps_trying {
            wish.done = true;
            return Ok(());
        }
        wish.request = request;
        let leaves = matches!(wish.body, Request::CreateStep { .. } | Request::CreateHetStep { .. });
        let (actor, body) = (wish.actor.clone(), wish.body.clone());
        self.client.next += 1;
        self.client.requests.insert(request, id);
        if crate::components::submitted(&body).is_some() && self.has_no_node() {
            self.client.unsure.insert(id);
        }
        let again = Span(self.rng.between(2_000_000, 30_000_000));
        self.plan(again, Happening::Client(ClientAct::Send(id)));
        if leaves && !self.calm && self.rng.permille(150) {
            let after = self.span(100_000, 10_000_000);
            self.plan(after, Happening::Client(ClientAct::Leaves(id)));
        }
        self.control(Event::Client { request, actor, body })
    }

    /// The client of a request that is not answered goes away.
    fn leaves(&mut self, id: u64) -> Result<(), String> {
        let Some(wish) = self.client.wishes.get_mut(&id).filter(|w| !w.done && w.tries > 0) else {
            return Ok(());
        };
        wish.done = true;
        let request = wish.request;
        self.count("clients that did not wait for their step");
        self.control(Event::Abandoned { request })
    }

    /// An administrator does not hear of a node, and says that it is lost; and later that it may work again.
    pub(crate) fn give_up(&mut self, node: &NodeName) {
        let nodes = vec![node.clone()];
        let down = Request::UpdateNode {
            nodes: nodes.clone(),
            state: NodeStateChange::Down,
            reason: Some("not heard of".into()),
        };
        let resume = Request::UpdateNode { nodes, state: NodeStateChange::Resume, reason: None };
        let first = self.span(1_000_000, 40_000_000);
        let then = Span(first.0 + self.rng.between(100_000, 60_000_000));
        for (after, body) in [(first, down), (then, resume)] {
            self.wish_after(after, actor(0), body);
        }
    }

    fn answered(&mut self, request: RequestId, result: Result<Response, Refusal>) -> Result<(), String> {
        let Some(id) = self.client.requests.get(&request).copied() else { return Ok(()) };
        self.cancel_what_cannot_run(id, &result);
        let Some(wish) = self.client.wishes.get_mut(&id) else { return Ok(()) };
        if let Err(refusal) = &result
            && refusal.code == berth_model::request::RefusalCode::Internal
        {
            return Err(format!("a fault of ours: {refusal}"));
        }
        match (&wish.body, result) {
            (_, Err(refusal)) if refusal.code == berth_model::request::RefusalCode::Unavailable => {}
            (
                body @ (Request::Submit { .. } | Request::SubmitHet { .. }),
                Ok(Response::Submitted { job, .. }),
            ) => {
                wish.done = true;
                let Some(spec) = crate::components::submitted(body) else { return Ok(()) };
                let (submission, kind, owner) = (spec.submission.clone(), spec.kind, wish.actor.clone());
                self.count("jobs acknowledged");
                if self.client.unsure.contains(&id) {
                    self.count("jobs sent while the cluster had no node");
                }
                self.client.kinds.insert(job, kind);
                debug_assert!(self.restored.is_some() || self.client.promised.get(&submission) == Some(&job));
                if kind == JobKind::Alloc {
                    self.plan_end(job, owner);
                }
            }
            (Request::CreateStep { spec, .. }, Ok(Response::StepCreated { key, waited, .. })) => {
                wish.done = true;
                if waited > Span(0) {
                    *self.counts.entry("steps that waited for others").or_default() += 1;
                }
                let submission = spec.submission.clone();
                self.count("steps acknowledged");
                self.client.promise_step(&submission, key)?;
            }
            (Request::CreateHetStep { parts }, Ok(Response::HetStepCreated { parts: made, .. })) => {
                wish.done = true;
                let first = parts.first().map(|(_, spec)| spec.submission.clone()).zip(made.first());
                self.count("steps over several components acknowledged");
                if let Some((submission, (key, _))) = first {
                    self.client.promise_step(&submission, *key)?;
                }
            }
            _ => wish.done = true,
        }
        Ok(())
    }

    /// An answer leaves the controller, whether it arrives or not: what it promises counts from here.
    pub(crate) fn told(
        &mut self,
        request: RequestId,
        result: &Result<Response, Refusal>,
    ) -> Result<(), String> {
        let wish = self.client.requests.get(&request).and_then(|wish| self.client.wishes.get(wish));
        let out = match wish.map(|wish| &wish.body) {
            Some(Request::Leave { name, .. }) => Some((name.clone(), "machines that left")),
            Some(Request::RemoveMember { name, .. }) => Some((name.clone(), "machines that were removed")),
            _ => None,
        };
        if let (Some((node, how)), Ok(_)) = (out, result) {
            return self.is_out(&node, how);
        }
        let (Some(wish), Ok(Response::Submitted { job, .. })) = (wish, result) else { return Ok(()) };
        let Some(spec) = crate::components::submitted(&wish.body) else { return Ok(()) };
        let submission = spec.submission.clone();
        if self.client.promised.contains_key(&submission) {
            self.count("submissions acknowledged again");
        }
        if let Some(first) = self.client.promised.get(&submission).filter(|first| *first != job)
            && self.store.is_retired(*first)
        {
            // The site keeps no job for long, and the retry came after that.
            self.client.promised.remove(&submission);
            self.count("submissions repeated after their job was forgotten");
        }
        self.client.promise(&submission, *job)
    }

    fn plan_end(&mut self, job: JobId, owner: Actor) {
        let id = self.client.next;
        self.client.next += 1;
        let lost = self.rng.permille(300);
        let (actor, body) = if lost {
            (actor(0), Request::ClientLost { job })
        } else {
            (
                owner,
                Request::EndAllocation {
                    job,
                    status: ExitStatus { code: u8::from(self.rng.permille(500)), signal: 0 },
                },
            )
        };
        let wish = Wish { actor, body, request: RequestId(u64::MAX), tries: 0, done: false };
        self.client.wishes.insert(id, wish);
        let after = Span(self.rng.between(1_000_000, 90_000_000));
        self.plan(after, Happening::Client(ClientAct::Send(id)));
    }

    fn some_job(&mut self) -> Option<JobId> {
        let mut jobs: Vec<JobId> = self.client.kinds.keys().copied().collect();
        if let Some(core) = &self.controller.core {
            jobs.extend(core.snapshot().jobs().map(|j| j.id).take(50));
        }
        self.rng.pick(&jobs).copied()
    }

    fn selector(&mut self) -> Option<JobSelector> {
        let job = self.some_job()?;
        Some(match self.rng.below(4) {
            0 => JobSelector::Task(job, self.rng.count(0, 12)),
            1 => {
                let first = self.rng.count(0, 8);
                let range = (first, first + self.rng.count(0, 6), 1);
                JobSelector::Tasks(job, ArraySpec { ranges: vec![range], max_running: None })
            }
            _ => JobSelector::Job(job),
        })
    }

    /// The owner of what is meant, an administrator, or a stranger.
    fn somebody(&mut self, selector: &JobSelector) -> Actor {
        let job = selector.named().unwrap_or_default();
        let owner = self.store.spec(job).ok().flatten().map_or(1000, |s| s.identity.uid.0);
        let stranger = 1000 + self.rng.count(0, 2);
        actor(*self.rng.pick(&[owner, owner, owner, 0, stranger]).unwrap_or(&0))
    }

    fn new_wish(&mut self) -> Option<(Actor, Request)> {
        let user = actor(1000 + self.rng.count(0, 2));
        Some(match self.rng.below(100) {
            0..42 => (user, self.batch_or_components()),
            42..54 => (user, self.interactive(JobKind::Run)),
            54..60 => (user, self.interactive(JobKind::Alloc)),
            60..64 if self.rng.permille(700) => self.step_over_components()?,
            60..75 => {
                let job = self.some_job()?;
                let owner = self.store.spec(job).ok().flatten().map(|s| s.identity.uid.0).unwrap_or(1000);
                let entered = StepId::Number(self.rng.count(0, 1));
                let mut spec = self.step();
                if self.rng.permille(100) {
                    spec.enter = Some(EnterSpec { step: entered, node: None });
                    spec.env.push("OVERLAP=1".into());
                }
                (actor(owner), Request::CreateStep { job, spec: Box::new(spec) })
            }
            75..83 => {
                let selector = self.selector()?;
                let step = self.rng.permille(300).then(|| StepId::Number(self.rng.count(0, 2)));
                let signal = [None, None, None, Some(9), Some(10)];
                let signal = self.rng.pick(&signal).copied().flatten();
                let by = self.somebody(&selector);
                let cancel = CancelRequest { jobs: vec![(selector, step)], signal, ..Default::default() };
                (by, Request::Cancel(cancel))
            }
            83..84 => (user, Request::Cancel(CancelRequest { user: Some(Uid(1000)), ..Default::default() })),
            84..88 => {
                let selector = self.selector()?;
                (self.somebody(&selector), Request::Hold(vec![selector]))
            }
            88..92 => (actor(0), Request::Release(vec![self.selector()?])),
            92..97 => {
                let selector = self.selector()?;
                (self.somebody(&selector), Request::Requeue(vec![selector]))
            }
            _ => {
                let names: Vec<NodeName> = self.machines.keys().cloned().collect();
                let node = self.rng.pick(&names)?.clone();
                let states = [
                    if self.options.backups { NodeStateChange::Drain } else { NodeStateChange::Down },
                    NodeStateChange::Drain,
                    NodeStateChange::Resume,
                    NodeStateChange::Resume,
                ];
                if !self.options.backups && self.rng.permille(300) {
                    let next = *self.rng.pick(&[NextState::Before, NextState::Resume, NextState::Down])?;
                    let (nodes, asap, reason) = (vec![node], self.rng.permille(500), None);
                    return Some((actor(0), Request::RebootNodes { nodes, asap, next, reason }));
                }
                let state = *self.rng.pick(&states)?;
                (actor(0), Request::UpdateNode { nodes: vec![node], state, reason: Some("sim".into()) })
            }
        })
    }

    fn behaviour(&mut self) -> String {
        let millis = self.rng.between(10, 90_000);
        let code = if self.rng.permille(700) { 0 } else { self.rng.count(1, 9) };
        let how = ["plain", "plain", "plain", "stubborn", "oom"];
        format!("{millis} {code} {}", self.rng.pick(&how).copied().unwrap_or("plain"))
    }

    fn resources(&mut self) -> ResourceRequest {
        let mut r = ResourceRequest::default();
        if self.rng.permille(300) {
            r.min_nodes = self.rng.count(1, 2);
            r.max_nodes = self.rng.permille(700).then_some(r.min_nodes);
        }
        r.tasks = self.rng.permille(500).then(|| self.rng.count(1, 4));
        r.cpus_per_task = self.rng.permille(300).then(|| self.rng.count(1, 3));
        r.tasks_per_node = self.rng.permille(100).then(|| self.rng.count(1, 2));
        r.exclusive = self.rng.permille(50);
        r.memory = match self.rng.below(4) {
            0 => MemoryRequest::PerNode(self.rng.below(2000)),
            1 => MemoryRequest::PerCpu(self.rng.below(600)),
            _ => MemoryRequest::Default,
        };
        if self.rng.permille(150) {
            r.gres.insert(GresKey { name: "gpu".into(), kind: None }, u64::from(self.rng.count(1, 2)));
        }
        if self.rng.permille(50) {
            let names: Vec<NodeName> = self.machines.keys().cloned().collect();
            r.exclude.extend(self.rng.pick(&names).cloned());
        }
        r
    }

    pub(crate) fn job(&mut self, kind: JobKind) -> JobSpec {
        let number = self.client.next;
        self.client.next += 1;
        JobSpec {
            submission: SubmissionId(format!("s{number}")),
            kind,
            name: "sim".into(),
            partition: None,
            account: None,
            resources: self.resources(),
            time_limit: match self.rng.below(4) {
                0 => Some(TimeLimit::Unlimited),
                1 => Some(TimeLimit::Minutes(1)),
                _ => None,
            },
            begin: None,
            hold: false,
            nice: i32::try_from(self.rng.between(-5, 5)).unwrap_or(0),
            requeue: None,
            array: None,
            immediate: None,
            comment: None,
            work_dir: "/".into(),
            submit_dir: "/".into(),
            io: IoSpec::default(),
            container: match self.rng.below(10) {
                0..3 => Some(named_by_a_tag()),
                3..7 => Some(pinned(self.rng.below(5))),
                _ => None,
            },
            limits: Default::default(),
            umask: 0o22,
            warn_signal: None,
            lost_after: self.own_deadline(),
            clientless: false,
            user_env: false,
            command: "sim".into(),
            submit_line: Vec::new().into(),
            submit_host: String::new(),
            submit_sid: 0,
            het: None,
        }
    }

    /// How long a job asks to go on out of touch, where clocks allow deadlines: the least that it may, or more, and no more than the site does.
    fn own_deadline(&mut self) -> Option<Span> {
        if !self.chaos.deadlines || !self.rng.permille(300) {
            return None;
        }
        let site = i64::from(self.chaos.config.lost_after_seconds);
        self.count("jobs that asked for a deadline out of touch");
        let seconds = self.rng.pick(&[20, 30, 45]).copied().unwrap_or(20);
        Some(Span::from_secs(if site > 0 { seconds.min(site) } else { seconds }))
    }

    pub(crate) fn batch(&mut self) -> Request {
        let mut spec = self.job(JobKind::Batch);
        spec.hold = self.rng.permille(80);
        if self.rng.permille(100) {
            let before = self.span(1_000_000, 70_000_000);
            let signal = i32::try_from(self.rng.between(10, 12)).unwrap_or(10);
            spec.warn_signal = Some(WarnSignal { signal, before, batch_only: self.rng.permille(500) });
        }
        spec.requeue = self.rng.pick(&[None, Some(true), Some(false)]).copied().flatten();
        if self.rng.permille(100) {
            spec.begin = Some(self.now + Span(self.rng.between(0, 60_000_000)));
        }
        if self.rng.permille(250) {
            let first = self.rng.count(0, 3);
            let step = self.rng.count(1, 2);
            let range = (first, first + step * self.rng.count(0, 9), step);
            let max_running = self.rng.permille(500).then(|| self.rng.count(1, 3));
            spec.array = Some(ArraySpec { ranges: vec![range], max_running });
        }
        let text = self.behaviour();
        let payload = Payload {
            script: Some(BatchScript { text: text.into(), args: Vec::new() }),
            env: vec!["HOME=/".into()],
            login: self.rng.permille(200).then(|| SealedLogin { registry: "r".into(), sealed: "s".into() }),
        };
        Request::Submit { spec: Box::new(spec), payload, first_step: None, test_only: self.rng.permille(30) }
    }

    fn interactive(&mut self, kind: JobKind) -> Request {
        let mut spec = self.job(kind);
        spec.immediate = self.rng.permille(150).then(|| Span(self.rng.between(0, 5_000_000)));
        let first_step = (kind == JobKind::Run).then(|| {
            let mut step = self.step();
            (step.tasks, step.nodes, step.cpus_per_task, step.gres) = (None, None, None, None);
            step.env.retain(|e| e.0 != b"GRES=1");
            step.memory = MemoryRequest::Default;
            Box::new(step)
        });
        Request::Submit { spec: Box::new(spec), payload: Payload::default(), first_step, test_only: false }
    }

    pub(crate) fn step(&mut self) -> StepSpec {
        let number = self.client.next;
        self.client.next += 1;
        let words = self.behaviour();
        let overlap = self.rng.permille(200);
        let gpu = self.rng.permille(100);
        let mut env: Vec<berth_model::ByteStr> = vec!["A=1".into()];
        // What the checks must know of it and a launch does not say.
        env.extend(overlap.then(|| "OVERLAP=1".into()));
        env.extend(gpu.then(|| "GRES=1".into()));
        StepSpec {
            submission: SubmissionId(format!("t{number}")),
            name: "step".into(),
            tasks: self.rng.permille(400).then(|| self.rng.count(1, 3)),
            nodes: self.rng.permille(200).then(|| self.rng.count(1, 2)),
            max_nodes: None,
            tasks_per_node: None,
            node_list: Vec::new(),
            exclude: Vec::new(),
            relative: self.rng.permille(50).then_some(1),
            distribution: self.rng.permille(200).then_some(Distribution::Cyclic),
            cpus_per_task: self.rng.permille(200).then(|| self.rng.count(1, 2)),
            memory: if self.rng.permille(100) { MemoryRequest::PerNode(100) } else { MemoryRequest::Default },
            gres: gpu.then(|| BTreeMap::from([(GresKey { name: "gpu".into(), kind: None }, 1)])),
            devices: Default::default(),
            gpu_bind: None,
            overlap,
            exact: self.rng.permille(300),
            immediate: self.rng.permille(100).then(|| Span(self.rng.between(0, 3_000_000))),
            argv: words.split(' ').map(Into::into).collect(),
            env,
            work_dir: "/".into(),
            work_dir_explicit: false,
            io: IoSpec::default(),
            container: None,
            limits: Default::default(),
            umask: 0o22,
            pty: None,
            kill_on_bad_exit: false,
            wait_after_first_exit: None,
            time_limit: self.rng.permille(100).then_some(TimeLimit::Minutes(1)),
            attached: false,
            enter: None,
            login: None,
            x11: None,
            client_address: None,
            pytorch: false,
            task_prolog: Default::default(),
            task_epilog: Default::default(),
            prolog: None,
            mpi: None,
            cpu_bind: None,
            mem_bind: None,
            programs: Vec::new(),
            overcommit: false,
            fabric: None,
            sockets: None,
            receive: None,
        }
    }

    /// In some worlds every node is rebooted once more, after the faults: each must come to it, and be back.
    pub(crate) fn reboot_at_the_end(&mut self) {
        if self.options.backups || !self.rng.permille(300) {
            return;
        }
        let (nodes, asap, next) = (Vec::new(), self.rng.permille(500), NextState::Resume);
        self.count("reboots of everything");
        self.wish(actor(0), Request::RebootNodes { nodes, asap, next, reason: None });
    }

    /// What lets everything end: nodes in service, nothing held, allocations given back.
    pub(crate) fn wishes_for_the_end(&mut self) {
        for id in self.client.wishes.iter().filter(|(_, w)| !w.done).map(|(id, _)| *id).collect::<Vec<_>>() {
            self.plan(Span(0), Happening::Client(ClientAct::Send(id)));
        }
        let nodes: Vec<NodeName> = self
            .controller
            .core
            .iter()
            // What is to be rebooted is in service when it is back.
            .flat_map(|c| {
                let rests = |n: &NodeInfo| {
                    n.condition.reboot.as_ref().is_none_or(|reboot| reboot.next != NextState::Resume)
                };
                c.snapshot().nodes().filter(rests).map(|n| n.name).collect::<Vec<_>>()
            })
            .collect();
        // One by one: of one that is being removed it is refused.
        for node in nodes {
            let nodes = vec![node];
            self.wish(actor(0), Request::UpdateNode { nodes, state: NodeStateChange::Resume, reason: None });
        }
        let jobs: BTreeSet<JobId> = self
            .controller
            .core
            .iter()
            .flat_map(|c| c.snapshot().jobs().map(|j| j.id).collect::<Vec<_>>())
            .collect();
        let release = jobs.iter().map(|j| JobSelector::Job(*j)).collect();
        self.wish(actor(0), Request::Release(release));
        for (job, kind) in self.client.kinds.clone() {
            if kind == JobKind::Alloc {
                self.wish(actor(0), Request::ClientLost { job });
            }
        }
    }
}

/// A container whose image only the nodes find, as of a client that is inside a container itself.
fn named_by_a_tag() -> ContainerSpec {
    ContainerSpec::of(ImageRef { typed: "debian".into(), resolved: None })
}

/// One of a few images, found before.
fn pinned(number: u64) -> ContainerSpec {
    let resolved = ResolvedImage::Manifest {
        source: "docker://r/x".into(),
        digest: format!("sha256:{number:064x}"),
        insecure: false,
        indexes: Vec::new(),
        pin: None,
    };
    ContainerSpec::of(ImageRef { typed: "r/x".into(), resolved: Some(resolved) })
}
