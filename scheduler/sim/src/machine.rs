//! A node that outlives its agent: supervisors, spool, and what jobs hold there. The truth that the
//! controller's records are compared with.

use crate::joining::Membership;
use crate::pins::Finding;
use berth_agent_core::{Adopted, AdoptedJob, AdoptedPhase, AgentConfig, AgentCore, HealthPlan, StepTimers};
use berth_model::config::Understood;
use berth_model::hardware::Hardware;
use berth_model::ids::{Attempt, JobId, NodeName, StepKey, Term};
use berth_model::launch::{ImagePull, NodeShare, Program, StepExit, StepLaunch, Usage};
use berth_model::link::Highest;
use berth_model::state::ExitStatus;
use berth_model::time::{Span, Time};
use std::collections::{BTreeMap, BTreeSet};

/// What a simulated program does: `MILLISECONDS CODE HOW`, where `HOW` is `plain`, `stubborn` (ignores
/// SIGTERM) or `oom`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Behaviour {
    pub(crate) millis: i64,
    pub(crate) code: u8,
    pub(crate) stubborn: bool,
    pub(crate) oom: bool,
}

impl Behaviour {
    pub(crate) fn of(program: &Program) -> Option<Behaviour> {
        let text = match program {
            Program::Script { text, .. } => text.display().into_owned(),
            Program::Argv(argv) => {
                argv.iter().map(|a| a.display().into_owned()).collect::<Vec<_>>().join(" ")
            }
            Program::LoginShell => return None,
        };
        let mut words = text.split_whitespace();
        Some(Behaviour {
            millis: words.next()?.parse().ok()?,
            code: words.next()?.parse().ok()?,
            stubborn: text.ends_with("stubborn"),
            oom: text.ends_with("oom"),
        })
    }
}

/// How long who keeps deadlines leaves a run to supervisors and agent, as `berth_step::deadlines` has it.
pub(crate) const KEEPER_WAITS: Span = Span(2_000_000);

/// For how long an agent waits for what does not end although it is killed: as the configuration has it.
pub(crate) const UNKILLABLE: Span = Span::from_secs(60);

/// A step's supervisor and its spool entry.
#[derive(Clone, Debug)]
pub(crate) struct Supervised {
    pub(crate) launch: StepLaunch,
    pub(crate) timers: StepTimers,
    pub(crate) pull: Option<ImagePull>,
    /// False where the agent ended after it had written the entry and before there was a supervisor.
    pub(crate) born: bool,
    pub(crate) running: bool,
    pub(crate) exit: Option<StepExit>,
    /// The supervisor is gone and left no exit.
    pub(crate) gone: bool,
    /// It was killed, runs no instruction any more, and does not end.
    pub(crate) hung: bool,
    /// Until when, by the machine's clock, it goes on without a renewal.
    pub(crate) lease: Option<Time>,
    /// Its supervisor is stopped, and does nothing; its tasks go on.
    pub(crate) stopped: bool,
    /// A renewal that a stopped supervisor has not read.
    pub(crate) unread: Option<Time>,
    /// Grows when the end is moved, so that earlier plans of an end do not count.
    pub(crate) plan: u64,
}

impl Supervised {
    /// Whether tasks of it can be alive.
    pub(crate) fn lives(&self) -> bool {
        self.born && self.exit.is_none() && !self.gone && !self.hung
    }
}

/// Messages of a node that do not get through, until when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocked {
    pub(crate) until: Time,
    pub(crate) to_controller: bool,
    pub(crate) to_agent: bool,
}

/// A machine.
pub(crate) struct Machine {
    pub(crate) name: NodeName,
    pub(crate) hardware: Hardware,
    pub(crate) boot: u64,
    /// When it booted: its own clock counts from there.
    booted: Time,
    /// How much faster its clock is than others, in thousandths.
    pub(crate) rate: i64,
    /// How long its clock stood still.
    pub(crate) stalled: Span,
    pub(crate) up: bool,
    /// Nothing on it happens before.
    pub(crate) frozen: Option<Time>,
    pub(crate) blocked: Option<Blocked>,
    /// The term that its agent could not write down and must not act for.
    pub(crate) not_kept: Option<Term>,
    /// Its disk has no room until then.
    pub(crate) full: Option<Time>,
    /// How long no agent was at work in this boot, on its own clock, and since when there is none.
    pub(crate) unattended: Span,
    pub(crate) alone_since: Time,
    pub(crate) term: Term,
    /// The highest numbers that were given out, as its agent keeps them.
    pub(crate) highest: Highest,
    /// What is on its disk of both: with that it boots after a power cut.
    on_disk: (Term, Highest),
    /// Whether something was written there in this boot.
    wrote: bool,
    /// It lost power, and with that what its agent had written down.
    pub(crate) forgot: bool,
    pub(crate) agent: Option<AgentCore>,
    /// Grows with each start of the agent.
    pub(crate) agent_life: u64,
    /// The agent's connection, as it sees it.
    pub(crate) connection: Option<u64>,
    pub(crate) spool: BTreeMap<StepKey, Supervised>,
    pub(crate) jobs: BTreeMap<(JobId, Attempt), NodeShare>,
    /// Whether its configuration names a health check.
    pub(crate) checks: bool,
    /// What the last one found wrong, as its agent keeps it.
    pub(crate) unhealthy: Option<String>,
    /// Whether its configuration names a prolog.
    pub(crate) prolog: bool,
    /// Runs whose prolog was begun, and whether it ended well: a second time would be a mistake then.
    pub(crate) prologs: BTreeMap<(JobId, Attempt), bool>,
    /// Runs of which processes do not end, until when.
    pub(crate) hanging: BTreeMap<(JobId, Attempt), Time>,
    /// Runs whose parts could not be made.
    pub(crate) unmade: BTreeSet<(JobId, Attempt)>,
    /// Until when runs go on, for the process that keeps deadlines, and those of which that could not be written down.
    pub(crate) deadlines: BTreeMap<(JobId, Attempt), Time>,
    pub(crate) unkept: BTreeSet<(JobId, Attempt)>,
    /// At which of them that process has ended what was left of a run.
    pub(crate) enforced: BTreeMap<(JobId, Attempt), Time>,
    /// What its agent asks the controller about names of images, and how many questions there ever were.
    pub(crate) finding: BTreeMap<u64, Finding>,
    pub(crate) asks: u64,
    /// When the agent was last asked to wake, to plan each wake once.
    pub(crate) wake: Option<Time>,
    /// How it belongs to the cluster; the controller's own machines joined nothing.
    pub(crate) joined: Option<Membership>,
    /// The configuration by which its agent goes.
    pub(crate) told: Option<Box<Understood>>,
}

impl Machine {
    pub(crate) fn new(name: NodeName, hardware: Hardware, booted: Time) -> Machine {
        Machine {
            name,
            hardware,
            boot: 1,
            booted,
            rate: 0,
            stalled: Span(0),
            up: true,
            frozen: None,
            blocked: None,
            not_kept: None,
            full: None,
            unattended: Span(0),
            alone_since: booted,
            term: Term(0),
            highest: Highest::default(),
            on_disk: Default::default(),
            wrote: false,
            forgot: false,
            agent: None,
            agent_life: 0,
            connection: None,
            spool: BTreeMap::new(),
            jobs: BTreeMap::new(),
            checks: false,
            unhealthy: None,
            prolog: false,
            prologs: BTreeMap::new(),
            hanging: BTreeMap::new(),
            unmade: BTreeSet::new(),
            deadlines: BTreeMap::new(),
            unkept: BTreeSet::new(),
            enforced: BTreeMap::new(),
            finding: BTreeMap::new(),
            asks: 0,
            wake: None,
            joined: None,
            told: None,
        }
    }

    /// What its own clock shows: that since boot.
    pub(crate) fn clock(&self, now: Time) -> Time {
        Time(self.by_its_clock(now.since(self.booted)).0 - self.stalled.0)
    }

    fn by_its_clock(&self, span: Span) -> Span {
        Span(span.0 + span.0 * self.rate / 1000)
    }

    /// When its clock will show this at the earliest.
    pub(crate) fn when(&self, now: Time, shown: Time) -> Time {
        let left = shown.since(self.clock(now)).0;
        if left <= 0 { now } else { now + Span(left * 1000 / (1000 + self.rate) + 1) }
    }

    /// Whether a step has nothing more to live by: its supervisor, or who keeps deadlines, ends it as soon as anything happens there.
    /// What is alive although that has happened is alive.
    pub(crate) fn is_over(&self, step: &Supervised, now: Time) -> bool {
        let run = (step.launch.key.job, step.launch.key.attempt);
        !step.stopped && step.lease.is_some_and(|until| until <= self.clock(now))
            || self.is_past(run, now) && self.enforced.get(&run) != self.deadlines.get(&run)
    }

    /// Whether who keeps deadlines ends a run.
    pub(crate) fn is_past(&self, run: (JobId, Attempt), now: Time) -> bool {
        self.deadlines.get(&run).is_some_and(|until| *until + KEEPER_WAITS <= self.clock(now))
    }

    /// Whether its disk has no room.
    pub(crate) fn is_full(&self, now: Time) -> bool {
        self.full.is_some_and(|until| now < until)
    }

    /// Starts the agent: with what the spool says.
    pub(crate) fn start_agent(&mut self, now: Time) {
        self.unattended = Span(self.unattended.0 + now.since(self.alone_since).0);
        self.unmade.clear();
        self.unkept.clear();
        self.not_kept = None;
        self.finding.clear();
        self.spool.retain(|_, s| s.born);
        // With a run's parts goes the word that its prolog ran.
        let jobs = &self.jobs;
        self.prologs.retain(|run, _| jobs.contains_key(run));
        let now = self.clock(now);
        let config = AgentConfig {
            node: self.name.clone(),
            boot_id: format!("boot-{}", self.boot),
            boot_time: Time(0),
            agent_start: now,
            version: "sim".into(),
            hardware: self.hardware.clone(),
            term: self.term,
            unkept: None,
            prolog: self.prolog,
            unkillable: UNKILLABLE,
            health: self.checks.then_some(HealthPlan { interval: Span::from_secs(20), busy: None }),
            unhealthy: self.unhealthy.clone(),
            unfit: None,
            unknown: vec![],
            features: berth_model::feature::Feature::known(),
            highest: self.highest,
        };
        let adopted = self.spool.values().map(|s| Adopted {
            launch: s.launch.clone(),
            timers: s.timers,
            pull: s.pull.clone(),
            lease_known: true,
            phase: match (&s.exit, s.running) {
                (Some(exit), _) => AdoptedPhase::Exited(exit.clone()),
                (None, _) if s.gone => AdoptedPhase::Gone,
                (None, true) => AdoptedPhase::Running,
                (None, false) => AdoptedPhase::Starting,
            },
        });
        let jobs = self.jobs.keys().map(|(job, attempt)| AdoptedJob {
            job: *job,
            attempt: *attempt,
            prolog_done: self.prologs.get(&(*job, *attempt)) == Some(&true),
            until: self.deadlines.get(&(*job, *attempt)).copied(),
        });
        self.agent = Some(AgentCore::new(config, adopted.collect(), jobs.collect(), now));
        self.agent_life += 1;
        self.connection = None;
        self.wake = None;
    }

    /// The term that its agent keeps is on the disk now.
    pub(crate) fn sync_term(&mut self) {
        self.wrote = true;
        self.on_disk.0 = self.term;
    }

    /// So are the highest numbers.
    pub(crate) fn sync_highest(&mut self) {
        self.wrote = true;
        self.on_disk.1 = self.highest;
    }

    /// The machine loses power: nothing survives but the files of its agent's own that were on the disk. Whether there was something new in them.
    pub(crate) fn reboot(&mut self, now: Time) -> bool {
        self.forgot |= self.on_disk != (self.term, self.highest);
        (self.term, self.highest) = self.on_disk;
        self.boot += 1;
        self.booted = now;
        self.stalled = Span(0);
        self.unattended = Span(0);
        self.alone_since = now;
        self.frozen = None;
        self.full = None;
        self.prologs.clear();
        self.hanging.clear();
        self.unmade.clear();
        self.deadlines.clear();
        self.unkept.clear();
        self.enforced.clear();
        self.up = false;
        self.agent = None;
        self.connection = None;
        self.spool.clear();
        self.jobs.clear();
        self.wake = None;
        std::mem::take(&mut self.wrote)
    }

    /// The agent's process ends; what it made stays.
    pub(crate) fn stop_agent(&mut self, now: Time) {
        self.agent = None;
        self.agent_life += 1;
        self.alone_since = now;
        self.wake = None;
    }

    /// A run of a job arrives; complains when it gets what another run on the machine has.
    pub(crate) fn make_job(&mut self, run: (JobId, Attempt), share: &NodeShare) -> Result<(), String> {
        for (other, theirs) in &self.jobs {
            if let Some(cpu) = share.cpus.iter().find(|c| theirs.cpus.contains(c)) {
                return Err(format!(
                    "CPU {cpu} of {} belongs to {other:?} and is given to {run:?}",
                    self.name
                ));
            }
            if let Some(d) = share.gres.iter().find(|d| theirs.gres.contains(d)) {
                return Err(format!(
                    "{} {} of {} belongs to {other:?} and is given to {run:?}",
                    d.name, d.index, self.name
                ));
            }
        }
        let used: u64 = self.jobs.values().map(|s| s.memory).sum();
        let usable = self.hardware.memory - self.hardware.memory_reserved;
        if used + share.memory > usable {
            return Err(format!(
                "{used} + {} MiB are given on {}, which has {usable}",
                share.memory, self.name
            ));
        }
        self.jobs.insert(run, share.clone());
        Ok(())
    }
}

/// An exit as a supervisor writes it.
pub(crate) fn exit(status: ExitStatus, oom: bool, now: Time) -> StepExit {
    StepExit {
        status,
        tasks: Vec::new(),
        oom,
        launch_error: None,
        ended_by: None,
        image: None,
        usage: Usage { user_us: 1000, system_us: 10, max_rss: 4096, ..Usage::default() },
        ended: now,
    }
}
