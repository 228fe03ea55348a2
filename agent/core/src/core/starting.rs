//! Starts that come to no end: a supervisor, or the container's first process, that waits for a filesystem which does not answer. Nobody
//! else would end them: the agent is well, and so is its node.

use super::AgentCore;
use crate::state::{Ending, Step};
use berth_model::ids::StepKey;
use berth_model::launch::{StepExit, StepPhase};
use berth_model::time::{Span, Time};

/// An agent that comes so much too late stood still itself, and the start with it: as in a machine that slept.
const LATE: Span = Span::from_secs(5);

impl AgentCore {
    /// How long the start of a step may take: with what its user has run before each task, and what its client runs before all of
    /// them, which have seconds of their own.
    fn start_limit_of(&self, step: &Step) -> Option<Span> {
        let prolog = if step.launch.task_prolog.is_empty() { Span(0) } else { self.task_prolog };
        let told = step.launch.told_within.unwrap_or_default();
        self.start_limit.map(|limit| Span(limit.0.saturating_add(prolog.0).saturating_add(told.0)))
    }

    /// When the start of a step is not waited for any more. Its image and its run's prolog have come before that counts.
    pub(super) fn start_ends(&self, step: &Step) -> Option<Time> {
        let waits = step.phase == StepPhase::Starting && step.ending.is_none();
        self.start_limit_of(step).filter(|_| waits).map(|limit| step.begun + limit)
    }

    /// Has a step killed whose start takes too long.
    pub(super) fn give_up_start(&mut self, key: StepKey, now: Time) {
        let due = self.steps.get(&key).and_then(|step| self.start_ends(step)).filter(|due| *due <= now);
        let (Some(due), Some(step)) = (due, self.steps.get_mut(&key)) else { return };
        if due + LATE < now {
            step.begun = now;
        } else {
            step.ending = Some(Ending { cause: None, kill_at: now, killed: None });
        }
    }

    /// Why a step was killed whose start came to no end; `None` of any other.
    pub(super) fn start_given_up(&self, key: StepKey) -> Option<String> {
        let step = self.steps.get(&key)?;
        step.ending.filter(|ending| ending.cause.is_none())?;
        let seconds = self.start_limit_of(step).unwrap_or_default().secs();
        let waits = match &step.waits {
            Some(what) => format!("it waited for this: {what}"),
            None => format!(
                "what it waited for is not known: see the node's log, and whether its working directory {}, what it mounts and the \
                 files of its streams answer there",
                step.launch.work_dir.display()
            ),
        };
        Some(format!(
            "step {key} did not start within {seconds} s (start_timeout_seconds) and was given up; {waits}"
        ))
    }

    /// A supervisor left an exit, or went without one. What it says of a start that was given up is what came of that.
    pub(super) fn supervisor_ended(&mut self, key: StepKey, mut exit: StepExit, now: Time) {
        if exit.ended_by.is_none()
            && let Some(why) = self.start_given_up(key)
        {
            exit.launch_error = Some(why);
        }
        self.exited(key, exit, now);
    }
}
