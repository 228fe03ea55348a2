//! What time alone brings about.

use super::{AgentCore, REPEAT};
use crate::event::AgentEffect;
use crate::state::{Ending, Prolog, RunKey, Unbegun};
use berth_model::ids::StepKey;
use berth_model::link::{EndCause, FromAgent, SignalTarget};
use berth_model::time::{Span, Time};

/// How often a step that does not die is killed again.
const KILL_AGAIN: Span = Span::from_secs(10);
/// How often it is looked whether a run that could not be removed is still there.
const LOOK_AGAIN: Span = Span::from_secs(30);

impl AgentCore {
    /// When [`AgentEvent::Tick`] is to be sent at the latest.
    pub fn next_wake(&self) -> Option<Time> {
        let told = self.session.is_some();
        let steps = self.steps.values().flat_map(move |s| {
            let own = if s.live() {
                let limit = s.timers.step_limit.filter(|_| s.ending.is_none());
                let kill = s.ending.map(|e| e.kill_at);
                [limit, kill, s.tell.filter(|_| told), s.overdue(), self.start_ends(s)]
            } else {
                [s.repeat.filter(|_| told), None, None, None, None]
            };
            own.into_iter().flatten()
        });
        let runs = self.runs.values().flat_map(move |r| {
            let again = match &r.prolog {
                Prolog::Failed(Unbegun { again, .. }) if told && !r.ending => Some(*again),
                _ => None,
            };
            let limit = r.limit.filter(|_| !r.limit_done);
            [limit, r.warn.map(|(at, _)| at), again, r.look, r.evict].into_iter().flatten()
        });
        let term = self.unkept.as_ref().and_then(|unkept| unkept.again);
        let own = [self.hello_again, self.next_heartbeat, self.next_check, term];
        steps.chain(runs).chain(own.into_iter().flatten()).min()
    }

    /// Does what is due.
    pub(super) fn due(&mut self, now: Time) {
        let passed = |at: Option<Time>| at.is_some_and(|at| at <= now);
        let runs: Vec<RunKey> = self.runs.keys().copied().collect();
        for run_key in runs {
            let Some(run) = self.runs.get_mut(&run_key) else { continue };
            if let Some((_, warn)) = run.warn.take_if(|(at, _)| *at <= now) {
                let target = if warn.batch_only { SignalTarget::BatchShell } else { SignalTarget::Steps };
                self.signal(run_key, target, warn.signal, None);
            }
            let Some(run) = self.runs.get_mut(&run_key) else { continue };
            let (session, ending) = (self.session, run.ending);
            if let Prolog::Failed(Unbegun { why, faults, again }) = &mut run.prolog
                && let Some(session) = session.filter(|_| !ending && *again <= now)
            {
                *again = now + REPEAT;
                let ((job, attempt), why, faults) = (run_key, why.clone(), faults.clone());
                let told = FromAgent::PrologFailed { session, job, attempt, why, faults };
                self.out.push(AgentEffect::Send(told));
            }
            if run.look.take_if(|at| *at <= now).is_some() {
                run.look = Some(now + LOOK_AGAIN);
                let (job, attempt) = run_key;
                self.out.push(AgentEffect::LookForLeft { job, attempt });
            }
            if run.evict.take_if(|at| *at <= now).is_some() {
                // Who logs in after that is not left there either.
                run.evict = Some(now + KILL_AGAIN);
                self.out.push(AgentEffect::EndLogins { job: run_key.0 });
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
            self.give_up_start(key, now);
            let Some(step) = self.steps.get_mut(&key) else { continue };
            if passed(step.overdue()) {
                let cause = step.ending.map_or(Some(EndCause::OutOfTouch), |ending| ending.cause);
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
        self.keep_term_again(now);
        if passed(self.hello_again) && self.connected {
            self.hello(now);
        }
        if passed(self.next_heartbeat) {
            self.heartbeat(now);
        }
    }
}
