//! How a step ends: of itself, since a task says so, or from outside; and what is on record of it then.

use super::beginning::LaunchFailure;
use super::hooks::Hooks;
use super::{CLIENT_COMES, Step, duration};
use crate::supervisor::processes::{self, Processes};
use berth_model::launch::{StepExit, StepPhase, Usage};
use berth_model::state::ExitStatus;
use berth_model::time::{Span, Time};
use berth_stream::Frame;
use std::io;
use std::time::{Duration, Instant, SystemTime};

impl Step {
    pub(super) fn task_ended(&mut self, index: usize, status: ExitStatus) {
        let Some((task, slot)) = self.tasks.get_mut(index) else { return };
        let task = *task;
        *slot = Some(status);
        // What it said last comes first: the exit that follows on an abort is no news.
        let ending = self.deadlines.ending();
        let mut events = self.pmi.as_mut().map(|pmi| pmi.exited(index)).unwrap_or_default();
        if let Some(pmix) = self.pmix.as_mut().filter(|_| !ending) {
            events.extend(pmix.exited(index, status));
        }
        self.act_on_pmi(events);
        self.streams.tell_all(&Frame::TaskExit { task, status });
        let now = Instant::now();
        if self.launch().kill_on_bad_exit && !status.success() && !self.deadlines.ending() {
            // Of several nodes each would say it, also of tasks that end because others did: there it is for srun to say, which hears all.
            if self.launch().layout.nodes.len() < 2 {
                self.say(&format!("Terminating the step: task {task} exited with {}", status.shell_code()));
            }
            self.terminate(self.launch().kill_wait);
        }
        if let Some(wait) = self.launch().wait_after_first_exit
            && self.tasks.iter().any(|(_, status)| status.is_none())
        {
            self.deadlines.end_in(now, duration(wait));
        }
    }

    /// A task ended the whole step: its exit code is this one, however the others end now.
    pub(super) fn abort(&mut self, code: u8) {
        self.aborted.get_or_insert(code);
        self.terminate(self.launch().kill_wait);
    }

    /// Nothing was heard of the controller for as long as the step may go on: it may count as lost now, and run elsewhere.
    pub(super) fn out_of_touch(&mut self) -> io::Result<()> {
        let Some(lease) = self.lease.as_mut().filter(|lease| lease.is_due()) else { return Ok(()) };
        lease.end();
        if self.exited().is_some() {
            return Ok(());
        }
        // Again and again, until nothing is left. First of all: where words go to may hang.
        self.deadlines.kill_in(Instant::now(), Duration::ZERO);
        self.kill()?;
        self.say("nothing was heard of the controller for too long (lost_after_seconds, --lost-after): the step is ended");
        Ok(())
    }

    pub(super) fn signal(&mut self, signal: i32, leaders_only: bool) {
        if processes::ends(signal) && self.give_up_hooks() {
            return;
        }
        if let Some(processes) = &mut self.processes {
            processes.signal(signal, leaders_only);
        } else if self.hooks_begin() {
            self.signals.push((signal, leaders_only));
        }
    }

    pub(super) fn terminate(&mut self, kill_wait: Span) {
        if self.give_up_hooks() || self.processes.is_none() {
            return;
        }
        let first = !self.deadlines.ending();
        self.deadlines.kill_in(Instant::now(), duration(kill_wait));
        if first {
            self.signal(nix::libc::SIGCONT, false);
            self.signal(nix::libc::SIGTERM, false);
        }
        let events = self.processes.as_mut().map(Processes::give_up_saving).unwrap_or_default();
        if let Err(e) = self.act_on(events) {
            crate::log::say(&format!("{}: {e}", self.launch().key));
        }
    }

    pub(super) fn kill(&mut self) -> io::Result<()> {
        if self.exited().is_some() {
            // It is its client's time that is over.
            self.streams.nobody_returns();
            return Ok(());
        }
        if self.give_up_hooks() {
            return Ok(());
        }
        if let Hooks::Clearing { since, .. } = self.hooks {
            let left = duration(self.launch().kill_wait).saturating_sub(since.elapsed());
            self.hooks = Hooks::Clearing { since, given_up: left.is_zero() };
            self.deadlines.kill_in(Instant::now(), left);
        }
        match self.processes.as_mut().map(Processes::kill) {
            Some(events) => self.act_on(events),
            None => Ok(()),
        }
    }

    /// The last process is gone, or none could be started.
    pub(super) fn end(&mut self, failure: Option<LaunchFailure>, usage: Usage, oom: bool) -> io::Result<()> {
        self.streams.run();
        // Nobody is left who could come, and its port is free when the step is known to be over.
        self.display = None;
        let mut tasks: Vec<(u32, ExitStatus)> = Vec::new();
        if let Some(failure) = &failure {
            self.say_failure(&failure.text);
            tasks.extend(self.tasks.iter().map(|(task, _)| (*task, failure.status)));
        } else {
            // A task without a status went with the container's init: killed.
            let killed = ExitStatus { code: 0, signal: 9 };
            tasks.extend(self.tasks.iter().map(|(task, status)| (*task, status.unwrap_or(killed))));
        }
        let worst = tasks.iter().map(|(_, s)| *s).max_by_key(|s| s.shell_code()).unwrap_or(ExitStatus::OK);
        // A step that could not do all that it was asked for did not succeed.
        let worst = match (worst.success(), &self.launch_error) {
            (true, Some(_)) => ExitStatus { code: 1, signal: 0 },
            _ => worst,
        };
        let worst = match self.aborted {
            Some(code) => ExitStatus { code, signal: 0 },
            None => worst,
        };
        let status = failure.as_ref().map_or(worst, |f| f.status);
        let launch_error = failure.map(|f| f.text).or(self.launch_error.take());
        let exit = StepExit {
            status,
            tasks,
            oom,
            launch_error,
            ended_by: self
                .lease
                .as_ref()
                .filter(|lease| lease.over())
                .map(|_| berth_model::link::EndCause::OutOfTouch),
            image: None,
            usage,
            ended: wall_clock(),
        };
        self.state.phase = StepPhase::Exited(exit);
        self.publish()?;
        if self.launch().attached && !self.streams.attached() {
            self.deadlines.client_in(Instant::now(), CLIENT_COMES);
        }
        Ok(())
    }

    pub(super) fn exited(&self) -> Option<&StepExit> {
        match &self.state.phase {
            StepPhase::Exited(exit) => Some(exit),
            _ => None,
        }
    }

    /// Whether nothing is left to be done for anyone.
    pub(super) fn finished(&self) -> bool {
        if self.exited().is_none() {
            return false;
        }
        if !self.streams.watchers_gone() {
            return false;
        }
        if self.streams.attached() || self.streams.unheard() {
            // The client closes when it has read the exit; its end is heard as an event.
            return false;
        }
        self.streams.ended() || !self.launch().attached || !self.streams.expects_client()
    }
}

fn wall_clock() -> Time {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Time(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
