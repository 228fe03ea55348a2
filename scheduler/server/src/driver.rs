//! The thread that owns the core and the store: takes many events, commits once, then lets effects out.

use crate::clock::ClusterClock;
use crate::fencing::Fences;
use crate::group::only_last;
use crate::leases::needs_client;
use crate::shared::Shared;
use crate::trace::{mark, shown};
use crate::{ControllerError, Fence, PowerOff};
use berth_model::carry::CarriedTo;
use berth_model::link::{FromAgent, ToAgent};
use berth_model::member::KeyId;
use berth_model::request::{Actor, Refusal, RefusalCode, Request, Response};
use berth_model::{JobId, NodeName, Span, StepKey, Term, Time};
use berth_rpc::Unheard;
use berth_sched_core::{
    AfterCommit, Cluster, CommitError, Committed, CoreConfig, Effect, Event, Leap, LoginOf, PayloadKey,
    Phase, RequestId, Stored, Write, commit,
};
use berth_store::{Room, SqliteStore, StoreError};
use ring::rand::{SecureRandom, SystemRandom};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Most events in one commit.
const MOST: usize = 1024;
/// How often the disk is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How often the end of programs is looked for that power nodes off.
const SOON: Duration = Duration::from_millis(200);
/// How often old records are looked for.
const PURGE: Duration = Duration::from_secs(60);
/// For how long nothing is written before it is written down what time it is.
const NOTE: Duration = Duration::from_secs(600);
/// Records forgotten at a time.
const PURGE_CHUNK: u32 = 200;

/// What the services hand to the thread.
#[derive(Debug)]
pub(crate) enum Input {
    /// A request, and where its answer goes.
    Client { request: RequestId, actor: Actor, body: Request, reply: oneshot::Sender<Answer> },
    /// Another configuration is to be in force.
    Reconfigure {
        request: RequestId,
        actor: Actor,
        config: Box<CoreConfig>,
        keep_records_days: u32,
        reply: oneshot::Sender<Answer>,
    },
    /// Nobody waits for the answer any more.
    Abandoned { request: RequestId },
    /// An agent's link, before its first message.
    AgentOpened { node: NodeName, connection: u64, queue: mpsc::Sender<Outgoing> },
    /// What an agent says, and its part of what may wait of it.
    Agent { node: NodeName, connection: u64, message: FromAgent, unheard: Unheard },
    /// An agent's link is gone.
    AgentLost { node: NodeName, connection: u64 },
    /// The agent of a machine that is not in the books has come, with a certificate of the cluster's.
    Unknown { node: NodeName, key: KeyId, from: String },
    /// What belongs to a step's Start cannot be read, and it was not sent.
    CannotStart { node: NodeName, key: StepKey, why: String },
    /// The port for other machines listens.
    Listening,
    /// The end, after what was handed over before.
    Stop,
}

pub(crate) type Answer = Result<Response, Refusal>;

/// A message for an agent, and where the rest of it is.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) message: ToAgent,
    pub(crate) payload: Option<PayloadKey>,
    pub(crate) login: Option<LoginOf>,
    /// Of a Start: other nodes to which its node carries theirs.
    pub(crate) to: Vec<CarriedTo>,
}

/// Several events' outcomes on their way to one commit.
#[derive(Default)]
struct Group {
    writes: Vec<Write>,
    counters: Option<Write>,
    locked: Vec<AfterCommit>,
    changed: BTreeSet<JobId>,
    events: usize,
}

/// Whether other machines can come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    Closed,
    /// The core is to be told.
    Open,
    Told,
}

/// The thread's state.
pub(crate) struct Driver {
    config: CoreConfig,
    store: SqliteStore,
    clock: ClusterClock,
    /// By how much time went on with the start, on the word of the wall clock alone.
    leap: Leap,
    /// A random number, by which the realm of SLUIDs is drawn where none is on record; where the system gives none, the cluster's name decides.
    random: Option<u64>,
    cluster: Cluster,
    inputs: Receiver<Input>,
    shared: Arc<Shared>,
    pending: HashMap<RequestId, oneshot::Sender<Answer>>,
    agents: HashMap<u64, (NodeName, mpsc::Sender<Outgoing>)>,
    /// Messages that made the core panic once, and those that did so again and are not let in any more.
    suspects: BTreeSet<(NodeName, u64)>,
    set_aside: BTreeMap<NodeName, BTreeSet<u64>>,
    /// Until when timers rest because they made the core panic.
    rest_until: Option<Instant>,
    ticks_failed: u32,
    full: bool,
    /// A term that an agent has followed: a later one is to begin.
    supersede: Option<Term>,
    /// What the cluster waits for since a backup was restored, as it was last said.
    held: Option<String>,
    port: Port,
    looked: Option<Instant>,
    keep: Option<Span>,
    fences: Fences,
    /// Silent nodes that could not be powered off, and why.
    unfenced: BTreeMap<NodeName, String>,
    purged: Instant,
    /// When it was last written down, or tried to, what time it is.
    noted: Instant,
    stop: bool,
    /// Events that the core is to panic over.
    #[cfg(test)]
    fault: fn(&Event) -> bool,
}

/// A driver, ready to run.
pub(crate) struct Started {
    pub(crate) driver: Driver,
    pub(crate) inputs: Sender<Input>,
    pub(crate) shared: Arc<Shared>,
    /// Live jobs that a client drives.
    pub(crate) interactive: Vec<JobId>,
}

impl Driver {
    /// Builds the core from what is stored.
    pub(crate) fn start(
        config: CoreConfig,
        mut store: SqliteStore,
        keep_records_days: u32,
        power_off: PowerOff,
        private: PathBuf,
    ) -> Result<Started, ControllerError> {
        let stored = store.load()?;
        let interactive = interactive_jobs(&stored);
        let (mut clock, leap) = ClusterClock::start(store.mark(), stored.is_idle())
            .map_err(|error| ControllerError::System { what: "CLOCK_BOOTTIME", error })?;
        let mut cluster = Cluster::restore(config.clone(), store.term(), stored, clock.now())
            .map_err(|error| ControllerError::Restore { path: store.path().to_path_buf(), error })?;
        cluster.has_leapt(leap, clock.boot());
        let mut bytes = [0; 8];
        let random = SystemRandom::new().fill(&mut bytes).ok().map(|()| u64::from_le_bytes(bytes));
        if let Some(random) = random {
            cluster.draw_realm(random);
        }
        let shared = Arc::new(Shared::new(cluster.snapshot(), clock.now()));
        let (sender, inputs) = channel();
        let mut driver = Driver {
            config,
            store,
            clock,
            leap,
            random,
            cluster,
            inputs,
            shared: Arc::clone(&shared),
            pending: HashMap::new(),
            agents: HashMap::new(),
            suspects: BTreeSet::new(),
            set_aside: BTreeMap::new(),
            rest_until: None,
            ticks_failed: 0,
            full: false,
            supersede: None,
            held: None,
            port: Port::Closed,
            looked: None,
            keep: span_of_days(keep_records_days),
            fences: Fences::new(power_off, private),
            unfenced: BTreeMap::new(),
            purged: Instant::now(),
            noted: Instant::now(),
            stop: false,
            #[cfg(test)]
            fault: |_| false,
        };
        driver.tell_of_restore();
        driver.tell_of_clock();
        Ok(Started { driver, inputs: sender, shared, interactive })
    }

    /// Cluster time.
    pub(crate) fn now(&mut self) -> Time {
        self.clock.now()
    }

    /// Works until it is told to stop.
    pub(crate) fn run(mut self) -> Result<(), ControllerError> {
        let shared = Arc::clone(&self.shared);
        let result = self.work();
        drop(self); // closes the store before anyone is told
        shared.set_ended();
        result
    }

    fn work(&mut self) -> Result<(), ControllerError> {
        while !self.stop {
            let wait = self.wait();
            let mut batch = Vec::new();
            match self.inputs.recv_timeout(wait) {
                Ok(first) => {
                    batch.push(first);
                    batch.extend(self.inputs.try_iter().take(MOST - 1));
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.purge();
                    self.note_time()?;
                }
                Err(RecvTimeoutError::Disconnected) => self.stop = true,
            }
            self.turn(batch)?;
        }
        Ok(())
    }

    /// Until the core wants to be woken, or the disk is to be looked at.
    fn wait(&mut self) -> Duration {
        let now = self.clock.now();
        let look = if self.fences.any() { SOON } else { LOOK };
        if self.rest_until.is_some_and(|until| Instant::now() < until) {
            return look;
        }
        let Some(wake) = self.cluster.next_wake() else { return look };
        Duration::from_micros(wake.since(now).0.unsigned_abs()).min(look)
    }

    /// Tells of nodes that could not be powered off, for as long as nothing is heard of them.
    fn tell_unfenced(&mut self, changed: bool) {
        let (cluster, before) = (&self.cluster, self.unfenced.len());
        self.unfenced.retain(|node, _| cluster.is_silent(node));
        if !changed && self.unfenced.len() == before {
            return;
        }
        let snapshot = self.cluster.snapshot();
        let tell = |(node, why)| {
            // The controller's own machine is never tried.
            let again = if snapshot.member(node).is_some() { "tried" } else { "looked at" };
            format!("{node} could not be powered off, and is {again} again: {why}")
        };
        let all: Vec<String> = self.unfenced.iter().map(tell).collect();
        if all.is_empty() {
            self.shared.all_clear("fence");
        } else {
            self.shared.alarm("fence", all.join("; "));
        }
    }

    /// One round: events, one commit, effects.
    fn turn(&mut self, batch: Vec<Input>) -> Result<(), ControllerError> {
        let now = self.clock.now();
        self.shared.set_time(now);
        if self.cluster.in_doubt() > Span(0) && self.clock.is_set() {
            self.cluster.believe_clock("it was set by a server's of the network");
        }
        self.tell_of_clock();
        let mut group = Group::default();
        if let Some(event) = self.look_at_disk() {
            self.apply(event, None, now, &mut group)?;
        }
        let mut fences = false;
        while let Some(fenced) = self.fences.ended() {
            fences = true;
            match &fenced.result {
                Ok(()) => drop(self.unfenced.remove(&fenced.node)),
                Err(why) => drop(self.unfenced.insert(fenced.node.clone(), why.clone())),
            }
            let event = Event::Fenced { node: fenced.node, asked: fenced.asked, result: fenced.result };
            self.apply(event, None, now, &mut group)?;
        }
        self.tell_unfenced(fences);
        if batch.iter().any(|input| matches!(input, Input::Listening)) {
            self.port = Port::Open;
        }
        if self.port == Port::Open {
            self.port = Port::Told;
            self.apply(Event::Listening, None, now, &mut group)?;
        }
        for input in batch {
            match input {
                Input::Client { request, actor, body, reply } => {
                    self.pending.insert(request, reply);
                    self.apply(Event::Client { request, actor, body }, None, now, &mut group)?;
                }
                Input::Reconfigure { request, actor, config, keep_records_days, reply } => {
                    self.pending.insert(request, reply);
                    if actor.is_administrator() && config.cluster == self.config.cluster {
                        self.config = (*config).clone();
                        self.keep = span_of_days(keep_records_days);
                    }
                    self.apply(Event::Reconfigure { request, actor, config }, None, now, &mut group)?;
                }
                Input::Abandoned { request } => {
                    if self.pending.remove(&request).is_some() {
                        self.apply(Event::Abandoned { request }, None, now, &mut group)?;
                    }
                }
                Input::AgentOpened { node, connection, queue } => {
                    self.agents.insert(connection, (node, queue));
                }
                Input::Agent { node, connection, message, unheard } => {
                    if !self.agents.contains_key(&connection) {
                        continue; // cut off already
                    }
                    if self.set_aside.get(&node).is_some_and(|marks| marks.contains(&mark(&message))) {
                        continue;
                    }
                    // The core takes the message; this one is looked at only if it fails over it.
                    let said = (node.clone(), message.clone());
                    self.apply(Event::Agent { node, connection, message }, Some(said), now, &mut group)?;
                    // From now on there is room for what it says next.
                    drop(unheard);
                }
                Input::AgentLost { node, connection } => {
                    self.agents.remove(&connection);
                    self.apply(Event::AgentLost { node, connection }, None, now, &mut group)?;
                }
                Input::Unknown { node, key, from } => {
                    self.apply(Event::Unknown { node, key, from }, None, now, &mut group)?;
                }
                Input::CannotStart { node, key, why } => {
                    self.apply(Event::CannotStart { node, key, why }, None, now, &mut group)?;
                }
                // It was seen to.
                Input::Listening => {}
                Input::Stop => self.stop = true,
            }
        }
        let resting = self.rest_until.is_some_and(|until| Instant::now() < until);
        if !resting && self.cluster.next_wake().is_some_and(|wake| wake <= now) {
            self.rest_until = None;
            self.apply(Event::Tick, None, now, &mut group)?;
        }
        self.finish(group)
    }

    /// Gives one event to the core. If that panics, what came before is finished, and the core is built anew.
    fn apply(
        &mut self,
        event: Event,
        said: Option<(NodeName, FromAgent)>,
        now: Time,
        group: &mut Group,
    ) -> Result<(), ControllerError> {
        let request = match &event {
            Event::Client { request, .. } | Event::Reconfigure { request, .. } => Some(*request),
            _ => None,
        };
        let tick = matches!(event, Event::Tick);
        // The core is dropped after a panic, so nobody sees it half changed.
        let handled = catch_unwind(AssertUnwindSafe(|| {
            #[cfg(test)]
            assert!(!(self.fault)(&event), "a fault that the test asked for");
            self.cluster.handle(event, now)
        }));
        match handled {
            Ok(outcome) => {
                for write in outcome.writes {
                    match write {
                        // One row: only its last form matters.
                        Write::PutMeta(_) => group.counters = Some(write),
                        other => group.writes.push(other),
                    }
                }
                group.locked.push(outcome.after_commit);
                group.changed.extend(outcome.changed);
                group.events += 1;
                if tick {
                    self.ticks_failed = 0;
                }
                Ok(())
            }
            Err(_) => {
                self.shared.alarm(
                    "panic",
                    "the scheduler's core had a fault and was built anew from the store; please report it with the log"
                        .to_string(),
                );
                self.after_panic(request, said, tick);
                // The core cannot tell what it looked like before this event, but the outcomes can.
                let before = std::mem::take(group);
                self.commit_only(before)?;
                self.rebuild("the scheduler had a fault and starts anew; try again")
            }
        }
    }

    /// Decides what becomes of an event that made the core panic.
    fn after_panic(&mut self, request: Option<RequestId>, said: Option<(NodeName, FromAgent)>, tick: bool) {
        if let Some(reply) = request.and_then(|request| self.pending.remove(&request)) {
            let text = "this request met a fault of the scheduler and was set aside; nothing was changed. Please \
                        report it with the controller's log";
            // The client may be gone.
            let _ = reply.send(Err(Refusal::new(RefusalCode::Internal, text)));
        }
        if let Some((node, message)) = said {
            let known_by = mark(&message);
            if !self.suspects.insert((node.clone(), known_by)) {
                let text = format!(
                    "a message of {node}'s agent made the scheduler fail twice and is set aside: {}",
                    shown(&message)
                );
                self.shared.alarm("message", text);
                self.set_aside.entry(node).or_default().insert(known_by);
            }
        }
        if tick {
            self.ticks_failed += 1;
            if self.ticks_failed >= 2 {
                self.shared.alarm(
                    "timers",
                    "the scheduler's timers failed twice in a row and rest for a minute at a time"
                        .to_string(),
                );
                self.rest_until = Some(Instant::now() + Duration::from_secs(60));
            }
        }
    }

    /// Commits a group whose core is still there, publishes, and lets its effects out.
    fn finish(&mut self, mut group: Group) -> Result<(), ControllerError> {
        if group.events == 0 {
            return Ok(());
        }
        let snapshot = self.cluster.snapshot();
        match self.write(&mut group) {
            Ok(proof) => {
                // Readers first: who has an answer finds what it says.
                self.shared.publish(snapshot, &group.changed);
                for locked in group.locked {
                    for effect in locked.open(&proof) {
                        self.perform(effect);
                    }
                }
                self.tell_of_restore();
                self.begin_later_term()
            }
            Err(e) => self.commit_failed(&e),
        }
    }

    /// Commits a group whose core is lost: the answers go out, agents hear when they come back.
    fn commit_only(&mut self, mut group: Group) -> Result<(), ControllerError> {
        match self.write(&mut group) {
            Ok(proof) => {
                for effect in group.locked.into_iter().flat_map(|locked| locked.open(&proof)) {
                    if let Effect::Reply { .. } = effect {
                        self.perform(effect);
                    }
                }
                Ok(())
            }
            Err(e) => self.commit_failed(&e),
        }
    }

    fn write(&mut self, group: &mut Group) -> Result<Committed, CommitError> {
        self.store.set_clock(self.clock.mark());
        only_last(&mut group.writes);
        group.writes.extend(group.counters.take());
        if !group.writes.is_empty() {
            self.noted = Instant::now();
        }
        commit(&mut self.store, &group.writes)
    }

    /// Says how cluster time is not that of the machine.
    fn tell_of_clock(&mut self) {
        match self.clock.troubles(self.cluster.in_doubt()) {
            Some(text) => self.shared.alarm("clock", text),
            None => self.shared.all_clear("clock"),
        }
    }

    /// Where nothing is written for long, it is written down what time it is: if the machine goes off now, no more than that has to be taken on trust.
    fn note_time(&mut self) -> Result<(), ControllerError> {
        let resting = self.rest_until.is_some_and(|until| Instant::now() < until);
        if self.noted.elapsed() < NOTE || self.full || resting {
            return Ok(());
        }
        self.noted = Instant::now();
        let now = self.clock.now();
        let mut group = Group::default();
        self.cluster.note_time();
        self.apply(Event::Tick, None, now, &mut group)?;
        self.finish(group)
    }

    fn commit_failed(&mut self, e: &CommitError) -> Result<(), ControllerError> {
        self.shared.alarm("commit", e.to_string());
        let text = match e {
            CommitError::Failed(why) => {
                format!("the controller could not record this, nothing was changed: {why}")
            }
            CommitError::Unknown(why) => {
                format!(
                    "the controller cannot tell whether this was recorded: {why}; look before you try again"
                )
            }
        };
        self.rebuild(&text)
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Reply { request, result } => {
                if let Some(reply) = self.pending.remove(&request) {
                    // The client may be gone.
                    let _ = reply.send(result);
                }
            }
            Effect::Send { connection, message, payload, login } => {
                self.send(connection, Outgoing { message, payload, login, to: Vec::new() });
            }
            Effect::Carry { connection, start, to, payload, login } => {
                self.send(connection, Outgoing { message: ToAgent::Start(start), payload, login, to });
            }
            Effect::Unconfirmed { key, nodes, early } => {
                let names: Vec<&str> = nodes.iter().map(|node| node.0.as_str()).collect();
                let names = berth_model::hostlist::compress(&names);
                let when = if early { "before more is said of the step" } else { "in time" };
                tracing::info!(
                    "step {key}: what is carried to {names} is not confirmed {when}: told directly"
                );
            }
            Effect::CutOff { node, why } => {
                let before = self.agents.len();
                self.agents.retain(|_, (name, _)| *name != node);
                if self.agents.len() < before {
                    tracing::warn!("{node}: its agent is cut off: {why}");
                }
            }
            Effect::Fence { node, asked } if self.cluster.snapshot().member(&node).is_none() => {
                // What has joined nothing is beside the controller.
                let why = "it is the controller's own machine, which is on: start its agent ('berth up'), or say State=DOWN of it where \
                           its jobs are lost";
                self.fences.refuse(node, asked, why);
            }
            Effect::Fence { node, asked } => {
                // What is configured otherwise meanwhile is asked for again as it is then, or not at all.
                if let Some(rules) = &self.config.fence {
                    let (program, cluster) = (rules.program.clone(), self.config.cluster.clone());
                    let (seconds, private) = (rules.seconds, self.fences.private());
                    self.fences.start(Fence { program, seconds, cluster, node, private }, asked);
                }
            }
            Effect::Supersede(term) => self.supersede = self.supersede.max(Some(term)),
            Effect::Disconnect { connection, why } => {
                if let Some((node, _)) = self.agents.remove(&connection) {
                    tracing::warn!("{node}: its agent is cut off: {why}");
                }
            }
        }
    }

    /// Puts a message into the queue of an agent's link. One that does not keep up is cut off.
    fn send(&mut self, connection: u64, outgoing: Outgoing) {
        let Some((node, queue)) = self.agents.get(&connection) else { return };
        if let Err(e) = queue.try_send(outgoing) {
            tracing::warn!("{node}: its agent does not keep up and is cut off: {e}");
            self.agents.remove(&connection);
        }
    }

    /// Says what a restored cluster waits for, when that has changed.
    fn tell_of_restore(&mut self) {
        let why = self.cluster.why_held();
        if why == self.held {
            return;
        }
        match &why {
            Some(text) => self.shared.alarm("restored", text.clone()),
            None => self.shared.all_clear("restored"),
        }
        self.held = why;
    }

    /// After a restore: an agent followed a later controller than those of the backup.
    fn begin_later_term(&mut self) -> Result<(), ControllerError> {
        let Some(term) = self.supersede.take() else { return Ok(()) };
        self.store.raise_term(term)?;
        tracing::info!(
            "an agent followed a controller of term {term}: going on under term {}",
            self.store.term()
        );
        self.rebuild("the controller begins a new term after a restore; try again")
    }

    /// Drops the core and builds it from the store, for as long as that takes. Whoever waits for an answer is
    /// told `text`; agents are cut off, so that they come back and compare notes.
    fn rebuild(&mut self, text: &str) -> Result<(), ControllerError> {
        for (_, reply) in self.pending.drain() {
            let _ = reply.send(Err(Refusal::new(RefusalCode::Unavailable, text)));
        }
        self.agents.clear();
        loop {
            let error: ControllerError = match self.restore() {
                Ok(()) => {
                    self.shared.all_clear("commit");
                    return Ok(());
                }
                Err(ControllerError::Store(e @ (StoreError::Damaged { .. } | StoreError::Newer { .. }))) => {
                    return Err(e.into());
                }
                Err(e @ ControllerError::Restore { .. }) => return Err(e),
                Err(e) => e,
            };
            self.shared.alarm("commit", format!("the state cannot be read: {error}; trying again"));
            if self.stop {
                return Err(error);
            }
            self.turn_away(Duration::from_secs(1));
        }
    }

    fn restore(&mut self) -> Result<(), ControllerError> {
        self.store.reopen()?;
        let stored = self.store.load()?;
        let now = self.clock.now();
        let path = self.store.path().to_path_buf();
        let last_signal = self.cluster.last_signal();
        self.cluster = Cluster::restore(self.config.clone(), self.store.term(), stored, now)
            .map_err(|error| ControllerError::Restore { path, error })?;
        self.cluster.signals_above(last_signal);
        self.cluster.has_leapt(self.leap, self.clock.boot());
        if let Some(random) = self.random {
            self.cluster.draw_realm(random);
        }
        // A new core believes that there is room.
        self.full = false;
        self.looked = None;
        // And knows of no port.
        if self.port == Port::Told {
            self.port = Port::Open;
        }
        self.shared.publish(self.cluster.snapshot(), &BTreeSet::new());
        self.shared.watchers.all_changed();
        Ok(())
    }

    /// Without a core, everyone is asked to come back.
    fn turn_away(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while let Ok(input) = self.inputs.recv_timeout(until.saturating_duration_since(Instant::now())) {
            match input {
                Input::Client { reply, .. } | Input::Reconfigure { reply, .. } => {
                    let text = "the controller cannot read its state just now; try again";
                    let _ = reply.send(Err(Refusal::new(RefusalCode::Unavailable, text)));
                }
                Input::Listening => self.port = Port::Open,
                Input::Stop => {
                    self.stop = true;
                    return;
                }
                // Dropping an agent's queue cuts it off.
                Input::Abandoned { .. }
                | Input::AgentOpened { .. }
                | Input::Agent { .. }
                | Input::AgentLost { .. }
                | Input::Unknown { .. }
                | Input::CannotStart { .. } => {}
            }
        }
    }

    /// Now and then, and when a commit found no room: whether new work can be taken.
    fn look_at_disk(&mut self) -> Option<Event> {
        let due = self.looked.is_none_or(|at| at.elapsed() >= LOOK);
        if !due && self.store.is_full() == self.full {
            return None;
        }
        self.looked = Some(Instant::now());
        let room = self.store.room();
        let full = room != Room::Enough;
        if full == self.full {
            return None;
        }
        self.full = full;
        self.shared.set_accepting(!full);
        match room {
            Room::Full(why) => {
                self.shared.alarm("disk", format!("no new jobs are taken: {why}"));
                Some(Event::StoreFull(Some(why)))
            }
            Room::Enough => {
                self.shared.all_clear("disk");
                Some(Event::StoreFull(None))
            }
        }
    }

    /// When there is nothing else to do: forgets records that are older than they are kept.
    fn purge(&mut self) {
        let Some(keep) = self.keep else { return };
        if self.purged.elapsed() < PURGE {
            return;
        }
        // What may not have passed makes nothing older.
        let before = self.clock.now() - keep - self.cluster.in_doubt();
        match self.store.purge(before, PURGE_CHUNK) {
            Ok(PURGE_CHUNK) => {} // more of them the next time
            Ok(_) => self.purged = Instant::now(),
            Err(e) => {
                tracing::warn!("old records are not forgotten: {e}");
                self.purged = Instant::now();
            }
        }
    }
}

#[cfg(test)]
mod tests;

fn span_of_days(days: u32) -> Option<Span> {
    (days > 0).then(|| Span::from_mins(i64::from(days) * 24 * 60))
}

fn interactive_jobs(stored: &Stored) -> Vec<JobId> {
    let driven: BTreeSet<JobId> =
        stored.specs.iter().filter(|s| needs_client(&s.spec)).map(|s| s.job).collect();
    stored
        .jobs
        .iter()
        .filter(|row| driven.contains(&row.spec_of) && !matches!(row.phase, Phase::Ended { .. }))
        .map(|row| row.job)
        .collect()
}
