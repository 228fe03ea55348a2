//! Controllers that are held up, and what is asked of the program that powers nodes off: never for a node that answers, nor because the
//! controller itself did not listen, and one at a time.

use crate::faults::Kind;
use crate::workload::ClientAct;
use crate::world::{Happening, World};
use berth_model::ids::NodeName;
use berth_model::link::FromAgent;
use berth_model::time::{Span, Time};
use std::collections::BTreeMap;

/// So long before it is asked for a word of the node may lie unread: the controller was held up between its two looks, and both were late.
const UNREAD: Span = Span(12_500_000);
/// A controller that is held up for longer than the node may be silent, and for that, waits for all nodes anew.
const LATE: Span = Span(3_000_000);

/// See the module.
#[derive(Default)]
pub(crate) struct Fencing {
    /// When a word of each node came to where the controller is, which may read it later.
    came: BTreeMap<NodeName, Vec<Time>>,
    /// Programs at work, and which core asked for each.
    running: BTreeMap<NodeName, u64>,
    /// Cluster time, and the world's, of what the core has handled since the last commit.
    handled: Vec<(Time, Time)>,
}

impl Fencing {
    /// The core has handled something, the first since a commit or not.
    pub(crate) fn handled(&mut self, first: bool, cluster: Time, now: Time) {
        if first {
            self.handled.clear();
        }
        self.handled.push((cluster, now));
    }

    /// A program has ended.
    pub(crate) fn ended(&mut self, node: &NodeName, life: u64) {
        if self.running.get(node) == Some(&life) {
            self.running.remove(node);
        }
    }
}

/// The least that so much of cluster time takes: that goes faster or slower than the world's by a tenth at most.
pub(crate) fn least(span: Span) -> Span {
    Span(span.0 * 10 / 11)
}

/// The most.
fn most(span: Span) -> Span {
    Span(span.0 * 10 / 9)
}

impl World {
    /// After how much silence nodes are powered off, where they are.
    fn fence_after(&self) -> Option<Span> {
        let programs = &self.chaos.config.programs;
        (!programs.fence.is_empty()).then(|| Span::from_secs(programs.fence_after_seconds.into()))
    }

    /// The controller stands still: its disk does not answer, or its machine sleeps. What comes meanwhile waits. Some agents give their
    /// connections up.
    pub(crate) fn hold_up(&mut self) {
        self.count(Kind::HeldUp.name());
        let after = self.fence_after().unwrap_or(Span::from_secs(20));
        let lasts = match self.rng.below(3) {
            0 => self.span(1_000_000, 15_000_000),
            1 => self.span(after.0 - 1_000_000, after.0 + LATE.0),
            _ => {
                let long = most(Span(after.0 + LATE.0)).0;
                self.span(long + 1_000_000, long + 10_000_000)
            }
        };
        self.controller.held = Some((self.now, self.now + lasts));
        self.note(|| format!("the controller stands still for {} s", lasts.secs()));
        for connection in self.machines.values().filter_map(|m| m.connection).collect::<Vec<_>>() {
            if self.rng.permille(500) {
                let gives_up = self.span(1_000_000, lasts.0);
                self.plan(gives_up, Happening::Cut { connection });
            }
        }
    }

    /// Whether a node may still be powered off: by a program that was asked for it before the node answered again, be it by a controller that is no
    /// more.
    pub(crate) fn programs_are_out(&self) -> bool {
        self.queue.values().any(|what| matches!(what, Happening::Fences { .. }))
    }

    /// Until when the controller stands still.
    pub(crate) fn held_up(&self) -> Option<Time> {
        self.controller.held.map(|(_, until)| until).filter(|until| *until > self.now)
    }

    /// Until when something waits for a controller that stands still.
    pub(crate) fn waits_unread(&self, what: &Happening) -> Option<Time> {
        let until = self.held_up()?;
        match what {
            // What has come on a connection is read before its end.
            Happening::Unanswered { by_agent: false, .. } => Some(until + Span(1)),
            Happening::ToController { .. }
            | Happening::LossSeen { .. }
            | Happening::CoreWake { .. }
            | Happening::Flush { .. }
            | Happening::DiskLook
            | Happening::Reconfigure
            | Happening::Fenced { .. }
            | Happening::Client(ClientAct::Send(_) | ClientAct::Leaves(_)) => Some(until),
            _ => None,
        }
    }

    /// A word of a node comes to where the controller is.
    pub(crate) fn comes(&mut self, connection: u64, word: &FromAgent) {
        if self.fence_after().is_none() || !self.controller.open.contains(&connection) {
            return;
        }
        let Some(node) = self.links.get(&connection).map(|link| link.node.clone()) else { return };
        let replaced = self.controller.introduced.get(&node).is_some_and(|latest| connection < *latest);
        if !replaced && !self.is_of_before(&node, connection, word) {
            self.fencing.came.entry(node).or_default().push(self.now);
        }
    }

    /// A node is to be powered off, which the core found at a cluster time.
    pub(crate) fn may_fence(&mut self, node: &NodeName, asked: Time) -> Result<(), String> {
        let Some(after) = self.fence_after() else {
            return Err(format!("{node} is powered off, and no program is there for that"));
        };
        let found = self.fencing.handled.iter().find(|(cluster, _)| *cluster == asked);
        let found = found.map_or(self.now, |(_, at)| *at);
        let silent = least(after);
        if found.since(self.controller.started) < silent {
            return Err(format!("{node} is powered off by a controller that has not waited for it"));
        }
        let unread = Time(found.0 - UNREAD.0);
        let came = self.fencing.came.get(node).and_then(|all| all.iter().rev().find(|at| **at < unread));
        if let Some(at) = came.filter(|at| found.since(**at) < silent) {
            return Err(format!("{node} is powered off, and answered {} s before", found.since(*at).secs()));
        }
        if let Some((from, until)) = self.controller.held
            && until <= found
            && until.since(from) > most(Span(after.0 + LATE.0))
            && found.since(until) < silent
        {
            return Err(format!(
                "{node} is powered off {} s after the controller stood still",
                found.since(until).secs()
            ));
        }
        let life = self.controller.life;
        if self.fencing.running.insert(node.clone(), life) == Some(life) {
            return Err(format!("two programs at a time are to power {node} off"));
        }
        Ok(())
    }
}
