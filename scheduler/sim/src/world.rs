//! The world: one clock, one queue of happenings, a controller, machines, and a network that errs.

use crate::machine::{Behaviour, Machine, Supervised, exit};
use crate::rng::Rng;
use crate::store::{ModelStore, Mood};
use crate::workload::{Client, ClientAct};
use crate::{Failure, Options};
use berth_agent_core::{AgentEffect, AgentEvent, Fetched, ImageEvent, SupervisorEvent};
use berth_model::config::Config;
use berth_model::hardware::{Core, GresDevice, Hardware};
use berth_model::ids::{Attempt, JobId, NodeName, StepKey, Term};
use berth_model::launch::StepLaunch;
use berth_model::link::{FromAgent, ToAgent};
use berth_model::spec::ResolvedImage;
use berth_model::state::ExitStatus;
use berth_model::time::{Span, Time};
use berth_sched_core::{
    AfterCommit, Cluster, CoreConfig, Effect, Event, Outcome, Restored, Write, commit, fill_payload,
    go_on_from,
};
use std::collections::{BTreeMap, BTreeSet};

/// When clients and faults begin: every node is registered by then, so that nothing is taken that can never run.
pub(crate) const FIRST: Span = Span::from_secs(6);

/// Something that will happen at its time.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    ToController { node: NodeName, connection: u64, message: Box<FromAgent> },
    LossSeen { node: NodeName, connection: u64 },
    ToAgent { node: NodeName, connection: u64, message: ToAgent },
    Cut { node: NodeName, connection: u64 },
    Connect { node: NodeName, life: u64 },
    AgentWake { node: NodeName, life: u64 },
    CoreWake,
    Flush { term: Term },
    Image { node: NodeName, life: u64, key: StepKey, event: ImageEvent },
    Running { node: NodeName, boot: u64, key: StepKey },
    Ends { node: NodeName, boot: u64, key: StepKey, plan: u64, status: ExitStatus, oom: bool },
    Prolog { node: NodeName, boot: u64, life: u64, job: JobId, attempt: Attempt },
    Removed { node: NodeName, boot: u64, life: u64, job: JobId, attempt: Attempt },
    AgentStarts { node: NodeName },
    MachineUp { node: NodeName },
    ControllerStarts,
    Backup,
    GoesBack,
    Client(ClientAct),
    Fault,
}

/// What really became of a step on a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ran {
    pub(crate) status: Option<ExitStatus>,
}

pub(crate) struct World {
    pub(crate) options: Options,
    pub(crate) rng: Rng,
    pub(crate) now: Time,
    queue: BTreeMap<(Time, u64), Happening>,
    sequence: u64,
    pub(crate) events: u64,
    pub(crate) store: ModelStore,
    config: CoreConfig,
    term: Term,
    pub(crate) core: Option<Cluster>,
    group: Vec<(Vec<Write>, AfterCommit)>,
    planned_wake: Option<Time>,
    pub(crate) machines: BTreeMap<NodeName, Machine>,
    next_connection: u64,
    /// Connections that the controller still has.
    open: BTreeSet<u64>,
    pub(crate) client: Client,
    pub(crate) ran: BTreeMap<(StepKey, NodeName), Ran>,
    /// Digests of images that came by their names, by job or array.
    images: BTreeMap<JobId, String>,
    pub(crate) faults: bool,
    calm: bool,
    /// What a backup has, and the term in which it was made.
    backup: Option<(ModelStore, Term)>,
    /// What a restored controller goes on above: steps below that need have no record.
    pub(crate) restored: Option<Restored>,
    pub(crate) log: Option<Vec<String>>,
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

impl World {
    pub(crate) fn new(seed: u64, options: &Options, log: bool) -> Result<World, String> {
        let mut rng = Rng::new(seed);
        let config = Config {
            min_job_age_seconds: 120,
            node_timeout_seconds: 20,
            kill_wait_seconds: 5,
            ..Config::default()
        };
        let config = CoreConfig::new(&config).map_err(|e| e.to_string())?;
        let now = Time::from_secs(1_700_000_000);
        let mut machines = BTreeMap::new();
        for i in 0..rng.count(1, 4) {
            let name = NodeName(format!("n{i}"));
            let mut machine = Machine::new(name.clone(), hardware(&mut rng));
            machine.prolog = (seed + u64::from(i)).is_multiple_of(3);
            machines.insert(name, machine);
        }
        let mut world = World {
            client: Client::default(),
            options: options.clone(),
            rng,
            now,
            queue: BTreeMap::new(),
            sequence: 0,
            events: 0,
            store: ModelStore::default(),
            config,
            term: Term(0),
            core: None,
            group: Vec::new(),
            planned_wake: None,
            machines,
            next_connection: 0,
            open: BTreeSet::new(),
            ran: BTreeMap::new(),
            images: BTreeMap::new(),
            faults: false,
            calm: false,
            backup: None,
            restored: None,
            log: log.then(Vec::new),
            counts: BTreeMap::new(),
        };
        world.plan(Span(0), Happening::ControllerStarts);
        for node in world.machines.keys().cloned().collect::<Vec<_>>() {
            let after = Span(world.rng.between(0, 2_000_000));
            world.plan(after, Happening::AgentStarts { node });
        }
        world.plan(FIRST, Happening::Fault);
        if world.options.backups {
            let made = world.rng.between(FIRST.0, world.options.busy.0 * 2 / 3);
            let restored = world.rng.between(made, world.options.busy.0);
            world.plan(Span(made), Happening::Backup);
            world.plan(Span(restored), Happening::GoesBack);
        }
        world.plan_clients();
        Ok(world)
    }

    pub(crate) fn plan(&mut self, after: Span, what: Happening) {
        self.sequence += 1;
        self.queue.insert((self.now + after, self.sequence), what);
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            let at = self.now.0 - 1_700_000_000_000_000;
            log.push(format!("{:>12.6} {}", at as f64 / 1e6, text()));
        }
    }

    /// Lets everything happen until `end`, or until `done` holds.
    pub(crate) fn run(&mut self, end: Time, done: impl Fn(&World) -> bool) -> Result<bool, String> {
        while let Some(((at, _), _)) = self.queue.first_key_value() {
            if *at > end {
                break;
            }
            let Some(((at, _), what)) = self.queue.pop_first() else { break };
            self.now = at;
            self.events += 1;
            if self.events > self.options.max_events {
                return Err("too many events: something goes round in circles".into());
            }
            self.happen(what)?;
            if self.events.is_multiple_of(64) && done(self) {
                return Ok(true);
            }
        }
        self.now = end.max(self.now);
        Ok(done(self))
    }

    fn happen(&mut self, what: Happening) -> Result<(), String> {
        self.note(|| format!("{what:?}"));
        match what {
            Happening::ToController { node, connection, message } => {
                if self.open.contains(&connection) {
                    self.control(Event::Agent { node, connection, message: *message })?;
                }
            }
            Happening::LossSeen { node, connection } => {
                if self.open.remove(&connection) {
                    self.control(Event::AgentLost { node, connection })?;
                }
            }
            Happening::ToAgent { node, connection, message } => {
                if self.machines.get(&node).is_some_and(|m| m.connection == Some(connection)) {
                    self.agent(&node, AgentEvent::Controller(message))?;
                }
            }
            Happening::Cut { node, connection } => self.cut(&node, connection)?,
            Happening::Connect { node, life } => self.connect(&node, life)?,
            Happening::AgentWake { node, life } => {
                let Some(m) = self.machines.get_mut(&node) else { return Ok(()) };
                if m.agent_life == life && m.wake == Some(self.now) {
                    m.wake = None;
                    self.agent(&node, AgentEvent::Tick)?;
                }
            }
            Happening::CoreWake => {
                if self.planned_wake == Some(self.now) {
                    self.planned_wake = None;
                    self.control(Event::Tick)?;
                }
            }
            Happening::Flush { term } => {
                if term == self.term {
                    self.flush()?;
                }
            }
            Happening::Image { node, life, key, event } => {
                if self.machines.get(&node).is_some_and(|m| m.agent_life == life) {
                    self.agent(&node, AgentEvent::Image { key, event })?;
                }
            }
            Happening::Running { node, boot, key } => self.step_runs(&node, boot, key)?,
            Happening::Ends { node, boot, key, plan, status, oom } => {
                self.step_ends(&node, boot, key, plan, status, oom)?;
            }
            Happening::Prolog { node, boot, life, job, attempt } => {
                // With an agent its prologs end.
                let lives = |m: &&mut Machine| m.boot == boot && m.agent_life == life && m.agent.is_some();
                if let Some(m) = self.machines.get_mut(&node).filter(lives) {
                    m.prologs.insert((job, attempt), true);
                    self.count("prologs run");
                    self.agent(&node, AgentEvent::Prolog { job, attempt, result: Ok(()) })?;
                }
            }
            Happening::Removed { node, boot, life, job, attempt } => {
                let Some(m) = self.machines.get_mut(&node).filter(|m| m.boot == boot) else { return Ok(()) };
                m.jobs.remove(&(job, attempt));
                if m.agent_life == life {
                    self.agent(&node, AgentEvent::JobRemoved { job, attempt, epilog: None })?;
                }
            }
            Happening::AgentStarts { node } => self.agent_starts(&node)?,
            Happening::MachineUp { node } => {
                if let Some(m) = self.machines.get_mut(&node) {
                    m.up = true;
                }
                self.agent_starts(&node)?;
            }
            Happening::ControllerStarts => self.controller_starts()?,
            Happening::Backup => self.backup = Some((self.store.clone(), self.term)),
            Happening::GoesBack => self.goes_back()?,
            Happening::Client(act) => self.client_acts(act)?,
            Happening::Fault => self.fault()?,
        }
        Ok(())
    }

    // --- the controller ---------------------------------------------------------------------------

    /// Gives the core an event; what follows from it waits for the next commit.
    pub(crate) fn control(&mut self, event: Event) -> Result<(), String> {
        let Some(core) = &mut self.core else { return Ok(()) };
        let Outcome { writes, after_commit, .. } = core.handle(event, self.now);
        core.audit()?;
        let wake = core.next_wake();
        if let Some(at) = wake.filter(|at| self.planned_wake.is_none_or(|p| *at < p)) {
            let at = at.max(self.now);
            self.planned_wake = Some(at);
            self.plan(at.since(self.now), Happening::CoreWake);
        }
        if self.group.is_empty() {
            let after = Span(self.rng.between(0, 2000));
            let term = self.term;
            self.plan(after, Happening::Flush { term });
        }
        self.group.push((writes, after_commit));
        if self.faults && self.rng.permille(2) {
            self.crash_controller("before the commit");
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), String> {
        let group = std::mem::take(&mut self.group);
        if self.core.is_none() {
            return Ok(());
        }
        if self.faults {
            self.store.mood = match self.rng.below(1000) {
                0..3 => Mood::Fails,
                3..5 => Mood::UnknownWritten,
                5..7 => Mood::UnknownLost,
                _ => Mood::Fine,
            };
        }
        let mut writes = Vec::new();
        let mut locked = Vec::new();
        for (w, after) in group {
            writes.extend(w);
            locked.push(after);
        }
        self.note(|| format!("  commits {}", writes.iter().map(brief).collect::<Vec<_>>().join(", ")));
        let proof = match commit(&mut self.store, &writes) {
            Ok(proof) => proof,
            Err(e) => {
                self.count("failed commits");
                self.note(|| format!("  {e}"));
                self.crash_controller("after a failed commit");
                return Ok(());
            }
        };
        self.store.mood = Mood::Fine;
        if self.faults && self.rng.permille(2) {
            self.crash_controller("after the commit, before its effects");
            return Ok(());
        }
        for after in locked {
            for effect in after.open(&proof) {
                self.effect(effect)?;
            }
        }
        Ok(())
    }

    fn effect(&mut self, effect: Effect) -> Result<(), String> {
        match effect {
            Effect::Reply { request, result } => {
                let after = Span(self.rng.between(50, 5000));
                self.plan(after, Happening::Client(ClientAct::Answer(request, Box::new(result))));
            }
            Effect::Send { connection, mut message, payload, login } => {
                if let (ToAgent::Prefetch(start), Some(core)) = (&message, &self.core) {
                    let key = start.launch.key;
                    core.audit_prefetch(key.job, &start.launch.node)?;
                    self.count("images to be fetched ahead");
                }
                if let (ToAgent::Start(start) | ToAgent::Prefetch(start), Some(key)) = (&mut message, payload)
                {
                    fill_payload(&mut start.launch, &self.store.payload(key)?);
                }
                if login.is_some_and(|key| self.store.payload(key).is_ok()) {
                    self.count("starts with a login");
                }
                let node = self.machines.values().find(|m| m.connection == Some(connection));
                if let Some(node) = node.map(|m| m.name.clone()) {
                    self.deliver(Happening::ToAgent { node, connection, message });
                }
            }
            Effect::CutOff { node, .. } => {
                let connection = self.machines.values().find(|m| m.name == node).and_then(|m| m.connection);
                if let Some(connection) = connection {
                    self.open.remove(&connection);
                    self.plan(Span(1000), Happening::Cut { node, connection });
                }
            }
            Effect::Supersede(term) => {
                self.term = self.term.max(term);
                self.crash_controller("to begin a later term");
            }
            Effect::Disconnect { connection, .. } => {
                self.open.remove(&connection);
                let node = self.machines.values().find(|m| m.connection == Some(connection));
                if let Some(node) = node.map(|m| m.name.clone()) {
                    self.plan(Span(1000), Happening::Cut { node, connection });
                }
            }
        }
        Ok(())
    }

    /// The network: late, twice, out of order, or not at all.
    fn deliver(&mut self, what: Happening) {
        let mut copies = 1;
        if self.faults {
            match self.rng.below(1000) {
                0..10 => copies = 0,
                10..20 => copies = 2,
                _ => {}
            }
        }
        for _ in 0..copies {
            let slow = self.faults && self.rng.permille(10);
            let after =
                if slow { self.rng.between(50_000, 15_000_000) } else { self.rng.between(50, 20_000) };
            self.plan(Span(after), what.clone());
        }
    }

    fn crash_controller(&mut self, when: &'static str) {
        self.note(|| format!("  the controller dies {when}"));
        self.count("controller crashes");
        self.core = None;
        self.group.clear();
        self.planned_wake = None;
        let open = std::mem::take(&mut self.open);
        for m in self.machines.values() {
            if let Some(connection) = m.connection.filter(|c| open.contains(c)) {
                self.sequence += 1;
                let at = (self.now + Span(1000), self.sequence);
                self.queue.insert(at, Happening::Cut { node: m.name.clone(), connection });
            }
        }
        let after = Span(self.rng.between(1000, 8_000_000));
        self.plan(after, Happening::ControllerStarts);
    }

    fn controller_starts(&mut self) -> Result<(), String> {
        self.term = Term(self.term.0 + 1);
        let stored = self.store.load()?;
        let core =
            Cluster::restore(self.config.clone(), self.term, stored, self.now).map_err(|e| e.to_string())?;
        core.audit().map_err(|e| format!("after a restart: {e}"))?;
        self.client.check_known(&core, &self.store)?;
        self.core = Some(core);
        self.control(Event::Tick)
    }

    /// The controller is destroyed, and another one made of the backup.
    fn goes_back(&mut self) -> Result<(), String> {
        if self.core.is_none() {
            self.plan(Span::from_secs(1), Happening::GoesBack);
            return Ok(());
        }
        let Some((store, term)) = self.backup.take() else { return Ok(()) };
        self.crash_controller("and its disk is lost");
        self.count("restored backups");
        self.store = store;
        self.store.mood = Mood::Fine;
        let writes = go_on_from(&self.store.load()?, 0);
        self.restored = writes.iter().find_map(|write| match write {
            Write::PutMeta(meta) => meta.restored.clone(),
            _ => None,
        });
        commit(&mut self.store, &writes).map_err(|e| e.to_string())?;
        self.term = Term(term.0 + 1000);
        // What names of images were found to mean may be forgotten, and so is what clients were told.
        self.images.clear();
        self.queue.retain(|_, what| !matches!(what, Happening::Client(ClientAct::Answer(..))));
        self.client.forget_lost(&self.store)
    }

    // --- agents and machines ------------------------------------------------------------------------

    fn agent_starts(&mut self, node: &NodeName) -> Result<(), String> {
        let now = self.now;
        let Some(m) = self.machines.get_mut(node).filter(|m| m.up && m.agent.is_none()) else {
            return Ok(());
        };
        m.start_agent(now);
        let life = m.agent_life;
        let after = Span(self.rng.between(100, 500_000));
        self.plan(after, Happening::Connect { node: node.clone(), life });
        self.agent(node, AgentEvent::Tick)
    }

    fn connect(&mut self, node: &NodeName, life: u64) -> Result<(), String> {
        let alive = self.core.is_some();
        let Some(m) = self.machines.get_mut(node) else { return Ok(()) };
        if m.agent.is_none() || m.agent_life != life || m.connection.is_some() {
            return Ok(());
        }
        if !alive {
            self.plan(Span::from_secs(1), Happening::Connect { node: node.clone(), life });
            return Ok(());
        }
        self.next_connection += 1;
        m.connection = Some(self.next_connection);
        self.open.insert(self.next_connection);
        self.agent(node, AgentEvent::Connected)
    }

    /// The agent's side of a connection ends; the controller sees it now, later, or when it writes.
    fn cut(&mut self, node: &NodeName, connection: u64) -> Result<(), String> {
        let Some(m) = self.machines.get_mut(node).filter(|m| m.connection == Some(connection)) else {
            return Ok(());
        };
        m.connection = None;
        let life = m.agent_life;
        let seen = Span(self.rng.between(100, 3_000_000));
        self.plan(seen, Happening::LossSeen { node: node.clone(), connection });
        let again = Span(self.rng.between(100_000, 2_000_000));
        self.plan(again, Happening::Connect { node: node.clone(), life });
        self.agent(node, AgentEvent::Disconnected)
    }

    fn crash_agent(&mut self, node: &NodeName) {
        self.note(|| format!("  the agent of {node} dies"));
        self.count("agent crashes");
        let Some(m) = self.machines.get_mut(node) else { return };
        m.agent = None;
        m.agent_life += 1;
        m.wake = None;
        if let Some(connection) = m.connection.take() {
            let seen = Span(self.rng.between(100, 3_000_000));
            self.plan(seen, Happening::LossSeen { node: node.clone(), connection });
        }
        let after = Span(self.rng.between(100_000, 10_000_000));
        self.plan(after, Happening::AgentStarts { node: node.clone() });
    }

    pub(crate) fn reboot(&mut self, node: &NodeName) {
        self.note(|| format!("  {node} reboots"));
        self.count("reboots");
        let Some(m) = self.machines.get_mut(node) else { return };
        let connection = m.connection;
        m.agent_life += 1;
        m.reboot();
        if let Some(connection) = connection {
            self.plan(Span::from_secs(2), Happening::LossSeen { node: node.clone(), connection });
        }
        let after = Span(self.rng.between(1_000_000, 60_000_000));
        self.plan(after, Happening::MachineUp { node: node.clone() });
    }

    fn agent(&mut self, node: &NodeName, event: AgentEvent) -> Result<(), String> {
        let now = self.now;
        let Some(m) = self.machines.get_mut(node) else { return Ok(()) };
        let Some(agent) = &mut m.agent else { return Ok(()) };
        let effects = agent.handle(event, now);
        for effect in effects {
            if self.faults && self.rng.permille(1) {
                self.crash_agent(node);
                return Ok(());
            }
            self.agent_effect(node, effect)?;
        }
        let Some(m) = self.machines.get_mut(node) else { return Ok(()) };
        let Some(wake) = m.agent.as_ref().and_then(|a| a.next_wake()) else { return Ok(()) };
        let wake = wake.max(now);
        if m.wake.is_none_or(|planned| wake < planned) {
            m.wake = Some(wake);
            let life = m.agent_life;
            self.plan(wake.since(now), Happening::AgentWake { node: node.clone(), life });
        }
        Ok(())
    }

    fn agent_effect(&mut self, node: &NodeName, effect: AgentEffect) -> Result<(), String> {
        if self.log.is_some() && !matches!(effect, AgentEffect::Send(FromAgent::Heartbeat { .. })) {
            let text = format!("{effect:?}");
            self.note(|| format!("  {node}: {}", text.chars().take(220).collect::<String>()));
        }
        let Some(m) = self.machines.get_mut(node) else { return Ok(()) };
        let (life, boot) = (m.agent_life, m.boot);
        match effect {
            AgentEffect::Send(message) => {
                if let Some(connection) = m.connection {
                    self.deliver(Happening::ToController {
                        node: node.clone(),
                        connection,
                        message: Box::new(message),
                    });
                }
            }
            AgentEffect::RememberTerm(term) => m.term = term,
            AgentEffect::MakeJob { job, attempt, launch } => m.make_job((job, attempt), &launch.job.share)?,
            AgentEffect::RunProlog { job, attempt } => {
                if !m.jobs.contains_key(&(job, attempt)) || m.prologs.get(&(job, attempt)) == Some(&true) {
                    return Err(format!("the prolog of job {job} runs twice, or for nothing, on {node}"));
                }
                m.prologs.insert((job, attempt), false);
                let after = Span(self.rng.between(500, 3_000_000));
                self.plan(after, Happening::Prolog { node: node.clone(), boot, life, job, attempt });
            }
            AgentEffect::PrepareImage { key, launch, .. } => {
                let fails = self.rng.permille(10);
                let image = launch.container.as_ref().map(|container| &container.image);
                if let Some(digest) = image.and_then(|image| image.digest()) {
                    // It came by its name: a node found this one, and no other may take its place.
                    let of = launch.job.array.map_or(key.job, |array| array.array);
                    let kept = self.images.entry(of).or_insert_with(|| digest.to_owned());
                    if kept != digest {
                        return Err(format!("step {key} has the image {digest}, its job had {kept}"));
                    }
                }
                // Each time the name means another image.
                let found = image.filter(|image| image.resolved.is_none()).map(|_| ResolvedImage::Manifest {
                    source: "docker://docker.io/library/debian".into(),
                    digest: format!("sha256:{}", self.rng.below(1_000_000)),
                    insecure: false,
                    indexes: Vec::new(),
                });
                let fetched =
                    Some(Fetched { bytes: 1000, hit: false, digest: None, found: found.map(Box::new) });
                let event = match fails {
                    true => ImageEvent::Failed("no such image".into(), fetched),
                    false => ImageEvent::Ready(fetched),
                };
                let first = Span(self.rng.between(1000, 100_000));
                let event_at = Span(first.0 + self.rng.between(1000, 2_000_000));
                let progress = ImageEvent::Progress(Some(50));
                self.plan(first, Happening::Image { node: node.clone(), life, key, event: progress });
                self.plan(event_at, Happening::Image { node: node.clone(), life, key, event });
            }
            AgentEffect::Spawn { key, launch, timers, pull } => {
                let Some(job) = m.jobs.get(&(key.job, key.attempt)) else {
                    return Err(format!("step {key} starts on {node}, where its job has nothing"));
                };
                if m.prolog && m.prologs.get(&(key.job, key.attempt)) != Some(&true) {
                    return Err(format!(
                        "step {key} starts on {node} before the prolog of its job has ended"
                    ));
                }
                if launch.share.cpus.iter().any(|c| !job.cpus.contains(c)) || launch.share.cpus.is_empty() {
                    return Err(format!("step {key} gets CPUs on {node} that its job does not have"));
                }
                if self.options.backups {
                    self.runs_alone(&launch)?;
                }
                let Some(m) = self.machines.get_mut(node) else { return Ok(()) };
                let entry = Supervised { launch: *launch, timers, pull, running: false, exit: None, plan: 0 };
                m.spool.insert(key, entry);
                if self.ran.insert((key, node.clone()), Ran { status: None }).is_some() {
                    return Err(format!("step {key} of attempt {} runs twice on {node}", key.attempt));
                }
                self.count("steps run");
                let after = Span(self.rng.between(500, 5000));
                self.plan(after, Happening::Running { node: node.clone(), boot, key });
            }
            AgentEffect::SignalStep { key, signal, .. } => {
                let Some(s) = m.spool.get(&key).filter(|s| s.exit.is_none()) else { return Ok(()) };
                let stubborn = Behaviour::of(&s.launch.program).is_some_and(|b| b.stubborn);
                if signal != 18 && !stubborn {
                    self.end_soon(node, key, u8::try_from(signal).unwrap_or(15));
                }
            }
            AgentEffect::KillStep { key } => self.end_soon(node, key, 9),
            AgentEffect::ForgetSpool { key } => {
                if m.spool.remove(&key).is_some_and(|s| s.exit.is_none()) {
                    return Err(format!("the spool entry of {key} goes while the step runs on {node}"));
                }
            }
            AgentEffect::RemoveJob { job, attempt } => {
                let of_run = |key: &StepKey| key.job == job && key.attempt == attempt;
                if let Some((key, _)) = m.spool.iter().find(|(key, s)| of_run(key) && s.exit.is_none()) {
                    return Err(format!("job {job} is removed from {node} while {key} runs"));
                }
                let after = Span(self.rng.between(500, 100_000));
                self.plan(after, Happening::Removed { node: node.clone(), boot, life, job, attempt });
            }
            AgentEffect::CancelImage { .. }
            | AgentEffect::Configure(_)
            | AgentEffect::Note { .. }
            | AgentEffect::ImagesNeeded { .. }
            | AgentEffect::Prefetch { .. }
            | AgentEffect::CancelPrefetch { .. } => {}
        }
        Ok(())
    }

    /// No other run of the job, and no other run of the array's task, is alive anywhere.
    fn runs_alone(&self, launch: &StepLaunch) -> Result<(), String> {
        let key = launch.key;
        let task = |launch: &StepLaunch| launch.job.array.as_ref().map(|a| (a.array, a.task));
        let same = |other: &StepLaunch| {
            let another = (other.key.job, other.key.attempt) != (key.job, key.attempt);
            another && (other.key.job == key.job || (task(launch).is_some() && task(other) == task(launch)))
        };
        let alive = self.machines.values().flat_map(|m| m.spool.values().filter(|s| s.exit.is_none()));
        match alive.map(|s| &s.launch).find(|other| same(other)) {
            Some(other) => Err(format!(
                "step {key} of attempt {} starts while {} of attempt {} runs",
                key.attempt, other.key, other.key.attempt
            )),
            None => Ok(()),
        }
    }

    fn end_soon(&mut self, node: &NodeName, key: StepKey, signal: u8) {
        let after = Span(self.rng.between(200, 50_000));
        let Some(m) = self.machines.get_mut(node) else { return };
        let boot = m.boot;
        let Some(s) = m.spool.get_mut(&key).filter(|s| s.exit.is_none()) else { return };
        s.plan += 1;
        let plan = s.plan;
        let status = ExitStatus { code: 0, signal };
        self.plan(after, Happening::Ends { node: node.clone(), boot, key, plan, status, oom: false });
    }

    fn step_runs(&mut self, node: &NodeName, boot: u64, key: StepKey) -> Result<(), String> {
        let Some(m) = self.machines.get_mut(node).filter(|m| m.boot == boot) else { return Ok(()) };
        let Some(s) = m.spool.get_mut(&key).filter(|s| s.exit.is_none() && !s.running) else { return Ok(()) };
        s.running = true;
        let Some(b) = Behaviour::of(&s.launch.program) else {
            return Err(format!("step {key} came without its program: {:?}", s.launch.program));
        };
        if s.plan == 0 {
            let status = ExitStatus { code: b.code, signal: 0 };
            let what = Happening::Ends { node: node.clone(), boot, key, plan: 0, status, oom: b.oom };
            self.plan(Span(b.millis * 1000), what);
        }
        self.agent(node, AgentEvent::Supervisor { key, event: SupervisorEvent::Started })
    }

    fn step_ends(
        &mut self,
        node: &NodeName,
        boot: u64,
        key: StepKey,
        plan: u64,
        status: ExitStatus,
        oom: bool,
    ) -> Result<(), String> {
        let now = self.now;
        let Some(m) = self.machines.get_mut(node).filter(|m| m.boot == boot) else { return Ok(()) };
        let Some(s) = m.spool.get_mut(&key).filter(|s| s.exit.is_none() && s.plan == plan) else {
            return Ok(());
        };
        let exit = exit(status, oom, now);
        s.exit = Some(exit.clone());
        if let Some(ran) = self.ran.get_mut(&(key, node.clone())) {
            ran.status = Some(status);
        }
        self.agent(node, AgentEvent::Supervisor { key, event: SupervisorEvent::Exited(exit) })
    }

    // --- faults ---------------------------------------------------------------------------------------

    fn fault(&mut self) -> Result<(), String> {
        if self.calm || !self.options.faults {
            return Ok(());
        }
        self.faults = true;
        let again = Span(self.rng.between(500_000, 20_000_000));
        self.plan(again, Happening::Fault);
        let names: Vec<NodeName> = self.machines.keys().cloned().collect();
        let Some(node) = self.rng.pick(&names).cloned() else { return Ok(()) };
        match self.rng.below(10) {
            0..2 if self.core.is_some() => self.crash_controller("of itself"),
            2..5 if self.machines[&node].agent.is_some() => self.crash_agent(&node),
            5 if self.machines[&node].up => self.reboot(&node),
            6..9 => {
                if let Some(connection) = self.machines[&node].connection {
                    self.count("cut connections");
                    self.cut(&node, connection)?;
                }
            }
            9 => {
                let full = self.rng.permille(500).then(|| "no space left on device".to_string());
                self.control(Event::StoreFull(full))?;
            }
            _ => {}
        }
        Ok(())
    }

    /// No more faults: everything that is down comes back.
    pub(crate) fn calm(&mut self) -> Result<(), String> {
        self.note(|| "--- no more faults ---".into());
        self.calm = true;
        self.faults = false;
        self.control(Event::StoreFull(None))?;
        Ok(())
    }

    pub(crate) fn failure(&mut self, seed: u64, why: String) -> Failure {
        Failure { seed, why, log: self.log.take().unwrap_or_default() }
    }
}

fn brief(write: &Write) -> String {
    match write {
        Write::PutSpec(row) => format!("spec {}", row.job),
        Write::PutJob(row) => format!("job {} {:?} {:?} {:?}", row.job, row.tasks, row.attempt, row.phase),
        Write::PutStep(row) => {
            format!(
                "step {} {:?} {:?}",
                row.key,
                row.result,
                row.nodes.iter().map(|n| &n.exit).collect::<Vec<_>>()
            )
        }
        Write::PutNode(row) => format!("node {} {:?}", row.name, row.condition),
        Write::PutPayload { key, .. } => format!("payload {key:?}"),
        other => format!("{other:?}"),
    }
}

fn hardware(rng: &mut Rng) -> Hardware {
    let threads = rng.count(1, 2);
    let cores = rng.count(1, 6);
    let gpus = rng.count(0, 2);
    Hardware {
        cores: (0..cores)
            .map(|c| Core { socket: 0, numa: 0, cpus: (0..threads).map(|t| c + t * cores).collect() })
            .collect(),
        memory: 1000 * u64::from(cores),
        memory_reserved: 100,
        gres: (0..gpus)
            .map(|index| GresDevice { name: "gpu".into(), kind: None, index, files: Vec::new() })
            .collect(),
        enforces: true,
        ..Hardware::default()
    }
}
