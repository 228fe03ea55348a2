//! Places for connections, counted by user: no user can use up the descriptors of all.

use berth_model::Uid;
use rustix::process::{Resource, getrlimit};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Which part of the descriptors' number the connections of one user may be.
const PART: u64 = 8;

/// How many connections one user may have, where the descriptors that this process may have now are shared by all.
#[must_use]
pub fn one_users_part() -> usize {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(files / PART).unwrap_or(usize::MAX)
}

/// Open connections of each user. Cheap to clone; every clone is the same table.
#[derive(Debug, Clone, Default)]
pub struct Places(Arc<Mutex<HashMap<Uid, usize>>>);

/// One of them; given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    uid: Uid,
    of: Places,
}

impl Places {
    /// One more for this user; `None` when the user has `most`.
    #[must_use]
    pub fn take(&self, uid: Uid, most: usize) -> Option<Place> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = table.get(&uid).copied().unwrap_or_default();
        if count >= most {
            return None;
        }
        table.insert(uid, count + 1);
        drop(table);
        Some(Place { uid, of: self.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = table.get_mut(&self.uid) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                table.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_has_a_bounded_number_and_who_has_none_is_forgotten() {
        let places = Places::default();
        let take = |uid| places.take(Uid(uid), 3);
        let mut all: Vec<Place> = (0..3).map(|_| take(1000).unwrap()).collect();
        assert!(take(1000).is_none());
        assert!(take(1001).is_some(), "others are not concerned");
        all.pop();
        all.push(take(1000).unwrap());
        all.clear();
        assert!(places.take(Uid(1002), 0).is_none());
        assert!(places.0.lock().unwrap().is_empty());
    }
}
