//! What the agent remembers of runs and steps.

use crate::event::{ProcessTarget, StepTimers};
use berth_model::ids::{Attempt, JobId, StepId};
use berth_model::launch::{ImagePull, StepExit, StepLaunch, StepPhase, Usage};
use berth_model::link::{EndCause, GpuFault};
use berth_model::spec::WarnSignal;
use berth_model::state::ExitStatus;
use berth_model::time::{Span, Time};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// One run of a job.
pub(crate) type RunKey = (JobId, Attempt);

/// A run of a job that has something on the node.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// The run is over here: nothing starts any more.
    pub(crate) ending: bool,
    /// `RemoveJob` was given out.
    pub(crate) removing: bool,
    /// When it is looked what keeps it from being removed.
    pub(crate) look: Option<Time>,
    /// Processes that do, although they were killed.
    pub(crate) left: Option<String>,
    /// End of the time limit.
    pub(crate) limit: Option<Time>,
    /// Whether the limit was acted on.
    pub(crate) limit_done: bool,
    /// The warning before the limit, until it was sent.
    pub(crate) warn: Option<(Time, WarnSignal)>,
    /// The program that runs before anything of it, and whether it may begin.
    pub(crate) prolog: Prolog,
    /// Until when it goes on without another renewal; absent: for ever, or not known.
    pub(crate) lease: Option<Time>,
    /// When logins of its user are ended, if it is not renewed.
    pub(crate) evict: Option<Time>,
    /// Steps whose exits are recorded: a Start that comes late must not run them again.
    pub(crate) finished: BTreeSet<StepId>,
    /// The highest number of a signal to it that was heard.
    pub(crate) heard: u64,
}

impl Run {
    /// It is renewed; until when, where that is later than before.
    pub(crate) fn goes_on(&mut self, until: Option<Time>) -> Option<Time> {
        let until = until.filter(|until| self.lease.is_none_or(|before| before < *until))?;
        self.lease = Some(until);
        self.evict = Some(until);
        Some(until)
    }
}

/// How far the program is that runs before anything of a run does.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) enum Prolog {
    /// Not begun.
    #[default]
    Ahead,
    /// It runs.
    Runs,
    /// It ended well, or there is none.
    Done,
    /// It failed, or the run's GPUs do not work any more: nothing of the run starts.
    Failed(Unbegun),
}

/// Why nothing of a run starts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unbegun {
    pub(crate) why: String,
    /// GPUs that do not work any more.
    pub(crate) faults: Vec<GpuFault>,
    /// When the controller is told again.
    pub(crate) again: Time,
}

/// How far a wish for a reboot is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reboot {
    /// It waits until nothing of a job is left.
    Wanted,
    /// The program runs.
    Runs,
    /// The program ended, or failed with this.
    Ended(Option<String>),
}

/// A step.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) launch: Box<StepLaunch>,
    pub(crate) timers: StepTimers,
    pub(crate) phase: StepPhase,
    /// When its Start came.
    pub(crate) since: Time,
    /// What its image took, once that is known.
    pub(crate) pull: Option<ImagePull>,
    /// Its image is there: it waits for the prolog alone.
    pub(crate) ready: bool,
    /// Whether the spool has an entry of it.
    pub(crate) spooled: bool,
    /// When its supervisor was given out or found: from then on its start has its time.
    pub(crate) begun: Time,
    /// What kept its start, as the node saw it when that was given up.
    pub(crate) waits: Option<String>,
    /// Whether the time in its timers is when it ends without a renewal: an earlier agent may have had renewed it.
    pub(crate) lease_known: bool,
    pub(crate) ending: Option<Ending>,
    /// When an exit that was not acknowledged is told again.
    pub(crate) repeat: Option<Time>,
    /// Whether the phase changed since the controller was last told.
    pub(crate) news: bool,
    /// When the phase of a step that lives is told.
    pub(crate) tell: Option<Time>,
    /// What came before its tasks could hear it.
    pub(crate) signals: Vec<Held>,
}

/// A signal to a step that has no supervisor yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) target: ProcessTarget,
    pub(crate) signal: i32,
    pub(crate) number: Option<u64>,
}

/// A step that is being ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    /// Who or what ends it; `None`: nobody, but its start came to no end.
    pub(crate) cause: Option<EndCause>,
    /// When everything of it is killed.
    pub(crate) kill_at: Time,
    /// When that was done first.
    pub(crate) killed: Option<Time>,
}

impl Step {
    pub(crate) fn live(&self) -> bool {
        !matches!(self.phase, StepPhase::Exited(_))
    }

    /// When its supervisor, which ends it out of touch, is not waited for any more: that may be stopped.
    pub(crate) fn overdue(&self) -> Option<Time> {
        let until = self.timers.lease.filter(|_| self.spooled && self.lease_known && self.live())?;
        let kills = self.ending.is_some_and(|e| e.killed.is_some() || e.kill_at <= until + OVERDUE);
        (!kills).then_some(until + OVERDUE)
    }
}

/// A supervisor is left this long to end a step that is out of touch. The controller waits for longer.
const OVERDUE: Span = Span(1_000_000);

/// An exit that no supervisor wrote.
pub(crate) fn made_up(status: ExitStatus, launch_error: Option<String>, now: Time) -> StepExit {
    StepExit {
        status,
        tasks: Vec::new(),
        oom: false,
        launch_error,
        ended_by: None,
        image: None,
        usage: Usage::default(),
        ended: now,
    }
}

/// Runs that are over on this node: a Start of theirs that was under way must do nothing.
#[derive(Debug, Default)]
pub(crate) struct Over {
    /// With what their epilogs failed of: the answer may be lost and asked for again.
    known: BTreeMap<RunKey, Option<String>>,
    order: VecDeque<(RunKey, Time)>,
    /// When those were over of which nothing is known any more: none of them later.
    forgotten: Option<Time>,
}

impl Over {
    /// How many are remembered: far more than can be under way on one connection.
    const MOST: usize = 10_000;

    pub(crate) fn add(&mut self, run: RunKey, epilog: Option<String>, now: Time) {
        // What is known of one stays: its end may be asked for again.
        if let Entry::Vacant(free) = self.known.entry(run) {
            free.insert(epilog);
            self.order.push_back((run, now));
        }
        if self.order.len() > Self::MOST
            && let Some((oldest, when)) = self.order.pop_front()
        {
            self.known.remove(&oldest);
            self.forgotten = self.forgotten.max(Some(when));
        }
    }

    /// Whether runs may have been forgotten that began before this time.
    pub(crate) fn forgot_since(&self, time: Time) -> bool {
        self.forgotten.is_some_and(|when| when >= time)
    }

    pub(crate) fn has(&self, run: RunKey) -> bool {
        self.known.contains_key(&run)
    }

    pub(crate) fn epilog(&self, run: RunKey) -> Option<String> {
        self.known.get(&run).cloned().flatten()
    }
}
