//! The agent's state machine: the controller's commands, images, supervisors, and what is told back.

mod due;
mod ending;
mod machine;
mod numbers;
mod running;
mod starting;
mod telling;
mod term;

use crate::event::{
    Adopted, AdoptedJob, AdoptedPhase, AgentConfig, AgentEffect, AgentEvent, SupervisorEvent,
};
use crate::state::{Over, Prolog, Reboot, Run, RunKey, Step, made_up};
use berth_model::config::START_TIMEOUT;
use berth_model::ids::{Session, StepKey, Term};
use berth_model::launch::{StepExit, StepPhase};
use berth_model::link::{FromAgent, Highest, Start, ToAgent};
use berth_model::programs::TASK_PROLOG_SECONDS;
use berth_model::state::ExitStatus;
use berth_model::time::{Span, Time};
use std::collections::{BTreeMap, BTreeSet};
use term::Unkept;

const SIGKILL: u8 = 9;
/// How long the controller may take to answer before it is told again.
const REPEAT: Span = Span::from_secs(5);

/// How long the progress of a step waits until it is told: of one that ends sooner the exit says all.
const SOON: Span = Span(100_000);

/// All that the agent has to remember.
#[derive(Debug)]
pub struct AgentCore {
    config: AgentConfig,
    term: Term,
    /// That term is not on the disk, as far as is known.
    unkept: Option<Unkept>,
    connected: bool,
    /// When the connection that is there was made.
    connected_at: Time,
    session: Option<Session>,
    /// When the Hello is repeated, while no Welcome came.
    hello_again: Option<Time>,
    heartbeat: Span,
    next_heartbeat: Option<Time>,
    runs: BTreeMap<RunKey, Run>,
    steps: BTreeMap<StepKey, Step>,
    over: Over,
    /// The highest numbers that were given out as far as is known here, and those that are kept for the next agent.
    highest: Highest,
    kept: Highest,
    /// When the node's health is checked next; while it is being checked, never.
    next_check: Option<Time>,
    unhealthy: Option<String>,
    /// The last wish for a reboot, and how far it is.
    reboot: Option<(Time, Reboot)>,
    /// Jobs that may start here, whose images are fetched.
    ahead: BTreeSet<RunKey>,
    /// Questions about images that the controller was asked and has not answered.
    asked: BTreeSet<u64>,
    /// The last one that was answered: of what comes to be needed after that the controller tells.
    answered: Option<u64>,
    /// How long the start of a step may take, once its supervisor was given out.
    start_limit: Option<Span>,
    /// How long the start of one takes at most in which each task runs a program of its user's before.
    task_prolog: Span,
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
            let mut run = Run { prolog, ..Run::default() };
            let _ = run.goes_on(job.until);
            ((job.job, job.attempt), run)
        };
        let past =
            |job: &AdoptedJob| Some(((job.job, job.attempt), job.until.filter(|until| *until <= now)?));
        let past: BTreeMap<RunKey, Time> = jobs.iter().filter_map(past).collect();
        let kept = config.highest;
        // Of an agent of an earlier version nothing is kept but this.
        let there = jobs.iter().fold(kept, |highest, job| highest.with_run(job.job, job.attempt));
        let highest = adopted.iter().fold(there, |highest, step| highest.with(step.launch.key));
        let mut core = AgentCore {
            term: config.term,
            unkept: config.unkept.clone().map(|why| Unkept::failed(why, now)),
            reboot: None,
            next_check: config.health.map(|_| now),
            unhealthy: config.unhealthy.clone().filter(|_| config.health.is_some()),
            config,
            connected: false,
            connected_at: now,
            session: None,
            hello_again: None,
            heartbeat: Span::from_secs(10),
            next_heartbeat: None,
            runs: jobs.into_iter().map(found).collect(),
            steps: BTreeMap::new(),
            over: Over::default(),
            highest,
            kept,
            ahead: BTreeSet::new(),
            asked: BTreeSet::new(),
            answered: None,
            start_limit: Some(Span::from_secs(START_TIMEOUT.into())),
            task_prolog: Span::from_secs(TASK_PROLOG_SECONDS.into()),
            out: Vec::new(),
        };
        for entry in adopted {
            let key = entry.launch.key;
            let run = core.runs.entry(run_of(key)).or_default();
            run.limit = run.limit.or(entry.timers.job_limit);
            let mut timers = entry.timers;
            let over = past.get(&run_of(key)).copied();
            if let Some(until) = over {
                // Whatever was written down of the step: it may count as lost already.
                timers.lease = timers.lease.min(Some(until)).or(Some(until));
            } else if entry.lease_known {
                let _ = run.goes_on(timers.lease);
            }
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
                timers,
                phase,
                since: now,
                pull: entry.pull,
                ready: true,
                spooled: true,
                begun: now,
                waits: None,
                lease_known: entry.lease_known || over.is_some(),
                ending: None,
                repeat,
                news: true,
                tell: None,
                signals: Vec::new(),
            };
            core.steps.insert(key, step);
        }
        core
    }

    /// Another time for the start of a step than [`START_TIMEOUT`]: from its supervisor's being given out to the word that tasks run. With
    /// `None` it takes as long as it likes.
    #[must_use]
    pub fn starting_within(self, limit: Option<Span>) -> AgentCore {
        AgentCore { start_limit: limit, ..self }
    }

    /// Another time for what users have run before their tasks (`--task-prolog`) than [`TASK_PROLOG_SECONDS`]. Where there is such a program, it
    /// is added to that of the start.
    #[must_use]
    pub fn task_prologs_within(self, limit: Span) -> AgentCore {
        AgentCore { task_prolog: limit, ..self }
    }

    /// Applies an event at boot-time clock `now`.
    #[must_use = "effects that are dropped lose starts and reports"]
    pub fn handle(&mut self, event: AgentEvent, now: Time) -> Vec<AgentEffect> {
        match event {
            AgentEvent::Connected => {
                self.connected = true;
                self.connected_at = now;
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
            AgentEvent::Controller(message) => self.hear(message, now),
            AgentEvent::TermKept { term, result } => self.term_kept(term, result, now),
            AgentEvent::Carried(carried) => self.carried(*carried, now),
            AgentEvent::Image { key, event } => self.image(key, event, now),
            AgentEvent::Supervisor { key, event } => match event {
                SupervisorEvent::Started => {
                    if self.steps.get(&key).is_some_and(|s| s.phase == StepPhase::Starting) {
                        self.advance(key, StepPhase::Running, now);
                    }
                }
                SupervisorEvent::Waits(what) => {
                    if let Some(step) = self.steps.get_mut(&key).filter(|s| s.live()) {
                        step.waits = Some(what);
                    }
                }
                SupervisorEvent::Exited(exit) => self.supervisor_ended(key, exit, now),
                SupervisorEvent::Gone => self.supervisor_ended(key, vanished(key, now), now),
            },
            AgentEvent::Prolog { job, attempt, result } => self.prolog((job, attempt), result, now),
            AgentEvent::Unfit { job, attempt, why, faults } => self.unfit((job, attempt), why, faults, now),
            AgentEvent::JobRemoved { job, attempt, epilog, faults } => {
                if let Some(run) = self.runs.remove(&(job, attempt)) {
                    self.over.add((job, attempt), epilog, now);
                    self.fence(&faults);
                    self.job_gone((job, attempt), faults, now);
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
                    self.answered = None;
                    self.asked.insert(ask);
                    self.out.push(AgentEffect::Send(FromAgent::ImagesHeld { session, ask, digests }));
                }
                None => self.out.push(AgentEffect::ImagesNeeded { ask, digests: None }),
            },
            AgentEvent::Peers(said) => self.send(|session| FromAgent::Peers { session, said }),
            AgentEvent::NotEnded { ask, keys } => {
                self.send(|session| FromAgent::NotEnded { session, ask, keys });
            }
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

    /// Whether the controller listens and has an exit to acknowledge.
    pub fn awaits_acknowledgement(&self) -> bool {
        self.session.is_some() && self.steps.values().any(|step| !step.live())
    }

    fn command(&mut self, message: ToAgent, now: Time) {
        match message {
            ToAgent::Welcome { term, session, heartbeat } => {
                // Of two answers to a repeated Hello the later one counts, in whatever order they come.
                let later = self.session.is_none_or(|known| session > known);
                if self.connected && self.hears(term) && later {
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
            ToAgent::Signal { term, job, attempt, target, signal, number } => {
                if self.follows(term) {
                    self.signal((job, attempt), target, signal, number);
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
                    self.answered = Some(ask);
                }
                if self.answered == Some(ask) {
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
                if self.hears(term) {
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
            ToAgent::Say { key, text } => {
                if self.session.is_some() && self.steps.get(&key).is_some_and(Step::live) {
                    self.out.push(AgentEffect::Say { key, text });
                }
            }
            ToAgent::LookForEnds { ask, mut keys } => {
                // The exits of all others were told, or are told until they are on record.
                keys.retain(|key| self.steps.get(key).is_some_and(Step::live));
                if self.session.is_some() {
                    self.out.push(AgentEffect::LookForEnds { ask, keys });
                }
            }
            ToAgent::Resumed { term } => {
                if self.follows(term) && self.session.is_some() {
                    self.out.push(AgentEffect::Resumed);
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
            ToAgent::Dial { .. } | ToAgent::Admit(_) => {}
            // The shell carries, and makes a Start of it.
            ToAgent::Carry(_) => {}
        }
    }

    fn steps_of(&self, run: RunKey) -> Vec<StepKey> {
        self.steps.keys().copied().filter(|key| run_of(*key) == run).collect()
    }
}

fn vanished(key: StepKey, now: Time) -> StepExit {
    let status = ExitStatus { code: 0, signal: SIGKILL };
    let why =
        format!("the supervisor of step {key} ended without leaving an exit status; see the node's log");
    made_up(status, Some(why), now)
}
