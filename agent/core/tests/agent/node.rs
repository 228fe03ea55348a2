//! A node's agent core with a connection, and what is said to it.

use berth_agent_core::*;
use berth_model::hardware::Hardware;
use berth_model::ids::*;
use berth_model::launch::*;
use berth_model::link::*;
use berth_model::spec::JobKind;
use berth_model::state::ExitStatus;
use berth_model::time::{Span, Time};

pub const JOB: (JobId, Attempt) = (JobId(7), Attempt(0));
pub const BATCH: StepKey = StepKey { job: JobId(7), attempt: Attempt(0), step: StepId::Batch };
pub const FIRST: StepKey = StepKey { job: JobId(7), attempt: Attempt(0), step: StepId::Number(0) };
pub const WAIT: Span = Span::from_secs(30);

pub fn launch(key: StepKey) -> StepLaunch {
    let launch = berth_samples::launch(key);
    StepLaunch { job: JobFacts { kind: JobKind::Batch, ..launch.job }, kill_wait: WAIT, ..launch }
}

pub fn start(key: StepKey, term: u64) -> Start {
    Start {
        term: Term(term),
        launch: launch(key),
        job_time_left: None,
        step_time_left: None,
        warn: None,
        login: None,
        lease: None,
    }
}

pub fn end_job(cause: EndCause) -> ToAgent {
    ToAgent::EndJob { term: Term(3), job: JOB.0, attempt: JOB.1, kill_wait: WAIT, cause }
}

pub fn exit(signal: u8) -> StepExit {
    StepExit {
        status: ExitStatus { code: 0, signal },
        tasks: vec![],
        oom: false,
        launch_error: None,
        ended_by: None,
        image: None,
        usage: Usage::default(),
        ended: Time(0),
    }
}

/// Steps and runs as a Hello tells them.
pub type Told = (Vec<(StepKey, StepPhase)>, Vec<(JobId, Attempt)>);

pub fn config() -> AgentConfig {
    AgentConfig {
        node: "n1".into(),
        boot_id: "b".into(),
        boot_time: Time(0),
        agent_start: Time(0),
        version: "1".into(),
        hardware: Hardware::default(),
        term: Term(3),
        unkept: None,
        prolog: false,
        unkillable: Span::from_secs(60),
        health: None,
        unhealthy: None,
        unfit: None,
        unknown: vec![],
        features: vec![],
        highest: Highest::default(),
    }
}

/// The core, its clock, and what it decided.
pub struct Node {
    pub core: AgentCore,
    pub now: Time,
    pub seen: Vec<AgentEffect>,
    /// Why no term can be kept.
    pub no_disk: Option<String>,
}

impl Node {
    pub fn new(adopted: Vec<Adopted>) -> Node {
        Node::made(config(), vec![], adopted)
    }

    /// With another configuration, after the start of an agent that found this.
    pub fn made(config: AgentConfig, jobs: Vec<AdoptedJob>, adopted: Vec<Adopted>) -> Node {
        let now = Time::from_secs(100);
        let mut node =
            Node { core: AgentCore::new(config, adopted, jobs, now), now, seen: vec![], no_disk: None };
        node.event(AgentEvent::Connected);
        node.say(ToAgent::Welcome { term: Term(3), session: Session(1), heartbeat: Span::from_secs(10) });
        node
    }

    pub fn event(&mut self, event: AgentEvent) {
        let effects = self.core.handle(event, self.now);
        let term = effects.iter().find_map(|effect| match effect {
            AgentEffect::RememberTerm(term) => Some(*term),
            _ => None,
        });
        self.seen.extend(effects);
        if let Some(term) = term {
            let result = self.no_disk.clone().map_or(Ok(()), Err);
            self.event(AgentEvent::TermKept { term, result });
        }
    }

    pub fn say(&mut self, message: ToAgent) {
        self.event(AgentEvent::Controller(message));
    }

    pub fn count(&self, what: impl Fn(&AgentEffect) -> bool) -> usize {
        self.seen.iter().filter(|e| what(e)).count()
    }

    pub fn spawns(&self) -> usize {
        self.count(|e| matches!(e, AgentEffect::Spawn { .. }))
    }

    pub fn start(&mut self, start: Start) {
        self.say(ToAgent::Start(Box::new(start)));
    }

    pub fn exits(&mut self, key: StepKey, signal: u8) {
        self.event(AgentEvent::Supervisor { key, event: SupervisorEvent::Exited(exit(signal)) });
    }

    pub fn ready(&mut self, key: StepKey) {
        self.event(AgentEvent::Image { key, event: ImageEvent::Ready(None) });
        self.event(AgentEvent::Supervisor { key, event: SupervisorEvent::Started });
    }

    pub fn running(&mut self, key: StepKey) {
        self.start(start(key, 3));
        self.ready(key);
    }

    pub fn later(&mut self, span: Span) {
        let end = self.now + span;
        while let Some(wake) = self.core.next_wake().filter(|w| *w <= end) {
            self.now = self.now.max(wake);
            self.event(AgentEvent::Tick);
        }
        self.now = end;
    }

    /// Signals and kills, in order, since the last look.
    pub fn blows(&mut self) -> Vec<i32> {
        let seen = std::mem::take(&mut self.seen);
        seen.iter()
            .filter_map(|e| match e {
                AgentEffect::SignalStep { signal, .. } => Some(*signal),
                AgentEffect::KillStep { .. } => Some(9),
                _ => None,
            })
            .collect()
    }

    pub fn phases(&self, key: StepKey) -> Vec<StepPhase> {
        self.seen
            .iter()
            .filter_map(|e| match e {
                AgentEffect::Send(FromAgent::Step { key: k, phase, .. }) if *k == key => Some(phase.clone()),
                _ => None,
            })
            .collect()
    }

    /// Steps and runs of the last Hello.
    pub fn introduced(&self) -> Told {
        let hello = self.seen.iter().rev().find_map(|e| match e {
            AgentEffect::Send(FromAgent::Hello { steps, jobs, .. }) => Some((steps.clone(), jobs.clone())),
            _ => None,
        });
        hello.unwrap()
    }
}
