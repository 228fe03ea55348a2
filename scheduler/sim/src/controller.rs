//! The controller's process: the shell around its core as the server's is, with commits that fail, and lives that end.

use crate::faults::Kind;
use crate::journal::{to_agent, write};
use crate::network::Way;
use crate::store::Mood;
use crate::workload::ClientAct;
use crate::world::{Happening, World};
use berth_model::carry::CarriedTo;
use berth_model::config::Config;
use berth_model::ids::{NodeName, Session, Term};
use berth_model::link::{FromAgent, ToAgent};
use berth_model::time::{Span, Time};
use berth_sched_core::{
    AfterCommit, BootClock, Cluster, CommitError, CoreConfig, Effect, Event, Leap, LoginOf, Outcome, Pace,
    PayloadKey, StepRow, Write, commit, fill_payload,
};
use std::collections::{BTreeMap, BTreeSet};

/// What one controller process has, and what outlives it.
pub(crate) struct Controller {
    pub(crate) config: CoreConfig,
    pub(crate) term: Term,
    /// Grows with each core: what was planned for another one is of no more interest.
    pub(crate) life: u64,
    pub(crate) core: Option<Cluster>,
    pub(crate) group: Vec<(Vec<Write>, AfterCommit)>,
    /// When the core is to be woken, once that is planned.
    pub(crate) wake: Option<Time>,
    pub(crate) connections: u64,
    /// Connections that it still has.
    pub(crate) open: BTreeSet<u64>,
    /// Connections that it closed because of a later one: what was read on them before waits in the core's queue.
    replaced: BTreeSet<u64>,
    clock: Option<Pace>,
    /// In which boot its machine is.
    pub(crate) boot: u64,
    /// How far time went on with the start of its process on the word of the wall clock alone.
    leap: Option<Leap>,
    /// How far its wall clock is from the truth, in microseconds.
    pub(crate) wall: i64,
    /// Whether the store has no room for new work, and whether the core was told.
    pub(crate) full: bool,
    told_full: bool,
    /// The latest registration of each node, as its Welcome said it.
    registered: BTreeMap<NodeName, (u64, Session)>,
    /// Whether the core is as it was when it said what now leaves: one event was committed alone.
    up_to_date: bool,
    /// From when until when it last stood still.
    pub(crate) held: Option<(Time, Time)>,
    /// When its core was built.
    pub(crate) started: Time,
    /// The latest connection on which each introduced itself.
    pub(crate) introduced: BTreeMap<NodeName, u64>,
    /// The cluster time since which the partition starts nothing.
    pub(crate) closed: Option<Time>,
}

impl Controller {
    pub(crate) fn new(config: &Config) -> Result<Controller, String> {
        Ok(Controller {
            config: CoreConfig::new(config).map_err(|e| e.to_string())?,
            term: Term(0),
            life: 0,
            core: None,
            group: Vec::new(),
            wake: None,
            connections: 0,
            open: BTreeSet::new(),
            replaced: BTreeSet::new(),
            clock: None,
            boot: 1,
            leap: None,
            wall: 0,
            full: false,
            told_full: false,
            registered: BTreeMap::new(),
            up_to_date: false,
            held: None,
            started: Time(0),
            introduced: BTreeMap::new(),
            closed: None,
        })
    }

    /// The boot id of its machine.
    fn boot_id(&self) -> String {
        format!("head-{}", self.boot)
    }
}

impl World {
    /// Cluster time. The clock since boot is the world's own; the wall clock may be anywhere.
    fn cluster_now(&mut self) -> Time {
        let wall = Time(self.now.0 + self.controller.wall);
        match &mut self.controller.clock {
            Some(pace) => pace.read(self.now, wall),
            None => self.now,
        }
    }

    /// Cluster time, or the highest on record while there is no controller.
    pub(crate) fn cluster_time(&mut self) -> Time {
        if self.controller.clock.is_some() { self.cluster_now() } else { self.store.clock }
    }

    /// Gives the core an event, as the server's thread does; what follows waits for the next commit.
    pub(crate) fn control(&mut self, event: Event) -> Result<(), String> {
        if self.controller.core.is_none() {
            return Ok(());
        }
        if self.faults && self.chaos.on(Kind::CorePanic) && self.rng.permille(1) {
            return self.core_panics();
        }
        self.seen_by_the_controller(&event);
        if self.is_stale(&event) {
            self.count("messages of an old registration dropped");
            self.handle(Event::Tick)?;
            let outcome = self.outcome_of(event)?;
            if !outcome.writes.is_empty() || !outcome.after_commit.is_empty() || !outcome.changed.is_empty() {
                return Err("a message of an old registration changed something".into());
            }
        } else {
            if self.is_of_nobody(&event) {
                self.count("words of machines that are in no books");
                self.handle(Event::Tick)?;
            }
            self.handle(event)?;
        }
        if self.faults && self.chaos.on(Kind::ControllerCrash) && self.rng.permille(2) {
            self.count("controller crashes before a commit");
            self.crash_controller("before the commit");
        }
        Ok(())
    }

    fn outcome_of(&mut self, event: Event) -> Result<Outcome, String> {
        let now = self.cluster_now();
        let Some(core) = &mut self.controller.core else { return Err("no core".into()) };
        let outcome = core.handle(event, now);
        core.audit()?;
        Ok(outcome)
    }

    fn handle(&mut self, event: Event) -> Result<(), String> {
        let nobody = self.is_of_nobody(&event);
        let Outcome { writes, after_commit, .. } = self.outcome_of(event)?;
        if nobody && !writes.is_empty() {
            return Err("the word of a machine that is in no books changes something".into());
        }
        self.nothing_starts_while_closed(&writes)?;
        self.limits_are_granted(&writes)?;
        self.ids_suffice(&writes)?;
        if self.controller.told_full {
            self.truth.nothing_new(&writes)?;
        }
        self.arm();
        let first = self.controller.group.is_empty();
        let cluster = self.controller.clock.as_ref().map_or(self.now, Pace::last);
        self.fencing.handled(first, cluster, self.now);
        if first {
            // Now and then the disk is slow.
            let slow = self.rng.permille(30);
            let after = if slow { self.span(2000, 800_000) } else { self.span(0, 2000) };
            let life = self.controller.life;
            self.plan(after, Happening::Flush { life });
        }
        self.controller.group.push((writes, after_commit));
        Ok(())
    }

    /// Plans when the core is woken: by a clock that goes faster or slower than the world's.
    fn arm(&mut self) {
        let now = self.cluster_now();
        let Some(at) = self.controller.core.as_ref().and_then(Cluster::next_wake) else { return };
        let at = self.now + at.since(now);
        if self.controller.wake.is_none_or(|planned| at < planned) {
            self.controller.wake = Some(at);
            self.plan_at(at, Happening::CoreWake { at });
        }
    }

    /// Whether the core hears a word of a node on this connection: it is open, or was when the word was read.
    pub(crate) fn hears(&mut self, node: &NodeName, connection: u64) -> bool {
        if self.controller.open.contains(&connection) {
            return true;
        }
        let queued = self.controller.replaced.contains(&connection)
            && self.controller.introduced.get(node).is_some_and(|latest| connection < *latest)
            && self.faults
            && self.chaos.on(Kind::Queued);
        if queued {
            self.count(Kind::Queued.name());
        }
        queued
    }

    /// Whether it is the word of a registration that a later one has replaced.
    pub(crate) fn is_stale(&self, event: &Event) -> bool {
        let Event::Agent { node, connection, message } = event else { return false };
        self.is_of_before(node, *connection, message)
    }

    /// The same of a word that has not been read.
    pub(crate) fn is_of_before(&self, node: &NodeName, connection: u64, message: &FromAgent) -> bool {
        let session = match message {
            FromAgent::Hello { .. } => return false,
            FromAgent::Step { session, .. }
            | FromAgent::Pulled { session, .. }
            | FromAgent::JobGone { session, .. }
            | FromAgent::PrologFailed { session, .. }
            | FromAgent::RebootFailed { session, .. }
            | FromAgent::ImagesHeld { session, .. }
            | FromAgent::Peers { session, .. }
            | FromAgent::NotEnded { session, .. }
            | FromAgent::Signalled { session, .. }
            | FromAgent::Heartbeat { session, .. } => session,
        };
        let registered = self.controller.registered.get(node);
        registered.is_some_and(|(_, known)| session < known)
            || self.controller.introduced.get(node).is_some_and(|latest| connection < *latest)
    }

    pub(crate) fn flush(&mut self) -> Result<(), String> {
        let group = std::mem::take(&mut self.controller.group);
        if self.controller.core.is_none() {
            return Ok(());
        }
        self.controller.up_to_date = group.len() == 1;
        let (writes, locked) = unite(group);
        self.note(|| format!("commits {}", writes.iter().map(write).collect::<Vec<_>>().join(", ")));
        let dies = self.faults && self.chaos.on(Kind::ControllerCrash) && self.rng.permille(8);
        if self.faults && self.chaos.on(Kind::Commits) && !writes.is_empty() {
            self.store.mood = match self.rng.below(1000) {
                0..8 => Mood::Fails,
                8..16 => Mood::UnknownWritten,
                16..24 => Mood::UnknownLost,
                _ => Mood::Fine,
            };
        } else if dies && !writes.is_empty() {
            // In the middle of it: all of it is there, or nothing.
            self.store.mood = if self.rng.permille(500) { Mood::UnknownWritten } else { Mood::UnknownLost };
        }
        let mood = self.store.mood;
        let result = self.commit_all(&writes)?;
        let proof = match result {
            Ok(proof) => proof,
            Err(e) => {
                self.note(|| e.to_string());
                if dies {
                    self.count(match mood {
                        Mood::UnknownWritten => "controller crashes during a commit, which is there",
                        _ => "controller crashes during a commit, which is not there",
                    });
                    self.crash_controller("during the commit");
                    return Ok(());
                }
                self.count(match mood {
                    Mood::UnknownWritten => "commits of unknown outcome, which are there",
                    Mood::UnknownLost => "commits of unknown outcome, which are not there",
                    _ => "failed commits",
                });
                self.rebuild();
                return Ok(());
            }
        };
        if dies {
            self.count("controller crashes after a commit, before its effects");
            self.crash_controller("after the commit, before its effects");
            return Ok(());
        }
        let effects: Vec<Effect> = locked.into_iter().flat_map(|after| after.open(&proof)).collect();
        for effect in effects {
            self.effect(effect)?;
            if self.faults && self.chaos.on(Kind::ControllerCrash) && self.rng.permille(3) {
                self.count("controller crashes between effects");
                self.crash_controller("between effects");
                return Ok(());
            }
        }
        Ok(())
    }

    /// Commits; what is durable then is held against what was.
    fn commit_all(
        &mut self,
        writes: &[Write],
    ) -> Result<Result<berth_sched_core::Committed, CommitError>, String> {
        let mood = self.store.mood;
        let now = self.cluster_now();
        if now < self.store.clock {
            return Err(format!("cluster time is {}, and {} was on record", now.0, self.store.clock.0));
        }
        let boot = self.controller.boot_id();
        self.store.next = self.controller.clock.as_ref().map(|pace| pace.mark(&boot)).unwrap_or_default();
        let result = commit(&mut self.store, writes);
        self.store.mood = Mood::Fine;
        if matches!(mood, Mood::Fine | Mood::UnknownWritten) {
            self.no_loss_of_what_runs(writes)?;
            self.truth.durable(writes)?;
        }
        Ok(result)
    }

    fn effect(&mut self, effect: Effect) -> Result<(), String> {
        match effect {
            Effect::Reply { request, result } => {
                self.told(request, &result)?;
                if self.faults && self.chaos.on(Kind::AnswersLost) && self.rng.permille(60) {
                    self.count(Kind::AnswersLost.name());
                    return Ok(());
                }
                let after = self.span(50, 5000);
                self.plan(after, Happening::Client(ClientAct::Answer(request, Box::new(result))));
            }
            Effect::Send { connection, message, payload, login } => {
                return self.goes_out(connection, message, (payload, login), Vec::new());
            }
            Effect::Carry { connection, start, to, payload, login } => {
                return self.goes_out(connection, ToAgent::Start(start), (payload, login), to);
            }
            Effect::CutOff { node, .. } => {
                let links = self.links.iter().filter(|(_, link)| link.node == node);
                for connection in links.map(|(connection, _)| *connection).collect::<Vec<_>>() {
                    if self.controller.open.remove(&connection) {
                        self.plan(Span(1000), Happening::Cut { connection });
                    }
                }
            }
            Effect::Fence { node, asked } => {
                self.may_fence(&node, asked)?;
                let life = self.controller.life;
                let after = self.span(100_000, 20_000_000);
                self.plan(after, Happening::Fences { node, asked, life });
            }
            Effect::Unconfirmed { .. } => {}
            Effect::Supersede(term) => {
                self.controller.term = self.controller.term.max(term);
                self.crash_controller("to begin a later term");
            }
            Effect::Disconnect { connection, .. } => {
                if self.controller.open.remove(&connection) {
                    self.controller.replaced.insert(connection);
                }
                self.plan(Span(1000), Happening::Cut { connection });
            }
        }
        Ok(())
    }

    /// A message leaves for an agent, filled in from the store. `to`: to whom its node carries the same.
    fn goes_out(
        &mut self,
        connection: u64,
        mut message: ToAgent,
        (payload, login): (Option<PayloadKey>, Option<LoginOf>),
        to: Vec<CarriedTo>,
    ) -> Result<(), String> {
        self.note(|| format!("to connection {connection}: {}", to_agent(&message)));
        if let (ToAgent::Prefetch(start), Some(core)) = (&message, &self.controller.core) {
            if self.controller.up_to_date {
                core.audit_prefetch(start.launch.key.job, &start.launch.node)?;
            }
            self.count("images to be fetched ahead");
        }
        if let (ToAgent::Start(start) | ToAgent::Prefetch(start), Some(key)) = (&mut message, payload) {
            if self.store.is_retired(key.job()) {
                return Ok(()); // it ended and was forgotten behind the same commit; the server drops it, too
            }
            match self.store.payload(key) {
                Ok(payload) => fill_payload(&mut start.launch, &payload),
                Err(why) => {
                    let this = start.launch.key;
                    let over = |s: &StepRow| s.key == this && s.result.is_some();
                    // As above, and its job runs again already.
                    return if self.store.every_step()?.iter().any(over) { Ok(()) } else { Err(why) };
                }
            }
        }
        if let Some(LoginOf::Stored(key)) = login
            && self.store.payload(key).is_ok()
        {
            self.count("starts with a login");
        }
        if !self.controller.open.contains(&connection) {
            return Ok(());
        }
        let Some(node) = self.links.get(&connection).map(|link| link.node.clone()) else {
            return Ok(());
        };
        self.sent(&node, connection, &message)?;
        if let ToAgent::Start(start) = &message
            && !to.is_empty()
        {
            self.head_is_told(connection, start, to);
        }
        let message = Box::new(message);
        self.deliver(Way::ToAgent, connection, Happening::ToAgent { connection, message });
        Ok(())
    }

    /// A word that leaves the controller: what it says must be durable.
    fn sent(&mut self, node: &NodeName, connection: u64, message: &ToAgent) -> Result<(), String> {
        match message {
            ToAgent::Welcome { session, .. } => {
                self.controller.registered.insert(node.clone(), (connection, *session));
            }
            ToAgent::Refused(_) => self.count("registrations turned away"),
            ToAgent::ExitRecorded { key } => {
                let forgotten = self.is_forgotten(*key);
                self.truth.acknowledged(*key, node, forgotten)?;
            }
            ToAgent::EndJob { job, attempt, .. } => {
                let later = self.truth.record.attempts.get(job).is_some_and(|known| known > attempt);
                if later {
                    self.count("runs ended that the cluster had given up");
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The core meets a fault of its own: what came before is committed and answered, and it is built anew. Agents hear when
    /// they come back.
    fn core_panics(&mut self) -> Result<(), String> {
        self.note(|| "the core has a fault".into());
        self.count(Kind::CorePanic.name());
        let (writes, locked) = unite(std::mem::take(&mut self.controller.group));
        if let Ok(proof) = self.commit_all(&writes)? {
            let effects: Vec<Effect> = locked.into_iter().flat_map(|after| after.open(&proof)).collect();
            for effect in effects {
                if let Effect::Reply { .. } = effect {
                    self.effect(effect)?;
                }
            }
        }
        self.rebuild();
        Ok(())
    }

    /// Drops the core and has it built from the store, in the same process: term and clock go on.
    fn rebuild(&mut self) {
        self.drop_core();
        let slow = self.rng.permille(100);
        let after = if slow { self.span(500_000, 4_000_000) } else { self.span(100, 50_000) };
        let life = self.controller.life;
        self.plan(after, Happening::ControllerStarts { life, anew: false });
    }

    /// The process dies.
    pub(crate) fn crash_controller(&mut self, when: &'static str) {
        self.note(|| format!("the controller dies {when}"));
        self.count("controller crashes");
        self.drop_core();
        self.controller.clock = None;
        // In worlds whose wall clock jumps, the machine boots anew now and then, and nothing else says how long that took.
        if self.chaos.on(Kind::WallClock) && self.controller.life.is_multiple_of(3) {
            self.count("boots of the controller's machine");
            self.controller.boot += 1;
        }
        let long = self.chaos.on(Kind::ControllerOutage) && self.rng.permille(250);
        let after = if long { self.span(20_000_000, 60_000_000) } else { self.span(1000, 8_000_000) };
        if long {
            self.count(Kind::ControllerOutage.name());
        }
        let life = self.controller.life;
        self.plan(after, Happening::ControllerStarts { life, anew: true });
    }

    fn drop_core(&mut self) {
        let c = &mut self.controller;
        c.core = None;
        c.life += 1;
        c.group.clear();
        c.wake = None;
        c.registered.clear();
        c.introduced.clear();
        c.replaced.clear();
        self.truth.forget_what_was_told();
        c.told_full = false;
        c.held = None;
        for connection in std::mem::take(&mut c.open) {
            self.plan(Span(1000), Happening::Cut { connection });
        }
    }

    pub(crate) fn controller_starts(&mut self, life: u64, anew: bool) -> Result<(), String> {
        if life != self.controller.life || self.controller.core.is_some() {
            return Ok(());
        }
        let stored = self.store.load()?;
        if anew {
            self.controller.term = Term(self.controller.term.0 + 1);
            let wall = Time(self.now.0 + self.controller.wall);
            let clock = BootClock { boot: self.controller.boot_id(), shows: self.now };
            let (pace, by) = Pace::start(&self.store.mark(), &clock, wall, stored.is_idle());
            if by > Span(0) {
                self.count("controllers that began at the time of their wall clock");
            }
            if by >= Span::from_mins(60) {
                self.count("controllers whose time went on by hours with their start");
            }
            self.controller.leap = Some(Leap { at: pace.last(), by, sure: false });
            self.controller.clock = Some(pace);
        }
        let now = self.cluster_now();
        if now < self.store.clock {
            return Err(format!(
                "cluster time begins at {}, and {} was on record",
                now.0, self.store.clock.0
            ));
        }
        let mut core = Cluster::restore(self.controller.config.clone(), self.controller.term, stored, now)
            .map_err(|e| e.to_string())?;
        if let Some(leap) = self.controller.leap {
            core.has_leapt(leap, &self.controller.boot_id());
        }
        // Terms differ as random numbers would.
        core.draw_realm(self.controller.term.0);
        core.audit().map_err(|e| format!("after a restart: {e}"))?;
        self.client.check_known(&core, &self.store)?;
        self.controller.core = Some(core);
        self.controller.started = self.now;
        self.look_at_disk()?;
        // What is in the network of a world is always reached.
        self.control(Event::Listening)
    }

    /// Tells the core whether the store has room, where that has changed.
    pub(crate) fn look_at_disk(&mut self) -> Result<(), String> {
        if self.controller.core.is_none() || self.controller.full == self.controller.told_full {
            return Ok(());
        }
        let full = self.controller.full;
        self.handle(Event::StoreFull(full.then(|| "no space left on device".to_string())))?;
        self.controller.told_full = full;
        Ok(())
    }
}

fn unite(group: Vec<(Vec<Write>, AfterCommit)>) -> (Vec<Write>, Vec<AfterCommit>) {
    let mut writes = Vec::new();
    let mut locked = Vec::new();
    for (w, after) in group {
        writes.extend(w);
        locked.push(after);
    }
    (writes, locked)
}
