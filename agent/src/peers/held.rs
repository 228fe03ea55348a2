//! Which images this node has, told to the controller: all of them after each registration, and then what changed.

use super::Peers;
use crate::images::Images;
use berth_images::{Digest, MadeForms};
use berth_model::exchange::{FromPeers, HeldImage, MadeForm};
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
/// Read-only images of layers of one that are.
const MOST_MADE: usize = 64;
/// Images, with those of layers, in one message.
const AT_ONCE: usize = 512;

type Held = BTreeMap<String, Has>;

/// What is told of one image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Has {
    users: Vec<Uid>,
    made: Vec<MadeForm>,
}

/// What was told.
#[derive(Default)]
pub(super) struct Told {
    /// Nothing, on the present registration, where it is absent.
    last: Mutex<Option<Held>>,
    changed: Notify,
    /// Held by whoever looks and tells: what was seen first is told first.
    telling: Mutex<()>,
    /// What this node made of images that were looked at since the registration: it stands for as long as the records of their layers do.
    made: Mutex<BTreeMap<Digest, MadeForms>>,
}

impl Told {
    /// The controller knows nothing of it.
    pub(super) fn forget(&self) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).clear();
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
        let differs =
            |(digest, has): &(&String, &Has)| before.is_none_or(|before| before.get(*digest) != Some(has));
        let image = |(digest, Has { users, made }): (&String, &Has)| HeldImage {
            digest: digest.clone(),
            users: users.clone(),
            made: made.clone(),
        };
        let new: Vec<HeldImage> = now.iter().filter(differs).map(image).collect();
        let gone = |before: &Held| before.keys().filter(|d| !now.contains_key(*d)).cloned().collect();
        let gone: Vec<String> = before.map(gone).unwrap_or_default();
        let mut said = Vec::new();
        let mut chunks = in_parts(new).into_iter();
        let first = chunks.next().unwrap_or_default();
        if all || !first.is_empty() || !gone.is_empty() {
            said.push(FromPeers::Holds { all, images: first, gone });
        }
        said.extend(chunks.map(|images| FromPeers::Holds { all: false, images, gone: Vec::new() }));
        *last = Some(now);
        said
    }
}

/// As many as fit into one message each.
fn in_parts(images: Vec<HeldImage>) -> Vec<Vec<HeldImage>> {
    let (mut parts, mut size) = (Vec::<Vec<HeldImage>>::new(), AT_ONCE);
    for image in images {
        size += 1 + image.made.len();
        if size > AT_ONCE {
            size = 1 + image.made.len();
            parts.push(Vec::new());
        }
        if let Some(last) = parts.last_mut() {
            last.push(image);
        }
    }
    parts
}

impl Peers {
    /// Looks what the store has, and tells what is new. Who has just brought an image does so before it says that it is there: of whoever is
    /// sent here next it is known then what nodes agree on.
    pub(crate) fn tell_held(&self, images: &Images) {
        let _one = self.told.telling.lock().unwrap_or_else(PoisonError::into_inner);
        match held(images, &self.told) {
            Ok(now) => self.told.news(now).into_iter().for_each(|said| self.say(said)),
            Err(e) => tracing::warn!("which images this node has is not told: {e}"),
        }
    }
}

/// Tells it for as long as it is polled.
pub(super) async fn keep(peers: Arc<Peers>, images: Arc<Images>) {
    loop {
        let changed = peers.told.changed.notified();
        // Either is a reason to look.
        let _ = tokio::time::timeout(EVERY, changed).await;
        tokio::time::sleep(TOGETHER).await;
        let (telling, images) = (Arc::clone(&peers), Arc::clone(&images));
        // Else the agent ends.
        if tokio::task::spawn_blocking(move || telling.tell_held(&images)).await.is_err() {
            return;
        }
    }
}

fn held(images: &Images, told: &Told) -> berth_images::Result<Held> {
    let own = rustix::process::geteuid().as_raw();
    let store = images.store()?;
    let all = store.all_held()?.into_iter().take(MOST_IMAGES);
    let remembered = || told.made.lock().unwrap_or_else(PoisonError::into_inner);
    // Whoever tells alone has it meanwhile, and nobody waits for the disk.
    let (mut before, mut known) = (std::mem::take(&mut *remembered()), BTreeMap::new());
    let travel = images.forms_travel();
    let mut made = |digest: &Digest| {
        if !travel {
            return Vec::new();
        }
        let made = match store.made_forms_since(digest, before.remove(digest)) {
            Ok(made) => made,
            Err(e) => {
                // It is looked at again the next time.
                tracing::debug!("what this node made of image {digest} is not told: {e}");
                return Vec::new();
            }
        };
        let forms: Vec<MadeForm> = made.forms().iter().take(MOST_MADE).cloned().collect();
        known.insert(digest.clone(), made);
        forms
    };
    let users = |users: std::collections::BTreeSet<u32>| match images.is_shared() {
        true => users.into_iter().take(MOST_USERS).map(Uid).collect(),
        false => vec![Uid(own)],
    };
    let all = all.map(|(digest, of)| (digest.to_string(), Has { users: users(of), made: made(&digest) }));
    let all = all.collect();
    *remembered() = known;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(of: &[(&str, u32)]) -> Held {
        let has = |user: &u32| Has { users: vec![Uid(*user)], made: Vec::new() };
        of.iter().map(|(digest, user)| ((*digest).to_string(), has(user))).collect()
    }

    #[test]
    fn what_changed_is_told_and_all_of_it_to_whoever_knows_nothing() {
        let told = Told::default();
        let image = |digest: &str, user| HeldImage {
            digest: digest.into(),
            users: vec![Uid(user)],
            made: Vec::new(),
        };
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
        let many = |made: usize| {
            let form = MadeForm { layer: "l".into(), writer: "w".into(), digest: "d".into(), size: 1 };
            let has = Has { users: vec![Uid(1)], made: vec![form; made] };
            (0..AT_ONCE + 1).map(|n| (n.to_string(), has.clone())).collect::<Held>()
        };
        assert_eq!(told.news(many(0)).len(), 2);
        // What was made is news, and counts.
        let said = told.news(many(MOST_MADE));
        let sizes = said.iter().map(|said| match said {
            FromPeers::Holds { images, .. } => images.len(),
            _ => 0,
        });
        let sizes: Vec<usize> = sizes.collect();
        assert_eq!(sizes.iter().sum::<usize>(), AT_ONCE + 1);
        assert!(sizes.iter().all(|size| size * (1 + MOST_MADE) <= AT_ONCE), "{sizes:?}");
        assert_eq!(told.news(many(MOST_MADE)), []);
    }
}
