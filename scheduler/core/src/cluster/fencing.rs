//! Power fences (`fence` in `[programs]`): a node that is silent for too long is powered off by the site's program. When that says so,
//! what ran there is gone, as surely as after a boot.
//!
//! Only what was asked for when nothing had been heard of the node since is evidence: a node that speaks again may have begun something new,
//! whatever becomes of the program. Nothing of it is stored: a controller that starts waits for its nodes anew.
//!
//! Silence may be the controller's own: while it was held up (its disk, a machine that slept), what nodes said lies unread in its queue. So
//! nobody is powered off at the first look, whenever that comes.

use super::Cluster;
use super::timers::Timer;
use crate::event::Effect;
use berth_model::ids::NodeName;
use berth_model::time::{Span, Time};

/// Who looks so much later than it meant to was held up, for longer than agents stay connected perhaps: nodes are waited for anew.
const LATE: Span = Span::from_secs(3);

/// From the first look to the second: until then all that had come is read, and agents that lost their connection have another one.
const ONCE_MORE: Span = Span::from_secs(8);

impl Cluster {
    /// Has a silent node powered off when its time has come, if something of a job may be alive there.
    pub(super) fn watch_fence(&mut self, node: &NodeName) {
        let Some(after) = self.config.fence.as_ref().map(|fence| fence.after) else {
            // Nobody waits for an answer any more.
            if self.nodes.get(node).is_some_and(|n| n.fencing.is_some())
                && let Some(n) = self.node_mut(node)
            {
                n.fencing = None;
            }
            return;
        };
        let now = self.clock;
        let silent = |n: &&crate::node::Node| {
            n.row.condition.not_responding && !n.held.is_empty() && n.fencing.is_none()
        };
        let Some(n) = self.nodes.get(node).map(|n| &**n).filter(silent) else { return };
        let due = (n.last_heard + after).max(n.fence_again.unwrap_or_default());
        // What was found silent before it was heard of once more does not count: the first look was not before it was due.
        let second = n.fence_look.filter(|look| due + ONCE_MORE <= *look);
        let look = second.unwrap_or(due);
        if look > now {
            self.timers.insert((look, Timer::Fence(node.clone())));
            return;
        }
        if look + LATE < now {
            // As after a start.
            let again = now + after;
            if let Some(n) = self.node_mut(node) {
                n.fence_again = Some(again);
                n.fence_look = None;
            }
            self.timers.insert((again, Timer::Fence(node.clone())));
            return;
        }
        if second.is_none() {
            let look = now + ONCE_MORE;
            if let Some(n) = self.node_mut(node) {
                n.fence_look = Some(look);
            }
            self.timers.insert((look, Timer::Fence(node.clone())));
            return;
        }
        if let Some(n) = self.node_mut(node) {
            n.fencing = Some(now);
            n.fence_look = None;
        }
        self.out.effects.push(Effect::Fence { node: node.clone(), asked: now });
    }

    /// Whether nothing is heard of the node.
    pub fn is_silent(&self, node: &NodeName) -> bool {
        self.nodes.get(node).is_some_and(|n| n.row.condition.not_responding)
    }

    /// The program has ended that was asked for at `asked`.
    pub(super) fn fenced(&mut self, node: &NodeName, asked: Time, result: Result<(), String>) {
        let now = self.clock;
        let again = self.config.fence.as_ref().map(|fence| now + fence.after);
        let Some(n) = self.node_mut(node).filter(|n| n.fencing == Some(asked)) else { return };
        n.fencing = None;
        n.fence_again = again;
        let unfenced = result.as_ref().err().map(|why| (n.last_heard, why.clone()));
        // What is tried for days on end fails for the same reason again and again.
        let fresh = n.unfenced != unfenced;
        n.unfenced = unfenced;
        let silent = n.row.condition.not_responding && n.last_heard < asked;
        let link = n.link.filter(|_| silent && result.is_ok());
        match result {
            Ok(()) if silent => {
                n.link = None;
                if let Some(link) = link {
                    let why = format!("{node} was powered off because nothing was heard of it");
                    self.out.effects.push(Effect::Disconnect { connection: link.connection, why });
                }
                self.note_own(format!("fenced {node}: what ran there counts as lost"));
                self.lose_node(node);
                self.await_no_more(node);
            }
            Ok(()) => {
                self.note_own(format!(
                    "fenced {node}, of which something was heard meanwhile: nothing counts as lost"
                ));
                self.watch_fence(node);
            }
            Err(why) => {
                if fresh {
                    self.note_own(format!("could not fence {node}: {why}"));
                }
                self.watch_fence(node);
            }
        }
    }
}
