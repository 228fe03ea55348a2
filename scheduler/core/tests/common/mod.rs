//! A cluster with agents made of nothing: what the core sends is looked at, what agents would say is said.
#![allow(dead_code)] // `scale` uses a part of it
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // what fails here fails the test

use berth_model::carry::CarriedTo;
use berth_model::config::Config;
use berth_model::hardware::{Core, GresDevice, Hardware};
use berth_model::ids::*;
use berth_model::launch::{StepExit, StepPhase, Usage};
use berth_model::link::{FromAgent, Highest, Start, ToAgent};
use berth_model::record::JobInfo;
use berth_model::request::*;
use berth_model::rights::Rank;
use berth_model::spec::*;
use berth_model::state::{ExitStatus, JobState};
use berth_model::time::{Span, Time};
use berth_sched_core::*;
use std::collections::{BTreeMap, BTreeSet};

/// A store that keeps nothing: it only proves commits.
pub struct Nowhere;
impl Store for Nowhere {
    fn apply(&mut self, _: &[Write]) -> Result<(), CommitError> {
        Ok(())
    }
}

/// What a store would hold after the writes.
pub fn stored(writes: &[Write]) -> Stored {
    let (mut specs, mut jobs, mut steps, mut nodes) =
        (BTreeMap::new(), BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let (mut members, mut tokens) = (BTreeMap::new(), BTreeMap::new());
    let (mut parts, mut left) = (BTreeMap::new(), BTreeSet::new());
    let mut meta = None;
    for w in writes {
        match w {
            Write::PutSpec(r) => drop(specs.insert(r.job, (**r).clone())),
            Write::PutJob(r) => {
                if r.may_have_departures() {
                    left.retain(|(job, _)| *job != r.job);
                }
                jobs.insert(r.job, (**r).clone());
            }
            Write::LeaveNode { job, node } => drop(left.insert((*job, node.clone()))),
            Write::PutPart { key, at, part } => drop(parts.insert((*key, *at), (**part).clone())),
            Write::DeleteJob(id) => drop(jobs.remove(id)),
            Write::PutStep(r) => {
                parts.retain(|(key, _), _| *key != r.key);
                steps.insert(r.key, (**r).clone());
            }
            Write::PutNode(r) => drop(nodes.insert(r.name.clone(), (**r).clone())),
            Write::PutMeta(r) => meta = Some(r.clone()),
            Write::DeleteNode(name) => drop(nodes.remove(name)),
            Write::PutMember(r) => drop(members.insert(r.name.clone(), (**r).clone())),
            Write::DeleteMember(name) => drop(members.remove(name)),
            Write::PutToken(r) => drop(tokens.insert(r.id.clone(), (**r).clone())),
            Write::DeleteToken(id) => drop(tokens.remove(id)),
            Write::PutPayload { .. } | Write::DeletePayload(_) | Write::Retire(_) | Write::AddAudit(_) => {}
        }
    }
    let mut stored = Stored {
        meta,
        specs: specs.into_values().collect(),
        jobs: jobs.into_values().collect(),
        steps: steps.into_values().collect(),
        nodes: nodes.into_values().collect(),
        members: members.into_values().collect(),
        tokens: tokens.into_values().collect(),
    };
    stored.bring_up_to_date(parts.into_iter().map(|((key, at), part)| (key, at, part)), left);
    stored
}

pub struct World {
    pub core: Cluster,
    pub now: Time,
    pub sent: Vec<ToAgent>,
    /// Starts that are carried on: on which connection, and for whom beside its own node.
    pub carried: Vec<(u64, Start, Vec<CarriedTo>)>,
    pub replies: BTreeMap<u64, Result<Response, Refusal>>,
    pub writes: Vec<Write>,
    /// Nodes whose agents were cut off.
    pub cut: Vec<NodeName>,
    pub superseded: Option<Term>,
    /// Nodes that are to be powered off, and what is to be told with the answer.
    pub fences: Vec<(NodeName, Time)>,
    pub agent_term: Term,
    /// When nodes say that they booted, by their wall clocks.
    pub booted: Time,
    /// The full name that nodes say from now on.
    pub host: Option<String>,
    /// The highest numbers that agents say they know of.
    pub highest: Highest,
    /// Whether agents ask for renewals, as all do but those of earlier versions.
    pub ask: bool,
    pub sessions: BTreeMap<NodeName, (u64, Session)>,
    next: u64,
}

pub fn hardware(cores: u32, threads: u32, memory: u64, gpus: u32) -> Hardware {
    Hardware {
        cores: (0..cores)
            .map(|c| Core { socket: 0, numa: 0, cpus: (0..threads).map(|t| c * threads + t).collect() })
            .collect(),
        memory,
        gres: (0..gpus)
            .map(|i| GresDevice { name: "gpu".into(), index: i, ..GresDevice::default() })
            .collect(),
        ..Hardware::default()
    }
}

pub fn actor(uid: u32) -> Actor {
    let rank = if uid == 0 { Rank::Administrator } else { Rank::User };
    Actor { rank, ..Actor::user(berth_samples::identity(uid)) }
}

pub use berth_samples::job;

pub fn step(submission: &str) -> StepSpec {
    StepSpec { env: vec!["A=1".into()], ..berth_samples::step(submission) }
}

pub fn script() -> Payload {
    Payload {
        script: Some(BatchScript { text: "#!/bin/sh\ntrue\n".into(), args: vec![] }),
        env: vec!["HOME=/".into()],
        login: None,
    }
}

pub fn exit(status: ExitStatus) -> StepExit {
    StepExit {
        status,
        tasks: vec![],
        oom: false,
        launch_error: None,
        ended_by: None,
        image: None,
        usage: Usage::default(),
        ended: Time(0),
    }
}

impl World {
    /// The cluster that comes of a backup made after the first `writes`: without its agents, and once the time is over in which nothing starts anyway.
    pub fn of_backup(&self, writes: usize) -> World {
        self.made_of(writes, |restored| restored.not_before = None)
    }

    /// The same as its first controller starts.
    pub fn just_restored(&self, writes: usize) -> World {
        self.made_of(writes, |_| {})
    }

    fn made_of(&self, writes: usize, change: impl Fn(&mut Restored)) -> World {
        let mut stored = stored(&self.writes[..writes]);
        for write in go_on_from(&stored, 0) {
            match write {
                Write::PutMeta(mut meta) => {
                    meta.restored.iter_mut().for_each(&change);
                    stored.meta = Some(meta);
                }
                Write::DeleteToken(id) => stored.tokens.retain(|t| t.id != id),
                Write::AddAudit(row) => assert!(row.what.starts_with("a backup was restored"), "{row:?}"),
                other => panic!("{other:?}"),
            }
        }
        let config = CoreConfig::new(&Config::default()).unwrap();
        let mut back = World::new(&Config::default());
        back.core = Cluster::restore(config, Term(1001), stored, self.now).unwrap();
        (back.now, back.next) = (self.now, self.next);
        back
    }

    pub fn new(config: &Config) -> World {
        let core = Cluster::new(CoreConfig::new(config).unwrap(), Term(1));
        World {
            core,
            now: Time::from_secs(1_000_000),
            sent: vec![],
            carried: vec![],
            replies: BTreeMap::new(),
            writes: vec![],
            cut: vec![],
            superseded: None,
            fences: vec![],
            agent_term: Term(0),
            booted: Time(0),
            host: None,
            highest: Highest::default(),
            ask: true,
            sessions: BTreeMap::new(),
            next: 0,
        }
    }

    /// One node `n1` of four cores and 4000 MiB, connected.
    pub fn small() -> World {
        let mut w = World::new(&Config::default());
        w.node("n1", hardware(4, 1, 4000, 2));
        w
    }

    pub fn event(&mut self, event: Event) {
        self.quiet_event(event);
        self.core.audit().unwrap();
    }

    /// Without the audit, which looks at everything.
    pub fn quiet_event(&mut self, event: Event) {
        let Outcome { writes, after_commit, .. } = self.core.handle(event, self.now);
        let proof = commit(&mut Nowhere, &writes).unwrap();
        self.writes.extend(writes);
        for effect in after_commit.open(&proof) {
            match effect {
                Effect::Reply { request, result } => {
                    assert!(self.replies.insert(request.0, result).is_none(), "answered twice");
                }
                Effect::Send { message, connection, .. } => {
                    if let ToAgent::Welcome { session, .. } = &message {
                        for (c, s) in self.sessions.values_mut() {
                            if *c == connection {
                                *s = *session;
                            }
                        }
                    }
                    self.sent.push(message);
                }
                Effect::Carry { connection, start, to, .. } => self.carried.push((connection, *start, to)),
                Effect::CutOff { node, .. } => self.cut.push(node),
                Effect::Supersede(term) => self.superseded = Some(term),
                Effect::Fence { node, asked } => self.fences.push((node, asked)),
                Effect::Unconfirmed { .. } | Effect::Disconnect { .. } => {}
            }
        }
    }

    /// A step ends and its job leaves the node.
    pub fn quiet_exit(&mut self, node: &str, key: StepKey, status: ExitStatus) {
        let node = NodeName::from(node);
        let (connection, session) = self.sessions[&node];
        let phase = StepPhase::Exited(exit(status));
        let message = FromAgent::Step { session, key, phase };
        self.quiet_event(Event::Agent { node: node.clone(), connection, message });
        let message = FromAgent::JobGone {
            session,
            job: key.job,
            attempt: key.attempt,
            steps: vec![],
            epilog: None,
            faults: vec![],
        };
        self.quiet_event(Event::Agent { node, connection, message });
    }

    /// What the clocks of all nodes show: another time than anybody else's.
    pub fn clock(&self) -> Time {
        if self.ask { Time(self.now.0 - 999_995_000_000) } else { Time(0) }
    }

    pub fn later(&mut self, span: Span) {
        let end = self.now + span;
        while let Some(wake) = self.core.next_wake().filter(|w| *w <= end) {
            self.now = self.now.max(wake);
            self.event(Event::Tick);
        }
        self.now = end;
        self.event(Event::Tick);
    }

    pub fn node(&mut self, name: &str, hardware: Hardware) {
        self.hello(name, "boot", hardware, vec![], vec![]);
        self.core.audit().unwrap();
    }

    /// A node, without an audit of all of them.
    pub fn tell_hello_quietly(&mut self, name: &str, hardware: Hardware) {
        self.hello(name, "boot", hardware, vec![], vec![]);
    }

    /// A Hello of the connection that is there, as one that was repeated and is late.
    pub fn hello_again(&mut self, name: &str, hardware: Hardware) {
        self.hello_knowing(name, hardware, berth_model::feature::Feature::known());
    }

    /// The same, of an agent that knows this.
    pub fn hello_knowing(&mut self, name: &str, hardware: Hardware, features: Vec<String>) {
        let node = NodeName::from(name);
        let (connection, _) = self.sessions[&node];
        let message = FromAgent::Hello {
            node: node.clone(),
            boot_id: "boot".into(),
            boot_time: Time(0),
            agent_start: Time(0),
            version: "1".into(),
            hardware,
            term: self.agent_term,
            steps: vec![],
            jobs: vec![],
            asked: self.clock(),
            unknown: vec![],
            features,
            highest: self.highest,
            host: None,
        };
        self.event(Event::Agent { node, connection, message });
    }

    pub fn hello(
        &mut self,
        name: &str,
        boot: &str,
        hardware: Hardware,
        steps: Vec<(StepKey, StepPhase)>,
        jobs: Vec<(JobId, Attempt)>,
    ) {
        self.next += 1;
        let connection = self.next;
        let node = NodeName::from(name);
        self.sessions.insert(node.clone(), (connection, Session(0)));
        let message = FromAgent::Hello {
            node: node.clone(),
            boot_id: boot.into(),
            boot_time: self.booted,
            agent_start: Time(0),
            version: "1".into(),
            hardware,
            term: self.agent_term,
            steps,
            jobs,
            asked: self.clock(),
            unknown: vec![],
            features: berth_model::feature::Feature::known(),
            highest: self.highest,
            host: self.host.clone(),
        };
        self.quiet_event(Event::Agent { node, connection, message });
    }

    pub fn request_later(&mut self, actor: Actor, body: Request) -> u64 {
        self.next += 1;
        let request = self.next;
        self.event(Event::Client { request: RequestId(request), actor, body });
        request
    }

    pub fn request(&mut self, actor: Actor, body: Request) -> Result<Response, Refusal> {
        let request = self.request_later(actor, body);
        self.replies.remove(&request).expect("no answer")
    }

    pub fn submit(&mut self, spec: JobSpec) -> Result<JobId, Refusal> {
        let (payload, first_step) = match spec.kind {
            JobKind::Batch => (script(), None),
            JobKind::Run => (Payload::default(), Some(Box::new(step("first")))),
            JobKind::Alloc => (Payload::default(), None),
        };
        let body = Request::Submit { spec: Box::new(spec), payload, first_step, test_only: false };
        match self.request(actor(1000), body)? {
            Response::Submitted { job, .. } => Ok(job),
            other => panic!("{other:?}"),
        }
    }

    pub fn batch(&mut self, submission: &str, change: impl FnOnce(&mut JobSpec)) -> JobId {
        let mut spec = job(JobKind::Batch, submission);
        change(&mut spec);
        self.submit(spec).unwrap()
    }

    /// A node is heard of, and nothing is new there. `asked`: when it sent this.
    pub fn heartbeat(&mut self, node: &str, asked: Time) {
        self.tell(node, |session| FromAgent::Heartbeat {
            session,
            load: 0,
            free_memory: 0,
            troubles: vec![],
            drift: vec![],
            asked,
            used: vec![],
            gpus: vec![],
        });
    }

    pub fn tell(&mut self, node: &str, make: impl FnOnce(Session) -> FromAgent) {
        let node = NodeName::from(node);
        let (connection, session) = self.sessions[&node];
        self.event(Event::Agent { node, connection, message: make(session) });
    }

    pub fn phase(&mut self, node: &str, key: StepKey, phase: StepPhase) {
        self.tell(node, |session| FromAgent::Step { session, key, phase });
    }

    pub fn exited(&mut self, node: &str, key: StepKey, status: ExitStatus) {
        self.phase(node, key, StepPhase::Exited(exit(status)));
    }

    pub fn gone(&mut self, node: &str, job: JobId, attempt: u32) {
        self.tell(node, |session| FromAgent::JobGone {
            session,
            job,
            attempt: Attempt(attempt),
            steps: vec![],
            epilog: None,
            faults: vec![],
        });
    }

    /// All agents answer what they were asked since the last look: of these steps none has ended.
    pub fn nothing_has_ended(&mut self) {
        let mut asked: BTreeMap<u64, BTreeSet<StepKey>> = BTreeMap::new();
        for message in &self.sent {
            if let ToAgent::LookForEnds { ask, keys } = message {
                asked.entry(*ask).or_default().extend(keys);
            }
        }
        self.sent.clear();
        for (ask, keys) in asked {
            for node in self.sessions.keys().cloned().collect::<Vec<_>>() {
                self.not_ended(&node.0, ask, keys.iter().copied().collect());
            }
        }
    }

    pub fn not_ended(&mut self, node: &str, ask: u64, keys: Vec<StepKey>) {
        self.tell(node, |session| FromAgent::NotEnded { session, ask, keys });
    }

    pub fn info(&self, id: JobId) -> JobInfo {
        self.core.snapshot().job(id).expect("the job is not known")
    }

    pub fn state(&self, id: JobId) -> JobState {
        self.info(id).state
    }

    /// Keys of the steps that agents were told to start, since the last call.
    pub fn starts(&mut self) -> Vec<StepKey> {
        let sent = std::mem::take(&mut self.sent);
        sent.into_iter()
            .filter_map(|m| if let ToAgent::Start(s) = m { Some(s.launch.key) } else { None })
            .collect()
    }
}

pub fn batch_key(job: JobId, attempt: u32) -> StepKey {
    StepKey { job, attempt: Attempt(attempt), step: StepId::Batch }
}
