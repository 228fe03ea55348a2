//! Keys that are nobody's any more: a node that was out of reach when a machine was removed, or had its key exchanged, was not told. It
//! says who has something of it when it is back, and is told then.
//!
//! After a start of the controller all nodes come at once: what one of them says costs a look-up for each key that it tells, however many others there are.

use super::Cluster;
use super::exchange::MOST_TEXT;
use super::timers::Timer;
use berth_model::exchange::ToPeers;
use berth_model::ids::NodeName;
use berth_model::member::KeyId;
use berth_model::time::{Span, Time};
use std::collections::{BTreeMap, BTreeSet};

/// Most keys that one node may tell.
const MOST: usize = 4_096;
/// How long it is waited for the key of the controller's own machine, which is on no record, after a start of the controller.
const PATIENCE: Span = Span::from_secs(10);

/// Keys that nodes are to end.
type Ended = Vec<(NodeName, String)>;

/// Keys of nobody, and those of the controller's own machine, which did not join.
#[derive(Clone, Debug, Default)]
pub(super) struct Strange {
    /// What nodes told while a key of the own machine was not known yet.
    told: BTreeMap<NodeName, BTreeSet<String>>,
    /// Until when one of these may yet prove to be the own machine's.
    until: Option<Time>,
    /// Nodes on the own machine, with the keys that they have told.
    own: BTreeMap<NodeName, Option<String>>,
}

impl Strange {
    /// There is a node on the controller's own machine.
    pub(super) fn add_own(&mut self, node: &NodeName) {
        self.own.entry(node.clone()).or_default();
        if self.told.is_empty() {
            self.until = None;
        }
    }

    /// A node is on another machine now, or gone.
    pub(super) fn drop_own(&mut self, node: &NodeName) {
        self.own.remove(node);
    }

    /// A node tells its key, and by which keys machines are connected to it. Keys that are to be ended on nodes.
    fn hear(
        &mut self,
        (node, key): (&NodeName, String),
        keys: Vec<String>,
        now: Time,
        is_members: impl Fn(&str) -> bool,
    ) -> Ended {
        let is_own = self.own.contains_key(node);
        if is_own {
            self.own.insert(node.clone(), Some(key));
        }
        let keys: BTreeSet<String> = keys.into_iter().take(MOST).collect();
        let strange = |key: &String| key.len() <= MOST_TEXT && !self.is_somebodys(key, &is_members);
        let strange: BTreeSet<String> = keys.into_iter().filter(strange).collect();
        self.told.remove(node);
        let mut ended = Vec::new();
        if self.waits(now) {
            if !strange.is_empty() {
                self.until = self.until.or(Some(now + PATIENCE));
                self.told.insert(node.clone(), strange);
            }
        } else {
            ended.extend(strange.into_iter().map(|key| (node.clone(), key)));
        }
        // The own machine's may be what others waited for.
        if is_own {
            ended.extend(self.end(now, is_members));
        }
        ended
    }

    /// What nobody has by right, as soon as that can be said.
    fn end(&mut self, now: Time, is_members: impl Fn(&str) -> bool) -> Ended {
        if self.told.is_empty() || self.waits(now) {
            return Vec::new();
        }
        let told = std::mem::take(&mut self.told);
        let all =
            told.into_iter().flat_map(|(node, keys)| keys.into_iter().map(move |key| (node.clone(), key)));
        all.filter(|(_, key)| !self.is_somebodys(key, &is_members)).collect()
    }

    /// Whether what is nobody's now may yet prove to be the own machine's.
    fn waits(&self, now: Time) -> bool {
        self.own.values().any(Option::is_none) && self.until.is_none_or(|until| now < until)
    }

    /// Whether a key is a member's, or was told by a node on the controller's own machine.
    fn is_somebodys(&self, key: &str, is_members: &impl Fn(&str) -> bool) -> bool {
        is_members(key) || self.own.values().any(|own| own.as_deref() == Some(key))
    }
}

impl Cluster {
    /// A node tells its key, and by which keys machines are connected to it, or may be.
    pub(super) fn told_of_keys(&mut self, node: &NodeName, key: String, keys: Vec<String>) {
        let members = &self.keys;
        let is_members = |key: &str| members.contains_key(&KeyId(key.to_string()));
        let ended = self.strange.hear((node, key), keys, self.clock, is_members);
        if let Some(until) = self.strange.until.filter(|until| self.clock < *until) {
            self.timers.insert((until, Timer::Strange));
        }
        self.end_on_nodes(ended);
    }

    /// Ends what nobody has by right.
    pub(super) fn end_strange(&mut self) {
        let members = &self.keys;
        let is_members = |key: &str| members.contains_key(&KeyId(key.to_string()));
        let ended = self.strange.end(self.clock, is_members);
        self.end_on_nodes(ended);
    }

    fn end_on_nodes(&mut self, ended: Ended) {
        let end = |(node, key)| (node, ToPeers::EndServe { key, digest: None });
        self.tell_peers(ended.into_iter().map(end).collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn all_nodes_of_a_large_cluster_come_at_once_for_a_few_look_ups_each() {
        const NODES: u32 = 10_000;
        let (mut strange, looks) = (Strange::default(), Cell::new(0_u32));
        let members: BTreeSet<String> = (0..NODES).map(|n| format!("key {n}")).collect();
        let is_members = |key: &str| {
            looks.set(looks.get() + 1);
            members.contains(key)
        };
        let (head, now) = (NodeName::from("head"), Time::from_secs(1_000_000));
        strange.add_own(&head);
        // Each has a connection of the head's, of another node's, and of a machine's that was removed.
        let all = |strange: &mut Strange| -> Ended {
            let comes = |n: u32| {
                let keys = vec!["head's".to_string(), format!("key {}", (n + 1) % NODES), "old".to_string()];
                strange.hear((&NodeName(format!("n{n}")), format!("key {n}")), keys, now, is_members)
            };
            (0..NODES).flat_map(comes).collect()
        };
        assert!(all(&mut strange).is_empty(), "the head has not come yet");
        let ended = strange.hear((&head, "head's".to_string()), Vec::new(), now, is_members);
        assert_eq!(ended.len(), 10_000);
        assert!(ended.iter().all(|(_, key)| key == "old"));
        assert_eq!(looks.get(), 5 * NODES, "three of each node, and two for what had to wait");
        assert_eq!(all(&mut strange).len(), 10_000);
        assert_eq!(looks.get(), 8 * NODES);
        // One node says no more than it may.
        looks.set(0);
        let keys = (0..100_000).map(|n| format!("made up {n}")).collect();
        let ended = strange.hear((&NodeName::from("n1"), "key 1".to_string()), keys, now, is_members);
        assert_eq!((ended.len(), looks.get()), (MOST, 4_096));
    }

    #[test]
    fn the_own_machine_is_not_waited_for_without_end() {
        let (mut strange, now) = (Strange::default(), Time::from_secs(1_000_000));
        let (head, n1) = (NodeName::from("head"), NodeName::from("n1"));
        strange.add_own(&head);
        let keys = || vec!["old".to_string()];
        assert!(strange.hear((&n1, "one".to_string()), keys(), now, |_| false).is_empty());
        assert!(strange.end(now, |_| false).is_empty());
        let later = now + PATIENCE;
        let old = [(n1.clone(), "old".to_string())];
        assert_eq!(strange.end(later, |_| false), old);
        assert_eq!(strange.hear((&n1, "one".to_string()), keys(), later, |_| false), old);
    }
}
