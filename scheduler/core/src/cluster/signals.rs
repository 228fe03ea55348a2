//! Signals to steps (`scancel -s`): each is owed to its node until the agent has passed it on, so that one whose connection is gone hears it
//! when it is back, and none hears it twice. What is owed is not stored: a controller that starts anew owes nothing.

use super::Cluster;
use crate::rows::{Phase, StepRow};
use berth_model::feature::SIGNALLED;
use berth_model::ids::{Attempt, JobId, NodeName, StepKey};
use berth_model::link::{SignalTarget, ToAgent};
use std::collections::{BTreeMap, BTreeSet};

/// Of a number, those that are the clock's, in milliseconds: until the year 2109. The others are the term's.
const CLOCK_BITS: u32 = 42;

/// A signal that a node has not passed on, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owed {
    /// Later ones have higher numbers, whichever core gives them out.
    number: u64,
    target: SignalTarget,
    signal: i32,
}

/// What is owed, by run and node.
pub(super) type Owing = BTreeMap<(JobId, Attempt), BTreeMap<NodeName, Vec<Owed>>>;

impl Cluster {
    /// Sends a signal to what a run has on these nodes, and adds to `later` those whose agents are not connected: they are told when they
    /// are back.
    pub(super) fn signal(
        &mut self,
        (job, attempt): (JobId, Attempt),
        nodes: Vec<NodeName>,
        target: SignalTarget,
        signal: i32,
        later: &mut BTreeSet<NodeName>,
    ) {
        // What is not there yet cannot be signalled, and what is carried may come behind this.
        let Some(record) = self.job(job) else { return };
        let steps: Vec<StepKey> = record.steps.values().map(|row| row.key).collect();
        for key in steps {
            self.send_what_is_unconfirmed(key);
        }
        let number = self.next_signal();
        let owed = Owed { number, target, signal };
        for node in nodes {
            let linked = self.nodes.get(&node).is_some_and(|n| n.link.is_some());
            if !linked {
                if !self.has_to_hear(&node, (job, attempt), target) {
                    continue;
                }
                later.insert(node.clone());
            }
            // One of an earlier version does not say what it has passed on: what was sent to it is not sent again.
            if !linked || self.says_what_was_signalled(&node) {
                let list = self.owing.entry((job, attempt)).or_default().entry(node.clone()).or_default();
                // As a process has it that has not come to take the first one: of each kind it has one.
                list.retain(|before| (before.target, before.signal) != (target, signal));
                list.push(owed);
            }
            self.send_owed(&node, (job, attempt), owed);
        }
    }

    /// The number of the last signal, for a core that takes the place of this one within its term.
    pub fn last_signal(&self) -> u64 {
        self.last_signal
    }

    /// Signals have higher numbers than this one, which the core had given out that was here before. To be told after [`Cluster::restore`].
    pub fn signals_above(&mut self, last: u64) {
        self.last_signal = self.last_signal.max(last);
    }

    /// A higher number than any that was given out. Where many are in a moment they run ahead of the clock.
    fn next_signal(&mut self) -> u64 {
        let millis = u64::try_from(self.clock.0 / 1000).unwrap_or_default() & ((1 << CLOCK_BITS) - 1);
        let number = ((self.term.0 << CLOCK_BITS) | millis).max(self.last_signal + 1);
        self.last_signal = number;
        number
    }

    fn send_owed(&mut self, node: &NodeName, (job, attempt): (JobId, Attempt), owed: Owed) {
        let Owed { number, target, signal } = owed;
        let number = Some(number);
        self.send(node, ToAgent::Signal { term: self.term, job, attempt, target, signal, number });
    }

    fn says_what_was_signalled(&self, node: &NodeName) -> bool {
        self.nodes.get(node).is_some_and(|n| n.features.iter().any(|known| known == SIGNALLED))
    }

    /// A node has registered, and was sent what it is to start: it hears what it has not passed on.
    pub(super) fn signal_again(&mut self, node: &NodeName) {
        let mut due: Vec<((JobId, Attempt), Owed)> = Vec::new();
        for (run, nodes) in &self.owing {
            let owed = nodes.get(node).into_iter().flatten();
            due.extend(
                owed.filter(|owed| self.has_to_hear(node, *run, owed.target)).map(|owed| (*run, *owed)),
            );
        }
        due.sort_by_key(|(_, owed)| owed.number);
        if !self.says_what_was_signalled(node) {
            for nodes in self.owing.values_mut() {
                nodes.remove(node);
            }
            self.owing.retain(|_, nodes| !nodes.is_empty());
        }
        for (run, owed) in due {
            self.send_owed(node, run, owed);
        }
    }

    /// Whether there may still be on a node what a signal was for.
    fn has_to_hear(&self, node: &NodeName, (job, attempt): (JobId, Attempt), target: SignalTarget) -> bool {
        let Some(record) = self.job(job).filter(|record| record.row.attempt == attempt) else { return false };
        if !matches!(record.row.phase, Phase::Running(_)) {
            return false;
        }
        match target {
            SignalTarget::Step(step) => record.steps.get(&step).is_some_and(|row| lives_on(row, node)),
            _ => record.steps.values().any(|row| lives_on(row, node)),
        }
    }

    /// An agent has passed a signal on, or has nothing any more to which it could.
    pub(super) fn signalled(&mut self, node: &NodeName, run: (JobId, Attempt), number: u64) {
        let Some(nodes) = self.owing.get_mut(&run) else { return };
        if let Some(list) = nodes.get_mut(node) {
            list.retain(|owed| owed.number != number);
            if list.is_empty() {
                nodes.remove(node);
            }
        }
        if nodes.is_empty() {
            self.owing.remove(&run);
        }
    }
}

fn lives_on(row: &StepRow, node: &NodeName) -> bool {
    row.nodes.find(node).and_then(|at| row.nodes.get(at)).is_some_and(|part| part.exit.is_none())
}
