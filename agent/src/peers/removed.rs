//! What the controller's audit log is to say of images that were removed here: told until it answers, or was told often enough.

use super::Peers;
use berth_model::exchange::{FromPeers, RemovedImage};
use berth_model::ids::Uid;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many connections hear of it: a controller of an earlier version does not know the word, and ends each.
const TRIES: u32 = 3;
/// Most that wait for an answer.
const MOST: usize = 1000;

/// What was not answered, with how often it was said.
#[derive(Default)]
pub(super) struct Unnoted(Mutex<BTreeMap<u64, (u32, FromPeers)>>);

impl Unnoted {
    fn map(&self) -> MutexGuard<'_, BTreeMap<u64, (u32, FromPeers)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is in the log.
    pub(super) fn heard(&self, ask: u64) {
        self.map().remove(&ask);
    }
}

impl Peers {
    /// Has the controller enter who removed these images of others. What it cannot be told is in the agent's own log alone.
    pub(crate) fn note_removed(&self, by: Uid, user: &str, images: &[RemovedImage]) {
        for images in images.chunks(RemovedImage::MOST) {
            let ask = self.last.fetch_add(1, Ordering::Relaxed) + 1;
            let (user, images) = (user.to_string(), images.to_vec());
            let said = FromPeers::Removed { ask, by, user, images };
            let mut unnoted = self.unnoted.map();
            if unnoted.len() >= MOST {
                unnoted.pop_first();
                tracing::warn!(
                    "the controller's audit log does not get all removals of images: it does not answer"
                );
            }
            unnoted.insert(ask, (1, said.clone()));
            drop(unnoted);
            self.say(said);
        }
    }

    /// Says it again to a controller that did not answer before.
    pub(super) fn say_removed(&self) {
        self.unnoted.map().retain(|_, (tries, said)| {
            *tries += 1;
            if *tries > TRIES {
                tracing::warn!(
                    "the controller's audit log does not get a removal of images: it does not answer"
                );
                return false;
            }
            self.say(said.clone());
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Input;
    use berth_model::exchange::ToPeers;
    use berth_model::ids::NodeName;
    use berth_rpc::Uplink;

    #[test]
    fn a_removal_is_said_until_it_is_noted_and_not_for_ever() {
        let peers = Peers::new(NodeName::from("n1"), &Uplink::Local("/nonexistent".into()));
        let (inputs, mut told) = tokio::sync::mpsc::unbounded_channel();
        let _ = peers.inputs.set(inputs);
        let mut asks = || {
            let mut asks = Vec::new();
            while let Ok(input) = told.try_recv() {
                if let Input::Peers(FromPeers::Removed { ask, images, .. }) = input {
                    asks.push((ask, images.len()));
                }
            }
            asks
        };
        let image =
            RemovedImage { digest: "sha256:1".into(), name: String::new(), owners: vec!["ann".into()] };
        peers.note_removed(Uid(0), "root", &vec![image; RemovedImage::MOST + 1]);
        let first = asks();
        assert_eq!(first.iter().map(|(_, images)| *images).collect::<Vec<_>>(), [RemovedImage::MOST, 1]);
        peers.hear(ToPeers::Noted { ask: first[0].0 });
        for _ in 1..TRIES {
            peers.registered();
            assert_eq!(asks(), first[1..]);
        }
        peers.registered();
        assert_eq!(asks(), []);
        peers.note_removed(Uid(0), "root", &[]);
        assert_eq!(asks(), []);
    }
}
