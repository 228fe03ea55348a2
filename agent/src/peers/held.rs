//! Which images this node has, told to the controller: all of them after each registration, and then what changed.

use super::Peers;
use crate::images::Images;
use berth_model::exchange::{FromPeers, HeldImage};
use berth_model::ids::Uid;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// How often it is looked what the store has; pulls are seen at once.
const EVERY: Duration = Duration::from_secs(30);
/// Changes that come together are told at once.
const TOGETHER: Duration = Duration::from_millis(200);
/// Images that are told of.
const MOST_IMAGES: usize = 4096;
/// Users of one that are.
const MOST_USERS: usize = 64;
/// Images in one message.
const AT_ONCE: usize = 512;

type Held = BTreeMap<String, Vec<Uid>>;

/// What was told.
#[derive(Default)]
pub(super) struct Told {
    /// Nothing, on the present registration, where it is absent.
    last: Mutex<Option<Held>>,
    changed: Notify,
}

impl Told {
    /// The controller knows nothing of it.
    pub(super) fn forget(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.look();
    }

    /// Something may have changed.
    pub(super) fn look(&self) {
        self.changed.notify_one();
    }

    /// What is to be told of what there is now.
    fn news(&self, now: Held) -> Vec<FromPeers> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let before = last.as_ref();
        let all = before.is_none();
        let differs = |(digest, users): &(&String, &Vec<Uid>)| {
            before.is_none_or(|before| before.get(*digest) != Some(users))
        };
        let new: Vec<HeldImage> = now
            .iter()
            .filter(differs)
            .map(|(digest, users)| HeldImage { digest: digest.clone(), users: users.clone() })
            .collect();
        let gone = |before: &Held| before.keys().filter(|d| !now.contains_key(*d)).cloned().collect();
        let gone: Vec<String> = before.map(gone).unwrap_or_default();
        let mut said = Vec::new();
        let mut chunks = new.chunks(AT_ONCE);
        let first = chunks.next().unwrap_or_default().to_vec();
        if all || !first.is_empty() || !gone.is_empty() {
            said.push(FromPeers::Holds { all, images: first, gone });
        }
        said.extend(chunks.map(|images| FromPeers::Holds {
            all: false,
            images: images.to_vec(),
            gone: Vec::new(),
        }));
        *last = Some(now);
        said
    }
}

/// Tells it for as long as it is polled.
pub(super) async fn keep(peers: Arc<Peers>, images: Arc<Images>) {
    loop {
        let changed = peers.told.changed.notified();
        // Either is a reason to look.
        let _ = tokio::time::timeout(EVERY, changed).await;
        tokio::time::sleep(TOGETHER).await;
        let images = Arc::clone(&images);
        match tokio::task::spawn_blocking(move || held(&images)).await {
            Ok(Ok(now)) => peers.told.news(now).into_iter().for_each(|said| peers.say(said)),
            Ok(Err(e)) => tracing::warn!("which images this node has is not told: {e}"),
            // The agent ends.
            Err(_) => return,
        }
    }
}

fn held(images: &Images) -> berth_images::Result<Held> {
    let own = rustix::process::geteuid().as_raw();
    let all = images.store()?.all_held()?.into_iter().take(MOST_IMAGES);
    let users = |users: std::collections::BTreeSet<u32>| match images.is_shared() {
        true => users.into_iter().take(MOST_USERS).map(Uid).collect(),
        false => vec![Uid(own)],
    };
    Ok(all.map(|(digest, of)| (digest.to_string(), users(of))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(of: &[(&str, u32)]) -> Held {
        of.iter().map(|(digest, user)| ((*digest).to_string(), vec![Uid(*user)])).collect()
    }

    #[test]
    fn what_changed_is_told_and_all_of_it_to_whoever_knows_nothing() {
        let told = Told::default();
        let image = |digest: &str, user| HeldImage { digest: digest.into(), users: vec![Uid(user)] };
        let holds = |all, images, gone: &[&str]| {
            let gone = gone.iter().map(|d| (*d).to_string()).collect();
            vec![FromPeers::Holds { all, images, gone }]
        };
        assert_eq!(told.news(held(&[])), holds(true, vec![], &[]));
        assert_eq!(told.news(held(&[("a", 1)])), holds(false, vec![image("a", 1)], &[]));
        assert_eq!(told.news(held(&[("a", 1)])), vec![]);
        assert_eq!(
            told.news(held(&[("a", 2), ("b", 1)])),
            holds(false, vec![image("a", 2), image("b", 1)], &[])
        );
        assert_eq!(told.news(held(&[("b", 1)])), holds(false, vec![], &["a"]));
        told.forget();
        assert_eq!(told.news(held(&[("b", 1)])), holds(true, vec![image("b", 1)], &[]));
        let many: Held = (0..AT_ONCE + 1).map(|n| (n.to_string(), vec![Uid(1)])).collect();
        assert_eq!(told.news(many).len(), 2);
    }
}
