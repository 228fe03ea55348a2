//! One step over very many nodes, under a virtual clock: the core of the controller, and one of an agent for each node, with what messages,
//! commits and starts take in a cluster. `tests/bench/launch.sh` makes a curve of it.

#![allow(clippy::unwrap_used, clippy::panic)] // what fails here fails the test

use berth_agent_core::{AgentConfig, AgentCore, AgentEffect, AgentEvent, ImageEvent, SupervisorEvent};
use berth_model::carry::{Carried, CarriedPart, CarriedTo};
use berth_model::config::Config;
use berth_model::exchange::FromPeers;
use berth_model::hardware::{Core, Hardware};
use berth_model::ids::{NodeName, Session, StepKey, Term};
use berth_model::launch::{StepExit, StepLaunch, Usage};
use berth_model::link::{FromAgent, Highest, Start, ToAgent};
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
    /// The controller: to take a message, to write down what came of some, to send one, to encode and send a KiB, and to sign what others
    /// carry.
    receive: i64,
    commit: i64,
    send: i64,
    kib: i64,
    sign: i64,
    /// A node: to shake hands with another one, and with how many at the same time: its agent has so many threads.
    handshake: i64,
    hands: i64,
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
    sign: 100,
    handshake: 1000,
    hands: 4,
    start: 10_000,
    run: 0,
    environment: 4096,
};

/// What a launch came to.
struct Launch {
    /// Starts, and how many of them the controller sent itself.
    messages: usize,
    sent: usize,
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
    Carried(usize, Box<Carried>),
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
    fn new(count: usize, costs: Costs, config: &Config) -> Room {
        let core = Cluster::new(CoreConfig::new(config).unwrap(), Term(1));
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
                unkept: None,
                prolog: false,
                unkillable: Span::from_secs(60),
                health: None,
                unhealthy: None,
                unfit: None,
                unknown: Vec::new(),
                features: berth_model::feature::Feature::known(),
                highest: Highest::default(),
            };
            AgentCore::new(config, Vec::new(), Vec::new(), Time(BEGIN))
        };
        let agents = names.iter().map(agent).collect();
        let launch = Launch { messages: 0, sent: 0, kib: 0, told: 0, running: 0, ended: 0, core: 0.0 };
        let mut room = Room {
            now: BEGIN,
            last: 0,
            plans: BTreeMap::new(),
            core,
            inbox: Vec::new(),
            busy_until: 0,
            turning: false,
            sending_until: 0,
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
                AgentEffect::Send(message) => self.tell(at, message),
                AgentEffect::RememberTerm(term) => {
                    self.agent(at, AgentEvent::TermKept { term, result: Ok(()) });
                }
                AgentEffect::Registered => {
                    // Others find it at its port.
                    let (address, key) = (format!("{}:7818", self.names[at]), format!("key {at}"));
                    let said = FromPeers::Ready { address, key, streams: true, connected: Vec::new() };
                    self.agent(at, AgentEvent::Peers(said));
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

    fn tell(&mut self, at: usize, message: FromAgent) {
        let (node, connection) = (self.names[at].clone(), u64::try_from(at).unwrap());
        self.plan(self.costs.latency, What::ToController(Event::Agent { node, connection, message }));
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
                        self.send(usize::try_from(connection).unwrap(), message);
                    }
                    Effect::Carry { connection, start, to, .. } => {
                        self.send_branch(usize::try_from(connection).unwrap(), *start, to);
                    }
                    Effect::Unconfirmed { .. } => {}
                    Effect::Reply { result, .. } => {
                        assert!(matches!(result, Ok(Response::Submitted { .. })), "{result:?}");
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    /// To the head of a branch: its own Start, and of the others what is theirs alone. It hands that to some at the same time.
    fn send_branch(&mut self, head: usize, start: Start, to: Vec<CarriedTo>) {
        const OWN: usize = 200;
        let whole = size(&start.launch, self.costs.environment);
        let bytes = whole + OWN * to.len();
        let kib = |bytes: usize| self.costs.kib * i64::try_from(bytes).unwrap() / 1024;
        let (cost, on) = (self.costs.send + self.costs.sign + kib(bytes), self.costs.handshake + kib(whole));
        self.sending_until = self.sending_until.max(self.now) + cost;
        self.launch.kib += bytes / 1024;
        self.launch.told = self.sending_until;
        self.launch.sent += 1;
        self.launch.messages += 1 + to.len();
        let there = self.sending_until - self.now + self.costs.latency;
        for (place, to) in (1i64..).zip(to) {
            let CarriedPart { part, to: registration } = to.part;
            let at = usize::try_from(part.node_index).unwrap();
            assert_eq!((to.key, registration.session), (format!("key {at}"), self.sessions[at]));
            let mut start = start.clone();
            part.give(&mut start);
            // A connection and hands are made in two turns each, and the other side has its part of it, too.
            let turn = (place - 1) / self.costs.hands + 1;
            let after = there + turn * on + 4 * self.costs.latency + self.costs.handshake;
            self.plan(after, What::Carried(at, Box::new(Carried { to: registration, start })));
        }
        self.plan(there, What::ToNode(head, Box::new(ToAgent::Start(Box::new(start)))));
    }

    fn send(&mut self, at: usize, message: ToAgent) {
        if let ToAgent::Welcome { session, .. } = &message {
            self.sessions[at] = *session;
        }
        let bytes = match &message {
            ToAgent::Start(start) => {
                self.launch.messages += 1;
                self.launch.sent += 1;
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
                What::Carried(at, carried) => self.agent(at, AgentEvent::Carried(carried)),
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

/// `srun -N COUNT true`, on nodes that wait for it: with a tree from so many nodes on, or without (0).
fn launch(count: u32, costs: Costs, launch_tree_from: u32) -> Launch {
    let nodes = usize::try_from(count).unwrap();
    let mut room = Room::new(nodes, costs, &Config { launch_tree_from, ..Config::default() });
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
    let launch = launch(1000, COSTS, 0);
    // Two commits, a start, and what a thousand messages take: nothing waits for anything else.
    assert!(launch.running < 400_000 && launch.ended < 2_000_000, "{} {}", launch.running, launch.ended);
}

#[test]
fn by_a_tree_the_controller_sends_one_message_for_each_branch_and_it_starts_once_on_each_node() {
    let launch = launch(1000, COSTS, 512);
    assert_eq!((launch.messages, launch.sent), (1000, 1000usize.div_ceil(64)));
    assert!(launch.running < 400_000 && launch.ended < 2_000_000, "{} {}", launch.running, launch.ended);
}

#[test]
#[ignore = "a minute; tests/bench/launch.sh runs it"]
fn what_a_launch_takes() {
    let counts = std::env::var("COUNTS").unwrap_or_else(|_| "10 100 1000".into());
    for count in counts.split_whitespace() {
        let count: u32 = count.parse().unwrap();
        let l = launch(count, COSTS, 0);
        let tree = launch(count, COSTS, 1);
        let ms = |us: i64| format!("{}.{}", us / 1000, us % 1000 / 100);
        println!(
            "launch\t{count}\t{}\t{}\t{}\t{}\t{:.3}\t{}\t{}\t{}",
            l.kib,
            ms(l.told),
            ms(l.running),
            ms(l.ended),
            l.core,
            tree.sent,
            ms(tree.running),
            ms(tree.ended)
        );
    }
}
