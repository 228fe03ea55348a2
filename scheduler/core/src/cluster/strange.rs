//! Keys that are nobody's any more: a node that was out of reach when a machine was removed, or had its key exchanged, was not told. It
//! says who has something of it when it is back, and is told then.

use super::Cluster;
use super::exchange::MOST_TEXT;
use super::timers::Timer;
use berth_model::exchange::ToPeers;
use berth_model::ids::NodeName;
use berth_model::member::KeyId;
use berth_model::time::{Span, Time};
use std::collections::{BTreeMap, BTreeSet};

/// Most keys that one node may tell.
const MOST: usize = 16_384;
/// How long it is waited for the key of the controller's own machine, which is on no record, after a start of the controller.
const PATIENCE: Span = Span::from_secs(10);

/// Keys of nobody, by the nodes that told them, and until when one of them may yet prove to be the own machine's.
pub(super) type Strange = BTreeMap<NodeName, (BTreeSet<String>, Time)>;

impl Cluster {
    /// A node tells by which keys machines are connected to it, or may be.
    pub(super) fn told_of_keys(&mut self, node: &NodeName, keys: Vec<String>) {
        let (until, told) = (self.clock + PATIENCE, keys.into_iter().take(MOST));
        let strange = |key: &String| key.len() <= MOST_TEXT && !self.is_somebodys(key);
        let strange: BTreeSet<String> = told.filter(strange).collect();
        self.strange.remove(node);
        if !strange.is_empty() {
            self.strange.insert(node.clone(), (strange, until));
            self.timers.insert((until, Timer::Strange));
        }
        // The own machine's may be what others waited for.
        self.end_strange();
    }

    /// Ends what nobody has by right.
    pub(super) fn end_strange(&mut self) {
        let awaited =
            self.nodes.keys().any(|node| self.is_own(node) && self.exchange.address(node).is_none());
        let all = std::mem::take(&mut self.strange);
        for (node, (keys, until)) in all {
            if awaited && until > self.clock {
                self.strange.insert(node, (keys, until));
                continue;
            }
            let ended = keys.into_iter().filter(|key| !self.is_somebodys(key));
            let told = ended.map(|key| (node.clone(), ToPeers::EndServe { key, digest: None })).collect();
            self.tell_peers(told);
        }
    }

    /// Whether a node is on the controller's own machine, which did not join.
    fn is_own(&self, node: &NodeName) -> bool {
        !self.members.contains_key(node)
    }

    /// Whether a key is a member's, or was told by a node on the controller's own machine.
    fn is_somebodys(&self, key: &str) -> bool {
        self.keys.contains_key(&KeyId(key.to_string()))
            || self.exchange.shown(key).is_some_and(|node| self.is_own(node))
    }
}
