//! The container's hooks beside all else that a step does: they run while its turns go on, and may be given up.

use super::Step;
use crate::supervisor::processes::Processes;
use berth_runtime::hooks::{Attend, Attended, ContainerHooks};
use rustix::fd::BorrowedFd;
use std::io;
use std::time::Instant;

/// Whose hooks run just now, if any do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hooks {
    Idle,
    /// Of a container that is made or has just begun: who ends the step ends them.
    Beginning {
        /// The step was ended.
        given_up: bool,
    },
    /// Of one that is gone. They clear up for the node, and are ended only with a step that does not end otherwise.
    Clearing {
        /// When the one that runs was started, or the first.
        since: Instant,
        /// It is to be ended.
        given_up: bool,
    },
}

impl Step {
    /// Runs the hooks that come when all tasks were started.
    pub(super) fn run_poststart(&mut self) -> io::Result<()> {
        let hooks = self.processes.as_ref().and_then(Processes::hooks);
        let Some((hooks, init)) = hooks.map(|(hooks, init)| (hooks.clone(), init)) else { return Ok(()) };
        self.hooks = Hooks::Beginning { given_up: false };
        let ran = hooks.started(init, self);
        self.hooks = Hooks::Idle;
        let Err(failed) = ran else { return Ok(()) };
        // As the specification has it since 1.3: an error, and the container is stopped.
        let why = failed.to_string();
        if failed.given_up {
            self.say(&why);
        } else {
            self.say_failure(&why);
            self.launch_error.get_or_insert(why);
        }
        self.kill()
    }

    /// Runs the hooks that come when the container is gone. That one fails is a warning, by the specification: the
    /// container did what it was to do.
    pub(super) fn clear_up(&mut self, hooks: Option<ContainerHooks>) {
        let Some(hooks) = hooks else { return };
        self.hooks = Hooks::Clearing { since: Instant::now(), given_up: false };
        let failed = hooks.stopped(self);
        self.hooks = Hooks::Idle;
        for failed in failed {
            self.say(&failed.to_string());
        }
    }

    pub(super) fn hooks_begin(&self) -> bool {
        matches!(self.hooks, Hooks::Beginning { .. })
    }

    /// The step is ended from outside: with the hooks with which it begins, if those run. Whether they do.
    pub(super) fn give_up_hooks(&mut self) -> bool {
        if self.hooks_begin() {
            self.hooks = Hooks::Beginning { given_up: true };
        }
        self.hooks_begin()
    }
}

impl Attend for Step {
    fn wait(&mut self, fds: &[BorrowedFd<'_>], until: Option<Instant>) -> io::Result<Attended> {
        self.turn(fds, until)?;
        Ok(match self.hooks {
            Hooks::Beginning { given_up: true } => Attended::GivenUp,
            Hooks::Clearing { given_up: true, .. } => {
                // The next has the same time.
                self.hooks = Hooks::Clearing { since: Instant::now(), given_up: false };
                Attended::GivenUp
            }
            _ => Attended::On,
        })
    }
}
