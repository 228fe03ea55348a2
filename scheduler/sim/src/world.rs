//! The world: one clock, one queue of happenings, a controller, machines, clients and a network, and the stages of a run.

use crate::Options;
use crate::carried::tree;
use crate::controller::Controller;
use crate::faults::{Chaos, Kind};
use crate::fencing::Fencing;
use crate::joining::Joining;
use crate::journal::Journal;
use crate::machine::Machine;
use crate::network::{Link, Way};
use crate::rng::Rng;
use crate::store::ModelStore;
use crate::truth::{OnRecord, Truth};
use crate::workload::{Client, ClientAct};
use berth_agent_core::{AgentEvent, ImageEvent};
use berth_model::carry::Carried;
use berth_model::hardware::{Core, GresDevice, Hardware};
use berth_model::ids::{Attempt, JobId, NodeName, StepKey, Term};
use berth_model::link::{FromAgent, ToAgent};
use berth_model::state::ExitStatus;
use berth_model::time::{Span, Time};
use berth_sched_core::{Event, Restored, Stored, Write, commit, go_on_from};
use std::collections::{BTreeMap, BTreeSet};

/// When clients and faults begin: every node is registered by then, so that nothing is taken that can never run.
pub(crate) const FIRST: Span = Span::from_secs(6);
/// When the world begins.
pub(crate) const BEGINNING: Time = Time(1_700_000_000_000_000);

/// Something that will happen at its time.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    ToController {
        connection: u64,
        message: Box<FromAgent>,
        /// It is where the controller is, and waits to be read: a way that is closed later does not stop it.
        came: bool,
    },
    ToAgent {
        connection: u64,
        message: Box<ToAgent>,
    },
    /// The head of a branch is told what it is to carry.
    Carries {
        connection: u64,
        bundle: Vec<Carried>,
    },
    /// A node brings a Start to another one.
    Brought {
        carried: Box<Carried>,
    },
    /// The controller learns that a connection has ended.
    LossSeen {
        connection: u64,
    },
    /// The agent does.
    Cut {
        connection: u64,
    },
    /// One side gives a connection up on which nothing comes any more.
    Unanswered {
        connection: u64,
        by_agent: bool,
    },
    Connect {
        node: NodeName,
        life: u64,
    },
    AgentWake {
        node: NodeName,
        life: u64,
        at: Time,
    },
    CoreWake {
        at: Time,
    },
    Flush {
        life: u64,
    },
    Image {
        node: NodeName,
        life: u64,
        key: StepKey,
        event: ImageEvent,
    },
    /// A node knows what an image's name means there, and asks what all have.
    Finds {
        node: NodeName,
        life: u64,
        ask: u64,
    },
    Running {
        node: NodeName,
        boot: u64,
        key: StepKey,
    },
    Ends {
        node: NodeName,
        boot: u64,
        key: StepKey,
        plan: u64,
        status: ExitStatus,
        oom: bool,
    },
    Prolog {
        node: NodeName,
        boot: u64,
        life: u64,
        job: JobId,
        attempt: Attempt,
    },
    Lease {
        node: NodeName,
        boot: u64,
        key: StepKey,
    },
    Deadline {
        node: NodeName,
        boot: u64,
        job: JobId,
        attempt: Attempt,
    },
    Continues {
        node: NodeName,
        boot: u64,
        key: StepKey,
    },
    GroupKilled {
        node: NodeName,
        boot: u64,
        key: StepKey,
    },
    Gone {
        node: NodeName,
        life: u64,
        key: StepKey,
    },
    Removed {
        node: NodeName,
        boot: u64,
        life: u64,
        job: JobId,
        attempt: Attempt,
    },
    Checked {
        node: NodeName,
        life: u64,
    },
    Reboots {
        node: NodeName,
        boot: u64,
        life: u64,
    },
    Looked {
        node: NodeName,
        life: u64,
        job: JobId,
        attempt: Attempt,
    },
    Ask {
        node: NodeName,
        life: u64,
    },
    AgentStarts {
        node: NodeName,
    },
    MachineUp {
        node: NodeName,
    },
    /// The program that powers a node off gets to it.
    Fences {
        node: NodeName,
        asked: Time,
        life: u64,
    },
    /// It has ended.
    Fenced {
        node: NodeName,
        asked: Time,
        life: u64,
        result: Result<(), String>,
    },
    ControllerStarts {
        life: u64,
        anew: bool,
    },
    DiskLook,
    /// A machine that is to belong to the cluster looks whether it does.
    Joins {
        node: NodeName,
    },
    /// Another configuration is put in force.
    Reconfigure,
    Backup,
    GoesBack,
    Heals {
        node: NodeName,
    },
    Client(ClientAct),
    Fault,
}

/// What a run goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Clients and faults are at work.
    Busy,
    /// What is down comes back.
    Back,
    /// Clients ask for everything to end.
    Asking,
    /// Everything ends.
    Ending,
    /// The last changes are committed.
    Last,
    /// Every agent registers once more, and has nothing.
    Looking,
    Over,
}

/// What is to be known of controllers that are made of a backup.
#[derive(Default)]
pub(crate) struct Restores {
    /// How many there were, for the number that is random elsewhere.
    done: u64,
    /// Whether so many numbers were given out since the backup that nodes alone can tell of them.
    pub(crate) close: bool,
    /// Whether nodes then tell of jobs that nobody gave out, and whether an administrator has put one back in service since, which says that it is right.
    pub(crate) lies: bool,
    pub(crate) said: bool,
    /// The term of the controller that was lost last.
    pub(crate) term: Term,
    /// Runs that began of jobs that no backup has: of no other job.
    pub(crate) lost: BTreeSet<(JobId, Attempt)>,
}

pub(crate) struct World {
    pub(crate) options: Options,
    pub(crate) rng: Rng,
    pub(crate) chaos: Chaos,
    pub(crate) now: Time,
    pub(crate) queue: BTreeMap<(Time, u64), Happening>,
    sequence: u64,
    stage: Stage,
    stage_ends: Time,
    pub(crate) events: u64,
    pub(crate) store: ModelStore,
    pub(crate) controller: Controller,
    pub(crate) fencing: Fencing,
    pub(crate) joining: Joining,
    pub(crate) machines: BTreeMap<NodeName, Machine>,
    /// Every connection that there ever was.
    pub(crate) links: BTreeMap<u64, Link>,
    pub(crate) client: Client,
    pub(crate) truth: Truth,
    /// Whether messages, commits and processes may fail just now.
    pub(crate) faults: bool,
    pub(crate) calm: bool,
    /// What a backup has, the term in which it was made, and what was on record.
    backup: Option<(ModelStore, Term, OnRecord)>,
    pub(crate) restores: Restores,
    /// What a restored controller goes on above: steps below that need have no record.
    pub(crate) restored: Option<Restored>,
    /// When the last thing happens that has to wait for a machine, or for the way to it.
    pub(crate) held_until: Time,
    /// Nodes whose last Hello was looked at.
    pub(crate) looked: Option<std::collections::BTreeSet<NodeName>>,
    pub(crate) journal: Option<Journal>,
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

impl World {
    pub(crate) fn new(seed: u64, options: &Options, log: bool) -> Result<World, String> {
        let mut rng = Rng::new(seed);
        let mut chaos = Chaos::of(&mut rng, options);
        if options.faults && !options.backups && seed % 8 == 5 {
            chaos.with_held_up_controllers();
        }
        chaos.days = seed % 8 == 3;
        (chaos.config.launch_tree_from, chaos.config.launch_tree_width) = tree(seed, options.backups);
        let mut machines = BTreeMap::new();
        for i in 0..chaos.nodes {
            let name = NodeName(format!("n{i}"));
            let booted = Time(BEGINNING.0 - rng.between(1_000_000, 1_000_000_000));
            let mut machine = Machine::new(name.clone(), hardware(&mut rng), booted);
            machine.rate = if chaos.on(Kind::Drift) { rng.between(-10, 10) } else { 0 };
            machine.prolog = (seed + u64::from(i)).is_multiple_of(3);
            machine.checks = (seed / 3 + u64::from(i)).is_multiple_of(4);
            machines.insert(name, machine);
        }
        let mut world = World {
            client: Client::default(),
            options: options.clone(),
            now: BEGINNING,
            queue: BTreeMap::new(),
            sequence: 0,
            stage: Stage::Busy,
            stage_ends: BEGINNING + chaos.busy,
            events: 0,
            store: ModelStore::default(),
            controller: Controller::new(&chaos.config)?,
            fencing: Fencing::default(),
            joining: Joining::default(),
            machines,
            links: BTreeMap::new(),
            truth: Truth::default(),
            faults: false,
            calm: false,
            backup: None,
            restores: Restores {
                done: seed / 2 % 2,
                close: seed % 3 == 1,
                lies: seed.is_multiple_of(9),
                ..Restores::default()
            },
            restored: None,
            held_until: Time(0),
            looked: None,
            journal: log.then(Journal::default),
            counts: BTreeMap::new(),
            chaos,
            rng,
        };
        if world.machines.values().any(|m| m.rate != 0) {
            world.count(Kind::Drift.name());
        }
        world.plan(Span(0), Happening::ControllerStarts { life: 0, anew: true });
        for node in world.machines.keys().cloned().collect::<Vec<_>>() {
            let after = Span(world.rng.between(0, 2_000_000));
            world.plan(after, Happening::AgentStarts { node });
        }
        world.plan(FIRST, Happening::Fault);
        if options.backups {
            let busy = world.chaos.busy.0.max(FIRST.0 * 2);
            let made = world.rng.between(FIRST.0, busy * 2 / 3);
            let restored = world.rng.between(made, busy);
            world.plan(Span(made), Happening::Backup);
            world.plan(Span(restored), Happening::GoesBack);
            if seed.is_multiple_of(2) {
                // The same backup once more: what the first one made of it had is lost as well.
                world.plan(Span(restored + (busy - restored) / 2), Happening::GoesBack);
            }
        }
        world.plan_clients();
        Ok(world)
    }

    pub(crate) fn plan(&mut self, after: Span, what: Happening) {
        self.plan_at(self.now + after, what);
    }

    pub(crate) fn plan_at(&mut self, at: Time, what: Happening) {
        self.sequence += 1;
        self.queue.insert((at.max(self.now), self.sequence), what);
    }

    pub(crate) fn span(&mut self, low: i64, high: i64) -> Span {
        Span(self.rng.between(low, high))
    }

    /// Counts something that was done, suffered or seen.
    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Lets the next thing happen; false when the run is over and all held.
    pub(crate) fn advance(&mut self) -> Result<bool, String> {
        loop {
            let quiet = self.stage == Stage::Ending && self.events.is_multiple_of(16) && self.all_quiet();
            let next = self.queue.first_key_value().map(|((at, _), _)| *at);
            if quiet || next.is_none_or(|at| at > self.stage_ends) {
                if !quiet {
                    self.now = self.stage_ends.max(self.now);
                }
                if !self.next_stage()? {
                    return Ok(false);
                }
                continue;
            }
            let Some(((at, _), what)) = self.queue.pop_first() else { continue };
            self.now = at;
            self.events += 1;
            if self.events > self.options.max_events {
                return Err("too many events: something goes round in circles".into());
            }
            self.enter(&what);
            let result = self.happen(what);
            self.leave();
            return result.map(|()| true);
        }
    }

    fn next_stage(&mut self) -> Result<bool, String> {
        let (stage, lasts) = match self.stage {
            Stage::Busy => {
                self.calm_down()?;
                (Stage::Back, Span::from_secs(70))
            }
            Stage::Back => {
                self.wishes_for_the_end();
                self.reboot_at_the_end();
                (Stage::Asking, Span::from_secs(35))
            }
            Stage::Asking => {
                // Once more: what was taken only now may be held.
                self.wishes_for_the_end();
                self.look_what_can_run();
                (Stage::Ending, self.options.patience)
            }
            Stage::Ending => {
                if !self.all_quiet() {
                    return Err(format!("not everything ended:\n{}", self.in_many_words()));
                }
                (Stage::Last, Span::from_secs(1))
            }
            Stage::Last => {
                self.looked = Some(Default::default());
                for connection in self.controller.open.iter().copied().collect::<Vec<_>>() {
                    self.plan(Span(1), Happening::Cut { connection });
                }
                (Stage::Looking, Span::from_secs(20))
            }
            Stage::Looking => {
                self.compare_views()?;
                self.compare_records()?;
                (Stage::Over, Span(0))
            }
            Stage::Over => return Ok(false),
        };
        self.stage = stage;
        self.stage_ends = self.now + lasts;
        Ok(stage != Stage::Over)
    }

    fn happen(&mut self, mut what: Happening) -> Result<(), String> {
        let way = self.not_before(&what);
        if way.is_none()
            && let Happening::ToController { connection, message, .. } = &what
        {
            self.comes(*connection, message);
        }
        if let Some(until) = way.or_else(|| self.waits_unread(&what)) {
            self.note(|| "not now: the machine or the way there stands still".into());
            self.held_until = self.held_until.max(until);
            if let Happening::ToController { came, .. } = &mut what {
                *came = way.is_none();
            }
            self.plan_at(until, what);
            return Ok(());
        }
        match what {
            Happening::ToController { connection, message, .. } => {
                let Some(link) = self.links.get(&connection) else { return Ok(()) };
                let node = link.node.clone();
                if self.hears(&node, connection) {
                    self.control(Event::Agent { node, connection, message: *message })?;
                }
            }
            Happening::ToAgent { connection, message } => self.reaches_agent(connection, *message)?,
            Happening::Carries { connection, bundle } => self.head_carries(connection, bundle),
            Happening::Brought { carried } => self.brought(*carried)?,
            Happening::LossSeen { connection } => self.loss_seen(connection)?,
            Happening::Cut { connection } => self.cut(connection)?,
            Happening::Unanswered { connection, by_agent } => self.unanswered(connection, by_agent)?,
            Happening::Connect { node, life } => self.connect(&node, life)?,
            Happening::AgentWake { node, life, at } => {
                let Some(m) = self.machines.get_mut(&node) else { return Ok(()) };
                if m.agent_life == life && m.wake == Some(at) {
                    m.wake = None;
                    self.agent(&node, AgentEvent::Tick)?;
                }
            }
            Happening::CoreWake { at } => {
                if self.controller.wake == Some(at) {
                    self.controller.wake = None;
                    self.control(Event::Tick)?;
                }
            }
            Happening::Flush { life } => {
                if life == self.controller.life {
                    self.flush()?;
                }
            }
            Happening::Image { node, life, key, event } => {
                if self.machines.get(&node).is_some_and(|m| m.agent_life == life) {
                    self.agent(&node, AgentEvent::Image { key, event })?;
                }
            }
            Happening::Finds { node, life, ask } => self.finds(&node, life, ask)?,
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
            Happening::Lease { node, boot, key } => self.lease_over(&node, boot, key)?,
            Happening::Deadline { node, boot, job, attempt } => self.deadline(&node, boot, (job, attempt))?,
            Happening::Continues { node, boot, key } => self.continues(&node, boot, key)?,
            Happening::GroupKilled { node, boot, key } => self.group_killed(&node, boot, key),
            Happening::Gone { node, life, key } => {
                if self.machines.get(&node).is_some_and(|m| m.agent_life == life) {
                    let event = berth_agent_core::SupervisorEvent::Gone;
                    self.agent(&node, AgentEvent::Supervisor { key, event })?;
                }
            }
            Happening::Removed { node, boot, life, job, attempt } => {
                self.removed(&node, boot, life, job, attempt)?;
            }
            Happening::Reboots { node, boot, life } => self.reboots(&node, boot, life)?,
            Happening::Checked { node, life } => self.health(&node, life)?,
            Happening::Looked { node, life, job, attempt } => self.look(&node, life, job, attempt)?,
            Happening::Ask { node, life } => self.ask(&node, life)?,
            Happening::AgentStarts { node } => self.agent_starts(&node)?,
            Happening::MachineUp { node } => {
                if let Some(m) = self.machines.get_mut(&node) {
                    m.up = true;
                }
                self.agent_starts(&node)?;
            }
            Happening::Fences { node, asked, life } => self.fences(&node, asked, life),
            Happening::Fenced { node, asked, life, result } => {
                self.fencing.ended(&node, life);
                // With the controller nobody waits for it.
                if life == self.controller.life && self.controller.core.is_some() {
                    self.control(Event::Fenced { node, asked, result })?;
                }
            }
            Happening::ControllerStarts { life, anew } => self.controller_starts(life, anew)?,
            Happening::Backup => {
                let record = self.truth.record.clone();
                self.backup = Some((self.store.clone(), self.controller.term, record));
            }
            Happening::GoesBack => self.goes_back()?,
            Happening::DiskLook => self.look_at_disk()?,
            Happening::Joins { node } => self.joins(&node)?,
            Happening::Reconfigure => self.reconfigure()?,
            Happening::Heals { node } => self.heal(&node),
            Happening::Client(act) => self.client_acts(act)?,
            Happening::Fault => self.fault()?,
        }
        Ok(())
    }

    /// The controller is destroyed, and another one made of the backup.
    fn goes_back(&mut self) -> Result<(), String> {
        if self.controller.core.is_none() {
            self.plan(Span::from_secs(1), Happening::GoesBack);
            return Ok(());
        }
        let Some((store, term, record)) = self.backup.clone() else { return Ok(()) };
        self.crash_controller("and its disk is lost");
        self.count("restored backups");
        if self.restored.is_some() {
            self.count("backups restored a second time");
        }
        let lost = self.store.load()?;
        self.store = store;
        self.store.mood = Default::default();
        self.truth.record = record;
        let stored = self.store.load()?;
        let mut writes = go_on_from(&stored, 0);
        let next = stored.meta.as_ref().map_or(1, |meta| meta.next_job);
        for write in &mut writes {
            if let Write::PutMeta(meta) = write
                && self.restores.close
            {
                meta.next_job = next;
                meta.restored.iter_mut().for_each(|restored| restored.before = JobId(next));
            }
        }
        self.forget(&writes, &lost, next);
        commit(&mut self.store, &writes).map_err(|e| e.to_string())?;
        self.restores.term = self.controller.term;
        // Another machine, and a number that no other restore has.
        self.controller.boot += 1;
        self.controller.term = Term(term.0 + 1000 + self.restores.done % 2 * 900_000);
        self.restores.done += 1;
        // What names of images were found to mean may be forgotten, and so is what clients were told.
        self.truth.images.clear();
        self.queue.retain(|_, what| !matches!(what, Happening::Client(ClientAct::Answer(..))));
        self.client.forget_lost(&self.store)
    }

    /// What the lost controller had given out above a backup whose next job would be `next`, be it under way to a node, is on no record.
    fn forget(&mut self, writes: &[Write], lost: &Stored, next: u32) {
        let ran = self.truth.ran.keys().map(|(key, _)| (key.job, key.attempt));
        self.restores.lost.extend(ran.clone().filter(|(job, _)| job.0 >= next));
        let attempts = lost.jobs.iter().map(|job| job.attempt).chain(ran.map(|(_, attempt)| attempt));
        let attempts = attempts.max().map_or(0, |attempt| attempt.0 + 1);
        let before = lost.meta.as_ref().map_or(JobId(0), |meta| JobId(meta.next_job));
        let made = writes.iter().find_map(|write| match write {
            Write::PutMeta(meta) => meta.restored.clone(),
            _ => None,
        });
        let earlier = self.restored.take().map_or(JobId(0), |restored| restored.before);
        self.restored = made.map(|made| Restored {
            before: made.before.max(before).max(earlier),
            attempts: made.attempts.max(attempts),
            ..made
        });
    }

    /// Whether the run may have begun before a restore, of which the records are lost.
    pub(crate) fn is_forgotten(&self, key: StepKey) -> bool {
        self.restored.as_ref().is_some_and(|r| key.job < r.before && key.attempt.0 < r.attempts)
    }

    /// Until when it has to wait: a machine stands still, or nothing gets through.
    fn not_before(&self, what: &Happening) -> Option<Time> {
        let link = |connection: &u64| self.links.get(connection).and_then(|l| self.machines.get(&l.node));
        let blocked = |m: &Machine, way: Way| {
            let blocked = m.blocked.filter(|b| b.until > self.now)?;
            let stops = match way {
                Way::ToController => blocked.to_controller,
                Way::ToAgent => blocked.to_agent,
            };
            stops.then_some(blocked.until)
        };
        let frozen = |m: &Machine| m.frozen.filter(|until| *until > self.now);
        match what {
            Happening::ToController { came: true, .. } => None,
            Happening::ToController { connection, .. } | Happening::LossSeen { connection } => {
                blocked(link(connection)?, Way::ToController)
            }
            Happening::ToAgent { connection, .. }
            | Happening::Carries { connection, .. }
            | Happening::Cut { connection } => {
                let m = link(connection)?;
                frozen(m).max(blocked(m, Way::ToAgent))
            }
            Happening::Brought { carried } => frozen(self.machines.get(&carried.start.launch.node)?),
            Happening::Unanswered { connection, by_agent: true } => frozen(link(connection)?),
            Happening::Connect { node, .. }
            | Happening::AgentWake { node, .. }
            | Happening::Image { node, .. }
            | Happening::Finds { node, .. }
            | Happening::Running { node, .. }
            | Happening::Ends { node, .. }
            | Happening::Gone { node, .. }
            | Happening::Lease { node, .. }
            | Happening::Deadline { node, .. }
            | Happening::Continues { node, .. }
            | Happening::GroupKilled { node, .. }
            | Happening::Prolog { node, .. }
            | Happening::Removed { node, .. }
            | Happening::Looked { node, .. }
            | Happening::Checked { node, .. }
            | Happening::Reboots { node, .. }
            | Happening::Ask { node, .. }
            | Happening::AgentStarts { node } => frozen(self.machines.get(node)?),
            _ => None,
        }
    }
}

pub(crate) fn hardware(rng: &mut Rng) -> Hardware {
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
            .map(|index| GresDevice { name: "gpu".into(), index, ..GresDevice::default() })
            .collect(),
        enforces: true,
        ..Hardware::default()
    }
}
