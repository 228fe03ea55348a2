//! How steps and runs end: asked, killed, exited, recorded, removed.

use super::{AgentCore, REPEAT, SIGKILL, run_of};
use crate::event::{AgentEffect, ProcessTarget};
use crate::state::{Ending, Held, Prolog, Run, RunKey, Step, Unbegun, made_up};
use berth_model::ids::{StepId, StepKey};
use berth_model::launch::{StepExit, StepLaunch, StepPhase};
use berth_model::link::{EndCause, FromAgent, Highest, SignalTarget};
use berth_model::spec::JobKind;
use berth_model::state::ExitStatus;
use berth_model::time::{Span, Time};

const SIGTERM: i32 = 15;
const SIGCONT: i32 = 18;
/// How long an exit may wait for the end of its run, to be told with it.
const HOLD: Span = Span(50_000);

impl AgentCore {
    /// Passes a signal on: at once, or as soon as the step has somebody who hears it. One with a number is passed on once.
    pub(super) fn signal(&mut self, run: RunKey, target: SignalTarget, signal: i32, number: Option<u64>) {
        if let Some(number) = number {
            let Some(entry) = self.runs.get_mut(&run).filter(|entry| entry.heard < number) else {
                return self.has_signalled(run, number);
            };
            entry.heard = number;
        }
        for key in self.steps_of(run) {
            let target = match target {
                SignalTarget::Step(step) if step == key.step => ProcessTarget::All,
                SignalTarget::Steps if key.step != StepId::Batch => ProcessTarget::All,
                SignalTarget::BatchShell if key.step == StepId::Batch => ProcessTarget::BatchShell,
                SignalTarget::All => ProcessTarget::All,
                _ => continue,
            };
            let Some(step) = self.steps.get_mut(&key).filter(|step| step.live()) else { continue };
            let held = Held { target, signal, number };
            if matches!(step.phase, StepPhase::Preparing(_)) {
                // Of each kind one, as of a process that has not come to take the first one.
                step.signals.retain(|before| (before.target, before.signal) != (target, signal));
                step.signals.push(held);
            } else {
                self.pass_on(key, held);
            }
        }
        if let Some(number) = number {
            self.has_signalled(run, number);
        }
    }

    fn pass_on(&mut self, key: StepKey, held: Held) {
        let Held { target, signal, number } = held;
        self.out.push(AgentEffect::SignalStep { key, target, signal, number });
    }

    /// A step has a supervisor, which hears what came before.
    pub(super) fn pass_on_held(&mut self, key: StepKey, signals: Vec<Held>) {
        for held in signals {
            self.pass_on(key, held);
            if let Some(number) = held.number {
                self.has_signalled(run_of(key), number);
            }
        }
    }

    /// Tells the controller that a signal was passed on, if no step holds it any more.
    fn has_signalled(&mut self, run: RunKey, number: u64) {
        let holds = |step: &Step| step.live() && step.signals.iter().any(|held| held.number == Some(number));
        if !self.steps.iter().any(|(key, step)| run_of(*key) == run && holds(step)) {
            let (job, attempt) = run;
            self.send(|session| FromAgent::Signalled { session, job, attempt, number });
        }
    }

    /// Ends a step: SIGCONT, SIGTERM, and SIGKILL after `kill_wait`. A second time can only hasten it.
    pub(super) fn terminate(
        &mut self,
        key: StepKey,
        kill_wait: Span,
        cause: EndCause,
        whole_job: bool,
        now: Time,
    ) {
        let Some(step) = self.steps.get_mut(&key) else { return };
        let kill_at = now + kill_wait;
        match step.phase {
            StepPhase::Exited(_) => return,
            StepPhase::Preparing(_) => {
                self.out.push(AgentEffect::CancelImage { key });
                if let Some(Run { prolog: Prolog::Failed(Unbegun { why, .. }), .. }) =
                    self.runs.get(&run_of(key))
                {
                    let status = ExitStatus { code: 1, signal: 0 };
                    return self.exited(key, made_up(status, Some(why.clone()), now), now);
                }
                step.ending = Some(Ending { cause: Some(cause), kill_at, killed: None });
                let status = ExitStatus { code: 0, signal: u8::try_from(SIGTERM).unwrap_or(SIGKILL) };
                return self.exited(key, made_up(status, None, now), now);
            }
            StepPhase::Starting | StepPhase::Running => {}
        }
        if let Some(ending) = &mut step.ending {
            ending.kill_at = ending.kill_at.min(kill_at);
            return;
        }
        step.ending = Some(Ending { cause: Some(cause), kill_at, killed: None });
        self.out.push(AgentEffect::Note { key, cause, whole_job });
        if kill_wait.0 > 0 {
            for signal in [SIGCONT, SIGTERM] {
                self.pass_on(key, Held { target: ProcessTarget::All, signal, number: None });
            }
        }
    }

    pub(super) fn end_job(&mut self, run_key: RunKey, kill_wait: Span, cause: EndCause, now: Time) {
        let Some(run) = self.runs.get_mut(&run_key) else {
            self.has_seen(Highest::default().with_run(run_key.0, run_key.1));
            self.over.add(run_key, None, now);
            return self.job_gone(run_key, Vec::new(), now);
        };
        run.ending = true;
        for key in self.steps_of(run_key) {
            self.terminate(key, kill_wait, cause, true, now);
        }
        self.remove_if_done(run_key, now);
    }

    pub(super) fn limit_reached(&mut self, key: StepKey, whole_job: bool, now: Time) {
        let Some(kill_wait) = self.steps.get(&key).map(|s| s.launch.kill_wait) else { return };
        self.terminate(key, kill_wait, EndCause::TimeLimit, whole_job, now);
    }

    /// A step does not end although it was killed long ago: for its job it is over.
    pub(super) fn abandon(&mut self, key: StepKey, now: Time) {
        self.out.push(AgentEffect::AbandonStep { key });
        let status = ExitStatus { code: 0, signal: SIGKILL };
        let seconds = self.config.unkillable.0 / 1_000_000;
        let left = format!(
            "processes of step {key} did not end within {seconds} s after SIGKILL: the step ended without them, and the node takes \
             nothing new until they are gone"
        );
        let why = match self.start_given_up(key) {
            Some(start) => format!("{start}; {left}"),
            None => left,
        };
        self.exited(key, made_up(status, Some(why), now), now);
    }

    /// A step is over here: told until the controller has written it down.
    pub(super) fn exited(&mut self, key: StepKey, mut exit: StepExit, now: Time) {
        let Some(step) = self.steps.get_mut(&key).filter(|s| s.live()) else { return };
        if exit.ended_by.is_none() {
            exit.ended_by = step.ending.and_then(|e| e.cause);
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
    pub(super) fn ends_run(&self, key: StepKey, drives: bool) -> bool {
        let others = self.steps.iter().any(|(k, s)| run_of(*k) == run_of(key) && *k != key && s.live());
        !others && self.runs.get(&run_of(key)).is_some_and(|run| (run.ending || drives) && !run.removing)
    }

    pub(super) fn recorded(&mut self, key: StepKey, now: Time) {
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

    pub(super) fn remove_if_done(&mut self, run_key: RunKey, now: Time) {
        if self.steps.iter().any(|(key, step)| run_of(*key) == run_key && step.live()) {
            return;
        }
        let Some(run) = self.runs.get_mut(&run_key).filter(|r| r.ending && !r.removing) else { return };
        run.removing = true;
        run.look = Some(now + self.config.unkillable);
        let (job, attempt) = run_key;
        self.out.push(AgentEffect::RemoveJob { job, attempt });
    }

    /// What keeps a run from being removed: told at once when it is news.
    pub(super) fn left(&mut self, run_key: RunKey, processes: Option<String>, now: Time) {
        let Some(run) = self.runs.get_mut(&run_key).filter(|run| run.removing) else { return };
        if run.left != processes {
            run.left = processes;
            self.heartbeat(now);
        }
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
