//! Faults: which kinds there are, which of them a world has, and what each does.

use crate::Options;
use crate::rng::Rng;
use crate::world::{Happening, World};
use berth_model::config::Config;
use berth_model::ids::{NodeName, StepKey};
use berth_model::state::ExitStatus;
use berth_model::time::{Span, Time};
use std::collections::BTreeSet;

/// A kind of fault. Each world has some of them, so that none hides what another does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    ControllerCrash,
    ControllerOutage,
    CorePanic,
    Commits,
    StoreFull,
    WallClock,
    Drift,
    AgentCrash,
    HalfDone,
    SupervisorCrash,
    SupervisorStopped,
    Reboot,
    Cleared,
    Suspend,
    Pause,
    NodeFull,
    Cut,
    Partition,
    OneWay,
    GiveUp,
    Loss,
    Delay,
    Doubles,
    Overtaking,
    Late,
    Queued,
    AnswersLost,
    Unkillable,
    Joining,
    Leaving,
    Removal,
    Reconfigure,
    HeldUp,
}

/// All of them, with what a report calls them.
pub(crate) const KINDS: [(Kind, &str); 33] = [
    (Kind::ControllerCrash, "controller crashes"),
    (Kind::ControllerOutage, "long outages of the controller"),
    (Kind::CorePanic, "faults of the core itself"),
    (Kind::Commits, "failed commits"),
    (Kind::StoreFull, "full stores"),
    (Kind::WallClock, "jumps of the wall clock"),
    (Kind::Drift, "clocks that are fast or slow"),
    (Kind::AgentCrash, "agent crashes"),
    (Kind::HalfDone, "agent crashes between effects"),
    (Kind::SupervisorCrash, "supervisor crashes"),
    (Kind::SupervisorStopped, "supervisors that are stopped"),
    (Kind::Reboot, "reboots"),
    (Kind::Cleared, "nodes cleared of all that runs"),
    (Kind::Suspend, "suspended nodes"),
    (Kind::Pause, "nodes whose clock stood still"),
    (Kind::NodeFull, "full disks of nodes"),
    (Kind::Cut, "cut connections"),
    (Kind::Partition, "partitions"),
    (Kind::OneWay, "partitions one way"),
    (Kind::GiveUp, "administrators who give up what they do not hear of"),
    (Kind::Loss, "messages lost"),
    (Kind::Delay, "messages late"),
    (Kind::Doubles, "messages doubled"),
    (Kind::Overtaking, "messages that overtook others"),
    (Kind::Late, "commands of an earlier controller let in"),
    (Kind::Queued, "words of a closed connection that were read before"),
    (Kind::AnswersLost, "answers to clients lost"),
    (Kind::Unkillable, "processes that do not end although they are killed"),
    (Kind::Joining, "machines that come to join"),
    (Kind::Leaving, "machines that ask to leave"),
    (Kind::Removal, "machines that administrators remove"),
    (Kind::Reconfigure, "configurations put in force"),
    (Kind::HeldUp, "controllers that stand still"),
];

/// Those that worlds with a restored controller have.
const PLAIN: [Kind; 9] = [
    Kind::ControllerCrash,
    Kind::Commits,
    Kind::StoreFull,
    Kind::AgentCrash,
    Kind::Reboot,
    Kind::Cut,
    Kind::Loss,
    Kind::Doubles,
    Kind::Overtaking,
];

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        KINDS.iter().find(|(kind, _)| *kind == self).map_or("?", |(_, name)| name)
    }
}

/// How big a world is, how long it is busy, and what goes wrong in it: drawn from the seed.
#[derive(Clone, Debug)]
pub(crate) struct Chaos {
    kinds: BTreeSet<Kind>,
    /// Microseconds from one fault to the next.
    every: (i64, i64),
    pub(crate) nodes: u32,
    pub(crate) operations: u32,
    pub(crate) busy: Span,
    /// The site's settings.
    pub(crate) config: Config,
    /// Whether jobs may have deadlines out of touch, the site's or their own.
    pub(crate) deadlines: bool,
    /// Whether the wall clock may be days ahead.
    pub(crate) days: bool,
}

impl Chaos {
    pub(crate) fn of(rng: &mut Rng, options: &Options) -> Chaos {
        let most = *rng.pick(&[150, 400, 700, 1000]).unwrap_or(&400);
        let drawn = KINDS.iter().filter(|(kind, _)| *kind != Kind::HeldUp);
        let kinds = drawn.filter(|_| rng.permille(most)).map(|(kind, _)| *kind).collect();
        let every = *rng.pick(&[(300_000, 6_000_000), (1_000_000, 20_000_000)]).unwrap_or(&(1, 1));
        let (nodes, operations, seconds) = match rng.below(200) {
            0 => (rng.count(2, 5), rng.count(50, 80), rng.between(200, 300)),
            1..20 => (rng.count(1, 4), rng.count(15, 40), rng.between(60, 180)),
            _ => (rng.count(1, 3), rng.count(4, 16), rng.between(15, 75)),
        };
        let mut config = Config {
            min_job_age_seconds: *rng.pick(&[0, 2, 60, 60]).unwrap_or(&60),
            node_timeout_seconds: 20,
            kill_wait_seconds: *rng.pick(&[0, 5, 5, 12]).unwrap_or(&5),
            ..Config::default()
        };
        let mut kinds: BTreeSet<Kind> = kinds;
        // A clock that stands still while others go on defeats every deadline: no site can have both.
        let deadlines = !kinds.contains(&Kind::Pause);
        if deadlines {
            config.lost_after_seconds = *rng.pick(&[0, 20, 20, 45]).unwrap_or(&0);
        }
        if rng.permille(300) {
            config.programs.fence = "/fence".into();
            config.programs.fence_after_seconds = *rng.pick(&[20, 20, 50]).unwrap_or(&20);
        }
        config.images.prefetch = rng.count(0, 2);
        if options.backups {
            // What a lost store forgets is hard enough to judge beside plain faults.
            kinds.retain(|kind| PLAIN.contains(kind));
            config.min_job_age_seconds = 120;
        }
        Chaos {
            kinds,
            every,
            nodes,
            operations,
            busy: Span::from_secs(seconds),
            config,
            deadlines,
            days: false,
        }
    }

    /// The controller stands still now and then, and nodes are powered off: what one may take for the other.
    pub(crate) fn with_held_up_controllers(&mut self) {
        self.kinds.insert(Kind::HeldUp);
        let programs = &mut self.config.programs;
        if programs.fence.is_empty() {
            programs.fence = "/fence".into();
            programs.fence_after_seconds = 20;
        }
    }

    /// Whether the world has that kind.
    pub(crate) fn on(&self, kind: Kind) -> bool {
        self.kinds.contains(&kind)
    }
}

impl World {
    /// Something goes wrong, and something will again.
    pub(crate) fn fault(&mut self) -> Result<(), String> {
        if self.calm || !self.options.faults {
            return Ok(());
        }
        self.faults = true;
        let (low, high) = self.chaos.every;
        let again = self.span(low, high);
        self.plan(again, Happening::Fault);
        let names: Vec<NodeName> = self.machines.keys().cloned().collect();
        let Some(node) = self.rng.pick(&names).cloned() else { return Ok(()) };
        let kinds: Vec<Kind> = self.chaos.kinds.iter().copied().collect();
        let Some(kind) = self.rng.pick(&kinds).copied() else { return Ok(()) };
        let Some(m) = self.machines.get(&node) else { return Ok(()) };
        let (up, agent, connection) = (m.up, m.agent.is_some(), m.connection);
        let (blocked, frozen) = (m.blocked.is_some(), m.frozen.is_some_and(|f| f > self.now));
        match kind {
            Kind::ControllerCrash | Kind::ControllerOutage if self.controller.core.is_some() => {
                self.crash_controller("of itself");
            }
            Kind::HeldUp if self.controller.core.is_some() && self.held_up().is_none() => self.hold_up(),
            Kind::StoreFull => {
                self.controller.full = !self.controller.full;
                if self.controller.full {
                    self.count(kind.name());
                }
                let seen = self.span(0, 2_000_000);
                self.plan(seen, Happening::DiskLook);
            }
            Kind::WallClock => {
                self.controller.wall = match self.rng.below(4) {
                    0 => 0,
                    2 if self.chaos.days => self.rng.between(3_600_000_000, 5 * 24 * 3_600_000_000),
                    1 => self.rng.between(-3_600_000_000, -1_000_000),
                    2 => self.rng.between(1_000_000, 20_000_000),
                    _ => self.rng.between(-30_000_000, 300_000_000),
                };
                self.count(kind.name());
                let wall = self.controller.wall;
                self.note(|| format!("the controller's wall clock is {wall} us from the truth"));
            }
            Kind::AgentCrash if agent && !frozen => self.crash_agent(&node),
            Kind::SupervisorCrash if !frozen => self.crash_supervisor(&node),
            Kind::SupervisorStopped if agent && !frozen => self.stop_supervisor(&node),
            Kind::Reboot if up => self.reboot(&node),
            Kind::Cleared if agent && !frozen && !blocked => self.clear(&node),
            Kind::Suspend | Kind::Pause if up && !frozen => self.freeze(&node, kind),
            Kind::NodeFull if up => {
                let until = self.now + self.span(1_000_000, 20_000_000);
                if let Some(m) = self.machines.get_mut(&node) {
                    m.full = Some(until);
                }
                self.count(kind.name());
            }
            Kind::Cut if !frozen => {
                if let Some(connection) = connection {
                    self.count(kind.name());
                    self.cut(connection)?;
                }
            }
            Kind::Joining => self.machine_comes(),
            Kind::Leaving => self.machine_leaves(&node),
            Kind::Removal => self.machine_is_removed(&node),
            Kind::Reconfigure => self.plan(Span(0), Happening::Reconfigure),
            Kind::Partition | Kind::OneWay if !blocked => {
                self.count(kind.name());
                self.partition(&node, kind == Kind::OneWay);
                if self.chaos.on(Kind::GiveUp) && self.rng.permille(600) {
                    self.count(Kind::GiveUp.name());
                    self.give_up(&node);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The agent's process dies.
    pub(crate) fn crash_agent(&mut self, node: &NodeName) {
        self.note(|| format!("the agent of {node} dies"));
        self.count("agent crashes");
        let now = self.now;
        let Some(m) = self.machines.get_mut(node) else { return };
        m.stop_agent(now);
        if let Some(connection) = m.connection.take() {
            self.ends_unseen(connection);
        }
        let after = self.span(100_000, 10_000_000);
        self.plan(after, Happening::AgentStarts { node: node.clone() });
    }

    /// A supervisor is stopped, by a signal or a debugger, and its tasks are not. The agent must see to it that they do not go on
    /// for longer than they may, and where there is none, who keeps deadlines.
    fn stop_supervisor(&mut self, node: &NodeName) {
        let Some(m) = self.machines.get_mut(node) else { return };
        let boot = m.boot;
        let alive: Vec<StepKey> =
            m.spool.iter().filter(|(_, s)| s.lives() && s.running).map(|(key, _)| *key).collect();
        let Some(key) = self.rng.pick(&alive).copied() else { return };
        let after = self.span(1_000_000, 120_000_000);
        if let Some(s) = self.machines.get_mut(node).and_then(|m| m.spool.get_mut(&key))
            && !s.stopped
        {
            s.stopped = true;
            self.note(|| format!("the supervisor of {key} on {node} is stopped"));
            self.count(Kind::SupervisorStopped.name());
            self.plan(after, Happening::Continues { node: node.clone(), boot, key });
        }
    }

    /// The machine loses power, and boots anew.
    pub(crate) fn reboot(&mut self, node: &NodeName) {
        self.note(|| format!("{node} reboots"));
        self.count("reboots");
        if self.controller.core.is_none() {
            self.count("reboots while the controller is down");
        }
        let now = self.now;
        let Some(m) = self.machines.get_mut(node) else { return };
        let connection = m.connection;
        let mut runs: BTreeSet<_> = m.jobs.keys().copied().collect();
        runs.extend(m.spool.keys().map(|key| (key.job, key.attempt)));
        m.agent_life += 1;
        let wrote = m.reboot(now);
        if wrote {
            self.count("reboots after an agent had written something down");
        }
        for run in runs {
            self.truth.lost(run, node);
        }
        if let Some(connection) = connection {
            self.ends_unseen(connection);
        }
        let after = self.span(1_000_000, 60_000_000);
        self.plan(after, Happening::MachineUp { node: node.clone() });
    }

    /// The program that powers a node off does so, or cannot; it says so now, or when it has looked whether the node is off, which may be on
    /// again by then.
    pub(crate) fn fences(&mut self, node: &NodeName, asked: Time, life: u64) {
        let works = !(self.faults && self.rng.permille(300));
        if works {
            self.count("nodes powered off by the site's program");
            // One that is off already boots when it would have.
            if self.machines.get(node).is_some_and(|m| m.up) {
                self.reboot(node);
            }
        } else {
            self.count("programs that could not power a node off");
        }
        let result = if works { Ok(()) } else { Err("the outlet does not answer".to_string()) };
        let late = self.rng.permille(300);
        let after = if late { self.span(1_000_000, 120_000_000) } else { self.span(1000, 1_000_000) };
        self.plan(after, Happening::Fenced { node: node.clone(), asked, life, result });
    }

    /// Everything on the node is killed and what it had is removed, in the same boot: no word is left of what ran. Only where the
    /// controller has heard of all of it: of a step that it heard nothing of, nobody could tell that it must not start again.
    fn clear(&mut self, node: &NodeName) {
        let now = self.now;
        let Some(m) = self.machines.get_mut(node) else { return };
        if m.spool.is_empty() || !m.spool.keys().all(|key| self.truth.is_known(*key, node)) {
            return;
        }
        for key in m.spool.keys() {
            self.truth.cleared.insert((*key, node.clone()), false);
        }
        m.stop_agent(now);
        m.spool.clear();
        m.jobs.clear();
        m.deadlines.clear();
        m.unkept.clear();
        m.prologs.clear();
        if let Some(connection) = m.connection.take() {
            self.ends_unseen(connection);
        }
        self.note(|| format!("{node} is cleared"));
        self.count(Kind::Cleared.name());
        let after = self.span(100_000, 10_000_000);
        self.plan(after, Happening::AgentStarts { node: node.clone() });
    }

    /// A supervisor dies, and its step with it.
    fn crash_supervisor(&mut self, node: &NodeName) {
        let Some(m) = self.machines.get(node) else { return };
        let alive: Vec<StepKey> = m.spool.iter().filter(|(_, s)| s.lives()).map(|(key, _)| *key).collect();
        let Some(key) = self.rng.pick(&alive).copied() else { return };
        self.count("supervisor crashes");
        self.without_a_word(node, key, None);
    }

    /// A step ends and leaves no word of how.
    pub(crate) fn without_a_word(&mut self, node: &NodeName, key: StepKey, status: Option<ExitStatus>) {
        self.note(|| format!("{key} ends on {node} and leaves no word"));
        let Some(m) = self.machines.get_mut(node) else { return };
        let life = m.agent_life;
        if let Some(s) = m.spool.get_mut(&key) {
            s.gone = true;
        }
        if m.agent.is_none() {
            self.count("steps without a supervisor found by an agent that starts");
        }
        if let Some(ran) = self.truth.ran.get_mut(&(key, node.clone())) {
            ran.untold = true;
            ran.status = status;
        }
        let after = self.span(100, 20_000);
        self.plan(after, Happening::Gone { node: node.clone(), life, key });
    }

    /// The machine stands still for a while. Its clock goes on, or stands still, too.
    fn freeze(&mut self, node: &NodeName, kind: Kind) {
        self.count(kind.name());
        let long = self.rng.permille(400);
        let lasts = if long { self.span(15_000_000, 60_000_000) } else { self.span(100_000, 15_000_000) };
        let now = self.now;
        let Some(m) = self.machines.get_mut(node) else { return };
        m.frozen = Some(now + lasts);
        if kind == Kind::Pause {
            m.stalled = Span(m.stalled.0 + lasts.0);
        } else {
            m.unattended = Span(m.unattended.0 + lasts.0);
        }
        if let Some(connection) = m.connection {
            let after = self.span(5_000_000, 40_000_000);
            self.plan(after, Happening::Unanswered { connection, by_agent: false });
        }
    }

    /// No more faults: everything that is down comes back.
    pub(crate) fn calm_down(&mut self) -> Result<(), String> {
        self.calm = true;
        self.faults = false;
        self.controller.full = false;
        let now = self.now;
        for m in self.machines.values_mut() {
            m.full = None;
            if let Some(blocked) = &mut m.blocked {
                blocked.until = now;
            }
        }
        for node in self.machines.keys().cloned().collect::<Vec<_>>() {
            self.heal(&node);
        }
        if self.chaos.on(Kind::Reconfigure) {
            self.plan(Span(0), Happening::Reconfigure);
        }
        if self.held_up().is_some() {
            self.plan(Span(0), Happening::DiskLook);
            return Ok(());
        }
        self.look_at_disk()
    }
}
