//! One step over very many nodes, under a virtual clock: the core of the controller, and one of an agent for each node, with what messages,
//! commits and starts take in a cluster. `tests/bench/launch.sh` makes a curve of it.

#![allow(clippy::unwrap_used, clippy::panic)] // what fails here fails the test

use berth_agent_core::{AgentConfig, AgentCore, AgentEffect, AgentEvent, ImageEvent, SupervisorEvent};
use berth_model::config::Config;
use berth_model::hardware::{Core, Hardware};
use berth_model::ids::{NodeName, Session, StepKey, Term};
use berth_model::launch::{StepExit, StepLaunch, Usage};
use berth_model::link::{Highest, ToAgent};
use berth_model::request::{Actor, Payload, Request, Response};
use berth_model::spec::JobKind;
use berth_model::state::{ExitStatus, JobState};
use berth_model::time::{Span, Time};
use berth_sched_core::{Cluster, CommitError, CoreConfig, Effect, Event, RequestId, Store, Write, commit};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// What things take, in microseconds.
struct Costs {
    /// A message, from one machine to another.
    latency: i64,
    /// The controller: to take a message, to write down what came of some, to send one, and to encode and send a KiB.
    receive: i64,
    commit: i64,
    send: i64,
    kib: i64,
    /// A node: from a Start to tasks that run, and from there to the end.
    start: i64,
    run: i64,
    /// Bytes of a step's environment.
    environment: usize,
}

/// Of one machine room, and of what tests/bench measures on the machines of docs/wide.md: a step without an image.
const COSTS: Costs = Costs {
    latency: 100,
    receive: 15,
    commit: 2000,
    send: 20,
    kib: 4,
    start: 10_000,
    run: 0,
    environment: 4096,
};

/// How Starts get to nodes.
#[derive(Clone, Copy)]
enum Shape {
    /// From the controller to each.
    Direct,
    /// From the controller to every so-manieth, which passes them on to the others: what is the same in all goes over once. This is what a tree
    /// would be; there is none.
    Tree(usize),
}

/// What a launch came to.
struct Launch {
    messages: usize,
    kib: usize,
    /// From the submission to the last Start that left, to the last task that ran, to the end on record.
    told: i64,
    running: i64,
    ended: i64,
    /// What the controller's core really took of this machine, in seconds.
    core: f64,
}

struct Nowhere;

impl Store for Nowhere {
    fn apply(&mut self, _: &[Write]) -> Result<(), CommitError> {
        Ok(())
    }
}

#[allow(clippy::large_enum_variant)] // most of them are events
enum What {
    ToController(Event),
    /// The controller's thread takes what has come.
    Turn,
    ToNode(usize, Box<ToAgent>),
    Supervisor(usize, StepKey, SupervisorEvent),
}

struct Room {
    now: i64,
    last: u64,
    plans: BTreeMap<(i64, u64), What>,
    core: Cluster,
    inbox: Vec<Event>,
    busy_until: i64,
    turning: bool,
    sending_until: i64,
    agents: Vec<AgentCore>,
    names: Vec<NodeName>,
    sessions: Vec<Session>,
    started: BTreeSet<(usize, StepKey)>,
    ran: usize,
    launch: Launch,
    costs: Costs,
    shape: Shape,
    /// Starts of this turn, for those who pass them on.
    bundle: Vec<(usize, ToAgent)>,
}

const BEGIN: i64 = 1_000_000_000_000;

fn hardware() -> Hardware {
    let cores = (0..2).map(|c| Core { socket: 0, numa: 0, cpus: vec![c] }).collect();
    Hardware { cores, memory: 4000, ..Hardware::default() }
}

/// As the messages go over the wire, near enough: what grows with the step.
fn size(launch: &StepLaunch, environment: usize) -> usize {
    let layout = |of: &berth_model::launch::Layout| {
        if of.nodes.len() >= 256 {
            // By ranges, where nodes and tasks are as regular as here.
            return 60;
        }
        let names: usize = of.nodes.iter().map(|name| name.0.len() + 2).sum();
        let tasks: usize = of.tasks.iter().map(|tasks| 2 + 2 * tasks.len()).sum();
        names + tasks + of.cpus.len()
    };
    500 + environment + layout(&launch.layout) + layout(&launch.job.layout)
}

impl Room {
    fn new(count: usize, costs: Costs, shape: Shape) -> Room {
        let core = Cluster::new(CoreConfig::new(&Config::default()).unwrap(), Term(1));
        let names: Vec<NodeName> = (0..count).map(|n| NodeName(format!("node{n:05}"))).collect();
        let agent = |name: &NodeName| {
            let config = AgentConfig {
                node: name.clone(),
                boot_id: "boot".into(),
                boot_time: Time(0),
                agent_start: Time(0),
                version: "sim".into(),
                hardware: hardware(),
                term: Term(0),
                prolog: false,
                unkillable: Span::from_secs(60),
                health: None,
                unhealthy: None,
                unknown: Vec::new(),
                features: berth_model::feature::Feature::known(),
                highest: Highest::default(),
            };
            AgentCore::new(config, Vec::new(), Vec::new(), Time(BEGIN))
        };
        let agents = names.iter().map(agent).collect();
        let launch = Launch { messages: 0, kib: 0, told: 0, running: 0, ended: 0, core: 0.0 };
        let mut room = Room {
            now: BEGIN,
            last: 0,
            plans: BTreeMap::new(),
            core,
            inbox: Vec::new(),
            busy_until: 0,
            turning: false,
            sending_until: 0,
            shape,
            bundle: Vec::new(),
            agents,
            sessions: vec![Session(0); count],
            names,
            started: BTreeSet::new(),
            ran: 0,
            launch,
            costs,
        };
        for at in 0..count {
            room.agent(at, AgentEvent::Connected);
        }
        room
    }

    fn plan(&mut self, after: i64, what: What) {
        self.last += 1;
        self.plans.insert((self.now + after, self.last), what);
    }

    fn agent(&mut self, at: usize, event: AgentEvent) {
        for effect in self.agents[at].handle(event, Time(self.now)) {
            match effect {
                AgentEffect::Send(message) => {
                    let (node, connection) = (self.names[at].clone(), u64::try_from(at).unwrap());
                    self.plan(
                        self.costs.latency,
                        What::ToController(Event::Agent { node, connection, message }),
                    );
                }
                AgentEffect::PrepareImage { key, .. } => {
                    self.agent(at, AgentEvent::Image { key, event: ImageEvent::Ready(None) });
                }
                AgentEffect::Spawn { key, launch, .. } => {
                    assert!(self.started.insert((at, key)), "{key} starts twice on {}", self.names[at]);
                    assert_eq!(usize::try_from(launch.node_index).unwrap(), at);
                    assert_eq!(launch.layout.tasks[at], [u32::try_from(at).unwrap()]);
                    self.plan(self.costs.start, What::Supervisor(at, key, SupervisorEvent::Started));
                }
                AgentEffect::RemoveJob { job, attempt } => {
                    self.agent(at, AgentEvent::JobRemoved { job, attempt, epilog: None, faults: vec![] });
                }
                _ => {}
            }
        }
    }

    /// The controller's thread: all that has come, one commit, and what follows from it.
    fn turn(&mut self) {
        let events = std::mem::take(&mut self.inbox);
        let begun = Instant::now();
        let mut outcomes = Vec::new();
        for event in events {
            self.now += self.costs.receive;
            outcomes.push(self.core.handle(event, Time(self.now)));
        }
        self.launch.core += begun.elapsed().as_secs_f64();
        if outcomes.iter().any(|outcome| !outcome.writes.is_empty()) {
            self.now += self.costs.commit;
        }
        self.busy_until = self.now;
        for outcome in outcomes {
            let proof = commit(&mut Nowhere, &outcome.writes).unwrap();
            for effect in outcome.after_commit.open(&proof) {
                match effect {
                    Effect::Send { connection, message, .. } => {
                        self.send(usize::try_from(connection).unwrap(), message)
                    }
                    Effect::Reply { result, .. } => {
                        assert!(matches!(result, Ok(Response::Submitted { .. })), "{result:?}");
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        self.send_bundles();
    }

    /// To each of those who pass on: their own Start, and of the others what is theirs alone.
    fn send_bundles(&mut self) {
        const OWN: usize = 200;
        let Shape::Tree(wide) = self.shape else { return };
        let mut rest = std::mem::take(&mut self.bundle).into_iter().peekable();
        while rest.peek().is_some() {
            let group: Vec<(usize, ToAgent)> = rest.by_ref().take(wide).collect();
            let whole = match &group[0].1 {
                ToAgent::Start(start) => size(&start.launch, self.costs.environment),
                _ => 0,
            };
            let bytes = whole + OWN * (group.len() - 1);
            let kib = |bytes: usize| self.costs.kib * i64::try_from(bytes).unwrap() / 1024;
            self.sending_until = self.sending_until.max(self.now) + self.costs.send + kib(bytes);
            let there = self.sending_until - self.now + self.costs.latency;
            let on = self.costs.send + kib(whole);
            self.launch.kib += bytes / 1024;
            self.launch.told = self.sending_until;
            for (place, (at, message)) in (0i64..).zip(group) {
                self.launch.messages += 1;
                // It takes its own first.
                let after = if place == 0 { there } else { there + place * on + self.costs.latency };
                self.plan(after, What::ToNode(at, Box::new(message)));
            }
        }
    }

    fn send(&mut self, at: usize, message: ToAgent) {
        if matches!((&message, self.shape), (ToAgent::Start(_), Shape::Tree(_))) {
            return self.bundle.push((at, message));
        }
        if let ToAgent::Welcome { session, .. } = &message {
            self.sessions[at] = *session;
        }
        let bytes = match &message {
            ToAgent::Start(start) => {
                self.launch.messages += 1;
                size(&start.launch, self.costs.environment)
            }
            _ => 100,
        };
        let cost = self.costs.send + self.costs.kib * i64::try_from(bytes).unwrap() / 1024;
        self.sending_until = self.sending_until.max(self.now) + cost;
        if matches!(message, ToAgent::Start(_)) {
            self.launch.kib += bytes / 1024;
            self.launch.told = self.sending_until;
        }
        let after = self.sending_until - self.now + self.costs.latency;
        self.plan(after, What::ToNode(at, Box::new(message)));
    }

    /// Lets everything happen that is planned.
    fn settle(&mut self) {
        while let Some(((at, _), what)) = self.plans.pop_first() {
            self.now = self.now.max(at);
            match what {
                What::ToController(event) => {
                    self.inbox.push(event);
                    if !std::mem::replace(&mut self.turning, true) {
                        let after = (self.busy_until - self.now).max(0);
                        self.plan(after, What::Turn);
                    }
                }
                What::Turn => {
                    self.turning = false;
                    let now = self.now;
                    self.turn();
                    // Its thread alone was busy.
                    self.now = now;
                }
                What::ToNode(at, message) => self.agent(at, AgentEvent::Controller(*message)),
                What::Supervisor(at, key, event) => {
                    if matches!(event, SupervisorEvent::Started) {
                        self.ran += 1;
                        self.launch.running = self.now;
                        let exit = StepExit {
                            status: ExitStatus::OK,
                            tasks: vec![(u32::try_from(at).unwrap(), ExitStatus::OK)],
                            oom: false,
                            launch_error: None,
                            ended_by: None,
                            image: None,
                            usage: Usage::default(),
                            ended: Time(self.now),
                        };
                        self.plan(self.costs.run, What::Supervisor(at, key, SupervisorEvent::Exited(exit)));
                    }
                    self.agent(at, AgentEvent::Supervisor { key, event });
                }
            }
        }
    }
}

/// `srun -N COUNT true`, on nodes that wait for it.
fn launch(count: u32, costs: Costs, shape: Shape) -> Launch {
    let nodes = usize::try_from(count).unwrap();
    let mut room = Room::new(nodes, costs, shape);
    room.settle();
    assert_eq!(room.sessions.iter().filter(|session| session.0 > 0).count(), nodes, "not all registered");
    let mut spec = berth_samples::job(JobKind::Run, "wide");
    (spec.resources.min_nodes, spec.resources.max_nodes, spec.resources.tasks) =
        (count, Some(count), Some(count));
    let body = Request::Submit {
        spec: Box::new(spec),
        payload: Payload::default(),
        first_step: Some(Box::new(berth_samples::step("first"))),
        test_only: false,
    };
    let actor = Actor::user(berth_samples::identity(1000));
    let begun = room.now;
    room.launch.core = 0.0;
    room.plan(room.costs.latency, What::ToController(Event::Client { request: RequestId(1), actor, body }));
    room.settle();
    assert_eq!((room.ran, room.started.len(), room.launch.messages), (nodes, nodes, nodes));
    let jobs: Vec<_> = room.core.snapshot().jobs().collect();
    assert!(jobs.len() == 1 && jobs[0].state == JobState::Completed, "{:?}", jobs[0].state);
    room.core.audit().unwrap();
    let Launch { told, running, .. } = room.launch;
    Launch { told: told - begun, running: running - begun, ended: room.busy_until - begun, ..room.launch }
}

#[test]
fn a_step_over_a_thousand_nodes_starts_once_on_each() {
    let launch = launch(1000, COSTS, Shape::Direct);
    // Two commits, a start, and what a thousand messages take: nothing waits for anything else.
    assert!(launch.running < 400_000 && launch.ended < 2_000_000, "{} {}", launch.running, launch.ended);
}

#[test]
#[ignore = "a minute; tests/bench/launch.sh runs it"]
fn what_a_launch_takes() {
    let counts = std::env::var("COUNTS").unwrap_or_else(|_| "10 100 1000".into());
    for count in counts.split_whitespace() {
        let count: u32 = count.parse().unwrap();
        let l = launch(count, COSTS, Shape::Direct);
        let tree = launch(count, COSTS, Shape::Tree(64));
        let ms = |us: i64| format!("{}.{}", us / 1000, us % 1000 / 100);
        println!(
            "launch\t{count}\t{}\t{}\t{}\t{}\t{:.3}\t{}\t{}",
            l.kib,
            ms(l.told),
            ms(l.running),
            ms(l.ended),
            l.core,
            ms(tree.running),
            ms(tree.ended)
        );
    }
}
