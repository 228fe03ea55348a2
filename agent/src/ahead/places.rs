//! How much is done at the same time for other nodes: a user has some of the places, so that what their registries do not answer is their own
//! affair, and who has none gets one also where all are taken.

use berth_model::ids::Uid;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// A user has this part of the places at most.
const PART: usize = 4;

/// Places, and who has how many of them.
pub(super) struct Places {
    most: usize,
    taken: Mutex<BTreeMap<Uid, usize>>,
    freed: Notify,
}

/// One of them, until it is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    user: Uid,
}

impl Places {
    pub(super) fn new(most: usize) -> Arc<Places> {
        Arc::new(Places { most, taken: Mutex::default(), freed: Notify::new() })
    }

    fn taken(&self) -> MutexGuard<'_, BTreeMap<Uid, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, when there is one for this user.
    pub(super) async fn place(self: &Arc<Self>, user: Uid) -> Place {
        loop {
            // Before the look, so that nothing is missed.
            let freed = self.freed.notified();
            if let Some(place) = self.at_once(user) {
                return place;
            }
            freed.await;
        }
    }

    fn at_once(self: &Arc<Self>, user: Uid) -> Option<Place> {
        let mut taken = self.taken();
        let (all, own) = (taken.values().sum::<usize>(), taken.get(&user).copied().unwrap_or(0));
        if own > 0 && (all >= self.most || own >= self.most / PART) {
            return None;
        }
        taken.insert(user, own + 1);
        Some(Place { places: Arc::clone(self), user })
    }

    #[cfg(test)]
    pub(super) fn of(&self, user: Uid) -> usize {
        self.taken().get(&user).copied().unwrap_or(0)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        if let Some(own) = taken.get_mut(&self.user) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.user);
            }
        }
        drop(taken);
        self.places.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_a_quarter_of_the_places_and_who_has_none_gets_one() {
        let places = Places::new(8);
        let take = |user| places.at_once(Uid(user));
        let mut held = Vec::new();
        for user in 1..=4 {
            held.extend([take(user).unwrap(), take(user).unwrap()]);
            assert!(take(user).is_none());
        }
        // All are taken, by registries that may never say anything.
        let fifth = take(5).unwrap();
        assert!(take(5).is_none());
        held.truncate(2);
        assert!(take(5).is_some());
        drop((fifth, held));
        assert!(places.taken().is_empty());
    }
}
