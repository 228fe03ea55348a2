//! Steps of cluster time on the word of the wall clock alone: a controller that starts in another boot of its machine knows nothing else.
//!
//! The machine may have been off for so long, or its clock may be wrong. Nothing of a run ends by that: agents count time limits on their own clocks, and end
//! what has had its time. Here a limit counts as reached once it would be without the step, too, for what nobody else ends, as an allocation without a step.

use super::Cluster;
use crate::rows::{Leap, Phase};
use berth_model::time::{Span, Time};

/// What is less changes nothing.
const LEAST: Span = Span::from_secs(1);
/// From when on it is entered into the log.
const MUCH: Span = Span::from_mins(60);
/// For how long records are kept as if the step had not been: a clock that is wrong is found and set right by then.
const DOUBT: Span = Span::from_mins(24 * 60);

/// By how much time went on by such steps since something began.
pub(crate) fn leapt_since(leaps: &[Leap], began: Time) -> Span {
    Span(leaps.iter().filter(|leap| began < leap.at).map(|leap| leap.by.0).sum())
}

impl Cluster {
    /// A controller has started at this time, and by so much time went on with that. To be told after [`Cluster::restore`]; told again, it changes nothing.
    pub fn has_leapt(&mut self, leap: Leap) {
        let over = leap.at + DOUBT <= self.clock;
        if leap.by < LEAST || over || self.leaps.iter().any(|known| known.at == leap.at) {
            return;
        }
        self.leaps.push(leap);
        self.out.meta = true;
        if leap.by >= MUCH {
            self.note_own(format!(
                "began at the time of its machine's clock, which was {} minutes ahead of the last one on record: limits of what ran go by the nodes' clocks",
                leap.by.secs() / 60
            ));
        }
    }

    /// How much of cluster time went on by such steps of which it is not known yet whether they were right.
    pub fn in_doubt(&self) -> Span {
        let young = self.leaps.iter().filter(|leap| self.clock < leap.at + DOUBT);
        Span(young.map(|leap| leap.by.0).sum())
    }

    /// Has the next outcome write down what time it is, whatever else it does.
    pub fn note_time(&mut self) {
        self.out.meta = true;
    }

    /// By how much time went on by such steps since something began.
    pub(super) fn leapt_since(&self, began: Time) -> Span {
        leapt_since(&self.leaps, began)
    }

    /// After a start: what is in doubt no more, and what no run has a limit from before, is over.
    pub(super) fn forget_leaps(&mut self) {
        let runs = self.jobs.values().filter_map(|job| match &job.row.phase {
            Phase::Running(run) if run.limit.is_some() => Some(run.started),
            _ => None,
        });
        let (first, now) = (runs.min(), self.clock);
        self.leaps.retain(|leap| now < leap.at + DOUBT || first.is_some_and(|first| first < leap.at));
    }
}
