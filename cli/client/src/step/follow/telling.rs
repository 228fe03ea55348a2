//! What is told of a step: how its tasks are, how they ended, and why one could not begin; and the exit code that this makes.

use super::{FIRST_WORD, Follower, Records, SIGKILL, Voice, libc_signal};
use crate::error::Failure;
use crate::out;
use crate::step::exits;
use berth_model::launch::StepExit;
use berth_model::record::{JobInfo, StepInfo};
use berth_model::state::{ExitStatus, JobState};
use std::time::Duration;
use tokio::signal::unix::SignalKind;

impl Follower {
    /// How the tasks are.
    pub(super) fn report(&self) {
        let all: Vec<u32> = self.nodes.layout().tasks.iter().flatten().copied().collect();
        let (mut ended, mut alive): (Vec<u32>, Vec<u32>) =
            all.iter().partition(|t| self.exits.contains_key(t));
        ended.sort_unstable();
        alive.sort_unstable();
        let (running, starting) = alive.into_iter().partition(|t| self.nodes.running(*t));
        for (tasks, what) in [(starting, "starting"), (running, "running"), (ended, "exited")] {
            if !tasks.is_empty() {
                out::complain(&format!(
                    "srun: StepId={} {}: {what}",
                    self.step.key,
                    exits::tasks_text(&tasks)
                ));
            }
        }
    }

    /// Prints the lines of tasks that failed and were not yet told about.
    pub(super) fn tell(&mut self, oom: bool) {
        self.gather = None;
        let fresh: Vec<(u32, ExitStatus)> =
            self.exits.iter().filter(|(t, _)| !self.told.contains_key(t)).map(|(t, s)| (*t, *s)).collect();
        self.told.extend(fresh.iter().copied());
        if self.step.voice == Voice::Exec {
            return;
        }
        // A copy that fails says why; one that is killed cannot.
        let say = |status: ExitStatus| self.step.voice == Voice::Srun || status.signal != 0;
        let fresh: Vec<(u32, ExitStatus)> = fresh.into_iter().filter(|(_, status)| say(*status)).collect();
        let name = self.step.voice.name();
        for line in exits::lines(self.nodes.layout(), &fresh) {
            let line = match line.strip_suffix(": Killed") {
                Some(start) if oom => format!("{start}: Out Of Memory"),
                _ => line,
            };
            out::complain(&format!("{name}: error: {line}"));
        }
    }

    /// Why the step could not be started.
    pub(super) fn complain_of_launch(&self, at: usize, why: &str) {
        let node = self.nodes.name(at);
        for line in why.lines() {
            match self.step.voice {
                Voice::Srun | Voice::Sbcast => {
                    out::complain(&format!("{}: error: {node}: {line}", self.step.voice.name()));
                }
                Voice::Exec => out::complain(&format!("berth: error: {line}")),
            }
        }
    }

    /// The step's last words and the exit code.
    pub(super) fn finish(&mut self) -> u8 {
        let ends: Vec<(usize, StepExit)> = self.nodes.ends().map(|(at, exit)| (at, exit.clone())).collect();
        let name = self.step.voice.name();
        let failed: Vec<(usize, &str)> =
            ends.iter().filter_map(|(at, exit)| Some((*at, exit.launch_error.as_deref()?))).collect();
        let oom = ends.iter().find(|(_, exit)| exit.oom).map(|(at, _)| *at);
        if failed.is_empty() {
            self.tell(oom.is_some());
            let ended_by = |signal| self.exits.values().any(|s| i32::from(s.signal) == signal);
            // Somebody ended it, and it was neither we nor a cancellation, which has its own line.
            if self.deadline.is_none()
                && self.aborted.is_none()
                && self.step.voice == Voice::Srun
                && oom.is_none()
                && !self.heard.contains(" CANCELLED AT ")
                && (ended_by(SIGKILL) || ended_by(libc_signal(SignalKind::terminate())))
            {
                out::complain(&format!("srun: Force Terminated StepId={}", self.step.key));
            }
        }
        for (at, why) in &failed {
            if !self.heard.contains(why.trim()) {
                self.complain_of_launch(*at, why);
            }
        }
        let statuses = self.exits.values().copied().chain(ends.iter().map(|(_, exit)| exit.status));
        if !failed.is_empty() {
            // What they ended on the other nodes, by a signal, says nothing.
            let theirs = ends.iter().filter(|(_, exit)| exit.launch_error.is_some());
            let known = statuses.filter(|status| status.signal == 0);
            return exits::code(theirs.map(|(_, exit)| exit.status).chain(known)).max(1);
        }
        let code = exits::code(statuses);
        if let Some(code) = self.aborted {
            return code;
        }
        if code == 0
            && let Some(at) = oom
        {
            // A task may have gone on without the process that was killed: the step did not do its work.
            let node = self.nodes.name(at);
            out::complain(&format!("{name}: error: {node}: StepId={}: Out Of Memory", self.step.key));
        }
        if code == 0 && oom.is_some() { 1 } else { code }
    }

    pub(super) fn record<'a>(&self, job: &'a JobInfo) -> Option<&'a StepInfo> {
        job.steps.iter().find(|s| s.id == self.step.key.step && s.attempt == self.step.key.attempt)
    }

    pub(super) fn is_over(&self, records: &Records) -> bool {
        let record = records.borrow();
        let Some(job) = record.as_ref() else { return false };
        match self.record(job) {
            Some(step) => step.ended.is_some(),
            None => job.state.is_terminal() || job.attempt != self.step.key.attempt,
        }
    }

    /// How long nodes that cannot be reached just now are waited for when the step is over: they have something to tell.
    pub(super) fn last_words(&self, records: &Records) -> Duration {
        let missed = !self.nodes.never_met().is_empty() || !self.nodes.lost().is_empty();
        let record = records.borrow();
        let lost = record.as_ref().is_some_and(|job| {
            job.state == JobState::NodeFail || self.record(job).is_some_and(|s| s.state == JobState::NodeFail)
        });
        if missed && !lost && !self.failed_to_start(records) { FIRST_WORD } else { Duration::ZERO }
    }

    /// What the record says why the step could not be started is all that there is to hear.
    pub(super) fn failed_to_start(&self, records: &Records) -> bool {
        let record = records.borrow();
        let step = record.as_ref().and_then(|job| self.record(job));
        step.is_some_and(|step| step.message.is_some())
    }

    /// The exit code by the controller's record, once it knows the step's end; waits for it when the connection was
    /// refused.
    pub(super) async fn recorded_code(
        &mut self,
        records: &mut Records,
        refused: Option<String>,
    ) -> Result<Option<u8>, Failure> {
        if refused.is_some() {
            let until = tokio::time::Instant::now() + Duration::from_secs(3);
            while !self.is_over(records) {
                match tokio::time::timeout_at(until, records.changed()).await {
                    Ok(Ok(())) => {}
                    _ => break,
                }
            }
        }
        if !self.is_over(records) {
            return match refused {
                Some(why) => Err(Failure::user(format!("StepId={}: {why}", self.step.key))),
                None => Ok(None),
            };
        }
        self.tell(false);
        let name = self.step.voice.name();
        let record = records.borrow().clone();
        let Some(job) = record else { return Ok(None) };
        let Some(step) = self.record(&job) else {
            out::complain(&format!(
                "{name}: error: StepId={} did not start: {}",
                self.step.key,
                crate::fmt::job::reason(&job)
            ));
            return Ok(Some(1));
        };
        if let (Some(why), None) = (&refused, &step.message) {
            out::complain(&format!(
                "{name}: warning: StepId={} is over, and not all that it wrote is seen here: {why}",
                self.step.key
            ));
        }
        match &step.message {
            // Of several nodes the record says itself which it was.
            Some(why) if self.nodes.layout().nodes.len() > 1 => {
                out::complain(&format!("{name}: error: {why}"))
            }
            Some(why) => self.complain_of_launch(0, why),
            None if step.state == JobState::Completed => {}
            None => out::complain(&format!("{name}: error: StepId={} {}", self.step.key, step.state.name())),
        }
        let code = exits::code(self.exits.values().copied().chain([step.exit]));
        Ok(Some(if code == 0 && step.state != JobState::Completed { 1 } else { code }))
    }
}
