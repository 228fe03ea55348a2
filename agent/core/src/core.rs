//! The agent's state machine: the controller's commands, images, supervisors, and what is told back.

use crate::event::{
    Adopted, AdoptedJob, AdoptedPhase, AgentConfig, AgentEffect, AgentEvent, Fetched, ImageEvent,
    ProcessTarget, StepTimers, SupervisorEvent,
};
use crate::state::{Ending, Over, Prolog, Reboot, Run, RunKey, Step, made_up};
use berth_model::ids::{Session, StepId, StepKey, Term};
use berth_model::launch::{ImagePull, StepExit, StepLaunch, StepPhase};
use berth_model::link::{EndCause, FromAgent, SignalTarget, Start, ToAgent, Trouble};
use berth_model::spec::JobKind;
use berth_model::state::{Cause, ExitStatus};
use berth_model::time::{Span, Time};
use std::collections::{BTreeMap, BTreeSet};

const SIGKILL: u8 = 9;
const SIGTERM: i32 = 15;
const SIGCONT: i32 = 18;
/// How long the controller may take to answer before it is told again.
const REPEAT: Span = Span::from_secs(5);
/// How long an exit may wait for the end of its run, to be told with it.
const HOLD: Span = Span(50_000);
/// How long the progress of a step waits until it is told: of one that ends sooner the exit says all.
const SOON: Span = Span(100_000);
/// How often a step that does not die is killed again.
const KILL_AGAIN: Span = Span::from_secs(10);
/// How often it is looked whether a run that could not be removed is still there.
const LOOK_AGAIN: Span = Span::from_secs(30);
/// How soon it is looked again whether the node does what it is to do while its health is checked.
const CHECK_AGAIN: Span = Span::from_secs(10);

/// All that the agent has to remember.
#[derive(Debug)]
pub struct AgentCore {
    config: AgentConfig,
    term: Term,
    connected: bool,
    session: Option<Session>,
    /// When the Hello is repeated, while no Welcome came.
    hello_again: Option<Time>,
    heartbeat: Span,
    next_heartbeat: Option<Time>,
    runs: BTreeMap<RunKey, Run>,
    steps: BTreeMap<StepKey, Step>,
    over: Over,
    /// When the node's health is checked next; while it is being checked, never.
    next_check: Option<Time>,
    unhealthy: Option<String>,
    /// The last wish for a reboot, and how far it is.
    reboot: Option<(Time, Reboot)>,
    /// Jobs that may start here, whose images are fetched.
    ahead: BTreeSet<RunKey>,
    /// Questions about images that the controller was asked and has not answered.
    asked: BTreeSet<u64>,
    out: Vec<AgentEffect>,
}

fn run_of(key: StepKey) -> RunKey {
    (key.job, key.attempt)
}

impl AgentCore {
    /// The agent after its start: with the steps of the spool, and the runs of jobs that have parts on the node.
    pub fn new(config: AgentConfig, adopted: Vec<Adopted>, jobs: Vec<AdoptedJob>, now: Time) -> AgentCore {
        let found = |job: AdoptedJob| {
            let prolog = if job.prolog_done { Prolog::Done } else { Prolog::Ahead };
            ((job.job, job.attempt), Run { prolog, ..Run::default() })
        };
        let mut core = AgentCore {
            term: config.term,
            reboot: None,
            next_check: config.health.map(|_| now),
            unhealthy: config.unhealthy.clone().filter(|_| config.health.is_some()),
            config,
            connected: false,
            session: None,
            hello_again: None,
            heartbeat: Span::from_secs(10),
            next_heartbeat: None,
            runs: jobs.into_iter().map(found).collect(),
            steps: BTreeMap::new(),
            over: Over::default(),
            ahead: BTreeSet::new(),
            asked: BTreeSet::new(),
            out: Vec::new(),
        };
        for entry in adopted {
            let key = entry.launch.key;
            let run = core.runs.entry(run_of(key)).or_default();
            run.limit = run.limit.or(entry.timers.job_limit);
            // Nothing of a run is in the spool before.
            run.prolog = Prolog::Done;
            if let (Some(limit), Some(warn)) = (entry.timers.job_limit, entry.timers.warn) {
                // A warning that was due before the restart was sent before it.
                let at = limit - warn.before;
                run.warn = (at > now).then_some((at, warn));
            }
            let (phase, repeat) = match entry.phase {
                AdoptedPhase::Starting => (StepPhase::Starting, None),
                AdoptedPhase::Running => (StepPhase::Running, None),
                AdoptedPhase::Exited(exit) => {
                    (StepPhase::Exited(StepExit { image: entry.pull.clone(), ..exit }), Some(now))
                }
                AdoptedPhase::Gone => {
                    let exit = vanished(key, now);
                    (StepPhase::Exited(StepExit { image: entry.pull.clone(), ..exit }), Some(now))
                }
            };
            let step = Step {
                launch: Box::new(entry.launch),
                timers: entry.timers,
                phase,
                since: now,
                pull: entry.pull,
                ready: true,
                spooled: true,
                lease_known: false,
                ending: None,
                repeat,
                news: true,
                tell: None,
            };
            core.steps.insert(key, step);
        }
        core
    }

    /// Applies an event at boot-time clock `now`.
    #[must_use = "effects that are dropped lose starts and reports"]
    pub fn handle(&mut self, event: AgentEvent, now: Time) -> Vec<AgentEffect> {
        match event {
            AgentEvent::Connected => {
                self.connected = true;
                self.session = None;
                self.forget_reboot();
                self.give_up_asking();
                // The controller tells anew what it wants; another one may want nothing of it.
                for (job, attempt) in std::mem::take(&mut self.ahead) {
                    self.out.push(AgentEffect::CancelPrefetch { job, attempt });
                }
                self.hello(now);
            }
            AgentEvent::Disconnected => {
                self.connected = false;
                self.session = None;
                self.forget_reboot();
                self.give_up_asking();
                self.hello_again = None;
                self.next_heartbeat = None;
            }
            AgentEvent::Controller(message) => self.command(message, now),
            AgentEvent::Image { key, event } => self.image(key, event, now),
            AgentEvent::Supervisor { key, event } => match event {
                SupervisorEvent::Started => {
                    if self.steps.get(&key).is_some_and(|s| s.phase == StepPhase::Starting) {
                        self.advance(key, StepPhase::Running, now);
                    }
                }
                SupervisorEvent::Exited(exit) => self.exited(key, exit, now),
                SupervisorEvent::Gone => self.exited(key, vanished(key, now), now),
            },
            AgentEvent::Prolog { job, attempt, result } => self.prolog((job, attempt), result, now),
            AgentEvent::JobRemoved { job, attempt, epilog } => {
                if let Some(run) = self.runs.remove(&(job, attempt)) {
                    self.over.add((job, attempt), epilog);
                    self.job_gone((job, attempt), now);
                    if run.left.is_some() {
                        self.heartbeat(now);
                    }
                }
            }
            AgentEvent::Left { job, attempt, processes } => self.left((job, attempt), processes, now),
            AgentEvent::Rebooted(result) => {
                if let Some((since, reboot @ Reboot::Runs)) = &mut self.reboot {
                    let since = *since;
                    *reboot = Reboot::Ended(result.err());
                    self.reboot(since);
                }
            }
            AgentEvent::HealthChecked(result) => self.checked(result, now),
            AgentEvent::AskNeeded { ask, digests } => match self.session {
                Some(session) => {
                    self.asked.insert(ask);
                    self.out.push(AgentEffect::Send(FromAgent::ImagesHeld { session, ask, digests }));
                }
                None => self.out.push(AgentEffect::ImagesNeeded { ask, digests: None }),
            },
            AgentEvent::Peers(said) => self.send(|session| FromAgent::Peers { session, said }),
            AgentEvent::Tick => {}
        }
        self.due(now);
        if let Some((_, reboot @ Reboot::Wanted)) = &mut self.reboot
            && self.runs.is_empty()
            && self.steps.is_empty()
        {
            *reboot = Reboot::Runs;
            self.out.push(AgentEffect::Reboot);
        }
        std::mem::take(&mut self.out)
    }

    /// When [`AgentEvent::Tick`] is to be sent at the latest.
    pub fn next_wake(&self) -> Option<Time> {
        let told = self.session.is_some();
        let steps = self.steps.values().flat_map(move |s| {
            let own = if s.live() {
                let limit = s.timers.step_limit.filter(|_| s.ending.is_none());
                [limit, s.ending.map(|e| e.kill_at), s.tell.filter(|_| told), s.overdue()]
            } else {
                [s.repeat.filter(|_| told), None, None, None]
            };
            own.into_iter().flatten()
        });
        let runs = self.runs.values().flat_map(move |r| {
            let again = match r.prolog {
                Prolog::Failed(_, again) if told && !r.ending => Some(again),
                _ => None,
            };
            let limit = r.limit.filter(|_| !r.limit_done);
            [limit, r.warn.map(|(at, _)| at), again, r.look].into_iter().flatten()
        });
        steps.chain(runs).chain(self.hello_again).chain(self.next_heartbeat).chain(self.next_check).min()
    }

    /// Whether the controller listens and has an exit to acknowledge.
    pub fn awaits_acknowledgement(&self) -> bool {
        self.session.is_some() && self.steps.values().any(|step| !step.live())
    }

    /// What was asked on a connection that is gone is not answered any more.
    fn give_up_asking(&mut self) {
        for ask in std::mem::take(&mut self.asked) {
            self.out.push(AgentEffect::ImagesNeeded { ask, digests: None });
        }
    }

    fn hello(&mut self, now: Time) {
        self.hello_again = Some(now + REPEAT);
        for step in self.steps.values_mut() {
            step.news = false;
        }
        self.out.push(AgentEffect::Send(FromAgent::Hello {
            node: self.config.node.clone(),
            boot_id: self.config.boot_id.clone(),
            boot_time: self.config.boot_time,
            agent_start: self.config.agent_start,
            version: self.config.version.clone(),
            hardware: self.config.hardware.clone(),
            term: self.term,
            steps: self.steps.iter().map(|(key, s)| (*key, s.phase.clone())).collect(),
            jobs: self.runs.keys().copied().collect(),
            asked: now,
            unknown: self.config.unknown.clone(),
        }));
    }

    /// Whether a command's term may be followed; a higher one is kept from now on.
    fn follows(&mut self, term: Term) -> bool {
        if term > self.term {
            self.term = term;
            self.out.push(AgentEffect::RememberTerm(term));
        }
        term == self.term
    }

    fn command(&mut self, message: ToAgent, now: Time) {
        match message {
            ToAgent::Welcome { term, session, heartbeat } => {
                // Of two answers to a repeated Hello the later one counts, in whatever order they come.
                let later = self.session.is_none_or(|known| session > known);
                if self.connected && self.follows(term) && later {
                    self.welcome(session, heartbeat, now);
                }
            }
            ToAgent::Refused(_) => self.session = None,
            ToAgent::Start(start) => {
                if self.follows(start.term) {
                    // Who has work for the machine does not wait for it to reboot any more.
                    self.forget_reboot();
                    self.start(*start, now);
                }
            }
            ToAgent::Signal { term, job, attempt, target, signal } => {
                if self.follows(term) {
                    self.signal((job, attempt), target, signal);
                }
            }
            ToAgent::Terminate { term, key, kill_wait, cause } => {
                if self.follows(term) {
                    self.terminate(key, kill_wait, cause, false, now);
                }
            }
            ToAgent::EndJob { term, job, attempt, kill_wait, cause } => {
                if self.follows(term) {
                    self.end_job((job, attempt), kill_wait, cause, now);
                }
            }
            ToAgent::ImagesNeeded { ask, digests } => {
                if self.asked.remove(&ask) {
                    self.out.push(AgentEffect::ImagesNeeded { ask, digests: Some(digests) });
                }
            }
            ToAgent::Prefetch(start) => {
                if self.follows(start.term) {
                    self.prefetch(*start);
                }
            }
            ToAgent::Fetch(start) => {
                if self.follows(start.term) && self.session.is_some() {
                    let Start { launch, login, .. } = *start;
                    self.out.push(AgentEffect::Fetch { launch: Box::new(launch), login });
                }
            }
            ToAgent::EndPrefetch { term, job, attempt } => {
                if self.follows(term) && self.ahead.remove(&(job, attempt)) {
                    self.out.push(AgentEffect::CancelPrefetch { job, attempt });
                }
            }
            ToAgent::Renew { term, runs } => {
                if self.follows(term) {
                    for (job, attempt, until) in runs {
                        self.renew((job, attempt), until, now);
                    }
                }
            }
            ToAgent::Configure(config) => self.out.push(AgentEffect::Configure(config)),
            ToAgent::Reboot { term, since } => {
                if self.follows(term) && self.session.is_some() {
                    self.reboot(since);
                }
            }
            ToAgent::ExitRecorded { key } => self.recorded(key, now),
            ToAgent::Peers(said) => {
                // Of a registration that counts: what a connection that is gone had to say of other nodes is over.
                if self.session.is_some() {
                    self.out.push(AgentEffect::Peers(said));
                }
            }
            // Streams are the shell's alone: nothing is decided about them.
            ToAgent::Dial { .. } => {}
        }
    }

    /// The machine is to be rebooted. Each wish is fulfilled once; where that failed it is told as often as it is wished for.
    fn reboot(&mut self, since: Time) {
        match &self.reboot {
            Some((known, Reboot::Ended(Some(why)))) if *known == since => {
                let why = why.clone();
                self.send(|session| FromAgent::RebootFailed { session, since, why });
            }
            Some((known, _)) if *known == since => {}
            // It is wished for again when that has ended.
            Some((_, Reboot::Runs)) => {}
            _ => self.reboot = Some((since, Reboot::Wanted)),
        }
    }

    /// Nobody waits any more for a reboot that was not begun.
    fn forget_reboot(&mut self) {
        self.reboot.take_if(|(_, reboot)| matches!(reboot, Reboot::Wanted));
    }

    fn prefetch(&mut self, start: Start) {
        let run = run_of(start.launch.key);
        let (job, attempt) = run;
        // Messages may overtake each other: what has come or is over needs nothing ahead.
        let late = self.runs.contains_key(&run) || self.over.has(run);
        if self.session.is_some() && !late && self.ahead.insert(run) {
            let Start { launch, login, .. } = start;
            self.out.push(AgentEffect::Prefetch { job, attempt, launch: Box::new(launch), login });
        }
    }

    fn welcome(&mut self, session: Session, heartbeat: Span, now: Time) {
        self.session = Some(session);
        self.out.push(AgentEffect::Registered);
        self.hello_again = None;
        self.heartbeat = heartbeat;
        // What is wrong is told with it: the controller may know of what is over.
        self.next_heartbeat = Some(now);
        let keys: Vec<StepKey> = self.steps.iter().filter(|(_, s)| s.news).map(|(key, _)| *key).collect();
        for key in keys {
            self.report(key);
        }
        // The Hello says how far steps are, and not what their images took.
        let live = self.steps.iter().filter(|(_, s)| s.live());
        let pulls: Vec<(StepKey, ImagePull)> =
            live.filter_map(|(key, s)| Some((*key, s.pull.clone()?))).collect();
        for (key, pull) in pulls {
            self.send(|session| FromAgent::Pulled { session, key, pull });
        }
    }

    fn send(&mut self, make: impl FnOnce(Session) -> FromAgent) {
        if let Some(session) = self.session {
            self.out.push(AgentEffect::Send(make(session)));
        }
    }

    fn report(&mut self, key: StepKey) {
        let told = self.session.is_some();
        let Some(step) = self.steps.get_mut(&key) else { return };
        step.news = !told;
        step.tell = None;
        let phase = step.phase.clone();
        let pull = step.pull.clone().filter(|_| step.live());
        self.send(|session| FromAgent::Step { session, key, phase });
        if let Some(pull) = pull {
            self.send(|session| FromAgent::Pulled { session, key, pull });
        }
    }

    fn advance(&mut self, key: StepKey, phase: StepPhase, now: Time) {
        let Some(step) = self.steps.get_mut(&key) else { return };
        step.phase = phase;
        if step.live() {
            step.news = true;
            step.tell.get_or_insert(now + SOON);
        } else {
            self.report(key);
        }
    }

    fn job_gone(&mut self, run: RunKey, now: Time) {
        if self.session.is_none() {
            return; // the next Hello tells
        }
        // With every exit that is not recorded: one that was told may not have arrived.
        let mut steps = Vec::new();
        for (key, step) in self.steps.iter_mut().filter(|(key, s)| run_of(**key) == run && !s.live()) {
            step.news = false;
            step.repeat = Some(now + REPEAT);
            steps.push((*key, step.phase.clone()));
        }
        let (job, attempt) = run;
        let epilog = self.over.epilog(run);
        self.send(|session| FromAgent::JobGone { session, job, attempt, steps, epilog });
    }

    fn start(&mut self, start: Start, now: Time) {
        let key = start.launch.key;
        let run_key = run_of(key);
        if self.steps.contains_key(&key) {
            return self.report(key);
        }
        if start.lease.is_some_and(|until| until <= now) {
            // It was under way for so long that the run may count as lost.
            return;
        }
        let newer = self
            .runs
            .range((key.job, key.attempt)..)
            .any(|((job, at), _)| *job == key.job && *at > key.attempt);
        if newer || self.over.has(run_key) {
            return;
        }
        // What was begun for it is what its step waits for.
        self.ahead.remove(&run_key);
        let fresh = !self.runs.contains_key(&run_key);
        let run = self.runs.entry(run_key).or_default();
        if run.ending || run.finished.contains(&key.step) {
            return;
        }
        // Of a run that was adopted without steps nothing tells the limit but this.
        if run.limit.is_none() {
            run.limit = start.job_time_left.map(|left| now + left);
            run.warn = run.limit.zip(start.warn).map(|(limit, warn)| (limit - warn.before, warn));
        }
        let timers = StepTimers {
            job_limit: run.limit,
            step_limit: start.step_time_left.map(|left| now + left),
            warn: start.warn,
            lease: start.lease,
        };
        let launch = Box::new(start.launch);
        if fresh {
            let (job, attempt) = run_key;
            self.out.push(AgentEffect::MakeJob { job, attempt, launch: launch.clone() });
        }
        if let Some(run) = self.runs.get_mut(&run_key).filter(|run| run.prolog == Prolog::Ahead) {
            run.prolog = if self.config.prolog { Prolog::Runs } else { Prolog::Done };
            if self.config.prolog {
                let (job, attempt) = run_key;
                self.out.push(AgentEffect::RunProlog { job, attempt });
            }
        }
        self.out.push(AgentEffect::PrepareImage { key, launch: launch.clone(), login: start.login });
        let step = Step {
            launch,
            timers,
            phase: StepPhase::Preparing(None),
            since: now,
            pull: None,
            ready: false,
            spooled: false,
            lease_known: true,
            ending: None,
            repeat: None,
            news: true,
            tell: Some(now + SOON),
        };
        self.steps.insert(key, step);
    }

    fn image(&mut self, key: StepKey, event: ImageEvent, now: Time) {
        let Some(step) = self.steps.get_mut(&key) else { return };
        if !matches!(step.phase, StepPhase::Preparing(_)) {
            return;
        }
        match event {
            ImageEvent::Progress(percent) => self.advance(key, StepPhase::Preparing(percent), now),
            ImageEvent::Ready(fetched) => {
                step.pull = fetched.map(|fetched| pulled(fetched, step.since, now));
                step.ready = true;
                if self.runs.get(&run_of(key)).is_none_or(|run| run.prolog == Prolog::Done) {
                    self.spawn(key, now);
                }
            }
            ImageEvent::Failed(why, fetched) => {
                step.pull = fetched.map(|fetched| pulled(fetched, step.since, now));
                let status = ExitStatus { code: 1, signal: 0 };
                self.exited(key, made_up(status, Some(why), now), now);
            }
        }
    }

    /// Steps of a run go on until then. A supervisor judges by itself whether that comes too late.
    fn renew(&mut self, run: RunKey, until: Time, now: Time) {
        for key in self.steps_of(run) {
            let Some(step) = self.steps.get_mut(&key).filter(|s| s.live()) else { continue };
            let Some(lease) = &mut step.timers.lease else { continue };
            if step.lease_known && *lease <= now {
                continue; // it may count as lost already
            }
            *lease = until.max(*lease);
            step.lease_known = true;
            if step.spooled {
                self.out.push(AgentEffect::Renew { key, until });
            }
        }
    }

    fn spawn(&mut self, key: StepKey, now: Time) {
        let Some(step) = self.steps.get_mut(&key) else { return };
        if step.timers.lease.is_some_and(|until| until <= now) {
            let status = ExitStatus { code: 0, signal: SIGKILL };
            let exit = StepExit { ended_by: Some(EndCause::OutOfTouch), ..made_up(status, None, now) };
            return self.exited(key, exit, now);
        }
        step.spooled = true;
        self.out.push(AgentEffect::Spawn {
            key,
            launch: step.launch.clone(),
            timers: step.timers,
            pull: step.pull.clone(),
        });
        self.advance(key, StepPhase::Starting, now);
    }

    /// The prolog ended: steps whose images are there start. Where it failed they wait for the end of the run, which the
    /// controller orders, so that it knows why before anything of the job is told.
    fn prolog(&mut self, run_key: RunKey, result: Result<(), String>, now: Time) {
        let Some(run) = self.runs.get_mut(&run_key).filter(|run| run.prolog == Prolog::Runs) else { return };
        if let Err(why) = result {
            run.prolog = Prolog::Failed(why, now);
            return;
        }
        run.prolog = Prolog::Done;
        if run.ending {
            return;
        }
        for key in self.steps_of(run_key) {
            let waits = |s: &Step| s.ready && matches!(s.phase, StepPhase::Preparing(_));
            if self.steps.get(&key).is_some_and(waits) {
                self.spawn(key, now);
            }
        }
    }

    /// A step is over here: told until the controller has written it down.
    fn exited(&mut self, key: StepKey, mut exit: StepExit, now: Time) {
        let Some(step) = self.steps.get_mut(&key).filter(|s| s.live()) else { return };
        if exit.ended_by.is_none() {
            exit.ended_by = step.ending.map(|e| e.cause);
        }
        exit.image.clone_from(&step.pull);
        step.repeat = Some(now + REPEAT);
        let drives = drives(&step.launch);
        if self.session.is_none() || !self.ends_run(key, drives) {
            return self.advance(key, StepPhase::Exited(exit), now);
        }
        if let Some(step) = self.steps.get_mut(&key) {
            // Told with the end of the run, so that the controller writes both down at once; but a run that does
            // not go does not hold it back.
            step.phase = StepPhase::Exited(exit);
            step.news = true;
            step.repeat = Some(now + HOLD);
        }
        if let Some(run) = self.runs.get_mut(&run_of(key)) {
            run.ending = true;
        }
        self.remove_if_done(run_of(key), now);
    }

    /// Whether the run is over here with this step: it is being ended, or lives by the step, and nothing else of it
    /// is alive.
    fn ends_run(&self, key: StepKey, drives: bool) -> bool {
        let others = self.steps.iter().any(|(k, s)| run_of(*k) == run_of(key) && *k != key && s.live());
        !others && self.runs.get(&run_of(key)).is_some_and(|run| (run.ending || drives) && !run.removing)
    }

    fn recorded(&mut self, key: StepKey, now: Time) {
        if self.steps.get(&key).is_none_or(Step::live) {
            return;
        }
        if let Some(step) = self.steps.remove(&key)
            && step.spooled
        {
            self.out.push(AgentEffect::ForgetSpool { key });
        }
        if let Some(run) = self.runs.get_mut(&run_of(key)) {
            run.finished.insert(key.step);
        }
        self.remove_if_done(run_of(key), now);
    }

    fn remove_if_done(&mut self, run_key: RunKey, now: Time) {
        if self.steps.iter().any(|(key, step)| run_of(*key) == run_key && step.live()) {
            return;
        }
        let Some(run) = self.runs.get_mut(&run_key).filter(|r| r.ending && !r.removing) else { return };
        run.removing = true;
        run.look = Some(now + self.config.unkillable);
        let (job, attempt) = run_key;
        self.out.push(AgentEffect::RemoveJob { job, attempt });
    }

    fn steps_of(&self, run: RunKey) -> Vec<StepKey> {
        self.steps.keys().copied().filter(|key| run_of(*key) == run).collect()
    }

    fn signal(&mut self, run: RunKey, target: SignalTarget, signal: i32) {
        for key in self.steps_of(run) {
            if !matches!(self.steps[&key].phase, StepPhase::Starting | StepPhase::Running) {
                continue;
            }
            let processes = match target {
                SignalTarget::Step(step) if step == key.step => ProcessTarget::All,
                SignalTarget::Steps if key.step != StepId::Batch => ProcessTarget::All,
                SignalTarget::BatchShell if key.step == StepId::Batch => ProcessTarget::BatchShell,
                SignalTarget::All => ProcessTarget::All,
                _ => continue,
            };
            self.out.push(AgentEffect::SignalStep { key, target: processes, signal });
        }
    }

    /// Ends a step: SIGCONT, SIGTERM, and SIGKILL after `kill_wait`. A second time can only hasten it.
    fn terminate(&mut self, key: StepKey, kill_wait: Span, cause: EndCause, whole_job: bool, now: Time) {
        let Some(step) = self.steps.get_mut(&key) else { return };
        let kill_at = now + kill_wait;
        match step.phase {
            StepPhase::Exited(_) => return,
            StepPhase::Preparing(_) => {
                self.out.push(AgentEffect::CancelImage { key });
                if let Some(Run { prolog: Prolog::Failed(why, _), .. }) = self.runs.get(&run_of(key)) {
                    let status = ExitStatus { code: 1, signal: 0 };
                    return self.exited(key, made_up(status, Some(why.clone()), now), now);
                }
                step.ending = Some(Ending { cause, kill_at, killed: None });
                let status = ExitStatus { code: 0, signal: u8::try_from(SIGTERM).unwrap_or(SIGKILL) };
                return self.exited(key, made_up(status, None, now), now);
            }
            StepPhase::Starting | StepPhase::Running => {}
        }
        if let Some(ending) = &mut step.ending {
            ending.kill_at = ending.kill_at.min(kill_at);
            return;
        }
        step.ending = Some(Ending { cause, kill_at, killed: None });
        self.out.push(AgentEffect::Note { key, cause, whole_job });
        if kill_wait.0 > 0 {
            for signal in [SIGCONT, SIGTERM] {
                self.out.push(AgentEffect::SignalStep { key, target: ProcessTarget::All, signal });
            }
        }
    }

    fn end_job(&mut self, run_key: RunKey, kill_wait: Span, cause: EndCause, now: Time) {
        let Some(run) = self.runs.get_mut(&run_key) else {
            self.over.add(run_key, None);
            return self.job_gone(run_key, now);
        };
        run.ending = true;
        for key in self.steps_of(run_key) {
            self.terminate(key, kill_wait, cause, true, now);
        }
        self.remove_if_done(run_key, now);
    }

    /// Does what is due.
    fn due(&mut self, now: Time) {
        let passed = |at: Option<Time>| at.is_some_and(|at| at <= now);
        let runs: Vec<RunKey> = self.runs.keys().copied().collect();
        for run_key in runs {
            let Some(run) = self.runs.get_mut(&run_key) else { continue };
            if let Some((_, warn)) = run.warn.take_if(|(at, _)| *at <= now) {
                let target = if warn.batch_only { SignalTarget::BatchShell } else { SignalTarget::Steps };
                self.signal(run_key, target, warn.signal);
            }
            let Some(run) = self.runs.get_mut(&run_key) else { continue };
            let (session, ending) = (self.session, run.ending);
            if let Prolog::Failed(why, again) = &mut run.prolog
                && let Some(session) = session.filter(|_| !ending && *again <= now)
            {
                *again = now + REPEAT;
                let ((job, attempt), why) = (run_key, why.clone());
                self.out.push(AgentEffect::Send(FromAgent::PrologFailed { session, job, attempt, why }));
            }
            if run.look.take_if(|at| *at <= now).is_some() {
                run.look = Some(now + LOOK_AGAIN);
                let (job, attempt) = run_key;
                self.out.push(AgentEffect::LookForLeft { job, attempt });
            }
            if passed(run.limit) && !run.limit_done {
                run.limit_done = true;
                for key in self.steps_of(run_key) {
                    self.limit_reached(key, true, now);
                }
            }
        }
        let keys: Vec<StepKey> = self.steps.keys().copied().collect();
        for key in keys {
            let Some(step) = self.steps.get_mut(&key) else { continue };
            if !step.live() {
                if self.session.is_some() && passed(step.repeat) {
                    step.repeat = Some(now + REPEAT);
                    self.report(key);
                }
                continue;
            }
            if self.session.is_some() && passed(step.tell) {
                self.report(key);
            }
            let Some(step) = self.steps.get_mut(&key) else { continue };
            if passed(step.overdue()) {
                let cause = step.ending.map_or(EndCause::OutOfTouch, |ending| ending.cause);
                step.ending = Some(Ending { cause, kill_at: now, killed: None });
            }
            if let Some(ending) = step.ending.as_mut().filter(|e| e.kill_at <= now) {
                let given_up = *ending.killed.get_or_insert(now) + self.config.unkillable;
                if given_up <= now {
                    self.abandon(key, now);
                    continue;
                }
                ending.kill_at = given_up.min(now + KILL_AGAIN);
                self.out.push(AgentEffect::KillStep { key });
            } else if passed(step.timers.step_limit) && step.ending.is_none() {
                self.limit_reached(key, false, now);
            }
        }
        self.check_health(now);
        if passed(self.hello_again) && self.connected {
            self.hello(now);
        }
        if passed(self.next_heartbeat) {
            self.heartbeat(now);
        }
    }

    fn heartbeat(&mut self, now: Time) {
        self.next_heartbeat = self.session.map(|_| now + self.heartbeat);
        let left = |(run, state): (&RunKey, &Run)| {
            let why = state.left.clone()?;
            let why = format!("Kill task failed: job {}: {why}", run.0);
            Some(Trouble { cause: Cause::Unkillable, run: Some(*run), why })
        };
        let unhealthy = self.unhealthy.iter();
        let unhealthy =
            unhealthy.map(|why| Trouble { cause: Cause::HealthCheck, run: None, why: why.clone() });
        let troubles = self.runs.iter().filter_map(left).chain(unhealthy).collect();
        self.send(|session| FromAgent::Heartbeat {
            session,
            load: 0,
            free_memory: 0,
            troubles,
            drift: Vec::new(),
            asked: now,
        });
    }

    /// Has the node's health checked where its time has come and the node does what it is to do meanwhile.
    fn check_health(&mut self, now: Time) {
        let (Some(plan), Some(_)) = (self.config.health, self.next_check.filter(|at| *at <= now)) else {
            return;
        };
        let busy = !self.runs.is_empty();
        if plan.busy.is_some_and(|wanted| wanted != busy) {
            self.next_check = Some(now + plan.interval.max(CHECK_AGAIN));
            return;
        }
        self.next_check = None;
        self.out.push(AgentEffect::CheckHealth);
    }

    fn checked(&mut self, result: Result<(), String>, now: Time) {
        self.next_check =
            self.config.health.filter(|plan| plan.interval.0 > 0).map(|plan| now + plan.interval);
        let unhealthy = result.err();
        if self.unhealthy != unhealthy {
            self.unhealthy.clone_from(&unhealthy);
            self.out.push(AgentEffect::RememberHealth(unhealthy));
            self.heartbeat(now);
        }
    }

    /// What keeps a run from being removed: told at once when it is news.
    fn left(&mut self, run_key: RunKey, processes: Option<String>, now: Time) {
        let Some(run) = self.runs.get_mut(&run_key).filter(|run| run.removing) else { return };
        if run.left != processes {
            run.left = processes;
            self.heartbeat(now);
        }
    }

    /// A step does not end although it was killed long ago: for its job it is over.
    fn abandon(&mut self, key: StepKey, now: Time) {
        self.out.push(AgentEffect::AbandonStep { key });
        let status = ExitStatus { code: 0, signal: SIGKILL };
        let seconds = self.config.unkillable.0 / 1_000_000;
        let why = format!(
            "processes of step {key} did not end within {seconds} s after SIGKILL: the step ended without them, and the node takes \
             nothing new until they are gone"
        );
        self.exited(key, made_up(status, Some(why), now), now);
    }

    fn limit_reached(&mut self, key: StepKey, whole_job: bool, now: Time) {
        let Some(kill_wait) = self.steps.get(&key).map(|s| s.launch.kill_wait) else { return };
        self.terminate(key, kill_wait, EndCause::TimeLimit, whole_job, now);
    }
}

/// Whether the job is over when this step is over on this node.
fn drives(launch: &StepLaunch) -> bool {
    match launch.job.kind {
        JobKind::Batch => launch.key.step == StepId::Batch,
        JobKind::Run => launch.key.step == StepId::Number(0) && launch.layout.nodes.len() <= 1,
        JobKind::Alloc => false,
    }
}

fn pulled(fetched: Fetched, since: Time, now: Time) -> ImagePull {
    let Fetched { bytes, hit, digest, found } = fetched;
    ImagePull { took: now.since(since), bytes, hit, digest, found }
}

fn vanished(key: StepKey, now: Time) -> StepExit {
    let status = ExitStatus { code: 0, signal: SIGKILL };
    let why =
        format!("the supervisor of step {key} ended without leaving an exit status; see the node's log");
    made_up(status, Some(why), now)
}
