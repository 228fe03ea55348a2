//! What users have nodes fetch that have nothing to do with others: each fetches by itself, with the login that was sent along.

use super::{Asker, MOST_ASKS, Want};
use berth_model::ids::NodeName;
use std::collections::BTreeMap;

/// Questions of such nodes that are open.
#[derive(Clone, Debug, Default)]
pub(super) struct Alone(BTreeMap<Asker, Open>);

#[derive(Clone, Debug)]
struct Open {
    want: Want,
    /// It was seen that it fetches: what goes with that is told once.
    begun: bool,
}

impl Alone {
    pub(super) fn has(&self, asker: &Asker) -> bool {
        self.0.contains_key(asker)
    }

    pub(super) fn want(&self, asker: &Asker) -> Option<&Want> {
        self.0.get(asker).map(|open| &open.want)
    }

    /// A node asks, or asks still. What is beyond its open questions is answered all the same, without what goes with it.
    pub(super) fn asks(&mut self, asker: &Asker, want: &Want) {
        let of_node = (asker.0.clone(), 0)..=(asker.0.clone(), u64::MAX);
        if self.has(asker) || self.0.range(of_node).count() >= MOST_ASKS {
            return;
        }
        self.0.insert(asker.clone(), Open { want: want.clone(), begun: false });
    }

    /// What the question is about, the first time that this is asked.
    pub(super) fn begins(&mut self, asker: &Asker) -> Option<Want> {
        let open = self.0.get_mut(asker)?;
        (!std::mem::replace(&mut open.begun, true)).then(|| open.want.clone())
    }

    pub(super) fn over(&mut self, asker: &Asker) {
        self.0.remove(asker);
    }

    /// The node is out of reach: when it is back it asks anew, and is told anew.
    pub(super) fn gone(&mut self, node: &NodeName) {
        self.0.retain(|(of, _), _| of != node);
    }
}
