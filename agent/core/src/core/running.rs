//! How a run begins: what is fetched ahead, its prolog, images, supervisors, and deadlines out of touch.

use super::{AgentCore, SIGKILL, SOON, run_of};
use crate::event::{AgentEffect, Fetched, ImageEvent, StepTimers};
use crate::state::{Prolog, Run, RunKey, Step, Unbegun, made_up};
use berth_model::carry::{Carried, Registration};
use berth_model::ids::StepKey;
use berth_model::launch::{ImagePull, StepExit, StepPhase};
use berth_model::link::{EndCause, FromAgent, GpuFault, Highest, Start};
use berth_model::state::ExitStatus;
use berth_model::time::{Span, Time};

/// What another node brings counts for nothing when it was said so much longer ago than two heartbeats.
const OLD: Span = Span::from_secs(10);

impl AgentCore {
    pub(super) fn prefetch(&mut self, start: Start) {
        let run = run_of(start.launch.key);
        let (job, attempt) = run;
        // Messages may overtake each other: what has come or is over needs nothing ahead.
        let late = self.runs.contains_key(&run) || self.over.has(run);
        if self.session.is_some() && !late && self.ahead.insert(run) {
            let Start { launch, login, .. } = start;
            self.out.push(AgentEffect::Prefetch { job, attempt, launch: Box::new(launch), login });
        }
    }

    /// A Start that another node brought: it counts where it would have counted on the link, had it come there now. What this agent knows of
    /// steps and runs that are over keeps an old one from beginning again, and nothing is said of these: whoever brings one again and again has
    /// the controller hear nothing. One that may be older than what it knows begins nothing, nor one that was held back: the controller has long
    /// said itself what was missing.
    pub(super) fn carried(&mut self, carried: Carried, now: Time) {
        let Carried { to, start } = carried;
        let key = start.launch.key;
        let run = run_of(key);
        let over = |run: &Run| run.ending || run.finished.contains(&key.step);
        let known = self.steps.contains_key(&key)
            || self.over.has(run)
            || self.runs.get(&run).is_some_and(over)
            || self.over.forgot_since(to.asked);
        let here = start.launch.node == self.config.node && self.follows(start.term);
        if !here || known || !self.is_registered_as(&to, now) {
            return;
        }
        self.start(start, now);
        if self.steps.contains_key(&key) {
            // As of a Start that comes by the link; but of none that is a replay.
            self.forget_reboot();
        }
    }

    /// Whether something was said to the registration that this agent has, and lately. Numbers alone do not tell: a core that is built anew
    /// counts anew.
    fn is_registered_as(&self, to: &Registration, now: Time) -> bool {
        let old = Span(self.heartbeat.0.saturating_mul(2).saturating_add(OLD.0));
        let time = self.connected_at <= to.asked && to.asked <= now && now.since(to.asked) <= old;
        time && self.session == Some(to.session) && to.boot_id == self.config.boot_id
    }

    pub(super) fn start(&mut self, start: Start, now: Time) {
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
        if newer {
            return;
        }
        if self.over.has(run_key) {
            // It was under way for long; or it is of a controller that was made of a backup, and gives a number out once more. That waits for a word.
            return self.job_gone(run_key, Vec::new(), now);
        }
        // What was begun for it is what its step waits for.
        self.ahead.remove(&run_key);
        let fresh = !self.runs.contains_key(&run_key);
        let run = self.runs.entry(run_key).or_default();
        if run.ending {
            return;
        }
        if run.finished.contains(&key.step) {
            // As above. Who has its exit on record reads past this one.
            let exit = StepExit { ended_by: Some(EndCause::NodeFailed), ..over(key, now) };
            return self.send(|session| FromAgent::Step { session, key, phase: StepPhase::Exited(exit) });
        }
        self.has_seen(Highest::default().with(key));
        let Some(run) = self.runs.get_mut(&run_key) else { return };
        let extended = run.goes_on(start.lease);
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
        if let Some(until) = extended {
            let (job, attempt) = run_key;
            self.out.push(AgentEffect::Deadline { job, attempt, until });
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
            begun: now,
            waits: None,
            lease_known: true,
            ending: None,
            repeat: None,
            news: true,
            tell: Some(now + SOON),
            signals: Vec::new(),
        };
        self.steps.insert(key, step);
    }

    /// The prolog ended: steps whose images are there start. Where it failed they wait for the end of the run, which the
    /// controller orders, so that it knows why before anything of the job is told.
    pub(super) fn prolog(&mut self, run_key: RunKey, result: Result<(), String>, now: Time) {
        let Some(run) = self.runs.get_mut(&run_key).filter(|run| run.prolog == Prolog::Runs) else { return };
        if let Err(why) = result {
            run.prolog = Prolog::Failed(Unbegun { why, faults: Vec::new(), again: now });
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

    /// The run's GPUs do not work any more, which was found before anything of it was made: as if its prolog had failed. What its prolog
    /// comes to does not matter any more.
    pub(super) fn unfit(&mut self, run_key: RunKey, why: String, faults: Vec<GpuFault>, now: Time) {
        self.fence(&faults);
        if let Some(run) = self.runs.get_mut(&run_key) {
            run.prolog = Prolog::Failed(Unbegun { why, faults, again: now });
        }
    }

    pub(super) fn image(&mut self, key: StepKey, event: ImageEvent, now: Time) {
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

    pub(super) fn spawn(&mut self, key: StepKey, now: Time) {
        let Some(step) = self.steps.get_mut(&key) else { return };
        if step.timers.lease.is_some_and(|until| until <= now) {
            let status = ExitStatus { code: 0, signal: SIGKILL };
            let exit = StepExit { ended_by: Some(EndCause::OutOfTouch), ..made_up(status, None, now) };
            return self.exited(key, exit, now);
        }
        step.spooled = true;
        step.begun = now;
        let signals = std::mem::take(&mut step.signals);
        self.out.push(AgentEffect::Spawn {
            key,
            launch: step.launch.clone(),
            timers: step.timers,
            pull: step.pull.clone(),
        });
        self.advance(key, StepPhase::Starting, now);
        self.pass_on_held(key, signals);
    }

    /// Steps of a run go on until then. A supervisor judges by itself whether that comes too late.
    pub(super) fn renew(&mut self, run: RunKey, until: Time, now: Time) {
        if let Some(entry) = self.runs.get_mut(&run)
            && entry.lease.is_some_and(|lease| lease > now)
            && let Some(until) = entry.goes_on(Some(until))
        {
            let (job, attempt) = run;
            self.out.push(AgentEffect::Deadline { job, attempt, until });
        }
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
}

/// The exit of a step that is to begin, and that was here and is over.
fn over(key: StepKey, now: Time) -> StepExit {
    let status = ExitStatus { code: 0, signal: SIGKILL };
    let why = format!("step {key} has been on this node before, and is over");
    made_up(status, Some(why), now)
}

fn pulled(fetched: Fetched, since: Time, now: Time) -> ImagePull {
    let Fetched { bytes, hit, digest, found } = fetched;
    ImagePull { took: now.since(since), bytes, hit, digest, found }
}
