//! Steps of cluster time on the word of the wall clock alone: a controller that starts in another boot of its machine knows nothing else.
//!
//! The machine may have been off for so long, or its clock may be wrong. The clocks of other machines tell, when their nodes come; they say that it was right, and no more is
//! done on their word than to keep records as ever. Nothing of a run ends by that: agents count time limits on their own clocks, and end
//! what has had its time. Here a limit counts as reached once it would be without the step, too, for what nobody else ends, as an allocation without a step.

use super::Cluster;
use crate::rows::{Leap, Phase};
use berth_model::ids::NodeName;
use berth_model::time::{Span, Time};
use std::collections::BTreeMap;

/// What is less changes nothing.
const LEAST: Span = Span::from_secs(1);
/// From when on it is entered into the log.
const MUCH: Span = Span::from_mins(60);
/// For how long records are kept as if the step had not been: a clock that is wrong is found and set right by then.
const DOUBT: Span = Span::from_mins(24 * 60);
/// Clocks of two machines that show the same time are no further apart. What is less than twice as much no clock can tell.
const SAME: Span = Span::from_mins(5);

/// What the clocks of nodes say, as far as they have come since the controller began.
#[derive(Default)]
pub(super) struct Clocks {
    /// The boot of the controller's own machine: what has that, too, has the clock that is in doubt.
    boot: String,
    /// Which of the others agree with cluster time.
    agree: BTreeMap<NodeName, bool>,
}

impl Leap {
    /// Whether it may have been wrong, as far as is known.
    fn is_doubted(&self, now: Time) -> bool {
        !self.sure && now < self.at + DOUBT
    }
}

/// By how much time went on by such steps since something began.
pub(crate) fn leapt_since(leaps: &[Leap], began: Time) -> Span {
    Span(leaps.iter().filter(|leap| began < leap.at).map(|leap| leap.by.0).sum())
}

impl Cluster {
    /// A controller has started at this time, and by so much time went on with that, in this boot of its machine. To be told after [`Cluster::restore`]; told again, it changes nothing.
    pub fn has_leapt(&mut self, leap: Leap, boot: &str) {
        self.clocks.boot = boot.to_string();
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

    /// A node has introduced itself, and says when it booted and what its clock since then shows: what time it is there. Where enough machines agree
    /// with cluster time, the steps that brought it there were right: of one other machine its word is enough, of several that of two, and of more than half of those that
    /// have come.
    pub(super) fn compare_clock(&mut self, name: &NodeName, boot: &str, booted: Time, since: Time) {
        let (now, clocks) = (self.clock, &mut self.clocks);
        let judged = |leap: &Leap| leap.is_doubted(now) && leap.by.0 > 2 * SAME.0;
        // An agent of an earlier version does not say it, and without a boot nobody knows which machine is which.
        let another = !boot.is_empty() && !clocks.boot.is_empty() && boot != clocks.boot;
        if !another || since == Time::default() || !self.leaps.iter().any(judged) {
            return;
        }
        let shows = booted + Span(since.0);
        let agrees = shows.since(now) < SAME && now.since(shows) < SAME;
        clocks.agree.retain(|known, _| self.nodes.contains_key(known));
        clocks.agree.insert(name.clone(), agrees);
        let agree = clocks.agree.values().filter(|agrees| **agrees).count();
        let others = self.nodes.values().filter(|node| node.row.boot_id != clocks.boot).count();
        if agree < others.clamp(1, 2) || 2 * agree <= clocks.agree.len() {
            return;
        }
        self.believe_clock(&format!("the clocks of {agree} other machines show the same time"));
    }

    /// Something says that cluster time is right, and that it was right to go on as far as it did.
    pub fn believe_clock(&mut self, why: &str) {
        let (now, mut by) = (self.clock, Span(0));
        for leap in self.leaps.iter_mut().filter(|leap| leap.is_doubted(now)) {
            leap.sure = true;
            by = Span(by.0.saturating_add(leap.by.0));
        }
        if by < LEAST {
            return;
        }
        self.clocks.agree.clear();
        self.out.meta = true;
        if by >= MUCH {
            self.note_own(format!(
                "began at the time of its machine's clock {} minutes ahead of the last one on record, and that was right: {why}",
                by.secs() / 60
            ));
        }
    }

    /// How much of cluster time went on by such steps of which it is not known yet whether they were right.
    pub fn in_doubt(&self) -> Span {
        let young = self.leaps.iter().filter(|leap| leap.is_doubted(self.clock));
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
