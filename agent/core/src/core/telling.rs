//! What the controller is told: Hello, phases of steps, ends of runs, heartbeats.

use super::{AgentCore, REPEAT, SOON, run_of};
use crate::event::AgentEffect;
use crate::state::{Run, RunKey};
use berth_model::ids::{Session, StepKey};
use berth_model::launch::{ImagePull, StepPhase};
use berth_model::link::{FromAgent, GpuFault, Trouble};
use berth_model::state::Cause;
use berth_model::time::{Span, Time};

impl AgentCore {
    pub(super) fn hello(&mut self, now: Time) {
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
            features: self.config.features.clone(),
            highest: self.highest,
            host: None,
        }));
    }

    pub(super) fn welcome(&mut self, session: Session, heartbeat: Span, now: Time) {
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

    pub(super) fn send(&mut self, make: impl FnOnce(Session) -> FromAgent) {
        if let Some(session) = self.session {
            self.out.push(AgentEffect::Send(make(session)));
        }
    }

    pub(super) fn report(&mut self, key: StepKey) {
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

    pub(super) fn advance(&mut self, key: StepKey, phase: StepPhase, now: Time) {
        let Some(step) = self.steps.get_mut(&key) else { return };
        step.phase = phase;
        if step.live() {
            step.news = true;
            step.tell.get_or_insert(now + SOON);
        } else {
            self.report(key);
        }
    }

    /// What the next Hello says of them, too.
    pub(super) fn fence(&mut self, faults: &[GpuFault]) {
        for device in self.config.hardware.gres.iter_mut().filter(|device| device.name == "gpu") {
            if let Some(fault) = faults.iter().find(|fault| fault.index == device.index) {
                device.fault = Some(fault.why.clone());
            }
        }
    }

    pub(super) fn job_gone(&mut self, run: RunKey, faults: Vec<GpuFault>, now: Time) {
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
        self.send(|session| FromAgent::JobGone { session, job, attempt, steps, epilog, faults });
    }

    pub(super) fn heartbeat(&mut self, now: Time) {
        self.next_heartbeat = self.session.map(|_| now + self.heartbeat);
        let left = |(run, state): (&RunKey, &Run)| {
            let why = state.left.clone()?;
            let why = format!("Kill task failed: job {}: {why}", run.0);
            Some(Trouble { cause: Cause::Unkillable, run: Some(*run), why })
        };
        let unhealthy = self.unhealthy.iter().chain(&self.config.unfit);
        let unhealthy =
            unhealthy.map(|why| Trouble { cause: Cause::HealthCheck, run: None, why: why.clone() });
        let troubles =
            self.runs.iter().filter_map(left).chain(unhealthy).chain(self.unkept_trouble()).collect();
        self.send(|session| FromAgent::Heartbeat {
            session,
            load: 0,
            free_memory: 0,
            troubles,
            drift: Vec::new(),
            asked: now,
            used: Vec::new(),
            gpus: Vec::new(),
        });
    }

    /// What was asked on a connection that is gone is not answered any more, and of what was answered nobody tells what comes to be
    /// needed.
    pub(super) fn give_up_asking(&mut self) {
        for ask in std::mem::take(&mut self.asked).into_iter().chain(self.answered.take()) {
            self.out.push(AgentEffect::ImagesNeeded { ask, digests: None });
        }
    }
}
